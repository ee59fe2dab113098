"""The report's later sections: parsing, likeness, slices, flips, training and provenance."""

from collections.abc import Sequence

from kat.audit.blocks import AllFlips, Block, Cell, Figure, FlipBlock, Para, Section, Table
from kat.audit.charts import Line, Mark, curve_chart, interval_chart
from kat.audit.schema import Audit, Comparison, Slice
from kat.audit.words import bare_p, count, interval, percent, points, short
from kat.runs.schemas import Metric

MONO = ("model hash", "evaluation", "run id", "data", "data hash", "protocol hash", "checkpoint")


EFFECT = {
    "odds": "Effect: items that B gains for each one that it loses.",
    "standardised": "Effect: the mean difference of an item over the standard deviation of these differences.",
}


def effect(one: Comparison) -> str:
    """``3.1 : 1``, ``1 : 2.4`` or ``0.21 sd``; a dash where there is none."""
    if one.effect is None:
        return "–"
    if one.effect_kind == "standardised":
        return f"{one.effect:.2f} sd".replace("-", "−")
    return f"{one.effect:.1f} : 1" if one.effect >= 1 else f"1 : {1 / one.effect:.1f}"


def parsing(audit: Audit) -> Section:
    blocks: list[Block] = []
    if audit.secondary:
        blocks.append(
            Table(
                "Secondary measures, p adjusted for their number",
                ("measure", "A", "B", "B − A, points", "95 % interval", "effect", "p", "adjusted"),
                tuple(_secondary_row(one) for one in audit.secondary),
                note=audit.secondary[0].adjustment,
            )
        )
    if audit.decomposition is not None:
        parts = audit.decomposition
        blocks.append(Para(parts.sentence))
    if audit.sensitivity is not None:
        blocks += _sensitivity(audit)
    whole = "Parsing, answering, and what the unparsed could change"
    title = "Secondary measures" if audit.sensitivity is None else whole
    return Section(title, "parsing", tuple(blocks))


def _secondary_row(one: Comparison) -> tuple[Cell, ...]:
    found = one.gating
    adjusted = "" if one.p_adjusted is None else bare_p(one.p_adjusted)
    return (
        Cell(one.label),
        Cell(percent(one.a.estimate), "a"),
        Cell(percent(one.b.estimate), "b"),
        Cell(points(found.estimate)),
        Cell(interval(found.low, found.high, signed=True)),
        Cell(effect(one)),
        Cell(bare_p(found.p)),
        Cell(adjusted),
    )


def _sensitivity(audit: Audit) -> list[Block]:
    found = audit.sensitivity
    assert found is not None
    a, b = audit.primary.a.estimate, audit.primary.b.estimate

    def row(label: str, left: float | None, right: float | None) -> tuple[Cell, ...]:
        gap = "not defined" if left is None or right is None else points(right - left)
        return (
            Cell(label),
            Cell("none parsed" if left is None else percent(left), "a"),
            Cell("none parsed" if right is None else percent(right), "b"),
            Cell(gap),
        )

    rows = (
        row("wrong (the figure above)", a, b),
        row("dropped (not the same items)", _estimate(found.dropped_a), _estimate(found.dropped_b)),
        row("all right", found.best_a, found.best_b),
        row("best for A: A's right, B's wrong", found.best_a, b),
        row("best for B: B's right, A's wrong", a, found.best_b),
    )
    table = Table(
        "Accuracy if unparsed responses were counted otherwise", ("unparsed are", "A", "B", "B − A, points"), rows
    )
    return [Para(found.sentence), table]


def _estimate(metric: Metric | None) -> float | None:
    return None if metric is None else metric.estimate


def extraction(audit: Audit) -> Section:
    """How much of the difference is the way of reading letters."""
    if not audit.extractors:
        return Section("Other ways to read the letter", "extraction", ())
    rows = tuple(
        (
            Cell(one.name),
            Cell(percent(one.parsed_a), "a"),
            Cell(percent(one.parsed_b), "b"),
            Cell(percent(one.a), "a"),
            Cell(percent(one.b), "b"),
            Cell(points(one.difference.estimate)),
            Cell(interval(one.difference.low, one.difference.high, signed=True)),
        )
        for one in audit.extractors
    )
    low = min(one.difference.estimate for one in audit.extractors)
    high = max(one.difference.estimate for one in audit.extractors)
    sources = "; ".join(f"{one.name}: {one.source}" for one in audit.extractors)
    return Section(
        "Other ways to read the letter",
        "extraction",
        (
            Para(
                f"The same responses, read by {count(len(audit.extractors), 'way', 'ways')} of finding the letter that "
                f"are in use: the difference lies between {points(low)} and {points(high)} points. Where they disagree "
                "much, the report is about the extractor as well as about the models."
            ),
            Table(
                "The comparison under other extractors",
                ("extractor", "A reads", "B reads", "A", "B", "B − A, points", "95 % interval"),
                rows,
                note=f"Unread counts as wrong everywhere. Sources: {sources}.",
            ),
        ),
    )


