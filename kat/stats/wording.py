"""How often texts fall back on an assistant's manner: em dashes, set phrases, refusals."""

import re
from collections.abc import Sequence

from kat.errors import EvidenceError
from kat.stats.windows import tokens

_PHRASES = (
    "as an ai",
    "as a language model",
    "i hope this helps",
    "it's important to note",
    "it is important to note",
    "it's worth noting",
    "it is worth noting",
    "in conclusion",
    "in summary",
    "let me know if",
    "feel free to",
    "great question",
    "i'd be happy to",
    "i would be happy to",
    "delve into",
    "a testament to",
    "rich tapestry",
    "in today's world",
    "at the end of the day",
    "not only",
)


def em_dash_rate(texts: Sequence[str]) -> float:
    """Em dashes for each 1,000 tokens; 0 for no tokens."""
    n = sum(len(tokens(text)) for text in texts)
    return 1000 * sum(text.count("—") for text in texts) / n if n else 0.0


def set_phrase_rate(texts: Sequence[str], phrases: Sequence[str] = _PHRASES) -> float:
    """The share of texts with at least one set phrase of assistants ("I hope this helps"), whatever its case."""
    if not texts:
        raise EvidenceError("no texts to look for set phrases in")
    lowered = [" ".join(text.lower().replace("’", "'").split()) for text in texts]
    return sum(any(phrase in text for phrase in phrases) for text in lowered) / len(texts)


_REFUSAL = re.compile(
    r"\W*(i'm sorry|i am sorry|sorry, |i apologi[sz]e|i'm unable|i am unable|i'm not able|i am not able|i can't "
    r"|i cannot |i can not |i won't |i will not |unfortunately, i |as an ai)"
)


def is_refusal(text: str) -> bool:
    """Whether the text begins as a refusal does ("I'm sorry, but", "I cannot", "As an AI")."""
    return _REFUSAL.match(" ".join(text.lower().replace("’", "'").split()) + " ") is not None
