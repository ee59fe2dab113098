"""The maths of GRPO against exact expectations: a bandit of a few arms is enumerated, nothing is sampled."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.trainers.policy_loss import (
    entropy,
    exact_kl,
    group_advantages,
    k3,
    loss_sum,
    loss_weight,
    next_kl_coef,
    penalise,
    token_losses,
)

PLAIN = {"clip_low": 0.2, "clip_high": 0.2, "kl_in": "loss_k3", "kl_coef": 0.0}
finite = st.floats(-50, 50, allow_nan=False).map(lambda x: round(x, 3))


def groups(n: int = 3, size: int = 4):
    return st.lists(st.lists(finite, min_size=size, max_size=size), min_size=n, max_size=n)


@given(groups())
def test_group_advantages_are_numpys(rewards: list[list[float]]) -> None:
    rewards = np.array(rewards)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    equal = (rewards == rewards[:, :1]).all(axis=1, keepdims=True)
    for scale, spread in {
        "group": rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4,
        "batch": rewards.std(ddof=1) + 1e-4,
        "none": 1.0,
    }.items():
        found = group_advantages(torch.tensor(rewards), scale).numpy()
        np.testing.assert_allclose(found, np.where(equal, 0, centred / spread), rtol=1e-5, atol=1e-5)


@given(finite, st.integers(2, 16))
def test_a_group_of_equal_rewards_gets_exactly_nothing(value: float, size: int) -> None:
    """The mean of ten times 0.1 is not 0.1."""
    rewards = torch.full((2, size), value / 10, dtype=torch.float64)
    rewards[1, 0] += 1
    for scale in ("group", "batch", "none"):
        found = group_advantages(rewards, scale)
        assert (found[0] == 0).all()
        assert found[1].abs().max() > 0


def test_one_groups_scale_is_not_anothers() -> None:
    rewards = torch.tensor([[0.0, 1.0], [0.0, 100.0]])
    near = group_advantages(rewards, "group")
    assert torch.allclose(near[0], near[1], atol=1e-3)
    assert group_advantages(rewards, "batch")[1, 1] > 50 * group_advantages(rewards, "batch")[0, 1]


def bandit(logits: torch.Tensor, ref_logits: torch.Tensor, advantages: torch.Tensor, old=None, **settings):
    """(V,) losses of each arm and (V,) probabilities that it is the one sampled, without a gradient."""
    logprobs = torch.log_softmax(logits, 0)
    old = logprobs.detach() if old is None else old
    exact = exact_kl(logits, ref_logits).expand_as(logprobs)
    losses, _ = token_losses(
        logprobs, old, torch.log_softmax(ref_logits, 0), advantages, exact_kl=exact, **{**PLAIN, **settings}
    )
    return losses, old.exp()


def gradient(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, at)[0]


def arms(seed: int, n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return policy.requires_grad_(), reference


def kl(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p_logits), torch.distributions.Categorical(logits=q_logits)
    )


@pytest.mark.parametrize(
    ("kl_in", "descends"),
    [
        ("loss_k3", lambda policy, reference: kl(reference, policy)),
        ("loss_k2", kl),
        ("exact", kl),
    ],
)
@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_expected_gradient_of_each_divergence_term(kl_in: str, descends, seed: int) -> None:
    policy, reference = arms(seed)
    losses, sampled = bandit(policy, reference, torch.zeros(5), kl_in=kl_in, kl_coef=0.7)
    torch.testing.assert_close(
        gradient((sampled * losses).sum(), policy), 0.7 * gradient(descends(policy, reference), policy)
    )


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_expected_gradient_of_a_penalised_reward(seed: int) -> None:
    """reward_k1: REINFORCE on r − β(log π − log ref) ascends E r − β KL(π‖ref)."""
    policy, reference = arms(seed)
    logprobs = torch.log_softmax(policy, 0).detach()
    rewards = torch.linspace(-1, 1, 5, dtype=torch.float64)
    judged = penalise(
        rewards, logprobs[:, None], torch.log_softmax(reference, 0)[:, None], torch.ones(5, 1), kl_coef=0.3
    )
    losses, sampled = bandit(policy, reference, judged, kl_in="reward_k1", kl_coef=0.3)
    wanted = (torch.softmax(policy, 0) * rewards).sum() - 0.3 * kl(policy, reference)
    torch.testing.assert_close(gradient((sampled * losses).sum(), policy), -gradient(wanted, policy))


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_k3_estimates_the_reported_divergence_without_bias(seed: int) -> None:
    policy, reference = (logits.detach() for logits in arms(seed))
    logprobs = torch.log_softmax(policy, 0)
    values = k3(logprobs, torch.log_softmax(reference, 0))
    assert (values >= 0).all()
    torch.testing.assert_close((logprobs.exp() * values).sum(), kl(policy, reference))
    torch.testing.assert_close(exact_kl(policy, reference), kl(policy, reference))
    torch.testing.assert_close(entropy(policy), torch.distributions.Categorical(logits=policy).entropy())
    assert k3(logprobs, logprobs).abs().max() == 0


def test_on_policy_the_gradient_is_reinforce() -> None:
    policy, reference = arms(1)
    advantages = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    losses, sampled = bandit(policy, reference, advantages)
    score = (sampled * advantages * torch.log_softmax(policy, 0)).sum()
    torch.testing.assert_close(gradient((sampled * losses).sum(), policy), -gradient(score, policy))


@pytest.mark.parametrize(
    ("ratio", "advantage", "flat"),
    [
        (1.5, 1.0, True),  # above the upper bound and still wanted: no more of it
        (1.5, -1.0, False),  # above it and not wanted: back down
        (0.5, -1.0, True),
        (0.5, 1.0, False),
        (1.25, 1.0, False),  # the upper bound is 1.3
        (0.85, -1.0, True),  # the lower one .9
    ],
)
def test_clipping_takes_the_gradient_where_it_should(ratio: float, advantage: float, flat: bool) -> None:
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    losses, clipped = token_losses(
        logprob,
        torch.zeros(1),
        torch.zeros(1),
        torch.tensor([advantage]),
        **{**PLAIN, "clip_low": 0.1, "clip_high": 0.3},
    )
    assert (gradient(losses.sum(), logprob).item() == 0) == flat
    assert bool(clipped) == flat
    bound = min(max(ratio, 0.9), 1.3)
    assert losses.item() == pytest.approx(-min(ratio * advantage, bound * advantage))


masks = st.lists(st.integers(0, 6), min_size=4, max_size=4).map(
    lambda lengths: torch.arange(6)[None] < torch.tensor(lengths)[:, None]
)


@given(masks, st.sampled_from(["token-mean", "sequence-mean", "dr-grpo"]), st.integers(0, 99))
def test_aggregation_is_its_formula_and_blind_to_what_is_masked(mask: torch.Tensor, how: str, seed: int) -> None:
    losses = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = [row[: int(m.sum())] for row, m in zip(losses, mask, strict=True) if m.any()]
    weight = loss_weight(mask, how, 10)
    if not rows:
        assert weight == 0
        assert loss_sum(losses, mask, how) == 0
        return
    expected = {
        "token-mean": torch.cat(rows).mean(),  # trl: dapo
        "sequence-mean": torch.stack([row.mean() for row in rows]).mean(),  # trl: grpo
        "dr-grpo": torch.cat(rows).sum() / (len(rows) * 10),
    }[how]
    torch.testing.assert_close(loss_sum(losses, mask, how) / weight, expected)
    spoilt = losses.masked_fill(~mask, 1e9)
    torch.testing.assert_close(loss_sum(spoilt, mask, how), loss_sum(losses, mask, how))
    parts = zip(losses.split(1), mask.split(1), strict=True)  # micro-batches of one row
    torch.testing.assert_close(sum(loss_sum(*part, how) for part in parts), loss_sum(losses, mask, how))


def test_the_coefficient_comes_to_rest_at_the_target() -> None:
    """A world where the divergence is the inverse of the coefficient: 1 / coef = target is the rest point."""
    coef = 0.01
    for _ in range(2000):
        coef = next_kl_coef(coef, kl=0.1 / coef, target=0.5, horizon=5)
    assert coef == pytest.approx(0.2, rel=1e-3)
    assert next_kl_coef(1.0, kl=99.0, target=0.5, horizon=10) == pytest.approx(1.02)  # a fifth in ten at most
