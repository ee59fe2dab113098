"""kat noise: which stage is measured, what is run again, what the figures are, and what is refused."""

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kat.cli import main
from kat.errors import EvidenceError, UsageError
from kat.pipeline import runner
from kat.pipeline.noise import Noise, choose_stage, few_seeds, noise, only, read_noise
from kat.pipeline.recipe import load_recipe, make_recipe
from kat.stats.power import mde_seeds, seeds_for_difference

# A stand-in for kat: `train` writes its seed, `eval` a results.json whose score is drawn from it.
WORKER = """
    import hashlib, json, pathlib, sys
    words = sys.argv[1:]
    out = pathlib.Path(words[words.index("--out") + 1])
    out.mkdir(parents=True)
    log = out.parents[2] / "log" if out.parent.name == "evals" else out.parents[1] / "log"
    if words[0] == "train":
        (out / "seed").write_text(words[words.index("--seed") + 1])
    else:
        seed = (pathlib.Path(words[2]) / "seed").read_text()
        if seed == "9" or "--fail" in words:
            print("diverged"); sys.exit(7)
        score = 0.5 + 0.01 * [0, 1, -2, 3, 0, 2, -1, -3][int(seed)]
        metric = {"estimate": score, "low": 0, "high": 1, "level": 0.95, "n": 100, "method": "made up"}
        identity = hashlib.sha256((words[words.index("--model") + 1] if "--model" in words else seed).encode())
        results = {"schema": "kat.results/1", "suite": words[1], "suite_version": "1", "score_type": "binary",
            "metrics": {"accuracy": metric}, "primary": "accuracy", "n_items": 100, "n_unparsed": 0, "seed": 0,
            "data": "d", "data_hash": "d" * 64, "model": "m", "model_hash": identity.hexdigest(), "protocol": {},
            "protocol_hash": "p", "extractor_version": "1", "run_id": identity.hexdigest()[:32], "created": "now",
            "versions": {}}
        (out / "results.json").write_text(json.dumps(results))
        (out / "samples.jsonl").write_text("")
    with log.open("a") as file: file.write(out.name + " ")
"""
RECIPE = """
seed = 0
[stages.sft]
command = "train sft --seed {seed} --out {out}"
[stages.other]
command = "train base --seed {seed} --out {out}"
[stages."evals/sft"]
command = "eval scienceqa {sft} --out {out}"
[stages."evals/twin"]
command = "eval choices {other} --out {out}"
"""
SCORES = np.array([0.50, 0.51, 0.48, 0.53, 0.50])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    monkeypatch.setattr(runner, "_launcher", lambda processes: [sys.executable, str(script)])
    (tmp_path / "made.toml").write_text(RECIPE)
    return tmp_path


def measure(world: Path, k: int, **options: object) -> Noise:
    options = {"stage": "evals/sft"} | options
    return noise(str(world / "made.toml"), k, world, world / "out", lambda line: None, **options)  # type: ignore[arg-type]


def ran(world: Path) -> list[str]:
    log = world / "runs" / "log"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def test_the_figures_are_those_of_a_textbook(world: Path) -> None:
    found = measure(world, 5)
    assert list(found.scores.values()) == pytest.approx(SCORES)
    assert found.mean == pytest.approx(SCORES.mean()) and found.sd == pytest.approx(SCORES.std(ddof=1))
    variance = 4 * SCORES.var(ddof=1) / stats.chi2(4).ppf([0.975, 0.025])
    assert [found.sd_low, found.sd_high] == pytest.approx(np.sqrt(variance))
    assert found.smallest_change == pytest.approx(mde_seeds(5, found.sd))
    assert found.seeds_needed == {f"{d:g}": seeds_for_difference(d, found.sd) for d in (0.01, 0.02, 0.03)}
    assert (found.stage, found.suite, found.same_items) == ("evals/sft", "scienceqa", True)
    text = "\n".join(found.sentences())
    for word in ("Seed noise: sd 0.0182", "With 5 seeds a side a change of", "0.03 needs"):
        assert word in text


def test_only_what_the_stage_needs_is_run_and_nothing_twice(world: Path) -> None:
    measure(world, 2)
    assert ran(world) == ["sft", "sft"] * 2
    measure(world, 3)
    assert ran(world) == ["sft", "sft"]
    assert sorted(path.name for path in (world / "out").iterdir()) == ["noise.json", "seed-0", "seed-1", "seed-2"]
    assert read_noise(world / "out").scores == read_noise(world / "out" / "noise.json").scores


