"""Planted bugs of loss, optimiser, schedule, resume and two processes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kat.verify.lab import parameters, snapshot
from kat.verify.mutants.mutant import Mutant, around, patched, replaced, wrapped
from kat.verify.subject import Batch, Make

LOOP = "kat.trainers.loop.Loop"
GPT = "kat.model.gpt.GPT"
IGNORE = -1

NO_COUNTERPART: dict[str, str] = {
    "LN12": "no distillation loss",
    "OS9": "one optimizer implementation for any number of processes",
    "OS10": "kat's model has no parameter with one dimension; planted in the subject of tests/verify",
    "OS14": "the product of batch sizes is validated in settings, which no method of a subject shows",
    "CR6": "data cursor: planted with the data's bugs",
    "CR7": "data cursor: planted with the data's bugs",
    "DI7": "the number of devices is never read; the world size comes from torch.distributed",
}


def both(*plants: Callable[[Make], Make]) -> Callable[[Make], Make]:
    """Several plants that together are one mistake."""
    return lambda make: functools.reduce(lambda good, plant: plant(good), plants, make)


def method(name: str) -> Callable[[Callable[..., Any]], Callable[[Make], Make]]:
    """Replace a method of kat's training loop; the function takes (good method, loop, arguments)."""

    def plant(bad: Callable[..., Any]) -> Callable[[Make], Make]:
        def make_bad(good: Callable[..., Any]) -> Callable[..., Any]:
            return lambda self, *args, **kwargs: bad(good, self, *args, **kwargs)

        return patched(f"{LOOP}.{name}", around(make_bad))

    return plant


# Loss


def on_batch(change: Callable[[Batch], Batch]) -> Callable[[Make], Make]:
    """The loss, in training too, is that of a changed batch."""
    return patched("kat.verify.adapters.native._tensors", around(lambda good: lambda batch: good(change(batch))))


def loss_of(change: Callable[[Batch], Batch]) -> Callable[[Make], Make]:
    return wrapped(loss=lambda inner, batch: inner.loss(change(batch)))


def mask_shifted(batch: Batch) -> Batch:
    supervised = F.pad(batch["targets"] >= 0, (1, 0))[:, :-1]
    following = F.pad(batch["ids"][:, 1:], (0, 1), value=IGNORE)
    return {**batch, "targets": torch.where(supervised, following, IGNORE)}


def first_target_dropped(batch: Batch) -> Batch:
    targets = batch["targets"].clone()
    for row in targets:
        places = (row >= 0).nonzero()
        if len(places):
            row[places[0]] = IGNORE
    return {**batch, "targets": targets}


def pads_trained(batch: Batch) -> Batch:
    return {**batch, "targets": torch.where(batch["doc_ids"] < 0, batch["ids"], batch["targets"])}


def pad_ids_ignored(batch: Batch) -> Batch:
    pad = int(batch["ids"].max())  # of a tiny vocabulary's special ids any will do
    return {**batch, "targets": torch.where(batch["targets"] == pad, IGNORE, batch["targets"])}


def everything_trained(batch: Batch) -> Batch:
    following = F.pad(batch["ids"][:, 1:], (0, 1), value=IGNORE)
    targets = torch.where((batch["doc_ids"] >= 0) & (batch["targets"] < 0), following, batch["targets"])
    return {**batch, "targets": targets}


def unshifted(batch: Batch) -> Batch:
    return {**batch, "targets": torch.where(batch["targets"] >= 0, batch["ids"], IGNORE)}


def rows_of(batch: Batch) -> list[Batch]:
    return [{k: v[i : i + 1] for k, v in batch.items() if isinstance(v, Tensor)} for i in range(len(batch["ids"]))]


def gpt_loss(bad: Callable[..., Tensor]) -> Callable[[Make], Make]:
    """bad(good loss, model, hidden, targets, reduction)."""
    return patched(f"{GPT}.loss", around(lambda good: lambda self, *args: bad(good, self, *args)))


