"""The folder a run works in, and how its result becomes a checkpoint.

While a run is under way, `<out>.training/` holds job.json, the newest state, the best weights and metrics.jsonl. When
it ends, `<out>/` appears in one rename, complete, with the last state inside as trainer_state/. A run that was killed
anywhere goes on from the newest complete state.
"""

import contextlib
import copy
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kat.data.encoded import PairData
from kat.density.schedule import save_schedule
from kat.errors import EvidenceError, KatError, UsageError
from kat.model.checkpoint import HEAD, STATE, read_meta, verify_checkpoint, write_checkpoint
from kat.model.gpt import GPT
from kat.model.reward import RewardModel, save_head
from kat.model.tensors import load_tensors, save_tensors
from kat.runs.files import (
    hash_file,
    link_or_copy,
    naming,
    new_folder,
    read_json,
    recover_folder,
    remove_folder,
    replace_file,
    write_json,
    write_text,
)
from kat.runs.provenance import new_run_id, now, versions
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.protocol import Job, State, Trained

METRICS = "metrics.jsonl"
PROMPTS = "prompts.json"  # of a reward model: the ids of the prompts it was trained on
SCHEDULE = "schedule.json"  # which prompt or pair was drawn when
STATE_FILES = ("tensors.safetensors", "state.json")


def training_folder(out: Path) -> Path:
    """Where the run that will write `out` works."""
    return out.with_name(f"{out.name}.training")


def state_folder(working: Path, step: int) -> Path:
    """Where the state after `step` steps lies."""
    return working / f"state-{step:09d}"


def best_file(working: Path, step: int) -> Path:
    """Where the weights after `step` steps lie, while they are the best."""
    return working / f"best-{step:09d}.safetensors"


def save_state(working: Path, state: State) -> None:
    """Write a state as safetensors and JSON, atomically; then remove the older ones, and what they call the best."""
    folder = state_folder(working, state.step)
    with new_folder(folder) as temporary:
        save_tensors(temporary / "tensors.safetensors", state.tensors)
        digest = hash_file(temporary / "tensors.safetensors")
        write_json(temporary / "state.json", {**state.values, "tensors_sha256": digest})
    for old in working.glob("state-*"):
        if old != folder:
            remove_folder(old)
    best = best_file(working, state.values.get("best_step") or 0)
    for file in working.glob("best-*"):
        if file != best:
            file.unlink()


def save_best(working: Path, model: GPT | RewardModel, step: int) -> None:
    """Write the weights with the lowest validation loss so far."""
    temporary = working / ".best.safetensors"
    save_tensors(temporary, model.state_dict())
    replace_file(temporary, best_file(working, step))


def newest_state(working: Path) -> Path | None:
    """The last complete state in a training folder."""
    return max(working.glob("state-*"), default=None, key=lambda path: path.name)


def load_state(folder: Path) -> State:
    """Read what :func:`save_state` wrote. Raises EvidenceError where it is not whole."""
    path = folder / "tensors.safetensors"
    values = state_values(folder)
    tensors = load_tensors(path)
    if hash_file(path) != values.get("tensors_sha256"):
        raise EvidenceError(f"{path}: damaged (its sha256 is not the one in state.json)")
    return State(values["step"], tensors, values)


def state_values(folder: Path) -> dict[str, Any]:
    """state.json of a state: its step, the data's cursor, the validation losses so far."""
    try:
        values = read_json(folder / "state.json")
    except UsageError as error:
        raise EvidenceError(f"{error}; no run can go on from this state") from None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise EvidenceError(f"{folder}/state.json: damaged (it names no step)")
    return values


def write_result(job: Job, loop: Trained, tokenizer: Tokenizer, reason: str) -> None:
    """Make job.out a checkpoint: the best weights or the last, the last state if the trainer keeps states, the metrics.
    The workings then go."""
    working = training_folder(job.out)
    last_state = state_folder(working, loop.step)
    model, step = loop.model, loop.step
    if job.settings.keep_best and loop.best_step is not None:
        model, step = copy.deepcopy(loop.model), loop.best_step
        model.load_state_dict(load_tensors(best_file(working, step)), strict=True)
    loop.task.finish(model)
    with new_folder(job.out) as temporary:
        if last_state.is_dir():
            (temporary / STATE).mkdir()
            for name in STATE_FILES:
                link_or_copy(last_state / name, temporary / STATE / name)
        link_or_copy(working / METRICS, temporary / METRICS)
        if job.schedule is not None:
            save_schedule(temporary / SCHEDULE, job.schedule)
        if isinstance(model, RewardModel):
            save_head(temporary, model)
        if isinstance(job.train, PairData):  # an evaluation on any of them is refused
            write_json(temporary / PROMPTS, sorted(set(job.train.prompts)))
        gpt = model.gpt if isinstance(model, RewardModel) else model
        write_checkpoint(temporary, gpt, tokenizer, _meta(job, loop, read_json(working / "job.json"), step, reason))
    remove_folder(working)


def _meta(job: Job, loop: Trained, record: dict[str, Any], step: int, reason: str) -> dict[str, Any]:
    """kat.json: what the checkpoint is and where it came from."""
    best = job.settings.keep_best and loop.best_step is not None
    return {
        "stage": job.stage,
        "step": step,
        "steps_trained": loop.step,
        "steps_planned": loop.task.total_steps,
        "stop_reason": reason,
        "ended": not reason.startswith("stopped at"),
        "selection": "lowest validation loss" if best else "last step",
        "metrics": {
            "loss": loop.last.get("loss"),
            "val_loss": loop.validation_losses[-1] if loop.validation_losses else None,
            "best_val_loss": min(loop.validation_losses, default=None),
            "learning_rate": loop.last.get("lr"),
            "tokens": loop.tokens,
        },
        "settings": job.settings.model_dump(mode="json"),
        "seed": job.seed,
        "device": str(loop.device),
        "dtype": str(loop.dtype).removeprefix("torch."),
        "world_size": loop.world.size,
        **record,
        "run_id": new_run_id(),
        "created": now(),
        "versions": versions(),
    }


