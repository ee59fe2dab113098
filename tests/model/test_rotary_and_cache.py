"""Rotary table: slices, growth, relative positions. Cache: concatenation, growth, reset, sharing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.model.cache import KVCache
from kat.model.rotary import RotaryTable, rotate

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_slices_do_not_depend_on_how_the_table_grew(requests) -> None:
    grown, fresh = RotaryTable(16, 10_000.0, torch.float32), RotaryTable(16, 10_000.0, torch.float32, length=400)
    previous = 0
    for start, length in requests:
        cos, sin = grown.slice(start, start + length, CPU)
        assert torch.equal(cos[0, :, 0], fresh.cos[start : start + length])
        assert torch.equal(sin[0, :, 0], fresh.sin[start : start + length])
        assert len(grown) >= max(previous, start + length)  # grow-only
        previous = len(grown)


def test_a_slice_that_fits_does_not_rebuild() -> None:
    table = RotaryTable(16, 10_000.0, torch.float32, length=64)
    storage = table.cos.data_ptr()
    for t in range(64):
        table.slice(t, t + 1, CPU)
    assert table.cos.data_ptr() == storage and len(table) == 64


def test_table_is_cosine_and_sine_of_position_times_frequency() -> None:
    table = RotaryTable(8, 100.0, torch.float64, length=50)
    for t in (0, 1, 7, 49):
        for i in range(4):
            angle = torch.tensor(t * 100.0 ** (-2 * i / 8), dtype=torch.float64)
            assert abs(table.cos[t, i] - angle.cos()) < 1e-5
            assert abs(table.sin[t, i] - angle.sin()) < 1e-5


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 800))
@settings(deadline=None, max_examples=40)
def test_scores_depend_on_relative_position_only(i, j, shift) -> None:
    table = RotaryTable(16, 10_000.0, torch.float32)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16, generator=generator), torch.randn(1, 1, 1, 16, generator=generator)

    def score(a: int, b: int) -> float:
        return float((rotate(q, *table.slice(a, a + 1, CPU)) * rotate(k, *table.slice(b, b + 1, CPU))).sum())

    assert abs(score(i, j) - score(i + shift, j + shift)) < 2e-3


def test_gather_equals_slice() -> None:
    table = RotaryTable(8, 10_000.0, torch.float32)
    cos, sin = table.gather(torch.tensor([[3, 4, 5], [0, 1, 2]]))
    for row, start in enumerate((3, 0)):
        a, b = table.slice(start, start + 3, CPU)
        assert torch.equal(cos[row], a[0]) and torch.equal(sin[row], b[0])


@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 5]),
    st.integers(0, 9),
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
)
@settings(deadline=None, max_examples=40)
def test_cache_is_concatenation_along_time(batch, n_head, capacity, chunks) -> None:
    """At any first size, for several heads: what a flat-buffer concatenation or a resize would scramble."""
    cache = KVCache(n_layer=2, capacity=capacity)
    generator = torch.Generator().manual_seed(1)
    stored: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], []]
    for size in chunks:
        for layer in range(2):
            k = torch.randn(batch, n_head, size, 4, generator=generator)
            v = torch.randn(batch, n_head, size, 4, generator=generator)
            stored[layer].append((k, v))
            keys, values = cache.update(layer, k, v)
            assert torch.equal(keys, torch.cat([k for k, _ in stored[layer]], dim=2))
            assert torch.equal(values, torch.cat([v for _, v in stored[layer]], dim=2))
    assert cache.length == sum(chunks)


def test_reset_forgets_and_takes_another_batch_size() -> None:
    cache = KVCache(n_layer=1)
    cache.update(0, torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    cache.reset()
    keys, _ = cache.update(0, torch.zeros(5, 1, 2, 4), torch.zeros(5, 1, 2, 4))
    assert keys.shape == (5, 1, 2, 4) and cache.length == 2 and keys.abs().max() == 0


def test_repeat_and_select_move_whole_rows() -> None:
    cache = KVCache(n_layer=1)
    k = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 2, 4)
    cache.update(0, k, k + 10)
    cache.repeat(2)
    cache.select(torch.tensor([0, 3, 5]))
    keys, values = cache.update(0, torch.zeros(3, 2, 1, 4), torch.zeros(3, 2, 1, 4))
    assert keys[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert values[:, 1, 1, 3].tolist() == [10.0, 11.0, 12.0]
    assert keys.size(2) == 3
