"""Planted bugs of reinforcement learning: setup, rollouts, advantages, the objective, steps and what they report."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kat.trainers.policy_loss import k3, loss_weight
from kat.verify.lab import traits_of
from kat.verify.mutants.mutant import Mutant, around, patched, wrapped
from kat.verify.mutants.training import both
from kat.verify.subject import Make

GRPO, ROLLOUT = "kat.trainers.grpo", "kat.trainers.rollout"
Rollout = dict[str, Any]

NO_COUNTERPART: dict[str, str] = {
    "RL5": "no reward is read off two logits: kat's reward model has a scalar head",
}


# Setup


def first_time(change: Callable[[dict[str, Any]], None]) -> Callable[[Make], Make]:
    """The weights are changed when the run is set up."""

    def rl_setup(inner: Any) -> Any:
        setup = inner.rl_setup()
        if not vars(inner).get("_spoilt"):
            inner._spoilt = True
            with torch.no_grad():
                change(setup)
        return setup

    return wrapped(rl_setup=rl_setup)


def _round_reference(setup: dict[str, Any]) -> None:
    for value in setup["reference"].values():
        value.copy_(value.to(torch.bfloat16))


def _other_checkpoint(setup: dict[str, Any]) -> None:
    for name, value in setup["policy"].items():
        value.copy_(value * 1.01)
        setup["reference"][name].copy_(value)


def _one_model(inner: Any) -> Any:
    policy = inner.rl_setup()["policy"]
    return {"policy": policy, "reference": policy}


def after_step(change: Callable[[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]], None]) -> Any:
    """change(policy, reference, policy before the step), after each step."""

    def rl_step(inner: Any, rollout: Any, rewards: Tensor) -> Any:
        before = {name: value.clone() for name, value in inner.rl_setup()["policy"].items()}
        metrics = inner.rl_step(rollout, rewards)
        setup = inner.rl_setup()
        with torch.no_grad():
            change(setup["policy"], setup["reference"], before)
        return metrics

    return wrapped(rl_step=rl_step)


def _reference_follows(policy: Any, reference: Any, before: Any) -> None:
    for name, value in reference.items():
        value.lerp_(policy[name], 0.1) if value.is_floating_point() else None


def _reference_renewed(inner: Any, rollout: Any, rewards: Tensor) -> Any:
    """Every third step the reference becomes the policy."""
    inner._steps = vars(inner).get("_steps", 0) + 1
    metrics = inner.rl_step(rollout, rewards)
    setup = inner.rl_setup()
    with torch.no_grad():
        for name, value in setup["reference"].items() if inner._steps % 3 == 0 else ():
            value.copy_(setup["policy"][name])
    return metrics


def _ascend(policy: Any, reference: Any, before: Any) -> None:
    for name, value in policy.items():
        value.copy_(2 * before[name] - value)


SETUP = (
    Mutant("reward_model_loaded_into_both", ("RL1",), first_time(_other_checkpoint)),
    Mutant("reference_made_from_rounded_policy", ("RL10",), first_time(_round_reference)),
    Mutant("reference_is_the_policy", ("RL10",), wrapped(rl_setup=_one_model)),
    Mutant("reference_follows_the_policy", (), after_step(_reference_follows)),
    Mutant("reference_is_renewed_every_third_step", (), wrapped(rl_step=_reference_renewed)),
)


# Rollouts


def of_rollout(change: Callable[[Any, Rollout], None]) -> Callable[[Make], Make]:
    """change(inner, rollout) in place, its tensors copied."""

    def rollout(inner: Any, prompts: Any, n: int, seed: int) -> Rollout:
        made = dict(inner.rollout(prompts, n, seed))
        made |= {name: made[name].clone() for name in ("completion_ids", "mask", "logprobs")}
        made["n"] = n
        change(inner, made)
        return made

    return wrapped(rollout=rollout)


def _last(made: Rollout) -> Any:
    """(row, its length) of each row."""
    return list(enumerate(made["mask"].sum(1).tolist()))


def _end_does_not_count(inner: Any, made: Rollout) -> None:
    for i, length in _last(made):
        if int(made["completion_ids"][i, length - 1]) in traits_of(inner).eos_ids:
            made["mask"][i, length - 1] = 0


def _everything_counts(inner: Any, made: Rollout) -> None:
    made["mask"].fill_(1)


def _mask_by_pad_id(inner: Any, made: Rollout) -> None:
    made["mask"] *= (made["completion_ids"] != traits_of(inner).pad_id).to(made["mask"])


def _mask_by_end_id(inner: Any, made: Rollout) -> None:
    """Only rows whose prompt has no end token are looked at for one."""
    for i, head in enumerate(made["prompt_ids"]):
        if set(head) & set(traits_of(inner).eos_ids):
            made["mask"][i] = 0


def _sample_major(inner: Any, made: Rollout) -> None:
    heads, n = made["prompt_ids"], made["n"]
    made["prompt_ids"] = [heads[(i * n) % len(heads) + i * n // len(heads)] for i in range(len(heads))]


def _of_next_prompt(inner: Any, made: Rollout) -> None:
    for name in ("completion_ids", "mask", "logprobs"):
        made[name] = made[name].roll(made["n"], dims=0)


def _one_sample(inner: Any, made: Rollout) -> None:
    first = torch.arange(len(made["mask"])) // made["n"] * made["n"]
    for name in ("completion_ids", "mask", "logprobs"):
        made[name] = made[name][first]


def _score(inner: Any, made: Rollout, temperature: float) -> None:
    """Log-probabilities of the policy at a temperature."""
    for i, length in _last(made):
        ids = made["completion_ids"][i, :length].tolist()
        made["logprobs"][i, :length] = inner.completion_logprobs(made["prompt_ids"][i], ids, temperature)


def _shift_logprobs(inner: Any, made: Rollout) -> None:
    made["logprobs"] = made["logprobs"].roll(1, dims=1)


def _rewrite(made: Rollout, i: int, length: int, ids: list[int]) -> None:
    ids = ids[: made["mask"].size(1)]
    made["completion_ids"][i, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    made["mask"][i] = (torch.arange(made["mask"].size(1)) < len(ids)).to(made["mask"])


def _retokenised(inner: Any, made: Rollout) -> None:
    ends = traits_of(inner).eos_ids
    for i, length in _last(made):
        ids = made["completion_ids"][i, :length].tolist()
        tail = ids[-1:] if ids[-1] in ends else []
        _rewrite(made, i, length, inner.encode(inner.decode(ids[: len(ids) - len(tail)])) + tail)


def _end_as_text(inner: Any, made: Rollout) -> None:
    ends = traits_of(inner).eos_ids
    for i, length in _last(made):
        ids = made["completion_ids"][i, :length].tolist()
        if ids[-1] in ends:
            _rewrite(made, i, length, ids[:-1] + inner.encode("<|assistant_end|>"))


def _budget_one_short(inner: Any, made: Rollout) -> None:
    limit = traits_of(inner).max_new_tokens
    made["mask"][:, limit - 1 :] = 0


@torch.no_grad()
def _seeded_alike(inner: Any, prompts: Any, n: int, seed: int) -> Rollout:
    """Each prompt is sampled with the rollout's seed, so that one that is drawn twice gets its completions twice."""
    made = [inner.rollout([prompt], n, seed) for prompt in prompts]
    width = max(one["mask"].shape[1] for one in made)
    pad = torch.nn.functional.pad
    return {
        "prompt_ids": [ids for one in made for ids in one["prompt_ids"]],
        **{
            name: torch.cat([pad(torch.as_tensor(one[name]), (0, width - one[name].shape[1])) for one in made])
            for name in ("completion_ids", "mask", "logprobs")
        },
    }


