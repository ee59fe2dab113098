"""What could be seen: power, minimum detectable effect and the number of items a question needs.

`p_discordant` is the share of items that exactly one of the two models has right. A design effect above 1 (items that
come in clusters) divides the number of items.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

from kat.errors import UsageError

MOST_ITEMS = 10_000_000
"""Exact power takes time in proportion to the items."""


def power_mcnemar(
    n: int, p_gained: float, p_lost: float, alpha: float = 0.05, *, midp: bool = True, two_sided: bool = True
) -> float:
    """Exact power of McNemar's conditional test over n pairs: the sum over the number of discordant pairs.

    `p_gained` and `p_lost` are the shares of items that only B, and only A, has right. `midp` chooses the mid-p
    (the test that kat gates by) or the exact test. One-sided is towards p_gained > p_lost.
    """
    p = p_gained + p_lost
    if n < 1 or p_gained < 0 or p_lost < 0 or p > 1:
        raise UsageError(f"power of {n} pairs with shares {p_gained:g} and {p_lost:g}: impossible")
    if p == 0:
        return 0.0
    spread = 8 * math.sqrt(n * p * (1 - p)) + 8
    m = np.arange(max(0, math.floor(n * p - spread)), min(n, math.ceil(n * p + spread)) + 1)
    weight = stats.binom.pmf(m, n, p)
    tail = _largest_rejected(m, alpha / 2 if two_sided else alpha, midp)
    share = p_gained / p
    reject = stats.binom.sf(m - tail - 1, m, share)
    if two_sided:
        reject = reject + stats.binom.cdf(tail, m, share)
    return float((weight * reject).sum())


def _largest_rejected(m: np.ndarray, alpha: float, midp: bool) -> np.ndarray:
    """For each number m of discordant pairs the largest smaller count that one-sided alpha rejects, −1 if none."""
    k = stats.binom.ppf(alpha, m, 0.5).astype(int) + 1  # at or one above the answer: step down until it rejects
    for _ in range(4):
        tail = stats.binom.cdf(k, m, 0.5) - (0.5 * stats.binom.pmf(k, m, 0.5) if midp else 0.0)
        k = np.where((k >= 0) & (tail > alpha), k - 1, k)
    return np.where(2 * k < m, k, -1)


def mde_paired(
    n: int, p_discordant: float, power: float = 0.8, alpha: float = 0.05, design_effect: float = 1.0
) -> float | None:
    """Minimum detectable effect: the smallest true difference that McNemar's mid-p finds with this power.

    None where none does: the difference can't exceed `p_discordant`.
    """
    items = _effective(n, design_effect)
    _check_share(p_discordant)

    def short(delta: float) -> float:
        return power_mcnemar(items, (p_discordant + delta) / 2, (p_discordant - delta) / 2, alpha) - power

    if p_discordant == 0 or short(p_discordant) < 0:
        return None
    return float(optimize.brentq(short, 0.0, p_discordant, xtol=1e-6))


def mde_bounded(n: int, sd: float, power: float = 0.8, alpha: float = 0.05, design_effect: float = 1.0) -> float | None:
    """Minimum detectable mean of differences with this standard deviation, by t; None at sd = 0 or beyond the scale."""
    items = _effective(n, design_effect)
    if sd < 0:
        raise UsageError(f"standard deviation {sd:g}: it can't be negative")
    if sd == 0 or items < 2:
        return None
    mde = float(stats.t.ppf(1 - alpha / 2, items - 1) + stats.t.ppf(power, items - 1)) * sd / math.sqrt(items)
    return mde if mde <= 1 else None


def n_for_difference(
    delta: float, p_discordant: float, power: float = 0.8, alpha: float = 0.05, design_effect: float = 1.0
) -> int:
    """The number of items from which McNemar's mid-p finds a true difference `delta` with this power.

    Exact power is a saw-tooth in n, so this is the first n from which the next ten keep the power too.
    """
    delta = abs(delta)
    _check_share(p_discordant)
    if not 0 < delta <= p_discordant:
        raise UsageError(f"a difference of {delta:g} can't arise with {p_discordant:g} of the items discordant")

    def enough(n: int) -> bool:
        return power_mcnemar(n, (p_discordant + delta) / 2, (p_discordant - delta) / 2, alpha) >= power

    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    high = max(8, int(1.5 * z**2 * p_discordant / delta**2))
    if high > MOST_ITEMS:
        raise UsageError(f"a difference of {delta:g} needs more than {MOST_ITEMS:,} items")
    while not enough(high):
        high *= 2
    n = _bisect(enough, 1, high)
    while not all(enough(n + step) for step in range(10)):
        n += 1
    return math.ceil(n * design_effect)


def _bisect(enough: Callable[[int], bool], low: int, high: int) -> int:
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def n_for_margin(
    margin: float,
    p_discordant: float,
    power: float = 0.8,
    alpha: float = 0.025,
    true_difference: float = 0.0,
    design_effect: float = 1.0,
) -> int:
    """Items needed to show "not worse by `margin`" with this power, one-sided, when the truth is `true_difference`.

    n = (z₁₋α + z_power)² (p − δ²) / (margin + δ)². The default alpha of .025 is the gate's: PASS is the lower end of
    the printed 95 % interval.
    """
    _check_share(p_discordant)
    if not 0 < margin < 1 or true_difference <= -margin or abs(true_difference) > p_discordant:
        raise UsageError(f"margin {margin:g} with a true difference of {true_difference:g}: impossible")
    z = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))
    return math.ceil(z**2 * (p_discordant - true_difference**2) / (margin + true_difference) ** 2 * design_effect)


def _effective(n: int, design_effect: float) -> int:
    if n > MOST_ITEMS:
        raise UsageError(f"{n:,} items: no more than {MOST_ITEMS:,} are computed exactly")
    if n < 1 or not design_effect >= 1:
        raise UsageError(
            f"{n} items with a design effect of {design_effect:g}: at least one item and at least 1 are needed"
        )
    return max(1, math.floor(n / design_effect))


def _check_share(p: float) -> None:
    if not 0 <= p <= 1:
        raise UsageError(f"share of discordant items {p:g}: it lies between 0 and 1")


def power_seeds(k: int, effect: float, sd: float, alpha: float = 0.05) -> float:
    """Power of a two-sided t test between two arms of k seeds each, for a true difference `effect` and a standard
    deviation `sd` over seeds, alike in both arms (noncentral t on 2k − 2 degrees of freedom)."""
    _check_seeds(k, sd)
    if sd == 0:
        return 1.0 if effect else 0.0
    df, shift = 2 * k - 2, abs(effect) / sd * math.sqrt(k / 2)
    critical = stats.t.ppf(1 - alpha / 2, df)
    return float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift))


def mde_seeds(k: int, sd: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference between two arms of k seeds each that is found with this power."""
    _check_seeds(k, sd)
    if sd == 0:
        return 0.0
    high = sd
    while power_seeds(k, high, sd, alpha) < power:
        high *= 2
    return float(optimize.brentq(lambda effect: power_seeds(k, effect, sd, alpha) - power, 0.0, high, xtol=1e-9))


def seeds_for_difference(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Seeds a side from which a true difference `effect` is found with this power; never fewer than 4, below which no
    permutation of the seeds reaches .05."""
    _check_seeds(2, sd)
    if effect == 0:
        raise UsageError("a difference of 0 can't be found with any number of seeds")
    low, high = 4, 4
    while power_seeds(high, effect, sd, alpha) < power:
        low, high = high, 2 * high
        if high > 1_000_000:
            raise UsageError(f"a difference of {effect:g} with a seed noise of {sd:g} needs more than a million seeds")
    return _bisect(lambda k: power_seeds(k, effect, sd, alpha) >= power, low, high)


def _check_seeds(k: int, sd: float) -> None:
    if k < 2 or not 0 <= sd < math.inf:
        raise UsageError(f"{k} seeds a side, standard deviation {sd:g}: at least 2 seeds and no negative noise")
