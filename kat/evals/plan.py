"""The steps of a run that know no folder: which items, in which batches, and what the suite makes of the answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from kat.errors import EvidenceError, UsageError
from kat.evals.asking import Planned
from kat.evals.protocol import Response, Suite, sample_key
from kat.evals.store import one_fault
from kat.runs.schemas import Sample


def choose(items: Sequence[Any], limit: int | None, seed: int, data: str) -> list[Any]:
    """All items, or `limit` of them by a seeded permutation, in the file's order; larger limits hold smaller ones."""
    if not items:
        raise UsageError(f"{data}: no item to evaluate")
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise UsageError(f"limit {limit}: at least 1 item is needed")
    order = np.random.default_rng(seed).permutation(len(items))
    return [items[i] for i in sorted(order[:limit])]


def batch_plan(plan: Sequence[Planned], batch_size: int) -> list[list[Planned]]:
    """Items by falling length (the batch that needs most memory comes first), cut into batches of `batch_size` rows.

    An item is never split, so a batch holds at least one item.
    """
    order = sorted(range(len(plan)), key=lambda i: (-plan[i].length, i))
    batches: list[list[Planned]] = []
    room = 0
    for i in order:
        if not batches or room < plan[i].n_rows:
            batches.append([])
            room = batch_size
        batches[-1].append(plan[i])
        room -= plan[i].n_rows
    return batches


def score_item(suite: Suite, planned: Planned, responses: Sequence[Response]) -> list[Sample]:
    """The suite's rows of one item, checked to be exactly those that were planned and to hold no NaN."""
    try:
        samples = suite.score(planned.item, responses, planned.stamp)
    except ValidationError as error:
        item = planned.stamp.item_id
        raise EvidenceError(
            f"{suite.name}, item {item}: {one_fault(error)}; the model's output is no evidence"
        ) from None
    if tuple(sample_key(sample) for sample in samples) != planned.keys:
        raise EvidenceError(f"suite {suite.name!r} scored other rows than it asked for on item {planned.stamp.item_id}")
    return samples
