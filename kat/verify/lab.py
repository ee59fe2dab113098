"""What a check works with: fresh subjects, random weights and rows, oracles, and comparisons that say what differs.

Weights are randomised before anything is compared. A fresh nanochat-style model adds nothing to its residual stream
(projections start at zero), and on it every test of attention passes (bug_catalogue VQ7).
"""

import copy
import functools
import inspect
import random
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kat.verify.check import Check, Failed, NotApplicable, Vacuous
from kat.verify.subject import Batch, Completion, Make, Row, Traits, capabilities

Named = dict[str, Tensor]
ALPHA = 1e-4  # of a statistical check; it fails when two independent samples both fall below
EFFECT = 1e-3  # the least change of a logit that counts as an effect
LARGE = 5_000_000  # weights; of a larger model fewer cases of a kind are tried


class AdapterError(Exception):
    """The subject broke the contract: a wrong shape or type."""


class Lab:
    """One check's bench. `subject` is fresh, `traits` are its declared design, `tol` is the check's tolerance."""

    def __init__(self, check: Check, make: Make, seed: int = 0, spec: str | None = None) -> None:
        self.check, self._make, self.seed, self.spec = check, make, seed, spec
        self.tol = check.tol if check.tol is not None else 0.0
        self.rng = random.Random(f"{check.id} {seed}")
        self.subject = self.fresh()
        self.traits = traits_of(self.subject)

    @classmethod
    def of(cls, check: Check, subject: Any, seed: int = 0) -> "Lab":
        """A lab for a function that makes subjects, or for a subject, which is then copied and left as it is."""
        if callable(subject) and not capabilities(subject):
            return cls(check, subject, seed)
        return cls(check, lambda seed=0, tiny=True, **overrides: copy.deepcopy(subject), seed)

    # Subjects

    def fresh(self, seed: int | None = None, **overrides: Any) -> Any:
        """A new subject; the same seed gives the same one. Its dropout layers are off, so that what is
        compared is exact; only a resumed run is looked at with them, for the state of the generators."""
        subject = self._make(seed=self.seed if seed is None else seed, tiny=True, **overrides)
        if self.check.family != "resume":
            silence_dropout(subject)
        return subject

    @functools.cached_property
    def large(self) -> bool:
        """Whether the model is so large that fewer cases of a kind are tried, none of them left out as a kind."""
        return self.has("named_parameters") and sum(w.numel() for w in parameters(self.subject).values()) > LARGE

    @property
    def make(self) -> Make:
        """The function behind `fresh`, for another process."""
        return self._make

    def randomised(self, seed: int | None = None, **overrides: Any) -> Any:
        """A new subject whose every weight is drawn anew; equal calls give equal weights."""
        subject = self.fresh(seed, **overrides)
        randomise(subject, self.seed)
        return subject

    def has(self, *names: str) -> bool:
        """Whether the subject offers all these methods."""
        return set(names) <= capabilities(self.subject)

    def require(self, condition: object, reason: str) -> None:
        """Skip the check, with the reason, where the declared design has no such property."""
        if not condition:
            raise NotApplicable(reason)

    # Inputs

    def ordinary_ids(self) -> list[int]:
        """Ids of the vocabulary without special meaning."""
        t = self.traits
        special = {*t.eos_ids, *t.special_ids, t.pad_id, t.bos_id}
        return [i for i in range(min(t.vocab, 50_000)) if i not in special]

    def ids(self, rows: int, length: int) -> Tensor:
        """(rows, length) random ordinary ids."""
        ordinary = self.ordinary_ids()
        return torch.tensor([[self.rng.choice(ordinary) for _ in range(length)] for _ in range(rows)])

    def prompts(self, *lengths: int) -> list[list[int]]:
        """Random prompts of these lengths."""
        return [self.ids(1, length)[0].tolist() for length in lengths]

    def row(self, length: int, supervised: int, *, tail: int = 0, pad_inside: bool = False) -> Row:
        """A random row with `supervised` targets in two runs, `tail` unsupervised tokens at its end and, if asked and
        there is one, the pad id as content among the supervised tokens and among the others. Where the design is to
        learn every token, all but the first are targets."""
        ids = self.ids(1, length)[0].tolist()
        end = length - tail
        first = supervised // 3
        mask = [0] * length
        for t in [*range(end - (supervised - first), end), *range(2, 2 + first)]:
            mask[t] = 1
        if self.traits.supervised == "all":
            mask = [0] + [1] * (length - 1)
        if pad_inside and self.traits.pad_id is not None:
            ids[end - 1] = self.traits.pad_id
            ids[1] = self.traits.pad_id
        return ids, mask

    def rows(self, *, pad_inside: bool = True) -> list[Row]:
        """Eight ragged rows whose numbers of targets are far apart, so that a mean of means is no mean."""
        room = min(self.traits.max_len, 24)
        plan = [
            (room, room - 6, 0),
            (7, 2, 2),
            (9, 1, 0),
            (room - 3, 12, 3),
            (6, 1, 1),
            (12, 8, 0),
            (8, 3, 4),
            (10, 6, 1),
        ]
        return [self.row(length, n, tail=tail, pad_inside=pad_inside and n > 1) for length, n, tail in plan]

    # Calls whose results are checked against the contract

    def forward(self, subject: Any, ids: Tensor, **kwargs: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        logits = _logits(subject.forward(ids, **kwargs), ids, self.traits.vocab, "forward")
        if not kwargs and not torch.isfinite(logits).all():  # under a mask, what stands at padding may be anything
            raise Failed(
                "forward gives NaN or infinite logits", measured=float("nan"), case=f"ids of shape {tuple(ids.shape)}"
            )
        return logits

    def forward_cached(self, subject: Any, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, T, V) of these ids after what the state holds, and the new state."""
        result = subject.forward_cached(ids, state)
        if not isinstance(result, tuple) or len(result) != 2:
            raise AdapterError("forward_cached returns (logits, state)")
        return _logits(result[0], ids, self.traits.vocab, "forward_cached"), result[1]

    def generate(self, subject: Any, prompts: Sequence[Sequence[int]], **kwargs: Any) -> list[list[Completion]]:
        """n completions of each prompt."""
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # as it was, whatever generate leaves
            result = subject.generate([list(prompt) for prompt in prompts], **kwargs)
        n = kwargs.get("n", 1)
        shape = [len(group) for group in result]
        if shape != [n] * len(prompts):
            raise Failed(
                f"generate gave {shape} completions for {len(prompts)} prompts with n={n}",
                case=f"prompts of lengths {[len(p) for p in prompts]}, {kwargs}",
                resembles="EV22",
            )
        return result

    def loss(self, subject: Any, batch: Batch) -> Tensor:
        """The scalar loss, on the graph."""
        loss = subject.loss(batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise AdapterError(f"loss returns {_shape(loss)}, not one number")
        return loss.reshape(())

    def eval_loss(self, subject: Any, batch: Batch) -> float:
        """The validation loss. One that leaves gradients switched off fails its own check; others go on with them."""
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            return float(subject.eval_loss(batch))

    def gradient(self, subject: Any, batches: Sequence[Batch]) -> Named:
        """The gradient that `accumulate` (or else backward from `loss`) leaves for these micro-batches, by name."""
        zero_grad(subject)
        if "accumulate" in capabilities(subject):
            subject.accumulate(list(batches))
        elif len(batches) == 1:
            self.loss(subject, batches[0]).backward()
        else:
            raise NotApplicable("several micro-batches need accumulate")
        return gradients(subject)

    # Oracles

    def oracle_loss(self, subject: Any, rows: Sequence[Row]) -> Tensor:
        """What the loss of these rows is by definition, on the graph: each row alone through `forward`, -log p of each
        supervised token given the ids before it, summed as `traits.loss_agg` declares."""
        sums, counts = [], []
        for ids, mask in rows:
            targets = [t for t in range(1, len(ids)) if mask[t]]
            logprobs = F.log_softmax(self.forward(subject, torch.tensor([ids]))[0].float(), dim=-1)  # (T, V)
            sums.append(sum((-logprobs[t - 1, ids[t]] for t in targets), logprobs.new_zeros(())))
            counts.append(len(targets))
        match self.traits.loss_agg:
            case "token-mean":
                return torch.stack(sums).sum() / sum(counts)
            case "token-sum":
                return torch.stack(sums).sum()
            case _:
                return torch.stack([total / max(n, 1) for total, n in zip(sums, counts, strict=True)]).mean()

    # Verdicts

    def close(
        self,
        actual: Tensor,
        expected: Tensor,
        what: str,
        *,
        case: str = "",
        tol: float | None = None,
        resembles: str | None = None,
    ) -> None:
        """Fail where the largest absolute difference exceeds the tolerance, or is no number."""
        if actual.shape != expected.shape:
            raise AdapterError(f"{what}: shape {tuple(actual.shape)} where {tuple(expected.shape)} is expected")
        worst = float((actual.detach().double() - expected.detach().double()).abs().max()) if actual.numel() else 0.0
        self.at_most(worst, what, case=case, tol=tol, resembles=resembles)

    def at_most(
        self, measured: float, what: str, *, case: str = "", tol: float | None = None, resembles: str | None = None
    ) -> None:
        """Fail where a difference exceeds the tolerance, or is no number."""
        tol = self.tol if tol is None else tol
        if not measured <= tol:
            raise Failed(what, measured=measured, tolerance=tol, case=case, resembles=resembles)

    def equal(
        self, actual: object, expected: object, what: str, *, case: str = "", resembles: str | None = None
    ) -> None:
        """Fail where two plain values differ."""
        if actual != expected:
            raise Failed(f"{what}: {_short(actual)}, expected {_short(expected)}", case=case, resembles=resembles)

    def require_context(self, subject: Any) -> None:
        """Vacuous unless an earlier token moves later logits, without which no test of attention can fail."""
        length = min(12, self.traits.max_len)
        ids = self.ids(2, length)
        other = ids.clone()
        ordinary = self.ordinary_ids()
        other[:, 1] = torch.tensor(
            [self.rng.choice([i for i in ordinary[:200] if i != old]) for old in ids[:, 1].tolist()]
        )
        with torch.no_grad():
            change = (self.forward(subject, ids) - self.forward(subject, other))[:, 3:].abs().max()
        if float(change) <= EFFECT:
            raise Vacuous(f"changing a token moves later logits by {float(change):.1g}, not by {EFFECT:g}: no context")

    def statistical(self, p_value: Callable[[int], float], what: str, *, n: int, resembles: str | None = None) -> None:
        """Fail where p < 1e-4 twice, on two independent samples. p_value takes the sample's seed."""
        first = p_value(self.seed)
        if first >= ALPHA:
            return
        second = p_value(self.seed + 10_007)
        if second < ALPHA:
            raise Failed(
                f"{what} (n = {n}, twice below {ALPHA:g})",
                measured=max(first, second),
                tolerance=ALPHA,
                case=f"p = {first:.2g} and {second:.2g}",
                resembles=resembles,
            )

    def forall(self, strategy: Any, test: Callable[[Any], None], examples: int = 40) -> None:
        """Run `test` on drawn values; what is reported is the smallest that Hypothesis finds to fail."""
        import hypothesis
        from hypothesis.configuration import set_hypothesis_home_dir

        set_hypothesis_home_dir(
            Path(tempfile.gettempdir()) / "kat-hypothesis"
        )  # it would leave a folder where we stand

        @hypothesis.seed(self.seed)
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )
        @hypothesis.given(strategy)
        def run(value: Any) -> None:
            test(value)

        run()


