"""Batched sampling with a key/value cache.

Prompts of different lengths are padded on the left. The n samples of one prompt share its prefill. Each sample draws
from a generator of its own, so what it becomes does not depend on its neighbours in the batch.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kat.errors import UsageError
from kat.model.cache import KVCache
from kat.model.gpt import GPT
from kat.tokenizer.bpe import Tokenizer

SMALLEST_TEMPERATURE = 1e-4  # below it logits overflow or sampling is greedy in all but name
BLOCK = 64  # tokens that the cache has room for at first, and uniform numbers drawn at once


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k, top_p and repetition_penalty may combine.

    Applied in this order: repetition_penalty, temperature, top_k, top_p. The penalty is that of CTRL
    (arXiv:1909.05858): logits of tokens seen in prompt or continuation are divided by it where positive and multiplied
    where negative. top_p (arXiv:1904.09751) keeps the likeliest tokens up to the first that brings their mass to p.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature != 0 and not SMALLEST_TEMPERATURE <= self.temperature < math.inf:
            raise UsageError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or at least {SMALLEST_TEMPERATURE:g}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}; it must be positive")


@dataclass(frozen=True)
class Continuation:
    """One sampled continuation: its token ids (the stop token, when it came, is the last), the log-probability of each
    under the model at the sampling temperature (1 when greedy) before top-k, top-p and penalty, and why it ended."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str  # "stop" | "length"


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    seeds: Sequence[int],
    n: int = 1,
) -> list[list[Continuation]]:
    """n continuations of each prompt (token ids). seeds: one a prompt; sample j of it draws from (seed, j)."""
    rows = _Rows(model, prompts, sampling, stop_ids, pad_id, seeds, n)
    while rows.active:
        rows.step()
    sequences = [
        Continuation(tuple(ids), tuple(logprobs), reason)
        for ids, logprobs, reason in zip(rows.ids, rows.logprobs, rows.reasons, strict=True)
    ]
    return [sequences[i * n : (i + 1) * n] for i in range(len(prompts))]


