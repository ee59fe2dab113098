"""Training curves from the metrics.jsonl that a trainer leaves in its checkpoint."""

import json
import math
from pathlib import Path
from typing import Any

from kat.audit.schema import Curve
from kat.errors import EvidenceError

SHOWN = ("loss", "val_loss", "lr", "grad_norm")
MOST_POINTS = 300


def read_curves(checkpoint: Path) -> list[Curve]:
    """The series of a checkpoint's training log; an empty list where it has none.

    More than 300 points are averaged over equal runs of neighbours. Values that are not finite are counted and left
    out. Raises :class:`EvidenceError` for a log that is no JSON lines or has no steps.
    """
    path = Path(checkpoint) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = [_row(line, path, number) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    return [curve for name in SHOWN if (curve := _curve(name, rows)) is not None]


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise EvidenceError(f"{path}, line {number}: not a JSON row; the training log was damaged") from None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise EvidenceError(f"{path}, line {number}: no step; the training log was damaged")
    return row


def _curve(name: str, rows: list[dict[str, Any]]) -> Curve | None:
    logged = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    if not logged:
        return None
    finite = [(step, float(value)) for step, value in logged if math.isfinite(value)]
    size = math.ceil(len(finite) / MOST_POINTS) or 1
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    return Curve(
        name=name,
        steps=[group[-1][0] for group in groups],
        values=[sum(value for _, value in group) / len(group) for group in groups],
        n_logged=len(logged),
        n_not_finite=len(logged) - len(finite),
    )
