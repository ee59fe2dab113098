"""Batches: each supervised token once an epoch, no target over a border, a cursor that is the whole state."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.batches import Batch, Batches
from kat.data.tokens import TokenData
from kat.errors import EvidenceError, UsageError
from tests.data.tools import PAD, datas, supervised_pairs, token_data

row_lens, rows, seeds = st.integers(11, 30), st.integers(1, 7), st.integers(0, 5)
layouts = st.sampled_from(["stream", "packed"])


def batches(data: TokenData, **changes: Any) -> Batches:
    settings = {"row_len": 16, "batch_rows": 3, "layout": "packed", "pad_id": PAD, "seed": 0}
    return Batches(data, **{**settings, **changes})


def pairs_of(batch: Batch) -> list[tuple[int, int]]:
    there = batch.targets >= 0
    return list(zip(batch.ids[there].tolist(), batch.targets[there].tolist(), strict=True))


def rows_of(batch: Batch) -> list[tuple]:
    """The rows that hold anything, as values that compare."""
    marks = [None] * len(batch.ids) if batch.doc_ids is None else batch.doc_ids.tolist()
    found = zip(batch.ids.tolist(), batch.targets.tolist(), marks, batch.example_ids, strict=True)
    return [(tuple(i), tuple(t), m and tuple(m), tuple(n)) for i, t, m, n in found if n]


def same(left: Batch, right: Batch) -> bool:
    return (
        np.array_equal(left.ids, right.ids)
        and np.array_equal(left.targets, right.targets)
        and (left.doc_ids is None) == (right.doc_ids is None)
        and (left.doc_ids is None or np.array_equal(left.doc_ids, right.doc_ids))
        and left.example_ids == right.example_ids
    )


@settings(deadline=None, max_examples=80)
@given(datas(), row_lens, rows, seeds, st.booleans())
def test_packed_an_epoch_trains_exactly_the_supervised_pairs_of_the_examples(data, row_len, n, seed, shuffle) -> None:
    epoch = list(batches(data, row_len=row_len, batch_rows=n, seed=seed, shuffle=shuffle, repeat=False))
    assert sorted(pair for batch in epoch for pair in pairs_of(batch)) == supervised_pairs(data)
    names = Counter(name for batch in epoch for row in batch.example_ids for name in row)
    assert names == Counter(data.names)


@settings(deadline=None, max_examples=80)
@given(datas(), row_lens, seeds)
def test_packed_rows_hold_whole_examples_kept_apart(data, row_len, seed) -> None:
    """Each run of one doc id is one whole example without its last token; nothing else but padding stands in a row."""
    for batch in batches(data, row_len=row_len, seed=seed, repeat=False):
        for ids, targets, marks, names in zip(batch.ids, batch.targets, batch.doc_ids, batch.example_ids, strict=True):
            for mark, name in enumerate(names):
                k = data.names.index(name)
                start, end = data.offsets[k], data.offsets[k + 1]
                here = marks == mark
                assert ids[here].tolist() == list(range(start, end - 1))
                assert ((targets[here] == -1) | ((targets[here] > start) & (targets[here] < end))).all()
                assert (np.diff(np.flatnonzero(here)) == 1).all()
            padding = marks == -1
            assert set(marks.tolist()) - {-1} == set(range(len(names)))
            assert (ids[padding] == PAD).all()
            assert (targets[padding] == -1).all()


@settings(deadline=None, max_examples=80)
@given(datas(), st.integers(1, 30), rows, seeds, st.booleans())
def test_stream_reads_one_sequence_and_predicts_each_token_once(data, row_len, n, seed, shuffle) -> None:
    """Joined, the windows are the examples one after another; each supervised token is a target exactly once."""
    one = batches(data, row_len=row_len, batch_rows=n, seed=seed, shuffle=shuffle, layout="stream", repeat=False)
    epoch = list(one)
    assert all(batch.doc_ids is None for batch in epoch)
    ids = np.concatenate([batch.ids.ravel() for batch in epoch if any(batch.example_ids)])
    ids = ids[ids != PAD]
    order = [int(np.searchsorted(data.offsets, k, side="right") - 1) for k in ids if k in data.offsets[:-1]]
    joined = np.concatenate([np.arange(data.offsets[k], data.offsets[k + 1]) for k in order])
    assert len(ids) == len(data.ids) - 1  # the last token is only ever a target
    assert ids.tolist() == joined[:-1].tolist()
    assert shuffle or order == sorted(order)
    targets = [target for batch in epoch for _, target in pairs_of(batch)]
    assert sorted(targets) == np.flatnonzero(data.mask).tolist()
    before = dict(zip(joined[1:].tolist(), joined[:-1].tolist(), strict=True))
    assert all(before[target] == token for batch in epoch for token, target in pairs_of(batch))


@settings(deadline=None, max_examples=60)
@given(datas(), layouts, rows, seeds, st.integers(0, 12), st.integers(0, 12))
def test_a_saved_cursor_goes_on_bit_for_bit(data, layout, n, seed, k, more) -> None:
    whole = batches(data, layout=layout, batch_rows=n, seed=seed)
    straight = [whole.next() for _ in range(k + more)]
    first = batches(data, layout=layout, batch_rows=n, seed=seed)
    for _ in range(k):
        first.next()
    state = json.loads(json.dumps(first.state()))
    second = batches(data, layout=layout, batch_rows=n, seed=seed)
    second.load_state(state)
    assert all(same(second.next(), batch) for batch in straight[k:])
    assert second.state() == whole.state()


@settings(deadline=None, max_examples=60)
@given(datas(), layouts, st.integers(4, 9), st.integers(1, 4), st.booleans())
def test_the_ranks_share_out_the_rows_of_the_global_batch(data, layout, n, world, repeat) -> None:
    whole = batches(data, layout=layout, batch_rows=n, repeat=repeat)
    ranks = [batches(data, layout=layout, batch_rows=n, repeat=repeat, rank=r, world=world) for r in range(world)]
    for _ in range(6):
        try:
            batch = whole.next()
        except StopIteration:
            for rank in ranks:
                with pytest.raises(StopIteration):
                    rank.next()
            return
        parts = [rank.next() for rank in ranks]
        for r, part in enumerate(parts):
            assert rows_of(part) == rows_of(batch)[r::world]
            assert len(part.ids) >= 1
        assert all(rank.state() == whole.state() for rank in ranks)
        assert not repeat or len(batch.ids) == n


def test_a_run_may_go_on_with_another_number_of_ranks() -> None:
    data = token_data([5] * 40)
    one = batches(data, batch_rows=4)
    one.next()
    two = [batches(data, batch_rows=4, rank=r, world=2) for r in (0, 1)]
    for rank in two:
        rank.load_state(one.state())
    expected = one.next()
    assert [rows_of(rank.next()) for rank in two] == [rows_of(expected)[0::2], rows_of(expected)[1::2]]


@settings(deadline=None, max_examples=40)
@given(datas(), layouts, seeds)
def test_repeating_gives_each_epoch_its_own_order_and_every_example_once(data, layout, seed) -> None:
    one = batches(data, layout=layout, batch_rows=1, seed=seed)
    for epoch in (0, 1, 2):
        pairs = []
        for _ in range(one.rows_per_epoch(epoch)):
            assert one.state()["epoch"] == epoch
            pairs += [target for _, target in pairs_of(one.next())]
        assert sorted(pairs) == np.flatnonzero(data.mask).tolist()


@pytest.mark.parametrize("layout", ["stream", "packed"])
def test_shuffling_depends_on_the_seed_and_the_epoch_and_hardly_on_the_file(layout: str) -> None:
    data = token_data([6] * 1000)

    def order(seed: int, epoch: int = 0) -> list[int]:
        one = batches(data, layout=layout, batch_rows=1, seed=seed)
        one.load_state({**one.state(), "epoch": epoch})
        seen = dict.fromkeys(
            name for _ in range(one.rows_per_epoch(epoch)) for row in one.next().example_ids for name in row
        )
        return [int(name[1:]) for name in seen]

    assert order(0) == order(0) != order(1)
    assert order(0) != order(0, epoch=1)
    assert sorted(order(0)) == list(range(1000))
    assert abs(np.corrcoef(order(0), np.arange(1000))[0, 1]) < 0.1


def test_a_cursor_of_something_else_is_refused() -> None:
    data = token_data([5] * 10)
    state = batches(data).state()
    for changes in ({"seed": 1}, {"row_len": 17}, {"layout": "stream"}, {"shuffle": False}):
        with pytest.raises(EvidenceError, match=f"data cursor: {next(iter(changes))}"):
            batches(data, **changes).load_state(state)
    with pytest.raises(EvidenceError, match="data cursor: data"):
        batches(token_data([5] * 11)).load_state(state)
    for place in ({"row": 99}, {"epoch": -1}, {"row": "0"}, {"epoch": None}):
        with pytest.raises(EvidenceError, match="is no place in this data"):
            batches(data).load_state({**state, **place})


def test_impossible_batches_are_refused() -> None:
    data = token_data([5, 18, 19])
    with pytest.raises(UsageError, match="example e1: 18 tokens do not fit a packed row of 17") as error:
        batches(data)
    assert "1 more" in str(error.value)
    batches(data, row_len=18)
    batches(data, layout="stream")
    for changes in ({"row_len": 0}, {"batch_rows": 0}, {"rank": 2, "world": 2}, {"world": 4}):
        with pytest.raises(UsageError, match=r"impossible batch|less than one row"):
            batches(token_data([5]), **changes)
    with pytest.raises(UsageError, match="layout 'padded'"):
        batches(data, layout="padded")
    empty = TokenData(np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(1, np.int64), ())
    with pytest.raises(UsageError, match="no example"):
        batches(empty)
