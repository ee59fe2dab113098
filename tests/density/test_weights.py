"""Density weights: what statistics.md demands of them, whatever the points; and broken forms that must be caught."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kat.density import weights as module
from kat.density.weights import density_weights, effective_size, solve, total_variation, weigh
from kat.errors import UsageError
from tests.density.worlds import cloud, crowd_and_outliers, must_favour_the_sparse, must_hold

seeds = st.integers(0, 10**6)
few = settings(max_examples=20, deadline=None)


def names(n: int) -> list[str]:
    return [f"p{i:04d}" for i in range(n)]


def weights_or_skip(points, ids=None, **options):
    """The weights of a random cloud; a cloud that has none (no spread, dose out of reach) is another's test."""
    try:
        return density_weights(points, ids, **options)
    except UsageError:
        assume(False)


@few
@given(seeds, st.sampled_from([0.05, 0.1, 0.2]), st.integers(2, 12))
def test_the_weights_are_what_was_declared(seed, dose, k):
    must_hold(weights_or_skip(cloud(seed), k=k, dose=dose), dose)


@few
@given(seeds)
def test_another_order_of_the_rows_changes_no_bit(seed):
    points, ids = cloud(seed), names(90)
    found = weights_or_skip(points, ids, k=4)
    order = np.random.default_rng(seed).permutation(90)
    again = density_weights(points[order], [ids[i] for i in order], k=4)
    assert np.array_equal(again.values, found.values[order]) and again.alpha == found.alpha
    without_ids = density_weights(points[order], k=4)
    np.testing.assert_allclose(without_ids.values, found.values[order], rtol=1e-3)


@few
@given(seeds, st.floats(-4, 4))
def test_scale_does_not_matter(seed, power):
    points = cloud(seed)
    found = weights_or_skip(points, names(90), k=4)
    scaled = density_weights((points * 10**power).astype(np.float32), names(90), k=4)
    np.testing.assert_allclose(scaled.values, found.values, rtol=2e-3)


@few
@given(seeds)
def test_turning_and_moving_the_cloud_does_not_matter(seed):
    """Centring takes a common offset out: without it all weights would be about equal far from the origin."""
    points = cloud(seed)
    found = weights_or_skip(points, names(90), k=4)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    moved = density_weights((points @ turn + 7.0).astype(np.float32), names(90), k=4)
    np.testing.assert_allclose(moved.values, found.values, rtol=5e-3)


@few
@given(seeds, st.integers(2, 40), st.booleans())
def test_copies_share_one_weight(seed, m, by_id):
    points, ids = cloud(seed), names(90)
    assume(density_weights_exist(points))
    single = density_weights(points, ids if by_id else None, k=4)
    many = np.concatenate([points, np.repeat(points[:1], m - 1, axis=0)])
    shared = density_weights(many, ids + ids[:1] * (m - 1) if by_id else None, k=4)
    copies = [0, *range(90, 89 + m)]
    assert np.isclose(shared.values[copies].sum(), single.values[0], rtol=1e-12)
    assert np.ptp(shared.values[copies]) == 0
    np.testing.assert_allclose(shared.values[1:90], single.values[1:], rtol=1e-12)
    assert shared.n_distinct == 90 and abs(shared.values.sum() - 1) <= 1e-12


def density_weights_exist(points) -> bool:
    try:
        density_weights(points, k=4)
    except UsageError:
        return False
    return True


@few
@given(seeds)
def test_isolated_points_weigh_more_than_the_crowd(seed):
    must_favour_the_sparse(density_weights(crowd_and_outliers(seed), k=3, dose=0.1))


@few
@given(seeds, st.integers(1, 8))
def test_radii_are_geometric_means_of_neighbour_distances(seed, k):
    """Against scikit-learn's brute force in float64."""
    from sklearn.neighbors import NearestNeighbors

    points = cloud(seed).astype(np.float64)
    centred = points - points.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    distances = NearestNeighbors(n_neighbors=2 * k, algorithm="brute").fit(centred).kneighbors()[0][:, k - 1 :]
    expected = np.exp(np.log(np.maximum(distances, 1e-3)).mean(axis=1))
    np.testing.assert_allclose(weights_or_skip(cloud(seed), k=k, dose=0.01).radii, expected, rtol=1e-3)


