"""Practice in binding letters to options, made from the options of multiple-choice rows.

A drill shows an item's options in random order and asks which letter one of them has. It needs no knowledge and teaches
none: only that a letter stands for the text behind it, which a small model does not learn from questions that it cannot
answer yet.
"""

from collections.abc import Sequence

import numpy as np

from kat.data.choices import ChoiceItem
from kat.errors import UsageError

QUESTIONS = ("Which option says {text}?", "Which letter stands for {text}?", "Find the option with {text}.")


def letter_drills(items: Sequence[ChoiceItem], n: int, seed: int, longest: int = 60) -> list[ChoiceItem]:
    """`n` drills from items whose options differ and have at most `longest` characters; same seed, same drills."""
    usable = [item for item in items if max(map(len, item.choices)) <= longest and len(set(item.choices)) > 1]
    if not usable:
        raise UsageError(f"no item has options of at most {longest} characters: nothing to make drills from")
    rng = np.random.default_rng(seed)
    drills = []
    for k in range(n):
        item = usable[rng.integers(len(usable))]
        choices = [item.choices[i] for i in rng.permutation(len(item.choices))]
        answer = int(rng.integers(len(choices)))
        question = QUESTIONS[rng.integers(len(QUESTIONS))].format(text=choices[answer])
        drills.append(ChoiceItem(f"drill-{k}", question, tuple(choices), answer, slices=(("kind", "letters"),)))
    return drills
