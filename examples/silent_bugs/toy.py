"""A model of a few hundred weights, for repositories whose training code takes any model: one layer of attention over
learned positions. It honours an attention mask (keys only), explicit positions and a full (B, T, T) mask."""

from typing import Any

import torch
from torch import Tensor, nn


class Toy(nn.Module):
    def __init__(self, vocab: int = 48, width: int = 16, max_len: int = 64, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens = nn.Embedding(vocab, width)
        self.places = nn.Embedding(max_len, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, vocab)

    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V). seen: (B, T, T), true where a query may look."""
        rows, length = ids.shape
        if position_ids is None:
            position_ids = torch.arange(length).expand(rows, length)
            if attention_mask is not None:
                position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids) + self.places(position_ids)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if seen is None:
            seen = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, length, length)
        if attention_mask is not None:
            itself = torch.eye(length, dtype=torch.bool)
            seen = seen & (attention_mask.bool()[:, None, :] | itself)
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
        return self.head(x + scores.softmax(-1) @ v)


class WithToy:
    """The methods of a subject that the toy model gives."""

    VOCAB = 48
    MAX_LEN = 64

    def __init__(self, seed: int) -> None:
        self.model = Toy(self.VOCAB, max_len=self.MAX_LEN, seed=seed)

    def named_parameters(self) -> Any:
        return self.model.named_parameters()

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        return self.model(ids, attention_mask, position_ids)


class Bytes:
    """A tokenizer of bytes; `first` ids are left to special tokens."""

    def __init__(self, first: int = 3) -> None:
        self.first = first
        self.vocab_size = 256 + first

    def encode(self, text: str) -> list[int]:
        return [byte + self.first for byte in text.encode()]

    def decode(self, ids: Any) -> str:
        return bytes(i - self.first for i in ids if 0 <= i - self.first < 256).decode(errors="replace")


def padded(rows: Any, pad_id: int, side: str = "right") -> tuple[Tensor, Tensor, Tensor]:
    """Ids, supervised mask and attention mask of ragged rows: the plainest collate."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask, attention = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (tokens, supervised) in enumerate(rows):
        place = slice(0, len(tokens)) if side == "right" else slice(longest - len(tokens), longest)
        ids[row, place], mask[row, place] = torch.tensor(tokens), torch.tensor(supervised)
        attention[row, place] = 1
    return ids, mask, attention
