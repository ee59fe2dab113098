"""The set of silent bugs without its clones: the manifest, the code lifted from a checkout, the runner's table."""

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kat.verify.checks import all_checks

SET = Path(__file__).parents[2] / "examples" / "silent_bugs"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"silent_bugs_{name}", SET / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def manifest() -> list[dict[str, Any]]:
    return tomllib.loads((SET / "manifest.toml").read_text(encoding="utf-8"))["bug"]


def test_manifest_names_what_exists(manifest: list[dict[str, Any]]) -> None:
    assert len({entry["id"] for entry in manifest}) == len(manifest)
    known = {check.id for check in all_checks()}
    for entry in manifest:
        file, _, function = entry["adapter"].partition(":")
        tree = ast.parse((SET / file).read_text(encoding="utf-8"))
        made = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "checkout" in [argument.arg for argument in made[function].args.kwonlyargs], entry["id"]
        assert set(entry["checks"]) <= known, entry["id"]
        assert entry["bug"] and len(entry["before"]) >= 12 and len(entry["fix"]) >= 12


def test_lift_compiles_functions_and_methods_alone(tmp_path: Path) -> None:
    lift = load("lift").lift
    file = tmp_path / "trainer.py"
    file.write_text(
        "import no_such_package\nSCALE = 3\n\n"
        "class Trainer(no_such_package.Base):\n"
        "    @no_such_package.decorated\n"
        "    def loss(self, x: no_such_package.Tensor) -> no_such_package.Tensor:\n"
        "        return helper(x) * self.weight\n\n"
        "def helper(x): return x * SCALE\n"
    )
    parts = lift(file, "SCALE", "helper")
    assert parts.helper(2) == 6
    assert lift(file, "Trainer.loss", helper=parts.helper)(type("Fake", (), {"weight": 10}), 2) == 60
    with pytest.raises(LookupError, match=r"has no Trainer\.missing"):
        lift(file, "Trainer.missing")


def test_passage_runs_the_statements_that_start_so(tmp_path: Path) -> None:
    passage = load("lift").passage
    file = tmp_path / "train.py"
    file.write_text(
        "import no_such_package\n\ndef fit(n):\n    for step in range(n):\n        lr = base * step\n"
        "        for group in groups:\n            group['lr'] = lr\n        no_such_package.go()\n"
    )
    groups = [{"lr": 0}, {"lr": 0}]
    passage(file, "fit", "lr =", "for group in groups")({"base": 2, "step": 3, "groups": groups})
    assert groups == [{"lr": 6}, {"lr": 6}]
    with pytest.raises(LookupError):
        passage(file, "fit", "nothing like it")


def test_stand_ins_leave_installed_packages_alone() -> None:
    lift = load("lift")
    before = list(sys.meta_path)
    try:
        lift.stub("no_such_package", "json")
        module = importlib.import_module("no_such_package.inner")
        assert isinstance(module.Thing, type) and issubclass(type("Mine", (module.Thing,), {}), module.Thing)
        assert module.decorated(len) is not None and module.Thing[int] | None
        assert importlib.import_module("json") is json
    finally:
        sys.meta_path[:] = before
        for name in [name for name in sys.modules if name.startswith("no_such_package")]:
            del sys.modules[name]


def test_runner_says_what_is_missing(tmp_path: Path) -> None:
    run = load("run")
    entry = {
        "id": "X",
        "repository": "a/b",
        "before": "1" * 12,
        "fix": "2" * 12,
        "adapter": "",
        "checks": [],
        "bug": "",
    }
    assert run.examine({**entry, "needs": ["no_such_package"]}, tmp_path, tmp_path, False)["verdict"] == (
        "cannot run: no package no_such_package"
    )
    assert "no clone of a/b" in run.examine(entry, tmp_path, tmp_path, False)["verdict"]
    subprocess.run(["git", "init", "-q", str(tmp_path / "a+b")], check=True)
    verdict = run.examine(entry, tmp_path, tmp_path, False)["verdict"]
    assert "has no commit 111111111111" in verdict


def test_table_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    run = load("run")
    finding = {"check": "c", "outcome": "FAIL", "measured": 0.5, "tolerance": 0.1}
    result = {
        "id": "X",
        "repository": "a/b",
        "bug": "It was wrong.",
        "checks": ["c"],
        "commits": {"before": "1" * 12, "fix": "2" * 12},
        "before": [finding],
        "fix": [{**finding, "outcome": "PASS", "measured": None}],
        "verdict": "told apart",
    }
    file = tmp_path / "findings.md"
    file.write_text(f"# Head\n\n{run.BEGIN}\nformer\n{run.END}\n\ntail\n")
    run.write(file, run.table([result]))
    text = file.read_text()
    assert "former" not in text and text.startswith("# Head") and text.endswith("tail\n")
    assert "| X | a/b | It was wrong. | `c` | FAIL (0.5, at most 0.1) `1111111` | PASS `2222222` |" in text
    assert "1 of 1 told apart, in 1 repositories." in text