def test_a_changed_setting_makes_new_runs_and_replaces_the_evidence(world: Path) -> None:
    measure(world, 2)
    before = (world / "out" / "seed-0" / "results.json").read_text()
    ran(world)
    text = (world / "made.toml").read_text()
    (world / "made.toml").write_text(text.replace("scienceqa {sft}", "scienceqa {sft} --model new{seed}"))
    measure(world, 2)
    assert ran(world) == ["sft", "sft"]
    assert (world / "out" / "seed-0" / "results.json").read_text() != before


def test_one_seed_shows_no_noise(world: Path) -> None:
    found = measure(world, 1)
    assert found.sd is found.smallest_change is None
    assert found.sentences()[-1].startswith("One seed shows no noise")


def test_a_seed_that_does_not_reach_the_weights_is_refused(world: Path) -> None:
    text = (world / "made.toml").read_text()
    (world / "made.toml").write_text(text.replace("scienceqa {sft}", "scienceqa {sft} --model same"))
    with pytest.raises(EvidenceError, match="seeds 0 and 1 gave the same weights"):
        measure(world, 2)
    (world / "made.toml").write_text(text.replace("--seed {seed}", "--seed 0"))
    with pytest.raises(UsageError, match="no stage before evals/sft uses"):
        measure(world, 2)
    (world / "made.toml").write_text(text.replace("seed = 0", "sead = 0"))
    with pytest.raises(UsageError, match="no top-level `seed`"):
        measure(world, 2)
    with pytest.raises(UsageError, match="sets the seed itself"):
        measure(world, 2, assignments=["seed=3"])


def test_a_seed_that_fails_leaves_no_noise(world: Path) -> None:
    text = (world / "made.toml").read_text()
    (world / "made.toml").write_text(text.replace("scienceqa {sft}", "scienceqa {sft} --fail"))
    with pytest.raises(runner.StageError, match="diverged"):
        measure(world, 2)
    assert not (world / "out" / "noise.json").exists()


@pytest.mark.parametrize(("k", "word"), [(1, "nothing about the noise"), (2, "p = 0.33"), (3, "p = 0.10")])
def test_too_few_seeds_are_named_before_training(k: int, word: str) -> None:
    said = few_seeds(k)
    assert said is not None and word in said
    assert few_seeds(4) is None and few_seeds(20) is None


def test_no_seed_at_all() -> None:
    with pytest.raises(UsageError, match="--seeds 0"):
        few_seeds(0)


def test_the_audited_evaluation_is_measured(world: Path) -> None:
    assert choose_stage(load_recipe("demo")).name == "evals/sft"
    recipe = load_recipe(str(world / "made.toml"))
    assert choose_stage(recipe).name == "evals/twin"
    assert choose_stage(recipe, suite="scienceqa").name == "evals/sft"
    assert choose_stage(recipe, "evals/sft").name == "evals/sft"
    for words in ({"wanted": "sft"}, {"wanted": "none"}, {"suite": "bpb"}):
        with pytest.raises(UsageError):
            choose_stage(recipe, **words)  # type: ignore[arg-type]
    assert [stage.name for stage in only(recipe, recipe.stage("evals/sft")).stages] == ["sft", "evals/sft"]


def test_needs_of_needs_stay() -> None:
    content = {
        name: {"command": f"x {need} --out {{out}}"}
        for name, need in (("c", "{b}"), ("b", "{a}"), ("a", ""), ("d", ""))
    }
    recipe = make_recipe("t", {"stages": content}, [], "t")
    assert [stage.name for stage in only(recipe, recipe.stage("c")).stages] == ["a", "b", "c"]


def test_other_questions_for_each_seed_are_said(world: Path) -> None:
    found = measure(world, 3).model_copy(update={"same_items": False})
    assert any("the noise of seeds and items together" in line for line in found.sentences())


@pytest.mark.parametrize(
    ("change", "error"),
    [({"schema": "kat.noise/9"}, UsageError), ({"sd": 0.001}, EvidenceError), ({"mean": 0.9}, EvidenceError)],
)
def test_a_noise_file_is_not_believed(world: Path, change: dict, error: type[Exception]) -> None:
    measure(world, 3)
    path = world / "out" / "noise.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=r"noise\.json"):
        read_noise(path)


def test_the_command_warns_first(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--home", str(world), "noise", str(world / "made.toml"), "--seeds", "3", "--suite", "scienceqa"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0
    lines = err.splitlines()
    assert lines[0] == "made: measured at evals/sft" and "take at least 4" in lines[1] and "sft: kat" in lines[2]
    assert "Seed noise: sd" in out and (world / "noise" / "made" / "noise.json").is_file()
