"""The model-free baselines against brute force on small items, and their published figures on ScienceQA."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.choices import ChoiceItem
from kat.data.scienceqa import load_scienceqa
from kat.errors import UsageError
from kat.evals.baselines import (
    Baseline,
    all_baselines,
    chance,
    constant_letter,
    longest,
    majority_letter,
    nearest_copier,
    question_blind,
    similarity_to_training,
)
from kat.stats.compare import compare_paired
from kat.stats.intervals import mean_interval

WORDS = ["red", "blue", "green", "cat", "dog", "a", "why", "of"]


@st.composite
def choice_items(draw, low=0):
    n = draw(st.integers(low, 12))
    items = []
    for index in range(n):
        question = " ".join(draw(st.lists(st.sampled_from(WORDS), max_size=5)))
        choices = draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=4, unique=True))
        items.append(ChoiceItem(str(index), question, tuple(choices), draw(st.integers(0, len(choices) - 1))))
    return items


def expected_score(item: ChoiceItem, values: list[float]) -> float:
    best = [i for i, value in enumerate(values) if value >= max(values) - 1e-9]
    return (item.answer in best) / len(best)


def tfidf(documents: list[str]) -> Callable[[str], dict[str, float]]:
    """TF-IDF as scikit-learn documents it: smoothed inverse document frequency, rows of length 1."""
    split = [doc.split() for doc in [*documents, "_"]]
    idf = {w: math.log((1 + len(split)) / (1 + sum(w in doc for doc in split))) + 1 for doc in split for w in doc}

    def vector(text: str) -> dict[str, float]:
        weights = {w: count * idf[w] for w, count in Counter(text.split()).items() if w in idf}
        norm = math.sqrt(sum(v * v for v in weights.values()))
        return {w: v / norm for w, v in weights.items()} if norm else {}

    return vector


def cosine(a: dict[str, float], b: dict[str, float]) -> float:
    return sum(v * b.get(w, 0.0) for w, v in a.items())


@given(choice_items(low=1), choice_items())
@settings(deadline=None, max_examples=60)
def test_baselines_equal_brute_force(train, items):
    assert list(chance(items).scores) == pytest.approx([1 / len(item.choices) for item in items])
    assert list(longest(items).scores) == pytest.approx([expected_score(i, [len(c) for c in i.choices]) for i in items])

    counts = Counter(item.answer for item in train)
    top = [k for k, v in counts.items() if v == max(counts.values())]
    assert list(majority_letter(train, items).scores) == pytest.approx([(i.answer in top) / len(top) for i in items])

    appearances = [(c, k == item.answer) for item in train for k, c in enumerate(item.choices)]
    overall = sum(right for _, right in appearances) / len(appearances)

    def rate(choice: str) -> float:
        of_this = [right for c, right in appearances if c == choice]
        return (sum(of_this) + overall) / (len(of_this) + 1)

    assert list(question_blind(train, items).scores) == pytest.approx(
        [expected_score(item, [rate(c) for c in item.choices]) for item in items]
    )


@given(choice_items(low=1), choice_items(), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_the_copier_equals_brute_force(train, items, k):
    of_question = tfidf([item.question for item in train])
    of_answer = tfidf([choice for item in train for choice in item.choices])
    expected, nearest = [], []
    for item in items:
        similarity = [cosine(of_question(item.question), of_question(other.question)) for other in train]
        nearest.append(max(similarity))
        order = sorted(range(len(train)), key=lambda i: (-round(similarity[i], 9), i))[:k]
        votes = [
            sum(similarity[i] * cosine(of_answer(c), of_answer(train[i].choices[train[i].answer])) for i in order)
            for c in item.choices
        ]
        expected.append(expected_score(item, votes))
    assert list(similarity_to_training(train, items)) == pytest.approx(nearest)
    scores = nearest_copier(train, items, k).scores
    assert list(scores) == pytest.approx(expected)


def test_a_question_seen_in_training_is_copied_by_its_text_not_its_letter():
    train = [
        ChoiceItem("1", "Which animal lays eggs?", ("cat", "goose"), 1),
        ChoiceItem("2", "Which metal is liquid?", ("iron", "mercury", "gold"), 1),
    ]
    asked = [
        ChoiceItem("3", "Which animal lays eggs?", ("goose", "horse"), 0),
        ChoiceItem("4", "Which metal is liquid?", ("the mercury", "some iron"), 0),
        ChoiceItem("5", "Nothing known", ("x", "y", "z", "w"), 2),
    ]
    assert list(nearest_copier(train, asked, k=1).scores) == [1.0, 1.0, 0.25]
    assert similarity_to_training(train, asked)[[0, 2]] == pytest.approx([1.0, 0.0])


@given(choice_items(low=1), choice_items(low=1), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_scores_are_shares_and_rotating_the_options_changes_only_letter_baselines(train, items, turn):
    turned = [item.rotated(turn) for item in items]
    for here, there in zip(all_baselines(train, items), all_baselines(train, turned), strict=True):
        assert here.scores.shape == (len(items),)
        assert ((here.scores >= 0) & (here.scores <= 1)).all()
        if "letter" not in here.name:
            assert list(here.scores) == pytest.approx(list(there.scores)), here.name


def test_the_best_constant_letter_is_the_bar_for_a_letter_preferring_model():
    items = [ChoiceItem(str(i), "q", ("x", "y", "z"), answer) for i, answer in enumerate([0, 1, 1, 1, 2])]
    assert constant_letter(items).scores.mean() == pytest.approx(0.6)
    train = [ChoiceItem("t", "q", ("x", "y"), 0)]
    assert majority_letter(train, items).scores.mean() == pytest.approx(0.2)


def test_baselines_take_intervals_and_comparisons_like_any_score():
    rng = np.random.default_rng(0)
    items = [ChoiceItem(str(i), f"q{i}", ("x", "y"), int(rng.integers(2))) for i in range(60)]
    model = rng.integers(0, 2, 60).astype(float)
    assert mean_interval(chance(items).scores, "bounded").estimate == 0.5
    assert compare_paired(chance(items).scores, model, "bounded").n == 60


def test_without_training_items():
    items = [ChoiceItem("1", "q", ("x", "y"), 0)]
    assert [b.name for b in all_baselines([], items)] == ["chance", "best constant letter", "longest choice"]
    assert all(isinstance(b, Baseline) and b.scores.size == 0 for b in all_baselines(items, []))
    for call in (majority_letter, question_blind, nearest_copier, similarity_to_training):
        with pytest.raises(UsageError, match="training"):
            call([], items)


@pytest.mark.parametrize("questions", [("", "?!"), ("a", "é ß"), ("的", "<script>")])
def test_questions_without_words_do_not_stop_it(questions):
    train = [ChoiceItem("1", questions[0], ("!", "?"), 0)]
    items = [ChoiceItem("2", questions[1], ("!", "-"), 0)]
    assert nearest_copier(train, items).scores == pytest.approx([0.5])


@pytest.mark.slow
def test_the_published_figures_on_scienceqas_text_only_test(real_data):
    items = load_scienceqa(real_data, "test").rows
    train = load_scienceqa(real_data, "train", text_only=False).rows
    assert (len(items), len(train)) == (2224, 12237)
    percent = {b.name: 100 * b.scores.mean() for b in all_baselines(train, items)}
    expected = {
        "chance": 44.1,
        "best constant letter": 44.4,
        "longest choice": 47.8,
        "question-blind": 49.6,
        "5-nearest copier": 71.6,
    }
    for name, figure in expected.items():
        assert percent[name] == pytest.approx(figure, abs=0.2), name
    assert percent["majority letter"] == pytest.approx(43.3, abs=0.05)  # of training; the test's own letter is the 44.4
    near = similarity_to_training(train, items) > 0.999
    assert near.sum() == pytest.approx(829, abs=5)  # the same words as some training question, often with other options
