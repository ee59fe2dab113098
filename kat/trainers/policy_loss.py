"""The maths of GRPO as pure functions: advantages, the clipped objective, divergences from the reference, aggregation.

N completions, T token positions; `mask` is 1 where a token of a completion counts (its end token does, nothing after).
Log-probabilities are at the sampling temperature. Sources: GRPO arXiv:2402.03300, PPO's clipping arXiv:1707.06347,
DAPO arXiv:2503.14476, Dr. GRPO arXiv:2503.20783, the estimators k1, k2, k3: Schulman, "Approximating KL divergence".
"""

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]
Aggregation = Literal["token-mean", "sequence-mean", "dr-grpo"]
KlIn = Literal["loss_k3", "loss_k2", "reward_k1", "exact"]

SD_EPS = 1e-4  # trl's


def group_advantages(rewards: Tensor, scale: Scale = "group") -> Tensor:
    """(P, G) advantages of rewards (P, G): the reward minus its group's mean, over a standard deviation + 1e-4.

    The deviation (n − 1) is the group's, that of all the rewards given (`batch`: give it the whole step's, of all
    ranks), or none at all. A group of equal rewards gets exactly 0, whatever the rounding of its mean.
    """
    rewards = rewards.double()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (rewards.std(dim=1, keepdim=True) + SD_EPS)
    elif scale == "batch":
        centred = centred / (rewards.std() + SD_EPS)
    equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    return centred.masked_fill(equal, 0.0).float()


def token_losses(
    logprobs: Tensor,
    old: Tensor,
    ref: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_in: KlIn,
    kl_coef: float,
    exact_kl: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss of each token, whether it was clipped), both of the shape of logprobs: (N, T), or any that broadcasts with
    `advantages`.

    old: log-probabilities that the sampler stored. exact_kl: :func:`exact_kl` at each position, for kl_in = "exact".
    What the gradient of each divergence term descends, on samples of the policy:

    - ``loss_k3``: exp(ref − π) − (ref − π) − 1, trl's. Its *value* estimates KL(π‖ref), its gradient is that of
      KL(ref‖π).
    - ``loss_k2``: (π − ref)² / 2: the gradient of KL(π‖ref).
    - ``exact``: KL(π‖ref) summed over the vocabulary, given the prefix.
    - ``reward_k1``: nothing here; the divergence went into the reward (:func:`penalise`): KL(π‖ref), of sequences.
    """
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    was_clipped = ((ratio < 1 - clip_low) & (advantages < 0)) | ((ratio > 1 + clip_high) & (advantages > 0))
    if kl_coef and kl_in != "reward_k1":
        if kl_in == "exact":
            assert exact_kl is not None, "kl_in = exact needs the divergence at each position"
            divergence = exact_kl
        else:
            divergence = k3(logprobs, ref) if kl_in == "loss_k3" else (logprobs - ref).square() / 2
        losses = losses + kl_coef * divergence
    return losses, was_clipped


def k3(logprobs: Tensor, ref: Tensor) -> Tensor:
    """exp(d) − d − 1 with d = ref − logprobs: non-negative; on samples of the policy its mean is KL(π‖ref)."""
    difference = ref - logprobs
    return torch.expm1(difference) - difference


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π‖ref) in nats at each position, (...), of logits (..., V) that the temperature has divided already."""
    log_p, log_q = torch.log_softmax(logits, dim=-1), torch.log_softmax(ref_logits, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats at each position, (...), of logits (..., V)."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def penalise(rewards: Tensor, old: Tensor, ref: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """(N,) rewards minus kl_coef · Σ_t (log π − log ref), the sampled log-ratio of the whole completion.

    The policy gradient of this reward descends KL(π‖ref) of sequences. It comes before the group's mean is taken.
    """
    return rewards - kl_coef * ((old - ref) * mask).sum(dim=1).to(rewards.dtype)


def loss_sum(losses: Tensor, mask: Tensor, aggregation: Aggregation) -> Tensor:
    """Sum over rows (N, T), however they are split; to be divided by :func:`loss_weight` of the optimizer step."""
    total = (losses * mask).sum(dim=1)  # (N,)
    if aggregation == "sequence-mean":
        total = total / mask.sum(dim=1).clamp(min=1)
    return total.sum()


def loss_weight(mask: Tensor, aggregation: Aggregation, max_new_tokens: int) -> int:
    """The denominator: tokens, rows, or rows times the longest completion there can be. A row without any token that
    counts is in none of them."""
    if aggregation == "token-mean":
        return int(mask.sum())
    rows = int(mask.any(dim=1).sum())
    return rows if aggregation == "sequence-mean" else rows * max_new_tokens


def next_kl_coef(coef: float, kl: float, target: float, horizon: int) -> float:
    """The coefficient after a rollout whose divergence was `kl`: up where it was above the target, down below, by at
    most a fifth in `horizon` rollouts (Ziegler et al., arXiv:1909.08593)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error / horizon)
