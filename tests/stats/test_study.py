"""The verdict on a study against scipy, against its definition, and in the cases that must not help a claim."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kat.errors import EvidenceError, UsageError
from kat.stats.permutation import is_exact, split_p, split_p_above, splits
from kat.stats.power import power_seeds
from kat.stats.real import compare_real
from kat.stats.study import Rules, Runs, compare_arms, judge, p_gain_above, p_gain_below
from kat.stats.study_power import Noise, alike, guard_power, seeds_needed, study_mde, study_power

RULES = Rules("density", ("uniform", "placebo"), "vendi", 1, 1.0, "reward", 1, 1.0, ("uniform",))
values = st.integers(-20, 20).map(lambda i: i / 4)


def arm(*numbers, diverged=0):
    return Runs(np.array(numbers, dtype=float), diverged)


@given(st.lists(values, min_size=2, max_size=5), st.lists(values, min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_splits_agree_with_scipy_ties_and_unequal_sizes_included(a, b):
    a, b = np.array(a), np.array(b)
    for alternative, mine in (("greater", split_p_above(a, b)), ("two-sided", split_p(a, b))):
        oracle = stats.permutation_test(
            (b, a),
            lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
            vectorized=True,
            n_resamples=np.inf,
            alternative=alternative,
        )
        assert mine == pytest.approx(min(1.0, oracle.pvalue), abs=1e-12)


def test_every_split_of_unequal_arms_stands_there_once_and_one_of_each_pair_of_equal_ones():
    assert len({tuple(row) for row in splits(3, 4)}) == 35
    half = {tuple(row) for row in splits(4, 4)}
    assert len(half) == 35 and half | {tuple(1 - np.array(row)) for row in half} == {
        tuple(float(i in chosen) for i in range(8)) for chosen in itertools.combinations(range(8), 4)
    }


def test_many_seeds_are_drawn_not_enumerated_and_never_give_zero():
    assert is_exact(10, 10) and not is_exact(11, 11)
    p = split_p_above(np.zeros(20), np.ones(20) + np.arange(20) / 100)
    assert p == pytest.approx(1 / 20_001)


@given(st.lists(values, min_size=4, max_size=6, unique=True), st.lists(values, min_size=4, max_size=6, unique=True))
@settings(max_examples=60, deadline=None)
def test_the_claim_is_scipys_welch_and_the_permutation_whichever_is_larger(a, b):
    a, b = np.array(a), np.array(b)
    oracle = stats.ttest_ind(b - 0.5, a, equal_var=False, alternative="greater").pvalue
    assert p_gain_above(Runs(a), Runs(b), 1, 0.5) == pytest.approx(max(oracle, split_p_above(a, b - 0.5)), abs=1e-12)
    below = stats.ttest_ind(b - 0.5, a, equal_var=False, alternative="less").pvalue
    assert p_gain_below(Runs(a), Runs(b), 1, 0.5) == pytest.approx(max(below, split_p_above(b - 0.5, a)), abs=1e-12)
    # A metric that is better when low is the same metric with its sign changed.
    assert p_gain_above(Runs(-a), Runs(-b), -1, 0.5) == pytest.approx(p_gain_above(Runs(a), Runs(b), 1, 0.5), abs=1e-12)


def test_compare_arms_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=6), rng.normal(1, 2, size=8)
    found, oracle = compare_arms(Runs(a), Runs(b), 1), stats.ttest_ind(b, a, equal_var=False)
    low, high = oracle.confidence_interval(0.95)
    assert (found.difference, found.low, found.high) == pytest.approx((b.mean() - a.mean(), low, high))
    assert found.welch_p == pytest.approx(oracle.pvalue) and found.p >= found.permutation_p
    assert found.p_above == pytest.approx(stats.mannwhitneyu(b, a).statistic / 48)


def study(uniform, placebo, density, reward_density=None, reward_uniform=None):
    even = arm(*np.linspace(-1, 1, 8))
    data = {"uniform": uniform, "placebo": placebo, "density": density}
    rewards = {"uniform": reward_uniform or even, "placebo": even, "density": reward_density or even}
    return {name: {"vendi": runs, "reward": rewards[name]} for name, runs in data.items()}


LOW, HIGH = arm(*np.linspace(0, 1, 8)), arm(*np.linspace(3, 4, 8))


def test_all_parts_must_hold():
    good = judge(RULES, study(LOW, LOW, HIGH, arm(*np.linspace(-1, 1, 8)), arm(*np.linspace(-1.2, 0.8, 8))))
    assert good.word == "supported" and len(good.parts) == 3
    assert judge(RULES, study(LOW, HIGH, HIGH)).word != "supported"  # the placebo does as well
    worse = judge(RULES, study(LOW, LOW, HIGH, reward_density=arm(*np.linspace(-5, -3, 8))))
    assert worse.word == "not supported"
    assert [part.refuted for part in worse.parts] == [False, False, True]


def shifted(p_value, low: float, high: float) -> Runs:
    """An arm, spread as the others, whose p-value lies between low and high."""
    found = [arm(*np.linspace(-1, 1, 8) + shift) for shift in np.linspace(-3, 3, 601)]
    return next(one for one in found if low < p_value(one) < high)


def test_each_level_is_the_declared_one():
    """Superiority at α/2 upwards, non-inferiority at α, a refutation at α over the number of parts."""
    even = arm(*np.linspace(-1, 1, 8))
    for low, high, holds in ((0.026, 0.049, False), (0.015, 0.024, True)):
        treated = shifted(lambda one: p_gain_above(even, one, 1, 0.0), low, high)
        found = judge(RULES, study(even, even, treated))
        assert [part.holds for part in found.parts if part.kind == "primary"] == [holds, holds]
    for low, high, holds in ((0.051, 0.08, False), (0.026, 0.049, True)):
        reward = shifted(lambda one: p_gain_above(even, one, 1, -1.0), low, high)
        found = judge(RULES, study(LOW, LOW, HIGH, reward_density=reward, reward_uniform=even))
        assert found.parts[-1].holds is holds
    for low, high, refuted in ((0.018, 0.049, False), (0.01, 0.0166, True)):  # of three parts: 0.05 / 3
        treated = shifted(lambda one: p_gain_below(even, one, 1, 1.0), low, high)
        found = judge(RULES, study(even, even, treated))
        assert [part.refuted for part in found.parts if part.kind == "primary"] == [refuted, refuted]


def test_no_difference_is_not_said_before_the_effect_of_interest_is_excluded():
    narrow, wide = np.linspace(-0.3, 0.3, 8), np.linspace(-4, 4, 8)
    assert judge(RULES, study(arm(*narrow), arm(*narrow), arm(*narrow))).word == "not supported"
    assert judge(RULES, study(arm(*wide), arm(*wide), arm(*wide))).word == "undecided"


@pytest.mark.parametrize("name", ["uniform", "placebo", "density"])
def test_a_diverged_run_never_helps_the_claim(name):
    """Were the run finished with any value at all, the claim would stand no worse for some of them."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        arms = {one: rng.normal(0.9 * (one == "density"), 1, 6) for one in ("uniform", "placebo", "density")}
        diverged = dict({one: Runs(x) for one, x in arms.items()}, **{name: Runs(arms[name][1:], 1)})
        if name == "density":
            assert p_gain_above(diverged["uniform"], diverged["density"], 1, 0.0) >= 1 / 924
            lowest = np.append(arms["density"][1:], -1e9)
            ranks = stats.rankdata(np.concatenate([arms["uniform"], lowest]))
            expected = split_p_above(ranks[:6], ranks[6:])
            assert p_gain_above(diverged["uniform"], diverged["density"], 1, 0.0) == pytest.approx(expected)
        else:
            highest = np.append(arms[name][1:], 1e9)
            ranks = stats.rankdata(np.concatenate([highest, arms["density"]]))
            expected = split_p_above(ranks[:6], ranks[6:])
            assert p_gain_above(diverged[name], diverged["density"], 1, 0.0) == pytest.approx(expected)


