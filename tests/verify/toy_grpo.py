"""GRPO of a tiny softmax policy, written without kat: every declarable design, and an adapter for `kat verify`."""

import copy
from typing import Any

import torch
from torch import nn

VOCAB, PAD, END, LONGEST = 12, 0, 1, 9


class Policy(nn.Module):
    """The next token from a decayed sum of the embeddings so far."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, VOCAB)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # (B, T) -> (B, T, V)
        ages = torch.arange(ids.size(1))[:, None] - torch.arange(ids.size(1))
        decay = torch.where(ages >= 0, 0.7 ** ages.clamp(min=0).float(), 0.0)  # (T, T)
        return self.head(torch.tanh(self.mix(decay @ self.tokens(ids))))


class ToyGRPO:
    """See kat.verify.subject.Subject."""

    rl_variants = (
        {"agg": "sequence-mean", "scale": "batch", "kl": "loss_k2", "temperature": 1.3, "micro": 4},
        {"agg": "dr-grpo", "scale": "none", "kl": "loss_k3_weighted", "low": 0.1, "high": 0.4, "beta": 0.3},
        {"kl": "reward_k1", "beta": 0.2, "temperature": 0.5, "micro": 3},
        {"kl": "exact", "beta": 0.5},
    )

    def __init__(self, seed: int, options: dict[str, Any]) -> None:
        defaults = {"agg": "token-mean", "scale": "group", "kl": "loss_k3", "beta": 0.04, "temperature": 1.0}
        self.o = {**defaults, "low": 0.2, "high": 0.2, "micro": None, "old": "stored", **options}
        torch.manual_seed(seed)
        self.policy = Policy()
        self.reference = copy.deepcopy(self.policy)
        self.optimizer = torch.optim.SGD(self.policy.parameters(), lr=0.1)

    @property
    def traits(self) -> dict[str, Any]:
        o = self.o
        return {
            "name": "toy-grpo",
            "vocab": VOCAB,
            "pad_id": PAD,
            "eos_ids": END,
            "aggregation": o["agg"],
            "advantage_scale": o["scale"],
            "advantage_eps": 1e-6,
            "clip_low": o["low"],
            "clip_high": o["high"],
            "kl": o["kl"],
            "kl_coef": o["beta"],
            "old_logprobs": o["old"],
            "temperature": o["temperature"],
            "max_new_tokens": LONGEST,
        }

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.policy(ids)

    def named_parameters(self) -> Any:
        return self.policy.named_parameters()

    def rl_setup(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "reference": self.reference.state_dict()}

    @torch.no_grad()
    def rollout(self, prompts: Any, n: int, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        heads = [list(prompt) for prompt in prompts for _ in range(n)]
        made = {
            "completion_ids": torch.full((len(heads), LONGEST), PAD),
            "mask": torch.zeros(len(heads), LONGEST, dtype=torch.long),
            "logprobs": torch.zeros(len(heads), LONGEST),
        }
        for i, head in enumerate(heads):
            ids = list(head)
            for t in range(LONGEST):
                logp = (self.policy(torch.tensor([ids]))[0, -1] / self.o["temperature"]).log_softmax(-1)
                token = int(torch.multinomial(logp.exp(), 1, generator=generator))
                ids.append(token)
                made["completion_ids"][i, t], made["mask"][i, t], made["logprobs"][i, t] = token, 1, logp[token]
                if token == END:
                    break
        return {"prompt_ids": heads, **made}

    def _logits(self, model: nn.Module, prompt: Any, ids: list[int]) -> torch.Tensor:
        return model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1] / self.o["temperature"]

    @torch.no_grad()
    def completion_logprobs(self, prompt_ids: Any, completion_ids: Any, temperature: float) -> torch.Tensor:
        logits = self._logits(self.policy, prompt_ids, list(completion_ids)) * (self.o["temperature"] / temperature)
        return logits.log_softmax(-1).gather(1, torch.tensor(completion_ids)[:, None])[:, 0]

    def advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        rows = []
        for group in rewards.double():
            if all(float(r) == float(group[0]) for r in group):
                rows.append(torch.zeros_like(group))
                continue
            deviation = {"group": group.std() + 1e-6, "batch": rewards.double().std() + 1e-6, "none": 1.0}
            rows.append((group - group.mean()) / deviation[self.o["scale"]])
        return torch.stack(rows).float()

    def policy_loss(
        self, logprobs: Any, old: Any, ref: Any, advantages: Any, mask: Any, exact: Any = None, share: Any = None
    ) -> Any:
        """share: (tokens, rows) of the whole step, where these rows are a part of it."""
        o, counted = self.o, mask.bool()
        tokens, rows = share or (counted.sum(), len(mask))
        total, clipped, kls = 0.0, 0, 0.0
        for i in range(len(mask)):
            lp, lo, lr, a = logprobs[i][counted[i]], old[i][counted[i]], ref[i][counted[i]], advantages[i]
            ratio = (lp - lo).exp()
            bites = (ratio > 1 + o["high"]) if a > 0 else (ratio < 1 - o["low"])
            gain = torch.where(bites, (1 + o["high"] if a > 0 else 1 - o["low"]) * a, ratio * a)
            k3 = (lr - lp).exp() - 1 - (lr - lp)
            p, q = lp.exp(), lr.exp()
            terms = {"loss_k3": k3, "loss_k3_weighted": ratio * k3, "loss_k2": 0.5 * (lp - lr) ** 2}
            if o["kl"] == "exact":
                two = p * (lp - lr) + (1 - p) * ((1 - p) / (1 - q)).log()
                terms["exact"] = two if exact is None else exact[i][counted[i]]
            loss = (o["beta"] * terms.get(o["kl"], torch.zeros_like(lp)) - gain).sum()
            total = total + (loss / max(1, len(lp)) if o["agg"] == "sequence-mean" else loss)
            clipped += int((bites & (a != 0)).sum())
            kls += float(terms["loss_k3_weighted" if o["kl"] == "loss_k3_weighted" else "loss_k3"].sum().detach())
        total = total / {"token-mean": tokens, "sequence-mean": rows, "dr-grpo": rows * LONGEST}[o["agg"]]
        return total, {"clip_fraction": clipped / int(counted.sum()), "kl": kls / int(counted.sum())}

    def rl_step(self, rollout: Any, rewards: torch.Tensor) -> dict[str, float]:
        mask, prompts = rollout["mask"], rollout["prompt_ids"]
        rows = [ids[m.bool()].tolist() for ids, m in zip(rollout["completion_ids"], mask, strict=True)]
        pad = lambda values: nn.utils.rnn.pad_sequence(values, batch_first=True)  # noqa: E731
        chosen = lambda logits, ids: logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]  # noqa: E731
        with torch.no_grad():
            ref_logits = [self._logits(self.reference, *row) for row in zip(prompts, rows, strict=True)]
            ref = pad([chosen(*pair) for pair in zip(ref_logits, rows, strict=True)])
            old = pad([values[m.bool()] for values, m in zip(rollout["logprobs"], mask, strict=True)])
            if self.o["old"] == "recomputed":
                own = [self._logits(self.policy, *row) for row in zip(prompts, rows, strict=True)]
                old = pad([chosen(*pair) for pair in zip(own, rows, strict=True)])
        counted = pad([torch.ones(len(row)) for row in rows])
        judged = rewards.double()
        if self.o["kl"] == "reward_k1":
            judged = judged - self.o["beta"] * ((old - ref) * counted).sum(1).double().view(rewards.shape)
        advantages = self.advantages(judged).flatten()
        self.optimizer.zero_grad()
        loss, entropy = 0.0, 0.0
        n = len(rows)
        for start in range(0, n, self.o["micro"] or n):
            part = slice(start, start + (self.o["micro"] or n))
            logits = [self._logits(self.policy, *row) for row in zip(prompts[part], rows[part], strict=True)]
            logprobs = pad([chosen(*pair) for pair in zip(logits, rows[part], strict=True)])
            exact = [
                (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1)
                for a, b in zip(logits, ref_logits[part], strict=True)
            ]
            width = logprobs.size(1)
            data = (values[part, :width] for values in (old, ref))
            own, _ = self.policy_loss(
                logprobs, *data, advantages[part], counted[part, :width], pad(exact), (counted.sum(), n)
            )
            own.backward()
            loss += float(own.detach())
            entropy -= sum(float((a.softmax(-1) * a.log_softmax(-1)).sum().detach()) for a in logits)
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        reported = {"loss": loss, "grad_norm": float(norm), "entropy": entropy / float(counted.sum())}
        return {**reported, "reward": float(rewards.double().mean())}


def make(seed: int = 0, tiny: bool = True, **options: Any) -> ToyGRPO:
    return ToyGRPO(seed, options)
