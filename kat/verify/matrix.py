"""The kill matrix: which check finds which planted bug."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kat.verify.check import Check
from kat.verify.mutants import density, model, reward, rl, text, training
from kat.verify.mutants.mutant import Mutant
from kat.verify.runner import Finding, catalogue, run_checks
from kat.verify.show import failure_text
from kat.verify.subject import Source

PLANTED_IN = (
    (text.MUTANTS, ("tokenizer", "data", "evaluation")),
    (model.MUTANTS, ("forward", "cache", "generation")),
    (training.MUTANTS, ("loss", "optimiser", "resume", "distributed")),
    (reward.MUTANTS, ("reward",)),
    (density.MUTANTS, ("density", "evaluation")),
    (rl.MUTANTS, ("rl",)),
)


@dataclass(frozen=True)
class Verdict:
    """One mutant: what failed on it (golden checks not counted), and which checks could not be run."""

    mutant: Mutant
    failures: tuple[Finding, ...]
    other: tuple[str, ...]

    @property
    def killers(self) -> tuple[str, ...]:
        return tuple(finding.check for finding in self.failures)


def kills(mutant: Mutant, checks: Sequence[Check], source: Source, seed: int = 0) -> Verdict:
    """Run the checks on the mutant of a source. An ERROR or VACUOUS is no kill: a suite must name the property."""
    bad = Source(f"{source.spec} with {mutant.id}", mutant.id, mutant.plant(source.make))
    report = run_checks(bad, [check for check in checks if check.kind != "golden"], seed=seed, level=4)
    failures = tuple(f for f in report.findings if f.outcome == "FAIL")
    other = tuple(f.check for f in report.findings if f.outcome in ("ERROR", "VACUOUS"))
    return Verdict(mutant, failures, other)


def matrix(
    mutants: Sequence[Mutant], checks: Sequence[Check], source: Source, seen: Callable[[Verdict], None] | None = None
) -> list[Verdict]:
    """Who kills whom, without running every check on every mutant (which would take an hour).

    Each mutant meets the checks that name one of its catalogue rows, then the others until one kills it; afterwards
    each check that has killed nothing meets the mutants until it has. `seen` is told each verdict as it comes.
    """
    verdicts = []
    for mutant in mutants:
        named = [check for check in checks if set(mutant.rows) & set(check.catches)]
        verdict = kills(mutant, named, source) if named else Verdict(mutant, (), ())
        for check in likely(mutant, [check for check in checks if check not in named]):
            if verdict.failures:
                break
            verdict = _with(verdict, kills(mutant, [check], source))
        verdicts.append(verdict)
        if seen:
            seen(verdict)
    for check in [check for check in checks if check.id in set(idle_checks(verdicts, checks))]:
        for i, verdict in enumerate(verdicts):
            found = kills(verdict.mutant, [check], source)
            if found.failures:
                verdicts[i] = _with(verdict, found)
                break
    return verdicts


def _with(verdict: Verdict, more: Verdict) -> Verdict:
    return Verdict(verdict.mutant, verdict.failures + more.failures, verdict.other + more.other)


def likely(mutant: Mutant, checks: Sequence[Check]) -> list[Check]:
    """The checks in the order in which they are likely to find the mutant: those that name one of its rows, then those
    of the families that its file plants bugs in, then the others."""
    families = next(families for mutants, families in PLANTED_IN if mutant in mutants)
    return sorted(checks, key=lambda check: (not set(mutant.rows) & set(check.catches), check.family not in families))


def idle_checks(verdicts: Sequence[Verdict], checks: Sequence[Check]) -> list[str]:
    """The checks that killed no mutant; golden ones are not asked to."""
    killers = {killer for verdict in verdicts for killer in verdict.killers}
    return [check.id for check in checks if check.kind != "golden" and check.id not in killers]


def matrix_summary(verdicts: Sequence[Verdict], checks: Sequence[Check]) -> str:
    """How many mutants died, how many catalogue rows they stand for, and which checks found nothing."""
    dead = sum(bool(verdict.killers) for verdict in verdicts)
    rows = {row for verdict in verdicts if verdict.killers for row in verdict.mutant.rows}
    beyond = sum(not verdict.mutant.rows for verdict in verdicts)
    idle = idle_checks(verdicts, checks)
    return (
        f"{dead} of {len(verdicts)} mutants killed; {len(rows)} catalogue rows planted, {beyond} mutants beyond the "
        f"catalogue; {len(checks)} checks, {'each kills one' if not idle else 'these kill none: ' + ', '.join(idle)}"
    )


def matrix_markdown(verdicts: Sequence[Verdict], checks: Sequence[Check], spec: str) -> str:
    """The matrix as a page: a row a mutant, then a row a check."""
    lines = [
        f"# Planted bugs and the checks that find them (`kat verify {spec} --mutants --markdown docs/mutants.md`)",
        "",
        matrix_summary(verdicts, checks) + ".",
        "",
        "| mutant | catalogue | found by |",
        "|---|---|---|",
    ]
    for verdict in verdicts:
        found = ", ".join(f"`{killer}`" for killer in verdict.killers) or "**survives**"
        lines.append(f"| {verdict.mutant.id} | {' '.join(verdict.mutant.rows) or '–'} | {found} |")
    lines += ["", "| check | family | level | mutants it finds |", "|---|---|---|---|"]
    for check in checks:
        n = sum(check.id in verdict.killers for verdict in verdicts)
        lines.append(f"| `{check.id}` | {check.family} | {check.level} | {n if check.kind != 'golden' else 'golden'} |")
    lines += [
        "",
        "## Catalogue rows without a counterpart in kat",
        "",
        "| row | bug | why it is not planted |",
        "|---|---|---|",
    ]
    lines += [f"| {row} | {catalogue()[row]['bug']} | {why} |" for row, why in sorted(unplanted().items())]
    lines += ["", "## What a failure looks like", ""]
    for finding in examples(verdicts, 5):
        lines += ["```", failure_text(finding, 110), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def unplanted() -> dict[str, str]:
    """Catalogue rows that no mutant repeats, with the reason."""
    planted = {row for mutants, _ in PLANTED_IN for mutant in mutants for row in mutant.rows}
    kinds = (model, text, training, reward, density, rl)
    reasons = {row: why for kind in kinds for row, why in kind.NO_COUNTERPART.items()}
    tests = "about tests, not code: `kat verify --lint-tests` finds it; VQ7 is what VACUOUS is for"
    missing = [row for row in catalogue() if row not in planted]
    return {row: reasons.get(row) or (tests if row.startswith("VQ") else "no reason given") for row in missing}


def examples(verdicts: Sequence[Verdict], n: int) -> list[Finding]:
    """The first failure of n mutants, each found by another check and, as far as they go, in another family."""
    chosen: list[Finding] = []
    failures = [verdict.failures[0] for verdict in verdicts if verdict.failures]
    for fresh in ("family", "check"):
        for finding in failures:
            if len(chosen) < n and getattr(finding, fresh) not in {getattr(one, fresh) for one in chosen}:
                chosen.append(finding)
    return chosen
