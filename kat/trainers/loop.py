"""The loop that every native stage shares.

It owns accumulation, clipping, the schedule, validation, the best checkpoint, stability guards and exact resume. A
stage brings a `Task`: how to draw batches, what the loss of one is, and how to validate.
"""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kat.errors import UsageError
from kat.model.gpt import GPT
from kat.model.stability import InstabilityError, Limits, diagnose, first_fault
from kat.runs.settings import TrainSettings
from kat.runtime import World, autocast, peak_flops, peak_memory, rng_state, set_rng_state
from kat.trainers.optimisers import build_optimisers, describe_groups, load_state_tensors, set_lr, state_tensors
from kat.trainers.protocol import Events, State
from kat.trainers.schedules import lr_share

Tensors = dict[str, Tensor]


class Task(Protocol):
    """One stage's step."""

    total_steps: int

    def next_batch(self) -> Tensors:
        """The next micro-batch of this rank: tensors by name, on the CPU."""

    def weight(self, batch: Tensors) -> int:
        """What its loss is a sum over: supervised tokens (or pairs, or completions)."""

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        """Sum of losses over that weight; exactly 0 where the weight is 0."""

    def validate(self, model: GPT, world: World) -> dict[str, float]:
        """Metrics on held-out data, `val_loss` among them; empty where there is none."""

    def cursor(self) -> dict[str, Any]:
        """Where in the data the run is, as JSON."""

    def seek(self, cursor: dict[str, Any]) -> None:
        """Go where :meth:`cursor` was."""


