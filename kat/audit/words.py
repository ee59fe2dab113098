"""Numbers and strangers' text, made fit for a report."""

import re

# Bidirectional controls, soft hyphen and the invisible joiners that hide text; ZWJ and ZWNJ stay, scripts need them.
_HIDDEN = "\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
_CONTROL = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_HIDDEN}\ud800-\udfff]|[\U000e0000-\U000e007f]")


def visible(text: str) -> str:
    """The text with every control character in sight: NUL as ⟨U+0000⟩. Newline and tab stay."""
    return _CONTROL.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)


def percent(share: float, digits: int = 1) -> str:
    """``54.2 %``"""
    return f"{100 * share:.{digits}f} %"


def points(share: float, digits: int = 1) -> str:
    """``+3.1`` or ``−0.4``: a difference in points, always with its sign, 0.0 without one."""
    text = f"{100 * share:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", "−")


def interval(low: float, high: float, *, signed: bool, digits: int = 1) -> str:
    """``[+0.2, +6.0]`` in points or ``[51.2, 57.1]`` in percent, without the unit."""
    if signed:
        return f"[{points(low, digits)}, {points(high, digits)}]"
    return f"[{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def p_value(p: float) -> str:
    """``p = .034`` with two significant digits; ``p < .0001`` below that."""
    if p < 0.0001:
        return "p < .0001"
    if p >= 0.9995:
        return "p = 1"
    digits = 3 if p >= 0.001 else 4
    return f"p = {p:.{digits}f}".replace("0.", ".", 1)


def bare_p(p: float) -> str:
    """``.034`` or ``< .0001``, for a column that is headed p."""
    return p_value(p).removeprefix("p = ").removeprefix("p ")


def count(n: int, what: str, many: str | None = None) -> str:
    """``1 item``, ``2,224 items``."""
    return f"{n:,} {what if n == 1 else many or what + 's'}"


def size_in_points(share: float) -> str:
    """A share as percentage points, without its sign: ``1 point``, ``2.5 points``."""
    size = f"{100 * abs(share):g}"
    return f"{size} point{'' if size == '1' else 's'}"


def short(text: str, length: int = 12) -> str:
    """The first characters of a hash."""
    return text[:length]
