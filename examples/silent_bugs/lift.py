"""Takes code out of a checkout and makes it callable, where importing the whole of it is not possible.

Three ways, from the plain to the surgical; each runs the repository's own lines, none copies them:

    use(checkout, "nanochat", stubs=["wandb"])      import it, with stand-ins for packages that are not installed
    lift(file, "Trainer.compute_loss", torch=torch) compile one function, class or method, with given globals
    passage(file, "main", "lr = get_lr(")           compile the statements of a script or function that start so
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


class _Class(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __getitem__(cls, key: object) -> Any:
        return cls

    def __or__(cls, other: object) -> Any:
        return cls

    __ror__ = __or__


class _Anything(metaclass=_Class):
    """Stands for any name of a missing package: callable, subscriptable, a base class and a decorator."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __init_subclass__(cls, **kwargs: object) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __getitem__(self, key: object) -> Any:
        return self

    def __or__(self, other: object) -> Any:
        return self

    __ror__ = __or__

    def __iter__(self) -> Any:
        return iter(())

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: object) -> None: ...


class _StandIn(types.ModuleType):
    __version__ = "0.0"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Class(name, (_Anything,), {})
        setattr(self, name, made)  # the same one when asked again
        return made


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages that it was told to stand in for, and whatever lies inside them."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if any(name == stub or name.startswith(f"{stub}.") for stub in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


_stand_ins = _StandIns()


class _Bare(types.ModuleType):
    """A package of the checkout that imports only what is asked of it."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.__path__ = [str(folder)]
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__package__ = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        init = Path(self.__path__[0], "__init__.py")
        for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))) if init.is_file() else ():
            if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
                home = importlib.import_module("." * node.level + (node.module or ""), self.__name__)
                return getattr(home, next(a.name for a in node.names if (a.asname or a.name) == name))
        raise AttributeError(f"{self.__name__} has no {name}")


def stub(*names: str) -> None:
    """Let `import name` (and anything inside) give a stand-in, unless the package is installed."""
    if _stand_ins not in sys.meta_path:
        sys.meta_path.append(_stand_ins)  # last: what is installed comes first
    _stand_ins.names.update(names)


def use(checkout: str | Path, module: str, *, stubs: Iterable[str] = (), bare: Iterable[str] = ()) -> types.ModuleType:
    """Import a module of a checkout (or of its src folder), never an installed one of the same name.

    stubs: packages that may be missing. bare: packages of the checkout whose __init__ is not run; a name that is asked
    of one is imported from where its __init__ says, and nothing else is.
    """
    stub(*stubs)
    folder = str(checkout)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    for name in bare:
        if name not in sys.modules:
            sys.modules[name] = _Bare(name, Path(folder, *name.split(".")))
    found = importlib.import_module(module)
    file = getattr(found, "__file__", None) or ""
    if not file.startswith(folder):
        raise ImportError(f"{module} came from {file or 'nowhere'}, not from {folder}")
    return found


def lift(file: str | Path, *names: str, **given: Any) -> Any:
    """The functions, classes, methods (`Class.method`) or assigned names of a file, compiled with `given` as globals.

    A single name is returned itself, several as a namespace. What the file imports is not run. Annotations and
    decorators whose names are not given are dropped.
    """
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "lifted", "__file__": str(file), **given}
    chosen = [_plain(_find(tree, name, file), namespace) for name in names]
    _run(chosen, file, namespace)
    found = [namespace[_target(node)] for node in chosen]
    return (
        found[0]
        if len(found) == 1
        else types.SimpleNamespace(**{_target(n): v for n, v in zip(chosen, found, strict=True)})
    )


def passage(file: str | Path, function: str | None, *openings: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The statements whose source starts with one of `openings`, in their order, as a function that runs them in a
    namespace and returns it.

    function: where they stand, at any depth; None for the whole file.
    """
    source = Path(file).read_text(encoding="utf-8")
    lines = source.split("\n")
    tree: ast.AST = ast.parse(source)
    if function is not None:
        tree = _find(tree, function, file)
    found: list[ast.stmt] = []

    def collect(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt) and lines[child.lineno - 1].lstrip().startswith(openings):
                found.append(_plain(child, {}))
            else:
                collect(child)

    collect(tree)
    if not found:
        raise LookupError(f"{file}: {function or 'no statement'} has none that starts with {' or '.join(openings)}")
    code = compile(ast.fix_missing_locations(ast.Module(body=found, type_ignores=[])), str(file), "exec")

    def run(namespace: dict[str, Any]) -> dict[str, Any]:
        exec(code, namespace)
        return namespace

    return run


def _find(tree: ast.AST, name: str, file: object) -> Any:
    node = tree
    for part in name.split("."):
        for child in ast.walk(node) if node is not tree else ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name == part:
                node = child
                break
            if isinstance(child, ast.Assign | ast.AnnAssign) and part in map(ast.unparse, _targets(child)):
                node = child
                break
        else:
            inner = [n for n in ast.walk(node) if getattr(n, "name", None) == part and isinstance(n, ast.stmt)]
            if not inner:
                raise LookupError(f"{file} has no {name}")
            node = inner[0]
    return node


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _target(node: Any) -> str:
    return node.name if hasattr(node, "name") else ast.unparse(_targets(node)[0])


def _plain(node: Any, known: Mapping[str, Any]) -> Any:
    """Without the annotations and decorators that would need an import; defaults stay."""
    import builtins

    def resolvable(expression: ast.expr) -> bool:
        names = [n.id for n in ast.walk(expression) if isinstance(n, ast.Name)]
        return all(name in known or hasattr(builtins, name) for name in names)

    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            part.decorator_list = [d for d in part.decorator_list if resolvable(d)]
            part.returns = None
            for argument in [*part.args.posonlyargs, *part.args.args, *part.args.kwonlyargs]:
                argument.annotation = None
            for argument in (part.args.vararg, part.args.kwarg):
                if argument is not None:
                    argument.annotation = None
        elif isinstance(part, ast.ClassDef):
            part.decorator_list = [d for d in part.decorator_list if resolvable(d)]
            part.bases = [b for b in part.bases if resolvable(b)]
        elif isinstance(part, ast.AnnAssign) and not resolvable(part.annotation):
            part.annotation = ast.Constant(value="object")
    return node


def _run(nodes: list[Any], file: object, namespace: dict[str, Any]) -> None:
    code = compile(ast.fix_missing_locations(ast.Module(body=nodes, type_ignores=[])), str(file), "exec")
    exec(code, namespace)
