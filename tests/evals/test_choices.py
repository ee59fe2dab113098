"""Scoring by log-likelihood: rotations, ties, and numbers worked out by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.choices import ChoiceItem, question_text
from kat.errors import EvidenceError, UsageError
from kat.evals.choices import Choices, best_options
from kat.evals.protocol import DataSource
from kat.evals.runner import run_suite
from kat.evals.store import read_samples
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend

SOURCE = DataSource("made up", "d" * 64)


def likes_letter(letter: str):
    return lambda text, continuation: 0.0 if continuation == letter else -1.0


def finds_text(items):
    """Scores the letter that stands before the right option's text, wherever it was turned to."""
    right = {item.question: item.choices[item.answer] for item in items}

    def logprob(text: str, letter: str) -> float:
        question, options = text.split("\n\n")
        return 0.0 if f"{letter}. {right[question]}" in options.split("\n") else -3.0

    return logprob


def test_a_model_that_likes_one_letter_scores_exactly_chance(tmp_path):
    items = make_items.items(50)
    for letter in "AB":
        results = run_suite(Choices(items, SOURCE), FakeBackend(logprob=likes_letter(letter)), tmp_path / letter)
        chance = sum(1 / len(item.choices) for item in items) / len(items)
        assert results.metrics["accuracy"].estimate == pytest.approx(chance, abs=1e-12)
        assert results.metrics["chance"].estimate == pytest.approx(chance, abs=1e-12)
        unrotated = sum(item.letter == letter for item in items) / len(items)
        assert results.metrics["accuracy_unrotated"].estimate == pytest.approx(unrotated)
        assert results.metrics["accuracy_chance_corrected"].estimate == pytest.approx(0, abs=1e-12)
        assert results.metrics["same_option_in_every_rotation"].estimate == 0.0


def test_a_model_that_knows_scores_one_in_every_rotation(tmp_path):
    items = make_items.items(20)
    results = run_suite(Choices(items, SOURCE), FakeBackend(logprob=finds_text(items)), tmp_path)
    assert results.metrics["accuracy"].estimate == 1.0
    assert results.metrics["accuracy_chance_corrected"].estimate == 1.0
    assert results.metrics["same_option_in_every_rotation"].estimate == 1.0
    rows = read_samples(tmp_path / "samples.jsonl")
    assert len(rows) == sum(len(item.choices) for item in items)
    by_id = {item.id: item for item in items}
    for row in rows:
        item = by_id[row.item_id]
        assert row.choices == list(item.rotated(row.rotation).choices)
        assert row.choices["ABCD".index(row.expected)] == item.choices[item.answer]
        assert row.prompt.endswith(question_text(item.rotated(row.rotation)))


def test_equal_log_probabilities_are_chance_in_letters_and_no_answer_in_text(tmp_path):
    items = make_items.items(30)
    zero = FakeBackend(logprob=lambda text, continuation: -2.0)
    results = run_suite(Choices(items, SOURCE), zero, tmp_path / "letters")
    assert results.metrics["accuracy"].estimate == pytest.approx(results.metrics["chance"].estimate, abs=1e-12)
    assert {row.rule for row in read_samples(tmp_path / "letters" / "samples.jsonl")} == {"tie"}

    item = ChoiceItem("q", "Which?", ("aa", "bb", "cc"), 0)
    text = run_suite(Choices([item], SOURCE, mode="text"), zero, tmp_path / "text")
    assert text.metrics["accuracy"].estimate == 0.0
    assert text.n_unparsed == 1


def test_text_is_compared_per_byte_and_the_sum_would_have_chosen_otherwise(tmp_path):
    item = ChoiceItem("q", "Which?", ("no", "größer als das"), 1)
    sums = {"no": -3.0, "größer als das": -22.4}
    suite = Choices([item], SOURCE, mode="text")
    results = run_suite(suite, FakeBackend(logprob=lambda text, continuation: sums[continuation]), tmp_path)
    (row,) = read_samples(tmp_path / "samples.jsonl")
    assert -22.4 / 16 > -3.0 / 2 > -22.4 / 14, "14 characters are 16 bytes"
    assert (row.extracted, row.score, results.metrics["accuracy"].estimate) == ("B", 1.0, 1.0)
    assert row.choice_logprobs == [-3.0, -22.4]
    assert suite.name == "choices-text"


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_best_options_are_those_no_other_beats(values):
    best = best_options(values, None)
    assert best
    assert all(values[i] >= value for i in best for value in values)
    assert all(any(values[i] > values[j] for i in best) for j in range(len(values)) if j not in best)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_log_probability_that_is_no_number_is_refused(bad):
    with pytest.raises(EvidenceError, match="no numbers"):
        best_options([-1.0, bad], None)


def test_an_unknown_mode_is_a_usage_error():
    with pytest.raises(UsageError, match="mode 'full'"):
        Choices([], SOURCE, mode="full")
