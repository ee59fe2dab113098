"""From pairs to figures: the difference and everything that stands beside it. All tests are kat.stats' own."""

from collections.abc import Sequence

import numpy as np

from kat.audit.pair import Pair, PairedItem
from kat.audit.schema import Comparison, Difference, Seen, Slice
from kat.audit.table import Table, parsed
from kat.audit.words import count, interval, p_value, percent, points
from kat.errors import UsageError
from kat.evals.choice_metrics import as_metric, same_option
from kat.runs.schemas import Metric
from kat.stats import result as stats_result
from kat.stats.compare import POWER, compare_paired
from kat.stats.intervals import mean_interval
from kat.stats.multiplicity import benjamini_hochberg, holm
from kat.stats.power import n_for_difference
from kat.stats.result import ScoreType

ALPHA = 0.05
SMALLEST_SLICE = 10
MOST_SLICES = 40
ASKED_POINTS = (0.01, 0.02, 0.05)


def difference(found: stats_result.Comparison) -> Difference:
    """A comparison of kat.stats as audit.json has it."""
    clustered = found.difference.n_clusters is not None
    return Difference(
        estimate=found.difference.estimate,
        low=found.difference.low,
        high=found.difference.high,
        level=found.difference.level,
        p=found.p,
        n=found.n,
        n_units=found.difference.n_clusters or found.n,
        unit="cluster" if clustered else "item",
        method=found.difference.method,
        test=found.test.method,
    )


def compare(
    name: str, label: str, a: np.ndarray, b: np.ndarray, score_type: ScoreType, clusters: np.ndarray
) -> tuple[Comparison, stats_result.Comparison]:
    """One measure of both models on the same items (n,), by item and, where items share clusters, by cluster."""
    found = compare_paired(a, b, score_type, clusters)
    by_item = found.if_independent or found
    exact = next((test.p for test in by_item.beside if test.method == "McNemar exact"), None)
    return Comparison(
        name=name,
        label=label,
        a=_metric(a, score_type, clusters),
        b=_metric(b, score_type, clusters),
        by_item=difference(by_item),
        by_cluster=difference(found) if found.if_independent is not None else None,
        a_only=found.lost,
        b_only=found.gained,
        both=int(((np.abs(a - b) <= 1e-12) & (a > 0)).sum()),
        neither=int(((np.abs(a - b) <= 1e-12) & (a == 0)).sum()),
        effect=_effect(found),
        effect_kind="odds" if score_type == "binary" else "standardised",
        p_exact=exact,
        sentence=_sentence(found),
    ), found


def _sentence(found: stats_result.Comparison) -> str:
    """The gating result in one sentence, with what it was computed by."""
    gap, units = found.difference, count(found.n, "item")
    if gap.n_clusters is not None:
        units += f" in {count(gap.n_clusters, 'cluster')}"
    shown = {"better": "B scores higher than A", "worse": "B scores lower than A"}
    return (
        f"{shown.get(found.direction, 'Which of A and B scores higher is not shown')}: B − A is {points(gap.estimate)} "
        f"points, {percent(gap.level, 0)} interval {interval(gap.low, gap.high, signed=True)} ({gap.method}), "
        f"{p_value(found.p)} ({found.test.method}), over {units}."
    )


def _effect(found: stats_result.Comparison) -> float | None:
    """Binary scores: how many items B gains for one that it loses, the odds ratio of matched pairs. Bounded scores:
    the mean difference over its standard deviation. None where that is 0/0 or infinite."""
    if found.score_type == "binary":
        return found.gained / found.lost if found.lost and found.gained else None
    return found.difference.estimate / found.sd if found.sd > 0 else None


def _metric(scores: np.ndarray, score_type: ScoreType, clusters: np.ndarray) -> Metric:
    found = mean_interval(scores, score_type, clusters)
    return as_metric(found, found.method)


def seen(found: stats_result.Comparison) -> Seen:
    """What this comparison could have found, and how many items other differences need at this rate of disagreement.

    Where clusters gate, the numbers of items carry the design effect that this comparison shows: the squared ratio of
    the two minimum detectable effects, at least 1.
    """
    by_item = found.if_independent or found
    effect = 1.0
    if found.if_independent is not None and found.mde and by_item.mde:
        effect = max(1.0, (found.mde / by_item.mde) ** 2)
    method = "McNemar mid-p" if found.score_type == "binary" else "t on the differences"
    if found.if_independent is not None:
        method = f"by cluster; design effect {effect:.2f}"
    wanted = {f"{100 * delta:.0f} point{'s' if delta > ASKED_POINTS[0] else ''}": delta for delta in ASKED_POINTS}
    needed = {label: _items_for(by_item, delta, effect) for label, delta in wanted.items()}
    return Seen(
        effect=found.mde,
        power=POWER,
        alpha=ALPHA,
        method=method,
        n_for_observed=_items_for(by_item, abs(found.difference.estimate), effect),
        n_for_points={label: n for label, n in needed.items() if n is not None},
    )


