"""Finds tests that cannot fail: `kat verify --lint-tests tests/`. The files are parsed, never run.

    no-assertion        nothing in the test can fail but a crash
    constant-assertion  assert True, assert x or True, assert (x, "message"), assert x == x, allclose(x, x), 1 + 1 == 2
    weak-assertion      only shapes, lengths, types, existence or "is not None" are asserted, never a value; or only
                        that a call gives the same twice, in a test whose name and arguments speak of no such thing
    early-return        `if …: return` before the first assertion: the test passes without one; pytest.skip says so
    broad-raises        pytest.raises(Exception) without match: any crash passes, a misspelt name too
    no-code-under-test  the file imports nothing but test tools and libraries, or never uses what it imports
    swallowed-exception except Exception: pass, also around the assertions themselves
    constant-input      the only tensors are all ones or all zeros, of which most wrong answers are right ones
    skip-without-reason
    not-read            the file is no Python

A rule keeps silent where it cannot know: a helper, a fixture or a parameter that asserts is an assertion. Rows of the
catalogue: VQ1 (constant-assertion), VQ2 (weak-assertion, constant-input), VQ3 and VQ5 (weak-assertion), VQ4
(no-code-under-test), VQ6 (swallowed-exception). VQ7 is the runner's VACUOUS.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kat.errors import UsageError

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Calls that fail by themselves, by the last part of their name.
ASSERTING = re.compile(
    r"_?(?:assert|test|check|verify|expect|ensure|validate|compare|require|should|must|raises|warns|deprecated_call|fail"
    r"|run_state_machine_as_test|parametrize_with_checks|gradcheck|gradgradcheck)(?:$|_|[A-Z])|_?assert"
)
# Imports that are not the code under test, unless a package of that name lies beside the tests.
TOOLS = frozenset(
    {
        *(
            "pytest",
            "_pytest",
            "hypothesis",
            "numpy",
            "scipy",
            "torch",
            "pandas",
            "jax",
            "jaxlib",
            "flax",
            "tensorflow",
        ),
        *("sklearn", "transformers", "datasets", "tokenizers", "safetensors", "accelerate", "mock", "freezegun"),
        *("responses", "faker", "requests_mock", "syrupy", "pytest_mock"),
    }
)
RUNNERS = frozenset(
    {
        *("subprocess.run", "subprocess.check_call", "subprocess.check_output", "subprocess.Popen", "os.system"),
        *("runpy.run_path", "runpy.run_module", "importlib.import_module", "importlib.reload", "exec", "eval"),
    }
)
LIBRARIES = frozenset({"torch", "np", "numpy", "jnp", "jax", "mx", "tf"})
SAME_VALUES = frozenset(
    {"ones", "zeros", "full", "empty", "ones_like", "zeros_like", "full_like", "empty_like", "new_ones", "new_zeros"}
)
NOT_INPUTS = re.compile(
    r"mask|weight|bias|pad|expected|target|label|advantage|reward|grad|cache|state|zero|empty", re.I
)
SHAPES = frozenset(["shape", "ndim", "dtype", "device", "size", "dim", "numel", "nbytes", "itemsize", "requires_grad"])
BROAD = frozenset({"Exception", "BaseException", "AssertionError"})


@dataclass(frozen=True, order=True)
class LintFinding:
    """One test (or file) that cannot fail, and why."""

    file: Path
    line: int
    rule: str
    test: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.test}: {self.message}"


def lint(paths: Iterable[Path | str]) -> list[LintFinding]:
    """What is found in the test files (`test_*.py`, `*_test.py`) under these folders, and in these files.

    UsageError where a path does not exist.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise UsageError(f"--lint-tests {path}: no such file or folder")
    files = sorted({file for path in given for file in _test_files(path)})
    read: dict[Path, _File] = {}
    findings = []
    for file in files:
        try:
            read[file] = _File.read(file)
        except (SyntaxError, ValueError) as error:  # ValueError: null bytes, or no UTF-8
            findings.append(LintFinding(file, getattr(error, "lineno", 0) or 0, "not-read", file.name, str(error)))
    known: dict[Path, _File | None] = {file.resolve(): parsed for file, parsed in read.items()}
    for file, parsed in read.items():
        findings += _Linter(file, parsed, _around(file, known)).findings()
    return sorted(findings)


def _test_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.rglob("*.py"):
        hidden = any(
            part.startswith(".") or part in ("__pycache__", "node_modules") for part in file.relative_to(path).parts
        )
        if not hidden and (file.name.startswith("test_") or file.stem.endswith("_test")):
            yield file


# What a file says


