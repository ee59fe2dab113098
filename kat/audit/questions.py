"""The questions behind the rows: read again from the data file, and trusted only where their content hash says so."""

from collections.abc import Sequence
from pathlib import Path

from kat.audit.load import Evidence
from kat.audit.pair import Pair
from kat.data.choices import ChoiceItem
from kat.errors import EvidenceError, UsageError
from kat.evals.sources import load_choice_items


def find_items(pair: Pair, data: Path | Sequence[ChoiceItem] | None) -> tuple[list[ChoiceItem] | None, str]:
    """The item of every pair, in the pairs' order, or None and why not.

    `data` is a file, the items themselves, or None for the file that A's results.json names (used only where it is
    still there with the same hash). Raises :class:`EvidenceError` where a given file lacks an evaluated item, or where
    the evaluation lacks items of the file without a limit having been set: rows were removed.
    """
    items, note = _candidates(pair.a, data)
    if items is None:
        return None, note
    if not any(item.has_image for item in _evaluated(pair, items)):
        items = [item for item in items if not item.has_image]
    by_hash = {item.hash: item for item in items}
    missing = [item.key[1] for item in pair.items if item.key[0] not in by_hash]
    if missing:
        raise EvidenceError(f"{len(missing):,} evaluated items (such as {missing[0]}) are not in the data given")
    if pair.a.results.limit is None and len(items) != len(pair.items):
        raise EvidenceError(
            f"the data holds {len(items):,} items, both evaluations only {len(pair.items):,} of them and no limit was "
            "set: rows were removed; evaluate both again"
        )
    for item in pair.items:
        row = item.a[0]
        if list(by_hash[item.key[0]].choices) != row.choices or by_hash[item.key[0]].letter != row.expected:
            raise EvidenceError(f"item {row.item_id}: its row shows other options than the data under one content hash")
    return [by_hash[item.key[0]] for item in pair.items], ""


def _evaluated(pair: Pair, items: Sequence[ChoiceItem]) -> list[ChoiceItem]:
    wanted = {item.key[0] for item in pair.items}
    return [item for item in items if item.hash in wanted]


def _candidates(a: Evidence, data: Path | Sequence[ChoiceItem] | None) -> tuple[list[ChoiceItem] | None, str]:
    if data is not None and not isinstance(data, str | Path):
        return list(data), ""
    path = Path(a.results.data if data is None else data)
    if data is None and not path.exists():
        return None, f"the data file {path} is not there to read the questions from"
    try:
        items, source = load_choice_items(path, text_only=False)
    except UsageError as error:
        if data is not None:
            raise
        return None, f"the data file could not be read ({error})"
    if source.hash != a.results.data_hash:
        if data is not None:
            raise EvidenceError(
                f"{path}: its hash {source.hash[:12]} is not the evaluated data's {a.results.data_hash[:12]}; name the "
                "file that was evaluated"
            )
        return None, f"the data file {path} has changed since the evaluation"
    return items, ""
