"""A run in pieces is the run in one piece, bit for bit: stopped, interrupted, killed anywhere, or out of disk."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kat.errors import EvidenceError, UsageError
from kat.model.checkpoint import load_checkpoint
from kat.trainers import console, run_folder
from kat.trainers.run_folder import MetricsLog, load_state
from kat.trainers.stages import Interrupted
from tests.trainers.helpers import (
    child_of,
    documents,
    fork,
    leftovers,
    meta,
    metrics,
    ranks,
    request,
    run,
    same_result,
    sft_request,
    until,
    wait,
)

VARIANTS = {
    "muon-stream": {},
    "adamw-packed": {"optimizer": "adamw", "layout": "packed", "micro_batch_size": 2, "weight_decay": 0.1},
    "best": {"keep_best": True, "validation_every": 2, "schedule": "constant", "peak": 30.0},  # validation gets worse
    "early": {"keep_best": True, "early_stop": 2, "validation_every": 1, "peak": 50.0, "steps": 14},
    "plateau": {"schedule": "plateau", "plateau_patience": 1, "validation_every": 1, "warmup_steps": 2, "peak": 50.0},
    "epochs": {"steps": None, "epochs": 2.5, "batch_size": 8},  # over the ends of epochs
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed run of each variant."""
    here = tmp_path_factory.mktemp("straight")
    for name, changes in VARIANTS.items():
        run(request(here, name, **changes))
    return here


def test_the_variants_do_what_they_are_for(here: Path) -> None:
    assert meta(here / "early")["stop_reason"].startswith("stopped early")
    assert 0 < meta(here / "best")["step"] < meta(here / "best")["steps_trained"]
    assert metrics(here / "plateau")[-1]["lr_share"] < VARIANTS["plateau"]["peak"]
    state = json.loads((here / "epochs" / "trainer_state" / "state.json").read_text())
    assert state["cursor"]["epoch"] == 2


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(here: Path) -> None:
    run(request(here, "again"))
    assert same_result(here / "again", here / "muon-stream")
    run(request(here, "other", seed=2))
    assert meta(here / "other")["identity"] != meta(here / "again")["identity"]


@given(st.sampled_from(list(VARIANTS)), st.lists(st.integers(0, 12), min_size=1, max_size=3))
@settings(deadline=None, max_examples=14)
def test_stopping_and_going_on_is_never_stopping(tmp_path_factory, here: Path, name: str, stops: list[int]) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    for stop in sorted(stops):
        result = run(request(folder, **VARIANTS[name], max_steps=stop))
        assert result.step <= max(stop, meta(folder / "out")["steps_trained"])
        load_checkpoint(folder / "out")
    run(request(folder, **VARIANTS[name]))
    assert same_result(folder / "out", here / name)
    assert leftovers(folder) == []


def test_stopping_at_step_0_saves_the_untrained_twin(tmp_path: Path) -> None:
    run(request(tmp_path, max_steps=0))
    model = load_checkpoint(tmp_path / "out").model
    assert model.lm_head.weight.abs().max() == 0
    assert meta(tmp_path / "out")["steps_trained"] == 0
    run(request(tmp_path, "more", max_steps=0, seed=5))
    assert meta(tmp_path / "more")["identity"] != meta(tmp_path / "out")["identity"]


@pytest.mark.parametrize("step", [1, 4, 9])
def test_an_interrupted_run_goes_on(tmp_path: Path, here: Path, monkeypatch, step: int) -> None:
    calls = iter(range(1, 99))
    with monkeypatch.context() as patch:
        patch.setattr(console.RunEvents, "should_stop", property(lambda _self: next(calls) == step))
        with pytest.raises(Interrupted, match=f"interrupted at step {step}; run the same command again") as error:
            run(request(tmp_path))
    assert error.value.exit_code == 130
    assert not (tmp_path / "out").exists()
    run(request(tmp_path))
    assert same_result(tmp_path / "out", here / "muon-stream")


