"""What reinforcement learning maximises: advantages, the clipped objective, the divergence from the reference.

The oracles are the definitions, a few lines each, in float64; `rl.py` holds training steps against them too.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kat.verify.check import Failed, Vacuous, check
from kat.verify.lab import AdapterError, Lab, traits_of
from kat.verify.subject import Traits

CHOICES = {
    "aggregation": ("token-mean", "sequence-mean", "dr-grpo"),
    "kl": ("loss_k3", "loss_k3_weighted", "loss_k2", "none"),
    "advantage_scale": ("group", "batch", "none"),
}


@check(family="rl", level=0, needs={"advantages"}, kind="oracle", tol=1e-4, catches=("RL22",))
def advantages_follow_the_declared_formula(lab: Lab) -> None:
    """Advantages are rewards minus their group's mean, over the declared standard deviation (n − 1) plus its epsilon,
    and the same when all rewards are raised by a constant."""
    for subject, traits, note in variants(lab):
        for rewards, what in _reward_tables(lab):
            found = advantages_of(subject, rewards)
            expected = expected_advantages(rewards, traits)
            case = f"rewards {[[round(r, 4) for r in row] for row in rewards.tolist()]}, {what}{note}"
            worst = float(((found - expected).abs() / expected.abs().clamp(min=1)).max())
            lab.at_most(worst, f"advantages are not the declared ones{_other_scale(found, rewards, traits)}", case=case)
            lift = 8 * float(rewards.abs().max())  # in proportion: float32 loses small rewards beside large ones
            raised = advantages_of(subject, rewards + lift)
            worst = float(((raised - found).abs() / expected.abs().clamp(min=1)).max())
            lab.at_most(worst, f"advantages change when every reward is raised by {lift:g}", case=case)


@check(family="rl", level=0, needs={"advantages"}, kind="oracle", tol=0.0, catches=("RL26", "SG4"))
def equal_rewards_give_no_advantage(lab: Lab) -> None:
    """A group of equal rewards has advantages of exactly 0, whatever the rounding of its mean, and a group whose
    rewards differ has some.

    An optimizer that divides by the gradient's size makes a full step of the smallest."""
    for subject, _, note in variants(lab):
        for size, value in ((4, 0.1), (3, -2.3), (8, 0.1), (8, 0.3), (7, 0.7), (6, 1 / 3)):
            rewards = torch.full((2, size), value)
            rewards[1, 0] += 1
            found = advantages_of(subject, rewards)
            case = f"a group of {size} rewards of {value:.3g}, and another group whose rewards differ{note}"
            lab.at_most(float(found[0].abs().max()), "a group of equal rewards has advantages", case=case)
            if not found[1].abs().max() > 0.1:
                raise Failed("a group with different rewards has no advantages", case=case, resembles="RL22")


@check(
    family="rl",
    level=0,
    needs={"policy_loss"},
    kind="oracle",
    tol=2e-5,
    catches=("LN7", "LN8", "LN10", "RL2", "RL3", "RL24"),
)
def policy_loss_is_the_declared_objective(lab: Lab) -> None:
    """The loss of ragged completions and its gradient are those of the clipped objective, plus the declared divergence
    times its coefficient, aggregated as declared; also where the policy is far from its sampler and its reference."""
    for subject, traits, note in variants(lab):
        for far in (False, False, True):
            data = ragged(lab, traits)
            if far:  # beyond every bound but the declared ones
                for name in ("logprobs", "old", "ref"):
                    data[name] = data[name] - 7 * torch.rand(data[name].shape, generator=_generator(lab))
            loss, gradient = _with_gradient(subject, data)
            expected, slope = objective(data, traits)
            note_far = ", ratios and divergences far from 1 and 0" * far + note
            tol = lab.tol * max(1.0, abs(float(expected)))
            instead = "" if _near(loss, expected, tol) else _other_objective(data, traits, loss, tol)
            what = f"the loss is not the declared one{instead}"
            lab.close(loss, expected, what, case=_sizes(data) + note_far, tol=tol)
            scale = float(slope.abs().max())
            lab.close(
                gradient / scale,
                slope / scale,
                "the loss is right, its gradient with respect to the log-probabilities is not (relative)",
                case=_sizes(data) + note_far,
                tol=10 * lab.tol,
                resembles="RL14",
            )


