"""Parameter groups. Each weight is in exactly one; `initial_lr` is the peak that a schedule multiplies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kat.model.gpt import GPT
from kat.model.reward import RewardModel
from kat.runs.settings import LoopSettings, RewardSettings

ADAM_BETAS = (0.8, 0.95)  # nanochat's, for embedding and head
ADAM_EPS = 1e-10
MOMENTUM = 0.95


def build_optimisers(model: GPT | RewardModel, settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """AdamW + Muon, or AdamW alone with decay on weights that have two dimensions. Weights that need no gradient are in
    no group; a reward model's scalar head has a rate of its own under either."""
    gpt, head = (model.gpt, model.head) if isinstance(model, RewardModel) else (model, None)
    optimisers = _muon(gpt, settings) if settings.optimizer == "muon" else _adamw(gpt, settings)
    if head is not None:
        assert isinstance(settings, RewardSettings), "only the reward stage trains a reward model"
        optimisers.append(_adamw_of([_group("reward head", _trained(head), lr=settings.head_lr)], (0.9, 0.95), 1e-8))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


def _muon(model: GPT, settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """nanochat's split: Muon for the matrices of the blocks, AdamW for embedding, head and anything with one dimension.

    The AdamW rates were tuned at width 768 and scale with its inverse square root.
    """
    scale = (model.config.n_embd / 768) ** -0.5
    blocks, decay = _trained(model.model.layers), settings.weight_decay
    groups = [
        _group("head", _trained(model.lm_head), lr=settings.unembedding_lr * scale, weight_decay=decay),
        _group("embedding", _trained(model.model.embed_tokens), lr=settings.embedding_lr * scale, weight_decay=decay),
        _group("vectors", [p for p in blocks if p.ndim != 2], lr=settings.unembedding_lr * scale),
    ]
    optimisers = []
    if any(group["params"] for group in groups):
        optimisers.append(_adamw_of(groups, ADAM_BETAS, ADAM_EPS))
    if matrices := [p for p in blocks if p.ndim == 2]:
        optimisers.append(
            torch.optim.Muon(
                [{"params": matrices, "name": "matrices"}],
                lr=settings.matrix_lr,
                momentum=MOMENTUM,
                weight_decay=decay,
                adjust_lr_fn="original",
            )
        )
    return optimisers


def _adamw(model: GPT, settings: LoopSettings) -> list[torch.optim.Optimizer]:
    weights, lr = _trained(model), settings.lr
    groups = [
        _group("matrices", [p for p in weights if p.ndim >= 2], lr=lr, weight_decay=settings.weight_decay),
        _group("vectors", [p for p in weights if p.ndim < 2], lr=lr),
    ]
    return [_adamw_of(groups, (0.9, 0.95), 1e-8)] if weights else []


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _group(name: str, weights: list[nn.Parameter], *, lr: float, weight_decay: float = 0.0) -> dict[str, Any]:
    return {"params": weights, "lr": lr, "weight_decay": weight_decay, "name": name}


def _adamw_of(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=betas, eps=eps, fused=True)


def describe_groups(optimisers: Sequence[torch.optim.Optimizer]) -> list[str]:
    """A line a group: name, optimiser, number of tensors and weights, peak rate, decay."""
    lines = []
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            weights = sum(p.numel() for p in group["params"])
            lines.append(
                f"{group['name']}: {type(optimiser).__name__}, {len(group['params'])} tensors, {weights:,} weights, "
                f"lr {group['initial_lr']:.3g}, weight decay {group['weight_decay']:g}"
            )
    return lines


def main_lr(settings: LoopSettings) -> float:
    """The peak rate of the blocks' matrices: the one that a log shows."""
    return settings.matrix_lr if settings.optimizer == "muon" else settings.lr


def set_lr(optimisers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Every group's rate becomes its peak times `share`."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * share


def state_tensors(optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Moments and step counts as flat names: `<optimiser>.<weight>.<moment>`."""
    tensors = {}
    for i, optimiser in enumerate(optimisers):
        for weight, moments in optimiser.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"{i}.{weight}.{name}"] = torch.as_tensor(value).detach().cpu()
    return tensors


def load_state_tensors(optimisers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`state_tensors` returned."""
    for i, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, weight, name = key.split(".", 2)
            if int(index) == i:
                state.setdefault(int(weight), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
