"""ScienceQA from files and from a data set with the hub's columns."""

import gzip
import json
from pathlib import Path

import pytest

from kat.data.choices import question_text
from kat.data.scienceqa import from_dataset, load_scienceqa
from kat.errors import UsageError

ROWS = [
    {"question": "Which is red?", "choices": ["a rose", "grass"], "answer": 0, "hint": "", "image": None},
    {
        "question": "What is shown?",
        "choices": ["x", "y", "z"],
        "answer": 2,
        "hint": "Look.",
        "image": {"bytes": b"no image", "path": None},
    },
    {"question": "Which floats?", "choices": ["lead", "cork"], "answer": 1, "hint": "Cork is light.", "image": None},
]
COMMON = {
    "task": "closed choice",
    "grade": "grade2",
    "subject": "natural science",
    "topic": "physics",
    "category": "c",
    "skill": "s",
    "lecture": "L",
    "solution": "S",
}


def hub(rows: list[dict]):
    """A data set as the hub's: the image is an image feature, here of bytes that no decoder could read."""
    datasets = pytest.importorskip("datasets")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["image"] = [None if image is None else image for image in columns["image"]]
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def test_a_data_set_with_the_hubs_columns() -> None:
    rows = from_dataset(hub([{**row, **COMMON} for row in ROWS]), "test")
    assert [item.has_image for item in rows.rows] == [False, True, False]
    assert [item.id for item in rows.rows] == ["test-0", "test-1", "test-2"]
    item = rows.rows[2]
    assert question_text(item) == "Cork is light.\nWhich floats?\n\nA. lead\nB. cork"
    assert (item.letter, item.lecture, item.solution) == ("B", "L", "S")
    assert dict(item.slices) == {"subject": "natural science", "topic": "physics", "category": "c", "grade": "grade2"}
    assert rows.hash == from_dataset(hub([{**row, **COMMON} for row in ROWS]), "test").hash
    assert rows.hash != from_dataset(hub([{**row, **COMMON, "skill": "t"} for row in ROWS]), "test").hash


def test_the_hub_and_a_file_give_the_same_content(tmp_path: Path) -> None:
    lines = [{**row, **COMMON, "id": str(k), "has_image": row["image"] is not None} for k, row in enumerate(ROWS)]
    text = "".join(json.dumps({key: value for key, value in row.items() if key != "image"}) + "\n" for row in lines)
    (tmp_path / "scienceqa_test.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    from_file = load_scienceqa(tmp_path, "test", text_only=False)
    from_hub = from_dataset(hub([{**row, **COMMON} for row in ROWS]), "test")
    assert [item.hash for item in from_file.rows] == [item.hash for item in from_hub.rows]
    assert [item.cluster for item in from_file.rows] == [item.cluster for item in from_hub.rows]
    texts = load_scienceqa(tmp_path / "scienceqa_test.jsonl.gz", "test")
    assert [item.id for item in texts.rows] == ["0", "2"]
    assert (texts.n_lines, texts.faults) == (3, [])


def test_what_is_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="split 'dev'"):
        load_scienceqa(tmp_path, "dev")
    with pytest.raises(UsageError, match=r"holds no scienceqa_train\.jsonl"):
        load_scienceqa(tmp_path, "train")
    with pytest.raises(UsageError, match="no column hint"):
        from_dataset(hub([{k: v for k, v in ROWS[0].items() if k != "hint"}]), "test")
    with pytest.raises(UsageError, match="1 of 3 rows are faulty"):
        from_dataset(hub([*ROWS[:2], {**ROWS[2], "answer": 9}]), "test")
    datasets = pytest.importorskip("datasets")

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no way\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UsageError, match="can't be fetched from the hub \\(no way to the hub\\)"):
        load_scienceqa("hub", "test")
