"""Intervals for one share or one mean, and for the difference of two unpaired shares.

statsmodels is imported where it is used: it brings pandas, a third of a second that most reports have no use for.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from kat.stats.checks import check_clusters, check_counts, check_level, check_scores
from kat.stats.clustered import fit_clusters, grouped, n_differing
from kat.stats.result import Estimate, ScoreType, around


def wilson(k: int, n: int, level: float = 0.95) -> Estimate:
    """Wilson's score interval for k of n (Wilson 1927): the default for a share."""
    return _share(k, n, level, "wilson", "Wilson")


def exact(k: int, n: int, level: float = 0.95) -> Estimate:
    """Clopper and Pearson's exact interval for k of n (1934): never covers less than it says, and is wide."""
    return _share(k, n, level, "exact", "Clopper-Pearson exact")


def jeffreys(k: int, n: int, level: float = 0.95) -> Estimate:
    """Jeffreys' interval for k of n, its ends set to 0 and 1 at k = 0 and k = n (Brown, Cai and DasGupta 2001)."""
    from statsmodels.stats.proportion import proportion_confint

    check_counts(k, n)
    check_level(level)
    low, high = proportion_confint(k, n, alpha=1 - level, method="jeffreys")
    return Estimate(k / n, *around(k / n, float(low), float(high)), level, n, "Jeffreys")


def _share(k: int, n: int, level: float, method: Literal["wilson", "exact"], name: str) -> Estimate:
    check_counts(k, n)
    check_level(level)
    found = stats.binomtest(k, n).proportion_ci(level, method=method)
    return Estimate(k / n, *around(k / n, float(found.low), float(found.high)), level, n, name)


def newcombe_unpaired(k_a: int, n_a: int, k_b: int, n_b: int, level: float = 0.95) -> Estimate:
    """Newcombe's hybrid score interval for k_b/n_b − k_a/n_a of two independent samples (Newcombe 1998b, method 10).

    `n` of the result is n_a + n_b.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    check_counts(k_a, n_a)
    check_counts(k_b, n_b)
    check_level(level)
    low, high = confint_proportions_2indep(k_b, n_b, k_a, n_a, method="newcomb", compare="diff", alpha=1 - level)
    difference = k_b / n_b - k_a / n_a
    low, high = around(difference, float(low), float(high))
    return Estimate(difference, low, high, level, n_a + n_b, "Newcombe unpaired")


def mean_interval(
    scores: ArrayLike, score_type: ScoreType, clusters: ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """The mean score of one model with its interval.

    `scores` (n,) are 0/1 (binary) or in [0, 1] (bounded: rotation averages, partial credit). Binary: Wilson. Bounded:
    t from 100 items of which 20 differ from the commonest value, else :func:`plus_four`. `clusters` (n,) names the
    group of each item; where any group holds two items the interval is cluster-robust. Raises EvidenceError for
    scores that are empty, NaN or out of range.
    """
    values = check_scores(scores, score_type)
    groups = check_clusters(clusters, values.size)
    check_level(level)
    if groups is not None and grouped(groups):
        min_items = 200 if score_type == "binary" else 100
        return fit_clusters(values, groups, (0.0, 0.0, 1.0, 1.0), min_items).interval(level)
    if score_type == "binary":
        return wilson(int(values.sum()), values.size, level)
    if values.size >= 100 and n_differing(values) >= 20:
        return t_mean(values, level, (0.0, 1.0))
    return plus_four(values, level)


def t_mean(values: np.ndarray, level: float, bounds: tuple[float, float]) -> Estimate:
    """Student's t interval of a mean, cut at the bounds of the scale."""
    n = values.size
    mean, half = float(values.mean()), float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), level, n, "t", df=n - 1.0)


def plus_four(values: np.ndarray, level: float) -> Estimate:
    """Agresti and Coull's "add two successes and two failures" (1998) for a mean of scores in [0, 1].

    Two zeros and two ones join the scores, then z: on 0/1 scores it is their interval, and it never collapses.
    """
    grown = np.concatenate([values, [0.0, 0.0, 1.0, 1.0]])
    half = float(stats.norm.ppf((1 + level) / 2) * grown.std() / np.sqrt(grown.size))
    mean, centre = float(values.mean()), float(grown.mean())
    low, high = around(mean, max(centre - half, 0.0), min(centre + half, 1.0))
    return Estimate(mean, low, high, level, values.size, "plus four")
