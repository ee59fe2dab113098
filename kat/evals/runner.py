"""Put a model through a suite: every item once, every answer on the disk as it comes, resumable to the byte.

The plan (which items, in which batches) is a pure function of the suite, the limit, the seed and the batch size. A run
that was killed therefore meets the same batches again: a batch of which a row is missing is run as a whole, so that its
padding and thus its last bits are those of an undisturbed run, and only the missing rows are written.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from kat.errors import EvidenceError, UsageError
from kat.evals.asking import Planned, ask
from kat.evals.folder import Identity, check_folder, finish
from kat.evals.protocol import (
    Generate,
    Judge,
    Nll,
    Request,
    Response,
    ScoreChoices,
    Stamp,
    Suite,
    expected_keys,
    full_protocol,
    item_seed,
    protocol_hash,
    sample_key,
)
from kat.evals.store import one_fault, open_store
from kat.runs.schemas import Results, Sample

if TYPE_CHECKING:
    from kat.model.backends import Backend

Progress = Callable[[int, int], None]
"""Called with (items done, items in all) after every batch."""


def run_suite(
    suite: Suite,
    backend: "Backend",
    out: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
    model: str | None = None,
) -> Results:
    """Evaluate `backend` on `suite`, write samples.jsonl and results.json into the folder `out`, return the results.

    `limit` takes that many items by a permutation drawn from `seed` (the first n of a sorted file are no sample);
    `model` is the name to show, by default the backend's. Running it again resumes; a finished folder is returned as
    it is. Raises :class:`UsageError` for an impossible limit or an unwritable folder, :class:`EvidenceError` when the
    folder holds rows of another model, protocol, seed or data set, or when the model gives a number that is none.
    """
    out = Path(out)
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: at least 1 is needed")
    protocol = full_protocol(suite, backend.protocol)
    chosen = choose(suite.items(), limit, seed, suite.data)
    plan = [_plan(suite, item, backend, protocol_hash(protocol), seed) for item in chosen]
    batches = batch_plan(plan, batch_size)
    with open_store(out) as (rows, writer):
        context = getattr(backend, "context", None)
        over = sum(planned.length > context for planned in plan) if context and not _counts_bytes(plan) else 0
        identity = Identity(suite, model or backend.name, backend.identity, protocol, limit, seed, over)
        before = check_folder(out, identity, plan, rows)
        present = {sample_key(row) for row in rows}
        new: list[Sample] = []
        done = sum(present.issuperset(planned.keys) for planned in plan)
        for batch in batches:
            if all(present.issuperset(planned.keys) for planned in batch):
                continue
            fresh = [
                sample
                for planned, responses in zip(batch, ask(backend, batch), strict=True)
                for sample in score_item(suite, planned, responses)
                if sample_key(sample) not in present
            ]
            writer.append(fresh)
            new += fresh
            done += len(batch)
            if progress is not None:
                progress(min(done, len(plan)), len(plan))
        return finish(out, identity, [*rows, *new], before, changed=bool(new))


def _counts_bytes(plan: Sequence[Planned]) -> bool:
    """Whether lengths are those of texts, which the backend cuts into windows of its context."""
    return any(isinstance(planned.request, Nll) for planned in plan)


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


def _plan(suite: Suite, item: Any, backend: "Backend", protocol: str, seed: int) -> Planned:
    request = suite.requests(item)
    stamp = Stamp(suite.name, suite.version, protocol, backend.identity, item.id, item.hash, item_seed(seed, item))
    return Planned(item, request, stamp, tuple(expected_keys(item, request)), _length(request, backend))


def _length(request: Request, backend: "Backend") -> int:
    """Tokens of the longest prompt (bytes of a text whose tokens only the backend counts), to sort by."""
    if isinstance(request, Generate):
        return len(backend.prompt(list(request.messages))[1])
    if isinstance(request, ScoreChoices):
        return max(len(backend.prompt(list(ask.messages))[1]) for ask in request.asks)
    if isinstance(request, Judge):
        return len(backend.prompt(list(request.messages))[1])
    return len(request.text.encode())
