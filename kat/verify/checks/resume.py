"""Saving, loading and going on."""

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kat.verify.check import Failed, Vacuous, check
from kat.verify.lab import Lab, Named, largest_difference, parameters, randomise, snapshot, zero_grad
from kat.verify.subject import Batch, Row

OTHER_SEED = 1_000_003


@check(
    family="resume",
    level=3,
    needs={"save", "load", "forward", "named_parameters"},
    kind="metamorphic",
    tol=0.0,
    catches=("VQ3", "CR4", "CR1"),
)
def load_restores_model(lab: Lab) -> None:
    """What is loaded into a subject that was made with another seed has the parameters, state and logits of what was
    saved, bit for bit, also after training."""
    for trained in (0, 2):
        subject = lab.randomised()
        if trained and lab.has("train_step", "collate"):
            for _ in range(trained):
                subject.train_step([subject.collate(lab.rows()[:3])])
        ids = lab.ids(2, min(lab.traits.max_len, 40))
        with torch.no_grad():
            logits = lab.forward(subject, ids)
        with torch.no_grad():
            if torch.equal(lab.forward(_stranger(lab), ids), logits):
                raise Vacuous("a subject of another seed has the same logits before loading")
        with _saved(subject) as path:
            other = _loaded(lab, path)
        case = f"saved after {trained} training step(s)"
        _same_parameters(lab, other, snapshot(subject), "after load", case)
        with torch.no_grad():
            lab.close(
                lab.forward(other, ids),
                logits,
                "logits after load are not those before save",
                case=case,
                resembles="VQ3",
            )
        if lab.has("state_dict"):
            before, after = subject.state_dict(), other.state_dict()
            lab.equal(sorted(after), sorted(before), "names in the state dict after load", case=case)
            for name, value in before.items():
                if isinstance(value, torch.Tensor) and not torch.equal(after[name], value):
                    raise Failed(f"{name} in the state dict is another after load", case=case, resembles="CR4")


# An operation of the machine below: what happens between two training steps, or one of them.
TRAIN = ("step", "step of 3 micro-batches")
PLANS: tuple[tuple[str, ...], ...] = (
    ("resume", "step"),
    ("step", "save", "step"),
    ("step", "save", "step", "load back", "step"),
    ("step of 3 micro-batches", "resume into a trained subject", "evaluate", "step", "resume", "generate", "step"),
)
OPERATIONS = (*TRAIN, *TRAIN, "save", "resume", "resume into a trained subject", "evaluate", "generate", "load back")


@check(
    family="resume",
    level=3,
    needs={"train_step", "save", "load", "collate", "named_parameters"},
    kind="metamorphic",
    tol=1e-6,
    catches=("CR5", "CR9", "OS2", "CR4", "MF8"),
)
def resume_is_exact(lab: Lab) -> None:
    """Training that is saved, loaded elsewhere, gone back over, evaluated and generated from in between has the metrics
    and leaves the parameters of training that never stopped."""
    rows = lab.rows()
    shadow = _Shadow(lab, rows)
    chance = random.Random(f"resume {lab.seed}")
    drawn = (*chance.choices(OPERATIONS, k=4), "step")
    for plan in (*PLANS, drawn):
        failure = _fault(lab, shadow, plan)
        if failure is None:
            continue
        shorter = True
        while shorter:  # leave out what the fault does not need
            shorter = False
            for i in range(len(plan)):
                less = plan[:i] + plan[i + 1 :]
                if found := _fault(lab, shadow, less):
                    plan, failure, shorter = less, found, True
                    break
        what, measured = failure
        raise Failed(
            what, measured=measured, tolerance=lab.tol, case=f"plan: {', '.join(plan)}", resembles=_kind(plan, what)
        )


@dataclass
class _History:
    """What a training without a stop gives: metrics of each step, parameters at the end."""

    metrics: list[Mapping[str, float]]
    parameters: Named


