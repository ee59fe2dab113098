"""What needs no model stands beside both models, computed on the same items."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kat.audit.floor import LIKENESS, likeness, rules
from kat.audit.load import load_evidence
from kat.audit.pair import pair
from kat.audit.report import audit
from kat.audit.table import table
from kat.evals.protocol import DataSource
from tests.audit.worlds import letters, rows_of
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend

SOURCE = DataSource("made up", "d" * 64)


@pytest.fixture(scope="module")
def train():
    """Training questions, sixty of them word for word those of the test."""
    return make_items.items(150, seed=9, prefix="t") + [
        replace(item, id=f"copy{i}") for i, item in enumerate(make_items.items(240, lectures=40)[:60])
    ]


@pytest.fixture(scope="module")
def full(world, train):
    return audit(world / "a", world / "b", None, train_items=train)


def test_the_rules_follow_from_the_rows(world, full):
    rows = list(rows_of(world / "a").values())
    found = {one.name: one for one in full.baselines}
    assert list(found) == [
        "chance", "best constant letter", "longest choice", "majority letter", "question-blind", "5-nearest copier",
    ]  # fmt: skip
    n = len(rows)
    assert found["chance"].score.estimate == pytest.approx(sum(1 / len(row["choices"]) for row in rows) / n)
    key = Counter(row["expected"] for row in rows)
    assert found["best constant letter"].score.estimate == pytest.approx(max(key.values()) / n)
    longest = 0.0
    for row in rows:
        most = max(map(len, row["choices"]))
        best = [i for i, choice in enumerate(row["choices"]) if len(choice) == most]
        longest += ("ABCD".index(row["expected"]) in best) / len(best)
    assert found["longest choice"].score.estimate == pytest.approx(longest / n)
    for one in found.values():
        assert one.a_above.estimate == pytest.approx(full.primary.a.estimate - one.score.estimate)
        assert one.b_above.estimate == pytest.approx(full.primary.b.estimate - one.score.estimate)
        assert one.b_above.unit == "cluster"
    assert found["5-nearest copier"].score.estimate > found["chance"].score.estimate, "sixty answers can be copied"


def test_without_training_questions_it_says_what_is_missing(report):
    assert [one.name for one in report.baselines] == ["chance", "best constant letter", "longest choice"]
    assert "the training questions were not given" in report.not_computed[0]
    assert "No evaluation of an untrained twin" in report.not_computed[1]
    assert (report.similarity, report.similarity_note) == ([], "Not computed: the training questions were not given.")


def test_without_the_questions_the_copier_is_missed_and_the_rest_stands(world, train):
    paired = pair(load_evidence(world / "a"), load_evidence(world / "b"))
    found, missing = rules(paired, None, "the file is gone", train)
    assert "5-nearest copier" not in [one.name for one in found]
    assert missing == ["The nearest copier was not computed: the file is gone."]
    by_file, _ = rules(paired, make_items_in_order(paired), "", train)
    for one in found:
        other = next(rule for rule in by_file if rule.name == one.name)
        assert one.scores.tolist() == other.scores.tolist()
    assert likeness(table(paired), None, "the file is gone", train) == ([], "Not computed: the file is gone.")


def make_items_in_order(paired):
    by_hash = {item.hash: item for item in make_items.items(240, lectures=40)}
    return [by_hash[item.key[0]] for item in paired.items]


def test_likeness_puts_every_item_into_one_part(full):
    assert sum(one.n for one in full.similarity) == full.n_items
    assert {one.value for one in full.similarity} <= {name for name, _, _ in LIKENESS}
    same = next(one for one in full.similarity if one.value == "the same words")
    assert 60 <= same.n <= 70, "sixty are copies; a few more differ in words alone that training never had"
    assert f"{same.n} items have the same words as a training question" in full.similarity_note
    total = sum(one.n * one.b for one in full.similarity)
    assert total / full.n_items == pytest.approx(full.primary.b.estimate)


def test_letters_are_no_rule_where_every_rotation_was_scored(tmp_path):
    items = make_items.items(40)
    for name in "ab":
        letters(items, FakeBackend(identity=name * 64), tmp_path / name, SOURCE)
    found = audit(tmp_path / "a", tmp_path / "b", None, data=items, train_items=items)
    assert [one.name for one in found.baselines] == ["chance", "longest choice", "question-blind", "5-nearest copier"]
    chance = found.baselines[0]
    assert chance.a_above.estimate == pytest.approx(0, abs=1e-12), "a model that sees only letters scores chance"
    assert np.isclose(chance.score.low, chance.score.high)
