"""Steps of reinforcement learning: where a run starts, what is learned from a rollout, what is reported of it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kat.verify.check import Failed, Vacuous, check
from kat.verify.checks.objective import declared_loss, expected_advantages, expected_metrics, variants
from kat.verify.checks.rollouts import (
    SPREAD,
    Row,
    completion_logits,
    noise_for,
    picked,
    random_weights,
    scored,
    some_prompts,
    start,
)
from kat.verify.lab import Lab, gradients, parameters, relative_difference, zero_grad
from kat.verify.subject import Rollout, Traits
from kat.verify.watch import watched

STEP = {"rl_setup", "rollout", "rl_step"}
ORACLE = {*STEP, "forward", "named_parameters"}
REWARDS = torch.tensor([[1.0, 0.0, 0.5, -1.0], [2.0, 2.0, 2.0, 2.0], [0.0, -0.5, 0.0, 3.0]])


@check(family="rl", level=2, needs=STEP, kind="metamorphic", catches=("RL1", "RL10"))
def policy_starts_as_the_reference(lab: Lab) -> None:
    """Before the first step the policy's weights are the model's that was given and the reference's, bit for bit, in
    memory of their own; five steps move the policy and leave the reference as it was."""
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
    for seed in range(5):  # a reference that is renewed now and then is none
        subject.rl_step(subject.rollout(some_prompts(lab), 4, seed), REWARDS)
    after = subject.rl_setup()
    moved = [name for name, value in after["reference"].items() if not torch.equal(value, before["reference"][name])]
    if moved:
        raise Failed("the reference moves when the policy is trained", case=moved[0], resembles="RL10")
    if all(torch.equal(value, before["policy"][name]) for name, value in after["policy"].items()):
        raise Failed("five steps with rewards of both signs leave the policy as it was", resembles="RL1")


@check(
    family="rl", level=2, needs=ORACLE, kind="oracle", tol=2e-3, catches=("RL2", "LN3", "RL3", "RL15", "RL17", "RL8")
)
def rl_step_descends_the_declared_objective(lab: Lab) -> None:
    """A step's loss and gradient norm are those of the declared objective over the whole rollout, whose advantages,
    log-probabilities and divergence from the reference are computed anew from forward; the gradient that the optimizer
    finds is that one, up to one factor for all tensors (clipping), and the weights move against it. So is a second step
    on a rollout whose policy has changed."""
    for subject, traits, note in variants(lab):
        reference = random_weights(lab, subject, SPREAD)
        made = _ragged(subject.rollout(some_prompts(lab), 4, lab.seed))
        for stale in (False, True):
            if stale and traits.kl_target is not None:
                break  # its coefficient has moved on, which has a check of its own
            expect = functools.partial(Expected.of, lab, subject, reference, traits, made, REWARDS)
            expected = _moved_away(lab, subject, traits, expect) if stale else expect()
            before = {name: weight.detach().clone() for name, weight in parameters(subject).items()}
            with watched(subject) as updates:
                metrics = subject.rl_step(made, REWARDS)
            case = f"3 prompts, 4 completions each, rewards of both signs{', the policy changed' * stale}{note}"
            _check_sizes(lab, metrics, expected, case)
            _check_gradient(lab, [update.gradients for update in updates], expected, case)
            if not stale:
                _check_direction(parameters(subject), before, expected.gradient, case)


@check(family="rl", level=2, needs=ORACLE, kind="oracle", tol=1e-3, catches=("LN16", "RL24", "RL27"))
def rl_step_metrics_match_their_definition(lab: Lab) -> None:
    """A step reports the mean of the rewards, and the divergence from the reference, the entropy (nats) and the clip
    fraction as means over the completions' tokens.

    Of the divergence any of its usual estimates: k3 as the loss has it, the log-ratio, the sum over the vocabulary."""
    seen: set[str] = set()
    for subject, traits, note in variants(lab):
        reference = random_weights(lab, subject, SPREAD)
        made = _ragged(subject.rollout(some_prompts(lab), 4, lab.seed))
        expected = Expected.of(lab, subject, reference, traits, made, REWARDS).metrics
        metrics = subject.rl_step(made, REWARDS)
        for name, values in expected.items():
            if name in metrics:
                seen.add(name)
                value = min(values, key=lambda value: abs(float(metrics[name]) - value))
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
    """A step makes completions that alone were rewarded likelier, against the others of their groups; opposite rewards
    move the weights the opposite way, rewards that are all negative or have a zero among them as any others, and equal
    rewards move nothing (or are refused)."""
    subject = start(lab)
    made = subject.rollout(some_prompts(lab), 4, lab.seed)
    rewards = torch.zeros(3, 4)
    for group, row in enumerate((2, 0, 3)):
        rewards[group, row] = 1.0
    gains, up, norm = _gains(lab, made, rewards)
    if lab.traits.aggregation == "sequence-mean":
        gains = gains / torch.as_tensor(made["mask"]).sum(1).view(rewards.shape)
    gain = float(((rewards - rewards.mean(1, keepdim=True)) * gains).sum())
    if not gain > 0:
        raise Failed(
            "the completions that were rewarded do not get likelier against the others of their groups",
            measured=gain,
            tolerance=0.0,
            case=f"rows 2, 0 and 3 of 3 groups rewarded 1, the others 0; changes of log-probability (scaled) "
            f"{[[round(g, 3) for g in group] for group in gains.tolist()]}",
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
    # A penalty in the reward differs from row to row by rounding, which the group's deviation then divides.
    most = 0.05 if lab.traits.kl == "reward_k1" else 1e-3
    for value in (0.0, 0.5):
        try:
            _, update, size = _gains(lab, made, torch.full((3, 4), value))
        except Exception:  # noqa: BLE001 (refusing is right, in whatever words)
            continue
        seen, usual = (
            (size, norm) if size is not None and norm is not None else (float(update.norm()), float(up.norm()))
        )
        if not seen <= most * usual:
            raise Failed(
                f"equal rewards of {value:g} move the policy: {seen:.3g}, where different ones give {usual:.3g}",
                measured=seen / usual,
                tolerance=most,
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
        random_weights(lab, subject, SPREAD)
        coefficient = traits.kl_coef
        for step in range(3):
            metrics = subject.rl_step(subject.rollout(some_prompts(lab), 4, step), REWARDS)
            if "kl_coef" not in metrics:
                break
            seen += 1
            what = f"the coefficient is {metrics['kl_coef']:.6g} in step {step}, by its rule {coefficient:.6g}"
            lab.at_most(abs(metrics["kl_coef"] - coefficient), what, case=f"reported kl {metrics['kl']:.4g}{note}")
            if traits.kl_target is not None:
                error = min(max(metrics["kl"] / traits.kl_target - 1, -0.2), 0.2)
                coefficient *= 1 + error / traits.kl_horizon
    lab.require(seen, "rl_step does not report kl_coef")


# What the checks share


def _moved_away(lab: Lab, subject: Any, traits: Traits, expect: Callable[[], "Expected"]) -> "Expected":
    """Move the policy until ratios are outside the clipping bounds; what is expected then."""
    for attempt in range(8):
        with torch.no_grad():
            for name, weight in parameters(subject).items():
                weight.add_((0.3 if weight.ndim > 1 else 0.05) * noise_for(name, weight, lab.seed + 2 + attempt))
        expected = expect()
        if traits.old_logprobs == "recomputed" or expected.metrics["clip_fraction"][0] > 0.02:
            return expected
    raise Vacuous("no ratio of a stale rollout is outside the clipping bounds")


def _ragged(made: Rollout) -> Rollout:
    """The rollout with completions cut to very different lengths; the rest still stands there, outside the mask."""
    mask = torch.as_tensor(made["mask"]).clone()
    for i in range(len(mask)):
        mask[i, (mask.size(1), 3, 1, 6, 4, 9, 2)[i % 7] :] = 0
    return {**made, "mask": mask}


@dataclass(frozen=True)
class Expected:
    """What a step on a rollout is by definition."""

    loss: float
    gradient: dict[str, Tensor]
    metrics: dict[str, tuple[float, ...]]  # every value that is right

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
        """Each completion alone through `forward`, of the policy and of a subject with the reference's weights."""
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
        logits = [completion_logits(lab, subject, row) / traits.temperature for row in rows]
        with torch.no_grad():
            ref_logits = [completion_logits(lab, twin, row) / traits.temperature for row in rows]
        logprobs = [picked(own, row.ids) for own, row in zip(logits, rows, strict=True)]
        ref = [picked(own, row.ids) for own, row in zip(ref_logits, rows, strict=True)]
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
        # Where a rollout's log-probabilities are kept, the divergence is that of the policy that sampled it.
        sampled = {**data, "logprobs": data["old"]} if traits.old_logprobs == "stored" else data
        counted = data["mask"] == 1
        ratio = (sampled["logprobs"] - data["ref"])[counted].double().mean()
        own = torch.cat([value.detach() for value in logits])
        metrics = {
            "clip_fraction": (expected_metrics(data, traits)["clip_fraction"],),
            "kl": (expected_metrics(sampled, traits)["kl"], float(ratio), float(data["exact"][counted].mean())),
            "reward": (float(rewards.double().mean()),),
            "entropy": (float(torch.distributions.Categorical(logits=own).entropy().mean()),),
        }
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