@dataclass
class _File:
    """A parsed file: its functions by name (methods too), and what it binds by import: name -> dotted origin."""

    tree: ast.Module
    functions: dict[str, list[Function]] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> "_File":
        found = cls(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        for node in ast.walk(found.tree):
            if isinstance(node, Function):
                found.functions.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    found.imports[alias.asname or alias.name.partition(".")[0]] = alias.name
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                for alias in node.names:
                    joint = "" if origin.endswith(".") else "."
                    found.imports[alias.asname or alias.name] = f"{origin}{joint}{alias.name}"
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.used.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.used.add(node.value)  # pytest.mark.usefixtures("name"), __all__
        return found


def _around(file: Path, known: dict[Path, _File | None]) -> dict[Path, _File]:
    """Files whose helpers and fixtures a test file may use: all that are no tests in its folder, and in the folders
    above it up to the root of the project."""
    found: dict[Path, _File] = {}
    for folder in _folders(file):
        for other in sorted(folder.glob("*.py")):
            inside_tests = folder == file.parent or other.name == "conftest.py" or _is_tests(folder)
            if other == file.resolve() or not inside_tests or other.stat().st_size > 1_000_000:
                continue
            if other not in known:
                try:
                    known[other] = _File.read(other)
                except (SyntaxError, ValueError):
                    known[other] = None
            parsed = known[other]
            if parsed is not None:
                found[other] = parsed
    return found


def _folders(file: Path) -> list[Path]:
    """The file's folder and those above it, up to the one that holds a project."""
    folders = []
    for folder in file.resolve().parents:
        folders.append(folder)
        if any((folder / name).exists() for name in (".git", "pyproject.toml", "setup.py", "setup.cfg")):
            break
        if len(folders) > 5:
            break
    return folders


def _is_tests(folder: Path) -> bool:
    return folder.name in ("test", "tests", "testing") or folder.name.endswith(("_test", "_tests"))


def _beside(file: Path) -> set[str]:
    """Names of the packages and modules beside the tests, which are the code under test."""
    names: set[str] = set()
    for folder in _folders(file):
        for place in (folder, folder / "src", folder / "python", folder / "lib"):
            if not place.is_dir() or _is_tests(place):
                continue
            for entry in place.iterdir():
                if entry.is_dir() and not _is_tests(entry) and any(entry.glob("*.py")):
                    names.add(entry.name)
                elif entry.suffix == ".py" and not entry.stem.startswith(("test_", "conftest", "setup")):
                    names.add(entry.stem)
    return names


class _Linter:
    """The rules on one file; `around` are files whose helpers it may use."""

    def __init__(self, path: Path, file: _File, around: dict[Path, _File]) -> None:
        self.path, self.file, self.around = path, file, around
        self._in_tests = any(_is_tests(folder) for folder in _folders(path))
        self._asserting: dict[str, bool] = {}
        self.found: list[LintFinding] = []

    def findings(self) -> list[LintFinding]:
        tests = list(self._tests(self.file.tree.body))
        for name, test in tests:
            self._lint(name, test)
        silent = {finding.test for finding in self.found if finding.rule in ("no-assertion", "constant-assertion")}
        if {name for name, _ in tests} - silent and not self._uses_code_under_test():
            self._report(
                self.file.tree.body[0] if self.file.tree.body else tests[0][1],
                "no-code-under-test",
                self.path.name,
                "uses nothing but test tools and libraries: it can only test its own copy of the code",
            )
        return self.found

    def _report(self, node: ast.AST, rule: str, test: str, message: str) -> None:
        self.found.append(LintFinding(self.path, getattr(node, "lineno", 1), rule, test, message))

    def _tests(self, body: Sequence[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function]]:
        for node in body:
            if isinstance(node, Function) and node.name.startswith("test") and not _is_fixture(node):
                yield prefix + node.name, node
            elif isinstance(node, ast.ClassDef) and (
                node.name.startswith("Test") or any("TestCase" in _dotted(base) for base in node.bases)
            ):
                yield from self._tests(node.body, f"{node.name}.")
            elif isinstance(node, ast.If | ast.Try):
                yield from self._tests(node.body, prefix)

    def _lint(self, name: str, test: Function) -> None:
        self._skips(name, test)
        if _skipped(test) or not _reachable(test.body):
            return
        self._swallowed(name, test)
        self._broad_raises(name, test)
        self._early_return(name, test)
        said = _claims(test.body, called=_loaded(test))
        claims = [claim for claim in said if not _constant(claim)]
        constants = [claim for claim in said if _constant(claim)]
        others = self._other_failures(test)
        for claim in constants:
            if (not claims and not others) or _is_slip(claim):
                self._report(claim, "constant-assertion", name, f"`{_source(claim)}` holds whatever the code does")
        if not claims and not others:
            if not constants:
                self._report(test, "no-assertion", name, "asserts nothing: only a crash can fail it")
            return
        repeats = [] if REPEATS.search(name) else [claim for claim in claims if _repeats(claim)]
        if claims and not others and all(claim in repeats for claim in claims):
            self._report(
                claims[0], "weak-assertion", name, f"`{_source(claims[0])}` holds for any code that repeats itself"
            )
        elif claims and not others and all(_weak(claim) for claim in claims) and not all(map(_of_type, claims)):
            shown = ", ".join(f"`{_source(claim)}`" for claim in claims[:2])
            self._report(claims[0], "weak-assertion", name, f"no value is compared, only {shown}")
        elif constructor := _constant_input(test):
            self._report(
                constructor,
                "constant-input",
                name,
                f"`{_source(constructor)}` is the only input: every row is like any other",
            )

    # Assertions by other means

    def _other_failures(self, test: Function) -> bool:
        """Whether a call, a raise, a helper or a fixture can fail the test."""
        if any(self._fails(node) for node in _walk(test.body, called=_loaded(test))):
            return True
        names = [a.arg for a in (*test.args.args, *test.args.kwonlyargs)]
        constants = [n for d in test.decorator_list for n in ast.walk(d) if isinstance(n, ast.Constant)]
        names += [n.value for n in constants if isinstance(n.value, str)]
        return any(self._helper_asserts(name, fixture=True) for name in names)

    def _fails(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Raise):
            return True
        if not isinstance(node, ast.Call):
            return False
        name = _dotted(node.func)
        last = name.rpartition(".")[2]
        if ASSERTING.match(last) and not (_is_claim(node) or _constant(node)):
            return True
        if any(k.arg == "check" and _is_true(k.value) for k in node.keywords):  # subprocess.run(..., check=True)
            return True
        # a function that asserts may also be handed over: thread targets, map, Hypothesis
        handed = [
            _dotted(a)
            for a in (*node.args, *(k.value for k in node.keywords))
            if isinstance(a, ast.Name | ast.Attribute)
        ]
        return any(self._helper_asserts(n.rpartition(".")[2]) for n in (last, *handed) if n)

    def _helper_asserts(self, name: str, fixture: bool = False) -> bool:
        """Whether a function of this name, here or in a file around, asserts, by itself or by another helper."""
        key = f"{name} {fixture}"
        if key not in self._asserting:
            self._asserting[key] = False  # a helper that calls itself asserts nothing by that
            bodies = [
                function
                for file in (self.file, *self.around.values())
                for function in file.functions.get(name, ())
                if (not fixture or _is_fixture(function)) and not function.name.startswith("test")
            ]
            self._asserting[key] = any(
                (isinstance(node, ast.Assert) and not _constant(node)) or self._fails(node) or _is_claim(node)
                for function in bodies
                for node in _walk(function.body, called=_loaded(function))
            )
        return self._asserting[key]

    # Skips and exceptions

    def _skips(self, name: str, test: Function) -> None:
        calls = [node for node in ast.walk(test) if isinstance(node, ast.Call)]
        plain = [d for d in test.decorator_list if not isinstance(d, ast.Call)]
        for node in plain:
            if _dotted(node) in ("pytest.mark.skip", "unittest.skip", "skip", "mark.skip"):
                self._report(node, "skip-without-reason", name, f"`@{_source(node)}` does not say why")
        for call in calls:
            what = _dotted(call.func)
            reasons = [k for k in call.keywords if k.arg in ("reason", "msg") and not _is_blank(k.value)]
            needed = {"skip": 1, "skipif": 2, "skipIf": 2, "skipUnless": 2, "skipTest": 1}
            last = what.rpartition(".")[2]
            if last not in needed or what.partition(".")[0] not in ("pytest", "unittest", "mark", "self", last):
                continue
            # pytest.mark.skipif takes its reason by name only; its further arguments are conditions
            given = 0 if last == "skipif" else len([a for a in call.args if not _is_blank(a)])
            if not reasons and given < needed[last] and not any(k.arg is None for k in call.keywords):
                self._report(call, "skip-without-reason", name, f"`{_source(call)}` does not say why")

    def _swallowed(self, name: str, test: Function) -> None:
        cleanup = {
            id(n) for t in ast.walk(test) if isinstance(t, ast.Try) for part in t.finalbody for n in ast.walk(part)
        }
        for node in ast.walk(test):
            if id(node) in cleanup:
                continue
            if isinstance(node, ast.Try):
                for handler in node.handlers:
                    if (
                        _broad(handler.type)
                        and _does_nothing(handler.body)
                        and not self._expects_a_raise(node, handler)
                    ):
                        what = "except:" if handler.type is None else f"except {_source(handler.type)}:"
                        self._report(handler, "swallowed-exception", name, f"`{what}` hides every failure before it")
            elif isinstance(node, ast.With | ast.AsyncWith):
                for item in node.items:
                    call = item.context_expr
                    if not isinstance(call, ast.Call) or _dotted(call.func).rpartition(".")[2] != "suppress":
                        continue
                    if any(_broad(argument) for argument in call.args):
                        self._report(call, "swallowed-exception", name, f"`{_source(call)}` hides every failure in it")

    def _broad_raises(self, name: str, test: Function) -> None:
        """pytest.raises(Exception): whatever goes wrong passes, unless its words or its kind are looked at."""
        for node in ast.walk(test):
            calls: list[tuple[ast.expr, ast.expr | None]] = []
            if isinstance(node, ast.Expr):
                calls = [(node.value, None)]
            elif isinstance(node, ast.With | ast.AsyncWith):
                calls = [(item.context_expr, item.optional_vars) for item in node.items]
            for call, kept in calls:
                if not isinstance(call, ast.Call) or not call.args:
                    continue
                last = _dotted(call.func).rpartition(".")[2]
                if last not in ("raises", "assertRaises") or any(k.arg in ("match", "check") for k in call.keywords):
                    continue
                if not _broad(call.args[0]) or _dotted(call.args[0]).rpartition(".")[2] == "AssertionError":
                    continue
                if isinstance(kept, ast.Name) and sum(n.id == kept.id for n in _names(test)) > 1:
                    continue  # what was raised is looked at
                self._report(
                    call, "broad-raises", name, f"`{_source(call)}` passes whatever goes wrong; name it, or `match=`"
                )

    def _early_return(self, name: str, test: Function) -> None:
        """`if …: return` with nothing asserted before it, and assertions behind it."""
        called = _loaded(test)

        def asserts(body: Sequence[ast.stmt]) -> bool:
            return any(isinstance(n, ast.Assert) or _is_claim(n) or self._fails(n) for n in _walk(body, called))

        body = _reachable(test.body)
        for i, node in enumerate(body):
            if asserts([node]):
                return
            if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Return) and asserts(body[i + 1 :]):
                shown = _source(node.test)
                self._report(
                    node,
                    "early-return",
                    name,
                    f"where `{shown}`, it ends before its first assertion; pytest.skip says so",
                )
                return

    def _expects_a_raise(self, node: ast.Try, handler: ast.ExceptHandler) -> bool:
        """try: f(); except …: pass; else: fail — or pytest.fail inside, which such a handler does not catch."""
        if any(isinstance(n, ast.Raise | ast.Assert) or self._fails(n) for part in node.orelse for n in ast.walk(part)):
            return True
        uncaught = _dotted(handler.type).rpartition(".")[2] == "Exception" if handler.type else False
        last = node.body[-1]
        return (
            uncaught
            and isinstance(last, ast.Expr)
            and isinstance(last.value, ast.Call)
            and _dotted(last.value.func) == "pytest.fail"
        )

    # Imports

    def _uses_code_under_test(self) -> bool:
        beside = _beside(self.path)
        if self._imports_code(self.file, beside, set()):
            return True
        if any(isinstance(n, ast.Call) and _dotted(n.func) in RUNNERS for n in ast.walk(self.file.tree)):
            return True
        # fixtures of a conftest that has the code
        wanted = {a.arg for functions in self.file.functions.values() for f in functions for a in f.args.args}
        for path, other in self.around.items():
            if path.name == "conftest.py" and self._imports_code(other, beside, set(), used=False):
                fixtures = [f for functions in other.functions.values() for f in functions if _is_fixture(f)]
                if any(f.name in wanted | self.file.used or _is_autouse(f) for f in fixtures):
                    return True
        return bool(wanted & {"pytester", "testdir", "script_runner", "cli_runner"})

    def _imports_code(self, file: _File, beside: set[str], seen: set[int], used: bool = True) -> bool:
        if id(file) in seen:
            return False
        seen.add(id(file))
        for name, origin in file.imports.items():
            if used and name != "*" and name not in file.used:
                continue
            top = origin.partition(".")[0]
            helper = self._helper_file(origin)
            if helper is not None and self._imports_code(helper, beside, seen):
                return True
            outside = top not in TOOLS and top not in sys.stdlib_module_names and not _is_tests(Path(top))
            beyond = origin.startswith("..") or (origin.startswith(".") and not self._in_tests)
            if helper is None and (beyond or top in beside or (top and outside)):
                return True
        return False

    def _helper_file(self, origin: str) -> _File | None:
        """The file among those around that an import names: a helper of the tests, not the code under test."""
        if not self._in_tests:  # tests beside the code: what lies next to them is what they test
            return None
        parts = [part for part in origin.split(".") if part]
        local = origin.startswith(".") or any(_is_tests(Path(part)) for part in parts[:-1])
        for path, file in self.around.items():
            near = path.parent == self.path.resolve().parent and len(parts) <= 2
            if (local or near) and path.stem in parts[-2:] and path.name != "__init__.py":
                return file
        return None


# Statements and expressions

UNITTEST = {
    "assertTrue",
    "assertFalse",
    "assertEqual",
    "assertNotEqual",
    "assertIsNotNone",
    "assertIsNone",
    "assertIsInstance",
    "assertGreater",
    "assertGreaterEqual",
    "assertLess",
    "assertLessEqual",
    "assertIs",
    "assertIn",
    "assertAlmostEqual",
    "assertListEqual",
    "assertDictEqual",
    "assertTupleEqual",
    "assertSequenceEqual",
}
_COMPARED: dict[str, type[ast.cmpop]] = {
    "assertEqual": ast.Eq,
    "assertNotEqual": ast.NotEq,
    "assertGreater": ast.Gt,
    "assertGreaterEqual": ast.GtE,
    "assertLess": ast.Lt,
    "assertLessEqual": ast.LtE,
    "assertIs": ast.Is,
    "assertIn": ast.In,
    "assertAlmostEqual": ast.Eq,
    "assertListEqual": ast.Eq,
    "assertDictEqual": ast.Eq,
    "assertTupleEqual": ast.Eq,
    "assertSequenceEqual": ast.Eq,
}
# Functions that say whether their first two arguments are equal, or fail where they are not.
EQUALITIES = frozenset(
    {
        *("allclose", "isclose", "equal", "array_equal", "array_equiv", "is_same_size"),
        *("assert_close", "assert_allclose", "assert_equal", "assert_array_equal", "assert_almost_equal"),
        *("assert_array_almost_equal", "assert_frame_equal", "assert_series_equal"),
    }
)
# What a test that calls twice and compares may be about, in its name or in what it calls.
REPEATS = re.compile(
    r"seed|rng|random|generator|determin|reproduc|repeat|again|twice|same|stable|state|cache|idempot|hash|pure|memo"
    r"|singleton|identi|equal|function_of|draw|sampl",
    re.I,
)


