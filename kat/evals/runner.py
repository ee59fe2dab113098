"""Put a model through a suite: every item once, every answer on the disk as it comes, resumable to the byte.

The plan (which items, in which batches) is a pure function of the suite, the limit, the seed and the batch size. A run
that was killed therefore meets the same batches again: a batch of which a row is missing is run as a whole, so that its
padding and thus its last bits are those of an undisturbed run, and only the missing rows are written.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kat.errors import UsageError
from kat.evals.asking import Planned, ask
from kat.evals.batch_check import check_batches
from kat.evals.folder import Identity, check_folder, finish
from kat.evals.plan import batch_plan, choose, score_item
from kat.evals.protocol import (
    Generate,
    Judge,
    Nll,
    Request,
    ScoreChoices,
    Stamp,
    Suite,
    expected_keys,
    full_protocol,
    item_seed,
    protocol_hash,
    sample_key,
)
from kat.evals.store import open_store
from kat.runs.schemas import BatchCheck, Results, Sample

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
    batch_check: int = 0,
    progress: Progress | None = None,
    model: str | None = None,
) -> Results:
    """Evaluate `backend` on `suite`, write samples.jsonl and results.json into the folder `out`, return the results.

    `limit` takes that many items by a permutation drawn from `seed` (the first n of a sorted file are no sample);
    `batch_check` is the number of items that are asked a second time in batches of another size, to count those whose
    answer changes. `model` is the name to show, by default the backend's. Running it again resumes; a finished folder
    is returned as it is. Raises :class:`UsageError` for an impossible limit or an unwritable folder,
    :class:`EvidenceError` when the folder holds rows of another model, protocol, seed or data set, or when the model
    gives a number that is none.
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
        check: BatchCheck | None = before.batch_check if before else None
        if batch_check and (new or check is None or check.n < min(batch_check, len(plan))):
            check = check_batches(suite, backend, plan, [*rows, *new], n=batch_check, seed=seed, batch_size=batch_size)
        return finish(out, identity, [*rows, *new], before, changed=bool(new), check=check)


def _counts_bytes(plan: Sequence[Planned]) -> bool:
    """Whether lengths are those of texts, which the backend cuts into windows of its context."""
    return any(isinstance(planned.request, Nll) for planned in plan)


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
