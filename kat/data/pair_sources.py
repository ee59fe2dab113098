"""Other people's preference data as pairs and prompts: HH-RLHF, Stack-Exchange, UltraFeedback, any columns.

The text is kept verbatim. What a row holds is told by its keys; a file in none of the known forms is read through a
mapping of columns. Where several scored responses stand in a row, the best is paired with the worst.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kat.data.choices import parse_choice_item
from kat.data.preferences import Pair, Prompt, choice_prompt, parse_pair, parse_prompt
from kat.data.rows import RowError, RowFault, Rows, load_rows
from kat.errors import UsageError
from kat.runs.files import canonical_json, hash_json

HUB_NAME = "Anthropic/hh-rlhf"
COLUMNS = ("prompt", "chosen", "rejected", "id", "source")
SCORES = ("score", "pm_score", "overall_score")
TEXTS = ("text", "response", "body")
FEW = 1_000  # pairs; below it a reward model is likely to learn noise

Row = dict[str, Any]
T = TypeVar("T")


def read_pairs(
    sources: Sequence[Path | str], mapping: Mapping[str, str] | None = None, max_bad: float = 0.05
) -> Rows[Pair]:
    """Pairs of files in any known form, or of HH-RLHF's training split from the hub (`sources` is ["hub"]).

    `mapping` names the columns of :data:`COLUMNS` that are called otherwise in the files. Raises :class:`UsageError` on
    a file fault, where more than the share `max_bad` of the rows are faulty, and where no pair is found.
    """
    for name in mapping or {}:
        if name not in COLUMNS:
            raise UsageError(f"--map {name}=…: there is no column {name!r}; map {', '.join(COLUMNS)}")

    def parse(row: Row) -> Pair:
        return parse_any_pair(_mapped(row, mapping) if mapping else row)

    return _read(sources, parse, lambda pair: pair.id, max_bad)


def read_prompts(sources: Sequence[Path | str], max_bad: float = 0.05) -> Rows[Prompt]:
    """Prompts of any rows that hold one, each once, in the order in which they first come.

    A row may be a prompt, a conversation (its last answer is left out), a pair in any form or a multiple-choice item,
    whose truth is then kept.
    """
    rows = _read(sources, parse_any_prompt, None, max_bad)
    return replace(rows, rows=_firsts(rows.rows, lambda prompt: prompt.id))


def without_repeats(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs without those whose prompt and both responses stood before."""
    return _firsts(pairs, lambda pair: (pair.prompt.id, pair.chosen, pair.rejected))


def _firsts(values: Sequence[T], key: Callable[[T], object]) -> list[T]:
    found: dict[object, T] = {}
    for value in values:
        found.setdefault(key(value), value)
    return list(found.values())


@dataclass(frozen=True)
class Splits:
    """Pairs by split; no two splits share a prompt, nor conversations that open alike."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]


def split_pairs(pairs: Sequence[Pair], validation: float = 0.05, test: float = 0.1) -> Splits:
    """Split by the hash of what precedes the first answer; the shares are of the hashes, not exactly of the pairs.

    In HH-RLHF one conversation yields several prompts, each the beginning of the next; they go the same way. A pair's
    split depends on its own text only, so it stays where it is when the data grow. Raises :class:`UsageError` for
    impossible shares and where nothing is left to train on.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise UsageError(f"shares {validation} (validation) and {test} (test): both from 0, together below 1")
    splits = Splits([], [], [])
    for pair in pairs:
        place = int(hash_json(["split", _opening(pair.prompt)])[:12], 16) / 16**12
        side = splits.test if place < test else splits.validation if place < test + validation else splits.train
        side.append(pair)
    if not splits.train:
        raise UsageError(f"{len(pairs):,} pairs: none is left to train on; give more pairs or smaller shares")
    return splits


def _opening(prompt: Prompt) -> list[str]:
    first = next(k for k, message in enumerate(prompt.messages) if message["role"] == "user")
    return [message["content"] for message in prompt.messages[: first + 1]]


def parse_any_pair(row: Row) -> Pair:
    """A row of any known form as a pair. Raises :class:`RowError` where it is none."""
    if "chosen" in row and "rejected" in row:
        return parse_pair(_plain(row))
    for key in ("answers", "completions"):
        if key in row:
            return parse_pair(_scored(row, row[key]))
    keys = ", ".join(sorted(set(row) - {"id"})[:6])
    raise RowError(f"no preference in the columns {keys}: map them with --map prompt=… chosen=… rejected=…")


def parse_any_prompt(row: Row) -> Prompt:
    """A row of any known form as a prompt. Raises :class:`RowError` where it is none."""
    source = row.get("source") or ""
    if "choices" in row:
        return choice_prompt(parse_choice_item(row), source if isinstance(source, str) else "")
    if "messages" in row:
        messages = row["messages"]
        if isinstance(messages, list) and len(messages) > 1 and _role(messages[-1]) == "assistant":
            row = {**row, "id": None, "messages": messages[:-1]}
        return parse_prompt(row)
    if "prompt" in row and "chosen" not in row:
        return parse_prompt({**row, "id": None, "messages": _messages(row["prompt"])})
    return parse_any_pair(row).prompt


