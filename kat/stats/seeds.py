"""Two training arms, one number per seed: the seed is the unit, never the response and never the prompt."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from kat.errors import EvidenceError, UsageError
from kat.stats.checks import check_level
from kat.stats.result import Test, p_value, percent


@dataclass(frozen=True)
class SeedComparison:
    """B − A over training seeds, in the units of the metric.

    `welch` and `permutation` are two-sided tests; `p_b_above_a` is the share of pairs of seeds in which B is above A
    (ties half); `hedges_g` is the standardised difference with its small-sample correction (None at zero spread);
    `smallest_p` is the smallest p that a permutation test can reach with this many seeds.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    level: float
    n_a: int
    n_b: int
    welch: Test
    permutation: Test
    smallest_p: float
    p_b_above_a: float
    hedges_g: float | None

    def sentence(self, metric: str = "score") -> str:
        """The result in words, with what this number of seeds can show at all."""
        interval = f"{percent(self.level)} interval {self.low:+.4g} to {self.high:+.4g}"
        text = (
            f"{metric}: B − A {self.difference:+.4g} ({interval}; {self.n_a} and {self.n_b} seeds; Welch), "
            f"{self.welch.sentence()}, {self.permutation.sentence()}; "
            f"B above A in {percent(round(self.p_b_above_a, 3))} of seed pairs."
        )
        if self.smallest_p > 1 - self.level:
            text += f" With so few seeds no permutation test can get below p {p_value(self.smallest_p)}."
        return text


def compare_seeds(a: ArrayLike, b: ArrayLike, *, level: float = 0.95, seed: int = 0) -> SeedComparison:
    """Welch's t with its interval and a permutation test over seeds; `a` and `b` hold one finite number per seed.

    The permutation test is exact up to 100,000 splits, else drawn with `seed`. Arms without any spread raise
    EvidenceError, for no interval follows from them: bits that are equal are compared as bits, not as a sample.
    """
    check_level(level)
    values = [np.asarray(arm, dtype=np.float64) for arm in (a, b)]
    for name, arm in zip("AB", values, strict=True):
        if arm.ndim != 1 or arm.size < 2 or not np.isfinite(arm).all():
            raise EvidenceError(f"arm {name}: at least two seeds with one finite number each are needed")
    x, y = values
    if x.std() == 0 and y.std() == 0:
        raise EvidenceError("neither arm varies over its seeds: there is no seed noise to judge a difference by")
    welch = stats.ttest_ind(y, x, equal_var=False)
    low, high = welch.confidence_interval(level)
    permuted = stats.permutation_test(
        (y, x),
        lambda p, q, axis: p.mean(axis=axis) - q.mean(axis=axis),
        permutation_type="independent",
        vectorized=True,
        n_resamples=100_000,
        batch=2_000,
        rng=np.random.default_rng(seed),
    )
    above = (y[:, None] > x).mean() + (y[:, None] == x).mean() / 2
    return SeedComparison(
        mean_a=float(x.mean()),
        mean_b=float(y.mean()),
        difference=float(y.mean() - x.mean()),
        low=float(low),
        high=float(high),
        level=level,
        n_a=x.size,
        n_b=y.size,
        welch=Test("Welch t over seeds", float(welch.pvalue)),
        permutation=Test("permutation over seeds", float(min(1.0, permuted.pvalue))),
        smallest_p=smallest_permutation_p(x.size, y.size),
        p_b_above_a=float(above),
        hedges_g=hedges_g(x, y),
    )


def smallest_permutation_p(n_a: int, n_b: int) -> float:
    """The smallest two-sided p of an exact permutation test: 2 of all ways to split the seeds (3 v 3: .10)."""
    if min(n_a, n_b) < 1:
        raise UsageError(f"{n_a} against {n_b} seeds: each arm needs at least one")
    return min(1.0, 2 / math.comb(n_a + n_b, n_a))


def hedges_g(a: np.ndarray, b: np.ndarray) -> float | None:
    """Hedges 1981: the difference over the pooled standard deviation, times 1 − 3 / (4 df − 1)."""
    df = a.size + b.size - 2
    pooled = math.sqrt(((a.size - 1) * a.var(ddof=1) + (b.size - 1) * b.var(ddof=1)) / df)
    return float((b.mean() - a.mean()) / pooled * (1 - 3 / (4 * df - 1))) if pooled > 0 else None
