"""An adapter for a checkout of karpathy/nanochat of October 2025 (dfc88334), to copy and change for a fork.

    kat verify examples/nanochat_adapter.py:make --set checkout=path/to/nanochat

It hands on nanochat's own model, KV cache, engine, tokenizer, SFT collator and optimizers; nothing is computed here.
The file is not called nanochat.py, so that `import nanochat` finds the checkout's package.
"""

import ast
import functools
import random
import sys
import types
from pathlib import Path
from typing import Any

import torch

from kat.verify.subject import Completion, Traits

TINY = {"sequence_len": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64}
WORDS = ["river", "stone", "Owl", "glass", "seven", "because", "there", "mill", "green", "ask"]


def make(seed: int = 0, tiny: bool = True, *, checkout: str, **config: Any) -> "Nanochat":
    """checkout: the repository's folder. config: fields of nanochat's GPTConfig."""
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    return Nanochat(Path(checkout), seed, {**TINY, **config})


@functools.cache
def tiny_tokenizer() -> Any:
    from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=12)) for _ in range(100)]
    return RustBPETokenizer.train_from_iterator(iter(texts), 256 + 20 + len(SPECIAL_TOKENS))


class Nanochat:
    def __init__(self, checkout: Path, seed: int, config: dict[str, Any]) -> None:
        from nanochat.gpt import GPT, GPTConfig

        self.checkout, self.tokenizer = checkout, tiny_tokenizer()
        self.config = GPTConfig(vocab_size=self.tokenizer.get_vocab_size(), **config)
        self.model = GPT(self.config)
        self.init_weights(seed)
        special = {name: self.tokenizer.encode_special(name) for name in self.tokenizer.get_special_tokens()}
        self.traits = Traits(
            name="nanochat",
            vocab=self.config.vocab_size,
            max_len=self.config.sequence_len,
            bos_id=special["<|bos|>"],
            eos_ids=(special["<|assistant_end|>"], special["<|bos|>"]),  # either ends a row of the engine
            special_ids=tuple(special.values()),
            attn_mask=False,  # rows are padded on the right, and a causal model need not know
            padding=("right",),
        )

    # Text

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: Any) -> str:
        return self.tokenizer.decode(list(ids))

    def encode_conversation(self, messages: Any) -> tuple[list[int], list[int]]:
        return self.tokenizer.render_conversation({"messages": list(messages)})

    def encode_prompt(self, messages: Any) -> list[int]:
        answered = [*messages, {"role": "assistant", "content": ""}]  # which render_for_completion takes off
        return self.tokenizer.render_for_completion({"messages": answered})

    # Model

    def named_parameters(self) -> Any:
        return self.model.named_parameters()

    def init_weights(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model.init_weights()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids)

    def forward_cached(self, ids: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        from nanochat.engine import KVCache

        c = self.config
        if state is None:
            state = KVCache(len(ids), c.n_kv_head, c.sequence_len, c.n_embd // c.n_head, c.n_layer)
        return self.model(ids, kv_cache=state), state

    def generate(
        self, prompts: Any, n: int = 1, max_new_tokens: int = 32, temperature: float = 1.0, top_k: Any = None, seed=0
    ) -> list[list[Completion]]:
        from nanochat.engine import Engine

        groups = []
        for i, prompt in enumerate(prompts):
            rows: list[list[int]] = [[] for _ in range(n)]
            ended = [False] * n
            sampling = {"max_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
            columns = Engine(self.model, self.tokenizer).generate(list(prompt), n, seed=1000 * seed + i, **sampling)
            for column, _ in columns:
                for row, token in enumerate(column):
                    if not ended[row]:
                        rows[row].append(token)
                        ended[row] = token in self.traits.eos_ids
            groups.append([Completion(r, None, "stop" if e else "length") for r, e in zip(rows, ended, strict=True)])
        return groups

    # Training

    def collate(self, rows: Any) -> dict[str, torch.Tensor]:
        """One batch of sft_data_generator in scripts/chat_sft.py, a script that can't be imported."""
        script = ast.parse((self.checkout / "scripts/chat_sft.py").read_text(encoding="utf-8"))
        function = next(n for n in script.body if getattr(n, "name", "") == "sft_data_generator")
        tokenizer = types.SimpleNamespace(
            render_conversation=lambda row: row, encode_special=self.tokenizer.encode_special
        )
        names: dict[str, Any] = {"torch": torch, "tokenizer": tokenizer, "device": "cpu"}
        names |= {"ddp_rank": 0, "ddp_world_size": 1}
        exec(compile(ast.Module([function], []), "chat_sft.py", "exec"), names)
        ids, targets = next(names["sft_data_generator"](list(rows), len(rows)))
        return {"ids": ids, "targets": targets}

    def loss(self, batch: Any) -> torch.Tensor:
        return self.model(batch["ids"], batch["targets"])

    def param_groups(self) -> Any:
        return [group for optimizer in self.model.setup_optimizers() for group in optimizer.param_groups]
