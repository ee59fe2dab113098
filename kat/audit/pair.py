"""Two runs become one table of pairs, or they are refused.

Items pair by the hash of their content (question, choices in order, answer, hint), never by id alone: permuting the
questions under the same ids, or leaving out the items that went wrong, must not change a comparison unseen.
"""

from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from kat.audit.load import Evidence, ItemKey
from kat.audit.words import count
from kat.errors import EvidenceError, UsageError
from kat.runs.schemas import Sample

SHOWN = 3


@dataclass(frozen=True)
class PairedItem:
    """One item as both models met it; the rows are in the order of draw and rotation."""

    key: ItemKey
    a: tuple[Sample, ...]
    b: tuple[Sample, ...]

    @property
    def score_a(self) -> float:
        """A's score of the item, the mean over its rows."""
        return fmean(row.score for row in self.a)

    @property
    def score_b(self) -> float:
        """B's score of the item."""
        return fmean(row.score for row in self.b)


@dataclass(frozen=True)
class Pair:
    """Two runs on the same items, sorted by content hash, and what a reader must know of their likeness."""

    a: Evidence
    b: Evidence
    items: tuple[PairedItem, ...]
    score_type: str
    same_model: bool
    n_prompts_differ: int
    n_prompts_unrecorded: int
    protocol_differences: tuple[str, ...]
    notes: tuple[str, ...]


def pair(a: Evidence, b: Evidence, *, protocol_is_treatment: bool = False, real: bool = False) -> Pair:
    """Pair two runs item by item.

    Raises :class:`EvidenceError` when they are one run (same folder or run_id), of another suite, version or extractor,
    of another protocol (unless that is the declared treatment), or not over exactly the same items;
    :class:`UsageError` for a suite whose scores are no share of right answers, unless `real` allows any number.
    """
    _check_two_runs(a, b)
    differences = _check_protocol(a, b, protocol_is_treatment)
    if a.results.score_type == "real" and not real:
        other = "`kat eval diversity A B` compares" if a.results.suite == "diversity" else "audit another suite"
        raise UsageError(f"suite {a.results.suite!r} measures {a.results.primary}, which is no accuracy; {other}")
    items = tuple(_pair_items(a, b))
    notes = []
    if a.results.data_hash != b.results.data_hash:
        notes.append("The data files differ, but every item in them is the same by content.")
    rows = [(x, y) for item in items for x, y in zip(item.a, item.b, strict=True)]
    unrecorded = sum(x.prompt_hash is None or y.prompt_hash is None for x, y in rows)
    differ = sum(x.prompt_hash != y.prompt_hash for x, y in rows if x.prompt_hash and y.prompt_hash)
    binary = a.results.score_type == "binary" and all(len(item.a) == 1 for item in items)
    return Pair(
        a=a,
        b=b,
        items=items,
        score_type="binary" if binary else "bounded",
        same_model=a.results.model_hash == b.results.model_hash,
        n_prompts_differ=differ,
        n_prompts_unrecorded=unrecorded,
        protocol_differences=differences,
        notes=tuple(notes),
    )


def _check_two_runs(a: Evidence, b: Evidence) -> None:
    if a.folder.resolve() == b.folder.resolve():
        raise EvidenceError(f"{a.folder}: a run compared with itself (A and B are one folder)")
    if a.results.run_id == b.results.run_id:
        raise EvidenceError(f"{a.folder} and {b.folder}: a run compared with itself (run_id {a.results.run_id[:12]})")


def _check_protocol(a: Evidence, b: Evidence, declared: bool) -> tuple[str, ...]:
    for name in ("suite", "suite_version", "score_type", "extractor_version"):
        left, right = getattr(a.results, name), getattr(b.results, name)
        if left != right:
            raise EvidenceError(f"{name} is {left!r} in {a.folder} and {right!r} in {b.folder}; evaluate both alike")
    if a.results.protocol_hash == b.results.protocol_hash:
        return ()
    differences = tuple(_differences("", dict(a.results.protocol), dict(b.results.protocol)))
    if not declared:
        raise EvidenceError(
            f"{a.folder} and {b.folder} were evaluated by different protocols ({'; '.join(differences[:SHOWN])}); "
            "evaluate both alike"
        )
    return differences


def _differences(prefix: str, left: dict[str, object], right: dict[str, object]) -> list[str]:
    found = []
    for name in sorted(left.keys() | right.keys()):
        x, y = left.get(name, "absent"), right.get(name, "absent")
        if isinstance(x, dict) and isinstance(y, dict):
            found += _differences(f"{prefix}{name}.", x, y)
        elif x != y:
            found.append(f"{prefix}{name}: {x} in A, {y} in B")
    return found


def _pair_items(a: Evidence, b: Evidence) -> list[PairedItem]:
    ids_a = {item_id: item_hash for item_hash, item_id in a.items}
    ids_b = {item_id: item_hash for item_hash, item_id in b.items}
    changed = [name for name in ids_a if name in ids_b and ids_a[name] != ids_b[name]]
    if changed:
        stand = "stands" if len(changed) == 1 else "stand"
        raise EvidenceError(
            f"{count(len(changed), 'id')} ({_shown(changed)}) {stand} for one question in {a.folder} and for another "
            f"in {b.folder}; evaluate both on the same file"
        )
    _check_same_items(a, b)
    partner = _partners(a, b)
    items = []
    for key, rows_a in a.items.items():
        rows_b = b.items[partner[key]]
        for x, y in zip(rows_a, rows_b, strict=False):
            if (x.draw, x.rotation, x.choices, x.expected) != (y.draw, y.rotation, y.choices, y.expected):
                raise EvidenceError(
                    f"item {key[1]}: {a.folder} and {b.folder} show other options under one content hash"
                )
        if len(rows_a) != len(rows_b):
            raise EvidenceError(f"item {key[1]}: {len(rows_a)} rows in {a.folder}, {len(rows_b)} in {b.folder}")
        if rows_a[0].cluster != rows_b[0].cluster:
            raise EvidenceError(f"item {key[1]}: in cluster {rows_a[0].cluster} in A and {rows_b[0].cluster} in B")
        items.append(PairedItem(key, rows_a, rows_b))
    return items


def _check_same_items(a: Evidence, b: Evidence) -> None:
    count_a = Counter(item_hash for item_hash, _ in a.items)
    count_b = Counter(item_hash for item_hash, _ in b.items)
    for here, there, more in ((a, b, count_a - count_b), (b, a, count_b - count_a)):
        if more:
            missing = [item_id for item_hash, item_id in here.items if item_hash in more]
            raise EvidenceError(
                f"{sum(more.values()):,} of {len(here.items):,} items of {here.folder} ({_shown(missing)}) are "
                f"missing in {there.folder}; evaluate both on the same items"
            )


def _partners(a: Evidence, b: Evidence) -> dict[ItemKey, ItemKey]:
    """B's key for each of A's. Contents that a data set repeats can only be told apart by their ids."""
    by_hash = {item_hash: (item_hash, item_id) for item_hash, item_id in b.items}
    repeated = {item_hash for item_hash, n in Counter(item_hash for item_hash, _ in a.items).items() if n > 1}
    partner = {}
    for key in a.items:
        if key[0] in repeated and key not in b.items:
            raise EvidenceError(
                f"item {key[1]} of {a.folder}: its content stands there several times, and {b.folder} numbers it "
                "otherwise; evaluate both on the same file"
            )
        partner[key] = key if key in b.items else by_hash[key[0]]
    return partner


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
