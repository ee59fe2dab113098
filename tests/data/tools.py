"""Small token data to pack and cut: every token of it is known by where it stands."""

import numpy as np
from hypothesis import strategies as st

from kat.data.tokens import TokenData

PAD = 999_999


def token_data(lengths: list[int], masks: list[list[int]] | None = None) -> TokenData:
    """Token k has the id k, so that a batch tells where each of its tokens comes from."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = np.ones(offsets[-1], np.uint8) if masks is None else np.concatenate(masks).astype(np.uint8)
    mask[offsets[:-1]] = 0
    ids = np.arange(offsets[-1], dtype=np.int32)
    return TokenData(ids, mask, offsets, tuple(f"e{k}" for k in range(len(lengths))))


def supervised_pairs(data: TokenData) -> list[tuple[int, int]]:
    """(input, target) for each supervised token, from the definition: the loss predicts ids[1:] where mask[1:]."""
    pairs = []
    for start, end in zip(data.offsets[:-1].tolist(), data.offsets[1:].tolist(), strict=True):
        pairs += [(k - 1, k) for k in range(start + 1, end) if data.mask[k]]
    return sorted(pairs)


@st.composite
def datas(draw: st.DrawFn, max_len: int = 12, max_examples: int = 30) -> TokenData:
    lengths = draw(st.lists(st.integers(2, max_len), min_size=1, max_size=max_examples))
    masks = [draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for n in lengths]
    return token_data(lengths, masks)