def _claims(body: Sequence[ast.stmt], called: set[str]) -> list[ast.AST]:
    """Assert statements, and the assertions of unittest, torch and numpy that are like one."""
    return [node for node in _walk(body, called) if isinstance(node, ast.Assert) or _is_claim(node)]


def _is_claim(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    last = _dotted(node.func).rpartition(".")[2]
    if last in EQUALITIES and last.startswith("assert_"):
        return len(node.args) > 1
    return isinstance(node.func, ast.Attribute) and last in UNITTEST


def _expression(claim: ast.AST) -> ast.expr | None:
    """What a claim says is true."""
    if isinstance(claim, ast.Assert):
        return claim.test
    if isinstance(claim, ast.Call) and _dotted(claim.func).rpartition(".")[2] in EQUALITIES:
        return claim
    if not isinstance(claim, ast.Call) or not isinstance(claim.func, ast.Attribute):
        return None
    name, args = claim.func.attr, claim.args
    match name, args:
        case "assertTrue", [value, *_]:
            return value
        case "assertFalse", [value, *_]:
            return ast.UnaryOp(ast.Not(), value)
        case "assertIsNotNone", [value, *_]:
            return ast.Compare(value, [ast.IsNot()], [ast.Constant(None)])
        case "assertIsNone", [value, *_]:
            return ast.Compare(value, [ast.Is()], [ast.Constant(None)])
        case "assertIsInstance", [value, kind, *_]:
            return ast.Call(ast.Name("isinstance", ast.Load()), [value, kind], [])
        case _, [left, right, *_] if name in _COMPARED:
            return ast.Compare(left, [_COMPARED[name]()], [right])
    return None


def _constant(claim: ast.AST) -> bool:
    """Whether the claim holds whatever the code does."""
    expression = _expression(claim)
    return expression is not None and _truth(expression) is True


def _truth(node: ast.expr) -> bool | None:
    """True or False where that is known without running anything, else None."""
    match node:
        case ast.Constant(value):
            return bool(value)
        case ast.Tuple(elts) | ast.List(elts) | ast.Set(elts):
            return bool(elts) if not any(isinstance(e, ast.Starred) for e in elts) else None
        case ast.Lambda() | ast.JoinedStr(values=[ast.Constant(), *_]):
            return True
        case ast.UnaryOp(ast.Not(), operand):
            known = _truth(operand)
            return None if known is None else not known
        case ast.BoolOp(ast.Or(), values):
            return True if any(_truth(v) is True for v in values) else None
        case ast.BoolOp(ast.And(), values):
            parts = [_truth(v) for v in values]
            return False if False in parts else True if all(part is True for part in parts) else None
        case ast.Compare(left, [operator], [right]):
            return _comparison(left, operator, right)
        case ast.Call(ast.Name("isinstance"), [_, ast.Name("object")]):
            return True
        case ast.Call(function, [left, right, *_]) if _dotted(function).rpartition(".")[2] in EQUALITIES:
            return _comparison(left, ast.Eq(), right)
        case ast.Call(ast.Attribute(ast.Compare() as value, "all" | "any"), []):
            return _truth(value)
        case ast.Call(function, [ast.Compare() as value]) if _dotted(function).rpartition(".")[2] in ("all", "bool"):
            return _truth(value)
    return None


def _number(node: ast.expr) -> int | float | None:
    """The value of arithmetic on numbers that are written out, and the length of what is written out."""
    match node:
        case ast.Constant(int() | float() as value):
            return value
        case ast.UnaryOp(ast.USub(), operand):
            inner = _number(operand)
            return None if inner is None else -inner
        case ast.Call(ast.Name("len"), [ast.List(elts) | ast.Tuple(elts)]):
            return None if any(isinstance(e, ast.Starred) for e in elts) else len(elts)
        case ast.Call(ast.Name("len"), [ast.Constant(str() | bytes() as text)]):
            return len(text)
        case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() as kind, right):
            a, b = _number(left), _number(right)
            if a is None or b is None:
                return None
            return a + b if isinstance(kind, ast.Add) else a - b if isinstance(kind, ast.Sub) else a * b
    return None


