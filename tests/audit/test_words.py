"""Numbers in words, and strangers' characters in sight."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.audit.words import count, interval, p_value, percent, points, visible


@given(st.text(alphabet=st.characters()))
@settings(deadline=None, max_examples=200)
def test_nothing_that_hides_or_turns_text_is_left(text):
    shown = visible(text)
    for char in shown:
        assert char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(char) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        assert char not in "\u200b\u200e\u200f\u061c\ufeff\u00ad"
    assert visible(shown) == shown


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Mn", "Mc", "Zs"))))
@settings(deadline=None, max_examples=100)
def test_ordinary_text_of_any_script_is_unchanged(text):
    assert visible(text) == text


def test_named_controls():
    assert visible("a\0b\x1bc") == "a⟨U+0000⟩b⟨U+001B⟩c"
    assert visible("\u202eabc\u2066") == "⟨U+202E⟩abc⟨U+2066⟩"
    assert visible("a\r\nb\tc") == "a⟨U+000D⟩\nb\tc"
    assert visible("\ud800") == "⟨U+D800⟩"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0376, "+3.8"), (-0.004, "−0.4"), (0.0004, "0.0"), (-0.0004, "0.0"), (0.0, "0.0"), (1, "+100.0")],
)
def test_points_carry_their_sign(share, text):
    assert points(share) == text


def test_other_numbers():
    assert percent(0.4237) == "42.4 %"
    assert interval(-0.012, 0.091, signed=True) == "[−1.2, +9.1]"
    assert interval(0.294, 0.558, signed=False) == "[29.4, 55.8]"
    assert [p_value(p) for p in (0.0344, 0.00009, 0.0004, 0.9999, 1.0, 0.05)] == [
        "p = .034", "p < .0001", "p = .0004", "p = 1", "p = 1", "p = .050",
    ]  # fmt: skip
    assert (count(1, "item"), count(2224, "item")) == ("1 item", "2,224 items")
