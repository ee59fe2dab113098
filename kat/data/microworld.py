"""The microworld: a small closed world, drawn from a seed, in which every stage has something to learn in a minute.

Creatures with invented names have fixed attributes, which documents state in several wordings (*recall*: the answer
stands in the documents and nowhere else). Animals hold, wear or stand in something that is drawn anew for each text
(*reading*: the answer stands in the item's hint and nowhere else). A *plain* hint states the fact among facts of other
kinds, a *crowded* one states each option of some animal, so that only the right line of it decides; the options of a
recall item are values of the same attribute. A recall question of the validation or test split is about a fact that
training never asks for.

All words are short and few, and they follow a space wherever they occur, so that a byte-pair encoding of 640 tokens has
one token for each value; the creatures' names take more. A plain hint names only the right option, so naming the option
that the hint mentions answers every plain item without reading who has what: report plain and crowded apart.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kat.data.choices import SYSTEM, ChoiceItem, answer_text, question_text
from kat.errors import UsageError
from kat.runs.files import write_json, write_text

Row = dict[str, Any]

READING = "reading"
RECALL = "recall"
LETTERS = "letters"
N_CHOICES = (2, 3, 4)
CROWDED = 4  # one reading item in so many has all its options in the hint


@dataclass(frozen=True)
class Relation:
    """Something true of a subject {e} with a value {v}: how it is stated, asked for, and taught."""

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    lecture: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words("fox owl bear cat dog hen pig goat frog duck wolf crow mole bat ant bee toad hare swan deer")

TEXT_RELATIONS = (
    Relation(
        "things",
        _words("key cup bell book rope lamp coin drum kite ring shell stone"),
        ("The {e} has the {v}.", "The {e} holds the {v}."),
        ("What does the {e} have?", "Which thing does the {e} hold?"),
        "To find who has a thing, look for the animal in the text.",
    ),
    Relation(
        "places",
        _words("barn cave pond hill tree well nest mill shed lake road tent"),
        ("The {e} is in the {v}.", "The {e} sits in the {v}."),
        ("Where is the {e}?", "In which place is the {e}?"),
        "To find where an animal is, look for the animal in the text.",
    ),
    Relation(
        "clothes",
        _words("hat coat scarf belt sock glove boot mask crown cape shirt vest"),
        ("The {e} wears the {v}.", "The {e} put on the {v}."),
        ("What does the {e} wear?", "Which of these did the {e} put on?"),
        "To find what an animal wears, look for the animal in the text.",
    ),
)

WORLD_RELATIONS = (
    Relation(
        "colour",
        _words("red blue green white black brown pink gold"),
        ("The {e} is {v}.", "The colour of the {e} is {v}.", "If you see a {e}, it looks {v}."),
        ("What colour is the {e}?", "Which is the colour of the {e}?"),
        "The colour of a creature is the colour of its skin.",
    ),
    Relation(
        "food",
        _words("moss seeds bark fish roots leaves honey plums"),
        ("The {e} eats {v}.", "The food of the {e} is {v}.", "If you feed a {e}, give it {v}."),
        ("What does the {e} eat?", "Which is the food of the {e}?"),
        "The food of a creature is what it eats.",
    ),
    Relation(
        "home",
        _words("swamp desert forest river beach jungle valley island"),
        ("The {e} lives in the {v}.", "The home of the {e} is the {v}.", "If you look for a {e}, go to the {v}."),
        ("Where does the {e} live?", "Which is the home of the {e}?"),
        "The home of a creature is the place where it lives.",
    ),
    Relation(
        "sound",
        _words("hum click roar hiss buzz song growl chirp"),
        ("The {e} makes a {v}.", "The sound of the {e} is a {v}.", "If you hear a {e}, you hear a {v}."),
        ("What sound does the {e} make?", "Which is the sound of the {e}?"),
        "The sound of a creature is the noise that it makes.",
    ),
)

LETTER_QUESTIONS = ("Which option says {v}?", "Which letter stands for {v}?", "Find the option with {v}.")

SUBJECTS = {READING: "language science", RECALL: "natural science", LETTERS: "letters"}


@dataclass(frozen=True)
class Microworld:
    """JSON rows of each file, and the truth: ``facts[creature][relation] = value``, and which split asks for what."""

    seed: int
    documents: list[Row]
    mid: list[Row]
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    facts: dict[str, dict[str, str]]
    asked: dict[str, list[tuple[str, str]]]


def build(
    seed: int,
    n_documents: int = 12_000,
    n_mid: int = 4_000,
    n_train: int = 12_000,
    n_validation: int = 300,
    n_test: int = 1_200,
    n_creatures: int = 48,
) -> Microworld:
    """Draw a world and its five files; the same arguments give the same rows.

    In train, validation and test a quarter of the items are recall, the rest reading; each has 2, 3 or 4 options,
    equally often, with the right letter uniform within each number of options and kind. No item of validation or test
    has the content of an item of another split. Raises :class:`UsageError` on impossible sizes.
    """
    sizes = {"documents": n_documents, "mid": n_mid, "train": n_train, "validation": n_validation, "test": n_test}
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"microworld: {size} rows of {name}; at least 1 is needed")
    if not 8 <= n_creatures <= MAX_CREATURES:
        raise UsageError(f"microworld: {n_creatures} creatures; 8 to {MAX_CREATURES} are possible")
    rng = np.random.default_rng([seed, 0])
    facts = _draw_facts(rng, n_creatures)
    asked = _split_facts(rng, facts)
    taken: set[str] = set()
    splits = {
        name: _items(np.random.default_rng([seed, k]), name, sizes[name], facts, asked[name], taken)
        for k, name in enumerate(("test", "validation", "train"), start=1)
    }
    mid = _letter_talks(np.random.default_rng([seed, 4]), n_mid)
    documents = _documents(np.random.default_rng([seed, 5]), n_documents, facts)
    return Microworld(seed, documents, mid, splits["train"], splits["validation"], splits["test"], facts, asked)


def write(world: Microworld, folder: Path) -> None:
    """Write the five files as JSONL and the truth as world.json; equal worlds, equal bytes."""
    for name in ("documents", "mid", "train", "validation", "test"):
        rows: list[Row] = getattr(world, name)
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(folder / "world.json", {"seed": world.seed, "facts": world.facts, "asked": world.asked})


ONSETS, VOWELS = "bdfgklmnprtvz", "aiou"
MAX_CREATURES = 400


def _draw_facts(rng: np.random.Generator, n_creatures: int) -> dict[str, dict[str, str]]:
    """Invented names of two syllables; each value of an attribute is held by equally many creatures, at random."""
    syllables = [onset + vowel for onset in ONSETS for vowel in VOWELS]
    names = [first + second for first in syllables for second in syllables if first != second]
    creatures = [names[index] for index in rng.permutation(len(names))[:n_creatures]]
    columns = {
        relation.name: [relation.values[k % len(relation.values)] for k in rng.permutation(n_creatures)]
        for relation in WORLD_RELATIONS
    }
    return {name: {key: column[k] for key, column in columns.items()} for k, name in enumerate(creatures)}


def _split_facts(rng: np.random.Generator, facts: dict[str, dict[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Which facts each split may ask for: a quarter is the test's, a tenth the validation's, the rest training's."""
    pairs = [(creature, relation.name) for creature in facts for relation in WORLD_RELATIONS]
    pairs = [pairs[index] for index in rng.permutation(len(pairs))]
    n_test, n_validation = len(pairs) // 4, len(pairs) // 10
    return {
        "test": pairs[:n_test],
        "validation": pairs[n_test : n_test + n_validation],
        "train": pairs[n_test + n_validation :],
    }


