"""Decoding with a cache against one pass without."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kat.verify.check import Failed, check
from kat.verify.lab import Lab

NEEDS = {"forward", "forward_cached", "named_parameters"}
LONGEST = 512  # of contexts that are filled to the last position


@check(family="cache", level=1, needs=NEEDS, kind="metamorphic", tol=1e-4, catches=("MF1", "MF2", "MF5"))
def decode_matches_forward(lab: Lab) -> None:
    """Prefill and single steps with a cache give the logits of one pass over all tokens."""
    subject = lab.randomised()
    lab.require_context(subject)
    end = min(lab.traits.max_len, 96)
    plan = [(1, 4, 1), (1, 8, 3), (2, 12, 6), (3, end, 1), (2, end, end // 2)]
    if lab.large:  # to the same length, in fewer steps
        plan = [(1, 8, 3), (2, 12, 6), (2, end, max(1, end - 16))]
    for batch, length, prefill in plan:
        _compare(lab, subject, batch, [prefill] + [1] * (length - prefill))
    window = lab.traits.window
    if window is not None and end <= window < min(lab.traits.max_len, LONGEST):
        _compare(lab, subject, 2, [window - 2] + [1] * min(6, lab.traits.max_len - window + 2))


@check(family="cache", level=1, needs=NEEDS, kind="metamorphic", tol=1e-4, catches=("MF4", "MF1", "MF5"))
def chunked_prefill_matches_forward(lab: Lab) -> None:
    """Tokens fed to a cache in chunks of any sizes give the logits of one pass over all tokens."""
    subject = lab.randomised()
    lab.require_context(subject)
    end = min(lab.traits.max_len, 96)
    plans = [
        (1, [1, 2]),
        (1, [2, 2]),
        (1, [3, 1, 3]),
        (2, [2, 5, 1, 1, 3]),
        (3, [7, 2, 1, 4]),
        (2, _filled([1, 7, 2, 13, 1], end)),
        (2, _filled([8] * (end // 8), end)),
    ]
    for batch, chunks in plans[2:6] if lab.large else plans:
        _compare(lab, subject, batch, chunks)
    window = lab.traits.window
    if window is not None:
        for chunks in ([window - 1, 3, 2], [window + 2, 3], [2, window, 4]):
            if min(chunks) > 0 and sum(chunks) <= min(lab.traits.max_len, LONGEST):
                _compare(lab, subject, 2, chunks)
    if end < lab.traits.max_len <= LONGEST:  # to the last position
        _compare(lab, subject, 1, [lab.traits.max_len - 6, 2, 1, 1, 2])


@check(family="cache", level=1, needs=NEEDS, kind="metamorphic", tol=1e-4, catches=("MF8",))
def cache_states_are_separate(lab: Lab) -> None:
    """Sequences that are decoded in turns, each with a state of its own, do not disturb each other, nor does a plain
    pass in between; a new state remembers nothing."""
    subject = lab.randomised()
    lab.require_context(subject)
    length = min(12, lab.traits.max_len)
    for sizes in ((1, 1), (2, 2), (1, 3), (3, 1, 2)):
        rows = [lab.ids(size, length) for size in sizes]
        with torch.no_grad():
            expected = [lab.forward(subject, ids) for ids in rows]
            states: list[Any] = [None] * len(rows)
            parts: list[list[Tensor]] = [[] for _ in rows]
            # The sequences are of different lengths at any time.
            starts = [0] * len(rows)
            while min(starts) < length:
                for i, ids in enumerate(rows):
                    chunk = ids[:, starts[i] : starts[i] + (i + 1 if starts[i] else 3)]
                    if chunk.size(1):
                        logits, states[i] = lab.forward_cached(subject, chunk, states[i])
                        parts[i].append(logits.clone())
                        starts[i] += chunk.size(1)
                lab.forward(subject, rows[0][:, :5])
        for part, want in zip(parts, expected, strict=True):
            lab.close(
                torch.cat(part, dim=1),
                want,
                "logits of sequences that are decoded in turns differ from those of one pass",
                case=f"{len(sizes)} states of {sizes} rows, {length} tokens each",
            )


@check(family="cache", level=1, needs=NEEDS, kind="metamorphic", tol=1e-4, catches=("MF1",))
def cache_is_right_or_refuses_beyond_max_len(lab: Lab) -> None:
    """A step past the longest row either raises or gives the logits that one pass over all the tokens gives."""
    end = lab.traits.max_len
    lab.require(end <= LONGEST, f"max_len {end} is too long to fill here")
    subject = lab.randomised()
    rows = 1 if lab.large else 2
    ids = lab.ids(rows, end + 4)
    with torch.no_grad():
        _, state = lab.forward_cached(subject, ids[:, : end - 1])
        logits, state = lab.forward_cached(subject, ids[:, end - 1 : end], state)
        lab.close(
            logits[:, 0], lab.forward(subject, ids[:, :end])[:, -1], "logits at the last position of the context differ"
        )
        for chunk in (1, 3):
            try:
                logits, state = lab.forward_cached(subject, ids[:, end : end + chunk], state)
            except Exception:  # noqa: BLE001 (refusing is right, in whatever words)
                return
            end += chunk
            case = f"{rows} row(s), {chunk} more token(s), {end} in all, max_len {lab.traits.max_len}"
            try:
                expected = lab.forward(subject, ids[:, :end])[:, -chunk:]
            except Exception:  # noqa: BLE001
                raise Failed("cached decoding goes on silently where forward refuses the row", case=case) from None
            lab.close(logits, expected, "cached decoding past max_len is silently wrong", case=case)


def _compare(lab: Lab, subject: Any, batch: int, chunks: Sequence[int]) -> None:
    """Feed rows in these chunks; fail where the logits are not those of one pass."""
    ids = lab.ids(batch, sum(chunks))
    parts, state, start = [], None, 0
    with torch.no_grad():
        expected = lab.forward(subject, ids)
        for size in chunks:
            logits, state = lab.forward_cached(subject, ids[:, start : start + size], state)
            parts.append(logits.clone())
            start += size
    shown = list(chunks) if len(chunks) <= 8 else f"{chunks[0]}, {chunks[1]}, … ({len(chunks)} of them)"
    lab.close(
        torch.cat(parts, dim=1),
        expected,
        "logits of cached decoding differ from those of one pass",
        case=f"{batch} row(s) of {ids.size(1)} tokens in chunks of {shown}",
    )


def _filled(chunks: Sequence[int], length: int) -> list[int]:
    """As many of the chunks as fit, and one more up to the length."""
    kept: list[int] = []
    for size in chunks:
        if sum(kept) + size < length:
            kept.append(size)
    return [*kept, length - sum(kept)]
