"""CarperAI/trlx: what its PPO trainer feeds the controller of the divergence's coefficient."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lift import lift, passage
from torch import Tensor
from toy import WithRollouts

from kat.verify.subject import Traits


class Controlled(WithRollouts):
    """A step of AcceleratePPOTrainer on one batch: its loss, an optimizer step and post_backward_callback.

    The divergence from the reference is reported as the trainer has it, and where it has none by the same formula: k3,
    a mean over all positions of the padded batch. Values are zero, which only the advantages see.
    """

    TARGET, HORIZON, ROWS = 0.1, 120, 12

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        file = Path(checkout, "trlx/trainer/accelerate_ppo_trainer.py")
        methods, utils = Path(checkout, "trlx/models/modeling_ppo.py"), Path(checkout, "trlx/utils/modeling.py")
        given: dict[str, Any] = {"torch": torch, "np": np}
        for name in ("get_global_statistics", "whiten", "get_tensor_stats", "flatten_dict", "logprobs_of_labels"):
            given[name] = lift(utils, name, **given, F=F, dist=torch.distributed, MutableMapping=dict)
        names = ("PPOConfig.loss", "PPOConfig.get_advantages_and_returns")
        parts = lift(methods, *names, **given)
        method = SimpleNamespace(gamma=1.0, lam=0.95, cliprange=0.2, cliprange_value=0.2, vf_coef=1.0)
        method.loss = lambda **values: parts.loss(method, **values)
        method.get_advantages_and_returns = lambda *values: parts.get_advantages_and_returns(method, *values)
        trainer = "AcceleratePPOTrainer"
        self.parts = lift(file, f"{trainer}.loss", f"{trainer}.post_backward_callback", **given)
        try:
            self.measure = passage(file, f"{trainer}.make_experience", "log_ratio = (logprobs", "self.mean_kl =")
        except LookupError:  # nothing measures it
            self.measure = _measure
        self.logprobs_of_labels = given["logprobs_of_labels"]
        self.trainer = SimpleNamespace(
            accelerator=SimpleNamespace(device="cpu"),
            config=SimpleNamespace(
                method=method,
                model=SimpleNamespace(model_arch_type="causal"),
                train=SimpleNamespace(batch_size=self.ROWS),
            ),
            tokenizer=SimpleNamespace(pad_token_id=self.PAD),
            kl_ctl=lift(methods, "AdaptiveKLController", np=np)(0.05, self.TARGET, self.HORIZON),
            model=self._model,
        )
        design = {"kl": "reward_k1", "kl_coef": 0.05, "kl_target": self.TARGET, "kl_horizon": self.HORIZON // self.ROWS}
        self.traits: Traits = self.rl_traits("trlx PPO", advantage_scale="none", **design)

    def _model(self, ids: Tensor, attention_mask: Tensor, return_dict: bool) -> Any:
        logits = self.model(ids, attention_mask)
        return SimpleNamespace(logits=logits, value=0 * logits[..., 0])

    def rl_step(self, rollout: Any, rewards: Tensor) -> dict[str, float]:
        trainer, ids, mask = self.trainer, rollout["completion_ids"], rollout["mask"]
        heads, seen = self.stacked(rollout["prompt_ids"])
        tokens, attention = torch.cat([heads, ids], dim=1), torch.cat([seen, mask], dim=1)
        with torch.no_grad():
            logprobs, ref_logprobs = (
                self.logprobs_of_labels(model(tokens, attention)[:, :-1], tokens[:, 1:])
                for model in (self.model, self.reference)
            )
        names = {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "attention_mask": attention, "device": "cpu"}
        made = self.measure({"self": trainer, "torch": torch, **names})
        start, coefficient = heads.size(1) - 1, trainer.kl_ctl.value
        penalised = -coefficient * (made["log_ratio"][:, start:]) * mask
        penalised = penalised.scatter_add(1, mask.sum(1, keepdim=True) - 1, rewards.reshape(-1, 1))
        own = logprobs[:, start:]
        fields = {"query_tensors": heads, "response_tensors": ids, "logprobs": own, "values": torch.zeros_like(own)}
        loss, _ = self.parts.loss(trainer, SimpleNamespace(**fields, rewards=penalised))
        reported = {"loss": self.step(loss)["loss"], "kl_coef": coefficient, "kl": float(made["self"].mean_kl)}
        self.parts.post_backward_callback(trainer)
        return reported


def _measure(names: dict[str, Any]) -> dict[str, Any]:
    log_ratio = (names["logprobs"] - names["ref_logprobs"]) * names["attention_mask"][:, :-1]
    names["self"].mean_kl = (log_ratio.exp() - 1 - log_ratio).mean()
    return {**names, "log_ratio": log_ratio}


def controlled(seed: int = 0, tiny: bool = True, *, checkout: str) -> Controlled:
    return Controlled(checkout, seed)