def contamination(audit: Audit) -> Section:
    """Items that stand in the training data, and the comparison with and without them."""
    title, found = "Does the training data hold the questions?", audit.contamination
    if found is None:
        return Section(
            title, "contamination", (Para("Not checked: the training or the evaluated rows were not given."),)
        )
    text = (
        f"Of {count(audit.n_items, 'item')}, {found.same_question:,} have a question that stands word for word "
        f"(case, punctuation and spacing aside) among the {count(found.n_train, 'training row')}; "
        f"{found.same_choices:,} of them with the same options. Near duplicates are in the next section."
    )
    if found.same_question == 0:
        return Section(title, "contamination", (Para(text),))
    table = _slice_table(found.slices, "Accuracy on items whose question is in training", "question", adjusted=True)
    return Section(title, "contamination", (Para(text), table))


def configuration(audit: Audit) -> Section:
    """The settings and constants in which the two checkpoints differ."""
    title = "What differs between the checkpoints"
    stated = [one for one in audit.provenance if one.label.startswith(("checkpoint: settings.", "config: "))]
    if not stated:
        return Section(title, "configuration", (Para("Neither checkpoint's configuration was at hand."),))
    rows = [
        (Cell(one.label.removeprefix("checkpoint: settings.").removeprefix("config: ")), Cell(one.a), Cell(one.b))
        for one in stated
        if one.a != one.b
    ]
    same = len(stated) - len(rows)
    if not rows:
        text = f"All {count(len(stated), 'setting')} and constants of the two checkpoints are equal."
        return Section(title, "configuration", (Para(text),))
    note = f"{count(same, 'other setting is', 'other settings are')} equal."
    table = Table("Settings and constants that differ", ("", "A", "B"), tuple(rows), left=3, note=note)
    return Section(title, "configuration", (table,))


def similarity(audit: Audit) -> Section:
    if not audit.similarity:
        return Section("Likeness to the training questions", "similarity", (Para(audit.similarity_note),))
    return Section(
        "Likeness to the training questions",
        "similarity",
        (
            Para(audit.similarity_note),
            *_slice_figure(audit.similarity, "similarity", "B − A by likeness to the nearest training question"),
            _slice_table(
                audit.similarity, "Accuracy by likeness to the nearest training question", "likeness", adjusted=False
            ),
        ),
    )


def slices(audit: Audit) -> Section:
    blocks: list[Block] = []
    keys = list(dict.fromkeys(one.key for one in audit.slices))
    if keys:
        blocks.append(
            Para(
                "These splits are exploratory: nobody said beforehand which of them would matter. Their p-values are "
                "adjusted together by Benjamini and Hochberg (false discovery rate); a slice that stands out is a "
                "question, not a finding."
            )
        )
    for key in keys:
        part = [one for one in audit.slices if one.key == key]
        blocks.extend(_slice_figure(part, f"slice-{keys.index(key)}", f"B − A by {key}"))
        blocks.append(_slice_table(part, f"Accuracy by {key} (exploratory)", key, adjusted=True))
    if audit.slices_left_out:
        blocks.append(Para(f"Left out for their many values: {', '.join(audit.slices_left_out)}."))
    return Section("Slices", "slices", tuple(blocks))


def _slice_figure(part: Sequence[Slice], name: str, caption: str) -> list[Block]:
    """The slices that have an interval; nothing where none has."""
    marks = [
        Mark(
            f"{one.value} ({one.n:,})",
            one.difference.estimate,
            one.difference.low,
            one.difference.high,
            f"{points(one.b - one.a)} {interval(one.difference.low, one.difference.high, signed=True)}",
        )
        for one in part
        if one.difference is not None
    ]
    if not marks:
        return []
    svg = interval_chart(marks, title=caption, unit="B − A, in points, with 95 % interval", zero=True, name=name)
    few = len(part) - len(marks)
    left_out = (
        f" {count(few, 'part')} of fewer than ten items {'is' if few == 1 else 'are'} only in the table." if few else ""
    )
    return [Figure(f"{caption}; the number of items in brackets.{left_out}", svg)]


