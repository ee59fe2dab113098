"""A small correct trainer that shares no code with kat, and ways to break it; adapters for tests."""

import math
import time
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
        y = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp(self.norm2(x))


class Toy(nn.Module):
    def __init__(self, vocab: int = 50, d: int = 24, context: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, d), nn.Embedding(context, d)
        self.blocks = nn.ModuleList(Block(d, 4) for _ in range(2))
        self.head = nn.Linear(d, vocab)

    def forward(self, ids, attention_mask=None, position_ids=None):
        T = ids.size(1)
        mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
        if attention_mask is not None:
            mask = (mask & attention_mask.bool()[:, None, None, :]) | torch.eye(T, dtype=torch.bool)
            if position_ids is None:
                position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        if position_ids is None:
            position_ids = torch.arange(T)[None]
        x = self.tokens(ids) + self.positions(position_ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


class ToySubject:
    traits: ClassVar = {"name": "toy", "vocab": 50, "max_len": 32, "positions": "absolute", "pad_id": 0, "eos_ids": 1}

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Toy()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0)

    def forward(self, ids, attention_mask=None, position_ids=None):
        return self.model(ids, attention_mask, position_ids)

    def named_parameters(self):
        return self.model.named_parameters()

    def collate(self, rows):
        width = max(len(ids) for ids, _ in rows)
        batch = {name: torch.zeros(len(rows), width, dtype=torch.long) for name in ("ids", "mask", "attention_mask")}
        for i, (ids, mask) in enumerate(rows):
            batch["ids"][i, : len(ids)] = torch.tensor(ids)
            batch["mask"][i, 1 : len(ids)] = torch.tensor(mask[1:])
            batch["attention_mask"][i, : len(ids)] = 1
        return batch

    def loss(self, batch):
        return self._sum(batch) / max(1, int(batch["mask"].sum()))

    def _sum(self, batch):
        logits = self.model(batch["ids"], batch["attention_mask"])[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), batch["ids"][:, 1:], reduction="none")
        return (losses * batch["mask"][:, 1:]).sum()

    def accumulate(self, micro_batches):
        n = sum(int(batch["mask"].sum()) for batch in micro_batches)
        for batch in micro_batches:
            (self._sum(batch) / n).backward()

    def train_step(self, micro_batches):
        self.optimizer.zero_grad()
        n = sum(int(batch["mask"].sum()) for batch in micro_batches)
        loss = sum(float(self._sum(batch).detach()) for batch in micro_batches) / n
        self.accumulate(micro_batches)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), 1e9))
        if not math.isfinite(norm):
            raise ArithmeticError("gradient is not finite")
        self.optimizer.step()
        return {"loss": loss, "lr": 1e-3, "grad_norm": norm, "supervised_tokens": n}

    def lr(self, step):
        return 1e-3

    def param_groups(self):
        return self.optimizer.param_groups


def make(seed=0, tiny=True):
    return ToySubject(seed)


class Raises(ToySubject):
    def forward(self, ids, attention_mask=None, position_ids=None):
        raise RuntimeError("no\nforward <b>today</b>")


class Hangs(ToySubject):
    def forward(self, ids, attention_mask=None, position_ids=None):
        while True:
            try:
                time.sleep(10)
            except Exception:  # noqa: BLE001 (what a stranger's code may do)
                continue


class WrongShape(ToySubject):
    def forward(self, ids, attention_mask=None, position_ids=None):
        return super().forward(ids)[:, -1]


class NotANumber(ToySubject):
    def forward(self, ids, attention_mask=None, position_ids=None):
        return super().forward(ids) * math.nan


class Quits(ToySubject):
    def forward(self, ids, attention_mask=None, position_ids=None):
        raise SystemExit(0)


class NoContext(ToySubject):
    def forward(self, ids, attention_mask=None, position_ids=None):
        return self.model.head(self.model.tokens(ids))


class SeesTheFuture(ToySubject):
    def forward(self, ids, attention_mask=None, position_ids=None):
        return super().forward(ids) + super().forward(ids.flip(1)).flip(1)


class WrongTrait(ToySubject):
    traits: ClassVar = {"name": "toy", "vocab": 50, "colour": "red"}


def maker(kind):
    def made(seed=0, tiny=True):
        return kind(seed)

    return made


make_raises, make_hangs, make_wrong_shape, make_nan = map(maker, (Raises, Hangs, WrongShape, NotANumber))
make_quits, make_no_context, make_future, make_wrong_trait = map(maker, (Quits, NoContext, SeesTheFuture, WrongTrait))


def make_impossible(seed=0, tiny=True):
    raise ValueError("no such model")
