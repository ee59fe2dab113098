"""A check is a function with metadata; what it finds, it raises.

    @check(family="forward", level=1, needs={"forward", "forward_cached"}, kind="metamorphic", tol=1e-4,
           catches=("MF1", "MF2"))
    def decode_matches_forward(lab: Lab) -> None:
        "Prefill and single steps with a cache give the logits of one pass."

A check that returns has passed. It raises `Failed` where the property does not hold, `Vacuous` where nothing could have
been seen, `NotApplicable` where the subject's declared design has no such property. Anything else that is raised is an
error of the adapter (or ours).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kat.verify.lab import Lab

KINDS = ("metamorphic", "oracle", "golden", "statistical")
LEVELS = {0: "pure functions", 1: "forward and generate", 2: "training step", 3: "save and resume", 4: "two processes"}
FAMILIES = (
    "data",
    "tokenizer",
    "forward",
    "cache",
    "loss",
    "optimiser",
    "resume",
    "generation",
    "evaluation",
    "reward",
    "rl",
    "density",
    "distributed",
)


class Failed(AssertionError):
    """The property does not hold.

    message: what was seen, in a sentence. measured and tolerance: numbers, where there are any. case: the smallest
    input that shows it. resembles: the catalogue id of a real bug that looks like this, where the check can tell.
    """

    def __init__(
        self,
        message: str,
        *,
        measured: float | None = None,
        tolerance: float | None = None,
        case: str = "",
        resembles: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.measured, self.tolerance = message, measured, tolerance
        self.case, self.resembles = case, resembles


class Vacuous(Exception):
    """The precondition did not hold: the check could not have failed."""


class NotApplicable(Exception):
    """The subject's declared design has no such property; the reason is the message."""


@dataclass(frozen=True)
class Check:
    """A property, how to test it, and the catalogue's bugs that it finds."""

    function: Callable[["Lab"], None]
    family: str
    level: int
    needs: frozenset[str]
    kind: str
    tol: float | None
    catches: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.function.__name__

    @property
    def claim(self) -> str:
        """The property in one sentence: the first paragraph of the docstring."""
        return " ".join((self.function.__doc__ or "").strip().split("\n\n")[0].split())

    def __call__(self, subject: Any, seed: int = 0) -> None:
        """Run on a subject, or on a function that makes one; for use in a test. Raises as the module says."""
        from kat.verify.lab import Lab

        self.function(Lab.of(self, subject, seed))


def check(
    *,
    family: str,
    level: int,
    needs: set[str],
    kind: str,
    tol: float | None = None,
    catches: tuple[str, ...] = (),
) -> Callable[[Callable[["Lab"], None]], Check]:
    """Make a function a check. needs: the subject's methods, without which it is skipped. tol: as the check uses it."""
    if family not in FAMILIES or kind not in KINDS or level not in LEVELS:
        raise ValueError(f"check: family {family!r}, kind {kind!r}, level {level!r}")

    def decorate(function: Callable[["Lab"], None]) -> Check:
        if not function.__doc__:
            raise ValueError(f"check {function.__name__} does not say what property it tests")
        return Check(function, family, level, frozenset(needs), kind, tol, catches)

    return decorate
