"""`trl:reward` is RewardTrainer, `trl:grpo` GRPOTrainer, each on a tiny random model.

What a subject is given goes into trl's own methods: a text through its preparation of a data set, completions through
`rollout_func`, log-probabilities in the place of its forward pass. What comes out is what trl would train on.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from kat.trainers.trl_model import sequence_classifier
from kat.verify.adapters import native
from kat.verify.adapters.trl import step_metrics
from kat.verify.adapters.trl_subject import BOS, EOS, PAD, TrlSubject, quiet, tiny_model, tiny_tokenizer
from kat.verify.subject import Message, Preference, Rollout, Traits

LONGEST = 16  # tokens of a completion
LONGEST_PAIR = 256  # tokens of a prompt and a response
AGGREGATION = {"dapo": "token-mean", "bnpo": "token-mean", "grpo": "sequence-mean", "dr_grpo": "dr-grpo"}


def make_reward(seed: int = 0, tiny: bool = True, **overrides: Any) -> "RewardSubject":
    """overrides: anything that RewardConfig takes."""
    return RewardSubject(seed, overrides)


def make_grpo(seed: int = 0, tiny: bool = True, **overrides: Any) -> "GRPOSubject":
    """overrides: `model` ("llama" or "nanochat"), `micro_batches` of a step, and anything that GRPOConfig takes."""
    return GRPOSubject(seed, overrides.pop("model", "llama"), overrides)


class RewardSubject(TrlSubject):
    """A prompt is a list of messages, a response a text.

    transformers' NanoChat with a scalar head, on kat's tokenizer and chat template.
    """

    name = "trl-reward"

    def __init__(self, seed: int, overrides: Mapping[str, Any]) -> None:
        import transformers

        trl = importlib.import_module("trl")
        with quiet():
            args = trl.RewardConfig(**self.arguments(seed, {"max_length": None, **overrides}))
            native.tiny_tokenizer().save(Path(self._folder.name))
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder.name, local_files_only=True)
            transformers.set_seed(seed)
            config = transformers.NanoChatConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=LONGEST_PAIR,
                pad_token_id=tokenizer.pad_token_id,
            )
            config.num_labels = 1
            pair = ([{"role": "user", "content": "ask"}], "river", "stone")
            trainer = trl.RewardTrainer(
                sequence_classifier()(config),
                args=args,
                train_dataset=_pairs([pair] * 8),
                processing_class=tokenizer,
            )
            self.begin(trainer)

    @property
    def traits(self) -> Traits:
        """Of kat's tokenizer; the model reads rows of any length."""
        tokenizer = self.trainer.processing_class
        ids = {"pad_id": tokenizer.pad_token_id, "bos_id": tokenizer.bos_token_id, "eos_ids": (tokenizer.eos_token_id,)}
        return replace(super().traits, vocab=len(tokenizer), max_len=LONGEST_PAIR, special_ids=(), **ids)

    def score(self, prompt: Sequence[Message], response: str) -> float:
        return self._scores([(prompt, response, response)])[0]

    def score_pair(self, prompt: Sequence[Message], a: str, b: str) -> float:
        """The margin of a over b, from one batch."""
        chosen, rejected = self._scores([(prompt, a, b)])
        return chosen - rejected

    def reward_step(self, micro_batches: Sequence[Sequence[Preference]]) -> Mapping[str, float]:
        log = self.step([self._batch(pairs) for pairs in micro_batches])
        return {**step_metrics(log), "accuracy": log["accuracy"], "margin": log["margin"]}

    def _batch(self, pairs: Sequence[Preference]) -> dict[str, Tensor]:
        trainer = self.trainer
        with quiet():
            data = trainer._prepare_dataset(_pairs(pairs), trainer.processing_class, trainer.args, "train")
        names = ("chosen_ids", "rejected_ids")
        return trainer.data_collator([{name: row[name] for name in names} for row in data])

    @torch.no_grad()
    def _scores(self, pairs: Sequence[Preference]) -> list[float]:
        _, outputs = self.trainer.compute_loss(self.model, self._batch(pairs), return_outputs=True)
        return outputs.logits[:, 0].tolist()