@check(
    family="rl", level=0, needs={"policy_loss"}, kind="metamorphic", tol=1e-5, catches=("RL7", "RL16", "RL3", "LN10")
)
def policy_loss_sees_counted_tokens_alone(lab: Lab) -> None:
    """What stands outside the mask has no influence on the loss and gets no gradient; columns of padding and the order
    of the rows change nothing. A row of which nothing counts is refused, or leaves the loss a number."""
    for subject, traits, note in variants(lab):
        data = ragged(lab, traits)
        mask, case = data["mask"], _sizes(data) + note
        base, gradient = _with_gradient(subject, data)
        lab.at_most(
            float(gradient[mask == 0].abs().max()), "tokens outside the mask get a gradient", case=case, tol=0.0
        )
        if not gradient[mask == 1].abs().max() > 0:
            raise Vacuous("no token of this batch has a gradient")
        noise = {name: -3 * torch.rand(mask.shape, generator=_generator(lab)) for name in ("logprobs", "old", "ref")}
        other = {name: torch.where(mask == 1, data[name], value) for name, value in noise.items()}
        loss, changed = _with_gradient(subject, {**data, **other})
        lab.close(loss, base, "the loss moves with log-probabilities outside the mask", case=case, tol=0.0)
        lab.close(changed, gradient, "gradients move with log-probabilities outside the mask", case=case, tol=0.0)
        wide = {
            name: torch.cat([value, torch.full((len(mask), 2), 0.0 if name == "mask" else -1.0)], dim=1)
            for name, value in data.items()
            if value.ndim == 2
        }
        loss, changed = _with_gradient(subject, {**data, **wide})
        lab.close(loss, base, "two columns of padding change the loss", case=case, resembles="RL16")
        lab.close(changed[:, :-2], gradient, "two columns of padding change gradients", case=case, resembles="RL16")
        order = torch.arange(len(mask) - 1, -1, -1)
        loss, changed = _with_gradient(subject, {name: value[order] for name, value in data.items()})
        lab.close(loss, base, "the order of the rows changes the loss", case=case)
        lab.close(changed[order], gradient, "the order of the rows changes gradients", case=case)
        none = {**data, "mask": torch.where(torch.arange(len(mask))[:, None] == 2, 0.0, mask)}
        try:
            loss, changed = _with_gradient(subject, none)
        except Exception:  # noqa: BLE001 (refused, in whatever words)
            continue
        if not (torch.isfinite(loss) and torch.isfinite(changed).all()):
            raise Failed("a row without any counted token gives a loss or a gradient that is no number", case=case)
        lab.at_most(float(changed[2].abs().max()), "a row without counted tokens gets a gradient", case=case, tol=0.0)


@check(family="rl", level=0, needs={"policy_loss"}, kind="oracle", tol=1e-6, catches=("RL24",))
def clipping_bites_on_the_declared_side(lab: Lab) -> None:
    """A token has no gradient where its ratio is above 1 + clip_high and its advantage positive, or below 1 − clip_low
    and its advantage negative; everywhere else it has, and at ratio 1 nothing is clipped."""
    for subject, traits, note in variants(lab):
        low, high = 1 - traits.clip_low, 1 + traits.clip_high
        ratios = [0.3 * low, low - 0.02, low + 0.02, 1.0, high - 0.02, high + 0.02, 2 * high]
        rows = [(ratio, advantage) for ratio in ratios for advantage in (1.0, -1.0)]
        ratio, advantages = torch.tensor(rows).T
        logprobs = torch.full((len(rows), 1), -1.5)
        data = {"logprobs": logprobs, "old": logprobs - ratio.log()[:, None], "ref": logprobs.clone()}
        data |= {"advantages": advantages, "mask": torch.ones(len(rows), 1)}
        _, gradient = _with_gradient(subject, data)
        share = gradient[:, 0] * len(rows) * (traits.max_new_tokens if traits.aggregation == "dr-grpo" else 1)
        for (r, advantage), slope in zip(rows, share.tolist(), strict=True):
            bites = (r > high and advantage > 0) or (r < low and advantage < 0)
            lab.at_most(
                abs(slope - (0.0 if bites else -advantage * r)),
                f"a token {'that is to be clipped has a gradient' if bites else 'has another gradient than −A·ratio'}",
                case=f"ratio {r:.3g}, advantage {advantage:g}, clipped to [{low:.3g}, {high:.3g}]{note}",
                tol=1e-4 * max(1.0, r),
            )


