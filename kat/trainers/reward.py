"""The reward model's stage: Bradley-Terry on pairs, drawn by a schedule or weighed by density, never both."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kat.data.encoded import PairData
from kat.model.reward import RewardModel, pad_right
from kat.runs.settings import RewardSettings
from kat.runtime import World
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.loop import Task, Tensors, micro_batches
from kat.trainers.protocol import Job

CENTRING_PAIRS = 256  # whose mean score becomes 0


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(N,) −log P(chosen preferred) = softplus(−(r_c − r_r)) of scores (N,) each. Bradley and Terry 1952."""
    return F.softplus(rejected - chosen)


class RewardTask(Task):
    """Pairs by schedule; see kat.trainers.loop.Task.

    A batch holds B chosen rows, then their B rejected ones: "ids" (2B, T), "last" (2B,), "weights" (B,). With loss
    weights w (sum 1 over the n pairs of the data) a pair's loss counts n · w times and the sum is divided by the
    number of pairs B: the expected gradient is that of the weighted data set, whatever the batch size or the ranks.
    """

    unit = "pairs"
    expected = "ln 2 = 0.6931"

    def __init__(self, job: Job, tokenizer: Tokenizer, world: World) -> None:
        assert isinstance(job.settings, RewardSettings) and isinstance(job.train, PairData)
        assert job.schedule is not None
        self.settings, self.world, self.tokenizer, self.data = job.settings, world, tokenizer, job.train
        assert job.validation is None or isinstance(job.validation, PairData)
        self.held_out = job.validation
        place = {name: i for i, name in enumerate(job.train.names)}
        self.draws = [place[name] for name in job.schedule.ids]  # index of the pair, draw by draw
        self.total_steps = len(self.draws) // job.settings.batch_size
        self.micro, _ = micro_batches(job.settings, world.size)
        weights = job.loss_weights
        self.weights = (
            torch.ones(len(job.train)) if weights is None else torch.from_numpy(weights * len(weights)).float()
        )
        self.drawn = 0  # of the schedule, by all ranks

    def next_batch(self) -> Tensors:
        start = self.drawn + self.world.rank * self.micro
        self.drawn += self.world.size * self.micro
        return self._batch(self.data, self.draws[start : start + self.micro])

    def _batch(self, data: PairData, pairs: list[int]) -> Tensors:
        rows = [data.chosen[i] for i in pairs] + [data.rejected[i] for i in pairs]
        ids, last = pad_right(rows, self.tokenizer.pad_id)
        weights = self.weights[pairs] if data is self.data else torch.ones(len(pairs))
        return {"ids": ids, "last": last, "weights": weights}

    def weight(self, batch: Tensors) -> int:
        return len(batch["weights"])

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        chosen, rejected = model(batch["ids"], batch["last"]).chunk(2)
        return (batch["weights"] * bradley_terry(chosen, rejected)).sum()

    def metrics(self, world: World) -> dict[str, float]:
        return {}

    def validate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Mean loss, accuracy (a tie is half right) and margin on held-out pairs, each rank a share of them."""
        if self.held_out is None:
            return {}
        device = next(model.parameters()).device
        wanted = min(self.settings.validation_rows, len(self.held_out))
        mine = list(range(world.rank, wanted, world.size))
        loss = right = margin = 0.0
        for start in range(0, len(mine), self.micro):
            batch = self._batch(self.held_out, mine[start : start + self.micro])
            chosen, rejected = model(batch["ids"].to(device), batch["last"].to(device)).double().chunk(2)
            loss += float(bradley_terry(chosen, rejected).sum())
            right += float(((chosen > rejected).double() + (chosen == rejected).double() / 2).sum())
            margin += float((chosen - rejected).sum())
        loss, right, margin = (world.sum_float(value) / wanted for value in (loss, right, margin))
        return {"val_loss": loss, "val_accuracy": right, "val_margin": margin}

    def cursor(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def seek(self, cursor: dict[str, Any], tensors: Tensors) -> None:
        self.drawn = cursor["drawn"]

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Centre the scores on the training pairs: only differences were trained, and a reward is read by itself."""
        assert isinstance(model, RewardModel)
        model.eval()
        total, n = 0.0, min(CENTRING_PAIRS, len(self.data))
        for start in range(0, n, self.micro):
            batch = self._batch(self.data, list(range(start, min(start + self.micro, n))))
            total += float(model(batch["ids"].to(model.device), batch["last"].to(model.device)).double().sum())
        model.centre(total / (2 * n))

    def example(self) -> str:
        """The first pair that is drawn."""
        first = self.draws[0]
        chosen, rejected = (self.tokenizer.decode(rows[first]) for rows in (self.data.chosen, self.data.rejected))
        return f"chosen {chosen[-300:]} · rejected {rejected[-300:]}"
