"""What needs no model: simple rules on the same items, and how like the training questions the items are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kat.audit.compare import adjust, difference, one_slice
from kat.audit.pair import Pair
from kat.audit.schema import Baseline, Contamination, Slice
from kat.audit.table import Table
from kat.audit.words import count
from kat.data import contamination
from kat.data.choices import ChoiceItem
from kat.evals import baselines
from kat.evals.choice_metrics import as_metric
from kat.runs.schemas import Metric, Sample
from kat.stats.compare import compare_paired
from kat.stats.intervals import mean_interval
from kat.stats.result import ScoreType

LIKENESS = (
    ("below .5", 0.0, 0.5),
    (".5 to .75", 0.5, 0.75),
    (".75 to .9", 0.75, 0.9),
    (".9 and above", 0.9, 0.999),
    ("the same words", 0.999, np.inf),
)
"""Name, from, to (exclusive) of the cosine between an item's question and the nearest training question."""


@dataclass(frozen=True)
class Rule:
    """A rule's expected score of each pair (n,), in the pairs' order. The untrained twin is one that is a model."""

    name: str
    description: str
    scores: np.ndarray
    needs_no_model: bool = True


def rules(
    paired: Pair, items: Sequence[ChoiceItem] | None, why_not: str, train: Sequence[ChoiceItem] | None
) -> tuple[list[Rule], list[str]]:
    """Every rule that can be computed, and in words what could not be and why.

    Without the questions (`items` None) the rules that read only the options still stand. Where every rotation of the
    options was scored, always saying one letter is chance by construction and is left out.
    """
    asked = list(items) if items is not None else [_without_question(pair.a[0]) for pair in paired.items]
    found = [baselines.chance(asked), baselines.longest(asked)]
    rotated = paired.a.results.protocol.get("rotations") == "all"
    if not rotated:
        found.insert(1, baselines.constant_letter(asked))
    missing = []
    if train:
        if not rotated:
            found.append(baselines.majority_letter(train, asked))
        found.append(baselines.question_blind(train, asked))
    else:
        missing.append(
            "The rules that learn (question-blind, nearest copier) were not computed: the training questions were not "
            "given."
        )
    if train and items is not None:
        found.append(baselines.nearest_copier(train, items))
    elif train:
        missing.append(f"The nearest copier was not computed: {why_not}.")
    return [Rule(one.name, one.description, one.scores) for one in found], missing


def _without_question(row: Sample) -> ChoiceItem:
    return ChoiceItem(row.item_id, "", tuple(row.choices), ord(row.expected or "A") - ord("A"))


def floor(rule: Rule, data: Table) -> Baseline:
    """A rule's score with its interval, and how far each model is above it, on the same items and units."""
    whole = set(rule.scores.tolist()) <= {0.0, 1.0}
    kind: ScoreType = "binary" if data.score_type == "binary" and whole else "bounded"
    if rule.name == "chance":
        value = float(rule.scores.mean())
        how = "mean of 1 / number of options; exact"
        score = Metric(estimate=value, low=value, high=value, level=0.95, n=rule.scores.size, method=how)
    else:
        found = mean_interval(rule.scores, kind, data.clusters)
        score = as_metric(found, found.method)
    return Baseline(
        name=rule.name,
        label=rule.name[:1].upper() + rule.name[1:],
        description=rule.description,
        score=score,
        a_above=difference(compare_paired(rule.scores, data.a, kind, data.clusters, seen=False)),
        b_above=difference(compare_paired(rule.scores, data.b, kind, data.clusters, seen=False)),
        needs_no_model=rule.needs_no_model,
    )


def likeness(
    data: Table, items: Sequence[ChoiceItem] | None, why_not: str, train: Sequence[ChoiceItem] | None
) -> tuple[list[Slice], str]:
    """The comparison by the likeness of an item's question to the nearest training question, and what to say of it."""
    if not train:
        return [], "Not computed: the training questions were not given."
    if items is None:
        return [], f"Not computed: {why_not}."
    nearest = baselines.similarity_to_training(train, items)
    found = []
    for name, low, high in LIKENESS:
        chosen = (nearest >= low) & (nearest < high)
        if chosen.any():
            found.append(one_slice("likeness", name, data, chosen))
    said = (
        "Likeness is the cosine between the TF-IDF vectors of an item's question and of the nearest of the "
        f"{count(len(train), 'training question')}."
    )
    same = int((nearest >= LIKENESS[-1][1]).sum())
    if same:
        said += (
            f" {count(same, 'item has', 'items have')} the same words as a training question (words that training "
            "never had aside): what a model scores there it may have copied."
        )
    return adjust(found), said


def contaminated(
    data: Table, items: Sequence[ChoiceItem] | None, train: Sequence[ChoiceItem] | None
) -> Contamination | None:
    """How many items' questions stand in the training data word for word, and the comparison with and without them;
    None where either side is unknown."""
    if items is None or not train:
        return None
    kinds: dict[str, set[str]] = {contamination.QUESTION: set(), contamination.CHOICES: set()}
    for match in contamination.equal_items(train, items):
        kinds.setdefault(match.kind, set()).add(match.eval_id)
    seen = np.array([item.id in kinds[contamination.QUESTION] for item in items])
    parts = [("in training", seen), ("not in training", ~seen)]
    return Contamination(
        n_train=len(train),
        same_question=len(kinds[contamination.QUESTION]),
        same_choices=len(kinds[contamination.CHOICES]),
        slices=adjust([one_slice("question", name, data, chosen) for name, chosen in parts if chosen.any()]),
    )