def _compared(left: float, operator: ast.cmpop, right: float) -> bool | None:
    match operator:
        case ast.Eq() | ast.Is():
            return left == right
        case ast.NotEq() | ast.IsNot():
            return left != right
        case ast.Lt():
            return left < right
        case ast.LtE():
            return left <= right
        case ast.Gt():
            return left > right
        case ast.GtE():
            return left >= right
    return None


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> bool | None:
    if isinstance(operator, ast.GtE) and _is_length(left) and isinstance(right, ast.Constant) and right.value == 0:
        return True
    if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
        if isinstance(operator, ast.Eq | ast.Is):
            return left.value == right.value
        if isinstance(operator, ast.NotEq | ast.IsNot):
            return left.value != right.value
    a, b = _number(left), _number(right)
    if a is not None and b is not None:
        return _compared(a, operator, b)
    if isinstance(right, ast.Call) and _dotted(right.func).rpartition(".")[2] == "approx" and right.args:
        right = right.args[0]
    same = ast.dump(left) == ast.dump(right)
    if same and isinstance(operator, ast.Eq | ast.Is | ast.LtE | ast.GtE):
        # f() == f() tests that f repeats itself; a value against itself tests nothing
        return None if any(isinstance(n, ast.Call | ast.Await | ast.Yield) for n in ast.walk(left)) else True
    return None


