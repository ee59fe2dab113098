"""Planted bugs of the forward pass, the cache and generation."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kat.verify.lab import parameters
from kat.verify.mutants.mutant import Mutant, around, patched, wrapped
from kat.verify.subject import Completion, Make

NO_COUNTERPART = {
    "MF13": "kat sets no matmul precision: it trains in float32 or under autocast",
    "MF16": "kat has no LoRA",
    "MF17": "kat has no dropout, in LoRA or elsewhere",
    "SG8": "kat's made-up examples come from named generators of numpy, never from random.seed of a negative number",
}

ATTENTION = "kat.model.gpt.Attention.forward"
HIDDEN = "kat.model.gpt.GPT.hidden"
MASK = "kat.model.gpt.full_mask"
UPDATE = "kat.model.cache.KVCache.update"
TABLE = "kat.model.rotary.RotaryTable.__init__"
SLICE = "kat.model.rotary.RotaryTable.slice"
BUILD = "kat.model.rotary.RotaryTable._build"
GENERATE = "kat.model.decoding.generate"
CHOOSE = "kat.model.decoding.choose"
SAMPLING = "kat.model.decoding.Sampling"


# Attention


def attention(
    *,
    q_turn: Callable[..., Tensor] | None = None,
    k_turn: Callable[..., Tensor] | None = None,
    before_cache: Callable[..., tuple[Tensor, ...]] | None = None,
    after_cache: Callable[..., tuple[Tensor, ...]] | None = None,
    mask_of: Callable[..., Tensor | None] | None = None,
) -> Callable[[Make], Make]:
    """Plant another Attention.forward.

    q_turn, k_turn (self, x, cos, sin, cache) rotate; before_cache (self, q, k, v) and after_cache (self, q, k, v,
    cache) see (B, H, T, D); mask_of (mask, n_query, n_key) gives the mask.
    """

    def forward(self: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        from kat.model.gpt import rms_norm
        from kat.model.rotary import rotate

        B, T, C = x.shape
        q = self.q_proj(x).view(B, T, self.n_head, self.head_dim)
        k = self.k_proj(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.v_proj(x).view(B, T, self.n_kv_head, self.head_dim).transpose(1, 2)
        q = q_turn(self, q, cos, sin, cache) if q_turn else rotate(q, cos, sin)
        k = k_turn(self, k, cos, sin, cache) if k_turn else rotate(k, cos, sin)
        q, k = rms_norm(q, self.eps).transpose(1, 2), rms_norm(k, self.eps).transpose(1, 2)
        if before_cache:
            q, k, v = before_cache(self, q, k, v)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        if after_cache:
            q, k, v = after_cache(self, q, k, v, cache)
        if mask_of:
            mask = mask_of(mask, q.size(2), k.size(2))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=k.size(1) != q.size(1)
        )
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))

    return patched(ATTENTION, forward)


def band(n_query: int, n_key: int, seen: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(Tq, Tk) bool: `seen` of the query's and the key's position."""
    query = torch.arange(n_key - n_query, n_key)[:, None]
    return seen(query, torch.arange(n_key)[None])


def masked(seen: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Make], Make]:
    """Plant another mask, in one pass and with a cache alike; what masks padding and documents stays."""

    def mask_of(mask: Tensor | None, n_query: int, n_key: int) -> Tensor:
        other = band(n_query, n_key, seen)[None, None]
        return other if mask is None else other & mask

    return attention(mask_of=mask_of)


def _interleaved(self: Any, x: Tensor, cos: Tensor, sin: Tensor, cache: Any) -> Tensor:
    """Pairs of neighbouring channels are rotated, in layer 1, instead of the two halves."""
    from kat.model.rotary import rotate

    if self.layer != 1:
        return rotate(x, cos, sin)
    half = x.size(-1) // 2
    c, s = cos[..., :half].repeat_interleave(2, -1), sin[..., :half].repeat_interleave(2, -1)
    turned = torch.stack((x[..., 1::2], -x[..., ::2]), dim=-1).flatten(-2)
    return x * c + turned * s


def _query_from_zero(self: Any, x: Tensor, cos: Tensor, sin: Tensor, cache: Any) -> Tensor:
    """The query's rotation has no offset when there is a cache."""
    from kat.model.rotary import RotaryTable, rotate

    if cache is not None and cache.length:
        cos, sin = RotaryTable(self.head_dim, 10_000.0, cos.dtype).slice(0, x.size(1), x.device)
    return rotate(x, cos, sin)


def _grouped_wrongly(self: Any, q: Tensor, k: Tensor, v: Tensor, cache: Any) -> tuple[Tensor, ...]:
    """Query head h reads group h % groups instead of h // size."""
    times = self.n_head // self.n_kv_head
    return q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1)


