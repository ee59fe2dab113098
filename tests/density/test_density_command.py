"""`kat density` as a user meets it."""

import json

import pytest

from kat.cli import main
from kat.density.folder import read_density
from kat.model.checkpoint import save_checkpoint
from tests.model.helpers import random_model, tiny_tokenizer


def kat(capsys, *words):
    """Exit code, stdout and stderr of one call in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("density")
    model = random_model(vocab_size=300, n_layer=2, n_embd=24, n_head=4, sequence_len=32)
    save_checkpoint(folder / "checkpoint", model, tiny_tokenizer(), {"stage": "base", "step": 1})
    words = ["kato", "ri", "lone", "méßu", "漢 ka"]
    rows = [
        {"messages": [{"role": "user", "content": " ".join(words[i // 5**p % 5] for p in range(3)) + f" {i}"}]}
        for i in range(60)
    ]
    text = "".join(json.dumps(row | {"source": "made"}) + "\n" for row in rows)
    (folder / "prompts.jsonl").write_text(text)
    (folder / "fewer.jsonl").write_text("".join(text.splitlines(keepends=True)[:50]))
    return folder


def build(capsys, here, out, *more):
    data = ("--data", here / "prompts.jsonl", "--model", here / "checkpoint", "-k", 3, "--dose", 0.05)
    return kat(capsys, "density", "build", *data, "--out", out, *more)


def test_build_show_and_update(here, tmp_path, capsys):
    out = tmp_path / "density"
    code, said, err = build(capsys, here, out)
    assert code == 0 and "60 texts embedded" in said and "effective sample" in said
    assert "60 rows read, 60 prompts" in err and "neighbours: 60 of 60" in err
    code, said, _ = build(capsys, here, out)
    assert code == 0 and "nothing to embed" in said
    code, said, _ = kat(capsys, "density", "show", out, "--heaviest", 5)
    assert code == 0 and "The 5 heaviest prompts" in said and "made" in said
    code, said, err = kat(capsys, "density", "update", out, "--data", here / "fewer.jsonl")
    assert code == 0 and "0 texts embedded, 50 prompts known, 10 left" in said and "embedding" not in err
    assert read_density(out).metadata.n == 50
    code, _, err = kat(capsys, "density", "show", out, "--second", out)
    assert code == 2 and "the same embedder" in err


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("build", "--data", "none.jsonl", "--model", "minilm", "--out", "x"), 2, "none.jsonl: no such file"),
        (("build", "--data", "DATA", "--model", "none", "--out", "x"), 2, "none: no such checkpoint here"),
        (("build", "--data", "DATA", "--model", "DATA", "--out", "x"), 2, "no checkpoint folder"),
        (("build", "--data", "DATA", "--model", "CKPT", "--out", "x", "-k", "30"), 2, "60 distinct prompts for k = 30"),
        (("build", "--data", "DATA", "--model", "CKPT", "--out", "x", "--dose", "2"), 2, "dose 2: a total variation"),
        (("build", "--data", "DATA", "--model", "CKPT", "--out", "CKPT"), 2, "no density folder"),
        (("update", "x", "--data", "DATA"), 2, "x: no density folder"),
        (("show", "x"), 2, "x: no density folder"),
        (("map", "x", "--out", "y"), 2, "x: no density folder"),
    ],
)
def test_mistakes_are_one_line(here, tmp_path, capsys, monkeypatch, words, code, line):
    monkeypatch.chdir(tmp_path)
    places = {"DATA": here / "prompts.jsonl", "CKPT": here / "checkpoint"}
    found, out, err = kat(capsys, "density", *(places.get(word, word) for word in words))
    assert found == code and out == "" and err.splitlines()[-1].startswith("kat: ") and line in err.splitlines()[-1]
    assert "Traceback" not in err and not (tmp_path / "x").exists()
