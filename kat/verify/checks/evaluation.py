"""Prompts, letter extraction, grading and aggregation.

Which wording an extractor reads is its own choice: it must read one of the usual ones, and what it reads it must read
right. Where it is unsure None is always right.
"""

import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kat.verify.check import Failed, check
from kat.verify.lab import AdapterError, Lab, accepts
from kat.verify.subject import Message

Item = dict[str, Any]

# How answers are usually given; {} is the letter, {text} the option.
STATEMENTS = (
    "The correct answer is {}.",
    "The answer is {}.",
    "The answer is ({}).",
    "Answer: {}",
    "ANSWER: {}",
    "{}",
    "({})",
    "**{}**",
    "{}.",
    "The answer is **{}**.",
    "The final answer is $\\boxed{{{}}}$.",
    "\\boxed{{{}}}",
    "<answer>{}</answer>",
    "#### {}",
    "The correct answer is {}. {text}",
    "{}. {text}",
)
NO_ANSWER = (
    "",
    " \n",
    "I don't know.",
    "I cannot answer this question.",
    "None of the above.",
    "A spider has eight legs.",
    "A good question! All animals need food",
    "It could be any of them.",
    "As an assistant, I am not sure about that.",
    "Because Dr. B. Adams said so in a book",
)
UNDECIDED = ("The answer is {} or {}.", "The answer is either {} or {}.", "The answer is both {} and {}.")
DENIED = ("The answer is not {}.", "The answer isn't {}.", "I don't think the answer is {}.")
CORRECTED = (
    "The answer is {}. Wait, that is wrong. The answer is {}.",
    "At first I thought the answer is {}.\n\nTherefore, the answer is {}.",
    "Answer: {}\n\nActually, no.\n\nAnswer: {}",
)


@check(family="evaluation", level=0, needs={"build_prompt"}, kind="oracle", catches=("EV3", "EV4"))
def prompt_shows_question_options_and_hint(lab: Lab) -> None:
    """The prompt holds the question, each option and the hint, character for character but for white space.

    Options that differ only in brackets or case stay different.
    """
    for item in _items():
        shown = _squeezed("\n".join(m["content"] for m in _prompt(lab, item) if m["role"] != "assistant"))
        parts = [("question", item["question"]), ("hint", item["hint"])]
        parts += [(f"option {k}", choice) for k, choice in enumerate(item["choices"])]
        for what, text in parts:
            if text and _squeezed(text) not in shown:
                raise Failed(
                    f"the {what} {text!r} is not in the prompt",
                    case=f"prompt: {shown!r}",
                    resembles="EV4" if what == "question" else "EV3",
                )
        for k in range(len(item["choices"])):
            choices = [c if i != k else f"{c} zz" for i, c in enumerate(item["choices"])]
            if _prompt(lab, {**item, "choices": choices}) == _prompt(lab, item):
                raise Failed(f"another option {k} gives the same prompt", case=f"{item['choices']}", resembles="EV3")


@check(family="evaluation", level=0, needs={"build_prompt"}, kind="metamorphic", catches=("EV5", "EV10"))
def prompt_does_not_know_the_answer(lab: Lab) -> None:
    """The prompt is the same whichever option is right and whatever the solution says, and each time it is built."""
    for item in _items():
        prompt = _prompt(lab, item)
        for answer in range(len(item["choices"])):
            other = {**item, "answer": answer, "solution": f"So it is {item['choices'][answer]} for sure."}
            if _prompt(lab, other) != prompt:
                raise Failed(
                    "the prompt changes with the answer key or the solution",
                    case=f"answer {item['answer']}: {prompt}; answer {answer}: {_prompt(lab, other)}",
                    resembles="EV5",
                )
        random.seed(4711)
        torch.manual_seed(4711)
        if _prompt(lab, item) != prompt or _prompt(lab, item, subject=lab.fresh()) != prompt:
            raise Failed("the prompt of an item differs from call to call", case=f"{prompt}", resembles="EV10")


