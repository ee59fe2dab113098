"""Schedules, groups, clipping, and what one step moves."""

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kat.verify.check import Failed, NotApplicable, Vacuous, check
from kat.verify.checks.loss import require_deterministic_training
from kat.verify.lab import Lab, Named, copy_weights, parameters, relative_difference, snapshot
from kat.verify.subject import Batch, Row
from kat.verify.watch import Group, Update, dropouts, gradient_hook, gradients_of, norm, plain, watched

COUNTED = ("skip", "nan", "inf", "bad", "overflow", "nonfinite", "non_finite", "fault")


@check(family="optimiser", level=0, needs={"lr"}, kind="oracle", tol=1e-6, catches=("OS1", "OS2", "OS4", "OS6"))
def lr_follows_declared_schedule(lab: Lab) -> None:
    """lr(step) rises to the declared peak at the end of the warm-up, never rises again, ends at the declared rate, and
    is a function of the step alone; with warmup_steps=0 it starts at the peak."""
    _schedule(lab, lab.subject, lab.traits)
    if (lab.traits.warmup_steps or 0) == 0:
        return
    try:
        subject = lab.fresh(warmup_steps=0)
    except Exception:  # noqa: BLE001 (an adapter need not take this setting)
        return
    traits = type(lab.traits).of(getattr(subject, "traits", None) or {})
    if traits.warmup_steps == 0:
        _schedule(lab, subject, traits)


