"""Prompts, and preference pairs: two responses to one prompt, of which somebody chose one.

A prompt is known by the hash of its messages, so that the same prompt has the same id in every file, schedule and
density folder; its truth, source and slices are not part of it. All text is kept verbatim.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kat.data.choices import ChoiceItem, prompt_messages, row_id
from kat.data.examples import parse_messages
from kat.data.rows import RowError, Rows, load_rows
from kat.runs.files import canonical_json, hash_json
from kat.tokenizer.chat import Message


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the assistant: perhaps a system message, user and assistant in turn, a user last.

    `truth` is what a reward function may know of the right response; no model sees it. `slices` are (name, value)
    pairs by which a report may split its figures.
    """

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    truth: Mapping[str, Any] | None = None
    slices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two different responses to one prompt; `chosen` was preferred."""

    id: str
    prompt: Prompt
    chosen: str
    rejected: str


def prompt_id(messages: Iterable[Mapping[str, str]]) -> str:
    """sha256 (hex) of the canonical JSON of the roles and contents, in order."""
    return hash_json([{"role": message["role"], "content": message["content"]} for message in messages])


def prompt_text(prompt: Prompt) -> str:
    """The contents of the messages with an empty line between: what an embedder reads."""
    return "\n\n".join(message["content"] for message in prompt.messages)


def make_prompt(
    messages: Iterable[Message],
    source: str = "",
    truth: Mapping[str, Any] | None = None,
    slices: Iterable[tuple[str, str]] = (),
) -> Prompt:
    """A prompt of these messages, with its id."""
    messages = tuple(messages)
    return Prompt(prompt_id(messages), messages, source, truth, tuple(slices))


def choice_prompt(item: ChoiceItem, source: str = "") -> Prompt:
    """The prompt that asks a multiple-choice item; its truth is {"choices", "answer"} (the index of the right one)."""
    truth = {"choices": list(item.choices), "answer": item.answer}
    return make_prompt(prompt_messages(item), source, truth, item.slices)


def load_prompts(paths: Sequence[Path], max_bad: float = 0.01) -> Rows[Prompt]:
    """Prompts of .jsonl(.gz) files, each prompt once: rows {"messages"[, "id", "source", "truth", "slices"]}.

    A row that repeats a prompt is dropped and named by its line, as every other faulty row is; more than the share
    `max_bad` of them, or a file that can't be read, is a :class:`kat.errors.UsageError`.
    """
    return load_rows(paths, parse_prompt, key=lambda prompt: prompt.id, max_bad=max_bad)


def load_pairs(paths: Sequence[Path], max_bad: float = 0.01) -> Rows[Pair]:
    """Pairs of .jsonl(.gz) files: rows {"prompt": messages, "chosen", "rejected"[, "id", "source", "truth", "slices"]}.

    The ids are unique over all files; the prompts need not be. Faults are treated as by :func:`load_prompts`.
    """
    return load_rows(paths, parse_pair, key=lambda pair: pair.id, max_bad=max_bad)


def parse_prompt(row: dict[str, Any]) -> Prompt:
    """A JSON row as a prompt. Raises :class:`RowError` on anything malformed.

    The row's own id is not kept, but one that looks like a hash must be that of the messages: otherwise somebody has
    changed the text, and weights or schedules made before would silently belong to another prompt.
    """
    if "messages" not in row:
        raise RowError("no messages: not a prompt")
    prompt = _prompt(row, "messages")
    given = row.get("id")
    if _is_hash(given) and given != prompt.id:
        raise RowError(f"the id {given:.12}… is not the hash of the messages ({prompt.id:.12}…): remove it")
    return prompt


def parse_pair(row: dict[str, Any]) -> Pair:
    """A JSON row as a pair. Raises :class:`RowError` on anything malformed, and where there is nothing to prefer."""
    if "prompt" not in row:
        raise RowError("no prompt: not a preference pair")
    prompt = _prompt(row, "prompt")
    chosen, rejected = (_response(row, name) for name in ("chosen", "rejected"))
    if chosen.strip() == rejected.strip():
        raise RowError("chosen and rejected are identical")
    return Pair(row_id(row), prompt, chosen, rejected)


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """A row that reads back as the same prompt."""
    return {"id": prompt.id, "messages": list(prompt.messages)} | _rest(prompt)


def pair_row(pair: Pair) -> dict[str, Any]:
    """A row that reads back as the same pair."""
    row = {"id": pair.id, "prompt": list(pair.prompt.messages), "chosen": pair.chosen, "rejected": pair.rejected}
    return row | _rest(pair.prompt)


def rows_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as the text of a .jsonl file; equal rows, equal bytes."""
    return "".join(canonical_json(row) + "\n" for row in rows)


def _rest(prompt: Prompt) -> dict[str, Any]:
    rest = {"source": prompt.source or None, "truth": prompt.truth, "slices": dict(prompt.slices) or None}
    return {name: value for name, value in rest.items() if value is not None}


def _prompt(row: dict[str, Any], key: str) -> Prompt:
    messages = parse_messages(row[key])
    for index, message in enumerate(messages):
        if not message["content"].strip():
            raise RowError(f"message {index} is empty")
    if messages[-1]["role"] != "user":
        raise RowError(f"the last message is of the {messages[-1]['role']}, not of the user: nothing to respond to")
    source = row.get("source") or ""
    if not isinstance(source, str):
        raise RowError("source is not text")
    truth = row.get("truth")
    if truth is not None and not isinstance(truth, dict):
        raise RowError("truth is not an object")
    return make_prompt(messages, source, truth, _slices(row.get("slices") or {}))


def _slices(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(type(entry) in (str, int) for entry in value.values()):
        raise RowError("slices is not an object of texts")
    return tuple((name, str(entry)) for name, entry in value.items())


def _response(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise RowError(f"{name} is not text" if name in row else f"no {name} response")
    if not value.strip():
        raise RowError(f"the {name} response is empty")
    return value


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")