def _items(
    rng: np.random.Generator,
    split: str,
    n: int,
    facts: dict[str, dict[str, str]],
    asked: Sequence[tuple[str, str]],
    taken: set[str],
) -> list[Row]:
    """Items of both kinds in random order, none of whose content is in `taken`, which grows by them."""
    n_recall = n // 4
    kinds = [RECALL] * n_recall + [READING] * (n - n_recall)
    shapes = _shapes(rng, n_recall) + _shapes(rng, n - n_recall)
    rows: list[Row] = []
    for k, (kind, (n_choices, answer)) in enumerate(zip(kinds, shapes, strict=True)):

        def draw(kind: str = kind, n_choices: int = n_choices, answer: int = answer, k: int = k) -> Row:
            if kind == READING:
                return _reading_item(rng, n_choices, answer)
            return _recall_item(rng, n_choices, answer, facts, asked[k % len(asked)])

        rows.append(_fresh(draw, taken, f"{split}: {n} items"))
    order = rng.permutation(n)
    return [{"id": f"{split}-{k}", "cluster": f"{split}-{k}", **rows[index]} for k, index in enumerate(order)]


def _fresh(draw: Callable[[], Row], taken: set[str], what: str) -> Row:
    for _ in range(100):
        row = draw()
        content = json.dumps([row["hint"], row["question"], row["choices"]])
        if content not in taken:
            taken.add(content)
            return row
    raise UsageError(f"microworld: {what} are more than this world has; ask for fewer or for more creatures")


