"""Where both sides of a comparison come from, as one table of facts."""

from pathlib import Path
from typing import Any

from kat.audit.load import Evidence
from kat.audit.schema import Provenance
from kat.errors import EvidenceError
from kat.model.config import VERSION_KEYS
from kat.runs.files import read_json

LEFT_OUT = ("schema", "files", "identity", "versions", "tensors")
LONGEST = 120


def provenance(a: Evidence, b: Evidence, checkpoints: tuple[Path, Path] | None) -> list[Provenance]:
    """Hashes, versions, protocol, data and seeds of both evaluations, and what kat.json says of both checkpoints."""
    left, right = _facts(a), _facts(b)
    if checkpoints is not None:
        left |= _checkpoint(checkpoints[0], a)
        right |= _checkpoint(checkpoints[1], b)
    names = [*left, *(name for name in right if name not in left)]
    return [
        Provenance(label=name, a=left.get(name, "not recorded"), b=right.get(name, "not recorded")) for name in names
    ]


def _facts(evidence: Evidence) -> dict[str, str]:
    results = evidence.results
    facts = {
        "model": results.model,
        "model hash": results.model_hash,
        "evaluation": str(evidence.folder),
        "run id": results.run_id,
        "evaluated": results.created,
        "suite": f"{results.suite} {results.suite_version}",
        "data": results.data,
        "data hash": results.data_hash,
        "items": f"{results.n_items:,}",
        "limit": "none" if results.limit is None else f"{results.limit:,}",
        "rows dropped from the data": f"{results.n_dropped_rows:,}",
        "seed": str(results.seed),
        "letter extraction": f"version {results.extractor_version}" if results.extractor_version else "none",
        "protocol hash": results.protocol_hash,
    }
    facts |= {f"protocol: {name}": value for name, value in _flat(results.protocol).items() if name not in facts}
    facts |= {f"version: {name}": value for name, value in sorted(results.versions.items())}
    return facts


def _checkpoint(folder: Path, evidence: Evidence) -> dict[str, str]:
    """What kat.json says; a checkpoint that is not the one evaluated is an :class:`EvidenceError`."""
    folder = Path(folder)
    if not (folder / "kat.json").is_file():
        return {"checkpoint": str(folder)}
    meta = read_json(folder / "kat.json")
    if not isinstance(meta, dict):
        raise EvidenceError(f"{folder / 'kat.json'}: not a JSON object; the checkpoint was damaged")
    identity = meta.get("identity")
    if identity != evidence.results.model_hash:
        raise EvidenceError(
            f"{folder}: has identity {str(identity)[:12]}, but {evidence.folder} evaluated "
            f"{evidence.results.model_hash[:12]}; name the checkpoint that was evaluated"
        )
    flat = _flat({name: value for name, value in meta.items() if name not in LEFT_OUT})
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    shape = _flat({name: value for name, value in config.items() if name not in VERSION_KEYS})
    return {
        "checkpoint": str(folder),
        **{f"checkpoint: {name}": value for name, value in flat.items()},
        **{f"config: {name}": value for name, value in shape.items()},
    }


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as "outer.inner": text, in their own order; long ones are cut."""
    found: dict[str, str] = {}
    for name, part in value.items():
        if isinstance(part, dict):
            found |= _flat(part, f"{prefix}{name}.")
        else:
            text = "none" if part is None else str(part)
            found[prefix + name] = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return found
