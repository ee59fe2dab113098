"""What an interval allows the gate to say. Pure functions: a comparison and a margin in, an outcome out.

PASS: the lower end of the printed 95 % interval of B − A lies above −margin (non-inferior, one-sided .025). FAIL: not
that, and the interval lies wholly below 0. Everything else is INCONCLUSIVE, with the number of items or seeds that
would decide. A PASS of a comparison that is shown to have had less than the declared power is INCONCLUSIVE too, unless
B is shown to be better. That is judged by the end of the noise's own interval that speaks for the comparison: the
observed noise falls on either side of the planned one, and half of all runs of exactly the planned size would be turned
away.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from kat.audit.words import count, percent, points
from kat.errors import UsageError
from kat.stats.equivalence import non_inferior
from kat.stats.intervals import wilson
from kat.stats.power import n_for_margin, seeds_for_difference
from kat.stats.result import Comparison, Estimate
from kat.stats.seeds import compare_seeds

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]
LEVEL = 0.95
POWER = 0.8
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
Z_POWER = float(stats.norm.ppf(POWER))


@dataclass(frozen=True)
class Judgement:
    """An outcome in words, with its figures. `unit` is what was taken to be independent.

    `power` is the chance that two equal models would have passed, given the noise that was seen; `needed` the number
    of items (or seeds a side) at which it is 80 %; `needed_observed` the number that decides where the true difference
    is the one observed.
    """

    outcome: Outcome
    sentence: str
    mean_a: float
    mean_b: float
    difference: Estimate
    unit: Literal["item", "cluster", "seed"]
    n_units: int
    power: float
    needed: int | None
    needed_observed: int | None


@dataclass(frozen=True)
class _Reach:
    """What a comparison could have shown: see :class:`Judgement`. `best_power` is at the least noise believable."""

    power: float
    best_power: float
    needed: int | None
    needed_observed: int | None


def judge_items(found: Comparison, margin: float, min_power: float) -> Judgement:
    """Judge a paired comparison over items, by cluster where clusters gate."""
    gap = found.difference
    clustered = gap.n_clusters is not None
    reach = _reach_binary(found, margin) if found.score_type == "binary" and not clustered else _reach_t(found, margin)
    units = count(found.n, "item") + (f" in {count(gap.n_clusters or 0, 'cluster')}" if clustered else "")
    outcome, sentence = _judge(gap, margin, min_power, reach, "item", units)
    return Judgement(
        outcome,
        sentence,
        found.mean_a,
        found.mean_b,
        gap,
        "cluster" if clustered else "item",
        gap.n_clusters or found.n,
        reach.power,
        reach.needed,
        reach.needed_observed,
    )


def judge_seeds(
    a: Sequence[float], b: Sequence[float], margin: float, min_power: float, noise: tuple[float, int] | None = None
) -> Judgement:
    """Judge two training arms, one score a seed, by Welch's interval over seeds.

    `noise` is a standard deviation over seeds that was measured elsewhere, and from how many seeds; without it the
    arms' own, pooled, says how many seeds decide.
    """
    found = compare_seeds(a, b, level=LEVEL)
    gap = Estimate(found.difference, found.low, found.high, LEVEL, found.n_a + found.n_b, "Welch over seeds")
    df = found.n_a + found.n_b - 2
    pooled = math.sqrt(((found.n_a - 1) * np.var(a, ddof=1) + (found.n_b - 1) * np.var(b, ddof=1)) / df)
    sd, sd_df = (noise[0], noise[1] - 1) if noise is not None else (pooled, df)
    k = 2 / (1 / found.n_a + 1 / found.n_b)
    reach = _Reach(
        _seed_power(margin, sd, k, df),
        _seed_power(margin, least_sd(sd, sd_df), k, df),
        _at_least_five(seeds_needed(margin, sd)),
        _at_least_five(_seeds_for_observed(gap.estimate, margin, sd)),
    )
    outcome, sentence = _judge(gap, margin, min_power, reach, "seed", f"{found.n_a} and {found.n_b} training seeds")
    return Judgement(
        outcome,
        sentence,
        found.mean_a,
        found.mean_b,
        gap,
        "seed",
        found.n_a + found.n_b,
        reach.power,
        reach.needed,
        reach.needed_observed,
    )


def _judge(gap: Estimate, margin: float, min_power: float, reach: _Reach, unit: str, units: str) -> tuple[Outcome, str]:
    allowed = f"{100 * margin:g} points"
    figures = (
        f"B − A is {points(gap.estimate, 2)} points, 95 % interval {_interval(gap, margin)} ({gap.method}, {units})"
    )
    if non_inferior(gap, margin):
        if gap.low <= 0 and reach.best_power < min_power:
            return "INCONCLUSIVE", (
                f"Not worse by {allowed}, but by luck: {figures}. Two equal models would have passed no more than "
                f"{percent(reach.best_power, 0)} of the time, and the policy asks for {percent(min_power, 0)}. "
                f"{_needed(reach, unit)}"
            )
        if gap.high < 0:
            return "PASS", f"Worse, within the margin of {allowed}: {figures}."
        return "PASS", f"Not worse by {allowed} or more: {figures}."
    if gap.high < 0:
        return "FAIL", f"Worse, and not shown to be within the margin of {allowed}: {figures}."
    return "INCONCLUSIVE", (f"Neither “worse” nor “not worse by {allowed}” is shown: {figures}. {_needed(reach, unit)}")


def _needed(reach: _Reach, unit: str) -> str:
    side = " a side" if unit == "seed" else ""
    if reach.needed is None:
        return f"No number of {unit}s can be named that would decide: this few say nothing about the noise."
    said = f"About {count(reach.needed, unit)}{side} let two equal models pass {percent(POWER, 0)} of the time"
    if reach.needed_observed is not None:
        said += f"; about {count(reach.needed_observed, unit)}{side} decide a difference of the size observed"
    return f"{said}."


def _interval(gap: Estimate, margin: float) -> str:
    """The interval in points, with as many digits as it takes for a reader to reach the gate's own conclusion."""
    for digits in range(2, 8):
        low, high = round(100 * gap.low, digits), round(100 * gap.high, digits)
        if (low > round(-100 * margin, 9)) == (gap.low > -margin) and (high < 0) == (gap.high < 0):
            break
    return f"[{points(gap.low, digits)}, {points(gap.high, digits)}]"