@check(family="evaluation", level=0, needs={"build_prompt"}, kind="metamorphic", catches=("EV1", "EV5"))
def shots_keep_their_answers_in_assistant_turns(lab: Lab) -> None:
    """An example's answer stands in an assistant turn before the question and nowhere else, each example shows its own,
    and the item that is asked is never among the examples."""
    lab.require(accepts(lab.subject.build_prompt, "shots"), "build_prompt takes no examples")
    items = _items()
    for n in (1, 2, 3):
        for k, item in enumerate(items):
            shots = [items[(k + j) % len(items)] for j in range(1, n + 1)]
            case = f"{n} example(s) before {item['question']!r}"
            prompt = _prompt(lab, item, shots)
            by_role = _by_role(prompt)
            lab.equal(prompt[-1]["role"], "user", "role of the last message", case=case)
            for j, shot in enumerate(shots):
                other = {**shot, "answer": (shot["answer"] + 1) % len(shot["choices"]), "solution": "Otherwise."}
                changed = _by_role(_prompt(lab, item, [*shots[:j], other, *shots[j + 1 :]]))
                if changed[0] != by_role[0]:
                    raise Failed("another answer of an example changes a user turn", case=case, resembles="EV5")
                if changed[1] == by_role[1]:
                    raise Failed("another answer of an example changes nothing", case=case, resembles="EV5")
            asked = _squeezed(item["question"])
            if asked not in _squeezed(prompt[-1]["content"]):
                raise Failed("the last user turn does not ask the question", case=case, resembles="EV4")
            for place in range(n):
                among = [*shots[:place], dict(item), *shots[place + 1 :]]
                try:
                    leaky = _prompt(lab, item, among)
                except (AdapterError, Failed):
                    raise
                except Exception:  # noqa: BLE001 (to refuse is right, by whatever exception)
                    continue
                if sum(asked in _squeezed(message["content"]) for message in leaky) > 1:
                    raise Failed("the item that is asked is an example of its own prompt", case=case, resembles="EV1")


@check(family="evaluation", level=0, needs={"extract"}, kind="oracle", catches=("EV13",))
def extract_reads_only_what_is_said(lab: Lab) -> None:
    """A stated letter is read as itself or not at all; none is read that is not offered, not said, denied, or one of
    two; of two statements the last one counts."""
    forms = _forms(lab)
    for n in (2, 3, 5):
        offered = string.ascii_uppercase[:n]
        for form in STATEMENTS:
            for letter in string.ascii_uppercase[: n + 2]:
                text = form.format(letter, text="stone")
                right = {letter if letter in offered else None, None}
                _reads(lab, text, n, right, "EV13", "is read as")
        for text in NO_ANSWER:
            _reads(lab, text, n, {None}, None, "says no letter and is read as")
        if n == 2:
            continue
        for a, b in (("A", "B"), ("C", "A"), ("B", "C")):
            for form in UNDECIDED:
                _reads(lab, form.format(a, b), n, {None}, None, "names two letters and is read as")
            for form in CORRECTED:
                _reads(lab, form.format(a, b), n, {b, None}, None, "ends with another letter and is read as")
            for form in DENIED:
                _reads(lab, form.format(a), n, set(offered) - {a} | {None}, None, "denies a letter and is read as")
            # "A. stone", not knowing the options, may be a list: only what names itself an answer must be corrected.
            for form in (form for form in forms if "nswer" in form):
                lines = f"{form.format(a, text='stone')}\n\nNo, that is wrong.\n\n{form.format(b, text='river')}"
                _reads(lab, lines, n, {b, None}, None, "ends with another letter and is read as")


