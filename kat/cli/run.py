"""`kat run RECIPE`: the whole pipeline."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from kat.errors import UsageError


def run(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="demo, scienceqa, sciassist, density-study, tiny, or a .toml file")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="value=… or stage.setting=…; may be repeated.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it again.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and do nothing.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Stages at a time; default one a core, one on a GPU.")] = None,
) -> None:
    """Run a recipe. Stages whose inputs have not changed are skipped; an interrupted run goes on.

    A study (density-study) runs every arm and seed, then judges them and writes its report.
    """
    from kat.pipeline.recipe import command, load_recipe
    from kat.pipeline.runner import Run, default_jobs, report_paths
    from kat.pipeline.study import is_study, lines, load_study_recipe, run_study

    # A scheduler's SIGTERM ends a run as Ctrl-C does; the stages, in sessions of their own, would go on alone.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    study = None
    if is_study(recipe):
        study = load_study_recipe(recipe, assignments or [])
    loaded = study.recipe if study else load_recipe(recipe, assignments or [])
    folder: Path = context.obj / "runs" / loaded.name
    job = Run(loaded, folder, lambda line: print(line, file=sys.stderr, flush=True))
    if dry_run:
        for plan in job.plan(start):
            typer.echo(f"{plan.action:6s} {plan.stage.name:16s} {plan.reason}")
            if plan.action != "done":
                typer.echo(f"       kat {' '.join(command(loaded, plan.stage, folder))}")
        return
    if study is not None:
        if start is not None:
            raise UsageError("--from: a study runs what is missing; to repeat one of its runs, remove the run's folder")
        found = run_study(study, folder, job.say, jobs or default_jobs())
        for line in lines(found):
            typer.echo(line)
        typer.echo(f"report: {folder / 'study' / 'report' / 'study.html'}")
        return
    job.execute(start, jobs or default_jobs())
    typer.echo(f"{folder}")
    for path in report_paths(folder, loaded):
        typer.echo(f"report: {path}")