def _reach_binary(found: Comparison, margin: float) -> _Reach:
    """From the share of discordant items; its Wilson interval is the noise's own.

    Power of the score test at no difference: Φ(margin √(n / p) − z), the formula of :func:`n_for_margin`. With no
    discordant item at all the score interval still reaches down to −z² / (n + z²).
    """
    n, discordant = found.n, found.gained + found.lost
    share, least = max(discordant, 1) / n, wilson(discordant, n, LEVEL).low
    observed = found.difference.estimate

    def power(p: float) -> float:
        return float(stats.norm.cdf(margin * math.sqrt(n / p) - Z)) if p > 0 else 1.0

    floor = math.floor(Z**2 * (1 / margin - 1)) + 1
    needed = max(floor, n_for_margin(margin, share))
    wanted = []
    if observed > -margin and observed != 0:
        wanted.append(max(floor, n_for_margin(margin, share, true_difference=observed)))
    if observed < 0:
        fewest = math.floor(Z**2 / -observed) + 1  # below it not even losses alone would bring the interval below 0
        wanted.append(max(fewest, math.ceil((Z + Z_POWER) ** 2 * (share - observed**2) / observed**2)))
    return _Reach(power(share), power(least), needed, min(wanted, default=None))


def _reach_t(found: Comparison, margin: float) -> _Reach:
    """From the standard error behind the minimum detectable effect, which is (t₁₋α⁄₂ + t_power) errors."""
    if found.mde is None:
        return _Reach(0.0, 0.0, None, None)
    df = found.difference.df if found.difference.n_clusters is not None else max(1, found.n - 1)
    df = max(float(df or 0), 1e-6)
    critical = float(stats.t.ppf((1 + LEVEL) / 2, df))
    error = found.mde / (critical + float(stats.t.ppf(POWER, df)))
    observed, n, mde = found.difference.estimate, found.n, found.mde

    def power(noise: float) -> float:
        return float(stats.t.cdf(margin / noise - critical, df))

    wanted = []
    if observed > -margin and observed != 0:
        wanted.append(math.ceil(n * (mde / (margin + observed)) ** 2))
    if observed < 0:
        wanted.append(math.ceil(n * (mde / observed) ** 2))
    needed = math.ceil(n * (mde / margin) ** 2)
    return _Reach(power(error), power(least_sd(error, df)), needed, min(wanted, default=None))


def sd_interval(sd: float, df: float, level: float = LEVEL) -> tuple[float, float]:
    """The χ² interval of a standard deviation that was estimated on `df` degrees of freedom."""
    low, high = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], df)
    return float(sd * math.sqrt(df / low)), float(sd * math.sqrt(df / high)) if high > 0 else math.inf


def least_sd(sd: float, df: float) -> float:
    """The lower end of :func:`sd_interval`."""
    return sd_interval(sd, df)[0]


def _seed_power(margin: float, sd: float, k: float, df: float) -> float:
    """Chance that two equal arms of k seeds each pass: noncentral t, one-sided .025."""
    if sd == 0:
        return 1.0
    return float(stats.nct.sf(stats.t.ppf((1 + LEVEL) / 2, df), df, margin / sd * math.sqrt(k / 2)))


def _seeds_for_observed(observed: float, margin: float, sd: float) -> int | None:
    wanted = []
    if observed > -margin and observed != 0:
        wanted.append(seeds_needed(margin + observed, sd))
    if observed < 0:
        wanted.append(seeds_needed(observed, sd))
    return min((k for k in wanted if k is not None), default=None)


def _at_least_five(k: int | None) -> int | None:
    """The gate judges no fewer seeds a side."""
    return None if k is None else max(5, k)


def seeds_needed(effect: float, sd: float) -> int | None:
    """Seeds a side that find `effect` 80 % of the time; None beyond a million."""
    try:
        return seeds_for_difference(effect, sd, POWER)
    except UsageError:
        return None