def _check_gradient(lab: Lab, found: Sequence[Mapping[str, Tensor]], expected: Expected, case: str) -> None:
    """What the optimizer finds, where it is one of torch's and makes one update: clipping may have shortened it, by one
    factor for all tensors."""
    merged = {name: value for gradient in found for name, value in gradient.items()}
    if sum(len(gradient) for gradient in found) != len(merged) or not merged:
        return  # several updates of a tensor in one step: which gradient each has is the trainer's own business
    flat = {name: merged.get(name, torch.zeros_like(value)) for name, value in expected.gradient.items()}
    product = sum(float((flat[name].double() * value.double()).sum()) for name, value in expected.gradient.items())
    factor = product / expected.norm**2
    what = f"along the declared gradient the optimizer finds {factor:.4g} times its length"
    if not factor > 0:
        raise Failed(f"{what}: it is given the opposite", measured=factor, tolerance=0.0, case=case, resembles="RL2")
    lab.at_most(factor - 1, f"{what}, and nothing makes a gradient longer", case=case)
    lab.at_most(
        relative_difference({name: value / factor for name, value in flat.items()}, expected.gradient),
        "the gradient that the optimizer finds is not that of the declared objective (relative)",
        case=case,
        tol=10 * lab.tol,
    )


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
    old = torch.stack([scored(subject, *row, temperature).sum() for row in rows])
    metrics = subject.rl_step(made, rewards)
    policy = {name: value for name, value in subject.rl_setup()["policy"].items() if name in before}
    update = {name: value.detach() - before[name] for name, value in policy.items()}
    flat = torch.cat([value.flatten().double() for value in update.values()])
    if flat.norm():
        size = float(torch.cat([value.flatten().double() for value in before.values()]).norm() / flat.norm())
        with torch.no_grad():
            for name, value in policy.items():
                value.copy_(before[name] + 0.01 * size * update[name])
    new = torch.stack([scored(subject, *row, temperature).sum() for row in rows])
    norm = metrics.get("grad_norm")
    return (new - old).view(rewards.shape), flat, None if norm is None else float(norm)
