"""The loss against its definition, and what must not change it."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from kat.errors import KatError
from kat.verify.check import Failed, NotApplicable, Vacuous, check
from kat.verify.lab import (
    Lab,
    Named,
    gradients,
    largest_difference,
    parameters,
    relative_difference,
    snapshot,
    zero_grad,
)
from kat.verify.subject import Row
from kat.verify.watch import norm

REFUSALS = (ValueError, ArithmeticError, RuntimeError, AssertionError, KatError)


@check(
    family="loss",
    level=2,
    needs={"loss", "collate", "forward", "named_parameters"},
    kind="oracle",
    tol=1e-4,
    catches=("DM2", "DM3", "DM4", "LN11", "LN13", "LN17", "LN7", "LN8", "MF10", "DM5"),
)
def loss_matches_token_oracle(lab: Lab) -> None:
    """The loss and its gradient are those of -log p over exactly the supervised tokens, each given the ids before it,
    aggregated as declared."""
    require_deterministic_loss(lab)
    subject = lab.randomised()
    for rows, case in _cases(lab):
        value, gradient = _loss(lab, subject, rows)
        zero_grad(subject)
        total = lab.oracle_loss(subject, rows)
        total.backward()
        expected, reference = float(total.detach()), gradients(subject)
        if not norm(reference) > 0:
            raise Vacuous("the gradient by definition is zero")
        lab.at_most(
            abs(value - expected) / max(abs(expected), 1e-3),
            f"the loss is {value:.6g}; by definition ({lab.traits.loss_agg}) it is {expected:.6g}",
            case=case,
            resembles=_shift(lab, subject, rows, value),
        )
        lab.at_most(
            relative_difference(gradient, reference),
            f"the gradient of the loss is not that of its definition, most of all in {_worst(gradient, reference)}",
            case=case,
        )


@check(
    family="loss",
    level=2,
    needs={"loss", "collate", "named_parameters"},
    kind="metamorphic",
    tol=1e-5,
    catches=("DM1", "LN13", "LN6", "LN11", "DM4", "DM5", "RM10"),
)
def loss_ignores_padding_order_and_tail(lab: Lab) -> None:
    """A batch's loss and gradient are the declared mean of its rows', whatever their order, the padding that longer
    rows bring, and the tokens after a row's last target."""
    require_deterministic_loss(lab)
    subject = lab.randomised()
    rows = lab.rows()
    long = lab.row(min(lab.traits.max_len, 40), 1, tail=2)
    alone = {}
    for i, row in enumerate([*rows, long]):
        alone[i] = _loss(lab, subject, [row])
    plans = [[0], [1, 2], [2, 1], [2, 8], [*range(8)], [*reversed(range(9))]]
    if lab.large:
        plans = [[2, 8], [*reversed(range(9))]]
    for plan in plans:
        chosen = [[*rows, long][i] for i in plan]
        value, gradient = _loss(lab, subject, chosen)
        shares = _shares(lab, chosen)
        expected = sum(share * alone[i][0] for share, i in zip(shares, plan, strict=True))
        reference = _sum([alone[i][1] for i in plan], shares)
        case = f"rows of (length, targets) {_sizes(chosen)}"
        lab.at_most(
            abs(value - expected) / max(abs(expected), 1e-3),
            f"the loss of a batch is {value:.6g}, that of its rows, one at a time, {expected:.6g}",
            case=case,
        )
        lab.at_most(
            relative_difference(gradient, reference),
            f"the gradient of a batch is not that of its rows, most of all in {_worst(gradient, reference)}",
            case=case,
            tol=10 * lab.tol,
        )
    tails = (5,) if lab.large else (1, 5)
    for tail in tails if lab.traits.supervised != "all" else ():
        row = lab.row(14, 4, tail=tail)
        other = (row[0][: 14 - tail] + lab.ids(1, tail)[0].tolist(), row[1])
        for mates in [rows[:2]] if lab.large else [[], rows[:2]]:
            value, gradient = _loss(lab, subject, [row, *mates])
            same, same_gradient = _loss(lab, subject, [other, *mates])
            case = f"the last {tail} of 14 tokens, none of them a target, in a batch of {1 + len(mates)}"
            lab.at_most(
                abs(value - same) / max(abs(value), 1e-3),
                "the loss moves with tokens that come after the last target",
                case=case,
                resembles="DM1",
            )
            lab.at_most(
                relative_difference(same_gradient, gradient),
                "the gradient moves with tokens that come after the last target",
                case=case,
                resembles="DM1",
            )


