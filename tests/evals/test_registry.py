"""Suites are found by name, kat's own first; a plug-in is a factory behind an entry point."""

import importlib.metadata
import sys
import types

import pytest

from kat.errors import UsageError
from kat.evals import registry
from kat.evals.registry import BUILT_IN, get_suite, suite_names
from tests.evals import make_items


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("some_plugin")
    module.make = lambda data, **options: (data, options)
    module.no_factory = 3
    monkeypatch.setitem(sys.modules, "some_plugin", module)

    def install(*entries: tuple[str, str]) -> None:
        found = tuple(importlib.metadata.EntryPoint(name, value, registry.GROUP) for name, value in entries)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found if group == registry.GROUP else ())

    return install


@pytest.mark.parametrize("name", ["scienceqa", "choices", "choices-text"])
def test_the_built_in_suites_read_any_multiple_choice_file(tmp_path, name):
    suite = get_suite(name)(make_items.write(tmp_path / "q.jsonl", 5))
    assert suite.name == name
    assert [item.id for item in suite.items()] == [f"q{i}" for i in range(5)]
    assert len(suite.data_hash) == 64


def test_a_plug_in_is_loaded_and_given_its_data(plugin):
    plugin(("mine", "some_plugin:make"))
    assert suite_names() == [*BUILT_IN, "mine"]
    assert get_suite("mine")("file", width=2) == ("file", {"width": 2})


@pytest.mark.parametrize(
    ("entries", "name", "message"),
    [
        ((), "nothing", "no suite 'nothing'; there are scienceqa, choices"),
        ((("twice", "some_plugin:make"), ("twice", "other:make")), "twice", "registered twice"),
        ((("gone", "no_such_module:make"),), "gone", "cannot be imported"),
        ((("gone", "some_plugin:nothing"),), "gone", "cannot be imported"),
        ((("three", "some_plugin:no_factory"),), "three", "no factory"),
    ],
)
def test_what_cannot_be_used_is_said(plugin, entries, name, message):
    plugin(*entries)
    with pytest.raises(UsageError, match=message):
        get_suite(name)


def test_a_plug_in_cannot_replace_a_built_in_suite(plugin):
    plugin(("bpb", "some_plugin:make"))
    assert get_suite("bpb").__qualname__ == "BitsPerByte.load"
    assert suite_names().count("bpb") == 1


def test_items_with_images_are_left_out_and_counted(tmp_path):
    import json

    rows = make_items.rows(4)
    rows[1]["has_image"] = True
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    suite = get_suite("scienceqa")(path)
    assert [item.id for item in suite.items()] == ["q0", "q2", "q3"]
    assert "1 of 4 items need an image" in suite.notes[0]
    path.write_text(json.dumps(rows[1]) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="every item needs an image"):
        get_suite("scienceqa")(path)
