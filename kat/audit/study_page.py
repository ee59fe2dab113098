"""study.md and study.html: the verdict, every seed as a dot, every figure in a table."""

import re
from collections.abc import Sequence

from kat.audit.blocks import Block, Cell, Figure, Para, Section, Table
from kat.audit.charts import SeedRow, seed_chart
from kat.audit.render_html import page
from kat.audit.render_md import block_lines, text
from kat.audit.study_report import ArmSummary, Contrast, MetricReport, StudyReport
from kat.audit.study_words import difference, interval, number
from kat.audit.words import bare_p, count, short

COLOURS = {"supported": "better", "not supported": "worse", "undecided": "inconclusive"}
CUT = 280


def render_study_html(found: StudyReport) -> str:
    """The whole report as one self-contained HTML page: no request, no script."""
    return page("study.html.j2", report=found, sections=sections(found), colour=COLOURS[found.word])


def render_study_md(found: StudyReport) -> str:
    """The whole report as GitHub-flavoured markdown."""
    lines = [f"# Study: {text(found.plan.name)}", "", text(found.plan.question), ""]
    lines += [f"**{text(found.word.capitalize())}.** {text(found.sentence)}", ""]
    lines += [*(f"- {text(one)}" for one in found.qualifications), "", f"Pre-registration {found.plan_hash}.", ""]
    for section in sections(found):
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*block_lines(block), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def sections(found: StudyReport) -> list[Section]:
    """Everything below the verdict."""
    parts = [
        Section("Every seed", "seeds", tuple(_seeds(found))),
        Section("What the verdict rests on", "parts", (_parts(found),)),
        Section("All metrics", "metrics", (_contrasts(found), _means(found))),
        Section("Every run", "runs", (_runs(found),)),
        Section("The heaviest prompts", "heaviest", tuple(_heaviest(found))),
        Section("What was declared", "plan", tuple(_plan(found))),
        Section("How this was computed", "methods", tuple(Para(one) for one in found.methods)),
    ]
    return [section for section in parts if section.blocks]


def _seeds(found: StudyReport) -> list[Block]:
    blocks: list[Block] = []
    for metric in found.metrics:
        if metric.role not in ("primary", "guard"):
            continue
        rows = [_seed_row(arm, arm.arm == found.plan.treatment) for arm in metric.arms]
        better = "higher" if metric.higher_is == "better" else "lower"
        svg = seed_chart(
            rows,
            title=f"{metric.name} of every seed by arm",
            unit=f"{metric.name} ({better} is better)",
            name=f"seeds-{metric.role}",
        )
        blocks.append(
            Figure(f"{metric.name}: each dot is one training seed, the diamond the mean with its 95 % interval.", svg)
        )
    return blocks


def _seed_row(arm: ArmSummary, treated: bool) -> SeedRow:
    values = [value for value in arm.values.values() if value is not None]
    dead = len(arm.values) - len(values)
    numbers = "all diverged" if arm.mean is None else number(arm.mean)
    if arm.sd is not None:
        numbers += f" (sd {number(arm.sd)})"
    if dead and values:
        numbers += f", {dead} diverged"
    return SeedRow(arm.arm, values, arm.mean, arm.low, arm.high, numbers, "b" if treated else "a")


def _parts(found: StudyReport) -> Table:
    plan, m = found.plan, len(found.parts)
    by_metric = {metric.role: metric for metric in found.metrics}
    rows = []
    for part in found.parts:
        one = next(c for c in by_metric[part.kind].contrasts if c.against == part.against)
        if part.kind == "primary":
            way = "more" if plan.primary.higher_is == "better" else "less"
            claim, level = f"{way} {plan.primary.metric} than {part.against}", plan.alpha / 2
        else:
            claim = f"{plan.guard.metric} not inferior to {part.against} (margin {number(plan.guard.margin)})"
            level = plan.alpha
        word = "holds" if part.holds else "refuted" if part.refuted else "open"
        rows.append(
            (
                Cell(claim),
                Cell(difference(one)),
                Cell(_interval(one)),
                Cell(f"{bare_p(part.p)} ({_bare(level)})"),
                Cell(f"{bare_p(part.p_against)} ({_bare(plan.alpha / m)})"),
                Cell(word + (" (ranks)" if part.on_ranks else "")),
            )
        )
    return Table(
        "The parts of the claim; all must hold",
        ("part", "difference", "95 % interval", "p, for it", "p, against it", "the part"),
        tuple(rows),
        note="Both p are one-sided, the larger of Welch's and the exact permutation's; in brackets what it needs.",
    )


def _bare(share: float) -> str:
    return f"{share:.3g}".removeprefix("0")


