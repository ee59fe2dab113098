"""Two published pairs of counts, right/parsed/asked, and what can honestly be said from them.

Counts alone hide which items were which: the pairing is unknown, so the paired p is known only as a range, and the
unparsed responses may have been anything, so the difference is known only within bounds.
"""

from dataclasses import dataclass

from statsmodels.stats.proportion import proportions_ztest

from kat.errors import UsageError
from kat.stats.intervals import newcombe_unpaired, wilson
from kat.stats.paired import mcnemar_exact
from kat.stats.result import Estimate, Test, p_value, points


@dataclass(frozen=True)
class Counts:
    """Of `asked` items `parsed` gave an answer and `right` gave the right one."""

    right: int
    parsed: int
    asked: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.parsed <= self.asked or self.asked < 1:
            raise UsageError(
                f"counts {self.right}/{self.parsed}/{self.asked}: they are right/parsed/asked, each at most the next, "
                "and at least one asked"
            )

    @property
    def unparsed(self) -> int:
        """Asked and not parsed."""
        return self.asked - self.parsed


@dataclass(frozen=True)
class CountsAudit:
    """What two pairs of counts say. Differences are B − A.

    `parsed_only` compares right/parsed, the usual published figure, which is over different items (None where a run
    parsed nothing). `asked` counts the unparsed as wrong. `low` and `high` are the worst and best case for B over all
    readings of the unparsed. The ranges of p run over every pairing that the counts allow (exact McNemar); None where
    the numbers of asked items differ, so that the items can't be the same.
    """

    a: Counts
    b: Counts
    parsed_only: Estimate | None
    parsed_only_test: Test | None
    asked: Estimate
    low: float
    high: float
    p_if_paired: tuple[float, float] | None
    parse: Estimate
    p_parse_if_paired: tuple[float, float] | None
    share_a: Estimate
    share_b: Estimate

    @property
    def sign_identified(self) -> bool:
        """Whether B − A has one sign whatever the unparsed responses were."""
        return self.low > 0 or self.high < 0

    def sentences(self) -> list[str]:
        """The audit in words, the strongest objection first."""
        a, b = self.a, self.b
        lines = []
        if self.parsed_only is not None and self.parsed_only_test is not None:
            lines.append(
                f"Of what was parsed: {a.right} of {a.parsed} against {b.right} of {b.parsed}, "
                f"{self.parsed_only.difference_sentence()}, {self.parsed_only_test.sentence()}; "
                + ("these are different items." if a.unparsed or b.unparsed else "every response was parsed.")
            )
        lines.append(
            f"Of all that was asked: {self.share_a.sentence('A')}, {self.share_b.sentence('B')}; "
            f"{self.asked.difference_sentence()}."
        )
        if a.unparsed or b.unparsed:
            sign = "the sign is the same in every case" if self.sign_identified else "the sign is not identified"
            lines.append(
                f"Whatever the {a.unparsed + b.unparsed} unparsed responses were, B − A lies between "
                f"{points(self.low)} and {points(self.high)} points: {sign}."
            )
        if self.p_if_paired is None:
            lines.append("The numbers of asked items differ, so the runs are not of the same items.")
        else:
            low, high = self.p_if_paired
            lines.append(f"The pairing is unknown: over the same items the exact p {_range(low, high)}.")
        lines.append(
            f"Parse rate: {a.parsed} of {a.asked} against {b.parsed} of {b.asked}, {self.parse.difference_sentence()}"
            + (f"; paired exact p {_range(*self.p_parse_if_paired)}." if self.p_parse_if_paired else ".")
        )
        return [*lines, self._solid()]

    def _solid(self) -> str:
        """What is left when every objection above is granted."""
        alpha, solid = 1 - self.parse.level, []
        if max(self.p_parse_if_paired or (1.0,)) <= alpha and (self.parse.low > 0 or self.parse.high < 0):
            more, less = ("B", "A") if self.parse.low > 0 else ("A", "B")
            solid.append(f"{more} gives a readable answer more often than {less}")
        shown = max(self.p_if_paired or (1.0,)) <= alpha and (self.asked.low > 0 or self.asked.high < 0)
        if shown and (self.sign_identified or not (self.a.unparsed or self.b.unparsed)):
            more, less = ("B", "A") if self.asked.low > 0 else ("A", "B")
            solid.append(f"{more} is right more often than {less}")
        else:
            solid.append("which of A and B is right more often is not shown")
        return f"What is solid: {'; '.join(solid)}."

    def beside_chance(self, chance: float, n: int) -> str:
        """Whether either run is above guessing, whose expected score on the n items asked from is `chance`."""
        above = [name for name, share in (("A", self.share_a), ("B", self.share_b)) if share.low > chance]
        who = {0: "neither A nor B is", 2: "A and B are"}.get(len(above), f"only {''.join(above)} is")
        return f"Chance on these {n:,} items is {100 * chance:.1f} %: {who} shown to be above it."


def audit_counts(
    a: Counts | tuple[int, int, int], b: Counts | tuple[int, int, int], level: float = 0.95
) -> CountsAudit:
    """What right/parsed/asked of two runs allow to be said; raises UsageError for impossible counts.

    The test beside the parsed-only figure is the pooled two-sample z; its interval is Newcombe's for unpaired shares.
    """
    a, b = (c if isinstance(c, Counts) else Counts(*c) for c in (a, b))
    same, both_parsed = a.asked == b.asked, a.parsed > 0 and b.parsed > 0
    return CountsAudit(
        a=a,
        b=b,
        parsed_only=newcombe_unpaired(a.right, a.parsed, b.right, b.parsed, level) if both_parsed else None,
        parsed_only_test=_z_test(a.right, a.parsed, b.right, b.parsed) if both_parsed else None,
        asked=newcombe_unpaired(a.right, a.asked, b.right, b.asked, level),
        low=b.right / b.asked - (a.right + a.unparsed) / a.asked,
        high=(b.right + b.unparsed) / b.asked - a.right / a.asked,
        p_if_paired=paired_p_range(a.right, b.right, a.asked) if same else None,
        parse=newcombe_unpaired(a.parsed, a.asked, b.parsed, b.asked, level),
        p_parse_if_paired=paired_p_range(a.parsed, b.parsed, a.asked) if same else None,
        share_a=wilson(a.right, a.asked, level),
        share_b=wilson(b.right, b.asked, level),
    )


def paired_p_range(right_a: int, right_b: int, n: int) -> tuple[float, float]:
    """Smallest and largest exact McNemar p over every pairing of right_a of n with right_b of n.

    gained − lost is fixed; lost runs from max(0, right_a − right_b) to min(right_a, n − right_b), and p grows with it.
    """
    fewest, most = max(0, right_a - right_b), min(right_a, n - right_b)
    p = [mcnemar_exact(right_b - right_a + lost, lost) for lost in (fewest, most)]
    return min(p), max(p)


def _z_test(k_a: int, n_a: int, k_b: int, n_b: int) -> Test:
    none_or_all = k_a + k_b in (0, n_a + n_b)
    return Test("two-sample z", 1.0 if none_or_all else float(proportions_ztest([k_b, k_a], [n_b, n_a])[1]))


def _range(low: float, high: float) -> str:
    words = [p_value(p).removeprefix("= ") for p in (low, high)]
    return f"is {words[0]}" if words[0] == words[1] else f"may be anything from {words[0]} to {words[1]}"
