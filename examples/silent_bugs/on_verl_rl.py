"""volcengine/verl: its policy loss, and the rollouts of its vLLM worker."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lift import lift, passage
from torch import Tensor
from toy import WithRollouts

from kat.verify.subject import Traits


class PolicyLoss:
    """compute_policy_loss with loss_agg_mode "seq-mean-token-sum", which is "dr-grpo" with a length of 1."""

    def __init__(self, checkout: str) -> None:
        functional = Path(checkout, "verl/utils/torch_functional.py")
        masked = SimpleNamespace(masked_mean=lift(functional, "masked_mean", torch=torch))
        algorithms = Path(checkout, "verl/trainer/ppo/core_algos.py")
        self.compute = lift(algorithms, "agg_loss", "compute_policy_loss", torch=torch, verl_F=masked)
        self.traits = Traits(name="verl policy loss", aggregation="dr-grpo", max_new_tokens=1, kl="none")

    def policy_loss(self, logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor) -> Any:
        loss, clipped, divergence, _ = self.compute.compute_policy_loss(
            old, logprobs, advantages[:, None], mask, cliprange=0.2, loss_agg_mode="seq-mean-token-sum"
        )
        return loss, {"clip_fraction": float(clipped), "approx_kl": float(divergence)}


def policy_loss(seed: int = 0, tiny: bool = True, *, checkout: str) -> PolicyLoss:
    return PolicyLoss(checkout)


class SamplingParams:
    """What vLLM's has of a request."""

    def __init__(self, **given: Any) -> None:
        self.temperature, self.max_tokens, self.seed = 1.0, 16, None
        vars(self).update(given)


class VllmRollout(WithRollouts):
    """generate_sequences of vLLMRollout, with the sampling parameters that its __init__ makes.

    vLLM is a stand-in that samples the toy: a request that has a seed gets a generator of its own, as in vLLM, any
    other draws from the engine's. The rows of a prompt are requests of their own, for the trainer repeats prompts.
    """

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        file = Path(checkout, "verl/workers/rollout/vllm_rollout/vllm_rollout_spmd.py")
        functional = Path(checkout, "verl/utils/torch_functional.py")
        self.parameters = passage(file, "vLLMRollout.__init__", "kwargs = dict(", "for k in config", 'kwargs["n"] =')
        self.generate_sequences = lift(
            file,
            "vLLMRollout.generate_sequences",
            torch=torch,
            np=np,
            TensorDict=lambda values, batch_size: values,
            DataProto=lambda batch, non_tensor_batch: SimpleNamespace(batch=batch),
            get_response_mask=lift(functional, "get_response_mask", torch=torch),
            pad_2d_list_to_length=lift(functional, "pad_2d_list_to_length", torch=torch),
        )
        self.traits: Traits = self.rl_traits("verl vLLM rollout")

    def rollout(self, prompts: Any, n: int, seed: int) -> dict[str, Any]:
        heads = [list(prompt) for prompt in prompts for _ in range(n)]
        config = _Config(response_length=self.LONGEST, calculate_log_probs=True, temperature=1.0, seed=seed)
        made = self.parameters({"config": config, "SamplingParams": SamplingParams, "print": lambda *_: None})
        worker = SimpleNamespace(
            config=config,
            pad_token_id=self.PAD,
            lora_kwargs={},
            sampling_params=SamplingParams(**made["kwargs"]),
            inference_engine=_Engine(self, config.get("seed", 0)),
            update_sampling_params=lambda **_: _Nothing(),
        )
        ids, attention = self.stacked(heads)
        fields = {"input_ids": ids, "attention_mask": attention, "position_ids": (attention.cumsum(1) - 1).clamp(min=0)}
        raw = {"raw_prompt_ids": np.array([*heads, None], dtype=object)[:-1]}
        given = SimpleNamespace(batch=fields, meta_info={"eos_token_id": self.END}, non_tensor_batch=raw)
        batch = self.generate_sequences(worker, given).batch
        mask = batch["attention_mask"][:, ids.size(1) :]
        return {
            "prompt_ids": [row[seen.bool()].tolist() for row, seen in zip(batch["prompts"], attention, strict=True)],
            "completion_ids": batch["responses"],
            "mask": mask,
            "logprobs": batch["rollout_log_probs"] * mask,
        }


class _Config(SimpleNamespace):
    def keys(self) -> Any:
        return vars(self).keys()

    def get(self, name: str, default: Any = None) -> Any:
        return vars(self).get(name, default)


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class _Engine:
    def __init__(self, subject: VllmRollout, seed: int) -> None:
        self.subject, self.generator = subject, torch.Generator().manual_seed(seed)

    def generate(self, prompts: Any, sampling_params: Any, **_: Any) -> list[Any]:
        answers = []
        for prompt in prompts:
            seed = sampling_params.seed
            generator = self.generator if seed is None else torch.Generator().manual_seed(seed)
            ids, logprobs = self.subject.sample(prompt["prompt_token_ids"], generator, sampling_params.temperature)
            known = [{i: SimpleNamespace(logprob=value)} for i, value in zip(ids, logprobs, strict=True)]
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=known)]))
        return answers


def vllm_rollout(seed: int = 0, tiny: bool = True, *, checkout: str) -> VllmRollout:
    return VllmRollout(checkout, seed)
