"""The reward model: what a score reads, what a training step descends, what is saved.

Scores are compared after every weight was drawn anew: a fresh reward head may be zero, and then every score is. Prompts
hold an earlier answer of the assistant, so that end tokens (and a pad id that is one) stand inside the text.
"""

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kat.verify.check import Failed, Vacuous, check
from kat.verify.lab import (
    EFFECT,
    AdapterError,
    Lab,
    Named,
    accepts,
    parameters,
    randomise,
    relative_difference,
    snapshot,
)
from kat.verify.subject import Message, Preference, capabilities
from kat.verify.watch import Update, norm, watched

WORDS = ("river", "seven", "there", "ask", "mill", "because", "green", "go", "red", "cat")
Pairs = Sequence[Preference]


class RewardWeights:
    """The weights behind a subject's scores, as what the tools for parameters take."""

    def __init__(self, subject: Any) -> None:
        named = "reward_parameters" if "reward_parameters" in capabilities(subject) else "named_parameters"
        if named in capabilities(subject):
            self.named_parameters: Callable[[], Any] = getattr(subject, named)


def weights_of(lab: Lab, subject: Any) -> RewardWeights:
    """The weights; the check is skipped where the subject does not show them."""
    lab.require(lab.has("reward_parameters") or lab.has("named_parameters"), "needs reward_parameters")
    return RewardWeights(subject)


def judge(lab: Lab, seed: int | None = None) -> Any:
    """A new subject whose reward model has random weights."""
    subject = lab.fresh(seed)
    randomise(RewardWeights(subject), lab.seed)
    return subject


def said(lab: Lab, n: int) -> str:
    """n random words, no two neighbours alike."""
    words = [lab.rng.choice(WORDS)]
    while len(words) < n:
        words.append(lab.rng.choice([word for word in WORDS if word != words[-1]]))
    return " ".join(words)


def asked(lab: Lab, earlier: bool) -> list[Message]:
    """A prompt of one turn, or one with an earlier answer in it."""
    turns = [("user", said(lab, 2)), ("assistant", said(lab, 2))] if earlier else []
    return [{"role": role, "content": text} for role, text in [*turns, ("user", said(lab, lab.rng.randint(1, 3)))]]


def pairs(lab: Lab, n: int = 8) -> list[Preference]:
    """Preferences of very different lengths: the chosen response is now longer, now shorter than the rejected one, and
    every other prompt has an earlier answer in it. All fit into the context."""
    found: list[Preference] = []
    for i, (a, b) in enumerate(itertools.islice(itertools.cycle([(8, 1), (1, 8), (3, 2), (1, 9)]), n)):
        prompt = asked(lab, i % 2 == 1)
        chosen, rejected = _fitting(lab, prompt, said(lab, a)), said(lab, b)
        while rejected == chosen:
            rejected = said(lab, b)
        found.append((prompt, chosen, _fitting(lab, prompt, rejected)))
    return found


def _fitting(lab: Lab, prompt: Sequence[Message], response: str) -> str:
    """The response without the last words that would not fit, where the subject shows what it reads."""
    if lab.has("encode_conversation"):
        while " " in response:
            ids, _ = lab.subject.encode_conversation([*prompt, {"role": "assistant", "content": response}])
            if len(ids) <= lab.traits.max_len:
                break
            response = response.rpartition(" ")[0]
    return response


def score(subject: Any, prompt: Sequence[Message], response: str) -> float:
    return _number(subject.score(prompt, response), "a score", prompt, response)


def margin(subject: Any, pair: Preference) -> float:
    prompt, a, b = pair
    return _number(subject.score_pair(prompt, a, b), "a margin", prompt, f"{a} | {b}")


def _number(value: Any, what: str, prompt: Sequence[Message], response: str) -> float:
    value = float(value)
    if not math.isfinite(value):
        raise Failed(f"{what} is {value}", measured=value, case=_shown(prompt, response))
    return value


def _shown(prompt: Sequence[Message], response: str) -> str:
    return " / ".join(f"{m['role']}: {m['content']!r}" for m in prompt) + f" -> {response!r}"


