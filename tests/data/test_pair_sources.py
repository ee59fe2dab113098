"""Other people's preference data as pairs: verbatim, each form by its keys, split so that no conversation leaks."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kat.cli.app import build_app
from kat.data.pair_sources import (
    from_dataset,
    parse_any_pair,
    parse_any_prompt,
    parse_transcript,
    read_pairs,
    read_prompts,
    split_pairs,
    without_repeats,
)
from kat.data.preferences import Pair, load_pairs, load_prompts, make_prompt, pair_row, rows_text
from kat.data.rows import RowError
from kat.errors import UsageError

USER, REPLY, MORE = (
    {"role": "user", "content": " Why?\n"},
    {"role": "assistant", "content": "So.\n\n"},
    {"role": "user", "content": "And?"},
)
TWICE = "\n\nHuman: a\n\nHuman: b\n\nAssistant: "
HH = "\n\nHuman:  Why?\n\n\nAssistant: So.\n\n\n\nHuman: And?\n\nAssistant: "


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


TALK = [USER, REPLY, MORE]
FORMS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "kat": ({"prompt": TALK, "chosen": " yes ", "rejected": "no\n"}, TALK),
    "transcripts": ({"chosen": f"{HH} yes ", "rejected": f"{HH}no\n"}, TALK),
    "texts": ({"prompt": "Why?", "chosen": " yes ", "rejected": "no\n"}, [{"role": "user", "content": "Why?"}]),
    "transcript as the prompt": ({"prompt": HH, "chosen": " yes ", "rejected": "no\n"}, TALK),
    "whole conversations": (
        {"prompt": "And?", "chosen": [*TALK, said(" yes ")], "rejected": [*TALK, said("no\n")]},
        TALK,
    ),
    "answers as messages": ({"prompt": TALK, "chosen": [said(" yes ")], "rejected": [said("no\n")]}, TALK),
    "stack exchange": (
        {
            "question": "Why?",
            "answers": [
                {"text": "meh", "pm_score": 2},
                {"text": " yes ", "pm_score": 5},
                {"text": "no\n", "pm_score": 0},
            ],
        },
        [{"role": "user", "content": "Why?"}],
    ),
    "ultrafeedback": (
        {
            "instruction": "Why?",
            "completions": [{"response": "no\n", "overall_score": 1.5}, {"response": " yes ", "overall_score": 8}],
        },
        [{"role": "user", "content": "Why?"}],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_pair_verbatim(form: str) -> None:
    row, messages = FORMS[form]
    pair = parse_any_pair({"id": "7", "source": "here", **row})
    assert (pair.id, pair.chosen, pair.rejected) == ("7", " yes ", "no\n")
    assert pair.prompt == make_prompt(messages, "here")
    assert parse_any_prompt({"id": "7", "source": "here", **row}) == pair.prompt


safe = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text.strip() and "Human:" not in text and "Assistant:" not in text and not text.startswith(" ")
)


@settings(deadline=None, max_examples=80)
@given(st.lists(safe, min_size=1, max_size=5))
def test_a_transcript_gives_back_what_was_said(turns: list[str]) -> None:
    text = "".join(f"\n\n{('Human', 'Assistant')[k % 2]}: {turn}" for k, turn in enumerate(turns))
    assert [message["content"] for message in parse_transcript(text)] == turns
    roles = [message["role"] for message in parse_transcript(text)]
    assert roles == [("user", "assistant")[k % 2] for k in range(len(turns))]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": f"{HH}yes", "rejected": "\n\nHuman: Who?\n\nAssistant: no"}, "answer different prompts"),
        ({"chosen": f"{HH}yes\n\nHuman: ok", "rejected": f"{HH}no\n\nHuman: ok"}, "does not end in an answer"),
        ({"chosen": f"{HH}yes", "rejected": f"{HH}yes"}, "identical"),
        ({"chosen": f"{HH}", "rejected": f"{HH}no"}, "the chosen response is empty"),
        ({"chosen": "yes", "rejected": "no"}, "neither a prompt column nor a transcript"),
        ({"chosen": 1, "rejected": "no"}, "neither text nor a list"),
        ({"chosen": f"{TWICE}c", "rejected": f"{TWICE}d"}, "message 1 is of the user"),
        ({"question": "q", "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 1}]}, "nothing is preferred"),
        ({"question": "q", "answers": [{"text": "a", "score": 1}]}, "nothing is preferred"),
        ({"question": "q", "answers": [{"text": "a", "score": "1"}, {"text": "b", "score": 2}]}, "no number as score"),
        ({"question": "q", "answers": "a, b"}, "not a list of objects"),
        ({"answers": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]}, "messages is not a list"),
        ({"text": "a document"}, "no preference in the columns text: map them"),
    ],
)
def test_a_row_that_is_no_pair_says_why(row: dict, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_any_pair({"id": "7", **row})


def test_prompts_of_conversations_and_choice_items(tmp_path: Path) -> None:
    item = {"question": "Which is a mammal?", "choices": ["ant", "bat"], "answer": 1}
    rows = [{"messages": [USER, REPLY]}, {"messages": [USER]}, item, {"messages": TALK}, {"prompt": "Why?"}]
    (tmp_path / "rows.jsonl").write_text(rows_text(rows))
    found = read_prompts([tmp_path / "rows.jsonl"], max_bad=0).rows
    assert [prompt.messages[-1]["content"] for prompt in found] == [
        " Why?\n",
        "Which is a mammal?\n\nA. ant\nB. bat",
        "And?",
        "Why?",
    ]
    assert found[1].truth == {"choices": ["ant", "bat"], "answer": 1}


def pairs(n: int, more: bool = False) -> list[Pair]:
    """One pair a conversation, or two: at its beginning and after the first answer."""
    found = []
    for k in range(n):
        opening = {"role": "user", "content": f"question {k}"}
        for turn, messages in enumerate([[opening], [opening, said("yes"), MORE]][: 1 + more]):
            found.append(Pair(f"{k}-{turn}", make_prompt(messages), "a", "b"))
    return found


def test_the_splits_share_no_conversation_and_have_their_shares() -> None:
    whole = pairs(2_000, more=True)
    splits = split_pairs(whole, 0.1, 0.2)
    names = [{pair.id.split("-")[0] for pair in side} for side in (splits.train, splits.validation, splits.test)]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == len(whole)
    assert [len(side) / 2_000 for side in names] == pytest.approx([0.7, 0.1, 0.2], abs=0.04)


def test_a_pair_stays_in_its_split_when_data_are_added_or_shuffled() -> None:
    before = split_pairs(pairs(300))
    after = split_pairs(pairs(600)[::-1])
    assert {pair.id for pair in before.test} <= {pair.id for pair in after.test}
    assert {pair.id for pair in before.validation} <= {pair.id for pair in after.validation}


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0), (float("nan"), 0.1)])
def test_impossible_shares_are_refused(validation: float, test: float) -> None:
    with pytest.raises(UsageError, match="both from 0, together below 1"):
        split_pairs(pairs(10), validation, test)


def test_repeats_go_and_other_pairs_of_the_prompt_stay() -> None:
    prompt = make_prompt([USER])
    rows = [Pair("a", prompt, "x", "y"), Pair("b", prompt, "x", "y"), Pair("c", prompt, "y", "x")]
    assert [pair.id for pair in without_repeats(rows)] == ["a", "c"]


def test_the_hub_is_read_like_a_file() -> None:
    good, bad = {"chosen": f"{HH}yes", "rejected": f"{HH}no"}, {"chosen": "", "rejected": ""}
    rows = from_dataset([*[good] * 30, bad], parse_any_pair)
    assert [pair.id for pair in rows.rows[:2]] == ["train-0", "train-1"]
    assert rows.rows[0].prompt.source == "Anthropic/hh-rlhf"
    assert [fault.line for fault in rows.faults] == [31]
    with pytest.raises(UsageError, match="2 of 2 rows are faulty"):
        from_dataset([{"text": "a"}] * 2, parse_any_pair)


def kat(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(), ["data", *arguments])


def test_the_command_maps_columns_splits_and_warns_of_few_pairs(tmp_path: Path) -> None:
    source, out = tmp_path / "made.jsonl", tmp_path / "out"
    rows = [{"question": f"q {k}", "best": " a", "worst": "b ", "prompt": "not this"} for k in range(200)]
    source.write_text(rows_text([*rows, rows[0]]))
    mapped = ["--map", "prompt=question", "--map", "chosen=best", "--map", "rejected=worst"]
    found = kat("pairs", "--from", str(source), "--out", str(out), *mapped)
    assert found.exit_code == 0, found.exception
    assert "201 rows read, 1 repeated" in found.output
    assert "warning: only 200 pairs" in found.output
    sides = [load_pairs([out / f"{name}.jsonl"]).rows for name in ("train", "validation", "test")]
    assert sum(map(len, sides)) == 200
    assert sides[0][0].chosen == " a" and sides[0][0].prompt.messages[0]["content"].startswith("q ")
    assert kat("pairs", "--from", str(source), "--out", str(out), *mapped).exit_code == 0

    (out / "mine.txt").write_text("mine")
    for arguments, words in (
        (["--map", "prompt=question"], "holds other files"),
        (["--out", str(tmp_path / "new")], "none of its 201 rows can be used"),
        (["--out", str(tmp_path / "new"), "--map", "prompt=nope"], "no column 'nope'"),
        (["--out", str(tmp_path / "new"), "--map", "prompt"], "write name=column"),
        (["--out", str(tmp_path / "new"), "--map", "winner=best"], "there is no column 'winner'"),
    ):
        refused = kat("pairs", "--from", str(source), "--out", str(out), *arguments)
        assert isinstance(refused.exception, UsageError) and words in str(refused.exception)
    assert (out / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_the_command_writes_prompts_once(tmp_path: Path) -> None:
    source, out = tmp_path / "pairs.jsonl", tmp_path / "prompts.jsonl"
    source.write_text(rows_text([pair_row(pair) for pair in pairs(3)] + [{**pair_row(pairs(1)[0]), "id": "again"}]))
    found = kat("prompts", "--from", str(source), "--out", str(out))
    assert "3 prompts (4 rows read, 1 repeated)" in found.output
    assert [prompt.id for prompt in load_prompts([out], max_bad=0).rows] == [pair.prompt.id for pair in pairs(3)]


def test_the_8485_hh_pairs_are_read_verbatim_and_split_by_conversation(real_data: Path) -> None:
    paths = sorted(real_data.glob("pairs_hh_*.jsonl.gz"))
    rows = read_pairs(paths, max_bad=0)
    assert len(rows.rows) == 8_485 and not rows.faults
    assert rows.rows == load_pairs(paths, max_bad=0).rows
    splits = split_pairs(without_repeats(rows.rows))
    sides_of = (splits.train, splits.validation, splits.test)
    openings = [{pair.prompt.messages[0]["content"] for pair in side} for side in sides_of]
    assert not openings[0] & openings[1] and not openings[0] & openings[2] and not openings[1] & openings[2]
    whole = json.loads(rows_text([pair_row(rows.rows[0])]))
    who = {"user": "Human", "assistant": "Assistant"}
    transcript = "".join(f"\n\n{who[message['role']]}: {message['content']}" for message in whole["prompt"])
    sides = {name: f"{transcript}\n\nAssistant: {whole[name]}" for name in ("chosen", "rejected")}
    assert parse_any_pair({"id": whole["id"], "source": whole["source"], **sides}) == rows.rows[0]