# Functions on subjects, used by checks and adapters alike


def traits_of(subject: Any) -> Traits:
    """The declared traits; a vocabulary that is not declared is read off the logits."""
    traits = Traits.of(getattr(subject, "traits", None) or {})
    if traits.vocab == 0 and callable(getattr(subject, "forward", None)):
        with torch.no_grad():
            logits = subject.forward(torch.zeros(1, 2, dtype=torch.long))
        traits = Traits(**{**vars(traits), "vocab": int(logits.shape[-1])})
    return traits


def silence_dropout(subject: Any) -> None:
    """Set the rate of every dropout layer in the modules that a subject holds, itself or one step away, to 0."""
    held = [value for value in getattr(subject, "__dict__", {}).values() if hasattr(value, "__dict__")]
    modules = [value for value in held if isinstance(value, torch.nn.Module)]
    modules += [inner for value in held for inner in vars(value).values() if isinstance(inner, torch.nn.Module)]
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
                layer.p = 0.0


def parameters(subject: Any) -> Named:
    """Live parameters by name, each tensor once."""
    named: Named = {}
    seen: set[int] = set()
    for name, tensor in subject.named_parameters():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


@torch.no_grad()
def randomise(subject: Any, seed: int = 0) -> None:
    """Draw every weight anew, from its name and the seed: matrices N(0, 1/fan_in), everything else a little off what
    it was (norm weights near 1 and biases near 0 then both matter)."""
    if "named_parameters" not in capabilities(subject):
        return
    weights = parameters(subject)
    shapes = tuple((name, tuple(weight.shape)) for name, weight in weights.items())
    drawn = _noise if sum(weight.numel() for weight in weights.values()) < KEPT else _noise.__wrapped__
    for weight, noise in zip(weights.values(), drawn(shapes, seed), strict=True):
        if weight.ndim >= 2:
            weight.copy_((noise / weight.shape[-1] ** 0.5).to(weight))
        else:
            weight.add_((0.2 * noise).to(weight))