def test_a_finished_run_says_so_and_does_nothing(here: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (here / "best").rglob("*")}
    result = run(request(here, "best", **VARIANTS["best"]))
    assert result.stop_reason == "finished"
    assert result.step == 10
    assert {path: path.stat().st_mtime_ns for path in (here / "best").rglob("*")} == before
    assert leftovers(here) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"matrix_lr": 0.03}, r"setting matrix_lr 0\.02 \(now 0\.03\)"),
        ({"seed": 9}, r"seed 1 \(now 9\)"),
        ({"steps": 12}, r"setting steps 10 \(now 12\)"),
        ({"dtype": "bfloat16"}, r"dtype float32 \(now bfloat16\)"),
        ({"validation_share": 0.3}, r"data, validation data, setting validation_share"),
    ],
)
def test_another_job_at_the_same_place_is_refused_by_name(here: Path, changes: dict, named: str) -> None:
    with pytest.raises(UsageError, match=f"was trained with another {named}.*choose another --out"):
        run(request(here, "muon-stream", **changes))


def test_a_run_in_progress_refuses_another_job_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(console.RunEvents, "should_stop", True)
        with pytest.raises(Interrupted):
            run(request(tmp_path))
    documents(tmp_path / "documents.jsonl", seed=5)
    with pytest.raises(UsageError, match="is a run in progress with another data"):
        run(request(tmp_path))


def test_what_decides_no_bit_may_change(tmp_path: Path) -> None:
    """dtype `auto` is float32 on a CPU; renamed validation files hold the same rows."""
    held_out = documents(tmp_path / "held.jsonl", n=5, seed=3)
    run(request(tmp_path, max_steps=4, dtype="auto", validation=(str(held_out),)))
    held_out.rename(tmp_path / "renamed.jsonl")
    run(request(tmp_path, dtype="float32", validation=(str(tmp_path / "renamed.jsonl"),)))
    assert meta(tmp_path / "out")["steps_trained"] == 10


@pytest.mark.parametrize("what", ["nothing of kat", "an import"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, here: Path, what: str) -> None:
    if what == "an import":
        from kat.model.checkpoint import save_checkpoint

        loaded = load_checkpoint(here / "best")
        save_checkpoint(tmp_path / "out", loaded.model, loaded.tokenizer, {"stage": "imported"})
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "diary.txt").write_text("dear")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(UsageError, match="out: exists and"):
        run(request(tmp_path))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert leftovers(tmp_path) == []


def test_a_checkpoint_that_was_changed_is_not_gone_on_from(tmp_path: Path) -> None:
    run(request(tmp_path, max_steps=5))
    for name in ("trainer_state/tensors.safetensors", "trainer_state/state.json", "metrics.jsonl"):
        path = tmp_path / "out" / name
        whole = path.read_bytes()
        path.unlink()  # a file of its own, not the hard link
        path.write_bytes(whole[:-9] + b"1" + whole[-8:])
        with pytest.raises(EvidenceError, match=name):
            run(request(tmp_path))
        path.write_bytes(whole)
    run(request(tmp_path))
    shutil.rmtree(tmp_path / "out")
    run(request(tmp_path, max_steps=5))
    shutil.rmtree(tmp_path / "out" / "trainer_state")
    with pytest.raises(UsageError, match="no trainer_state/ to go on from"):
        run(request(tmp_path))
    assert leftovers(tmp_path) == []


def test_a_state_that_was_changed_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(console.RunEvents, "should_stop", True)
        with pytest.raises(Interrupted):
            run(request(tmp_path))
    (state,) = (tmp_path / "out.training").glob("state-*")
    path = state / "tensors.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(EvidenceError, match="damaged"):
        run(request(tmp_path))
    path.write_bytes(whole)
    (state / "state.json").write_text("{")
    with pytest.raises(EvidenceError, match=r"state\.json"):
        run(request(tmp_path))


