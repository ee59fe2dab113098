"""Rollouts, and the training step on one: what is sampled, what is stored, what is learned from it."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor

from kat.verify.check import Failed, NotApplicable, Vacuous, check
from kat.verify.checks.generation import teach
from kat.verify.checks.objective import declared_loss, expected_advantages, expected_metrics, variants
from kat.verify.lab import AdapterError, Lab, gradients, parameters, traits_of, zero_grad
from kat.verify.subject import Rollout, Traits

SPREAD = 0.3  # how far a policy is put from its reference, as a share of its random weights
STEP = {"rl_setup", "rollout", "rl_step"}
ORACLE = {*STEP, "forward", "named_parameters"}
REWARDS = torch.tensor([[1.0, 0.0, 0.5, -1.0], [2.0, 2.0, 2.0, 2.0], [0.0, -0.5, 0.0, 3.0]])


@check(family="rl", level=2, needs=STEP, kind="metamorphic", catches=("RL1", "RL10"))
def policy_starts_as_the_reference(lab: Lab) -> None:
    """Before the first step the policy's weights are the model's that was given and the reference's, bit for bit, in
    memory of their own; steps move the policy and leave the reference as it was."""
    setup = lab.subject.rl_setup()
    policy, reference = setup["policy"], setup["reference"]
    for name, value in (parameters(lab.fresh()) if lab.has("named_parameters") else {}).items():
        if name in policy and not torch.equal(value, policy[name]):
            raise Failed("the policy does not start as the model that was given", case=name, resembles="RL1")
    lab.equal(sorted(policy), sorted(reference), "the reference's tensors")
    for name, value in policy.items():
        if not torch.equal(value, reference[name]):
            raise Failed("policy and reference differ before the first step", case=name, resembles="RL10")
        if value.numel() and value.untyped_storage().data_ptr() == reference[name].untyped_storage().data_ptr():
            raise Failed("policy and reference share memory", case=name, resembles="RL10")
    subject = start(lab)
    setup = subject.rl_setup()
    before = {side: {name: value.clone() for name, value in setup[side].items()} for side in setup}
    for seed in range(2):
        subject.rl_step(subject.rollout(_prompts(lab), 4, seed), REWARDS)
    after = subject.rl_setup()
    moved = [name for name, value in after["reference"].items() if not torch.equal(value, before["reference"][name])]
    if moved:
        raise Failed("the reference moves when the policy is trained", case=moved[0], resembles="RL10")
    if all(torch.equal(value, before["policy"][name]) for name, value in after["policy"].items()):
        raise Failed("two steps with rewards of both signs leave the policy as it was", resembles="RL1")


@check(
    family="rl",
    level=1,
    needs={"rl_setup", "rollout"},
    kind="oracle",
    catches=("RL7", "RL11", "RL21", "DM5", "SG4"),
)
def rollout_rows_end_at_the_end_token(lab: Lab) -> None:
    """A rollout holds n different completions of each prompt, one prompt after another, which is given back verbatim;
    the mask is 1 up to the first end token or the longest length, the end token too, whatever ids stand there."""
    traits, subject = lab.traits, start(lab)
    prompts = _prompts(lab)
    special = [i for i in (traits.pad_id, *traits.eos_ids) if i is not None]
    for i, token in enumerate(special):  # as content: masks that are read off the ids go wrong here
        prompts[0][1 + i % 2] = prompts[2][-1] = token
    made = rolled(lab, subject, prompts, 8, seed=lab.seed)
    _check_different(lab, made, subject, prompts, traits)
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
        _random_weights(lab, subject, SPREAD)
        prompts = _prompts(lab)
        for row in rolled(lab, subject, prompts, 3, seed=lab.seed):
            _check_row(lab, subject, traits, row, note)
    subject, traits = start(lab), lab.traits
    prompts = _prompts(lab)
    if traits.eos_ids and lab.has("forward", "named_parameters"):
        words = lab.ids(1, 3)[0].tolist()
        end = traits.eos_ids[0]
        teach(lab, subject, list(zip(prompts, [[words[0], end], [words[1], words[2], end], [end]], strict=True)))
        for row in rolled(lab, subject, prompts, 2, seed=lab.seed):
            _check_row(lab, subject, traits, row, ", completions that end early")
    row = rolled(lab, subject, prompts, 2, seed=lab.seed)[0]
    for temperature in (0.5, 1.0, 1.3):
        found = _scored(subject, row.prompt, row.ids, temperature)
        case = f"temperature {temperature}, prompt of {len(row.prompt)} tokens, {len(row.ids)} new ones"
        if lab.has("forward"):
            expected = _by_forward(lab, subject, row, temperature)
            lab.close(found, expected, "completion_logprobs is not log-softmax(logits / temperature)", case=case)
        other = _scored(subject, prompts[1], row.ids, temperature)
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
    prompts = _prompts(lab)
    words = lab.ids(1, 6)[0].tolist()
    lessons = [words[:2], words[2:4], words[4:]]
    before = [_probability(lab, subject, traits, *pair) for pair in zip(prompts, lessons, strict=True)]
    rolled(lab, subject, prompts, 2, seed=lab.seed)
    teach(lab, subject, list(zip(prompts, lessons, strict=True)), margin=6.0)
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


@check(family="rl", level=2, needs=ORACLE, kind="oracle", tol=2e-3, catches=("RL2", "LN3", "RL3", "RL15", "RL17", "RL8"))
def rl_step_descends_the_declared_objective(lab: Lab) -> None:
    """A step's loss and gradient norm are those of the declared objective over the whole rollout, whose advantages,
    log-probabilities and divergence from the reference are computed anew from forward; the weights move against its
    gradient. So is a second step on a rollout whose policy has changed."""
    for subject, traits, note in variants(lab):
        if traits.kl_target is not None:
            continue  # the coefficient has a check of its own
        reference = _random_weights(lab, subject, SPREAD)
        made = _ragged(subject.rollout(_prompts(lab), 4, lab.seed))
        for stale in (False, True):
            if stale:
                _disturb(lab, subject)
            expected = Expected.of(lab, subject, reference, traits, made, REWARDS)
            if stale and traits.old_logprobs == "stored" and not expected.metrics["clip_fraction"] > 0.02:
                raise Vacuous("no ratio of a stale rollout is outside the clipping bounds")
            before = {name: weight.detach().clone() for name, weight in parameters(subject).items()}
            metrics = subject.rl_step(made, REWARDS)
            case = f"3 prompts, 4 completions each, rewards of both signs{', the policy changed' * stale}{note}"
            _check_sizes(lab, metrics, expected, case)
            if not stale:
                _check_direction(parameters(subject), before, expected.gradient, case)


@check(family="rl", level=2, needs=ORACLE, kind="oracle", tol=1e-3, catches=("LN16", "RL24", "RL27"))
def rl_step_metrics_match_their_definition(lab: Lab) -> None:
    """A step reports the mean of the rewards, and the divergence from the reference, the entropy (nats) and the clip
    fraction as means over the completions' tokens."""
    seen: set[str] = set()
    for subject, traits, note in variants(lab):
        reference = _random_weights(lab, subject, SPREAD)
        made = _ragged(subject.rollout(_prompts(lab), 4, lab.seed))
        expected = Expected.of(lab, subject, reference, traits, made, REWARDS).metrics
        metrics = subject.rl_step(made, REWARDS)
        for name, value in expected.items():
            if name in metrics:
                seen.add(name)
                what = f"the metric {name!r} is {float(metrics[name]):.5g}, by definition {value:.5g}"
                lab.at_most(abs(float(metrics[name]) - value), what, case=f"3 prompts, 4 completions each{note}")
    lab.require(seen, "rl_step reports none of reward, kl, entropy, clip_fraction")


