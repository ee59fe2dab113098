"""axolotl-ai-cloud/axolotl: what warm-up its settings become."""

from pathlib import Path
from types import SimpleNamespace

import torch
from lift import lift
from transformers import get_scheduler

from kat.verify.subject import Traits


class Warmup:
    """_configure_warmup_and_logging for `warmup_steps: 0`, and transformers' linear schedule with what it gives."""

    PEAK, TOTAL = 1e-3, 200

    def __init__(self, checkout: str) -> None:
        base = Path(checkout, "src/axolotl/core/builders/base.py")
        self.configure = lift(base, "TrainerBuilderBase._configure_warmup_and_logging")
        self.traits = Traits(name="axolotl", lr_peak=self.PEAK, lr_final=0.0, warmup_steps=0, total_steps=self.TOTAL)

    def lr(self, step: int) -> float:
        settings: dict[str, int] = {}
        cfg = SimpleNamespace(warmup_steps=0, warmup_ratio=None, logging_steps=1)
        self.configure(SimpleNamespace(cfg=cfg), self.TOTAL, settings)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=self.PEAK)
        scheduler = get_scheduler(
            "linear", optimizer, num_warmup_steps=settings["warmup_steps"], num_training_steps=self.TOTAL
        )
        for _ in range(step):
            optimizer.step()
            scheduler.step()
        return optimizer.param_groups[0]["lr"]


def warmup(seed: int = 0, tiny: bool = True, *, checkout: str) -> Warmup:
    return Warmup(checkout)
