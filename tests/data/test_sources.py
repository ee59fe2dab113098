"""What trainers and suites call to read files."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.choices import ChoiceItem
from kat.data.drills import letter_drills
from kat.data.examples import Conversation, Document
from kat.data.rows import Rows
from kat.data.sources import load_choice_items, load_examples, subset
from kat.errors import UsageError

ITEM = {"id": "q", "question": "Which?", "choices": ["a", "b"], "answer": "B"}
TALK = {"id": "c", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def test_files_of_all_three_kinds_mix(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(ITEM) + "\n" + json.dumps(TALK) + "\n")
    (tmp_path / "two.txt").write_text("A text.")
    rows = load_examples([tmp_path / "one.jsonl", tmp_path / "two.txt"])
    assert [type(row) for row in rows.rows] == [ChoiceItem, Conversation, Document]


def test_an_evaluation_takes_choice_items_only(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({**ITEM, "id": k}) + "\n" for k in range(200)))
    assert len(load_choice_items(path).rows) == 200
    few = load_choice_items(path, limit=20, seed=1)
    assert len(few.rows) == 20
    assert (few.n_lines, few.hash) == (200, load_choice_items(path).hash)
    path.write_text(json.dumps(TALK) + "\n")
    with pytest.raises(UsageError, match="no question"):
        load_choice_items(path)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 80), st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_a_limit_draws_a_fixed_random_subset_in_file_order(n: int, small: int, large: int, seed: int) -> None:
    small, large = sorted((small, large))
    rows = Rows(list(range(n)), [], n, "hash")
    drawn, more = subset(rows, small, seed).rows, subset(rows, large, seed).rows
    assert len(drawn) == min(small, n)
    assert drawn == sorted(set(drawn)) == subset(rows, small, seed).rows
    assert set(drawn) <= set(more)
    assert subset(rows, None, seed).rows == rows.rows


def test_a_limit_is_not_simply_the_first_rows_and_moves_with_the_seed() -> None:
    rows = Rows(list(range(1000)), [], 1000, "hash")
    drawn = [tuple(subset(rows, 100, seed).rows) for seed in range(5)]
    assert len(set(drawn)) == 5
    assert all(350 < sum(some) / 100 < 650 for some in drawn)
    for limit in (0, -1):
        with pytest.raises(UsageError, match=f"limit {limit}"):
            subset(rows, limit, 0)


def test_letter_drills_ask_for_one_of_the_options_shown() -> None:
    items = [ChoiceItem(str(k), "q", (f"x{k}", f"y{k}", f"z{k}"), 0, hint="h") for k in range(5)]
    long = ChoiceItem("long", "q", ("w" * 61, "v"), 0)
    drills = letter_drills([*items, long], 400, seed=1)
    assert drills == letter_drills([*items, long], 400, seed=1) != letter_drills([*items, long], 400, seed=2)
    sources = {frozenset(item.choices) for item in items}
    for drill in drills:
        assert frozenset(drill.choices) in sources
        assert drill.choices[drill.answer] in drill.question
        assert drill.hint == ""
    assert all(100 < sum(drill.letter == letter for drill in drills) < 167 for letter in "ABC")
    with pytest.raises(UsageError, match="at most 60 characters"):
        letter_drills([long], 1, seed=0)