@check(
    family="rl",
    level=2,
    needs={*STEP, "completion_logprobs"},
    kind="metamorphic",
    catches=("RL2", "RL26", "RL22"),
)
def rewarded_completions_get_likelier(lab: Lab) -> None:
    """A step makes the completion that alone was rewarded likelier, against the others of its group; opposite rewards
    move the weights the opposite way, rewards that are all negative or have a zero among them as any others, and equal
    rewards move nothing (or are refused)."""
    subject = start(lab)
    made = subject.rollout(_prompts(lab), 4, lab.seed)
    rewards = torch.zeros(3, 4)
    for group, row in enumerate((2, 0, 3)):
        rewards[group, row] = 1.0
    gains, up, norm = _gains(lab, made, rewards)
    for group, row in enumerate((2, 0, 3)):
        others = (gains[group].sum() - gains[group, row]) / 3
        if not gains[group, row] > max(0.0, float(others)):
            raise Failed(
                "the completion that was rewarded does not get likelier against the others of its group",
                case=f"group {group}, row {row} rewarded 1, the others 0; changes of log-probability (scaled) "
                f"{[round(g, 3) for g in gains[group].tolist()]}",
            )
    for change, factor in ((-rewards, -1.0), (rewards - 3, 1.0), (rewards - 1, 1.0)):
        _, update, _ = _gains(lab, made, change)
        cosine = float(up @ update / (up.norm() * update.norm())) if update.norm() else 0.0
        if not factor * cosine > 0.9:
            raise Failed(
                f"the update for rewards {change[0].tolist()} should be {'that' if factor > 0 else 'the opposite of'} "
                f"that for {rewards[0].tolist()}; the cosine between the two is {cosine:.3f}",
                measured=factor * cosine,
                tolerance=0.9,
                resembles="RL2",
            )
    for value in (0.0, 0.5):
        try:
            _, update, size = _gains(lab, made, torch.full((3, 4), value))
        except Exception:  # noqa: BLE001 (refusing is right, in whatever words)
            continue
        seen, most = (size, norm) if size is not None and norm is not None else (float(update.norm()), float(up.norm()))
        if not seen <= 1e-3 * most:
            raise Failed(
                f"equal rewards of {value:g} move the policy: {seen:.3g}, where different ones give {most:.3g}",
                measured=seen / most,
                tolerance=1e-3,
                case="policy and reference equal, 3 groups of 4 completions",
                resembles="RL26",
            )


