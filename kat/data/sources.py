"""Files as examples: what trainers and suites call."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from kat.data.choices import ChoiceItem, parse_choice_item
from kat.data.examples import Example, parse_example
from kat.data.rows import Rows, load_rows
from kat.errors import UsageError

T = TypeVar("T")


def load_examples(paths: Sequence[Path], max_bad: float = 0.01) -> Rows[Example]:
    """Documents, conversations and choice items from any mixture of files; ids are unique over all of them."""
    return load_rows(paths, parse_example, key=lambda example: example.id, max_bad=max_bad)


def load_choice_items(path: Path, limit: int | None = None, seed: int = 0, max_bad: float = 0.01) -> Rows[ChoiceItem]:
    """Multiple-choice items for an evaluation; `limit` draws a random subset of them (see :func:`subset`)."""
    return subset(load_rows([path], parse_choice_item, key=lambda item: item.id, max_bad=max_bad), limit, seed)


def subset(rows: Rows[T], limit: int | None, seed: int) -> Rows[T]:
    """`limit` random rows in their file order, never simply the first ones, which are rarely a fair sample.

    The same seed draws the same rows, and a smaller limit a subset of a larger one's. A limit of None, or of at least
    all rows, takes them all.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: must be at least 1")
    if limit is None or limit >= len(rows.rows):
        return rows
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows.rows))[:limit])
    return replace(rows, rows=[rows.rows[index] for index in chosen])
