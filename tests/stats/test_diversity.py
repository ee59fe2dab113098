"""Diversity against golden values, brute force, and the properties that a measure of difference must have."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.errors import EvidenceError, UsageError
from kat.stats.diversity import (
    DIRECTION,
    compression_ratio,
    distinct,
    duplicate_rate,
    self_bleu,
    self_repetition,
    token_gini,
    token_metrics,
    vendi_of_kernel,
    vendi_score,
)
from kat.stats.windows import common_window, first_tokens, tokens
from kat.stats.wording import em_dash_rate, is_refusal, set_phrase_rate

words = st.lists(st.sampled_from("abcde"), max_size=9)
sets = st.lists(words, min_size=2, max_size=6)
A = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "lay", "by", "the", "door"]
B = ["the", "cat", "sat", "on", "a", "chair", "and", "the", "dog", "ran", "to", "the", "door"]
C = ["a", "bird", "sang", "in", "the", "tree", "while", "the", "rain", "fell"]
D = ["the"] * 4


def normal_rows(n, d, seed):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# --- Vendi


def test_vendi_of_orthonormal_and_of_identical_rows():
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.tile([[0.6, 0.8]], (9, 1))) == pytest.approx(1)


def test_vendi_golden_values():
    # Three clusters of two (vendi-score 0.0.3's README, k(a, b) = exp(−|a − b|)), which cuts the digits: 2.9999.
    a = np.array([0, 0, 10, 10, 20, 20])
    assert 2.9999 < vendi_of_kernel(np.exp(-np.abs(a[:, None] - a))) < 3
    # Two texts of similarity s: eigenvalues (1 ± s) / 2.
    p = np.array([0.75, 0.25])
    assert vendi_of_kernel(np.array([[1, 0.5], [0.5, 1]])) == pytest.approx(np.prod(p**-p))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_vendi_properties(n, d, seed):
    x = normal_rows(n, d, seed)
    found, rng = vendi_score(x), np.random.default_rng(seed)
    assert 1 - 1e-9 <= found <= min(n, d) + 1e-9
    assert vendi_score(np.vstack([x, x, x])) == pytest.approx(found)  # duplicating the whole set
    assert vendi_score(x[rng.permutation(n)]) == pytest.approx(found)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    assert vendi_score(x @ turn) == pytest.approx(found)
    assert vendi_of_kernel(x @ x.T) == pytest.approx(found)  # by the Gram matrix of either side


def test_vendi_refuses_what_is_no_embedding():
    for bad in (np.full((2, 3), np.nan), np.ones((2, 3)), np.zeros((0, 3)), np.ones(3)):
        with pytest.raises(EvidenceError):
            vendi_score(bad)
    with pytest.raises(EvidenceError):
        vendi_of_kernel(np.array([[1.0, 0.5], [0.2, 1.0]]))


# --- self-BLEU


def test_self_bleu_golden_values():
    # nltk 3.10.4: mean of sentence_bleu(all others, text, smoothing_function=SmoothingFunction().method1)
    assert self_bleu([A, B, C]) == pytest.approx(0.2174382610863728, abs=1e-14)
    assert self_bleu([A, B, C, D]) == pytest.approx(0.17149670226987615, abs=1e-14)  # clipping: "the" ×4
    assert self_bleu([A, A, B]) == pytest.approx(0.7705696884090023, abs=1e-14)
    assert self_bleu([A[:5], B, C]) == pytest.approx(0.1649077285846857, abs=1e-14)  # brevity


@given(sets)
@settings(max_examples=100, deadline=None)
def test_self_bleu_is_bleu_against_all_others_one_by_one(texts):
    def bleu(text, others):
        total = 0.0
        for n in range(1, 5):
            grams = Counter(zip(*(text[i:] for i in range(n)), strict=False))
            seen = [Counter(zip(*(o[i:] for i in range(n)), strict=False)) for o in others]
            matched = sum(min(c, max(other[g] for other in seen)) for g, c in grams.items())
            if n == 1 and not matched:
                return 0.0
            total += math.log((matched or 0.1) / max(1, grams.total())) / 4
        nearest = min((len(o) for o in others), key=lambda length: (abs(length - len(text)), length))
        return math.exp(total + min(0.0, 1 - nearest / len(text)))

    expected = np.mean([bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)])
    assert self_bleu(texts) == pytest.approx(expected, abs=1e-12)


def test_self_bleu_ends():
    assert self_bleu([A, A]) == pytest.approx(1)
    assert self_bleu([A, ["x"] * 13]) == 0
    with pytest.raises(EvidenceError, match="at least two"):
        self_bleu([A])


# --- the others


def test_gini_both_ends_and_a_hand_computed_middle():
    assert token_gini([list("abcdefgh")]) == pytest.approx(0)  # even
    assert token_gini([["a"] * 8]) == pytest.approx(1)  # collapsed
    # a a b c over four places 0 1 1 2: mean absolute difference (2·(1+1+2+0+1+1))/16 = 12/16, over 2·mean = 2, × 4/3
    assert token_gini([list("aabc")]) == pytest.approx(12 / 16 / 2 * 4 / 3)
    assert token_gini([["a"]]) == 0 and token_gini([]) == 0


def test_distinct_duplicates_and_repetition_by_hand():
    assert distinct([list("abab"), list("ab")], 2) == 2 / 4  # ab ba ab | ab
    assert distinct([["a"]], 2) == 0
    assert duplicate_rate(["x", "x", "y", "x"]) == 0.5
    # abcd stands twice elsewhere for the first text, once (abcd in the first) and once in the third for the second …
    texts = [list("abcd"), list("abcdx"), list("yabcd"), list("mnop")]
    assert self_repetition(texts, 4) == pytest.approx((3 * math.log(3) + 0) / 4)


def test_repeats_beyond_zlibs_window_are_seen():
    rng = np.random.default_rng(0)
    page = "".join(chr(97 + i) for i in rng.integers(0, 26, 60_000))
    assert compression_ratio([page, page]) > 1.9 * compression_ratio([page])
    assert compression_ratio([]) == 1


def test_em_dashes_and_set_phrases():
    assert em_dash_rate(["one — two three", "four"]) == pytest.approx(1000 / 5)
    assert em_dash_rate([""]) == 0
    assert set_phrase_rate(["I hope   THIS helps!", "It’s important to note that", "plain", ""]) == 0.5


def test_refusals_are_told_by_how_they_begin():
    assert all(map(is_refusal, ["I’m sorry, but no.", "I cannot", "  As an AI, I", "**Sorry, ** no"]))
    assert not any(map(is_refusal, ["", "I can help. I'm sorry for the delay.", "The canary, as an aim", "I cannoned"]))


def test_tokens_are_words_marks_and_single_characters_of_chinese():
    assert tokens("Don't stop, 中文!") == ["Don", "'", "t", "stop", ",", "中", "文", "!"]


@given(st.text(max_size=60), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_first_tokens_is_a_prefix_with_exactly_the_first_tokens(text, n):
    cut = first_tokens(text, n)
    assert text.startswith(cut) and tokens(cut) == tokens(text)[:n]


@given(st.lists(st.text("abc ", max_size=12), min_size=3, max_size=6), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_no_order_of_the_texts_matters(texts, seed):
    texts = [*texts, "a b c", "c b a"]
    turned = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    one, other = token_metrics(texts, 2), token_metrics(turned, 2)
    one.pop("compression_ratio"), other.pop("compression_ratio")  # a compressor reads from left to right
    assert one == pytest.approx(other)


def test_a_collapsed_set_is_worse_by_every_metric_in_its_declared_direction():
    rng = np.random.default_rng(0)
    lively = [" ".join(f"w{i}" for i in rng.choice(400, 64)) for _ in range(30)]
    dull = [" ".join(["hope", "—", *(f"w{i}" for i in rng.choice(6, 62))]) for _ in range(15)] * 2
    dull = [f"in conclusion {text}" for text in dull]
    one, other = token_metrics(lively, 64), token_metrics(dull, 64)
    assert one.keys() < DIRECTION.keys()
    for name in one:
        assert (one[name] > other[name]) == (DIRECTION[name] == "better"), name


def test_the_window_is_common_and_lowered_to_the_declared_quantile_of_the_shortest_arm():
    long, short = [100] * 40, [70] * 35 + [30] * 4 + [5]
    assert common_window([long, long]).size == 64
    found = common_window([long, short], 64, 0.05)
    assert (found.size, found.n_shorter, found.lowered) == (30, (0, 1), True)
    whole = common_window([long, short], 64, 0.2)
    assert (whole.size, whole.n_shorter, whole.lowered) == (64, (0, 5), False)
    assert common_window([[0, 0]], 64).size == 1
    with pytest.raises(EvidenceError):
        common_window([[]])
    with pytest.raises(UsageError):
        common_window([long], 0)


def test_short_texts_are_left_out_of_the_window_and_too_few_are_an_error():
    texts = ["a b c d", "a b c d e f", "a", "b"]
    assert token_metrics(texts, 4)["distinct_2"] == 3 / 6
    with pytest.raises(EvidenceError, match="1 of 4 texts"):
        token_metrics(texts, 5)


def test_short_texts_count_as_repetitions_and_nowhere_else():
    long = ["a b c d e f", "a b c d e g"]
    found, alone = token_metrics([*long, "no", "no", "no"], 5), token_metrics(long, 5)
    assert found["duplicate_rate"] == pytest.approx(2 / 5) and alone["duplicate_rate"] == 0
    assert {k: v for k, v in found.items() if k != "duplicate_rate"} == {
        k: v for k, v in alone.items() if k != "duplicate_rate"
    }
