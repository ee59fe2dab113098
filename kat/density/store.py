"""Embeddings that are being computed, on disk as they come: a run that was killed goes on where it was."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kat.errors import UsageError
from kat.runs.files import naming, read_json, remove_folder, write_json

SCHEMA = "kat.embedding/1"


class EmbeddingStore:
    """A folder with float16 rows and, a line each, the hashes of the texts they belong to. Rows are only appended.

    A hash is written once its row is on the disk, so whatever a kill left, the hashes that are there have their rows.
    """

    def __init__(self, folder: Path, model_hash: str, dim: int) -> None:
        self.folder = folder
        self._rows, self._hashes = folder / "rows.f16", folder / "texts.txt"
        header = {"schema": SCHEMA, "model_hash": model_hash, "dim": dim}
        if folder.exists() and _header(folder) != header:
            remove_folder(folder)  # of another model: nothing in it can be used
        if not folder.exists():
            folder.mkdir(parents=True)
            write_json(folder / "header.json", header)
        self.dim = dim
        for path in (self._rows, self._hashes):
            path.touch()
        done = self._hashes.read_text().splitlines()
        if done and len(done[-1]) < 64:
            done.pop()
        done = done[: self._rows.stat().st_size // (2 * dim)]
        with self._rows.open("r+b") as rows, self._hashes.open("r+b") as hashes:
            rows.truncate(len(done) * 2 * dim)
            hashes.truncate(len(done) * 65)
        self.place = {text_hash: i for i, text_hash in enumerate(done)}

    def append(self, hashes: Sequence[str], embeddings: np.ndarray) -> None:
        """Add embeddings (b, d) of texts with these hashes (64 characters each)."""
        for path, content in (
            (self._rows, embeddings.astype("<f2").tobytes()),
            (self._hashes, "".join(f"{one}\n" for one in hashes).encode()),
        ):
            with naming(path), path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for one in hashes:
            self.place[one] = len(self.place)

    def matrix(self) -> np.ndarray:
        """All rows (n, d) float16, memory-mapped; `place` says which is whose."""
        if not self.place:
            return np.empty((0, self.dim), dtype="<f2")
        return np.memmap(self._rows, dtype="<f2", mode="r", shape=(len(self.place), self.dim))

    def remove(self) -> None:
        remove_folder(self.folder)


def _header(folder: Path) -> Any:
    try:
        return read_json(folder / "header.json")
    except UsageError:
        if any(path.name not in ("header.json", "rows.f16", "texts.txt") for path in folder.iterdir()):
            raise UsageError(f"{folder}: in the way, and not left by kat; move it") from None
        return None
