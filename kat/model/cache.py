"""The key/value cache of incremental decoding."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, concatenated along time.

    Storage is (B, H_kv, capacity, D) a layer and doubles when it is full; what was stored is copied, never moved to
    another position. ``length`` counts the stored time steps and advances when the last layer has been updated, so
    that all layers of one forward pass see the same start.
    """

    def __init__(self, n_layer: int, capacity: int = 0) -> None:
        self.n_layer, self.capacity, self.length = n_layer, capacity, 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (B, H_kv, T, D) of `layer`; return all keys and values so far (B, H_kv, length + T, D)."""
        end = self.length + k.size(2)
        if layer == len(self._keys):
            shape = (k.size(0), k.size(1), max(end, self.capacity), k.size(3))
            self._keys.append(k.new_empty(shape))
            self._values.append(v.new_empty(shape))
        elif end > self._keys[layer].size(2):
            self._keys[layer] = self._grown(self._keys[layer], end)
            self._values[layer] = self._grown(self._values[layer], end)
        self._keys[layer][:, :, self.length : end] = k
        self._values[layer][:, :, self.length : end] = v
        keys, values = self._keys[layer][:, :, :end], self._values[layer][:, :, :end]
        if layer == self.n_layer - 1:
            self.length = end
        return keys, values

    def _grown(self, old: Tensor, needed: int) -> Tensor:
        shape = (old.size(0), old.size(1), max(needed, 2 * old.size(2)), old.size(3))
        new = old.new_empty(shape)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def reset(self) -> None:
        """Forget everything; the next update may have another batch size."""
        self.length = 0
        self._keys.clear()
        self._values.clear()

    def repeat(self, n: int) -> None:
        """Give each row n copies of itself, neighbours in the batch: n samples then share one prefill."""
        self._keys = [k.repeat_interleave(n, dim=0) for k in self._keys]
        self._values = [v.repeat_interleave(n, dim=0) for v in self._values]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (finished ones are dropped while the others go on)."""
        self._keys = [k[rows] for k in self._keys]
        self._values = [v[rows] for v in self._values]

    def row_bytes(self) -> int:
        """Bytes that one row of the batch occupies now."""
        stored = [*self._keys, *self._values]
        return sum(t.numel() * t.element_size() for t in stored) // stored[0].size(0) if stored else 0


def full_mask(doc_ids: Tensor | None, attention_mask: Tensor | None, n_query: int, n_key: int) -> Tensor | None:
    """Which key each query may see, (B or 1, 1, Tq, Tk) bool; None where plain causal attention says it all.

    A query sees keys up to its own position, in its own document, that are not padding. Its own position is always
    seen, so that the row of a padding token has something to normalise over.

    doc_ids: (B, Tk) document of each token in a packed row. attention_mask: (B, Tk), 0 = padding.
    """
    if doc_ids is None and attention_mask is None and (n_query == n_key or n_query == 1):
        return None
    source = doc_ids if doc_ids is not None else attention_mask
    device = source.device if source is not None else None
    query = torch.arange(n_key - n_query, n_key, device=device)[:, None]
    key = torch.arange(n_key, device=device)[None, :]
    mask = (key <= query)[None]  # (1, Tq, Tk)
    if doc_ids is not None:
        mask = mask & (doc_ids[:, n_key - n_query :, None] == doc_ids[:, None, :])
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, :].bool()
    return (mask | (key == query)[None])[:, None]
