"""The gate's statistics through its own verdict code: how often it is wrong, and how often it is of any use."""

from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from kat.audit.judge import Judgement, judge_items, judge_seeds, sd_interval
from kat.errors import EvidenceError
from kat.stats.compare import compare_paired
from kat.stats.power import n_for_margin, seeds_for_difference
from kat.stats.result import Estimate

MARGIN = 0.03
DRAWS = pytest.mark.parametrize(
    ("draws", "shares"), [(2_000, [0.2]), pytest.param(20_000, [0.1, 0.2, 0.3], marks=pytest.mark.slow)]
)


@pytest.fixture(autouse=True)
def _only_what_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a comparison computes beside its gating interval takes most of its time, and the gate must not read it."""
    for name in ("mde_paired", "newcombe_paired", "bonett_price"):
        monkeypatch.setattr(f"kat.stats.compare.{name}", lambda *words: None)
    monkeypatch.setattr("kat.stats.compare.mcnemar_exact", lambda *words: 1.0)


@cache
def counts(gained: int, lost: int, n: int, margin: float = MARGIN, min_power: float = 0.8) -> Judgement:
    """The judgement of a table of right and wrong; half of the concordant items are right in both."""
    agree = n - gained - lost
    a = np.r_[np.zeros(gained), np.ones(lost), np.ones(agree // 2), np.zeros(agree - agree // 2)]
    b = np.r_[np.ones(gained), np.zeros(lost), np.ones(agree // 2), np.zeros(agree - agree // 2)]
    return judge_items(compare_paired(a, b, "binary"), margin, min_power)


def rates(n: int, discordant: float, difference: float, draws: int, seed: int = 1) -> Counter[str]:
    """Shares of the outcomes of `draws` comparisons of n items with this true difference B − A."""
    rng = np.random.default_rng(seed)
    up, down = (discordant + difference) / 2, (discordant - difference) / 2
    tables = rng.multinomial(n, [up, down, 1 - up - down], size=draws)
    found: Counter[str] = Counter()
    for (gained, lost), times in Counter(map(tuple, tables[:, :2].tolist())).items():
        found[counts(gained, lost, n).outcome] += times
    return Counter({outcome: times / draws for outcome, times in found.items()})


def error(p: float, draws: int) -> float:
    """Three Monte-Carlo standard errors."""
    return 3 * (p * (1 - p) / draws) ** 0.5


# Rules


def test_pass_is_the_lower_end_above_minus_the_margin() -> None:
    for gained in range(0, 61, 4):
        for lost in range(0, 61, 4):
            found = counts(gained, lost, 600, min_power=0.0)
            low, high = found.difference.low, found.difference.high
            wanted = "PASS" if low > -MARGIN else "FAIL" if high < 0 else "INCONCLUSIVE"
            assert found.outcome == wanted, (gained, lost)


def test_worse_within_the_margin_passes_and_is_called_so() -> None:
    found = counts(20, 60, 4_000)
    assert found.outcome == "PASS" and found.difference.high < 0
    assert found.sentence.startswith("Worse, within the margin of 3 points: B − A is −1.00 points, 95 % interval")
    assert "within" not in counts(40, 40, 4_000).sentence


def test_the_printed_interval_agrees_with_the_outcome_at_the_edge() -> None:
    """An end that rounds to the margin itself is printed with the digits that tell them apart."""
    from kat.audit.judge import _interval

    inside = Estimate(0.0, -0.029999, 0.02, 0.95, 10, "made up")
    assert _interval(inside, 0.03) == "[−2.9999, +2.0000]"
    assert _interval(Estimate(0.0, -0.0200, 0.02, 0.95, 10, "made up"), 0.03) == "[−2.00, +2.00]"
    assert _interval(Estimate(-0.01, -0.0200, -0.000004, 0.95, 10, "made up"), 0.03) == "[−2.0000, −0.0004]"


def test_zero_discordant_pairs_never_give_a_free_pass() -> None:
    assert counts(0, 0, 50).outcome == "INCONCLUSIVE"
    needed = counts(0, 0, 50).needed
    assert needed is not None and counts(0, 0, needed).outcome == "PASS"
    assert counts(0, 0, 124, min_power=0.0).outcome == "INCONCLUSIVE"  # 1.96² (1 / .03 − 1) = 124.2
    assert counts(0, 0, 125, min_power=0.0).outcome == "PASS"


def test_one_item_decides_nothing() -> None:
    for found in (counts(1, 0, 1), counts(0, 1, 1), counts(0, 0, 1)):
        assert found.outcome == "INCONCLUSIVE" and found.needed is not None and found.needed > 100


def test_inconclusive_names_the_items_that_would_decide() -> None:
    found = counts(50, 50, 500)
    assert found.outcome == "INCONCLUSIVE" and found.needed == n_for_margin(MARGIN, 0.2) == 1_745
    assert "About 1,745 items let two equal models pass 80 % of the time" in found.sentence
    worse = counts(40, 50, 500)
    assert worse.needed_observed is not None and worse.needed_observed > worse.needed == n_for_margin(MARGIN, 0.18)


def test_a_pass_by_luck_is_inconclusive() -> None:
    """400 items with half of them discordant have a power of 13 %; only a lucky lead could pass."""
    found = counts(112, 88, 400)
    assert found.difference.low > -MARGIN and found.outcome == "INCONCLUSIVE"
    assert "by luck" in found.sentence and found.power < 0.2
    assert counts(112, 88, 400, min_power=0.0).outcome == "PASS"


def test_a_shown_improvement_passes_at_any_power() -> None:
    found = counts(130, 80, 400)
    assert found.power < 0.2 and found.difference.low > 0 and found.outcome == "PASS"


def test_a_shown_regression_fails_at_any_power() -> None:
    found = counts(80, 130, 400)
    assert found.power < 0.2 and found.outcome == "FAIL"


def test_clusters_gate() -> None:
    """The same items pass alone and do not when every twenty of them rise and fall together."""
    rng = np.random.default_rng(3)
    shift = rng.permutation(np.repeat([1, -1, 0], [10, 10, 80]))
    a = np.repeat((shift < 0).astype(float), 20)
    b = np.repeat((shift > 0).astype(float), 20)
    alone = judge_items(compare_paired(a, b, "binary"), 0.03, 0.8)
    grouped = judge_items(compare_paired(a, b, "binary", np.repeat(np.arange(100), 20)), 0.03, 0.8)
    assert (alone.outcome, alone.unit) == ("PASS", "item")
    assert (grouped.outcome, grouped.unit, grouped.n_units) == ("INCONCLUSIVE", "cluster", 100)
    assert grouped.needed is not None and alone.needed is not None and grouped.needed > 10 * alone.needed


def test_one_cluster_says_nothing() -> None:
    found = judge_items(compare_paired(np.ones(300), np.ones(300), "binary", np.zeros(300)), 0.03, 0.8)
    assert found.outcome == "INCONCLUSIVE" and found.needed is None


def test_rotation_averages_one_non_zero_of_fifty() -> None:
    a = np.zeros(50)
    b = np.r_[0.5, np.zeros(49)]
    for arm in (a, b):
        found = judge_items(compare_paired(a, arm, "bounded"), 0.03, 0.8)
        assert found.outcome == "INCONCLUSIVE" and found.difference.low < found.difference.high


# How often


@DRAWS
def test_no_difference_rarely_fails_and_passes_where_the_table_says(draws: int, shares: list[float]) -> None:
    for discordant in shares:
        found = rates(n_for_margin(MARGIN, discordant), discordant, 0.0, draws)
        assert found["FAIL"] <= 0.055, (discordant, found)
        assert found["PASS"] >= 0.75, (discordant, found)


@DRAWS
@pytest.mark.parametrize("n", [50, 200, 1_745])
def test_at_minus_the_margin_hardly_any_pass(draws: int, shares: list[float], n: int) -> None:
    for discordant in shares:
        found = rates(n, discordant, -MARGIN, draws)
        assert found["PASS"] <= 0.025 + error(0.025, draws), (n, discordant, found)


@DRAWS
def test_a_regression_is_found_at_the_printed_effect(draws: int, shares: list[float]) -> None:
    """The minimum detectable effect of 1,000 items at .2 discordant is 4.0 points; the margin lies below it."""
    found = rates(1_000, 0.2, -0.0401, draws)
    assert found["FAIL"] >= 0.75, found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome rests on Welch's interval; the permutation test and the seeds that are named stand beside it."""
    monkeypatch.setattr("kat.audit.judge.seeds_needed", lambda effect, sd: None)
    monkeypatch.setattr("kat.stats.seeds.stats.permutation_test", lambda *words, **more: SimpleNamespace(pvalue=1.0))


