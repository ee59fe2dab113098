"""A model of a few hundred weights, for repositories whose training code takes any model: one layer of attention over
learned positions. It honours an attention mask (keys only), explicit positions and a full (B, T, T) mask."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from kat.verify.subject import Traits


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


class WithRollouts(WithToy):
    """The toy as a policy with a reference, its sampler, and a step's data as trainers hold it: prompts padded on the
    left, completions on the right. Token 1 ends a completion."""

    PAD, END, LONGEST = 0, 1, 9

    def __init__(self, seed: int, temperature: float = 1.0) -> None:
        super().__init__(seed)
        self.reference = copy.deepcopy(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.temperature = temperature

    def rl_traits(self, name: str, **design: Any) -> Traits:
        given = {"vocab": self.VOCAB, "max_len": self.MAX_LEN, "pad_id": self.PAD, "eos_ids": (self.END,)}
        size = {"temperature": self.temperature, "max_new_tokens": self.LONGEST, "positions": "absolute"}
        return Traits.of({"name": name, **given, **size, **design})

    def rl_setup(self) -> dict[str, Any]:
        return {"policy": self.model.state_dict(), "reference": self.reference.state_dict()}

    @torch.no_grad()
    def sample(self, prompt: Any, generator: torch.Generator, temperature: float) -> tuple[list[int], list[float]]:
        """One completion and its log-probabilities at the temperature."""
        ids, logprobs = list(prompt), []
        while len(logprobs) < self.LONGEST and (not logprobs or ids[-1] != self.END):
            logp = (self.model(torch.tensor([ids]))[0, -1] / temperature).log_softmax(-1)
            ids.append(int(torch.multinomial(logp.exp(), 1, generator=generator)))
            logprobs.append(float(logp[ids[-1]]))
        return ids[len(prompt) :], logprobs

    def rollout(self, prompts: Any, n: int, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        heads = [list(prompt) for prompt in prompts for _ in range(n)]
        made = [self.sample(head, generator, self.temperature) for head in heads]
        ids, mask, _ = padded([(row, [1] * len(row)) for row, _ in made], self.PAD)
        logprobs = nn.utils.rnn.pad_sequence([torch.tensor(values) for _, values in made], batch_first=True)
        return {"prompt_ids": heads, "completion_ids": ids, "mask": mask, "logprobs": logprobs}

    def stacked(self, prompts: Any) -> tuple[Tensor, Tensor]:
        ids, _, attention = padded([(list(ids), [0] * len(ids)) for ids in prompts], self.PAD, "left")
        return ids, attention

    def step(self, loss: Tensor) -> dict[str, float]:
        """One step of plain gradient descent."""
        self.optimizer.zero_grad()
        loss.backward()
        grads = [weight.grad.flatten() for weight in self.model.parameters() if weight.grad is not None]
        self.optimizer.step()
        return {"loss": float(loss.detach()), "grad_norm": float(torch.cat(grads).norm())}