def _repeats(claim: ast.AST) -> bool:
    """Whether a claim compares a call with the very same call, f(x) == f(x), whose words are about no such thing."""
    match _expression(claim):
        case ast.Compare(left, [ast.Eq()], [right]):
            pass
        case ast.Call(function, [left, right, *_]) if _dotted(function).rpartition(".")[2] in EQUALITIES:
            pass
        case _:
            return False
    called = any(isinstance(n, ast.Call) for n in ast.walk(left))
    return called and ast.dump(left) == ast.dump(right) and not REPEATS.search(ast.unparse(left))


def _is_slip(claim: ast.AST) -> bool:
    """A constant that was meant to be a test, whatever else the test asserts: `or True`, a tuple, x == x."""
    expression = _expression(claim)
    return isinstance(expression, ast.Tuple | ast.BoolOp | ast.Compare) and not all(
        isinstance(n, ast.Constant | ast.Compare | ast.BoolOp | ast.Tuple | ast.cmpop | ast.boolop | ast.expr_context)
        for n in ast.walk(expression)
    )


def _weak(claim: ast.AST) -> bool:
    """Whether a claim is about form only: shape, length, type, existence."""
    expression = _expression(claim)
    return expression is not None and _weak_expression(expression)


def _of_type(claim: ast.AST) -> bool:
    """Whether a claim is about a dtype or device alone, which may be the very point."""
    expression = _expression(claim)
    sides = [expression.left, *expression.comparators] if isinstance(expression, ast.Compare) else []
    return any(isinstance(side, ast.Attribute) and side.attr in ("dtype", "device", "requires_grad") for side in sides)


