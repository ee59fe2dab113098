"""Recipes: what is read, in which order stages run, what is skipped, what goes on after an interruption."""

import json
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest

from kat.errors import UsageError
from kat.model.checkpoint import save_checkpoint
from kat.pipeline import runner
from kat.pipeline.recipe import command, load_recipe, make_recipe, recipe_names
from kat.pipeline.runner import Run, StageError
from tests.model.helpers import tiny_tokenizer
from tests.model.test_checkpoint import small_model

# A stand-in for kat: joins the words it is given and the content of the files among them into OUT/text.
WORKER = """
    import pathlib, sys, os, signal
    words = sys.argv[1:]
    out = pathlib.Path(words[words.index("--out") + 1])
    if "--fail" in words and not pathlib.Path(words[words.index("--fail") + 1]).exists():
        print("no luck"); sys.exit(7)
    if "--stop" in words and not pathlib.Path(words[words.index("--stop") + 1]).exists():
        out.with_name(out.name + ".training").mkdir(parents=True); sys.exit(130)
    texts = [pathlib.Path(w, "text").read_text() if pathlib.Path(w, "text").is_file() else "" for w in words]
    out.mkdir(parents=True)
    (out / "text").write_text(" ".join(words[:1]) + "(" + ",".join(t for t in texts if t) + ")")
    log = out.parent / "log"
    log.write_text((log.read_text() if log.exists() else "") + words[0] + " ")
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    monkeypatch.setattr(runner, "_launcher", lambda processes: [sys.executable, str(script)])
    return tmp_path


def diamond(**extra: str) -> dict:
    return {
        "seed": 0,
        "stages": {
            "d": {"command": "d {b} {c} --out {out}" + extra.get("d", "")},
            "b": {"command": "b {a} --out {out}" + extra.get("b", "")},
            "c": {"command": "c {a} --out {out}" + extra.get("c", "")},
            "a": {"command": "a --seed {seed} --out {out}"},
        },
    }


def make_run(folder: Path, content: dict, *assignments: str) -> Run:
    return Run(make_recipe("test", content, assignments, "test"), folder / "run", lambda line: None)


def actions(run: Run, start: str | None = None) -> dict[str, str]:
    return {plan.stage.name: plan.action for plan in run.plan(start)}


def ran(folder: Path) -> list[str]:
    log = folder / "run" / "log"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def test_stages_run_after_what_they_need_and_once(worker: Path) -> None:
    run = make_run(worker, diamond())
    run.execute(None, jobs=2)
    assert (worker / "run" / "d" / "text").read_text() == "d(b(a()),c(a()))"
    order = ran(worker)
    assert order[0] == "a" and order[-1] == "d" and sorted(order) == ["a", "b", "c", "d"]
    run.execute(None, jobs=2)
    assert ran(worker) == [] and set(actions(run).values()) == {"done"}


def test_a_changed_setting_runs_its_stage_and_what_follows(worker: Path) -> None:
    make_run(worker, diamond()).execute(None, jobs=1)
    ran(worker)
    changed = make_run(worker, diamond(b=" --more"))
    assert actions(changed) == {"a": "done", "b": "run", "c": "done", "d": "run"}
    changed.execute(None, jobs=1)
    assert ran(worker) == ["b", "d"]


def test_the_seed_reaches_everything(worker: Path) -> None:
    make_run(worker, diamond()).execute(None, jobs=1)
    assert set(actions(make_run(worker, diamond(), "seed=1")).values()) == {"run"}


def test_an_edited_output_is_made_again(worker: Path) -> None:
    run = make_run(worker, diamond())
    run.execute(None, jobs=1)
    (worker / "run" / "b" / "text").write_text("edited")
    assert actions(run) == {"a": "done", "b": "run", "c": "done", "d": "run"}


def test_an_edited_input_file_is_noticed(worker: Path) -> None:
    data = worker / "data.txt"
    data.write_text("one")
    content = {"stages": {"a": {"command": f"a {data} --out {{out}}"}}}
    make_run(worker, content).execute(None, jobs=1)
    assert actions(make_run(worker, content)) == {"a": "done"}
    data.write_text("two")
    assert actions(make_run(worker, content)) == {"a": "run"}


def test_from_runs_a_stage_and_its_dependents_again(worker: Path) -> None:
    run = make_run(worker, diamond())
    run.execute(None, jobs=1)
    ran(worker)
    assert actions(run, "c") == {"a": "done", "b": "done", "c": "run", "d": "run"}
    run.execute("c", jobs=1)
    assert ran(worker) == ["c", "d"]


def test_a_failure_keeps_what_was_done_and_its_exit_code(worker: Path) -> None:
    flag = worker / "flag"
    content = diamond(c=f" --fail {flag}")
    with pytest.raises(StageError, match="c: stopped with exit code 7") as caught:
        make_run(worker, content).execute(None, jobs=1)
    assert caught.value.exit_code == 7
    assert "no luck" in (worker / "run" / ".stages" / "c.log").read_text()
    ran(worker)
    flag.touch()
    assert actions(make_run(worker, content))["a"] == "done"


def test_an_interrupted_stage_goes_on_without_losing_its_work(worker: Path) -> None:
    flag = worker / "flag"
    run = make_run(worker, {"stages": {"a": {"command": f"a --stop {flag} --out {{out}}"}}})
    with pytest.raises(StageError, match="run the same command again") as caught:
        run.execute(None, jobs=1)
    assert caught.value.exit_code == 130
    assert actions(run) == {"a": "resume"} and (worker / "run" / "a.training").is_dir()
    flag.touch()
    # The flag is an input: a changed input starts over, so put the recorded hash where an unchanged run would have it.
    note = json.loads((worker / "run" / ".stages" / "a.json").read_text())
    note["input_hash"] = run.input_hash(run.recipe.stage("a"))
    (worker / "run" / ".stages" / "a.json").write_text(json.dumps(note))
    run.execute(None, jobs=1)
    assert (worker / "run" / "a.training").is_dir() and actions(run) == {"a": "done"}


def test_settings_become_set_options(tmp_path: Path) -> None:
    content = {
        "stages": {"a": {"command": "x --out {out}", "settings": {"n": 2, "s": "p/{a2}", "b": True, "l": ["{a2}/v"]}}}
    }
    content["stages"]["a2"] = {"command": "y --out {out}"}
    recipe = make_recipe("t", content, ["a.n=3"], "t")
    words = command(recipe, recipe.stage("a"), tmp_path)
    assert words == [
        "x", "--out", f"{tmp_path}/a", "--set", "n=3", "--set", f"s=p/{tmp_path}/a2", "--set", "b=true",
        "--set", f"l=['{tmp_path}/a2/v']",
    ]  # fmt: skip
    assert recipe.stage("a").needs == ("a2",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no \\[stages"),
        ({"stages": {"a": {}}}, "needs a command"),
        ({"stages": {"a": {"command": "x", "when": 1}}}, "unknown key 'when'"),
        ({"stages": {"../a": {"command": "x"}}}, "no name for a stage"),
        ({"stages": {"a": {"command": "x {b}"}, "b": {"command": "y {a}"}}}, "wait for each other"),
        ({"stages": {"a": {"command": "x", "processes": 0}}}, "processes is 0"),
    ],
)
def test_a_wrong_recipe_is_one_line(content: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_recipe("t", content, [], "t")


@pytest.mark.parametrize("text", ["seed", "sed=1", "e.x=1"])
def test_a_wrong_assignment_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        make_recipe("t", diamond(), [text], "t")


def test_a_value_that_must_be_given_is_asked_for(tmp_path: Path) -> None:
    recipe = load_recipe("sciassist")
    with pytest.raises(UsageError, match="--set nanochat="):
        command(recipe, recipe.stage("imported"), tmp_path)


def test_every_recipe_that_comes_with_kat_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are known to their stage, placeholders are all filled, every stage is a command of the app."""
    from kat.runs.settings import STAGES, load_settings

    monkeypatch.setenv("KAT_DATA", str(tmp_path))
    assert {"demo", "sciassist", "scienceqa"} <= set(recipe_names())
    for name in set(recipe_names()) - {"density-study"}:
        recipe = load_recipe(name, ["nanochat=somewhere"] if name == "sciassist" else [])
        for stage in recipe.stages:
            words = command(recipe, stage, tmp_path)
            assert not any("{" in word for word in words)
            if words[0] == "train":
                assignments = [word for before, word in pairwise(words) if before == "--set"]
                load_settings(STAGES[words[1]], None, assignments)
            else:
                assert words[0] in {"data", "density", "eval", "audit", "import", "verify"}


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="demo"):
        load_recipe("dem")


