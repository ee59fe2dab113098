"""Score responses that somebody else generated: a .jsonl(.gz) of {id, response} against a suite's items, or of
{id, responses} for a suite that asks for several samples of one prompt.

Every item needs exactly as many responses as the suite asks for. A missing one is invalid evidence (removing a model's
wrong answers would otherwise raise its score), and so are two rows for one item; responses to items that the data does
not hold are counted and left out. Nobody recorded the prompt, and the rows say so.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kat.data.rows import RowError, load_rows
from kat.errors import EvidenceError, UsageError
from kat.evals.asking import Planned
from kat.evals.folder import Identity, check_folder, finish
from kat.evals.plan import choose, score_item
from kat.evals.protocol import (
    Generate,
    Generated,
    Stamp,
    Suite,
    expected_keys,
    full_protocol,
    item_seed,
    protocol_hash,
    sample_key,
)
from kat.evals.store import open_store
from kat.runs.files import hash_json
from kat.runs.schemas import Results

SHOWN = 3


@dataclass(frozen=True)
class RecordedResponses:
    """Responses by item id, which of them no item asked for, and the identity that stands in for the model's.

    The identity is the sha256 of all (id, response) pairs in the order of the ids: equal responses are equal evidence,
    whatever file they stand in.
    """

    by_id: dict[str, str | list[str]]
    unknown: tuple[str, ...]
    identity: str


def load_answered(factory: Callable[..., Suite], data: Path | None, responses: Path) -> tuple[Suite, RecordedResponses]:
    """The responses and their suite: over all items, those that need an image too, if any of them was answered, else
    over the text-only items. A factory that knows no `text_only` decides for itself.

    Raises what :func:`read_responses` does.
    """
    arguments = [data] if data is not None else []
    by_id = _read(responses)
    if "text_only" not in inspect.signature(factory).parameters:
        suite = factory(*arguments)
    else:
        suite = factory(*arguments, text_only=False)
        if not any(item.id in by_id for item in suite.items() if getattr(item, "has_image", False)):
            suite = factory(*arguments)
    return suite, _match(responses, by_id, suite)


def read_responses(path: Path, suite: Suite) -> RecordedResponses:
    """Read {id, response} rows and hold them against the suite's items.

    Raises :class:`UsageError` for an unreadable file or a malformed row, :class:`EvidenceError` when a response is
    missing or given twice; both say how many and name the first few.
    """
    return _match(path, _read(path), suite)


def _read(path: Path) -> dict[str, str | list[str]]:
    """The responses by id, each given once."""
    by_id: dict[str, str | list[str]] = {}
    twice: list[str] = []
    for name, response in load_rows([Path(path)], _parse, key=None, max_bad=0.0).rows:
        if name in by_id:
            twice.append(name)
        by_id[name] = response
    if twice:
        raise EvidenceError(f"{path}: {_name(twice, 'id')} given twice; keep one response per item")
    return by_id


def _match(path: Path, by_id: dict[str, str | list[str]], suite: Suite) -> RecordedResponses:
    wanted = {item.id for item in suite.items()}
    missing = [item.id for item in suite.items() if item.id not in by_id]
    if missing:
        raise EvidenceError(
            f"{path}: {_name(missing, 'response')} missing of {len(wanted):,}; every item needs one (an empty text if "
            "the model said nothing)"
        )
    unknown = tuple(name for name in by_id if name not in wanted)
    return RecordedResponses(by_id, unknown, hash_json(sorted(by_id.items())))


def run_recorded(
    suite: Suite, responses: RecordedResponses, out: Path, *, model: str, limit: int | None = None, seed: int = 0
) -> Results:
    """Score recorded responses into samples.jsonl and results.json, as :func:`kat.evals.runner.run_suite` does.

    Raises :class:`UsageError` for a suite that generates nothing (there is no text to score), and what `run_suite`
    raises for a folder with other rows in it.
    """
    out = Path(out)
    protocol = full_protocol(suite, {"name": "recorded"})
    for name in ("max_new_tokens", "temperature"):
        if name in protocol:
            protocol[name] = "unrecorded"
    hashed = protocol_hash(protocol)
    plan = []
    for item in choose(suite.items(), limit, seed, suite.data):
        request = suite.requests(item)
        if not isinstance(request, Generate):
            raise UsageError(f"suite {suite.name!r} does not score generated texts: no --responses for it")
        if (found := len(_texts(responses, item.id))) != request.n:
            raise EvidenceError(f"item {item.id}: {found} responses recorded, the suite asks for {request.n}")
        stamp = Stamp(suite.name, suite.version, hashed, responses.identity, item.id, item.hash, item_seed(seed, item))
        plan.append(Planned(item, request, stamp, tuple(expected_keys(item, request)), 0))
    with open_store(out) as (rows, writer):
        identity = Identity(suite, model, responses.identity, protocol, limit, seed)
        before = check_folder(out, identity, plan, rows)
        present = {sample_key(row) for row in rows}
        new = []
        for planned in plan:
            if not present.issuperset(planned.keys):
                texts = _texts(responses, planned.stamp.item_id)
                scored = score_item(suite, planned, [Generated(text, "recorded", None, None) for text in texts])
                new += [sample for sample in scored if sample_key(sample) not in present]
        writer.append(new)
        return finish(out, identity, [*rows, *new], before, changed=bool(new))


def _texts(responses: RecordedResponses, item_id: str) -> list[str]:
    found = responses.by_id[item_id]
    return [found] if isinstance(found, str) else found


def _parse(row: dict[str, Any]) -> tuple[str, str | list[str]]:
    if "responses" in row and "response" in row:
        raise RowError("both response and responses")
    response = row.get("responses", row.get("response"))
    if isinstance(response, list):
        if not all(isinstance(text, str) for text in response):
            raise RowError("responses are not texts")
    elif not isinstance(response, str):
        raise RowError("response is not text" if "response" in row else "no response")
    if isinstance(row["id"], bool) or not isinstance(row["id"], str | int):
        raise RowError("id is neither text nor an integer")
    return str(row["id"]), response


def _name(ids: list[str], what: str) -> str:
    """``3 responses (17, 18, 20)``: the count and the first few."""
    shown = ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
    return f"{len(ids):,} {what}{'' if len(ids) == 1 else 's'} ({shown})"