@check(family="rl", level=2, needs=STEP, kind="oracle", tol=1e-6, catches=("RL19",))
def kl_coefficient_follows_the_reported_divergence(lab: Lab) -> None:
    """The coefficient stays what is declared or, with a target, follows the reported divergence from the reference: by
    the factor 1 + clip(kl / target − 1, ±0.2) / horizon a rollout."""
    seen = 0
    for subject, traits, note in variants(lab):
        if note and traits.kl_target is None and seen:
            continue  # one fixed coefficient is as good as another
        _random_weights(lab, subject, SPREAD)
        coefficient = traits.kl_coef
        for step in range(3):
            metrics = subject.rl_step(subject.rollout(_prompts(lab), 4, step), REWARDS)
            if "kl_coef" not in metrics:
                break
            seen += 1
            what = f"the coefficient is {metrics['kl_coef']:.6g} in step {step}, by its rule {coefficient:.6g}"
            lab.at_most(abs(metrics["kl_coef"] - coefficient), what, case=f"reported kl {metrics['kl']:.4g}{note}")
            if traits.kl_target is not None:
                error = min(max(metrics["kl"] / traits.kl_target - 1, -0.2), 0.2)
                coefficient *= 1 + error / traits.kl_horizon
    lab.require(seen, "rl_step does not report kl_coef")


# Rollouts


@dataclass(frozen=True)
class Row:
    """One completion: its prompt, its ids with the end token, their log-probabilities (T,)."""

    prompt: list[int]
    ids: list[int]
    logprobs: Tensor


def start(lab: Lab, **overrides: Any) -> Any:
    """A fresh subject with random weights, policy and reference alike."""
    subject = lab.fresh(**overrides)
    _random_weights(lab, subject, 0.0)
    return subject


@torch.no_grad()
def _random_weights(lab: Lab, subject: Any, spread: float) -> dict[str, Tensor]:
    """Put random weights into both sides, the policy's `spread` away; return the reference's."""
    setup = subject.rl_setup()
    trained = set(parameters(subject)) if lab.has("named_parameters") else set(setup["policy"])
    kept = {}
    for name, value in setup["reference"].items():
        if value.is_floating_point() and (name in trained or not trained & set(setup["reference"])):
            noise, more = (_noise(name, value, lab.seed + i) for i in (0, 1))
            value.copy_(noise if value.ndim > 1 else value + 0.2 * noise)
            setup["policy"][name].copy_(value + spread * more)
        kept[name] = value.clone()
    return kept