def _exchanged(inner: Any, weights: Any, target: str) -> Callable[[], None]:
    """Give `target` these weights; what puts its own back."""
    setup = inner.rl_setup()
    kept = {name: value.clone() for name, value in setup[target].items()}

    def give(values: Any) -> None:
        with torch.no_grad():
            for name, value in setup[target].items():
                value.copy_(values[name])

    give(weights)
    return functools.partial(give, kept)


def _stale_sampler(inner: Any, prompts: Any, n: int, seed: int) -> Rollout:
    """The engine keeps the weights that it started with; log-probabilities are the trainer's."""
    if "_engine" not in vars(inner):
        inner._engine = {name: value.clone() for name, value in inner.rl_setup()["policy"].items()}
    put_back = _exchanged(inner, inner._engine, "policy")
    made = dict(inner.rollout(prompts, n, seed))
    put_back()
    _score(inner, made, traits_of(inner).temperature)
    return made


def _sampled_from_reference(inner: Any, prompts: Any, n: int, seed: int) -> Rollout:
    put_back = _exchanged(inner, inner.rl_setup()["reference"], "policy")
    made = dict(inner.rollout(prompts, n, seed))
    put_back()
    _score(inner, made, traits_of(inner).temperature)
    return made


ROLLOUTS = (
    Mutant("end_token_does_not_count", ("RL21",), of_rollout(_end_does_not_count)),
    Mutant("tokens_after_the_end_count", ("RL7",), of_rollout(_everything_counts)),
    Mutant("rollout_mask_by_pad_id", ("DM5",), of_rollout(_mask_by_pad_id)),
    Mutant("rollout_mask_by_end_id_of_the_row", ("DM5",), of_rollout(_mask_by_end_id)),
    Mutant("rollout_prompts_sample_major", ("RL11",), of_rollout(_sample_major)),
    Mutant("completions_of_the_next_prompt", ("RL11",), of_rollout(_of_next_prompt)),
    Mutant("group_is_one_sample", ("SG4",), of_rollout(_one_sample)),
    Mutant(
        "rollout_ignores_seed", (), wrapped(rollout=lambda inner, prompts, n, seed: inner.rollout(prompts, n, seed=0))
    ),
    Mutant("rollout_seeded_prompt_by_prompt", ("SG4",), wrapped(rollout=_seeded_alike)),
    Mutant("rollout_logprobs_raw", ("RL8", "RL9"), of_rollout(lambda inner, made: _score(inner, made, 1.0))),
    Mutant("rollout_logprobs_of_the_token_before", (), of_rollout(_shift_logprobs)),
    Mutant("rollout_retokenised", ("TK8",), of_rollout(_retokenised), native=True),
    Mutant("end_token_becomes_text", ("TK9",), of_rollout(_end_as_text), native=True),
    Mutant("rollout_budget_one_short", (), of_rollout(_budget_one_short)),
    Mutant("sampler_keeps_old_weights", ("RL25",), wrapped(rollout=_stale_sampler)),
    Mutant("rollouts_sampled_from_the_reference", ("RL17",), wrapped(rollout=_sampled_from_reference)),
    Mutant(
        "completion_scored_without_its_prompt",
        ("DM12",),
        wrapped(completion_logprobs=lambda inner, prompt, ids, t: inner.completion_logprobs([0], ids, t)),
    ),
    Mutant(
        "temperature_squared",
        (),
        wrapped(completion_logprobs=lambda inner, prompt, ids, t: inner.completion_logprobs(prompt, ids, t * t)),
    ),
)