@check(family="rl", level=0, needs={"policy_loss"}, kind="oracle", tol=1e-5, catches=("RL24", "RL27", "LN10"))
def policy_loss_metrics_match_their_definition(lab: Lab) -> None:
    """The clip fraction is the share of counted tokens whose gradient clipping takes away, `kl` and `approx_kl`, the
    divergences from the reference and from the sampler, are means over counted tokens (approx_kl by any of its usual
    estimates); all are 0 where policy, sampler and reference are one."""
    seen = 0
    for subject, traits, note in variants(lab):
        data = ragged(lab, traits)
        _, metrics = loss_of(subject, data)
        expected: dict[str, tuple[float, ...]] = {"approx_kl": _sampler_divergences(data)}
        expected |= {name: (value,) for name, value in expected_metrics(data, traits).items()}
        same = {**data, "old": data["logprobs"], "ref": data["logprobs"]}
        _, nothing = loss_of(subject, same)
        for name, values in expected.items():
            if name in metrics:
                seen += 1
                value = min(values, key=lambda value: abs(float(metrics[name]) - value))
                what = f"the metric {name!r} is {float(metrics[name]):.6g}, by definition {value:.6g}"
                lab.at_most(abs(float(metrics[name]) - value), what, case=_sizes(data) + note)
                what = f"the metric {name!r} is {float(nothing[name]):.6g} where policy, sampler and reference are one"
                lab.at_most(abs(float(nothing[name])), what, case=_sizes(data) + note)
    lab.require(seen, "policy_loss reports none of clip_fraction, kl, approx_kl")


@check(family="rl", level=0, needs={"policy_loss"}, kind="oracle", tol=0.02, catches=("RL3", "RL14"))
def kl_term_descends_the_declared_divergence(lab: Lab) -> None:
    """On a bandit whose arms are enumerated, the expected gradient of the divergence term is that of the declared
    divergence between policy and reference, in its direction and size."""
    for subject, traits, note in variants(lab):
        for _ in range(3):
            arms = 2 if traits.kl == "exact" else 5
            generator = _generator(lab)
            theta = torch.randn(arms, generator=generator, dtype=torch.float64).requires_grad_()
            reference = torch.log_softmax(torch.randn(arms, generator=generator, dtype=torch.float64), 0)
            policy = torch.log_softmax(theta, 0)
            chosen = policy.detach().float()[:, None]
            data = {"logprobs": chosen, "old": chosen, "ref": reference.float()[:, None]}
            data |= {"advantages": torch.zeros(arms), "mask": torch.ones(arms, 1)}
            _, slope = _with_gradient(subject, data)
            share = arms * (traits.max_new_tokens if traits.aggregation == "dr-grpo" else 1)
            weights = slope[:, 0].double() * share * policy.detach().exp()  # of an arm, when it is drawn so often
            (found,) = torch.autograd.grad((weights * policy).sum(), theta, retain_graph=True)
            case = f"{arms} arms, policy {_rounded(policy)}, reference {_rounded(reference)}{note}"
            if traits.kl in ("none", "reward_k1") or not traits.kl_coef:
                lab.at_most(float(found.abs().max()), "a divergence is in the loss and none is declared", case=case)
                continue
            forward = (policy.exp() * (policy - reference)).sum()  # KL(π‖ref)
            backward = (reference.exp() * (reference - policy)).sum()
            declared = backward if traits.kl == "loss_k3" else forward
            (expected,) = torch.autograd.grad(traits.kl_coef * declared, theta, retain_graph=True)
            (other,) = torch.autograd.grad(forward if traits.kl == "loss_k3" else backward, theta)
            if _cosine(expected, other) > 0.99:
                continue  # this bandit cannot tell the two directions apart
            size = float(found.norm() / expected.norm())
            if size < 1e-3:  # what is left is rounding, whose direction says nothing
                what = f"the expected gradient of the divergence term is {size:.1g} times what is declared"
                raise Failed(what, measured=1 - size, tolerance=lab.tol, case=case, resembles="RL14")
            direction = "KL(ref‖π)" if traits.kl == "loss_k3" else "KL(π‖ref)"
            instead = ", but of the other direction" if _cosine(found, other) > 0.999 else ""
            lab.at_most(
                1 - _cosine(found, expected),
                f"the gradient of the divergence term is not that of {direction}{instead} (1 − cosine)",
                case=case,
            )
            lab.at_most(abs(size - 1), f"the divergence term weighs {size:.3g} times what is declared", case=case)


