"""Training and decoding speed beside nanochat's own model class and transformers, in one run.

    python benchmarks/speed.py --nanochat PATH [--rounds 7]

PATH is a checkout of nanochat of October 2025 (the last commit of that month), cloned by whoever runs this. Each round
measures every contender once, one after another, so that a busy moment hits all of them; the figure is the median over
rounds of the ratio to the peer. One thread, CPU time, float32, the same weights on both sides.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kat.model.config import GPTConfig
from kat.model.decoding import Sampling, generate
from kat.model.gpt import GPT

CONFIG = GPTConfig(vocab_size=4096, sequence_len=256, n_layer=4, n_embd=256, n_head=4, n_kv_head=4)
BATCH, LENGTH = 8, 256  # training
PROMPT, NEW, TOP_K = 32, 96, 50  # decoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanochat", type=Path, required=True, help="checkout of nanochat, October 2025")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    ours = GPT(CONFIG)
    for weight in ours.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.02)
    theirs, engine = nanochat_twin(arguments.nanochat, ours)
    hf = transformers_twin(ours)

    ids = torch.randint(0, CONFIG.vocab_size, (BATCH, LENGTH))
    targets = torch.randint(0, CONFIG.vocab_size, (BATCH, LENGTH))
    training = {
        "kat": lambda: train(ours, lambda: ours(ids, targets)),
        "nanochat": lambda: train(theirs, lambda: theirs(ids, targets)),
        "transformers": lambda: train(hf, lambda: hf(ids, labels=targets).loss),
    }
    report("training, tokens per CPU second", training, BATCH * LENGTH, arguments.rounds)

    ours.lay_out_for_decoding()  # as the backends do when they open a checkpoint
    prompt = torch.randint(0, CONFIG.vocab_size, (PROMPT,)).tolist()
    for batch in (1, 16):
        decoding = {
            "kat": lambda n=batch: kat_decode(ours, prompt, n),
            "nanochat": lambda n=batch: nanochat_decode(engine, prompt, n),
            "transformers": lambda n=batch: transformers_decode(hf, prompt, n),
        }
        report(f"decoding at batch {batch}, tokens per CPU second", decoding, batch * NEW, arguments.rounds)


def train(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    loss().backward()
    model.zero_grad(set_to_none=True)


def kat_decode(model: GPT, prompt: list[int], n: int) -> None:
    sampling = Sampling(max_new_tokens=NEW, temperature=1.0, top_k=TOP_K)
    (rows,) = generate(model, [prompt], sampling, stop_ids=[], pad_id=0, seeds=[0], n=n)
    assert all(len(row.ids) == NEW for row in rows)


def nanochat_decode(engine: Any, prompt: list[int], n: int) -> None:
    steps = sum(1 for _ in engine.generate(prompt, num_samples=n, max_tokens=NEW, temperature=1.0, top_k=TOP_K))
    assert steps == NEW


def transformers_decode(model: Any, prompt: list[int], n: int) -> None:
    ids = torch.tensor([prompt] * n)
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=True,
            top_k=TOP_K,
            temperature=1.0,
        )
    assert output.shape == (n, PROMPT + NEW)


def nanochat_twin(folder: Path, ours: GPT) -> tuple[Any, Any]:
    """nanochat's GPT with our weights, and its Engine."""
    sys.path.insert(0, str(folder))
    from nanochat.engine import Engine
    from nanochat.gpt import GPT as NanochatGPT
    from nanochat.gpt import GPTConfig as NanochatConfig

    names = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    twin = NanochatGPT(NanochatConfig(**{name: getattr(CONFIG, name) for name in names}))
    twin.init_weights()
    for theirs, mine in zip(twin.parameters(), ours.parameters(), strict=True):
        theirs.data.copy_(mine.data)

    class NoSpecials:
        """A tokenizer whose special ids are never sampled, so that no row ends early."""

        def encode_special(self, _name: str) -> int:
            return -1

        def get_bos_token_id(self) -> int:
            return -1

    return twin, Engine(twin, NoSpecials())


def transformers_twin(ours: GPT) -> Any:
    from transformers import NanoChatConfig, NanoChatForCausalLM

    config = ours.config.to_hf(bos_id=4087, eos_id=4091, pad_id=4095, dtype="float32")
    twin = NanoChatForCausalLM(NanoChatConfig(**config))
    twin.load_state_dict(ours.state_dict())
    return twin


def report(title: str, contenders: dict[str, Callable[[], None]], tokens: int, rounds: int) -> None:
    """Tokens per CPU second of each (best), and the median over rounds of kat's ratio to it."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    print(f"\n{title}")
    for name, taken in seconds.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(taken, seconds["kat"], strict=True))
        print(f"  {name:13s} {tokens / min(taken):8,.0f}   kat is {ratio:.2f}x")


if __name__ == "__main__":
    main()
