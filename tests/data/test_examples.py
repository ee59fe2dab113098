"""Rows as examples, and the chat text of a multiple-choice item."""

import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.choices import (
    SYSTEM,
    AnswerStyle,
    ChoiceItem,
    answer_text,
    conversation,
    parse_choice_item,
    prompt_messages,
    question_text,
)
from kat.data.examples import Conversation, Document, parse_example
from kat.data.rows import RowError

ROW = {"id": "7", "question": "Which is a mammal?", "choices": ["ant", "bat", "carp"], "answer": 1}

words = st.text(string.ascii_letters + " ", min_size=1, max_size=12).filter(str.strip)
items = st.builds(
    lambda question, choices, k, hint: ChoiceItem("i", question, tuple(choices), k % len(choices), hint=hint),
    words,
    st.lists(words, min_size=2, max_size=10, unique_by=str.strip),
    st.integers(0, 9),
    st.one_of(st.just(""), words),
)


def test_the_three_kinds_are_told_by_their_keys() -> None:
    messages = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": " yo"}]
    assert parse_example({"id": 3, "text": " a\n"}) == Document("3", " a\n")
    assert parse_example({"id": "c", "messages": messages}) == Conversation("c", tuple(messages))
    assert isinstance(parse_example(ROW), ChoiceItem)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 3}, "answer 3 outside its 3 choices"),
        ({"answer": -1}, "answer -1 outside its 3 choices"),
        ({"answer": "D"}, "answer D outside its 3 choices"),
        ({"answer": "1"}, "neither an index nor a letter"),
        ({"answer": True}, "neither an index nor a letter"),
        ({"answer": 1.0}, "neither an index nor a letter"),
        ({"answer": None}, "no answer"),
        ({"choices": ["ant"], "answer": 0}, "1 choices"),
        ({"choices": list("abcdefghijk")}, "11 choices"),
        ({"choices": "ant bat"}, "no list of choices"),
        ({"choices": ["ant", " "]}, "choice 1 is empty"),
        ({"choices": ["ant", 2]}, "choice 1 is not text"),
        ({"choices": ["bat", "ant", "bat "], "answer": 0}, "stands twice"),
        ({"question": " "}, "the question is empty"),
        ({"question": 5}, "question is not text"),
        ({"hint": 5}, "hint is not text"),
        ({"has_image": "no"}, "has_image"),
        ({"id": ""}, "the id is empty"),
        ({"id": True}, "id is neither"),
        ({"messages": []}, "both messages and choices"),
        ({"text": "x"}, "both text and choices"),
    ],
)
def test_a_malformed_item_says_why(change: dict, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_example({**ROW, **change})


USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM_MESSAGE = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ("hi", "messages is not a list"),
        (["hi"], "message 0 is not an object"),
        ([USER], "nothing to supervise"),
        ([SYSTEM_MESSAGE, USER], "nothing to supervise"),
        ([SYSTEM_MESSAGE], "nothing to supervise"),
        ([REPLY, USER], "message 0 is of the assistant, not of the user"),
        ([SYSTEM_MESSAGE, USER, USER], "message 2 is of the user, not of the assistant"),
        ([USER, REPLY, SYSTEM_MESSAGE], "message 2 is of the system"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "message 1 has a content that is not text"),
        ([USER, {"role": "tool", "content": "x"}], "message 1 has the role 'tool'"),
    ],
)
def test_a_malformed_conversation_says_why(messages: object, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_example({"id": "c", "messages": messages})


def test_the_seeds_chat_format_letter_for_letter() -> None:
    item = parse_choice_item({**ROW, "hint": "Bats nurse.", "solution": "A bat nurses.", "lecture": "Mammals nurse."})
    assert conversation(item, AnswerStyle.EXPLAINED) == [
        {"role": "system", "content": "You are a helpful science tutor."},
        {"role": "user", "content": "Bats nurse.\nWhich is a mammal?\n\nA. ant\nB. bat\nC. carp"},
        {
            "role": "assistant",
            "content": "The correct answer is B. bat\n\nExplanation: A bat nurses.\n\nBackground: Mammals nurse.",
        },
    ]
    assert answer_text(item) == "The correct answer is B. bat"
    assert answer_text(item, AnswerStyle.TEXT) == "The correct answer is bat"
    assert answer_text(replace(item, solution="", lecture=""), AnswerStyle.EXPLAINED) == "The correct answer is B. bat"


@settings(deadline=None, max_examples=60)
@given(items)
def test_a_merged_hint_gives_the_same_prompt_as_a_separate_one(item: ChoiceItem) -> None:
    stem = f"{item.hint}\n{item.question}" if item.hint else item.question
    assert question_text(replace(item, hint="", question=stem)) == question_text(item)
    assert prompt_messages(item) == conversation(item)[:-1]
    assert prompt_messages(item)[0]["content"] == SYSTEM


@settings(deadline=None, max_examples=60)
@given(items, st.integers(-12, 12), st.integers(-12, 12))
def test_rotation_is_a_group_that_carries_the_answer_along(item: ChoiceItem, j: int, k: int) -> None:
    n = len(item.choices)
    turned = item.rotated(k)
    assert turned.choices[turned.answer] == item.choices[item.answer]
    assert turned.rotated(j) == item.rotated(j + k)
    assert item.rotated(n) == item
    assert {item.rotated(i).letter for i in range(n)} == set(item.letters)
    assert turned.choices == tuple(item.choices[(i + k) % n] for i in range(n))


def test_the_hash_is_of_the_content_and_of_nothing_else() -> None:
    item = parse_choice_item(ROW)
    assert item.hash == replace(item, id="8", lecture="l", solution="s", cluster="c", slices=(("a", "b"),)).hash
    others = [
        replace(item, question="Which is a fish?"),
        replace(item, choices=("bat", "ant", "carp")),
        replace(item, answer=0),
        replace(item, hint="h"),
        item.rotated(1),
    ]
    assert len({item.hash, *(other.hash for other in others)}) == 6


def test_answers_as_letters_nulls_and_slices() -> None:
    assert parse_choice_item({**ROW, "answer": " b"}) == parse_choice_item(ROW)
    nulls = dict.fromkeys(("hint", "lecture", "solution", "subject", "grade"))
    assert parse_choice_item({**ROW, **nulls}) == parse_choice_item(ROW)
    row = {**ROW, "subject": None, "subject_inferred": "biology", "grade": "grade3", "kind": "reading", "skill": "x"}
    assert dict(parse_choice_item(row).slices) == {"subject": "biology", "grade": "grade3", "kind": "reading"}


def test_the_cluster_is_the_lecture_else_the_item_unless_the_row_names_one() -> None:
    def cluster(**change: object) -> str:
        return parse_choice_item({**ROW, **change}).cluster

    assert cluster(lecture="L", question="one") == cluster(lecture="L", question="two", id="9")
    assert cluster(lecture="L") != cluster(lecture="M")
    assert cluster(question="one") != cluster(question="two")
    assert cluster(id="9") == cluster(id="10")  # equal content is one cluster whatever it is called
    assert cluster(cluster="given", lecture="L") == "given"
