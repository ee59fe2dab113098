"""kat's own trainer of every stage, and the task of base, mid and SFT: next-token prediction on supervised tokens."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kat.data.batches import Batch, Batches
from kat.data.tokens import TokenData
from kat.errors import UsageError
from kat.model.checkpoint import load_checkpoint
from kat.model.config import GPTConfig
from kat.model.gpt import GPT, IGNORE
from kat.model.reward import RewardModel
from kat.runs.settings import BaseSettings, LoopSettings, RewardSettings, TrainSettings
from kat.runtime import World, distributed, pick_device, pick_dtype, set_threads, total_memory
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.grpo import GrpoTask
from kat.trainers.loop import INTERRUPTED, Loop, Task, Tensors, micro_batches
from kat.trainers.protocol import Capabilities, Events, Job, Result
from kat.trainers.reward import RewardTask
from kat.trainers.run_folder import load_state, write_result


class NativeTrainer:
    """Trains kat's GPT in this process (or in the ranks that torchrun started)."""

    def capabilities(self) -> Capabilities:
        return Capabilities(stages=frozenset({"base", "mid", "sft", "reward", "grpo"}))

    def fit(self, job: Job, events: Events, resume: Path | None = None) -> Result:
        """Run the job to its end and write the checkpoint at job.out."""
        device = pick_device(job.device)
        tokenizer = Tokenizer.load(job.tokenizer)
        with distributed(device) as world:
            model = initial_model(job, tokenizer, device, world.size)
            set_threads(model.config.parameter_count())
            torch.manual_seed(job.seed)  # nothing draws from it now; the state that is saved must still be the run's
            dtype = pick_dtype(job.dtype, device)
            trained = with_head(model, job.settings) if job.stage == "reward" else model
            task = build_task(job, model, tokenizer, world, dtype)
            loop = Loop(trained, task, job.settings, world=world, device=device, dtype=dtype, out=job.out)
            if resume is not None:
                loop.restore(load_state(resume))
            lines = loop.preflight(task.example())  # on all ranks: a rollout is made by them together
            if world.is_main:
                events.start(lines, loop.step, task.total_steps)
            reason = loop.run(events, job.stop_at)
            if reason != INTERRUPTED and world.is_main:
                write_result(job, loop, tokenizer, reason)
            world.barrier()
        return Result(job.out, loop.step, reason, loop.last)


def build_task(
    job: Job, model: GPT, tokenizer: Tokenizer, world: World, dtype: torch.dtype
) -> "CausalTask | RewardTask | GrpoTask":
    """What the job's stage brings to a loop: its batches, its loss, its validation."""
    if job.stage == "reward":
        return RewardTask(job, tokenizer, world)
    if job.stage == "grpo":
        return GrpoTask(job, model, tokenizer, world, dtype)
    return CausalTask(job, model.config, tokenizer, world)


def with_head(model: GPT, settings: LoopSettings) -> RewardModel:
    """A new scalar head on the model, whose own weights learn too unless they are frozen."""
    assert isinstance(settings, RewardSettings)
    if settings.backbone == "frozen":
        model.requires_grad_(False)
    return RewardModel(model)


def initial_model(job: Job, tokenizer: Tokenizer, device: torch.device, world_size: int) -> GPT:
    """The initial model: a checkpoint's, or new weights drawn from the job's seed."""
    if job.init is not None:
        model = load_checkpoint(job.init).model.float()  # master weights are float32, whatever was stored
        _check_memory(job, model.config, device, world_size)
        return model
    s = job.settings
    if not isinstance(s, BaseSettings):
        raise UsageError(f"{job.stage}: needs --init CKPT to start from")
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        sequence_len=s.sequence_len,
        n_layer=s.n_layer,
        n_embd=s.n_embd,
        n_head=s.n_head,
        n_kv_head=s.n_kv_head or s.n_head,
        rope_base=s.rope_base,
    )
    _check_memory(job, config, device, world_size)
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(job.seed))
    return model


def _check_memory(job: Job, config: GPTConfig, device: torch.device, world_size: int) -> None:
    """Refuse a shape that no step could be taken with, before the machine swaps itself to a standstill."""
    rows, _ = micro_batches(job.settings, world_size)
    s = job.settings
    tokens = rows * ((s.row_len if isinstance(s, TrainSettings) else None) or config.sequence_len)
    needed, total = config.training_bytes(tokens), total_memory(device)
    if total is not None and needed > total:
        raise UsageError(
            f"{job.stage}: a step over {tokens:,} tokens needs about {needed / 2**30:,.0f} GiB, {device} has "
            f"{total / 2**30:,.0f}; lower micro_batch_size, row_len or the model's size"
        )


