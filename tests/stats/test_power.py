"""Power, minimum detectable effect and item numbers against published values and against simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from kat.errors import UsageError
from kat.stats.paired import mcnemar_exact, mcnemar_midp
from kat.stats.power import (
    mde_bounded,
    mde_paired,
    mde_seeds,
    n_for_difference,
    n_for_margin,
    power_mcnemar,
    power_seeds,
    seeds_for_difference,
)
from kat.stats.result import mde_sentence


def test_exact_power_equals_pwrss():
    """R package pwrss: McNemar with .08 and .32 discordant, 50 pairs, one-sided .05, exact test."""
    assert power_mcnemar(50, 0.32, 0.08, midp=False, two_sided=False) == pytest.approx(0.839357, abs=5e-7)


@pytest.mark.parametrize("midp", [True, False])
@pytest.mark.parametrize("two_sided", [True, False])
def test_power_is_the_sum_over_every_table(midp, two_sided):
    n, p_gained, p_lost = 14, 0.5, 0.1
    p_of = mcnemar_midp if midp else mcnemar_exact
    total = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            p = p_of(gained, lost)
            if two_sided:
                reject = p <= 0.05
            else:
                m = gained + lost
                p = scipy_stats.binom.sf(gained - 1, m, 0.5) - (
                    0.5 * scipy_stats.binom.pmf(gained, m, 0.5) if midp else 0
                )
                reject = p <= 0.05
            if reject:
                probability = scipy_stats.multinomial.pmf([gained, lost, n - gained - lost], n, [p_gained, p_lost, 0.4])
                total += probability
    assert power_mcnemar(n, p_gained, p_lost, midp=midp, two_sided=two_sided) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "row"),
    [
        (50, (None, 16.4, 20.5)),
        (100, (8.2, 12.1, 15.1)),
        (200, (6.0, 8.7, 10.7)),
        (500, (3.9, 5.6, 6.8)),
        (1000, (2.8, 4.0, 4.8)),
        (4241, (1.4, 1.9, 2.4)),
    ],
)
def test_mde_table(n, row):
    """The project's own table (mid-p, 80 % power, two-sided .05) at .10, .20 and .30 discordant, in points."""
    for share, points in zip((0.1, 0.2, 0.3), row, strict=True):
        mde = mde_paired(n, share)
        assert mde is None if points is None else abs(100 * mde - points) < 0.06


def test_mde_has_its_power_and_a_simulation_finds_it():
    mde = mde_paired(200, 0.2)
    assert power_mcnemar(200, (0.2 + mde) / 2, (0.2 - mde) / 2) == pytest.approx(0.8, abs=1e-3)
    rng = np.random.default_rng(0)
    tables = rng.multinomial(200, [(0.2 + mde) / 2, (0.2 - mde) / 2, 0.8], size=4000)
    found = np.mean([mcnemar_midp(gained, lost) < 0.05 for gained, lost, _ in tables])
    assert found == pytest.approx(0.8, abs=0.03)  # four standard errors


@given(st.integers(30, 600), st.sampled_from([0.1, 0.2, 0.4]))
@settings(deadline=None, max_examples=25)
def test_more_items_see_smaller_differences(n, share):
    small, large = mde_paired(n, share), mde_paired(4 * n, share)
    assert large is not None
    if small is not None:
        assert 0 < large < small <= share
    assert mde_paired(4 * n, share, design_effect=4.0) == small


@pytest.mark.parametrize(("margin", "n"), [(0.01, 12366), (0.02, 3092), (0.03, 1374), (0.05, 495)])
def test_non_inferiority_table(margin, n):
    """The project's own table at .20 discordant and 80 % power; its figures are those of one-sided alpha .05."""
    assert n_for_margin(margin, 0.2, alpha=0.05) == n


