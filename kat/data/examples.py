"""The three kinds of training rows: a document, a conversation, a multiple-choice item."""

from dataclasses import dataclass
from typing import Any

from kat.data.choices import ChoiceItem, parse_choice_item, row_id
from kat.data.rows import RowError

KINDS = ("text", "messages", "choices")


@dataclass(frozen=True)
class Document:
    """Plain text, read as it stands."""

    id: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """Messages {"role", "content"}: perhaps a system message, then user and assistant in turn."""

    id: str
    messages: tuple[dict[str, str], ...]


Example = Document | Conversation | ChoiceItem


def parse_example(row: dict[str, Any]) -> Example:
    """A JSON row by its keys: "text", "messages", or "question" with "choices" and "answer".

    Raises :class:`RowError` where none or two of them stand, or where there is nothing to learn from.
    """
    found = [kind for kind in KINDS if kind in row]
    if len(found) != 1:
        what = f"both {found[0]} and {found[1]}" if found else "no text, no messages, and no question with choices"
        raise RowError(f"holds {what}: not a document, a conversation or a multiple-choice item")
    if found == ["choices"]:
        return parse_choice_item(row)
    if found == ["messages"]:
        messages = parse_messages(row["messages"])
        if all(message["role"] != "assistant" for message in messages):
            raise RowError("no assistant message: nothing to supervise")
        return Conversation(row_id(row), messages)
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise RowError("the text is empty" if isinstance(text, str) else "text is not text")
    return Document(row_id(row), text)


def parse_messages(value: Any) -> tuple[dict[str, str], ...]:
    """A JSON list of {"role", "content"}: perhaps a system message, then user and assistant in turn, contents verbatim.

    Other keys of a message are dropped. Raises :class:`RowError` that names the message.
    """
    if not isinstance(value, list) or not value:
        raise RowError("messages is not a list" if not isinstance(value, list) else "no messages")
    messages = tuple(_message(index, message) for index, message in enumerate(value))
    first = int(messages[0]["role"] == "system")
    for index, message in enumerate(messages[first:]):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise RowError(f"message {index + first} is of the {message['role']}, not of the {expected}")
    return messages


def _message(index: int, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise RowError(f"message {index} is not an object")
    role, content = value.get("role"), value.get("content")
    if role not in ("system", "user", "assistant"):
        raise RowError(f"message {index} has the role {role!r:.40}, not system, user or assistant")
    if not isinstance(content, str):
        raise RowError(f"message {index} has a content that is not text")
    return {"role": role, "content": content}
