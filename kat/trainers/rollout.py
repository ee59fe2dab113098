"""A rollout: completions sampled from the current policy, rewarded, compared with the reference, ready to train on."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kat.data.preferences import Prompt
from kat.errors import KatError, UsageError
from kat.model.decoding import Continuation, Sampling, generate
from kat.model.gpt import GPT
from kat.runs.settings import GrpoSettings
from kat.runtime import World
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.policy_loss import group_advantages, penalise
from kat.trainers.protocol import Reward

REFERENCE_ROWS = 32  # completions that go through the reference at once
ALL_TRUNCATED = "collapsed: no completion of a rollout ends, and mask_truncated then leaves nothing to learn from"


class CollapseError(KatError):
    """The policy has nothing left to learn from: no variance, no entropy, no text, or it is far from where it began."""

    exit_code = 1


@dataclass(frozen=True)
class Rollout:
    """N completions in rows padded on the right, on the CPU.

    Everything with two dimensions is aligned with the tokens of `ids`: `mask` is 1 on the completion's tokens that
    count, `old` and `ref` hold their log-probabilities under the policy that sampled them and under the reference.
    """

    ids: Tensor  # (N, T) int64
    mask: Tensor  # (N, T) bool
    old: Tensor  # (N, T) float32
    ref: Tensor  # (N, T) float32
    advantages: Tensor  # (N,) float32
    metrics: dict[str, float]


def seed_of(seed: int, draw: int) -> int:
    """The seed of one draw of the schedule: no two draws and no two runs share a stream by arithmetic."""
    return int.from_bytes(hashlib.sha256(f"grpo {seed} {draw}".encode()).digest()[:8], "big")


def make_rollout(
    policy: GPT,
    reference: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[Sequence[int]],
    seeds: Sequence[int],
    reward: Reward,
    settings: GrpoSettings,
    kl_coef: float,
    world: World,
) -> Rollout:
    """Sample, score and compare `settings.completions` completions of each prompt.

    Each rank makes those of its share of the prompts; all ranks return the whole rollout, in the prompts' order, so
    that what is trained on, and what is saved, does not depend on their number. Raises CollapseError where every
    completion is empty, UsageError where the reward function fails.
    """
    share = slice(world.rank * len(prompts) // world.size, (world.rank + 1) * len(prompts) // world.size)
    mine, my_ids = prompts[share], prompt_ids[share]
    groups = sample(policy, my_ids, seeds[share], tokenizer, settings)
    flat = [one for group in groups for one in group]
    asked = [prompt for prompt, group in zip(mine, groups, strict=True) for _ in group]
    texts = [tokenizer.decode(one.ids[:-1] if one.finish_reason == "stop" else one.ids) for one in flat]
    rewards = check_rewards(reward, asked, texts)  # (n,) float64
    heads = [ids for ids, group in zip(my_ids, groups, strict=True) for _ in group]
    width = world.max(max(len(ids) + len(one.ids) for ids, one in zip(heads, flat, strict=True)))
    ids, mask, old = rows_of(heads, flat, tokenizer.pad_id, width)
    ref = reference_logprobs(reference, ids, mask, settings.temperature)
    lengths = torch.tensor([len(one.ids) for one in flat])
    stopped = torch.tensor([one.finish_reason == "stop" for one in flat])
    ids, mask, old, ref = (world.gather(tensor) for tensor in (ids, mask, old, ref))
    rewards, lengths, stopped = (world.gather(tensor) for tensor in (rewards, lengths, stopped))
    if bool((stopped & (lengths == 1)).all()):
        raise CollapseError("collapsed: every completion of a rollout is empty; lower peak or raise kl_coef")
    if settings.mask_truncated and not bool(stopped.any()):
        raise CollapseError(ALL_TRUNCATED)
    # KL(policy ‖ reference). k3 has the same mean, but a token that the policy has all but given up and still draws
    # once counts e^10 there: one of them would look like a collapse.
    divergence = (old - ref)[mask].double().mean()
    judged = penalise(rewards, old, ref, mask, kl_coef) if settings.kl_in == "reward_k1" else rewards
    grouped = judged.view(-1, settings.completions)  # (P, G)
    advantages = group_advantages(grouped, settings.scale_rewards).flatten()
    if settings.mask_truncated:
        mask = mask & stopped[:, None]
    raw = rewards.view(-1, settings.completions)
    metrics = {
        "reward": float(rewards.mean()),
        "reward_sd": float(rewards.std()),
        "group_sd": float(raw.std(dim=1).mean()),
        "zero_variance_groups": float((raw == raw[:, :1]).all(dim=1).double().mean()),
        "kl": float(divergence),
        "length": float(lengths.double().mean()),
        "truncated": float((~stopped).double().mean()),
    }
    return Rollout(ids, mask, old, ref, advantages, metrics)


def sample(
    policy: GPT, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], tokenizer: Tokenizer, settings: GrpoSettings
) -> list[list[Continuation]]:
    """The groups of completions. No top-k, no top-p: the stored log-probabilities would not be those of the sampler."""
    training = policy.training
    policy.eval()
    sampling = Sampling(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    groups = generate(
        policy,
        prompt_ids,
        sampling,
        stop_ids=[tokenizer.eos_id],
        pad_id=tokenizer.pad_id,
        seeds=seeds,
        n=settings.completions,
    )
    policy.train(training)
    return groups


def check_rewards(reward: Reward, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
    """(n,) float64 rewards, or one line that says what the reward function did wrong."""
    name = f"reward {reward.name}"
    try:
        values = [float(value) for value in reward(prompts, texts)]
    except KatError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code: whatever it raises ends the run, by its name
        said = " ".join(str(error).split())
        raise UsageError(f"{name} raised {type(error).__name__}: {said}") from error
    if len(values) != len(texts):
        raise UsageError(f"{name} returned {len(values)} numbers for {len(texts)} responses; return one for each")
    for value, text in zip(values, texts, strict=True):
        if not math.isfinite(value):
            raise UsageError(f"{name} returned {value} for the response {text[:60]!r}; return finite numbers")
    return torch.tensor(values, dtype=torch.float64)


def rows_of(
    prompt_ids: Sequence[Sequence[int]], completions: Sequence[Continuation], pad_id: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, old log-probabilities), each (N, width): prompt, completion, padding."""
    ids = torch.full((len(completions), width), pad_id)
    mask = torch.zeros(len(completions), width, dtype=torch.bool)
    old = torch.zeros(len(completions), width)
    for i, (prompt, one) in enumerate(zip(prompt_ids, completions, strict=True)):
        start, end = len(prompt), len(prompt) + len(one.ids)
        ids[i, :start] = torch.as_tensor(prompt)
        ids[i, start:end] = torch.as_tensor(one.ids)
        mask[i, start:end] = True
        old[i, start:end] = torch.tensor(one.logprobs)
    return ids, mask, old


def completion_logits(model: torch.nn.Module, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """(n, V) float32 logits over the temperature, of the n masked tokens in row order, each given the ids before it."""
    before = torch.zeros_like(mask)
    before[:, :-1] = mask[:, 1:]
    return model(ids, positions=before).float() / temperature


@torch.inference_mode()
def reference_logprobs(reference: GPT, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """(N, T) log-probabilities of the masked tokens under the reference, 0 elsewhere."""
    result = torch.zeros(ids.shape)
    for start in range(0, len(ids), REFERENCE_ROWS):
        rows, counted = ids[start : start + REFERENCE_ROWS], mask[start : start + REFERENCE_ROWS]
        logits = completion_logits(reference, rows.to(reference.device), counted.to(reference.device), temperature)
        chosen = rows[counted].to(logits.device)
        values = torch.log_softmax(logits, dim=-1).gather(1, chosen[:, None])[:, 0]
        result[start : start + REFERENCE_ROWS][counted] = values.cpu()
    return result
