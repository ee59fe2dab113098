"""Does the training data hold the evaluation's questions? Exact and near-duplicate matches, as counts and by name.

The text that is compared is normalised: Unicode NFKC, case folded, words only. An item's question includes its hint, so
a data set that has merged the two compares equal to one that has not.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kat.data.choices import ChoiceItem, question_text
from kat.data.examples import Conversation, Document, Example

NEAR = 0.9  # cosine of TF-IDF vectors (word uni- and bigrams) of question and options
CONTAINED = 0.8  # share of a question's word 5-grams that stand in one document
GRAM = 5
MIN_WORDS = 8  # a shorter question stands in documents by chance

CONTENT = "same content"
CHOICES = "same question and choices"
QUESTION = "same question"
NEARLY = "near duplicate"
DOCUMENT = "question in a document"


@dataclass(frozen=True)
class Match:
    """An evaluation item and the training row that is closest to it in the sense of `kind`."""

    eval_id: str
    train_id: str
    kind: str
    similarity: float


@dataclass(frozen=True)
class Report:
    """What of the evaluation stands in the training data.

    `by` counts evaluation items for each kind of match; the kinds overlap (equal content is also an equal question).
    `exact` counts items whose question and set of choices stand in training, in any order and with any answer; `near`
    those that are no exact match but a near duplicate. `similarity` (aligned with the evaluation items) is the largest
    cosine to any training item or conversation, 0 where there is none: split accuracy by it.
    """

    n_train: int
    n_eval: int
    exact: int
    near: int
    by: dict[str, int]
    similarity: tuple[float, ...]
    matches: tuple[Match, ...]

    def lines(self, shown: int = 5) -> list[str]:
        """The counts for people, and the first few matches of the kinds that matter."""
        shares = {kind: f"{count:,} ({count / max(self.n_eval, 1):.1%})" for kind, count in self.by.items()}
        named = [match for match in self.matches if match.kind in (CONTENT, CHOICES, DOCUMENT)][:shown]
        return [
            f"contamination: {self.n_train:,} training rows against {self.n_eval:,} evaluation items",
            *[f"  {kind}: {share}" for kind, share in shares.items()],
            f"  (near: TF-IDF cosine >= {NEAR}; in a document: >= {CONTAINED:.0%} of the question's {GRAM}-word runs)",
            *[f"  e.g. {match.eval_id} ~ {match.train_id} ({match.kind})" for match in named],
        ]


def check(train: Sequence[Example], evaluation: Sequence[ChoiceItem]) -> Report:
    """Look for each evaluation item among the training rows.

    Items are compared with items by content, question with choices, question, and TF-IDF cosine; with the messages of
    conversations by question and cosine; with documents by the share of the question's word 5-grams in one document.
    """
    matches = [*equal_items(train, evaluation), *_equal_messages(train, evaluation)]
    similarity, nearest = _similarities(train, evaluation)
    for item, cosine, index in zip(evaluation, similarity.tolist(), nearest.tolist(), strict=True):
        if cosine >= NEAR:
            matches.append(Match(item.id, train[index].id, NEARLY, cosine))
    matches += _contained([row for row in train if isinstance(row, Document)], evaluation)
    eval_ids = {kind: {m.eval_id for m in matches if m.kind == kind} for kind in _KINDS}
    return Report(
        n_train=len(train),
        n_eval=len(evaluation),
        exact=len(eval_ids[CHOICES]),
        near=len(eval_ids[NEARLY] - eval_ids[CHOICES]),
        by={kind: len(ids) for kind, ids in eval_ids.items()},
        similarity=tuple(similarity.tolist()),
        matches=tuple(matches),
    )


_KINDS = (CONTENT, CHOICES, QUESTION, NEARLY, DOCUMENT)


def normalise(text: str) -> str:
    """The words of a text: NFKC, case folded, one space between them."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _question(item: ChoiceItem) -> str:
    return normalise(f"{item.hint}\n{item.question}")


