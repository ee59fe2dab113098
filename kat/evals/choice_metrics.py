"""What the multiple-choice suites report of one model, computed from the rows alone.

Intervals here take the items as independent; the audit has the cluster-robust ones. Every item is in the denominator,
and an unparsed response is wrong; the figures that count otherwise say so in their names.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from kat.runs.schemas import Metric, Sample
from kat.stats.intervals import mean_interval, wilson
from kat.stats.result import Estimate


def generation_metrics(samples: Sequence[Sample]) -> dict[str, Metric]:
    """Of generated answers: accuracy, what chance gives, and what the unparsed responses leave open."""
    n = len(samples)
    parsed = [row for row in samples if row.extracted is not None]
    right = sum(row.score == 1.0 for row in samples)
    found = {
        "accuracy": accuracy(samples),
        "parse_rate": as_metric(wilson(len(parsed), n), "Wilson"),
        "chance": chance(samples),
        "accuracy_chance_corrected": chance_corrected(samples),
        "accuracy_unparsed_right": as_metric(
            wilson(right + n - len(parsed), n), "Wilson; every unparsed counted as right"
        ),
    }
    if parsed:
        dropped = wilson(right, len(parsed))
        found["accuracy_unparsed_dropped"] = as_metric(dropped, "Wilson; unparsed dropped from the denominator")
    return found


def rotation_metrics(samples: Sequence[Sample]) -> dict[str, Metric]:
    """Of rotation-averaged letters: accuracy, the figure of the unrotated order alone, and how steady the answer is."""
    first = [row for row in samples if row.rotation == 0]
    steady = [same_option(rows) for rows in by_item(samples)]
    return {
        "accuracy": accuracy(samples),
        "chance": chance(samples),
        "accuracy_chance_corrected": chance_corrected(samples),
        "accuracy_unrotated": as_metric(_mean(first), "the file's own order only: letter preference is in it"),
        "same_option_in_every_rotation": as_metric(wilson(sum(steady), len(steady)), "Wilson"),
    }


def text_metrics(samples: Sequence[Sample]) -> dict[str, Metric]:
    """Of full texts by log-probability per byte: accuracy and what chance gives."""
    return {
        "accuracy": accuracy(samples),
        "chance": chance(samples),
        "accuracy_chance_corrected": chance_corrected(samples),
    }


def accuracy(samples: Sequence[Sample]) -> Metric:
    """The mean item score: Wilson for one 0/1 row an item, else the interval of a bounded mean."""
    found = _mean(samples)
    return as_metric(found, found.method)


def chance(samples: Sequence[Sample]) -> Metric:
    """What guessing an offered option gives on these items: the mean of 1 / n_choices, known without error."""
    value = chance_level(samples)
    n = len(by_item(samples))
    return Metric(estimate=value, low=value, high=value, level=0.95, n=n, method="mean of 1 / number of options; exact")


def chance_corrected(samples: Sequence[Sample]) -> Metric:
    """(accuracy − chance) / (1 − chance): 0 is guessing, 1 is perfect. The interval's ends are mapped likewise."""
    found, level = _mean(samples), chance_level(samples)

    def corrected(value: float) -> float:
        return (value - level) / (1 - level)

    return Metric(
        estimate=corrected(found.estimate),
        low=corrected(found.low),
        high=corrected(found.high),
        level=found.level,
        n=found.n,
        method=f"{found.method}, mapped",
    )


def chance_level(samples: Sequence[Sample]) -> float:
    """The mean of 1 / n_choices over items."""
    return fmean(1 / rows[0].n_choices for rows in by_item(samples))


def by_item(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The rows of each item, items in the order of their hashes, so that no figure depends on the order of the file."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for row in samples:
        groups[(row.item_hash, row.item_id)].append(row)
    return [sorted(rows, key=lambda row: (row.draw, row.rotation)) for _, rows in sorted(groups.items())]


def as_metric(found: Estimate, method: str) -> Metric:
    """An estimate as results.json has it."""
    return Metric(estimate=found.estimate, low=found.low, high=found.high, level=found.level, n=found.n, method=method)


def _mean(samples: Sequence[Sample]) -> Estimate:
    groups = by_item(samples)
    scores = [fmean(row.score for row in rows) for rows in groups]
    one_each = all(len(rows) == 1 for rows in groups) and set(scores) <= {0.0, 1.0}
    return mean_interval(scores, "binary" if one_each else "bounded")


def same_option(rows: Sequence[Sample]) -> bool:
    """Whether the same option (by its text and place in the item) is best in every rotation."""
    places = set()
    for row in rows:
        if row.extracted is None:
            return False
        places.add((ord(row.extracted) - ord("A") + row.rotation) % row.n_choices)
    return len(places) == 1
