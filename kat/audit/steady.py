"""Would the same model answer the same again? Other batches, other orders of the options, a liking for a letter."""

from collections.abc import Sequence

from kat.audit.blocks import Block, Cell, Para, Section, Table
from kat.audit.pair import Pair
from kat.audit.schema import Audit, Batches, Letters, Steady
from kat.audit.words import count, interval, percent
from kat.evals.choice_metrics import as_metric, same_option
from kat.runs.schemas import Metric, Results, Sample
from kat.stats.intervals import wilson

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def steadiness(pair: Pair) -> Steady:
    """What both evaluations say of their own repeatability; None where it was not measured."""
    rows_a = [row for item in pair.items for row in item.a]
    rows_b = [row for item in pair.items for row in item.b]
    rotated = pair.a.results.protocol.get("rotations") == "all"
    return Steady(
        batches_a=_batches(pair.a.results),
        batches_b=_batches(pair.b.results),
        rotation_a=_same([item.a for item in pair.items]) if rotated else None,
        rotation_b=_same([item.b for item in pair.items]) if rotated else None,
        letters=_letters(rows_a, rows_b),
    )


def _batches(results: Results) -> Batches | None:
    check = results.batch_check
    if check is None or check.n == 0:
        return None
    found = wilson(check.n_flipped, check.n)
    return Batches(batch_size=check.batch_size, again_in=check.again_in, flipped=as_metric(found, found.method))


def _same(items: Sequence[Sequence[Sample]]) -> Metric:
    found = wilson(sum(same_option(rows) for rows in items), len(items))
    return as_metric(found, found.method)


def _letters(rows_a: Sequence[Sample], rows_b: Sequence[Sample]) -> list[Letters]:
    """How often each letter is right, and how often each model gave it, over all rows."""
    most = max(row.n_choices for row in rows_a)
    return [
        Letters(
            letter=letter,
            right=sum(row.expected == letter for row in rows_a) / len(rows_a),
            a=sum(row.extracted == letter for row in rows_a) / len(rows_a),
            b=sum(row.extracted == letter for row in rows_b) / len(rows_b),
        )
        for letter in LETTERS[:most]
    ]


def steady(audit: Audit) -> Section:
    """The section: batches, rotations, letters."""
    found = audit.steady
    blocks: list[Block] = [*_batch_blocks(audit, found)]
    if found.rotation_a is not None and found.rotation_b is not None:
        blocks.append(
            Para(
                "Every order of the options was scored. The same option is best in all of them on "
                f"{_with_interval(found.rotation_a)} of the items for A and on {_with_interval(found.rotation_b)} for "
                "B; on the others the order has a say, and the score is the mean over the orders."
            )
        )
    if found.letters:
        rows = tuple(
            (Cell(one.letter), Cell(percent(one.right)), Cell(percent(one.a), "a"), Cell(percent(one.b), "b"))
            for one in found.letters
        )
        blocks.append(
            Table(
                "How often each letter is right, and how often each model gives it",
                ("letter", "is right", "A gives it", "B gives it"),
                rows,
                note="What is missing to 100 % was not read. A model that prefers a letter gives it more often than it "
                "is right.",
            )
        )
    return Section("Would the same model answer the same again?", "steady", tuple(blocks))


def _batch_blocks(audit: Audit, found: Steady) -> list[Block]:
    measured = [(name, one) for name, one in (("A", found.batches_a), ("B", found.batches_b)) if one is not None]
    blocks: list[Block] = []
    if measured:
        rows = tuple(
            (
                Cell(name, name.lower()),
                Cell(f"{one.flipped.n:,}"),
                Cell(f"{one.batch_size} and {one.again_in}"),
                Cell(f"{round(one.flipped.estimate * one.flipped.n):,}"),
                Cell(percent(one.flipped.estimate)),
                Cell(interval(one.flipped.low, one.flipped.high, signed=False)),
            )
            for name, one in measured
        )
        blocks.append(
            Table(
                "Items whose answer changes when nothing but the batch size does",
                ("model", "asked twice", "rows in a batch", "changed", "share", "95 % interval"),
                rows,
            )
        )
    missing = " and ".join(name for name in "AB" if name not in dict(measured))
    if missing:
        why = (
            "recorded responses cannot be asked again"
            if audit.recorded
            else "kat eval --batch-check N asks N items again"
        )
        blocks.append(Para(f"Whether the batch size changes answers was not measured for {missing}: {why}."))
    return blocks


def _with_interval(metric: Metric) -> str:
    return f"{percent(metric.estimate)} ({interval(metric.low, metric.high, signed=False)}, {count(metric.n, 'item')})"
