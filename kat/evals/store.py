"""samples.jsonl: appended batch by batch, read back to resume, never silently repaired in its middle.

A run that is killed leaves at most one half-written last line. :func:`open_store` cuts that line off (its item is run
again) and refuses anything else that is wrong, because a row that cannot be read is a row nobody can count.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

from pydantic import ValidationError

from kat.errors import EvidenceError, UsageError
from kat.runs.schemas import SAMPLE_SCHEMA, Sample

SAMPLES = "samples.jsonl"
RESULTS = "results.json"


def dump_sample(sample: Sample) -> bytes:
    """One row as one line of JSON, in the field order of the schema."""
    row = sample.model_dump(by_alias=True)
    return (json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def parse_sample(line: bytes, where: str) -> Sample:
    """Read one line; anything but a valid row of the schema this version knows is an :class:`EvidenceError`."""
    try:
        row = json.loads(line)
    except ValueError:
        raise EvidenceError(f"{where}: not a JSON row; the file was damaged, so evaluate again") from None
    if not isinstance(row, dict):
        raise EvidenceError(f"{where}: a {type(row).__name__} where a row was expected; evaluate again")
    if row.get("schema") != SAMPLE_SCHEMA:
        raise EvidenceError(f"{where}: schema {row.get('schema')!r}, this kat reads {SAMPLE_SCHEMA!r}; evaluate again")
    try:
        return Sample.model_validate(row, strict=False)
    except ValidationError as error:
        raise EvidenceError(f"{where}: {one_fault(error)}; the row is not to be trusted, evaluate again") from None


def one_fault(error: ValidationError) -> str:
    """The first fault of a pydantic error, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def read_samples(path: Path) -> list[Sample]:
    """Every row of a finished samples.jsonl. A cut last line is an :class:`EvidenceError`: the run did not finish."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise EvidenceError(f"{path}: no such file; run `kat eval` into this folder first") from None
    except OSError as error:
        raise EvidenceError(f"{path}: cannot read it ({error.strerror})") from None
    if not data:
        raise EvidenceError(f"{path}: empty; run `kat eval` into this folder first")
    if not data.endswith(b"\n"):
        line = data.count(b"\n") + 1
        raise EvidenceError(f"{path}, line {line}: cut in the middle; run `kat eval` again, it resumes there")
    return [parse_sample(line, f"{path}, line {number}") for number, line in enumerate(data[:-1].split(b"\n"), 1)]


@contextlib.contextmanager
def open_store(folder: Path) -> Iterator[tuple[list[Sample], "Writer"]]:
    """The rows already in `folder` and a writer that appends to them; one process at a time.

    Raises :class:`UsageError` when the folder cannot be written or another process is writing to it.
    """
    path = folder / SAMPLES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)  # unbuffered: what a failed write left is on the disk, not in our memory
    except OSError as error:
        raise UsageError(f"{path}: cannot write here ({error.strerror}); choose another --out") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{path}: another evaluation is writing to it; wait for it or choose another --out"
            ) from None
        file.seek(0)
        data = file.readall()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
        lines = data[:whole].split(b"\n")[:-1]
        yield [parse_sample(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)], Writer(file, path)


class Writer:
    """Appends whole batches to samples.jsonl and flushes each to the disk."""

    def __init__(self, file: FileIO, path: Path) -> None:
        self._file = file
        self._path = path

    def append(self, samples: Sequence[Sample]) -> None:
        """Write the rows and flush them; a full disk is a :class:`UsageError`, and what was whole stays."""
        rest = memoryview(b"".join(dump_sample(sample) for sample in samples))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UsageError(f"{self._path}: cannot write ({error.strerror}); make room and run again") from None
