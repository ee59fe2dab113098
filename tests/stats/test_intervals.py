"""Intervals of one share, one mean and two unpaired shares against published values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from kat.errors import EvidenceError, UsageError
from kat.stats.intervals import exact, jeffreys, mean_interval, newcombe_unpaired, wilson
from kat.stats.result import Estimate


@pytest.mark.parametrize(
    ("k", "n", "low", "high", "tolerance"),
    [
        (3, 10, 0.1077913, 0.6032219, 1e-7),  # R prop.test(correct = FALSE)
        (0, 10, 0.0, 0.2775328, 1e-7),
        (81, 263, 0.2553, 0.3662, 5e-5),  # Newcombe 1998, Statistics in Medicine 17:857, table I
        (15, 148, 0.0624, 0.1605, 5e-5),
        (0, 20, 0.0, 0.1611, 5e-5),
        (1, 29, 0.0061, 0.1718, 5e-5),
    ],
)
def test_wilson_equals_published_values(k, n, low, high, tolerance):
    interval = wilson(k, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=tolerance)


def test_exact_and_jeffreys_equal_published_values():
    r = exact(20, 100)  # R binom.test(20, 100)
    assert (r.low, r.high) == pytest.approx((0.12665555, 0.29184269), abs=1e-8)
    ligarden = exact(13, 16)  # R package contingencytables 3.0.0, test-ch2: Ligarden et al. 2010
    assert (ligarden.low, ligarden.high) == pytest.approx((0.5435, 0.9595), abs=5e-5)
    bayes = jeffreys(13, 16)  # the same test
    assert (bayes.low, bayes.high) == pytest.approx((0.5792, 0.9442), abs=5e-5)


@pytest.mark.parametrize(
    ("b", "a", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((0, 10), (0, 20), -0.1611, 0.2775)],
)
def test_newcombe_unpaired_equals_newcombe_1998b_table_ii(b, a, low, high):
    interval = newcombe_unpaired(*a, *b)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400), st.data())
@settings(deadline=None, max_examples=60)
def test_share_intervals_hold_their_share_mirror_and_never_collapse(n, data):
    k = data.draw(st.integers(0, n))
    for method in (wilson, exact, jeffreys):
        interval, mirror = method(k, n), method(n - k, n)
        assert 0 <= interval.low <= k / n <= interval.high <= 1
        assert interval.high - interval.low > 0
        assert (interval.low, interval.high) == pytest.approx((1 - mirror.high, 1 - mirror.low), abs=1e-9)
        wider = method(k, n, level=0.99)
        assert wider.low <= interval.low + 1e-12
        assert wider.high >= interval.high - 1e-12


def test_bounded_mean_is_students_t_from_100_varied_items():
    scores = np.random.default_rng(0).random(150)
    expected = scipy_stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    interval = mean_interval(scores, "bounded")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert interval.method == "t"


@pytest.mark.parametrize(
    "scores", [np.full(300, 0.5), np.zeros(40), np.ones(500), np.array([0.25]), np.r_[np.ones(99), 0.5]]
)
def test_bounded_mean_without_variety_still_has_width(scores):
    interval = mean_interval(scores, "bounded")
    assert interval.high - interval.low > 0.5 / scores.size
    assert interval.low <= scores.mean() <= interval.high
    assert interval.method == "plus four"


def test_t_only_from_100_items_of_which_20_differ_from_the_commonest():
    def method(n, differing):
        return mean_interval(np.r_[np.full(n - differing, 0.5), np.arange(differing) / 40], "bounded").method

    assert [method(100, 20), method(100, 19), method(99, 40)] == ["t", "plus four", "plus four"]


def test_plus_four_on_zeros_and_ones_is_agresti_and_coull():
    scores = np.repeat([1.0, 0.0], [7, 23])
    p = 9 / 34  # two successes and two failures added
    half = scipy_stats.norm.ppf(0.975) * np.sqrt(p * (1 - p) / 34)
    interval = mean_interval(scores, "bounded")
    assert (interval.low, interval.high) == pytest.approx((p - half, p + half))


def test_binary_mean_is_wilson_and_clusters_widen_it():
    scores = np.tile(np.repeat([1.0, 0.0], 10), 15)
    plain = mean_interval(scores, "binary")
    assert plain == wilson(150, 300)
    alone = mean_interval(scores, "binary", clusters=np.arange(300))
    assert alone == plain
    by_tens = mean_interval(scores, "binary", clusters=np.arange(300) // 10)
    assert by_tens.n_clusters == 30
    assert by_tens.high - by_tens.low > 2.5 * (plain.high - plain.low)


@pytest.mark.parametrize(
    ("scores", "kind", "word"),
    [
        ([], "binary", "at least one item"),
        ([0.0, float("nan")], "bounded", "NaN"),
        ([0.0, 1.5], "bounded", "lie in"),
        ([0.0, 0.5], "binary", "binary"),
        ([[0.0, 1.0]], "binary", "shape"),
    ],
)
def test_bad_scores_are_evidence_errors(scores, kind, word):
    with pytest.raises(EvidenceError, match=word):
        mean_interval(scores, kind)


def test_bad_counts_levels_and_clusters_are_refused():
    with pytest.raises(EvidenceError, match="no share"):
        wilson(3, 2)
    with pytest.raises(EvidenceError, match="no share"):
        wilson(0, 0)
    with pytest.raises(UsageError, match="level"):
        wilson(1, 2, level=95)
    with pytest.raises(EvidenceError, match="labels"):
        mean_interval([0, 1, 1], "binary", clusters=[1, 2])


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.6, 0.4), (float("nan"), 1.0), (0.6, 0.7)])
def test_an_impossible_interval_cannot_be_made(low, high):
    with pytest.raises(ValueError, match=r"interval|finite"):
        Estimate(0.5, low, high, 0.95, 10, "test")
