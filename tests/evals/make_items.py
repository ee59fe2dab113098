"""Multiple-choice items made of nothing, for tests."""

import json
import random
from pathlib import Path

from kat.data.choices import ChoiceItem, parse_choice_item

ANIMALS = ("otter", "heron", "beetle", "salmon", "badger", "falcon", "newt", "moth", "lynx", "crane")
PLACES = ("river", "meadow", "forest", "marsh", "cliff", "orchard", "harbour", "heath", "valley", "dune")
VERBS = ("sleep", "feed", "nest", "hide", "hunt", "winter")
SUBJECTS = ("natural science", "language science", "social science")


def rows(n: int, seed: int = 0, *, lectures: int = 0, prefix: str = "q") -> list[dict]:
    """`n` different questions; `lectures` > 0 gives that many lectures to share between them."""
    draw = random.Random(seed)
    made: list[dict] = []
    seen: set[str] = set()
    while len(made) < n:
        k = draw.choice((2, 2, 3, 4))
        home = f"{draw.choice(PLACES)} {draw.randrange(400)}"
        question = f"Where does the {draw.choice(ANIMALS)} of {home} {draw.choice(VERBS)}?"
        if question in seen:
            continue
        seen.add(question)
        choices = [f"in the {place}" for place in draw.sample(PLACES, k)]
        row = {
            "id": f"{prefix}{len(made)}",
            "question": question,
            "choices": choices,
            "answer": draw.randrange(k),
            "subject": draw.choice(SUBJECTS),
            "grade": f"grade{draw.randrange(2, 6)}",
        }
        if lectures:
            row["lecture"] = f"Lecture {draw.randrange(lectures)}"
        made.append(row)
    return made


def items(n: int, seed: int = 0, *, lectures: int = 0, prefix: str = "q") -> list[ChoiceItem]:
    """The same as items."""
    return [parse_choice_item(row) for row in rows(n, seed, lectures=lectures, prefix=prefix)]


def write(path: Path, n: int, seed: int = 0, *, lectures: int = 0) -> Path:
    """The same as a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(n, seed, lectures=lectures)), encoding="utf-8")
    return path
