"""The same responses under other people's ways to read a letter."""

import numpy as np

from kat.audit.compare import difference
from kat.audit.pair import Pair
from kat.audit.schema import Extractor
from kat.audit.table import Table
from kat.data.letter_strategies import STRATEGIES, Strategy
from kat.runs.schemas import Sample
from kat.stats.compare import compare_paired


def extractors(pair: Pair, data: Table) -> list[Extractor]:
    """Every named strategy on both models' responses; nothing where no letter is read from a generated text."""
    if pair.a.results.extractor_version is None or data.score_type != "binary":
        return []
    found = []
    for strategy in STRATEGIES.values():
        rows = [(_read(strategy, item.a[0]), _read(strategy, item.b[0])) for item in pair.items]
        right = np.array(
            [
                [float(letter == item.a[0].expected) for letter in letters]
                for letters, item in zip(rows, pair.items, strict=True)
            ]
        )
        a, b = right[:, 0], right[:, 1]
        found.append(
            Extractor(
                name=strategy.name,
                source=strategy.source,
                a=float(a.mean()),
                b=float(b.mean()),
                parsed_a=float(np.mean([letter is not None for letter, _ in rows])),
                parsed_b=float(np.mean([letter is not None for _, letter in rows])),
                difference=difference(compare_paired(a, b, "binary", data.clusters, seen=False)),
            )
        )
    return found


def _read(strategy: Strategy, row: Sample) -> str | None:
    """kat's own reading stands in the row; it was read again when the row was loaded."""
    return row.extracted if strategy.name == "kat" else strategy(row.response, row.choices)
