"""What a trainer is: any object that takes a job and events and leaves a checkpoint.

kat's own trainers share one loop (loop.py); others plug in by the entry point group ``kat.trainers`` or by
``--trainer package.module:Object``.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kat.data.encoded import PairData, PromptData
from kat.data.preferences import Prompt
from kat.data.tokens import TokenData
from kat.density.schedule import Schedule
from kat.errors import UsageError
from kat.model.gpt import GPT
from kat.model.reward import RewardModel
from kat.runs.settings import LoopSettings
from kat.runtime import World


class Reward(Protocol):
    """What GRPO maximises. `identity` names it: what decides its values, hashed; two equal ones are the same reward."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        """One finite number a response; `prompts` are as many as the responses."""


@dataclass(frozen=True)
class Capabilities:
    """What a trainer can do; a job that asks for more is refused before it starts."""

    stages: frozenset[str]
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    exact_resume: bool = True  # without it, an interrupted run can only be started again


@dataclass(frozen=True)
class Job:
    """One stage of training, as plain data.

    Base, mid and SFT bring tokens, the reward stage pairs of ids, GRPO prompts and a reward. The last two draw by
    `schedule`: a uniform and a density arm differ in it (or in `loss_weights`) and in nothing else. `init` is the
    checkpoint folder to start from (None: new weights), `tokenizer` the folder of the tokenizer. The
    tokens come encoded, with their supervision masks. `stop_at` ends the run early without changing its schedule.
    """

    stage: str
    init: Path | None
    tokenizer: Path
    train: TokenData | PairData | PromptData
    validation: TokenData | PairData | None
    settings: LoopSettings
    seed: int
    device: str
    dtype: str
    out: Path
    stop_at: int | None = None
    schedule: Schedule | None = None
    loss_weights: np.ndarray | None = None  # (pairs,) float64, mean 1: the reward stage's losses are multiplied by them
    reward: Reward | None = None


@dataclass(frozen=True)
class State:
    """Everything exact resume needs: tensors (weights, moments, RNG) and JSON (step, cursors, losses so far)."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """Where the checkpoint is, how far the run came and why it ended."""

    folder: Path
    step: int
    stop_reason: str
    metrics: Mapping[str, float | None] = field(default_factory=dict)


class Events(Protocol):
    """Where a trainer reports to while it runs."""

    def start(self, lines: list[str], first_step: int, total: int) -> None:
        """The pre-flight, before the first step."""

    def log(self, step: int, **metrics: float | int | str | None) -> None:
        """Metrics of one step; kept in metrics.jsonl and shown as progress."""

    def save(self, state: State, best: GPT | RewardModel | None = None) -> None:
        """Make `state` the point a killed run resumes from; `best`, if given, is the model with the lowest loss."""

    @property
    def should_stop(self) -> bool:
        """True once the user has asked to stop; the trainer saves and returns."""


class Stage(Protocol):
    """What a stage has to do with its result; kat.trainers.loop.Task is one."""

    total_steps: int

    def finish(self, model: nn.Module) -> None: ...


class Trained(Protocol):
    """A run that has ended, for run_folder.write_result; kat.trainers.loop.Loop is one. The weights after `best_step`
    are where run_folder.save_best puts them."""

    @property
    def model(self) -> GPT | RewardModel: ...
    @property
    def task(self) -> Stage: ...
    @property
    def world(self) -> World: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    step: int
    tokens: int
    validation_losses: list[float]
    best_step: int | None
    last: dict[str, float]


class Trainer(Protocol):
    """Runs one stage."""

    def capabilities(self) -> Capabilities: ...

    def fit(self, job: Job, events: Events, resume: Path | None = None) -> Result: ...


def load_trainer(name: str) -> Trainer:
    """`native`, a name from the entry points `kat.trainers`, or `package.module:Object`."""
    if name == "native":
        from kat.trainers.native import NativeTrainer

        return NativeTrainer()
    known = {point.name: point for point in entry_points(group="kat.trainers")}
    if name in known:
        return known[name].load()()
    module, separator, attribute = name.partition(":")
    if not separator:
        plugins = ", ".join(known) or "an installed plug-in"
        raise UsageError(f"--trainer {name}: unknown; use native, {plugins} or module:Object")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module in the folder where the user stands
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--trainer {name}: cannot be imported ({error})") from None
    return found() if isinstance(found, type) else found
