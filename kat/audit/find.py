"""Where the evaluation of a name lies, and the checkpoint of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from kat.errors import EvidenceError, UsageError
from kat.evals.store import RESULTS, SAMPLES
from kat.runs.files import read_json
from kat.runs.home import resolve_model


@dataclass(frozen=True)
class Found:
    """An evaluation folder and, where it is still there, the checkpoint that was evaluated."""

    evals: Path
    checkpoint: Path | None


def find_evaluation(name: str, suite: str, home: Path) -> Found:
    """An evaluation folder as it is; for a checkpoint, the evaluation that its identity points to."""
    path = Path(name)
    if (path / RESULTS).is_file() or (path / SAMPLES).is_file():
        return Found(path, checkpoint_of(path, home))
    if path.is_dir() and not (path / "kat.json").is_file():
        raise EvidenceError(f"{name}: neither an evaluation (results.json) nor a checkpoint (kat.json)")
    checkpoint = Path(resolve_model(name, home))
    identity = str(read_json(checkpoint / "kat.json")["identity"])
    evals = home / "evals" / identity[:12] / suite
    if not evals.is_dir():
        raise UsageError(f"{name}: not evaluated on {suite} yet; run kat eval {suite} {name} --data FILE")
    return Found(evals, checkpoint)


def checkpoint_of(evals: Path, home: Path) -> Path | None:
    """The checkpoint that an evaluation names, where it is still there and still the same."""
    if not (evals / RESULTS).is_file():
        return None
    results = read_json(evals / RESULTS)
    try:
        folder = Path(resolve_model(str(results.get("model")), home))
    except UsageError:
        return None
    meta = folder / "kat.json"
    same = meta.is_file() and read_json(meta).get("identity") == results.get("model_hash")
    return folder if same else None