def test_at_the_gates_alpha_the_margin_needs_a_quarter_more_items_and_gets_its_power():
    n = n_for_margin(0.03, 0.2)
    assert n == 1745
    power = scipy_stats.norm.cdf(0.03 / np.sqrt(0.2 / n) - scipy_stats.norm.ppf(0.975))
    assert power == pytest.approx(0.8, abs=1e-3)
    assert n_for_margin(0.03, 0.2, design_effect=3.0) == pytest.approx(3 * n, abs=2)
    z = scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8)
    assert n_for_margin(0.05, 0.3, true_difference=0.2) == np.ceil(z**2 * (0.3 - 0.04) / 0.25**2)
    assert n_for_margin(0.03, 0.2, true_difference=0.01) < n < n_for_margin(0.03, 0.2, true_difference=-0.01)


def test_items_for_a_difference_and_back():
    n = n_for_difference(0.087, 0.2)
    assert abs(n - 200) <= 5  # the MDE of 200 items
    assert all(power_mcnemar(m, 0.1435, 0.0565) >= 0.8 for m in range(n, n + 10))
    assert power_mcnemar(n - 8, 0.1435, 0.0565) < 0.805
    assert n_for_difference(-0.087, 0.2) == n
    assert n_for_difference(0.087, 0.2, design_effect=2.0) == 2 * n


def test_bounded_mde_is_close_to_statsmodels_exact_t_power():
    effect = TTestPower().solve_power(nobs=60, alpha=0.05, power=0.8)
    assert mde_bounded(60, 0.3) == pytest.approx(0.3 * effect, rel=0.01)
    assert mde_bounded(60, 0.0) is None
    assert mde_bounded(3, 1.0) is None


def test_impossible_questions_are_refused():
    for call in (
        lambda: power_mcnemar(10, 0.8, 0.3),
        lambda: mde_paired(0, 0.2),
        lambda: mde_paired(100, 1.2),
        lambda: mde_paired(100, 0.2, design_effect=0.5),
        lambda: n_for_difference(0.3, 0.2),
        lambda: n_for_difference(0.0, 0.2),
        lambda: n_for_margin(0.0, 0.2),
        lambda: n_for_margin(0.02, 0.2, true_difference=-0.02),
        lambda: mde_bounded(10, -1.0),
    ):
        with pytest.raises(UsageError):
            call()
    assert mde_paired(100, 0.0) is None
    assert power_mcnemar(50, 0.0, 0.0) == 0.0


def test_the_words():
    assert mde_sentence(0.087, 200).startswith("With 200 items a true difference of 8.7 points")
    assert "31 clusters" in mde_sentence(0.1, 200, 31)
    assert "no true difference" in mde_sentence(None, 50)


def test_power_over_seeds_equals_r_and_statsmodels():
    """R: power.t.test(n = 20, delta = 1, sd = 1) gives .8689528, and n = 22.02110 for a power of .9."""
    assert power_seeds(20, 1.0, 1.0) == pytest.approx(0.8689528, abs=1e-6)
    assert seeds_for_difference(1.0, 1.0, power=0.9) == 23
    for k, effect in ((4, 2.0), (5, 1.5), (12, 0.7)):
        assert power_seeds(k, effect, 1.0) == pytest.approx(TTestIndPower().power(effect, k, 0.05), abs=1e-9)


@given(st.integers(2, 40), st.floats(1e-3, 10))
def test_the_difference_that_seeds_can_see_is_found_with_the_stated_power(k, sd):
    effect = mde_seeds(k, sd)
    assert power_seeds(k, effect, sd) == pytest.approx(0.8, abs=1e-5)
    assert seeds_for_difference(effect * 1.0001, sd) in (max(4, k), max(4, k - 1))


def test_impossible_questions_about_seeds():
    for question in (lambda: power_seeds(1, 1, 1), lambda: mde_seeds(5, -1), lambda: seeds_for_difference(0, 1)):
        with pytest.raises(UsageError):
            question()
    assert mde_seeds(5, 0.0) == 0.0
    with pytest.raises(UsageError, match="million"):
        seeds_for_difference(1e-6, 1.0)
