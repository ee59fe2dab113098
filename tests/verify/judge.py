"""A second correct reward model, with as little in common with kat's as one can have: characters for tokens, rows
padded on the left, a recurrent network that is read at every character, SGD, a bias in the head; embeddings of hashed
n-grams, and density weights that grow with the logarithm of the distance. The checks must not fail on it."""

import zlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, START, END = 0, 1, 2
LONGEST = 160


class Network(nn.Module):
    """A GRU; a pad leaves the state as it is, so that padding on either side changes nothing."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.symbols, self.cell = nn.Embedding(259, width), nn.GRUCell(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x, real = self.symbols(ids), (ids != PAD)[..., None]
        state = total = x.new_zeros(len(ids), x.shape[-1])
        for t in range(ids.shape[1]):
            state = torch.where(real[:, t], self.cell(x[:, t], state), state)
            total = total + real[:, t] * state
        return self.head(self.norm(total + 4 * state))[:, 0]


class JudgeSubject:
    def __init__(self, seed: int, side: str, frozen: bool, clip: float) -> None:
        self.side, self.clip, self.step = side, clip, 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = Network()
        for name, weight in self.network.named_parameters():
            weight.requires_grad_(not frozen or name.startswith(("norm", "head")))
        self.optimizer = torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad], lr=0.02, momentum=0.5
        )
        self.trained: set[str] = set()
        self.traits: dict[str, Any] = {
            "name": "judge",
            "max_len": LONGEST,
            "density_max_ratio": 6.0,
            "diversity": {"different_words": "better", "repeats": "worse"},
        }

    # Reward model

    def named_parameters(self) -> Any:
        return self.network.named_parameters()

    def row(self, prompt: Any, response: str) -> list[int]:
        turns = [*prompt, {"role": "assistant", "content": response}]
        return [i for turn in turns for i in [START, *(byte + 3 for byte in turn["content"].encode()), END]]

    def scores(self, rows: list[list[int]]) -> Tensor:
        width = max(map(len, rows)) + 2  # some columns more than needed
        if width > LONGEST + 2:
            raise ValueError(f"{width - 2} characters; at most {LONGEST} are read")
        filled = [[PAD] * (width - len(row)) for row in rows]
        both = zip(filled, rows, strict=True)
        return self.network(torch.tensor([pad + row if self.side == "left" else row + pad for pad, row in both]))

    @torch.no_grad()
    def score(self, prompt: Any, response: str) -> float:
        return float(self.scores([self.row(prompt, response)])[0])

    @torch.no_grad()
    def score_pair(self, prompt: Any, a: str, b: str) -> float:
        first, second = self.scores([self.row(prompt, a), self.row(prompt, b)])
        return float(first - second)

    def reward_step(self, micro_batches: Any, weights: Any = None) -> dict[str, float]:
        weights = weights or [[1.0] * len(batch) for batch in micro_batches]
        kept = []
        for batch, own in zip(micro_batches, weights, strict=True):
            rows = [(self.row(p, a), self.row(p, b), w) for (p, a, b), w in zip(batch, own, strict=True)]
            kept.append([row for row in rows if max(len(row[0]), len(row[1])) <= LONGEST])
        n = sum(map(len, kept))
        self.optimizer.zero_grad()
        total = 0.0
        for batch in [batch for batch in kept if batch]:
            chosen, rejected = self.scores([a for a, _, _ in batch] + [b for _, b, _ in batch]).chunk(2)
            loss = (torch.tensor([w for *_, w in batch]) * -F.logsigmoid(chosen - rejected)).sum() / n
            loss.backward()
            total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self.clip))
        for group in self.optimizer.param_groups:
            group["lr"] = 0.02 * min(1.0, (self.step + 1) / 2)
        self.optimizer.step()
        self.step += 1
        self.trained |= {repr(prompt) for batch in micro_batches for prompt, _, _ in batch}
        return {"loss": total, "grad_norm": norm}

    def reward_accuracy(self, pairs: Any) -> float:
        if seen := [prompt for prompt, _, _ in pairs if repr(prompt) in self.trained]:
            raise ValueError(f"trained on {seen[0]}")
        margins = [self.score_pair(*pair) for pair in pairs]
        return sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins)

    def save(self, path: Any) -> None:
        path.mkdir()
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        state["trained"] = sorted(self.trained)
        torch.save(state, path / "state.pt")

    def load(self, path: Any) -> None:
        state = torch.load(path / "state.pt")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.trained = state["step"], set(state["trained"])

    # Density

    def embed(self, texts: Any) -> Tensor:
        """Counts of hashed runs of 5 characters, not of unit length."""
        found = torch.zeros(len(texts), 256)
        for i, text in enumerate(texts):
            padded = f"^{text}$$$$"
            for j in range(len(padded) - 4):
                found[i, zlib.crc32(padded[j : j + 5].encode()) % 256] += 1
        return found.sqrt()

    def density_weights(self, embeddings: Any) -> Any:
        if not np.isfinite(np.asarray(embeddings)).all():
            raise ValueError("an embedding is no number")
        x, group, copies = np.unique(np.asarray(embeddings), axis=0, return_inverse=True, return_counts=True)
        between = np.linalg.norm(x[:, None].astype(float) - x[None], axis=-1)
        r = np.median(np.sort(between, axis=1)[:, 6:13], axis=1)
        w = np.log1p(np.clip(r / np.median(r), 0.01, 4.0)) + 0.05
        group = group.reshape(-1)
        return torch.from_numpy((w / w.sum() / copies)[group])

    def sample_indices(self, weights: Any, n: int, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(torch.as_tensor(weights), n, replacement=True, generator=generator)

    def weights_of(self, known: Any, ids: Any) -> Any:
        return [known[name] for name in ids]

    def diversity(self, texts: Any) -> dict[str, float]:
        words = [word for text in texts for word in text.split()]
        return {
            "different_words": len(set(words)) / len(words),
            "repeats": len(texts) / len(set(texts)),
            "words": len(words),
        }


def make(seed: int = 0, tiny: bool = True, side: str = "left", frozen: bool = False, clip: float = 0.3) -> JudgeSubject:
    return JudgeSubject(seed, side, frozen, clip)