# Oracles


def expected_advantages(rewards: Tensor, traits: Traits) -> Tensor:
    """(P, G) float64."""
    rewards = rewards.double()
    centred = rewards - rewards.mean(1, keepdim=True)
    if traits.advantage_scale == "group":
        centred = centred / (rewards.std(1, keepdim=True) + traits.advantage_eps)
    elif traits.advantage_scale == "batch":
        centred = centred / (rewards.std() + traits.advantage_eps)
    return centred.masked_fill((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0)


def divergence(data: dict[str, Tensor], traits: Traits) -> Tensor:
    """(N, T) of what is added to each token's loss. `exact`, where it is given, is KL(π‖ref) at each position; else
    the log-probabilities are those of one of two tokens."""
    logprobs, ref = data["logprobs"], data["ref"]
    k3 = torch.exp(ref - logprobs) - (ref - logprobs) - 1
    match traits.kl:
        case "loss_k3":
            return k3
        case "loss_k3_weighted":
            return k3 * torch.exp(logprobs - data["old"])
        case "loss_k2":
            return (logprobs - ref).square() / 2
        case "exact" if "exact" in data:
            return data["exact"]
        case "exact":
            p, q = logprobs.exp(), ref.exp()
            return p * (logprobs - ref) + (1 - p) * (torch.log1p(-p) - torch.log1p(-q))
    return torch.zeros_like(logprobs)


def declared_loss(data: dict[str, Tensor], traits: Traits) -> Tensor:
    """The loss, on the graph of data["logprobs"]."""
    advantages, mask = data["advantages"][:, None], data["mask"]
    ratio = torch.exp(data["logprobs"] - data["old"])
    clipped = ratio.clamp(1 - traits.clip_low, 1 + traits.clip_high)
    losses = -torch.minimum(ratio * advantages, clipped * advantages) + traits.kl_coef * divergence(data, traits)
    total = torch.where(mask == 1, losses, 0.0).sum(1)  # (N,)
    match traits.aggregation:
        case "token-mean":
            return total.sum() / mask.sum()
        case "sequence-mean":
            return (total / mask.sum(1)).mean()
        case _:
            return total.sum() / (len(mask) * traits.max_new_tokens)


def expected_metrics(data: dict[str, Tensor], traits: Traits) -> dict[str, float]:
    """clip_fraction and kl: k3, weighted by the ratio where the term in the loss is, over counted tokens."""
    d = {name: value.double() for name, value in data.items()}
    counted, ratio, advantages = d["mask"] == 1, torch.exp(d["logprobs"] - d["old"]), d["advantages"][:, None]
    bites = (ratio > 1 + traits.clip_high) & (advantages > 0) | (ratio < 1 - traits.clip_low) & (advantages < 0)
    kl = divergence(d, replace(traits, kl=traits.kl if traits.kl == "loss_k3_weighted" else "loss_k3"))
    return {"clip_fraction": float(bites[counted].double().mean()), "kl": float(kl[counted].mean())}


def _sampler_divergences(data: dict[str, Tensor]) -> tuple[float, ...]:
    """KL(old‖π) by its usual estimates: the mean log-ratio, half its square, k3."""
    ratio = (data["logprobs"] - data["old"])[data["mask"] == 1].double()
    return tuple(float(value.mean()) for value in (-ratio, ratio.square() / 2, ratio.exp() - 1 - ratio))


def objective(data: dict[str, Tensor], traits: Traits) -> tuple[Tensor, Tensor]:
    """(loss, its gradient (N, T) with respect to the log-probabilities), float32."""
    exact = {name: value.double() for name, value in data.items()}
    exact["logprobs"].requires_grad_()
    loss = declared_loss(exact, traits)
    (slope,) = torch.autograd.grad(loss, exact["logprobs"])
    return loss.detach().float(), slope.float()


# What the checks share


def variants(lab: Lab) -> Iterator[tuple[Any, Traits, str]]:
    """(subject, its traits, words for a case) in the default and in each other design that the subject names."""
    for overrides in ({}, *getattr(lab.subject, "rl_variants", ())):
        subject = lab.fresh(**overrides)
        yield subject, traits_of(subject), f"; make({', '.join(f'{k}={v!r}' for k, v in overrides.items())})"


def advantages_of(subject: Any, rewards: Tensor) -> Tensor:
    """(P, G) float64."""
    found = subject.advantages(rewards.clone())
    if not isinstance(found, Tensor) or found.shape != rewards.shape:
        raise AdapterError(f"advantages returns {getattr(found, 'shape', type(found))} for rewards {rewards.shape}")
    return found.double()


def loss_of(subject: Any, data: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """(scalar loss, metrics)."""
    names = ("logprobs", "old", "ref", "advantages", "mask")
    loss, metrics = subject.policy_loss(*(data[name] for name in names))
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise AdapterError("policy_loss returns (one number on the graph, metrics)")
    return loss.reshape(()), dict(metrics)


def ragged(lab: Lab, traits: Traits) -> dict[str, Tensor]:
    """Completions of very different lengths, some tokens on either side of the clipping bounds; float32."""
    lengths = torch.tensor([7, 1, 4, 2, 6])
    for _ in range(20):
        g, shape = _generator(lab), (len(lengths), 8)
        logprobs = -0.1 - 2.5 * torch.rand(shape, generator=g)
        old = logprobs + 1.2 * (torch.rand(shape, generator=g) - 0.5)
        data = {"logprobs": logprobs, "old": old, "ref": -0.1 - 2.5 * torch.rand(shape, generator=g)}
        data["mask"] = (torch.arange(8)[None] < lengths[:, None]).float()
        data["advantages"] = torch.tensor([1.0, -1.5, -0.5, 2.0, 0.7])[torch.randperm(5, generator=g)]
        if 0.05 < expected_metrics(data, traits)["clip_fraction"] < 0.7:
            return data
    raise Vacuous(f"no token is clipped with bounds 1 − {traits.clip_low:g} and 1 + {traits.clip_high:g}")


def _reward_tables(lab: Lab) -> Iterator[tuple[Tensor, str]]:
    """Multiples of 1/1024, so that sums are exact."""
    for shape, step in (((3, 4), 1024), ((4, 4), 256), ((2, 8), 1), ((1, 2), 512), ((3, 5), 2)):
        drawn = [[lab.rng.randint(-4, 4) * step / 1024 for _ in range(shape[1])] for _ in range(shape[0])]
        drawn[0][:2] = [0.0, step / 1024]
        yield torch.tensor(drawn), "whole numbers" if step == 1024 else f"multiples of {step}/1024"
    yield torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]), "right and wrong"


