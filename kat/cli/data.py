"""`kat data`: make, look at and check data files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kat.data.choices import ChoiceItem


def build() -> typer.Typer:
    """The `data` group."""
    app = typer.Typer(help="Make, convert and check data files.", no_args_is_help=True)
    app.callback()(lambda: None)
    app.command("microworld")(microworld)
    app.command("scienceqa")(scienceqa)
    app.command("drills")(drills)
    app.command("lessons")(lessons)
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
    from kat.data.scienceqa import load_scienceqa

    rows = load_scienceqa(source if source == "hub" else Path(source), split, text_only=text_only)
    _write_items(out, rows.rows)
    typer.echo(f"{out}: {len(rows.rows):,} rows ({rows.report()})")


def drills(
    source: Annotated[Path, typer.Option("--from", help="Multiple-choice rows to take options from.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many drills.")] = 10_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write practice in naming the letter of an option. Use training rows only."""
    from kat.data.drills import letter_drills
    from kat.data.sources import load_choice_items

    rows = load_choice_items(source)
    _write_items(out, letter_drills(rows.rows, n, seed))
    typer.echo(f"{out}: {n:,} drills ({rows.report()})")


def lessons(
    source: Annotated[Path, typer.Option("--from", help="Multiple-choice rows with lectures and solutions.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
) -> None:
    """Write the lectures and solutions of training rows as documents, each distinct text once."""
    from kat.data.sources import load_choice_items
    from kat.runs.files import canonical_json, write_text

    rows = load_choice_items(source)
    texts = dict.fromkeys(text for item in rows.rows for text in (item.lecture, item.solution) if text.strip())
    written = ({"id": f"lesson-{k}", "text": text} for k, text in enumerate(texts))
    write_text(out, "".join(canonical_json(row) + "\n" for row in written))
    typer.echo(f"{out}: {len(texts):,} documents ({rows.report()})")


def contamination(
    train: Annotated[list[Path], typer.Option("--train", help="Training rows of any kind; may be repeated.")],
    against: Annotated[Path, typer.Option("--eval", help="Multiple-choice rows to be evaluated on.")],
) -> None:
    """Count evaluation items that stand in the training data, exactly or nearly."""
    from kat.data.contamination import check
    from kat.data.sources import load_choice_items, load_examples

    known, asked = load_examples(train), load_choice_items(against)
    for name, rows in (("--train", known), ("--eval", asked)):
        if rows.faults:
            typer.echo(f"{name}: {rows.report()}", err=True)
    for line in check(known.rows, asked.rows).lines():
        typer.echo(line)


def _write_items(path: Path, items: "Sequence[ChoiceItem]") -> None:
    from kat.runs.files import canonical_json, write_text

    write_text(path, "".join(canonical_json(_row(item)) + "\n" for item in items))


def _row(item: "ChoiceItem") -> dict[str, Any]:
    """A row that reads back as the same item."""
    row: dict[str, Any] = {
        "id": item.id,
        "question": item.question,
        "choices": list(item.choices),
        "answer": item.answer,
    }
    row |= {name: value for name in ("hint", "lecture", "solution") if (value := getattr(item, name))}
    return row | dict(item.slices) | ({"cluster": item.cluster} if item.cluster else {}) | {"has_image": item.has_image}
