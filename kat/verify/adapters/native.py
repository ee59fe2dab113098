"""kat's own model, data path and trainers as a subject: `native` (freshly made, tiny) and `kat:FOLDER` (a checkpoint).

Everything goes through the code that `kat train`, `kat eval` and `kat generate` run; nothing is computed here.
"""

import atexit
import functools
import importlib.util
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kat.data import letters
from kat.data.batches import Batches
from kat.data.choices import parse_choice_item, prompt_messages
from kat.data.tokens import TokenData
from kat.errors import UsageError
from kat.model import decoding
from kat.model.cache import KVCache
from kat.model.checkpoint import load_checkpoint, save_checkpoint
from kat.model.config import GPTConfig
from kat.model.gpt import GPT
from kat.runs.settings import SftSettings, TrainSettings, make_settings
from kat.runtime import World
from kat.stats.clustered import cr2
from kat.tokenizer import chat
from kat.tokenizer.bpe import Tokenizer, train_tokenizer
from kat.trainers.loop import Loop
from kat.trainers.native import CausalTask, token_losses
from kat.trainers.protocol import Job
from kat.trainers.run_folder import load_state, newest_state, save_state
from kat.trainers.schedules import lr_share
from kat.verify.adapters import native_rl
from kat.verify.adapters.native_preferences import TRAITS, Preferences
from kat.verify.subject import Batch, Completion, Make, Message, Rollout, Row, Traits

