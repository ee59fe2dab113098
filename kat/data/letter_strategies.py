"""Other people's ways to read a letter, as named strategies: a report shows how much of a difference is the extractor.

Each is written from the published description of its harness, with the pattern it uses there. A strategy returns what
its harness would compare with the key: None where it finds nothing, else a letter as written, which may be lower case
or not offered (both never equal a key). Patterns that others wrote may be slow on hostile texts, so a long response is
cut to its first and last 3,000 characters.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kat.data.letters import extract

KEPT = 3_000


@dataclass(frozen=True)
class Strategy:
    """A named reading; `source` says whose it is."""

    name: str
    source: str
    read: Callable[[str, Sequence[str]], str | None]

    def __call__(self, text: str, choices: Sequence[str]) -> str | None:
        """The letter that this strategy finds in `text`, or None."""
        if len(text) > 2 * KEPT:
            text = text[:KEPT] + "\n" + text[-KEPT:]
        return self.read(text, choices)


def kat(text: str, choices: Sequence[str]) -> str | None:
    """kat's own extraction, without its rule and span."""
    return extract(text, choices).letter


# The third can never fire: whatever it matches, the second has matched. None knows which letters are offered.
SEED_PATTERNS = (r"\b([A-F])\.", r"answer is ([A-F])\b", r"correct answer is ([A-F])\b", r"\b([A-F])\b")


def seed(text: str, choices: Sequence[str]) -> str | None:
    """The four patterns of the SciAssist project, in their order, first match."""
    for pattern in SEED_PATTERNS:
        match = re.search(pattern, text)
        if match:
            return match[1]
    return None


def scienceqa_official(text: str, choices: Sequence[str]) -> str | None:
    """ "The answer is X" exactly once. (Where it is not, the official scorer goes on to guess at random.)"""
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else None


def lm_eval_mmlu_pro(text: str, choices: Sequence[str]) -> str | None:
    """The first "answer is (X)"; a later correction is not seen."""
    match = re.search(r"answer is \(?([ABCDEFGHIJ])\)?", text)
    return match[1] if match else None


def lm_eval_bbh(text: str, choices: Sequence[str]) -> str | None:
    """The first letter in round brackets."""
    match = re.search(r"\(([A-Z])\)", text)
    return match[1] if match else None


def lm_eval_multi_choice(text: str, choices: Sequence[str]) -> str | None:
    """The last letter in round brackets, else the last option text, else the last letter after a colon.

    Option texts are compared without case and punctuation, as its GPQA task sets it.
    """
    bracketed = re.findall(r"\(([A-Z])\)", text)
    if bracketed:
        return bracketed[-1]
    plain = _plain(tuple(choices))
    last = _last_of(plain, _without_punctuation(text))
    if last:
        return string.ascii_uppercase[plain.index(last)]
    after_colon = re.findall(rf":\s*([{_offered(choices)}])", text)
    return after_colon[-1] if after_colon else None


def inspect_multiple_choice(text: str, choices: Sequence[str]) -> str | None:
    """The last line "ANSWER: X", else the last "ANSWER: X" anywhere; only a single offered letter is valid."""
    found = re.findall(r"(?im)^ANSWER\s*:\s*([A-Za-z\d ,]+)\s*(?:$|\n|\.)", text)
    found = found or re.findall(r"(?i)ANSWER\s*:\s*([A-Za-z\d ,]+)(?:[^\w]|\n|$|\.)", text)
    letter = found[-1].strip().upper() if found else ""
    return letter if len(letter) == 1 and letter in _offered(choices) else None


def simple_evals_gpqa(text: str, choices: Sequence[str]) -> str | None:
    """The first "Answer: X" of A to D; a lower-case letter stays lower case and so counts as wrong."""
    match = re.search(r"(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?", text)
    return match[1] if match else None


def lighteval_indices(text: str, choices: Sequence[str]) -> str | None:
    """Anchored index extraction: patterns by priority, and within the first that matches the rightmost match."""
    letter = rf"(?:\(?(?P<letter>[{_offered(choices)}])\)?)"
    ended = rf"{letter}(?:\*\*)?(?:[.,: ]|$)"
    priorities = (
        rf"(?i:final answer is):?\s*{letter}\.?\s?I hope",
        rf"(?i:final answer.{{0,100}}?)\s+is:?\s*{letter}",
        rf"(?i:answer):.{{0,50}}?(?:^|\s)(?:\*\*)?{ended}",
        rf"(?i:answer).{{0,50}}?(?:^|\s)(?:\*\*)?{ended}",
        rf"^(?:\*\*)?{ended}",
        rf"\n(?:\*\*)?{ended}",
    )
    for pattern in priorities:
        matches = list(re.finditer(pattern, text))
        if matches:
            return max(matches, key=lambda match: match.end())["letter"]
    return None


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("kat", "kat, this version's extractor", kat),
        Strategy("seed", "SciAssist, extract_choice_letter", seed),
        Strategy("scienceqa-official", "lupantech/ScienceQA, run_gpt3.py", scienceqa_official),
        Strategy("lm-eval-mmlu-pro", "lm-evaluation-harness, mmlu_pro", lm_eval_mmlu_pro),
        Strategy("lm-eval-bbh", "lm-evaluation-harness, bbh", lm_eval_bbh),
        Strategy("lm-eval-multi-choice", "lm-evaluation-harness, multi_choice_regex, last", lm_eval_multi_choice),
        Strategy("inspect-multiple-choice", "inspect_ai, multiple_choice", inspect_multiple_choice),
        Strategy("simple-evals-gpqa", "simple-evals, gpqa", simple_evals_gpqa),
        Strategy("lighteval-indices", "lighteval, IndicesExtractionConfig, anchored", lighteval_indices),
    )
}


def _last_of(words: Sequence[str], text: str) -> str:
    """The last match of "word|word|…" as a pattern would find them, from left to right and without overlap; "" if none.

    Searched without a pattern, as compiling one for every item took longer than all the rest of a report.
    """
    if "" in words:
        found = re.findall("|".join(map(re.escape, words)), text)
        return found[-1] if found else ""
    at = {word: text.find(word) for word in words}
    last, end = "", 0
    while there := [(place, i) for i, word in enumerate(words) if (place := at[word]) >= 0]:
        place, i = min(there)
        last, end = words[i], place + len(words[i])
        at = {word: text.find(word, end) if 0 <= old < end else old for word, old in at.items()}
    return last


def _offered(choices: Sequence[str]) -> str:
    return string.ascii_uppercase[: len(choices)]


NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _without_punctuation(text: str) -> str:
    return text.lower().translate(NO_PUNCTUATION).strip()


@lru_cache(maxsize=8192)
def _plain(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Both models answer the same items, so each item's options come twice."""
    return tuple(map(_without_punctuation, choices))