def test_a_stage_that_may_fail_does_not_hide_what_follows(tmp_path, monkeypatch) -> None:
    """A report needs the findings of a stage that found something; the run still ends with that stage's code."""
    recipe = make_recipe(
        "r",
        {
            "stages": {
                "broken": {
                    "command": "verify tests.verify.toy:make_future -k future --json {out}/v.json",
                    "exits": [1],
                },
                "after": {"command": "audit --counts 1/2/3 {after_of}", "settings": {}},
            },
            "after_of": "2/2/3",
        },
        (),
        "r.toml",
    )
    said: list[str] = []
    run = Run(recipe, tmp_path / "runs" / "r", said.append)
    with pytest.raises(StageError) as stopped:
        run.execute(None, 1)
    assert stopped.value.exit_code == 1
    assert "broken: ended with exit code 1" in str(stopped.value)
    assert (tmp_path / "runs" / "r" / "broken" / "v.json").is_file()
    assert any(line.startswith("after: done") for line in said)
    with pytest.raises(StageError):  # not forgotten the second time, though nothing is run again
        run.execute(None, 1)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"command": 'data microworld --out "{out}'}, "cannot be split"),
        ({"command": "doctor", "settings": 3}, "settings is 3"),
        ({"command": "doctor", "exits": 1}, "exits is 1"),
    ],
)
def test_malformed_stages_are_one_line(table, word) -> None:
    with pytest.raises(UsageError, match=word):
        make_recipe("r", {"stages": {"one": table}}, (), "r.toml")