KEPT = 50_000_000  # normal numbers that may be kept for the next call


@functools.lru_cache(maxsize=2)
def _noise(shapes: tuple[tuple[str, tuple[int, ...]], ...], seed: int) -> tuple[Tensor, ...]:
    """Standard normal numbers for each named shape."""
    return tuple(
        torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode())))
        for name, shape in shapes
    )


def snapshot(subject: Any) -> Named:
    """A copy of every parameter."""
    return {name: weight.detach().clone() for name, weight in parameters(subject).items()}


@torch.no_grad()
def copy_weights(source: Any, target: Any) -> None:
    """Give target the weights of source; both come from the same adapter."""
    values = parameters(source)
    for name, weight in parameters(target).items():
        weight.copy_(values[name])


def zero_grad(subject: Any) -> None:
    """Forget all gradients."""
    for weight in parameters(subject).values():
        weight.grad = None


def gradients(subject: Any) -> Named:
    """A copy of every gradient; zeros where there is none."""
    return {
        name: weight.grad.detach().clone() if weight.grad is not None else torch.zeros_like(weight)
        for name, weight in parameters(subject).items()
        if weight.requires_grad
    }


def relative_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """L2 norm of the difference over the L2 norm of what is expected, all tensors together."""
    difference = sum(_length(actual[name] - value) ** 2 for name, value in expected.items())
    norm = sum(_length(value) ** 2 for value in expected.values())
    return (difference / norm) ** 0.5 if norm else (0.0 if difference == 0 else float("inf"))