@check(
    family="loss",
    level=2,
    needs={"loss", "collate", "named_parameters"},
    kind="metamorphic",
    tol=1e-6,
    catches=("DM16",),
)
def batch_without_targets_is_inert(lab: Lab) -> None:
    """A micro-batch in which nothing is supervised has a finite loss and no gradient, changes nothing in an
    accumulation, and is refused as a whole step or leaves the weights finite."""
    require_deterministic_loss(lab)
    lab.require(lab.traits.supervised != "all", "every token is learned: there is no batch without a target")
    subject = lab.randomised()
    rows = lab.rows()
    empty = [(ids, [0] * len(ids)) for ids, _ in rows[1:4]]
    try:
        masked = subject.collate(empty)
    except REFUSALS as error:
        raise NotApplicable(f"collate refuses rows without a target: {error}") from None
    case = f"{len(empty)} rows without a target"
    zero_grad(subject)
    try:
        loss = lab.loss(subject, masked)
        value = float(loss.detach())
    except REFUSALS as error:
        raise NotApplicable(f"loss refuses a batch without a target: {error}") from None
    # A bare model that averages over no targets says NaN; what counts is whether a trainer lets that into a step.
    bare = lab.has("accumulate") and not lab.has("train_step")
    if not math.isfinite(value) and not bare:
        raise Failed(f"the loss of a batch without a target is {value}", case=case, resembles="DM16")
    if loss.requires_grad and math.isfinite(value):
        loss.backward()
        lab.at_most(
            norm(gradients(subject)), "a batch without a target has a gradient", case=case, tol=0.0, resembles="DM16"
        )
    if lab.has("accumulate") and lab.traits.loss_agg != "sequence-mean":  # whether an empty row counts is a choice
        good = subject.collate(rows[:2])
        reference = lab.gradient(subject, [good])
        for order in ([masked, good], [good, masked], [masked, good, masked]):
            try:
                gradient = lab.gradient(subject, order)
            except REFUSALS as error:
                raise NotApplicable(f"accumulate refuses a micro-batch without a target: {error}") from None
            lab.at_most(
                relative_difference(gradient, reference),
                "a micro-batch without a target changes the accumulated gradient",
                case=f"{len(order)} micro-batches, one of them with targets",
                resembles="DM16",
            )
    zero_grad(subject)
    if lab.has("train_step"):
        try:
            subject.train_step([masked])
        except Exception:  # noqa: BLE001 (loud, as it should be)
            return
        for name, weight in parameters(subject).items():
            if not torch.isfinite(weight).all():
                raise Failed(f"a step without a target makes {name} NaN or infinite", case=case, resembles="DM16")


@check(
    family="loss",
    level=2,
    needs={"loss", "collate", "forward", "named_parameters"},
    kind="oracle",
    tol=1e-5,
    catches=("LN17", "LN11", "LN8"),
)
def uniform_model_has_loss_ln_v(lab: Lab) -> None:
    """A model that gives every token the same probability has a loss of ln V a supervised token."""
    subject = lab.fresh()
    with torch.no_grad():
        for weight in parameters(subject).values():
            weight.zero_()
        logits = lab.forward(subject, lab.ids(2, 6))
    spread = float((logits.amax(-1) - logits.amin(-1)).max())
    lab.require(spread < 1e-5, "with all parameters zero the logits are not constant")
    vocab = logits.shape[-1]
    for rows in ([lab.row(6, 2)], [lab.row(9, 1, tail=3), lab.row(12, 10)], lab.rows()):
        batch = subject.collate(rows)
        targets = sum(sum(mask[1:]) for _, mask in rows)
        expected = math.log(vocab) * (targets if lab.traits.loss_agg == "token-sum" else 1)
        values = {"loss": float(lab.loss(subject, batch).detach())}
        if lab.has("eval_loss"):
            values["eval_loss"] = lab.eval_loss(subject, batch) * (expected / math.log(vocab))
        for name, value in values.items():
            lab.at_most(
                abs(value - expected) / expected,
                f"{name} of a uniform model over {vocab} tokens is {value:.6g}, not {expected:.6g}",
                case=f"rows of (length, targets) {_sizes(rows)}",
                resembles="LN17" if name == "eval_loss" else None,
            )


@check(
    family="loss",
    level=2,
    needs={"eval_loss", "collate", "forward", "named_parameters"},
    kind="oracle",
    tol=1e-5,
    catches=("EV20", "LN17"),
)
def eval_loss_matches_training_loss(lab: Lab) -> None:
    """Validation reports the mean over supervised tokens by the same definition as training, before and after a step,
    and leaves parameters and gradients alone."""
    subject = lab.randomised()
    for trained in (False, True):
        if trained and lab.has("train_step"):
            subject.train_step([subject.collate(lab.rows())])
            zero_grad(subject)
        for rows, case in _cases(lab):
            batch = subject.collate(rows)
            before = snapshot(subject)
            when = f"{case}{', after a training step' if trained else ''}"
            value = float(subject.eval_loss(batch))
            if not torch.is_grad_enabled():
                torch.set_grad_enabled(True)
                raise Failed("computing the validation loss leaves gradients switched off", case=when)
            difference, name = largest_difference(parameters(subject), before)
            lab.at_most(difference, f"computing the validation loss changes {name}", case=when, tol=0.0)
            if norm(gradients(subject)) > 0:
                raise Failed("computing the validation loss leaves a gradient", case=when)
            with torch.no_grad():
                expected = _token_mean(lab, subject, rows)
            lab.at_most(
                abs(value - expected) / max(expected, 1e-3),
                f"the validation loss is {value:.6g}; the mean of -log p over the supervised tokens is {expected:.6g}",
                case=when,
            )


@check(
    family="loss",
    level=2,
    needs={"accumulate", "collate", "forward", "named_parameters"},
    kind="oracle",
    tol=1e-4,
    catches=("LN1", "LN2", "LN3", "LN4", "LN6", "DI8"),
)
def grad_accumulation_equivalent(lab: Lab) -> None:
    """However a step's rows are cut into micro-batches, the accumulated gradient is that of the loss of all of them."""
    subject = lab.randomised()
    _require_deterministic_gradient(lab, subject)
    for rows in [lab.rows()] if lab.large else [lab.rows()[:2], lab.rows()]:
        zero_grad(subject)
        lab.oracle_loss(subject, rows).backward()
        reference = gradients(subject)
        for cut in [[1], [1, 2, 4]] if lab.large else _cuts(len(rows)):
            parts = [rows[a:b] for a, b in zip([0, *cut], [*cut, len(rows)], strict=True)]
            gradient = lab.gradient(subject, [subject.collate(part) for part in parts])
            case = f"{len(parts)} micro-batches of {[sum(sum(m) for _, m in part) for part in parts]} targets"
            scale = norm(gradient) / norm(reference)
            lab.at_most(
                relative_difference(gradient, reference),
                f"the accumulated gradient is not that of the whole batch (its norm is {scale:.3g} times as large)",
                case=case,
                resembles="LN4" if abs(scale - len(parts)) < 0.01 and len(parts) > 1 else "LN1",
            )


@check(
    family="loss",
    level=2,
    needs={"train_step", "collate", "forward", "named_parameters"},
    kind="oracle",
    tol=1e-4,
    catches=("LN2", "LN15", "LN10", "LN16", "OS11"),
)
def reported_metrics_match_definition(lab: Lab) -> None:
    """The loss, the number of supervised tokens and the gradient norm that a step reports are those of all its rows
    before the update, for any number of micro-batches, at the first step and later."""
    require_deterministic_training(lab)
    rows = lab.rows()
    for cut in _cuts(len(rows)):
        parts = [rows[a:b] for a, b in zip([0, *cut], [*cut, len(rows)], strict=True)]
        subject = lab.randomised()
        for step in range(1 if len(parts) == 1 else 2):
            expected = _definition(lab, subject, rows)
            metrics = subject.train_step([subject.collate(part) for part in parts])
            targets = [sum(sum(m[1:]) for _, m in part) for part in parts]
            case = f"step {step}, {len(parts)} micro-batches of {targets} targets"
            known = [name for name in ("loss", "supervised_tokens", "grad_norm") if metrics.get(name) is not None]
            lab.require(known, "train_step reports none of loss, supervised_tokens and grad_norm")
            for name in known:
                value = float(metrics[name])
                allowed = expected[name]
                nearest = min(allowed, key=lambda x: abs(x - value))
                lab.at_most(
                    abs(value - nearest) / max(abs(nearest), 1e-3),
                    f"train_step reports {name} {value:.6g}; by definition it is {allowed[0]:.6g}",
                    case=case,
                    resembles={"loss": "LN15", "supervised_tokens": "LN10", "grad_norm": "OS11"}[name],
                )


@check(
    family="loss",
    level=2,
    needs={"loss", "collate", "named_parameters"},
    kind="metamorphic",
    tol=1e-6,
    catches=("LN17",),
)
def loss_is_a_function_of_weights_and_batch(lab: Lab) -> None:
    """The same weights and batch give the same loss: whatever was computed before, whatever the global generator's
    state, and in another subject that is given the same weights."""
    subject = lab.randomised()
    rows = lab.rows()
    batch = subject.collate(rows)
    first = float(lab.loss(subject, batch).detach())

    def again(what: str, other: Any = subject) -> None:
        value = float(lab.loss(other, batch).detach())
        lab.at_most(
            abs(value - first) / max(abs(first), 1e-3), f"the loss is {first:.7g}, then {value:.7g} {what}", case=what
        )

    again("when asked again")
    torch.manual_seed(lab.seed + 12345)
    again("after the global seed was set anew")
    lab.loss(subject, subject.collate(rows[2:4])).backward()
    zero_grad(subject)
    again("after the loss and gradient of another batch")
    if lab.has("generate"):
        lab.generate(subject, [rows[0][0][:4]], n=2, max_new_tokens=3, temperature=1.0, seed=1)
        again("after generating")
    if lab.has("eval_loss"):
        lab.eval_loss(subject, batch)
        again("after validation")
    if lab.has("train_step"):
        trained = lab.fresh()
        trained.train_step([trained.collate(rows[:2])])
        with torch.no_grad():
            values = parameters(subject)
            for name, weight in parameters(trained).items():
                weight.copy_(values[name])
        again("in a subject that took a training step before it was given the weights", trained)


# What the checks share


def _cases(lab: Lab) -> list[tuple[list[Row], str]]:
    """Batches, smallest first: the shortest row there is, targets at both ends, ragged rows, the longest row."""
    two, six = lab.ids(1, 2)[0].tolist(), lab.ids(1, 6)[0].tolist()
    full = min(lab.traits.max_len, 64)
    last = ([lab.row(full, full // 2), lab.row(5, 1)], f"rows of {full} and 5 tokens")
    if lab.large:
        return [
            ([(six, [0, 1, 0, 0, 0, 1])], "one row of 6 tokens, the second and the last supervised"),
            (lab.rows(), "ragged rows, with the pad id as content if there is one"),
            last,
        ]
    cases: list[tuple[list[Row], str]] = [
        ([(two, [0, 1])], "one row of 2 tokens, the second supervised"),
        ([(six, [0, 1, 0, 0, 0, 1])], "one row of 6 tokens, the second and the last supervised"),
        (lab.rows(pad_inside=False), "ragged rows"),
    ]
    if lab.traits.pad_id is not None:
        cases.append((lab.rows(), f"ragged rows with the pad id {lab.traits.pad_id} as content"))
    return [*cases, last]


def _loss(lab: Lab, subject: Any, rows: Sequence[Row]) -> tuple[float, Named]:
    """The loss of one batch and its gradient."""
    zero_grad(subject)
    loss = lab.loss(subject, subject.collate(list(rows)))
    loss.backward()
    result = float(loss.detach()), gradients(subject)
    zero_grad(subject)
    return result


def _shares(lab: Lab, rows: Sequence[Row]) -> list[float]:
    """What each row's own loss counts in the loss of the batch."""
    if lab.traits.loss_agg == "token-sum":
        return [1.0] * len(rows)
    weights = [1 if lab.traits.loss_agg == "sequence-mean" else sum(mask[1:]) for _, mask in rows]
    return [weight / sum(weights) for weight in weights]


def _sum(parts: Sequence[Named], shares: Sequence[float]) -> Named:
    total = {name: torch.zeros_like(value) for name, value in parts[0].items()}
    for part, share in zip(parts, shares, strict=True):
        for name, value in part.items():
            total[name].add_(value, alpha=share)
    return total


def _token_mean(lab: Lab, subject: Any, rows: Sequence[Row]) -> float:
    """The mean of -log p over supervised tokens, whatever the training loss aggregates."""
    total = count = 0.0
    for ids, mask in rows:
        logprobs = torch.log_softmax(lab.forward(subject, torch.tensor([ids]))[0].double(), dim=-1)
        targets = [t for t in range(1, len(ids)) if mask[t]]
        total -= sum(float(logprobs[t - 1, ids[t]].detach()) for t in targets)
        count += len(targets)
    return total / count


def _definition(lab: Lab, subject: Any, rows: Sequence[Row]) -> dict[str, list[float]]:
    """What may be reported, the first being the definition; the gradient is left as it was."""
    kept = {name: weight.grad for name, weight in parameters(subject).items()}
    zero_grad(subject)
    total = lab.oracle_loss(subject, rows)
    total.backward()
    loss = float(total.detach())
    size = norm(gradients(subject))
    for name, weight in parameters(subject).items():
        weight.grad = kept[name]
    losses = [loss]
    if lab.traits.loss_agg == "token-sum":
        losses.append(loss / sum(sum(mask[1:]) for _, mask in rows))
    elif lab.traits.loss_agg == "sequence-mean":
        losses.append(_token_mean(lab, subject, rows))
    return {"loss": losses, "grad_norm": [size], "supervised_tokens": [float(sum(sum(m[1:]) for _, m in rows))]}


def _cuts(n: int) -> list[list[int]]:
    """Where to cut n rows into 1, 2 and 4 micro-batches of very different sizes."""
    if n < 4:
        return [[], [1]]
    return [[], [1], [n - 1], [1, 2, 4]]


def _shift(lab: Lab, subject: Any, rows: Sequence[Row], value: float) -> str | None:
    """DM2 where the loss is that of a mask moved by one."""
    moved = [(ids, [0, *mask[:-1]]) for ids, mask in rows]
    back = [(ids, [0, *mask[2:], 0]) for ids, mask in rows]
    with torch.no_grad():
        for other in (moved, back):
            if (
                sum(sum(mask[1:]) for _, mask in other)
                and abs(float(lab.oracle_loss(subject, other).detach()) - value) < 1e-4
            ):
                return "DM2"
    return None


def _sizes(rows: Sequence[Row]) -> str:
    return str([(len(ids), sum(mask)) for ids, mask in rows])


def _worst(actual: Named, expected: Named) -> str:
    """The tensor whose gradient is furthest off."""

    def off(name: str) -> float:
        return float((actual[name].double() - expected[name].double()).norm())

    return max(expected, key=off)


def _require_deterministic_gradient(lab: Lab, subject: Any) -> None:
    batch, found = subject.collate(lab.rows()[:2]), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(lab.gradient(subject, [batch]))
    lab.require(
        relative_difference(found[1], found[0]) < 1e-5, "the gradient depends on the global generator (dropout)"
    )


def require_deterministic_training(lab: Lab) -> None:
    """Skip where a training step draws random numbers (dropout): its loss is then no function of its batch."""
    losses, rows = [], lab.rows()[:2]
    for seed in (1, 2):
        subject = lab.randomised()
        torch.manual_seed(seed)
        losses.append(subject.train_step([subject.collate(rows)]).get("loss"))
    lab.require(losses[0] == losses[1], "a training step draws from the global generator: make it without dropout")


def require_deterministic_loss(lab: Lab) -> None:
    """Skip where the loss draws random numbers (dropout in train mode): it is then no function of its batch."""
    subject = lab.randomised()
    batch = subject.collate(lab.rows()[:2])
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(float(lab.loss(subject, batch).detach()))
    lab.require(losses[0] == losses[1], "loss draws from the global generator: make it without dropout")
