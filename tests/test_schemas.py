"""The published schemas are those of this code, and what kat writes keeps to them."""

import json
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from golden.schemas import FOLDER, schemas
from kat.audit.gate import gate
from kat.audit.report import audit
from kat.evals.folder import load_results
from kat.pipeline.noise import summarise
from tests.audit.worlds import two_runs

ROOT = Path(__file__).parent.parent


def check(name: str, value: object) -> None:
    Draft202012Validator(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))).validate(value)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return two_runs(tmp_path_factory.mktemp("runs"), n=60)


def test_the_published_schemas_are_those_of_the_code():
    current = json.loads(json.dumps(schemas()))
    assert {path.stem for path in FOLDER.glob("*.json")} == set(current)
    for name, schema in current.items():
        Draft202012Validator.check_schema(schema)
        assert json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) == schema, "run make golden"


def test_evaluations_and_reports_keep_to_them(runs, tmp_path):
    check("results", json.loads((runs / "a" / "results.json").read_text()))
    for line in (runs / "a" / "samples.jsonl").read_text().splitlines():
        check("sample", json.loads(line))
    audit(runs / "a", runs / "b", tmp_path)
    check("audit", json.loads((tmp_path / "audit.json").read_text()))


def test_the_gate_its_policies_and_the_noise_keep_to_them(runs, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('claim = "checkpoint"\nsuite = "scienceqa"\nmargin = 0.02\nledger = "ledger.jsonl"\n')
    found = gate(str(runs / "a"), str(runs / "b"), policy, home=tmp_path)
    check("gate", found.model_dump(by_alias=True, mode="json"))
    for path in (policy, ROOT / "ci" / "gate.toml"):
        check("policy", tomllib.loads(path.read_text()))
    results = {seed: load_results(runs / name / "results.json") for seed, name in enumerate("ab")}
    check("noise", summarise("tiny", "evals/sft", results, []).model_dump(by_alias=True, mode="json"))


def test_they_refuse_what_is_none(runs):
    row = json.loads((runs / "a" / "samples.jsonl").read_text().splitlines()[0])
    for wrong in (row | {"schema": "kat.sample/2"}, row | {"score": "1"}, row | {"more": 1}):
        with pytest.raises(ValidationError):
            check("sample", wrong)
    del row["item_hash"]
    with pytest.raises(ValidationError, match="item_hash"):
        check("sample", row)
    with pytest.raises(ValidationError, match="margin"):
        check("policy", {"claim": "recipe", "suite": "scienceqa"})
