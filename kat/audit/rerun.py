"""Do the recorded answers come from the checkpoint they name? Generate some of them again.

59 items find a run in which 5 % of the rows were forged with probability .95 (1 − .95⁵⁹).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kat.audit.find import Found
from kat.audit.load import Evidence
from kat.audit.words import count
from kat.errors import EvidenceError, UsageError
from kat.evals.asking import Planned, ask
from kat.evals.plan import score_item
from kat.evals.protocol import Stamp, Suite, expected_keys, full_protocol, item_seed, protocol_hash, sample_key
from kat.evals.registry import get_suite
from kat.runs.schemas import Sample

UNVERIFIED = "consistent, not verified"
BATCH = 16


def rerun(evidence: Evidence, found: Found, n: int, seed: int, data: Path | None = None) -> str:
    """Regenerate `n` items drawn by `seed` (all where there are no more) under the recorded protocol.

    Returns "verified: …", or "consistent, not verified: …" where the checkpoint, the data or the protocol is no longer
    to be had. Raises :class:`EvidenceError`, naming the item, where a letter or a score is another: batches may move
    last bits, so an item counts as different only where it also differs when it is asked alone.
    """
    if found.checkpoint is None:
        return f"{UNVERIFIED}: the checkpoint {evidence.results.model} is not here"
    from kat.model.backends import open_backend

    path = data or Path(evidence.results.data)
    try:
        suite: Suite = get_suite(evidence.results.suite)(path)
    except UsageError as error:
        if data is not None:
            raise
        return f"{UNVERIFIED}: the evaluated data cannot be read ({error})"
    device = str(_backend(evidence).get("device", "cpu"))
    try:
        backend = open_backend(found.checkpoint, device)
    except (UsageError, RuntimeError) as error:  # torch says RuntimeError for a device that is not here
        return f"{UNVERIFIED}: the checkpoint cannot be opened on {device} ({str(error).splitlines()[0]})"
    if backend.identity != evidence.results.model_hash:
        raise EvidenceError(f"{found.checkpoint}: its weights are not those that {evidence.folder} names")
    if protocol_hash(full_protocol(suite, backend.protocol)) != evidence.results.protocol_hash:
        return f"{UNVERIFIED}: this kat evaluates by another protocol than was recorded"
    plan = _plan(evidence, suite, backend.identity, n, seed)
    for start in range(0, len(plan), BATCH):
        batch = plan[start : start + BATCH]
        for planned, responses in zip(batch, ask(backend, batch), strict=True):
            recorded = evidence.items[(planned.stamp.item_hash, planned.stamp.item_id)]
            if _differs(recorded, score_item(suite, planned, responses)):
                again = score_item(suite, planned, ask(backend, [planned])[0])
                if difference := _differs(recorded, again):
                    raise EvidenceError(f"{evidence.folder}: item {planned.stamp.item_id}: {difference}")
    return f"verified: {count(len(plan), 'item')} of {len(evidence.items):,} generated again alike (draw {seed})"


def _backend(evidence: Evidence) -> dict[str, object]:
    recorded = evidence.results.protocol.get("backend")
    return recorded if isinstance(recorded, dict) else {}


def _plan(evidence: Evidence, suite: Suite, identity: str, n: int, seed: int) -> list[Planned]:
    keys = list(evidence.items)
    if n < len(keys):
        chosen = np.random.default_rng(seed).choice(len(keys), n, replace=False)
        keys = [keys[i] for i in sorted(chosen)]
    items = {(item.hash, item.id): item for item in suite.items()}
    results = evidence.results
    plan = []
    for key in keys:
        if key not in items:
            raise EvidenceError(f"{evidence.folder}: item {key[1]} is not in the data {suite.data}")
        item = items[key]
        request = suite.requests(item)
        stamp = Stamp(
            suite.name,
            suite.version,
            results.protocol_hash,
            identity,
            item.id,
            item.hash,
            item_seed(results.seed, item),
        )
        plan.append(Planned(item, request, stamp, tuple(expected_keys(item, request)), 0))
    return plan


def _differs(recorded: Sequence[Sample], again: Sequence[Sample]) -> str:
    """What is other than recorded, in words; empty where letters and scores are the same."""
    if {sample_key(row) for row in recorded} != {sample_key(row) for row in again}:
        return "its rows are not those that the suite asks for"
    by_key = {sample_key(row): row for row in again}
    for row in recorded:
        new = by_key[sample_key(row)]
        if row.extracted != new.extracted or row.score != new.score:
            return (
                f"recorded as {row.extracted or 'no letter'} (score {row.score:g}), generated again it is "
                f"{new.extracted or 'no letter'} (score {new.score:g})"
            )
        if row.seed != new.seed:
            return f"recorded with seed {row.seed}, which is not the seed of this item in the run"
    return ""
