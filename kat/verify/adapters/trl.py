"""trl's trainers as subjects: `trl:sft` is SFTTrainer on a tiny random model, with its defaults as far as a CPU goes.
`trl:reward` and `trl:grpo` are in trl_preferences.py.

Rows go through trl's own data preparation and collator.
"""

import copy
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kat.errors import UsageError
from kat.verify.adapters.trl_subject import BOS, EOS, MAX_LEN, TrlSubject, quiet, tiny_model, tiny_tokenizer
from kat.verify.subject import Batch, Make, Row


def open_make(stage: str) -> Make:
    """The function that makes subjects of a stage."""
    if stage not in ("sft", "reward", "grpo"):
        raise UsageError(f"trl:{stage}: no such stage; there is trl:sft, trl:reward and trl:grpo")
    if missing := [name for name in ("trl", "accelerate") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"trl:{stage}: {missing[0]} is not installed; pip install 'kat[trl]'")
    if stage != "sft":
        preferences = importlib.import_module("kat.verify.adapters.trl_preferences")
        return preferences.make_reward if stage == "reward" else preferences.make_grpo
    return make


def make(seed: int = 0, tiny: bool = True, **overrides: Any) -> "SFTSubject":
    """overrides: `model` ("llama" or "nanochat"), and anything that SFTConfig takes."""
    return SFTSubject(seed, overrides.pop("model", "llama"), overrides)


class SFTSubject(TrlSubject):
    """See kat.verify.subject.Subject; batches carry trl's input_ids and labels, and the contract's names for them."""

    name = "trl-sft"

    def __init__(self, seed: int, model: str, overrides: Mapping[str, Any]) -> None:
        trl = importlib.import_module("trl")
        self._prepared: dict[str, list[dict[str, list[int]]]] = {}
        with quiet():
            args = trl.SFTConfig(**self.arguments(seed, {"max_length": MAX_LEN, **overrides}))
            trainer = trl.SFTTrainer(
                tiny_model(model, seed),
                args=args,
                train_dataset=_dataset([([BOS, 5, 6, EOS], [0, 0, 1, 1])] * 8),
                processing_class=tiny_tokenizer(),
            )
            self.begin(trainer)

    # Model

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        return self.model(input_ids=ids, attention_mask=attention_mask, position_ids=position_ids).logits

    # Data

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pre-tokenised rows through SFTTrainer's preparation of a data set (labels, truncation) and its collator."""
        key = repr(rows)
        if key not in self._prepared:
            trainer = self.trainer
            with quiet():
                data = trainer._prepare_dataset(
                    _dataset(rows), trainer.processing_class, trainer.args, trainer.args.packing, None, "train"
                )
            self._prepared[key] = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in data]
        if not self._prepared[key]:
            raise ValueError("SFTTrainer drops every row: none has a supervised token")
        batch = self.trainer.data_collator(self._prepared[key])
        mask = (batch["labels"] != -100).long()
        return {**batch, "ids": batch["input_ids"], "mask": mask}

    # Training

    def loss(self, batch: Batch) -> Tensor:
        return self.trainer.compute_loss(self.model, _inputs(batch))

    def eval_loss(self, batch: Batch) -> float:
        return float(self.trainer.prediction_step(self.model, _inputs(batch), prediction_loss_only=True)[0])

    def accumulate(self, micro_batches: Sequence[Batch]) -> None:
        trainer = self.trainer
        samples, count = trainer.get_batch_samples(
            iter([_inputs(batch) for batch in micro_batches]), len(micro_batches), torch.device("cpu")
        )
        trainer.current_gradient_accumulation_steps = len(samples)
        for inputs in samples:
            trainer.training_step(self._wrapped, inputs, count)
        self.model.eval()

    def train_step(self, micro_batches: Sequence[Batch]) -> Mapping[str, float]:
        return step_metrics(self.step([_inputs(batch) for batch in micro_batches]))


def step_metrics(log: Mapping[str, Any]) -> dict[str, float]:
    """The contract's names for what trl logs of a step."""
    return {"loss": log["loss"], "lr": log["learning_rate"], "grad_norm": log["grad_norm"]}


def _dataset(rows: Sequence[Row]) -> Any:
    import datasets

    return datasets.Dataset.from_dict(
        {"input_ids": [list(ids) for ids, _ in rows], "assistant_masks": [list(mask) for _, mask in rows]}
    )


def _inputs(batch: Batch) -> Batch:
    """What trl's collator made, without our names for it; a copy, because the trainer adds to it."""
    return {name: copy.copy(value) for name, value in batch.items() if name not in ("ids", "mask")}