def test_only_declared_paths_are_inputs(tmp_path, monkeypatch) -> None:
    """A folder that happens to be called like a word of the command is none; a file in a list of settings is one."""
    file = tmp_path / "rows.jsonl"
    file.write_text("1\n")
    content = {"stages": {"base": {"command": "train base --out {out}", "settings": {"validation": [str(file)]}}}}
    run = Run(make_recipe("r", content, (), "r.toml"), tmp_path / "runs" / "r", lambda _: None)
    stage = run.recipe.stages[0]
    monkeypatch.chdir(tmp_path)
    before = run.input_hash(stage)
    (tmp_path / "base").mkdir()
    (tmp_path / "train").write_text("x")
    assert run.input_hash(stage) == before
    file.write_text("2\n")
    assert run.input_hash(stage) != before


def test_what_a_stage_reads_from_another_is_part_of_its_inputs(tmp_path) -> None:
    content = {"stages": {"a": {"command": "doctor {out}"}, "b": {"command": "doctor {a} {out}"}}}
    run = Run(make_recipe("r", content, (), "r.toml"), tmp_path / "runs" / "r", lambda _: None)
    (run.folder / "a").mkdir(parents=True)
    (run.folder / "a" / "f").write_text("1")
    before = run.input_hash(run.recipe.stage("b"))
    (run.folder / "a" / "f").write_text("2")
    assert run.input_hash(run.recipe.stage("b")) != before


def test_a_destroyed_checkpoint_is_made_again(tmp_path) -> None:
    content = {"stages": {"a": {"command": "import nanochat x --out {out}"}}}
    run = Run(make_recipe("r", content, (), "r.toml"), tmp_path / "runs" / "r", lambda _: None)
    save_checkpoint(run.folder / "a", small_model(), tiny_tokenizer(), {"stage": "base"})
    whole = run._content(run.folder / "a")
    weights = run.folder / "a" / "model.safetensors"
    content_bytes = bytearray(weights.read_bytes())
    content_bytes[-1] ^= 1
    weights.write_bytes(content_bytes)
    assert run._content(run.folder / "a") != whole
