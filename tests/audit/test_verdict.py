"""Verdicts claim what the numbers allow and no more."""

import re
from dataclasses import replace

import pytest

from kat.audit.render_md import render_md
from kat.audit.report import audit
from kat.evals.protocol import DataSource
from tests.audit.worlds import letters, run, two_runs
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend, knowing

SOURCE = DataSource("made up", "d" * 64)


def test_a_clear_lead_is_better_and_its_mirror_is_worse(world, report):
    assert report.verdict.colour == "better"
    mirrored = audit(world / "b", world / "a", None)
    assert mirrored.verdict.colour == "worse"
    assert mirrored.primary.gating.estimate == pytest.approx(-report.primary.gating.estimate)


def test_what_is_not_shown_is_inconclusive_and_says_how_many_items_would_decide(tmp_path):
    two_runs(tmp_path, 60, lectures=0, know=(0.5, 0.5), unparsed=(0.02, 0.02))
    found = audit(tmp_path / "a", tmp_path / "b", None)
    assert found.verdict.colour == "inconclusive"
    assert found.primary.by_cluster is None
    assert re.search(r"About [\d,]+ items would decide", found.verdict.sentence)
    everything = render_md(found).lower()
    assert "no difference" not in everything.replace("never says that there is no difference", "")
    assert "equal performance" not in everything


def test_two_letter_lovers_are_not_ranked(tmp_path):
    """An unbalanced key makes one preference for a letter "significantly better" than another."""
    items = []
    for i, item in enumerate(make_items.items(300)):
        right = 1 if i % 50 < 31 else 0
        items.append(replace(item, id=f"k{i}", choices=item.choices[:2], answer=right, cluster=""))
    for name, letter in (("a", "A"), ("b", "B")):
        backend = FakeBackend(
            lambda text, seed, letter=letter: f"The answer is {letter}.", identity=name * 64, name=name
        )
        run(items, backend, tmp_path / name, SOURCE)
    found = audit(tmp_path / "a", tmp_path / "b", None)
    assert found.primary.by_item.p < 0.01, "every paired test calls the lover of the commoner letter better"
    assert "preference for a letter" in found.verdict.sentence
    assert found.verdict.colour == "inconclusive"
    for name, letter in (("ra", "A"), ("rb", "B")):
        backend = FakeBackend(
            logprob=lambda text, one, letter=letter: float(one == letter), identity=name * 32, name=name
        )
        letters(items, backend, tmp_path / name, SOURCE)
    rotated = audit(tmp_path / "ra", tmp_path / "rb", None)
    assert rotated.score_type == "bounded"
    assert rotated.primary.by_item.estimate == 0.0
    assert rotated.verdict.colour == "inconclusive"


def test_equal_weights_of_two_runs_are_bit_identical(tmp_path):
    items = make_items.items(30)
    for name in ("a", "b"):
        run(items, knowing(items, 0.5, name="one"), tmp_path / name, SOURCE)
    found = audit(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert (found.bit_identical, found.verdict.word, found.verdict.colour) == (True, "Bit-identical", "identical")
    assert "No item flipped" in (tmp_path / "out" / "audit.md").read_text(encoding="utf-8")


def test_equal_weights_that_answer_otherwise_are_said_to(tmp_path):
    items = make_items.items(30)
    for name, know in (("a", 0.0), ("b", 1.0)):
        backend = knowing(items, know, name=name)
        backend.identity = "7" * 64
        run(items, backend, tmp_path / name, SOURCE)
    found = audit(tmp_path / "a", tmp_path / "b", None)
    assert found.verdict.colour == "inconclusive"
    assert "what differs is the evaluation, not the model" in found.verdict.sentence


@pytest.mark.parametrize("n", [1, 2, 3])
def test_next_to_no_items_give_no_verdict_and_no_crash(tmp_path, n):
    items = make_items.items(n)
    for name, know in (("a", 0.0), ("b", 1.0)):
        run(items, knowing(items, know, name=name), tmp_path / name, SOURCE)
    found = audit(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert found.verdict.colour == "inconclusive"
    assert found.primary.gating.high > found.primary.gating.low


def test_a_model_that_parses_nothing_is_decomposed_without_dividing_by_zero(tmp_path):
    items = make_items.items(40)
    run(items, FakeBackend(lambda text, seed: "", identity="0" * 64, name="mute"), tmp_path / "a", SOURCE)
    run(items, knowing(items, 0.9, name="b"), tmp_path / "b", SOURCE)
    found = audit(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert found.decomposition.given_parsed_a is None
    assert found.decomposition.from_parsing == pytest.approx(found.primary.by_item.estimate)
    assert found.sensitivity.dropped_a is None
    assert "none parsed" in (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
