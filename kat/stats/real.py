"""Paired differences of any real figure of an item: a reward, a length, a number of different answers."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from kat.errors import EvidenceError
from kat.stats.checks import check_level
from kat.stats.permutation import sign_flip


@dataclass(frozen=True)
class RealDifference:
    """B − A on the same items, in the figure's units: t interval, sign-flip p. `n` counts the items."""

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    level: float
    p: float
    n: int

    @property
    def shown(self) -> int:
        """+1 where B is shown to be higher, −1 lower, 0 neither: interval and test must agree."""
        if self.p > 1 - self.level:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def compare_real(a: ArrayLike, b: ArrayLike, *, level: float = 0.95, seed: int = 0) -> RealDifference:
    """B − A of `a` and `b` (n,) in the same order of items: sign flips of the differences and their t interval.

    Raises EvidenceError for figures that are no finite numbers or of different number, and for fewer than two items.
    """
    check_level(level)
    x, y = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if x.shape != y.shape or x.ndim != 1 or x.size < 2:
        raise EvidenceError(f"{x.size} and {y.size} figures: the same items, at least two, are needed on both sides")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise EvidenceError("a figure that is compared is NaN or infinite")
    d = y - x
    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(d.size)
    half = float(stats.t.ppf((1 + level) / 2, d.size - 1)) * error
    p = sign_flip(d, np.random.default_rng(seed))
    return RealDifference(float(x.mean()), float(y.mean()), mean, mean - half, mean + half, level, p, d.size)
