"""What really happens in a training step: gradients at the moment of the update, rates, and the number of updates.

torch calls global hooks around the step of every optimizer, whoever wrote it and however deep inside a trainer it is.
A subject that updates its weights without a torch optimizer shows nothing here; checks then say so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kat.verify.check import NotApplicable
from kat.verify.lab import Named, parameters

Group = dict[str, Any]


@dataclass(frozen=True)
class Update:
    """One call of an optimizer's step: its groups (names in place of the tensors) and the gradients it found."""

    optimiser: torch.optim.Optimizer
    groups: list[Group]
    gradients: Named

    def group_of(self, name: str) -> Group:
        return next(group for group in self.groups if name in group["params"])


@contextmanager
def watched(
    subject: Any, edit: Callable[[torch.optim.Optimizer, str, Tensor], None] | None = None
) -> Iterator[list[Update]]:
    """The updates of the subject's parameters, as they come. edit(optimiser, name, weight) may change weight.grad in
    place, after everything that the trainer does to it."""
    names = {id(weight): name for name, weight in parameters(subject).items()}
    updates: list[Update] = []

    def before_step(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        groups, found = [], {}
        for group in optimiser.param_groups:
            own = {names[id(p)]: p for p in group["params"] if id(p) in names}
            groups.append({**{k: plain(v) for k, v in group.items() if k != "params"}, "params": list(own)})
            for name, weight in own.items():
                if edit is not None:
                    edit(optimiser, name, weight)
                if weight.grad is not None:
                    found[name] = weight.grad.detach().clone()
        if any(group["params"] for group in groups):
            updates.append(Update(optimiser, groups, found))

    handle = register_optimizer_step_pre_hook(before_step)
    try:
        yield updates
    finally:
        handle.remove()


@contextmanager
def gradient_hook(subject: Any, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Every gradient that backward makes goes through `change` on its way into .grad."""

    def hook(name: str) -> Callable[[Tensor], Tensor]:
        return lambda gradient: change(name, gradient)

    handles = [w.register_hook(hook(name)) for name, w in parameters(subject).items() if w.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def dropouts() -> Iterator[list[float]]:
    """The rates of dropout that are applied, 0 where a layer is in evaluation mode, as they come: by torch's layers and
    functions, attention's too."""
    rates: list[float] = []
    good, attention = F.dropout, F.scaled_dot_product_attention

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        rates.append(p if training else 0.0)
        return good(input, p, training, inplace)

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        rates.append(float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)))
        return attention(*args, **kwargs)

    F.dropout, F.scaled_dot_product_attention = dropout, attend
    try:
        yield rates
    finally:
        F.dropout, F.scaled_dot_product_attention = good, attention


def gradients_of(updates: list[Update]) -> Named:
    """The gradients that the optimizers of one training step found."""
    if not updates:
        raise NotApplicable("train_step does not update its parameters with a torch optimizer")
    return {name: gradient for update in updates for name, gradient in update.gradients.items()}


def norm(gradients: Named) -> float:
    """The global L2 norm."""
    lengths = [float(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in gradients.values()]
    return sum(length**2 for length in lengths) ** 0.5


def plain(value: Any) -> Any:
    """A one-element tensor (a rate may be one) as a number."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
