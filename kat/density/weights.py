"""Density weights: a prompt that has few others near it is drawn more often.

The distance r to the neighbours is large where prompts are sparse. A local density falls as r grows, so a weight that
is inverse to density grows with r. (1 / r favours the crowd: the bug that this module exists for.)

In order: copies share one weight; embeddings are centred, then L2-normalised; r = exp(mean over j = k..2k of log r_j)
with exact neighbours; r is clipped at its 5 % and 95 % quantiles; r^α; 5 % of the uniform distribution is mixed in.
α is not chosen but solved for: the dose, the total variation between weights and uniform, is what a study declares.
The literal inverse density, r^d (Loftsgaarden & Quesenberry 1965), would put most of the mass on a few outliers.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kat.density.neighbours import check_size, neighbour_distances
from kat.errors import UsageError

CLIP = (0.05, 0.95)  # quantiles of r
UNIFORM = 0.05  # share of the uniform distribution in the weights
SMALLEST_SHARE = 0.5  # of n that the effective sample size keeps at least
LARGEST_RATIO = 10.0  # of the largest weight to the median
SMALLEST_CV = 0.05  # of r; below it the weights would be uniform in disguise
RESOLUTION = 1e-3  # distances of unit vectors stored in float16 mean nothing below it


@dataclass(frozen=True)
class Weights:
    """values: (n,) float64, > 0, sum 1, in the order of the rows. radii: (n,) r. The figures below are over the
    n_distinct prompts, each with the weight that its copies share."""

    values: np.ndarray
    radii: np.ndarray
    k: int
    alpha: float
    dose: float  # total variation from uniform
    ess: float  # effective sample size, 1 / Σ w²
    max_over_median: float
    cv: float  # coefficient of variation of r
    n_distinct: int


def density_weights(
    embeddings: np.ndarray,
    ids: Sequence[str] | None = None,
    *,
    k: int = 10,
    dose: float = 0.2,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Weights:
    """Weights of n prompts from their embeddings (n, d).

    ids: what makes two rows the same prompt; without ids, equal rows are. A prompt's weight does not depend on the
    order of the rows. UsageError, one line, where no weights can be had: embeddings that are not finite, all prompts
    alike, no more than 2k of them, no spread of density, a dose that cannot be reached with ESS ≥ n/2.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2:
        raise UsageError(f"embeddings of shape {embeddings.shape}; one row a prompt is needed")
    if k < 1:
        raise UsageError(f"k = {k}: at least one neighbour is needed")
    if not 0 < dose < 1:
        raise UsageError(f"dose {dose:g}: a total variation from uniform lies between 0 and 1 (0.2 is usual)")
    names = list(ids) if ids is not None else [hashlib.sha256(row.tobytes()).hexdigest() for row in embeddings]
    if len(names) != len(embeddings):
        raise UsageError(f"{len(names):,} ids for {len(embeddings):,} embeddings; one id a row")
    order, group, copies = _distinct(names)
    n = len(order)
    if n == 1 and len(names) > 1:
        raise UsageError(f"all {len(names):,} prompts are the same: there is no density to weigh by")
    if n <= 2 * k:
        raise UsageError(f"{n:,} distinct prompts for k = {k}: more than {2 * k} are needed; give more, or a smaller k")
    check_size(n)
    radii = _radii(_centred(embeddings[order], [names[i] for i in order]), k, report)
    cv = float(radii.std() / radii.mean())
    if cv < SMALLEST_CV:
        raise UsageError(
            f"the distances to the neighbours differ too little (coefficient of variation {cv:.3f} < {SMALLEST_CV}): "
            "weights from them would be uniform in disguise; try another embedder"
        )
    alpha, weights = solve(radii, dose)
    values = (weights / copies)[group]
    return Weights(
        values=values / math.fsum(values),  # exactly rounded, in whatever order
        radii=radii[group],
        k=k,
        alpha=alpha,
        dose=total_variation(weights),
        ess=effective_size(weights),
        max_over_median=float(weights.max() / np.median(weights)),
        cv=cv,
        n_distinct=n,
    )


