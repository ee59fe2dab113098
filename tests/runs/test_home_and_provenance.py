"""Where things lie, and what ran."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kat import __version__
from kat.errors import UsageError
from kat.runs.home import home_folder, resolve_model
from kat.runs.provenance import new_run_id, now, versions


def test_the_option_wins_over_the_environment_and_that_over_the_default(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KAT_HOME", str(tmp_path / "env"))
    assert home_folder(tmp_path / "option") == tmp_path / "option"
    assert home_folder() == tmp_path / "env"
    monkeypatch.delenv("KAT_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert home_folder().name == "kat"
    monkeypatch.chdir(tmp_path)
    assert home_folder(Path("here")) == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_folder(Path("~/x")) == tmp_path / "x"


def test_models_are_paths_stages_or_hugging_face_folders(tmp_path: Path, monkeypatch) -> None:
    home = tmp_path / "home"
    (home / "runs" / "demo" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("demo/sft", home) == str(home / "runs" / "demo" / "sft")
    assert resolve_model("hf:anything", home) == "hf:anything"
    (tmp_path / "demo" / "sft").mkdir(parents=True)
    assert resolve_model("demo/sft", home) == "demo/sft"  # what the user has here comes first
    with pytest.raises(UsageError, match=r"demo/base: no such checkpoint here, and no such stage in .*runs"):
        resolve_model("demo/base", home)


def test_versions_name_what_can_change_a_result() -> None:
    import torch

    found = versions()
    assert found["kat"] == __version__
    assert found["torch"] == torch.__version__
    assert found.keys() >= {"python", "platform", "numpy", "tokenizers", "tiktoken", "safetensors"}


def test_now_is_this_second_in_utc() -> None:
    stated = datetime.fromisoformat(now())
    assert stated.utcoffset().total_seconds() == 0
    assert abs((datetime.now(UTC) - stated).total_seconds()) < 60


def test_run_ids_are_never_the_same() -> None:
    ids = {new_run_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", i) for i in ids)


def test_a_stage_under_home_is_called_by_its_short_name(tmp_path: Path) -> None:
    from kat.runs.home import short_name

    assert short_name(str(tmp_path / "runs" / "demo" / "sft"), tmp_path) == "demo/sft"
    assert short_name("elsewhere/sft", tmp_path) == "elsewhere/sft"
    assert short_name("hf:runs/x", tmp_path) == "hf:runs/x"
