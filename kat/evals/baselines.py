"""What needs no model: the scores that a multiple-choice result must beat before it says anything.

Each baseline returns one expected score in [0, 1] per item (ties are shared evenly), so that it can be given an
interval and be compared with a model, paired, like any other score.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kat.data.choices import ChoiceItem
from kat.errors import UsageError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

BLOCK = 256  # rows of the item × training-question similarity matrix that are dense at a time


@dataclass(frozen=True)
class Baseline:
    """`scores` (n,) are expected scores in [0, 1] in the order of the items."""

    name: str
    description: str
    scores: np.ndarray


def all_baselines(train: Sequence[ChoiceItem], items: Sequence[ChoiceItem]) -> list[Baseline]:
    """Every baseline on `items`; those that learn from training items are left out where there are none."""
    always = [chance(items), constant_letter(items), longest(items)]
    if not train:
        return always
    return [*always, majority_letter(train, items), question_blind(train, items), nearest_copier(train, items)]


def chance(items: Sequence[ChoiceItem]) -> Baseline:
    """A fair guess among the options: 1 / number of options."""
    scores = np.array([1 / len(item.choices) for item in items], dtype=np.float64)
    return Baseline("chance", "a fair guess among the options", scores)


def majority_letter(train: Sequence[ChoiceItem], items: Sequence[ChoiceItem]) -> Baseline:
    """Always the letter that is most often right among the training items."""
    _need_train(train)
    return Baseline(
        "majority letter", "always the letter that is most often right in training", _always(_commonest(train), items)
    )


def constant_letter(items: Sequence[ChoiceItem]) -> Baseline:
    """Always the letter that is most often right among these very items: the best that answering one letter can do.

    It peeks at the key, so it is the stricter bar against letter bias: no model that prefers a letter gets above it.
    """
    best = _commonest(items) if items else [0]
    return Baseline("best constant letter", "one letter throughout, the best one in hindsight", _always(best, items))


def longest(items: Sequence[ChoiceItem]) -> Baseline:
    """The option with the most characters."""
    scores = _shared(items, ([len(choice) for choice in item.choices] for item in items))
    return Baseline("longest choice", "the option with the most characters", scores)


def question_blind(train: Sequence[ChoiceItem], items: Sequence[ChoiceItem]) -> Baseline:
    """The option that was most often right where it stood in training; the question is never read.

    An option's rate is its right share of its training appearances, by its exact text, drawn towards the overall
    share by one pseudo-appearance; an unseen option has the overall share.
    """
    _need_train(train)
    seen = Counter(choice for item in train for choice in item.choices)
    right = Counter(item.choices[item.answer] for item in train)
    overall = len(train) / sum(seen.values())
    rates = ([(right[choice] + overall) / (seen[choice] + 1) for choice in item.choices] for item in items)
    return Baseline("question-blind", "the option most often right in training, question unread", _shared(items, rates))


def nearest_copier(train: Sequence[ChoiceItem], items: Sequence[ChoiceItem], k: int = 5) -> Baseline:
    """The option most like the answers of the k training questions most like this one.

    Questions are compared without hint and options, by TF-IDF cosine; an option's score is the sum over the
    neighbours of (question similarity × TF-IDF cosine of the option's text with the neighbour's right answer).
    Where no word is shared all options tie, which is chance. Both vocabularies come from the training items.
    """
    _need_train(train)
    answers = _vectorizer([choice for item in train for choice in item.choices])
    right = answers.transform([item.choices[item.answer] for item in train])
    votes: list[np.ndarray] = []
    for block in _similarities(train, items):
        near = np.argsort(-np.round(block, 9), axis=1, kind="stable")[:, :k]  # (rows, k); ties: first in training
        for similarity, neighbours in zip(block, near, strict=True):
            options = answers.transform(items[len(votes)].choices)
            votes.append((options @ right[neighbours].T).toarray() @ similarity[neighbours])
    description = f"copies the answers of the {k} most similar training questions"
    return Baseline(f"{k}-nearest copier", description, _shared(items, votes))


def similarity_to_training(train: Sequence[ChoiceItem], items: Sequence[ChoiceItem]) -> np.ndarray:
    """For each item (n,) the largest TF-IDF cosine of its question with a training question: 1 is the same words."""
    _need_train(train)
    return np.concatenate([np.zeros(0), *(block.max(axis=1) for block in _similarities(train, items))])


def _similarities(train: Sequence[ChoiceItem], items: Sequence[ChoiceItem]) -> Iterator[np.ndarray]:
    """TF-IDF cosines of the questions, in blocks of rows: (items of the block, training items)."""
    if not items:
        return
    vectorizer = _vectorizer([item.question for item in train])
    trained = vectorizer.transform([item.question for item in train]).T.tocsc()
    asked = vectorizer.transform([item.question for item in items])
    for start in range(0, len(items), BLOCK):
        yield (asked[start : start + BLOCK] @ trained).toarray()


def _vectorizer(texts: Sequence[str]) -> "TfidfVectorizer":
    """TF-IDF over all words; the added "_" only keeps the vocabulary from being empty."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # here: a quarter of a second that few reports need

    return TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit([*texts, "_"])


def _shared(items: Sequence[ChoiceItem], option_scores: Iterable[Sequence[float] | np.ndarray]) -> np.ndarray:
    """Expected score of choosing an option of the highest score, ties shared evenly: (n,)."""
    scores = []
    for item, values in zip(items, option_scores, strict=True):
        best = np.flatnonzero(np.asarray(values) >= np.max(values) - 1e-9)
        scores.append((item.answer in best) / best.size)
    return np.array(scores, dtype=np.float64)


def _commonest(items: Sequence[ChoiceItem]) -> list[int]:
    """The answer index (or, tied, indices) that is most often right."""
    counts = Counter(item.answer for item in items)
    return sorted(index for index, count in counts.items() if count == max(counts.values()))


def _always(indices: Sequence[int], items: Sequence[ChoiceItem]) -> np.ndarray:
    return np.array([(item.answer in indices) / len(indices) for item in items], dtype=np.float64)


def _need_train(train: Sequence[ChoiceItem]) -> None:
    if not train:
        raise UsageError("this baseline learns from training items, and there are none: give the training split")
