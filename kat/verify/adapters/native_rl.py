"""GRPO of the native subject: the task, the rollouts and the loop that `kat train grpo` runs, on the subject's model.

What a check brings takes the place of what the model would have made: completions that of `sample`, log-probabilities
that of the logits. Everything after it is kat's trainer.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from kat.data.encoded import PromptData
from kat.data.preferences import Prompt
from kat.density.schedule import Schedule
from kat.model.decoding import Continuation
from kat.model.gpt import GPT
from kat.runs.settings import GrpoSettings, SftSettings, make_settings
from kat.runtime import World
from kat.tokenizer.bpe import Tokenizer
from kat.trainers import rollout as rollouts
from kat.trainers.grpo import GrpoTask
from kat.trainers.loop import Loop
from kat.trainers.protocol import Job
from kat.verify.subject import Rollout

# The guards that end a run which has collapsed would end checks of untrained models; they are tested elsewhere.
OPEN = {"max_kl": 1e9, "min_entropy": 0.0, "collapse_patience": 1_000_000}
TINY = {"steps": 20, "peak": 0.5, "max_new_tokens": 12, **OPEN}
OWN = frozenset(GrpoSettings.model_fields) - frozenset(SftSettings.model_fields)  # of GRPO alone
RATES = ("lr", "matrix_lr", "embedding_lr", "unembedding_lr", "weight_decay", "clip")
SHARED = ("optimizer", "micro_batch_size", *RATES)

# Together they hold every value of aggregation, scale_rewards and kl_in that is not a default.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"aggregation": "sequence-mean", "scale_rewards": "batch", "kl_in": "loss_k2", "temperature": 0.5, "clip_low": 0.1},
    {"aggregation": "dr-grpo", "scale_rewards": "none", "kl_in": "reward_k1", "temperature": 1.3, "kl_coef": 0.3},
    {"kl_in": "exact", "micro_batch_size": 4, "clip_high": 0.28, "kl_coef": 0.2},
    {"kl_coef": 0.0, "micro_batch_size": 2},
    {"kl_target": 0.02, "kl_horizon": 1, "kl_coef": 0.5},
)


def split(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], GrpoSettings]:
    """Overrides of `make` that are not GRPO's alone, and GRPO's settings with those that are (also) its."""
    mine = {name: value for name, value in overrides.items() if name in OWN or name in SHARED}
    shared = {name: value for name, value in overrides.items() if name not in OWN}
    return shared, make_settings(GrpoSettings, {**TINY, **mine}, "native")


def traits(settings: GrpoSettings) -> dict[str, Any]:
    """The part of the subject's traits that GRPO has."""
    s = settings
    return {
        "aggregation": s.aggregation,
        "advantage_scale": s.scale_rewards,
        "advantage_eps": 1e-4,
        "clip_low": s.clip_low,
        "clip_high": s.clip_high,
        "kl": s.kl_in if s.kl_coef else "none",
        "kl_coef": s.kl_coef,
        "kl_target": s.kl_target,
        "kl_horizon": s.kl_horizon,
        "temperature": s.temperature,
        "max_new_tokens": s.max_new_tokens,
    }


class Given:
    """A reward function that returns what it was given."""

    name = identity = "given"

    def __init__(self, values: Sequence[float] | None = None) -> None:
        self.values = values

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        return [0.0] * len(responses) if self.values is None else self.values


