"""Read a folder of evidence and believe none of it: every row is checked against every other before it counts."""

import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from kat.data import letters
from kat.errors import EvidenceError
from kat.evals.folder import load_results
from kat.evals.protocol import Key, sample_key
from kat.evals.store import RESULTS, SAMPLES, read_samples
from kat.runs.files import hash_json
from kat.runs.schemas import Results, Sample

ItemKey = tuple[str, str]
"""(item_hash, item_id)"""

CLOSE = 1e-9


@dataclass(frozen=True)
class Evidence:
    """One evaluated model: its results and its rows by item, each item's rows in the order of draw and rotation."""

    folder: Path
    results: Results
    items: dict[ItemKey, tuple[Sample, ...]]

    @property
    def recorded(self) -> bool:
        """Whether the rows are responses that somebody recorded; their identity is the text's, not the weights'."""
        backend = self.results.protocol.get("backend")
        return isinstance(backend, dict) and backend.get("name") == "recorded"

    def score(self, key: ItemKey) -> float:
        """The item's score: the mean over its rows (one row, or one per rotation or draw)."""
        return fmean(row.score for row in self.items[key])


def load_evidence(folder: Path) -> Evidence:
    """Read samples.jsonl and results.json of one evaluation.

    Raises :class:`EvidenceError`, in one line, for a missing or cut file, a row of another schema, suite, model or
    protocol, a row twice, a NaN, a score that its own row contradicts, and results that do not follow from the rows.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvidenceError(f"{folder}: no folder of an evaluation here; run `kat eval` first")
    results = load_results(folder / RESULTS)
    rows = read_samples(folder / SAMPLES)
    path = folder / SAMPLES
    if results.protocol_hash != hash_json(results.protocol):
        raise EvidenceError(f"{folder / RESULTS}: protocol_hash is not the hash of its protocol; evaluate again")
    _check_identity(path, results, rows)
    for number, row in enumerate(rows, 1):
        _check_row(f"{path}, line {number}", row, results)
    items = _by_item(path, rows)
    for key, group in items.items():
        _check_item(path, key, group, results)
    _check_ids(path, items)
    _check_results(folder / RESULTS, results, rows, items)
    return Evidence(folder, results, items)


def _check_identity(path: Path, results: Results, rows: Sequence[Sample]) -> None:
    """All rows are of the suite, model and protocol that results.json speaks of, each key once."""
    seen: set[Key] = set()
    for number, row in enumerate(rows, 1):
        for name in ("suite", "suite_version", "model_hash", "protocol_hash"):
            found, wanted = getattr(row, name), getattr(results, name)
            if found != wanted:
                raise EvidenceError(
                    f"{path}, line {number}: {name} {found[:12]}, but {RESULTS} speaks of {wanted[:12]}; evaluate again"
                )
        key = sample_key(row)
        if key in seen:
            raise EvidenceError(f"{path}, line {number}: item {row.item_id} stands there twice; evaluate again")
        seen.add(key)


def _check_row(where: str, row: Sample, results: Results) -> None:
    """A row agrees with itself: its letters are offered, its score follows from them, its span lies in its response."""
    if results.score_type == "real":
        return
    offered = string.ascii_uppercase[: len(row.choices)]
    if row.n_choices != len(row.choices) or row.expected is None or row.expected not in offered or not row.choices:
        raise EvidenceError(f"{where}: expects {row.expected!r} of {row.n_choices} choices; the row is no question")
    if row.extracted is not None and row.extracted not in offered:
        raise EvidenceError(f"{where}: extracted {row.extracted!r}, which is not offered; the row is not to be trusted")
    if not 0.0 <= row.score <= 1.0:
        raise EvidenceError(f"{where}: score {row.score} outside 0 to 1; the row is not to be trusted")
    if row.rule != "tie" and row.score != float(row.extracted == row.expected):
        raise EvidenceError(f"{where}: score {row.score} for {row.extracted!r} where {row.expected!r} is right")
    if row.span is not None and not 0 <= row.span[0] <= row.span[1] <= len(row.response):
        raise EvidenceError(f"{where}: span {row.span} outside the response; the row is not to be trusted")
    if results.extractor_version == letters.VERSION:
        again = letters.extract(row.response, row.choices).letter
        if again != row.extracted:
            raise EvidenceError(
                f"{where}: extracted {row.extracted!r}, but its response reads {again!r}; edited, so evaluate again"
            )


def _by_item(path: Path, rows: Sequence[Sample]) -> dict[ItemKey, tuple[Sample, ...]]:
    groups: dict[ItemKey, list[Sample]] = defaultdict(list)
    for row in rows:
        groups[(row.item_hash, row.item_id)].append(row)
    return {
        key: tuple(sorted(group, key=lambda row: (row.draw, row.rotation))) for key, group in sorted(groups.items())
    }


def _check_item(path: Path, key: ItemKey, group: Sequence[Sample], results: Results) -> None:
    """An item's rows are all there and turn the same question."""
    first = group[0]
    rotations = sorted({row.rotation for row in group})
    draws = sorted({row.draw for row in group})
    wanted = first.n_choices if results.protocol.get("rotations") == "all" else len(rotations)
    whole = rotations == list(range(wanted)) and draws == list(range(len(draws)))
    if not whole or len(group) != len(rotations) * len(draws):
        raise EvidenceError(f"{path}: item {key[1]} lacks a rotation or a draw; run `kat eval` again, it resumes")
    for row in group:
        turned = first.choices[row.rotation :] + first.choices[: row.rotation]
        right = (
            string.ascii_uppercase[(string.ascii_uppercase.index(first.expected) - row.rotation) % len(turned)]
            if (first.expected)
            else None
        )
        same_slices = row.slices == first.slices or results.score_type == "real"  # there they may be of the draw
        if row.choices != turned or row.expected != right or row.cluster != first.cluster or not same_slices:
            raise EvidenceError(f"{path}: the rows of item {key[1]} are not of one question; evaluate again")


def _check_ids(path: Path, items: dict[ItemKey, tuple[Sample, ...]]) -> None:
    hashes: dict[str, str] = {}
    for item_hash, item_id in items:
        if hashes.setdefault(item_id, item_hash) != item_hash:
            raise EvidenceError(f"{path}: id {item_id} stands for two different questions; give every item its own id")


def _check_results(
    path: Path, results: Results, rows: Sequence[Sample], items: dict[ItemKey, tuple[Sample, ...]]
) -> None:
    """results.json counts and scores what the rows hold: a row removed or added afterwards shows here."""
    if results.n_items != len(items):
        raise EvidenceError(
            f"{path}: speaks of {results.n_items:,} items, {SAMPLES} holds {len(items):,}; rows were removed or added"
        )
    unparsed = sum(row.extracted is None for row in rows if row.expected is not None)
    if results.n_unparsed != unparsed:
        raise EvidenceError(f"{path}: speaks of {results.n_unparsed:,} unparsed, {SAMPLES} holds {unparsed:,}")
    if results.primary not in results.metrics:
        raise EvidenceError(f"{path}: its primary metric {results.primary!r} is not among its metrics; evaluate again")
    if results.score_type != "real":
        mean = fmean(fmean(row.score for row in group) for group in items.values())
        if abs(mean - results.metrics[results.primary].estimate) > CLOSE:
            raise EvidenceError(
                f"{path}: {results.primary} {results.metrics[results.primary].estimate:.6f}, but {SAMPLES} gives "
                f"{mean:.6f}; evaluate again"
            )
