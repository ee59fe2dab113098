"""compare_paired: which method it takes when, what it says, and what it does with degenerate data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.errors import EvidenceError
from kat.stats.compare import compare_paired
from kat.stats.paired import bonett_price_bounded, mcnemar_exact, mcnemar_midp, tango


def arms(gained: int, lost: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [gained, lost, both, neither]
    return np.repeat([0.0, 1.0, 1.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)


def test_binary_is_midp_and_tango_with_the_exact_test_beside():
    result = compare_paired(*arms(6, 16, 59, 80), "binary")
    assert result.difference == tango(6, 16, 161)
    assert result.p == mcnemar_midp(6, 16)
    assert [test.p for test in result.beside] == [mcnemar_exact(6, 16)]
    assert {interval.method for interval in result.intervals_beside} == {"Newcombe paired", "Bonett-Price"}
    assert (result.gained, result.lost, result.n) == (6, 16, 161)
    assert (result.mean_a, result.mean_b) == pytest.approx((75 / 161, 65 / 161))
    assert result.direction == "worse"


@pytest.mark.parametrize("n", [10, 50, 199])
def test_no_wald_t_or_bootstrap_below_200_binary_items(n):
    rng = np.random.default_rng(n)
    a, b = rng.integers(0, 2, n), rng.integers(0, 2, n)
    for clusters in (None, np.arange(n) // 2):
        method = compare_paired(a, b, "binary", clusters).difference.method
        assert method in ("Tango score", "CR2 by cluster, 2 pseudo-items")


def test_bounded_takes_t_only_from_100_items_with_20_that_differ():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 5, 100) / 4
    changed = np.where(np.arange(100) < 20, 1 - base, base)
    changed[:20] = np.where(base[:20] == 0.5, rng.choice([0.0, 1.0], 20), changed[:20])
    assert compare_paired(base, changed, "bounded").difference.method == "t"
    changed[0] = base[0]
    few = compare_paired(base, changed, "bounded")
    assert few.difference == bonett_price_bounded(changed - base)
    assert compare_paired(base[:99], 1 - base[:99], "bounded").difference.method == "generalised Bonett-Price"


def test_clusters_gate_as_soon_as_one_holds_two_items():
    a, b = arms(30, 10, 100, 100)
    single = compare_paired(a, b, "binary", clusters=[f"item {i}" for i in range(240)])
    assert single == compare_paired(a, b, "binary")
    grouped = compare_paired(a, b, "binary", clusters=np.r_[np.arange(239), 0])
    assert grouped.difference.method == "CR2 by cluster"
    assert grouped.if_independent == single
    assert grouped.speaks_of == "new clusters like these"
    assert grouped.test.method == "cluster sign-flip permutation"
    assert [test.method for test in grouped.beside] == ["t on CR2, Satterthwaite"]


def test_answers_copied_within_clusters_lose_their_false_certainty():
    a, b = arms(8, 2, 10, 10)
    copies = compare_paired(np.repeat(a, 10), np.repeat(b, 10), "binary", clusters=np.repeat(np.arange(30), 10))
    assert copies.if_independent.direction == "better"
    assert copies.direction == "not shown"
    once = compare_paired(a, b, "bounded")
    assert copies.difference.high - copies.difference.low > 0.8 * (once.difference.high - once.difference.low)


@pytest.mark.parametrize("kind", ["binary", "bounded"])
@pytest.mark.parametrize("n", [1, 2, 50, 300])
@pytest.mark.parametrize("clustered", [False, True])
def test_identical_models_and_one_changed_item_show_nothing(kind, n, clustered):
    a = np.arange(n) % 2 * 1.0
    clusters = np.arange(n) // 3 if clustered else None
    for b in (a, np.r_[1 - a[0], a[1:]]):
        result = compare_paired(a, b, kind, clusters)
        assert result.direction == "not shown"
        assert result.difference.low < 0 < result.difference.high
        assert "not shown" in result.sentence()
        assert "no difference" not in result.sentence()


@given(st.integers(0, 9_999), st.sampled_from(["binary", "bounded"]), st.booleans(), st.integers(2, 130))
@settings(deadline=None, max_examples=40)
def test_swapping_the_arms_swaps_the_verdict(seed, kind, clustered, n):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 2, n), rng.integers(0, 2, n)) if kind == "binary" else (rng.integers(0, 4, (2, n)) / 3)
    clusters = rng.integers(0, max(2, n // 3), n) if clustered else None
    there, back = compare_paired(a, b, kind, clusters), compare_paired(b, a, kind, clusters)
    assert there.difference.estimate == pytest.approx(-back.difference.estimate)
    assert (there.difference.low, there.difference.high) == pytest.approx(
        (-back.difference.high, -back.difference.low), abs=1e-7
    )
    assert there.p == pytest.approx(back.p)
    assert {there.direction, back.direction} in ({"not shown"}, {"better", "worse"})
    assert (there.gained, there.lost) == (back.lost, back.gained)


def test_interval_and_test_must_agree_before_a_difference_is_claimed():
    few = compare_paired(*arms(4, 0, 48, 48), "binary")
    assert few.difference.low > 0
    assert few.p == pytest.approx(1 / 16)
    assert few.direction == "not shown"
    more = compare_paired(*arms(6, 0, 47, 47), "binary")
    assert more.p < 0.05
    assert more.direction == "better"


def test_order_of_items_and_names_of_clusters_change_nothing():
    rng = np.random.default_rng(1)
    a, b, clusters = rng.integers(0, 2, 250), rng.integers(0, 2, 250), rng.integers(0, 60, 250)
    order = rng.permutation(250)
    first = compare_paired(a, b, "binary", clusters)
    again = compare_paired(a[order], b[order], "binary", [f"lecture {c}" for c in clusters[order]])
    assert (first.difference.low, first.difference.high, first.p) == pytest.approx(
        (again.difference.low, again.difference.high, again.p)
    )


def test_the_sentence_says_what_could_have_been_seen():
    unsure = compare_paired(*arms(20, 15, 80, 85), "binary").sentence("base", "sft")
    assert "not shown which of base and sft" in unsure
    assert "+2.5 points" in unsure
    assert "would have been found 80 % of the time" in unsure
    sure = compare_paired(*arms(60, 15, 80, 45), "binary")
    assert sure.sentence("base", "sft").startswith("sft scores higher than base: sft − base +22.5 points")
    assert "95 % interval" in sure.sentence()
    assert compare_paired(np.ones(30), np.ones(30), "binary").seen().endswith("could have been found reliably.")


@pytest.mark.parametrize(
    ("a", "b", "clusters", "word"),
    [
        ([0, 1], [0, 1, 1], None, "A has 2 scores and B 3"),
        ([0, 1], [0, float("nan")], None, "B's scores"),
        ([0, 2], [0, 1], None, "A's scores"),
        ([], [], None, "at least one item"),
        ([0, 1], [0, 1], [1], "labels"),
    ],
)
def test_evidence_that_is_none_is_refused(a, b, clusters, word):
    with pytest.raises(EvidenceError, match=word):
        compare_paired(a, b, "binary", clusters)
