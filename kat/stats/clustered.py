"""Means of items that come in clusters: the CR2 variance with Satterthwaite degrees of freedom.

Source: Bell and McCaffrey 2002 (bias-reduced linearisation, CR2 and its degrees of freedom) for a regression on a
constant, where the adjustment matrices have the closed form below. With clusters of size 1 it is Student's t interval
exactly; with equal sizes it is the t interval of the cluster means on G − 1 degrees of freedom.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kat.stats.result import Estimate, around


def cr2(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float, float]:
    """Mean, CR2 standard error and Satterthwaite degrees of freedom, from cluster sums (G,) and sizes (G,), G ≥ 2.

    With h = size/n, the residual sum of a cluster is divided by √(1 − h): the inverse square root of I − 11ᵀ/n on
    the constant vector, the only direction in which a mean uses it.
    """
    n = sizes.sum()
    mean = sums.sum() / n
    adjusted = 1 / (1 - sizes / n)
    variance = (adjusted * (sums - mean * sizes) ** 2).sum() / n**2
    # Under independent items Var(V) has the Gram matrix P_gh = √(a_g a_h) (1[g=h] m_g − m_g m_h / n), G by G.
    share = adjusted * sizes**2 / n
    diagonal = adjusted * sizes - share
    off_diagonal = share.sum() ** 2 - (share**2).sum()
    df = diagonal.sum() ** 2 / ((diagonal**2).sum() + off_diagonal)
    return float(mean), float(np.sqrt(variance)), float(df)


@dataclass(frozen=True)
class ClusterFit:
    """A mean over clusters: `centre` and `error` are those of the interval, on `df` degrees of freedom."""

    mean: float
    centre: float
    error: float
    df: float
    n: int
    n_clusters: int
    bounds: tuple[float, float]
    method: str

    def interval(self, level: float) -> Estimate:
        """The t interval, cut at the ends of the scale."""
        half = self._quantile((1 + level) / 2) * self.error
        low, high = max(self.centre - half, self.bounds[0]), min(self.centre + half, self.bounds[1])
        return Estimate(
            self.mean, *around(self.mean, low, high), level, self.n, self.method, self.n_clusters, round(self.df, 6)
        )

    def p(self) -> float:
        """Two-sided p of "the mean is 0": below 1 − level exactly where the interval leaves 0 out."""
        return float(2 * stats.t.sf(abs(self.centre) / self.error, self.df)) if self.df > 0 else 1.0

    def mde(self, power: float, alpha: float = 0.05) -> float:
        """The true mean that this error finds with the given power: (t₁₋α⁄₂ + t_power) × error."""
        return (self._quantile(1 - alpha / 2) + self._quantile(power)) * self.error

    def _quantile(self, probability: float) -> float:
        return float(stats.t.ppf(probability, self.df)) if self.df > 0 else math.inf


def fit_clusters(values: np.ndarray, groups: np.ndarray, pseudo: tuple[float, ...], min_items: int) -> ClusterFit:
    """The cluster-robust fit of the mean of `values` (n,); `groups` (n,) are labels 0..G−1.

    From `min_items` items of which 20, in 5 clusters, differ from the commonest, this is plain CR2. Below that one
    pseudo-item joins the data for each value of `pseudo` (the ends of the scale), each its own cluster, as Bonett and
    Price's interval adds one pair each way: with clusters of size 1 and z in place of t it is theirs, and it never
    collapses. One single cluster says nothing about others: its interval is the whole scale and its p is 1.
    """
    sizes, sums = np.bincount(groups).astype(np.float64), np.bincount(groups, weights=values)
    n, n_clusters, mean = values.size, sizes.size, float(values.mean())
    bounds = (min(pseudo), max(pseudo))
    if n_clusters == 1:
        return ClusterFit(mean, mean, 1.0, 0.0, n, 1, bounds, "a single cluster: no interval but the whole scale")
    if n >= min_items and n_differing(values) >= 20 and n_differing(sums / sizes) >= 5:
        return ClusterFit(mean, *cr2(sums, sizes), n, n_clusters, bounds, "CR2 by cluster")
    sizes, sums = np.append(sizes, np.ones(len(pseudo))), np.append(sums, pseudo)
    return ClusterFit(mean, *cr2(sums, sizes), n, n_clusters, bounds, f"CR2 by cluster, {len(pseudo)} pseudo-items")


def n_differing(values: np.ndarray) -> int:
    """How many values differ from the commonest one (up to rounding): what an estimate of spread rests on."""
    return values.size - int(np.unique(np.round(values, 12), return_counts=True)[1].max())


def grouped(groups: np.ndarray | None) -> bool:
    """Whether any cluster holds more than one item; otherwise the items themselves are the units."""
    return groups is not None and int(np.bincount(groups).max()) > 1