class _Shadow:
    """Training that never stops: for any sequence of steps, what it gives."""

    def __init__(self, lab: Lab, rows: Sequence[Row]) -> None:
        self.lab, self.rows = lab, rows
        self.known: dict[tuple[int, ...], _History] = {}

    def batches(self, subject: Any, step: int, kind: int) -> list[Batch]:
        """The micro-batches of step number `step`; kind 0: one, 1: three, of very different sizes."""
        chosen = [self.rows[(step + i) % len(self.rows)] for i in range(4)]
        cut = [0, 1, 2, 4] if kind else [0, 4]
        return [subject.collate(chosen[a:b]) for a, b in itertools.pairwise(cut)]

    def start(self) -> Any:
        torch.manual_seed(self.lab.seed)
        return self.lab.randomised()

    def disturb(self, subject: Any) -> None:
        """Fill moments, counters and caches of a subject with something else."""
        subject.train_step(self.batches(subject, 3, 0))
        _generate(self.lab, subject, self.rows)

    def after(self, history: tuple[int, ...]) -> _History:
        if history not in self.known:
            subject = self.start()
            metrics = []
            for step, kind in enumerate(history):
                metrics.append(dict(subject.train_step(self.batches(subject, step, kind))))
                self.known[history[: step + 1]] = _History(list(metrics), snapshot(subject))
            if not history:
                self.known[()] = _History([], snapshot(subject))
        return self.known[history]


def _fault(lab: Lab, shadow: _Shadow, plan: Sequence[str]) -> tuple[str, float] | None:
    """Carry out a plan; (what differs from training that never stops, by how much)."""
    subject = shadow.start()
    history: tuple[int, ...] = ()
    kept: tuple[Path | None, tuple[int, ...]] = (None, ())
    with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
        for i, operation in enumerate(plan):
            path = Path(folder) / str(i)
            match operation:
                case "step" | "step of 3 micro-batches":
                    kind = int(operation != "step")
                    step = len(history)
                    batches = shadow.batches(subject, step, kind)
                    history = (*history, kind)
                    metrics = subject.train_step(batches)
                    with _generators_aside():
                        reference = shadow.after(history)
                    for name, expected in reference.metrics[-1].items():
                        if name in metrics and _comparable(name, expected):
                            value = float(metrics[name])
                            off = abs(value - expected) / max(abs(expected), 1e-6)
                            if not off <= 10 * lab.tol:
                                return f"step {step} reports {name} {value:.8g}, not {expected:.8g}", off
                case "save":
                    subject.save(path)
                    kept = (path, history)
                case "load back":
                    if kept[0] is None:
                        continue
                    subject.load(kept[0])
                    history = kept[1]
                case "resume" | "resume into a trained subject":
                    subject.save(path)
                    subject = _loaded(lab, path, shadow.disturb if operation != "resume" else None)
                case "evaluate":
                    with _generators_aside():
                        _evaluate(lab, subject, shadow.batches(subject, 5, 0)[0])
                case "generate":
                    with _generators_aside():
                        _generate(lab, subject, shadow.rows)
        worst, name = largest_difference(parameters(subject), shadow.after(history).parameters)
    if not worst <= lab.tol:
        return f"{name} differs from training without a stop", worst
    return None


def _comparable(name: str, value: object) -> bool:
    """Whether a metric is a number that is the same in two runs: no time, no memory."""
    return isinstance(value, int | float) and not any(
        word in name.lower() for word in ("time", "second", "memory", "per_s", "mfu", "flops", "runtime")
    )


def _kind(plan: Sequence[str], what: str) -> str:
    if "resume into a trained subject" in plan or "load back" in plan or not any("resume" in op for op in plan):
        return "CR4"
    return "OS2" if " lr " in what else "CR5"