def _noise(name: str, like: Tensor, seed: int) -> Tensor:
    """Normal numbers of standard deviation 1 / sqrt(fan_in) (1 for vectors), from the name and the seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    drawn = torch.randn(like.shape, generator=generator)
    return (drawn / like.shape[-1] ** 0.5 if like.ndim > 1 else drawn).to(like)


@torch.no_grad()
def _disturb(lab: Lab, subject: Any) -> None:
    """Move the policy, so that ratios leave 1."""
    for name, weight in parameters(subject).items():
        weight.add_((0.3 if weight.ndim > 1 else 0.05) * _noise(name, weight, lab.seed + 2))


def _prompts(lab: Lab) -> list[list[int]]:
    return lab.prompts(4, 2, 6)


def rolled(lab: Lab, subject: Any, prompts: Sequence[Sequence[int]], n: int, seed: int) -> list[Row]:
    """The rows of a rollout, whose form is right."""
    made = subject.rollout([list(ids) for ids in prompts], n, seed)
    traits = traits_of(subject)
    rows = len(prompts) * n
    ids, mask, logprobs = (torch.as_tensor(made[name]) for name in ("completion_ids", "mask", "logprobs"))
    if not ids.shape == mask.shape == logprobs.shape or ids.ndim != 2 or len(ids) != rows:
        raise AdapterError(f"rollout returns ids {ids.shape}, mask {mask.shape}, logprobs {logprobs.shape}; {rows} rows")
    heads = [list(map(int, head)) for head in made["prompt_ids"]]
    wanted = [list(prompt) for prompt in prompts for _ in range(n)]
    if heads != wanted:
        i = next((i for i, pair in enumerate(zip(heads, wanted, strict=False)) if pair[0] != pair[1]), len(heads))
        raise Failed(
            f"row {i} of a rollout has another prompt than the one asked for: each prompt has n rows, one after another",
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


def _check_different(
    lab: Lab, made: Sequence[Row], subject: Any, prompts: Sequence[list[int]], traits: Traits
) -> None:
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


def _scored(subject: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> Tensor:
    found = torch.as_tensor(subject.completion_logprobs(list(prompt), list(ids), temperature)).detach().float()
    if found.shape != (len(ids),):
        raise AdapterError(f"completion_logprobs returns {tuple(found.shape)} for {len(ids)} tokens")
    return found


def _logits(lab: Lab, subject: Any, row: Row) -> Tensor:
    """(T, V) logits that give the completion's tokens."""
    ids = torch.tensor([[*row.prompt, *row.ids[:-1]]])
    return lab.forward(subject, ids)[0, len(row.prompt) - 1 :].float()


def _by_forward(lab: Lab, subject: Any, row: Row, temperature: float) -> Tensor:
    with torch.no_grad():
        logits = _logits(lab, subject, row)
    return _picked(logits / temperature, row.ids)


