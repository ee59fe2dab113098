"""The nearest neighbours of every point, exactly: by faiss where it is installed, else by blocks of a matrix product.

Both find the same points. An approximate index is not offered: each neighbour that it misses enlarges a distance, and
the prompt that it lost would get the largest weight.
"""

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
from threadpoolctl import threadpool_limits

from kat.errors import UsageError

LARGEST = 200_000  # points; the work grows with their square
BLOCK = 2048  # queries at a time
SMALL = 5_000  # points; threads cost more than they bring below it


def check_size(n: int) -> None:
    """Raise UsageError above 200,000 points: exact search ends there, and none is approximated in silence."""
    if n > LARGEST:
        raise UsageError(
            f"{n:,} prompts: kat finds neighbours exactly, up to {LARGEST:,} prompts; give a random sample of them"
        )


def method() -> str:
    """What finds the neighbours here, for the record."""
    try:
        return f"faiss {version('faiss-cpu')} flat"
    except ModuleNotFoundError:
        return "numpy blocks"


def neighbour_distances(
    points: np.ndarray, k: int, report: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """(n, k) float32 Euclidean distances from each point to its k nearest others, ascending.

    points: (n, d) float32, of length about 1. The distances are of the differences, not of squares minus products: near
    zero those keep no digit.
    """
    check_size(len(points))
    if not 1 <= k < len(points):
        raise UsageError(f"{k} neighbours of {len(points):,} points: there must be more points than neighbours")
    points = np.ascontiguousarray(points, dtype=np.float32)
    found = np.empty((len(points), k), dtype=np.float32)
    with _threads(len(points)):
        for start, candidates in _search(points, k + 1):
            for low in range(start, start + len(candidates), 256):
                own = np.arange(low, min(low + 256, start + len(candidates)))
                near = candidates[own - start]  # (b, k + 1): the point itself among them, or others that lie on it
                difference = points[near] - points[own, None]  # (b, k + 1, d)
                distances = np.sqrt(np.einsum("bkd,bkd->bk", difference, difference))
                distances[near == own[:, None]] = -1.0  # itself, or one that lies on it, comes first and is left out
                found[own] = np.sort(distances, axis=1)[:, 1:]
            report(start + len(candidates), len(points))
    return found


def _search(points: np.ndarray, k: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, indices (b, k)) of blocks of queries; the order within a row is not used."""
    n = len(points)
    try:
        import faiss
    except ImportError:
        squares = np.einsum("nd,nd->n", points, points) / 2
        for start in range(0, n, BLOCK // 8):
            scores = squares - points[start : start + BLOCK // 8] @ points.T  # (b, n), ascending with the distance
            yield start, np.argpartition(scores, k - 1, axis=1)[:, :k]
        return
    for start in range(0, n, BLOCK):
        yield start, faiss.knn(points[start : start + BLOCK], points, k, metric=faiss.METRIC_L2)[1]


def _threads(n: int) -> threadpool_limits:
    """BLAS and OpenMP threads while searching: one for a small set, else KAT_THREADS, else what the process has."""
    wanted = os.environ.get("KAT_THREADS", "")
    return threadpool_limits(limits=1 if n < SMALL else int(wanted) if wanted.isdecimal() else None)
