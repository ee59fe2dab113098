"""Several questions at once, and several training seeds per arm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from kat.errors import EvidenceError, UsageError
from kat.stats.multiplicity import benjamini_hochberg, holm
from kat.stats.result import Test as Outcome
from kat.stats.result import p_value, points
from kat.stats.seeds import compare_seeds, smallest_permutation_p

# Benjamini and Hochberg 1995, section 4.1: the 15 p-values of the thrombolysis study
BH_1995 = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
]  # fmt: skip


def test_benjamini_and_hochbergs_own_example():
    assert (benjamini_hochberg(BH_1995) <= 0.05).sum() == 4
    assert (holm(BH_1995) <= 0.05).sum() == 3
    assert (np.array(BH_1995) * 15 <= 0.05).sum() == 3  # Bonferroni, as the paper counts


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_adjusted_values_stay_with_their_own_hypothesis(p, seed):
    order = list(np.random.default_rng(seed).permutation(len(p)))
    for adjust in (holm, benjamini_hochberg):
        there = adjust(p)
        shuffled = adjust([p[i] for i in order])
        assert [there[i] for i in order] == pytest.approx(list(shuffled))
        assert (there >= np.array(p) - 1e-12).all()
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()


@pytest.mark.parametrize("method", ["holm", "fdr_bh"])
def test_adjustments_equal_statsmodels(method):
    p = [*BH_1995[::-1], 0.0278, 0.0]
    adjust = holm if method == "holm" else benjamini_hochberg
    assert list(adjust(p)) == pytest.approx(list(multipletests(p, method=method)[1]))


def test_holm_by_hand_and_bad_p_values():
    assert list(holm([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]).size == 0
    for bad in ([0.1, float("nan")], [1.2], [[0.1]]):
        with pytest.raises(EvidenceError):
            holm(bad)


def test_seeds_are_welch_with_an_exact_permutation_test():
    a, b = [1.0, 2.0, 3.0, 4.5], [4.0, 5.0, 6.5, 7.0]
    result = compare_seeds(a, b)
    welch = scipy_stats.ttest_ind(b, a, equal_var=False)
    assert result.welch.p == pytest.approx(welch.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(welch.confidence_interval()))
    assert result.difference == pytest.approx(3.0)
    assert result.permutation.p == pytest.approx(4 / 70)  # two of the 70 splits are as extreme on each side
    assert result.p_b_above_a == pytest.approx(15 / 16)
    assert compare_seeds([1, 2, 3], [4, 5, 6]).hedges_g == pytest.approx(3 * (1 - 3 / 15))  # sd 1, four degrees
    back = compare_seeds(b, a)
    assert (back.low, back.high, back.hedges_g) == pytest.approx((-result.high, -result.low, -result.hedges_g))


def test_probability_of_improvement_equals_rliable():
    """rliable, tests/rliable/metrics_test.py: its first task, x improves on y in a third of the pairs of runs."""
    assert compare_seeds(a=[1, 2, 3], b=[1, 2, 1, 2]).p_b_above_a == pytest.approx(1 / 3)


@pytest.mark.parametrize(("k", "p"), [(3, 0.10), (4, 0.029), (5, 0.008)])
def test_too_few_seeds_are_said_beforehand(k, p):
    assert smallest_permutation_p(k, k) == pytest.approx(p, abs=0.0006)
    sentence = compare_seeds(np.arange(k), np.arange(k) + 100.0).sentence("reward")
    assert ("so few seeds" in sentence) == (k < 4)


def test_seeds_without_spread_or_number_are_refused():
    for a, b in (([1.0], [1.0, 2.0]), ([1.0, float("nan")], [1.0, 2.0]), ([1.0, 1.0], [2.0, 2.0])):
        with pytest.raises(EvidenceError):
            compare_seeds(a, b)
    with pytest.raises(UsageError):
        smallest_permutation_p(0, 3)


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.034, "= .034"),
        (0.5, "= .5"),
        (1.0, "= 1"),
        (3.05e-5, "= 3e-5"),
        (0.0, "< 1e-12"),
        (0.9996, "= 1"),
        (0.001, "= .001"),
    ],
)
def test_p_is_never_printed_as_zero(p, text):
    assert p_value(p) == text
    assert Outcome("t", p).sentence() == f"p {text} (t)"


def test_points_and_impossible_p():
    assert [points(x) for x in (0.0376, -0.0376, 0.0, -0.0001)] == ["+3.8", "−3.8", "0.0", "0.0"]
    with pytest.raises(ValueError, match="probability"):
        Outcome("t", 1.2)
