"""allenai/open-instruct: the warm-up of its PPO trainer."""

from pathlib import Path
from types import SimpleNamespace

import torch
from lift import passage
from transformers import get_scheduler

from kat.verify.subject import Traits


class Warmup:
    """The lines of ppo2.py that make the scheduler, for warm_up_steps given and warmup_ratio left at 0."""

    PEAK, WARMUP, TOTAL = 1e-3, 4, 20

    def __init__(self, checkout: str) -> None:
        self.lines = passage(
            Path(checkout, "open_instruct/ppo2.py"),
            None,
            "num_scheduler_steps =",
            "warm_up_steps =",
            "if args.warmup_ratio",
            "scheduler = get_scheduler(",
        )
        self.traits = Traits(
            name="open-instruct ppo2",
            lr_peak=self.PEAK,
            lr_final=0.0,
            warmup_steps=self.WARMUP,
            total_steps=self.TOTAL,
        )

    def lr(self, step: int) -> float:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=self.PEAK)
        args = SimpleNamespace(
            num_training_steps=self.TOTAL,
            num_epochs=1,
            num_mini_batches=1,
            warm_up_steps=self.WARMUP,
            warmup_ratio=0.0,
            lr_scheduler_type="linear",
        )
        trainer = SimpleNamespace(optimizer=optimizer)
        made = self.lines({"args": args, "self": trainer, "get_scheduler": get_scheduler})
        for _ in range(step):
            optimizer.step()
            made["scheduler"].step()
        return optimizer.param_groups[0]["lr"]


def warmup(seed: int = 0, tiny: bool = True, *, checkout: str) -> Warmup:
    return Warmup(checkout)
