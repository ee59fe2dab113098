"""Rows of JSONL files, read strictly: a fault of the file stops at once, a fault of a row is dropped and named by line.

A *file* fault (missing, empty, a cut gzip, binary, not UTF-8, an array instead of lines, a last row cut in half, no
usable row at all) raises a :class:`UsageError`. A *row* fault (malformed JSON, a row that the parser refuses, a key
that stands already) is dropped, counted and named by its line; more than `max_bad` of the lines raises as well.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from kat.errors import UsageError

T = TypeVar("T")

GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class RowError(Exception):
    """One row can't be used; the message says why and needs no file or line."""


@dataclass(frozen=True)
class RowFault:
    """A row that was dropped. `line` counts from 1 in the decompressed file."""

    path: Path
    line: int
    reason: str


@dataclass(frozen=True)
class Rows(Generic[T]):
    """What was read: the good rows in file order, the faults, how many lines held a row, and the data's sha256."""

    rows: list[T]
    faults: list[RowFault]
    n_lines: int
    hash: str

    def report(self, shown: int = 3) -> str:
        """One line for people: ``12,237 rows read, 3 dropped (line 17: answer 5 outside its 4 choices; …)``."""
        read = f"{self.n_lines:,} row{'' if self.n_lines == 1 else 's'} read"
        if not self.faults:
            return read
        return f"{read}, {len(self.faults):,} dropped ({_name_faults(self.faults, shown)})"


def load_rows(
    paths: Sequence[Path],
    parse: Callable[[dict[str, Any]], T],
    *,
    key: Callable[[T], str] | None,
    max_bad: float = 0.01,
) -> Rows[T]:
    """Read .jsonl files (gzip or plain, told apart by content) and .txt files (one document each), in the order given.

    A row without an ``id`` gets ``<file name>:<line>``. Blank lines are skipped and not counted. `parse` turns a JSON
    object into a row or raises :class:`RowError`; `key` names what must be unique over all files. The hash is the
    sha256 of the decompressed bytes of all files in order. Raises :class:`UsageError` on a file fault, and when more
    than the share `max_bad` of the lines are faulty.
    """
    if not 0 <= max_bad <= 1:
        raise UsageError(f"max_bad {max_bad}: must lie between 0 and 1")
    paths = [Path(path) for path in paths]
    if not paths:
        raise UsageError("no data file given")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"{twice}: given twice; name each data file once")
    names = _names(paths)
    digest = hashlib.sha256()
    rows: list[T] = []
    faults: list[RowFault] = []
    seen: dict[str, tuple[Path, int]] = {}
    n_lines = 0
    for path in paths:
        n_good, n_of_file, first_fault = 0, 0, len(faults)
        for line, row in _read(path, digest):
            n_of_file += 1
            try:
                if isinstance(row, RowError):
                    raise row
                row.setdefault("id", f"{names[path]}:{line}")
                value = parse(row)
                if key is not None:
                    _check_unique(key(value), path, line, seen)
            except RowError as error:
                faults.append(RowFault(path, line, str(error)))
            else:
                rows.append(value)
                n_good += 1
        if n_good == 0:
            what = _name_faults(faults[first_fault:], 1)
            raise UsageError(f"{path}: none of its {n_of_file:,} rows can be used ({what}); is this the right file?")
        n_lines += n_of_file
    if len(faults) > max_bad * n_lines:
        raise UsageError(
            f"{paths[0] if len(paths) == 1 else f'{len(paths)} files'}: {len(faults):,} of {n_lines:,} rows are faulty "
            f"({_name_faults(faults, 3)}), more than the share {max_bad:.3g} allowed: mend them, or raise max_bad"
        )
    return Rows(rows, faults, n_lines, digest.hexdigest())


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """How a row without an id names its file: the bare name, or the path as given where two names are equal."""
    bare = [path.name for path in paths]
    return {path: path.name if bare.count(path.name) == 1 else str(path) for path in paths}


def _name_faults(faults: Sequence[RowFault], shown: int) -> str:
    one_file = len({fault.path for fault in faults}) == 1
    named = [f"{'' if one_file else f'{f.path.name} '}line {f.line}: {f.reason}" for f in faults[:shown]]
    return "; ".join(named) + ("; …" if len(faults) > shown else "")


def _check_unique(key: str, path: Path, line: int, seen: dict[str, tuple[Path, int]]) -> None:
    first = seen.setdefault(key, (path, line))
    if first != (path, line):
        where = f"line {first[1]}" if first[0] == path else f"{first[0].name} line {first[1]}"
        raise RowError(f"id {key!r} stands already in {where}")


def _read(path: Path, digest: Any) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(line, row) for each line that is not blank; the row is the fault where it can't be read."""
    if _is_text(path):
        content = b"".join(_lines(path, digest))
        text = _decode(content.removeprefix(UTF8_BOM), path, 1)
        if not text.strip():
            raise UsageError(f"{path}: empty file")
        yield 1, {"text": text}
        return
    found = False
    for line, raw in enumerate(_lines(path, digest), start=1):
        if line == 1:
            raw = raw.removeprefix(UTF8_BOM)
        text = _decode(raw, path, line)
        if not text.strip():
            continue
        if not found and text.lstrip().startswith("["):
            raise UsageError(f"{path} line {line}: a JSON array; write one object a line (JSONL)")
        found = True
        yield line, _parse_line(text, path, line)
    if not found:
        raise UsageError(f"{path}: empty file")


def _is_text(path: Path) -> bool:
    return path.name.endswith((".txt", ".txt.gz"))


def _parse_line(text: str, path: Path, line: int) -> dict[str, Any] | RowError:
    try:
        row = json.loads(text, parse_constant=_refuse_constant)
    except RowError as error:
        return error
    except RecursionError:
        return RowError("JSON nested too deeply")
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        if at_end and not text.endswith("\n") and text.lstrip().startswith("{"):
            raise UsageError(
                f"{path} line {line}: the file ends in the middle of a row (cut short?); copy it again or end it after "
                f"line {line - 1}"
            ) from None
        return RowError(f"not JSON ({error.msg}, column {error.colno})")
    except ValueError as error:  # an integer of thousands of digits
        return RowError(f"not usable JSON ({error})")
    if not isinstance(row, dict):
        return RowError(f"not a JSON object but {_kind(row)}")
    if "\\u" in text and _has_lone_surrogate(row):
        return RowError("holds half of a surrogate pair, which is no text")
    return row


def _refuse_constant(name: str) -> None:
    raise RowError(f"not JSON ({name})")


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _has_lone_surrogate(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _decode(raw: bytes, path: Path, line: int) -> str:
    if b"\0" in raw:
        raise UsageError(f"{path} line {line}: holds NUL bytes: a binary file, not JSONL text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} line {line}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}): convert it"
        ) from None


def _lines(path: Path, digest: Any) -> Iterator[bytes]:
    """The lines of a file as bytes, decompressed, each with its line feed; every byte also goes into the digest."""
    if path.is_dir():
        raise UsageError(f"{path}: a folder; name the files in it")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from None
    zipped = start.startswith(GZIP_MAGIC)
    if start.startswith(UTF16_BOMS):
        raise UsageError(f"{path}: UTF-16 text, not UTF-8: convert the file")
    if path.suffix == ".gz" and not zipped:
        raise UsageError(f"{path}: {'named .gz but not gzip: rename it or copy it again' if start else 'empty file'}")
    try:
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            for raw in file:
                digest.update(raw)
                yield raw
    except EOFError:
        raise UsageError(f"{path}: the gzip ends too early (cut short?); copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: a broken gzip ({error}); copy it again") from None
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from None
