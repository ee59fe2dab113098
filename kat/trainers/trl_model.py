"""kat's model as trl sees it: transformers' NanoChat over the very same parameters, and one optimizer for all of them.

Nothing is copied in either direction: what trl trains is what kat samples from, validates and saves.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kat.errors import EvidenceError, UsageError
from kat.model.checkpoint import PROBE_TOLERANCE, probe_ids
from kat.model.gpt import GPT
from kat.model.reward import RewardModel


def twin_of(model: GPT | RewardModel, folder: Path) -> Any:
    """NanoChatForCausalLM, or one with a scalar head, whose parameters are `model`'s own.

    `folder` is the checkpoint that the model was loaded from: trl reads its reference model from there. UsageError
    where transformers computes another model, EvidenceError where the logits differ for any other reason.
    """
    import transformers

    gpt = model.gpt if isinstance(model, RewardModel) else model
    if gpt.config.rope_table_dtype != "float32":
        raise UsageError(
            f"--trainer trl: {folder} declares {gpt.config.rope_table_dtype} rotary tables and transformers computes "
            "float32 ones; use --trainer native"
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    wanted = [weight.requires_grad for weight in model.parameters()]
    parameters: dict[str, torch.Tensor] = dict(gpt.named_parameters())
    if isinstance(model, RewardModel):
        config.num_labels = 1
        del parameters["lm_head.weight"]
        parameters["score.weight"] = model.head.weight
        twin = sequence_classifier()(config)
    else:
        twin = transformers.NanoChatForCausalLM(config)
    twin.load_state_dict(parameters, strict=True, assign=True)  # a Parameter is taken as it is
    twin.to(gpt.device)
    for weight, trained in zip(model.parameters(), wanted, strict=True):
        weight.requires_grad_(trained)
    _check_hidden(gpt, twin, folder)
    return twin.train()


def sequence_classifier() -> Any:
    """transformers has no NanoChatForSequenceClassification: this is it."""
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.nanochat.modeling_nanochat import NanoChatPreTrainedModel

    return type("NanoChatForSequenceClassification", (GenericForSequenceClassification, NanoChatPreTrainedModel), {})


@torch.no_grad()
def _check_hidden(gpt: GPT, twin: Any, folder: Path) -> None:
    ids = probe_ids(gpt.config).to(gpt.device)
    difference = float((gpt.hidden(ids) - twin.model(ids, use_cache=False).last_hidden_state).abs().max())
    if not difference <= PROBE_TOLERANCE[torch.float32]:
        raise EvidenceError(
            f"--trainer trl: transformers gives {folder} other hidden states than kat (max difference {difference:.2g})"
        )


class Combined(torch.optim.Optimizer):
    """kat's optimisers (Muon and AdamW) as the one that transformers' Trainer steps.

    The rates are those of their own groups, which kat sets before each step; what a scheduler does to this one's groups
    changes nothing.
    """

    def __init__(self, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimisers = list(optimisers)
        groups = [{"params": group["params"]} for one in optimisers for group in one.param_groups]
        super().__init__(groups, {"lr": 1.0})

    def step(self, closure: Any = None) -> Any:
        for one in self.optimisers:
            one.step()
