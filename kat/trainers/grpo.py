"""GRPO on the shared loop: roll out, take `epochs_per_rollout` passes over what was sampled, roll out again."""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kat.data.encoded import PromptData
from kat.errors import EvidenceError, UsageError
from kat.model.gpt import GPT
from kat.runs.settings import GrpoSettings
from kat.runtime import World, autocast
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.loop import Task, Tensors, micro_batches
from kat.trainers.policy_loss import entropy, exact_kl, loss_sum, loss_weight, next_kl_coef, token_losses
from kat.trainers.protocol import Job
from kat.trainers.rollout import CollapseError, Rollout, completion_logits, make_rollout, seed_of

TENSORS = ("ids", "mask", "old", "ref", "advantages")
UNITS = {"token-mean": "completion tokens", "sequence-mean": "completions", "dr-grpo": "token slots"}
MOST_ENTROPY = 0.99  # share of ln V above which a policy writes noise


class GrpoTask(Task):
    """Prompts by schedule, completions from the policy, the clipped objective; see kat.trainers.loop.Task."""

    expected = "near 0: advantages cancel within a group, but for their lengths"

    def __init__(self, job: Job, model: GPT, tokenizer: Tokenizer, world: World, dtype: torch.dtype) -> None:
        assert isinstance(job.settings, GrpoSettings) and isinstance(job.train, PromptData)
        assert job.schedule is not None and job.reward is not None
        s = job.settings
        if s.prompts_per_rollout % world.size:
            raise UsageError(f"prompts_per_rollout {s.prompts_per_rollout} is no multiple of {world.size} ranks")
        self.settings, self.world, self.tokenizer, self.seed, self.dtype = s, world, tokenizer, job.seed, dtype
        self.unit = UNITS[s.aggregation]
        self.policy, self.reward, self.schedule = model, job.reward, job.schedule
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        place = {name: i for i, name in enumerate(job.train.names)}
        self.draws = [place[name] for name in job.schedule.ids]  # index of the prompt, draw by draw
        self.data = job.train
        self.total_steps = s.steps
        self.micro, self.accumulate = micro_batches(s, world.size)
        self.steps_per_epoch = s.prompts_per_rollout * s.completions // s.batch_size
        self.batches_per_fetch = self.steps_per_epoch * s.epochs_per_rollout * self.accumulate
        self.n_rollouts = 0  # made so far
        self.n_batches = 0  # of the newest rollout, consumed so far
        self.n_flat = 0  # rollouts without any reward variance in a row
        self.kl_coef = s.kl_coef  # of the rollout that is being learned from
        self.next_kl_coef = s.kl_coef  # of the one after it
        self.rollout: Rollout | None = None
        self._reset()

    def _reset(self) -> None:
        self.sums = dict.fromkeys(("tokens", "clipped", "entropy"), 0.0)  # of the step under way, this rank's

    def next_batch(self) -> Tensors:
        if self.rollout is None:
            self.rollout = self.roll_out()
        s = self.settings
        step, i = divmod(self.n_batches, self.accumulate)
        epoch, step = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, self.n_rollouts, epoch]).permutation(len(self.rollout.ids))
        start = step * s.batch_size + (i * self.world.size + self.world.rank) * self.micro
        rows = torch.from_numpy(order[start : start + self.micro])
        batch = {name: getattr(self.rollout, name)[rows] for name in TENSORS}
        used = int(batch["mask"].any(dim=0).nonzero().max()) + 1 if batch["mask"].any() else 2
        batch |= {name: batch[name][:, :used] for name in TENSORS if batch[name].ndim == 2}
        self.n_batches += 1
        self.last_metrics = self.rollout.metrics
        if self.n_batches == self.batches_per_fetch:
            self.rollout, self.n_batches = None, 0
        return batch

    def roll_out(self) -> Rollout:
        """Completions of the schedule's next prompts. CollapseError where nothing can be learned from them."""
        s, k = self.settings, self.settings.prompts_per_rollout
        first = self.n_rollouts * k
        self.kl_coef = self.next_kl_coef
        chosen = self.draws[first : first + k]
        with autocast(self.policy.device, self.dtype):  # sampled as it is trained, or the ratios start away from 1
            rollout = make_rollout(
                self.policy,
                self.reference,
                self.tokenizer,
                [self.data.prompts[i] for i in chosen],
                [self.data.ids[i] for i in chosen],
                [seed_of(self.seed, first + j) for j in range(k)],
                self.reward,
                s,
                self.kl_coef,
                self.world,
            )
        self.n_rollouts += 1
        seen = np.bincount(self.draws[: first + k])
        rollout.metrics["kl_coef"] = self.kl_coef
        rollout.metrics["distinct_prompts"] = int((seen > 0).sum())
        rollout.metrics["effective_prompts"] = float(seen.sum() ** 2 / (seen**2).sum())
        self._check_collapse(rollout.metrics)
        if s.kl_target is not None:
            self.next_kl_coef = next_kl_coef(self.kl_coef, rollout.metrics["kl"], s.kl_target, s.kl_horizon)
        return rollout

    def _check_collapse(self, metrics: dict[str, float]) -> None:
        where = f"rollout {self.n_rollouts}"
        self.n_flat = self.n_flat + 1 if metrics["zero_variance_groups"] == 1 else 0
        if self.n_flat >= self.settings.collapse_patience:
            raise CollapseError(
                f"{where}: collapsed: for {self.n_flat} rollouts every group had equal rewards, so nothing can be "
                f"learned (reward {metrics['reward']:.3g}); is the reward a constant, or the policy one answer?"
            )
        if metrics["kl"] > self.settings.max_kl:
            raise CollapseError(
                f"{where}: collapsed: {metrics['kl']:.3g} nats a token from the initial policy (max_kl "
                f"{self.settings.max_kl:g}); lower peak or raise kl_coef"
            )

    def check_entropy(self, nats: float) -> None:
        """Raise CollapseError where the policy's entropy (nats a token) is that of one answer, or of noise."""
        most = MOST_ENTROPY * math.log(self.policy.config.vocab_size)
        if not self.settings.min_entropy <= nats <= most:
            raise CollapseError(
                f"rollout {self.n_rollouts}: collapsed: entropy {nats:.3g} nats a token, outside "
                f"[{self.settings.min_entropy:g}, {most:.3g}]; lower peak or raise kl_coef"
            )

    def weight(self, batch: Tensors) -> int:
        return loss_weight(batch["mask"], self.settings.aggregation, self.settings.max_new_tokens)

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        s, ids, mask = self.settings, batch["ids"], batch["mask"]
        logits = completion_logits(model, ids, mask, s.temperature)  # (n, V)
        logprobs = torch.log_softmax(logits, dim=-1).gather(1, ids[mask][:, None])[:, 0]
        exact = None
        if s.kl_in == "exact" and self.kl_coef:
            with torch.no_grad():
                ref_logits = completion_logits(self.reference, ids, mask, s.temperature)
            exact = exact_kl(logits, ref_logits)
        losses, clipped = token_losses(
            logprobs,
            batch["old"][mask],
            batch["ref"][mask],
            batch["advantages"][:, None].expand(mask.shape)[mask],
            clip_low=s.clip_low,
            clip_high=s.clip_high,
            kl_in=s.kl_in,
            kl_coef=self.kl_coef,
            exact_kl=exact,
        )
        if torch.is_grad_enabled():  # a look before the run is no part of a step
            self.sums["tokens"] += len(losses)
            self.sums["clipped"] += int(clipped.sum())
            self.sums["entropy"] += float(entropy(logits.detach()).sum())
        spread = torch.zeros(mask.shape, dtype=losses.dtype, device=losses.device).masked_scatter(mask, losses)
        return loss_sum(spread, mask, s.aggregation)

    def metrics(self, world: World) -> dict[str, float]:
        total = {name: world.sum_float(value) for name, value in self.sums.items()}
        self._reset()
        nats = total["entropy"] / total["tokens"]
        self.check_entropy(nats)
        return {**self.last_metrics, "entropy": nats, "clip_fraction": total["clipped"] / total["tokens"]}

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        return {}

    def cursor(self) -> dict[str, Any]:
        return {
            "rollouts": self.n_rollouts,
            "batches": self.n_batches,
            "flat": self.n_flat,
            "kl_coef": [self.kl_coef, self.next_kl_coef],
            "metrics": self.rollout.metrics if self.rollout else None,
        }

    def tensors(self) -> Tensors:
        """The rollout that is half consumed. The reference is the checkpoint that the job starts from."""
        return {f"rollout.{name}": getattr(self.rollout, name) for name in TENSORS} if self.rollout else {}

    def seek(self, cursor: dict[str, Any], tensors: Tensors) -> None:
        self.n_rollouts, self.n_batches = cursor["rollouts"], cursor["batches"]
        self.n_flat = cursor["flat"]
        self.kl_coef, self.next_kl_coef = cursor["kl_coef"]
        self.rollout = None
        if cursor["metrics"] is not None:
            try:
                parts = {name: tensors[f"rollout.{name}"] for name in TENSORS}
            except KeyError as error:
                raise EvidenceError(f"the saved state has no {error.args[0]}: it stopped within a rollout") from None
            self.rollout = Rollout(**parts, metrics=cursor["metrics"])
        self._reset()

    def example(self) -> str:
        """The first prompt that is drawn."""
        return self.tokenizer.decode(self.data.ids[self.draws[0]])
