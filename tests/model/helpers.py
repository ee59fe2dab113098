"""Tiny models with random weights in every tensor: zero-initialised projections would hide most bugs."""

import functools
import random

import torch

from kat.model.config import GPTConfig
from kat.model.gpt import GPT
from kat.tokenizer.bpe import Tokenizer, train_tokenizer

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


@functools.cache
def tiny_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """Trained on generated words, some outside ASCII."""
    generator = random.Random(0)
    syllables = ["ka", "to", "ri", "mé", "ßu", "漢", "lo", "ne"]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(200)]
    return train_tokenizer([" ".join(generator.choices(words, k=30)) for _ in range(40)], vocab_size)


def transformers_twin(model: GPT):
    """transformers' NanoChat with the same weights."""
    import transformers

    special = {"bos_id": model.config.vocab_size - 9, "eos_id": model.config.vocab_size - 5}
    config = model.config.to_hf(**special, pad_id=model.config.vocab_size - 1, dtype="float32")
    twin = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**config)).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin
