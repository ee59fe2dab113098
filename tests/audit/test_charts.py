"""Figures are well-formed, say what they show, and put things where their numbers are."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st

from kat.audit.charts import Line, Mark, curve_chart, interval_chart, nice_ticks

shares = st.floats(-1, 1)


@given(st.floats(-1e4, 1e4), st.floats(0.01, 1e6) | st.just(0.0), st.integers(2, 9))
@settings(deadline=None, max_examples=200)
def test_ticks_are_few_round_and_enclose_the_data(low, width, wanted):
    ticks = nice_ticks(low, low + width, wanted)
    steps = {round(b - a, 6 - math.floor(math.log10(b - a))) for a, b in itertools.pairwise(ticks)}
    slack = 1e-6 * (abs(low) + width + 1)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + width - slack
    assert 2 <= len(ticks) <= wanted + 2
    assert len({float(f"{step:.6g}") for step in steps}) == 1


@given(st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=6), st.text())
@settings(deadline=None, max_examples=60)
def test_any_label_and_any_numbers_make_a_well_formed_figure(rows, label):
    marks = [Mark(label, *sorted(row)[1:2], *sorted(row)[::2], "n") for row in rows]
    root = ET.fromstring(interval_chart(marks, title=label, unit="u", zero=True, name="x"))
    assert root.attrib["role"] == "img"
    assert not list(root.iter("script"))
    numbers = [float(value) for node in root.iter() for key, value in node.attrib.items() if key in ("x1", "x2", "cx")]
    assert all(0 <= value <= 720 for value in numbers)


def test_dots_stand_where_their_numbers_are():
    marks = [Mark("zero", 0.0, -0.1, 0.1, ""), Mark("half", 0.05, 0.0, 0.1, "")]
    svg = interval_chart(marks, title="t", unit="u", zero=True, name="x")
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', svg)[1])
    centres = [float(points.split()[0].split(",")[0]) for points in re.findall(r'points="([^"]+)"', svg)]
    ends = [float(x) for x in re.findall(r'class="bar" x1="[\d.]+" x2="([\d.]+)"', svg)]
    assert centres[0] == zero
    assert abs(centres[1] - (zero + ends[0]) / 2) < 0.11


def test_a_mark_without_an_interval_has_no_bar():
    svg = interval_chart([Mark("rule", 0.4, None, None, "40 %", "rule")], title="t", unit="u", zero=False, name="x")
    assert 'class="bar"' not in svg
    assert 'class="stem"' in svg


def test_curves_of_one_point_and_of_many_are_drawn():
    one = [
        ("A", [Line("loss", [5], [1.0], "a")]),
        ("B <b>", [Line("loss", [0, 10, 20], [3.0, 2.0, 1.0], "b", dots=True)]),
    ]
    root = ET.fromstring(curve_chart(one, title="t", unit="step", name="c"))
    assert len([node for node in root.iter() if node.tag == "polyline"]) == 2
    assert len([node for node in root.iter() if node.tag == "circle"]) == 3
    heights = [float(node.attrib["cy"]) for node in root.iter() if node.tag == "circle"]
    assert heights == sorted(heights), "a falling loss goes down the page"