def mean_over_all(good: Any, model: Any, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
    total = good(model, hidden, targets, "sum")
    return total if reduction == "sum" else total / targets.numel()


def without_targets_is_nan(good: Any, model: Any, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
    total = good(model, hidden, targets, "sum")
    return total if reduction == "sum" else total / (targets >= 0).sum()


def smoothed(good: Any, model: Any, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
    keep = targets >= 0
    logits = model.logits(hidden[keep]).float()
    total = F.cross_entropy(logits, targets[keep], reduction="sum", label_smoothing=0.1)
    return total if reduction == "sum" else total / max(int(keep.sum()), 1)


def gradient_stops_at_softmax(good: Any, model: Any, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """The rarest ids get no gradient, as a fused kernel that skips small probabilities would have it."""
    return good(model, torch.where(hidden.abs() < 0.05, hidden.detach(), hidden), targets, reduction)


@method("backward")
def mean_of_means(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    """Each micro-batch is averaged over its own tokens."""
    total = 0.0
    for batch in batches:
        loss = loop._loss(loop.wrapped, batch) / max(loop.task.weight(batch), 1)
        (loss / len(batches)).backward()
        total += float(loss.detach()) / len(batches)
    return total, sum(loop.task.weight(batch) for batch in batches)


@method("backward")
def sum_of_means(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    results = [good(loop, [batch]) for batch in batches if loop.task.weight(batch)]
    return sum(loss for loss, _ in results) / len(results), sum(weight for _, weight in results)


@method("backward")
def first_micro_batch_sets_the_scale(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    loss, weight = good(loop, batches)
    scale = weight / max(len(batches) * loop.task.weight(batches[0]), 1)
    for p in loop.model.parameters():
        if p.grad is not None:
            p.grad.mul_(scale)
    return loss, weight


@method("backward")
def only_last_micro_batch_kept(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    weight = sum(loop.task.weight(batch) for batch in batches)
    total = 0.0
    for batch in batches:
        loop.model.zero_grad()
        loss = loop._loss(loop.wrapped, batch)
        (loss / weight).backward()
        total += float(loss.detach())
    return total / weight, weight


@method("backward")
def first_micro_batch_lost(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    loss, weight = good(loop, batches)
    if len(batches) > 1:
        loop.model.zero_grad()
        good(loop, batches[1:])
    return loss, weight


def eval_as_mean_of_rows(inner: Any, batch: Batch) -> float:
    values = [inner.eval_loss(row) for row in rows_of(batch) if bool((row["targets"] >= 0).any())]
    return sum(values) / len(values)


def eval_with_gradient(inner: Any, batch: Batch) -> float:
    loss = inner.loss(batch)
    loss.backward()
    return float(loss.detach())


def eval_with_gradients_off(inner: Any, batch: Batch) -> float:
    torch.set_grad_enabled(False)
    return inner.eval_loss(batch)


def reported(**changes: Callable[..., float]) -> Callable[[Make], Make]:
    """train_step reports something else: each function takes (inner, micro_batches, metrics)."""

    def train_step(inner: Any, micro_batches: Sequence[Batch]) -> dict[str, float]:
        with torch.no_grad():
            last = float(inner.loss(micro_batches[-1]))
        metrics = dict(inner.train_step(micro_batches))
        return metrics | {name: change(metrics, micro_batches, last) for name, change in changes.items()}

    return wrapped(train_step=train_step)


LOSS = (
    Mutant("mask_shifted_by_one", ("DM2",), loss_of(mask_shifted), native=True),
    Mutant("first_target_of_a_row_dropped", ("DM3",), loss_of(first_target_dropped), native=True),
    Mutant("mask_thrown_away_in_loss", ("DM1",), loss_of(everything_trained), native=True),
    Mutant("pads_are_targets", ("LN13",), loss_of(pads_trained), native=True),
    Mutant("batch_without_targets_is_nan", ("DM16",), gpt_loss(without_targets_is_nan), native=True),
    Mutant("mean_over_ignored_too", ("LN11",), gpt_loss(mean_over_all), native=True),
    Mutant(
        "mean_of_row_means",
        ("LN7",),
        wrapped(loss=lambda inner, batch: torch.stack([inner.loss(row) for row in rows_of(batch)]).mean()),
        native=True,
    ),
    Mutant("micro_batches_averaged_alone", ("LN1",), mean_of_means, native=True),
    Mutant("accumulation_not_divided", ("LN4",), sum_of_means, native=True),
    Mutant("scale_of_first_micro_batch", ("LN6",), first_micro_batch_sets_the_scale, native=True),
    Mutant("last_micro_batch_only", ("DI8",), only_last_micro_batch_kept, native=True),
    Mutant("loss_times_micro_batches", ("LN2",), reported(loss=lambda m, b, last: m["loss"] * len(b))),
    Mutant("reports_last_micro_batch", ("LN15",), reported(loss=lambda m, b, last: last)),
    Mutant(
        "denominator_counts_all_labels",
        ("LN10",),
        patched("kat.trainers.native.CausalTask.weight", lambda self, batch: batch["targets"].numel()),
        native=True,
    ),
    Mutant(
        "validation_without_shift",
        ("LN17",),
        wrapped(eval_loss=lambda inner, batch: inner.eval_loss(unshifted(batch))),
        native=True,
    ),
    Mutant(
        "validation_on_other_rows",
        ("EV20",),
        wrapped(eval_loss=lambda inner, batch: inner.eval_loss(rows_of(batch)[0])),
        native=True,
    ),
    Mutant("validation_is_mean_of_rows", (), wrapped(eval_loss=eval_as_mean_of_rows), native=True),
    Mutant("validation_leaves_gradients", (), wrapped(eval_loss=eval_with_gradient), native=True),
    Mutant("validation_switches_gradients_off", (), wrapped(eval_loss=eval_with_gradients_off)),
    Mutant("label_smoothing_left_on", (), gpt_loss(smoothed), native=True),
    Mutant("small_activations_get_no_gradient", (), gpt_loss(gradient_stops_at_softmax), native=True),
    Mutant("first_micro_batch_lost", (), first_micro_batch_lost, native=True),
    Mutant("last_special_id_is_no_target", ("DM4",), loss_of(pad_ids_ignored), native=True),
    Mutant(
        "loss_depends_on_global_generator",
        (),
        wrapped(loss=lambda inner, batch: inner.loss(batch) * (1 + 1e-3 * torch.rand(()))),
    ),
    Mutant("counts_all_tokens", (), reported(supervised_tokens=lambda m, b, last: sum(x["ids"].numel() for x in b))),
)


# Optimiser and schedule


def linear(bad: Callable[..., float]) -> Callable[[Make], Make]:
    """bad(good schedule, step, total, warmup, final)."""
    return patched("kat.trainers.schedules.linear", around(lambda good: lambda *args: bad(good, *args)))


def ramps_up(good: Any, step: int, total: int, warmup: int, final: float) -> float:
    return good(step, total, warmup, final) if step < warmup else final + 1 - good(step, total, warmup, final)


def step_of_schedule(number: Callable[[Any, int], int]) -> Callable[[Make], Make]:
    """The schedule of a training step is asked for another number: (loop, micro-batches) -> step."""

    @method("train_step")
    def plant(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
        wrong = number(loop, len(batches))
        with replaced(
            "kat.trainers.loop.lr_share", around(lambda share: lambda s, step, *rest: share(s, wrong, *rest))
        ):
            return good(loop, batches)

    return plant


def counted_micro_batches(loop: Any, k: int) -> int:
    loop.micro = getattr(loop, "micro", 0) + k
    return loop.micro - k


def compounding(optimisers: Sequence[Any], share: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["lr"] * share


def first_optimiser_only(optimisers: Sequence[Any], share: float) -> None:
    for group in optimisers[0].param_groups:
        group["lr"] = group["initial_lr"] * share


def optimisers(change: Callable[[list[Any]], None]) -> Callable[[Make], Make]:
    """Something is wrong with the optimizers that kat builds."""

    def make_bad(good: Any) -> Any:
        def build(*args: Any) -> list[Any]:
            built = good(*args)
            change(built)
            return built

        return build

    return patched("kat.trainers.loop.build_optimisers", around(make_bad))


class EpsBeforeCorrectionAdamW(torch.optim.AdamW):
    """Adds eps to the root of the second moment before its bias is corrected."""

    coupled, early_eps = False, True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                s["step"] += 1
                n, g = float(s["step"]), p.grad
                if self.coupled:
                    g = g + group["weight_decay"] * p
                else:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                s["exp_avg"].lerp_(g, 1 - b1)
                s["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
                correction = (1 - b2**n) ** 0.5
                root = s["exp_avg_sq"].sqrt()
                root = (root + group["eps"]) / correction if self.early_eps else root / correction + group["eps"]
                p.addcdiv_(s["exp_avg"] / (1 - b1**n), root, value=-group["lr"])


class CoupledAdamW(EpsBeforeCorrectionAdamW):
    """Decay goes through the moments, as in Adam."""

    coupled, early_eps = True, False


def other_class(kind: type) -> Callable[[list[Any]], None]:
    def change(built: list[Any]) -> None:
        built[0].__class__ = kind
        built[0]._patch_step_function()  # what the constructor would have done: hooks around its step

    return change


def drop_parameter(built: list[Any]) -> None:
    built[-1].param_groups[0]["params"].pop()


def add_twice(built: list[Any]) -> None:
    built[0].param_groups[0]["params"].append(built[-1].param_groups[0]["params"][0])


def maximise(built: list[Any]) -> None:
    for optimiser in built:
        for group in optimiser.param_groups:
            if "maximize" in group:
                group["maximize"] = True


def before_update(act: Callable[[Any], None]) -> Callable[[Make], Make]:
    """Something happens to the loop after clipping, before the update."""

    @method("_clip")
    def plant(good: Any, loop: Any, *args: Any) -> float:
        norm = good(loop, *args)
        act(loop)
        return norm

    return plant


def clip_head_only(loop: Any, *_: Any) -> float:
    return float(torch.nn.utils.clip_grad_norm_(loop.model.lm_head.parameters(), loop.settings.clip))


def clip_by_value(loop: Any, *_: Any) -> float:
    norm = torch.nn.utils.get_total_norm([p.grad for p in loop.model.parameters() if p.grad is not None])
    torch.nn.utils.clip_grad_value_(loop.model.parameters(), loop.settings.clip)
    return float(norm)


def clip_each(loop: Any, *_: Any) -> float:
    norms = [torch.nn.utils.clip_grad_norm_([p], loop.settings.clip) for p in loop.model.parameters()]
    return float(torch.stack(norms).norm())


def nan_to_num(loop: Any, *_: Any) -> float:
    weights = [p for p in loop.model.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(weights, loop.settings.clip)
    for p in weights:
        p.grad.nan_to_num_(0.0)
    return float(torch.nn.utils.get_total_norm([p.grad for p in weights]))


@method("_clip")
def outliers_skipped(good: Any, loop: Any, *args: Any) -> float:
    norm = good(loop, *args)
    if norm > 3 * loop.settings.clip:
        loop.model.zero_grad()
    return norm


@method("_clip")
def norm_after_clipping(good: Any, loop: Any, *args: Any) -> float:
    return min(good(loop, *args), loop.settings.clip)


@method("train_step")
def step_a_micro_batch(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    results = [good(loop, [batch]) for batch in batches]
    loop.step -= len(batches) - 1
    return results[-1]


@method("train_step")
def weights_rounded(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    metrics = good(loop, batches)
    with torch.no_grad():
        for p in loop.model.parameters():
            p.copy_(p.bfloat16().float())
    return metrics


@method("train_step")
def everything_shrinks(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    metrics = good(loop, batches)
    with torch.no_grad():
        for p in loop.model.parameters():
            p.mul_(0.999)
    return metrics


@method("train_step")
def clipped_for_each_micro_batch(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    def clipped(batch_loss: Any) -> Any:
        def run(self: Any, group: Sequence[Any]) -> Any:
            whole = batch_loss(self, group)
            if len(group) > 1:
                self.model.zero_grad()
                weight = sum(self.task.weight(batch) for batch in group)
                for batch in group:
                    (self._loss(self.wrapped, batch) / weight).backward()
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            return whole

        return run

    with replaced(f"{LOOP}.backward", around(clipped)):
        return good(loop, batches)


@method("train_step")
def updated_twice(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    class Twice:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def step(self) -> None:
            self.inner.step()
            self.inner.step()

    kept = loop.optimisers
    loop.optimisers = [Twice(optimiser) for optimiser in kept]
    try:
        return good(loop, batches)
    finally:
        loop.optimisers = kept


def forget_moments(loop: Any) -> None:
    for optimiser in loop.optimisers:
        optimiser.state.clear()


@method("train_step")
def moments_cleared_now_and_then(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    if loop.step % 6 == 5:  # as where they are freed to save memory, around a validation
        forget_moments(loop)
    return good(loop, batches)


def with_dropout(make: Make) -> Make:
    """kat's model has no dropout: here it has some behind the embedding."""

    def made(*args: Any, **kwargs: Any) -> Any:
        subject = make(*args, **kwargs)
        layer = subject.model.dropout = torch.nn.Dropout(0.2)
        subject.model.model.embed_tokens.register_forward_hook(lambda module, given, output: layer(output))
        return subject

    return made


def stays_in_evaluation_mode(inner: Any, micro_batches: Sequence[Batch]) -> Any:
    metrics = inner.train_step(micro_batches)
    inner.model.eval()
    inner.model.train = lambda mode=True: inner.model  # only the first step asks for it
    return metrics


def eval_in_training_mode(inner: Any, batch: Batch) -> float:
    inner.model.train()
    return inner.eval_loss(batch)


def embedding_off_the_graph(good: Any) -> Any:
    def hidden(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        weight = self.model.embed_tokens.weight
        before = weight.requires_grad
        weight.requires_grad_(False)
        try:
            return good(self, *args, **kwargs)
        finally:
            weight.requires_grad_(before)

    return hidden


OPTIMISER = (
    Mutant("schedule_ramps_up", ("OS1",), linear(ramps_up), native=True),
    Mutant("rate_compounds", ("OS2",), patched("kat.trainers.loop.set_lr", compounding), native=True),
    Mutant("schedule_in_micro_batches", ("OS4",), step_of_schedule(lambda loop, k: loop.step * k), native=True),
    Mutant("scheduler_steps_a_micro_batch", ("OS5",), step_of_schedule(counted_micro_batches), native=True),
    Mutant(
        "warmup_zero_is_ignored",
        ("OS6",),
        linear(lambda good, step, total, warmup, final: good(step, total, warmup or 3, final)),
        native=True,
    ),
    Mutant("eps_before_bias_correction", ("OS8",), optimisers(other_class(EpsBeforeCorrectionAdamW)), native=True),
    Mutant("clips_the_head_only", ("OS11",), patched(f"{LOOP}._clip", clip_head_only), native=True),
    Mutant("update_a_micro_batch", ("OS13",), step_a_micro_batch, native=True),
    Mutant("broken_gradients_become_numbers", ("OS15",), patched(f"{LOOP}._clip", nan_to_num), native=True),
    Mutant("parameter_in_no_group", ("RM6",), optimisers(drop_parameter), native=True),
    Mutant("embedding_gets_no_gradient", ("MF10",), patched(f"{GPT}.hidden", around(embedding_off_the_graph)), True),
    Mutant("decay_goes_through_moments", (), optimisers(other_class(CoupledAdamW)), native=True),
    Mutant("parameter_in_two_groups", (), optimisers(add_twice), native=True),
    Mutant("gradient_ascent", (), optimisers(maximise), native=True),
    Mutant("moments_forgotten_each_step", (), before_update(forget_moments), native=True),
    Mutant("moments_cleared_every_six_steps", (), moments_cleared_now_and_then, native=True),
    Mutant(
        "dropout_in_the_first_step_only",
        (),
        both(with_dropout, wrapped(train_step=stays_in_evaluation_mode)),
        native=True,
    ),
    Mutant("validation_applies_dropout", (), both(with_dropout, wrapped(eval_loss=eval_in_training_mode)), native=True),
    Mutant(
        "gradients_never_zeroed",
        (),
        patched("torch.optim.optimizer.Optimizer.zero_grad", lambda self, set_to_none=True: None),
        native=True,
    ),
    Mutant("clips_by_value", (), patched(f"{LOOP}._clip", clip_by_value), native=True),
    Mutant("clips_each_parameter", (), patched(f"{LOOP}._clip", clip_each), native=True),
    Mutant("clips_each_micro_batch", (), clipped_for_each_micro_batch, native=True),
    Mutant("large_gradients_are_skipped", (), outliers_skipped, native=True),
    Mutant("reports_norm_after_clipping", (), norm_after_clipping, native=True),
    Mutant("schedule_is_one_step_ahead", (), step_of_schedule(lambda loop, k: loop.step + 1), native=True),
    Mutant("one_optimizer_keeps_its_rate", (), patched("kat.trainers.loop.set_lr", first_optimiser_only), native=True),
    Mutant("updates_twice", (), updated_twice, native=True),
    Mutant("weights_rounded_each_step", (), weights_rounded, native=True),
    Mutant("frozen_weights_decay", (), everything_shrinks, native=True),
    Mutant(
        "warmup_half_as_long",
        (),
        linear(lambda good, step, total, warmup, final: good(step, total, warmup // 2, final)),
        native=True,
    ),
    Mutant(
        "decay_twice_as_long",
        (),
        linear(lambda good, step, total, warmup, final: good(step, 2 * total, warmup, final)),
        native=True,
    ),
    Mutant(
        "steps_without_targets_spoil_weights",
        ("DM16",),
        wrapped(train_step=lambda inner, batches: nan_where_empty(inner, batches)),
        native=True,
    ),
)


def nan_where_empty(inner: Any, batches: Sequence[Batch]) -> Any:
    if any(bool((batch["targets"] >= 0).any()) for batch in batches):
        return inner.train_step(batches)
    with torch.no_grad():
        next(iter(parameters(inner).values())).fill_(float("nan"))
    return {"loss": float("nan")}


# Save and load


def after_load(change: Callable[[Any], None]) -> Callable[[Make], Make]:
    def load(inner: Any, path: Any) -> None:
        inner.load(path)
        change(inner)

    return wrapped(load=load)


def after_save(change: Callable[[Any], None]) -> Callable[[Make], Make]:
    def save(inner: Any, path: Any) -> None:
        inner.save(path)
        change(inner)

    return wrapped(save=save)


def keeping(names: str) -> Callable[[Make], Make]:
    """load leaves parameters whose name has this in it as they were."""

    def load(inner: Any, path: Any) -> None:
        before = snapshot(inner)
        inner.load(path)
        with torch.no_grad():
            for name, weight in parameters(inner).items():
                if names in name and before[name].shape == weight.shape:
                    weight.copy_(before[name])

    return wrapped(load=load)


@torch.no_grad()
def to_bfloat16(inner: Any) -> None:
    for weight in parameters(inner).values():
        weight.copy_(weight.bfloat16())


def anything_goes(inner: Any, path: Any) -> None:
    try:
        inner.load(path)
    except Exception:  # noqa: BLE001 (the mistake)
        return


def sharing() -> Callable[[Make], Make]:
    """Weights are read once a path and handed out as they are."""
    read: dict[str, dict[str, Tensor]] = {}

    def load(inner: Any, path: Any) -> None:
        inner.load(path)
        kept = read.setdefault(str(path), {name: weight.data for name, weight in parameters(inner).items()})
        for name, weight in parameters(inner).items():
            weight.data = kept[name]

    return wrapped(load=load)


def constant_forgotten(name: str, value: float) -> Callable[[Make], Make]:
    """A constant of the model is not in the checkpoint, and nothing compares logits when one is loaded."""
    return both(
        patched(
            "kat.model.checkpoint.build_model",
            around(lambda good: lambda config, *rest: good(dataclasses.replace(config, **{name: value}), *rest)),
        ),
        patched("kat.model.checkpoint._check_probe", lambda folder, model: None),
    )


@method("restore")
def step_counts_twice(good: Any, loop: Any, state: Any) -> None:
    good(loop, state)
    loop.step *= 2


@method("restore")
def schedule_starts_again(good: Any, loop: Any, state: Any) -> None:
    good(loop, state)
    loop.step = 0


def init_but(bad: Callable[..., None]) -> Callable[[Make], Make]:
    """bad(good init, model, generator)."""
    return patched(f"{GPT}.init_weights", around(lambda good: lambda self, generator: bad(good, self, generator)))


@torch.no_grad()
def init_without_head(good: Any, model: Any, generator: Any) -> None:
    before = model.lm_head.weight.detach().clone()
    good(model, generator)
    model.lm_head.weight.copy_(before)


@torch.no_grad()
def init_from_global(good: Any, model: Any, generator: Any) -> None:
    good(model, generator)
    model.model.embed_tokens.weight.normal_()


RESUME = (
    Mutant("rope_base_not_saved", ("CR1", "MF15"), constant_forgotten("rope_base", 10_000.0), native=True),
    Mutant("norm_eps_not_saved", (), constant_forgotten("norm_eps", 1.1920929e-7), native=True),
    Mutant("head_missing_from_init", ("CR2",), init_but(init_without_head), native=True),
    Mutant("init_ignores_seed", ("CR11",), init_but(lambda good, m, g: good(m, g.manual_seed(42))), native=True),
    Mutant("init_draws_from_global_generator", (), init_but(init_from_global), native=True),
    Mutant("last_block_not_restored", ("CR4",), keeping("layers.1."), native=True),
    Mutant("weights_not_restored", ("VQ3",), keeping("")),
    Mutant(
        "moments_not_restored",
        ("CR5",),
        patched("kat.trainers.loop.load_state_tensors", lambda optimisers, tensors: None),
        native=True,
    ),
    Mutant("resumed_step_counts_micro_batches", ("CR9",), step_counts_twice, native=True),
    Mutant("schedule_starts_again_on_resume", (), schedule_starts_again, native=True),
    Mutant("loaded_weights_are_bfloat16", (), after_load(to_bfloat16)),
    Mutant("save_rounds_the_live_weights", (), after_save(to_bfloat16)),
    Mutant("save_forgets_moments", (), after_save(lambda inner: forget_moments(inner.loop)), native=True),
    Mutant("load_swallows_errors", ("VQ6",), wrapped(load=anything_goes)),
    Mutant("loads_share_memory", (), lambda make: sharing()(make)),
)


# Two processes


@method("__init__")
def not_wrapped(good: Any, loop: Any, *args: Any, **kwargs: Any) -> None:
    good(loop, *args, **kwargs)
    loop.wrapped = loop.model


@method("backward")
def averaged_over_ranks_again(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    result = good(loop, batches)
    for p in loop.model.parameters():
        if p.grad is not None:
            p.grad.div_(loop.world.size)
    return result


@method("train_step")
def rank_rounds_its_weights(good: Any, loop: Any, batches: Sequence[Any]) -> Any:
    """What one rank alone does to its weights (a guard, an average) makes the ranks drift apart."""
    metrics = good(loop, batches)
    if loop.world.rank == 1:
        with torch.no_grad():
            loop.model.lm_head.weight.mul_(1 + 1e-6)
    return metrics


DISTRIBUTED = (
    Mutant("gradients_not_averaged", ("DI1",), not_wrapped, native=True),
    Mutant("averaged_twice", ("DI3",), averaged_over_ranks_again, native=True),
    Mutant("token_counts_of_own_rank", ("DI4",), patched("kat.runtime.World.sum", lambda self, value: value), True),
    Mutant("loss_of_own_rank", (), patched("kat.runtime.World.sum_float", lambda self, value: value), native=True),
    Mutant("one_rank_drifts", (), rank_rounds_its_weights, native=True),
    Mutant(
        "shards_depend_on_process_state",
        ("DI5",),
        wrapped(
            batches=lambda inner, seed, rank=0, world=1, state=None: inner.batches(
                torch.initial_seed() % 1000, rank=rank, world=world, state=state
            )
        ),
    ),
)

MUTANTS: tuple[Mutant, ...] = (*LOSS, *OPTIMISER, *RESUME, *DISTRIBUTED)
