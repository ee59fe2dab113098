"""The page: nothing that a model wrote can act in it, and it can be read without seeing it."""

import base64
import hashlib
import re
from collections import defaultdict
from dataclasses import replace
from importlib.resources import files

from hypothesis import given, settings
from hypothesis import strategies as st

from kat.audit.render_html import response
from kat.audit.render_md import fence
from kat.audit.report import audit
from kat.audit.schema import Side
from kat.audit.words import visible
from kat.evals.protocol import DataSource
from tests.audit.worlds import Page, run
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend

SOURCE = DataSource("made up", "d" * 64)
HOSTILE = (
    "</style></pre><script>alert(1)</script><img src=x onerror=alert(1)>\u202eesrever\u2066 \0 \x1b[31m "
    "```\n| a | <!-- \U0001f600"
)


def only_the_filter_runs(html):
    """The page has at most one script, kat's own file word for word, and its policy admits that one by its hash."""
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", html, re.S)
    own = files("kat.audit").joinpath("filter.js").read_text(encoding="utf-8")
    assert scripts in ([], [own])
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'" + (
        f"; script-src 'sha256-{digest}'" if scripts else ""
    )


def hostile_world(folder, text):
    items = [
        replace(item, question=f"{text} {item.question}", slices=(("subject", text[:40]),))
        for item in make_items.items(24)
    ]
    items = [replace(item, choices=(text, *item.choices[1:])) for item in items]
    for name, letter in (("a", "A"), ("b", "B")):
        backend = FakeBackend(
            lambda _, seed, letter=letter: f"{text} The answer is {letter}. {text}", identity=name * 64, name=text
        )
        run(items, backend, folder / name, SOURCE)
    return items


def test_hostile_text_stays_text(tmp_path):
    items = hostile_world(tmp_path, HOSTILE)
    found = audit(tmp_path / "a", tmp_path / "b", tmp_path / "out", data=items)
    assert found.flips
    assert found.slices == [], "a slice that holds every item says nothing"
    html = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    page = Page.of(html)
    only_the_filter_runs(html)
    assert "img" not in page.tags
    assert html.count("</style>") == 1
    assert not [
        name
        for name, _ in page.attributes
        if name.startswith("on") or (name in ("href", "src", "srcset") and not (name == "href" and _.startswith("#")))
    ]
    assert "default-src 'none'" in html
    for text in (html, (tmp_path / "out" / "audit.md").read_text(encoding="utf-8")):
        assert "\0" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "⟨U+202E⟩" in text
    assert "<script>alert(1)</script>" in "".join(page.words)


def test_hostile_text_cannot_leave_its_block_in_markdown(tmp_path):
    items = hostile_world(tmp_path, "x ````` y | <b> [a](http://b) **c** @someone #1\n# heading\n- item\n\n<script>")
    audit(tmp_path / "a", tmp_path / "b", tmp_path / "out", data=items)
    md = (tmp_path / "out" / "audit.md").read_text(encoding="utf-8")
    mark = None
    for line in md.split("\n"):
        ticks = re.match(r"`{3,}", line)
        if mark is None and ticks:
            mark = ticks[0]
        elif mark is not None:
            if line == mark:
                mark = None
        else:
            assert not re.search(r"(?<!\\)[<@]", line), line
            assert not re.search(r"(?<!\\)\]\(", line), line
            assert not line.startswith("# heading")
            assert line != "- item"
    assert mark is None, "a fence stays open"


@given(st.text(alphabet=st.sampled_from("`~\n ax")))
@settings(deadline=None, max_examples=200)
def test_a_fence_holds_any_text(text):
    first, *inside, last = fence(text)
    assert first == last + "text"
    assert "\n".join(inside) == text
    assert not any(set(line.strip()) == {"`"} and len(line.strip()) >= len(last) for line in inside)


@given(st.text(), st.data())
@settings(deadline=None, max_examples=100)
def test_a_response_is_shown_whole_and_only_its_span_is_marked(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    shown = str(response(Side(score=0, response=text, extracted="A", rule="r", span=(start, end))))
    page = Page.of(shown)
    assert "".join(page.words) == visible(text)
    assert set(page.tags) <= {"mark"}
    if end > start:
        assert page.tags == ["mark"]


def test_a_very_long_response_is_cut_in_the_page_around_its_span():
    text = "a" * 9000 + "The answer is B" + "b" * 9000
    shown = str(response(Side(score=0, response=text, extracted="B", rule="r", span=(9000, 9015))))
    assert "<mark>The answer is B</mark>" in shown
    assert len(shown) < 5000
    assert "more characters, all in audit.json" in shown


def test_the_page_asks_for_nothing_and_runs_nothing(world, report):
    html = (world / "out" / "audit.html").read_text(encoding="utf-8")
    page = Page.of(html)
    only_the_filter_runs(html)
    assert not {"link", "iframe", "object", "img", "form"} & set(page.tags)
    assert "@import" not in html
    assert "url(" not in html
    assert not re.search(r"https?://", html)


def test_the_page_can_be_read_without_seeing_it(world, report):
    html = (world / "out" / "audit.html").read_text(encoding="utf-8")
    page = Page.of(html)
    attributes = defaultdict(list)
    for name, value in page.attributes:
        attributes[name].append(value)
    ids = attributes["id"]
    assert len(ids) == len(set(ids))
    for reference in attributes["aria-labelledby"]:
        assert reference in ids
    for target in attributes["href"]:
        assert target[1:] in ids
    assert page.tags.count("caption") == page.tags.count("table") > 5
    assert page.tags.count("h1") == 1
    assert set(attributes["scope"]) == {"row", "col"}
    assert page.tags.count("svg") == attributes["role"].count("img") > 2
    labels = attributes["aria-label"]
    named = attributes["role"].count("region") + attributes["role"].count("search") + 1
    assert len(labels) == named, "every region, the filter and the navigation have a name"
    assert len(set(labels)) == len(labels)
    assert ("lang", "en") in page.attributes
