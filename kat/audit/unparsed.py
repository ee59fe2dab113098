"""What the unparsed responses do to a comparison: parsing against answering, other countings, the tipping point."""

import numpy as np

from kat.audit.pair import Pair
from kat.audit.schema import Decomposition, Sensitivity
from kat.audit.table import Table, parsed
from kat.audit.words import count, percent, points
from kat.evals.choice_metrics import as_metric
from kat.runs.schemas import Metric
from kat.stats.compare import compare_paired
from kat.stats.intervals import wilson


def decomposition(pair: Pair, data: Table) -> Decomposition | None:
    """accuracy = parse rate × accuracy given parsed; the change of each, at the mean of the other (Kitagawa 1955).

    With m the mean over the two models: Δ(p·q) = Δp · m(q) + Δq · m(p), exactly. Where a model parsed nothing its
    accuracy given parsed is undefined, and the whole change is counted as parsing.
    """
    if pair.a.results.extractor_version is None or data.score_type != "binary":
        return None
    parsed_a, parsed_b = parsed(pair)
    p_a, p_b = float(parsed_a.mean()), float(parsed_b.mean())
    q_a = float(data.a.mean()) / p_a if p_a else None
    q_b = float(data.b.mean()) / p_b if p_b else None
    total = float(data.b.mean() - data.a.mean())
    if q_a is None or q_b is None:
        by_parsing, by_answers = total, 0.0
        why = "A model that parsed nowhere has no accuracy given parsed, so the whole change is counted as parsing."
    else:
        by_parsing, by_answers = (p_b - p_a) * (q_a + q_b) / 2, (q_b - q_a) * (p_a + p_b) / 2
        why = f"Where a letter was read, A is right in {percent(q_a)} and B in {percent(q_b)} of its own items."
    return Decomposition(
        parse_a=p_a,
        parse_b=p_b,
        given_parsed_a=q_a,
        given_parsed_b=q_b,
        total=total,
        from_parsing=by_parsing,
        from_answers=by_answers,
        sentence=(
            f"Of the {points(total)} points between A and B, {points(by_parsing)} come with the parse rate "
            f"({percent(p_a)} to {percent(p_b)}) and {points(by_answers)} with better or worse answers. {why}"
        ),
    )


def sensitivity(pair: Pair, data: Table) -> Sensitivity | None:
    """What other countings of the unparsed would give, and how many of them would undo the verdict."""
    if pair.a.results.extractor_version is None or data.score_type != "binary":
        return None
    parsed_a, parsed_b = parsed(pair)
    open_a, open_b = parsed_a == 0, parsed_b == 0
    n, n_a, n_b = data.a.size, int(open_a.sum()), int(open_b.sum())
    best_a, best_b = float(data.a.mean() + n_a / n), float(data.b.mean() + n_b / n)
    tipping = _tipping(data, open_a, open_b)
    if n_a == n_b == 0:
        sentence = "Every response was parsed, so nothing about this figure depends on how unparsed ones are counted."
    else:
        sentence = (
            f"{count(n_a, 'response')} of A and {n_b:,} of B had no readable letter; they count as wrong. " + tipping[1]
        )
    return Sensitivity(
        n_unparsed_a=n_a,
        n_unparsed_b=n_b,
        dropped_a=_dropped(data.a, open_a),
        dropped_b=_dropped(data.b, open_b),
        best_a=best_a,
        best_b=best_b,
        difference_low=float(data.b.mean()) - best_a,
        difference_high=best_b - float(data.a.mean()),
        tipping=tipping[0],
        sentence=sentence,
    )


def _dropped(scores: np.ndarray, unparsed: np.ndarray) -> Metric | None:
    n = int((~unparsed).sum())
    return as_metric(wilson(int(scores.sum()), n), "Wilson; unparsed dropped from the denominator") if n else None


def _tipping(data: Table, open_a: np.ndarray, open_b: np.ndarray) -> tuple[int | None, str]:
    """The fewest unparsed responses of the lower model that, if right, leave the difference not shown."""
    verdict = compare_paired(data.a, data.b, "binary", data.clusters).direction
    if verdict == "not shown":
        return None, "The difference is not shown as it is, so there is no verdict that they could undo."
    lower, name = (open_a, "A") if verdict == "better" else (open_b, "B")
    mine, other = (data.a, data.b) if verdict == "better" else (data.b, data.a)
    order = sorted(np.flatnonzero(lower).tolist(), key=lambda i: (-other[i], i))

    def undone(k: int) -> bool:
        changed = mine.copy()
        changed[order[:k]] = 1.0
        a, b = (changed, data.b) if verdict == "better" else (data.a, changed)
        return compare_paired(a, b, "binary", data.clusters).direction != verdict

    if not order or not undone(len(order)):
        return None, f"Even if all of {name}'s were right, the verdict would stand."
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if undone(middle) else (middle + 1, high)
    return low, f"If {count(low, 'response')} of {name}'s {len(order):,} were right after all, the verdict would fall."
