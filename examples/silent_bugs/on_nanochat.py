"""karpathy/nanochat at any commit: its model, caches and engine; its SFT and mid-training batches; its schedules."""

import dataclasses
import functools
import inspect
import logging
import os
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lift import lift, passage, use
from torch import Tensor

from kat.verify.subject import Completion, Traits

STUBS = ("wandb", "kernels", "filelock", "psutil", "datasets", "tokenizers", "fastapi", "uvicorn")
WORDS = ["river", "stone", "Owl", "glass", "seven", "because", "there", "mill", "green", "ask"]


@functools.cache
def tokenizer_of(checkout: str) -> Any:
    """nanochat's own tokenizer, trained on made-up sentences."""
    rng = random.Random(0)
    module = use(checkout, "nanochat.tokenizer", stubs=STUBS)
    logging.disable(logging.WARNING)
    texts = [" ".join(rng.choices(WORDS, k=12)) for _ in range(100)]
    return module.RustBPETokenizer.train_from_iterator(iter(texts), 256 + 20 + len(module.SPECIAL_TOKENS))


class Model:
    """The model with its KV cache and its engine. cache_len: positions that a new cache is told to hold."""

    def __init__(self, checkout: str, seed: int, sequence_len: int = 64, cache_len: int | None = None, **config: Any):
        os.environ.setdefault("NANOCHAT_BASE_DIR", tempfile.gettempdir())
        os.environ.setdefault("NANOCHAT_DTYPE", "float32")
        self.gpt = use(checkout, "nanochat.gpt", stubs=STUBS)
        self.engine = use(checkout, "nanochat.engine", stubs=STUBS)
        self.tokenizer = tokenizer_of(checkout)
        self.cache_len = cache_len
        known = {field.name for field in dataclasses.fields(self.gpt.GPTConfig)}
        wanted = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "window_pattern": "SL", **config}
        self.config = self.gpt.GPTConfig(
            sequence_len=sequence_len,
            vocab_size=self.tokenizer.get_vocab_size(),
            **{name: value for name, value in wanted.items() if name in known},
        )
        with torch.device("meta"):
            self.model = self.gpt.GPT(self.config)
        self.model.to_empty(device="cpu")
        self.init_weights(seed)
        special = {name: self.tokenizer.encode_special(name) for name in self.tokenizer.get_special_tokens()}
        self.special = special
        self.traits = Traits(
            name="nanochat",
            vocab=self.config.vocab_size,
            max_len=sequence_len,
            bos_id=special["<|bos|>"],
            eos_ids=(special["<|assistant_end|>"], special["<|bos|>"]),
            special_ids=tuple(special.values()),
            attn_mask=False,
            padding=("right",),
            window=self._window(),
        )

    def _window(self) -> int | None:
        lengths = [left for left, _ in getattr(self.model, "window_sizes", ())]
        return min((n for n in lengths if 0 <= n < self.config.sequence_len), default=None)

    def named_parameters(self) -> Any:
        return self.model.named_parameters()

    def init_weights(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model.init_weights()
        self.model.eval()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def forward_cached(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            c = self.config
            room = {"seq_len": self.cache_len or c.sequence_len, "batch_size": len(ids), "num_heads": c.n_kv_head}
            shape = {**room, "head_dim": c.n_embd // c.n_head, "num_layers": c.n_layer}
            known = inspect.signature(self.engine.KVCache).parameters
            place = {"device": torch.device("cpu"), "dtype": torch.float32}
            state = self.engine.KVCache(**shape, **{name: v for name, v in place.items() if name in known})
        return self.model(ids, kv_cache=state), state

    def generate(
        self, prompts: Any, n: int = 1, max_new_tokens: int = 32, temperature: float = 1.0, top_k: Any = None, seed=0
    ) -> list[list[Completion]]:
        engine = self.engine.Engine(self.model, self.tokenizer)
        groups = []
        for i, prompt in enumerate(prompts):
            rows: list[list[int]] = [[] for _ in range(n)]
            ended = [False] * n
            sampling = {"max_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
            for column, _ in engine.generate(list(prompt), num_samples=n, seed=seed * 100_003 + i, **sampling):
                for row, token in enumerate(column):
                    if not ended[row]:
                        rows[row].append(token)
                        ended[row] = token in self.traits.eos_ids
            groups.append([Completion(r, None, "stop" if e else "length") for r, e in zip(rows, ended, strict=True)])
        return groups

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: Any) -> str:
        return self.tokenizer.decode(list(ids))

    def encode_conversation(self, messages: Any) -> tuple[list[int], list[int]]:
        return self.tokenizer.render_conversation({"messages": list(messages)})

    def encode_prompt(self, messages: Any) -> list[int]:
        answered = [*messages, {"role": "assistant", "content": ""}]
        return self.tokenizer.render_for_completion({"messages": answered})

    def loss(self, batch: Any) -> Tensor:
        return self.model(batch["ids"], batch["targets"])


def model(seed: int = 0, tiny: bool = True, *, checkout: str, **config: Any) -> Model:
    """The model with a cache that is large enough; one layer's window is half the context."""
    return Model(checkout, seed, **config)


def growing_cache(seed: int = 0, tiny: bool = True, *, checkout: str, **config: Any) -> Model:
    """A cache made for four positions, as the engine's is for a prompt; it grows by itself."""
    return Model(checkout, seed, cache_len=4, **config)


class Reloaded(Model):
    """save runs the call of save_checkpoint in chat_sft.py; load is nanochat's build_model."""

    def __init__(self, checkout: str, seed: int, **config: Any):
        super().__init__(checkout, seed, **config)
        self.checkout = checkout
        self.manager = use(checkout, "nanochat.checkpoint_manager", stubs=STUBS)
        self.manager.get_tokenizer = lambda: self.tokenizer

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def save(self, path: Path) -> None:
        script = {
            "save_checkpoint": self.manager.save_checkpoint,
            "checkpoint_dir": str(path),
            "step": 0,
            "orig_model": self.model,
            "model": self.model,
            "optimizer": SimpleNamespace(state_dict=dict),
            "val_bpb": 0.0,
            "args": SimpleNamespace(max_seq_len=self.config.sequence_len),
            "tokenizer": self.tokenizer,
            "depth": self.config.n_layer,
            "user_config": {},
        }
        passage(Path(self.checkout, "scripts/chat_sft.py"), None, "save_checkpoint(")(script)

    def load(self, path: Path) -> None:
        self.model, _, _ = self.manager.build_model(str(path), 0, torch.device("cpu"), "eval")


def reloaded(seed: int = 0, tiny: bool = True, *, checkout: str, **config: Any) -> Reloaded:
    """Of a context of 12 tokens, so that one layer's window of 6 shows in short texts."""
    return Reloaded(checkout, seed, **{"sequence_len": 12, **config})


class Batches:
    """Packed rows of a script's own generator.

    The generator never looks at ids, so rows go in as numbers of their tokens, as if the tokenizer had just rendered
    them, and are read off what comes out. Behind the rows the data set holds conversations that fit in no row.
    """

    ROW_LEN = 32
    PAD = 0

    def __init__(self, checkout: str, script: str, generator: str) -> None:
        self.file, self.generator = Path(checkout, script), generator
        self.traits = Traits(
            name=f"nanochat {script}", vocab=64, max_len=self.ROW_LEN, special_ids=(self.PAD,), pack_isolated=False
        )

    def pack(self, rows: Any) -> dict[str, Tensor]:
        places = [(d, t, rows[d][0][t], rows[d][1][t]) for d in range(len(rows)) for t in range(len(rows[d][0]))]
        numbers = iter(range(1, len(places) + 1))  # 0 is what the generator pads with
        numbered = [([next(numbers) for _ in ids], list(mask)) for ids, mask in rows]
        stranger = [len(places) + 1] * (2 * self.ROW_LEN)
        rendered = [*numbered, *[(stranger, [0] * len(stranger))] * (4 * len(rows))]
        places = [(-1, 0, self.PAD, 0), *places, (len(rows), 0, self.PAD, 0)]
        parts = []
        for inputs, targets, used in self._generate(rendered, len(rows)):
            parts.append((inputs.long(), targets))
            if used >= len(rows):
                break
        codes, targets = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        wanted = torch.tensor([mask for _, _, _, mask in places])
        ids = torch.tensor([i for _, _, i, _ in places])
        chosen = (targets > 0) & (wanted[targets.clamp(min=0)] == 1) if self.all_targets else targets >= 0
        return {
            "ids": ids[codes],
            "targets": torch.where(chosen, ids[targets.clamp(min=0)], -1),
            "doc_ids": torch.tensor([d for d, _, _, _ in places])[codes],
        }

    all_targets = False

    def _generate(self, rendered: Any, buffer_size: int) -> Any:
        """(inputs, targets, how many conversations are used up) of each batch of one row."""
        namespace = {
            "torch": torch,
            "args": SimpleNamespace(max_seq_len=self.ROW_LEN, device_batch_size=1, num_iterations=-1),
            "tokenizer": SimpleNamespace(render_conversation=lambda row: row, get_bos_token_id=lambda: 0),
            "train_dataset": rendered,
            "ddp_rank": 0,
            "ddp_world_size": 1,
            "device": torch.device("cpu"),
            "device_type": "cpu",
            "last_step": False,
            "approx_progress": 0.0,
            "current_epoch": 1,
        }
        made = lift(self.file, self.generator, **namespace)("train", buffer_size=buffer_size)
        script = made.gi_frame.f_globals
        for inputs, targets in made:
            yield inputs, targets, round(script["approx_progress"] * len(rendered))


class MidBatches(Batches):
    """Mid-training supervises every token; a row's own mask chooses among these."""

    all_targets = True


def sft_batches(seed: int = 0, tiny: bool = True, *, checkout: str) -> Batches:
    return Batches(checkout, "scripts/chat_sft.py", "sft_data_generator_bos_bestfit")


def mid_batches(seed: int = 0, tiny: bool = True, *, checkout: str) -> MidBatches:
    return MidBatches(checkout, "scripts/mid_train.py", "mid_data_generator_bos_bestfit")


class MidSchedule:
    """The learning rate of mid_train.py over 40 steps."""

    STEPS = 40

    def __init__(self, checkout: str) -> None:
        script = Path(checkout, "scripts/mid_train.py")
        self.multiplier = lift(script, "get_lr_multiplier", final_lr_frac=0.0)
        self.traits = Traits(
            name="nanochat mid_train", lr_peak=1.0, lr_final=0.0, warmup_steps=0, total_steps=self.STEPS
        )

    def lr(self, step: int) -> float:
        return float(self.multiplier(step / self.STEPS))


def mid_schedule(seed: int = 0, tiny: bool = True, *, checkout: str) -> MidSchedule:
    return MidSchedule(checkout)
