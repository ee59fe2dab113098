"""Rotary position embedding (Su et al., arXiv:2104.09864) with a table that only ever grows."""

import torch
from torch import Tensor


class RotaryTable:
    """cos and sin of position x frequency, computed once and sliced; (length, head_dim), the halves (c, c) and (s, -s).

    The table is rebuilt (twice as long) only when a position beyond its end is asked for, so decoding one token at a
    time costs a slice. Growing never changes a value that was there: entry (t, i) depends on t and i alone.
    """

    def __init__(self, head_dim: int, base: float, dtype: torch.dtype, length: int = 0) -> None:
        self.head_dim, self.base, self.dtype = head_dim, base, dtype
        self.cos = self.sin = torch.empty(0, head_dim, dtype=dtype)
        if length:
            self._build(length, torch.device("cpu"))

    def __len__(self) -> int:
        return self.cos.size(0)

    def slice(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of positions start..stop-1, each (1, stop - start, 1, head_dim)."""
        self._ensure(stop, device)
        return self.cos[None, start:stop, None], self.sin[None, start:stop, None]

    def gather(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at position_ids (B, T), each (B, T, 1, head_dim)."""
        self._ensure(int(position_ids.max()) + 1, position_ids.device)
        return self.cos[position_ids][:, :, None], self.sin[position_ids][:, :, None]

    def _ensure(self, length: int, device: torch.device) -> None:
        if self.cos.device != device:
            self._build(max(length, len(self)), device)
        elif length > len(self):
            self._build(max(length, 2 * len(self)), device)

    @torch.inference_mode(False)  # a table built while generating must serve a training step later
    def _build(self, length: int, device: torch.device) -> None:
        channel = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device)
        frequency = 1.0 / (self.base ** (channel / self.head_dim))
        angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)  # (length, D/2)
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        self.cos, self.sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, -sin), dim=-1)  # (length, D)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, T, H, D) by -theta, as nanochat and transformers' NanoChat do.

    With sin = (s, -s) this is (x1 c + x2 s, x2 c - x1 s), in four operations instead of seven.
    """
    x1, x2 = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((x2, x1), dim=-1) * sin).to(x.dtype)