def _require_effect(subject: Any, some: Pairs) -> None:
    """Vacuous unless scores depend on the response."""
    spread = max(abs(score(subject, p, a) - score(subject, p, b)) for p, a, b in some)
    if spread <= EFFECT:
        raise Vacuous(f"different responses change the score by {spread:.1g}, not by {EFFECT:g}")


# Scores


@check(
    family="reward",
    level=1,
    needs={"score", "score_pair"},
    kind="metamorphic",
    tol=1e-4,
    catches=("RM1", "RM3", "RM4", "RM10"),
)
def score_ignores_padding(lab: Lab) -> None:
    """A response has the same score alone as beside a longer or a shorter one: the margin of two is the difference of
    their scores."""
    subject, some = judge(lab), pairs(lab)
    _require_effect(subject, some)
    for prompt, a, b in some:
        alone, together = score(subject, prompt, a) - score(subject, prompt, b), margin(subject, (prompt, a, b))
        lab.at_most(
            abs(together - alone),
            f"the margin in one batch is {together:.6g}, the difference of the scores {alone:.6g}",
            case=_shown(prompt, f"{a} | {b}"),
            resembles="RM4" if len(prompt) > 1 else "RM3",
        )


@check(family="reward", level=1, needs={"score_pair"}, kind="metamorphic", tol=1e-4, catches=("RM7",))
def margin_is_antisymmetric(lab: Lab) -> None:
    """The margin of a over b is minus that of b over a, and a response has no margin over itself: which of two comes
    first, or is labelled as the better one, cannot be read."""
    subject, some = judge(lab), pairs(lab)
    effect = 0.0
    for prompt, a, b in some:
        there, back = margin(subject, (prompt, a, b)), margin(subject, (prompt, b, a))
        effect = max(effect, abs(there), abs(back))
        case = _shown(prompt, f"{a} | {b}")
        lab.at_most(abs(there + back), f"the margin is {there:.6g}, and {back:.6g} the other way round", case=case)
        itself = margin(subject, (prompt, a, a))
        lab.at_most(abs(itself), f"a response has a margin of {itself:.6g} over itself", case=case)
    if effect <= EFFECT:
        raise Vacuous(f"no margin exceeds {EFFECT:g}")


@check(family="reward", level=1, needs={"score"}, kind="metamorphic", tol=1e-6, catches=("RM4", "DM22", "TK10", "RM1"))
def score_reads_prompt_and_response(lab: Lab) -> None:
    """A score changes with each turn of the prompt, however many there are, and with the beginning, the end, the
    letters' case, the line breaks, the length and (unless declared) the white space around the response: all text is
    read, verbatim."""
    subject = judge(lab)
    a, b, c, d = WORDS[:4]
    prompt = [
        {"role": "user", "content": f"{a} {b}"},
        {"role": "assistant", "content": c},
        {"role": "user", "content": d},
    ]
    response = f"{b} {c} {a} {d} {b} {a}"

    def turn(i: int, text: str) -> list[Message]:
        return [{**message, "content": text} if i == j else message for j, message in enumerate(prompt)]

    variants = {
        "the first word of the prompt": (turn(0, f"{d} {b}"), response),
        "an earlier answer in the prompt": (turn(1, b), response),
        "the question": (turn(2, a), response),
        "the first word of the response": (prompt, f"{d} {c} {a} {d} {b} {a}"),
        "the last word of the response": (prompt, f"{b} {c} {a} {d} {b} {c}"),
        "one word more": (prompt, f"{response} {d}"),
        "a capital letter": (prompt, response.capitalize()),
        "a line break in place of a blank": (prompt, response.replace(" ", "\n", 1)),
        "an indented line": (prompt, response.replace(" ", "\n\n    ", 1)),
    }
    if not lab.traits.trims:
        variants |= {
            "a line break at the end": (prompt, f"{response}\n"),
            "a line break at the beginning": (prompt, f"\n{response}"),
        }
    forgotten: list[float] = []
    base = score(subject, prompt, response)
    changes = {what: abs(score(subject, *variant) - base) for what, variant in variants.items()}
    largest = max(changes.values())
    if largest <= EFFECT and not hasattr(RewardWeights(subject), "named_parameters"):
        raise Vacuous("no text changes the score, and the weights cannot be drawn anew: a fresh head may be zero")
    for what, change in changes.items():
        if not change > lab.tol * max(1.0, largest):
            raise Failed(
                f"{what} changes nothing: the score stays {base:.6g}",
                measured=change,
                case=_shown(*variants[what]),
                resembles="DM22" if "line" in what else "TK10" if "capital" in what else "RM4",
            )
    with contextlib.suppress(Exception):  # so many turns may well be too long
        later = [{"role": role, "content": c} for role in ("assistant", "user") * 3]
        many = [[{"role": "user", "content": first}, *later] for first in (a, d)]
        values = [score(subject, one, b) for one in many]
        if abs(values[0] - values[1]) <= lab.tol * max(1.0, largest):
            forgotten = values
    if forgotten:
        raise Failed(
            f"the first of seven turns changes nothing: the score stays {forgotten[0]:.6g}",
            measured=abs(forgotten[0] - forgotten[1]),
            case=_shown(many[0], b),
            resembles="RM4",
        )


