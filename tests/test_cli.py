"""The command line as a user meets it: help without torch, one line and the right exit code for every mistake."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from kat import __version__
from kat.cli import main
from kat.text import printable


def kat(*words: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one call in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_help_imports_no_torch() -> None:
    code = "import sys; from kat.cli.app import build_app; build_app(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_report_imports_nothing_heavy_that_it_may_not_need() -> None:
    heavy = "{'torch', 'pandas', 'sklearn'}"
    code = f"import sys; import kat.audit.report, kat.audit.find; sys.exit(len({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert kat("--version", capsys=capsys) == (0, f"kat {__version__}\n", "")
    code, out, _ = kat("--help", capsys=capsys)
    assert code == 0
    assert all(verb in out for verb in ("train", "eval", "audit", "run", "generate", "chat", "doctor", "import"))


def test_doctor_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = kat("--home", tmp_path, "doctor", capsys=capsys)
    assert code == 0
    for row in ("device", "memory", "threads", "core", "extra hf", "home"):
        assert row in out
    assert str(tmp_path) in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "bass", "--data", "x", "--out", "y"), "bass: no such stage"),
        (("train", "base", "--data", "x", "--out", "y"), "--init is missing"),
        (("train", "base", "--data", "x", "--out", "y", "--set", "stepz=3"), "did you mean steps?"),
        (("train", "base", "--data", "x", "--out", "y", "--set", "steps"), "write key=value"),
        (("train", "base", "--data", "x", "--out", "y", "--set", "steps=-1"), "steps"),
        (
            ("train", "base", "--data", "x", "--out", "y", "--set", "batch_size=4", "--set", "micro_batch_size=3"),
            "multiple",
        ),
        (("train", "base", "--data", "x", "--out", "y", "--config", "none.toml"), "none.toml: no such file"),
        (("train", "sft", "--init", "none", "--data", "x", "--out", "y"), "--init none: no such folder"),
        (("train", "tokenizer", "--data", "none.jsonl", "--out", "y"), "none.jsonl"),
        (("eval", "scienceqa", "none", "--data", "none.jsonl"), "none.jsonl"),
        (("eval", "sciencqa", "none", "--data", "none.jsonl"), "no suite 'sciencqa'"),
        (("audit", "none-a", "none-b"), "none-a"),
        (("audit", "--counts", "13/34", "21/50/50"), "right/parsed/asked"),
        (("audit", "--counts", "40/34/50", "21/50/50"), "40/34/50"),
        (("run", "dem"), "none of demo"),
        (("generate", "none", "hello"), "none: no such checkpoint"),
        (("import", "nanochat", "none", "--out", "y"), "none: no such folder"),
        (("nonsense",), "nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = kat("--home", tmp_path / "home", *words, capsys=capsys)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    if err.startswith("kat:"):
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_bug_keeps_its_traceback_and_exits_5(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("kat.pipeline.recipe.load_recipe", broken)
    code, _, err = kat("--home", tmp_path, "run", "demo", capsys=capsys)
    assert code == 5
    assert "Traceback" in err
    assert "planted" in err


def test_a_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("kat.pipeline.recipe.load_recipe", full)
    assert kat("--home", tmp_path, "run", "demo", capsys=capsys) == (2, "", "kat: somewhere: No space left on device\n")


def test_the_seeds_own_counts_are_audited(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = kat("audit", "--counts", "13/34/50", "21/50/50", capsys=capsys)
    assert code == 0
    assert "the sign is not identified" in out
    assert "26.0 %" in out
    assert "42.0 %" in out


def test_model_text_cannot_drive_the_terminal() -> None:
    hostile = "a\x1b[2Jb\x07c\u202ed\ue000e\n\tf\x7f\x9b"
    shown = printable(hostile)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\x9b" not in shown
    assert shown.startswith("a\u241b[2Jb\u2407c[U+202E]d")
    assert "\n\tf" in shown


def test_a_closed_pipe_is_no_gates_word_for_a_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kat gate … | head -1`: the reader is gone before the last line, which is not exit 1."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)

    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("typer.echo", closed)
    with pytest.raises(SystemExit) as stopped:
        main(["power"])
    assert stopped.value.code == 141
