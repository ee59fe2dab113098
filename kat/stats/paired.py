"""Two models on the same items, right or wrong: tests and intervals from the discordant counts.

Throughout, `gained` is the number of items that A has wrong and B right, `lost` the reverse, n the number of items,
and the difference is B − A = (gained − lost) / n. None of these is in scipy or statsmodels but the exact test.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

from kat.errors import EvidenceError
from kat.stats.checks import check_level, check_table
from kat.stats.intervals import wilson
from kat.stats.result import Estimate, around


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact conditional test: a sign test on the discordant pairs."""
    check_table(gained, lost, max(1, gained + lost))
    n = gained + lost
    return float(stats.binomtest(gained, n, 0.5).pvalue) if n else 1.0


def mcnemar_midp(gained: int, lost: int) -> float:
    """Two-sided mid-p of McNemar's test (Fagerland, Lydersen and Laake 2013): half the weight of what was observed.

    With no discordant pair there is no evidence and p is 1.
    """
    check_table(gained, lost, max(1, gained + lost))
    n, smaller = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    observed = float(stats.binom.pmf(smaller, n, 0.5))
    if gained == lost:
        return 1 - observed / 2
    return float(2 * stats.binom.cdf(smaller, n, 0.5)) - observed


def tango_z(gained: int, lost: int, n: int, delta0: float) -> float:
    """Tango's score statistic of "the true difference is delta0" (Tango 1998, Statistics in Medicine 17:891-908).

    Standard normal under the hypothesis and falling in delta0; at delta0 = 0 its square is McNemar's χ². Infinite
    where delta0 is impossible given the data (±1).
    """
    check_table(gained, lost, n)
    b = (2 * n - gained + lost) * delta0 - gained - lost
    c = -lost * delta0 * (1 - delta0)
    loss_rate = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # the estimate of P(lost) given delta0
    variance = n * (2 * loss_rate + delta0 * (1 - delta0))
    distance = gained - lost - n * delta0
    if abs(distance) < 1e-12 * n:
        return 0.0
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def tango(gained: int, lost: int, n: int, level: float = 0.95) -> Estimate:
    """Tango's score interval: the differences that the score test does not reject."""
    check_table(gained, lost, n)
    check_level(level)
    z, estimate = float(stats.norm.ppf((1 + level) / 2)), (gained - lost) / n
    low = -1.0 if estimate == -1 else _root(lambda d: tango_z(gained, lost, n, d) - z, -1.0, estimate)
    high = 1.0 if estimate == 1 else _root(lambda d: tango_z(gained, lost, n, d) + z, estimate, 1.0)
    return Estimate(estimate, *around(estimate, low, high), level, n, "Tango score")


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """The zero of f, which falls from low to high. The ends ±1 themselves are impossible differences."""
    return float(optimize.brentq(f, max(low, -1 + 1e-12), min(high, 1 - 1e-12), xtol=1e-12))


def newcombe_paired(both: int, gained: int, lost: int, neither: int, level: float = 0.95) -> Estimate:
    """Newcombe's square-and-add interval (Newcombe 1998, Statistics in Medicine 17:2635-2650, method 10).

    Wilson's intervals of the two shares, joined by the items' correlation with a continuity correction.
    """
    n = both + gained + lost + neither
    check_table(gained, lost, n)
    if both < 0 or neither < 0:
        raise EvidenceError(f"{both} both right and {neither} both wrong: a count is negative")
    right_b, right_a = both + gained, both + lost
    b, a = wilson(right_b, n, level), wilson(right_a, n, level)
    margins = right_b * (n - right_b) * right_a * (n - right_a)
    excess = float(both * neither - gained * lost)
    excess = excess if excess < 0 else max(excess - n / 2, 0.0)
    correlation = excess / math.sqrt(margins) if margins else 0.0
    estimate = (gained - lost) / n
    down, up = (b.estimate - b.low, a.high - a.estimate), (a.estimate - a.low, b.high - b.estimate)
    low = estimate - math.sqrt(down[0] ** 2 + down[1] ** 2 - 2 * correlation * down[0] * down[1])
    high = estimate + math.sqrt(up[0] ** 2 + up[1] ** 2 - 2 * correlation * up[0] * up[1])
    return Estimate(estimate, *around(estimate, low, high), level, n, "Newcombe paired")


def bonett_price(gained: int, lost: int, n: int, level: float = 0.95) -> Estimate:
    """Bonett and Price's adjusted Wald interval (2012): one pair more each way, then z."""
    check_table(gained, lost, n)
    signs = np.repeat([1.0, -1.0, 0.0], [gained, lost, n - gained - lost])
    return bonett_price_bounded(signs, level, "Bonett-Price")


def bonett_price_bounded(d: np.ndarray, level: float = 0.95, method: str = "generalised Bonett-Price") -> Estimate:
    """Bonett and Price's interval for differences d (n,) anywhere in [−1, 1]: +1 and −1 join d, then z.

    On −1/0/1 it is theirs; it is never narrower than two discordant pairs make it, so it never collapses.
    """
    check_level(level)
    grown = np.concatenate([d, [1.0, -1.0]])
    half = float(stats.norm.ppf((1 + level) / 2) * grown.std() / math.sqrt(grown.size))
    mean, centre = float(d.mean()), float(grown.mean())
    low, high = around(mean, max(centre - half, -1.0), min(centre + half, 1.0))
    return Estimate(mean, low, high, level, d.size, method)
