"""Training: the vocabulary of two independent trainers, the same bytes twice, and texts that would break it."""

import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
import rustbpe
from hypothesis import given, settings
from hypothesis import strategies as st
from token_samples import corpus

from kat.errors import UsageError
from kat.tokenizer.bpe import LONGEST_TRAINING_PIECE, Tokenizer, train_tokenizer
from kat.tokenizer.hf_json import byte_characters
from kat.tokenizer.special import SPECIAL_TOKENS, SPLIT_PATTERN


def merges(counts: dict[str, int], limit: int, alphabet: list[bytes] | None = None) -> list[bytes]:
    """BPE from its definition (Sennrich et al. 2016, algorithm 1) over the bytes of each word.

    The definition does not say which of two equally frequent pairs is joined first. Without an alphabet this stops
    there; with one it takes the pair whose tokens are older, bytes being as old as the alphabet says.
    """
    words = [([bytes([byte]) for byte in word.encode()], n) for word, n in counts.items()]
    age = {token: i for i, token in enumerate(alphabet or [])}
    merged: list[bytes] = []
    while len(merged) < limit:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for parts, n in words:
            for pair in pairwise(parts):
                pairs[pair] += n
        most = max(pairs.values(), default=0)
        best = [pair for pair, n in pairs.items() if n == most]
        if not best or (len(best) > 1 and alphabet is None):
            break
        left, right = min(best, key=lambda pair: (age[pair[0]], age[pair[1]])) if alphabet else best[0]
        merged.append(left + right)
        age.setdefault(left + right, len(age))
        for parts, _ in words:
            i = 0
            while i < len(parts) - 1:
                if parts[i] == left and parts[i + 1] == right:
                    parts[i : i + 2] = [left + right]
                i += 1
    return merged


def by_rustbpe(texts: list[str], n_merges: int) -> list[bytes]:
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), 256 + n_merges, pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    return sorted(ranks, key=ranks.__getitem__)[256:]


def by_kat(texts: list[str], n_merges: int) -> list[bytes]:
    ranks = train_tokenizer(texts, 256 + n_merges + len(SPECIAL_TOKENS)).ranks
    return sorted(ranks, key=ranks.__getitem__)[256:]


def test_hundreds_of_merges_equal_those_of_rustbpe_and_of_the_definition() -> None:
    rng = random.Random(8)
    letters = "aeinorstlébcdghm"
    words = {" " + "".join(rng.choices(letters, k=rng.randint(2, 6))): rng.randint(1, 900) for _ in range(1200)}
    texts = [word * n for word, n in words.items()]
    kat, rust = by_kat(texts, 300), by_rustbpe(texts, 300)
    untied = merges(words, 300)
    assert len(untied) > 100
    assert kat[: len(untied)] == rust[: len(untied)] == untied
    # Beyond the first tie the two trainers differ in whose turn it is, and in nothing else.
    in_order = [bytes([byte]) for byte in range(256)]
    printed = sorted(in_order, key=lambda byte: byte_characters()[byte[0]])
    assert rust == merges(words, 300, alphabet=in_order)
    assert kat == merges(words, 300, alphabet=printed)


@given(
    st.dictionaries(st.text("abé", min_size=1, max_size=8).map(lambda word: " " + word), st.integers(1, 60), min_size=1)
)
@settings(deadline=None, max_examples=60)
def test_merges_equal_the_definition_up_to_a_tie(words: dict[str, int]) -> None:
    expected = merges(words, limit=40)
    texts = [word * n for word, n in words.items()]
    assert by_kat(texts, len(expected)) == expected
    assert by_rustbpe(texts, len(expected)) == expected


def test_the_same_texts_give_the_same_bytes_in_another_process(tok: Tokenizer) -> None:
    code = (
        "from token_samples import corpus\n"
        "from kat.tokenizer.bpe import train_tokenizer\n"
        "print(train_tokenizer(corpus(1), 700).hash)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "5", "RAYON_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == tok.hash
    assert train_tokenizer(corpus(1), 700)._json == tok._json
    assert train_tokenizer(corpus(2), 700).hash != tok.hash


def test_ids_follow_training_order(tok: Tokenizer) -> None:
    """Byte b has id b; a merged token comes after both of its halves (so its merge can be reached)."""
    tokens = list(tok.ranks)
    assert tokens[:256] == [bytes([byte]) for byte in range(256)]
    for token, rank in list(tok.ranks.items())[256:]:
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        assert any(max(tok.ranks.get(left, rank), tok.ranks.get(right, rank)) < rank for left, right in halves)


def test_special_tokens_in_the_text_take_no_part() -> None:
    texts = ["".join(SPECIAL_TOKENS) * 50]
    tok = train_tokenizer(texts, 290)
    assert not any(token.encode() in tok.ranks for token in SPECIAL_TOKENS)
    assert set(tok.encode(texts[0])).isdisjoint(tok.special.values())
    assert list(tok.special.values()) == list(range(281, 290))


def test_a_vocabulary_out_of_reach_says_what_can_be_reached() -> None:
    with pytest.raises(UsageError, match="256 bytes and 9 special tokens need 265"):
        train_tokenizer(["some text"], 264)
    with pytest.raises(UsageError, match="at most 268"):
        train_tokenizer(["abcd"], 300)
    assert train_tokenizer(["abcd"], 268).encode("abcd") == [258]
    assert train_tokenizer([], 265).vocab_size == 265
    with pytest.raises(UsageError, match="at most 265"):
        train_tokenizer([], 266)


def test_one_string_is_not_taken_for_many_texts() -> None:
    with pytest.raises(TypeError, match="not one string"):
        train_tokenizer("some text", 265)


def test_surrogates_train_as_their_replacement() -> None:
    broken, clean = ["a\ud800b " * 9, "\ud83d\ude00 " * 9], ["a\ufffdb " * 9, "😀 " * 9]
    assert train_tokenizer(broken, 272).hash == train_tokenizer(clean, 272).hash


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "ab" * 300_000])
def test_a_megabyte_without_a_break_trains(text: str) -> None:
    """The trainer's time grows with the square of a piece; a piece is counted in parts of 512 characters."""
    tok = train_tokenizer([text], 272)
    assert tok.decode(tok.encode(text[:5000])) == text[:5000]
    assert 64 < tok.token_bytes().max() <= LONGEST_TRAINING_PIECE


def test_a_piece_of_ordinary_length_is_counted_whole() -> None:
    word = "x" * LONGEST_TRAINING_PIECE
    assert word.encode() in train_tokenizer([word], 256 + 9 + 9).ranks
