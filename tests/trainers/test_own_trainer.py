"""docs/trainers.md: the trainer that it shows is under 40 lines, and `kat train` runs it from where the user stands."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from kat.model.checkpoint import load_checkpoint
from kat.trainers.stages import build_job
from tests.trainers.helpers import leftovers, meta, request, run, sft_request

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [code] = re.findall(r"```python plain_trainer\.py\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "plain_trainer.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield code
    sys.modules.pop("plain_trainer", None)


def test_a_trainer_of_your_own_takes_under_40_lines(tmp_path: Path, source: str) -> None:
    assert source.count("\n") < 40
    run(request(tmp_path, "init", steps=30, peak=3.0))
    asked = replace(sft_request(tmp_path, tmp_path / "init", steps=60, lr=0.1), trainer="plain_trainer:Plain")
    result = run(asked)
    assert (result.step, meta(result.folder)["stage"], leftovers(tmp_path)) == (60, "sft", [])
    data = build_job(asked, Console(quiet=True)).train
    ids = torch.from_numpy(data.ids).long()[None]
    targets = ids.masked_fill(torch.from_numpy(data.mask)[None] == 0, -1)
    with torch.no_grad():
        before, after = (
            float(load_checkpoint(folder).model(ids[:, :-1], targets[:, 1:])) for folder in (asked.init, result.folder)
        )
    assert after < before - 0.3
