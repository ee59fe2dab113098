"""Learning-rate schedules: the share of the peak at a step, each a pure function.

Steps count from 0; `total` is the number of steps. The warm-up rises linearly and reaches 1 at step `warmup`; with
warmup 0, step 0 is the peak. `final` is the share that is reached where step == total, one past the last step.
"""

import math
from collections.abc import Sequence

from kat.runs.settings import LoopSettings


def warmup_share(step: int, warmup: int) -> float:
    """(step + 1) / (warmup + 1) during the warm-up, then 1."""
    return min(1.0, (step + 1) / (warmup + 1))


def linear(step: int, total: int, warmup: int, final: float) -> float:
    """Linear decay from 1 after the warm-up to `final`."""
    if step < warmup:
        return warmup_share(step, warmup)
    done = (step - warmup) / max(1, total - warmup)
    return 1.0 + (final - 1.0) * min(1.0, done)


def cosine(step: int, total: int, warmup: int, final: float) -> float:
    """Half a cosine from 1 after the warm-up to `final` (arXiv:1608.03983, without restarts)."""
    if step < warmup:
        return warmup_share(step, warmup)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def wsd(step: int, total: int, warmup: int, final: float, decay_share: float) -> float:
    """Warm-up, stable at 1, linear decay over the last `decay_share` of the steps (arXiv:2404.06395); the decay
    starts no earlier than the end of the warm-up, so that the rate never jumps."""
    if step < warmup:
        return warmup_share(step, warmup)
    decay = max(1, min(round(decay_share * total), total - warmup))
    left = total - step
    return 1.0 if left >= decay else final + (1.0 - final) * max(0, left) / decay


def plateau(losses: Sequence[float], factor: float, patience: int, floor: float) -> float:
    """Product of `factor` once for every `patience` validations in a row that brought no new minimum.

    A pure function of the validation losses so far, so a resumed run needs nothing else.
    """
    share, best, waited = 1.0, math.inf, 0
    for loss in losses:
        if loss < best:
            best, waited = loss, 0
        else:
            waited += 1
            if waited == patience:
                share, waited = max(floor, share * factor), 0
    return share


def lr_share(settings: LoopSettings, step: int, total: int, validation_losses: Sequence[float]) -> float:
    """The multiplier of every learning rate at this step, `settings.peak` included."""
    s = settings
    match s.schedule:
        case "constant":
            share = warmup_share(step, s.warmup_steps)
        case "linear":
            share = linear(step, total, s.warmup_steps, s.final)
        case "cosine":
            share = cosine(step, total, s.warmup_steps, s.final)
        case "wsd":
            share = wsd(step, total, s.warmup_steps, s.final, s.decay_share)
        case "plateau":
            share = warmup_share(step, s.warmup_steps) * plateau(
                validation_losses, s.plateau_factor, s.plateau_patience, s.final
            )
    return s.peak * share