# Advantages


def advantages_by(bad: Callable[[Tensor], Tensor]) -> Callable[[Make], Make]:
    """Advantages by another formula of the rewards."""
    return wrapped(advantages=lambda inner, rewards: bad(rewards.double()).to(rewards))


def _centred(r: Tensor) -> Tensor:
    return r - r.mean(1, keepdim=True)


def _leave_one_out(r: Tensor) -> Tensor:
    n = r.size(1)
    return (r - (r.sum(1, keepdim=True) - r) / (n - 1)) / (r.std(1, keepdim=True) + 1e-4)


def _groups_transposed(inner: Any, rewards: Tensor) -> Tensor:
    return inner.advantages(rewards.t().reshape(rewards.shape)).reshape(rewards.t().shape).t()


def _of_float32(inner: Any, rewards: Tensor) -> Tensor:
    r = rewards.float()
    return _centred(r) / (r.std(1, keepdim=True) + 1e-4)


ADVANTAGES = (
    Mutant("each_sample_is_its_own_group", ("RL22",), advantages_by(lambda r: r - r)),
    Mutant(
        "deviation_with_n",
        (),
        advantages_by(lambda r: _centred(r) / (r.std(1, keepdim=True, correction=0) + 1e-4)),
    ),
    Mutant("epsilon_under_the_root", (), advantages_by(lambda r: _centred(r) / (r.var(1, keepdim=True) + 1e-4).sqrt())),
    Mutant(
        "baseline_of_the_whole_batch", (), advantages_by(lambda r: (r - r.mean()) / (r.std(1, keepdim=True) + 1e-4))
    ),
    Mutant("scaled_by_the_batch", (), advantages_by(lambda r: _centred(r) / (r.std() + 1e-4))),
    Mutant("not_scaled", (), advantages_by(_centred)),
    Mutant("baseline_leaves_itself_out", (), advantages_by(_leave_one_out)),
    Mutant("groups_are_columns", (), wrapped(advantages=_groups_transposed)),
    Mutant("rounding_of_the_mean_is_learned", (), wrapped(advantages=_of_float32)),
    Mutant("no_negative_advantage", (), wrapped(advantages=lambda inner, r: inner.advantages(r).clamp(min=0))),
)