TOTAL_STEPS = 20
N_EXAMPLES = 37  # a prime: no batch size divides it
TINY = {"sequence_len": 48, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_kv_head": 2}


def open_make(folder: str) -> Make:
    """The function that makes subjects: of a checkpoint folder, or ("") of a fresh tiny model."""
    if not folder:
        return make
    path = Path(folder)
    load_checkpoint(path)  # a wrong folder is said once and at once
    return functools.partial(make, checkpoint=path)


def make(seed: int = 0, tiny: bool = True, checkpoint: Path | None = None, **overrides: Any) -> "NativeSubject":
    """overrides: constants of the model (n_layer, rope_base, …) and training settings (optimizer, schedule, …).

    A checkpoint brings its own model and tokenizer; its weights are the same for every seed.
    """
    model_keys = {key: overrides.pop(key) for key in list(overrides) if key in GPTConfig.__dataclass_fields__}
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        tokenizer = tiny_tokenizer()
        config = GPTConfig(vocab_size=tokenizer.vocab_size, **{**TINY, **model_keys})
        model = GPT(config)
        model.init_weights(torch.Generator().manual_seed(seed))
    defaults = {"steps": TOTAL_STEPS, "warmup_steps": 4, "schedule": "linear", "final": 0.1, "peak": 1.0, "clip": 0.5}
    overrides, rl_settings = native_rl.split(overrides)
    settings = make_settings(SftSettings, {**defaults, **overrides}, "native")
    subject = NativeSubject(model, tokenizer, settings, seed)
    subject.rl_settings = rl_settings
    if checkpoint is not None:
        subject.variants = ()  # its configuration is what it is
    return subject


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """A vocabulary of some hundred tokens, trained on made-up sentences; no file is read."""
    rng = random.Random(0)
    words = ["river", "stone", "Owl", "glass", "seven", "because", "there", "mill", "green", "ask", "café", "don't"]
    return train_tokenizer([" ".join(rng.choices(words, k=12)) + "." for _ in range(200)], vocab_size=300)


class NativeSubject(Preferences):
    """See kat.verify.subject.Subject; batches carry inputs, shifted targets and document numbers."""

    variants: Sequence[dict[str, Any]] = (
        {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_kv_head": 1, "sequence_len": 40},
        {"rope_base": 500.0, "rope_table_dtype": "bfloat16", "softcap": 7.0, "norm_eps": 1e-3},
    )

    rl_variants = native_rl.VARIANTS
    rl_settings = native_rl.split({})[1]

    def __init__(self, model: GPT, tokenizer: Tokenizer, settings: TrainSettings, seed: int) -> None:
        self.tokenizer, self.settings, self.seed = tokenizer, settings, seed
        self._start(model)
        # transformers has no bfloat16 tables, which imported nanochat checkpoints declare.
        if importlib.util.find_spec("transformers") and model.config.rope_table_dtype == "float32":
            self.reference_logits = self._transformers_logits

    def _start(self, model: GPT) -> None:
        """(Re)build the training loop around a model."""
        self.model = model
        self.__dict__.pop("rl", None)  # it was of another model
        examples = _examples(self.tokenizer, model.config.sequence_len)
        job = Job("sft", None, Path(), examples, None, self.settings, self.seed, "cpu", "float32", Path("native"), None)
        task = CausalTask(job, model.config, self.tokenizer, World())
        self.loop = Loop(
            model,
            task,
            self.settings,
            world=world(),
            device=torch.device("cpu"),
            dtype=torch.float32,
            out=_scratch() / "native",
        )
        model.eval()

    @property
    def traits(self) -> Traits:
        tok, s = self.tokenizer, self.settings
        peak = s.matrix_lr if s.optimizer == "muon" else s.lr
        return Traits(
            name="kat",
            vocab=tok.vocab_size,
            max_len=self.model.config.sequence_len,
            pad_id=tok.pad_id,
            bos_id=tok.bos_id,
            eos_ids=(tok.eos_id,),
            special_ids=tuple(tok.special.values()),
            n_examples=N_EXAMPLES,
            epoch_seed="mixed",
            lr_peak=peak * s.peak,
            lr_final=peak * s.peak * s.final,
            warmup_steps=s.warmup_steps,
            total_steps=s.steps,
            max_grad_norm=s.clip,
            data_parallel=True,
            **TRAITS,
            **native_rl.traits(self.rl_settings),
        )

    # Text

    def encode_conversation(self, messages: Sequence[Message]) -> Row:
        return chat.render_conversation(self.tokenizer, messages)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        return chat.render_for_completion(self.tokenizer, messages)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def token_bytes(self) -> Sequence[int]:
        return self.tokenizer.token_bytes().tolist()

    # Model

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        return self.model(ids, attention_mask=attention_mask, position_ids=position_ids)

    def forward_cached(self, ids: Tensor, state: KVCache | None = None) -> tuple[Tensor, KVCache]:
        cache = state if state is not None else KVCache(self.model.config.n_layer)
        return self.model(ids, cache=cache), cache

    def _transformers_logits(self, ids: Tensor) -> Tensor:
        import transformers

        tok = self.tokenizer
        special = {"bos_id": tok.bos_id, "eos_id": tok.eos_id, "pad_id": tok.pad_id}
        config = transformers.NanoChatConfig(**self.model.config.to_hf(**special, dtype="float32"))
        other = transformers.NanoChatForCausalLM(config).eval()
        other.load_state_dict(self.model.state_dict(), strict=True)
        with torch.no_grad():
            return other(ids).logits

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self.model.named_parameters()

    def init_weights(self, seed: int) -> None:
        self.model.init_weights(torch.Generator().manual_seed(seed))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[list[Completion]]:
        tok = self.tokenizer
        groups = decoding.generate(
            self.model.eval(),
            prompts,
            decoding.Sampling(max_new_tokens, temperature, top_k),
            stop_ids=[tok.eos_id],
            pad_id=tok.pad_id,
            seeds=[seed * 100_003 + i for i in range(len(prompts))],
            n=n,
        )
        return [[Completion(c.ids, c.logprobs, c.finish_reason) for c in group] for group in groups]

    # Data

    def collate(self, rows: Sequence[Row]) -> Batch:
        """One example a row, cut to the context, padded on the right; one that the cut leaves no target is dropped."""
        longest = min(max(len(ids) for ids, _ in rows), self.model.config.sequence_len + 1)
        rows = [(ids, mask) for ids, mask in rows if any(mask[1:longest]) or not any(mask)]
        parts = [
            _batch(Batches(_data([row], longest), **self._layout(longest - 1, 1), seed=0, shuffle=False, repeat=False))
            for row in rows
        ]
        return {
            name: torch.cat([part[name] for part in parts]) for name in ("ids", "targets", "doc_ids", "attention_mask")
        }

    def pack(self, rows: Sequence[Row]) -> Batch:
        row_len = self.model.config.sequence_len
        data = _data(rows, row_len + 1)
        return _batch(Batches(data, **self._layout(row_len, len(rows)), seed=0, shuffle=False, repeat=False))

    def batches(self, seed: int, rank: int = 0, world: int = 1, state: Any = None) -> Iterator[Batch]:
        row_len = self.model.config.sequence_len
        source = Batches(
            _examples(self.tokenizer, row_len), **self._layout(row_len, 2 * world), seed=seed, rank=rank, world=world
        )
        if state is not None:
            source.load_state(state)
        while True:
            yield _batch(source)

    def _layout(self, row_len: int, batch_rows: int) -> dict[str, Any]:
        return {"row_len": row_len, "batch_rows": batch_rows, "layout": "packed", "pad_id": self.tokenizer.pad_id}

    # Training

    def loss(self, batch: Batch) -> Tensor:
        return self.model(batch["ids"], batch["targets"], doc_ids=batch["doc_ids"])

    def eval_loss(self, batch: Batch) -> float:
        with torch.no_grad():
            losses, _ = token_losses(self.model, batch)
        return float(losses.mean())

    def accumulate(self, micro_batches: Sequence[Batch]) -> None:
        self.loop.backward([_tensors(batch) for batch in micro_batches])

    def train_step(self, micro_batches: Sequence[Batch]) -> Mapping[str, float]:
        self.model.train()
        metrics = self.loop.train_step([_tensors(batch) for batch in micro_batches])
        self.model.eval()
        return metrics

    def param_groups(self) -> Iterable[Mapping[str, Any]]:
        return [group for optimiser in self.loop.optimisers for group in optimiser.param_groups]

    def lr(self, step: int) -> float:
        peak = self.settings.matrix_lr if self.settings.optimizer == "muon" else self.settings.lr
        return peak * lr_share(self.settings, step, self.loop.task.total_steps, ())

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def save(self, path: Path) -> None:
        """A checkpoint folder and the trainer's state beside it."""
        save_checkpoint(path / "model", self.model, self.tokenizer, {"stage": "sft", "step": self.loop.step})
        save_state(path / "training", self.loop.state())
        self.save_reward(path)

    def load(self, path: Path) -> None:
        """Go on with what was saved; like a resumed run, with the seed that it was made with."""
        found = newest_state(path / "training")
        if found is None:
            raise UsageError(f"{path}: no state to go on from")
        state = load_state(found)
        self.seed = state.values["cursor"]["seed"]
        self._start(load_checkpoint(path / "model").model)
        self.loop.restore(state)
        self.load_reward(path)

    # Reinforcement learning

    @functools.cached_property
    def rl(self) -> native_rl.NativeRL:
        """GRPO, which starts from the model as it is when first asked for."""
        out = _scratch() / "native-rl"
        return native_rl.NativeRL(self.model, self.tokenizer, self.rl_settings, self.seed, world(), out)

    def rl_setup(self) -> Mapping[str, Mapping[str, Tensor]]:
        return self.rl.rl_setup()

    def rollout(self, prompts: Sequence[Sequence[int]], n: int, seed: int) -> Rollout:
        return self.rl.rollout(prompts, n, seed)

    def completion_logprobs(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], temperature: float
    ) -> Tensor:
        return self.rl.completion_logprobs(prompt_ids, completion_ids, temperature)

    def advantages(self, rewards: Tensor) -> Tensor:
        return self.rl.advantages(rewards)

    def policy_loss(
        self, logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Mapping[str, float]]:
        return self.rl.policy_loss(logprobs, old, ref, advantages, mask)

    def rl_step(self, rollout: Rollout, rewards: Tensor) -> Mapping[str, float]:
        return self.rl.rl_step(rollout, rewards)

    # Evaluation

    def build_prompt(self, item: Mapping[str, Any]) -> list[Message]:
        return prompt_messages(parse_choice_item(dict(item)))

    def extract(self, text: str, n_choices: int) -> str | None:
        return letters.extract(text, [f"\N{REPLACEMENT CHARACTER}{i}" for i in range(n_choices)]).letter

    def grade(self, item: Mapping[str, Any], text: str) -> float:
        parsed = parse_choice_item(dict(item))
        return float(letters.extract(text, parsed.choices).letter == parsed.letter)

    def aggregate(self, scores: Sequence[float], groups: Sequence[str] | None = None) -> Mapping[str, float]:
        values = np.asarray(scores, dtype=float)
        labels = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
        mean, error, _ = cr2(np.bincount(labels, values), np.bincount(labels).astype(float))
        return {"value": mean, "stderr": error}


@functools.cache
def _scratch() -> Path:
    """A folder for what a trainer keeps when it stops; it goes with this process."""
    folder = tempfile.TemporaryDirectory(prefix="kat-verify-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def world() -> World:
    """This process among those of torch.distributed, where somebody started it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), 0)
    return World()


def _examples(tokenizer: Tokenizer, row_len: int) -> TokenData:
    """N_EXAMPLES made-up conversations of very different lengths."""
    rng = random.Random(1)
    vocabulary = ["river", "stone", "Owl", "glass", "seven", "because", "there", "mill", "green", "ask"]
    rows = []
    for _ in range(N_EXAMPLES):
        question = " ".join(rng.choices(vocabulary, k=rng.randint(1, 5)))
        answer = " ".join(rng.choices(vocabulary, k=rng.randint(1, 12)))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append(chat.render_conversation(tokenizer, turns))
    return _data(rows, row_len + 1)


def _data(rows: Sequence[Row], max_len: int) -> TokenData:
    """Rows as token data, cut on the right."""
    cut = [(np.asarray(ids[:max_len], np.int32), np.asarray(mask[:max_len], np.uint8)) for ids, mask in rows]
    for _, mask in cut:
        mask[0] = 0
    offsets = np.cumsum([0, *(len(ids) for ids, _ in cut)], dtype=np.int64)
    names = tuple(f"example-{i}" for i in range(len(cut)))
    return TokenData(np.concatenate([i for i, _ in cut]), np.concatenate([m for _, m in cut]), offsets, names)


def _batch(source: Batches) -> Batch:
    batch = source.next()
    assert batch.doc_ids is not None
    doc_ids = torch.from_numpy(batch.doc_ids)
    return {
        "ids": torch.from_numpy(batch.ids),
        "targets": torch.from_numpy(batch.targets),
        "doc_ids": doc_ids,
        "attention_mask": (doc_ids >= 0).long(),
        "example_ids": [name for row in batch.example_ids for name in row],
        "state": source.state(),
    }


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("ids", "targets", "doc_ids")}