def _weak_expression(node: ast.expr) -> bool:
    match node:
        case ast.BoolOp(_, values):
            return all(_weak_expression(v) for v in values)
        case ast.UnaryOp(ast.Not(), operand):
            # "not empty" is weak; "not found" may be the point
            return isinstance(operand, ast.Call) and _dotted(operand.func).rpartition(".")[2] in ("is_empty", "isempty")
        case ast.Call(function, [iterable]) if _dotted(function) == "all" and isinstance(iterable, ast.GeneratorExp):
            return _weak_expression(iterable.elt)
        case ast.Call(function):
            return _dotted(function).rpartition(".")[2] in (
                "isinstance",
                "hasattr",
                "callable",
                "is_tensor",
                "issubclass",
            )
        case ast.Compare(left, operators, comparators):
            return all(
                _weak_comparison(a, o, b)
                for a, o, b in zip([left, *comparators[:-1]], operators, comparators, strict=True)
            )
    return False


def _weak_comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> bool:
    if isinstance(operator, ast.IsNot) and isinstance(right, ast.Constant) and right.value is None:
        return not (isinstance(left, ast.Attribute) and left.attr == "grad")  # that a gradient arrived is a value
    if isinstance(operator, ast.Gt | ast.GtE | ast.NotEq) and isinstance(right, ast.Constant):
        if _is_length(left) and right.value in (0, 1):
            return True
        if right.value == "" and isinstance(left, ast.Name):
            return True
    counts = [side for side in (left, right) if _is_length(side) and not _is_form(side)]  # len(set(x)), len([… if …])
    return not counts and any(_is_form(side) for side in (left, right))


def _is_form(node: ast.expr) -> bool:
    """x.shape, x.shape[0], x.size(1), type(x), tuple(x.shape), len(x) of a plain name."""
    match node:
        case ast.Subscript(value):
            return _is_form(value)
        case ast.Attribute(_, name):
            return name in SHAPES
        case ast.Call(ast.Attribute(_, name)):
            return name in SHAPES
        case ast.Call(ast.Name("type"), [_]):
            return True
        case ast.Call(ast.Name("tuple" | "list"), [value]):
            return _is_form(value)
        case ast.Call(ast.Name("len"), [ast.Name() | ast.Attribute()]):
            return True
    return False


