"""`kat train`: from files and settings to a job, and through a trainer to a checkpoint."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kat.data.choices import AnswerStyle, ChoiceItem
from kat.data.examples import Conversation, Document, Example
from kat.data.sources import load_examples
from kat.data.tokens import TokenData, encode_examples
from kat.density.schedule import hash_weights
from kat.errors import KatError, UsageError
from kat.model.checkpoint import read_config, read_meta, verify_checkpoint
from kat.model.config import config_fields
from kat.runs.files import hash_json, new_folder, read_json, remove_folder, write_json
from kat.runs.provenance import new_run_id, now, versions
from kat.runs.settings import BaseSettings, LoopSettings, TokenizerSettings, TrainSettings
from kat.runtime import World, distributed, pick_device, pick_dtype
from kat.tokenizer.bpe import Tokenizer, train_tokenizer
from kat.trainers import preferences
from kat.trainers.console import RunEvents, say
from kat.trainers.loop import INTERRUPTED
from kat.trainers.protocol import Capabilities, Job, Result, Reward, load_trainer
from kat.trainers.run_folder import AlreadyDone, claimed, newest_state, state_values, training_folder

# Settings that name files, of which the job has hashes, or only decide which rows are read, of which it has one too.
FILES = ("validation", "max_bad", "density", "reward")


@dataclass(frozen=True)
class Request:
    """What the user asked for: one call of `kat train`."""

    stage: str
    data: tuple[Path, ...]
    out: Path
    init: Path | None
    settings: LoopSettings
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    trainer: str = "native"
    max_steps: int | None = None
    reward: Reward | None = None  # GRPO's; opened by the caller, who may know more of evaluation than a trainer


def train_tokenizer_stage(data: Sequence[Path], out: Path, settings: TokenizerSettings, console: Console) -> Path:
    """Train a tokenizer on the text of any rows and write its folder. Running it again does nothing."""
    rows = load_examples(data, max_bad=settings.max_bad)
    record = {"stage": "tokenizer", "data_hash": rows.hash, "settings": settings.model_dump(mode="json")}
    stamp = out / "kat_tokenizer.json"
    if out.exists():
        if stamp.is_file() and read_json(stamp).get("job_hash") == hash_json(record):
            say(console, f"{out}: already there")
            return out
        raise UsageError(f"{out}: exists and comes from another job; choose another --out or remove it")
    say(console, f"tokenizer: {rows.report()}")
    tokenizer = train_tokenizer((text for row in rows.rows for text in texts_of(row)), settings.vocab_size)
    with new_folder(out) as temporary:
        tokenizer.save(temporary)
        write_json(
            temporary / "kat_tokenizer.json",
            {
                **record,
                "job_hash": hash_json(record),
                "tokenizer_hash": tokenizer.hash,
                "run_id": new_run_id(),
                "created": now(),
                "versions": versions(),
            },
        )
    sample = "".join(text for row in rows.rows[:200] for text in texts_of(row))
    rate = len(sample.encode()) / max(1, len(tokenizer.encode(sample)))
    say(console, f"tokenizer: {tokenizer.vocab_size:,} tokens, {rate:.2f} bytes a token")
    return out


def texts_of(example: Example) -> list[str]:
    """The pieces of text an example holds."""
    if isinstance(example, Document):
        return [example.text]
    if isinstance(example, Conversation):
        return [message["content"] for message in example.messages]
    extra = [text for text in (example.hint, example.lecture, example.solution) if text]
    return [example.question, *example.choices, *extra]


def train(request: Request, console: Console) -> Result:
    """Run one stage. Where it was interrupted before, it goes on; where it is done, it says so."""
    if not 0 <= request.seed < 2**63:
        raise UsageError(f"--seed {request.seed}: give a whole number from 0 to 2^63 - 1")
    if request.out.name in ("", ".."):
        raise UsageError(f"--out {request.out}: name the folder that is to be made")
    trainer = load_trainer(request.trainer)
    device = pick_device(request.device)
    _check_capable(trainer.capabilities(), request, device.type)
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(distributed(device))
        if not world.is_main:
            console = Console(quiet=True)
        job = build_job(request, console)
        try:
            state = _claim_together(stack, world, job, describe_job(job, request))
        except AlreadyDone as done:
            say(console, str(done))
            return Result(job.out, done.meta["steps_trained"], done.meta["stop_reason"], done.meta["metrics"])
        step = state_values(state)["step"] if state else 0
        if state and not trainer.capabilities().exact_resume:
            raise UsageError(
                f"--trainer {request.trainer}: cannot go on from step {step}; remove {training_folder(job.out)}"
            )
        if state:
            say(console, f"{request.stage}: going on from step {step}")
        folder = training_folder(job.out) if world.is_main else None
        events = stack.enter_context(RunEvents(folder, console, request.stage, step).listening())
        result = trainer.fit(job, events, state)
        if world.is_main and result.stop_reason != INTERRUPTED:
            remove_folder(training_folder(job.out))
    if result.stop_reason == INTERRUPTED:
        then = "go on" if trainer.capabilities().exact_resume else "start it anew"
        raise Interrupted(f"{request.stage}: interrupted at step {result.step}; run the same command again to {then}")
    say(console, f"{request.stage}: {result.stop_reason}: {job.out}")
    return result


class Interrupted(KatError):
    """Ctrl-C, after the state was saved."""

    exit_code = 130


def _check_capable(can: Capabilities, request: Request, device: str) -> None:
    if request.stage not in can.stages:
        raise UsageError(f"--trainer {request.trainer}: does not train {request.stage}")
    if device not in can.devices:
        raise UsageError(
            f"--trainer {request.trainer}: does not train on {device}; use {', '.join(sorted(can.devices))}"
        )


def _claim_together(stack: contextlib.ExitStack, world: World, job: Job, record: dict[str, Any]) -> Path | None:
    """Rank 0 claims the training folder until the stack closes; all ranks then read the same state, or stop for the
    same reason."""
    refused: AlreadyDone | KatError | None = None
    if world.is_main:
        try:
            stack.enter_context(claimed(job.out, record, job.stop_at))
        except (AlreadyDone, KatError) as error:
            refused = error
    answer = world.sum(0 if refused is None else 1 if isinstance(refused, KatError) else 2)
    if answer:
        raise refused or (AlreadyDone(job.out, read_meta(job.out)) if answer == 2 else UsageError("see rank 0"))
    return newest_state(training_folder(job.out))


def build_job(request: Request, console: Console) -> Job:
    """Read and encode the data; refuse what cannot work before anything is written."""
    if request.stage == "reward":
        return preferences.reward_job(request, starting_checkpoint(request), console)
    if request.stage == "grpo":
        return preferences.grpo_job(request, starting_checkpoint(request), console)
    return _causal_job(request, console)


def _causal_job(request: Request, console: Console) -> Job:
    s = request.settings
    assert isinstance(s, TrainSettings)
    init, tokenizer_folder = _starting_point(request)
    tokenizer = Tokenizer.load(tokenizer_folder)
    context = read_config(init).sequence_len if init else s.sequence_len if isinstance(s, BaseSettings) else 0
    row_len = s.row_len or context
    if row_len > context:
        raise UsageError(f"row_len {row_len} is longer than the model's context of {context} tokens")
    rows = load_examples(request.data, max_bad=s.max_bad)
    say(console, f"{request.stage}: {rows.report()}")
    training, held_out = rows.rows, []
    if s.validation:
        validation_rows = load_examples([Path(path) for path in s.validation], max_bad=s.max_bad)
        say(console, f"{request.stage}: for validation {validation_rows.report()}")
        held_out = validation_rows.rows
    elif s.validation_share:
        training, held_out = hold_out(rows.rows, s.validation_share)
    if not training:
        raise UsageError(f"{request.stage}: no row is left to train on")

    def encode(examples: Sequence[Example], name: str, orders: int) -> TokenData:
        max_len = row_len + 1 if s.layout == "packed" else None
        data = encode_examples(
            with_option_orders(examples, orders),
            tokenizer,
            max_len=max_len,
            supervise_prompts=s.supervise_prompts,
            style=AnswerStyle(s.answers),
        )
        say(
            console,
            f"{request.stage}: {name} {len(data):,} examples, {len(data.ids):,} tokens, "
            f"{data.n_supervised:,} supervised ({data.n_cut:,} cut to the row, "
            f"{data.n_dropped:,} dropped with nothing supervised left)",
        )
        return data

    train_data = encode(training, "training on", s.option_orders)
    if not len(train_data):
        raise UsageError(f"{request.stage}: no row has a supervised token within {row_len} tokens; raise row_len")
    validation = encode(held_out, "validating on", 1) if held_out else None
    if validation is not None and not len(validation):
        say(console, f"{request.stage}: no validation row has a supervised token; going without validation")
        validation = None
    if validation is None and (s.early_stop or s.schedule == "plateau"):
        wanted = "early_stop" if s.early_stop else "schedule = plateau"
        raise UsageError(f"{request.stage}: {wanted} needs validation rows; give validation or a validation_share")
    if validation is None and s.keep_best:
        say(console, f"{request.stage}: no validation rows, so the last step is kept, not the best")
    return Job(
        stage=request.stage,
        init=init,
        tokenizer=tokenizer_folder,
        train=train_data,
        validation=validation,
        settings=s,
        seed=request.seed,
        device=request.device,
        dtype=request.dtype,
        out=request.out,
        stop_at=request.max_steps,
    )


def _starting_point(request: Request) -> tuple[Path | None, Path]:
    """(checkpoint or None, tokenizer folder) from --init."""
    init = request.init
    if init is None:
        what = "a tokenizer folder" if request.stage == "base" else "a checkpoint"
        raise UsageError(f"{request.stage}: --init is missing; give {what} to start from")
    if not init.is_dir():
        raise UsageError(f"--init {init}: no such folder")
    if (init / "kat.json").is_file():
        chosen = set(request.settings.model_fields_set) & set(config_fields())
        if chosen:
            raise UsageError(
                f"--init {init}: the checkpoint decides {', '.join(sorted(chosen))}; leave that setting out"
            )
        verify_checkpoint(init)
        return init, init
    if request.stage == "base" and (init / "tokenizer.json").is_file() and not (init / "model.safetensors").exists():
        return None, init
    read_meta(init)  # says what is missing
    raise UsageError(f"--init {init}: not a checkpoint")


def starting_checkpoint(request: Request) -> Path:
    """The checkpoint of --init; a tokenizer alone is none."""
    init, _ = _starting_point(request)
    assert init is not None, "only base starts from a tokenizer"
    return init


def with_option_orders(examples: Sequence[Example], orders: int) -> list[Example]:
    """Each multiple-choice item in up to `orders` rotations of its options; other rows once."""
    expanded: list[Example] = []
    for example in examples:
        expanded.append(example)
        if isinstance(example, ChoiceItem):
            rotations = range(1, min(orders, len(example.choices)))
            expanded += [replace(example.rotated(k), id=f"{example.id}@{k}") for k in rotations]
    return expanded


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Split by a hash of the content: the same row falls on the same side whatever else is in the files."""
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        if isinstance(example, ChoiceItem):
            content = example.hash
        else:
            content = hash_json(example.text if isinstance(example, Document) else list(example.messages))
        sides[int(content[:12], 16) < share * 16**12].append(example)
    return sides


