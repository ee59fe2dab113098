"""The ledger: every attempt to pass a gate, one JSON row a line, each holding the hash of the row before it.

Trying until the coin falls right shows in the number of the attempt. A row that was edited, removed or put in breaks
the chain; rows cut off at the end do not, which is what version control or a cache of the file is for.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from kat.errors import EvidenceError, UsageError
from kat.runs.files import canonical_json, hash_json
from kat.runs.provenance import now

LEDGER_SCHEMA = "kat.ledger/1"
FIELDS = {"schema", "time", "policy_hash", "data_hash", "a", "b", "outcome", "previous"}


class Ledger:
    """An open, locked and checked ledger."""

    def __init__(self, path: Path, file: FileIO, rows: list[dict[str, Any]], last: str | None) -> None:
        self.path, self._file, self.rows, self._last = path, file, rows, last

    def attempts(self, policy_hash: str, data_hash: str | None) -> tuple[int, int]:
        """Earlier attempts on this policy and data, and on this data under any policy."""
        here = [row for row in self.rows if row["data_hash"] == data_hash]
        return sum(row["policy_hash"] == policy_hash for row in here), len(here)

    def append(self, policy_hash: str, data_hash: str | None, a: list[str], b: list[str], outcome: str) -> None:
        """Add one row and flush it to the disk."""
        row = {
            "schema": LEDGER_SCHEMA,
            "time": now(),
            "policy_hash": policy_hash,
            "data_hash": data_hash,
            "a": a,
            "b": b,
            "outcome": outcome,
            "previous": self._last,
        }
        line = canonical_json(row).encode()
        try:
            rest = memoryview(line + b"\n")
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UsageError(f"{self.path}: cannot write the attempt ({error.strerror}); make room") from None
        self.rows.append(row)
        self._last = hashlib.sha256(line).hexdigest()


def items_hash(items: Iterable[tuple[str, str]]) -> str:
    """The data of an attempt: sha256 over the content hashes of its items, given as (item_hash, item_id)."""
    return hash_json(sorted(item_hash for item_hash, _ in items))


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The rows of a ledger, none where there is no file yet. EvidenceError where its chain is broken."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{path}: cannot read the ledger ({error.strerror})") from None
    return _read(path, data)[0]


@contextlib.contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Open (or begin) the ledger for one attempt; another gate waits. EvidenceError where its chain is broken."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise UsageError(f"{path}: cannot open the ledger ({error.strerror})") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows, last = _read(path, file.readall())
        yield Ledger(path, file, rows, last)


def _read(path: Path, data: bytes) -> tuple[list[dict[str, Any]], str | None]:
    if data and not data.endswith(b"\n"):
        raise EvidenceError(f"{path}: its last line is cut; the ledger was damaged, so restore it")
    rows: list[dict[str, Any]] = []
    last: str | None = None
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or set(row) != FIELDS or row["schema"] != LEDGER_SCHEMA:
            raise EvidenceError(f"{path}, line {number}: no row of {LEDGER_SCHEMA}; the ledger was damaged, restore it")
        if row["previous"] != last:
            raise EvidenceError(
                f"{path}, line {number}: the chain of hashes breaks here; a row was edited, removed or put in"
            )
        last = hashlib.sha256(line).hexdigest()
        rows.append(row)
    return rows, last
