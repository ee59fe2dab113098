"""`kat density`: weights by which sparse prompts are drawn more often, made once and used by every run."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kat.errors import UsageError

if TYPE_CHECKING:
    from kat.density.build import Built
    from kat.density.embed import Embedder

DATA = typer.Option("--data", help="Prompts or preference pairs, .jsonl or .jsonl.gz; may be repeated.")
MAX_BAD = typer.Option(min=0, max=1, help="Share of malformed rows that is tolerated.")
DEVICE = typer.Option(help="auto, cpu, cuda or mps; where the prompts are embedded.")


def build() -> typer.Typer:
    """The `density` group."""
    app = typer.Typer(help="Weigh prompts by how few others are near them.", no_args_is_help=True)
    app.callback()(lambda: None)
    app.command("build")(build_folder)
    app.command("update")(update_folder)
    app.command("show")(show)
    app.command("map")(draw_map)
    return app


def build_folder(
    context: typer.Context,
    data: Annotated[list[Path], DATA],
    out: Annotated[Path, typer.Option("--out", help="The density folder to write.")],
    model: Annotated[str, typer.Option(help="`minilm`, a kat checkpoint, a stage such as demo/sft, or hf:FOLDER.")],
    k: Annotated[int, typer.Option("-k", min=1, help="r is measured to the k-th to 2k-th neighbour.")] = 10,
    dose: Annotated[float, typer.Option(help="Total variation between the weights and uniform ones.")] = 0.2,
    device: Annotated[str, DEVICE] = "cpu",
    max_bad: Annotated[float, MAX_BAD] = 0.01,
) -> None:
    """Embed the prompts and compute their weights. A run that was killed goes on when it is started again."""
    from kat.density.build import build_density, read_prompts

    prompts, said = read_prompts(data, max_bad)
    typer.echo(said, err=True)
    embedder = _open(model, device, context.obj)
    with _progress() as report:
        built = build_density(prompts, embedder, out, k=k, dose=dose, report=report)
    _say(out, built)


def update_folder(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A density folder.")],
    data: Annotated[list[Path], DATA],
    model: Annotated[str | None, typer.Option(help="The same model, where it lies elsewhere by now.")] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Another k; default as it was.")] = None,
    dose: Annotated[float | None, typer.Option(help="Another dose; default as it was.")] = None,
    device: Annotated[str, DEVICE] = "cpu",
    max_bad: Annotated[float, MAX_BAD] = 0.01,
) -> None:
    """Make a folder that of exactly these prompts; only those that it does not know are embedded."""
    from kat.density.build import read_prompts, update_density
    from kat.density.folder import read_metadata

    there = read_metadata(folder)
    prompts, said = read_prompts(data, max_bad)
    typer.echo(said, err=True)
    embedder = _open(model or there.model, device, context.obj)
    with _progress() as report:
        built = update_density(folder, prompts, embedder, k=k, dose=dose, report=report)
    _say(folder, built)


def show(
    folder: Annotated[Path, typer.Argument(help="A density folder.")],
    second: Annotated[
        Path | None, typer.Option(help="A density folder of the same prompts by another embedder, to compare with.")
    ] = None,
    heaviest: Annotated[int, typer.Option(min=0, help="How many of the heaviest prompts to list.")] = 50,
) -> None:
    """What the weights look like: dose, effective sample, rank correlations, the heaviest prompts."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kat.density import report
    from kat.density.folder import read_density

    density = read_density(folder)
    summary = report.summarise(density, None if second is None else read_density(second))
    console = Console()
    table = Table(show_header=False, title=Text(f"{folder}"), title_justify="left")
    table.add_row("model", Text(f"{report.one_line(density.metadata.model)} ({density.metadata.model_hash:.12})"))
    for name, value in summary.rows():
        table.add_row(name, value)
    console.print(table)
    if not heaviest:
        return
    listed = Table(title=f"The {min(heaviest, summary.n)} heaviest prompts", title_justify="left")
    listed.add_column("× uniform", justify="right")
    listed.add_column("r", justify="right")
    listed.add_column("source")
    listed.add_column("prompt", overflow="fold")
    for row, share in report.heaviest(density, heaviest):
        text = report.one_line(row.text + ("…" if row.n_chars > len(row.text) else ""))
        listed.add_row(f"{share:.2f}", f"{row.radius:.3f}", Text(report.one_line(row.source, 30)), Text(text))
    console.print(listed)


def draw_map(
    folder: Annotated[Path, typer.Argument(help="A density folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for map.png and map.html.")],
    colour: Annotated[
        str, typer.Option(help="density, source, or the name of a number in the rows of --values, such as reward.")
    ] = "density",
    values: Annotated[
        Path | None, typer.Option(help="JSONL rows {id, NAME: number}; several rows of a prompt are averaged.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the layout.")] = 0,
) -> None:
    """Draw the prompts on a plane by UMAP: a picture and one self-contained page."""
    from kat.density.folder import read_density
    from kat.density.map import colour_by, lay_out, write_map

    density = read_density(folder)
    colouring = colour_by(density, colour, values)
    with _progress() as report:
        places = lay_out(density, seed, report)
    for path in write_map(out, density, places, colouring):
        typer.echo(f"{path}")


def _open(model: str, device: str, home: Path) -> "Embedder":
    from kat.density.embed import open_embedder

    if model == "minilm":
        return open_embedder(model, _device(device))
    from kat.runs.home import resolve_model

    name = resolve_model(model, home)
    if not name.startswith("hf:") and not Path(name).is_dir():
        raise UsageError(f"--model {model}: no checkpoint folder; give `minilm`, a checkpoint, or hf:FOLDER")
    return open_embedder(name, _device(device))


def _device(name: str) -> str:
    from kat.runtime import pick_device

    return str(pick_device(name))


def _progress() -> "AbstractContextManager[Callable[[str, int, int], None]]":
    from rich.console import Console

    from kat.cli.progress import phase_progress

    return phase_progress(Console(stderr=True))


def _say(folder: Path, built: "Built") -> None:
    from kat.density.report import summarise

    if not built.n_embedded and not built.n_removed:
        typer.echo(f"{folder}: nothing to embed")
    else:
        gone = f", {built.n_removed:,} left" if built.n_removed else ""
        typer.echo(f"{folder}: {built.n_embedded:,} texts embedded, {built.n_known:,} prompts known{gone}")
    for name, value in summarise(built.density).rows():
        typer.echo(f"  {name}: {value}")