# Training


def loss_of(margins: Sequence[float], factors: Sequence[float] | None = None) -> float:
    """Bradley and Terry 1952: the mean over pairs of softplus(-(score of chosen - score of rejected))."""
    losses = torch.nn.functional.softplus(-torch.tensor(margins, dtype=torch.float64))
    return float((losses if factors is None else losses * torch.tensor(factors, dtype=torch.float64)).mean())


def cut(some: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Micro-batches of these sizes, in order."""
    rest: Iterator[Any] = iter(some)
    return [list(itertools.islice(rest, n)) for n in sizes]


def reported(metrics: Any) -> float:
    if "loss" not in metrics:
        raise AdapterError('reward_step returns {"loss", …}')
    return float(metrics["loss"])


def _swapped(some: Pairs) -> list[Preference]:
    return [(prompt, b, a) for prompt, a, b in some]


@check(
    family="reward",
    level=2,
    needs={"reward_step", "score_pair"},
    kind="oracle",
    tol=1e-4,
    catches=("RM3", "RM1", "RM4", "LN3", "DM22", "RM7"),
)
def reward_loss_is_bradley_terry(lab: Lab) -> None:
    """The loss of a step is the mean over its pairs of softplus(-margin), the margins as they are just before, however
    many micro-batches they come in and however large they are; with the labels swapped it is that of the margins'
    negatives."""
    some = pairs(lab)
    prompt, a, b = some[2]
    some[2] = (prompt, f"{a}\n\n    {b}", b)  # text with line breaks, as code has
    labels = {"as they are": some, "swapped": _swapped(some)}
    for sizes, what in (((8,), "as they are"), ((8,), "swapped"), ((4, 4), "as they are"), ((2,) * 4, "as they are")):
        given = labels[what]
        subject = judge(lab)
        margins = [margin(subject, pair) for pair in given]
        if max(map(abs, margins)) <= EFFECT:
            raise Vacuous(f"no margin exceeds {EFFECT:g}")
        loss, expected = reported(subject.reward_step(cut(given, sizes))), loss_of(margins)
        lab.at_most(
            abs(loss - expected),
            f"reward_step reports a loss of {loss:.6g}; the margins before it give {expected:.6g}",
            case=f"{len(sizes)} micro-batch(es) of {sizes[0]} pairs, labels {what}",
            resembles="LN3" if len(sizes) > 1 else "RM3",
        )
    if not (lab.has("reward_parameters") or lab.has("named_parameters")):
        return
    subject = judge(lab)
    given = [pair if (i + (margin(subject, pair) > 0)) % 2 else _swapped([pair])[0] for i, pair in enumerate(some)]
    margins = _made_large(subject, given)
    loss, expected = reported(subject.reward_step([given])), loss_of(margins)
    lab.at_most(
        abs(loss - expected) / max(1.0, expected),
        f"reward_step reports a loss of {loss:.6g}; margins from {min(margins):.3g} to {max(margins):.3g} before it "
        f"give {expected:.6g} (relative)",
        case=f"{len(given)} pairs, right and wrong ones far apart",
        tol=10 * lab.tol,
        resembles="RM3",
    )


@torch.no_grad()
def _made_large(subject: Any, given: Pairs) -> list[float]:
    """Larger weights, until some margins are beyond ±8 (or the model does not let them be); the margins."""
    for _ in range(6):
        margins = [margin(subject, pair) for pair in given]
        if min(max(margins), -min(margins)) > 8:
            break
        for weight in parameters(RewardWeights(subject)).values():
            if weight.ndim > 1:
                weight.mul_(1.6)
    return [margin(subject, pair) for pair in given]


@check(
    family="reward",
    level=2,
    needs={"reward_step", "score_pair"},
    kind="metamorphic",
    tol=1e-3,
    catches=("LN3", "LN4", "LN1", "RM10"),
)
def pairs_count_alike_in_any_micro_batch(lab: Lab) -> None:
    """Loss, gradient and its norm do not depend on the order of the pairs, nor on how they are cut into micro-batches,
    be these of different sizes."""
    some = pairs(lab)
    weights_of(lab, lab.subject)
    found: list[tuple[str, float, float | None, Named]] = []
    for sizes, order in (((8,), 1), ((8,), -1), ((4, 4), 1), ((2, 2, 2, 2), 1), ((5, 3), 1), ((1, 4, 1, 2), 1)):
        subject = judge(lab)
        before = snapshot(RewardWeights(subject))
        with watched(RewardWeights(subject)) as updates:
            metrics = subject.reward_step(cut(some[::order], sizes))
        after = parameters(RewardWeights(subject))
        gradient = _gradient(updates) or {name: after[name].detach() - value for name, value in before.items()}
        total = metrics.get("grad_norm")
        case = f"micro-batches of {list(sizes)} pairs{', in reverse order' if order < 0 else ''}"
        found.append((case, reported(metrics), None if total is None else float(total), gradient))
        _, loss, size, first = found[0]
        what = "LN3" if len(sizes) > 1 else "RM10"
        lab.at_most(
            abs(found[-1][1] - loss) / max(abs(loss), 1e-6),
            f"the loss is {found[-1][1]:.6g}, and {loss:.6g} of the same pairs at once",
            case=case,
            resembles=what,
        )
        if size is not None and found[-1][2] is not None:
            lab.at_most(
                abs(found[-1][2] - size) / max(size, 1e-6),
                f"the gradient's norm is {found[-1][2]:.6g}, and {size:.6g} with the same pairs at once",
                case=case,
                resembles=what,
            )
        lab.at_most(
            relative_difference(gradient, first),
            "the gradient is another than with the same pairs at once",
            case=case,
            resembles=what,
        )


def _gradient(updates: Sequence[Update]) -> Named:
    return {name: value for update in updates for name, value in update.gradients.items()}


@check(
    family="reward",
    level=2,
    needs={"reward_step", "score_pair"},
    kind="oracle",
    tol=0.05,
    catches=("RM3", "LN4", "DE7"),
)
def reward_gradient_is_that_of_the_loss(lab: Lab) -> None:
    """The gradient that the optimizer sees is that of the mean of softplus(-margin), each times the pair's weight where
    there are weights: in each tensor it agrees with the difference quotient of that mean along it, up to one factor for
    all tensors (clipping)."""
    subject, some = judge(lab), pairs(lab, 4)
    factors = [0.5, 2.0, 0.0, 1.5] if accepts(subject.reward_step, "weights") else None
    weights = parameters(weights_of(lab, subject))
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with watched(RewardWeights(subject)) as updates:
        metrics = subject.reward_step([some], **({} if factors is None else {"weights": [factors]}))
    gradient = _gradient(updates)
    lab.require(updates, "reward_step does not update its weights with a torch optimizer")
    if not norm(gradient) > 0:
        raise Failed("the gradient of every tensor is 0", measured=0.0, resembles="RM6")

    def mean_loss(direction: Named, step: float) -> float:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name] + step * direction[name] if name in direction else before[name])
        return loss_of([margin(subject, pair) for pair in some], factors)

    def quotient(direction: Named) -> float:
        """By the gradient's length: 1 / the factor of clipping, where the gradient is right."""
        length = norm(direction)
        unit = {name: value / length for name, value in direction.items()}
        return (mean_loss(unit, STEP) - mean_loss(unit, -STEP)) / (2 * STEP) / length

    factor = quotient(gradient)
    case = f"{len(some)} pairs in one micro-batch" + (f", weights {factors}" if factors else "")
    if not factor > 1 - lab.tol:  # clipping makes a gradient smaller, nothing makes it larger
        raise Failed(
            f"along the gradient the loss changes by {factor:.4g} times what the gradient says",
            measured=1 - factor,
            tolerance=lab.tol,
            case=case,
            resembles="RM3" if factor < 0.1 else "LN4",
        )
    if metrics.get("grad_norm") is not None:
        size, expected = float(metrics["grad_norm"]), factor * norm(gradient)
        lab.at_most(
            abs(size / expected - 1),
            f"reward_step reports a gradient norm of {size:.4g}; by the difference quotient it is {expected:.4g}",
            case=case,
            resembles="RM6",
        )
    largest = sorted(gradient, key=lambda name: -norm({name: gradient[name]}))[:6]
    for name in [name for name in largest if norm({name: gradient[name]}) > 0.05 * norm(gradient)]:
        own = quotient({name: gradient[name]})
        lab.at_most(
            abs(own / factor - 1),
            f"along the gradient of {name} the loss changes by {own / factor:.4g} times what the gradient says",
            case=case,
            resembles="RM6",
        )


STEP = 0.02  # of the difference quotients, as the length of the change


@check(family="reward", level=2, needs={"reward_step", "score_pair"}, kind="metamorphic", catches=("RM6",))
def reward_step_moves_what_has_a_rate(lab: Lab) -> None:
    """After two steps every tensor in a group of the optimizer with a rate above 0 has changed, if margins depend on
    it, and every other tensor is the same bit for bit."""
    subject, some = judge(lab), pairs(lab)
    weights_of(lab, subject)
    before = snapshot(RewardWeights(subject))
    with watched(RewardWeights(subject)) as updates:
        for _ in range(2):
            subject.reward_step([some[:3], some[3:]])
    rated = {
        name
        for update in updates
        for group in update.groups
        if float(group.get("lr", 1.0)) > 0
        for name in group["params"]
    }
    lab.require(rated, "reward_step does not update its weights with a torch optimizer")
    for name, weight in parameters(RewardWeights(subject)).items():
        moved = not torch.equal(weight.detach(), before[name])
        if moved and name not in rated:
            raise Failed(f"{name} has changed, and no group of the optimizer holds it with a rate above 0", case=name)
        if not moved and name in rated and _matters(lab, name, some):
            raise Failed(
                f"{name} is in a group with a rate above 0, margins depend on it, and two steps have not changed it",
                case=name,
                resembles="RM6",
            )


def _matters(lab: Lab, name: str, some: Pairs) -> bool:
    """Whether a margin depends on a tensor: a bias of the score cancels, and no pair can train it."""
    subject = judge(lab)
    before = [margin(subject, pair) for pair in some]
    weight = parameters(RewardWeights(subject))[name]
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(lab.seed)).to(weight))
    return max(abs(margin(subject, pair) - old) for pair, old in zip(some, before, strict=True)) > EFFECT


