"""`kat power` as it is typed."""

import pytest

from kat.cli import main


def said(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["power", *arguments])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_table_is_the_published_one(capsys):
    """The project's table of minimum detectable effects at 200 and 4,241 items."""
    table = said(capsys)
    assert "200         6.0         8.7        10.7" in table
    assert "4,241         1.4         1.9         2.4" in table


def test_answers_in_a_sentence(capsys):
    assert "8.7 points is found 80%" in said(capsys, "--items", "200")
    assert "from 15,698 items" in said(capsys, "--margin", "0.01")
    assert "needs 4 seeds a side" in said(capsys, "--difference", "0.03", "--seed-sd", "0.01")
    assert "take at least 4" in said(capsys, "--seeds", "3", "--seed-sd", "0.01")
    assert "no difference is found" in said(capsys, "--items", "50", "--discordant", "0.1")


def test_a_design_effect_costs_items(capsys):
    assert (
        said(capsys, "--items", "400", "--design-effect", "2").split("a difference of")[1]
        == said(capsys, "--items", "200").split("a difference of")[1]
    )


def test_the_picture_is_one_page_that_loads_nothing(capsys, tmp_path):
    page = tmp_path / "power.html"
    said(capsys, "--picture", str(page))
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "<svg" in text
    assert "http" not in text
    assert "<script" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--difference", "3"],
        ["--margin", "2"],
        ["--items", "999999999999"],
        ["--difference", "0.000001"],
        ["--margin", "0"],
        ["--items", "0"],
        ["--seeds", "5"],
        ["--difference", "0", "--seed-sd", "0.01"],
        ["--design-effect", "0.5"],
        ["--discordant", "1.5"],
    ],
)
def test_impossible_questions(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["power", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err