def _items_for(found: stats_result.Comparison, delta: float, design_effect: float) -> int | None:
    """Items at which a true difference `delta` is found with 80 % power; None where that can't be said."""
    if delta < 1e-4:
        return None
    if found.score_type == "binary":
        discordant = (found.gained + found.lost) / found.n
        try:
            return n_for_difference(delta, discordant, POWER, ALPHA, design_effect)
        except UsageError:  # a difference larger than the share of discordant items can't arise at this rate
            return None
    if found.sd == 0:
        return None
    return int(np.ceil((1.959964 + 0.841621) ** 2 * found.sd**2 / delta**2 * design_effect))


def secondary(pair: Pair, data: Table) -> list[Comparison]:
    """The declared secondary measures of the suite, p adjusted together by Holm."""
    found = []
    if pair.a.results.extractor_version is not None:
        parsed_a, parsed_b = parsed(pair)
        found.append(compare("parse_rate", "Parse rate", parsed_a, parsed_b, "binary", data.clusters)[0])
        both = (parsed_a == 1) & (parsed_b == 1)
        if both.any() and not both.all():
            one = compare(
                "accuracy_both_parsed",
                "Accuracy where both parsed",
                data.a[both],
                data.b[both],
                data.score_type,
                data.clusters[both],
            )
            found.append(one[0])
    if pair.a.results.protocol.get("rotations") == "all":
        first_a = np.array([item.a[0].score for item in pair.items])
        first_b = np.array([item.b[0].score for item in pair.items])
        kind: ScoreType = "binary" if set(first_a) | set(first_b) <= {0.0, 1.0} else "bounded"
        found.append(compare("unrotated", "Accuracy in the file's order", first_a, first_b, kind, data.clusters)[0])
        same_a = np.array([float(same_option(item.a)) for item in pair.items])
        same_b = np.array([float(same_option(item.b)) for item in pair.items])
        found.append(compare("steady", "Same option in every rotation", same_a, same_b, "binary", data.clusters)[0])
    adjusted = holm([one.gating.p for one in found])
    note = f"Holm over {count(len(found), 'secondary measure')}."
    return [
        one.model_copy(update={"p_adjusted": float(p), "adjustment": note})
        for one, p in zip(found, adjusted, strict=True)
    ]


def slices(pair: Pair, data: Table) -> tuple[list[Slice], list[str]]:
    """The comparison in every part that the items declare, p adjusted over all parts by Benjamini and Hochberg.

    Also the names of what was left out: keys with one value, or with more than 40.
    """
    found: list[Slice] = []
    left_out = []
    for key in sorted({key for item in pair.items for key in item.a[0].slices}):
        values = np.array([item.a[0].slices.get(key, "") for item in pair.items])
        names = sorted(set(values.tolist()), key=lambda value: (-int((values == value).sum()), value))
        if len(names) == 1:
            continue
        if len(names) > MOST_SLICES:
            left_out.append(f"{key} ({len(names):,} values)")
            continue
        found += [one_slice(key, value or "(none)", data, values == value) for value in names]
    return adjust(found), left_out


def adjust(found: Sequence[Slice]) -> list[Slice]:
    """The slices with their p-values adjusted together."""
    tested = [one for one in found if one.difference is not None]
    adjusted = iter(benjamini_hochberg([one.difference.p for one in tested if one.difference is not None]))
    return [
        one if one.difference is None else one.model_copy(update={"p_adjusted": float(next(adjusted))}) for one in found
    ]


def one_slice(key: str, value: str, data: Table, chosen: np.ndarray) -> Slice:
    """The comparison on the chosen items (n,) of bool; below ten items only the two figures."""
    a, b = data.a[chosen], data.b[chosen]
    enough = a.size >= SMALLEST_SLICE
    found = compare_paired(a, b, data.score_type, data.clusters[chosen], seen=False) if enough else None
    return Slice(
        key=key,
        value=value,
        n=int(a.size),
        a=float(a.mean()),
        b=float(b.mean()),
        difference=None if found is None else difference(found),
        note=None if enough else "too few",
    )


def flipped(items: Sequence[PairedItem]) -> list[tuple[PairedItem, bool]]:
    """The items on which the scores differ, in the order of their hashes, and whether B gained."""
    return [(item, item.score_b > item.score_a) for item in items if abs(item.score_a - item.score_b) > 1e-12]