@check(family="reward", level=2, needs={"reward_step", "score_pair"}, kind="metamorphic", catches=("RM7",))
def reward_training_raises_trained_margins(lab: Lab) -> None:
    """Some steps on the same pairs lower the loss that their margins give; with the labels swapped they raise it."""
    some = pairs(lab, 4)
    for given, what in ((some, "as they are"), (_swapped(some), "swapped")):
        subject = judge(lab)
        before = loss_of([margin(subject, pair) for pair in given])
        for _ in range(6):
            subject.reward_step([given])
        after = loss_of([margin(subject, pair) for pair in given])
        if not after < before:
            raise Failed(
                f"six steps on four pairs leave the loss of their margins at {after:.6g}; it was {before:.6g}",
                measured=after,
                tolerance=before,
                case=f"labels {what}: {_shown(given[0][0], f'{given[0][1]} | {given[0][2]}')}",
            )


@check(family="reward", level=2, needs={"reward_step", "score_pair"}, kind="oracle", tol=1e-4, catches=("DE7", "RM11"))
def loss_weights_are_not_renormalised(lab: Lab) -> None:
    """With weights, the loss is the sum of weight times softplus(-margin) over the number of pairs: in a batch of one
    the weight still counts, a batch of heavy pairs has a larger loss, and a weight of 0 is a weight."""
    lab.require(accepts(lab.subject.reward_step, "weights"), "reward_step takes no weights")
    some = pairs(lab)
    factors = [0.25, 3.0, 0.5, 0.0, 1.5, 0.75, 1.25, 2.0]
    for sizes, chosen in (
        ((1,), [1]),
        ((1,), [0]),
        ((3,), [1, 4, 7]),
        ((2,), [3, 5]),
        ((8,), range(8)),
        ((5, 3), range(8)),
    ):
        subject = judge(lab)
        given, own = [some[i] for i in chosen], [factors[i] for i in chosen]
        expected = loss_of([margin(subject, pair) for pair in given], own)
        loss = reported(subject.reward_step(cut(given, sizes), weights=cut(own, sizes)))
        lab.at_most(
            abs(loss - expected),
            f"the weighted loss is {loss:.6g}; by the weights and margins it is {expected:.6g}",
            case=f"weights {own}, micro-batches of {list(sizes)} pairs",
            resembles="RM11" if 0.0 in own and len(own) < 8 else "DE7",
        )


