"""Paired differences of any real figure of an item: a reward, a length, a number of different answers."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from kat.errors import EvidenceError
from kat.stats.checks import check_level
from kat.stats.compare import compare_paired
from kat.stats.permutation import sign_flip


@dataclass(frozen=True)
class RealDifference:
    """B − A on the same items, in the figure's units. `p` is of the sign-flip permutation; `n` counts the items."""

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    level: float
    p: float
    n: int
    method: str

    @property
    def shown(self) -> int:
        """+1 where B is shown to be higher, −1 lower, 0 neither: interval and test must agree."""
        if self.p > 1 - self.level:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def compare_real(
    a: ArrayLike, b: ArrayLike, bounds: tuple[float, float] | None = None, *, level: float = 0.95, seed: int = 0
) -> RealDifference:
    """B − A of `a` and `b` (n,) in the same order of items: sign flips of the differences and a t interval.

    With `bounds` of the scale this is :func:`kat.stats.compare.compare_paired` on it, whose interval never collapses.
    Raises EvidenceError for figures that are no finite numbers, of different number or outside the bounds, and for
    fewer than two items.
    """
    check_level(level)
    x, y = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if x.shape != y.shape or x.ndim != 1 or x.size < 2:
        raise EvidenceError(f"{x.size} and {y.size} figures: the same items, at least two, are needed on both sides")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise EvidenceError("a figure that is compared is NaN or infinite")
    if bounds is not None:
        floor, width = bounds[0], bounds[1] - bounds[0]
        scaled = [(values - floor) / width for values in (x, y)]
        if min(map(np.min, scaled)) < -1e-6 or max(map(np.max, scaled)) > 1 + 1e-6:
            raise EvidenceError(f"a figure lies outside its scale, {bounds[0]:g} to {bounds[1]:g}")
        found = compare_paired(
            *(np.clip(values, 0, 1) for values in scaled), "bounded", level=level, seed=seed, seen=False
        )
        e = found.difference
        low, high, p, method = e.low * width, e.high * width, found.p, e.method
    else:
        d = y - x
        half = float(stats.t.ppf((1 + level) / 2, d.size - 1) * d.std(ddof=1)) / math.sqrt(d.size)
        low, high, method = float(d.mean()) - half, float(d.mean()) + half, "t"
        p = sign_flip(d, np.random.default_rng(seed))
    return RealDifference(float(x.mean()), float(y.mean()), float((y - x).mean()), low, high, level, p, x.size, method)
