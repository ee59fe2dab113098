"""`kat run RECIPE`: the whole pipeline."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def run(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="demo, scienceqa, sciassist, or a .toml file")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="value=… or stage.setting=…; may be repeated.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it again.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and do nothing.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Stages at a time; default one a core, one on a GPU.")] = None,
) -> None:
    """Run a recipe. Stages whose inputs have not changed are skipped; an interrupted run goes on."""
    from kat.pipeline.recipe import command, load_recipe
    from kat.pipeline.runner import Run, default_jobs, report_paths

    loaded = load_recipe(recipe, assignments or [])
    folder: Path = context.obj / "runs" / loaded.name
    job = Run(loaded, folder, lambda line: print(line, file=sys.stderr, flush=True))
    if dry_run:
        for plan in job.plan(start):
            typer.echo(f"{plan.action:6s} {plan.stage.name:16s} {plan.reason}")
            if plan.action != "done":
                typer.echo(f"       kat {' '.join(command(loaded, plan.stage, folder))}")
        return
    job.execute(start, jobs or default_jobs())
    typer.echo(f"{folder}")
    for path in report_paths(folder, loaded):
        typer.echo(f"report: {path}")