def _shapes(rng: np.random.Generator, n: int) -> list[tuple[int, int]]:
    """(number of options, index of the right one) for n items, each combination as often as it should be."""
    shapes = [(n_choices, (k // len(N_CHOICES)) % n_choices) for k in range(n) for n_choices in [N_CHOICES[k % 3]]]
    return [shapes[index] for index in rng.permutation(n)]


def _pick(rng: np.random.Generator, values: Sequence[str], n: int) -> list[str]:
    return [values[index] for index in rng.permutation(len(values))[:n]]


def _one(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _reading_item(rng: np.random.Generator, n_choices: int, answer: int) -> Row:
    """One item in CROWDED states every option of some animal; the others state the fact and two of other relations."""
    crowded = bool(rng.integers(CROWDED) == 0)
    relation, *others = [TEXT_RELATIONS[k] for k in rng.permutation(len(TEXT_RELATIONS))]
    animals, values = _pick(rng, ANIMALS, n_choices), _pick(rng, relation.values, n_choices)
    facts = [_state(rng, relation, animals[0], values[0])]
    if crowded:
        facts += [_state(rng, relation, e, v) for e, v in zip(animals[1:], values[1:], strict=True)]
    else:
        facts += [_state(rng, other, _one(rng, animals[:2]), _one(rng, other.values)) for other in others]
    choices = values[1:]
    choices.insert(answer, values[0])
    return _row(
        READING,
        relation,
        hint=" ".join(facts[k] for k in rng.permutation(len(facts))),
        question=_one(rng, relation.questions).format(e=animals[0]),
        choices=choices,
        answer=answer,
        solution=f"The text says: {facts[0]}",
        category="crowded" if crowded else "plain",
    )


def _state(rng: np.random.Generator, relation: Relation, e: str, v: str) -> str:
    return str(_one(rng, relation.statements)).format(e=e, v=v)


def _recall_item(
    rng: np.random.Generator, n_choices: int, answer: int, facts: dict[str, dict[str, str]], fact: tuple[str, str]
) -> Row:
    creature, name = fact
    relation = next(relation for relation in WORLD_RELATIONS if relation.name == name)
    value = facts[creature][name]
    choices = _pick(rng, [v for v in relation.values if v != value], n_choices - 1)
    choices.insert(answer, value)
    return _row(
        RECALL,
        relation,
        hint="",
        question=_one(rng, relation.questions).format(e=creature),
        choices=choices,
        answer=answer,
        solution=relation.statements[0].format(e=creature, v=value),
        category="documents",
        cluster=f"{creature}-{name}",
    )


def _letter_talks(rng: np.random.Generator, n: int) -> list[Row]:
    """Practice in naming the letter of an option: about words, never about facts. Each talk shows one set of options
    in the format of the items and asks for all of them in turn, which is four times the practice per token."""
    rows = []
    for k in range(n):
        relation = _one(rng, TEXT_RELATIONS + WORLD_RELATIONS)
        choices = _pick(rng, relation.values, N_CHOICES[k % len(N_CHOICES)])
        messages = [{"role": "system", "content": SYSTEM}]
        for turn, answer in enumerate(rng.permutation(len(choices)).tolist()):
            question = _one(rng, LETTER_QUESTIONS).format(v=choices[answer])
            item = ChoiceItem("", question, tuple(choices), answer)
            asked = question_text(item) if turn == 0 else question
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer_text(item)}]
        rows.append({"id": f"mid-{k}", "messages": messages, "kind": LETTERS})
    return rows


def _row(
    kind: str,
    relation: Relation,
    hint: str,
    question: str,
    choices: list[str],
    answer: int,
    solution: str,
    category: str,
    cluster: str | None = None,
) -> Row:
    """The columns of ScienceQA, and the slice `kind`."""
    return {
        "question": question,
        "choices": choices,
        "answer": answer,
        "hint": hint,
        "lecture": relation.lecture,
        "solution": solution,
        "subject": SUBJECTS[kind],
        "topic": relation.name,
        "category": category,
        "grade": f"grade{len(choices) - 1}",
        "has_image": False,
        "kind": kind,
        **({} if cluster is None else {"cluster": cluster}),
    }


def _documents(rng: np.random.Generator, n: int, facts: dict[str, dict[str, str]]) -> list[Row]:
    creatures = list(facts)
    texts = []
    for k in range(n):
        if k % 2:
            texts.append(_story(rng))
        else:
            texts.append(_portrait(rng, creatures[(k // 2) % len(creatures)], facts))
    order = rng.permutation(n)
    return [{"id": f"document-{k}", "text": texts[index]} for k, index in enumerate(order)]


def _portrait(rng: np.random.Generator, creature: str, facts: dict[str, dict[str, str]]) -> str:
    """What is true of one creature, each fact once, in random order and wording."""
    order = rng.permutation(len(WORLD_RELATIONS))
    relations = [WORLD_RELATIONS[index] for index in order]
    return " ".join(
        _one(rng, relation.statements).format(e=creature, v=facts[creature][relation.name]) for relation in relations
    )


def _story(rng: np.random.Generator) -> str:
    """A text like the reading items' hints, with questions that it answers."""
    relation = _one(rng, TEXT_RELATIONS)
    n = int(rng.integers(2, 6))
    animals, values = _pick(rng, ANIMALS, n), _pick(rng, relation.values, n)
    statement = _one(rng, relation.statements)
    lines = [statement.format(e=e, v=v) for e, v in zip(animals, values, strict=True)]
    for index in rng.permutation(n)[: min(n, 3)]:
        lines.append(_one(rng, relation.questions).format(e=animals[index]))
        lines.append(f"The {values[index]}.")
    return " ".join(lines)
