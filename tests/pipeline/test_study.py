"""A study: what is run for whom, what a diverged run becomes, what is refused before anything is trained."""

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from kat.audit.study import load_study
from kat.errors import EvidenceError, UsageError
from kat.pipeline import runner, study
from kat.pipeline.recipe import command, load_recipe
from kat.pipeline.runner import StageError
from kat.pipeline.study import load_study_recipe, metric_of, run_study

# A stand-in for kat: "grpo" leaves a training log whose figures follow from its words, and ends as the settings say.
WORKER = """
    import json, pathlib, sys
    words = sys.argv[1:]
    out = pathlib.Path(words[words.index("--out") + 1])
    said = dict(w.split("=", 1) for w in words if "=" in w)
    if words[0] == "grpo":
        seed = int(words[words.index("--seed") + 1])
        if str(seed) == said.get("breaks") and said.get("sampling") == "density":
            print("rollout 3: collapsed: nothing left"); sys.exit(int(said.get("code", 1)))
        shift = 5.0 if said.get("sampling") == "density" else 0.0
        out.mkdir(parents=True)
        rows = [{"step": k, "vendi": shift + seed / 10 + k / 1e4, "reward": 1 + seed / 100} for k in range(1, 21)]
        (out / "metrics.jsonl").write_text("".join(json.dumps(r) + chr(10) for r in rows))
    else:
        out.mkdir(parents=True)
        (out / "text").write_text(" ".join(words))
    with (out.parents[0] / "log").open("a") as f:
        f.write(" ".join(words[:1]) + chr(10))
"""