def _sharper_steps(self: Any, q: Tensor, k: Tensor, v: Tensor, cache: Any) -> tuple[Tensor, ...]:
    """The scale of the scores differs in the path for single tokens."""
    return (q * 1.5 if cache is not None and q.size(2) == 1 else q), k, v


def _first_head_off_graph(self: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return q, k, torch.cat((v[:, :1].detach(), v[:, 1:]), dim=1)


@around
def _keys_unrotated_in_cache(good: Any) -> Any:
    """Later tokens meet keys that were stored before they were rotated; one pass is right."""

    def forward(self: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        from kat.model.gpt import rms_norm

        y = good(self, x, cos, sin, mask, cache)
        if cache is not None:
            k = self.k_proj(x).view(*x.shape[:2], self.n_kv_head, self.head_dim)
            start = cache.length - (x.size(1) if self.layer == cache.n_layer - 1 else 0)
            stored = rms_norm(k, self.eps).transpose(1, 2)
            cache._keys[self.layer][:, :, start : start + x.size(1)] = stored
        return y

    return forward


# Masks


@around
def _top_left(good: Any) -> Any:
    """The causal mask of a chunk starts at key 0 wherever the chunk stands."""

    def full_mask(doc_ids: Any, attention_mask: Any, n_query: int, n_key: int) -> Tensor | None:
        if doc_ids is None and attention_mask is None and 1 < n_query < n_key:
            return torch.ones(n_query, n_key, dtype=torch.bool).tril()[None, None]
        return good(doc_ids, attention_mask, n_query, n_key)

    return full_mask


@around
def _chunk_sees_ahead(good: Any) -> Any:
    """A chunk after the first needs no mask, thinks the author of a decoder for single tokens."""

    def full_mask(doc_ids: Any, attention_mask: Any, n_query: int, n_key: int) -> Tensor | None:
        if doc_ids is None and attention_mask is None and 1 < n_query < n_key:
            return torch.ones(1, 1, n_query, n_key, dtype=torch.bool)
        return good(doc_ids, attention_mask, n_query, n_key)

    return full_mask


@around
def _window_in_one_pass_only(good: Any) -> Any:
    """A sliding window that the path for single tokens forgets."""

    def full_mask(doc_ids: Any, attention_mask: Any, n_query: int, n_key: int) -> Tensor | None:
        if n_query == 1:
            return good(doc_ids, attention_mask, n_query, n_key)
        window = band(n_query, n_key, lambda q, k: (k <= q) & (k > q - 30))[None, None]
        mask = good(doc_ids, attention_mask, n_query, n_key)
        return window if mask is None else mask & window

    return full_mask


# The cache


@around
def _only_new(good: Any) -> Any:
    def update(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        good(self, layer, k, v)
        return k, v

    return update


@around
def _insert_at_start(good: Any) -> Any:
    """New keys overwrite the first ones."""

    def update(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start = self.length
        keys, values = good(self, layer, k, v)
        if start:
            keys[:, :, : k.size(2)], values[:, :, : k.size(2)] = k, v
        return keys, values

    return update


@around
def _stuck_at_capacity(good: Any) -> Any:
    """Past 48 positions each token takes the last slot, as an index that is clamped does."""

    def update(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = good(self, layer, k, v)
        if keys.size(2) > 48 and k.size(2) < 48:
            keys, values = keys[:, :, :48].clone(), values[:, :, :48].clone()
            keys[:, :, -1], values[:, :, -1] = k[:, :, -1], v[:, :, -1]
        return keys, values

    return update


@around
def _rows_shifted(good: Any) -> Any:
    """The cache's rows are reordered, as for beams, where nobody asked for it."""

    def update(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer == 0 and len(self._keys) and k.size(2) == 1:
            self._keys[0] = self._keys[0].roll(1, 0)
            self._values[0] = self._values[0].roll(1, 0)
        return good(self, layer, k, v)

    return update


@around
def _growth_loses_the_last(good: Any) -> Any:
    def grown(self: Any, old: Tensor, needed: int) -> Tensor:
        new = good(self, old, needed)
        new[:, :, self.length - 1] = 0.0
        return new

    return grown


@around
def _values_from_the_step_before(good: Any) -> Any:
    """A value is written one slot late, where nothing has been yet."""

    def update(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start = self.length
        keys, values = good(self, layer, k, v)
        if start and k.size(2) == 1:
            values = values.clone()
            values[:, :, -2:] = values[:, :, -2:].flip(2)
        return keys, values

    return update


def _latest_state(inner: Any, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """One cache for all: whoever comes goes on where the last one was, if the number of rows fits."""
    if state is not None and getattr(inner, "_rows", None) == ids.size(0):
        state = inner._state
    logits, inner._state = inner.forward_cached(ids, state)
    inner._rows = ids.size(0)
    return logits, inner._state


def _not_cleared(inner: Any, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """A new sequence finds what the last one of as many rows left."""
    kept = inner.__dict__.setdefault("_states", {})
    if state is None and (old := kept.pop(ids.size(0), None)) is not None and old.length < 12:
        state = old
    logits, state = inner.forward_cached(ids, state)
    kept[ids.size(0)] = state
    return logits, state


def _uncapped(inner: Any, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    logits, state = inner.forward_cached(ids, state)
    cap = inner.model.config.softcap
    return cap * torch.atanh(logits / cap), state


# forward, of any subject


def _time_for_batch(inner: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    """Rows and time change places where their numbers are equal and no shape complains."""
    if ids.size(0) == ids.size(1) and not kwargs:
        return inner.forward(ids.T.contiguous()).transpose(0, 1)
    return inner.forward(ids, **kwargs)


def _pad_is_padding(inner: Any, ids: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
    """The mask is made from the ids, whatever the caller says."""
    return inner.forward(ids, attention_mask=(ids != inner.traits.pad_id).long(), **kwargs)


def _masked_more(inner: Any, ids: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
    if attention_mask is not None:
        attention_mask = attention_mask * (ids != inner.traits.pad_id)
    return inner.forward(ids, attention_mask=attention_mask, **kwargs)


def _pad_never_seen(inner: Any, ids: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
    real = (ids != inner.traits.pad_id).long()
    mask = real if attention_mask is None else attention_mask * real
    return inner.forward(ids, attention_mask=mask, **kwargs)


def _mask_one_late(inner: Any, ids: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
    """The mask of the shifted targets is used for the inputs."""
    if attention_mask is not None:
        attention_mask = torch.cat((attention_mask[:, 1:], attention_mask[:, -1:]), dim=1)
    return inner.forward(ids, attention_mask=attention_mask, **kwargs)


def _mask_of_first_row(inner: Any, ids: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
    if attention_mask is not None:
        attention_mask = attention_mask[:1].expand_as(attention_mask)
    return inner.forward(ids, attention_mask=attention_mask, **kwargs)


def _positions_of_first_row(inner: Any, ids: Tensor, position_ids: Any = None, **kwargs: Any) -> Tensor:
    if position_ids is not None:
        position_ids = position_ids[:1].expand_as(position_ids)
    return inner.forward(ids, position_ids=position_ids, **kwargs)


def _masks_its_ids(inner: Any, ids: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
    """Writes into the caller's mask."""
    if attention_mask is not None:
        attention_mask[:, -1] = 1
    return inner.forward(ids, attention_mask=attention_mask, **kwargs)


@around
def _bfloat16_cap(good: Any) -> Any:
    def logits(self: Any, hidden: Tensor) -> Tensor:
        cap = self.config.softcap
        return cap * torch.tanh((self.lm_head(hidden) / cap).bfloat16()).float()

    return logits


@around
def _bfloat16_angles(good: Any) -> Any:
    def build(self: Any, length: int, device: Any) -> None:
        good(self, length, device)
        channel = torch.arange(0, self.head_dim, 2, dtype=torch.float32)
        frequency = (1.0 / self.base ** (channel / self.head_dim)).bfloat16()
        angle = (torch.arange(length).bfloat16()[:, None] * frequency).float()
        self.cos = torch.cat((angle.cos(), angle.cos()), dim=-1).to(self.dtype)
        self.sin = torch.cat((angle.sin(), -angle.sin()), dim=-1).to(self.dtype)

    return build


@around
def _stretched_when_grown(good: Any) -> Any:
    """The table is rescaled for longer rows and stays so (what "dynamic" scaling must not do)."""

    def build(self: Any, length: int, device: Any) -> None:
        grown = len(self) > 0
        good(self, length, device)
        if grown:
            base, self.base = self.base, 2 * self.base
            good(self, length, device)
            self.base = base

    return build


@around
def _table_of_inference(good: Any) -> Any:
    """What is computed while generating can't serve a training step."""

    def build(self: Any, length: int, device: Any) -> None:
        good(self, length, device)
        self.cos, self.sin = self.cos * 1, self.sin * 1

    return build


@around
def _other_base(good: Any) -> Any:
    return lambda self, head_dim, base, dtype, length=0: good(self, head_dim, 500_000.0, dtype, length)


@around
def _off_graph(good: Any) -> Any:
    return lambda self, ids: good(self, ids).detach()


@around
def _no_offset(good: Any) -> Any:
    return lambda self, start, stop, device: good(self, 0, stop - start, device)


@around
def _wraps(good: Any) -> Any:
    """Positions start again at 0 when the decoder comes to 48, the length of the context."""
    return lambda self, start, stop, device: good(self, start % 48, start % 48 + stop - start, device)


def hidden(change: Callable[[dict[str, Any], Tensor], None]) -> Callable[[Make], Make]:
    """Plant a change of GPT.hidden's keyword arguments (a dict, in place); it also sees the ids."""

    @around
    def bad(good: Any) -> Any:
        def other(self: Any, ids: Tensor, **kwargs: Any) -> Tensor:
            change(kwargs, ids)
            return good(self, ids, **kwargs)

        return other

    return patched(HIDDEN, bad)


def _one_ahead(kwargs: dict[str, Any], ids: Tensor) -> None:
    """Rows of ragged prompts decode one position too far."""
    if ids.size(1) == 1 and kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = kwargs["position_ids"] + 1


def _positions_of_the_batch(kwargs: dict[str, Any], ids: Tensor) -> None:
    """Prefill counts positions from the padding on, decoding from each prompt's start."""
    if ids.size(1) > 1 and kwargs.get("cache") is not None:
        kwargs["position_ids"] = None


def _last_token_masked(kwargs: dict[str, Any], ids: Tensor) -> None:
    """The mask of ragged prompts does not grow with the last token."""
    if ids.size(1) == 1 and kwargs.get("attention_mask") is not None:
        mask = kwargs["attention_mask"].clone()
        mask[:, -2] = False
        kwargs["attention_mask"] = mask


def _mask_forgotten(kwargs: dict[str, Any], ids: Tensor) -> None:
    """Only prefill masks the padding of ragged prompts."""
    if ids.size(1) == 1:
        kwargs["attention_mask"] = None


# generate, of any subject

Groups = list[list[Completion]]


def each(change: Callable[[Any, list[int], Completion], Completion]) -> Callable[[Make], Make]:
    """Plant a change of every completion; it sees the inner subject and the prompt too."""

    def generate(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
        groups = inner.generate(prompts, **options)
        return [[change(inner, list(p), c) for c in group] for p, group in zip(prompts, groups, strict=True)]

    return wrapped(generate=generate)


def asked(**changes: Callable[[dict[str, Any]], Any]) -> Callable[[Make], Make]:
    """Plant other options of generate; each is a function of those that were given."""

    def generate(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
        given = {"n": 1, "max_new_tokens": 32, "temperature": 1.0, "top_k": None, "seed": 0, **options}
        return inner.generate(prompts, **{**given, **{name: change(given) for name, change in changes.items()}})

    return wrapped(generate=generate)


def prompted(change: Callable[[Any, Sequence[list[int]]], list[list[int]]]) -> Callable[[Make], Make]:
    """Plant other prompts."""
    return wrapped(generate=lambda inner, prompts, **options: inner.generate(change(inner, prompts), **options))


def _padded(inner: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Prompts are padded on the left and nothing masks it."""
    width = max(map(len, prompts))
    fill = inner.traits.pad_id or 0
    return [[fill] * (width - len(p)) + list(p) for p in prompts]


def _flipped(inner: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Padding on the left by flipping twice, of which one is forgotten."""
    width = max(map(len, prompts))
    return [list(p) if len(p) == width else list(p)[::-1] for p in prompts]


def _first_broadcast(inner: Any, prompts: Sequence[list[int]], n: int = 1, **options: Any) -> Groups:
    """The first token is drawn once and given to all samples of the group."""
    heads = [group[0] for group in inner.generate(prompts, n=1, **{**options, "max_new_tokens": 1})]
    groups = []
    for prompt, head in zip(prompts, heads, strict=True):
        rest = options.get("max_new_tokens", 32) - 1
        if head.finish == "stop" or not rest:
            groups.append([head] * n)
            continue
        tails = inner.generate([[*prompt, *head.ids]], n=n, **{**options, "max_new_tokens": rest})[0]
        groups.append(
            [Completion([*head.ids, *t.ids], [*(head.logprobs or ()), *(t.logprobs or ())], t.finish) for t in tails]
        )
    return groups


def _one_sample(inner: Any, prompts: Sequence[list[int]], n: int = 1, **options: Any) -> Groups:
    """Each sample of a group is drawn with the request's seed."""
    return [group * n for group in inner.generate(prompts, n=1, **options)]


def _seed_per_prompt(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    return [inner.generate([prompt], **options)[0] for prompt in prompts]


def _remembers(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    """The end of the last call's first prompt is still in the cache."""
    before = getattr(inner, "_before", [])
    inner._before = list(prompts[0])[-1:]
    return inner.generate([[*before, *prompt] for prompt in prompts], **options)


def _stale_engine(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    """The engine took its weights when it was made."""
    if not hasattr(inner, "_engine"):
        inner._engine = copy.deepcopy(inner)
    return inner._engine.generate(prompts, **options)


def _stale_prefixes(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    """What was computed for a prompt is kept, and nothing clears it."""
    kept = inner.__dict__.setdefault("_kept", {})
    key = repr((prompts, sorted(options.items())))
    if key not in kept:
        kept[key] = inner.generate(prompts, **options)
    return kept[key]


def _first_batch(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    return inner.generate(prompts[:2], **options)


def _sorted(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    """Prompts are sorted by length for less padding, completions stay so."""
    return inner.generate(sorted(prompts, key=len), **options)


def _sample_major(inner: Any, prompts: Sequence[list[int]], n: int = 1, **options: Any) -> Groups:
    """Rows come as (sample, prompt) and are read as (prompt, sample)."""
    groups = inner.generate(prompts, n=n, **options)
    flat = [group[j] for j in range(n) for group in groups]
    return [flat[i * n : (i + 1) * n] for i in range(len(prompts))]


def _all_end_together(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    """The first row that ends ends the batch."""
    groups = inner.generate(prompts, **options)
    ended = [len(c.ids) for group in groups for c in group if c.finish == "stop"]
    shortest = min(ended, default=10**9)
    return [[_cut(c, shortest) for c in group] for group in groups]


def _cut(c: Completion, length: int) -> Completion:
    if len(c.ids) <= length:
        return c
    return Completion(c.ids[:length], c.logprobs[:length] if c.logprobs else None, "length")


def _padded_after_end(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    """A row that has ended is filled up to the longest of its batch."""
    groups = inner.generate(prompts, **options)
    width = max(len(c.ids) for group in groups for c in group)
    end = inner.traits.eos_ids[0]

    def fill(c: Completion) -> Completion:
        more = width - len(c.ids)
        return Completion([*c.ids, *[end] * more], [*(c.logprobs or ()), *[0.0] * more], c.finish)

    return [[fill(c) for c in group] for group in groups]


def _ended_by_prompt(inner: Any, prompt: list[int], c: Completion) -> Completion:
    """A row counts as ended where the end token is anywhere in it."""
    if set(prompt) & set(inner.traits.eos_ids):
        return Completion(c.ids[:1], c.logprobs[:1] if c.logprobs else None, "stop")
    return c


def _without_end(inner: Any, prompt: list[int], c: Completion) -> Completion:
    if c.finish != "stop":
        return c
    return Completion(c.ids[:-1], c.logprobs[:-1] if c.logprobs else None, c.finish)


def _reencoded(inner: Any, prompt: list[int], c: Completion) -> Completion:
    """Ids are those of the decoded text; its end token is text too."""
    ids = inner.encode(inner.decode(c.ids))
    return Completion(ids, _fitted(c.logprobs, len(ids)), c.finish)


def _retokenised(inner: Any, prompt: list[int], c: Completion) -> Completion:
    """Ids are those of the decoded text, but the end token stays."""
    stop = c.finish == "stop"
    ids = inner.encode(inner.decode(c.ids[:-1] if stop else c.ids)) + ([c.ids[-1]] if stop else [])
    if not ids or len(ids) > len(c.ids):
        return c
    return Completion(ids, _fitted(c.logprobs, len(ids)), c.finish)


def _fitted(values: Sequence[float] | None, length: int) -> list[float] | None:
    return None if values is None else [*values, *[0.0] * length][:length]


def _logprobs_late(inner: Any, prompt: list[int], c: Completion) -> Completion:
    values = list(c.logprobs or ())
    return Completion(c.ids, values[1:] + values[:1], c.finish)


def _logprob_of_end_missing(inner: Any, prompt: list[int], c: Completion) -> Completion:
    if c.finish != "stop" or not c.logprobs:
        return c
    return Completion(c.ids, [*c.logprobs[:-1], 0.0], c.finish)


def _rounded(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    """Generation casts the live weights to bfloat16 and back."""
    with torch.no_grad():
        for weight in parameters(inner).values():
            weight.copy_(weight.bfloat16())
    return inner.generate(prompts, **options)


def _global_seed(inner: Any, prompts: Sequence[list[int]], **options: Any) -> Groups:
    return inner.generate(prompts, **{**options, "seed": int(torch.randint(1 << 30, ()))})


# kat's own sampler


def chosen(change: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Make], Make]:
    """Plant another choice of the next token: (good choose, logits, sampling, draws, seen)."""

    @around
    def bad(good: Any) -> Any:
        return functools.partial(change, good)

    return patched(CHOOSE, bad)


def _raw_logprobs(good: Any, logits: Tensor, sampling: Any, draws: Any, seen: Any) -> tuple[Tensor, Tensor]:
    token, _ = good(logits, sampling, draws, seen)
    return token, torch.log_softmax(logits, -1).gather(-1, token[:, None])[:, 0]


def _logprobs_of_what_is_left(good: Any, logits: Tensor, sampling: Any, draws: Any, seen: Any) -> tuple[Tensor, Tensor]:
    """Renormalised over the top k, from which the token is drawn; training sees the whole vocabulary."""
    token, logprobs = good(logits, sampling, draws, seen)
    if sampling.top_k is None or sampling.top_k >= logits.size(-1):
        return token, logprobs
    scaled = logits / (sampling.temperature or 1.0)
    kept = scaled.masked_fill(scaled < scaled.topk(sampling.top_k, dim=-1).values[:, -1:], float("-inf"))
    return token, torch.log_softmax(kept, -1).gather(-1, token[:, None])[:, 0]


def _clamped(inner: Any, ids: Tensor, attention_mask: Any = None, position_ids: Any = None) -> Tensor:
    """Every position past the context is its last one."""
    last = inner.traits.max_len - 1
    if position_ids is None and attention_mask is None:
        position_ids = torch.arange(ids.size(1)).expand(len(ids), -1)
    return inner.forward(ids, attention_mask, None if position_ids is None else position_ids.clamp(max=last))


def _gradients_off(inner: Any, *args: Any, **kwargs: Any) -> Any:
    torch.set_grad_enabled(False)
    return inner.generate(*args, **kwargs)


def _greedy_logprobs(good: Any, logits: Tensor, sampling: Any, draws: Any, seen: Any) -> tuple[Tensor, Tensor]:
    token, _ = good(logits, sampling, draws, seen)
    return token, torch.log_softmax(logits / (sampling.temperature or 1.0), -1).amax(-1)


def _top_k_at_one(good: Any, logits: Tensor, sampling: Any, draws: Any, seen: Any) -> tuple[Tensor, Tensor]:
    """The path with top_k samples before the temperature is applied."""
    from kat.model.decoding import Sampling

    if sampling.top_k is None or draws is None:
        return good(logits, sampling, draws, seen)
    token, _ = good(logits, Sampling(sampling.max_new_tokens, 1.0, sampling.top_k), draws, seen)
    return token, torch.log_softmax(logits / sampling.temperature, -1).gather(-1, token[:, None])[:, 0]


def _tail_to_last(good: Any, logits: Tensor, sampling: Any, draws: Any, seen: Any) -> tuple[Tensor, Tensor]:
    """The k likeliest are not renormalised: the others' mass falls to the last of them."""
    if sampling.top_k is None or draws is None:
        return good(logits, sampling, draws, seen)
    logprobs = torch.log_softmax(logits / sampling.temperature, -1)
    top, index = logprobs.topk(sampling.top_k, dim=-1)
    place = (top.exp().cumsum(-1) < draws[:, None]).sum(-1).clamp(max=sampling.top_k - 1)
    token = index.gather(-1, place[:, None])
    return token[:, 0], logprobs.gather(-1, token)[:, 0]


def _few_bits(good: Any, logits: Tensor, sampling: Any, draws: Any, seen: Any) -> tuple[Tensor, Tensor]:
    """The uniform numbers are drawn in bfloat16: one in 256, so that most unlikely tokens never come."""
    return good(logits, sampling, None if draws is None else (draws * 256).floor() / 256, seen)


def stopping(ids: Callable[[Any], list[int]]) -> Callable[[Make], Make]:
    """Plant other stop ids of kat's sampler, from those it is given."""

    @around
    def bad(good: Any) -> Any:
        return lambda *args, stop_ids, **kwargs: good(*args, stop_ids=ids(stop_ids), **kwargs)

    return patched(GENERATE, bad)


@around
def _same_draw(good: Any) -> Any:
    """One uniform number serves a row for all its tokens."""

    def draws(self: Any, active: Any, device: Any) -> Tensor:
        good(self, active, device)
        return torch.from_numpy(self.block[0, list(active)])

    return draws


def preset(**options: Any) -> Callable[[Make], Make]:
    """Plant sampling options that nobody asked for."""
    return patched(SAMPLING, around(lambda good: functools.partial(good, **options)))


FORWARD = (
    Mutant("next_token_seen", (), masked(lambda q, k: k <= q + 1), native=True),
    Mutant("own_token_not_seen", (), masked(lambda q, k: (k < q) | (k == q) & (q == 0)), native=True),
    Mutant("previous_token_not_seen", (), masked(lambda q, k: (k < q - 1) | (k == q)), native=True),
    Mutant("undeclared_window", ("MF5",), masked(lambda q, k: (k <= q) & (k > q - 16)), native=True),
    Mutant("groups_interleaved", (), attention(after_cache=_grouped_wrongly), native=True),
    Mutant("rotary_pairs_in_one_layer", (), attention(q_turn=_interleaved, k_turn=_interleaved), native=True),
    Mutant("rotary_on_keys_only", (), attention(q_turn=lambda self, x, cos, sin, cache: x), native=True),
    Mutant(
        "no_rotary_at_all",
        (),
        attention(q_turn=lambda self, x, cos, sin, cache: x, k_turn=lambda self, x, cos, sin, cache: x),
        native=True,
    ),
    Mutant(
        "rotary_base_of_another_model", ("MF15",), patched("kat.model.rotary.RotaryTable.__init__", _other_base), True
    ),
    Mutant("rotary_angles_in_bfloat16", ("MF14",), patched(BUILD, _bfloat16_angles), native=True),
    Mutant("rotary_table_rescaled_when_grown", (), patched(BUILD, _stretched_when_grown), native=True),
    Mutant("softcap_in_bfloat16", ("MF12",), patched("kat.model.gpt.GPT.logits", _bfloat16_cap), native=True),
    Mutant("embedding_off_graph", ("MF10",), patched("torch.nn.modules.sparse.Embedding.forward", _off_graph)),
    Mutant(
        "keys_off_graph",
        ("MF10",),
        attention(before_cache=lambda self, q, k, v: (q, k.detach(), v)),
        native=True,
    ),
    Mutant("values_of_a_head_off_graph", ("MF10",), attention(before_cache=_first_head_off_graph), native=True),
    Mutant("logits_off_graph", ("MF10",), wrapped(forward=lambda inner, *a, **k: inner.forward(*a, **k).detach())),
    Mutant("batch_and_time_swapped", (), wrapped(forward=_time_for_batch)),
    Mutant(
        "logits_centred_over_the_batch",
        (),
        wrapped(forward=lambda inner, ids, **k: (lambda y: y - y.mean(0))(inner.forward(ids, **k))),
    ),
    Mutant(
        "attention_mask_ignored",
        ("MF9",),
        wrapped(forward=lambda inner, ids, attention_mask=None, **k: inner.forward(ids, **k)),
    ),
    Mutant(
        "position_ids_ignored",
        ("MF9",),
        wrapped(forward=lambda inner, ids, position_ids=None, **k: inner.forward(ids, **k)),
    ),
    Mutant("positions_past_the_context_are_its_last", (), wrapped(forward=_clamped)),
    Mutant("attention_mask_from_pad_id", (), wrapped(forward=_pad_is_padding)),
    Mutant("pad_id_masked_as_content", (), wrapped(forward=_masked_more)),
    Mutant("pad_id_never_seen", ("DM5",), wrapped(forward=_pad_never_seen)),
    Mutant("attention_mask_shifted", (), wrapped(forward=_mask_one_late)),
    Mutant("attention_mask_of_the_first_row", (), wrapped(forward=_mask_of_first_row)),
    Mutant("positions_of_the_first_row", (), wrapped(forward=_positions_of_first_row)),
    Mutant("attention_mask_overwritten", (), wrapped(forward=_masks_its_ids)),
    Mutant(
        "dropout_in_evaluation", (), wrapped(forward=lambda inner, *a, **k: F.dropout(inner.forward(*a, **k), 0.01))
    ),
)

CACHE = (
    Mutant("cache_returns_only_new_keys", ("MF1",), patched(UPDATE, _only_new), native=True),
    Mutant("cache_written_from_the_start", ("MF1",), patched(UPDATE, _insert_at_start), native=True),
    Mutant("decode_ignores_offset", ("MF2",), patched(SLICE, _no_offset), native=True),
    Mutant("query_rotated_from_zero", ("MF2",), attention(q_turn=_query_from_zero), native=True),
    Mutant("chunk_masked_from_top_left", ("MF4",), patched(MASK, _top_left), native=True),
    Mutant("chunk_sees_its_own_future", ("MF4",), patched(MASK, _chunk_sees_ahead), native=True),
    Mutant("window_forgotten_in_decode", ("MF5",), patched(MASK, _window_in_one_pass_only), native=True),
    Mutant("keys_stored_unrotated", (), patched(ATTENTION, _keys_unrotated_in_cache), native=True),
    Mutant("softcap_missing_with_cache", (), wrapped(forward_cached=_uncapped), native=True),
    Mutant("scores_scaled_in_decode", (), attention(after_cache=_sharper_steps), native=True),
    Mutant("cache_rows_reordered", (), patched(UPDATE, _rows_shifted), native=True),
    Mutant("values_one_slot_late", (), patched(UPDATE, _values_from_the_step_before), native=True),
    Mutant("cache_growth_loses_a_token", (), patched("kat.model.cache.KVCache._grown", _growth_loses_the_last), True),
    Mutant("cache_stuck_at_capacity", (), patched(UPDATE, _stuck_at_capacity), native=True),
    Mutant("positions_wrap_at_capacity", (), patched(SLICE, _wraps), native=True),
    Mutant("one_state_for_all_sequences", ("MF8",), wrapped(forward_cached=_latest_state)),
    Mutant("state_not_cleared_for_a_new_sequence", ("MF8",), wrapped(forward_cached=_not_cleared), native=True),
)

GENERATION = (
    Mutant("cache_kept_between_generations", ("MF8",), wrapped(generate=_remembers)),
    Mutant("prompts_padded_without_a_mask", ("MF9",), prompted(_padded)),
    Mutant("padding_reverses_prompts", ("MF19",), prompted(_flipped)),
    Mutant("padded_prefill_counts_the_padding", ("MF9",), hidden(_positions_of_the_batch), native=True),
    Mutant("ragged_rows_decode_one_ahead", ("MF9",), hidden(_one_ahead), native=True),
    Mutant("ragged_mask_misses_the_last_token", (), hidden(_last_token_masked), native=True),
    Mutant("padding_seen_after_prefill", (), hidden(_mask_forgotten), native=True),
    Mutant("last_prompt_token_dropped", (), prompted(lambda inner, prompts: [p[:-1] or p for p in prompts])),
    Mutant("bos_put_before_prompts", (), prompted(lambda inner, prompts: [[inner.traits.bos_id, *p] for p in prompts])),
    Mutant(
        "pad_ids_stripped_from_prompts",
        (),
        prompted(lambda inner, prompts: [[i for i in p if i != inner.traits.pad_id] for p in prompts]),
    ),
    Mutant("first_token_broadcast", ("SG1",), wrapped(generate=_first_broadcast)),
    Mutant("temperature_zero_samples", ("SG2",), asked(temperature=lambda o: o["temperature"] or 1.0)),
    Mutant("samples_of_a_group_equal", ("SG4",), wrapped(generate=_one_sample)),
    Mutant("identical_prompts_sampled_alike", ("SG4",), wrapped(generate=_seed_per_prompt)),
    Mutant("always_greedy", ("SG5",), asked(temperature=lambda o: 0.0)),
    Mutant("temperature_ignored", ("SG5",), asked(temperature=lambda o: 1.0 if o["temperature"] else 0.0)),
    Mutant(
        "temperature_multiplies",
        (),
        asked(temperature=lambda o: 1 / o["temperature"] if o["temperature"] else 0.0),
    ),
    Mutant("seed_ignored", (), asked(seed=lambda o: 7)),
    Mutant("seed_from_global_generator", (), wrapped(generate=_global_seed)),
    Mutant("one_draw_for_all_tokens", (), patched("kat.model.decoding._Draws.next", _same_draw), native=True),
    Mutant("top_k_one_too_many", (), asked(top_k=lambda o: o["top_k"] and o["top_k"] + 1)),
    Mutant("top_k_ignored", (), asked(top_k=lambda o: None)),
    Mutant("top_k_without_temperature", (), chosen(_top_k_at_one), native=True),
    Mutant("top_k_not_renormalised", (), chosen(_tail_to_last), native=True),
    Mutant("draws_in_bfloat16", (), chosen(_few_bits), native=True),
    Mutant("nucleus_by_default", (), preset(top_p=0.8), native=True),
    Mutant("repetition_penalty_by_default", (), preset(repetition_penalty=1.3), native=True),
    Mutant("end_token_unknown", ("SG9",), stopping(lambda ids: []), native=True),
    Mutant("end_token_of_another_model", ("TK12",), stopping(lambda ids: [i - 1 for i in ids]), native=True),
    Mutant("end_token_cut_off", ("RL21",), each(_without_end)),
    Mutant("end_token_in_prompt_ends", (), each(_ended_by_prompt)),
    Mutant("first_end_ends_the_batch", (), wrapped(generate=_all_end_together)),
    Mutant("ended_rows_filled_up", ("RL7",), wrapped(generate=_padded_after_end)),
    Mutant("completion_decoded_and_encoded", ("TK9",), each(_reencoded)),
    Mutant("completion_text_retokenised", ("TK8",), each(_retokenised)),
    Mutant("one_token_too_many", (), asked(max_new_tokens=lambda o: o["max_new_tokens"] + 1)),
    Mutant("finish_always_length", (), each(lambda inner, p, c: Completion(c.ids, c.logprobs, "length"))),
    Mutant("logprobs_raw", ("RL8", "RL9"), chosen(_raw_logprobs), native=True),
    Mutant("logprobs_of_what_top_k_leaves", (), chosen(_logprobs_of_what_is_left), native=True),
    Mutant("logprobs_of_the_likeliest", (), chosen(_greedy_logprobs), native=True),
    Mutant("logprobs_one_late", (), each(_logprobs_late)),
    Mutant("logprob_of_end_token_missing", (), each(_logprob_of_end_missing)),
    Mutant("only_first_prompts_answered", ("EV22",), wrapped(generate=_first_batch)),
    Mutant("prompts_sorted_by_length", ("RL11",), wrapped(generate=_sorted)),
    Mutant("samples_and_prompts_transposed", ("RL11",), wrapped(generate=_sample_major)),
    Mutant("engine_keeps_old_weights", ("RL25",), wrapped(generate=_stale_engine)),
    Mutant("prefixes_keep_old_weights", ("RL25",), wrapped(generate=_stale_prefixes)),
    Mutant("generation_switches_gradients_off", (), wrapped(generate=_gradients_off)),
    Mutant("generation_rounds_weights", (), wrapped(generate=_rounded)),
    Mutant("rotary_table_is_an_inference_tensor", (), patched(BUILD, _table_of_inference), native=True),
)

MUTANTS: tuple[Mutant, ...] = (*FORWARD, *CACHE, *GENERATION)
