"""Every main figure of the report, recomputed naively from the two samples.jsonl."""

import json
import random
import shutil
from collections import defaultdict

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from kat.audit.report import audit
from kat.evals.protocol import DataSource
from kat.stats.power import mde_paired, n_for_difference
from tests.audit.worlds import consistent, edit_rows, letters, rows_of
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend


def test_accuracies_difference_and_outcomes_follow_from_the_rows(world, report):
    a, b = rows_of(world / "a"), rows_of(world / "b")
    score_a = [a[key]["score"] for key in a]
    score_b = [b[key]["score"] for key in a]
    n = len(score_a)
    primary = report.primary
    assert primary.a.estimate == pytest.approx(sum(score_a) / n)
    assert primary.b.estimate == pytest.approx(sum(score_b) / n)
    gained = sum(y > x for x, y in zip(score_a, score_b, strict=True))
    lost = sum(x > y for x, y in zip(score_a, score_b, strict=True))
    assert (primary.b_only, primary.a_only) == (gained, lost)
    assert primary.both == sum(x == y == 1 for x, y in zip(score_a, score_b, strict=True))
    assert primary.neither == sum(x == y == 0 for x, y in zip(score_a, score_b, strict=True))
    assert primary.by_item.estimate == pytest.approx((gained - lost) / n)
    assert primary.p_exact == pytest.approx(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)
    assert (report.n_gained, report.n_lost) == (gained, lost)
    assert len(report.flips) == gained + lost


