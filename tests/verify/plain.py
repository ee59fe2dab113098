"""A second correct subject, with as little in common with kat as a language model can have: LayerNorm with biases,
learned positions, one tensor for embedding and head, padding on the left, -100 labels, a warm-up from 0, and every way
to aggregate a loss. The checks must not fail on it."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

V, D, LONGEST, PAD = 41, 16, 40, 3


class Plain(nn.Module):
    def __init__(self, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.tokens, self.places = nn.Embedding(V, D), nn.Embedding(LONGEST, D)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.first, self.last = nn.LayerNorm(D), nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        real = torch.ones_like(ids) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = (real.cumsum(1) - 1).clamp(min=0)
        T = ids.shape[1]
        blocked = torch.ones(T, T, dtype=torch.bool).triu(1) | (real[:, None, :] == 0)  # (B, T, T)
        blocked &= ~torch.eye(T, dtype=torch.bool)  # a pad sees itself: no row without a key
        x = self.tokens(ids) + self.places(position_ids)
        h = self.first(x)
        x = x + self.attention(h, h, h, attn_mask=blocked.repeat_interleave(2, 0), need_weights=False)[0]
        x = x + self.dropout(self.mlp(x))
        return self.scale * F.linear(self.last(x), self.tokens.weight)


class PlainSubject:
    variants = ({"scale": 0.5},)

    def __init__(
        self, seed: int, agg: str, optimizer: str, warmup: int, decay: float, clip: float, scale: float, dropout: float
    ) -> None:
        self.agg, self.warmup, self.clip, self.step = agg, warmup, clip, 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = Plain(scale, dropout).eval()
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        if optimizer == "sgd":
            self.optimizer: Any = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
        else:
            kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optimizer]
            self.optimizer = kind(groups, lr=0.05)

    @property
    def traits(self) -> dict[str, Any]:
        return {
            "vocab": V,
            "max_len": LONGEST,
            "pad_id": PAD,
            "bos_id": 0,
            "eos_ids": (PAD,),
            "positions": "absolute",
            "tied_head": True,
            "loss_agg": self.agg,
            "lr_peak": 0.05,
            "lr_final": 0.005,
            "warmup_steps": self.warmup,
            "total_steps": 30,
            "max_grad_norm": self.clip,
        }

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        return self.model(ids, attention_mask, position_ids)

    def named_parameters(self) -> Any:
        return self.model.named_parameters()

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def init_weights(self, seed: int) -> None:
        torch.manual_seed(seed)
        for name, p in self.model.named_parameters():
            if p.ndim >= 2:
                nn.init.normal_(p, std=0.1)
            else:
                nn.init.constant_(p, float(name.endswith("weight")))

    def collate(self, rows: Any) -> dict[str, Tensor]:
        longest = 4 * math.ceil(max(len(ids) for ids, _ in rows) / 4)  # a multiple, as some kernels like it

        def left(values: list[int], fill: int) -> list[int]:
            return [fill] * (longest - len(values)) + values

        ids = torch.tensor([left(list(ids), PAD) for ids, _ in rows])
        mask = torch.tensor([left([0, *mask[1:]], 0) for _, mask in rows])
        real = torch.tensor([left([1] * len(ids), 0) for ids, _ in rows])
        return {"ids": ids, "mask": mask, "attention_mask": real}

    def _sums(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.model(batch["ids"], batch["attention_mask"])[:, :-1]
        labels = batch["ids"][:, 1:].masked_fill(batch["mask"][:, 1:] == 0, -100)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        return losses.sum(1), (labels != -100).sum(1)

    def _total(self, batches: Any) -> float:
        if self.agg == "token-sum":
            return 1
        if self.agg == "sequence-mean":
            return sum(len(batch["ids"]) for batch in batches)
        return max(1, sum(int(batch["mask"].sum()) for batch in batches))

    def _share(self, batch: dict[str, Tensor], total: float) -> Tensor:
        sums, counts = self._sums(batch)
        return ((sums / counts.clamp(min=1)) if self.agg == "sequence-mean" else sums).sum() / total

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self._share(batch, self._total([batch]))

    def eval_loss(self, batch: dict[str, Tensor]) -> float:
        with torch.no_grad():
            sums, counts = self._sums(batch)
        return float(sums.sum() / counts.sum())

    def accumulate(self, micro_batches: Any) -> float:
        total, value = self._total(micro_batches), 0.0
        for batch in micro_batches:
            share = self._share(batch, total)
            share.backward()
            value += float(share.detach())
        return value

    def lr(self, step: int) -> float:
        if step < self.warmup:
            return 0.05 * step / self.warmup
        done = (step - self.warmup) / (30 - self.warmup)
        return 0.005 + 0.045 * 0.5 * (1 + math.cos(math.pi * min(1, done)))

    def train_step(self, micro_batches: Any) -> dict[str, float]:
        rate = self.lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.model.train()
        loss = self.accumulate(micro_batches)
        self.model.eval()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        tokens = sum(int(batch["mask"].sum()) for batch in micro_batches)
        return {"loss": loss, "lr": rate, "grad_norm": float(norm), "supervised_tokens": tokens}

    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def save(self, path: Path) -> None:
        path.mkdir(parents=True)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save({**state, "scale": self.model.scale, "generator": torch.get_rng_state()}, path / "all.pt")

    def load(self, path: Path) -> None:
        state = torch.load(path / "all.pt")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.model.scale = state["step"], state["scale"]
        torch.set_rng_state(state["generator"])


def make(
    seed: int = 0,
    tiny: bool = True,
    agg: str = "token-mean",
    optimizer: str = "adamw",
    warmup_steps: int = 3,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> PlainSubject:
    return PlainSubject(seed, agg, optimizer, warmup_steps, weight_decay, clip, scale, dropout)
