"""huggingface/accelerate: the generator that a prepared data loader shuffles with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lift import passage
from torch.utils.data import DataLoader

from kat.verify.subject import Traits


class Shuffled:
    """A shuffling DataLoader of 37 numbers after the lines of prepare_data_loader that give it a generator.

    The user's seed is set as accelerate's set_seed does it, with torch.manual_seed; each seed is a run of its own.
    """

    N = 37

    def __init__(self, checkout: str) -> None:
        self.lines = passage(
            Path(checkout, "src/accelerate/data_loader.py"),
            "prepare_data_loader",
            "generator = torch.Generator(",
            "seed = int(",
            "generator.manual_seed(",
            "dataloader.generator = generator",
            "dataloader.sampler.generator = generator",
        )
        self.traits = Traits(name="accelerate", vocab=self.N, n_examples=self.N)

    def batches(self, seed: int, rank: int = 0, world: int = 1, state: Any = None) -> Iterator[dict[str, Any]]:
        if world != 1 or state is not None:
            raise NotImplementedError("one process, from the start")
        kept = torch.get_rng_state()
        torch.manual_seed(seed)
        dataloader = DataLoader(range(self.N), batch_size=1, shuffle=True)
        self.lines({"torch": torch, "dataloader": dataloader})
        drawn = [int(batch) for _ in range(3) for batch in dataloader]
        torch.set_rng_state(kept)
        for k, number in enumerate(drawn):
            ids = torch.tensor([[number, number]])
            yield {"ids": ids, "mask": torch.ones_like(ids), "example_ids": [number], "state": k}


def shuffled(seed: int = 0, tiny: bool = True, *, checkout: str) -> Shuffled:
    return Shuffled(checkout)