class MetricsLog:
    """metrics.jsonl: one JSON object a logged step, flushed as it comes."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Rows after `resume_step` belong to steps that will be taken again, and go."""
        self.path = path
        write_text(path, "".join(_rows_until(path, resume_step)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        with naming(self.path):
            self._file.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Make the rows so far as durable as the state that is about to be saved."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _rows_until(path: Path, step: int) -> Iterator[str]:
    """The rows up to a step. A killed run may have left half a row at the end; nothing after it counts."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            return
        if not whole:
            return
        yield line


class AlreadyDone(Exception):
    """The checkpoint is there already, made by the same job."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        super().__init__(f"{folder}: already there ({meta['stop_reason']} at step {meta['steps_trained']})")
        self.folder, self.meta = folder, meta


@contextlib.contextmanager
def claimed(out: Path, record: dict[str, Any], stop_at: int | None) -> Iterator[None]:
    """Prepare to train `out`, and keep every other process from training it meanwhile.

    Raises UsageError where `out` is, or is becoming, the result of another job; AlreadyDone where nothing is to do.
    """
    working = training_folder(out)
    if out.exists():
        _check_result(out, record, stop_at)
    working.mkdir(parents=True, exist_ok=True)
    with _locked(working):
        for path in (out, working, *{working / path.name.split(".")[1] for path in working.glob(".state-*")}):
            recover_folder(path)
        if (working / "job.json").is_file():
            _same_job(read_json(working / "job.json"), record, working, "is a run in progress with")
        else:
            _prepare(out, working, record)
        try:
            yield
        except KatError:
            if newest_state(working) is None:  # refused before the first state: nothing to go on from
                remove_folder(working)
            raise


def _prepare(out: Path, working: Path, record: dict[str, Any]) -> None:
    """Fill a new working folder; its job.json comes last and says that it is ready."""
    try:
        if out.exists():
            _continue_from(out, working)
        write_json(working / "job.json", record)
    except BaseException:
        with contextlib.suppress(OSError):  # unless something is in it
            working.rmdir()
        raise


def _check_result(out: Path, record: dict[str, Any], stop_at: int | None) -> None:
    """Is what lies at `out` a result of this job that may go on?"""
    if not (out / "kat.json").is_file():
        raise UsageError(f"{out}: exists and is no kat checkpoint; choose another --out")
    meta = verify_checkpoint(out)
    if "job_hash" not in meta:
        raise UsageError(f"{out}: exists and was not trained by this command; choose another --out or remove it")
    _same_job(meta, record, out, "was trained with")
    if meta["ended"] or (stop_at is not None and meta["steps_trained"] >= stop_at):
        working = training_folder(out)
        remove_folder(working)
        for path in (out, working):
            recover_folder(path)
        raise AlreadyDone(out, meta)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process, however that ends. No locks there, no protection."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(handle)
            raise UsageError(
                f"{folder}: another process is training in it; wait for it or choose another --out"
            ) from None
    try:
        yield
    finally:
        os.close(handle)


def _continue_from(out: Path, working: Path) -> None:
    """A checkpoint that stopped on request goes on: its last state becomes the newest of the working folder."""
    source = out / STATE
    if not source.is_dir():
        raise UsageError(f"{out}: stopped early and has no {STATE}/ to go on from; choose another --out")
    meta = read_meta(out)
    head = [HEAD] if HEAD in meta["files"] else []
    for name in (*(f"{STATE}/{name}" for name in STATE_FILES), METRICS, "model.safetensors", *head):
        if not (out / name).is_file() or hash_file(out / name) != meta["files"].get(name):
            raise EvidenceError(f"{out / name}: missing or damaged (its sha256 is not the one in kat.json)")
    values = state_values(source)
    with new_folder(state_folder(working, values["step"])) as temporary:
        for name in STATE_FILES:
            link_or_copy(source / name, temporary / name)
    write_text(working / METRICS, (out / METRICS).read_text(encoding="utf-8"))
    if meta["selection"] == "lowest validation loss":
        best = best_file(working, meta["step"])
        best.unlink(missing_ok=True)
        if head:
            _best_of_reward(out, best)
        else:
            link_or_copy(out / "model.safetensors", best)


def _best_of_reward(out: Path, best: Path) -> None:
    """Put backbone and head of a reward checkpoint into one file again, the bias as it was before it was centred."""
    weights = {f"gpt.{name}": tensor for name, tensor in load_tensors(out / "model.safetensors").items()}
    head = load_tensors(out / HEAD)
    temporary = best.with_name(".best.safetensors")
    save_tensors(temporary, {**weights, "head.weight": head["weight"], "head.bias": torch.zeros_like(head["bias"])})
    replace_file(temporary, best)


def _same_job(found: dict[str, Any], wanted: dict[str, Any], where: Path, verb: str) -> None:
    if found["job_hash"] == wanted["job_hash"]:
        return
    parts = [
        name if _long(old) or _long(value) else f"{name} {old} (now {value})"
        for name, value in wanted["job"].items()
        if (old := found["job"].get(name)) != value
    ]
    raise UsageError(f"{where}: {verb} another {', '.join(parts) or 'job'}; choose another --out or remove it")


def _long(value: object) -> bool:
    """Hashes and lists are named and not shown."""
    return len(str(value)) > 40
