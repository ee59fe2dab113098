"""The pairs as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kat.audit.pair import Pair
from kat.runs.schemas import Sample
from kat.stats.result import ScoreType


@dataclass(frozen=True)
class Table:
    """The pairs as arrays in the order of the item hashes: scores of A and of B (n,), cluster names (n,)."""

    a: np.ndarray
    b: np.ndarray
    clusters: np.ndarray
    score_type: ScoreType

    @property
    def n_clusters(self) -> int:
        """Number of different clusters."""
        return len(set(self.clusters.tolist()))


def table(pair: Pair) -> Table:
    """The item scores of both models."""
    return Table(
        a=np.array([item.score_a for item in pair.items]),
        b=np.array([item.score_b for item in pair.items]),
        clusters=np.array([item.a[0].cluster for item in pair.items]),
        score_type="binary" if pair.score_type == "binary" else "bounded",
    )


def parsed(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Whether every row of an item was parsed, for A and for B, (n,) of 0 and 1."""

    def whole(rows: Sequence[Sample]) -> float:
        return float(all(row.extracted is not None for row in rows))

    return np.array([whole(item.a) for item in pair.items]), np.array([whole(item.b) for item in pair.items])