def test_a_treatment_that_always_diverges_is_refuted_and_one_that_is_compared_with_wrecks_is_not_supported():
    wreck = arm(diverged=8)
    assert judge(RULES, study(LOW, LOW, wreck, reward_density=wreck)).word == "not supported"
    found = judge(RULES, study(wreck, wreck, HIGH, reward_uniform=wreck))
    assert found.word == "undecided" and not any(part.holds or part.refuted for part in found.parts)


def test_lower_is_better_turns_the_words():
    rules = Rules("density", ("uniform",), "vendi", -1, 1.0, "reward", 1, 1.0, ("uniform",))
    data = study(HIGH, HIGH, LOW, arm(*np.linspace(-1, 1, 8)))
    assert judge(rules, data).word == "supported"
    assert judge(RULES, data).word == "not supported"


def test_arms_without_any_spread_are_judged_by_the_permutation():
    """A reward that every run reaches to the last bit is not inferior; a difference without noise is one in C(8, 4)."""
    flat, high = arm(1, 1, 1, 1), arm(2, 2, 2, 2)
    assert p_gain_above(flat, flat, 1, -0.1) == pytest.approx(1 / 70)
    assert p_gain_above(flat, flat, 1, 0.0) == 1.0 and p_gain_below(flat, flat, 1, 0.0) == 1.0
    found = compare_arms(flat, high, 1)
    assert (found.difference, found.low, found.welch_p) == (1.0, None, None) and found.p == pytest.approx(2 / 70)
    for runs in (lambda: arm(1.0, np.nan), lambda: p_gain_above(arm(1.0), arm(1.0, 2.0), 1, 0.0)):
        with pytest.raises(EvidenceError):
            runs()


