"""The folder a run works in, and how its result becomes a checkpoint.

While a run is under way, `<out>.training/` holds job.json, the newest state, the best weights and metrics.jsonl. When
it ends, `<out>/` appears in one rename, complete, with the last state inside as trainer_state/. A run that was killed
anywhere goes on from the newest complete state.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kat.errors import EvidenceError, UsageError
from kat.model.checkpoint import STATE, write_checkpoint
from kat.model.gpt import GPT
from kat.runs.files import new_folder, read_json, write_json
from kat.runs.provenance import new_run_id, now, versions
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.protocol import Job, State

if TYPE_CHECKING:
    from kat.trainers.loop import Loop


def training_folder(out: Path) -> Path:
    """Where the run that will write `out` works."""
    return out.with_name(f"{out.name}.training")


def save_state(folder: Path, state: State) -> None:
    """Write a state as safetensors and JSON, atomically, then remove the older ones."""
    name = f"state-{state.step:09d}"
    with new_folder(folder / name) as temporary:
        save_file(
            {key: tensor.contiguous() for key, tensor in state.tensors.items()}, temporary / "tensors.safetensors"
        )
        write_json(temporary / "state.json", dict(state.values))
    for old in folder.glob("state-*"):
        if old.name != name:
            shutil.rmtree(old)


def newest_state(folder: Path) -> Path | None:
    """The last complete state in a training folder."""
    return max(folder.glob("state-*"), default=None, key=lambda path: path.name)


def load_state(folder: Path) -> State:
    """Read what :func:`save_state` wrote."""
    try:
        tensors = load_file(folder / "tensors.safetensors")
    except (SafetensorError, FileNotFoundError) as error:
        raise EvidenceError(f"{folder}: no readable trainer state ({error})") from None
    values = read_json(folder / "state.json")
    return State(values["step"], tensors, values)


def write_result(job: Job, loop: "Loop", tokenizer: Tokenizer, reason: str) -> None:
    """Make job.out a checkpoint: the best weights or the last, the last state, the metrics. The workings then go."""
    working = training_folder(job.out)
    last_state = newest_state(working)
    assert last_state is not None, "the loop saves its state before it returns"
    best = working / "best.safetensors"
    model, step = loop.model, loop.step
    if job.settings.keep_best and best.is_file():
        model, step = GPT(loop.model.config), loop.best_step
        model.load_state_dict(load_file(best), strict=True)
    with new_folder(job.out) as temporary:
        shutil.copytree(last_state, temporary / STATE)
        shutil.copy(working / "metrics.jsonl", temporary / "metrics.jsonl")
        write_checkpoint(temporary, model, tokenizer, _meta(job, loop, read_json(working / "job.json"), step, reason))
    shutil.rmtree(working)


def _meta(job: Job, loop: "Loop", record: dict[str, Any], step: int, reason: str) -> dict[str, Any]:
    """kat.json: what the checkpoint is and where it came from."""
    return {
        "stage": job.stage,
        "step": step,
        "steps_trained": loop.step,
        "steps_planned": loop.task.total_steps,
        "stop_reason": reason,
        "selection": "lowest validation loss" if job.settings.keep_best else "last step",
        "metrics": {
            "loss": loop.last.get("loss"),
            "val_loss": loop.validation_losses[-1] if loop.validation_losses else None,
            "best_val_loss": min(loop.validation_losses, default=None),
            "learning_rate_share": loop.last.get("lr"),
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
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= resume_step]
        path.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _complete_lines(path: Path) -> Iterable[str]:
    """Lines that end in a newline: a killed run may have left half of one."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def claim(out: Path, record: dict[str, Any], stop_at: int | None) -> Path | None:
    """Prepare to train `out`; return the state to resume from, or None for a fresh start.

    Raises UsageError where `out` is, or is becoming, the result of another job; AlreadyDone where nothing is to do.
    """
    working = training_folder(out)
    if out.exists():
        if not (out / "kat.json").is_file():
            raise UsageError(f"{out}: exists and is no kat checkpoint; choose another --out")
        meta = read_json(out / "kat.json")
        _same_job(meta, record, out, "was trained with")
        ended = meta["stop_reason"].startswith(("finished", "stopped early"))
        if ended or (stop_at is not None and meta["steps_trained"] >= stop_at):
            shutil.rmtree(working, ignore_errors=True)
            raise AlreadyDone(out, meta)
        if not working.exists():
            _continue_from(out, working, record)
    if (working / "job.json").is_file():
        _same_job(read_json(working / "job.json"), record, working, "is a run in progress with")
    else:
        working.mkdir(parents=True, exist_ok=True)
        write_json(working / "job.json", record)
    return newest_state(working)


class AlreadyDone(Exception):
    """The checkpoint is there already, made by the same job."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        super().__init__(f"{folder}: already there ({meta['stop_reason']} at step {meta['steps_trained']})")
        self.folder, self.meta = folder, meta


def _continue_from(out: Path, working: Path, record: dict[str, Any]) -> None:
    """A checkpoint that stopped on request goes on: its last state becomes the newest of a new working folder."""
    if not (out / STATE).is_dir():
        raise UsageError(f"{out}: stopped early and has no {STATE}/ to go on from; choose another --out")
    values = read_json(out / STATE / "state.json")
    with new_folder(working) as temporary:
        shutil.copytree(out / STATE, temporary / f"state-{values['step']:09d}")
        shutil.copy(out / "metrics.jsonl", temporary / "metrics.jsonl")
        shutil.copy(out / "model.safetensors", temporary / "best.safetensors")
        write_json(temporary / "job.json", record)


def _same_job(found: dict[str, Any], wanted: dict[str, Any], where: Path, verb: str) -> None:
    if found["job_hash"] == wanted["job_hash"]:
        return
    parts = [name for name, value in wanted["job"].items() if found["job"].get(name) != value]
    raise UsageError(f"{where}: {verb} another {', '.join(parts) or 'job'}; choose another --out or remove it")
