"""How different a set of texts is, from its tokens, its texts or their embeddings.

Length moves every one of these as much as real effects do, so they compare only sets of the same number of texts cut to
the same number of tokens (:mod:`kat.stats.windows`). `DIRECTION` says what a higher value means. Diversity alone means
nothing: gibberish maximises it.
"""

import lzma
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from kat.errors import EvidenceError
from kat.stats.windows import first_tokens, tokens
from kat.stats.wording import em_dash_rate, set_phrase_rate

Tokens = Sequence[str]

DIRECTION: dict[str, Literal["better", "worse"]] = {
    "vendi": "better",
    "vendi_across": "better",
    "distinct_2": "better",
    "compression_ratio": "worse",
    "self_bleu_4": "worse",
    "duplicate_rate": "worse",
    "self_repetition_4": "worse",
    "token_gini": "worse",
    "em_dash_rate": "worse",
    "set_phrase_rate": "worse",
}
"""What a higher value of each metric is, as far as diversity goes."""


def vendi_score(embeddings: np.ndarray) -> float:
    """The effective number of different texts: exp of the entropy of the eigenvalues of X Xᵀ / n (Friedman and Dieng
    2023, arXiv:2210.02410), for rows X (n, d) that are L2-normalised. Between 1 (all alike) and n (all orthogonal).

    Computed from whichever of X Xᵀ (n, n) and Xᵀ X (d, d) is smaller: their non-zero eigenvalues are the same.
    """
    x = np.asarray(embeddings, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise EvidenceError(f"embeddings of shape {x.shape}: one row for each text is needed")
    norms = np.linalg.norm(x, axis=1)
    if not np.isfinite(x).all() or np.abs(norms - 1).max() > 1e-2:
        raise EvidenceError("embeddings: a row is NaN, infinite or not of length 1")
    x = x / norms[:, None]
    return _effective_number((x.T @ x if x.shape[0] > x.shape[1] else x @ x.T) / len(x))


def vendi_of_kernel(kernel: np.ndarray) -> float:
    """The Vendi score from a similarity matrix (n, n): positive semi-definite, ones on its diagonal."""
    k = np.asarray(kernel, dtype=np.float64)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or not np.allclose(np.diag(k), 1) or not np.allclose(k, k.T):
        raise EvidenceError("a similarity matrix is square, symmetric and 1 on its diagonal")
    return _effective_number(k / len(k))


def _effective_number(gram: np.ndarray) -> float:
    eigenvalues = np.linalg.eigvalsh(gram)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    eigenvalues = eigenvalues / eigenvalues.sum()
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def distinct(texts: Sequence[Tokens], n: int = 2) -> float:
    """Different n-grams over all n-grams of the whole set (Li et al. 2016, arXiv:1510.03055); 0 where there is none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all texts over their bytes under xz; higher is more repetitive (Shaib et al. 2024, arXiv:2403.00553,
    with gzip there, which sees no repeat beyond 32 KiB). 1 for no bytes at all. Only sets of one size compare."""
    data = "\n".join(texts).encode()
    reach = max(4096, min(len(data), 1 << 26))  # a repeat is seen across the whole set
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": reach}]
    return len(data) / len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters)) if data else 1.0


def self_bleu(texts: Sequence[Tokens], n: int = 4) -> float:
    """The mean BLEU of each text against all others (Zhu et al. 2018, arXiv:1802.01886), exact over all pairs.

    The value of nltk's `sentence_bleu` with uniform weights and `SmoothingFunction().method1` (ε = .1 for a precision
    of 0): a text's n-gram counts are clipped by the largest count in any one other text, which needs only the two
    largest counts of each n-gram. The brevity penalty takes the nearest length, the shorter of two.
    """
    if len(texts) < 2:
        raise EvidenceError("self-BLEU compares texts with each other: at least two are needed")
    lengths = np.array([len(text) for text in texts])
    log_precision = np.zeros(len(texts))
    matched_words = np.zeros(len(texts))
    for order in range(1, n + 1):
        matched = _clipped([Counter(_grams(text, order)) for text in texts])
        total = np.maximum(1, lengths - order + 1)
        log_precision += np.log(np.where(matched > 0, matched, 0.1) / total) / n
        matched_words = matched if order == 1 else matched_words
    scores = np.exp(log_precision + _log_brevity(lengths))
    return float(np.where(matched_words > 0, scores, 0.0).mean())