@check(family="evaluation", level=0, needs={"grade"}, kind="oracle", catches=("EV13", "EV16"))
def grade_follows_the_key(lab: Lab) -> None:
    """The right letter scores 1 and every other 0 for any position of the key; silence, an echo of the prompt and a
    list of all options score 0."""
    items = _items()
    grade = lab.subject.grade
    read = [
        form
        for form in STATEMENTS
        if all(_number(grade(item, _statement(form, item, item["answer"]))) == 1 for item in items)
    ]
    if not read:
        form, item = STATEMENTS[0], items[0]
        raise Failed(
            f"no usual statement of the right answer scores 1 on all items, such as {form.format('B', text='nest')!r}",
            measured=_number(grade(item, _statement(form, item, item["answer"]))),
            resembles="EV13",
        )
    for item in items:
        for answer in range(len(item["choices"])):
            keyed = {**item, "answer": answer}
            for form in STATEMENTS:
                for said in range(len(item["choices"])):
                    score, text = _number(grade(keyed, _statement(form, item, said))), _statement(form, item, said)
                    if (said != answer and score != 0) or (form in read and said == answer and score != 1):
                        raise Failed(
                            f"{text!r} scores {score:g}, the answer is {string.ascii_uppercase[answer]}",
                            case=f"options {item['choices']}",
                            resembles="EV13",
                        )
            letters = string.ascii_uppercase[: len(item["choices"])]
            lists = [" ".join(letters), ", ".join(letters)]
            lists += ["\n".join(f"{a}. {c}" for a, c in zip(letters, item["choices"], strict=True))]
            lists += [" ".join(item["choices"]), "The answer is " + " or ".join(letters) + "."]
            for what, text in [
                *(("nothing", text) for text in ("", " ", "\n")),
                ("the question", item["question"]),
                *(("every option", text) for text in lists),
                *(("an echo of the prompt", text) for text in _echoes(lab, keyed)),
            ]:
                if (score := _number(grade(keyed, text))) != 0:
                    raise Failed(f"{what} scores {score:g}", case=repr(text), resembles="EV16")


@check(family="evaluation", level=0, needs={"build_prompt", "grade"}, kind="metamorphic")
def letters_of_prompt_and_grade_agree(lab: Lab) -> None:
    """The letter that the prompt writes before an option is the one that grades it."""
    labelled = 0
    for item in _items():
        shown = _prompt(lab, item)[-1]["content"]
        for k, choice in enumerate(item["choices"]):
            labels = re.findall(rf"(?:^|[\s(\[])([A-J])[).:\]]{{1,2}}\s{{1,3}}{re.escape(choice)}\s*(?:$|\n)", shown)
            if len(labels) != 1:
                continue
            labelled += 1
            scores = {
                form: _number(lab.subject.grade({**item, "answer": k}, form.format(labels[0], text=choice)))
                for form in STATEMENTS
            }
            if not any(score == 1 for score in scores.values()):
                raise Failed(
                    f"the prompt calls the right option {labels[0]}, and answering {labels[0]} scores 0",
                    case=f"prompt: {shown!r}, answer {k}",
                )
    lab.require(labelled, "the prompt's options have no letters")


@check(family="evaluation", level=0, needs={"aggregate"}, kind="oracle", catches=("EV9",))
def aggregate_is_the_mean_with_its_error(lab: Lab) -> None:
    """The value is the mean of all scores, zeros included; the standard error is sd / √n and halves with four times the
    items, in any order."""
    for n, p in ((200, 0.5), (400, 0.1), (300, 0.9)):
        binary = [float(k < p * n) for k in range(n)]
        graded = [min(1.0, k % 5 / 4) for k in range(n)]
        for scores in (binary, graded):
            mean = sum(scores) / n
            sd = (sum((s - mean) ** 2 for s in scores) / n) ** 0.5
            value, error = _aggregate(lab, scores)
            case = f"{n} scores, mean {mean:.4g}, standard deviation {sd:.4g}"
            lab.at_most(abs(value - mean), "the value is not the mean of the scores", tol=1e-9, case=case)
            _near(error, sd / n**0.5, "the standard error is not sd / √n", case, "EV9")
            four = _aggregate(lab, scores * 4)[1]
            _near(four, error / 2, "with four times the items the standard error is not half", case, "EV9")
            shuffled = lab.rng.sample(scores, n)
            again = _aggregate(lab, shuffled)
            lab.at_most(abs(again[0] - value), "the value depends on the order", tol=1e-9, case=case)
            _near(again[1], error, "the standard error depends on the order", case, "EV9")
    for scores in ([1.0] * 50, [0.0] * 50):
        value, error = _aggregate(lab, scores)
        lab.at_most(abs(value - scores[0]), "the value of equal scores", tol=1e-9)
        if not 0 <= error < 0.2:
            raise Failed(f"the standard error of 50 equal scores is {error}")


