"""Tiny models with random weights in every tensor: zero-initialised projections would hide most bugs."""

import torch

from kat.model.config import GPTConfig
from kat.model.gpt import GPT

TINY = {"vocab_size": 97, "sequence_len": 48, "n_layer": 3, "n_embd": 48, "n_head": 6, "n_kv_head": 2}


def random_model(seed: int = 0, std: float = 0.15, **overrides) -> GPT:
    """A GPT whose context matters: changing one token moves later logits by far more than any tolerance."""
    model = GPT(GPTConfig(**{**TINY, **overrides}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, std, generator=generator)
    return model.eval()


def random_ids(rows: int, length: int, seed: int = 0, vocab: int = 97) -> torch.Tensor:
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))
