"""The least evidence there can be, and identical evidence: words that fit, and never a number that looks fine."""

import json
from types import SimpleNamespace

import pytest

from kat.audit.gate import gate
from kat.audit.report import audit
from kat.audit.verdict import verdict
from kat.evals.protocol import DataSource
from kat.evals.recorded import read_responses, run_recorded
from kat.evals.scienceqa import ScienceQA
from tests.evals import make_items

SOURCE = DataSource("made up", "d" * 64)
POLICY = 'claim = "checkpoint"\nsuite = "scienceqa"\nmargin = 0.02\nallow_different_prompts = true\n'


def recorded(folder, name, items, say):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"id": item.id, "response": say(item)}) + "\n" for item in items))
    suite = ScienceQA(items, SOURCE)
    run_recorded(suite, read_responses(path, suite), folder / name, model=name)
    return folder / name


def outcome(folder, a, b):
    (folder / "policy.toml").write_text(POLICY)
    return gate(str(a), str(b), folder / "policy.toml", home=folder)


def test_one_item(tmp_path):
    items = make_items.items(1)
    a = recorded(tmp_path, "a", items, lambda item: f"The answer is {item.letters[item.answer - 1]}.")
    b = recorded(tmp_path, "b", items, lambda item: f"The answer is {item.letter}.")
    report = audit(a, b, None)
    assert report.verdict.colour == "inconclusive"
    assert "they differ on 1 item of 1" in report.verdict.sentence
    assert report.primary.by_item.low < 0 < report.primary.by_item.high
    assert outcome(tmp_path, a, b).exit_code == 3


def test_one_item_lost_does_not_say_that_no_items_decide(tmp_path):
    items = make_items.items(1)
    a = recorded(tmp_path, "a", items, lambda item: f"The answer is {item.letter}.")
    b = recorded(tmp_path, "b", items, lambda item: f"The answer is {item.letters[item.answer - 1]}.")
    judged = outcome(tmp_path, a, b)
    assert judged.exit_code == 3 and "about 4 items decide" in judged.sentence


def test_a_silent_baseline_shows_nothing(tmp_path):
    items = make_items.items(40)
    silent = [recorded(tmp_path, name, items, lambda item: "") for name in ("a", "b")]
    good = recorded(tmp_path, "good", items, lambda item: f"The answer is {item.letter}.")
    for a, b, said in (
        (*silent, "Neither model gave a readable letter"),
        (silent[0], good, "A gave no readable letter"),
    ):
        report = audit(a, b, None)
        assert report.verdict.colour == "inconclusive" and report.verdict.sentence.startswith(said)
        assert outcome(tmp_path, a, b).exit_code == 4


def test_a_silent_candidate_is_a_regression_and_no_preference_for_a_letter(tmp_path):
    items = make_items.items(40)
    good = recorded(
        tmp_path, "a", items, lambda item: f"The answer is {item.letters[item.answer - (int(item.id[-1]) % 2)]}."
    )
    silent = recorded(tmp_path, "b", items, lambda item: "")
    assert "preference for a letter" not in audit(good, silent, None).verdict.sentence
    assert outcome(tmp_path, good, silent).exit_code == 1


def test_no_discordant_pair(tmp_path):
    """Other words, the same letters: nothing is shown, and the interval has a width."""
    items = make_items.items(30)
    a = recorded(tmp_path, "a", items, lambda item: "The answer is A.")
    b = recorded(tmp_path, "b", items, lambda item: "Answer: A")
    report = audit(a, b, None)
    assert report.verdict.word == "Inconclusive" and report.flips == []
    assert "they differ on 0 items of 30" in report.verdict.sentence
    assert report.primary.by_item.low < 0 < report.primary.by_item.high
    assert report.primary.effect is None
    assert outcome(tmp_path, a, b).exit_code == 3


def test_the_same_responses_from_two_runs_are_said_to_be_responses(tmp_path):
    items = make_items.items(30)
    a, b = (recorded(tmp_path, name, items, lambda item: f"The answer is {item.letter}.") for name in "ab")
    assert audit(a, b, None).verdict.sentence.startswith("Both runs evaluated the same responses, bit for bit")
    found = outcome(tmp_path, a, b)
    assert found.exit_code == 0 and "the same responses, bit for bit" in found.sentence


def test_a_lead_above_the_best_constant_letter_by_one_item_is_not_shown(tmp_path):
    """B gains much on A and stands one item above always saying one letter: an estimate above it is not enough."""
    items = make_items.items(60)
    constant = max(sum(item.letter == letter for item in items) for letter in "ABCD")
    right = {item.id for item in items[: constant + 1]}
    a = recorded(tmp_path, "a", items, lambda item: f"The answer is {item.letters[item.answer - 1]}.")
    b = recorded(
        tmp_path, "b", items, lambda item: f"The answer is {item.letters[item.answer - (item.id not in right)]}."
    )
    report = audit(a, b, None)
    assert report.primary.gating.low > 0
    assert next(one for one in report.baselines if one.name == "best constant letter").b_above.estimate > 0
    assert report.verdict.colour == "inconclusive" and "not shown to be above" in report.verdict.sentence


@pytest.mark.parametrize(("p", "colour"), [(0.04, "better"), (0.06, "inconclusive")])
def test_an_interval_without_zero_whose_test_does_not_reject_is_no_finding(p, colour):
    """The interval by cluster and the sign-flip test by cluster may disagree: both must speak."""
    gap = SimpleNamespace(estimate=0.1, low=0.01, high=0.19, p=p, unit="cluster", n=90)
    arm = SimpleNamespace(estimate=0.5)
    primary = SimpleNamespace(
        label="Accuracy", a=arm, b=arm, gating=gap, by_item=gap, by_cluster=None, a_only=5, b_only=14
    )
    seen = SimpleNamespace(effect=0.2, power=0.8, n_for_observed=None, n_for_points={})
    found = SimpleNamespace(direction="better")
    given = verdict(primary, found, seen, [], same_model=False, recorded=True, sensitivity=None, prompts="equal")
    assert given.colour == colour
