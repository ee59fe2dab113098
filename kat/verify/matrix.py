"""The kill matrix: which check finds which planted bug."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kat.verify.check import Check
from kat.verify.mutants.mutant import Mutant
from kat.verify.runner import run_checks
from kat.verify.subject import Source


@dataclass(frozen=True)
class Verdict:
    """One mutant: the checks that failed on it (golden ones not counted), and those that ended otherwise than PASS."""

    mutant: Mutant
    killers: tuple[str, ...]
    other: tuple[str, ...]


def kills(mutant: Mutant, checks: Sequence[Check], source: Source, seed: int = 0) -> Verdict:
    """Run the checks on the mutant of a source. An ERROR or VACUOUS is no kill: a suite must name the property."""
    bad = Source(f"{source.spec} with {mutant.id}", mutant.id, mutant.plant(source.make))
    report = run_checks(bad, [check for check in checks if check.kind != "golden"], seed=seed, level=4)
    killers = tuple(f.check for f in report.findings if f.outcome == "FAIL")
    other = tuple(f.check for f in report.findings if f.outcome in ("ERROR", "VACUOUS"))
    return Verdict(mutant, killers, other)


def matrix(
    mutants: Iterable[Mutant], checks: Sequence[Check], source: Source, seen: Callable[[Verdict], None] | None = None
) -> list[Verdict]:
    """The verdict on every mutant; `seen` is told each as it comes."""
    verdicts = []
    for mutant in mutants:
        verdicts.append(kills(mutant, checks, source))
        if seen:
            seen(verdicts[-1])
    return verdicts


def likely(mutant: Mutant, checks: Sequence[Check]) -> list[Check]:
    """The checks that name one of the mutant's rows among what they catch first, then the others."""
    return sorted(checks, key=lambda check: not set(mutant.rows) & set(check.catches))
