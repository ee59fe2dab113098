"""Evaluations made of nothing: folders of evidence from fake models with known answers."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from kat.data.choices import ChoiceItem
from kat.evals.choices import Choices
from kat.evals.runner import run_suite
from kat.evals.scienceqa import ScienceQA
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend, knowing


def two_runs(
    folder: Path,
    n: int = 120,
    *,
    lectures: int = 12,
    know: tuple[float, float] = (0.2, 0.5),
    unparsed: tuple[float, float] = (0.15, 0.02),
) -> Path:
    """`folder`/{data.jsonl, a, b}: two models that know these shares of the items and leave those unparsed."""
    suite = ScienceQA.load(make_items.write(folder / "data.jsonl", n, lectures=lectures))
    run_suite(suite, knowing(suite.items(), know[0], name="mid", unparsed=unparsed[0]), folder / "a")
    run_suite(suite, knowing(suite.items(), know[1], name="sft", unparsed=unparsed[1]), folder / "b")
    return folder


def run(items: list[ChoiceItem], backend: FakeBackend, folder: Path, source: Any, **options: Any) -> Path:
    """One evaluation of given items."""
    run_suite(ScienceQA(items, source), backend, folder, **options)
    return folder


def letters(items: list[ChoiceItem], backend: FakeBackend, folder: Path, source: Any) -> Path:
    """One rotation-averaged evaluation of given items."""
    run_suite(Choices(items, source), backend, folder)
    return folder


def rows_of(folder: Path) -> dict[str, dict]:
    """The rows of samples.jsonl by item hash, read without kat."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["item_hash"]: row for row in map(json.loads, lines)}


class Page(HTMLParser):
    """What a browser would build of a page: its tags, their attributes and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @classmethod
    def of(cls, html: str) -> "Page":
        page = cls()
        page.feed(html)
        return page


def edit_rows(folder: Path, change: Callable[[list[dict]], list[dict]]) -> None:
    """Rewrite samples.jsonl."""
    path = folder / "samples.jsonl"
    rows = change([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def edit_results(folder: Path, **fields: Any) -> None:
    """Rewrite results.json; a callable gets the old value."""
    path = folder / "results.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    for name, new in fields.items():
        value[name] = new(value[name]) if callable(new) else new
    path.write_text(json.dumps(value), encoding="utf-8")


def consistent(folder: Path) -> None:
    """Make results.json agree with the rows again, as a careful forger would."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    accuracy = sum(row["score"] for row in rows) / len(rows)
    edit_results(
        folder,
        n_items=len(rows),
        n_unparsed=sum(row["extracted"] is None for row in rows),
        metrics=lambda old: old | {"accuracy": old["accuracy"] | {"estimate": accuracy, "low": 0.0, "high": 1.0}},
    )
