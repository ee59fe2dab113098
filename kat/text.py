"""Text that a model wrote, made safe to show. Model output is hostile until proven otherwise."""

import unicodedata

KEPT = "\n\t"


def printable(text: str) -> str:
    """The text with control characters (escape sequences among them) replaced by visible pictures.

    Bidirectional overrides and isolates become their code point in brackets; newlines and tabs stay.
    """
    return "".join(_shown(c) for c in text)


def _shown(character: str) -> str:
    if character in KEPT:
        return character
    category = unicodedata.category(character)
    if category == "Cc":
        code = ord(character)
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"[U+{code:04X}]"
    if category in ("Cf", "Cs", "Zl", "Zp") and character != "\u200d":  # joiners stay: emoji need them
        return f"[U+{ord(character):04X}]"
    return character
