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
    underflow: float = 1.1754944e-38


def has_nan(x: Tensor) -> bool:
    """Any NaN in x."""
    return bool(torch.isnan(x).any())


def has_inf(x: Tensor) -> bool:
    """Any infinity in x."""
    return bool(torch.isinf(x).any())


def overflows(x: Tensor, limit: float) -> bool:
    """Any finite |value| above the limit."""
    return bool(((x.abs() > limit) & torch.isfinite(x)).any())


def underflows(x: Tensor, limit: float) -> bool:
    """x has non-zero values and every one is smaller than the limit: its information is about to vanish."""
    size = x[x != 0].abs()
    return bool(size.numel()) and bool((size < limit).all())


def fault(x: Tensor, limits: Limits) -> str | None:
    """What is wrong with x, in a word, or None."""
    if has_nan(x):
        return "NaN"
    if has_inf(x):
        return "Inf"
    if overflows(x, limits.overflow):
        return f"overflow (|x| > {limits.overflow:g})"
    if underflows(x, limits.underflow):
        return f"underflow (0 < |x| < {limits.underflow:g} everywhere)"
    return None


def first_fault(named: Iterable[tuple[str, Tensor | None]], limits: Limits) -> str | None:
    """`name: fault` of the first broken tensor, or None."""
    for name, tensor in named:
        if tensor is not None and (what := fault(tensor, limits)):
            return f"{name}: {what}"
    return None


def diagnose(model: nn.Module, limits: Limits, *forward_args: Tensor, **forward_kwargs: object) -> str:
    """Find where it began: weights first, then the first module whose output is broken, then gradients."""
    if found := first_fault(model.named_parameters(), limits):
        return f"weight {found}"
    broken: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if not broken and isinstance(output, Tensor) and (what := fault(output.detach(), limits)):
                broken.append(f"output of {name}: {what}")

        return hook

    handles = [module.register_forward_hook(watch(name or "model")) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(*forward_args, **forward_kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if broken:
        return broken[0]
    if found := first_fault(((n, p.grad) for n, p in model.named_parameters()), limits):
        return f"gradient of {found}"
    return "the loss alone: weights, module outputs and gradients are in range"
