"""`kat noise RECIPE --seeds K`: how much a recipe's score moves when nothing but the seed does."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def noise(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a .toml file; run unchanged but for its seed.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs, with seeds 0 to K - 1.")] = 5,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="value=… or stage.setting=…; may be repeated.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Measure the evaluation on this suite.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="The evaluation to measure; default the audited one, else the last.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for noise.json and the evidence by seed.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Stages at a time; default one a core, one on a GPU.")] = None,
) -> None:
    """Retrain a recipe under several seeds. The same command again resumes; more seeds add to those that are there."""
    from kat.pipeline.noise import choose_stage, few_seeds
    from kat.pipeline.noise import noise as measure
    from kat.pipeline.recipe import load_recipe
    from kat.pipeline.runner import default_jobs

    loaded = load_recipe(recipe, assignments or [])
    chosen = choose_stage(loaded, stage, suite)
    typer.echo(f"{loaded.name}: measured at {chosen.name}", err=True)
    if (warning := few_seeds(seeds)) is not None:
        typer.echo(warning, err=True)
    home: Path = context.obj
    folder = out or home / "noise" / loaded.name
    found = measure(
        recipe,
        seeds,
        home,
        folder,
        lambda line: print(line, file=sys.stderr, flush=True),
        assignments=assignments or [],
        stage=stage,
        suite=suite,
        jobs=jobs or default_jobs(),
    )
    for line in found.sentences():
        typer.echo(line)
    typer.echo(f"{folder}")