@check(family="evaluation", level=0, needs={"aggregate"}, kind="metamorphic", catches=("EV23", "EV9"))
def aggregate_counts_clusters_not_items(lab: Lab) -> None:
    """Items that repeat within their group add no certainty; groups of one item change nothing; the value stays the
    mean of the items, whatever the sizes and the order of the groups."""
    lab.require(accepts(lab.subject.aggregate, "groups"), "aggregate takes no groups")
    n = 240
    rng = random.Random(7)
    scores = [float(rng.random() < 0.6) for _ in range(n)]
    names = [f"g{(k * 7) % n}" for k in range(n)]
    value, error = _aggregate(lab, scores)
    one = _aggregate(lab, scores, names)
    case = f"{n} scores, each in a group of its own"
    lab.at_most(abs(one[0] - value), "groups of one item change the value", tol=1e-9, case=case)
    _near(one[1], error, "groups of one item change the standard error", case, "EV9", bound=1.05)
    m = 4
    for order in ("side by side", "far apart"):
        if order == "side by side":
            repeated = [(s, g) for s, g in zip(scores, names, strict=True) for _ in range(m)]
        else:
            repeated = list(zip(scores, names, strict=True)) * m
        again = _aggregate(lab, [s for s, _ in repeated], [g for _, g in repeated])
        case = f"{n} groups of {m} equal scores, {order}"
        lab.at_most(abs(again[0] - value), "repeating every item changes the value", tol=1e-9, case=case)
        _near(again[1], error, "repeating every item within its group changes the standard error", case, "EV9")
    sizes = [1 + k % 7 for k in range(60)]
    ragged = [(rng.random() < (0.2 + 0.1 * size), f"lecture {k}") for k, size in enumerate(sizes) for _ in range(size)]
    rng.shuffle(ragged)
    ragged_scores = [float(s) for s, _ in ragged]
    weighted, _ = _aggregate(lab, ragged_scores, [g for _, g in ragged])
    lab.at_most(
        abs(weighted - sum(ragged_scores) / len(ragged)),
        "the value is not the mean of the groups weighted by their sizes",
        tol=1e-9,
        case="60 groups of 1 to 7 items",
        resembles="EV23",
    )


# Items and what is asked about them


def _item(question: str, choices: Sequence[str], answer: int, hint: str = "", **more: str) -> Item:
    return {
        "id": f"item-{abs(hash((question, tuple(choices)))) % 10**6}" if not more.get("id") else more["id"],
        "question": question,
        "choices": list(choices),
        "answer": answer,
        "hint": hint,
        "lecture": "",
        "solution": "",
        "subject": "natural science",
        "topic": "biology",
        "grade": "grade5",
        "has_image": False,
        **more,
    }


