"""Token-level data: examples as aligned ids and supervision masks in flat arrays."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kat.data.choices import AnswerStyle, ChoiceItem, conversation
from kat.data.examples import Document, Example
from kat.errors import UsageError
from kat.tokenizer.bpe import Tokenizer
from kat.tokenizer.chat import render_conversation

CHUNK_CHARS = 4_000_000  # documents encoded at once: bounds the memory that Python integers take


@dataclass(frozen=True, eq=False)
class TokenData:
    """Examples as tokens. Example i is ``ids[offsets[i]:offsets[i + 1]]``, named ``names[i]``.

    `mask` is aligned with the tokens themselves: 1 where a token is supervised, that is, where it is a target. The
    first token of an example never is: nothing of its own example stands before it. `n_cut` examples were shortened
    to the maximal length, `n_dropped` had no supervised token (left) and are not here.
    """

    ids: np.ndarray  # (N,) int32
    mask: np.ndarray  # (N,) uint8
    offsets: np.ndarray  # (n + 1,) int64
    names: tuple[str, ...]
    n_cut: int = 0
    n_dropped: int = 0

    def __post_init__(self) -> None:
        if self.ids.dtype != np.int32 or self.mask.dtype != np.uint8 or self.offsets.dtype != np.int64:
            raise ValueError("TokenData holds int32 ids, uint8 masks and int64 offsets")
        if self.ids.shape != self.mask.shape or len(self.offsets) != len(self.names) + 1:
            raise ValueError("TokenData: ids and mask differ in length, or offsets and names do")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.ids) or (self.lengths < 2).any():
            raise ValueError("TokenData: the offsets must rise from 0 to the number of tokens by at least 2")
        if self.mask[self.offsets[:-1]].any():
            raise ValueError("TokenData: the first token of an example can't be supervised")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n,) int64: the tokens of each example."""
        return np.diff(self.offsets)

    @property
    def n_supervised(self) -> int:
        """How many tokens are targets in one epoch."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def hash(self) -> str:
        """sha256 of the ids, masks and offsets, little-endian: equal data, equal hash, on any machine."""
        digest = hashlib.sha256()
        for array, dtype in ((self.offsets, "<i8"), (self.ids, "<i4"), (self.mask, "u1")):
            digest.update(np.ascontiguousarray(array, dtype=dtype).data)
        return digest.hexdigest()


def encode_examples(
    examples: Iterable[Example],
    tok: Tokenizer,
    *,
    max_len: int | None,
    supervise_prompts: bool = False,
    style: AnswerStyle = AnswerStyle.LETTER,
) -> TokenData:
    """Encode documents, conversations and choice items, in their order.

    A document is BOS + text + EOS, all supervised but the BOS; longer than `max_len` tokens it is split into pieces
    that overlap by one token, so that each token but the BOS is a target exactly once (later pieces are named
    ``id#1``, ``id#2``, …). A conversation supervises the assistant's messages and their end tokens, or everything but
    its first token with `supervise_prompts`; longer than `max_len` it is cut on the right, and dropped where no
    supervised token is left. A row of T inputs holds T + 1 tokens: pass ``max_len=T + 1``.
    """
    if max_len is not None and max_len < 2:
        raise UsageError(f"max_len {max_len}: an example needs at least two tokens")
    arrays = _Arrays(max_len)
    for batch in _batches(examples):
        documents = iter(tok.encode_batch([e.text for e in batch if isinstance(e, Document)]))
        for example in batch:
            if isinstance(example, Document):
                arrays.add_document(example.id, [tok.bos_id, *next(documents), tok.eos_id])
                continue
            messages = conversation(example, style) if isinstance(example, ChoiceItem) else list(example.messages)
            ids, mask = render_conversation(tok, messages)
            arrays.add_conversation(example.id, ids, [0] + [1] * (len(ids) - 1) if supervise_prompts else mask)
    return arrays.finish()


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Runs of examples with about CHUNK_CHARS characters of documents in each."""
    batch: list[Example] = []
    n_chars = 0
    for example in examples:
        batch.append(example)
        n_chars += len(example.text) if isinstance(example, Document) else 0
        if n_chars >= CHUNK_CHARS or len(batch) >= 10_000:
            yield batch
            batch, n_chars = [], 0
    if batch:
        yield batch


class _Arrays:
    """Collects examples; the lists of Python integers live only until they are packed into arrays."""

    def __init__(self, max_len: int | None) -> None:
        self.max_len = max_len
        self.ids: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        self.names: list[str] = []
        self.n_cut = 0
        self.n_dropped = 0

    def add_document(self, name: str, ids: Sequence[int]) -> None:
        array = np.asarray(ids, dtype=np.int32)
        step = (self.max_len or len(array)) - 1
        for piece, start in enumerate(range(0, len(array) - 1, step)):
            part = array[start : start + step + 1]
            mask = np.ones(len(part), dtype=np.uint8)
            mask[0] = 0
            self._add(name if piece == 0 else f"{name}#{piece}", part, mask)

    def add_conversation(self, name: str, ids: Sequence[int], mask: Sequence[int]) -> None:
        mask_array = np.asarray(mask[: self.max_len], dtype=np.uint8)
        mask_array[:1] = 0
        if not mask_array.any():
            self.n_dropped += 1
            return
        if self.max_len is not None and len(ids) > self.max_len:
            self.n_cut += 1
        self._add(name, np.asarray(ids[: self.max_len], dtype=np.int32), mask_array)

    def _add(self, name: str, ids: np.ndarray, mask: np.ndarray) -> None:
        self.names.append(name)
        self.ids.append(ids)
        self.masks.append(mask)

    def finish(self) -> TokenData:
        offsets = np.zeros(len(self.names) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in self.ids], out=offsets[1:])
        return TokenData(
            ids=np.concatenate([np.zeros(0, np.int32), *self.ids]),
            mask=np.concatenate([np.zeros(0, np.uint8), *self.masks]),
            offsets=offsets,
            names=tuple(self.names),
            n_cut=self.n_cut,
            n_dropped=self.n_dropped,
        )
