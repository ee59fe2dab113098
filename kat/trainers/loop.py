"""The loop that every native stage shares.

It owns accumulation, clipping, the schedule, validation, the best checkpoint, stability guards and exact resume. A
stage brings a `Task`: how to draw batches, what the loss of one is, and how to validate.

What happens at a step depends on the step alone and never on where a run is stopped, so that a run in pieces leaves the
same weights and the same metrics as one that was never stopped.
"""

import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kat.errors import EvidenceError, UsageError
from kat.model.gpt import GPT
from kat.model.reward import RewardModel
from kat.model.stability import InstabilityError, Limits, diagnose, first_fault, gradient_fault
from kat.model.tensors import save_tensors
from kat.runs.settings import LoopSettings
from kat.runtime import World, autocast, peak_flops, peak_memory, rng_state, set_rng_state
from kat.trainers.optimisers import (
    build_optimisers,
    describe_groups,
    load_state_tensors,
    main_lr,
    set_lr,
    state_tensors,
)
from kat.trainers.protocol import Events, State
from kat.trainers.schedules import lr_share

Tensors = dict[str, Tensor]
INTERRUPTED = "interrupted"


class Task(Protocol):
    """One stage's step. A stage whose batches come from the model itself (GRPO) also keeps tensors between steps."""

    total_steps: int
    unit: str  # what a loss is per: "supervised tokens", "pairs", "completions"
    expected: str  # what the loss should be at first, for the pre-flight
    batches_per_fetch: int = 1  # how many batches one slow call of next_batch makes

    def next_batch(self) -> Tensors:
        """The next micro-batch of this rank: tensors by name, on the CPU; "ids" (B, T) is among them."""

    def weight(self, batch: Tensors) -> int:
        """What its loss is a sum over: supervised tokens, pairs, or completions."""

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        """Sum of losses over that weight; exactly 0 where the weight is 0."""

    def metrics(self, world: World) -> dict[str, float]:
        """What the stage has to say of the step just taken, beyond its loss. Called once a step, on all ranks."""
        return {}

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Metrics on held-out data, `val_loss` among them; empty where there is none."""

    def cursor(self) -> dict[str, Any]:
        """Where in the data the run is, as JSON."""

    def tensors(self) -> Tensors:
        """What exact resume needs beside the cursor: a rollout that is half consumed."""
        return {}

    def seek(self, cursor: dict[str, Any], tensors: Tensors) -> None:
        """Go where :meth:`cursor` and :meth:`tensors` were."""

    def finish(self, model: nn.Module) -> None:
        """Last touch on the model that becomes the checkpoint."""
        return None


def micro_batches(settings: LoopSettings, world_size: int) -> tuple[int, int]:
    """(rows a rank takes through the model at once, such passes an optimizer step)."""
    micro = settings.micro_batch_size or settings.batch_size // world_size
    if micro == 0 or settings.batch_size % (micro * world_size):
        raise UsageError(
            f"batch_size {settings.batch_size} is no multiple of "
            f"micro_batch_size {max(micro, 1)} x {world_size} ranks: change one of the three"
        )
    return micro, settings.batch_size // (micro * world_size)


class Loop:
    """Training of one model on one task, up to a step."""

    def __init__(
        self,
        model: GPT | RewardModel,
        task: Task,
        settings: LoopSettings,
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
        _, self.accumulate = micro_batches(settings, world.size)
        self.limits = Limits(overflow=settings.max_abs)
        self.step = 0
        self.tokens = 0
        self.unlogged_tokens, self.unlogged_seconds = 0, 0.0
        self.validation_losses: list[float] = []
        self.best_loss = math.inf
        self.best_step: int | None = None
        self.last: dict[str, float] = {}
        self.saved_step: int | None = None

    def run(self, events: Events, stop_at: int | None) -> str:
        """Train to the end (or to `stop_at`) and say why it stopped. The state is saved before returning."""
        total = self.task.total_steps
        end = total if stop_at is None else min(total, stop_at)
        reason = self._reason_to_stop(end)
        while reason is None:
            batches = [self.task.next_batch() for _ in range(self.accumulate)]
            metrics = self.train_step(batches)
            improved = False
            if self._is_due(self.settings.validation_every):
                validation, improved = self._validate()
                metrics |= validation
            if self._is_due(self.settings.log_every) or self.step == 1 or "val_loss" in metrics:
                self._log(events, metrics, batches)
            self.last = metrics
            reason = self._reason_to_stop(end)
            if self.world.sum(int(events.should_stop)):
                reason = reason or INTERRUPTED
            if reason or (improved and self.settings.keep_best) or self.step % self.settings.save_every == 0:
                self._save(events, improved)
        if self.saved_step != self.step:
            self._save(events, improved=False)
        return reason

    def _reason_to_stop(self, end: int) -> str | None:
        if self.step >= self.task.total_steps:
            return "finished"
        if self._out_of_patience():
            return f"stopped early: {self.settings.early_stop} validations without improvement"
        return f"stopped at step {end} as asked" if self.step >= end else None

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.task.total_steps

    def _out_of_patience(self) -> bool:
        if self.settings.early_stop is None or not self.validation_losses:
            return False
        best = self.validation_losses.index(min(self.validation_losses))
        return len(self.validation_losses) - 1 - best >= self.settings.early_stop

    def train_step(self, batches: Sequence[Tensors]) -> dict[str, float]:
        """One optimizer step on these micro-batches of this rank, and its metrics."""
        started = time.perf_counter()
        share = lr_share(self.settings, self.step, self.task.total_steps, self.validation_losses)
        set_lr(self.optimisers, share)
        loss, weight = self.backward(batches)
        norm = self._clip(batches, loss)
        own = self.task.metrics(self.world)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        tokens = self.world.sum(sum(batch["ids"].numel() for batch in batches))
        self.tokens += tokens
        self.unlogged_tokens += tokens
        self.unlogged_seconds += time.perf_counter() - started
        self.step += 1
        return {
            "loss": loss,
            "lr": main_lr(self.settings) * share,
            "lr_share": share,
            "grad_norm": norm,
            self.task.unit.replace(" ", "_"): weight,
            **own,
        }

    def backward(self, batches: Sequence[Tensors]) -> tuple[float, int]:
        """Accumulate the gradient of (sum of losses) / (weight of the whole batch, all ranks), and return that mean and
        that weight. DDP averages over ranks: hence `size`."""
        weight = self.world.sum(sum(self.task.weight(batch) for batch in batches))
        if weight == 0:
            raise UsageError(
                f"step {self.step}: no {self.task.unit} in the whole batch; raise batch_size or look at the data"
            )
        total = 0.0
        for i, batch in enumerate(batches):
            if isinstance(self.wrapped, DistributedDataParallel):
                self.wrapped.require_backward_grad_sync = i == len(batches) - 1
            loss = self._loss(self.wrapped, batch)
            (loss * (self.world.size / weight)).backward()
            total += float(loss.detach())
        return self.world.sum_float(total) / weight, weight

    def _loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        on_device = {name: tensor.to(self.device) for name, tensor in batch.items()}
        with autocast(self.device, self.dtype):
            return self.task.loss(model, on_device)

    def _clip(self, batches: Sequence[Tensors], loss: float) -> float:
        """Clip the gradients to the largest norm allowed and return the norm they had; stop where they are broken."""
        weights = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        size = float(norm)
        if not (math.isfinite(loss) and size <= self.limits.overflow):  # also where it is NaN
            self._stop(f"loss {loss:g}, gradient norm {size:g}", batches)
        if self.step % self.settings.log_every == 0 and (found := gradient_fault(self.model, self.limits)):
            self._stop(f"gradient of {found}", batches, look=False)
        torch.nn.utils.clip_grads_with_norm_(weights, self.settings.clip, norm)
        return size

    def _stop(self, what: str, batches: Sequence[Tensors], look: bool = True) -> None:
        """Name the tensor (`look` for it), keep the batch, raise. Nothing of this step is saved."""
        if look:
            forwards = [functools.partial(self._loss, self.model, batch) for batch in batches]
            what += f"; {diagnose(self.model, self.limits, forwards)}"
        path = self.out.with_name(f"{self.out.name}.unstable-step-{self.step}-rank-{self.world.rank}.safetensors")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, {f"{i}.{name}": t for i, batch in enumerate(batches) for name, t in batch.items()})
            kept = f"the batch is in {path}"
        except OSError as error:
            kept = f"the batch could not be kept in {path} ({error.strerror})"
        raise InstabilityError(f"step {self.step}: {what}; {kept}; lower the learning rate, or raise max_abs")

    def _validate(self) -> tuple[dict[str, float], bool]:
        """Metrics on held-out data and whether the loss is the lowest so far."""
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.dtype):
            metrics = self.task.validate(self.model, self.world)
        self.model.train()
        if "val_loss" not in metrics:
            return {}, False
        loss = metrics["val_loss"]
        if not math.isfinite(loss):
            raise InstabilityError(f"step {self.step}: the validation loss is {loss:g}; lower the learning rate")
        self.validation_losses.append(loss)
        improved = loss < self.best_loss
        if improved:
            self.best_loss, self.best_step = loss, self.step
        return metrics, improved

    def _log(self, events: Events, metrics: dict[str, float], batches: Sequence[Tensors]) -> None:
        if found := first_fault(self.model.named_parameters(), self.limits):
            self._stop(f"weight {found}", batches, look=False)
        per_second = self.unlogged_tokens / self.unlogged_seconds
        self.unlogged_tokens, self.unlogged_seconds = 0, 0.0
        peak = peak_flops(self.device)
        flops = per_second * self.model.config.flops_per_token()
        if self.world.is_main:
            events.log(
                self.step,
                **metrics,
                tokens=self.tokens,
                tokens_per_second=round(per_second, 1),
                mfu=flops / (peak * self.world.size) if peak else None,
                peak_memory=peak_memory(self.device),
            )

    def _save(self, events: Events, improved: bool) -> None:
        if found := first_fault(self.model.named_parameters(), self.limits):
            raise InstabilityError(
                f"step {self.step}: weight {found}; this state is not saved; lower the learning rate"
            )
        if self.world.is_main:
            events.save(self.state(), self.model if improved and self.settings.keep_best else None)
        self.saved_step = self.step
        self.world.barrier()

    def state(self) -> State:
        """Everything a run needs to go on exactly; all ranks hold the same weights and draw from the same cursor."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in state_tensors(self.optimisers).items()}
        tensors |= {f"rng.{name}": tensor for name, tensor in rng_state(self.device).items()}
        tensors |= {f"task.{name}": tensor for name, tensor in self.task.tensors().items()}
        values = {
            "step": self.step,
            "tokens": self.tokens,
            "cursor": self.task.cursor(),
            "validation_losses": self.validation_losses,
            "best_step": self.best_step,
            "last": self.last,
        }
        return State(self.step, tensors, values)

    def restore(self, state: State) -> None:
        """Go on where `state` was. Raises EvidenceError where it is the state of another run."""

        def part(prefix: str) -> Tensors:
            return {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}

        try:
            self.model.load_state_dict(part("weights."), strict=True)
            load_state_tensors(self.optimisers, part("optimiser."))
            set_rng_state(part("rng."), self.device)
            self.step, self.tokens = state.values["step"], state.values["tokens"]
            self.validation_losses = list(state.values["validation_losses"])
            self.best_step, self.last = state.values["best_step"], dict(state.values["last"])
            cursor = state.values["cursor"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise EvidenceError(f"the saved state fits another run ({str(error).splitlines()[0]})") from None
        self.task.seek(cursor, part("task."))
        self.best_loss = min(self.validation_losses, default=math.inf)
        self.saved_step = self.step

    def preflight(self, example: str) -> list[str]:
        """What a careful person looks at before a run, and how long it will take. Changes nothing."""
        cursor, tensors = self.task.cursor(), self.task.tensors()
        started = time.perf_counter()
        batch = self.task.next_batch()
        fetching = (time.perf_counter() - started) / self.task.batches_per_fetch
        self.task.seek(cursor, tensors)
        weight = self.task.weight(batch)
        with torch.no_grad():
            for _ in range(2):  # the first pass also pays for warming up
                started = time.perf_counter()
                loss = float(self._loss(self.model, batch)) / max(1, weight)
                seconds = time.perf_counter() - started
        steps = self.task.total_steps - self.step
        left = steps * self.accumulate * (fetching + 3 * seconds)  # a backward pass costs two forward passes
        return [
            f"example: {example}",
            f"first micro-batch: {'x'.join(map(str, batch['ids'].shape))} tokens, {weight:,} {self.task.unit}",
            f"loss at step {self.step}: {loss:.4f} ({self.task.expected})",
            *describe_groups(self.optimisers),
            f"device {self.device}, {str(self.dtype).removeprefix('torch.')}, {torch.get_num_threads()} thread(s), "
            f"{self.world.size} rank(s), {self.accumulate} micro-batch(es) a step",
            f"{steps} steps, about {f'{left / 60:.1f} min' if left >= 60 else f'{left:.0f} s'} without validation",
        ]