def _length(value: Tensor) -> float:
    """L2 norm, summed in float64."""
    return float(torch.linalg.vector_norm(value.detach(), dtype=torch.float64))


def largest_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """(largest absolute difference, name of the tensor it is in)."""
    worst, where = 0.0, ""
    for name, value in expected.items():
        if value.numel():
            difference = float((actual[name].detach() - value.detach()).abs().max())
            if not difference <= worst:
                worst, where = difference, name
    return worst, where


def supervised_targets(batch: Batch) -> list[tuple[int, int, int]]:
    """(row, position of the target, target id) of everything that a batch trains on.

    A batch has `mask`, aligned with ids (1 = this token is a target), or `targets`, shifted by one (negative = none).
    """
    ids = torch.as_tensor(batch["ids"])
    if batch.get("mask") is not None:
        mask = torch.as_tensor(batch["mask"])
        places = [(b, t) for b, t in mask.nonzero().tolist() if t > 0]
        return [(b, t, int(ids[b, t])) for b, t in places]
    targets = torch.as_tensor(batch["targets"])
    return [(b, t + 1, int(targets[b, t])) for b, t in (targets >= 0).nonzero().tolist()]


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether a method takes an argument of this name."""
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return name in found or any(p.kind is p.VAR_KEYWORD for p in found.values())


def _logits(value: Any, ids: Tensor, vocab: int, what: str) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != (*ids.shape, vocab):
        raise AdapterError(f"{what} returns {_shape(value)} for ids {tuple(ids.shape)}; expected {(*ids.shape, vocab)}")
    return value


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}"


def words(values: Iterable[object]) -> str:
    """Values as a list in a sentence."""
    return ", ".join(map(str, values))
