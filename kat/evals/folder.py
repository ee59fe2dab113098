"""A folder of evidence: refuse rows of anything else in it, and close it with results.json."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from kat.errors import EvidenceError, UsageError
from kat.evals.asking import Planned
from kat.evals.protocol import Key, Suite, protocol_hash, sample_key
from kat.evals.store import RESULTS, SAMPLES, one_fault
from kat.runs.files import read_json, write_json
from kat.runs.provenance import new_run_id, now, versions
from kat.runs.schemas import RESULTS_SCHEMA, BatchCheck, Metric, Results, Sample

CLOSE = 1e-9


@dataclass(frozen=True)
class Identity:
    """What a folder of evidence is about; rows of anything else must not be in it."""

    suite: Suite
    model: str
    model_hash: str
    protocol: dict[str, object]
    limit: int | None
    seed: int
    n_over_context: int = 0


def check_folder(out: Path, identity: Identity, plan: Sequence[Planned], rows: Sequence[Sample]) -> Results | None:
    """Refuse a folder with rows of anything else; return its results.json where it has one."""
    stamps = {key: planned.stamp for planned in plan for key in planned.keys}
    path = out / SAMPLES
    suite = identity.suite
    expected = {
        "suite": suite.name,
        "suite_version": suite.version,
        "model_hash": identity.model_hash,
        "protocol_hash": protocol_hash(identity.protocol),
    }
    seen: set[Key] = set()
    for row in rows:
        for name, value in expected.items():
            if getattr(row, name) != value:
                raise EvidenceError(_clash(path, name, getattr(row, name), value))
        key = sample_key(row)
        if key in seen:
            raise EvidenceError(f"{path}: item {row.item_id} is there twice; evaluate into a new folder (--out)")
        seen.add(key)
        if key not in stamps:
            raise EvidenceError(
                f"{path}: item {row.item_id} is not among the items asked for now (other data or a smaller limit); "
                "choose another --out"
            )
        if row.seed != stamps[key].seed:
            raise EvidenceError(_clash(path, "seed", row.seed, stamps[key].seed))
    if not (out / RESULTS).exists():
        return None
    before = load_results(out / RESULTS)
    expected |= {"data_hash": suite.data_hash}
    for name, value in expected.items():
        if getattr(before, name) != value:
            raise EvidenceError(_clash(out / RESULTS, name, getattr(before, name), value))
    if before.seed != identity.seed:
        raise EvidenceError(_clash(out / RESULTS, "seed", before.seed, identity.seed))
    return before


def finish(
    out: Path,
    identity: Identity,
    rows: list[Sample],
    before: Results | None,
    *,
    changed: bool,
    check: BatchCheck | None = None,
) -> Results:
    """Summarise the rows and write results.json; a folder to which nothing was added keeps its run_id and its date."""
    suite = identity.suite
    results = Results(
        schema=RESULTS_SCHEMA,
        suite=suite.name,
        suite_version=suite.version,
        score_type=suite.score_type,
        metrics=suite.summarise(rows),
        primary=suite.primary,
        n_items=len({(row.item_hash, row.item_id) for row in rows}),
        n_unparsed=sum(row.extracted is None for row in rows if row.expected is not None),
        n_dropped_rows=suite.n_dropped,
        n_over_context=identity.n_over_context,
        batch_check=check,
        limit=identity.limit,
        seed=identity.seed,
        data=suite.data,
        data_hash=suite.data_hash,
        model=identity.model,
        model_hash=identity.model_hash,
        protocol=identity.protocol,
        protocol_hash=protocol_hash(identity.protocol),
        extractor_version=suite.extractor_version,
        run_id=before.run_id if before else new_run_id(),
        created=now(),
        versions=versions(),
    )
    if before is not None and not changed:
        if before.n_items != results.n_items or not _alike(before.metrics, results.metrics):
            raise EvidenceError(
                f"{out / RESULTS}: its figures do not follow from {SAMPLES}; evaluate into a new folder"
            )
        if check == before.batch_check:
            return before
    try:
        write_json(out / RESULTS, results.model_dump(by_alias=True))
    except OSError as error:
        raise UsageError(f"{out / RESULTS}: cannot write ({error.strerror}); make room and run again") from None
    return results


def _alike(before: dict[str, Metric], now: dict[str, Metric]) -> bool:
    """Whether the figures are the same up to what another version of scipy may change in their last digits."""
    return before.keys() == now.keys() and all(
        math.isclose(old, new, rel_tol=0.0, abs_tol=CLOSE)
        for name in now
        for old, new in zip(_ends(before[name]), _ends(now[name]), strict=True)
    )


def _ends(metric: Metric) -> tuple[float, float, float]:
    return metric.estimate, metric.low, metric.high


def load_results(path: Path) -> Results:
    """Read results.json; an unreadable one or another schema version is an :class:`EvidenceError`."""
    try:
        value = read_json(path)
    except UsageError as error:
        raise EvidenceError(f"{error}; run `kat eval` into this folder again") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if found != RESULTS_SCHEMA:
        raise EvidenceError(f"{path}: schema {found!r}, this kat reads {RESULTS_SCHEMA!r}; evaluate again")
    try:
        return Results.model_validate(value)
    except ValidationError as error:
        raise EvidenceError(f"{path}: {one_fault(error)}; evaluate again") from None


def _clash(path: Path, name: str, found: object, wanted: object) -> str:
    return f"{path}: {name} {_short(found)} is not this run's {_short(wanted)}; choose another --out"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
