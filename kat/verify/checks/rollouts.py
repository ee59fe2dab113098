"""Rollouts of reinforcement learning: what is sampled, where it ends, what is stored of it."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor

from kat.verify.check import Failed, Vacuous, check
from kat.verify.checks.generation import teach
from kat.verify.checks.objective import variants
from kat.verify.lab import AdapterError, Lab, parameters, traits_of
from kat.verify.subject import Traits

SPREAD = 0.3  # how far a policy is put from its reference, as a share of its random weights


@check(
    family="rl",
    level=1,
    needs={"rl_setup", "rollout"},
    kind="oracle",
    catches=("RL7", "RL11", "RL21", "DM5", "SG4"),
)
def rollout_rows_end_at_the_end_token(lab: Lab) -> None:
    """A rollout holds n different completions of each prompt, also of one that is drawn twice, one prompt after
    another, which is given back verbatim; the mask is 1 up to the first end token or the longest length, the end token
    too, whatever ids stand there."""
    traits, subject = lab.traits, start(lab)
    prompts = some_prompts(lab)
    special = [i for i in (traits.pad_id, *traits.eos_ids) if i is not None]
    for i, token in enumerate(special):  # as content: masks that are read off the ids go wrong here
        prompts[0][1 + i % 2] = prompts[2][-1] = token
    made = rolled(lab, subject, prompts, 8, seed=lab.seed)
    _check_different(lab, made, subject, prompts, traits)
    _check_drawn_twice(lab, subject, prompts)
    ended = [row for row in made if row.ids[-1] in traits.eos_ids]
    if traits.eos_ids and lab.has("forward", "named_parameters"):
        end, words = traits.eos_ids[0], lab.ids(1, 12)[0].tolist()
        middle = words[0] if traits.pad_id in (None, *traits.eos_ids) else traits.pad_id
        lessons = [[words[1], end], [words[2], middle, words[3], end], words[4:12]]
        teach(lab, subject, list(zip(prompts, lessons, strict=True)))
        made = rolled(lab, subject, prompts, 8, seed=lab.seed)
        ended = [row for row in made if row.ids[-1] in traits.eos_ids]
    if traits.eos_ids and not ended:
        raise Vacuous("no completion of this model ends with an end token")


@check(
    family="rl",
    level=1,
    needs={"rl_setup", "rollout", "completion_logprobs"},
    kind="oracle",
    tol=5e-4,
    catches=("RL8", "RL9", "TK8", "TK9", "DM12", "RL11"),
)
def rollout_logprobs_are_the_policys(lab: Lab) -> None:
    """The log-probabilities of a rollout are those of its policy, at the sampling temperature, of these very ids after
    their prompt: what completion_logprobs gives and, where it can be asked, forward."""
    for subject, traits, note in variants(lab):
        random_weights(lab, subject, SPREAD)
        prompts = some_prompts(lab)
        for row in rolled(lab, subject, prompts, 3, seed=lab.seed):
            _check_row(lab, subject, traits, row, note)
    subject, traits = start(lab), lab.traits
    prompts = some_prompts(lab)
    if traits.eos_ids and lab.has("forward", "named_parameters"):
        words = lab.ids(1, 3)[0].tolist()
        end = traits.eos_ids[0]
        teach(lab, subject, list(zip(prompts, [[words[0], end], [words[1], words[2], end], [end]], strict=True)))
        for row in rolled(lab, subject, prompts, 2, seed=lab.seed):
            _check_row(lab, subject, traits, row, ", completions that end early")
    row = rolled(lab, subject, prompts, 2, seed=lab.seed)[0]
    for temperature in (0.5, 1.0, 1.3):
        found = scored(subject, row.prompt, row.ids, temperature)
        case = f"temperature {temperature}, prompt of {len(row.prompt)} tokens, {len(row.ids)} new ones"
        if lab.has("forward"):
            expected = _by_forward(lab, subject, row, temperature)
            lab.close(found, expected, "completion_logprobs is not log-softmax(logits / temperature)", case=case)
        other = scored(subject, prompts[1], row.ids, temperature)
        if not (other - found).abs().max() > 1e-3:
            raise Failed("log-probabilities of a completion do not depend on its prompt", case=case, resembles="DM12")


@check(
    family="rl",
    level=1,
    needs={"rl_setup", "rollout", "forward", "named_parameters"},
    kind="statistical",
    catches=("RL25", "RL17"),
)
def rollouts_follow_the_current_policy(lab: Lab) -> None:
    """After the policy's weights change, rollouts are drawn from the new policy, neither from what it was nor from the
    reference: completions that it has learned come as often as it says."""
    traits, subject = lab.traits, start(lab)
    prompts = some_prompts(lab)
    words = lab.ids(1, 6)[0].tolist()
    lessons = [words[:2], words[2:4], words[4:]]
    before = [_probability(lab, subject, traits, *pair) for pair in zip(prompts, lessons, strict=True)]
    rolled(lab, subject, prompts, 2, seed=lab.seed)
    teach(lab, subject, list(zip(prompts, lessons, strict=True)), steps=600, margin=4.0)
    p = [_probability(lab, subject, traits, *pair) for pair in zip(prompts, lessons, strict=True)]
    if not min(p) > 0.3 + max(before):
        raise Vacuous(f"what was taught has probability {min(p):.2g}, before {max(before):.2g}")
    n = 12

    def p_value(seed: int) -> float:
        made = rolled(lab, subject, prompts, n, seed=seed)
        values = []
        for i, (lesson, share) in enumerate(zip(lessons, p, strict=True)):
            hits = sum(row.ids[: len(lesson)] == lesson for row in made[i * n : (i + 1) * n])
            values += [binom.cdf(hits, n, share), binom.sf(hits - 1, n, share)]
        return min(1.0, len(values) * float(min(values)))

    lab.statistical(
        p_value,
        f"completions that the policy has learned, of probability {min(p):.2g} to {max(p):.2g} (before it learned them "
        f"{max(before):.1g}), do not come so often in its rollouts",
        n=n * len(p),
    )


# What the checks share


@dataclass(frozen=True)
class Row:
    """One completion: its prompt, its ids with the end token, their log-probabilities (T,)."""

    prompt: list[int]
    ids: list[int]
    logprobs: Tensor


def start(lab: Lab, **overrides: Any) -> Any:
    """A fresh subject with random weights, policy and reference alike."""
    subject = lab.fresh(**overrides)
    random_weights(lab, subject, 0.0)
    return subject


@torch.no_grad()
def random_weights(lab: Lab, subject: Any, spread: float) -> dict[str, Tensor]:
    """Put random weights into both sides, the policy's `spread` away; return the reference's."""
    setup = subject.rl_setup()
    trained = set(parameters(subject)) if lab.has("named_parameters") else set(setup["policy"])
    kept = {}
    for name, value in setup["reference"].items():
        if value.is_floating_point() and (name in trained or not trained & set(setup["reference"])):
            noise, more = (noise_for(name, value, lab.seed + i) for i in (0, 1))
            value.copy_(noise if value.ndim > 1 else value + 0.2 * noise)
            setup["policy"][name].copy_(value + spread * more)
        kept[name] = value.clone()
    return kept


def noise_for(name: str, like: Tensor, seed: int) -> Tensor:
    """Normal numbers of standard deviation 1 / sqrt(fan_in) (1 for vectors), from the name and the seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    drawn = torch.randn(like.shape, generator=generator)
    return (drawn / like.shape[-1] ** 0.5 if like.ndim > 1 else drawn).to(like)


