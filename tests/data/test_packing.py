"""Best-fit packing: nothing lost, nothing overfull, nearly nothing wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.packing import fill, pack


def slow_best_fit(sizes: list[int], row_len: int) -> list[list[int]]:
    """The textbook: largest first, into the fullest row that still has room. Quadratic, and plain to see."""
    rows: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        rooms = [row_len - sum(sizes[k] for k in row) for row in rows]
        fitting = [room for room in rooms if room >= sizes[index]]
        if fitting:
            rows[rooms.index(min(fitting))].append(index)
        else:
            rows.append([index])
    return rows


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.data(), st.integers(1, 50), st.booleans())
def test_every_example_is_in_one_row_and_no_row_is_overfull(
    row_len: int, data: st.DataObject, window: int, mix
) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(1, row_len), max_size=120)), dtype=np.int64)
    rows = pack(sizes, row_len, np.random.default_rng(0) if mix else None, window)
    assert sorted(k for row in rows for k in row.tolist()) == list(range(len(sizes)))
    assert all(0 < sizes[row].sum() <= row_len for row in rows)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.data())
def test_it_uses_as_many_rows_as_the_textbooks_best_fit_decreasing(row_len: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, row_len), max_size=60))
    ours, theirs = pack(np.array(sizes, dtype=np.int64), row_len, None), slow_best_fit(sizes, row_len)
    assert sorted(sum(sizes[k] for k in row) for row in ours) == sorted(sum(sizes[k] for k in row) for row in theirs)


def test_typical_lengths_fill_the_rows() -> None:
    lengths = np.random.default_rng(0).lognormal(4.0, 0.6, size=100_000).clip(4, 256).astype(np.int64)
    rows = pack(lengths, 256, np.random.default_rng(1))
    assert fill(rows, lengths, 256) > 0.98
    assert fill([], lengths, 256) == 0.0


def test_another_seed_packs_otherwise_and_long_examples_do_not_come_first() -> None:
    sizes = np.random.default_rng(0).integers(1, 60, size=5_000)
    first, again, other = (pack(sizes, 64, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert [row.tolist() for row in first] == [row.tolist() for row in again]
    assert {tuple(sorted(row)) for row in map(np.ndarray.tolist, first)} != {
        tuple(sorted(row)) for row in map(np.ndarray.tolist, other)
    }
    largest = np.array([sizes[row].max() for row in first])
    assert abs(np.corrcoef(np.arange(len(first)), largest)[0, 1]) < 0.1


def test_sizes_that_cannot_fit_are_refused() -> None:
    for sizes in ([5], [0]):
        with pytest.raises(ValueError, match="between 1 and"):
            pack(np.array(sizes), 4, None)
