"""Multiple-choice items and the chat text made of them: one format for training, generation and scoring."""

import string
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from kat.data.rows import RowError
from kat.runs.files import hash_json

SYSTEM = "You are a helpful science tutor."
ANSWER_PREFIX = "The correct answer is "
MAX_CHOICES = 10
SLICES = ("subject", "topic", "category", "grade", "kind")


@dataclass(frozen=True)
class ChoiceItem:
    """A question with 2 to 10 options, one of them right.

    `answer` is the index of the right option. `cluster` names the items that are not independent of this one (a shared
    lecture). `slices` are (name, value) pairs by which a report may split its figures.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str = ""
    lecture: str = ""
    solution: str = ""
    has_image: bool = False
    cluster: str = ""
    slices: tuple[tuple[str, str], ...] = ()

    @property
    def hash(self) -> str:
        """sha256 of the content: question, choices in order, answer, hint. Two runs pair by it, never by id."""
        return hash_json([self.question, list(self.choices), self.answer, self.hint])

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters that this item offers: A, B, …"""
        return tuple(string.ascii_uppercase[: len(self.choices)])

    @property
    def letter(self) -> str:
        """The right letter."""
        return string.ascii_uppercase[self.answer]

    def rotated(self, k: int) -> "ChoiceItem":
        """The same item with its options rotated cyclically by k places to the left; the answer moves along."""
        n = len(self.choices)
        k %= n
        return replace(self, choices=self.choices[k:] + self.choices[:k], answer=(self.answer - k) % n)


def parse_choice_item(row: dict[str, Any]) -> ChoiceItem:
    """A JSON row as an item; the answer is an index or a letter. Raises :class:`RowError` on anything malformed.

    Null texts count as "". Options may repeat, but not the right one: then two letters would be right. The cluster is
    the row's own ``cluster``, else the lecture's hash, else the item's (statistics: items that share a lecture are
    not independent).
    """
    question = _text(row, "question")
    if not question.strip():
        raise RowError("the question is empty" if "question" in row else "no question")
    choices = _choices(row.get("choices"))
    answer = _answer(row.get("answer"), len(choices))
    if sum(choice.strip() == choices[answer].strip() for choice in choices) > 1:
        raise RowError(f"the right option {choices[answer]!r} stands twice among the choices")
    has_image = row.get("has_image", False)
    if not isinstance(has_image, bool):
        raise RowError("has_image is neither true nor false")
    item = ChoiceItem(
        id=row_id(row),
        question=question,
        choices=choices,
        answer=answer,
        hint=_text(row, "hint"),
        lecture=_text(row, "lecture"),
        solution=_text(row, "solution"),
        has_image=has_image,
        slices=_slices(row),
    )
    return replace(item, cluster=_cluster(row, item))


def row_id(row: dict[str, Any]) -> str:
    """The row's id as text; an integer is taken as its digits."""
    value = row.get("id")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RowError("id is neither text nor an integer" if "id" in row else "no id")
    if not str(value).strip():
        raise RowError("the id is empty")
    return str(value)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{key} is not text")
    return value


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RowError("no list of choices")
    if not 2 <= len(value) <= MAX_CHOICES:
        raise RowError(f"{len(value)} choices; 2 to {MAX_CHOICES} are possible")
    for index, choice in enumerate(value):
        if not isinstance(choice, str) or not choice.strip():
            raise RowError(f"choice {index} is {'empty' if isinstance(choice, str) else 'not text'}")
    return tuple(value)


def _answer(value: Any, n_choices: int) -> int:
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip().upper() in string.ascii_uppercase:
        index = string.ascii_uppercase.index(value.strip().upper())
    elif isinstance(value, int) and not isinstance(value, bool):
        index = value
    else:
        raise RowError("no answer" if value is None else f"answer {value!r:.40} is neither an index nor a letter")
    if not 0 <= index < n_choices:
        raise RowError(f"answer {value} outside its {n_choices} choices")
    return index


def _slices(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    values = {name: row.get(name) for name in SLICES}
    values["subject"] = values["subject"] or row.get("subject_inferred")
    return tuple((name, str(value)) for name, value in values.items() if isinstance(value, str | int) and value != "")


def _cluster(row: dict[str, Any], item: ChoiceItem) -> str:
    if isinstance(row.get("cluster"), str) and row["cluster"]:
        return row["cluster"]
    if item.lecture:
        return f"lecture-{hash_json(item.lecture)[:16]}"
    return f"item-{item.hash[:16]}"


def question_text(item: ChoiceItem) -> str:
    """The user's turn: the hint's line, the question, a blank line, and ``A. …`` one option a line.

    A data set that has merged the hint into the question already gives the same text as one that has not.
    """
    stem = f"{item.hint}\n{item.question}" if item.hint else item.question
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(item.letters, item.choices, strict=True))
    return f"{stem}\n\n{options}"


class AnswerStyle(StrEnum):
    """How the assistant answers a multiple-choice item."""

    LETTER = "letter"  # The correct answer is B. nest
    EXPLAINED = "explained"  # the same, then the explanation and the background (the seeds' format)
    TEXT = "text"  # The correct answer is nest


def answer_text(item: ChoiceItem, style: AnswerStyle = AnswerStyle.LETTER) -> str:
    """The assistant's turn in one of the styles."""
    if style is AnswerStyle.TEXT:
        return f"{ANSWER_PREFIX}{item.choices[item.answer]}"
    text = f"{ANSWER_PREFIX}{item.letter}. {item.choices[item.answer]}"
    if style is AnswerStyle.EXPLAINED and item.solution:
        text += f"\n\nExplanation: {item.solution}"
    if style is AnswerStyle.EXPLAINED and item.lecture:
        text += f"\n\nBackground: {item.lecture}"
    return text


def prompt_messages(item: ChoiceItem) -> list[dict[str, str]]:
    """The conversation up to the assistant's turn."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question_text(item)}]


def conversation(item: ChoiceItem, style: AnswerStyle = AnswerStyle.LETTER) -> list[dict[str, str]]:
    """The whole conversation that trains this item."""
    return [*prompt_messages(item), {"role": "assistant", "content": answer_text(item, style)}]