class GRPOSubject(TrlSubject):
    """Prompts and completions are lists of ids; a rollout's tensors are (N, T), groups one after another."""

    name = "trl-grpo"
    rl_variants: Sequence[Mapping[str, Any]] = (
        {"loss_type": "grpo", "scale_rewards": "batch", "temperature": 0.5, "epsilon_high": 0.28, "micro_batches": 2},
        {"loss_type": "dr_grpo", "scale_rewards": "none", "temperature": 1.3, "use_bias_correction_kl": False},
        {"micro_batches": 3, "beta": 0.2, "epsilon": 0.1},
    )

    def __init__(self, seed: int, model: str, overrides: Mapping[str, Any]) -> None:
        from datasets import Dataset

        trl = importlib.import_module("trl")
        self._given: dict[str, Any] = {}
        overrides = dict(overrides)
        self.micro_batches = overrides.pop("micro_batches", 1)
        with quiet():
            arguments = {"max_completion_length": LONGEST, "beta": 0.04, "num_generations": 4, **overrides}
            args = trl.GRPOConfig(**self.arguments(seed, arguments))
            folder = Path(self._folder.name) / "initial"  # trl reads its reference from where the model came from
            tiny_model(model, seed).save_pretrained(folder)
            trainer = trl.GRPOTrainer(
                str(folder),
                args=args,
                reward_funcs=lambda reward, **_: reward,
                train_dataset=Dataset.from_dict({"prompt": ["0"] * 8}),
                processing_class=tiny_tokenizer(),
                rollout_func=lambda prompts, trainer: dict(self._given),
            )
            self.begin(trainer)

    @property
    def traits(self) -> Traits:
        args = self.trainer.args
        kl = "loss_k3_weighted" if args.use_bias_correction_kl else "loss_k3"
        return replace(
            super().traits,
            aggregation=AGGREGATION[args.loss_type],
            advantage_scale=self.trainer.scale_rewards,
            clip_low=self.trainer.epsilon_low,
            clip_high=self.trainer.epsilon_high,
            kl=kl if args.beta else "none",
            kl_coef=args.beta,
            old_logprobs="recomputed",  # by the model that has sampled, which is still the same
            temperature=args.temperature,
            max_new_tokens=args.max_completion_length,
        )

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        return self.model(input_ids=ids, attention_mask=attention_mask, position_ids=position_ids).logits

    def rl_setup(self) -> dict[str, dict[str, Tensor]]:
        return {"policy": self.model.state_dict(), "reference": self.trainer.ref_model.state_dict()}

    def rollout(self, prompts: Sequence[Sequence[int]], n: int, seed: int) -> Rollout:
        """n completions of each prompt by trl's own sampling. trl stores no log-probabilities: it computes those of the
        model that has sampled."""
        import transformers

        transformers.set_seed(seed)
        heads = [list(prompt) for prompt in prompts for _ in range(n)]
        with quiet():
            completions, _ = self.trainer._generate_single_turn(heads, None, {}, n)
        ids = torch.full((len(heads), max(map(len, completions))), PAD)
        mask, logprobs = torch.zeros(ids.shape, dtype=torch.long), torch.zeros(ids.shape)
        for i, (head, completion) in enumerate(zip(heads, completions, strict=True)):
            ids[i, : len(completion)] = torch.tensor(completion)
            mask[i, : len(completion)] = 1
            logprobs[i, : len(completion)] = self.completion_logprobs(head, completion, self.trainer.temperature)
        return {"prompt_ids": heads, "completion_ids": ids, "mask": mask, "logprobs": logprobs}

    @torch.no_grad()
    def completion_logprobs(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], temperature: float
    ) -> Tensor:
        """(T,) of the completion's tokens, by the head that trl puts on the model for this temperature."""
        from trl.trainer.utils import add_fused_lm_head

        trainer, ids = self.trainer, torch.tensor([[*prompt_ids, *completion_ids]])
        forward = self.model.forward
        try:
            add_fused_lm_head(self.model, temperature=temperature, outputs=("log_probs", "entropy"))
            return trainer._get_per_token_logps_and_entropies(
                self.model, ids, torch.ones_like(ids), len(completion_ids)
            )[0][0]
        finally:
            self.model.forward = forward

    def advantages(self, rewards: Tensor) -> Tensor:
        """(P, G) advantages of rewards (P, G)."""
        n = rewards.numel()
        logprobs = torch.zeros(n, 2)
        given = {"prompt_ids": [[BOS]] * n, "completion_ids": torch.tensor([[5, EOS]] * n), "logprobs": logprobs}
        self._give({**given, "mask": torch.ones(n, 2)}, rewards)
        self.model.train()
        made = self.trainer._generate_and_score_completions([{"prompt": "0"} for _ in range(n)])
        self.trainer._metrics["train"].clear()  # the next step's log is of that step
        self.model.eval()
        return made["advantages"].view(rewards.shape)

    def policy_loss(
        self, logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """trl's loss of these log-probabilities (N, T), as if its forward pass had given them."""
        trainer, ids = self.trainer, torch.full(mask.shape, 5)
        prompt = torch.full((len(mask), 1), BOS)
        inputs = {
            "prompt_ids": prompt,
            "prompt_mask": torch.ones_like(prompt),
            "completion_ids": ids,
            "completion_mask": mask.long(),
            "old_per_token_logps": old,
            "ref_per_token_logps": ref,
            "advantages": advantages,
            "num_items_in_batch": mask.sum(),
        }
        trainer._metrics["train"].clear()
        trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
        forward = mock.Mock(return_value=(logprobs, torch.zeros_like(logprobs), None))
        self.model.train()
        with mock.patch.object(trainer, "_get_per_token_logps_and_entropies", forward):
            loss = trainer._compute_loss(self.model, inputs)
        self.model.eval()
        logs = trainer._metrics["train"]
        return loss, {"kl": logs["kl"][0], "clip_fraction": logs["clip_ratio/region_mean"][0]}

    def rl_step(self, rollout: Rollout, rewards: Tensor) -> Mapping[str, float]:
        """One optimizer step on the rollout, with rewards (P, G) of its rows in their order."""
        self._give(rollout, rewards)
        rows, k = rewards.numel(), self.micro_batches
        self.trainer.args.per_device_train_batch_size = rows // k
        self.trainer.args.steps_per_generation = k
        log = self.step([[{"prompt": "0"} for _ in range(rows)]] * k)
        return {**step_metrics(log), "reward": log["reward"], "kl": log["kl"], "entropy": log["entropy"]}

    def _give(self, rollout: Rollout, rewards: Tensor) -> None:
        """Let the next rollout that trl asks for be this one."""
        self.trainer.num_generations = rewards.size(1)
        self.trainer.args.steps_per_generation = 1
        counted = [row.bool() for row in rollout["mask"]]
        self._given = {
            "prompt_ids": [list(ids) for ids in rollout["prompt_ids"]],
            "completion_ids": [ids[row].tolist() for ids, row in zip(rollout["completion_ids"], counted, strict=True)],
            "logprobs": [values[row].tolist() for values, row in zip(rollout["logprobs"], counted, strict=True)],
            "reward": rewards.flatten().tolist(),
        }


def _pairs(pairs: Sequence[Preference]) -> Any:
    from datasets import Dataset

    def answer(text: str) -> list[Message]:
        return [{"role": "assistant", "content": text}]

    return Dataset.from_list(
        [{"prompt": list(prompt), "chosen": answer(a), "rejected": answer(b)} for prompt, a, b in pairs]
    )