def _contrasts(found: StudyReport) -> Table:
    rows = [
        (
            Cell(metric.name + {"better": " ↑", "worse": " ↓", None: ""}[metric.higher_is]),
            Cell(one.against),
            Cell(difference(one)),
            Cell(_interval(one)),
            Cell("" if one.hedges_g is None else f"{one.hedges_g:+.2f}".replace("-", "−")),
            Cell(f"{100 * one.p_above:.0f} %" if metric.higher_is else ""),
            Cell("" if one.permutation_p is None else bare_p(one.permutation_p)),
            Cell("" if one.p_adjusted is None else bare_p(one.p_adjusted)),
            Cell(one.word),
        )
        for metric in found.metrics
        for one in metric.contrasts
    ]
    return Table(
        f"{found.plan.treatment} minus each other arm, in the metric's own units",
        ("metric", "against", "difference", "95 % interval", "g", "P(better)", "exact p", "Holm p", "is"),
        tuple(rows),
        left=2,
        note=(
            "↑ higher is better, ↓ lower is better. g: Hedges' standardised difference. P(better): the chance that a "
            f"run of {found.plan.treatment} is better than one of the other arm. What stands beside is not tested."
        ),
    )


def _means(found: StudyReport) -> Table:
    def cell(arm: ArmSummary) -> Cell:
        if arm.mean is None:
            return Cell("–")
        return Cell(number(arm.mean) if arm.sd is None else f"{number(arm.mean)} ± {number(arm.sd)}")

    rows = tuple((Cell(metric.name), *map(cell, metric.arms)) for metric in found.metrics)
    return Table("Means ± standard deviations over the finished seeds", ("metric", *found.plan.arms), rows)


def _runs(found: StudyReport) -> Table:
    shown = [metric for metric in found.metrics if metric.role in ("primary", "guard")]

    def value(metric: MetricReport, arm: str, seed: int) -> Cell:
        known = next(one for one in metric.arms if one.arm == arm).values[seed]
        return Cell("–" if known is None else number(known))

    rows = tuple(
        (
            Cell(run.arm),
            Cell(str(run.seed)),
            Cell(run.outcome + (f": {run.reason}" if run.reason else ""), "name"),
            *(value(metric, run.arm, run.seed) for metric in shown),
            Cell(short(run.model_hash or "–"), "mono"),
        )
        for run in found.runs
    )
    caption = f"All {count(len(rows), 'run')}; none was left out"
    return Table(caption, ("arm", "seed", "outcome", *(metric.name for metric in shown), "weights"), rows, left=3)


def _heaviest(found: StudyReport) -> list[Block]:
    if not found.heaviest:
        return []
    rows = tuple(
        (
            Cell(str(number_ + 1)),
            Cell(f"{one.times_uniform:.2f}\u00a0×"),
            Cell(one.text[:CUT] + ("…" if len(one.text) > CUT else ""), "name"),
        )
        for number_, one in enumerate(found.heaviest)
    )
    caption = f"The {count(len(rows), 'prompt')} that density-aware sampling draws most, by their weight over 1/n"
    return [Table(caption, ("", "weight", "prompt"), rows, left=3)]


def _plan(found: StudyReport) -> list[Block]:
    plan = found.plan
    rows: list[tuple[str, str]] = [
        ("hash", found.plan_hash),
        ("written", plan.created),
        ("treatment", f"{plan.treatment}, against {', '.join(plan.comparisons)}"),
        ("arms differ in", ", ".join(plan.varies)),
        ("seeds", ", ".join(map(str, plan.seeds))),
        ("α", f"{plan.alpha:g}"),
        ("primary", f"{plan.primary.metric}, higher is {plan.primary.higher_is}"),
        ("smallest effect of interest", number(plan.primary.smallest_effect)),
        ("guard", f"{plan.guard.metric}, margin {number(plan.guard.margin)}, against {', '.join(plan.guard.against)}"),
        ("secondary", ", ".join(f"{name} (higher is {way})" for name, way in plan.secondary.items())),
        ("beside", ", ".join(plan.beside)),
        ("exclusions", "; ".join(plan.exclusions)),
        *((name, str(value)) for name, value in plan.settings.items()),
        *((f"arm {arm}", ", ".join(f"{k} = {v}" for k, v in settings.items())) for arm, settings in plan.arms.items()),
    ]
    cells = tuple((Cell(name), Cell(value, "name")) for name, value in rows if value)
    return [Table("The pre-registration, written before any training", ("", ""), cells, left=2)]


def _interval(one: Contrast) -> str:
    low, high = interval(one)
    return low if one.low is None else f"[{low}, {high}]"


def lines(found: StudyReport) -> Sequence[str]:
    """The report for a terminal: a line for each metric and arm, then the verdict."""
    head = f"{'metric':22s}{'against':12s}{'difference':>12s}  {'95 % interval':22s}{'exact p':>9s}{'Holm':>8s}  is"
    rows = []
    for metric in found.metrics:
        for one in metric.contrasts:
            p, holm = (None if x is None else bare_p(x) for x in (one.permutation_p, one.p_adjusted))
            rows.append(
                f"{metric.name:22s}{one.against:12s}{difference(one):>12s}  {_interval(one):22s}{p or '':>9s}"
                f"{holm or '':>8s}  {one.word}".rstrip()
            )
    verdict = [f"{found.word.upper()}. {found.sentence}", *found.qualifications]
    return [f"{found.plan.name}: {found.plan.question}", head, *rows, *verdict]