@check(
    family="resume",
    level=3,
    needs={"save", "load", "forward", "named_parameters"},
    kind="metamorphic",
    tol=0.0,
    catches=("CR1", "MF15"),
)
def configuration_survives_save(lab: Lab) -> None:
    """A model whose configuration is off its defaults has the same logits after save and load, in a subject made with
    the same configuration and in one made with the defaults, unless that one refuses it."""
    variants = [dict(variant) for variant in getattr(lab.subject, "variants", None) or ()]
    lab.require(variants, "the adapter names no variants of its configuration")
    ids = lab.ids(2, min(lab.traits.max_len, 30))
    default = lab.randomised()
    with torch.no_grad():
        usual = lab.forward(default, ids)
    changed = 0
    for variant in variants:
        subject = lab.randomised(**variant)
        length = min(ids.shape[1], getattr(subject.traits, "max_len", None) or 8)
        probe = ids[:, :length]
        with torch.no_grad():
            logits = lab.forward(subject, probe)
        changed += not torch.equal(logits, usual[:, :length])
        with _saved(subject) as path:
            for name, overrides in (("the same configuration", variant), ("defaults", {})):
                case = f"saved with {variant}, loaded into a subject made with {name}"
                try:
                    other = _loaded(lab, path, **overrides)
                except Exception as error:  # noqa: BLE001 (refusing what was made otherwise is right)
                    if overrides:
                        raise Failed(f"load refuses what save wrote: {error}", case=case, resembles="CR1") from None
                    continue
                with torch.no_grad():
                    lab.close(
                        lab.forward(other, probe),
                        logits,
                        "logits after load are not those before save",
                        case=case,
                        resembles="CR1",
                    )
    if not changed:
        raise Vacuous("no variant changes the logits")


@check(
    family="resume",
    level=1,
    needs={"init_weights", "named_parameters"},
    kind="metamorphic",
    tol=0.0,
    catches=("CR2", "CR11"),
)
def init_depends_on_seed_alone(lab: Lab) -> None:
    """init_weights gives every parameter a finite value that depends on the seed and on nothing else, such as what was
    in memory."""
    seeds = (lab.seed, lab.seed, lab.seed + 1, lab.seed)
    found: list[Named] = []
    for i, seed in enumerate(seeds):
        subject = lab.fresh(lab.seed + 7 * i)
        torch.manual_seed(i)
        with torch.no_grad():
            for weight in parameters(subject).values():
                weight.fill_((float("nan"), 3.5, float("nan"), float("inf"))[i])
        subject.init_weights(seed)
        for name, weight in parameters(subject).items():
            if not torch.isfinite(weight).all():
                raise Failed(f"init_weights leaves {name} as it was in memory", case=f"seed {seed}", resembles="CR2")
        found.append(snapshot(subject))
    for other in (found[1], found[3]):
        worst, name = largest_difference(other, found[0])
        lab.at_most(worst, f"two inits with one seed differ in {name}", case=f"seed {seeds[0]}", resembles="CR2")
    if largest_difference(found[2], found[0])[0] == 0:
        raise Failed("inits with two seeds are equal", case=f"seeds {seeds[0]} and {seeds[2]}", resembles="CR11")


