"""Batches of rows whose cursor (epoch, row) is the whole state.

The order of the examples and the packing plan of an epoch are pure functions of (data, seed, epoch), so a run that is
resumed from a saved cursor sees the same batches as one that was never stopped, on any number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kat.data import packing
from kat.data.tokens import TokenData
from kat.errors import EvidenceError, UsageError

IGNORED = -1
LAYOUTS = ("stream", "packed")


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens. A target of -1 is not supervised.

    `doc_ids` number the examples within a row from 0 (-1 is padding), so that a model can keep them apart; they are
    None in the stream layout, where documents are *not* isolated from each other.
    """

    ids: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64
    doc_ids: np.ndarray | None  # (B, T) int32
    example_ids: list[list[str]]  # per row, the examples that it holds (a part of)


class Batches:
    """An iterator over the batches of a :class:`TokenData`, endless unless `repeat` is off.

    stream: the examples of an epoch, permuted, are one sequence of tokens, cut into windows of ``row_len + 1`` that
    overlap by one; each supervised token is a target exactly once an epoch. The tail is padded, not lost.

    packed: whole examples share rows by best fit (:mod:`kat.data.packing`). Each example is shifted by itself: a
    target never stands in another example than its input. An example of L tokens takes L - 1 positions.

    `batch_rows` is the number of rows over all ranks; this rank gets rows ``rank::world`` of each. With `repeat` a
    batch that reaches the end of an epoch goes on with the next one. Without, there is one pass: the last batch may be
    smaller, and a rank that has no row in it gets one of padding, so that all ranks take the same number of steps.
    """

    def __init__(
        self,
        data: TokenData,
        *,
        row_len: int,
        batch_rows: int,
        layout: str,
        pad_id: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        repeat: bool = True,
    ) -> None:
        if layout not in LAYOUTS:
            raise UsageError(f"layout {layout!r}: choose {' or '.join(LAYOUTS)}")
        if row_len < 1 or batch_rows < 1 or not 0 <= rank < world:
            raise UsageError(f"impossible batch: row_len {row_len}, batch_rows {batch_rows}, rank {rank} of {world}")
        if repeat and batch_rows < world:
            raise UsageError(f"batch_rows {batch_rows} is less than one row for each of {world} ranks")
        if not len(data):
            raise UsageError("no example to train on")
        too_long = np.flatnonzero(data.lengths > row_len + 1) if layout == "packed" else np.zeros(0)
        if len(too_long):
            raise UsageError(
                f"example {data.names[too_long[0]]}: {data.lengths[too_long[0]]} tokens do not fit a packed row of "
                f"{row_len + 1} (as do {len(too_long) - 1} more): encode with max_len {row_len + 1} or take longer rows"
            )
        self.data, self.row_len, self.batch_rows, self.layout = data, row_len, batch_rows, layout
        self.pad_id, self.seed, self.shuffle = pad_id, seed, shuffle
        self.rank, self.world, self.repeat = rank, world, repeat
        self._epoch, self._row = 0, 0
        self._plan: tuple[int, _Plan] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.next()

    def next(self) -> Batch:
        """This rank's part of the next batch. Raises StopIteration after the only pass when `repeat` is off."""
        if not self.repeat and self._epoch > 0:
            raise StopIteration
        rows: list[_Row] = []
        missing = self.batch_rows
        while missing and (self.repeat or self._epoch == 0):
            plan = self._plan_of(self._epoch)
            end = min(self._row + missing, len(plan))
            first = self.batch_rows - missing  # the place in the global batch of the row at the cursor
            skip = (self.rank - first) % self.world
            rows += [plan.row(index) for index in range(self._row + skip, end, self.world)]
            missing -= end - self._row
            self._epoch, self._row = (self._epoch + 1, 0) if end == len(plan) else (self._epoch, end)
        return self._collate(rows)

    def state(self) -> dict[str, Any]:
        """The cursor, and what it is a cursor of; plain JSON."""
        return {"epoch": self._epoch, "row": self._row, **self._identity()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved cursor. Rank and world may differ from those that saved it.

        Raises :class:`EvidenceError` when the cursor is one of other data or of another way to cut it.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise EvidenceError(f"data cursor: {name} is {value!r} here and {state.get(name)!r} in the saved state")
        place = (state.get("epoch"), state.get("row"))
        match place:
            case (int(epoch), int(row)) if epoch >= 0 and 0 <= row < self.rows_per_epoch(epoch):
                self._epoch, self._row = epoch, row
            case _:
                raise EvidenceError(f"data cursor: epoch {place[0]!r}, row {place[1]!r} is no place in this data")

    def rows_per_epoch(self, epoch: int = 0) -> int:
        """How many rows an epoch has over all ranks; in the packed layout epochs differ by a few."""
        if self.layout == "stream":
            return _n_windows(len(self.data.ids), self.row_len)
        return len(self._plan_of(epoch))

    def _identity(self) -> dict[str, Any]:
        names = ("layout", "row_len", "seed", "shuffle")
        return {"data": self.data.hash, **{name: getattr(self, name) for name in names}}

    def _plan_of(self, epoch: int) -> "_Plan":
        if self._plan is None or self._plan[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
            plan = _StreamPlan if self.layout == "stream" else _PackedPlan
            self._plan = (epoch, plan(self.data, self.row_len, rng))
        return self._plan[1]

    def _collate(self, rows: "list[_Row]") -> Batch:
        shape = (max(len(rows), 1), self.row_len)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        doc_ids = np.full(shape, -1, dtype=np.int32) if self.layout == "packed" else None
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = row.ids
            targets[index, : len(row.ids)] = row.targets
            if doc_ids is not None and row.doc_ids is not None:
                doc_ids[index, : len(row.ids)] = row.doc_ids
        return Batch(ids, targets, doc_ids, [row.names for row in rows] or [[]])


@dataclass(frozen=True)
class _Row:
    ids: np.ndarray
    targets: np.ndarray
    doc_ids: np.ndarray | None
    names: list[str]


def _targets(data: TokenData, places: np.ndarray) -> np.ndarray:
    """The tokens at `places` where they are supervised, else -1."""
    return np.where(data.mask[places] == 1, data.ids[places], IGNORED)


def _n_windows(n_tokens: int, row_len: int) -> int:
    return -(-(n_tokens - 1) // row_len)


class _StreamPlan:
    """Windows of row_len + 1 over the permuted examples. Nothing is copied until a window is asked for."""

    def __init__(self, data: TokenData, row_len: int, rng: np.random.Generator | None) -> None:
        self.data, self.row_len = data, row_len
        self.order = np.arange(len(data)) if rng is None else rng.permutation(len(data))
        self.starts = np.concatenate([[0], np.cumsum(data.lengths[self.order])])  # of each example in the stream

    def __len__(self) -> int:
        return _n_windows(len(self.data.ids), self.row_len)

    def row(self, index: int) -> _Row:
        start = index * self.row_len
        stream = np.arange(start, min(start + self.row_len + 1, len(self.data.ids)))
        ranks = np.searchsorted(self.starts, stream, side="right") - 1  # which example, in the permuted order
        places = self.data.offsets[self.order[ranks]] + stream - self.starts[ranks]
        names = [self.data.names[self.order[rank]] for rank in range(ranks[0], ranks[-1] + 1)]
        return _Row(self.data.ids[places[:-1]], _targets(self.data, places[1:]), None, names)


class _PackedPlan:
    """Rows of whole examples, each shifted by itself."""

    def __init__(self, data: TokenData, row_len: int, rng: np.random.Generator | None) -> None:
        self.data, self.sizes = data, data.lengths - 1
        self.rows = packing.pack(self.sizes, row_len, rng)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> _Row:
        examples = self.rows[index]
        places = np.concatenate([np.arange(self.data.offsets[e], self.data.offsets[e + 1] - 1) for e in examples])
        return _Row(
            ids=self.data.ids[places],
            targets=_targets(self.data, places + 1),
            doc_ids=np.repeat(np.arange(len(examples), dtype=np.int32), self.sizes[examples]),
            names=[self.data.names[e] for e in examples],
        )


_Plan = _StreamPlan | _PackedPlan
