"""Guards that stop a run before a broken number spreads, and name the tensor it was first seen in."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kat.errors import KatError


class InstabilityError(KatError):
    """A NaN, an infinity, an overflow or an underflow, with the tensor's name."""

    exit_code = 1


@dataclass(frozen=True)
class Limits:
    """What counts as broken: |x| above `overflow`; all non-zero |x| below `underflow` (float32's smallest normal)."""

    overflow: float = 1e8
    underflow: float = torch.finfo(torch.float32).tiny


def fault(x: Tensor, limits: Limits) -> str | None:
    """What is wrong with x, in a word, or None. One pass: the largest |x| says it all."""
    largest = float(x.detach().abs().amax()) if x.numel() else 0.0  # NaN if there is one
    if largest != largest:
        return "NaN"
    if largest == float("inf"):
        return "Inf"
    if largest > limits.overflow:
        return f"overflow (|x| up to {largest:.3g}, limit {limits.overflow:g})"
    if 0 < largest < limits.underflow:
        return f"underflow (no |x| above {largest:.3g}, limit {limits.underflow:.3g})"
    return None


def first_fault(named: Iterable[tuple[str, Tensor | None]], limits: Limits) -> str | None:
    """`name: fault` of the first broken tensor, or None."""
    for name, tensor in named:
        if tensor is not None and (what := fault(tensor, limits)):
            return f"{name}: {what}"
    return None


def gradient_fault(model: nn.Module, limits: Limits) -> str | None:
    """`name: fault` of the broken gradient nearest to the loss: from there it spread to all before it."""
    return first_fault(((name, p.grad) for name, p in reversed(list(model.named_parameters()))), limits)


def diagnose(model: nn.Module, limits: Limits, forwards: Iterable[Callable[[], object]]) -> str:
    """Find where it began: weights first, then the first module whose output is broken, then gradients.

    forwards: calls that run the model on the batches of the step.
    """
    if found := first_fault(model.named_parameters(), limits):
        return f"weight {found}"
    broken: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if not broken and isinstance(output, Tensor) and (what := fault(output, limits)):
                broken.append(f"output of {name}: {what}")

        return hook

    handles = [module.register_forward_hook(watch(name or "model")) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            for forward in forwards:
                forward()
    finally:
        for handle in handles:
            handle.remove()
    if broken:
        return broken[0]
    if found := gradient_fault(model, limits):
        return f"gradient of {found}"
    return "the loss alone: weights, module outputs and gradients are in range"
