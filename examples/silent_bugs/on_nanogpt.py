"""karpathy/nanoGPT: the accumulation loop of train.py."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from lift import passage
from torch import Tensor
from toy import WithToy, padded

from kat.verify.subject import Traits


class Accumulation(WithToy):
    """The loop over micro-steps in train.py, with batch_size = 1 and as many micro-steps as there are rows.

    Each micro-step's loss is the mean over its row, as in nanoGPT's model, so a step's is the mean over rows.
    """

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        self.loop = passage(Path(checkout, "train.py"), None, "for micro_step in range(gradient_accumulation_steps)")
        self.traits = Traits(
            name="nanoGPT",
            vocab=self.VOCAB,
            max_len=self.MAX_LEN,
            positions="absolute",
            loss_agg="sequence-mean",
            supervised="all",
        )

    def collate(self, rows: Any) -> dict[str, Tensor]:
        ids, mask, attention = padded(rows, 0)
        return {"ids": ids, "mask": mask, "attention_mask": attention}

    def loss(self, batch: Any) -> Tensor:
        losses = [self._row(x, y)[1] for x, y in self._rows(batch)]
        return torch.stack(losses).mean()

    def accumulate(self, micro_batches: Any) -> None:
        rows = [row for batch in micro_batches for row in self._rows(batch)]
        queue = iter([*rows[1:], (None, None)])
        self.loop(
            {
                "gradient_accumulation_steps": len(rows),
                "ddp": False,
                "ctx": contextlib.nullcontext(),
                "model": self._row,
                "get_batch": lambda split: next(queue),
                "scaler": SimpleNamespace(scale=lambda loss: loss),
                "X": rows[0][0],
                "Y": rows[0][1],
            }
        )

    def _rows(self, batch: Any) -> list[tuple[Tensor, Tensor]]:
        targets = batch["ids"].masked_fill(batch["mask"] == 0, -1)
        lengths = batch["attention_mask"].sum(1).tolist()
        return [(x[None, : n - 1], y[None, 1:n]) for x, y, n in zip(batch["ids"], targets, lengths, strict=True)]

    def _row(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)


def accumulation(seed: int = 0, tiny: bool = True, *, checkout: str) -> Accumulation:
    return Accumulation(checkout, seed)
