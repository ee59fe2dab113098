"""What unparsed responses could have changed. They count as wrong; nothing is ever dropped from the headline."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kat.errors import EvidenceError
from kat.stats.checks import check_scores
from kat.stats.compare import compare_paired
from kat.stats.intervals import wilson
from kat.stats.paired import mcnemar_midp, tango
from kat.stats.result import Comparison, Estimate


@dataclass(frozen=True)
class Sensitivity:
    """Binary scores of two models on the same items, with the unparsed responses read in every way.

    `parse` compares the parse rates, paired. `dropped_a` and `dropped_b` are over each model's own parsed items (None:
    nothing parsed) and so not over the same items: never a comparison. `low` and `high` bound B − A: A's unparsed all
    right and B's all wrong, and the reverse. `tipping` is how many unparsed responses would have to be right to undo
    the verdict (None: all of them together would not).
    """

    headline: Comparison
    parse: Comparison
    dropped_a: Estimate | None
    dropped_b: Estimate | None
    low: float
    high: float
    tipping: int | None

    @property
    def sign_identified(self) -> bool:
        """Whether the sign of B − A is the same whatever the unparsed responses were."""
        return self.low > 0 or self.high < 0


def sensitivity(
    a: ArrayLike, parsed_a: ArrayLike, b: ArrayLike, parsed_b: ArrayLike, *, level: float = 0.95
) -> Sensitivity:
    """All readings of the unparsed; arrays (n,) of 0/1 in the same order of items. An unparsed item has score 0."""
    right_a, right_b = check_scores(a, "binary", "A's scores"), check_scores(b, "binary", "B's scores")
    ok_a, ok_b = check_scores(parsed_a, "binary", "A's parsed"), check_scores(parsed_b, "binary", "B's parsed")
    if not right_a.size == ok_a.size == right_b.size == ok_b.size:
        raise EvidenceError("the scores and the parsed marks of A and B are not of the same number of items")
    for name, right, ok in (("A", right_a, ok_a), ("B", right_b, ok_b)):
        if (right > ok).any():
            raise EvidenceError(f"{name} has {int((right > ok).sum())} items that are unparsed and right: impossible")
    headline = compare_paired(right_a, right_b, "binary", level=level)
    difference = headline.difference.estimate
    return Sensitivity(
        headline=headline,
        parse=compare_paired(ok_a, ok_b, "binary", level=level),
        dropped_a=_dropped(right_a, ok_a, level),
        dropped_b=_dropped(right_b, ok_b, level),
        low=float(difference - (1 - ok_a).mean()),
        high=float(difference + (1 - ok_b).mean()),
        tipping=_tipping(right_a, ok_a, right_b, ok_b, headline, level),
    )


def _dropped(right: np.ndarray, ok: np.ndarray, level: float) -> Estimate | None:
    return wilson(int(right.sum()), int(ok.sum()), level) if ok.any() else None


def _tipping(
    a: np.ndarray, ok_a: np.ndarray, b: np.ndarray, ok_b: np.ndarray, headline: Comparison, level: float
) -> int | None:
    """The smallest number of unparsed responses, had they been right, that changes the verdict.

    A shown verdict is undone from the side of the loser, an unshown one made from either side. Turning A's unparsed
    response right moves an item from gained to both, or from neither to lost.
    """
    n, gained, lost = a.size, headline.gained, headline.lost
    a_where_b_right, a_where_b_wrong = int(((1 - ok_a) * b).sum()), int(((1 - ok_a) * (1 - b)).sum())
    b_where_a_right, b_where_a_wrong = int(((1 - ok_b) * a).sum()), int(((1 - ok_b) * (1 - a)).sum())
    by_a = _first_change(gained, lost, n, a_where_b_right, a_where_b_wrong, level)
    by_b = _first_change(lost, gained, n, b_where_a_right, b_where_a_wrong, level)
    able = {"better": [by_a], "worse": [by_b], "not shown": [by_a, by_b]}[headline.direction]
    found = [count for count in able if count is not None]
    return min(found) if found else None


def _first_change(ahead: int, behind: int, n: int, undo: int, add: int, level: float) -> int | None:
    """How many turns change the verdict on (ahead, behind), where each takes one from ahead or adds one to behind.

    To break a verdict it is quickest to add to behind first, to make one to take from ahead first; both are tried.
    """
    start = _verdict(ahead, behind, n, level)
    counts = []
    for take_first in (False, True):
        for k in range(1, undo + add + 1):
            taken = min(k, undo) if take_first else max(0, k - add)
            if _verdict(ahead - taken, behind + k - taken, n, level) != start:
                counts.append(k)
                break
    return min(counts) if counts else None


def _verdict(gained: int, lost: int, n: int, level: float) -> int:
    """+1 better, −1 worse, 0 not shown: the same rule as Comparison.direction."""
    if mcnemar_midp(gained, lost) > 1 - level:
        return 0
    interval = tango(gained, lost, n, level)
    return 1 if interval.low > 0 else -1 if interval.high < 0 else 0
