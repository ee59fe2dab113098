"""Prompts and pairs: known by their messages, read verbatim, faults named by line."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.choices import parse_choice_item
from kat.data.preferences import (
    Pair,
    Prompt,
    choice_prompt,
    load_pairs,
    load_prompts,
    make_prompt,
    pair_row,
    parse_pair,
    parse_prompt,
    prompt_id,
    prompt_row,
    prompt_text,
    rows_text,
)
from kat.data.rows import RowError
from kat.errors import UsageError

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": " Why?\n"}
REPLY = {"role": "assistant", "content": "So."}

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    n_turns = draw(st.integers(0, 2)) * 2 + 1
    roles = ["system"] * draw(st.integers(0, 1)) + [("user", "assistant")[k % 2] for k in range(n_turns)]
    messages = [{"role": role, "content": draw(texts)} for role in roles]
    truth = draw(st.none() | st.dictionaries(texts, st.integers() | texts, max_size=2))
    slices = sorted(draw(st.dictionaries(texts, texts, max_size=2)).items())
    return make_prompt(messages, draw(st.just("") | texts), truth, slices)


def pair(**change: object) -> dict:
    return {"id": "p", "prompt": [USER], "chosen": " yes ", "rejected": "no\n", "source": "here", **change}


@settings(deadline=None, max_examples=60)
@given(prompts(), texts, texts)
def test_a_row_reads_back_as_the_same_prompt_or_pair(prompt: Prompt, chosen: str, rejected: str) -> None:
    assert parse_prompt(json.loads(rows_text([prompt_row(prompt)]))) == prompt
    if chosen.strip() != rejected.strip():
        whole = Pair("an id", prompt, chosen, rejected)
        assert parse_pair(json.loads(rows_text([pair_row(whole)]))) == whole


def test_the_id_is_of_the_messages_and_of_nothing_else() -> None:
    expected = hashlib.sha256(b'[{"content":"s","role":"system"},{"content":" Why?\\n","role":"user"}]')
    assert prompt_id([SYSTEM, USER]) == prompt_id([{**SYSTEM, "name": "x"}, USER]) == expected.hexdigest()
    rich = parse_prompt({"messages": [SYSTEM, USER], "source": "x", "truth": {"a": 1}, "slices": {"kind": "rare"}})
    assert rich == Prompt(expected.hexdigest(), (SYSTEM, USER), "x", {"a": 1}, (("kind", "rare"),))
    others = [[USER], [SYSTEM, {**USER, "content": "Why?"}], [USER, REPLY, USER]]
    assert len({rich.id, *map(prompt_id, others)}) == 4
    assert prompt_text(rich) == "s\n\n Why?\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": []}, "no messages"),
        ({"prompt": "Why?"}, "messages is not a list"),
        ({"prompt": [USER, REPLY]}, "the last message is of the assistant, not of the user"),
        ({"prompt": [SYSTEM]}, "the last message is of the system, not of the user"),
        ({"prompt": [USER, USER]}, "message 1 is of the user, not of the assistant"),
        ({"prompt": [REPLY, USER]}, "message 0 is of the assistant, not of the user"),
        ({"prompt": [{"role": "user", "content": " \n"}]}, "message 0 is empty"),
        ({"prompt": [USER, {**REPLY, "content": ""}, USER]}, "message 1 is empty"),
        ({"prompt": [{"role": "user", "content": 5}]}, "message 0 has a content that is not text"),
        ({"chosen": " \n"}, "the chosen response is empty"),
        ({"rejected": ""}, "the rejected response is empty"),
        ({"rejected": None}, "rejected is not text"),
        ({"chosen": ["yes"]}, "chosen is not text"),
        ({"chosen": "no", "rejected": " no\n"}, "chosen and rejected are identical"),
        ({"source": 5}, "source is not text"),
        ({"truth": [1]}, "truth is not an object"),
        ({"slices": ["rare"]}, "slices is not an object of texts"),
        ({"slices": {"kind": None}}, "slices is not an object of texts"),
        ({"id": " "}, "the id is empty"),
    ],
)
def test_a_malformed_pair_says_why(change: dict, reason: str) -> None:
    assert parse_pair(pair()) == Pair("p", make_prompt([USER], "here"), " yes ", "no\n")
    with pytest.raises(RowError, match=reason):
        parse_pair(pair(**change))


def test_a_row_of_another_kind_says_what_it_lacks() -> None:
    with pytest.raises(RowError, match="no prompt: not a preference pair"):
        parse_pair({"id": "p", "messages": [USER]})
    with pytest.raises(RowError, match="no messages: not a prompt"):
        parse_prompt(pair())
    without = pair()
    del without["chosen"]
    with pytest.raises(RowError, match="no chosen response"):
        parse_pair(without)


def test_an_id_that_is_a_hash_must_be_that_of_the_messages() -> None:
    right = prompt_id([USER])
    assert parse_prompt({"id": right, "messages": [USER]}).id == right
    assert parse_prompt({"id": "my-7", "messages": [USER]}).id == right
    with pytest.raises(RowError, match="is not the hash of the messages"):
        parse_prompt({"id": prompt_id([SYSTEM, USER]), "messages": [USER]})


def test_repeated_prompts_and_ids_are_dropped_and_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    other = {**USER, "content": "Who?"}
    file.write_text(rows_text([{"messages": [USER]}, {"messages": [other]}, {"messages": [USER], "source": "again"}]))
    rows = load_prompts([file], max_bad=0.5)
    assert [prompt.messages for prompt in rows.rows] == [(USER,), (other,)]
    assert [fault.line for fault in rows.faults] == [3]
    with pytest.raises(UsageError, match=r"line 3: id .* stands already in line 1"):
        load_prompts([file])

    file.write_text(rows_text([pair(), pair(id="q"), pair(id="p", chosen="other"), pair(id="r", rejected="yes")]))
    rows = load_pairs([file], max_bad=0.5)
    assert [row.id for row in rows.rows] == ["p", "q"]  # the same prompt twice is no fault of pairs
    assert [(fault.line, fault.reason) for fault in rows.faults] == [
        (3, "id 'p' stands already in line 1"),
        (4, "chosen and rejected are identical"),
    ]


def test_a_choice_item_becomes_a_prompt_with_its_truth() -> None:
    item = parse_choice_item(
        {"id": "7", "question": "Which is a mammal?", "choices": ["ant", "bat"], "answer": "B", "subject": "biology"}
    )
    prompt = choice_prompt(item, "scienceqa")
    assert prompt.messages == (
        {"role": "system", "content": "You are a helpful science tutor."},
        {"role": "user", "content": "Which is a mammal?\n\nA. ant\nB. bat"},
    )
    assert prompt.truth == {"choices": ["ant", "bat"], "answer": 1}
    assert (prompt.source, prompt.slices, prompt.id) == (
        "scienceqa",
        (("subject", "biology"),),
        prompt_id(prompt.messages),
    )
