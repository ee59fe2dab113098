"""docs/verify.md, as its reader would follow it."""

import json
import re
from pathlib import Path

import pytest

from kat.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "verify.md"
MUTANTS = PAGE.with_name("mutants.md")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """my_trainer.py and my_adapter.py; the second piece of the adapter goes into the class of the first."""
    pieces = re.findall(r"```python (my_\w+\.py)\n(.*?)```", PAGE.read_text(), re.S)
    assert [name for name, _ in pieces] == ["my_trainer.py", "my_adapter.py", "my_adapter.py"]
    (tmp_path / "my_trainer.py").write_text(pieces[0][1])
    whole = pieces[1][1].replace("\n\ndef make(", f"\n{pieces[2][1]}\n\ndef make(")
    (tmp_path / "my_adapter.py").write_text(whole)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    import sys

    for name in ("my_trainer", "my_adapter"):
        sys.modules.pop(name, None)


def outcomes(folder: Path) -> tuple[int, dict[str, str]]:
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "my_adapter.py:make", "--json", str(folder / "out.json")])
    found = json.loads((folder / "out.json").read_text())
    return stopped.value.code, {finding["check"]: finding["outcome"] for finding in found["findings"]}


def test_the_trainer_of_the_tutorial_passes(files):
    code, found = outcomes(files)
    assert code == 0, found
    assert set(found.values()) == {"PASS", "SKIP"}
    assert sum(outcome == "PASS" for outcome in found.values()) >= 10


def test_the_bug_of_the_tutorial_is_found(files):
    trainer = files / "my_trainer.py"
    broken = trainer.read_text().replace("(losses * mask[:, 1:])", "(losses * mask[:, :-1])")
    assert broken != trainer.read_text()
    trainer.write_text(broken)
    code, found = outcomes(files)
    assert code == 1
    assert found["loss_matches_token_oracle"] == "FAIL"


def test_the_failures_shown_are_those_of_the_mutants():
    shown, printed = (re.findall(r"```\n(FAIL .*?)```", page.read_text(), re.S) for page in (PAGE, MUTANTS))
    assert len(shown) == 5
    assert shown == printed


def test_the_page_names_checks_that_exist():
    from kat.verify.checks import all_checks

    named = re.findall(r"^(\w+) = \"", PAGE.read_text(), re.M)
    assert named
    assert set(named) <= {check.id for check in all_checks()}