def test_the_cluster_result_gates_and_agrees_with_another_implementation(world, report):
    """Oracle: statsmodels' CR1 sandwich, which CR2 corrects only a little with 40 clusters."""
    a, b = rows_of(world / "a"), rows_of(world / "b")
    d = np.array([b[key]["score"] - a[key]["score"] for key in a])
    groups = np.unique([a[key]["cluster"] for key in a], return_inverse=True)[1]
    fit = sm.OLS(d, np.ones_like(d)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    found = report.primary.by_cluster
    assert report.primary.gating is found
    assert (found.unit, found.n_units, report.n_clusters) == ("cluster", 40, 40)
    low, high = fit.conf_int()[0]
    assert found.high - found.low == pytest.approx(high - low, rel=0.25)
    assert found.estimate == pytest.approx(fit.params[0])


def test_parse_rates_and_their_split_follow_from_the_rows(world, report):
    a, b = rows_of(world / "a"), rows_of(world / "b")
    parts = report.decomposition
    parsed = {
        name: np.mean([row["extracted"] is not None for row in rows.values()]) for name, rows in (("a", a), ("b", b))
    }
    given_parsed = {
        name: np.mean([row["score"] for row in rows.values() if row["extracted"] is not None])
        for name, rows in (("a", a), ("b", b))
    }
    assert (parts.parse_a, parts.parse_b) == pytest.approx((parsed["a"], parsed["b"]))
    assert (parts.given_parsed_a, parts.given_parsed_b) == pytest.approx((given_parsed["a"], given_parsed["b"]))
    assert parts.from_parsing + parts.from_answers == pytest.approx(report.primary.by_item.estimate, abs=1e-12)
    assert parts.from_parsing == pytest.approx(
        (parsed["b"] - parsed["a"]) * (given_parsed["a"] + given_parsed["b"]) / 2
    )


def test_what_the_unparsed_could_change_follows_from_the_rows(world, report):
    a = rows_of(world / "a")
    found = report.sensitivity
    unparsed_a = sum(row["extracted"] is None for row in a.values())
    right_a = sum(row["score"] for row in a.values())
    assert found.n_unparsed_a == unparsed_a > 0
    assert found.best_a == pytest.approx((right_a + unparsed_a) / len(a))
    low, high = proportion_confint(right_a, len(a) - unparsed_a, method="wilson")
    assert (found.dropped_a.estimate, found.dropped_a.low, found.dropped_a.high) == pytest.approx(
        (right_a / (len(a) - unparsed_a), low, high)
    )
    assert found.difference_low == pytest.approx(report.primary.b.estimate - found.best_a)
    assert found.difference_high == pytest.approx(found.best_b - report.primary.a.estimate)


def test_the_tipping_point_is_where_the_verdict_falls(world, report, tmp_path):
    """Mark so many of A's unparsed responses as right: at the tipping point the verdict is gone, not one before."""
    k = report.sensitivity.tipping
    assert 1 < k < report.sensitivity.n_unparsed_a
    b = rows_of(world / "b")

    def with_right(n):
        def change(rows):
            unparsed = [row for row in rows if row["extracted"] is None]
            unparsed.sort(key=lambda row: (-b[row["item_hash"]]["score"], row["item_hash"]))
            for row in unparsed[:n]:
                row.update(
                    response=f"The answer is {row['expected']}.", extracted=row["expected"], score=1.0, span=None
                )
            return rows

        return change

    words = {}
    for n in (k - 1, k):
        shutil.copytree(world / "a", tmp_path / str(n))
        edit_rows(tmp_path / str(n), with_right(n))
        consistent(tmp_path / str(n))
        words[n] = audit(tmp_path / str(n), world / "b", None, data=world / "data.jsonl").verdict.colour
    assert words == {k - 1: "better", k: "inconclusive"}


def test_slices_partition_the_items_and_their_p_values_are_adjusted_together(world, report):
    a, b = rows_of(world / "a"), rows_of(world / "b")
    sizes = defaultdict(int)
    for one in report.slices:
        keys = [key for key in a if a[key]["slices"].get(one.key) == one.value]
        assert one.n == len(keys)
        assert one.a == pytest.approx(np.mean([a[key]["score"] for key in keys]))
        assert one.b == pytest.approx(np.mean([b[key]["score"] for key in keys]))
        sizes[one.key] += one.n
    assert set(sizes) == {"subject", "grade"}
    assert set(sizes.values()) == {len(a)}
    tested = [one for one in report.slices if one.difference]
    assert {one.difference.unit for one in tested} == {"cluster"}
    expected = multipletests([one.difference.p for one in tested], method="fdr_bh")[1]
    assert [one.p_adjusted for one in tested] == pytest.approx(list(expected))


def test_secondary_measures_are_adjusted_by_holm(report):
    expected = multipletests([one.gating.p for one in report.secondary], method="holm")[1]
    assert [one.name for one in report.secondary] == ["parse_rate", "accuracy_both_parsed"]
    assert [one.p_adjusted for one in report.secondary] == pytest.approx(list(expected))


def test_secondary_measures_of_letters_are_adjusted_by_holm_too(tmp_path):
    items = make_items.items(60)
    draw = random.Random(4)
    for name in "ab":
        noise = FakeBackend(logprob=lambda text, letter: draw.random(), identity=name * 64)
        letters(items, noise, tmp_path / name, DataSource("made up", "d" * 64))
    found = audit(tmp_path / "a", tmp_path / "b", None).secondary
    p = [one.gating.p for one in found]
    assert [one.name for one in found] == ["unrotated", "steady"]
    assert [one.p_adjusted for one in found] == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert list(multipletests(p, method="holm")[1]) != pytest.approx(list(multipletests(p, method="fdr_bh")[1]))
    first = rows_by_rotation(tmp_path / "a", 0)
    assert found[0].a.estimate == pytest.approx(np.mean([row["score"] for row in first]))


def rows_by_rotation(folder, rotation):
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["rotation"] == rotation]


def test_the_detectable_difference_is_the_size_it_says(report):
    """At the printed effect a t test on this standard error has the printed power."""
    seen, gap = report.seen, report.primary.by_cluster
    error = (gap.high - gap.low) / 2 / stats.t.ppf(0.975, gap.n_units - 1)
    power = 1 - stats.nct.cdf(stats.t.ppf(0.975, gap.n_units - 1), gap.n_units - 1, seen.effect / error)
    assert power == pytest.approx(seen.power, abs=0.06)
    by_item = mde_paired(report.n_items, (report.n_gained + report.n_lost) / report.n_items)
    effect = (seen.effect / by_item) ** 2
    assert f"design effect {max(1, effect):.2f}" in seen.method
    alone = n_for_difference(0.05, (report.n_gained + report.n_lost) / report.n_items)
    assert seen.n_for_points["5 points"] == pytest.approx(alone * max(1, effect), rel=0.001)
    assert seen.n_for_points["1 point"] > seen.n_for_points["2 points"] > seen.n_for_points["5 points"]