def test_the_state_holds_everything(here: Path) -> None:
    state = load_state(here / "muon-stream" / "trainer_state")
    kinds = {name.split(".")[0] for name in state.tensors}
    assert kinds == {"weights", "optimiser", "rng"}
    assert any(name.endswith("momentum_buffer") for name in state.tensors)
    assert any(name.endswith("exp_avg_sq") for name in state.tensors)
    assert state.values.keys() >= {"step", "tokens", "cursor", "validation_losses", "best_step"}
    weights = load_file(here / "muon-stream" / "model.safetensors")
    assert all(torch.equal(weights[name], state.tensors[f"weights.{name}"]) for name in weights)


def test_half_a_row_of_metrics_and_rows_of_repeated_steps_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 4, 6)]
    for end in ('{"step": 8, "lo', "\0\0\0\n", '{"loss": 1}\n', ""):
        path.write_text("".join(rows) + end)
        MetricsLog(path, 4).close()
        assert path.read_text() == "".join(rows[:3])


def test_metrics_survive_a_rewrite_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*metrics\.jsonl"):
        MetricsLog(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_best_of_a_later_step_does_not_enter_an_earlier_result(tmp_path: Path, monkeypatch) -> None:
    """Killed between saving the best weights of step 4 and its state, then asked to stop at step 3."""
    changes = {"keep_best": True, "validation_every": 2, "save_every": 3}

    def die(folder: Path, state) -> None:
        if state.step == 4:
            raise KeyboardInterrupt
        run_folder.save_state(folder, state)

    with monkeypatch.context() as patch:
        patch.setattr(console, "save_state", die)
        with pytest.raises(KeyboardInterrupt):
            run(request(tmp_path, **changes))
    assert (tmp_path / "out.training" / "best-000000004.safetensors").is_file()
    run(request(tmp_path, **changes, max_steps=3))
    run(request(tmp_path, "straight", **changes, max_steps=3))
    assert meta(tmp_path / "out")["step"] == 2
    assert same_result(tmp_path / "out", tmp_path / "straight")


# Killed


class Dying:
    """Kills the process at the n-th operation on files, where half of what it was about to write is there."""

    def __init__(self, at: int) -> None:
        self.left = at

    def wrap(self, owner: object, name: str, half=None) -> None:
        original = getattr(owner, name)

        def operation(*args, **more):
            self.left -= 1
            if self.left == 0:
                if half is not None:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **more)

        setattr(owner, name, operation)

    def arm(self) -> "Dying":
        import kat.model.tensors

        self.wrap(os, "replace")
        self.wrap(os, "link")
        self.wrap(os, "fsync")
        self.wrap(kat.model.tensors, "save_file", half=lambda _tensors, path, *_: Path(path).write_bytes(b"\x10half"))
        self.wrap(
            shutil, "rmtree", half=lambda path, *_: next(p for p in Path(path).rglob("*") if p.is_file()).unlink()
        )
        self.wrap(MetricsLog, "write", half=lambda log, *_: (log._file.write('{"step": '), log._file.flush()))
        return self


LIFE = {**VARIANTS["best"], "steps": 6, "save_every": 2, "log_every": 1}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("life")
    run(request(here, **LIFE))
    return here / "out"


def lived_through(tmp_path: Path, life: Path, at: int) -> bool:
    """Kill a run at its operation `at`, go on; whether it lived that long."""
    asked = request(tmp_path, **LIFE)
    code = wait(fork(lambda: (Dying(at).arm(), run(asked))))
    assert code in (0, -signal.SIGKILL)
    assert wait(fork(lambda: run(asked))) == 0
    assert same_result(tmp_path / "out", life)
    load_checkpoint(tmp_path / "out")
    assert leftovers(tmp_path) == []
    return code == 0


@pytest.mark.parametrize("draw", range(6))
def test_killed_at_any_operation_on_files_and_run_again(tmp_path: Path, life: Path, draw: int) -> None:
    lived_through(tmp_path, life, random.Random(draw).randint(draw * 20 + 1, draw * 20 + 20))


@pytest.mark.slow
def test_killed_at_every_operation_on_files_and_run_again(tmp_path: Path, life: Path) -> None:
    at, done = 0, False
    while not done:
        at += 1
        here = tmp_path / str(at)
        here.mkdir()
        done = lived_through(here, life, at)
    assert at > 60


