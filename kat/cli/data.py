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
    app.command("pairs")(pairs)
    app.command("prompts")(prompts)
    return app


def microworld(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write the embedded closed world: rows for every stage, prompts and preference pairs, and the truth."""
    from kat.data.microworld import build as build_world
    from kat.data.microworld import write
    from kat.data.microworld_preferences import FILES, build_preferences, write_preferences
    from kat.errors import UsageError
    from kat.runs.files import new_folder

    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES):
        raise UsageError(f"--out {out}: exists and is no microworld; it would be replaced, so choose another place")
    with new_folder(out) as folder:
        write(build_world(seed), folder)
        write_preferences(build_preferences(seed), folder)
    typer.echo(f"{out}: written")


def pairs(
    source: Annotated[list[str], typer.Option("--from", help="A file of pairs, or `hub`: HH-RLHF. May be repeated.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for train.jsonl, validation.jsonl and test.jsonl.")],
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="prompt=question: how a column is called in the file.")
    ] = None,
    validation: Annotated[float, typer.Option(help="Share of the prompts.")] = 0.05,
    test: Annotated[float, typer.Option(help="Share of the prompts.")] = 0.1,
    max_bad: Annotated[float, typer.Option(help="Share of faulty rows that is tolerated.")] = 0.05,
) -> None:
    """Write preference pairs, split by prompt: HH-RLHF, Stack-Exchange, UltraFeedback, or any columns."""
    from kat.data.pair_sources import FEW, read_pairs, split_pairs, without_repeats
    from kat.data.preferences import pair_row, rows_text
    from kat.errors import UsageError
    from kat.runs.files import new_folder, write_text

    names = ("train", "validation", "test")
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= {f"{n}.jsonl" for n in names}):
        raise UsageError(f"--out {out}: exists and holds other files; it would be replaced, so choose another place")
    mapping = dict(_column(text) for text in columns or [])
    rows = read_pairs(source, mapping, max_bad)
    kept = without_repeats(rows.rows)
    splits = split_pairs(kept, validation, test)
    with new_folder(out) as folder:
        for name in names:
            if getattr(splits, name):
                write_text(folder / f"{name}.jsonl", rows_text(map(pair_row, getattr(splits, name))))
    repeats = f", {len(rows.rows) - len(kept):,} repeated" if len(kept) < len(rows.rows) else ""
    typer.echo(f"{rows.report()}{repeats}")
    for name in names:
        found = getattr(splits, name)
        typer.echo(f"{out}/{name}.jsonl: {len(found):,} pairs of {len({pair.prompt.id for pair in found}):,} prompts")
    if len(kept) < FEW:
        typer.echo(f"warning: only {len(kept):,} pairs; a reward model needs {FEW:,} or more", err=True)


def prompts(
    source: Annotated[list[str], typer.Option("--from", help="Prompts, conversations, pairs, choice items, or `hub`.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
    max_bad: Annotated[float, typer.Option(help="Share of faulty rows that is tolerated.")] = 0.05,
) -> None:
    """Write prompts for GRPO, each once. A multiple-choice item keeps its right answer as truth."""
    from kat.data.pair_sources import read_prompts
    from kat.data.preferences import prompt_row, rows_text
    from kat.runs.files import write_text

    rows = read_prompts(source, max_bad)
    write_text(out, rows_text(map(prompt_row, rows.rows)))
    repeats = rows.n_lines - len(rows.faults) - len(rows.rows)
    typer.echo(f"{out}: {len(rows.rows):,} prompts ({rows.report()}{f', {repeats:,} repeated' if repeats else ''})")


def _column(text: str) -> tuple[str, str]:
    from kat.errors import UsageError

    name, found, column = text.partition("=")
    if not (name and found and column):
        raise UsageError(f"--map {text}: write name=column, such as prompt=question")
    return name, column


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