def _picked(logits: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def _check_row(lab: Lab, subject: Any, traits: Traits, row: Row, note: str) -> None:
    case = f"prompt of {len(row.prompt)} tokens, completion {row.ids}{note}"
    expected = _scored(subject, row.prompt, row.ids, traits.temperature)
    raw = _scored(subject, row.prompt, row.ids, 1.0)
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


# Steps


def _ragged(made: Rollout) -> Rollout:
    """The rollout with completions cut to very different lengths; what stood after them still does, outside the mask."""
    mask = torch.as_tensor(made["mask"]).clone()
    for i in range(len(mask)):
        mask[i, (mask.size(1), 3, 1, 6, 4, 9, 2)[i % 7] :] = 0
    return {**made, "mask": mask}


@dataclass(frozen=True)
class Expected:
    """What a step on a rollout is by definition."""

    loss: float
    gradient: dict[str, Tensor]
    metrics: dict[str, float]

    @classmethod
    def of(
        cls,
        lab: Lab,
        subject: Any,
        reference: Mapping[str, Tensor],
        traits: Traits,
        made: Rollout,
        rewards: Tensor,
    ) -> "Expected":
        """Each completion alone through `forward`, of the policy and of another subject with the reference's weights."""
        twin = lab.fresh()
        with torch.no_grad():
            for name, weight in twin.rl_setup()["policy"].items():
                weight.copy_(reference[name])
        rows = [
            Row(list(prompt), ids[mask == 1].tolist(), values[mask == 1])
            for prompt, ids, mask, values in zip(
                made["prompt_ids"], made["completion_ids"], made["mask"], made["logprobs"], strict=True
            )
        ]
        logits = [_logits(lab, subject, row) / traits.temperature for row in rows]
        with torch.no_grad():
            ref_logits = [_logits(lab, twin, row) / traits.temperature for row in rows]
        logprobs = [_picked(own, row.ids) for own, row in zip(logits, rows, strict=True)]
        ref = [_picked(own, row.ids) for own, row in zip(ref_logits, rows, strict=True)]
        old = [row.logprobs for row in rows] if traits.old_logprobs == "stored" else [v.detach() for v in logprobs]
        judged = rewards.double()
        if traits.kl == "reward_k1":
            penalty = torch.stack([(row.logprobs - r).sum() for row, r in zip(rows, ref, strict=True)])
            judged = judged - traits.kl_coef * penalty.double().view(rewards.shape)
        divergences = [_exact_kl(own, other) for own, other in zip(logits, ref_logits, strict=True)]
        parts = {"logprobs": logprobs, "old": old, "ref": ref, "exact": divergences}
        parts["mask"] = [torch.ones(len(row.ids)) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        data = {name: pad(values, batch_first=True) for name, values in parts.items()}
        data["advantages"] = expected_advantages(judged, traits).flatten().float()
        loss = declared_loss(data, traits)
        zero_grad(subject)
        loss.backward()
        gradient = gradients(subject)
        zero_grad(subject)
        data = {name: value.detach() for name, value in data.items()}
        metrics = expected_metrics(data, traits)
        # The reported divergence is the rollout's: of the policy that has sampled, where its log-probabilities are kept.
        if traits.old_logprobs == "stored":
            metrics["kl"] = expected_metrics({**data, "logprobs": data["old"]}, traits)["kl"]
        metrics["reward"] = float(rewards.double().mean())
        own = torch.cat([value.detach() for value in logits])
        metrics["entropy"] = float(torch.distributions.Categorical(logits=own).entropy().mean())
        return cls(float(loss.detach()), gradient, metrics)

    @property
    def norm(self) -> float:
        return float(torch.cat([value.flatten() for value in self.gradient.values()]).norm())


def _exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _check_sizes(lab: Lab, metrics: Mapping[str, float], expected: Expected, case: str) -> None:
    """Loss and gradient norm, as far as they are reported."""
    if "loss" in metrics:
        what = f"the step reports the loss {metrics['loss']:.6g}; by definition it is {expected.loss:.6g}"
        lab.at_most(abs(metrics["loss"] - expected.loss) / max(1.0, abs(expected.loss)), what, case=case)
    if "grad_norm" in metrics:
        what = f"the gradient norm is {metrics['grad_norm']:.6g}, that of the declared objective {expected.norm:.6g}"
        lab.at_most(abs(metrics["grad_norm"] / expected.norm - 1), what, case=case)


def _check_direction(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor], gradient: Mapping[str, Tensor], case: str
) -> None:
    """Any first step of an optimizer goes against the gradient, tensor by tensor."""
    largest = max(float(value.norm()) for value in gradient.values())
    for name, value in gradient.items():
        if float(value.norm()) < 1e-2 * largest:
            continue
        update = (after[name].detach() - before[name]).flatten().double()
        cosine = float(update @ value.flatten().double() / (update.norm() * value.norm())) if update.any() else 0.0
        if not cosine < -0.05:
            raise Failed(
                f"the step moves {name} {'not at all' if not update.any() else 'not against its gradient'}",
                measured=cosine,
                tolerance=-0.05,
                case=case,
                resembles="RL2",
            )


def _gains(lab: Lab, made: Rollout, rewards: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """What one step on a rollout does: (P, G) change of each completion's log-probability, the update of all weights,
    the gradient norm if it is reported. The update is stretched to 1 % of the weights, whatever the learning rate."""
    subject = start(lab)
    policy = {name: value for name, value in subject.rl_setup()["policy"].items() if value.is_floating_point()}
    rows = [
        (list(prompt), ids[mask == 1].tolist())
        for prompt, ids, mask in zip(made["prompt_ids"], made["completion_ids"], made["mask"], strict=True)
    ]
    temperature = lab.traits.temperature
    before = {name: value.clone() for name, value in policy.items()}
    old = torch.stack([_scored(subject, *row, temperature).sum() for row in rows])
    metrics = subject.rl_step(made, rewards)
    policy = {name: value for name, value in subject.rl_setup()["policy"].items() if name in before}
    update = {name: value.detach() - before[name] for name, value in policy.items()}
    flat = torch.cat([value.flatten().double() for value in update.values()])
    if flat.norm():
        size = float(torch.cat([value.flatten().double() for value in before.values()]).norm() / flat.norm())
        with torch.no_grad():
            for name, value in policy.items():
                value.copy_(before[name] + 0.01 * size * update[name])
    new = torch.stack([_scored(subject, *row, temperature).sum() for row in rows])
    norm = metrics.get("grad_norm")
    return (new - old).view(rewards.shape), flat, None if norm is None else float(norm)
