"""Every shipped way to read a letter on the labelled adversarial cases, as a table.

    python benchmarks/letter_extraction.py

A case is a response, the item's options, and the letter that it gives as its answer: or none, because it says nothing,
refuses, contradicts itself, or names a letter that is not offered. *found*: the right letter of those that give one.
*wrong*: another letter than the one given. *invented*: a letter, in any case, where none is given.
"""

import json
from pathlib import Path

from kat.data.letter_strategies import STRATEGIES

CASES = Path(__file__).parent.parent / "tests" / "data" / "letter_cases.json"


def measure() -> list[tuple[str, int, int, int]]:
    """For each strategy its name and how many letters it found, got wrong and invented."""
    table = json.loads(CASES.read_text(encoding="utf-8"))
    rows = []
    for name, read in STRATEGIES.items():
        given = [(read(case["text"], table["options"][case["options"]]), case["expected"]) for case in table["cases"]]
        found = sum(letter == wanted for letter, wanted in given)
        wrong = sum(letter not in (wanted, None) for letter, wanted in given if len(wanted) == 1)
        invented = sum(letter is not None for letter, wanted in given if len(wanted) > 1)
        rows.append((name, found, wrong, invented))
    return rows


def sizes() -> tuple[int, int]:
    """Cases that give a letter, and cases that give none."""
    cases = json.loads(CASES.read_text(encoding="utf-8"))["cases"]
    stated = sum(len(case["expected"]) == 1 for case in cases)
    return stated, len(cases) - stated


if __name__ == "__main__":
    stated, silent = sizes()
    print(f"{stated + silent} cases: {stated} give a letter, {silent} give none.\n")
    print("| strategy | whose | found | wrong | invented |\n| --- | --- | ---: | ---: | ---: |")
    for name, found, wrong, invented in measure():
        print(f"| {name} | {STRATEGIES[name].source} | {found} | {wrong} | {invented} |")
