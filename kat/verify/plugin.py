"""kat's checks as pytest tests.

    from kat.verify import parametrize_with_checks
    from mypkg.kat_adapter import make

    @parametrize_with_checks([make])
    def test_conformance(check, subject):
        check(subject)

One test a check, with the id `<subject>-<check>`. What a kat_verify.toml beside the adapter expects to fail is a strict
xfail. `pytest --kat-level N` runs levels 0 to N (3 where it is not said).
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kat.verify.check import Check
from kat.verify.expected import read_expected
from kat.verify.runner import run_checks
from kat.verify.show import failure_text
from kat.verify.subject import Make, Source


def parametrize_with_checks(makes: Sequence[Make], seed: int = 0) -> Any:
    """Decorate `def test(check, subject): check(subject)`: one test for each adapter and check."""
    from kat.verify.checks import all_checks

    parameters = []
    for make in makes:
        source = _source(make)
        expected = read_expected(source.folder, {check.id for check in all_checks()})
        if expected.unknown:
            raise pytest.UsageError(f"{expected.file}: no check has the id {expected.unknown[0]!r}")
        for check in all_checks():
            marks = [pytest.mark.kat_level(check.level)]
            if check.id in expected.xfail:
                marks.append(pytest.mark.xfail(reason=expected.xfail[check.id], strict=True, raises=AssertionError))
            case = _Case(check, seed, expected.time_limit)
            parameters.append(pytest.param(case, source, id=f"{source.name}-{check.id}", marks=marks))
    return pytest.mark.parametrize(("check", "subject"), parameters)


class _Case:
    """A check that speaks pytest: assertion, skip, or error."""

    def __init__(self, check: Check, seed: int, time_limit: float) -> None:
        self.check, self.seed, self.time_limit = check, seed, time_limit
        self.__doc__ = check.claim

    def __call__(self, subject: "Source | Make") -> None:
        __tracebackhide__ = True
        from kat.verify.expected import Expected

        source = subject if isinstance(subject, Source) else _source(subject)
        report = run_checks(
            source, [self.check], seed=self.seed, level=4, expected=Expected(time_limit=self.time_limit)
        )
        finding = report.findings[-1]
        if finding.outcome == "SKIP":
            pytest.skip(finding.message)
        if finding.outcome == "FAIL":
            raise AssertionError("\n" + failure_text(finding))
        if finding.outcome != "PASS":
            raise RuntimeError("\n" + failure_text(finding))


def _source(make: Callable[..., Any]) -> Source:
    """The adapter's name is that of its module, without `_adapter`; its expectations lie beside its file."""
    inner = inspect.unwrap(getattr(make, "func", make))
    module = getattr(inner, "__module__", "") or ""
    name = module.rpartition(".")[2].removesuffix("_adapter") or "subject"
    file = inspect.getsourcefile(inner) if inspect.isfunction(inner) else None
    return Source(f"{module}:{inner.__name__}", name, make, Path(file).parent if file else None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--kat-level N`."""
    group = parser.getgroup("kat", "conformance of language-model training code")
    group.addoption("--kat-level", type=int, default=3, help="run kat's checks of levels 0 to N (default 3)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kat_level(n): the level of one of kat's checks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the checks above --kat-level."""
    highest = config.getoption("--kat-level")
    above = [item for item in items if any(mark.args[0] > highest for mark in item.iter_markers("kat_level"))]
    if above:
        config.hook.pytest_deselected(items=above)
        items[:] = [item for item in items if item not in set(above)]
