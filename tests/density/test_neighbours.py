"""Exact neighbours: faiss, the blocks of numpy and scikit-learn find the same."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.density import neighbours
from kat.density.neighbours import check_size, method, neighbour_distances
from kat.errors import UsageError


def points_of(seed: int, n: int, d: int, copies: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(n, d))
    points[:copies] = points[0]  # several points in one place
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32)


@pytest.fixture(params=["faiss", "numpy"])
def search(request, monkeypatch):
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="needs kat[embeddings]")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)


@pytest.mark.usefixtures("search")
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 70), st.integers(2, 9), st.integers(1, 12), st.integers(1, 8))
def test_as_scikit_learn(seed, n, d, copies, k):
    from sklearn.neighbors import NearestNeighbors

    k, points = min(k, n - 1), points_of(seed, n, d, min(copies, n))
    expected = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(points.astype(np.float64)).kneighbors()[0]
    found = neighbour_distances(points, k)
    assert found.shape == (n, k) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.usefixtures("search")
def test_several_blocks(monkeypatch):
    points = points_of(3, 700, 5, 1)
    whole = neighbour_distances(points, 6)
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    said = []
    blocks = neighbour_distances(points, 6, lambda done, total: said.append((done, total)))
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    assert said[-1] == (700, 700) and len(said) > 5


def test_small_distances_keep_their_digits():
    """Squares minus products give 0 or 3e-4 here."""
    points = points_of(0, 50, 8, 1)
    points[1] = points[0] + np.array([1e-4] + [0] * 7, dtype=np.float32)
    expected = np.abs(np.float64(points[1, 0]) - points[0, 0])
    assert neighbour_distances(points, 1)[0, 0] == pytest.approx(expected, rel=1e-6)


def test_too_many_and_too_few():
    with pytest.raises(UsageError, match="up to 200,000"):
        check_size(200_001)
    check_size(200_000)
    with pytest.raises(UsageError, match="more points than neighbours"):
        neighbour_distances(points_of(0, 5, 3, 1), 5)


def test_the_record_says_what_searched():
    assert method().startswith(("faiss ", "numpy"))