# The objective


def of_loss(change: Callable[[Any, dict[str, Tensor]], None]) -> Callable[[Make], Make]:
    """change(inner, arguments of policy_loss) in place."""

    def policy_loss(inner: Any, logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor) -> Any:
        data = {"logprobs": logprobs, "old": old, "ref": ref, "advantages": advantages, "mask": mask}
        change(inner, data)
        return inner.policy_loss(**data)

    return wrapped(policy_loss=policy_loss)


def combined(bad: Callable[..., Tensor]) -> Callable[[Make], Make]:
    """bad(inner, loss of any arguments, the arguments): the loss put together otherwise."""

    def policy_loss(inner: Any, *data: Tensor) -> Any:
        def good(*other: Tensor) -> Tensor:
            return inner.policy_loss(*other)[0]

        _, metrics = inner.policy_loss(*data)
        return bad(inner, good, *data), metrics

    return wrapped(policy_loss=policy_loss)


def _row_means(inner: Any, good: Any, *data: Tensor) -> Tensor:
    return torch.stack([good(*(value[i : i + 1] for value in data)) for i in range(len(data[0]))]).mean()


def _by_length(inner: Any, good: Any, *data: Tensor) -> Tensor:
    """The right loss, and a share of nothing where a row is empty."""
    mask = data[-1]
    return good(*data) + 0 * (mask.sum(1) / mask.sum(1)).sum()


def _times_padding(inner: Any, good: Any, *data: Tensor) -> Tensor:
    return good(*data) * (data[-1].sum() / data[-1].numel())


def _kl_part(weight: Callable[[float], float]) -> Callable[[Make], Make]:
    """The divergence term times weight(coefficient)."""

    def bad(inner: Any, good: Any, logprobs: Tensor, old: Tensor, ref: Tensor, *rest: Tensor) -> Tensor:
        without = good(logprobs, old, logprobs.detach(), *rest)
        return without + weight(traits_of(inner).kl_coef) * (good(logprobs, old, ref, *rest) - without)

    return combined(bad)


def setting(**values: Callable[[dict[str, Tensor]], Tensor]) -> Callable[[Make], Make]:
    """Arguments of policy_loss replaced, each by a function of all."""

    def change(inner: Any, data: dict[str, Tensor]) -> None:
        data.update({name: value(dict(data)) for name, value in values.items()})

    return of_loss(change)


def _sequence_ratio(d: dict[str, Tensor]) -> Tensor:
    mean = ((d["logprobs"] - d["old"]) * d["mask"]).sum(1, keepdim=True) / d["mask"].sum(1, keepdim=True)
    return d["logprobs"] - mean


def _without_first(d: dict[str, Tensor]) -> Tensor:
    mask = d["mask"].clone()
    mask[mask.sum(1) > 1, 0] = 0
    return mask


def _without_last(d: dict[str, Tensor]) -> Tensor:
    mask = d["mask"].clone()
    for i, length in enumerate(mask.sum(1).int().tolist()):
        mask[i, max(1, length - 1) :] = 0
    return mask


