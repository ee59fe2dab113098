"""A study of training arms over seeds, judged: is the claim supported, not supported, or undecided?

The claim is a conjunction: the treatment beats every named comparator on the primary metric AND its guard metric (the
reward) is not inferior to the named arms by more than the margin. It is an intersection-union test (Berger 1982): each
part at α, no correction, because all must hold. Each part must hold by Welch's t and by the exact permutation of seeds.

"Not supported" is said only where a part is refuted: an effect as large as the smallest one of interest is excluded, or
the guard is inferior beyond the margin, at α divided by the number of parts, so that all refutations together err in at
most α of the studies in which the claim is true. Anything else is "undecided".

A diverged run is an outcome and never helps. Where one is among the runs compared, the part is tested on ranks: the
treatment's diverged run takes the worst rank, a comparator's the rank that speaks against what is being concluded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

from kat.errors import EvidenceError
from kat.stats.permutation import split_p, split_p_above
from kat.stats.seeds import hedges_g

Word = Literal["supported", "not supported", "undecided"]
FEWEST_SEEDS = 4


@dataclass(frozen=True)
class Runs:
    """One arm on one metric: one value for each finished run (k,), and how many runs diverged."""

    values: np.ndarray
    n_diverged: int = 0

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not np.isfinite(self.values).all():
            raise EvidenceError("a study's metric is one finite number for each finished run")

    @property
    def n(self) -> int:
        """Runs of the arm, diverged ones among them."""
        return self.values.size + self.n_diverged

    def ranked_with(self, diverged: float) -> np.ndarray:
        """The values with each diverged run as `diverged` (±inf)."""
        return np.concatenate([self.values, np.full(self.n_diverged, diverged)])


@dataclass(frozen=True)
class Rules:
    """What was declared before the study. A sign is +1 where higher is better and −1 where lower is.

    `smallest_effect` and `margin` are positive, in the units of the primary and of the guard metric.
    """

    treatment: str
    comparisons: tuple[str, ...]
    primary: str
    primary_sign: int
    smallest_effect: float
    guard: str
    guard_sign: int
    margin: float
    guard_against: tuple[str, ...]
    alpha: float = 0.05

    @property
    def n_parts(self) -> int:
        """How many tests must hold for "supported"."""
        return len(self.comparisons) + len(self.guard_against)


@dataclass(frozen=True)
class Part:
    """One part of the claim. `p` is of "it is false", `p_against` of "it is true by as much as is of interest"."""

    kind: Literal["primary", "guard"]
    against: str
    p: float
    holds: bool
    p_against: float
    refuted: bool
    on_ranks: bool


@dataclass(frozen=True)
class Judgement:
    """The verdict in one word, and the parts that it follows from."""

    word: Word
    parts: tuple[Part, ...]


def judge(rules: Rules, data: Mapping[str, Mapping[str, Runs]]) -> Judgement:
    """The verdict on `data[arm][metric]`. Superiority is two-sided α (α/2 upwards), non-inferiority one-sided α."""
    parts = []
    for kind, metric, sign, bound, excluded, level, arms in (
        ("primary", rules.primary, rules.primary_sign, 0.0, rules.smallest_effect, rules.alpha / 2, rules.comparisons),
        ("guard", rules.guard, rules.guard_sign, -rules.margin, -rules.margin, rules.alpha, rules.guard_against),
    ):
        treated = data[rules.treatment][metric]
        for arm in arms:
            p = p_gain_above(data[arm][metric], treated, sign, bound)
            p_against = p_gain_below(data[arm][metric], treated, sign, excluded)
            parts.append(
                Part(
                    kind="primary" if kind == "primary" else "guard",
                    against=arm,
                    p=p,
                    holds=p <= level,
                    p_against=p_against,
                    refuted=p_against <= rules.alpha / rules.n_parts,
                    on_ranks=bool(treated.n_diverged or data[arm][metric].n_diverged),
                )
            )
    if all(part.holds for part in parts):
        return Judgement("supported", tuple(parts))
    refuted = any(part.refuted for part in parts)
    return Judgement("not supported" if refuted else "undecided", tuple(parts))


def p_gain_above(comparator: Runs, treatment: Runs, sign: int, bound: float) -> float:
    """One-sided p of "the treatment's gain over the comparator is at most `bound`": small where it is larger.

    The larger of Welch's and the permutation's p. With a diverged run, the exact permutation of ranks: the treatment's
    diverged runs rank below all others and the comparator's above all others.
    """
    if comparator.n_diverged or treatment.n_diverged:
        a, b = sign * comparator.values, sign * treatment.values - bound
        return _ranked(
            Runs(a, comparator.n_diverged).ranked_with(math.inf), Runs(b, treatment.n_diverged).ranked_with(-math.inf)
        )
    a, b = sign * comparator.values, sign * treatment.values - bound
    return max(_welch_above(a, b), split_p_above(a, b))


def p_gain_below(comparator: Runs, treatment: Runs, sign: int, bound: float) -> float:
    """One-sided p of "the treatment's gain is at least `bound`": small where it is smaller.

    With a diverged run, on ranks: every diverged run, of either arm, ranks below all others.
    """
    a, b = sign * comparator.values, sign * treatment.values - bound
    if comparator.n_diverged or treatment.n_diverged:
        worst = -math.inf
        low, high = Runs(b, treatment.n_diverged).ranked_with(worst), Runs(a, comparator.n_diverged).ranked_with(worst)
        return _ranked(low, high)
    return max(_welch_above(b, a), split_p_above(b, a))


def _ranked(low: np.ndarray, high: np.ndarray) -> float:
    ranks = stats.rankdata(np.concatenate([low, high]))
    return split_p_above(ranks[: low.size], ranks[low.size :])


def _welch_above(a: np.ndarray, b: np.ndarray) -> float:
    """Welch's one-sided p of "b's mean is not above a's". Where neither arm varies it is 0 or 1, the limit, and the
    permutation decides."""
    gap, error, df = welch(a, b)
    return float(special.stdtr(df, -gap / error)) if error > 0 else float(gap <= 0)


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """mean(b) − mean(a), its standard error and Welch's degrees of freedom (Welch 1947), which are those of Student
    where neither arm varies. Raises :class:`EvidenceError` for an arm with a single value: it has no spread."""
    if min(a.size, b.size) < 2:
        raise EvidenceError("an arm with fewer than two finished runs has no spread to judge a difference by")
    share_a, share_b = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    below = share_a**2 / (a.size - 1) + share_b**2 / (b.size - 1)
    df = (share_a + share_b) ** 2 / below if below > 0 else a.size + b.size - 2
    return float(b.mean() - a.mean()), math.sqrt(share_a + share_b), float(df)


@dataclass(frozen=True)
class ArmDifference:
    """Treatment − comparator on one metric, in its units, as the report shows it.

    The interval and Welch's p are of the finished runs; None where an arm has fewer than two, or neither varies. The p
    of the permutation is of all runs, on ranks where any diverged: twice the smaller of :func:`p_gain_above` and
    :func:`p_gain_below` at 0.
    `p_above` is the chance that a run of the treatment is better than one of the comparator, the treatment's diverged
    runs as the worst and the comparator's as the best of all.
    """

    difference: float | None
    low: float | None
    high: float | None
    level: float
    welch_p: float | None
    permutation_p: float
    hedges_g: float | None
    p_above: float
    on_ranks: bool

    @property
    def p(self) -> float:
        """The larger of the two, by which a difference is claimed."""
        return self.permutation_p if self.on_ranks or self.welch_p is None else max(self.welch_p, self.permutation_p)


def compare_arms(comparator: Runs, treatment: Runs, sign: int, level: float = 0.95) -> ArmDifference:
    """Everything that the report says of two arms on one metric; `sign` +1 where higher is better, −1 where lower."""
    a, b = comparator.values, treatment.values
    on_ranks = bool(comparator.n_diverged or treatment.n_diverged)
    if on_ranks:
        above, below = (test(comparator, treatment, sign, 0.0) for test in (p_gain_above, p_gain_below))
        permutation = min(1.0, 2 * min(above, below))
    else:
        permutation = split_p(a, b)
    all_a, all_b = comparator.ranked_with(sign * math.inf), treatment.ranked_with(-sign * math.inf)
    better = (sign * all_b[:, None] > sign * all_a).mean() + (all_b[:, None] == all_a).mean() / 2
    difference = low = high = p = None
    if min(a.size, b.size) >= 2 and (np.ptp(a) > 0 or np.ptp(b) > 0):
        difference, error, df = welch(a, b)
        half = float(special.stdtrit(df, (1 + level) / 2)) * error
        low, high, p = (
            difference - half,
            difference + half,
            min(1.0, 2 * float(special.stdtr(df, -abs(difference) / error))),
        )
    elif min(a.size, b.size) >= 1:
        difference = float(b.mean() - a.mean())
    return ArmDifference(
        difference=difference,
        low=low,
        high=high,
        level=level,
        welch_p=p,
        permutation_p=permutation,
        hedges_g=hedges_g(a, b) if min(a.size, b.size) >= 2 else None,
        p_above=float(better),
        on_ranks=on_ranks,
    )