class CausalTask(Task):
    """Batches and loss of language modelling; see kat.trainers.loop.Task."""

    unit = "supervised tokens"

    def __init__(self, job: Job, config: GPTConfig, tokenizer: Tokenizer, world: World) -> None:
        s = job.settings
        assert isinstance(s, TrainSettings) and isinstance(job.train, TokenData)
        assert job.validation is None or isinstance(job.validation, TokenData)
        self.expected = f"ln V = {math.log(config.vocab_size):.4f}"
        self.settings, self.tokenizer, self.train = s, tokenizer, job.train
        self.row_len = s.row_len or config.sequence_len
        self.rows = micro_batches(s, world.size)[0] * world.size  # of one pass, over all ranks
        self.batches = self._open(job.train, job.seed, world, repeat=True)
        # Its order is shuffled too, always in the same way: the first rows of it are a fair sample of all files.
        self.held_out = self._open(job.validation, 0, world, repeat=False) if job.validation is not None else None
        self.held_out_start = self.held_out.state() if self.held_out else {}
        rows = self.batches.rows_per_epoch(0)
        self.total_steps = s.steps or max(1, round(rows * s.epochs / s.batch_size))
        self.token_bytes = torch.from_numpy(tokenizer.token_bytes().astype(np.int64))

    def _open(self, data: TokenData, seed: int, world: World, *, repeat: bool) -> Batches:
        return Batches(
            data,
            row_len=self.row_len,
            batch_rows=self.rows,
            layout=self.settings.layout,
            pad_id=self.tokenizer.pad_id,
            seed=seed,
            rank=world.rank,
            world=world.size,
            repeat=repeat,
        )

    def next_batch(self) -> dict[str, Tensor]:
        return _tensors(self.batches.next())

    def weight(self, batch: dict[str, Tensor]) -> int:
        return int((batch["targets"] != IGNORE).sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["ids"], batch["targets"], doc_ids=batch.get("doc_ids"), reduction="sum")

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Loss in nats a supervised token, and bits per byte without special tokens; both are sum over sum.

        The rows looked at are the same for any micro-batch size and any number of ranks.
        """
        if self.held_out is None:
            return {}
        assert isinstance(model, GPT)
        self.held_out.load_state(self.held_out_start)
        nats = plain_nats = 0.0
        tokens = n_bytes = 0
        wanted = min(self.settings.validation_rows, self.held_out.rows_per_epoch(0))
        for first in range(0, wanted, self.rows):
            mine = len(range(first + world.rank, min(first + self.rows, wanted), world.size))
            tensors = _tensors(self.held_out.next())
            if mine == 0:
                continue
            losses, targets = token_losses(model, {name: t[:mine].to(model.device) for name, t in tensors.items()})
            lengths = self.token_bytes.to(targets.device)[targets]
            nats += float(losses.sum(dtype=torch.float64))
            plain_nats += float(losses[lengths > 0].sum(dtype=torch.float64))
            tokens += len(targets)
            n_bytes += int(lengths.sum())
        nats, plain_nats = world.sum_float(nats), world.sum_float(plain_nats)
        tokens, n_bytes = world.sum(tokens), world.sum(n_bytes)
        if tokens == 0:
            return {}
        metrics = {"val_loss": nats / tokens}
        if n_bytes:
            metrics["val_bpb"] = plain_nats / math.log(2) / n_bytes
        return metrics

    def cursor(self) -> dict[str, Any]:
        return self.batches.state()

    def seek(self, cursor: dict[str, Any], tensors: Tensors) -> None:
        self.batches.load_state(cursor)

    def example(self) -> str:
        """The first example as text, what is supervised in ⟦brackets⟧."""
        end = int(self.train.offsets[1])
        text = ""
        pairs = zip(self.train.ids[:end].tolist(), self.train.mask[:end].tolist(), strict=True)
        for supervised, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
            piece = self.tokenizer.decode([token for token, _ in run])
            text += f"⟦{piece}⟧" if supervised else piece
        return text if len(text) <= 600 else f"{text[:300]} … {text[-300:]}"


def token_losses(model: GPT, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) at each supervised position and its target, both (N,)."""
    hidden = model.hidden(batch["ids"], doc_ids=batch.get("doc_ids"))
    supervised = batch["targets"] != IGNORE
    targets = batch["targets"][supervised]
    return F.cross_entropy(model.logits(hidden[supervised]).float(), targets, reduction="none"), targets


def _tensors(batch: Batch) -> dict[str, Tensor]:
    tensors = {"ids": torch.from_numpy(batch.ids), "targets": torch.from_numpy(batch.targets)}
    if batch.doc_ids is not None:
        tensors["doc_ids"] = torch.from_numpy(batch.doc_ids)
    return tensors
