"""Paired binary methods against published tables, and the properties that tie test and interval together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar

from kat.errors import EvidenceError
from kat.stats.equivalence import equivalent, non_inferior, p_equivalent, p_non_inferior
from kat.stats.paired import (
    bonett_price,
    bonett_price_bounded,
    mcnemar_exact,
    mcnemar_midp,
    newcombe_paired,
    tango,
    tango_z,
)

# Cavo et al. 2012 as in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8;
# the values are those of the R package contingencytables 3.0.0, tests/testthat/test-ch8.R.
BOTH, GAINED, LOST, NEITHER = 59, 6, 16, 80
N = BOTH + GAINED + LOST + NEITHER


def test_cavo_p_values():
    assert 2 * scipy_stats.norm.sf(abs(tango_z(GAINED, LOST, N, 0))) == pytest.approx(0.033006, abs=5e-7)
    assert mcnemar_exact(GAINED, LOST) == pytest.approx(0.052479, abs=5e-7)
    assert mcnemar_midp(GAINED, LOST) == pytest.approx(0.034690, abs=5e-7)


@pytest.mark.parametrize(
    ("interval", "low", "high"),
    [
        (tango(GAINED, LOST, N), -0.1240, -0.0054),
        (newcombe_paired(BOTH, GAINED, LOST, NEITHER), -0.1186, -0.0046),
        (bonett_price(GAINED, LOST, N), -0.1195, -0.0032),
        (tango(3, 0, 3), -0.1230, 1.0),
        (tango(0, 3, 3), -1.0, 0.1230),
        (newcombe_paired(1, 0, 0, 1), -0.5734, 0.5734),
    ],
)
def test_cavo_and_edge_intervals(interval, low, high):
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(70, 59, 0.378688), (80, 59, 0.089452), (30, 60, 0.00206), (10, 30, 0.002221), (10, 10, 1.0)],
)
def test_exact_mcnemar_equals_vassarstats(gained, lost, p):  # as quoted in statsmodels' tests
    assert mcnemar_exact(gained, lost) == pytest.approx(p, abs=5e-7 if p != 0.00206 else 5e-6)


def test_score_statistic_at_zero_is_mcnemars_chi_square():
    assert tango_z(86, 150, 1600, 0) ** 2 == pytest.approx(17.3559, abs=5e-5)  # Agresti; Penn State STAT 504
    for gained, lost, n in ((121, 59, 400), (3, 9, 12), (1, 2, 5000)):
        oracle = mcnemar([[0, gained], [lost, n - gained - lost]], exact=False, correction=False)
        assert tango_z(gained, lost, n, 0) ** 2 == pytest.approx(oracle.statistic)


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1.0), (1, 1, 0.75), (0, 1, 0.5), (2, 2, 0.8125), (6, 0, 1 / 64)]
)
def test_midp_by_hand(gained, lost, p):
    """Half the weight of the observed split (Fagerland et al. 2013); 1 − ½ P(tie) at a tie, and 1 without any pair."""
    assert mcnemar_midp(gained, lost) == pytest.approx(p)


tables = st.integers(0, 60).flatmap(
    lambda gained: st.integers(0, 60).flatmap(
        lambda lost: st.integers(max(1, gained + lost), gained + lost + 200).map(lambda n: (gained, lost, n))
    )
)


@given(tables)
@settings(deadline=None, max_examples=80)
def test_swapping_the_arms_negates_everything(table):
    gained, lost, n = table
    for method in (tango, bonett_price):
        there, back = method(gained, lost, n), method(lost, gained, n)
        assert (there.estimate, there.low, there.high) == pytest.approx(
            (-back.estimate, -back.high, -back.low), abs=1e-7
        )
    there, back = (
        newcombe_paired(0, gained, lost, n - gained - lost),
        newcombe_paired(0, lost, gained, n - gained - lost),
    )
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert mcnemar_midp(gained, lost) == pytest.approx(mcnemar_midp(lost, gained))
    assert mcnemar_midp(gained, lost) <= mcnemar_exact(gained, lost) + 1e-12


@given(tables, st.floats(-0.99, 0.99))
@settings(deadline=None, max_examples=120)
def test_tango_holds_exactly_the_differences_its_test_does_not_reject(table, delta0):
    gained, lost, n = table
    interval = tango(gained, lost, n)
    z = abs(tango_z(gained, lost, n, delta0))
    if abs(z - 1.959964) > 1e-4:
        assert (interval.low <= delta0 <= interval.high) == (z < 1.959964)


@given(tables, st.floats(-0.99, 0.98), st.floats(1e-4, 0.01))
@settings(deadline=None, max_examples=80)
def test_the_score_statistic_falls_in_the_hypothesis(table, delta0, step):
    gained, lost, n = table
    assert tango_z(gained, lost, n, delta0) >= tango_z(gained, lost, n, delta0 + step)


@given(tables)
@settings(deadline=None, max_examples=80)
def test_no_paired_interval_collapses_or_leaves_the_scale(table):
    gained, lost, n = table
    for interval in (tango(*table), bonett_price(*table), newcombe_paired(0, gained, lost, n - gained - lost)):
        assert -1 <= interval.low < interval.high <= 1


def test_generalised_bonett_price_is_bonett_price_on_wins_and_losses_and_keeps_width():
    d = np.repeat([1.0, -1.0, 0.0], [5, 2, 43])
    assert (bonett_price_bounded(d).low, bonett_price_bounded(d).high) == pytest.approx(
        (bonett_price(5, 2, 50).low, bonett_price(5, 2, 50).high)
    )
    for d in (np.zeros(50), np.eye(50)[0], np.eye(50)[0] * 0.25, np.full(5, 1.0)):
        assert bonett_price_bounded(d).high - bonett_price_bounded(d).low > 1 / (d.size + 2)


def test_tables_that_are_none_are_refused():
    for call in (lambda: tango(5, 6, 10), lambda: bonett_price(-1, 0, 10), lambda: newcombe_paired(-1, 2, 2, 9)):
        with pytest.raises(EvidenceError):
            call()


@given(tables, st.sampled_from([0.01, 0.02, 0.05, 0.2]))
@settings(deadline=None, max_examples=80)
def test_non_inferiority_is_the_lower_end_above_minus_margin(table, margin):
    p = p_non_inferior(*table, margin)
    if abs(p - 0.025) > 1e-4:
        assert (p <= 0.025) == non_inferior(tango(*table), margin)
    p = p_equivalent(*table, margin)
    if abs(p - 0.05) > 1e-4:
        assert (p <= 0.05) == equivalent(tango(*table, level=0.90), margin)
