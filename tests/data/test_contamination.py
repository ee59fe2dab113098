"""Contamination: planted copies are found, each as what it is, and nothing else is."""

from dataclasses import replace

import pytest

from kat.data.choices import ChoiceItem, conversation
from kat.data.contamination import CHOICES, CONTENT, DOCUMENT, NEARLY, QUESTION, Report, check, normalise
from kat.data.examples import Conversation, Document

TOPICS = ["granite", "basalt", "marble", "pumice", "slate", "obsidian", "quartz", "chalk", "gneiss", "shale"]
PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune", "Pluto", "Ceres"]


def item(k: int, prefix: str) -> ChoiceItem:
    """Items that share no more than common words."""
    question = (
        f"Under which {prefix} conditions of sample {k} would {TOPICS[k]} seen from {PLANETS[k]} look {prefix}{k}?"
    )
    return ChoiceItem(f"{prefix}-{k}", question, (f"{TOPICS[k]} one", f"{PLANETS[k]} two", f"{prefix} three"), k % 3)


TRAIN = [item(k, "alpha") for k in range(10)]
EVAL = [item(k, "beta") for k in range(10)]


def kinds(report: Report, eval_id: str) -> set[str]:
    return {match.kind for match in report.matches if match.eval_id == eval_id}


def test_nothing_planted_nothing_found() -> None:
    report = check([*TRAIN, Document("d", "Some text about rocks. " * 20)], EVAL)
    assert (report.exact, report.near, report.matches) == (0, 0, ())
    assert set(report.by.values()) == {0}
    assert max(report.similarity) < 0.9


@pytest.mark.parametrize(
    ("copy", "expected"),
    [
        (EVAL[4], {CONTENT, CHOICES, QUESTION, NEARLY}),
        (EVAL[4].rotated(1), {CHOICES, QUESTION, NEARLY}),
        (replace(EVAL[4], answer=0), {CHOICES, QUESTION, NEARLY}),
        (replace(EVAL[4], question=f"  {EVAL[4].question.upper()}!"), {CHOICES, QUESTION, NEARLY}),
        (replace(EVAL[4], choices=("quite", "other", "options")), {QUESTION}),
        (replace(EVAL[4], question=EVAL[4].question.replace("Under", "In")), {NEARLY}),
        (Document("x", f"Preface. {EVAL[4].question} The answer follows."), {DOCUMENT}),
        (
            Conversation("x", ({"role": "user", "content": EVAL[4].question}, {"role": "assistant", "content": "?"})),
            {QUESTION},
        ),
        (Conversation("x", tuple(conversation(EVAL[4])[1:])), {CHOICES}),
    ],
)
def test_a_planted_copy_is_found_as_what_it_is(copy, expected: set[str]) -> None:
    report = check([*TRAIN, replace(copy, id="planted")], EVAL)
    found = kinds(report, EVAL[4].id)
    assert expected <= found <= expected | {NEARLY}
    assert {match.eval_id for match in report.matches} == {EVAL[4].id}
    assert {match.train_id for match in report.matches} == {"planted"}
    assert report.exact == int(CHOICES in expected)
    assert report.near == int(NEARLY in found and CHOICES not in found)
    assert report.by == {kind: int(kind in found) for kind in (CONTENT, CHOICES, QUESTION, NEARLY, DOCUMENT)}


def test_a_hint_merged_into_the_question_is_the_same_question() -> None:
    apart = replace(EVAL[0], hint="Look at the table below.")
    merged = replace(apart, hint="", question=f"{apart.hint}\n{apart.question}", id="planted")
    assert {CHOICES, QUESTION} <= kinds(check([merged], [apart]), apart.id)
    assert QUESTION not in kinds(check([replace(merged, question=EVAL[0].question)], [apart]), apart.id)


def test_a_word_that_only_the_evaluation_has_counts_as_a_difference() -> None:
    train = [replace(EVAL[0], question="Which rock is it: pumice?", choices=("yes", "no"), id="planted")]
    seen = replace(train[0], id="seen")
    unseen = replace(train[0], question="Which rock is it: rhyolite?", id="unseen")
    report = check(train, [seen, unseen])
    assert report.similarity[0] == pytest.approx(1.0, abs=1e-6)
    assert report.similarity[1] < 0.9


def test_a_short_question_is_not_looked_for_in_documents() -> None:
    short = replace(EVAL[0], question="What is a mineral made of?")
    assert not check([Document("d", f"{short.question} " * 5)], [short]).matches


def test_it_counts_items_not_matches_and_says_so() -> None:
    report = check([replace(EVAL[0], id=f"copy-{k}") for k in range(3)], EVAL)
    assert (report.exact, report.n_train, report.n_eval) == (1, 3, 10)
    text = "\n".join(report.lines())
    assert "3 training rows against 10 evaluation items" in text
    assert "same question and choices: 1 (10.0%)" in text
    assert "beta-0 ~ copy-0" in text


def test_empty_sides() -> None:
    assert check([], EVAL).similarity == (0.0,) * 10
    assert check(TRAIN, []).lines()[0].endswith("against 0 evaluation items")


def test_normalised_text_is_words_in_one_case() -> None:
    assert normalise("  Ｗhat’s\nthe SIZE? (Straße)") == "what s the size strasse"