@check(family="reward", level=2, needs={"reward_step", "score_pair"}, kind="metamorphic", tol=1e-4, catches=("DM14",))
def long_pairs_are_whole_or_absent(lab: Lab) -> None:
    """A pair of which one response is longer than the context is left out, refused, or learned whole: neither side is
    cut and then compared. So is a response that is to be scored: its first and its last word are read, or it is
    refused."""
    n = lab.traits.max_len
    lab.require(n <= 2048, f"a response of {n} tokens takes too long here")
    some = pairs(lab, 4)
    long = said(lab, n + 8)
    for what, pair in (("chosen", (some[0][0], long, "owl")), ("rejected", (some[0][0], "owl", long))):
        subject = judge(lab)
        margins = [margin(subject, one) for one in some]
        allowed = [loss_of(margins)]
        with contextlib.suppress(Exception):  # what is longer than the context may well raise
            allowed.append(loss_of([*margins, margin(subject, pair)]))
        try:
            loss = reported(subject.reward_step([[*some, pair]]))
        except AdapterError:
            raise
        except Exception:  # noqa: BLE001 (refused)
            continue
        lab.at_most(
            min(abs(loss - one) for one in allowed),
            f"the loss is {loss:.6g}; without the long pair it is {allowed[0]:.6g}"
            + (f", with all of it {allowed[1]:.6g}" if len(allowed) > 1 else ""),
            case=f"the {what} response has {n + 8} words, the context {n} tokens",
        )
    subject, (first, *middle, last) = judge(lab), long.split()
    others = {"first": ("owl", last), "last": (first, "owl")}
    try:
        base = score(subject, some[0][0], long)
        changes = {
            what: abs(score(subject, some[0][0], " ".join([a, *middle, z])) - base) for what, (a, z) in others.items()
        }
    except Exception:  # noqa: BLE001 (refused)
        return
    for what, change in changes.items():
        if not change > 0:
            raise Failed(
                f"the {what} word of a response that is longer than the context changes nothing: the score stays "
                f"{base:.6g}",
                measured=change,
                case=f"a response of {n + 8} words, the context {n} tokens",
            )