def _items() -> list[Item]:
    """Items in the form of ScienceQA's: 2 to 5 options, the key in every place, options that are hard to keep apart."""
    return [
        _item("Which is a mammal?", ["robin", "whale"], 1, id="q0"),
        _item("Which shelter do owls use?", ["a stone", "a nest", "a Nest"], 1, "Owls sleep by day.", id="q1"),
        _item("Where is x?\nMind the ends.", ["[0, 1]", "(0, 1)", "[0, 1)", "(0, 1]"], 3, id="q2"),
        _item("How many legs has a spider?", ["8", "18", "80", "6"], 0, "It is no insect.\nCount them.", id="q3"),
        _item("Which set is {u}?", ["{u}", "(u)", "[u]", "u u", "<u>"], 2, "Sets have braces: {1, 2}.", id="q4"),
        _item("Is 3 % of 50 = 1.5?", ["yes, it is", "no, it isn't"], 0, solution="50 * 0.03 = 1.5", id="q5"),
        _item(
            "Which gas do plants take in? Choose the best one.",
            ["oxygen", "carbon dioxide (CO2)", "nitrogen [N2]"],
            1,
            solution="Plants take in carbon dioxide.",
            id="q6",
        ),
    ]


def _prompt(lab: Lab, item: Item, shots: Sequence[Item] = (), subject: Any = None) -> list[Message]:
    """The messages, checked for their form; the caller's item must come out as it went in."""
    subject = subject or lab.subject
    given = {**item, "choices": list(item["choices"])}
    messages = subject.build_prompt(given, [dict(s) for s in shots]) if shots else subject.build_prompt(given)
    if given != item:
        raise Failed("build_prompt changes the item that it is given", case=f"{item} becomes {given}")
    if not messages or not all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in messages):
        raise AdapterError("build_prompt returns a list of messages with role and content")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _by_role(messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    """(what system and user say, what the assistant says)."""
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    return [m["content"] for m in messages if m["role"] != "assistant"], said


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _statement(form: str, item: Item, answer: int) -> str:
    return form.format(string.ascii_uppercase[answer], text=item["choices"][answer])


def _forms(lab: Lab) -> list[str]:
    """The usual statements that the extractor reads, each for every letter; Failed where there is none."""

    def read(form: str) -> bool:
        return all(_extract(lab, form.format(c, text="stone"), 4) == c for c in "ABCD")

    forms = [form for form in STATEMENTS if read(form)]
    if not forms:
        got = _extract(lab, STATEMENTS[0].format("B"), 4)
        raise Failed(
            f"no usual statement of a letter is read; {STATEMENTS[0].format('B')!r} gives {got!r}", resembles="EV13"
        )
    return forms


def _extract(lab: Lab, text: str, n: int) -> str | None:
    letter = lab.subject.extract(text, n)
    if letter is not None and not isinstance(letter, str):
        raise AdapterError(f"extract returns {letter!r}, neither a letter nor None")
    return letter


def _reads(lab: Lab, text: str, n: int, right: set[str | None], row: str | None, how: str) -> None:
    letter = _extract(lab, text, n)
    if letter not in right:
        raise Failed(f"{text!r} {how} {letter!r}", case=f"{n} options", resembles=row)


def _number(score: Any) -> float:
    return float(score)


def _echoes(lab: Lab, item: Item) -> list[str]:
    if not lab.has("build_prompt"):
        return []
    messages = _prompt(lab, item)
    return ["\n".join(m["content"] for m in messages), messages[-1]["content"]]


def _aggregate(lab: Lab, scores: Sequence[float], groups: Sequence[str] | None = None) -> tuple[float, float]:
    found = lab.subject.aggregate(list(scores)) if groups is None else lab.subject.aggregate(list(scores), list(groups))
    value, error = float(found["value"]), float(found["stderr"])
    if value != value or error != error:
        raise Failed(f"value {value}, stderr {error}", case=f"{len(scores)} scores")
    return value, error


def _near(measured: float, expected: float, what: str, case: str, row: str, bound: float = 1.25) -> None:
    """Fail where two standard errors are not within a factor of each other; bootstraps are noisy."""
    ratio = measured / expected
    if not 1 / bound <= ratio <= bound:
        raise Failed(
            f"{what}: {measured:.4g}, expected {expected:.4g}",
            measured=ratio,
            tolerance=bound,
            case=case,
            resembles=row,
        )
