"""Best-fit packing: which examples share a row. Pure functions of the sizes and a generator.

The rows are filled largest example first, each into the row with the least room that still holds it (best-fit
decreasing; Johnson 1973: at most 11/9 of the optimal number of rows). This happens within windows of the shuffled
order, so that which examples meet in a row changes from epoch to epoch; then the rows are shuffled, so that the order
of training does not run from long examples to short ones.
"""

import numpy as np

WINDOW = 4096


def pack(sizes: np.ndarray, row_len: int, rng: np.random.Generator | None, window: int = WINDOW) -> list[np.ndarray]:
    """Rows of example indices: each index 0 … n-1 in exactly one row, and no row's sizes sum to more than `row_len`.

    `sizes` (n,) are the positions that each example takes, 1 … row_len. Without a generator the examples are taken in
    their order and the rows stay in the order in which they were begun.
    """
    if len(sizes) and (sizes.min() < 1 or sizes.max() > row_len):
        raise ValueError(f"sizes must lie between 1 and the row's {row_len}")
    order = np.arange(len(sizes)) if rng is None else rng.permutation(len(sizes))
    rows: list[np.ndarray] = []
    for start in range(0, len(order), window):
        rows += _best_fit_decreasing(order[start : start + window], sizes, row_len)
    return rows if rng is None else [rows[index] for index in rng.permutation(len(rows))]


def fill(rows: list[np.ndarray], sizes: np.ndarray, row_len: int) -> float:
    """The share of the rows' positions that hold a token."""
    return float(sizes[np.concatenate(rows)].sum() / (len(rows) * row_len)) if rows else 0.0


def _best_fit_decreasing(indices: np.ndarray, sizes: np.ndarray, row_len: int) -> list[np.ndarray]:
    """One window. Open rows stand in stacks by the room they have left; a bit set over the rooms that occur finds the
    smallest room ≥ size in one step, so a window costs O(n log n) for the sort and O(n · row_len/64) for the rest."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(row_len + 1)]
    rooms = 0  # bit r is set where by_room[r] is not empty
    decreasing = indices[np.argsort(-sizes[indices], kind="stable")]
    for index, size in zip(decreasing.tolist(), sizes[decreasing].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
            rows[row].append(index)
        else:
            room = row_len
            row = len(rows)
            rows.append([index])
        by_room[room - size].append(row)
        if room > size:
            rooms |= 1 << (room - size)
    return [np.array(row, dtype=np.int64) for row in rows]