def describe_job(job: Job, request: Request) -> dict[str, Any]:
    """What makes two runs the same job; part of job.json and kat.json."""
    parent = read_meta(job.init)["identity"] if job.init else None
    device = pick_device(job.device)
    described: dict[str, Any] = {
        "stage": job.stage,
        "trainer": request.trainer,
        "parent": parent,
        "tokenizer": Tokenizer.load(job.tokenizer).hash,
        "data": job.train.hash,
        "validation data": job.validation.hash if job.validation is not None else None,
        "seed": job.seed,
        "device": device.type,
        "dtype": str(pick_dtype(job.dtype, device)).removeprefix("torch."),
        **{
            f"setting {name}": value
            for name, value in job.settings.model_dump(mode="json").items()
            if name not in FILES
        },
    }
    if job.schedule is not None:
        described["schedule"] = job.schedule.hash
    if job.loss_weights is not None:
        described["loss weights"] = hash_weights(job.train.names, job.loss_weights)
    if job.reward is not None:
        described["reward"] = job.reward.identity
    return {
        "job": described,
        "job_hash": hash_json(described),
        "parent": {"identity": parent, "folder": str(job.init)} if job.init else None,
        "data_hash": job.train.hash,
        "data_files": [str(path) for path in request.data],
        "data_names": hash_json(list(job.train.names)),
    }
