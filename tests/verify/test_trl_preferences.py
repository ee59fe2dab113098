"""The subjects trl:reward and trl:grpo hand over what trl computes: against formulas written out here."""

import pytest
import torch

from kat.verify.subject import open_subject

pytest.importorskip("trl", reason="needs kat[trl]")
ASK = [{"role": "user", "content": "seven because there"}]
PROMPTS = [[1, 5, 6], [1, 7]]


def opened(spec: str):
    """A subject whose weights are large: what a fresh model gives hardly depends on the context."""
    subject = open_subject(spec).make(seed=0, learning_rate=1e-2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in subject.model.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    return subject


@pytest.fixture(scope="module")
def reward():
    return opened("trl:reward")


@pytest.fixture(scope="module")
def grpo():
    return opened("trl:grpo")


def test_a_margin_is_the_difference_of_two_scores(reward) -> None:
    a, b = reward.score(ASK, "river"), reward.score(ASK, "stone mill, the green glass")
    assert abs(a - b) > 1e-3
    assert reward.score_pair(ASK, "river", "stone mill, the green glass") == pytest.approx(a - b, abs=1e-5)
    assert reward.score_pair(ASK, "stone mill, the green glass", "river") == pytest.approx(b - a, abs=1e-5)


def test_a_step_of_the_reward_model(reward) -> None:
    pairs = [(ASK, "river", "stone"), (ASK, "owl", "glass mill")]
    margins = torch.tensor([reward.score_pair(*pair) for pair in pairs])
    metrics = reward.reward_step([pairs[:1], pairs[1:]])
    assert metrics["loss"] == pytest.approx(float(torch.nn.functional.softplus(-margins).mean()), abs=1e-5)
    assert metrics["margin"] == pytest.approx(float(margins.mean()), abs=1e-5)
    assert all(reward.score_pair(*pair) > margin for pair, margin in zip(pairs, margins, strict=True))


def test_logprobs_are_those_at_the_temperature(grpo) -> None:
    completion = [9, 4, 2]
    for temperature in (1.0, 0.5):
        ids = torch.tensor([PROMPTS[0] + completion])
        with torch.no_grad():
            logits = grpo.model(input_ids=ids).logits[0, 2:-1] / temperature
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(grpo.completion_logprobs(PROMPTS[0], completion, temperature), expected)


def test_rollouts_end_and_carry_their_logprobs(grpo) -> None:
    made = grpo.rollout(PROMPTS, 4, seed=3)
    again = grpo.rollout(PROMPTS, 4, seed=3)
    assert torch.equal(made["completion_ids"], again["completion_ids"])
    assert not torch.equal(made["completion_ids"], grpo.rollout(PROMPTS, 4, seed=4)["completion_ids"][:, :16])
    assert made["prompt_ids"] == [PROMPTS[0]] * 4 + [PROMPTS[1]] * 4
    for ids, mask, logprobs in zip(made["completion_ids"], made["mask"].bool(), made["logprobs"], strict=True):
        kept = ids[mask].tolist()
        assert 2 not in kept[:-1] and (kept[-1] == 2 or len(kept) == 16)
        assert (logprobs[mask] < 0).all() and not logprobs[~mask].any()


def test_advantages_and_loss(grpo) -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0, 0.5], [3.0, 3.0, 3.0, 3.0]])
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(grpo.advantages(rewards), expected)
    generator = torch.Generator().manual_seed(1)
    logprobs, old, ref = (-torch.rand(3, 5, generator=generator) for _ in range(3))
    advantages, mask = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    loss, metrics = grpo.policy_loss(logprobs.requires_grad_(), old, ref, advantages, mask)
    ratio = (logprobs - old).exp()
    own = -torch.minimum(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None])
    divergence = (ref - logprobs).exp() - (ref - logprobs) - 1
    # trl's default weighs the divergence by the ratio (use_bias_correction_kl)
    torch.testing.assert_close(loss, ((own + 0.04 * divergence * ratio) * mask).sum() / mask.sum())
    assert metrics["kl"] == pytest.approx(float((divergence * ratio * mask).sum() / mask.sum()), abs=1e-6)
    assert metrics["clip_fraction"] > 0
    loss.backward()
    assert logprobs.grad is not None and not logprobs.grad[mask == 0].any()


def test_a_step_makes_what_was_rewarded_likelier() -> None:
    subject = open_subject("trl:grpo").make(seed=1, learning_rate=1e-2)
    setup = subject.rl_setup()
    assert all(torch.equal(setup["policy"][name], setup["reference"][name]) for name in setup["policy"])
    made = subject.rollout(PROMPTS, 4, seed=0)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    metrics = subject.rl_step(made, rewards)
    assert metrics["reward"] == pytest.approx(0.25)
    assert metrics["kl"] == pytest.approx(0, abs=1e-9)
    for row in (0, 5):
        kept = made["completion_ids"][row][made["mask"][row].bool()].tolist()
        after = subject.completion_logprobs(made["prompt_ids"][row], kept, 1.0).sum()
        assert after > made["logprobs"][row].sum()
    setup = subject.rl_setup()
    assert any(not torch.equal(setup["policy"][name], setup["reference"][name]) for name in setup["policy"])
