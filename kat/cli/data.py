"""`kat data`: make, look at and check data files."""

from pathlib import Path
from typing import Annotated

import typer


def build() -> typer.Typer:
    """The `data` group."""
    app = typer.Typer(help="Make, convert and check data files.", no_args_is_help=True)
    app.callback()(lambda: None)
    app.command("microworld")(microworld)
    app.command("scienceqa")(scienceqa)
    app.command("contamination")(contamination)
    return app


def microworld(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write the embedded closed world: documents, mid, train, validation and test rows, and the truth."""
    from kat.data.microworld import build as build_world
    from kat.data.microworld import write

    write(build_world(seed), out)
    typer.echo(f"{out}: written")


def scienceqa(
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
    split: Annotated[str, typer.Option(help="train, validation or test")] = "train",
    source: Annotated[str, typer.Option("--from", help="A local .jsonl(.gz) file, or `hub` (needs kat[hf]).")] = "hub",
    text_only: Annotated[bool, typer.Option(help="Leave out questions with an image.")] = True,
) -> None:
    """Write ScienceQA as plain multiple-choice rows."""
    from kat.data.choices import to_row
    from kat.data.scienceqa import load_scienceqa
    from kat.runs.files import canonical_json, write_text

    rows = load_scienceqa(source if source == "hub" else Path(source), split, text_only=text_only)
    write_text(out, "".join(canonical_json(to_row(item)) + "\n" for item in rows.rows))
    typer.echo(f"{out}: {len(rows.rows):,} rows ({rows.report()})")


def contamination(
    train: Annotated[list[Path], typer.Option("--train", help="Training rows of any kind; may be repeated.")],
    against: Annotated[Path, typer.Option("--eval", help="Multiple-choice rows to be evaluated on.")],
) -> None:
    """Count evaluation items that stand in the training data, exactly or nearly."""
    from kat.data.contamination import check
    from kat.data.sources import load_choice_items, load_examples

    typer.echo(check(load_examples(train).rows, load_choice_items(against).rows).text())