class Loop:
    """Training of one model on one task, up to a step."""

    def __init__(
        self,
        model: GPT,
        task: Task,
        settings: TrainSettings,
        *,
        world: World,
        device: torch.device,
        dtype: torch.dtype,
        out: Path,
    ) -> None:
        self.model, self.task, self.settings = model.to(device).train(), task, settings
        self.world, self.device, self.dtype, self.out = world, device, dtype, out
        self.optimisers = build_optimisers(model, settings)
        self.wrapped: nn.Module = DistributedDataParallel(model) if world.size > 1 else model
        micro = settings.micro_batch_size or settings.batch_size // world.size
        if settings.batch_size % (micro * world.size):
            raise UsageError(
                f"batch_size {settings.batch_size} is no multiple of micro_batch_size {micro} x {world.size} ranks"
            )
        self.accumulate = settings.batch_size // (micro * world.size)
        self.limits = Limits(overflow=settings.max_abs)
        self.step = 0
        self.tokens = 0
        self.unlogged_tokens, self.unlogged_seconds = 0, 0.0
        self.validation_losses: list[float] = []
        self.best_loss = math.inf
        self.best_step = 0
        self.last: dict[str, float | None] = {}

    def run(self, events: Events, stop_at: int | None) -> str:
        """Train to the end (or to `stop_at`) and say why it stopped. The state is saved before returning."""
        end = self.task.total_steps if stop_at is None else min(self.task.total_steps, stop_at)
        reason = "finished" if end == self.task.total_steps else f"stopped at step {end} as asked"
        if self.step >= end:
            self._save(events, improved=False)
        while self.step < end:
            metrics = self._train_step()
            self.step += 1
            improved = False
            if self._is_due(self.settings.validation_every, end):
                validation, improved = self._validate()
                metrics |= validation
            if self._is_due(self.settings.log_every, end) or "val_loss" in metrics:
                self.last |= self._log(events, metrics)
            if self._out_of_patience():
                reason = f"stopped early: {self.settings.early_stop} validations without improvement"
            stopping = self._any_rank(events.should_stop)
            if stopping and self.step < end:
                reason = "interrupted"
            finished = reason == "interrupted" or self._out_of_patience() or self.step == end
            if improved or finished or self.step % self.settings.save_every == 0:
                self._save(events, improved)
            if finished:
                break
        return reason

    def _is_due(self, every: int, end: int) -> bool:
        return self.step % every == 0 or self.step == end

    def _any_rank(self, flag: bool) -> bool:
        return self.world.sum(int(flag)) > 0

    def _out_of_patience(self) -> bool:
        if self.settings.early_stop is None or not self.validation_losses:
            return False
        best = self.validation_losses.index(min(self.validation_losses))
        return len(self.validation_losses) - 1 - best >= self.settings.early_stop

    def _train_step(self) -> dict[str, float]:
        """One optimizer step: the gradient of (sum of losses) / (weight of the whole batch, all ranks)."""
        started = time.perf_counter()
        batches = [self.task.next_batch() for _ in range(self.accumulate)]
        weight = self.world.sum(sum(self.task.weight(batch) for batch in batches))
        if weight == 0:
            raise UsageError(f"step {self.step}: no supervised token in the whole batch; nothing to learn from")
        set_lr(self.optimisers, share := self._lr_share())
        total = self._backward(batches, weight)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        loss = self.world.sum_float(total) / weight
        if not (math.isfinite(loss) and math.isfinite(norm) and norm < self.limits.overflow):
            self._stop_unstable(batches, f"loss {loss:g}, gradient norm {norm:g}")
        if self.step % self.settings.log_every == 0:
            self._check("gradient of", ((name, p.grad) for name, p in self.model.named_parameters()))
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        tokens = self.world.sum(sum(batch["ids"].numel() for batch in batches))
        self.tokens += tokens
        self.unlogged_tokens += tokens
        self.unlogged_seconds += time.perf_counter() - started
        return {"loss": loss, "lr": share, "grad_norm": float(norm), "supervised_tokens": weight}

    def _backward(self, batches: Sequence[Tensors], weight: int) -> float:
        """Accumulate gradients and return this rank's sum of losses. DDP averages over ranks: hence `size`."""
        total = 0.0
        for i, batch in enumerate(batches):
            if isinstance(self.wrapped, DistributedDataParallel):
                self.wrapped.require_backward_grad_sync = i == len(batches) - 1
            on_device = {name: tensor.to(self.device) for name, tensor in batch.items()}
            with autocast(self.device, self.dtype):
                loss = self.task.loss(self.wrapped, on_device)
            (loss * (self.world.size / weight)).backward()
            total += float(loss.detach())
        return total

    def _lr_share(self) -> float:
        return lr_share(self.settings, self.step, self.task.total_steps, self.validation_losses)

    def _stop_unstable(self, batches: Sequence[Tensors], what: str) -> None:
        """Name the tensor, keep the batch, stop. The weights are still those before the step."""
        batch = {name: tensor.to(self.device) for name, tensor in batches[-1].items()}
        where = diagnose(self.model, self.limits, batch["ids"])
        path = self.out.with_name(f"{self.out.name}.unstable-step-{self.step}-rank-{self.world.rank}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {f"{i}.{name}": tensor.contiguous() for i, b in enumerate(batches) for name, tensor in b.items()}, path
        )
        raise InstabilityError(f"step {self.step}: {what}; {where}; the batch is in {path}")

    def _check(self, kind: str, tensors: Iterable[tuple[str, Tensor | None]]) -> None:
        if found := first_fault(tensors, self.limits):
            raise InstabilityError(f"step {self.step}: {kind} {found}; lower the learning rate or raise max_abs")

    def _validate(self) -> tuple[dict[str, float], bool]:
        """Metrics on held-out data and whether the loss is the lowest so far."""
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.dtype):
            metrics = self.task.validate(self.model, self.world)
        self.model.train()
        if "val_loss" not in metrics:
            return {}, False
        self.validation_losses.append(metrics["val_loss"])
        improved = metrics["val_loss"] < self.best_loss
        if improved:
            self.best_loss, self.best_step = metrics["val_loss"], self.step
        return metrics, improved

    def _log(self, events: Events, metrics: dict[str, float]) -> dict[str, float | None]:
        per_second = self.unlogged_tokens / self.unlogged_seconds
        self.unlogged_tokens, self.unlogged_seconds = 0, 0.0
        peak = peak_flops(self.device)
        flops = per_second * self.model.config.flops_per_token()
        row: dict[str, float | None] = {
            **metrics,
            "tokens": self.tokens,
            "tokens_per_second": round(per_second, 1),
            "mfu": flops / (peak * self.world.size) if peak else None,
            "peak_memory": peak_memory(self.device),
        }
        if self.world.is_main:
            events.log(self.step, **row)
        return row

    def _save(self, events: Events, improved: bool) -> None:
        self._check("weight", self.model.named_parameters())
        if self.world.is_main:
            events.save(self.state(), self.model if improved and self.settings.keep_best else None)
        self.world.barrier()

    def state(self) -> State:
        """Everything a run needs to go on exactly; all ranks hold the same weights and draw from the same cursor."""
        tensors = {f"weights.{name}": tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in state_tensors(self.optimisers).items()}
        tensors |= {f"rng.{name}": tensor for name, tensor in rng_state(self.device).items()}
        values = {
            "step": self.step,
            "tokens": self.tokens,
            "cursor": self.task.cursor(),
            "validation_losses": self.validation_losses,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_step": self.best_step,
            "last": self.last,
        }
        return State(self.step, tensors, values)

    def restore(self, state: State) -> None:
        """Go on where `state` was."""

        def part(prefix: str) -> Tensors:
            return {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("weights."), strict=True)
        load_state_tensors(self.optimisers, part("optimiser."))
        set_rng_state(part("rng."), self.device)
        self.step, self.tokens = state.values["step"], state.values["tokens"]
        self.task.seek(state.values["cursor"])
        self.validation_losses = list(state.values["validation_losses"])
        best = state.values["best_loss"]
        self.best_loss = math.inf if best is None else best
        self.best_step = state.values["best_step"]
        self.last = dict(state.values["last"])

    def preflight(self, example: str) -> list[str]:
        """What a careful person looks at before a run, and how long it will take. Changes nothing."""
        cursor = self.task.cursor()
        batch = {name: tensor.to(self.device) for name, tensor in self.task.next_batch().items()}
        with torch.no_grad(), autocast(self.device, self.dtype):
            for _ in range(2):  # the first pass also pays for warming up
                started = time.perf_counter()
                loss = float(self.task.loss(self.model, batch)) / max(1, self.task.weight(batch))
                seconds = time.perf_counter() - started
        self.task.seek(cursor)
        left = (self.task.total_steps - self.step) * self.accumulate * 3 * seconds  # backward costs two forwards
        shape = "x".join(map(str, batch["ids"].shape))
        return [
            f"example: {example}",
            f"first micro-batch: {shape} tokens, {self.task.weight(batch):,} supervised",
            f"loss at step {self.step}: {loss:.4f} (ln V = {math.log(self.model.config.vocab_size):.4f})",
            *describe_groups(self.optimisers),
            f"device {self.device}, {str(self.dtype).removeprefix('torch.')}, {torch.get_num_threads()} thread(s), "
            f"{self.world.size} rank(s), {self.accumulate} micro-batch(es) a step",
            f"{self.task.total_steps - self.step} steps, about {left / 60:.1f} min without validation",
        ]
