"""Encoding: equal to the `tokenizers` library on any text, exact round trips, special tokens never out of text."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from token_samples import corpus, library, texts

from kat.errors import UsageError
from kat.tokenizer import bpe
from kat.tokenizer.bpe import LONG_RUN, Tokenizer
from kat.tokenizer.special import SPECIAL_TOKENS, SPLIT_PATTERN

BYTES = {bytes([byte]): byte for byte in range(256)}


@given(texts())
@settings(deadline=None, max_examples=300)
def test_ids_are_those_of_the_tokenizers_library(tok: Tokenizer, twin: tokenizers.Tokenizer, text: str) -> None:
    assert tok.encode(text) == twin.encode(text).ids


@given(texts())
@settings(deadline=None, max_examples=200)
def test_round_trip(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.decode_bytes(ids) == text.encode()
    assert tok.token_bytes()[ids].sum() == len(text.encode())


@given(st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), texts(2)), max_size=8).map("".join))
@settings(deadline=None, max_examples=100)
def test_special_tokens_in_text_stay_text(tok: Tokenizer, text: str) -> None:
    assert set(tok.encode(text)).isdisjoint(tok.special.values())
    assert set(tok.encode_batch([text], num_threads=2)[0]).isdisjoint(tok.special.values())


def random_ranks(rng: random.Random, letters: str) -> dict[bytes, int]:
    """A rank table whose tokens are made of one another in several ways, ranked as they came or in any order."""
    parts = [letter.encode() for letter in letters]
    merged: list[bytes] = []
    for _ in range(rng.randint(1, 30)):
        token = rng.choice(parts) + rng.choice(parts)
        if token not in merged:
            merged.append(token)
            parts.append(token)
    if rng.random() < 0.5:
        rng.shuffle(merged)
    return BYTES | {token: 256 + i for i, token in enumerate(merged)}


@given(st.integers(0, 2**32), st.sampled_from(["a", "ab", "abc", "abcd"]))
@settings(deadline=None, max_examples=60)
def test_any_rank_table_merges_as_in_the_tokenizers_library(seed: int, letters: str) -> None:
    rng = random.Random(seed)
    tok = Tokenizer.from_ranks(random_ranks(rng, letters))
    with tempfile.TemporaryDirectory() as name:
        tok.save(Path(name))
        twin = library(Path(name))
    # The last is long enough for tiktoken's other algorithm, the one for long pieces.
    for length in [*range(2, 15), *range(2, 15), 40, 40, 1500]:
        word = "".join(rng.choices(letters, k=length))
        assert tok.encode(word) == twin.encode(word).ids


def test_a_token_is_reached_whichever_way_its_halves_came_about() -> None:
    """abc is ab and c in one table, a and bc in the other: the library must know both pairs."""
    for first, second in ((b"ab", b"bc"), (b"bc", b"ab")):
        tok = Tokenizer.from_ranks(BYTES | {first: 256, second: 257, b"abc": 258})
        assert tok.encode("abcx") == [258, ord("x")]
        with tempfile.TemporaryDirectory() as name:
            tok.save(Path(name))
            assert library(Path(name)).encode("abcx").ids == [258, ord("x")]


@pytest.mark.parametrize("pattern", [r"\p{L}", r"\p{N}", r"\s", r"(?i:[sdmtlver])"])
def test_both_regular_expression_engines_know_the_same_characters(pattern: str) -> None:
    """Every code point of the planes in use: each engine has its own copy of the Unicode tables."""
    planes = [*range(0x40000), *range(0xE0000, 0xE1000)]
    text = "".join(chr(i) for i in planes if not 0xD800 <= i <= 0xDFFF)
    engine = tiktoken.Encoding("", pat_str=f"(?:{pattern})+", mergeable_ranks=BYTES, special_tokens={})
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(f"(?:{pattern})+"), behavior="removed", invert=True)
    found = "".join(piece for piece, _ in split.pre_tokenize_str(text))
    assert bytes(engine.encode_ordinary(text)).decode() == found
    assert 8 <= len(found) < len(text)


@pytest.mark.slow
def test_every_code_point_between_neighbours(tmp_path: Path) -> None:
    """Every code point beside a letter, a digit, a blank, a line end, punctuation, and itself.

    The vocabulary has all pairs of bytes in a random order: a text that is cut elsewhere has other ids.
    """
    pairs = [bytes([left, right]) for left in range(256) for right in range(256)]
    random.Random(1).shuffle(pairs)
    tok = Tokenizer.from_ranks(BYTES | {pair: 256 + i for i, pair in enumerate(pairs)})
    tok.save(tmp_path)
    twin = library(tmp_path)
    for start in range(0, 0x110000, 256):
        block = [chr(i) for i in range(start, start + 256) if not 0xD800 <= i <= 0xDFFF]
        text = "".join(f"the{c}the {c}1{c}2 {c} '{c}!{c}\n{c}  {c}{c}'s" for c in block)
        ids = tok.encode(text)
        assert ids == twin.encode_batch_fast([text])[0].ids, hex(start)
        assert tok.decode(ids) == text, hex(start)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        "the water " + " " * 1_010_000 + "flows",
        "\u3000" * (LONG_RUN + 1),
        " " * (LONG_RUN + 5) + "\n" + "\t" * (LONG_RUN + 5) + "\r\n" + " " * LONG_RUN,
    ],
    ids=["letters", "blanks in a text", "wide blanks", "blanks and line ends"],
)
def test_a_long_run_encodes_as_in_the_tokenizers_library(tok: Tokenizer, twin: tokenizers.Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert ids == twin.encode(text).ids
    assert tok.encode_batch([text, "x"], num_threads=2) == [ids, tok.encode("x")]


@given(
    st.lists(st.one_of(st.sampled_from([" ", "   ", "\t\t\t", "\n", "\r", "\u3000" * 4, "\x1c", "a", "!"]), texts(3)))
)
@settings(deadline=None, max_examples=300)
def test_cutting_out_long_blanks_changes_no_id(tok: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    expected = tok.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "LONG_RUN", 2)
        patch.setattr(bpe, "_LONG_BLANKS", bpe._blank_runs(2))
        assert tok.encode(text) == expected


def test_surrogates_are_replaced_not_fatal(tok: Tokenizer) -> None:
    assert tok.encode("a\ud800b\udfff") == tok.encode("a\ufffdb\ufffd")
    assert tok.encode("\ud83d\ude00") == tok.encode("😀")
    assert tok.encode_batch(["\udc00"], num_threads=2) == [tok.encode("\ufffd")]


@given(st.lists(texts(4), max_size=5), st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_a_batch_is_each_text(tok: Tokenizer, batch: list[str], num_threads: int) -> None:
    assert tok.encode_batch(batch, num_threads) == [tok.encode(text) for text in batch]


def test_layout_of_the_ids(tok: Tokenizer) -> None:
    assert tok.vocab_size == 700
    names = "bos user_start user_end assistant_start assistant_end python_start python_end output_start output_end"
    assert list(tok.special) == list(SPECIAL_TOKENS) == [f"<|{name}|>" for name in names.split()]
    assert list(tok.special.values()) == list(range(691, 700))
    assert (tok.bos_id, tok.eos_id, tok.pad_id) == (691, 695, 699)
    assert tok.decode([tok.bos_id, tok.eos_id, tok.pad_id]) == "<|bos|><|assistant_end|><|output_end|>"
    assert tok.token_bytes().dtype == np.int32
    assert tok.token_bytes()[691:].tolist() == [0] * 9
    assert [tok.decode_bytes([i]) for i in range(256)] == list(BYTES)


def test_encoding_joins_what_training_joined(tok: Tokenizer) -> None:
    """A tokenizer that never merged would pass every equality above."""
    text = "".join(corpus(2, 5))
    assert len(tok.encode(text)) < 0.5 * len(text.encode())


@pytest.mark.parametrize("wrong", [700, -1, 2**40])
def test_decoding_a_foreign_id_names_it(tok: Tokenizer, wrong: int) -> None:
    with pytest.raises(UsageError, match=f"token id {wrong} is outside the tokenizer's 700 ids"):
        tok.decode([3, wrong])


def test_decoding_half_a_character_replaces_it(tok: Tokenizer) -> None:
    assert tok.decode([*tok.encode("a"), 0xE2, 0x82]) == "a\ufffd"


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({t: i for t, i in BYTES.items() if t != b"q"} | {b"ab": 113}, "lacks the single byte 0x71"),
        (BYTES | {b"ab": 257}, "257 tokens but none with id 256"),
        (BYTES | {b"ab": 255}, "257 tokens but none with id 256"),
        (BYTES | {b"": 256}, "an empty token"),
        (BYTES | {b"<|user_end|>": 256}, r"<\|user_end\|> as an ordinary token"),
    ],
)
def test_impossible_ranks_are_refused(ranks: dict[bytes, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tokenizer.from_ranks(ranks)


def test_ranks_in_any_order_make_the_same_tokenizer(tok: Tokenizer) -> None:
    other = Tokenizer.from_ranks(dict(reversed(tok.ranks.items())))
    assert other.hash == tok.hash
    assert other.token_bytes().tolist() == tok.token_bytes().tolist()
    assert Tokenizer.from_ranks(BYTES).hash != tok.hash


def test_the_split_pattern_is_nanochats() -> None:
    """From nanochat/tokenizer.py at dfc88334 (October 2025)."""
    assert SPLIT_PATTERN == (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"""
        r"""|\s*[\r\n]|\s+(?!\S)|\s+"""
    )
