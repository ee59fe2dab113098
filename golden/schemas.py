"""The published schemas (docs/schemas): a JSON Schema for each file that kat writes or reads, from its typed model."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from kat.audit.gate_schema import GATE_SCHEMA, GateResult
from kat.audit.policy import Policy
from kat.audit.schema import AUDIT_SCHEMA, Audit
from kat.pipeline.noise import NOISE_SCHEMA, Noise
from kat.runs.schemas import RESULTS_SCHEMA, SAMPLE_SCHEMA, Results, Sample

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"
WRITTEN: dict[str, tuple[type[BaseModel], str]] = {
    "sample": (Sample, SAMPLE_SCHEMA),
    "results": (Results, RESULTS_SCHEMA),
    "audit": (Audit, AUDIT_SCHEMA),
    "noise": (Noise, NOISE_SCHEMA),
    "gate": (GateResult, GATE_SCHEMA),
}
"""By name: the model and the version that stands in the file's `schema`."""


def schemas() -> dict[str, dict[str, Any]]:
    """Every schema by the name of its file. What kat writes always has every field; in a policy some may be missing."""
    found = {name: _schema(model, "serialization", version) for name, (model, version) in WRITTEN.items()}
    return found | {"policy": _schema(Policy, "validation", None)}


def _schema(
    model: type[BaseModel], mode: Literal["serialization", "validation"], version: str | None
) -> dict[str, Any]:
    found = {"$schema": GenerateJsonSchema.schema_dialect, **model.model_json_schema(mode=mode)}
    if version is not None:
        found["properties"]["schema"]["const"] = version
    return found