def tokens_by(
    surrogate: Callable[..., Tensor],
    bounds: Callable[[float, float], tuple[float, float]] = lambda low, high: (low, high),
) -> Callable[[Make], Make]:
    """kat's token losses, with surrogate(ratio, clipped ratio, advantages, logprobs) in the place of the minimum."""

    def replacement(good: Callable[..., Any]) -> Callable[..., Any]:
        def token_losses(logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, **options: Any) -> Any:
            _, clipped = good(logprobs, old, ref, advantages, **options)
            kl, _ = good(logprobs, old, ref, torch.zeros_like(advantages), **options)
            low, high = bounds(options["clip_low"], options["clip_high"])
            ratio = torch.exp(logprobs - old)
            value = surrogate(ratio, ratio.clamp(1 - low, 1 + high), advantages, logprobs)
            return kl - value, clipped

        return token_losses

    return patched(f"{GRPO}.token_losses", around(replacement))


def _minimum(ratio: Tensor, clipped: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
    return torch.minimum(ratio * advantages, clipped * advantages)


def _capped(ratio: Tensor, clipped: Tensor, advantages: Tensor, logprobs: Tensor) -> Tensor:
    """PPO's dual clipping (arXiv:1912.09729) where none is declared."""
    least = torch.minimum(ratio * advantages, clipped * advantages)
    return torch.where(advantages < 0, torch.maximum(least, 3 * advantages), least)


def clip_fraction_by(bad: Callable[[Tensor, Tensor, Any], Tensor]) -> Callable[[Make], Make]:
    """bad(ratio, advantages, options): which tokens are counted as clipped."""

    def replacement(good: Callable[..., Any]) -> Callable[..., Any]:
        def token_losses(logprobs: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, **options: Any) -> Any:
            losses, _ = good(logprobs, old, ref, advantages, **options)
            return losses, bad(torch.exp(logprobs - old), advantages, options)

        return token_losses

    return patched(f"{GRPO}.token_losses", around(replacement))


def _weight_of_tokens(mask: Tensor, aggregation: str, max_new_tokens: int) -> int:
    """dr-grpo divides by length anyway."""
    return loss_weight(mask, "token-mean" if aggregation == "dr-grpo" else aggregation, max_new_tokens)  # type: ignore[arg-type]


OBJECTIVE = (
    Mutant("completions_averaged_alone", ("LN7",), combined(_row_means)),
    Mutant("dr_grpo_divides_by_length", ("LN8",), patched(f"{GRPO}.loss_weight", _weight_of_tokens), native=True),
    Mutant("denominator_counts_padding", ("LN10",), combined(_times_padding)),
    Mutant("loss_counts_what_follows_the_end", ("RL7",), setting(mask=lambda d: torch.ones_like(d["mask"]))),
    Mutant("response_mask_shifted", ("RL16",), setting(mask=lambda d: d["mask"].roll(1, dims=1))),
    Mutant("first_token_not_counted", (), setting(mask=_without_first)),
    Mutant("last_token_not_counted", (), setting(mask=_without_last)),
    Mutant(
        "kl_direction_reversed",
        ("RL3",),
        patched("kat.trainers.policy_loss.k3", lambda logprobs, ref: k3(ref, logprobs)),
        native=True,
    ),
    Mutant(
        "kl_has_no_gradient",
        ("RL14",),
        setting(ref=lambda d: d["logprobs"] - (d["logprobs"] - d["ref"]).detach()),
    ),
    Mutant("kl_is_a_plain_difference", ("RL14",), patched("kat.trainers.policy_loss.k3", torch.sub), native=True),
    Mutant("kl_sign", (), _kl_part(lambda coef: -1.0)),
    Mutant("kl_coefficient_squared", (), _kl_part(lambda coef: coef)),
    Mutant("sequence_level_ratio", ("RL24",), setting(old=_sequence_ratio)),
    Mutant("reward_is_no_gradient", ("RL2",), setting(advantages=lambda d: torch.zeros_like(d["advantages"]))),
    Mutant("advantages_of_the_next_row", (), setting(advantages=lambda d: d["advantages"].roll(1))),
    Mutant("advantages_inverted", (), setting(advantages=lambda d: -d["advantages"])),
    Mutant("old_is_the_current_policy", (), setting(old=lambda d: d["logprobs"].detach())),
    Mutant("loss_without_a_graph", ("RL2",), combined(lambda inner, good, *data: good(*data).detach())),
    Mutant(
        "maximum_instead_of_minimum",
        (),
        tokens_by(lambda ratio, clipped, a, logprobs: torch.maximum(ratio * a, clipped * a)),
        native=True,
    ),
    Mutant("clipped_on_both_sides", (), tokens_by(lambda ratio, clipped, a, logprobs: clipped * a), native=True),
    Mutant("never_clipped", (), tokens_by(lambda ratio, clipped, a, logprobs: ratio * a), native=True),
    Mutant("large_ratios_are_capped", (), tokens_by(_capped), native=True),
    Mutant("empty_row_is_divided_by_its_length", (), combined(_by_length)),
    Mutant("clip_bounds_exchanged", (), tokens_by(_minimum, lambda low, high: (high, low)), native=True),
    Mutant(
        "ratio_detached",
        (),
        tokens_by(lambda ratio, clipped, a, logprobs: _minimum(ratio, clipped, a, logprobs).detach() + 0 * logprobs),
        native=True,
    ),
    Mutant(
        "clip_fraction_of_all_ratios_outside",
        ("RL27",),
        clip_fraction_by(lambda ratio, a, o: (ratio < 1 - o["clip_low"]) | (ratio > 1 + o["clip_high"])),
        native=True,
    ),
    Mutant("clip_fraction_is_the_ratio", ("RL24",), clip_fraction_by(lambda ratio, a, o: ratio), native=True),
)


# Steps


def with_rewards(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Make], Make]:
    """change(rollout, rewards) before the step."""
    return wrapped(rl_step=lambda inner, rollout, rewards: inner.rl_step(rollout, change(rollout, rewards)))


