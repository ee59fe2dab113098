"""Batched sampling with a key/value cache.

Prompts of different lengths are padded on the left. The n samples of one prompt share its prefill. Each request draws
from a generator of its own, so what it samples does not depend on its neighbours in the batch.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kat.errors import UsageError
from kat.model.cache import KVCache
from kat.model.gpt import GPT
from kat.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k, top_p and repetition_penalty may combine.

    repetition_penalty is that of CTRL (arXiv:1909.05858): logits of tokens seen in prompt or continuation are divided
    by it where positive and multiplied where negative.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise UsageError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.repetition_penalty <= 0:
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
    """n continuations of each prompt (token ids). seeds: one a prompt; sample j of it uses (seed, j)."""
    rows = _Rows(model, prompts, sampling, stop_ids, pad_id, seeds, n)
    while rows.active.numel():
        rows.step()
    sequences = rows.finish()
    return [sequences[i * n : (i + 1) * n] for i in range(len(prompts))]


def stream(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling, seed: int) -> Iterator[str]:
    """The continuation of one prompt, piece by piece; a piece never ends inside a UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with torch.inference_mode():
        rows = _Rows(model, [prompt], sampling, [tokenizer.eos_id], tokenizer.pad_id, [seed], 1)
        shown = 0
        while rows.active.numel():
            rows.step()
            ids = rows.ids[0]
            for token in ids[shown:]:
                if token != tokenizer.eos_id and (piece := decoder.decode(tokenizer.decode_bytes([token]))):
                    yield piece
            shown = len(ids)
    if tail := decoder.decode(b"", final=True):
        yield tail


class _Rows:
    """The batch that is being decoded: a cache row for each continuation that has not ended."""

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
        if not prompts or not all(prompts):
            raise UsageError("generate: each prompt needs at least one token")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        self.model, self.sampling, self.stop_ids = model, sampling, frozenset(stop_ids)
        total = len(prompts) * n
        self.ids: list[list[int]] = [[] for _ in range(total)]
        self.logprobs: list[list[float]] = [[] for _ in range(total)]
        self.finished: dict[int, str] = {}
        self.active = torch.arange(total)  # rows of the cache -> index of the continuation
        self.draws = _uniform_draws(seeds, n, sampling)  # (total, max_new_tokens)
        self._prefill(prompts, pad_id, n)

    def _prefill(self, prompts: Sequence[Sequence[int]], pad_id: int, n: int) -> None:
        device, width = self.model.device, max(map(len, prompts))
        ids = torch.full((len(prompts), width), pad_id)
        mask = torch.zeros(len(prompts), width, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = True
        ids, mask = ids.to(device), mask.to(device)
        ragged = not bool(mask.all())
        positions = (mask.cumsum(1) - 1).clamp(min=0) if ragged else None
        self.cache = KVCache(self.model.config.n_layer, capacity=width + self.sampling.max_new_tokens)
        hidden = self.model.hidden(
            ids, cache=self.cache, attention_mask=mask if ragged else None, position_ids=positions
        )
        self.logits = self.model.logits(hidden[:, -1]).float().repeat_interleave(n, dim=0)  # (rows, V)
        self.cache.repeat(n)
        self.mask = mask.repeat_interleave(n, dim=0) if ragged else None
        self.position = mask.sum(1).repeat_interleave(n)  # of the next token, a row
        self.seen: Tensor | None = None
        if self.sampling.repetition_penalty != 1.0:
            vocabulary = torch.zeros(len(prompts), self.model.config.vocab_size, dtype=torch.bool, device=device)
            for row, prompt in enumerate(prompts):
                vocabulary[row, torch.tensor(prompt, device=device)] = True
            self.seen = vocabulary.repeat_interleave(n, dim=0)

    def step(self) -> None:
        """Sample one token for each active row, drop the rows that end, run the model on the rest."""
        step = len(self.ids[int(self.active[0])])
        draws = self.draws[self.active, step] if self.draws is not None else None
        token, logprob = choose(self.logits, self.sampling, draws, self.seen)
        last = step + 1 == self.sampling.max_new_tokens
        keep = []
        for row, (index, t, p) in enumerate(zip(self.active.tolist(), token.tolist(), logprob.tolist(), strict=True)):
            self.ids[index].append(t)
            self.logprobs[index].append(p)
            if t in self.stop_ids:
                self.finished[index] = "stop"
            elif last:
                self.finished[index] = "length"
            else:
                keep.append(row)
        if len(keep) < len(self.active):
            self._keep(torch.tensor(keep, dtype=torch.long))
            token = token[torch.tensor(keep, dtype=torch.long, device=token.device)]
        if keep:
            self._forward(token)

    def _keep(self, rows: Tensor) -> None:
        self.active = self.active[rows]
        rows = rows.to(self.model.device)
        self.cache.select(rows)
        self.position = self.position[rows]
        self.mask = self.mask[rows] if self.mask is not None else None
        self.seen = self.seen[rows] if self.seen is not None else None

    def _forward(self, token: Tensor) -> None:
        if self.seen is not None:
            self.seen[torch.arange(len(token), device=token.device), token] = True
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(token), 1)), dim=1)
        hidden = self.model.hidden(
            token[:, None],
            cache=self.cache,
            attention_mask=self.mask,
            position_ids=self.position[:, None] if self.mask is not None else None,
        )
        self.logits = self.model.logits(hidden[:, -1]).float()
        self.position = self.position + 1

    def finish(self) -> list[Continuation]:
        return [
            Continuation(tuple(ids), tuple(logprobs), self.finished[index])
            for index, (ids, logprobs) in enumerate(zip(self.ids, self.logprobs, strict=True))
        ]