class NativeRL:
    """GRPO that starts from a model; its methods are those of kat.verify.subject.Subject."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, settings: GrpoSettings, seed: int, world: World, out: Path
    ) -> None:
        self.model, self.tokenizer, self.settings, self.world = model, tokenizer, settings, world
        self.task: GrpoTask | None = None
        self.task = self._task([[tokenizer.bos_id]], 2, seed)
        self.loop = Loop(
            model, self.task, self.task.settings, world=world, device=model.device, dtype=torch.float32, out=out
        )
        model.eval()

    def _task(
        self, prompts: Sequence[Sequence[int]], n: int, seed: int, rewards: Sequence[float] | None = None
    ) -> GrpoTask:
        """The task of a run whose next rollout is of these prompts; reference and coefficient are those of the run."""
        rows, micro = len(prompts) * n, self.settings.micro_batch_size
        shape = {"prompts_per_rollout": len(prompts), "completions": n, "batch_size": rows}
        if micro and rows % micro:
            shape["micro_batch_size"] = rows
        settings = self.settings.model_copy(update=shape)
        names = tuple(f"prompt-{i}" for i in range(len(prompts)))
        asked = tuple(Prompt(name, ({"role": "user", "content": name},)) for name in names)
        data = PromptData(asked, tuple(tuple(ids) for ids in prompts))
        job = Job(
            "grpo",
            None,
            Path(),
            data,
            None,
            settings,
            seed,
            "cpu",
            "float32",
            Path("native"),
            schedule=Schedule(names, "uniform", seed, None),
            reward=Given(rewards),
        )
        task = GrpoTask(job, self.model, self.tokenizer, self.world, torch.float32)
        if self.task is not None:
            task.reference, task.next_kl_coef = self.task.reference, self.task.next_kl_coef
        return task

    def rl_setup(self) -> dict[str, dict[str, Tensor]]:
        assert self.task is not None
        return {"policy": self.model.state_dict(), "reference": self.task.reference.state_dict()}

    def rollout(self, prompts: Sequence[Sequence[int]], n: int, seed: int) -> Rollout:
        """What the task rolls out, cut to the completions."""
        made = self._task(prompts, n, seed).roll_out()
        heads = [list(prompt) for prompt in prompts for _ in range(n)]
        width = max(made.ids.size(1) - len(head) for head in heads)
        parts: dict[str, Any] = {
            "prompt_ids": [ids[: len(head)].tolist() for ids, head in zip(made.ids, heads, strict=True)]
        }
        for name, rows in (("completion_ids", made.ids), ("mask", made.mask), ("logprobs", made.old)):
            cut = [row[len(head) :] for row, head in zip(rows, heads, strict=True)]
            fill = self.tokenizer.pad_id if name == "completion_ids" else 0
            parts[name] = torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=fill) for row in cut])
        used = int(parts["mask"].any(0).nonzero().max()) + 1 if parts["mask"].any() else 1
        parts |= {name: parts[name][:, :used] for name in ("completion_ids", "mask", "logprobs")}
        return {**parts, "mask": parts["mask"].long()}

    def completion_logprobs(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], temperature: float
    ) -> Tensor:
        ids = torch.tensor([[*prompt_ids, *completion_ids]])
        mask = torch.arange(ids.size(1))[None] >= len(prompt_ids)
        return rollouts.reference_logprobs(self.model.eval(), ids, mask, temperature)[mask].clone()

    def advantages(self, rewards: Tensor) -> Tensor:
        return rollouts.group_advantages(rewards, self.settings.scale_rewards)

    def policy_loss(
        self, logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The task's loss of a model of two symbols, whose log-probabilities of the chosen one are these."""
        task = self._task([[0]], 2, 0)
        task.reference, task.last_metrics = _two_symbols(ref, task), {}  # type: ignore[assignment]
        before = torch.zeros(len(mask), 1)  # a prompt of one token
        batch = {
            "ids": torch.zeros(len(mask), mask.size(1) + 1, dtype=torch.long),
            "mask": torch.cat([before, mask], dim=1).bool(),
            "old": torch.cat([before, old], dim=1),
            "ref": torch.cat([before, ref], dim=1),
            "advantages": advantages,
        }
        loss = task.loss(_two_symbols(logprobs, task), batch) / task.weight(batch)  # type: ignore[arg-type]
        return loss, {"clip_fraction": task.metrics(self.world)["clip_fraction"]}

    def rl_step(self, rollout: Rollout, rewards: Tensor) -> Mapping[str, float]:
        prompts, n = rollout["prompt_ids"][:: rewards.size(1)], rewards.size(1)
        lengths = rollout["mask"].sum(1).tolist()
        rows = [
            Continuation(tuple(ids[:k]), tuple(values[:k]), "stop" if ids[k - 1] == self.tokenizer.eos_id else "length")
            for ids, values, k in zip(
                rollout["completion_ids"].tolist(), rollout["logprobs"].tolist(), lengths, strict=True
            )
        ]
        groups = [rows[i : i + n] for i in range(0, len(rows), n)]
        task = self._task(prompts, n, self.loop.step, rewards.flatten().tolist())
        with mock.patch.object(rollouts, "sample", return_value=groups):
            task.rollout = task.roll_out()
        self.task = self.loop.task = task
        self.model.train()
        metrics = self.loop.train_step([task.next_batch() for _ in range(task.accumulate)])
        self.model.eval()
        return metrics


def _two_symbols(logprobs: Tensor, task: GrpoTask) -> Callable[..., Tensor]:
    """A model whose first symbol has these log-probabilities (N, T), given what stands before it."""

    def model(ids: Tensor, positions: Tensor) -> Tensor:
        chosen = logprobs[positions[:, :-1]]
        return torch.stack([chosen, torch.log(-torch.expm1(chosen))], dim=-1) * task.settings.temperature  # (n, 2)

    return model