def reporting(**values: Callable[[Any, dict[str, Any]], float]) -> Callable[[Make], Make]:
    """Metrics of a step, replaced where they are reported: value(rollout, metrics)."""

    def rl_step(inner: Any, rollout: Any, rewards: Tensor) -> Any:
        metrics = dict(inner.rl_step(rollout, rewards))
        return {**metrics, **{name: value(rollout, metrics) for name, value in values.items() if name in metrics}}

    return wrapped(rl_step=rl_step)


def _reference_is_asked_as_policy(inner: Any, rollout: Any, rewards: Tensor) -> Any:
    put_back = _exchanged(inner, inner.rl_setup()["policy"], "reference")
    metrics = inner.rl_step(rollout, rewards)
    put_back()
    return metrics


def _zero_is_missing(rollout: Any, rewards: Tensor) -> Tensor:
    return torch.where(rewards == 0, rewards.mean(1, keepdim=True), rewards)


def _mean_of_micro_batch(good: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def loss(self: Any, model: Any, batch: Any) -> Tensor:
        s = self.settings
        return good(self, model, batch) / loss_weight(batch["mask"], s.aggregation, s.max_new_tokens)

    return loss


def _prompts_count(good: Callable[..., Any]) -> Callable[..., Any]:
    def rows_of(prompt_ids: Any, completions: Any, pad_id: int, width: int) -> Any:
        ids, mask, old = good(prompt_ids, completions, pad_id, width)
        for i, prompt in enumerate(prompt_ids):
            mask[i, 1 : len(prompt)] = True
        return ids, mask, old

    return rows_of


def _without_temperature(good: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda model, ids, mask, temperature: good(model, ids, mask, 1.0)


def _coefficient_too_early(good: Callable[..., Any]) -> Callable[..., Any]:
    """What the controller made of a rollout already weighs the divergence of that rollout."""

    def roll_out(task: Any) -> Any:
        made = good(task)
        task.kl_coef = task.next_kl_coef
        return made

    return roll_out


def _token_penalty(rewards: Tensor, old: Tensor, ref: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The mean over tokens where the sum over the sequence is declared."""
    return rewards - kl_coef * ((old - ref) * mask).sum(dim=1).to(rewards.dtype) / mask.sum(dim=1)


def _old_recomputed(good: Callable[..., Any]) -> Callable[..., Any]:
    return lambda logprobs, old, *rest, **options: good(logprobs, logprobs.detach(), *rest, **options)


def _rows_not_trained(good: Callable[..., float]) -> Callable[..., float]:
    """Half the rows of every matrix get a tenth of their gradient, after its norm was taken."""

    def clip(self: Any, *args: Any) -> float:
        norm = good(self, *args)
        for weight in self.model.parameters():
            if weight.grad is not None and weight.ndim > 1:
                weight.grad[::2] *= 0.1
        return norm

    return clip


STEPS = (
    Mutant(
        "half_the_rows_get_a_tenth_of_their_gradient",
        (),
        patched("kat.trainers.loop.Loop._clip", around(_rows_not_trained)),
        native=True,
    ),
    Mutant("rewards_reach_no_gradient", ("RL2",), with_rewards(lambda r, rewards: torch.full_like(rewards, 0.5))),
    Mutant("gradient_ascent_on_rewards", ("RL2",), after_step(_ascend)),
    Mutant(
        "likelihood_is_part_of_the_reward",
        ("RL26",),
        with_rewards(lambda r, rewards: rewards + 0.1 * (r["logprobs"] * r["mask"]).sum(1).view(rewards.shape)),
    ),
    Mutant("rewards_of_the_next_row", (), with_rewards(lambda r, rewards: rewards.roll(1, dims=1))),
    Mutant("rewards_sample_major", (), with_rewards(lambda r, rewards: rewards.t().reshape(rewards.shape))),
    Mutant("negative_rewards_are_zero", (), with_rewards(lambda r, rewards: rewards.clamp(min=0))),
    Mutant("reward_zero_is_missing", (), with_rewards(_zero_is_missing)),
    Mutant("reference_scored_by_the_policy", ("RL17",), wrapped(rl_step=_reference_is_asked_as_policy)),
    Mutant(
        "rl_micro_batches_averaged_alone",
        ("LN3",),
        both(
            patched(f"{GRPO}.GrpoTask.loss", around(_mean_of_micro_batch)),
            patched(f"{GRPO}.GrpoTask.weight", lambda self, batch: 1),
        ),
        native=True,
    ),
    Mutant(
        "training_ignores_temperature",
        ("RL8",),
        patched(f"{GRPO}.completion_logits", around(_without_temperature)),
        True,
    ),
    Mutant("step_recomputes_old", (), patched(f"{GRPO}.token_losses", around(_old_recomputed)), native=True),
    Mutant("prompt_tokens_count", (), patched(f"{ROLLOUT}.rows_of", around(_prompts_count)), native=True),
    Mutant("penalty_is_a_token_mean", ("RL15",), patched(f"{ROLLOUT}.penalise", _token_penalty), native=True),
    Mutant(
        "controller_fed_the_update_divergence",
        ("RL19",),
        patched(f"{GRPO}.next_kl_coef", around(lambda good: lambda coef, kl, *rest: good(coef, 0.0, *rest))),
        native=True,
    ),
    Mutant(
        "coefficient_is_that_of_the_next_rollout",
        (),
        patched(f"{GRPO}.GrpoTask.roll_out", around(_coefficient_too_early)),
        native=True,
    ),
    Mutant(
        "entropy_over_padding_too",
        ("LN16",),
        reporting(entropy=lambda rollout, m: m["entropy"] * float(rollout["mask"].float().mean())),
    ),
    Mutant("entropy_in_bits", (), reporting(entropy=lambda rollout, m: m["entropy"] / 0.693147)),
    Mutant("kl_metric_is_minus_the_ratio", ("RL24",), reporting(kl=lambda rollout, m: -1.0)),
    Mutant("reward_metric_is_the_advantage", ("RL27",), reporting(reward=lambda rollout, m: 0.0)),
)

MUTANTS: tuple[Mutant, ...] = (*SETUP, *ROLLOUTS, *ADVANTAGES, *OBJECTIVE, *STEPS)