# Evaluation


@check(
    family="reward",
    level=3,
    needs={"reward_accuracy", "score_pair"},
    kind="oracle",
    tol=1e-9,
    catches=("RM7",),
)
def reward_accuracy_is_the_share_of_positive_margins(lab: Lab) -> None:
    """The accuracy is the share of pairs with a positive margin, all of them, a tie half, and with the labels swapped
    one minus it: the evaluation does not know which response was chosen."""
    subject, some = judge(lab), pairs(lab)
    margins = [margin(subject, pair) for pair in some]
    keep = [i for i, value in enumerate(margins) if abs(value) > EFFECT]
    if len(keep) < 4:
        raise Vacuous(f"{len(keep)} of {len(some)} margins exceed {EFFECT:g}")
    given = []
    keep = keep[: len(keep) - 1 + len(keep) % 2]  # an odd number, which no batch size divides
    for place, i in enumerate(keep):  # right ones first, so that any part has another share of them than all
        right = place < 5 * len(keep) / 8
        given.append(some[i] if (margins[i] > 0) == right else _swapped([some[i]])[0])
    share = sum(margin(subject, pair) > 0 for pair in given) / len(given)
    for labelled, expected, what in ((given, share, "as they are"), (_swapped(given), 1 - share, "swapped")):
        found = float(subject.reward_accuracy(labelled))
        lab.at_most(
            abs(found - expected),
            f"the accuracy is {found:.4g}; {expected:.4g} of the margins are positive",
            case=f"{len(given)} pairs, labels {what}",
        )
    if not (lab.has("reward_parameters") or lab.has("named_parameters")):
        return
    with torch.no_grad():
        for weight in parameters(RewardWeights(subject)).values():
            weight.zero_()
    if all(margin(subject, pair) == 0 for pair in given):  # exactly: else it is rounding that is counted
        found = float(subject.reward_accuracy(given))
        lab.at_most(
            abs(found - 0.5),
            f"a model whose weights are all 0 is right in {found:.4g} of the pairs; a tie is half right",
            case=f"{len(given)} pairs, each with a margin of 0",
        )


