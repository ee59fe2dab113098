"""Faults of files stop at once; faults of rows are dropped, counted and named by line."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.choices import parse_choice_item
from kat.data.examples import Document, parse_example
from kat.data.rows import RowError, Rows, load_rows
from kat.errors import UsageError


def good(k: int) -> str:
    return json.dumps({"id": f"row-{k}", "text": f"text {k}"})


def read(*paths: Path, max_bad: float = 0.01) -> Rows:
    return load_rows(paths, parse_example, key=lambda row: row.id, max_bad=max_bad)


def file(folder: Path, content: bytes | str, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


LINES = "\n".join(map(good, range(3))) + "\n"


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "a.jsonl", "empty file"),
        (b"", "a.jsonl.gz", "empty file"),
        (gzip.compress(b"", mtime=0), "a.jsonl.gz", "empty file"),
        (b"\n  \n", "a.jsonl", "empty file"),
        (b" \n", "a.txt", "empty file"),
        (gzip.compress(LINES.encode() * 50, mtime=0)[:-12], "a.jsonl.gz", "the gzip ends too early"),
        (gzip.compress(LINES.encode() * 50, mtime=0)[:-8] + b"\x01" * 8, "a.jsonl.gz", "a broken gzip"),
        (LINES.encode(), "a.jsonl.gz", "named .gz but not gzip"),
        (LINES.encode() + b"\x00\x01\x02\n", "a.jsonl", "a.jsonl line 4: holds NUL bytes"),
        (LINES.encode() + '{"text": "né"}\n'.encode("latin-1"), "a.jsonl", "a.jsonl line 4: not UTF-8 (byte 0xe9"),
        (LINES.encode("utf-16"), "a.jsonl", "UTF-16 text, not UTF-8"),
        (f"[{good(0)}, {good(1)}]".encode(), "a.jsonl", "line 1: a JSON array"),
        (f"\n[\n{good(0)},\n{good(1)}\n]".encode(), "a.jsonl", "line 2: a JSON array"),
        (
            LINES.encode() + b'{"id": "row-3", "text": "cut of',
            "a.jsonl",
            "line 4: the file ends in the middle of a row",
        ),
        (LINES.encode() + b'{"id": "row-3",', "a.jsonl", "line 4: the file ends in the middle of a row"),
        (b"id,text\n1,hello\n", "a.jsonl", "none of its 2 rows can be used (line 1: not JSON"),
        (b'{"prompt": "p"}\n{"prompt": "q"}\n', "a.jsonl", "none of its 2 rows can be used (line 1: holds no text"),
    ],
)
def test_a_fault_of_the_file_is_one_line_that_names_it(tmp_path: Path, content: bytes, name: str, words: str) -> None:
    path = file(tmp_path, content, name)
    with pytest.raises(UsageError) as error:
        read(path, max_bad=1.0)  # allowing bad rows never allows a bad file
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder_and_repeated_files(tmp_path: Path) -> None:
    path = file(tmp_path, LINES)
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(UsageError, match="a folder"):
        read(tmp_path)
    with pytest.raises(UsageError, match="given twice"):
        read(path, path)
    with pytest.raises(UsageError, match="no data file"):
        read()


ROW_FAULTS = [
    ("not json", "not JSON ("),
    ("[1, 2]", "not a JSON object but an array"),
    ("null", "not a JSON object but null"),
    ('{"id": "x", "text": NaN}', "not JSON (NaN)"),
    ('{"id": "x", "text": ""}', "the text is empty"),
    ('{"id": "x", "text": 5}', "text is not text"),
    ('{"id": [], "text": "t"}', "id is neither text nor an integer"),
    ('{"id": "x", "text": "\\ud800"}', "half of a surrogate pair"),
    ('{"id": "row-0", "text": "again"}', "id 'row-0' stands already in line 1"),
    ('{"id": "x", "question": "q", "choices": ["a", "b"], "answer": 2}', "answer 2 outside its 2 choices"),
    ("[" * 100_000, "not JSON ("),
]


@pytest.mark.parametrize(("bad", "reason"), ROW_FAULTS)
def test_a_faulty_row_is_dropped_and_named_by_line(tmp_path: Path, bad: str, reason: str) -> None:
    lines = [good(k) for k in range(149)]
    lines.insert(1, "")  # blank lines count for the line number and for nothing else
    lines.insert(41, bad)
    rows = read(file(tmp_path, "\n".join(lines) + "\n"))
    assert (len(rows.rows), rows.n_lines) == (149, 150)
    assert [(fault.line, reason in fault.reason or "nested" in fault.reason) for fault in rows.faults] == [(42, True)]
    assert rows.report().startswith("150 rows read, 1 dropped (line 42: ")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=400))
def test_more_than_one_percent_stops_and_exactly_one_percent_does_not(tmp_path_factory, is_good: list[bool]) -> None:
    path = file(
        tmp_path_factory.mktemp("rows"), "".join((good(k) if g else "oops") + "\n" for k, g in enumerate(is_good))
    )
    bad = [k + 1 for k, g in enumerate(is_good) if not g]
    if len(bad) == len(is_good):
        with pytest.raises(UsageError, match="none of its"):
            read(path, max_bad=1.0)
        return
    if 100 * len(bad) > len(is_good):
        with pytest.raises(UsageError, match=f"{len(bad)} of {len(is_good)} rows are faulty") as error:
            read(path)
        assert all(f"line {line}: " in str(error.value) for line in bad[:3])
        assert "raise max_bad" in str(error.value)
    rows = read(path, max_bad=1.0)
    assert [fault.line for fault in rows.faults] == bad
    assert [row.id for row in rows.rows] == [f"row-{k}" for k, g in enumerate(is_good) if g]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=8)
)
def test_any_text_comes_back_verbatim_plain_or_zipped(tmp_path_factory, texts: list[str]) -> None:
    """U+2028 and lone carriage returns are no line ends; whitespace is kept."""
    folder = tmp_path_factory.mktemp("rows")
    raw = "".join(
        json.dumps({"id": k, "text": text}, ensure_ascii=False) + "\n" for k, text in enumerate(texts)
    ).encode()
    for name, content in (
        ("a.jsonl", raw),
        ("b.jsonl.gz", gzip.compress(raw, mtime=0)),
        ("c.jsonl", gzip.compress(raw)),
    ):
        rows = read(file(folder, content, name))
        assert rows.rows == [Document(str(k), text) for k, text in enumerate(texts)]
        assert rows.hash == hashlib.sha256(raw).hexdigest()


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    plain = read(file(tmp_path, LINES)).rows
    assert read(file(tmp_path, b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode())).rows == plain
    assert read(file(tmp_path, LINES.rstrip("\n"))).rows == plain


def test_several_files_keep_their_order_and_share_one_hash_and_one_set_of_ids(tmp_path: Path) -> None:
    lines = [good(k) + "\n" for k in range(200)]
    first, second = file(tmp_path, "".join(lines[:120]), "a.jsonl"), file(tmp_path, "".join(lines[120:]), "b.jsonl")
    rows = read(first, second)
    assert [row.id for row in rows.rows] == [f"row-{k}" for k in range(200)]
    assert rows.hash == hashlib.sha256("".join(lines).encode()).hexdigest() != read(second, first).hash
    again = read(first, file(tmp_path, "".join([*lines[120:], lines[7]]), "c.jsonl"))
    assert [(fault.path.name, fault.line) for fault in again.faults] == [("c.jsonl", 81)]
    assert "stands already in a.jsonl line 8" in again.faults[0].reason


def test_rows_without_an_id_are_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    a = file(tmp_path, '{"text": "one"}\n\n{"text": "one"}\n', "same.jsonl")
    b = file(tmp_path / "x", '{"text": "two"}\n', "same.jsonl")
    assert [row.id for row in read(a).rows] == ["same.jsonl:1", "same.jsonl:3"]
    assert len({row.id for row in read(a, b).rows}) == 3


def test_a_text_file_is_one_document_and_no_choice_item(tmp_path: Path) -> None:
    path = file(tmp_path, "First line.\nSecond line.\n", "book.txt")
    assert read(path).rows == [Document("book.txt:1", "First line.\nSecond line.\n")]
    with pytest.raises(UsageError, match="no question"):
        load_rows([path], parse_choice_item, key=None)


def test_an_error_of_the_parser_that_is_no_row_error_is_a_bug_and_stays_one(tmp_path: Path) -> None:
    def broken(row: dict) -> str:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        load_rows([file(tmp_path, LINES)], broken, key=None)

    def refuses(row: dict) -> str:
        raise RowError("no")

    with pytest.raises(UsageError, match="line 1: no"):
        load_rows([file(tmp_path, LINES)], refuses, key=None, max_bad=1.0)
