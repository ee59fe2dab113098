"""`kat eval diversity A B…`: the paired comparison of each evaluation with the first."""

from collections.abc import Sequence
from pathlib import Path

import typer

ONE_RUN = (
    "This speaks of these two models. Whether what differs in their training made the difference is a question about "
    "training seeds (kat run density-study), which one run a side cannot answer."
)


def show_comparisons(folders: Sequence[Path], embedder: str | None, margin: float | None) -> None:
    """Print a table for each folder after the first, paired with the first by prompt."""
    from kat.audit.diversity import compare_diversity, table
    from kat.density.embed import open_embedder

    for folder in folders[1:]:
        found = compare_diversity(folders[0], folder, lambda: open_embedder(embedder or "minilm"), margin)
        typer.echo("")
        for line in table(found):
            typer.echo(line)
        typer.echo(ONE_RUN)
