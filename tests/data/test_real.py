"""The real files, where KAT_DATA names them. The counts are those of the data's own statement of provenance."""

import os
from pathlib import Path

import pytest

from kat.data.choices import ChoiceItem
from kat.data.contamination import CHOICES, QUESTION, check
from kat.data.scienceqa import load_scienceqa
from kat.data.sources import load_choice_items, load_examples


@pytest.mark.parametrize(
    ("split", "n_rows", "n_text"), [("train", 12_237, 6_508), ("validation", 4_090, 2_144), ("test", 4_241, 2_224)]
)
def test_scienceqa_has_the_stated_rows(real_data: Path, split: str, n_rows: int, n_text: int) -> None:
    everything = load_scienceqa(real_data, split, text_only=False)
    assert (len(everything.rows), everything.faults) == (n_rows, [])
    assert len(load_scienceqa(real_data, split).rows) == n_text


def test_chance_on_the_text_only_test(real_data: Path) -> None:
    items = load_scienceqa(real_data, "test").rows
    assert sum(1 / len(item.choices) for item in items) / len(items) == pytest.approx(0.441, abs=5e-4)


def test_two_test_questions_of_scienceqa_stand_in_its_training_split(real_data: Path) -> None:
    report = check(load_scienceqa(real_data, "train").rows, load_scienceqa(real_data, "test").rows)
    assert report.exact == report.by[CHOICES] == 2


@pytest.mark.parametrize(
    ("train", "test", "n_equal"),
    [
        ("arc_easy_train", "arc_easy_test", 7),
        ("arc_challenge_train", "arc_challenge_test", 7),
        ("openbookqa_train", "openbookqa_test", 23),
        pytest.param("mmlu_dev", "mmlu_test", 6, marks=pytest.mark.slow),
    ],
)
def test_the_stated_overlaps_are_found(real_data: Path, train: str, test: str, n_equal: int) -> None:
    rows = [load_choice_items(real_data / f"mc_{name}.jsonl.gz").rows for name in (train, test)]
    assert check(*rows).by[QUESTION] == n_equal


@pytest.mark.slow
def test_every_file_of_a_known_kind_reads_without_too_many_faults(real_data: Path) -> None:
    files = [*real_data.glob("mc_*"), *real_data.glob("text_*"), *real_data.glob("sft_*")]
    assert len(files) > 10, os.listdir(real_data)
    for path in files:
        rows = load_examples([path])
        assert rows.rows
        repeated = [fault for fault in rows.faults if "stands twice" in fault.reason]
        assert repeated == rows.faults
        assert not rows.faults or isinstance(rows.rows[0], ChoiceItem)
