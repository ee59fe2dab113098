"""CR2 against the textbook matrices and against Student's t in the two cases where they must agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy import stats as scipy_stats

from kat.stats.clustered import cr2, fit_clusters, grouped
from kat.stats.permutation import sign_flip


def cr2_by_matrices(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Bell and McCaffrey 2002 for a regression on a constant, with every matrix written out: (variance, df)."""
    n = values.size
    x = np.ones((n, 1))
    residual_maker = np.eye(n) - x @ x.T / n
    residuals = residual_maker @ values
    variance, columns = 0.0, []
    for group in np.unique(groups):
        rows = groups == group
        block = residual_maker[np.ix_(rows, rows)]
        adjust = np.real(linalg.fractional_matrix_power(block + 0.0, -0.5))
        variance += float((x[rows].T @ adjust @ residuals[rows])[0] ** 2) / n**2
        columns.append(residual_maker[:, rows] @ adjust @ x[rows, 0] / n)
    omega = np.array(columns) @ np.array(columns).T
    return variance, float(np.trace(omega) ** 2 / (omega**2).sum())


def by_cluster(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.bincount(groups, weights=values), np.bincount(groups).astype(float)


@given(st.lists(st.integers(1, 7), min_size=2, max_size=8), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_cr2_and_its_df_equal_the_matrix_definition(sizes, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    values = np.random.default_rng(seed).normal(size=groups.size) + groups
    mean, error, df = cr2(*by_cluster(values, groups))
    variance, expected_df = cr2_by_matrices(values, groups)
    assert mean == pytest.approx(values.mean())
    assert (error**2, df) == pytest.approx((variance, expected_df), rel=1e-8)


def test_clusters_of_one_are_students_t():
    values = np.random.default_rng(1).normal(size=40)
    _, error, df = cr2(values, np.ones(40))
    assert (error, df) == pytest.approx((scipy_stats.sem(values), 39))


def test_equal_clusters_are_a_t_test_of_their_means():
    values = np.random.default_rng(2).normal(size=60) + np.repeat(np.arange(12), 5)
    groups = np.repeat(np.arange(12), 5)
    means = values.reshape(12, 5).mean(axis=1)
    _, error, df = cr2(*by_cluster(values, groups))
    assert (error, df) == pytest.approx((scipy_stats.sem(means), 11))


def test_p_and_interval_agree_and_arms_are_symmetric():
    rng = np.random.default_rng(3)
    for _ in range(40):
        d = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=60)
        groups = rng.integers(0, 15, size=60)
        groups = np.unique(groups, return_inverse=True)[1]
        fit, back = fit_clusters(d, groups, (1.0, -1.0), 200), fit_clusters(-d, groups, (1.0, -1.0), 200)
        interval, mirror = fit.interval(0.95), back.interval(0.95)
        assert (interval.low > 0 or interval.high < 0) == (fit.p() < 0.05)
        assert (interval.low, interval.high) == pytest.approx((-mirror.high, -mirror.low))
        assert fit.p() == pytest.approx(back.p())


@pytest.mark.parametrize(
    "d",
    [np.zeros(300), np.eye(300)[0], np.tile([1.0, -1.0], 150), np.full(300, 0.5), np.repeat([1.0, 0.0], [2, 298])],
    ids=["all zero", "one of 300", "every cluster sums to 0", "all equal", "one cluster"],
)
def test_degenerate_differences_keep_width_and_show_nothing_extreme(d):
    fit = fit_clusters(d, np.arange(300) // 2, (1.0, -1.0), 100)
    interval = fit.interval(0.95)
    assert interval.high - interval.low > 1 / 302
    assert interval.low <= d.mean() <= interval.high


def test_one_cluster_says_nothing():
    fit = fit_clusters(np.ones(50), np.zeros(50, dtype=int), (1.0, -1.0), 100)
    interval = fit.interval(0.95)
    assert (interval.low, interval.high, fit.p()) == (-1.0, 1.0, 1.0)
    assert fit.mde(0.8) > 1


def test_grouped_only_where_a_cluster_has_two_items():
    assert not grouped(None)
    assert not grouped(np.array([0, 1, 2]))
    assert grouped(np.array([0, 1, 1]))


# Sign flips


def test_sign_flip_is_exact_for_few_units():
    rng = np.random.default_rng(0)
    assert sign_flip(np.array([1.0, 2.0, 3.0, 0.0]), rng) == pytest.approx(2 / 8)
    assert sign_flip(np.array([1.0, -1.0]), rng) == 1.0
    assert sign_flip(np.zeros(9), rng) == 1.0
    assert sign_flip(np.full(10, 0.25), rng) == pytest.approx(2 / 1024)


def test_drawn_sign_flips_agree_with_scipy_and_count_the_data_itself():
    rng = np.random.default_rng(4)
    d = np.round(rng.normal(0.2, 1, size=80) * 4) / 4
    expected = scipy_stats.permutation_test(
        (d,), np.sum, permutation_type="samples", vectorized=True, n_resamples=50_000, batch=500, rng=rng
    ).pvalue
    assert sign_flip(d, rng, draws=50_000) == pytest.approx(expected, abs=0.01)
    assert sign_flip(np.ones(40), rng, draws=999) == 1 / 1000


def test_whole_clusters_flip_together_and_the_seed_decides():
    d, groups = np.ones(40), np.repeat(np.arange(4), 10)
    assert sign_flip(d, np.random.default_rng(0), groups) == pytest.approx(2 / 16)
    d = np.random.default_rng(5).normal(0.1, 1, size=60)
    first, again = (sign_flip(d, np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert sign_flip(d, np.random.default_rng(7)) == sign_flip(-d, np.random.default_rng(7))
