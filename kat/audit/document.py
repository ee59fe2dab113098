"""The report as a list of sections: audit.md and audit.html draw this list and nothing else."""

from kat.audit.appendix import (
    EFFECT,
    configuration,
    contamination,
    effect,
    extraction,
    flips,
    parsing,
    provenance,
    similarity,
    slices,
    training,
)
from kat.audit.attempts import attempts
from kat.audit.blocks import Block, Cell, Figure, Para, Section, Table
from kat.audit.charts import Mark, interval_chart
from kat.audit.schema import Audit, Baseline, Comparison, Difference
from kat.audit.steady import steady
from kat.audit.verified import verified
from kat.audit.words import bare_p, count, interval, percent, points
from kat.runs.schemas import Metric


def sections(audit: Audit) -> list[Section]:
    """Everything below the verdict."""
    found = [
        _result(audit),
        _baselines(audit),
        parsing(audit),
        extraction(audit),
        contamination(audit),
        similarity(audit),
        steady(audit),
        slices(audit),
        flips(audit),
        training(audit),
        verified(audit),
        attempts(audit),
        configuration(audit),
        provenance(audit),
        Section("How this was computed", "methods", tuple(Para(text) for text in audit.methods)),
    ]
    return [section for section in found if section.blocks]


def _result(audit: Audit) -> Section:
    primary = audit.primary
    marks = [_difference_mark(f"{primary.label}, by item", primary.by_item, faint=primary.by_cluster is not None)]
    if primary.by_cluster is not None:
        marks.append(_difference_mark(f"{primary.label}, by cluster", primary.by_cluster))
    marks += [_difference_mark(one.label, one.gating) for one in audit.secondary]
    svg = interval_chart(
        marks,
        title=f"Differences between B and A in points: {primary.sentence}",
        unit="B − A, in points, with 95 % interval",
        zero=True,
        name="differences",
    )
    rows = [_comparison_row(primary, primary.by_item, "item")]
    if primary.by_cluster is not None:
        rows.append(_comparison_row(primary, primary.by_cluster, "cluster"))
    outcomes = Table(
        f"What happened to the {count(audit.n_items, 'item')}",
        ("", "B right", "B wrong"),
        (
            (Cell("A right"), Cell(f"{primary.both:,}"), Cell(f"{primary.a_only:,}")),
            (Cell("A wrong"), Cell(f"{primary.b_only:,}"), Cell(f"{primary.neither:,}")),
        ),
    )
    if audit.score_type != "binary":
        outcomes = Table(
            f"What happened to the {count(audit.n_items, 'item')}, whose scores are means over rotations or draws",
            ("B scores higher", "A scores higher", "equal, above 0", "both 0"),
            (
                (
                    Cell(f"{primary.b_only:,}"),
                    Cell(f"{primary.a_only:,}"),
                    Cell(f"{primary.both:,}"),
                    Cell(f"{primary.neither:,}"),
                ),
            ),
            left=0,
        )
    return Section(
        "The difference",
        "difference",
        (
            Para(primary.sentence),
            Figure("Differences with their 95 % intervals. Right of zero, B is higher.", svg),
            Table(
                f"{primary.label} of both models and their paired difference",
                ("unit", "A", "B", "B − A, points", "95 % interval", "effect", "p", "test"),
                tuple(rows),
                note=f"{_unit_note(audit)} {EFFECT[primary.effect_kind]}",
            ),
            outcomes,
            Para(_seen_sentence(audit)),
        ),
    )


def _unit_note(audit: Audit) -> str:
    if audit.primary.by_cluster is None:
        return "No two items share a lecture, skill or passage, so the item is the unit."
    return (
        f"The {count(audit.n_items, 'item')} stand in {count(audit.n_clusters, 'cluster')} (a shared lecture). "
        "The cluster row decides, and it speaks of new lectures like these; the item row would hold if items were "
        "independent."
    )


def _seen_sentence(audit: Audit) -> str:
    seen = audit.seen
    if seen.effect is None:
        differ = audit.primary.a_only + audit.primary.b_only
        why = f"the two models differ on {count(differ, 'item')} only" if differ else "the two models differ on no item"
        first = f"No smallest detectable difference can be given: {why}."
    else:
        first = (
            f"What could have been seen: with {count(audit.n_items, 'item')} a true difference of "
            f"{100 * seen.effect:.1f} points is found with a chance of {percent(seen.power, 0)} (two-sided test at "
            f"{percent(seen.alpha, 0)}; {seen.method})."
        )
    wanted = ", ".join(f"{n:,} for {label}" for label, n in seen.n_for_points.items())
    return f"{first} Items needed at this rate of disagreement: {wanted}." if wanted else first


def _difference_mark(label: str, found: Difference, *, faint: bool = False) -> Mark:
    numbers = f"{points(found.estimate)} {interval(found.low, found.high, signed=True)}"
    return Mark(label, found.estimate, found.low, found.high, numbers, "faint" if faint else "diff")


def _comparison_row(one: Comparison, found: Difference, unit: str) -> tuple[Cell, ...]:
    return (
        Cell(unit),
        Cell(percent(one.a.estimate), "a"),
        Cell(percent(one.b.estimate), "b"),
        Cell(points(found.estimate)),
        Cell(interval(found.low, found.high, signed=True)),
        Cell(effect(one)),
        Cell(bare_p(found.p)),
        Cell(found.test),
    )


def _baselines(audit: Audit) -> Section:
    blocks: list[Block] = []
    shown = [("A", audit.primary.a, "a"), ("B", audit.primary.b, "b")]
    marks = [_score_mark(name, metric, role) for name, metric, role in shown]
    marks += [_score_mark(one.label, one.score, "rule", gap=i == 0) for i, one in enumerate(audit.baselines)]
    if audit.baselines:
        svg = interval_chart(
            marks,
            title="Scores of A and B beside rules that need no model",
            unit="right answers in percent of all items, with 95 % interval",
            zero=False,
            name="baselines",
        )
        blocks.append(Figure("Both models beside what needs no model.", svg))
        blocks.append(
            Table(
                "Rules without a model on the same items",
                ("rule", "score", "A above it, points", "B above it, points"),
                tuple(_baseline_row(one) for one in audit.baselines),
                note="Intervals are 95 %, paired by item and by the same unit as the comparison of A and B.",
            )
        )
    blocks += [Para(text) for text in audit.not_computed]
    return Section("Is either above what needs no model?", "baselines", tuple(blocks))


def _score_mark(label: str, metric: Metric, role: str, *, gap: bool = False) -> Mark:
    exact = metric.low == metric.high
    numbers = (
        percent(metric.estimate)
        if exact
        else f"{percent(metric.estimate)} {interval(metric.low, metric.high, signed=False)}"
    )
    return Mark(
        label, metric.estimate, None if exact else metric.low, None if exact else metric.high, numbers, role, gap
    )


def _baseline_row(one: Baseline) -> tuple[Cell, ...]:
    def above(found: Difference) -> str:
        return f"{points(found.estimate)} {interval(found.low, found.high, signed=True)}"

    return (
        Cell(f"{one.label}: {one.description}"),
        Cell(percent(one.score.estimate)),
        Cell(above(one.a_above), "a"),
        Cell(above(one.b_above), "b"),
    )