def solve(radii: np.ndarray, dose: float) -> tuple[float, np.ndarray]:
    """The smallest α at which the weights of radii (n,) reach the dose, and those weights (n,).

    Total variation and max/median grow with α and the effective sample shrinks, so bisection finds it. UsageError where
    the dose lies beyond what ESS ≥ n/2 and max/median ≤ 10 allow.
    """
    enough = _bisect(lambda alpha: not _allowed(weigh(radii, alpha)))
    # The largest α that is allowed lies a bit below the smallest that is not.
    largest = enough * (1 - 1e-9) if np.isfinite(enough) else 1e6
    reached = total_variation(weigh(radii, largest))
    if reached < dose:
        raise UsageError(
            f"dose {dose:g}: only {reached:.3f} can be reached with an effective sample of half the prompts and no "
            f"weight above {LARGEST_RATIO:g} times the median; declare a smaller dose"
        )
    alpha = _bisect(lambda alpha: total_variation(weigh(radii, alpha)) >= dose)
    return alpha, weigh(radii, alpha)


def weigh(radii: np.ndarray, alpha: float) -> np.ndarray:
    """Weights (n,), sum 1, of radii (n,): clipped, to the power α, 5 % uniform mixed in."""
    log = np.log(np.clip(radii, *np.quantile(radii, CLIP)))
    power = np.exp(alpha * (log - log.max()))
    weights = (1 - UNIFORM) * power / power.sum() + UNIFORM / len(radii)
    return weights / weights.sum()


def total_variation(weights: np.ndarray) -> float:
    """Half the L1 distance of a distribution (n,) from the uniform one: 0 where it is uniform, below 1."""
    return float(np.abs(weights - 1 / len(weights)).sum() / 2)


def effective_size(weights: np.ndarray) -> float:
    """Kish's effective sample size (Σw)² / Σw²: n where the weights are equal."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _allowed(weights: np.ndarray) -> bool:
    return (
        effective_size(weights) >= SMALLEST_SHARE * len(weights)
        and weights.max() <= LARGEST_RATIO * np.median(weights)
    )  # fmt: skip


def _bisect(true_above: Callable[[float], bool]) -> float:
    """The smallest α in (0, 10⁶] from which on a condition is true, to 1e-12 of itself; inf if none."""
    low, high = 0.0, 1.0
    while not true_above(high):
        low, high = high, 2 * high
        if high > 1e6:
            return np.inf
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if true_above(middle) else (middle, high)
    return high


def _distinct(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row of each name in the order of the names, the group of each row, and the copies in each group.

    The order of the names makes every sum below the same whatever the order of the rows.
    """
    _, first, group, copies = np.unique(np.asarray(names), return_index=True, return_inverse=True, return_counts=True)
    return first, group, copies


def _centred(rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Rows (n, d) without their mean, each of length 1, in float32. A row at the mean itself stays at 0.

    Rows of float32 are changed in place.
    """
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise UsageError(
            f"{int((~finite).sum()):,} of {len(rows):,} embeddings are not finite, the first that of prompt "
            f"{names[bad]:.16}: is the model broken?"
        )
    points = rows.astype(np.float32, copy=False)
    size = float(np.abs(points).max())
    if size == 0:
        raise UsageError(f"all {len(rows):,} embeddings are zero: is the model broken?")
    points /= size
    points -= points.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", points, points))
    if lengths.max() < 1e-5:
        raise UsageError(f"all {len(rows):,} embeddings are equal: there is no density to weigh by")
    points /= np.where(lengths < 1e-6, np.inf, lengths)[:, None]
    return points


def _radii(points: np.ndarray, k: int, report: Callable[[int, int], None]) -> np.ndarray:
    """(n,) float64: the geometric mean of the distances to the k-th … 2k-th neighbour."""
    distances = neighbour_distances(points, 2 * k, report)[:, k - 1 :].astype(np.float64)  # (n, k + 1)
    return np.exp(np.log(np.maximum(distances, RESOLUTION)).mean(axis=1))