RECIPE = """
seeds = 4

[study]
question = "Does it?"
treatment = "density"
comparisons = ["uniform"]
varies = ["grpo.sampling"]

[study.primary]
metric = "vendi"
higher_is = "better"
smallest_effect = 1.0

[study.guard]
metric = "reward"
margin = 0.5
against = ["uniform"]

[study.metrics]
vendi = "grpo:vendi"
reward = "grpo:reward"

[arms.uniform]
"grpo.sampling" = "uniform"

[arms.density]
"grpo.sampling" = "density"

[stages.base]
command = "base --out {out}"

[chain.grpo]
command = "grpo --init {base} --seed {seed} --out {out}"

[chain.after]
command = "after {grpo} --out {out}"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    monkeypatch.setattr(runner, "_launcher", lambda processes: [sys.executable, str(script)])
    return tmp_path


def written(here: Path, *changes: tuple[str, str]) -> str:
    text = RECIPE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = here / "toy.toml"
    path.write_text(text)
    return str(path)


def run(here: Path, *assignments: str, changes=()):
    lines: list[str] = []
    loaded = load_study_recipe(written(here, *changes), list(assignments))
    return run_study(loaded, here / "runs" / "toy", lines.append, jobs=2), lines


def test_each_arm_and_seed_runs_the_chain_and_the_shared_stages_run_once(here: Path) -> None:
    found, lines = run(here)
    folder = here / "runs" / "toy"
    runs = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("*/*/grpo"))
    assert runs == sorted(f"{arm}/seed-{seed}" for arm in ("uniform", "density") for seed in range(4))
    assert (folder / "log").read_text().split() == ["base"]
    assert (folder / "density" / "seed-2" / "log").read_text().split() == ["grpo", "after"]
    assert found.word == "supported"
    results = load_study(folder / "study").results
    assert results["density", 3].metrics["vendi"] == pytest.approx(5.3 + 19.5 / 1e4)  # the last tenth of the log
    assert (folder / "study" / "report" / "study.html").is_file()
    assert any("seeds" in line for line in lines)


def test_going_on_runs_nothing_twice_and_keeps_the_declaration(here: Path) -> None:
    run(here)
    first = (here / "runs" / "toy" / "study" / "preregistration.json").read_bytes()
    _, lines = run(here)
    assert (here / "runs" / "toy" / "study" / "preregistration.json").read_bytes() == first
    assert not any(": done in" in line for line in lines)
    assert (here / "runs" / "toy" / "log").read_text().split() == ["base"]


def test_a_collapsed_run_is_an_outcome_and_the_rest_goes_on(here: Path) -> None:
    run(here, "grpo.breaks=2")
    folder = here / "runs" / "toy"
    results = load_study(folder / "study").results
    assert results["density", 2].outcome == "diverged"
    assert results["density", 2].reason == "grpo: rollout 3: collapsed: nothing left"
    assert [run for run, one in results.items() if one.outcome != "finished"] == [("density", 2)]
    assert not (folder / "density" / "seed-2" / "after").exists()
    _, lines = run(here, "grpo.breaks=2")  # and it is not tried again
    assert not any(": done in" in line for line in lines)
    assert any("density/seed-2/after: left out" in line for line in lines)


def test_another_failure_stops_the_study(here: Path) -> None:
    with pytest.raises(StageError, match=r"density/seed-1/grpo: stopped with exit code 2: rollout 3"):
        run(here, "grpo.breaks=1", "grpo.code=2")
    assert not list((here / "runs" / "toy" / "study").glob("results/*"))


def test_a_changed_study_is_another_study(here: Path) -> None:
    run(here)
    with pytest.raises(UsageError, match="another pre-registration stands here"):
        run(here, changes=[("smallest_effect = 1.0", "smallest_effect = 2.0")])
    with pytest.raises(UsageError, match="another pre-registration stands here"):
        run(here, "grpo.lr=3")


def test_arms_reach_their_own_stage_and_nothing_else(here: Path) -> None:
    loaded = load_study_recipe(written(here), [])
    for arm in ("uniform", "density"):
        words = command(loaded.recipe, loaded.recipe.stage(f"{arm}/seed-1/grpo"), Path("run"))
        assert words == f"grpo --init run/base --seed 1 --out run/{arm}/seed-1/grpo --set sampling={arm}".split()
        after = command(loaded.recipe, loaded.recipe.stage(f"{arm}/seed-1/after"), Path("run"))
        assert after == f"after run/{arm}/seed-1/grpo --out run/{arm}/seed-1/after".split()
    assert loaded.recipe.stage("base").exits == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = 4", "seeds = 3", "3 seeds an arm; fewer than 4"),
        ("seeds = 4", 'seeds = "many"', "seeds is 'many'"),
        ('"grpo.sampling" = "density"', '"grpo.sampling" = "uniform"', "same settings: the treatment is empty"),
        ('"grpo.sampling" = "density"', '"grpo.sampling" = "density"\n"grpo.lr" = 3', "differ in 'grpo.lr'"),
        ('varies = ["grpo.sampling"]', 'varies = ["sampling"]', "differ in 'grpo.sampling'"),
        ('treatment = "density"', 'treatment = "dense"', "is no arm"),
        ('vendi = "grpo:vendi"', 'vendi = "base:vendi"', "write stage:metric with a stage of the chain"),
        ('reward = "grpo:reward"', "", "does not say where reward is"),
        ("margin = 0.5", "margin = -1", "margin"),
        ("margin = 0.5", "margin = 0.5\nmargins = 1", "margins"),
        ('[chain.after]\ncommand = "after {grpo} --out {out}"', "[chain.after]\nsettings = {}", "needs a command"),
        ('[arms.uniform]\n"grpo.sampling" = "uniform"', "[arms.uniform]", "arm uniform is empty"),
    ],
)
def test_an_impossible_design_is_one_line_and_trains_nothing(here: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run(here, changes=[(old, new)])
    assert "\n" not in str(caught.value)
    assert not (here / "runs").exists()


def test_weights_that_treat_nothing_are_refused_before_any_arm_is_trained(here: Path, monkeypatch) -> None:
    changes = [('"grpo.sampling" = "density"', '"grpo.sampling" = "density"\n"grpo.density" = "{base}"')]
    changes.append(('varies = ["grpo.sampling"]', 'varies = ["grpo.sampling", "grpo.density"]'))

    class Weights:
        metadata = type("M", (), {"dose": 0.2})

    for weights, message in (
        (np.full(10, 0.1), "0.000 from uniform, declared 0.2: empty treatment"),
        (np.array([0.91, *[0.01] * 9]), "an effective sample of 1 of 10 prompts"),
    ):
        monkeypatch.setattr(study, "read_density", lambda *_a, w=weights, **_k: type("D", (Weights,), {"weights": w}))
        with pytest.raises(EvidenceError, match=message):
            run(here, changes=changes)
    assert not list((here / "runs" / "toy").glob("*/seed-*"))


def test_a_metric_is_looked_for_where_it_was_declared(tmp_path: Path) -> None:
    (tmp_path / "grpo").mkdir()
    with pytest.raises(EvidenceError, match=r"neither results\.json nor metrics\.jsonl"):
        metric_of(tmp_path, "grpo:kl")
    (tmp_path / "grpo" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    with pytest.raises(UsageError, match="its training log has no 'kl'"):
        metric_of(tmp_path, "grpo:kl")
    assert metric_of(tmp_path, "grpo:loss") == 2.0
    rows = [{"step": i, "loss": float(i)} | ({"kl": 1.0} if i < 3 else {}) for i in range(30)]
    (tmp_path / "grpo" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert metric_of(tmp_path, "grpo:loss") == 28.0  # of the last three of thirty, where the run has arrived


def test_the_study_that_comes_with_kat_is_whole(tmp_path: Path) -> None:
    loaded = load_study_recipe("density-study", [])
    assert set(loaded.plan.arms) == {"uniform", "density", "placebo"}
    assert loaded.plan.seeds == list(range(8))
    for stage in loaded.recipe.stages:
        assert all("{" not in word for word in command(loaded.recipe, stage, tmp_path))
    with pytest.raises(UsageError, match="density-study: a study of several arms"):
        load_recipe("density-study")
