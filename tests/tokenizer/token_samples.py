"""Awkward texts to encode, and made-up prose to train on."""

import random
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from hypothesis import strategies as st

from kat.tokenizer.special import SPECIAL_TOKENS

FRAGMENTS = (
    *("the", " water", " flows", "it's", "WE'LL", "'ſ", "don’t", "naïve", " Ünïcode", "東京都", "नमस्ते", "שלום", "ΑΒΓ"),
    *(
        "😀",
        "👩‍👩‍👧",
        "🇳🇴",
        "e\u0301",
        "\u0301",
        "\u200d",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x07",
        "\x1c",
        "\x1f",
        "\x7f",
        "\x85",
    ),
    *(" ", "  ", "     ", "\t", "\u3000", "\u2028", "\xa0", "\n", "\r\n", "\r", "\n\n", " \n ", "\x0b", "\x0c"),
    *("1", "12", "345", "٣", "½", "Ⅷ", "3.14", "²", "!", "?!", "...", " (", ")\n", "<|", "|>", "_", "'", "''", "\\n"),
    *SPECIAL_TOKENS,
)


def texts(max_size: int = 12) -> st.SearchStrategy[str]:
    """Any Unicode text: awkward fragments and arbitrary characters (no surrogates), in any mixture."""
    any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    spaces = st.integers(1, 40).map(lambda n: " " * n)
    return st.lists(st.one_of(st.sampled_from(FRAGMENTS), any_text, spaces), max_size=max_size).map("".join)


def corpus(seed: int, n_texts: int = 60) -> Iterator[str]:
    """Made-up prose with names, numbers, blank runs and a few foreign words, in proportions that merges can learn."""
    rng = random.Random(seed)
    syllables = ["ka", "to", "mi", "ren", "sol", "ta", "er", "in", "qu", "est", "ing", "th", "é", "ßa", "漢字", "да"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(500)]
    joints = [" ", " ", " ", " ", ", ", ". ", "'s ", "\n", "\n    ", "  ", " 17 ", " 2026", "\r\n", "! ", " 😀 "]
    for _ in range(n_texts):
        parts = (word + rng.choice(joints) for word in rng.choices(words, k=80))
        yield "".join(parts) + rng.choice(SPECIAL_TOKENS)


def library(folder: Path) -> tokenizers.Tokenizer:
    """tokenizer.json in the `tokenizers` library, told to keep special tokens in a text as text."""
    twin = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    twin.encode_special_tokens = True
    return twin