def _slice_table(part: Sequence[Slice], caption: str, key: str, *, adjusted: bool) -> Table:
    rows = []
    for one in part:
        found = one.difference
        row = [
            Cell(one.value, "name"),
            Cell(f"{one.n:,}"),
            Cell(percent(one.a), "a"),
            Cell(percent(one.b), "b"),
            Cell(points(one.b - one.a)),
            Cell(one.note or "" if found is None else interval(found.low, found.high, signed=True)),
        ]
        if adjusted:
            row.append(Cell("" if one.p_adjusted is None else bare_p(one.p_adjusted)))
        rows.append(tuple(row))
    columns = (key, "items", "A", "B", "B − A, points", "95 % interval", *(("adjusted p",) if adjusted else ()))
    return Table(caption, columns, tuple(rows))


def flips(audit: Audit) -> Section:
    if not audit.flips:
        return Section(
            "Items that flipped", "flips", (Para("No item flipped: both models score the same on every one."),)
        )
    if audit.score_type == "binary":
        text = (
            f"B got right {count(audit.n_gained, 'item')} that A did not, and lost {count(audit.n_lost, 'item')} that "
            "A got right."
        )
    else:
        text = f"B scores higher than A on {count(audit.n_gained, 'item')} and lower on {count(audit.n_lost, 'item')}."
    text += (
        f" {count(len(audit.flips_shown), 'of them is', 'of them are')} shown here, drawn by the hash of the item, "
        "gains and losses in turn; audit.html and audit.json have them all."
    )
    if audit.sensitivity is not None:
        text += " The marked words are those that the letter was read from."
    shown = [FlipBlock(number, audit.flips[index]) for number, index in enumerate(audit.flips_shown, 1)]
    every = AllFlips(tuple(audit.flips)) if len(audit.flips) > len(shown) else None
    return Section("Items that flipped", "flips", (Para(text), *shown, *([every] if every else [])))


def training(audit: Audit) -> Section:
    panels = []
    rows = []
    for letter, name in (("A", audit.a.model), ("B", audit.b.model)):
        curves = audit.curves.get(letter, [])
        role = letter.lower()
        losses = [one for one in curves if one.name in ("loss", "val_loss") and one.steps]
        lines = [
            Line(
                one.name,
                one.steps,
                one.values,
                f"{role} {'train' if one.name == 'loss' else 'held'}",
                one.name == "val_loss",
            )
            for one in losses
        ]
        if lines:
            panels.append((f"{letter}  {name}", lines))
        for one in curves:
            last = f"{one.values[-1]:.4g}" if one.values else ""
            low = f"{min(one.values):.4g}" if one.values else ""
            rows.append(
                (
                    Cell(letter, role),
                    Cell(one.name),
                    Cell(f"{one.n_logged:,}"),
                    Cell(low),
                    Cell(last),
                    Cell(f"{one.n_not_finite:,}"),
                )
            )
    if not rows:
        return Section("Training", "training", (Para("No training log was given for either model."),))
    table = Table(
        "What the training logged", ("model", "series", "points", "lowest", "last", "not finite"), tuple(rows), left=2
    )
    if not panels:
        return Section("Training", "training", (table,))
    svg = curve_chart(
        panels, title="Training and held-out loss by optimizer step", unit="optimizer step", name="curves"
    )
    caption = "Loss in nats per supervised token by step: the line is training, the dotted line held-out data."
    return Section("Training", "training", (Figure(caption, svg), table))


def provenance(audit: Audit) -> Section:
    rows = []
    for one in audit.provenance:
        same = one.a == one.b
        a = short(one.a, 16) if len(one.a) == 64 else one.a
        b = short(one.b, 16) if len(one.b) == 64 else one.b
        kind = "mono" if one.label in MONO else "name"
        rows.append((Cell(one.label), Cell(a, kind), Cell("the same" if same else b, "faint" if same else kind)))
    blocks: list[Block] = [Table("Where the evidence comes from", ("", "A", "B"), tuple(rows), left=3)]
    blocks += [Para(text) for text in audit.notes]
    return Section("Provenance", "provenance", tuple(blocks))
