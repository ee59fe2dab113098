"""What a study can show, computed before it is run: the power of the whole verdict, not of one of its tests.

"Supported" needs several tests to hold at once, so the effect that one test finds in 80 % of studies is found by the
verdict less often. The whole rule (see :mod:`kat.stats.study`) is applied to simulated studies of normal seeds, all of
them at once: the same draws for every effect, so that the power rises with it.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import special

from kat.errors import UsageError
from kat.stats.permutation import is_exact, splits
from kat.stats.study import FEWEST_SEEDS

SIMULATED = 4_000
PERMUTED_UP_TO = 8  # seeds an arm; with more the permutation and Welch's t agree to within a percent or two
MOST_SEEDS = 2_000


@dataclass(frozen=True)
class Noise:
    """Standard deviations over seeds, in the metrics' units: of the primary metric in the treatment and in each
    comparator, of the guard in the treatment and in each arm that it is held against."""

    primary: tuple[float, ...]
    guard: tuple[float, ...]


def alike(primary_sd: float, n_comparisons: int, guard_sd: float, n_guards: int) -> Noise:
    """The same noise in every arm."""
    return Noise((primary_sd,) * (n_comparisons + 1), (guard_sd,) * (n_guards + 1))


def study_power(k: int, effect: float, noise: Noise, margin: float, alpha: float = 0.05) -> float:
    """P("supported") with k seeds an arm where the treatment gains `effect` on the primary metric over every
    comparator and the guard is truly equal. Primary and guard are taken to be independent; no run diverges."""
    if k < FEWEST_SEEDS:
        raise UsageError(f"{k} seeds an arm: at least {FEWEST_SEEDS} are needed, no permutation of fewer reaches .05")
    if min(*noise.primary, *noise.guard) < 0 or margin <= 0:
        raise UsageError("a noise below 0, or a margin that is not above 0: no power follows from it")
    guard = guard_power(k, noise.guard, margin, alpha)
    return guard * float(_all_hold(k, noise.primary, effect, alpha / 2, seed=1).mean())


def guard_power(k: int, sds: tuple[float, ...], margin: float, alpha: float = 0.05) -> float:
    """P("not inferior by the margin" to each arm) where the guard is truly equal."""
    return float(_all_hold(k, sds, margin, alpha, seed=2).mean())


def study_mde(k: int, noise: Noise, margin: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true effect at which the verdict is "supported" with this power; None where the guard's own power
    is below it, so that no effect is large enough."""
    if guard_power(k, noise.guard, margin, alpha) < power:
        return None
    low, high = 0.0, max(noise.primary)
    if high == 0:
        return 0.0
    while study_power(k, high, noise, margin, alpha) < power:
        low, high = high, 2 * high
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (low, middle) if study_power(k, middle, noise, margin, alpha) >= power else (middle, high)
    return high


def seeds_needed(effect: float, noise: Noise, margin: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Seeds an arm from which a true `effect` is "supported" with this power; None beyond 2,000."""

    def enough(k: int) -> bool:
        return study_power(k, effect, noise, margin, alpha) >= power

    low = high = FEWEST_SEEDS
    while not enough(high):
        low, high = high + 1, 2 * high
        if high > MOST_SEEDS:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def _all_hold(k: int, sds: tuple[float, ...], shift: float, level: float, seed: int) -> np.ndarray:
    """(SIMULATED,) bool: the first arm, raised by `shift`, lies above every other, each one-sided at `level`."""
    held = np.ones(SIMULATED, dtype=bool)
    if k > PERMUTED_UP_TO or not is_exact(k, k):
        means, variances = _summaries(k, len(sds), seed)
        for other in range(1, len(sds)):
            gap = shift + sds[0] * means[:, 0] - sds[other] * means[:, other]
            held &= _welch_p(gap, sds[0] ** 2 * variances[:, 0], sds[other] ** 2 * variances[:, other], k) <= level
        return held
    draws = _draws(k, len(sds), seed)
    treated = sds[0] * draws[:, 0] + shift  # (SIMULATED, k)
    for other in range(1, len(sds)):
        against = sds[other] * draws[:, other]
        gap = treated.mean(1) - against.mean(1)
        held &= _welch_p(gap, treated.var(1, ddof=1), against.var(1, ddof=1), k) <= level
        asked = np.flatnonzero(held)
        held[asked] = _split_p(against[asked], treated[asked]) <= level
    return held


def _welch_p(gap: np.ndarray, var_a: np.ndarray, var_b: np.ndarray, k: int) -> np.ndarray:
    total = var_a + var_b
    with np.errstate(divide="ignore", invalid="ignore"):
        df = (k - 1) * total**2 / (var_a**2 + var_b**2)
        p = special.stdtr(df, -gap / np.sqrt(total / k))
    return np.where(total > 0, p, np.where(gap > 0, 0.0, 1.0))


def _split_p(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One-sided permutation p of "b (studies, k) is not above a (studies, k)", study by study."""
    k, found = a.shape[1], np.empty(len(a))
    table = splits(k, k).T  # one of each two complementary splits
    for start in range(0, len(a), 256):
        values = np.concatenate([a[start : start + 256], b[start : start + 256]], axis=1)
        values -= values.mean(1, keepdims=True)
        observed = values[:, k:].sum(1, keepdims=True) - 1e-9
        sums = values @ table
        found[start : start + 256] = ((sums >= observed).mean(1) + (sums <= -observed).mean(1)) / 2
    return found


@functools.lru_cache(maxsize=8)
def _draws(k: int, n_arms: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, k)).standard_normal((SIMULATED, n_arms, k))


@functools.lru_cache(maxsize=64)
def _summaries(k: int, n_arms: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances (SIMULATED, arms) of k standard normal seeds, without drawing the seeds."""
    rng = np.random.default_rng((seed, k))
    means = rng.standard_normal((SIMULATED, n_arms)) / np.sqrt(k)
    return means, rng.chisquare(k - 1, (SIMULATED, n_arms)) / (k - 1)