def test_power_of_one_comparison_agrees_with_the_noncentral_t():
    # With one comparator and a guard that always holds, the verdict is one t test upwards.
    noise = Noise((1.0, 1.0), (1e-6, 1e-6))
    for k, effect in ((12, 1.2), (30, 0.7)):
        assert study_power(k, effect, noise, 1.0) == pytest.approx(power_seeds(k, effect, 1.0), abs=0.02)
    assert study_power(5, 2.2, noise, 1.0) <= power_seeds(5, 2.2, 1.0) + 0.01  # the permutation asks for more


def test_mde_power_and_seeds_agree_with_each_other():
    noise = alike(0.5, 2, 0.2, 1)
    mde = study_mde(5, noise, 0.5)
    assert study_power(5, mde, noise, 0.5) == pytest.approx(0.8, abs=0.01)
    needed = seeds_needed(0.5, noise, 0.5)
    assert study_power(needed, 0.5, noise, 0.5) >= 0.8 > study_power(needed - 1, 0.5, noise, 0.5)
    assert seeds_needed(1e-4, noise, 0.5) is None
    # Where the margin is too small for the reward's noise, no effect on diversity is large enough.
    assert guard_power(5, (1.0, 1.0), 0.5) < 0.5 and study_mde(5, alike(0.5, 2, 1.0, 1), 0.5) is None
    with pytest.raises(UsageError, match="at least 4"):
        study_power(3, 1.0, noise, 0.5)


def test_paired_real_differences_agree_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(0.4, 1, size=30)
    found, oracle = compare_real(a, b), stats.ttest_rel(b, a)
    low, high = oracle.confidence_interval(0.95)
    assert (found.difference, found.low, found.high) == pytest.approx((np.mean(b - a), low, high))
    assert found.p == pytest.approx(oracle.pvalue, abs=0.02) and found.shown == int(found.p <= 0.05)
    back = compare_real(b, a)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    for bad in ([1.0], [1.0, np.inf]):
        with pytest.raises(EvidenceError):
            compare_real(bad, bad)
    with pytest.raises(EvidenceError):
        compare_real([1, 2], [1, 2, 3])