def _clipped(counts: Sequence[Counter[tuple[str, ...]]]) -> np.ndarray:
    """(texts,) for each text the sum over its n-grams of min(its count, the largest count in another text)."""
    first: dict[tuple[str, ...], int] = {}
    second: dict[tuple[str, ...], int] = {}
    for count in counts:
        for gram, c in count.items():
            if c > first.get(gram, 0):
                first[gram], second[gram] = c, first.get(gram, 0)
            elif c > second[gram]:
                second[gram] = c
    # Where a text's own count is the largest, the largest elsewhere is the second (equal to it if two texts share it).
    return np.array(
        [sum(min(c, second[g] if c == first[g] else first[g]) for g, c in count.items()) for count in counts],
        dtype=np.float64,
    )


def _log_brevity(lengths: np.ndarray) -> np.ndarray:
    """(texts,) log of BLEU's brevity penalty of each text against all others: 0, or 1 − reference/own where shorter."""
    order = np.sort(lengths)
    penalties = np.zeros(len(lengths))
    for i, own in enumerate(lengths):
        at = int(np.searchsorted(order, own))  # the first of this length: its neighbours are the nearest others
        if at + 1 < len(order) and order[at + 1] == own:
            continue
        shorter, longer = (order[at - 1] if at else None), (order[at + 1] if at + 1 < len(order) else None)
        if shorter is not None and (longer is None or own - shorter <= longer - own):
            continue
        penalties[i] = 1 - longer / own if own else -math.inf
    return penalties


def duplicate_rate(texts: Sequence[str]) -> float:
    """The share of texts that repeat another one exactly: 1 − different texts / texts."""
    if not texts:
        raise EvidenceError("no texts to count duplicates in")
    return 1 - len(set(texts)) / len(texts)


def self_repetition(texts: Sequence[Tokens], n: int = 4) -> float:
    """The mean over texts of log(1 + how often its n-grams occur in other texts) (Salkar et al. 2022, AACL, §3)."""
    if not texts:
        raise EvidenceError("no texts to count repetitions in")
    counts = [Counter(_grams(text, n)) for text in texts]
    overall: Counter[tuple[str, ...]] = Counter()
    for count in counts:
        overall.update(count)
    return float(np.mean([math.log1p(sum(overall[gram] - c for gram, c in count.items())) for count in counts]))


def token_gini(texts: Sequence[Tokens]) -> float:
    """The mean over texts of the Gini coefficient of a text's token frequencies: 0 where every token is a different
    one, 1 where all are one. Texts of fewer than two tokens have none; 0 where no text has any.

    Over as many places as the text has tokens, empty ones too: over the types present alone, a text that repeats one
    word would be "even". Scaled by N / (N − 1) so that it reaches 1.
    """
    found = [_gini(text) for text in texts if len(text) > 1]
    return float(np.mean(found)) if found else 0.0


def _gini(text: Tokens) -> float:
    counts = np.sort(np.fromiter(Counter(text).values(), dtype=np.float64))
    total = len(text)
    ranks = total - len(counts) + np.arange(1, len(counts) + 1)  # the empty places rank below all others
    return float(((2 * ranks - total - 1) * counts).sum() / (total * (total - 1)))


def token_metrics(texts: Sequence[str], window: int) -> dict[str, float]:
    """Every metric that needs no embedding, of the texts that have `window` tokens, cut to them.

    Of a shorter text nothing but its exact repetition counts. Raises :class:`EvidenceError` with fewer than two texts
    that are long enough.
    """
    whole = [found[:window] for text in texts if len(found := tokens(text)) >= window]
    if len(whole) < 2:
        raise EvidenceError(f"{len(whole)} of {len(texts)} texts have {window} tokens: lower the window")
    cut = [first_tokens(text, window) for text in texts if len(tokens(text)) >= window]
    return {
        "distinct_2": distinct(whole, 2),
        "compression_ratio": compression_ratio(cut),
        "self_bleu_4": self_bleu(whole, 4),
        "duplicate_rate": duplicate_rate(texts),
        "self_repetition_4": self_repetition(whole, 4),
        "token_gini": token_gini(whole),
        "em_dash_rate": em_dash_rate(cut),
        "set_phrase_rate": set_phrase_rate(cut),
    }


def _grams(text: Tokens, n: int) -> list[tuple[str, ...]]:
    return list(zip(*(text[i:] for i in range(n)), strict=False))
