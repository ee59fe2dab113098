"""What a rule without a model scores on the demo's reading items: take the option that the hint mentions.

    python benchmarks/hint_rule.py

Where a hint mentions several options (a crowded one mentions all) the rule guesses among them; its score is exact.
"""

from collections import defaultdict

from kat.data.choices import parse_choice_item
from kat.data.microworld import build


def scores(seed: int = 0) -> dict[str, list[float]]:
    """Chance of being right, item by item, for each category of the reading items and for all of them."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in build(seed).test:
        item = parse_choice_item(row)
        slices = dict(item.slices)
        if slices["kind"] != "reading":
            continue
        mentioned = [i for i, choice in enumerate(item.choices) if choice in item.hint] or range(len(item.choices))
        right = (item.answer in mentioned) / len(mentioned)
        found[slices["category"]].append(right)
        found["all"].append(right)
    return found


if __name__ == "__main__":
    for name, values in scores().items():
        print(f"{name}: {sum(values) / len(values):.1%} of {len(values)}")