def _schedule(lab: Lab, subject: Any, traits: Any) -> None:
    total, warmup, peak, final = traits.total_steps, traits.warmup_steps, traits.lr_peak, traits.lr_final
    last = total if total is not None else 100
    if last <= 1000:
        steps = list(range(last + 1))
    else:  # of a long schedule: both ends, around the end of the warm-up, and a grid
        near = {*range(20), *range(last - 20, last + 1), *range(max(0, (warmup or 0) - 3), (warmup or 0) + 4)}
        steps = sorted(near | set(range(0, last, last // 200)))
    rates = {step: float(subject.lr(step)) for step in steps}
    for step in steps:
        if not (math.isfinite(rates[step]) and rates[step] >= 0):
            raise Failed(f"lr({step}) is {rates[step]}", case=f"{total} steps, warm-up {warmup}")
    for step in [*reversed(steps), steps[len(steps) // 2]][:60]:
        if float(subject.lr(step)) != rates[step]:
            raise Failed(
                f"lr({step}) is {rates[step]:.9g}, and {float(subject.lr(step)):.9g} when asked after other steps",
                case="steps asked for in falling order",
                resembles="OS2",
            )
    used = [step for step in steps if step < last] or steps
    highest = max(rates[step] for step in used)
    slack = lab.tol * highest
    if peak is not None:
        lab.at_most(
            abs(highest - peak) / peak,
            f"the highest rate of {len(used)} steps is {highest:.9g}, the declared peak {peak:.9g}",
            case=f"at step {max(used, key=lambda s: rates[s])}",
        )
    if warmup is not None and warmup < last:
        first = next(step for step in used if rates[step] >= highest - slack)
        if first not in (max(0, warmup - 1), warmup):
            raise Failed(
                f"the peak {highest:.6g} is first reached at step {first}, with a warm-up of {warmup} steps",
                case=f"lr of the first steps: {[float(f'{rates[s]:.3g}') for s in steps[:8]]}",
                resembles="OS6" if warmup == 0 else "OS4",
            )
        for before, after in itertools.pairwise(steps):
            if after <= first and rates[after] < rates[before] - slack:
                raise Failed(f"the rate falls in the warm-up, from step {before} to {after}", resembles="OS4")
            if before >= first and rates[after] > rates[before] + slack:
                raise Failed(
                    f"the rate rises after its peak, from {rates[before]:.6g} to {rates[after]:.6g} at step {after}",
                    case=f"{total} steps, warm-up {warmup}",
                    resembles="OS1",
                )
    if final is not None and total is not None:
        ends = [rates[total - 1], rates[total]]
        lab.at_most(
            min(abs(end - final) for end in ends) / max(final, peak or highest),
            f"the rate ends at {ends[0]:.6g} (lr({total}) = {ends[1]:.6g}), declared is {final:.6g}",
            case=f"{total} steps, warm-up {warmup}",
            resembles="OS1",
        )


@check(
    family="optimiser",
    level=2,
    needs={"train_step", "lr", "collate", "named_parameters"},
    kind="metamorphic",
    tol=1e-5,
    catches=("OS2", "OS4", "OS5", "OS1"),
)
def step_uses_lr_of_its_number(lab: Lab) -> None:
    """The n-th call of train_step (from 0) updates with lr(n), whatever the number of micro-batches, and every group
    follows the same schedule."""
    rows = _few_rows(lab)
    n = min(8, lab.traits.total_steps or 8)
    for k in (1, 4):
        subject, oracle = lab.randomised(), lab.fresh()
        shares: dict[tuple[int, int], list[float]] = {}
        with watched(subject) as updates:
            for step in range(n):
                seen = len(updates)
                metrics = subject.train_step(_micro_batches(subject, rows, k))
                expected = float(oracle.lr(step))
                case = f"train_step number {step} of {n}, {k} micro-batch(es) each"
                if metrics.get("lr") is not None:
                    value = float(metrics["lr"])
                    lab.at_most(
                        abs(value - expected) / max(abs(expected), 1e-12),
                        f"train_step reports lr {value:.9g}; lr({step}) is {expected:.9g}",
                        case=case,
                        resembles="OS5" if k > 1 else "OS2",
                    )
                numbers: dict[int, int] = {}
                for update in updates[seen:]:
                    number = numbers.setdefault(id(update.optimiser), len(numbers))
                    for i, group in enumerate(update.groups):
                        rate = float(group.get("lr", expected))
                        if expected == 0:
                            lab.at_most(abs(rate), f"group {i} has a rate where lr({step}) is 0", case=case, tol=0.0)
                        elif rate or step:
                            shares.setdefault((number, i), []).append(rate / expected)
        for (number, i), values in shares.items():
            spread = (max(values) - min(values)) / max(max(map(abs, values)), 1e-12)
            lab.at_most(
                spread,
                f"group {i} of optimizer {number} does not follow lr(step): its share of it is "
                f"{min(values):.6g} to {max(values):.6g} in {n} steps",
                case=f"{k} micro-batch(es) a step",
                resembles="OS5" if k > 1 else "OS2",
            )
        if shares and len({round(v[0], 9) for v in shares.values()}) == 1:
            share = next(iter(shares.values()))[0]
            lab.at_most(
                abs(share - 1),
                f"the optimizer's rate is {share:.6g} times lr(step)",
                case=f"{k} micro-batch(es) a step",
            )


@check(
    family="optimiser",
    level=2,
    needs={"train_step", "collate", "named_parameters"},
    kind="metamorphic",
    tol=0.05,
    catches=("OS13", "OS5", "LN4", "LN1"),
)
def train_step_is_one_update(lab: Lab) -> None:
    """One train_step is one update of each optimizer, and its effect does not depend on how the rows are cut into
    micro-batches."""
    require_deterministic_training(lab)
    rows = _few_rows(lab)
    n = _first_moving_step(lab) + 1
    moved: dict[int, Named] = {}
    for k in (1, 2, 4):
        subject = lab.randomised()
        with watched(subject) as updates:
            for step in range(n):
                seen, before = len(updates), snapshot(subject)
                subject.train_step(_micro_batches(subject, rows, k))
                counts: dict[int, int] = {}
                for update in updates[seen:]:
                    counts[id(update.optimiser)] = counts.get(id(update.optimiser), 0) + 1
                if counts and max(counts.values()) > 1:
                    raise Failed(
                        f"one train_step made {max(counts.values())} updates",
                        measured=max(counts.values()),
                        tolerance=1,
                        case=f"train_step number {step}, {k} micro-batch(es)",
                        resembles="OS13",
                    )
        moved[k] = {name: weight - before[name] for name, weight in snapshot(subject).items()}
        if not norm(moved[k]) > 0:
            raise Failed(f"train_step number {step} moved no parameter", case=f"{k} micro-batch(es)", resembles="OS13")
        lab.at_most(
            relative_difference(moved[k], moved[1]),
            "what a step does to the parameters depends on the number of micro-batches",
            case=f"{k} micro-batches against 1",
            resembles="LN1",
        )


@check(
    family="optimiser",
    level=2,
    needs={"param_groups", "named_parameters"},
    kind="oracle",
    catches=("OS10", "RM6", "MF10"),
)
def every_parameter_is_in_one_group(lab: Lab) -> None:
    """Each trainable parameter is in exactly one group of the optimizer, as the live tensor; weight decay is only on
    tensors of two or more dimensions, unless declared."""
    subject = lab.subject
    names = {id(weight): name for name, weight in parameters(subject).items()}
    count = dict.fromkeys((n for n, w in parameters(subject).items() if w.requires_grad), 0)
    strangers = 0
    for group in subject.param_groups():
        for weight in group["params"]:
            name = names.get(id(weight))
            strangers += name is None
            if name in count:
                count[name] += 1
            if name and weight.ndim < 2 and float(group.get("weight_decay", 0)) > 0 and not lab.traits.decay_1d:
                raise Failed(f"{name} has {weight.ndim} dimension(s) and weight decay", case=name, resembles="OS10")
    lab.require(count, "no parameter is trainable")
    for name, times in count.items():
        if times != 1:
            raise Failed(
                f"{name} is in {times} groups of the optimizer",
                measured=times,
                tolerance=1,
                case=f"{len(count)} trainable parameters, {strangers} tensors in groups that are none of the model's",
                resembles="OS10" if times else "RM6",
            )


@check(
    family="optimiser",
    level=2,
    needs={"train_step", "collate", "named_parameters"},
    kind="metamorphic",
    catches=("RM6", "MF10", "CR4"),
)
def step_moves_what_is_trained(lab: Lab) -> None:
    """A step moves every parameter that has a gradient and a rate above 0; one that is frozen, in no group or at rate 0
    stays as it is, bit for bit."""
    rows = _few_rows(lab)
    n = _first_moving_step(lab) + 1
    first = lab.randomised()
    choices = [name for name, weight in parameters(first).items() if weight.ndim >= 2]
    for frozen in (None, choices[len(choices) // 2]):
        subject = lab.randomised()
        if frozen is not None:
            parameters(subject)[frozen].requires_grad_(False)
        try:
            with watched(subject) as updates:
                for _ in range(n):
                    seen, before = len(updates), snapshot(subject)
                    subject.train_step(_micro_batches(subject, rows, 1))
        except Exception:  # an optimizer may insist on a gradient for everything
            if frozen is None:
                raise
            return
        updates = updates[seen:]
        gradients = {name: g for update in updates for name, g in update.gradients.items()}
        rates = {name: float(g.get("lr", 1)) for u in updates for g in u.groups for name in g["params"]}
        if lab.has("param_groups"):
            names = {id(weight): name for name, weight in parameters(subject).items()}
            for group in subject.param_groups():
                for weight in group["params"]:
                    if id(weight) in names:
                        rates.setdefault(names[id(weight)], float(plain(group.get("lr", 1))))
        for name, weight in parameters(subject).items():
            moved = not torch.equal(weight.detach(), before[name])
            case = f"train_step number {n - 1}{f', {frozen} frozen' if frozen else ''}"
            if moved and (name == frozen or not weight.requires_grad):
                raise Failed(f"{name} is frozen and moves", case=case)
            if moved and lab.has("param_groups") and rates.get(name, 0) == 0:
                raise Failed(f"{name} moves, and no optimizer has it at a rate above 0", case=case)
            exact = weight.dtype in (torch.float32, torch.float64)  # bfloat16 may round a small update away
            pushed = exact and name in gradients and bool((gradients[name] != 0).any())
            if pushed and weight.requires_grad and not moved and rates.get(name, 0) > 0:
                raise Failed(f"{name} has a gradient and a rate, and does not move", case=case, resembles="RM6")
            if weight.requires_grad and name != frozen and not moved and name not in gradients:
                raise Failed(f"{name} is trainable; train_step neither moves it nor gives it a gradient", case=case)


@check(
    family="optimiser",
    level=2,
    needs={"train_step", "collate", "named_parameters"},
    kind="oracle",
    tol=1e-2,
    catches=("OS10",),
)
def zero_gradient_moves_only_what_decays(lab: Lab) -> None:
    """With zero gradients a fresh optimizer moves exactly the parameters whose group has weight decay, by lr times
    decay; tensors with one dimension stay, unless declared."""
    variants: list[dict[str, Any]] = [{}]
    if not any(float(g.get("weight_decay", 0)) for u in _updates(lab, lab.randomised()) for g in u.groups):
        variants.append({"weight_decay": 0.1})
    for overrides in variants:
        try:
            subject = lab.randomised(**overrides)
        except Exception:  # noqa: BLE001 (an adapter need not take this setting)
            continue
        with watched(subject, _no_gradient) as updates:
            for _ in range(_first_moving_step(lab) + 1):
                seen, before = len(updates), snapshot(subject)
                subject.train_step(_micro_batches(subject, _few_rows(lab), 1))
        gradients_of(updates)
        groups = {name: (u, g) for u in updates[seen:] for g in u.groups for name in g["params"] if name in u.gradients}
        for name, weight in parameters(subject).items():
            if name not in groups:
                continue  # updated by something that is no torch optimizer, or not at all
            update, group = groups[name]
            decay = float(group.get("weight_decay", 0))
            change = float((weight.detach().double() - before[name].double()).norm() / before[name].double().norm())
            case = f"{name}, weight decay {decay:g}, lr {float(group.get('lr', 0)):g}"
            if (weight.ndim < 2 and not lab.traits.decay_1d) or decay == 0:
                lab.at_most(change, f"{name} moves in a step with zero gradients", case=case, tol=0.0, resembles="OS10")
            elif "AdamW" in type(update.optimiser).__name__:
                expected = float(group["lr"]) * decay
                if expected > 1e-5:  # below it float32 shows little of it
                    lab.at_most(
                        abs(change - expected) / expected,
                        f"weight decay shrinks {name} by {change:.4g}, not by lr x decay = {expected:.4g}",
                        case=case,
                    )


@check(
    family="optimiser",
    level=2,
    needs={"train_step", "collate", "named_parameters"},
    kind="oracle",
    tol=1e-3,
    catches=("OS11", "LN4", "OS13", "DI8"),
)
def optimiser_sees_clipped_gradient_of_this_step(lab: Lab) -> None:
    """What reaches the optimizer is the gradient of this step's rows and of nothing before, over all trainable
    parameters, at most scaled to the declared norm; the reported grad_norm is the whole norm before that."""
    require_deterministic_training(lab)
    subject, twin = lab.randomised(), lab.randomised()
    lab.require(lab.has("accumulate") or lab.has("loss"), "needs accumulate or loss")
    limit = lab.traits.max_grad_norm
    previous: Named = {}
    for step, (scale, k) in enumerate(((1.0, 1), (1e-3, 1), (1e3, 2), (1e-3, 3))):
        rows = lab.rows()[step : step + 4]
        copy_weights(subject, twin)
        gradient = lab.gradient(twin, [twin.collate(rows)])
        gradient = {name: scale * g for name, g in gradient.items()}
        with gradient_hook(subject, lambda _, g, scale=scale: g * scale), watched(subject) as updates:  # type: ignore[misc]
            metrics = subject.train_step(_micro_batches(subject, rows, k))
        seen = gradients_of(updates)
        for name in {name for update in updates for group in update.groups for name in group["params"]} - seen.keys():
            if name in gradient:
                seen[name] = torch.zeros_like(gradient[name])
        size, found = norm(gradient), norm(seen)
        if limit is None and scale >= 1 and found < (1 - lab.tol) * size:
            limit = (
                found  # clipped, though it is not declared: then small gradients pass as they are, and others to this
            )
        clipped = limit is not None and size > limit
        case = f"step {step}, {k} micro-batch(es), gradient of norm {size:.3g}, clipped to {limit}"
        if metrics.get("grad_norm") is not None:
            value = float(metrics["grad_norm"])
            lab.at_most(
                abs(value - size) / size,
                f"train_step reports grad_norm {value:.6g}; the norm before clipping is {size:.6g}",
                case=case,
                resembles="OS11",
            )
        if clipped and limit is not None:
            lab.at_most(
                found / limit - 1,
                f"the norm over all parameters is {found:.6g} after clipping to {limit:g}",
                case=case,
                tol=1e-4,
                resembles="OS11",
            )
        share = limit / size if clipped and limit is not None else 1.0
        expected = {name: share * gradient[name] for name in seen}
        off = relative_difference(seen, expected)
        rest = {name: seen[name] - expected[name] for name in expected}
        stale = bool(previous) and relative_difference(rest, {n: previous[n] for n in rest}) < 0.2
        lab.at_most(
            off,
            "the optimizer sees a gradient that is not this step's"
            + (", with the one of the step before in it" if stale else ""),
            case=case,
            resembles="LN4" if k > 1 else "OS11",
        )
        previous = gradient


@check(
    family="optimiser",
    level=2,
    needs={"train_step", "collate", "named_parameters"},
    kind="oracle",
    tol=1e-3,
    catches=("OS8", "OS9", "CR5"),
)
def update_matches_reference(lab: Lab) -> None:
    """AdamW, Adam and SGD move parameters as their papers say, from gradients as small as eps, over 14 steps with
    their moments kept per parameter."""
    try:
        subject = lab.randomised(weight_decay=0.1)
    except Exception:  # noqa: BLE001 (an adapter need not take this setting)
        subject = lab.randomised()
    generator = torch.Generator().manual_seed(lab.seed)
    reference: dict[str, _Reference] = {}
    kinds: dict[str, str] = {}
    expected: Named = {}

    def edit(optimiser: torch.optim.Optimizer, name: str, weight: Tensor) -> None:
        group = _group(optimiser, weight)
        kind = _kind(optimiser, group)
        if kind is None or weight.grad is None:
            return
        eps = float(plain(group.get("eps", 1.0))) or 1e-8
        size = 3 * eps if name not in expected else float(torch.rand(1, generator=generator)) * 10 * eps
        weight.grad.copy_(size * torch.randn(weight.shape, generator=generator))
        if name not in reference:
            rate = max(float(plain(group["lr"])), 1e-12)
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * rate * 30)  # so that no digit is lost
            reference[name], kinds[name] = _Reference(kind, weight), type(optimiser).__name__
        expected[name] = reference[name].step(weight.grad, group)

    rows, n = _few_rows(lab), min(14, lab.traits.total_steps or 14)  # a state that is lost now and then shows in time
    with watched(subject, edit) as updates:
        for step in range(n):
            start = {name: r.weight.clone() for name, r in reference.items()}
            subject.train_step(_micro_batches(subject, rows, 1))
            gradients_of(updates)
            lab.require(reference, "no optimizer here is AdamW, Adam or SGD")
            for name, weight in parameters(subject).items():
                if name not in expected or name not in start:
                    continue  # the first step sets the weights
                move = float((expected[name] - start[name]).norm())
                off = float((weight.detach().double() - expected[name]).norm())
                if move > 0:
                    lab.at_most(
                        off / move,
                        f"{kinds[name]} moves {name} otherwise than its definition",
                        case=f"step {step}, gradients of the size of eps",
                        resembles="OS8",
                    )
    if all(torch.equal(expected[name], reference[name].first) for name in expected):
        raise Vacuous("the rate is 0 in all steps")


@check(
    family="optimiser",
    level=2,
    needs={"train_step", "collate", "named_parameters"},
    kind="metamorphic",
    catches=("OS15", "DM16"),
)
def broken_gradient_never_reaches_weights(lab: Lab) -> None:
    """A NaN or infinite gradient leaves every parameter as it was and is raised or reported, not dropped in silence."""
    rows = _few_rows(lab)
    names = [name for name, weight in parameters(lab.subject).items() if weight.requires_grad]
    for value, name in ((float("nan"), names[-1]), (float("inf"), names[0])):
        subject = lab.randomised()
        for _ in range(_first_moving_step(lab)):
            subject.train_step(_micro_batches(subject, rows, 1))
        batches = _micro_batches(subject, rows, 1)
        before = snapshot(subject)

        def spoil(found: str, gradient: Tensor, name: str = name, value: float = value) -> Tensor:
            if found == name:
                gradient = gradient.clone()
                gradient.view(-1)[0] = value
            return gradient

        raised, metrics = False, {}
        with gradient_hook(subject, spoil):
            try:
                metrics = subject.train_step(batches)
            except Exception:  # noqa: BLE001 (raising is one of the two right answers)
                raised = True
        case = f"one {value} in the gradient of {name}"
        for other, weight in parameters(subject).items():
            if not torch.isfinite(weight).all():
                raise Failed(f"a gradient with one {value} makes {other} NaN or infinite", case=case, resembles="OS15")
            if not torch.equal(weight.detach(), before[other]):
                raise Failed(f"a gradient with one {value} still moves {other}", case=case, resembles="OS15")
        if raised:
            continue
        finite = all(math.isfinite(float(v)) for v in metrics.values() if isinstance(v, int | float | Tensor))
        counted = any(any(word in key.lower() for word in COUNTED) and float(v) > 0 for key, v in metrics.items())
        if finite and not counted:
            raise Failed(
                f"a gradient with one {value} is dropped in silence: nothing is raised, and the metrics look healthy",
                case=f"{case}; metrics {dict(metrics)}",
                resembles="OS15",
            )
        subject.train_step(batches)
        for other, weight in parameters(subject).items():
            if not torch.isfinite(weight).all():
                raise Failed(f"the step after a broken gradient makes {other} NaN", case=case, resembles="OS15")


@check(
    family="optimiser",
    level=2,
    needs={"train_step", "collate", "loss", "named_parameters"},
    kind="metamorphic",
    catches=("RL2", "OS15"),
)
def training_lowers_the_loss(lab: Lab) -> None:
    """Training on one batch again and again lowers its loss, and not by a change that float32 could make up."""
    subject = lab.fresh()
    rows = [lab.row(min(12, lab.traits.max_len), 8), lab.row(7, 2)]
    batch = subject.collate(rows)
    with torch.no_grad():
        first = float(lab.loss(subject, batch))
    n = min(15, lab.traits.total_steps or 15)
    for _ in range(n):
        subject.train_step([batch])
    with torch.no_grad():
        last = float(lab.loss(subject, batch))
    if not last < first - 1e-5 * abs(first):
        raise Failed(
            f"{n} steps on one batch take its loss from {first:.6g} to {last:.6g}",
            measured=last - first,
            tolerance=-1e-5 * abs(first),
            case=f"rows of (length, targets) {[(len(i), sum(m)) for i, m in rows]}",
            resembles="RL2",
        )


@check(family="optimiser", level=2, needs={"train_step", "collate", "named_parameters"}, kind="metamorphic", catches=())
def dropout_acts_in_training_alone(lab: Lab) -> None:
    """If the first training step applies dropout, every later one does, after validation, generation and load too;
    validation and generation never do."""
    subject = lab.make(seed=lab.seed, tiny=True)  # lab.fresh() switches dropout off
    rows = _few_rows(lab)

    def rate(call: Callable[[], Any]) -> float:
        with dropouts() as rates:
            call()
        return max(rates, default=0.0)

    def step(after: str) -> None:
        if rate(lambda: subject.train_step(_micro_batches(subject, rows, 2))) <= 0:
            raise Failed(f"a training step after {after} applies no dropout; the first one did, at a rate of {first:g}")

    first = rate(lambda: subject.train_step(_micro_batches(subject, rows, 2)))
    lab.require(first > 0, "training applies no dropout that torch shows")
    step("the first")
    others: dict[str, Callable[[], Any]] = {}
    if lab.has("eval_loss"):
        others["validation"] = lambda: lab.eval_loss(subject, subject.collate(rows))
    if lab.has("generate"):
        others["generation"] = lambda: lab.generate(subject, lab.prompts(3), max_new_tokens=3, temperature=0.0)
    for what, call in others.items():
        applied = rate(call)
        if applied > 0:
            raise Failed(f"{what} applies dropout", measured=applied, tolerance=0.0, case="after training steps")
        step(what)
    if lab.has("save", "load"):
        with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
            subject.save(Path(folder) / "saved")
            subject.load(Path(folder) / "saved")
            step("load")


# What the checks share


def _few_rows(lab: Lab) -> list[Row]:
    """Five short rows of 5, 1, 1, 2 and 9 targets: cut into micro-batches, no two weigh the same."""
    return [lab.row(8, 5), lab.row(6, 1), lab.row(9, 1, tail=2), lab.row(7, 2), lab.row(min(14, lab.traits.max_len), 9)]


def _micro_batches(subject: Any, rows: Sequence[Row], k: int) -> list[Batch]:
    """k micro-batches: the first k - 1 rows, one each, and all the others."""
    k = min(k, len(rows))
    parts = [[row] for row in rows[: k - 1]] + [list(rows[k - 1 :])]
    return [subject.collate(part) for part in parts]


def _first_moving_step(lab: Lab) -> int:
    """The first step whose rate is above 0 (a warm-up may start at 0)."""
    if not lab.has("lr"):
        return 0
    for step in range(lab.traits.total_steps or 1):
        if float(lab.subject.lr(step)) > 0:
            return min(step, 10)
    raise NotApplicable("the rate is 0 at every step")


def _no_gradient(optimiser: torch.optim.Optimizer, name: str, weight: Tensor) -> None:
    if weight.grad is not None:
        weight.grad.zero_()


def _updates(lab: Lab, subject: Any) -> list[Update]:
    with watched(subject) as updates:
        subject.train_step(_micro_batches(subject, _few_rows(lab), 1))
    gradients_of(updates)
    return updates


def _group(optimiser: torch.optim.Optimizer, weight: Tensor) -> Group:
    return next(g for g in optimiser.param_groups if any(p is weight for p in g["params"]))


def _kind(optimiser: torch.optim.Optimizer, group: Group) -> str | None:
    """Which rule a group should follow, from the optimizer's name and the group's settings."""
    name = type(optimiser).__name__
    if group.get("amsgrad") or group.get("maximize"):
        return None
    if {"betas", "eps", "lr"} <= group.keys():
        if "adamw" in name.lower() or group.get("decoupled_weight_decay"):
            return "adamw"
        return "adam" if name == "Adam" else None
    return "sgd" if name == "SGD" else None


class _Reference:
    """One parameter under AdamW (arXiv:1711.05101, algorithm 2), Adam (arXiv:1412.6980) or SGD, in float64."""

    def __init__(self, kind: str, weight: Tensor) -> None:
        self.kind, self.weight, self.n = kind, weight.detach().double().clone(), 0
        self.first = self.weight.clone()
        self.m = torch.zeros_like(self.weight)
        self.v = torch.zeros_like(self.weight)

    def step(self, gradient: Tensor, group: Group) -> Tensor:
        g = gradient.double()
        lr, decay = float(plain(group["lr"])), float(group.get("weight_decay", 0))
        self.n += 1
        if self.kind == "adamw":
            self.weight = self.weight * (1 - lr * decay)
        else:
            g = g + decay * self.weight
        if self.kind == "sgd":
            momentum = float(group.get("momentum", 0))
            self.m = momentum * self.m + (g if self.n == 1 else (1 - float(group.get("dampening", 0))) * g)
            update = g + momentum * self.m if group.get("nesterov") else (self.m if momentum else g)
        else:
            b1, b2 = (float(plain(b)) for b in group["betas"])
            self.m = b1 * self.m + (1 - b1) * g
            self.v = b2 * self.v + (1 - b2) * g * g
            m, v = self.m / (1 - b1**self.n), self.v / (1 - b2**self.n)
            update = m / (v.sqrt() + float(plain(group["eps"])))
        self.weight = self.weight - lr * update
        return self.weight
