"""A run by trl: kat's rates before each step; kat's checks, validation, log and end after it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kat.errors import EvidenceError
from kat.model.gpt import GPT
from kat.model.reward import RewardModel
from kat.model.stability import InstabilityError
from kat.runtime import World, autocast
from kat.trainers.grpo import GrpoTask
from kat.trainers.loop import INTERRUPTED
from kat.trainers.native import CausalTask
from kat.trainers.optimisers import build_optimisers, main_lr, set_lr
from kat.trainers.protocol import Events, Job
from kat.trainers.reward import RewardTask
from kat.trainers.run_folder import save_best, training_folder
from kat.trainers.schedules import lr_share

LARGEST_FIRST_KL = 1e-6  # nats a token between the policy and its reference, before the first step
ENTROPY, CLIPPED = "entropy", "clip_ratio/region_mean"  # as trl names them
NAMES = {"entropy": ENTROPY, "clip_fraction": CLIPPED}


@dataclass
class Run:
    """One run: what its callback does before and after each step, and what comes of it; see protocol.Trained."""

    job: Job
    events: Events
    model: GPT | RewardModel
    task: CausalTask | RewardTask | GrpoTask
    device: torch.device
    dtype: torch.dtype
    world: World = field(default_factory=World)
    step: int = 0
    tokens: int = 0
    validation_losses: list[float] = field(default_factory=list)
    best_step: int | None = None
    last: dict[str, float] = field(default_factory=dict)
    reason: str = INTERRUPTED
    rollout_metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimisers = build_optimisers(self.model, self.job.settings)
        self.of_tokens: dict[str, float] = {}  # sums over the step's tokens, of means that trl took over micro-batches
        self.logged = (0, time.perf_counter())  # tokens so far and when, at the last line of the log

    def count_tokens(self, _module: Any, _args: Any, given: Mapping[str, Any]) -> None:
        """A hook on the model: what goes through it in training, padding included."""
        if torch.is_grad_enabled():
            self.tokens += given["input_ids"].numel()

    def weigh(self, means: Mapping[str, Sequence[float]], tokens: int) -> None:
        """Take the newest means of a micro-batch, over so many tokens."""
        for name, value in [("tokens", 1.0), *((name, means[name][-1]) for name in (ENTROPY, CLIPPED))]:
            self.of_tokens[name] = self.of_tokens.get(name, 0.0) + value * tokens

    def before_step(self, step: int) -> None:
        self.share = lr_share(self.job.settings, step, self.task.total_steps, self.validation_losses)
        set_lr(self.optimisers, self.share)

    def after_step(self, step: int, logs: Mapping[str, Any]) -> bool:
        """Take trl's log of the step that was taken; True where it was the last."""
        self.step = step
        self._check(logs)
        s = self.job.settings
        # trl counts a batch of packed rows as one row
        metrics = {
            "loss": logs["loss"],
            "lr": main_lr(s) * self.share,
            "lr_share": self.share,
            "grad_norm": logs["grad_norm"],
            **self.rollout_metrics,
        }
        if isinstance(self.task, GrpoTask):
            total, self.of_tokens = self.of_tokens, {}
            metrics |= {name: total[key] / total["tokens"] for name, key in NAMES.items()}
            self.task.check_entropy(metrics["entropy"])
        if self._is_due(s.validation_every):
            metrics |= self._validate()
        if self._is_due(s.log_every) or step == 1 or "val_loss" in metrics:
            tokens, since = self.logged
            self.logged = (self.tokens, time.perf_counter())
            rate = (self.tokens - tokens) / (self.logged[1] - since)
            self.events.log(step, **metrics, tokens=self.tokens, tokens_per_second=round(rate, 1))
        self.last = metrics
        self.reason = self._reason_to_stop() or INTERRUPTED
        return self.reason != INTERRUPTED or self.events.should_stop

    def _check(self, logs: Mapping[str, Any]) -> None:
        """transformers goes on after a loss or a gradient that is no number: every weight is one then."""
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"])):
            raise InstabilityError(
                f"step {self.step}: loss {logs['loss']:g}, gradient norm {logs['grad_norm']:g}; nothing is saved; "
                "lower the learning rate"
            )
        if self.step == 1 and logs.get("kl", 0.0) > LARGEST_FIRST_KL:
            raise EvidenceError(
                f"--trainer trl: KL {logs['kl']:.3g} before the first step: trl's reference is not the initial model"
            )

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.task.total_steps

    def _validate(self) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.dtype):
            metrics = self.task.validate(self.model, self.world)
        self.model.train()
        if "val_loss" in metrics:
            if not math.isfinite(metrics["val_loss"]):
                raise InstabilityError(f"step {self.step}: the validation loss is {metrics['val_loss']:g}")
            if metrics["val_loss"] < min(self.validation_losses, default=math.inf):
                self.best_step = self.step
                if self.job.settings.keep_best:
                    for old in training_folder(self.job.out).glob("best-*"):
                        old.unlink()
                    save_best(training_folder(self.job.out), self.model, self.step)
            self.validation_losses.append(metrics["val_loss"])
        return metrics

    def _reason_to_stop(self) -> str | None:
        if self.step >= self.task.total_steps:
            return "finished"
        losses, patience = self.validation_losses, self.job.settings.early_stop
        if patience and losses and len(losses) - 1 - losses.index(min(losses)) >= patience:
            return f"stopped early: {patience} validations without improvement"
        end = self.job.stop_at
        return f"stopped at step {end} as asked" if end is not None and self.step >= end else None


def callback_of(run: Run) -> Any:
    """The transformers callback that tells the run of each step."""
    import transformers

    class Report(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.before_step(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            if "loss" in told["logs"] and run.after_step(state.global_step, told["logs"]):
                control.should_training_stop = True

    return Report()
