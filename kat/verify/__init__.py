"""Finds bugs in language-model training code that don't crash; see docs/verify.md."""

from typing import TYPE_CHECKING, Any

from kat.verify.check import Check, Failed, NotApplicable, Vacuous, check
from kat.verify.subject import Completion, Subject, Traits

if TYPE_CHECKING:
    from kat.verify.plugin import parametrize_with_checks

__all__ = [
    "Check",
    "Completion",
    "Failed",
    "NotApplicable",
    "Subject",
    "Traits",
    "Vacuous",
    "check",
    "parametrize_with_checks",
]


def __getattr__(name: str) -> Any:
    if name == "parametrize_with_checks":  # needs pytest, which an adapter does not
        from kat.verify.plugin import parametrize_with_checks

        return parametrize_with_checks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