def some_prompts(lab: Lab) -> list[list[int]]:
    return lab.prompts(4, 2, 6)


def rolled(lab: Lab, subject: Any, prompts: Sequence[Sequence[int]], n: int, seed: int) -> list[Row]:
    """The rows of a rollout, whose form is right."""
    made = subject.rollout([list(ids) for ids in prompts], n, seed)
    traits = traits_of(subject)
    rows = len(prompts) * n
    ids, mask, logprobs = (torch.as_tensor(made[name]) for name in ("completion_ids", "mask", "logprobs"))
    if not ids.shape == mask.shape == logprobs.shape or ids.ndim != 2 or len(ids) != rows:
        raise AdapterError(
            f"rollout returns ids {ids.shape}, mask {mask.shape}, logprobs {logprobs.shape}; {rows} rows"
        )
    heads = [list(map(int, head)) for head in made["prompt_ids"]]
    wanted = [list(prompt) for prompt in prompts for _ in range(n)]
    if heads != wanted:
        i = next((i for i, pair in enumerate(zip(heads, wanted, strict=False)) if pair[0] != pair[1]), len(heads))
        raise Failed(
            f"row {i} of a rollout has another prompt than the one asked for: n rows each, one prompt after another",
            case=f"{len(prompts)} prompts, n={n}: {heads[i] if i < len(heads) else 'no row'} instead of {wanted[i]}",
            resembles="RL11",
        )
    found = []
    for i in range(rows):
        length = int(mask[i].sum())
        row = ids[i].tolist()
        case = f"row {i}: ids {row}, mask {mask[i].tolist()}, end tokens {traits.eos_ids}"
        if mask[i].tolist() != [1] * length + [0] * (len(row) - length):
            raise Failed("the mask of a completion is not 1 up to its end and 0 after it", case=case, resembles="DM5")
        kept = row[:length]
        if any(token in traits.eos_ids for token in kept[:-1]):
            raise Failed("tokens after the end token count", case=case, resembles="RL7")
        if not kept or (kept[-1] not in traits.eos_ids and length < traits.max_new_tokens):
            after = length < len(row) and row[length] in traits.eos_ids
            raise Failed(
                "the end token of a completion does not count"
                if after
                else f"a completion stops before an end token and before max_new_tokens ({traits.max_new_tokens})",
                case=case,
                resembles="RL21",
            )
        if length > traits.max_new_tokens:
            raise Failed(f"a completion is longer than max_new_tokens ({traits.max_new_tokens})", case=case)
        found.append(Row(list(heads[i]), kept, logprobs[i, :length].float()))
    return found


