"""Tokens by one rule for every model, and the window of them that all arms share."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kat.errors import EvidenceError, UsageError

WANTED = 64
QUANTILE = 0.05
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Words, single punctuation marks and single Chinese or Japanese characters, in order, case kept: one rule for
    every model, so that arms with different tokenizers are cut alike."""
    return _TOKEN.findall(text)


def first_tokens(text: str, n: int) -> str:
    """The text up to and with its n-th token, verbatim; the whole text where it has no more."""
    for number, match in enumerate(_TOKEN.finditer(text), 1):
        if number == n:
            return text[: match.end()]
    return text


@dataclass(frozen=True)
class Window:
    """How many tokens of each text count, and how many texts of each arm are shorter and thus left out."""

    size: int
    wanted: int
    n_shorter: tuple[int, ...]

    @property
    def lowered(self) -> bool:
        """Whether the wanted window was too long for these texts."""
        return self.size < self.wanted


def common_window(lengths: Sequence[Sequence[int]], wanted: int = WANTED, quantile: float = QUANTILE) -> Window:
    """One window for all arms; `lengths[arm]` are the token counts of its texts.

    A wanted window that more than the share `quantile` of some arm's texts fall short of is lowered to that arm's
    quantile of lengths, for all arms, and never below 1 token.
    """
    if wanted < 1 or not 0 <= quantile < 1:
        raise UsageError(f"window of {wanted} tokens, quantile {quantile:g}: at least 1 token, and a share below 1")
    if not lengths or any(not len(arm) for arm in lengths):
        raise EvidenceError("no texts to measure the diversity of")
    size = max(1, min(wanted, *(int(np.quantile(arm, quantile, method="lower")) for arm in lengths)))
    return Window(size, wanted, tuple(sum(length < size for length in arm) for arm in lengths))
