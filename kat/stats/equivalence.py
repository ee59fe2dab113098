"""The only ways to say "no worse" or "no different": paired tests against a margin that was declared before the run."""

from scipy import stats

from kat.errors import UsageError
from kat.stats.paired import tango_z
from kat.stats.result import Estimate


def non_inferior(difference: Estimate, margin: float) -> bool:
    """Whether B is not worse than A by `margin`: the lower end of the interval of B − A lies above −margin.

    With a 95 % interval this is a one-sided test at .025.
    """
    _check_margin(margin)
    return difference.low > -margin


def equivalent(difference: Estimate, margin: float) -> bool:
    """Whether the interval of B − A lies within ±margin; with a 90 % interval this is TOST at .05 (Schuirmann 1987)."""
    _check_margin(margin)
    return -margin < difference.low and difference.high < margin


def p_non_inferior(gained: int, lost: int, n: int, margin: float) -> float:
    """One-sided p of "B is worse than A by at least `margin`", by Tango's score test (binary scores).

    At most .025 exactly where :func:`non_inferior` holds for Tango's 95 % interval.
    """
    _check_margin(margin)
    return float(stats.norm.sf(tango_z(gained, lost, n, -margin)))


def p_equivalent(gained: int, lost: int, n: int, margin: float) -> float:
    """p of the paired TOST (binary scores): the larger of the two one-sided p-values."""
    return max(p_non_inferior(gained, lost, n, margin), p_non_inferior(lost, gained, n, margin))


def _check_margin(margin: float) -> None:
    if not 0 < margin < 1:
        raise UsageError(f"margin {margin:g}: it is a share above 0 and below 1, for example .02 for two points")