def stream(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling, seed: int) -> Iterator[str]:
    """The continuation of one prompt, piece by piece; a piece never ends inside a UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with torch.inference_mode():
        rows = _Rows(model, [prompt], sampling, [tokenizer.eos_id], tokenizer.pad_id, [seed], 1)
    while rows.active:
        with torch.inference_mode():  # not around the yield: the caller's code must not run in it
            rows.step()
        token = rows.ids[0][-1]
        if token != tokenizer.eos_id and (piece := decoder.decode(tokenizer.decode_bytes([token]))):
            yield piece
    if tail := decoder.decode(b"", final=True):
        yield tail


class _Rows:
    """The batch that is being decoded: one row of the cache for each continuation that has not ended."""

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: Sequence[int],
        pad_id: int,
        seeds: Sequence[int],
        n: int,
    ) -> None:
        _check(prompts, seeds, n, model.config.vocab_size)
        self.model, self.sampling, self.stop_ids = model, sampling, frozenset(stop_ids)
        total = len(prompts) * n
        self.ids: list[list[int]] = [[] for _ in range(total)]
        self.logprobs: list[list[float]] = [[] for _ in range(total)]
        self.reasons = ["length"] * total
        self.active = list(range(total))  # rows of the cache -> index of the continuation
        self.n_steps = 0
        self.draws = _Draws(seeds, n) if sampling.temperature > 0 else None
        self._prefill(prompts, pad_id, n)

    def _prefill(self, prompts: Sequence[Sequence[int]], pad_id: int, n: int) -> None:
        device, width = self.model.device, max(map(len, prompts))
        ids = torch.full((len(prompts), width), pad_id)
        mask = torch.zeros(len(prompts), width, dtype=torch.bool)
        seen = torch.zeros(len(prompts), self.model.config.vocab_size, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            tokens = torch.as_tensor(prompt)
            ids[row, width - len(prompt) :] = tokens
            mask[row, width - len(prompt) :] = True
            seen[row, tokens] = True
        ids, mask = ids.to(device), mask.to(device)
        ragged = any(len(prompt) < width for prompt in prompts)
        self.cache = KVCache(self.model.config.n_layer, capacity=width + min(self.sampling.max_new_tokens, BLOCK))
        hidden = self.model.hidden(
            ids,
            cache=self.cache,
            attention_mask=mask if ragged else None,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0) if ragged else None,
        )
        self.logits = self.model.logits(hidden[:, -1]).float().repeat_interleave(n, dim=0)  # (rows, V)
        self.cache.repeat(n)
        # Of ragged prompts only: which cached positions are real (rows, T), and the next position of each row.
        self.mask = mask.repeat_interleave(n, dim=0) if ragged else None
        self.position = mask.sum(1).repeat_interleave(n) if ragged else None
        # (rows, V): the tokens that the repetition penalty applies to.
        self.seen = seen.to(device).repeat_interleave(n, dim=0) if self.sampling.repetition_penalty != 1 else None

    def step(self) -> None:
        """Sample one token for each active row, drop the rows that end, run the model on the rest."""
        draws = self.draws.next(self.active, self.logits.device) if self.draws is not None else None
        token, logprob = choose(self.logits, self.sampling, draws, self.seen)
        self.n_steps += 1
        last = self.n_steps == self.sampling.max_new_tokens
        kept = []
        for row, (index, t, p) in enumerate(zip(self.active, token.tolist(), logprob.tolist(), strict=True)):
            self.ids[index].append(t)
            self.logprobs[index].append(p)
            if t in self.stop_ids:
                self.reasons[index] = "stop"
            elif not last:
                kept.append(row)
        if 0 < len(kept) < len(self.active):
            token = self._keep(torch.tensor(kept, device=token.device), token)
        self.active = [self.active[row] for row in kept]
        if kept:
            self._forward(token)

    def _keep(self, rows: Tensor, token: Tensor) -> Tensor:
        """Forget all rows of the batch but these."""
        self.cache.select(rows)
        self.mask = self.mask[rows] if self.mask is not None else None
        self.position = self.position[rows] if self.position is not None else None
        self.seen = self.seen[rows] if self.seen is not None else None
        return token[rows]

    def _forward(self, token: Tensor) -> None:
        if self.seen is not None:
            self.seen.scatter_(1, token[:, None], True)
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(token), 1)), dim=1)
        hidden = self.model.hidden(
            token[:, None],
            cache=self.cache,
            attention_mask=self.mask,
            position_ids=self.position[:, None] if self.position is not None else None,
        )
        self.logits = self.model.logits(hidden[:, -1]).float()
        self.position = self.position + 1 if self.position is not None else None


class _Draws:
    """Uniform numbers, one stream for each (seed, sample), in blocks."""

    def __init__(self, seeds: Sequence[int], n: int) -> None:
        self.generators = [np.random.default_rng((seed % 2**64, sample)) for seed in seeds for sample in range(n)]
        self.block = np.empty((0, 0), dtype=np.float32)  # (BLOCK, len(seeds) * n)
        self.used = 0

    def next(self, active: Sequence[int], device: torch.device) -> Tensor:
        """(len(active),) float32 numbers in [0, 1]."""
        if self.used == len(self.block):
            self.block = np.stack([g.random(BLOCK).astype(np.float32) for g in self.generators], axis=1)
            self.used = 0
        self.used += 1
        return torch.from_numpy(self.block[self.used - 1, active]).to(device)


def choose(logits: Tensor, sampling: Sampling, draws: Tensor | None, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next token (B,) and its log-probability (B,) from float32 logits (B, V).

    draws: (B,) uniform numbers; the token is where the cumulative probability passes the draw. None: greedy. seen:
    (B, V) tokens that the repetition penalty applies to.
    """
    temperature = sampling.temperature or 1.0
    scaled = logits / temperature if temperature != 1 else logits
    logprobs = torch.log_softmax(scaled, dim=-1)
    if seen is not None:
        penalty = sampling.repetition_penalty
        scaled = torch.where(seen, torch.where(scaled > 0, scaled / penalty, scaled * penalty), scaled)
    token = scaled.argmax(dim=-1) if draws is None else _inverse_cdf(scaled, sampling.top_k, sampling.top_p, draws)
    return token, logprobs.gather(-1, token[:, None])[:, 0]


def _inverse_cdf(logits: Tensor, top_k: int | None, top_p: float | None, draws: Tensor) -> Tensor:
    """Sample (B,) tokens from softmax(logits) restricted to the top k and to the nucleus of mass p."""
    index = None
    if top_p == 1:
        top_p = None  # the whole vocabulary, rounded tails included
    if top_k is not None or top_p is not None:
        k = min(top_k or logits.size(-1), logits.size(-1))
        logits, index = logits.topk(k, dim=-1)  # sorted, largest first
    probs = torch.softmax(logits, dim=-1)
    if top_p is not None:
        before = probs.cumsum(dim=-1) - probs
        probs = torch.where(before < top_p, probs, 0.0)  # the likeliest token has 0 before it and always stays
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Strictly below the total, even where the product rounds up: the token found then has some mass.
    target = torch.minimum(draws[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    choice = torch.searchsorted(cumulative, target, right=True)
    return (choice if index is None else index.gather(-1, choice))[:, 0]


def _check(prompts: Sequence[Sequence[int]], seeds: Sequence[int], n: int, vocab_size: int) -> None:
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UsageError("generate: each prompt needs at least one token")
    if len(seeds) != len(prompts):
        raise UsageError(f"generate: {len(prompts)} prompts but {len(seeds)} seeds")
    if n < 1:
        raise UsageError(f"generate: n is {n}; it must be at least 1")
    for prompt in prompts:
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < vocab_size)
            raise UsageError(f"generate: token {wrong} is outside the model's vocabulary of {vocab_size}")