def _is_length(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _dotted(node.func).rpartition(".")[2] in ("len", "numel", "size", "count")


def _constant_input(test: Function) -> ast.AST | None:
    """The constructor of an all-equal tensor, where the code under test gets nothing else and values are compared."""
    if any("given" in _dotted(d.func if isinstance(d, ast.Call) else d) for d in test.decorator_list):
        return None
    calls = [node for node in ast.walk(test) if isinstance(node, ast.Call)]
    made = [c for c in calls if _dotted(c.func).partition(".")[0] in LIBRARIES]
    same = [c for c in made if _dotted(c.func).rpartition(".")[2] in SAME_VALUES]
    tools = {"allclose", "equal", "array_equal", "isclose", "assert_close", "assert_allclose", "assert_array_equal"}
    comparing = [c for c in calls if _dotted(c.func).rpartition(".")[2] in tools | {"assert_array_almost_equal"}]
    harmless = {"no_grad", "inference_mode", "manual_seed", "Size", "device", "all", "any", "seed", "abs", "isfinite"}
    varied = [
        c for c in made if c not in same and c not in comparing and _dotted(c.func).rpartition(".")[2] not in harmless
    ]
    if not same or varied or _edited(test) or not comparing:
        return None
    constants = {
        target.id: node.value
        for node in ast.walk(test)
        if isinstance(node, ast.Assign) and node.value in same
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in calls:
        if call in made or call in comparing:
            continue
        given = [*call.args, *(k.value for k in call.keywords)]
        inputs = [a for a in given if a in same or (isinstance(a, ast.Name) and a.id in constants)]
        named = [a.id for a in given if isinstance(a, ast.Name)] + [k.arg or "" for k in call.keywords]
        others = [a for a in given if a not in inputs and not isinstance(a, ast.Constant)]
        if inputs and not others and not any(NOT_INPUTS.search(name) for name in named):
            first = inputs[0]
            found = constants[first.id] if isinstance(first, ast.Name) else first
            if _two_dimensional(found):
                return found
    return None


def _two_dimensional(call: ast.AST) -> bool:
    """torch.ones(2, 3), np.zeros((2, 3)); a vector of zeros is a fair edge case."""
    if not isinstance(call, ast.Call) or not call.args:
        return False
    shape = call.args[0]
    return len(shape.elts) > 1 if isinstance(shape, ast.Tuple | ast.List) else len(call.args) > 1


def _edited(test: Function) -> bool:
    """Whether parts of a tensor are set: x[0] = 1, x.add_(…), x.fill_…"""
    for node in ast.walk(test):
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if isinstance(node, ast.AugAssign) or any(isinstance(t, ast.Subscript) for t in targets):
                return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if name.endswith("_") and not name.startswith("_") and name not in ("requires_grad_", "zero_", "ones_"):
                return True
    return False


def _broad(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    if isinstance(kind, ast.Tuple):
        return any(_broad(e) for e in kind.elts)
    return _dotted(kind).rpartition(".")[2] in BROAD


def _does_nothing(body: Sequence[ast.stmt]) -> bool:
    """pass, continue, break, return, prints and logs, and assertions that always hold."""
    for node in body:
        match node:
            case ast.Pass() | ast.Continue() | ast.Break() | ast.Return(None) | ast.Return(ast.Constant()):
                continue
            case ast.Expr(ast.Constant()):
                continue
            case ast.Assert() if _constant(node):
                continue
            case ast.Expr(ast.Call(function)) if re.match(
                r"print$|(?:logg(?:er|ing)|log|warnings)\.", _dotted(function)
            ):
                continue
        return False
    return True


def _reachable(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The statements up to one after which none runs."""
    found = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.Return | ast.Raise | ast.Continue | ast.Break):
            break
        if isinstance(node, ast.If) and _truth(node.test) is False:
            found.pop()
            found += node.orelse
    return found


def _walk(body: Sequence[ast.stmt], called: set[str]) -> Iterator[ast.AST]:
    """All nodes that may run: nothing after a return, and inner functions only where they are used."""
    for node in _reachable(body):
        yield from _inside(node, called)


def _inside(node: ast.AST, called: set[str]) -> Iterator[ast.AST]:
    if isinstance(node, Function) and not (node.name in called or node.decorator_list):
        return
    yield node
    if isinstance(node, ast.For) and _is_empty(node.iter):
        yield from _walk(node.orelse, called)
        return
    for name, value in ast.iter_fields(node):
        if isinstance(value, list) and name in ("body", "orelse", "finalbody"):
            yield from _walk(value, called)
        else:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _inside(child, called)


def _is_empty(node: ast.expr) -> bool:
    """[], (), {}, "", range(0), list()"""
    match node:
        case ast.List(elts) | ast.Tuple(elts):
            return not elts
        case ast.Dict(keys):
            return not keys
        case ast.Constant(str() | bytes() as text):
            return not text
        case ast.Call(ast.Name("range"), [ast.Constant(0)]):
            return True
        case ast.Call(ast.Name("list" | "tuple" | "dict" | "set"), [], keywords):
            return not keywords
    return False


def _names(function: Function) -> Iterator[ast.Name]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Name))


def _loaded(function: Function) -> set[str]:
    names = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return names | {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)}


def _skipped(test: Function) -> bool:
    return any(
        _dotted(d.func if isinstance(d, ast.Call) else d).rpartition(".")[2] == "skip" for d in test.decorator_list
    )


def _is_fixture(function: Function) -> bool:
    names = [_dotted(d.func if isinstance(d, ast.Call) else d) for d in function.decorator_list]
    return any(name.rpartition(".")[2] == "fixture" for name in names)


def _is_autouse(function: Function) -> bool:
    calls = [d for d in function.decorator_list if isinstance(d, ast.Call)]
    return any(k.arg == "autouse" and _is_true(k.value) for call in calls for k in call.keywords)


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _is_blank(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or not str(node.value).strip())


def _dotted(node: ast.AST | None) -> str:
    """a.b.c of a name or attribute; calls and subscripts on the way are left out."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, name):
            before = _dotted(value)
            return f"{before}.{name}" if before else name
        case ast.Call(function):
            return _dotted(function)
        case ast.Subscript(value):
            return _dotted(value)
    return ""


def _source(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 80 else f"{text[:77]}…"
