"""Files and folders that are wholly there or not there."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kat.errors import UsageError
from kat.runs import files
from kat.runs.files import (
    canonical_json,
    hash_file,
    hash_json,
    link_or_copy,
    new_folder,
    read_json,
    recover_folder,
    remove_folder,
    write_json,
    write_text,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_canonical_json_is_json_of_the_value_whatever_the_order(value: object) -> None:
    def shuffled(v: object) -> object:
        if isinstance(v, dict):
            return {k: shuffled(x) for k, x in reversed(v.items())}
        return [shuffled(x) for x in v] if isinstance(v, list) else v

    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(shuffled(value)) == text
    assert hash_json(value) == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf"), [float("-inf")]):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json(value)
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


def test_files_are_hashed_by_content(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert hash_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


@given(st.text())
def test_text_round_trip(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("t") / "new" / "a.txt"
    if any(0xD800 <= ord(c) < 0xE000 for c in text):
        with pytest.raises(UnicodeEncodeError):
            write_text(path, text)
        assert list(path.parent.iterdir()) == []
        return
    write_text(path, text)
    assert path.read_bytes().decode() == text.replace("\n", os.linesep)
    assert path.stat().st_mode & 0o777 == 0o644


def full_disk(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("there", [False, True])
def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch, there: bool) -> None:
    path = tmp_path / "a.json"
    if there:
        write_json(path, {"old": 1})
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left") as error:
        write_json(path, {"new": 2})
    assert error.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == (["a.json"] if there else [])
    if there:
        assert read_json(path) == {"old": 1}


def test_json_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.json: no such file"):
        read_json(tmp_path / "gone.json")
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UsageError, match=r"bad\.json: not a JSON file"):
            read_json(tmp_path / "bad.json")


def fill(folder: Path, content: str) -> None:
    (folder / "sub").mkdir()
    (folder / "a").write_text(content)
    (folder / "sub" / "b").write_text(content)


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_appears_complete_and_replaces_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "f"
    with new_folder(path) as temporary:
        fill(temporary, "1")
        assert not path.exists()
    (path / "stray").write_text("x")
    with new_folder(path) as temporary:
        (temporary / "c").write_text("2")
        assert content(path)["a"] == "1"
    assert content(path) == {"c": "2"}
    assert os.listdir(path.parent) == ["f"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failing", ["body", "fsync", "replace"])
def test_a_folder_that_cannot_be_made_leaves_the_old_one(
    tmp_path: Path, monkeypatch, there: bool, failing: str
) -> None:
    path = tmp_path / "f"
    if there:
        with new_folder(path) as temporary:
            fill(temporary, "old")
    replace, calls = os.replace, []

    def last_replace_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if target == path and len(calls) == 1 + there:
            full_disk()
        replace(source, target)

    with monkeypatch.context() as patch:
        if failing != "body":
            patch.setattr(os, failing, last_replace_fails if failing == "replace" else full_disk)
        with pytest.raises(OSError, match="No space left"), new_folder(path) as temporary:  # noqa: PT012
            fill(temporary, "new")
            if failing == "body":
                full_disk()
    assert os.listdir(tmp_path) == (["f"] if there else [])
    if there:
        assert content(path) == {"a": "old", "sub/b": "old"}


def test_what_a_killed_process_left_is_mended(tmp_path: Path) -> None:
    path, other = tmp_path / "f", tmp_path / "f.more"
    for name in (".f.new-abc_1234", ".f.gone-abcd1234", ".f.more.new-abcd1234"):
        (tmp_path / name / "folder").mkdir(parents=True)
    (tmp_path / ".f.new-zzzzzzzz").rmdir() if (tmp_path / ".f.new-zzzzzzzz").exists() else None
    aside = tmp_path / ".f.old-abcd1234"
    (aside / "folder").mkdir(parents=True)
    (aside / "folder" / "a").write_text("mine")
    recover_folder(path)
    assert content(path) == {"a": "mine"}
    assert sorted(os.listdir(tmp_path)) == [".f.more.new-abcd1234", "f"]  # another name's are not touched
    recover_folder(other)
    assert os.listdir(tmp_path) == ["f"]
    recover_folder(tmp_path / "no" / "such")


def test_an_old_folder_does_not_come_back_over_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    fill_at = tmp_path / ".f.old-abcd1234" / "folder"
    fill_at.mkdir(parents=True)
    (fill_at / "a").write_text("old")
    with new_folder(path) as temporary:
        (temporary / "a").write_text("new")
    recover_folder(path)
    assert content(path) == {"a": "new"}
    assert os.listdir(tmp_path) == ["f"]


def test_removing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    fill(tmp_path / "f", "1")
    remove_folder(tmp_path / "f")
    remove_folder(tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_links_fall_back_to_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_text("1")
    link_or_copy(source, tmp_path / "b")
    assert source.stat().st_ino == (tmp_path / "b").stat().st_ino

    def no_links(*_args: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(files.os, "link", no_links)
    link_or_copy(source, tmp_path / "c")
    assert source.stat().st_ino != (tmp_path / "c").stat().st_ino
    assert (tmp_path / "c").read_text() == "1"


def test_what_is_no_file_is_written_into_and_never_replaced(tmp_path: Path) -> None:
    """`--json /dev/stdout`: a rename would put a file in the place of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(pipe, "said")
    assert os.read(reader, 100) == b"said" and pipe.is_fifo()
    os.close(reader)