def choose(logits: Tensor, sampling: Sampling, draws: Tensor | None, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next token (B,) and its log-probability (B,) from float32 logits (B, V).

    draws: (B,) uniform numbers in [0, 1); the token is where the cumulative probability passes the draw. seen: (B, V)
    tokens the repetition penalty applies to.
    """
    logprobs = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=-1)
    if seen is not None:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if draws is None:
        token = logits.argmax(dim=-1)
    else:
        token = _inverse_cdf(logits / sampling.temperature, sampling.top_k, sampling.top_p, draws.to(logits.device))
    return token, logprobs.gather(-1, token[:, None])[:, 0]


def _inverse_cdf(logits: Tensor, top_k: int | None, top_p: float | None, draws: Tensor) -> Tensor:
    """Sample (B,) tokens from softmax(logits) restricted to the top k and to the nucleus of mass p."""
    index = None
    if top_k is not None or top_p is not None:
        k = min(top_k or logits.size(-1), logits.size(-1))
        logits, index = logits.topk(k, dim=-1)  # sorted, largest first
    probs = torch.softmax(logits, dim=-1)
    if top_p is not None:
        before = probs.cumsum(dim=-1) - probs
        probs = torch.where(before < top_p, probs, 0.0)  # the first token is always kept
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Strictly below the total, even where the product rounds up: the token found then has some mass.
    target = torch.minimum(draws[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    choice = torch.searchsorted(cumulative, target, right=True)
    return (choice if index is None else index.gather(-1, choice))[:, 0]


def _uniform_draws(seeds: Sequence[int], n: int, sampling: Sampling) -> Tensor | None:
    """(len(seeds) * n, max_new_tokens) uniform numbers; row (i, j) depends on seeds[i] and j alone. None if greedy."""
    if sampling.temperature == 0:
        return None
    rows = []
    for seed in seeds:
        for sample in range(n):
            generator = torch.Generator().manual_seed((seed * 1_000_003 + sample) % 2**63)
            rows.append(torch.rand(sampling.max_new_tokens, generator=generator))
    return torch.stack(rows)