def seed_rates(k: int, sd: float, difference: float, draws: int, margin: float = MARGIN) -> Counter[str]:
    rng = np.random.default_rng(5)
    arms = rng.normal([[0.5], [0.5 + difference]], sd, size=(draws, 2, k))
    found = Counter(judge_seeds(list(a), list(b), margin, 0.8).outcome for a, b in arms)
    return Counter({outcome: times / draws for outcome, times in found.items()})


SEED_DRAWS = pytest.mark.parametrize("draws", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])


@SEED_DRAWS
@pytest.mark.usefixtures("quick")
def test_unchanged_recipes_rarely_fail(draws: int) -> None:
    found = seed_rates(5, 0.01, 0.0, draws)
    assert found["FAIL"] <= 0.05, found


@SEED_DRAWS
@pytest.mark.usefixtures("quick")
def test_recipes_at_minus_the_margin_hardly_ever_pass(draws: int) -> None:
    found = seed_rates(5, 0.01, -MARGIN, draws)
    assert found["PASS"] <= 0.025 + error(0.025, draws), found


@SEED_DRAWS
@pytest.mark.usefixtures("quick")
def test_unchanged_recipes_pass_with_the_seeds_that_are_named(draws: int) -> None:
    k = max(5, seeds_for_difference(MARGIN, 0.02))
    found = seed_rates(k, 0.02, 0.0, draws)
    assert found["PASS"] >= 0.75, (k, found)


