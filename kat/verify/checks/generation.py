"""Sampling, stopping and log-probabilities."""

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import chi2, norm
from torch import Tensor

from kat.verify.check import Failed, Vacuous, check
from kat.verify.lab import Lab, copy_weights, largest_difference, parameters, randomise, relative_difference, snapshot
from kat.verify.subject import Completion

NEEDS = {"forward", "generate", "named_parameters"}
TIE = 1e-3  # logits this close may change places in another order of summation
LONGEST = 256  # of contexts that generation fills to the last position
BINS = 16

Lesson = tuple[list[int], list[int]]  # a prompt and the completion that is taught


@check(family="generation", level=1, needs=NEEDS, kind="oracle", tol=TIE, catches=("SG2", "MF9", "RL11", "TK8", "EV22"))
def greedy_generation_is_the_argmax_path(lab: Lab) -> None:
    """At temperature 0 each token is the likeliest one by one pass of forward over all before it, for ragged prompts
    in one batch and alone, whatever the seed and whatever special ids stand in the prompts."""
    subject = lab.randomised()
    lab.require_context(subject)
    traits = lab.traits
    room = traits.max_len
    prompts = lab.prompts(*(min(length, room // 2) for length in (2, 11, 1, 5)))
    for case in ([prompts[0]], prompts[:2], prompts):
        for seed in (0, 1, 2):
            completions = generate(lab, subject, case, max_new_tokens=min(8, room // 2), temperature=0.0, seed=seed)
            _check_greedy(lab, subject, case, completions)
    twice = generate(lab, subject, prompts, n=2, max_new_tokens=6, temperature=0.0)
    _check_greedy(lab, subject, prompts, twice)
    # The pad and end ids as content: masks and "finished" flags that are read off the ids go wrong here.
    special = [i for i in (traits.pad_id, *traits.eos_ids) if i is not None]
    for i in special:
        first, second, third = lab.prompts(6, 4, 3)
        first[2] = first[4] = second[0] = third[-1] = i
        completions = generate(lab, subject, [first, second, third], max_new_tokens=5, temperature=0.0)
        _check_greedy(lab, subject, [first, second, third], completions, f"with id {i} in the prompts")


@check(family="generation", level=1, needs=NEEDS, kind="oracle", tol=TIE, catches=("MF1", "MF5", "MF2"))
def long_greedy_generation_is_the_argmax_path(lab: Lab) -> None:
    """Greedy tokens stay those of forward when generation goes on to the end of the context (or far)."""
    subject = lab.fresh()
    end = min(lab.traits.max_len, 96)
    prompts = lab.prompts(3, min(7, end // 2))
    for attempt in range(8):  # until a row does not end by itself
        randomise(subject, lab.seed + 100 * attempt)
        completions = generate(lab, subject, prompts, max_new_tokens=end - len(prompts[1]), temperature=0.0)
        _check_greedy(lab, subject, prompts, completions)
        if max(len(group[0].ids) for group in completions) > end // 2:
            return
    raise Vacuous("greedy generation always met the end token early")


@check(family="generation", level=1, needs=NEEDS, kind="statistical", catches=("SG1", "SG4", "SG5", "RL8"))
def samples_follow_the_softmax(lab: Lab) -> None:
    """First and later tokens are drawn from softmax(logits / temperature) of one pass over all tokens before them."""
    subject = lab.randomised()
    lab.require_context(subject)
    prompts = lab.prompts(2, 7, 4)
    n, steps = 24 if lab.large else 40, min(5, lab.traits.max_len - 8)
    for temperature in (0.7, 1.3):

        def p_value(seed: int, temperature: float = temperature) -> float:
            completions = generate(lab, subject, prompts, n=n, max_new_tokens=steps, temperature=temperature, seed=seed)
            return _p_of_draws(lab, subject, prompts, completions, temperature, seed)

        lab.statistical(
            p_value,
            f"samples at temperature {temperature} do not follow softmax(logits / {temperature})",
            n=len(prompts) * n * steps,
        )
    # Many first tokens, one test a token: a sampler that loses some of them (in a cumulative sum of low precision).
    n = min(1500, (8_000_000 if lab.large else 20_000_000) // lab.traits.vocab)
    prompt = lab.prompts(3)
    with torch.no_grad():
        p = torch.softmax(lab.forward(subject, torch.tensor(prompt))[0, -1].double(), dim=-1).numpy()

    def p_value_of_first(seed: int) -> float:
        group = generate(lab, subject, prompt, n=n, max_new_tokens=1, temperature=1.0, seed=seed)[0]
        counts = np.bincount([c.ids[0] for c in group], minlength=len(p))
        often = n * p >= 1
        seen = np.append(counts[often], counts[~often].sum())
        expected = np.append(n * p[often], max(n * p[~often].sum(), 1e-9))
        return float(chi2.sf(((seen - expected) ** 2 / expected).sum(), max(len(seen) - 1, 1)))

    lab.statistical(p_value_of_first, "first tokens at temperature 1 do not follow softmax(logits)", n=n)


@check(family="generation", level=1, needs=NEEDS, kind="metamorphic", catches=("SG1", "SG4", "SG2"))
def samples_differ_and_repeat_with_the_seed(lab: Lab) -> None:
    """The samples of a group differ from each other (from the first token on), those of identical prompts too; the
    same seed gives the same samples again, another seed others."""
    subject = lab.randomised()
    prompt = lab.prompts(5)[0]
    length = 6 if lab.large else 12
    options: dict[str, Any] = {"max_new_tokens": min(length, lab.traits.max_len - 6), "temperature": 1.0}
    with torch.no_grad():
        first = torch.softmax(lab.forward(subject, torch.tensor([prompt]))[0, -1].double(), dim=-1)
    if float(first.pow(16).sum()) > 1e-6:
        raise Vacuous("the next token is all but certain: equal samples would prove nothing")
    groups = generate(lab, subject, [prompt, prompt], n=16, seed=lab.seed, **options)
    case = f"2 identical prompts of 5 tokens, n=16, {options['max_new_tokens']} tokens"
    ids = [[tuple(c.ids) for c in group] for group in groups]
    for group in ids:
        starts = Counter(sample[0] for sample in group)
        if len(starts) == 1:
            raise Failed("all samples of a group start with the same token", case=case, resembles="SG1")
        if len(set(group)) < len(group) / 2:
            raise Failed(f"only {len(set(group))} of 16 samples differ", case=case, resembles="SG4")
    if ids[0] == ids[1]:
        raise Failed("identical prompts in one call have identical samples", case=case, resembles="SG4")
    again = generate(lab, subject, [prompt, prompt], n=16, seed=lab.seed, **options)
    lab.equal([[tuple(c.ids) for c in group] for group in again], ids, "samples of the same seed", case=case)
    torch.manual_seed(lab.seed + 99)  # a seed that is taken from the global generator is none
    again = generate(lab, subject, [prompt, prompt], n=16, seed=lab.seed, **options)
    lab.equal(
        [[tuple(c.ids) for c in group] for group in again],
        ids,
        "samples of the same seed after the global generator was reseeded",
        case=case,
    )
    other = generate(lab, subject, [prompt, prompt], n=16, seed=lab.seed + 1, **options)
    if [[tuple(c.ids) for c in group] for group in other] == ids:
        raise Failed("another seed gives the same samples", case=case, resembles="SG4")


@check(family="generation", level=1, needs=NEEDS, kind="statistical", tol=TIE, catches=("SG5",))
def top_k_keeps_the_k_likeliest(lab: Lab) -> None:
    """With top_k each token is one of the k likeliest, drawn from their renormalised softmax at the temperature;
    top_k=1 is greedy, and a k that holds the whole vocabulary is no limit."""
    subject = lab.randomised()
    lab.require_context(subject)
    prompts = lab.prompts(3, 6, 2)
    steps = min(5, lab.traits.max_len - 7)
    greedy = generate(lab, subject, prompts, n=2, max_new_tokens=steps, temperature=1.0, top_k=1)
    _check_greedy(lab, subject, prompts, greedy, "at top_k=1, temperature 1")
    n = 16 if lab.large else 24
    for k, temperature in ((2, 1.0), (5, 0.4), (8, 3.0)):

        def p_value(seed: int, k: int = k, temperature: float = temperature) -> float:
            completions = generate(
                lab, subject, prompts, n=n, max_new_tokens=steps, temperature=temperature, top_k=k, seed=seed
            )
            for prompt, ids, logits in _with_logits(lab, subject, prompts, completions):
                least = logits.topk(k, dim=-1).values[:, -1]
                for t, token in enumerate(ids):
                    lab.at_most(
                        float(least[t] - logits[t, token]),
                        f"a token is not among the {k} likeliest (its logit is lower than the least of them by)",
                        case=f"top_k={k}, temperature={temperature}, prompt of {len(prompt)} tokens, token {t}",
                    )
            return _p_of_draws(lab, subject, prompts, completions, temperature, seed, k)

        lab.statistical(
            p_value,
            f"samples at top_k={k}, temperature {temperature} do not follow the renormalised softmax",
            n=len(prompts) * n * steps,
        )
    generate(lab, subject, prompts, max_new_tokens=2, top_k=lab.traits.vocab)


@check(
    family="generation",
    level=1,
    needs=NEEDS,
    kind="oracle",
    catches=("SG9", "TK12", "TK9", "RL21", "RL7"),
)
def end_token_ends_a_completion(lab: Lab) -> None:
    """A completion ends with the first end token, which it includes, and only with that or at max_new_tokens; other
    rows of the batch go on, and `finish` says which it was.

    The model is trained for some steps, on its live weights, until its greedy path is known.
    """
    traits = lab.traits
    lab.require(traits.eos_ids, "no end token is declared")
    for end in traits.eos_ids[:2]:
        subject = lab.randomised()
        words = lab.ids(1, 16)[0].tolist()
        stops, starts, goes_on = lab.prompts(4, 2, 5)
        lessons: list[Lesson] = [
            (stops, [words[0], words[1], end]),
            (starts, [end]),
            (goes_on, words[2:8]),
        ]
        teach(lab, subject, lessons)
        prompts = [prompt for prompt, _ in lessons]
        for rows in ([0], [1], [0, 2], [2, 1, 0], [0, 1, 2, 0]):
            chosen = [lessons[i] for i in rows]
            for budget in (6, 3, 2, 1):
                groups = generate(lab, subject, [p for p, _ in chosen], n=2, max_new_tokens=budget, temperature=0.0)
                for (prompt, lesson), group in zip(chosen, groups, strict=True):
                    for completion in group:
                        if list(completion.ids) != lesson[:budget]:
                            raise Failed(
                                _about_end(list(completion.ids), lesson[:budget], end),
                                case=f"{len(rows)} prompt(s), this one of {len(prompt)} tokens, "
                                f"max_new_tokens={budget}, end token {end}: {list(completion.ids)} instead of "
                                f"{lesson[:budget]}",
                                resembles="RL21" if list(completion.ids) == lesson[:budget][:-1] else None,
                            )
        # What is sampled keeps to the same rules, which `generate` looks at.
        sampled = generate(lab, subject, prompts, n=8, max_new_tokens=6, temperature=1.0)
        if not any(c.ids[-1] == end for group in sampled for c in group):
            raise Failed("no sample ends, though the model gives the end token nearly all its mass")


@check(family="generation", level=1, needs=NEEDS, kind="oracle", tol=1e-3, catches=("RL8", "RL9", "TK8", "TK9", "RL11"))
def logprobs_are_those_of_forward(lab: Lab) -> None:
    """A completion's log-probabilities are those of one pass of forward over prompt and completion: at the sampling
    temperature and over the whole vocabulary, unless the declared design is otherwise; the end token has one too."""
    subject = lab.randomised()
    lab.require_context(subject)
    traits = lab.traits
    steps = min(8, lab.traits.max_len - 8)
    probe = generate(lab, subject, lab.prompts(3), max_new_tokens=2)[0][0]
    lab.require(probe.logprobs is not None, "completions have no log-probabilities")

    def compare(prompts: list[list[int]], temperature: float, top_k: int | None, note: str = "") -> None:
        groups = generate(
            lab, subject, prompts, n=3, max_new_tokens=steps, temperature=temperature, top_k=top_k, seed=lab.seed
        )
        found = [list(c.logprobs or ()) for group in groups for c in group]
        for (prompt, ids, logits), given in zip(_with_logits(lab, subject, prompts, groups), found, strict=True):
            scaled = logits.double() / (1.0 if traits.logprobs == "raw" else temperature)
            whole = kept = _picked(scaled, ids)
            if top_k is not None:
                least = scaled.topk(top_k, dim=-1).values[:, -1:]
                kept = _picked(scaled.masked_fill(scaled < least - TIE, -math.inf), ids)
            expected, other = (kept, whole) if traits.logprobs == "sampled" else (whole, kept)
            actual = torch.tensor(given, dtype=torch.double)
            raw = float((actual - _picked(logits.double(), ids)).abs().max())
            instead = ""
            if traits.logprobs != "raw" and raw <= lab.tol:
                instead = " at the sampling temperature, but the raw ones"
            elif float((actual - other).abs().max()) <= lab.tol:
                instead = f", but those of {'all tokens' if other is whole else 'the top k, renormalised'}"
            lab.at_most(
                float((actual - expected).abs().max()),
                f"log-probabilities of a completion are not those of forward{instead}"
                + (f" (traits.logprobs declares {traits.logprobs!r})" if instead else ""),
                case=f"temperature {temperature}, top_k {top_k}, prompt of {len(prompt)} tokens, "
                f"{len(ids)} new ones{note}",
                resembles="RL9" if raw <= lab.tol else "RL8",
            )

    compare(lab.prompts(3), 1.3, None)
    for temperature in (1.0, 0.5, 1.3):
        compare(lab.prompts(7, 2, 4), temperature, None)
    compare(lab.prompts(5, 3), 1.3, 5)
    if traits.eos_ids:  # rows that end at different steps
        prompts = lab.prompts(2, 6, 4)
        words = lab.ids(1, 5)[0].tolist()
        end = traits.eos_ids[0]
        teach(
            lab,
            subject,
            [(prompts[0], [words[0], end]), (prompts[1], words[:5]), (prompts[2], [words[3], words[1], words[2], end])],
        )
        compare(prompts, 1.3, None, ", some rows end early")


@check(family="generation", level=1, needs=NEEDS, kind="metamorphic", tol=1e-5, catches=("MF8",))
def generate_leaves_no_trace(lab: Lab) -> None:
    """Generation changes no weight, and afterwards generation, forward and gradients are those of a fresh subject."""
    used, fresh = lab.randomised(), lab.randomised()
    traits = lab.traits
    length = min(12, traits.max_len // 2)
    before = snapshot(used)
    used.generate(lab.prompts(3), max_new_tokens=2)
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        raise Failed("generate leaves gradients switched off", case="1 prompt of 3 tokens, 2 new tokens")
    # Longer and shorter than what follows, one row and several, ended early and not.
    for lengths, n in (((length, 3), 1), ((2,), 3), ((length + 3, 4, 6, 2, 1), 1)):
        for temperature in (0.0, 1.0):
            prompts = lab.prompts(*(min(k, traits.max_len - 9) for k in lengths))
            generate(lab, used, prompts, n=n, max_new_tokens=8, temperature=temperature)
            change, where = largest_difference(snapshot(used), before)
            lab.at_most(change, f"generation changed {where}", tol=0.0)
    prompts = lab.prompts(4, 7)
    for sample in ({"temperature": 0.0}, {"temperature": 1.0, "n": 2, "seed": lab.seed}):
        results = [
            [[tuple(c.ids) for c in group] for group in generate(lab, s, prompts, max_new_tokens=8, **sample)]
            for s in (used, fresh)
        ]
        if results[0] != results[1]:
            raise Failed(
                "generation after other generations differs from that of a fresh subject",
                case=f"2 prompts, {sample}: {results[0]} instead of {results[1]}",
            )
    ids = lab.ids(2, min(16, traits.max_len))
    gradients, fresh = [], lab.randomised()  # one that has never generated
    for subject in (used, fresh):
        try:
            with torch.enable_grad():
                loss = F.cross_entropy(lab.forward(subject, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
                for weight in parameters(subject).values():
                    weight.grad = None
                loss.backward()
        except RuntimeError as error:
            if subject is fresh:
                raise
            raise Failed(f"no gradient can be had after generation: {str(error).splitlines()[0]}") from None
        gradients.append({name: w.grad.clone() for name, w in parameters(subject).items() if w.grad is not None})
    lab.equal(sorted(gradients[0]), sorted(gradients[1]), "parameters with a gradient after generation")
    lab.at_most(relative_difference(*gradients), "gradients after generation differ from those of a fresh subject")


@check(family="generation", level=1, needs=NEEDS, kind="metamorphic", tol=TIE, catches=("RL25", "MF8"))
def generation_uses_the_current_weights(lab: Lab) -> None:
    """After the weights change, in place or by load, the same prompts are continued as the new weights say."""
    subject, other = lab.randomised(), lab.fresh()
    randomise(other, lab.seed + 1)
    lab.require_context(subject)
    prompts = lab.prompts(3, 8)
    options: dict[str, Any] = {"max_new_tokens": min(8, lab.traits.max_len - 9), "temperature": 0.0}
    generate(lab, subject, prompts, **options)
    copy_weights(other, subject)
    completions = generate(lab, subject, prompts, **options)
    _check_greedy(lab, other, prompts, completions, "after the weights were changed in place")
    if lab.has("save", "load"):
        third = lab.fresh()
        randomise(third, lab.seed + 2)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            third.save(path)
            subject.load(path)
        completions = generate(lab, subject, prompts, **options)
        _check_greedy(lab, third, prompts, completions, "after load")


@check(family="generation", level=1, needs=NEEDS, kind="oracle", tol=TIE, catches=("MF1",))
def generation_is_right_or_refuses_beyond_max_len(lab: Lab) -> None:
    """Where prompt and new tokens exceed the context, generate raises, ends with finish "length", or goes on as forward
    does over all tokens or over the last max_len; it never goes on with anything else."""
    end = lab.traits.max_len
    lab.require(end <= LONGEST, f"max_len {end} is too long to fill here")
    subject = lab.randomised()
    lab.require_context(subject)
    prompts = lab.prompts(end - 4, 3)
    budget = 10
    for chosen in ([prompts[0]], prompts):
        try:
            groups = subject.generate([list(p) for p in chosen], max_new_tokens=budget, temperature=0.0)
        except Exception:  # noqa: BLE001 (refusing is right, in whatever words)
            return
        for i, (prompt, group) in enumerate(zip(chosen, groups, strict=True)):
            ids = list(group[0].ids)
            case = f"a prompt of {len(prompt)} tokens, row {i} of {len(chosen)}, max_len {end}, {len(ids)} new tokens"
            stopped = bool(ids) and ids[-1] in lab.traits.eos_ids
            if len(ids) < budget and not stopped and group[0].finish == "stop":
                raise Failed("a completion that the context cuts says finish 'stop'", case=case)
            for t, token in enumerate(ids):
                context = prompt + ids[:t]
                candidates = [context[-end:]] if len(context) > end else [context]
                if len(context) > end:
                    candidates.append(context)
                short = []
                for row in candidates:
                    try:
                        with torch.no_grad():
                            logits = lab.forward(subject, torch.tensor([row]))[0, -1]
                    except Exception:
                        if len(row) <= end:
                            raise
                        continue
                    short.append(float(logits.max() - logits[token]))
                lab.at_most(
                    min(short),
                    f"greedy token {t} is not the likeliest by forward, {max(0, len(context) - end)} past max_len",
                    case=case,
                )


# What the checks share


def generate(
    lab: Lab, subject: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int = 32, **options: Any
) -> list[list[Completion]]:
    """Completions whose form is right: ids of the vocabulary, at most max_new_tokens, an end token only as the last, a
    log-probability for each (or none at all), and a `finish` (or none) that says what ended them."""
    groups = lab.generate(subject, prompts, max_new_tokens=max_new_tokens, **options)
    ends = set(lab.traits.eos_ids)
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            ids = list(completion.ids)
            case = f"{len(prompts)} prompt(s), this one of {len(prompt)} tokens, max_new_tokens={max_new_tokens}, "
            case += f"{options}: {ids}, finish {completion.finish!r}"
            if len(ids) > max_new_tokens:
                raise Failed(f"{len(ids)} new tokens, though max_new_tokens is {max_new_tokens}", case=case)
            if any(not 0 <= i < lab.traits.vocab for i in ids):
                raise Failed("a completion has ids outside the vocabulary", case=case)
            if any(i in ends for i in ids[:-1]):
                raise Failed("a completion goes on after its end token", case=case, resembles="SG9")
            stopped = bool(ids) and ids[-1] in ends
            if not stopped and len(ids) < max_new_tokens:
                raise Failed(
                    "a completion ends before max_new_tokens without an end token",
                    case=case,
                    resembles="RL21" if completion.finish == "stop" else "TK12",
                )
            right = "stop" if stopped else "length"
            if completion.finish is not None and completion.finish != right:
                raise Failed(f"finish is {completion.finish!r}, but the completion ended by {right!r}", case=case)
            if completion.logprobs is not None and len(completion.logprobs) != len(ids):
                raise Failed(f"{len(completion.logprobs)} log-probabilities for {len(ids)} tokens", case=case)
    return groups


def teach(lab: Lab, subject: Any, lessons: Sequence[Lesson], steps: int = 200, margin: float = 2.0) -> None:
    """Train the subject's live weights until each lesson is its greedy completion by a wide margin (of logits);
    Vacuous if that can't be had."""
    weights = [weight for weight in parameters(subject).values() if weight.requires_grad]
    groups = [{"params": [w], "lr": 0.06 * float(w.detach().square().mean().sqrt() or 0.1)} for w in weights]
    optimiser = torch.optim.Adam(groups)
    width = max(len(prompt) + len(completion) for prompt, completion in lessons) - 1
    rows = torch.full((len(lessons), width), lessons[0][0][0])  # what follows a row can't be seen from it
    targets = torch.full((len(lessons), width), -1)
    for b, (prompt, completion) in enumerate(lessons):
        known = [*prompt, *completion[:-1]]
        rows[b, : len(known)] = torch.tensor(known)
        targets[b, len(prompt) - 1 : len(known)] = torch.tensor(completion)
    taught = targets >= 0
    target = targets[taught][:, None]
    for _ in range(steps):
        with torch.enable_grad():
            logits = lab.forward(subject, rows)[taught]  # (targets, V)
            others = logits.detach().scatter(-1, target, -math.inf).amax(-1)
            if float((logits.detach().gather(-1, target)[:, 0] - others).min()) > margin:
                break
            optimiser.zero_grad()
            F.cross_entropy(logits, target[:, 0], reduction="sum").backward()
        optimiser.step()
    else:
        raise Vacuous(f"the model did not learn {len(lessons)} short completions in {steps} steps")
    optimiser.zero_grad()


def _with_logits(
    lab: Lab, subject: Any, prompts: Sequence[list[int]], groups: Sequence[Sequence[Completion]]
) -> list[tuple[list[int], list[int], Tensor]]:
    """(prompt, completion, logits (its length, V) that forward gives for its tokens) of every completion, in order."""
    found: list[tuple[list[int], list[int], Tensor]] = []
    for prompt, group in zip(prompts, groups, strict=True):
        results: dict[int, Tensor] = {}
        lengths = sorted({len(c.ids) for c in group})
        for length in lengths:
            places = [i for i, c in enumerate(group) if len(c.ids) == length]
            for start in range(0, len(places), 16):
                part = places[start : start + 16]
                rows = torch.tensor([[*prompt, *list(group[i].ids)[:-1]] for i in part])
                with torch.no_grad():
                    logits = lab.forward(subject, rows)[:, len(prompt) - 1 :].float()
                results.update(zip(part, logits, strict=True))
        found += [(list(prompt), list(c.ids), results[i]) for i, c in enumerate(group)]
    return found


def _check_greedy(
    lab: Lab, subject: Any, prompts: Sequence[list[int]], groups: Sequence[Sequence[Completion]], note: str = ""
) -> None:
    """Fail where a token's logit is below the largest."""
    for prompt, ids, logits in _with_logits(lab, subject, prompts, groups):
        behind = logits.amax(-1) - logits[torch.arange(len(ids)), torch.tensor(ids)]
        t = int((behind > lab.tol).int().argmax()) if bool((behind > lab.tol).any()) else 0
        lab.at_most(
            float(behind[t]),
            "a greedy token is not the likeliest by forward (its logit is lower by)",
            case=f"{len(prompts)} prompt(s), this one of {len(prompt)} tokens, new token {t} {note}".rstrip(),
        )


def _picked(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """(T,) log-probabilities of ids under logits (T, V)."""
    return torch.log_softmax(logits, dim=-1)[torch.arange(len(ids)), torch.tensor(ids)]


def _p_of_draws(
    lab: Lab,
    subject: Any,
    prompts: Sequence[list[int]],
    groups: Sequence[Sequence[Completion]],
    temperature: float,
    seed: int,
    k: int | None = None,
) -> float:
    """The probability of draws at least this far from softmax(logits / temperature), restricted to the k likeliest.

    The draws' cumulative probabilities, with a random share of the token's own, are uniform if the sampler is right
    (the probability integral transform): tokens by falling probability and by id, first tokens and later ones apart. A
    third test compares the mean log-probability with its expectation, to which a wrong temperature does most.
    """
    rng = np.random.default_rng(seed)
    by_rank: dict[bool, list[float]] = {True: [], False: []}
    by_id: dict[bool, list[float]] = {True: [], False: []}
    excess, variance = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for _, ids, logits in _with_logits(lab, subject, prompts, groups):
        scaled = logits.double() / temperature
        if k is not None:
            scaled = scaled.masked_fill(scaled < scaled.topk(k, dim=-1).values[:, -1:], -math.inf)
        logp = torch.log_softmax(scaled, dim=-1)
        p = logp.exp()
        logp = logp.masked_fill(p == 0, 0.0)
        mean = (p * logp).sum(-1)
        spread = (p * logp.square()).sum(-1) - mean.square()
        token = torch.tensor(ids)[:, None]
        own = p.gather(-1, token)
        share = torch.from_numpy(rng.random(len(ids))) * own[:, 0]
        ranks = ((p * (p > own)).sum(-1) + share).tolist()
        places = (p.cumsum(-1).gather(-1, token)[:, 0] - own[:, 0] + share).tolist()
        distance = (logp.gather(-1, token)[:, 0] - mean).tolist()
        for t in range(len(ids)):
            by_rank[t == 0].append(ranks[t])
            by_id[t == 0].append(places[t])
            excess[t == 0] += distance[t]
            variance[t == 0] += float(spread[t])
    values = []
    for first in (True, False):
        for draws in (by_rank[first], by_id[first]):
            if len(draws) >= 5 * BINS:
                counts = np.bincount((np.clip(draws, 0, 1 - 1e-9) * BINS).astype(int), minlength=BINS)
                expected = len(draws) / BINS
                values.append(float(chi2.sf(((counts - expected) ** 2 / expected).sum(), BINS - 1)))
        if variance[first] > 0:
            values.append(float(2 * norm.sf(abs(excess[first]) / variance[first] ** 0.5)))
    return min(1.0, len(values) * min(values)) if values else 1.0


def _about_end(ids: list[int], lesson: list[int], end: int) -> str:
    if lesson[-1] == end and ids == lesson[:-1]:
        return "a completion lacks the end token that ended it"
    if lesson[-1] == end and ids[: len(lesson)] == lesson[: len(ids)]:
        return "a completion does not end at its end token"
    return "a completion is not the model's greedy path"
