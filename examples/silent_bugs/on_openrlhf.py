"""OpenRLHF/OpenRLHF: log-probabilities of its actor, and its policy loss."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from lift import lift, passage
from torch import Tensor, nn
from toy import WithRollouts

from kat.verify.subject import Traits


class Actor(WithRollouts):
    """Actor.forward, which gives a rollout its log-probabilities and the training its own."""

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed, temperature=0.7)
        utils = Path(checkout, "openrlhf/models/utils.py")
        log_probs = lift(utils, "log_probs_from_logits", torch=torch, F=F)
        file = Path(checkout, "openrlhf/models/actor.py")
        self.forward_actor = lift(file, "Actor.forward", torch=torch, F=F, log_probs_from_logits=log_probs)
        self.actor = SimpleNamespace(packing_samples=False, temperature=self.temperature, model=self._model)
        self.traits: Traits = self.rl_traits("OpenRLHF actor")

    def _model(self, ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(ids, attention_mask, position_ids)}

    def _logprobs(self, prompts: Any, ids: Tensor, mask: Tensor) -> Tensor:
        heads, attention = self.stacked(prompts)
        whole = torch.cat([heads, ids], dim=1)
        return self.forward_actor(self.actor, whole, ids.size(1), torch.cat([attention, mask], dim=1))

    @torch.no_grad()
    def rollout(self, prompts: Any, n: int, seed: int) -> dict[str, Any]:
        made = super().rollout(prompts, n, seed)
        return {**made, "logprobs": self._logprobs(made["prompt_ids"], made["completion_ids"], made["mask"])}

    @torch.no_grad()
    def completion_logprobs(self, prompt_ids: Any, completion_ids: Any, temperature: float) -> Tensor:
        self.actor.temperature = temperature
        ids = torch.tensor([list(completion_ids)])
        found = self._logprobs([prompt_ids], ids, torch.ones_like(ids))[0]
        self.actor.temperature = self.temperature
        return found


def actor(seed: int = 0, tiny: bool = True, *, checkout: str) -> Actor:
    return Actor(checkout, seed)


def _policy_loss(checkout: str, **design: Any) -> Any:
    masked_mean = lift(Path(checkout, "openrlhf/models/utils.py"), "masked_mean", torch=torch)
    file = Path(checkout, "openrlhf/models/loss.py")
    return lift(file, "PolicyLoss", torch=torch, nn=nn, masked_mean=masked_mean)(**design)


class PolicyLoss:
    """PolicyLoss with its defaults; its ppo_kl is the divergence from the policy that sampled."""

    def __init__(self, checkout: str) -> None:
        self.compute = _policy_loss(checkout)
        self.traits = Traits(name="OpenRLHF PolicyLoss", kl="none")

    def policy_loss(self, logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor) -> Any:
        loss, clipped, divergence = self.compute(logprobs, old, advantages[:, None], mask)
        return loss, {"clip_fraction": float(clipped), "approx_kl": float(divergence)}


def policy_loss(seed: int = 0, tiny: bool = True, *, checkout: str) -> PolicyLoss:
    return PolicyLoss(checkout)


class Gspo(WithRollouts):
    """PolicyLoss of type "gspo", with the lines of RemoteExperienceMaker that make the advantages of "group_norm".

    The old log-probabilities are the actor's own, made anew before the one step on a rollout. Every ratio of GSPO is
    then 1, and its objective has the gradient of the mean over completions of their mean over tokens.
    """

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        self.compute = _policy_loss(checkout, policy_loss_type="gspo")
        maker = Path(checkout, "openrlhf/trainer/ppo_utils/experience_maker.py")
        lines = "rewards = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std("
        self.lines = passage(maker, "RemoteExperienceMaker.compute_advantages_and_returns", lines)
        design = {"old_logprobs": "recomputed", "aggregation": "sequence-mean", "advantage_eps": 1e-9, "kl": "none"}
        self.traits: Traits = self.rl_traits("OpenRLHF GSPO", **design)

    def rl_step(self, rollout: Any, rewards: Tensor) -> dict[str, float]:
        ids, mask = rollout["completion_ids"], rollout["mask"]
        heads, attention = self.stacked(rollout["prompt_ids"])
        logits = self.model(torch.cat([heads, ids], dim=1), torch.cat([attention, mask], dim=1))
        logprobs = logits[:, heads.size(1) - 1 : -1].log_softmax(-1).gather(2, ids[..., None])[..., 0]
        advantages = self.lines({"rewards": rewards})["rewards"].flatten()[:, None].expand_as(logprobs)
        return self.step(self.compute(logprobs, logprobs.detach(), advantages, mask)[0])


def gspo(seed: int = 0, tiny: bool = True, *, checkout: str) -> Gspo:
    return Gspo(checkout, seed)