def _check_different(lab: Lab, made: Sequence[Row], subject: Any, prompts: Sequence[list[int]], traits: Traits) -> None:
    """The samples of a prompt differ, and depend on the seed alone."""
    n = len(made) // len(prompts)
    if float(torch.stack([row.logprobs.sum() for row in made]).mean()) > -6:
        raise Vacuous("completions are all but certain: equal ones would prove nothing")
    for i, prompt in enumerate(prompts):
        group = [tuple(row.ids) for row in made[i * n : (i + 1) * n]]
        if len(set(group)) < n / 2:
            raise Failed(
                f"only {len(set(group))} of {n} completions of a prompt differ",
                case=f"prompt of {len(prompt)} tokens, temperature {traits.temperature:g}",
                resembles="SG4",
            )
    ids = [row.ids for row in made]
    torch.manual_seed(lab.seed + 99)
    again = [row.ids for row in rolled(lab, subject, prompts, n, seed=lab.seed)]
    lab.equal(again, ids, "completions of the same seed", resembles="SG4")
    other = [row.ids for row in rolled(lab, subject, prompts, n, seed=lab.seed + 1)]
    if sum(a == b for a, b in zip(other, ids, strict=True)) > len(ids) / 2:
        raise Failed("another seed gives the same completions", resembles="SG4")


def _check_drawn_twice(lab: Lab, subject: Any, prompts: Sequence[list[int]]) -> None:
    """A prompt that a schedule draws twice in one rollout gets other completions the second time."""
    n = 6
    made = [tuple(row.ids) for row in rolled(lab, subject, [prompts[0], prompts[1], prompts[0]], n, seed=lab.seed)]
    first, second = set(made[:n]), made[2 * n :]
    if sum(ids in first for ids in second) > n / 2:
        raise Failed(
            f"a prompt that is drawn twice gets {sum(ids in first for ids in second)} of {n} completions again",
            case=f"prompt of {len(prompts[0])} tokens, the first and the third of a rollout",
            resembles="SG4",
        )


def scored(subject: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> Tensor:
    found = torch.as_tensor(subject.completion_logprobs(list(prompt), list(ids), temperature)).detach().float()
    if found.shape != (len(ids),):
        raise AdapterError(f"completion_logprobs returns {tuple(found.shape)} for {len(ids)} tokens")
    return found


def completion_logits(lab: Lab, subject: Any, row: Row) -> Tensor:
    """(T, V) logits that give the completion's tokens."""
    ids = torch.tensor([[*row.prompt, *row.ids[:-1]]])
    return lab.forward(subject, ids)[0, len(row.prompt) - 1 :].float()


def _by_forward(lab: Lab, subject: Any, row: Row, temperature: float) -> Tensor:
    with torch.no_grad():
        logits = completion_logits(lab, subject, row)
    return picked(logits / temperature, row.ids)


def picked(logits: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def _check_row(lab: Lab, subject: Any, traits: Traits, row: Row, note: str) -> None:
    case = f"prompt of {len(row.prompt)} tokens, completion {row.ids}{note}"
    expected = scored(subject, row.prompt, row.ids, traits.temperature)
    raw = scored(subject, row.prompt, row.ids, 1.0)
    unscaled = traits.temperature != 1 and float((row.logprobs - raw).abs().max()) <= lab.tol
    lab.close(
        row.logprobs,
        expected,
        "log-probabilities of a rollout are not those that completion_logprobs gives for its ids"
        + (f" at the sampling temperature {traits.temperature:g}, but those at 1" if unscaled else ""),
        case=case,
        resembles="RL9" if unscaled else "RL8",
    )
    if lab.has("forward"):
        expected = _by_forward(lab, subject, row, traits.temperature)
        lab.close(row.logprobs, expected, "log-probabilities of a rollout are not those of forward", case=case)


def _probability(lab: Lab, subject: Any, traits: Traits, prompt: list[int], ids: list[int]) -> float:
    return math.exp(float(_by_forward(lab, subject, Row(prompt, ids, torch.zeros(0)), traits.temperature).sum()))