@pytest.mark.slow
def test_killed_while_a_stopped_run_is_replaced(tmp_path: Path, life: Path) -> None:
    """Each operation while `out`, which stopped at step 2, gives way to the finished checkpoint."""
    at, done = 0, False
    while not done:
        at += 1
        here = tmp_path / str(at)
        here.mkdir()
        run(request(here, **LIFE, max_steps=2))
        done = lived_through(here, life, at)
    assert at > 60


@pytest.mark.parametrize("saved", [1, 3])
def test_killed_at_a_random_moment_and_run_again(tmp_path: Path, here: Path, saved: int) -> None:
    """A real SIGKILL from outside, some moment after the run has saved its state so many times."""
    working, seen = tmp_path / "out.training", set()

    def has_saved() -> bool:
        seen.update(path.name for path in working.glob("state-*"))
        return len(seen) >= saved

    with child_of(lambda: run(request(tmp_path, **VARIANTS["epochs"]))) as child:
        assert until(has_saved, child)
        os.kill(child, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    run(request(tmp_path, **VARIANTS["epochs"]))
    assert same_result(tmp_path / "out", here / "epochs")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_130_and_the_next_call_goes_on(tmp_path: Path, here: Path, number: int) -> None:
    working = tmp_path / "out.training"
    child = fork(lambda: run(request(tmp_path, **VARIANTS["epochs"])))
    assert until(lambda: any(working.glob("state-*")), child)
    os.kill(child, number)
    assert wait(child) == 130
    assert any(working.glob("state-*"))
    run(request(tmp_path, **VARIANTS["epochs"]))
    assert same_result(tmp_path / "out", here / "epochs")


def test_two_processes_do_not_train_the_same_folder(tmp_path: Path) -> None:
    with child_of(lambda: run(request(tmp_path, steps=500))) as child:
        assert until(lambda: any((tmp_path / "out.training").glob("state-*")), child)
        with pytest.raises(UsageError, match="another process is training in it"):
            run(request(tmp_path, steps=500))


@pytest.mark.parametrize("size", [3_000, 45_000])
def test_a_full_disk_stops_with_a_name_and_leaves_nothing_half_written(tmp_path: Path, here: Path, size: int) -> None:
    """RLIMIT_FSIZE makes writes fail as a full disk does: at once, or when the checkpoint outgrows the state."""
    asked = request(tmp_path, **VARIANTS["muon-stream"])

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=f"File too large: .{tmp_path}") as error:
            run(asked)
        assert error.value.strerror == "File too large"  # what the command line prints

    assert wait(fork(limited)) == 0
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.new-*"))
    run(asked)
    assert same_result(tmp_path / "out", here / "muon-stream")


# Ranks


def difference(a: Path, b: Path) -> float:
    """Relative L2 distance of all weights."""
    left, right = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    apart = torch.cat([(left[name] - right[name]).flatten() for name in left])
    return float(apart.norm() / torch.cat([tensor.flatten() for tensor in right.values()]).norm())


ACROSS = {"adamw": ({"optimizer": "adamw", "layout": "packed", "weight_decay": 0.1}, 1e-5), "muon": ({}, 2e-3)}


@pytest.mark.parametrize("kind", ACROSS)
def test_two_ranks_train_as_one_and_a_run_moves_between_them(tmp_path: Path, kind: str) -> None:
    changes, tolerance = ACROSS[kind]
    run(request(tmp_path, "one", **changes))
    assert ranks(lambda: run(request(tmp_path, "two", **changes)), 2) == [0, 0]
    assert difference(tmp_path / "two", tmp_path / "one") <= tolerance
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-3), name
        assert a["supervised_tokens"] == b["supervised_tokens"]
        assert a["tokens"] == b["tokens"]

    run(request(tmp_path, "moved", **changes, max_steps=4))
    assert ranks(lambda: run(request(tmp_path, "moved", **changes, max_steps=7)), 2) == [0, 0]
    run(request(tmp_path, "moved", **changes))
    assert difference(tmp_path / "moved", tmp_path / "one") <= tolerance
    assert meta(tmp_path / "moved")["steps_trained"] == 10
    assert ranks(lambda: run(request(tmp_path, "moved", **changes)), 2) == [0, 0]  # done: all ranks agree
    assert leftovers(tmp_path) == []


