"""What every statistic returns: an estimate with its interval, a test with its p, a comparison that can say itself.

Scores are in [0, 1] and differences are always B − A in [−1, 1]; only sentences speak in percent and points.
"""

import math
from dataclasses import dataclass
from typing import Literal

ScoreType = Literal["binary", "bounded"]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval. A zero-width, non-finite or inside-out interval cannot be made: ValueError.

    `n` is the number of items, `n_clusters` the number of independent groups where items come in groups, `df` the
    degrees of freedom where the method has any.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    method: str
    n_clusters: int | None = None
    df: float | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.estimate, self.low, self.high))):
            raise ValueError(
                f"{self.method}: the interval [{self.low}, {self.high}] around {self.estimate} is not finite"
            )
        if not self.low <= self.estimate <= self.high or self.low >= self.high:
            raise ValueError(f"{self.method}: [{self.low}, {self.high}] is no interval around {self.estimate}")

    def sentence(self, name: str = "accuracy") -> str:
        """For example: ``accuracy 42.0 % (95 % interval 29.4 to 55.8; 50 items; Wilson)``."""
        return (
            f"{name} {100 * self.estimate:.1f} % ({percent(self.level)} interval {100 * self.low:.1f} to "
            f"{100 * self.high:.1f}; {units(self.n, self.n_clusters)}; {self.method})"
        )

    def difference_sentence(self, name: str = "B − A") -> str:
        """For example: ``B − A +4.0 points (95 % interval −1.2 to +9.1; 200 items; Tango score)``."""
        return (
            f"{name} {points(self.estimate)} points ({percent(self.level)} interval {points(self.low)} to "
            f"{points(self.high)}; {units(self.n, self.n_clusters)}; {self.method})"
        )


@dataclass(frozen=True)
class Test:
    """A two-sided test of "no difference" and its p."""

    __test__ = False  # not a test case for pytest

    method: str
    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"{self.method}: p = {self.p} is no probability")

    def sentence(self) -> str:
        """For example: ``p = .034 (McNemar mid-p)``."""
        return f"p {p_value(self.p)} ({self.method})"


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items: B − A, the interval and the test that gate, and what stands beside them.

    `gained` counts the items on which B scores higher, `lost` those on which A does. `mde` is the smallest true
    difference that a comparison like this one finds with probability .8 (None: no difference could have been found).
    `if_independent` is the item-level result where items share clusters: it would hold if the items were independent.
    """

    score_type: ScoreType
    mean_a: float
    mean_b: float
    difference: Estimate
    test: Test
    beside: tuple[Test, ...]
    intervals_beside: tuple[Estimate, ...]
    gained: int
    lost: int
    sd: float
    mde: float | None
    speaks_of: str
    if_independent: "Comparison | None" = None

    @property
    def n(self) -> int:
        """Number of paired items."""
        return self.difference.n

    @property
    def p(self) -> float:
        """The p of the test that gates."""
        return self.test.p

    @property
    def direction(self) -> Literal["better", "worse", "not shown"]:
        """Of B against A, where the gating interval leaves 0 out and the gating test agrees. Never "equal".

        Tango's interval and the mid-p disagree on a few tables with less than ten discordant pairs; both are asked.
        """
        if self.test.p > 1 - self.difference.level:
            return "not shown"
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "not shown"

    def sentence(self, a: str = "A", b: str = "B") -> str:
        """The result in words; where nothing is shown it says what could have been seen."""
        figures = f"{self.difference.difference_sentence(f'{b} − {a}')}, {self.test.sentence()}, about {self.speaks_of}"
        if self.direction != "not shown":
            return f"{b} scores {'higher' if self.direction == 'better' else 'lower'} than {a}: {figures}."
        return f"It is not shown which of {a} and {b} is better: {figures}. {self.seen()}"

    def seen(self) -> str:
        """What could have been seen: the minimum detectable effect of this comparison in words."""
        return mde_sentence(self.mde, self.difference.n, self.difference.n_clusters)


def mde_sentence(mde: float | None, n: int, n_clusters: int | None = None, power: float = 0.8) -> str:
    """The minimum detectable effect in words; `mde` None means that none is detectable."""
    if mde is None:
        return f"With {units(n, n_clusters)} answered so alike, no true difference could have been found reliably."
    return (
        f"With {units(n, n_clusters)} a true difference of {100 * mde:.1f} points would have been found "
        f"{percent(power)} of the time, a smaller one less often."
    )


def p_value(p: float) -> str:
    """``= .034``, ``= 3e-5``, ``< 1e-12``: three decimals, below .001 one significant digit, never "= 0"."""
    if p < 1e-12:
        return "< 1e-12"
    if p < 0.001:
        mantissa, exponent = f"{p:.0e}".split("e")
        return f"= {mantissa}e{int(exponent)}"
    text = f"{p:.3f}".rstrip("0").rstrip(".") if p < 0.9995 else "1"
    return "= " + text.removeprefix("0")


def percent(level: float) -> str:
    """.95 → ``95 %``."""
    return f"{100 * level:g} %"


def points(difference: float) -> str:
    """A difference in percentage points with its sign: .0376 → ``+3.8``."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def units(n: int, n_clusters: int | None) -> str:
    """``200 items`` or ``200 items in 31 clusters``."""
    items = f"{n:,} item{'' if n == 1 else 's'}"
    if n_clusters is None:
        return items
    return f"{items} in {n_clusters:,} cluster{'' if n_clusters == 1 else 's'}"


def around(estimate: float, low: float, high: float) -> tuple[float, float]:
    """The interval widened, if need be, so that it holds its estimate (adjusted intervals are centred elsewhere)."""
    return min(low, estimate), max(high, estimate)
