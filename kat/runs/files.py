"""Files that are either wholly there or not there, and the hashes that identify them."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kat.errors import UsageError


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, so that the text can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_json(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old content or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file() and not path.is_dir():
        with naming(path), path.open("w", encoding="utf-8") as device:  # /dev/stdout: to be written, never replaced
            device.write(text)
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.new-", dir=path.parent)
    try:
        with naming(path), os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. NaN and Infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def require_writable(path: Path, option: str) -> None:
    """UsageError, naming the option, where a file could not be written at `path`: asked before the work, not after."""
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder; give the file to write")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: no permission to write in {folder}")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a :class:`UsageError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a JSON file ({error})") from None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path` into an OSError that names no file (a full disk, while writing): the user must know where."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary sibling folder, then put it at `path` in one rename.

    Everything in it is flushed to disk first. An existing folder at `path` is moved aside, and back if the new one
    cannot take its place. When the body raises, nothing is left behind. A process that is killed may leave hidden
    siblings, and, in the instant between the two renames, none at `path`: :func:`recover_folder` mends both.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        _flush(temporary)
        if path.exists():
            _exchange(temporary, path)
        else:
            os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _exchange(new: Path, path: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    os.replace(path, aside / "folder")
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(aside / "folder", path)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no reader ever sees half of it: it is renamed away first."""
    if path.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.gone-", dir=path.parent))
        os.replace(path, aside / "folder")
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Mend what a killed :func:`new_folder` or :func:`remove_folder` of `path` left beside it.

    Only for a caller that knows that no other process is writing `path`.
    """
    leftover = re.compile(rf"\.{re.escape(path.name)}\.(new|old|gone)-\w{{8}}")
    found = [p for p in path.parent.glob(".*") if leftover.fullmatch(p.name)] if path.parent.is_dir() else []
    for old in found:
        if ".old-" in old.name and (old / "folder").exists() and not path.exists():
            os.replace(old / "folder", path)
    for rest in found:
        if rest.is_dir():
            shutil.rmtree(rest)
        else:
            rest.unlink()


def replace_file(temporary: Path, path: Path) -> None:
    """Put a file that is complete at `path`, flushed to disk before it is there."""
    _fsync(temporary)
    os.replace(temporary, path)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that is never written in place; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _flush(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _fsync(Path(root) / name)
        _fsync(Path(root))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)