@few
@given(seeds, st.integers(20, 200), st.floats(0.1, 1.2))
def test_dose_and_effective_size_move_with_alpha(seed, n, spread):
    """What bisection relies on."""
    radii = np.exp(np.random.default_rng(seed).normal(size=n) * spread)
    by_alpha = [weigh(radii, alpha) for alpha in (0.1, 0.5, 1, 2, 4, 8)]
    assert (np.diff([total_variation(w) for w in by_alpha]) >= -1e-12).all()
    assert (np.diff([effective_size(w) for w in by_alpha]) <= 1e-9).all()
    assert (np.diff([w.max() / np.median(w) for w in by_alpha]) >= -1e-9).all()


def test_alpha_is_the_smallest_that_reaches_the_dose():
    radii = np.exp(np.random.default_rng(0).normal(size=500) * 0.3)
    alpha, found = solve(radii, 0.2)
    assert total_variation(found) >= 0.2 > total_variation(weigh(radii, alpha * (1 - 1e-9)))


def test_by_hand():
    """Five radii, α = 2: clipped at 1.2 and 4.8, squared, 5 % uniform."""
    radii = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    power = np.array([1.2, 2.0, 3.0, 4.0, 4.8]) ** 2
    np.testing.assert_allclose(weigh(radii, 2.0), 0.95 * power / power.sum() + 0.01, rtol=1e-12)
    assert np.isclose(total_variation(np.array([0.5, 0.3, 0.2, 0.0])), 0.3)
    assert np.isclose(effective_size(np.array([0.5, 0.5, 0.0, 0.0])), 2.0)


def test_extremes_that_float_squares_would_lose():
    """Close pairs at a distance of 1e-4 do not become nearest neighbours of distance 0 or NaN."""
    points = crowd_and_outliers(0)
    close = np.concatenate([points, points[:10] + np.float32(1e-5)])
    must_hold(density_weights(close, k=2, dose=0.1), 0.1)


@pytest.mark.parametrize(
    ("points", "options", "word"),
    [
        (np.ones((30, 4)), {"ids": ["same"] * 30}, "all 30 prompts are the same"),
        (np.ones((30, 4)), {"ids": names(30)}, "all 30 embeddings are equal"),
        (np.zeros((30, 4)), {"ids": names(30)}, "all 30 embeddings are zero"),
        (cloud(0, n=20), {}, "20 distinct prompts for k = 10: more than 20 are needed"),
        (np.concatenate([cloud(0, n=20)] * 3), {}, "20 distinct prompts"),
        (np.where(np.arange(60)[:, None] == 7, np.nan, cloud(0, n=60)), {"ids": names(60)}, "p0007: is the model"),
        (np.where(np.arange(60)[:, None] == 7, np.inf, cloud(0, n=60)), {"ids": names(60)}, "not finite"),
        (cloud(0), {"dose": 0.94}, "only .* can be reached with an effective sample of half"),
        (cloud(0), {"dose": 0.0}, "lies between 0 and 1"),
        (cloud(0), {"dose": float("nan")}, "lies between 0 and 1"),
        (cloud(0), {"k": 0}, "at least one neighbour"),
        (cloud(0), {"ids": ["a"]}, "1 ids for 90 embeddings"),
        (cloud(0)[0], {}, "one row a prompt"),
        (np.random.default_rng(0).normal(size=(400, 300)), {}, "uniform in disguise"),
        (np.broadcast_to(np.float32(1), (200_001, 1)), {"ids": names(200_001)}, "up to 200,000 prompts"),
    ],
)  # fmt: skip
def test_where_there_are_no_weights(points, options, word):
    with pytest.raises(UsageError, match=word) as error:
        density_weights(np.asarray(points, dtype=np.float32), **options)
    assert "\n" not in str(error.value)


def broken_inverse(radii, alpha):  # DE1: the seed's weight = 1 / mean distance
    return weigh(1 / radii, alpha)


def broken_uniform(radii, alpha):
    return np.full(len(radii), 1 / len(radii))


def broken_literal(radii, alpha):  # the literal inverse density, r^d
    return radii**8 / (radii**8).sum()


@pytest.mark.parametrize(
    ("broken", "caught"),
    [(broken_inverse, AssertionError), (broken_uniform, UsageError), (broken_literal, AssertionError)],
)
def test_broken_forms_are_caught(monkeypatch, broken, caught):
    def demand():
        found = density_weights(crowd_and_outliers(1), k=3, dose=0.1)
        must_hold(found, 0.1)
        must_favour_the_sparse(found)

    demand()
    monkeypatch.setattr(module, "weigh", broken)
    with pytest.raises(caught):
        demand()