@check(family="reward", level=3, needs={"reward_accuracy", "reward_step"}, kind="metamorphic", catches=("RM8",))
def trained_prompts_are_not_evaluated(lab: Lab) -> None:
    """A reward model is not evaluated on prompts it was trained on, with whatever responses: that is refused, also
    after it was saved and loaded, and other prompts are not."""
    subject, some = judge(lab), pairs(lab)
    held_out = [([{"role": "user", "content": f"{w} {w}"}], f"{w} stone", f"{w} glass") for w in WORDS[:4]]
    subject.reward_step([some[:4], some[4:]])
    subject.reward_accuracy(held_out)
    other = (some[5][0], "owl stone", "owl glass")
    for what, given in (
        ("the trained pairs", some),
        ("one trained prompt among others", [*held_out, some[5]]),
        ("a trained prompt with other responses", [*held_out, other]),
    ):
        _refused(subject, given, what, other)
    if lab.has("save", "load"):
        again = lab.fresh(lab.seed + 1)
        with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
            subject.save(Path(folder) / "saved")
            again.load(Path(folder) / "saved")
        again.reward_accuracy(held_out)
        _refused(again, [*held_out, other], "a trained prompt, by a model that was saved and loaded,", other)


def _refused(subject: Any, given: Pairs, what: str, shown: Preference) -> None:
    try:
        found = float(subject.reward_accuracy(given))
    except Exception:  # noqa: BLE001 (refused, in whatever words)
        return
    raise Failed(f"an evaluation on {what} gives an accuracy of {found:.3g}", case=_shown(shown[0], shown[1]))


# Saving


@check(
    family="reward",
    level=3,
    needs={"save", "load", "score", "reward_step"},
    kind="metamorphic",
    tol=0.0,
    catches=("CR4", "RM6"),
)
def saved_reward_model_scores_the_same(lab: Lab) -> None:
    """What is loaded after two training steps into a subject of another seed has the scores of what was saved, bit for
    bit, and its next step gives the same scores as that of training that went on."""
    subject, some = judge(lab), pairs(lab)
    texts = [(prompt, response) for prompt, a, b in some[:4] for response in (a, b)]
    untrained = [score(subject, *text) for text in texts]
    for _ in range(2):
        subject.reward_step([some])
    scores = [score(subject, *text) for text in texts]
    other = lab.fresh(lab.seed + 1_000_003)
    stranger = [score(other, *text) for text in texts]
    if scores in (untrained, stranger):
        raise Vacuous("training does not change the scores, or a subject of another seed has the same ones")
    with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
        subject.save(Path(folder) / "saved")
        other.load(Path(folder) / "saved")
    for step in ("loaded", "trained on by a step"):
        if step != "loaded":
            for one in (subject, other):
                one.reward_step([some])
        expected, found = ([score(one, *text) for text in texts] for one in (subject, other))
        worst = max(range(len(texts)), key=lambda i: abs(found[i] - expected[i]))
        lab.at_most(
            abs(found[worst] - expected[worst]),
            f"{step}, the score is {found[worst]:.8g}; that of training without a stop is {expected[worst]:.8g}",
            tol=lab.tol if step == "loaded" else 1e-5,
            case=_shown(*texts[worst]) + f"; {untrained[worst]:.6g} before training",
        )