def _plain(row: Row) -> Row:
    """Prompt, chosen and rejected in any mixture of texts, transcripts and lists of messages."""
    sides = {name: row[name] for name in ("chosen", "rejected")}
    if "prompt" in row and all(isinstance(side, str) for side in sides.values()):
        return {**row, "prompt": _messages(row["prompt"])}
    talks = {name: _talk(side) for name, side in sides.items()}
    for name, talk in talks.items():
        if not talk or _role(talk[-1]) != "assistant":
            raise RowError(f"{name} does not end in an answer of the assistant")
    if talks["chosen"][:-1] != talks["rejected"][:-1]:
        raise RowError("chosen and rejected answer different prompts")
    before = talks["chosen"][:-1]
    if not before and "prompt" in row:  # the responses are lists of one message each
        before = _messages(row["prompt"])
    return {**row, "prompt": before} | {name: talk[-1].get("content") for name, talk in talks.items()}


def _talk(value: Any) -> list[Any]:
    if isinstance(value, str):
        return parse_transcript(value)
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        return value
    raise RowError("chosen or rejected is neither text nor a list of messages")


_TURN = re.compile(r"\n\n(Human|Assistant):")


def parse_transcript(text: str) -> list[dict[str, str]]:
    """HH-RLHF's ``\\n\\nHuman: …\\n\\nAssistant: …`` as messages; the one space after each colon is no part of them."""
    first, *rest = _TURN.split(text)
    if first or not rest:
        raise RowError("neither a prompt column nor a transcript that starts with an empty line and 'Human:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.removeprefix(" ")} for who, said in zip(rest[::2], rest[1::2], strict=True)
    ]


def _scored(row: Row, responses: Any) -> Row:
    """The best and the worst of the scored responses; the first of equals."""
    if not isinstance(responses, list) or not all(isinstance(one, dict) for one in responses):
        raise RowError("the responses are not a list of objects")
    found = [(_score(one), _text(one)) for one in responses]
    if len({score for score, _ in found}) < 2:
        raise RowError(f"{len(found)} responses and no two scores that differ: nothing is preferred")
    best, worst = max(found, key=lambda one: one[0]), min(found, key=lambda one: one[0])
    asked = next((row[name] for name in ("prompt", "question", "instruction") if name in row), None)
    return {**row, "prompt": _messages(asked), "chosen": best[1], "rejected": worst[1]}


def _score(response: Row) -> float:
    value = next((response[name] for name in SCORES if response.get(name) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("a response has no number as score")
    return value


def _text(response: Row) -> Any:
    return next((response[name] for name in TEXTS if name in response), None)


def _messages(value: Any) -> Any:
    """A prompt as messages: a text is a transcript that waits for the assistant, or one turn of the user."""
    if not isinstance(value, str):
        return value
    if value.startswith("\n\nHuman:"):
        messages = parse_transcript(value)
        waits = messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip()
        return messages[:-1] if waits else messages
    return [{"role": "user", "content": value}]


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _mapped(row: Row, mapping: Mapping[str, str]) -> Row:
    missing = [column for column in mapping.values() if column not in row]
    if missing:
        raise RowError(f"no column {missing[0]!r}")
    rest = {name: value for name, value in row.items() if name in COLUMNS}
    return rest | {name: row[column] for name, column in mapping.items()}


def _read(
    sources: Sequence[Path | str], parse: Callable[[Row], T], key: Callable[[T], str] | None, max_bad: float
) -> Rows[T]:
    if "hub" in sources:
        if len(sources) > 1:
            raise UsageError("hub: give it alone, or download the files")
        return from_dataset(_fetch(), parse, max_bad)
    return load_rows([Path(source) for source in sources], parse, key=key, max_bad=max_bad)


def from_dataset(dataset: Any, parse: Callable[[Row], T], max_bad: float = 0.05) -> Rows[T]:
    """The rows of a `datasets.Dataset` (anything iterable of dicts); the id is ``train-<index>``."""
    rows, faults, lines = [], [], []
    for index, row in enumerate(dataset):
        row = {"id": f"train-{index}", "source": HUB_NAME, **row}
        lines.append(row)
        try:
            rows.append(parse(row))
        except RowError as error:
            faults.append(RowFault(Path(HUB_NAME), index + 1, str(error)))
    if not rows or len(faults) > max_bad * len(lines):
        first = f" (row {faults[0].line}: {faults[0].reason})" if faults else ""
        raise UsageError(f"{HUB_NAME}: {len(faults):,} of {len(lines):,} rows are faulty{first}")
    return Rows(rows, faults, len(lines), hash_json([canonical_json(line) for line in lines]))


def _fetch() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(f"{HUB_NAME}: reading the hub needs the package datasets: pip install 'kat[hf]'") from None
    try:
        return datasets.load_dataset(HUB_NAME, split="train")
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{HUB_NAME}: can't be fetched from the hub ({reason}); give local files") from None