def _choices(item: ChoiceItem) -> tuple[str, ...]:
    return tuple(sorted(normalise(choice) for choice in item.choices))


def equal_items(train: Sequence[Example], evaluation: Sequence[ChoiceItem]) -> Iterator[Match]:
    by_question: dict[str, list[ChoiceItem]] = defaultdict(list)
    for row in train:
        if isinstance(row, ChoiceItem):
            by_question[_question(row)].append(row)
    for item in evaluation:
        same = by_question.get(_question(item), [])
        candidates = {
            QUESTION: same,
            CHOICES: [row for row in same if _choices(row) == _choices(item)],
            CONTENT: [row for row in same if row.hash == item.hash],
        }
        for kind, rows in candidates.items():
            if rows:
                yield Match(item.id, rows[0].id, kind, 1.0)


def _equal_messages(train: Sequence[Example], evaluation: Sequence[ChoiceItem]) -> Iterator[Match]:
    asked: dict[str, str] = {}
    for row in train:
        if isinstance(row, Conversation):
            for message in row.messages:
                asked.setdefault(normalise(message["content"]), row.id)
    for item in evaluation:
        for kind, text in ((QUESTION, _question(item)), (CHOICES, normalise(question_text(item)))):
            if text in asked:
                yield Match(item.id, asked[text], kind, 1.0)


def _similarities(train: Sequence[Example], evaluation: Sequence[ChoiceItem]) -> tuple[np.ndarray, np.ndarray]:
    """For each evaluation item the largest cosine to a training item or conversation, and that row's index."""
    indices = np.array([index for index, row in enumerate(train) if not isinstance(row, Document)], dtype=np.int64)
    best, nearest = np.zeros(len(evaluation)), np.zeros(len(evaluation), dtype=np.int64)
    if not len(indices) or not len(evaluation):
        return best, nearest
    from sklearn.feature_extraction.text import TfidfVectorizer  # half a second to import

    texts = [_whole_text(train[index]) for index in indices]
    # Fitted on both sides: a word that only the evaluation has must count as a difference.
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", dtype=np.float32).fit_transform(
        texts + [_whole_text(item) for item in evaluation]
    )
    rows, items = vectors[: len(texts)].T.tocsc(), vectors[len(texts) :]
    for start in range(0, len(evaluation), 256):
        cosines = (items[start : start + 256] @ rows).tocsr()
        best[start : start + 256] = cosines.max(axis=1).toarray()[:, 0]
        nearest[start : start + 256] = indices[np.asarray(cosines.argmax(axis=1)).ravel()]
    return np.clip(best, 0, 1), nearest


def _whole_text(row: Example) -> str:
    if isinstance(row, ChoiceItem):
        return "\n".join((_question(row), *_choices(row)))
    assert isinstance(row, Conversation)
    return normalise("\n".join(message["content"] for message in row.messages))


def _contained(documents: Sequence[Document], evaluation: Sequence[ChoiceItem]) -> Iterator[Match]:
    wanted: dict[tuple[str, ...], list[int]] = defaultdict(list)  # which items hold this run of words
    n_grams = np.zeros(len(evaluation))
    for index, item in enumerate(evaluation):
        words = _question(item).split()
        grams = set(_grams(words)) if len(words) >= MIN_WORDS else set()
        n_grams[index] = len(grams)
        for gram in grams:
            wanted[gram].append(index)
    best: dict[int, tuple[float, str]] = {}
    for document in documents:
        found: dict[int, int] = defaultdict(int)
        for gram in wanted.keys() & set(_grams(normalise(document.text).split())):
            for index in wanted[gram]:
                found[index] += 1
        for index, count in found.items():
            share = count / n_grams[index]
            if share >= CONTAINED and share > best.get(index, (0.0, ""))[0]:
                best[index] = (share, document.id)
    for index, (share, name) in sorted(best.items()):
        yield Match(evaluation[index].id, name, DOCUMENT, float(share))


def _grams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[k:] for k in range(GRAM)), strict=False)
