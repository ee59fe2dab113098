"""Planted bugs: each a subject with one mistake, labelled with the catalogue rows whose mistake it is.

Two ways to plant one. `wrapped` overrides methods of any subject, so the mutant also runs on the transformers and the
nanochat subject. `patched` replaces a function of kat while a method of the native subject runs.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kat.verify.subject import Make


@dataclass(frozen=True)
class Mutant:
    """id: what is wrong, in a few words with underscores. rows: the catalogue rows it repeats (empty: beyond it).

    plant: takes the function that makes good subjects and returns one that makes bad ones. native: only kat's own
    subject can have it.
    """

    id: str
    rows: tuple[str, ...]
    plant: Callable[[Make], Make]
    native: bool = False


class Wrapped:
    """A subject with some methods replaced; everything else is the inner subject's."""

    def __init__(self, inner: Any, methods: dict[str, Callable[..., Any]]) -> None:
        self._inner = inner
        for name, method in methods.items():
            setattr(self, name, functools.partial(method, inner))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look for such names before there is an inner subject
            raise AttributeError(name)
        return getattr(self._inner, name)


def wrapped(**methods: Callable[..., Any]) -> Callable[[Make], Make]:
    """Plant by overriding methods: each takes the inner (good) subject first, then the call's own arguments."""

    def plant(make: Make) -> Make:
        @functools.wraps(make)
        def bad(*args: Any, **kwargs: Any) -> Any:
            return Wrapped(make(*args, **kwargs), methods)

        return bad

    return plant


def patched(target: str, replacement: Any) -> Callable[[Make], Make]:
    """Plant by replacing `package.module.name` (or `package.module.Class.name`) whenever the subject works.

    replacement: the new object; or a function marked by :func:`around` that gets the good object and returns the bad.
    """

    def plant(make: Make) -> Make:
        def bad(*args: Any, **kwargs: Any) -> Any:
            with replaced(target, replacement):
                return _Patched(make(*args, **kwargs), target, replacement)

        return bad

    return plant


def around(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Mark a function good -> bad for use in :func:`patched`."""
    function.around = True  # type: ignore[attr-defined]
    return function


class _Patched:
    """A subject during whose every call a function of kat is another one."""

    def __init__(self, inner: Any, target: str, replacement: Any) -> None:
        self._inner, self._target, self._replacement = inner, target, replacement

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            with replaced(self._target, self._replacement):
                result = value(*args, **kwargs)
            return _steps(result, self._target, self._replacement) if isinstance(result, Iterator) else result

        return call


def _steps(iterator: Iterator[Any], target: str, replacement: Any) -> Iterator[Any]:
    while True:
        with replaced(target, replacement):
            try:
                value = next(iterator)
            except StopIteration:
                return
        yield value


@contextmanager
def replaced(target: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute of a module, or of a class in one, and put the good one back."""
    path, _, name = target.rpartition(".")
    owner = _resolve(path)
    good = vars(owner)[name]  # as it is stored, staticmethods and properties too
    setattr(owner, name, replacement(good) if getattr(replacement, "around", False) else replacement)
    try:
        yield
    finally:
        setattr(owner, name, good)


def _resolve(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(_resolve(module), name)