@check(
    family="resume",
    level=3,
    needs={"save", "load", "named_parameters"},
    kind="metamorphic",
    tol=0.0,
    catches=("VQ6", "CR1"),
)
def damaged_checkpoint_is_refused(lab: Lab) -> None:
    """Where a large file of what was saved is cut short or missing, load raises; it never goes on with other weights or
    another next step."""
    subject = lab.randomised()
    rows = lab.rows()[:3]
    trains = lab.has("train_step", "collate")
    if trains:
        subject.train_step([subject.collate(rows)])
    weights = snapshot(subject)
    with _saved(subject) as path:
        files = sorted((f for f in path.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_size)
        if not files:
            raise Failed("save wrote no file", case=str(path.name), resembles="VQ3")
        _loaded(lab, path)  # undamaged, it is not refused
        whole = sum(file.stat().st_size for file in files)
        chosen = [file for file in files[:3] if file.stat().st_size >= 0.02 * whole]
        after = None
        if trains:
            subject.train_step([subject.collate(rows)])
            after = snapshot(subject)
        for file in chosen:
            good = file.read_bytes()
            for how, content in (("cut to half its length", good[: len(good) // 2]), ("missing", None)):
                if content is None:
                    file.unlink()
                else:
                    file.write_bytes(content)
                case = f"{file.relative_to(path)} ({len(good):,} bytes) {how}"
                try:
                    other = _loaded(lab, path)
                except Exception:  # noqa: BLE001 (any refusal will do)
                    continue
                finally:
                    file.write_bytes(good)
                worst, where = largest_difference(parameters(other), weights)
                lab.at_most(worst, f"load accepts a damaged checkpoint, and {where} is another", case=case)
                if after is not None:
                    other.train_step([other.collate(rows)])
                    worst, where = largest_difference(parameters(other), after)
                    lab.at_most(
                        worst,
                        f"load accepts a damaged checkpoint, and the next step moves {where} otherwise",
                        case=case,
                        tol=1e-6,
                    )


@check(
    family="resume",
    level=3,
    needs={"save", "load", "named_parameters"},
    kind="metamorphic",
    tol=0.0,
    catches=("RL1", "RL10"),
)
def loaded_subjects_share_nothing(lab: Lab) -> None:
    """What happens to one subject after load reaches neither another that loaded the same files, nor the files, nor the
    subject that saved them."""
    subject = lab.randomised()
    weights = snapshot(subject)
    with _saved(subject) as path:
        first, second = _loaded(lab, path), _loaded(lab, path)
        with torch.no_grad():
            for weight in parameters(first).values():
                weight.fill_(0.5)
        if lab.has("train_step", "collate"):
            zero_grad(first)
            first.train_step([first.collate(lab.rows()[:2])])
        third = _loaded(lab, path)
    for other, what in ((second, "another subject"), (subject, "the subject that saved"), (third, "the files")):
        worst, name = largest_difference(parameters(other), weights)
        lab.at_most(
            worst, f"a change of {name} in one subject after load reaches {what}", case="two loads", resembles="RL1"
        )


# What the checks share


def _stranger(lab: Lab, same_seed: bool = False, **overrides: Any) -> Any:
    """A subject that has no weight in common with lab.randomised()."""
    if not same_seed:
        return lab.fresh(lab.seed + OTHER_SEED, **overrides)
    subject = lab.fresh(**overrides)
    randomise(subject, lab.seed + OTHER_SEED)
    return subject


def _loaded(lab: Lab, path: Path, before: Callable[[Any], None] | None = None, **overrides: Any) -> Any:
    """What was saved, loaded as if in a new process: into a stranger, on which `before` is called first, with the
    global generators in another state. A subject may refuse to go on from a run with another seed; the stranger then
    has the same seed and other weights."""
    for same_seed in (False, True):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(lab.seed + 77)
        subject = _stranger(lab, same_seed, **overrides)
        if before is not None:
            before(subject)
        try:
            subject.load(path)
        except Exception:
            if same_seed:
                raise
            continue
        return subject
    raise AssertionError


@contextmanager
def _saved(subject: Any) -> Iterator[Path]:
    """What the subject saves, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
        path = Path(folder) / "saved"
        subject.save(path)
        yield path


def _same_parameters(lab: Lab, subject: Any, expected: Named, what: str, case: str) -> None:
    found = parameters(subject)
    lab.equal(sorted(found), sorted(expected), f"names of the parameters {what}", case=case, resembles="CR4")
    worst, name = largest_difference(found, expected)
    lab.at_most(worst, f"{name} is another {what}", case=case, resembles="CR4")


@contextmanager
def _generators_aside() -> Iterator[None]:
    """The global generators go on afterwards where they were; a subject's training may draw from them."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def _evaluate(lab: Lab, subject: Any, batch: Batch) -> None:
    if lab.has("eval_loss"):
        lab.eval_loss(subject, batch)
    elif lab.has("forward"):
        with torch.no_grad():
            lab.forward(subject, lab.ids(2, 5))


def _generate(lab: Lab, subject: Any, rows: Sequence[Row]) -> None:
    if lab.has("generate"):
        lab.generate(subject, [rows[0][0][:4]], n=2, max_new_tokens=3, temperature=1.0, seed=3)
    elif lab.has("forward_cached"):
        with torch.no_grad():
            lab.forward_cached(subject, lab.ids(2, 5))