@SEED_DRAWS
@pytest.mark.usefixtures("quick")
def test_a_planted_drop_is_found_at_the_printed_power(draws: int) -> None:
    """A drop of 3 points with a seed noise of 1 and a margin of 1: FAIL, with the seeds that the tool names."""
    k = max(5, seeds_for_difference(0.03, 0.01))
    found = seed_rates(k, 0.01, -0.03, draws, margin=0.01)
    assert found["FAIL"] >= 0.75, (k, found)


# Seeds


def test_seeds_pass_fail_and_wait() -> None:
    a = [0.50, 0.51, 0.49, 0.50, 0.52]
    assert judge_seeds(a, [s + 0.001 for s in a], 0.03, 0.8).outcome == "PASS"
    assert judge_seeds(a, [s - 0.05 for s in a], 0.03, 0.8).outcome == "FAIL"
    wide = [0.50, 0.60, 0.40, 0.55, 0.45]
    found = judge_seeds(wide, [s - 0.001 for s in wide], 0.03, 0.8)
    assert found.outcome == "INCONCLUSIVE" and found.needed == seeds_for_difference(0.03, float(np.std(wide, ddof=1)))
    assert f"About {found.needed} seeds a side let two equal models pass" in found.sentence


def test_measured_noise_says_how_many_seeds_decide() -> None:
    wide = [0.50, 0.60, 0.40, 0.55, 0.45]
    found = judge_seeds(wide, [s - 0.001 for s in wide], 0.03, 0.8, noise=(0.05, 20))
    assert found.needed == seeds_for_difference(0.03, 0.05)


def test_a_lucky_pass_over_seeds_is_inconclusive() -> None:
    """Measured noise of 5 points from 20 seeds: five seeds a side pass rarely, however close these ten lie."""
    a = [0.50, 0.51, 0.49, 0.50, 0.52]
    found = judge_seeds(a, a[::-1], 0.03, 0.8, noise=(0.05, 20))
    assert found.outcome == "INCONCLUSIVE" and "by luck" in found.sentence


def test_arms_without_spread_are_no_sample() -> None:
    with pytest.raises(EvidenceError, match="no seed noise"):
        judge_seeds([0.5] * 5, [0.5] * 5, 0.03, 0.8)


def test_the_interval_of_a_standard_deviation() -> None:
    """Ten values, s = 1: √(9 / 19.0228) and √(9 / 2.7004), the χ² quantiles of any table."""
    low, high = sd_interval(1.0, 9)
    assert low == pytest.approx(0.687838, abs=1e-5) and high == pytest.approx(1.825605, abs=1e-5)
