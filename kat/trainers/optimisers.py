"""Parameter groups. Each weight is in exactly one; `initial_lr` is the peak that a schedule multiplies."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kat.model.gpt import GPT
from kat.runs.settings import TrainSettings

ADAM_BETAS = (0.8, 0.95)  # nanochat's, for embedding and head
ADAM_EPS = 1e-10
MOMENTUM = 0.95


def build_optimisers(model: GPT, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW + Muon, or AdamW alone with decay on weights that have two dimensions."""
    optimisers = _muon(model, settings) if settings.optimizer == "muon" else [_adamw(model, settings)]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


def _muon(model: GPT, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """nanochat's split: Muon for the matrices of the blocks, AdamW for embedding, head and anything with one dimension.

    The AdamW rates were tuned at width 768 and scale with its inverse square root.
    """
    scale = (model.config.n_embd / 768) ** -0.5
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.model.layers.parameters() if p.ndim != 2]
    groups = [
        {"params": list(model.lm_head.parameters()), "lr": settings.unembedding_lr * scale, "name": "head"},
        {
            "params": list(model.model.embed_tokens.parameters()),
            "lr": settings.embedding_lr * scale,
            "name": "embedding",
        },
    ]
    if vectors:
        groups.append(
            {"params": vectors, "lr": settings.unembedding_lr * scale, "name": "vectors", "weight_decay": 0.0}
        )
    adamw = torch.optim.AdamW(groups, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=settings.weight_decay, fused=True)
    muon = torch.optim.Muon(
        [{"params": matrices, "name": "matrices"}],
        lr=settings.matrix_lr,
        momentum=MOMENTUM,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="original",
    )
    return [adamw, muon]


def _adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay, "name": "matrices"}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0, "name": "vectors"})
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)


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


def main_lr(settings: TrainSettings) -> float:
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