def _with_gradient(subject: Any, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logprobs = data["logprobs"].clone().requires_grad_()
    loss, _ = loss_of(subject, {**data, "logprobs": logprobs})
    if not loss.requires_grad:
        raise Failed("the loss is not on the graph of the log-probabilities: nothing is learned", resembles="RL2")
    (gradient,) = torch.autograd.grad(loss, logprobs, allow_unused=True)
    return loss.detach(), torch.zeros_like(logprobs) if gradient is None else gradient


def _other_objective(data: dict[str, Tensor], traits: Traits, loss: Tensor, tol: float) -> str:
    """Words for the design whose loss this is, where it is one that could have been declared."""
    for name in ("aggregation", "kl"):
        for value in CHOICES[name]:
            other = Traits.of({**vars(traits), name: value})
            if value != getattr(traits, name) and _near(loss, objective(data, other)[0], tol):
                return f", but that of {name} {value!r} ({getattr(traits, name)!r} is declared)"
    return ""


def _other_scale(found: Tensor, rewards: Tensor, traits: Traits) -> str:
    for value in CHOICES["advantage_scale"]:
        other = expected_advantages(rewards, replace(traits, advantage_scale=value))
        if value != traits.advantage_scale and (found - other).abs().max() < 1e-5:
            return f", but those of advantage_scale {value!r} ({traits.advantage_scale!r} is declared)"
    return ""


def _near(a: Tensor, b: Tensor, tol: float) -> bool:
    return abs(float(a.detach()) - float(b.detach())) <= tol


def _cosine(a: Tensor, b: Tensor) -> float:
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def _rounded(logprobs: Tensor) -> list[float]:
    return [round(p, 3) for p in logprobs.detach().exp().tolist()]


def _sizes(data: dict[str, Tensor]) -> str:
    return f"{len(data['mask'])} completions of {', '.join(map(str, data['mask'].sum(1).int().tolist()))} tokens"


def _generator(lab: Lab) -> torch.Generator:
    return torch.Generator().manual_seed(lab.rng.randrange(2**31))
