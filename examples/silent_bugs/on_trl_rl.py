"""huggingface/trl: steps of GRPOTrainer, and the loss of NashMDTrainer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from lift import lift, passage
from torch import Tensor, nn
from toy import WithRollouts

from kat.verify.subject import Traits


def _as_transformers(model: nn.Module) -> Any:
    """Called as a causal model of transformers is."""

    def forward(input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0) -> Any:
        return SimpleNamespace(logits=model(input_ids, attention_mask)[:, -logits_to_keep:])

    return forward


def _accelerator() -> Any:
    """One process."""
    return SimpleNamespace(device="cpu", process_index=0, gather_for_metrics=lambda x: x, gather=lambda x: x)


class Grpo(WithRollouts):
    """compute_loss and _get_per_token_logps of GRPOTrainer, behind its own lines that make advantages.

    Each rollout is used for one step, so the ratio is that of the policy to itself.
    """

    def __init__(self, checkout: str, seed: int, temperature: float) -> None:
        super().__init__(seed, temperature)
        file, utils = Path(checkout, "trl/trainer/grpo_trainer.py"), Path(checkout, "trl/trainer/utils.py")
        select = lift(utils, "selective_log_softmax", torch=torch, F=F)
        names = ("GRPOTrainer.compute_loss", "GRPOTrainer._get_per_token_logps")
        self.parts = lift(file, *names, torch=torch, selective_log_softmax=select)
        makes = "_generate_and_score_completions"
        if f"def {makes}" not in file.read_text(encoding="utf-8"):
            makes = "_prepare_inputs"
        lines = ("mean_grouped_rewards =", "std_grouped_rewards =", "advantages = (")
        self.lines = passage(file, f"GRPOTrainer.{makes}", *lines)
        self.trainer = SimpleNamespace(
            beta=0.04,
            epsilon=0.2,
            num_iterations=1,
            temperature=temperature,
            accelerator=_accelerator(),
            control=SimpleNamespace(should_evaluate=False),
            _metrics=MagicMock(),
        )
        self.trainer._get_per_token_logps = self._logprobs
        self.traits: Traits = self.rl_traits("trl GRPO", old_logprobs="recomputed")

    def _logprobs(self, *arguments: Any) -> Tensor:
        return self.parts._get_per_token_logps(self.trainer, *arguments)

    @torch.no_grad()
    def completion_logprobs(self, prompt_ids: Any, completion_ids: Any, temperature: float) -> Tensor:
        self.trainer.temperature = temperature
        ids = torch.tensor([[*prompt_ids, *completion_ids]])
        found = self._logprobs(_as_transformers(self.model), ids, torch.ones_like(ids), len(completion_ids))[0]
        self.trainer.temperature = self.temperature
        return found

    def rl_step(self, rollout: Any, rewards: Tensor) -> dict[str, float]:
        prompt_ids, prompt_mask = self.stacked(rollout["prompt_ids"])
        ids, mask = rollout["completion_ids"], rollout["mask"]
        group = SimpleNamespace(num_generations=rewards.size(1))
        inputs = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": ids, "completion_mask": mask}
        inputs["advantages"] = self.lines({"self": group, "rewards": rewards.flatten()})["advantages"]
        whole, attention = torch.cat([prompt_ids, ids], dim=1), torch.cat([prompt_mask, mask], dim=1)
        with torch.no_grad():
            reference = _as_transformers(self.reference)
            inputs["ref_per_token_logps"] = self._logprobs(reference, whole, attention, ids.size(1))
        return self.step(self.parts.compute_loss(self.trainer, _as_transformers(self.model), inputs))


def grpo(seed: int = 0, tiny: bool = True, *, checkout: str) -> Grpo:
    """At temperature 1, where two later fixes change nothing."""
    return Grpo(checkout, seed, 1.0)


def grpo_tempered(seed: int = 0, tiny: bool = True, *, checkout: str) -> Grpo:
    """At the default temperature of GRPOConfig."""
    return Grpo(checkout, seed, 0.9)


class GrpoWhole(WithRollouts):
    """compute_loss of GRPOTrainer when it still did everything: it tokenizes prompts, generates, masks, judges.

    What it asks of others gives the rollout: the prompts are ids, the model generates the rollout's completions, the
    end token stands where a completion's mask ends, and the reward function returns the rewards.
    """

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        self.given: dict[str, Any] = {}
        self.compute_loss = lift(
            Path(checkout, "trl/trainer/grpo_trainer.py"),
            "GRPOTrainer.compute_loss",
            torch=torch,
            super=lambda: SimpleNamespace(_prepare_inputs=lambda inputs: inputs),
            maybe_apply_chat_template=lambda example, tokenizer: example,
            is_conversational=lambda example: False,
            unwrap_model_for_generation=lambda model, accelerator: _Entered(model),
            PreTrainedModel=nn.Module,
        )
        self.trainer = SimpleNamespace(
            beta=0.04,
            args=SimpleNamespace(use_vllm=False),
            max_prompt_length=None,
            generation_config=None,
            ref_model=_as_transformers(self.reference),
            reward_funcs=[self._judge],
            reward_processing_classes=[None],
            accelerator=_accelerator(),
            _metrics=MagicMock(),
        )
        self.traits: Traits = self.rl_traits("trl GRPO", old_logprobs="recomputed", aggregation="sequence-mean")

    def _judge(self, prompts: Any, completions: Any) -> list[float]:
        return self.given["rewards"]

    def rl_step(self, rollout: Any, rewards: Tensor) -> dict[str, float]:
        trainer, groups = self.trainer, rewards.size(1)
        ids, last = rollout["completion_ids"], rollout["mask"].sum(1, keepdim=True) - 1
        self.given = {"rewards": rewards.flatten().tolist()}
        trainer.num_generations = groups

        def tokenizer(texts: Any, **_: Any) -> dict[str, Tensor]:
            heads, attention = self.stacked(texts)
            return {"input_ids": heads, "attention_mask": attention}

        def generate(input_ids: Tensor, **_: Any) -> Tensor:
            return torch.cat([input_ids.repeat_interleave(groups, dim=0), ids], dim=1)

        model = _Model(_as_transformers(self.model), generate)
        ends = torch.full_like(ids, -1).scatter(1, last, ids.gather(1, last))
        trainer.processing_class = _Tokenizer(tokenizer, ends)
        prompts = [{"prompt": ids} for ids in rollout["prompt_ids"][::groups]]
        return self.step(self.compute_loss(trainer, model, prompts))


class _Model:
    def __init__(self, forward: Any, generate: Any) -> None:
        self.forward, self.generate = forward, generate

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.forward(*arguments, **named)


class _Entered:
    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> Any:
        return self.model

    def __exit__(self, *_: object) -> None: ...


class _Tokenizer:
    def __init__(self, call: Any, eos_token_id: Tensor) -> None:
        self.call, self.eos_token_id = call, eos_token_id

    def __call__(self, texts: Any, **options: Any) -> Any:
        return self.call(texts, **options)

    def batch_decode(self, ids: Tensor, **_: Any) -> list[str]:
        return [""] * len(ids)


def grpo_whole(seed: int = 0, tiny: bool = True, *, checkout: str) -> GrpoWhole:
    return GrpoWhole(checkout, seed)


class Scaling:
    """The lines of GRPOTrainer that make advantages of rewards, by scale_rewards."""

    rl_variants = ({"scale": "batch"}, {"scale": "none"})

    def __init__(self, checkout: str, scale: str) -> None:
        file = Path(checkout, "trl/trainer/grpo_trainer.py")
        lines = ("mean_grouped_rewards =", "advantages = rewards", "if self.scale_rewards")
        self.lines = passage(file, "GRPOTrainer._generate_and_score_completions", *lines)
        self.scale = scale
        self.traits = Traits(name="trl GRPO", advantage_scale=scale)

    def advantages(self, rewards: Tensor) -> Tensor:
        trainer = SimpleNamespace(num_generations=rewards.size(1), scale_rewards=self.scale)
        return self.lines({"self": trainer, "rewards": rewards.flatten()})["advantages"].view(rewards.shape)


def scaling(seed: int = 0, tiny: bool = True, *, checkout: str, scale: str = "group") -> Scaling:
    return Scaling(checkout, scale)


class NashMd:
    """_compute_losses of NashMDTrainer: REINFORCE with the advantage probability − 1/2, summed over tokens.

    That sum is declared as "dr-grpo" with a length of 1, the divergence by the estimate that has the gradient of
    KL(π‖ref): of its value the loss says nothing.
    """

    def __init__(self, checkout: str) -> None:
        file = Path(checkout, "trl/trainer/nash_md_trainer.py")
        self.losses = lift(file, "NashMDTrainer._compute_losses", torch=torch)
        self.trainer = SimpleNamespace(beta=0.1)
        self.traits = Traits(
            name="trl Nash-MD", aggregation="dr-grpo", max_new_tokens=1, kl="loss_k2", kl_coef=self.trainer.beta
        )

    def policy_loss(self, logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor) -> Any:
        own, other = logprobs.masked_fill(mask == 0, 0.0), ref.masked_fill(mask == 0, 0.0)
        return self.losses(self.trainer, own, other, advantages + 0.5)[0], {}


def nash_md(seed: int = 0, tiny: bool = True, *, checkout: str) -> NashMd:
    return NashMd(checkout)
