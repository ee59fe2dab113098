"""The faults of evidence that no statistic may survive: each is one line, none becomes a number that looks fine."""

import numpy as np
from numpy.typing import ArrayLike

from kat.errors import EvidenceError, UsageError
from kat.stats.result import ScoreType


def check_scores(scores: ArrayLike, score_type: ScoreType, name: str = "scores") -> np.ndarray:
    """The scores as float64 (n,); EvidenceError unless they are finite, in [0, 1], and 0 or 1 where binary."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise EvidenceError(f"{name}: shape {values.shape}; one score for each item is needed, and at least one item")
    if not np.isfinite(values).all():
        raise EvidenceError(f"{name}: {int((~np.isfinite(values)).sum())} of {values.size} are NaN or infinite")
    if values.min() < 0 or values.max() > 1:
        raise EvidenceError(f"{name}: values from {values.min():g} to {values.max():g}; scores lie in [0, 1]")
    if score_type == "binary" and not np.isin(values, (0.0, 1.0)).all():
        raise EvidenceError(f"{name}: declared binary but hold values other than 0 and 1")
    return values


def check_clusters(clusters: ArrayLike | None, n: int) -> np.ndarray | None:
    """Cluster labels as integers 0..G−1 (n,), or None; EvidenceError where their number is not that of the items."""
    if clusters is None:
        return None
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise EvidenceError(f"clusters: {labels.size} labels for {n} items")
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def check_counts(k: int, n: int) -> None:
    """EvidenceError unless 0 ≤ k ≤ n and n ≥ 1."""
    if n < 1 or not 0 <= k <= n:
        raise EvidenceError(f"{k} of {n} is no share")


def check_table(gained: int, lost: int, n: int) -> None:
    """EvidenceError unless the discordant counts fit into n pairs."""
    if gained < 0 or lost < 0 or n < 1 or gained + lost > n:
        raise EvidenceError(f"{gained} gained and {lost} lost do not fit into {n} pairs")


def check_level(level: float) -> None:
    """UsageError unless the confidence level lies between .5 and 1."""
    if not 0.5 <= level < 1:
        raise UsageError(f"confidence level {level:g}: it must be at least .5 and below 1, for example .95")
