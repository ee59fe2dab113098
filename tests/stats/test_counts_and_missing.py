"""What two published pairs of counts allow to be said, and what unparsed responses could have changed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.errors import EvidenceError, UsageError
from kat.stats.compare import compare_paired
from kat.stats.counts import Counts, audit_counts, paired_p_range
from kat.stats.missing import sensitivity
from kat.stats.paired import mcnemar_exact


def test_the_published_13_of_34_against_21_of_50():
    audit = audit_counts((13, 34, 50), (21, 50, 50))
    assert (audit.parsed_only.low, audit.parsed_only.high) == pytest.approx((-0.17, 0.24), abs=0.005)
    assert audit.parsed_only_test.p == pytest.approx(0.73, abs=0.005)
    assert (audit.share_a.estimate, audit.share_b.estimate) == (0.26, 0.42)
    assert (audit.low, audit.high) == pytest.approx((-0.16, 0.16))
    assert not audit.sign_identified
    assert audit.p_if_paired == pytest.approx((0.008, 0.23), abs=0.0006)
    assert audit.p_parse_if_paired == pytest.approx((2 / 2**16, 2 / 2**16))
    text = " ".join(audit.sentences())
    for words in ("−17.2 to +23.6", "p = .73", "26.0 %", "42.0 %", "between −16.0 and +16.0", "sign is not identified"):
        assert words in text
    assert "may be anything from .008 to .229" in text
    assert "p is 3e-5" in text
    solid = (
        "What is solid: B gives a readable answer more often than A; which of A and B is right more often is not shown."
    )
    assert audit.sentences()[-1] == solid
    assert (
        audit.beside_chance(0.4, 4241)
        == "Chance on these 4,241 items is 40.0 %: neither A nor B is shown to be above it."
    )


def test_what_is_solid_where_something_is():
    assert audit_counts((10, 50, 50), (45, 50, 50)).sentences()[-1] == "What is solid: B is right more often than A."
    last = audit_counts((45, 50, 50), (10, 12, 50)).sentences()[-1]
    assert "A gives a readable answer more often than B" in last and "not shown" in last
    assert "only B is" in audit_counts((10, 50, 50), (45, 50, 50)).beside_chance(0.4, 50)


def test_the_second_published_run():
    audit = audit_counts(Counts(21, 41, 50), Counts(17, 50, 50))
    assert audit.sign_identified
    assert (audit.low, audit.high) == pytest.approx((-0.26, -0.08))
    assert "the sign is the same in every case" in " ".join(audit.sentences())


def test_different_numbers_of_items_are_no_pairs():
    audit = audit_counts((5, 10, 10), (6, 12, 12))
    assert audit.p_if_paired is None
    assert "not of the same items" in " ".join(audit.sentences())


def test_a_run_that_parsed_nothing_is_still_audited():
    audit = audit_counts((0, 0, 50), (17, 50, 50))
    assert audit.parsed_only is None
    assert (audit.low, audit.high) == pytest.approx((-0.66, 0.34))
    assert audit.sentences()


@pytest.mark.parametrize("counts", [(5, 4, 10), (1, 11, 10), (-1, 2, 3), (0, 0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(UsageError, match="right/parsed/asked"):
        audit_counts(counts, (1, 2, 3))


@given(st.integers(1, 14), st.data())
@settings(deadline=None, max_examples=60)
def test_the_range_of_p_is_that_of_all_pairings(n, data):
    right_a, right_b = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    possible = [
        mcnemar_exact(right_b - both, right_a - both)
        for both in range(max(0, right_a + right_b - n), min(right_a, right_b) + 1)
    ]
    assert paired_p_range(right_a, right_b, n) == pytest.approx((min(possible), max(possible)))


# Unparsed responses, item by item


def test_bounds_are_the_extremes_over_every_reading_of_the_unparsed():
    a, ok_a = np.array([1, 0, 0, 1, 0, 0, 0]), np.array([1, 0, 1, 1, 0, 1, 1])
    b, ok_b = np.array([1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 1, 1, 1, 1])
    result = sensitivity(a, ok_a, b, ok_b)
    readings = []
    for filled in itertools.product([0, 1], repeat=3):
        x, y = a.copy(), b.copy()
        x[[1, 4]], y[2] = filled[:2], filled[2]
        readings.append(y.mean() - x.mean())
    assert (result.low, result.high) == pytest.approx((min(readings), max(readings)))
    assert result.headline.difference.estimate == pytest.approx(1 / 7)
    assert result.dropped_a.estimate == pytest.approx(2 / 5)
    assert result.dropped_b.estimate == pytest.approx(3 / 6)
    assert result.parse.difference.estimate == pytest.approx(1 / 7)


@pytest.mark.parametrize("seed", range(6))
def test_the_tipping_point_is_the_smallest_number_that_changes_the_verdict(seed):
    rng = np.random.default_rng(seed)
    n = 20
    ok_a, ok_b = (rng.random(n) < 0.8).astype(int), (rng.random(n) < 0.85).astype(int)
    a, b = ok_a * (rng.random(n) < 0.3), ok_b * (rng.random(n) < 0.75)
    result = sensitivity(a, ok_a, b, ok_b)
    verdict = result.headline.direction
    sides = {"better": (a,), "worse": (b,), "not shown": (a, b)}[verdict]
    smallest = None
    for side in sides:
        unparsed = np.flatnonzero(1 - (ok_a if side is a else ok_b))
        for count in range(1, unparsed.size + 1):
            for turned in itertools.combinations(unparsed, count):
                changed = side.copy()
                changed[list(turned)] = 1
                arms = (changed, b) if side is a else (a, changed)
                if compare_paired(*arms, "binary").direction != verdict:
                    smallest = count if smallest is None else min(smallest, count)
                    break
            if smallest is not None and count >= smallest:
                break
    assert result.tipping == smallest


def test_a_verdict_is_made_quickest_by_taking_from_the_other_side():
    """9 gained, 4 lost and B's 8 misses unparsed: (9, 2) is shown, while adding two first, (11, 4), is not."""
    a = np.repeat([0, 1, 0, 1], [9, 4, 4, 20])
    b = np.repeat([1, 0, 0, 1], [9, 4, 4, 20])
    assert sensitivity(a, np.ones(37), b, b).tipping == 2


def test_nothing_unparsed_nothing_to_tip():
    a, b = np.array([1, 0, 1, 0]), np.array([1, 1, 1, 0])
    result = sensitivity(a, np.ones(4), b, np.ones(4))
    assert result.low == result.high == result.headline.difference.estimate
    assert result.tipping is None
    assert result.sign_identified


def test_unparsed_but_right_is_impossible_evidence():
    with pytest.raises(EvidenceError, match="unparsed and right"):
        sensitivity([1, 0], [0, 1], [0, 0], [1, 1])
    with pytest.raises(EvidenceError, match="same number"):
        sensitivity([1, 0], [1, 1], [0, 0, 1], [1, 1, 1])