def test_two_ranks_stopped_and_gone_on_with_are_bit_identical(tmp_path: Path) -> None:
    changes = {"micro_batch_size": 1, "keep_best": True, "validation_every": 2}
    assert ranks(lambda: run(request(tmp_path, "straight", **changes)), 2) == [0, 0]
    assert ranks(lambda: run(request(tmp_path, "pieces", **changes, max_steps=5)), 2) == [0, 0]
    assert ranks(lambda: run(request(tmp_path, "pieces", **changes)), 2) == [0, 0]
    assert same_result(tmp_path / "straight", tmp_path / "pieces")


def test_ranks_refuse_together(tmp_path: Path) -> None:
    run(request(tmp_path))
    assert ranks(lambda: run(request(tmp_path, seed=9)), 2) == [2, 2]
    assert ranks(lambda: run(request(tmp_path, "odd", batch_size=3)), 2) == [2, 2]


# The command itself


def kat(*words: object, **more) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KAT_HOME": "unused"}
    return subprocess.Popen(
        [sys.executable, "-m", "kat", *map(str, words)], env=environment, stderr=subprocess.PIPE, **more
    )


def words_of(asked, out: str) -> list[object]:
    given = asked.settings.model_dump(exclude_unset=True)
    sets = [
        word for key, value in given.items() if value is not None for word in ("--set", f"{key}={str(value).lower()}")
    ]
    return [
        "train",
        asked.stage,
        "--data",
        asked.data[0],
        "--init",
        asked.init,
        "--seed",
        1,
        "--device",
        "cpu",
        *sets,
        "--out",
        asked.out.with_name(out),
    ]


@pytest.mark.slow
def test_kill_9_of_the_command_at_several_moments(tmp_path: Path) -> None:
    base = request(tmp_path, "base", steps=60, save_every=5)
    words = words_of(base, "straight")
    assert kat(*words).wait() == 0
    killed = words_of(base, "killed")
    working = tmp_path / "killed.training"
    for step in (5, 20, 45):
        process = kat(*killed)
        while process.poll() is None and not any(int(p.name[6:]) >= step for p in working.glob("state-*")):
            pass
        process.kill()
        process.communicate()
    assert kat(*killed).wait() == 0
    assert same_result(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.slow
def test_ctrl_c_of_the_command(tmp_path: Path) -> None:
    words = words_of(request(tmp_path, "base", steps=400, save_every=5), "out")
    process = kat(*words)
    while process.poll() is None and not any((tmp_path / "out.training").glob("state-*")):
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.decode().splitlines()[-1].startswith("kat: base: interrupted at step")


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    asked = request(tmp_path, "one", optimizer="adamw")
    run(asked)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "kat"]
    command = [*words, *map(str, words_of(asked, "two"))]
    assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode == 0
    assert difference(tmp_path / "two", tmp_path / "one") <= 1e-5


# From stage to stage


def test_sft_starts_from_its_parent_and_goes_on_exactly(tmp_path: Path) -> None:
    base = run(request(tmp_path, "base", steps=3)).folder
    straight = run(sft_request(tmp_path, base, "straight")).folder
    assert meta(straight)["parent"]["identity"] == meta(base)["identity"]
    run_folder.remove_folder(tmp_path / "pieces")
    from dataclasses import replace

    pieces = sft_request(tmp_path, base, "pieces")
    run(replace(pieces, max_steps=5))
    run(pieces)
    assert same_result(tmp_path / "pieces", straight)
    assert not torch.equal(
        load_checkpoint(straight).model.model.embed_tokens.weight, load_checkpoint(base).model.model.embed_tokens.weight
    )
