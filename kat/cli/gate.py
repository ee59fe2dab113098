"""`kat gate A B --policy FILE`: the exit code of a comparison."""

import os
from pathlib import Path
from typing import Annotated

import typer


def gate(
    context: typer.Context,
    a: Annotated[str, typer.Argument(help="Baseline: an evaluation, a checkpoint, or a folder of seeds.")],
    b: Annotated[str, typer.Argument(help="Candidate.")],
    policy: Annotated[Path, typer.Option("--policy", help="What is claimed, by which margin (TOML).")],
    verify: Annotated[Path | None, typer.Option(help="What `kat verify --json` wrote.")] = None,
    lane: Annotated[list[str] | None, typer.Option("--lane", help="NAME=FILE: the JUnit XML that a lane left.")] = None,
    rerun: Annotated[int, typer.Option(min=0, help="Generate so many items of each run again and compare.")] = 0,
    rerun_seed: Annotated[int | None, typer.Option(min=0, help="Draw the items of an earlier --rerun again.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="The evaluated file, where it has moved.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the outcome as JUnit XML.")] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Append a summary in markdown; default $GITHUB_STEP_SUMMARY, where set.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the outcome as JSON.")] = None,
) -> None:
    """Exit 0 pass, 1 regression, 3 inconclusive, 4 invalid evidence (2: wrong usage)."""
    from kat.audit.gate import gate as judge
    from kat.audit.gate_out import append_summary, rows
    from kat.audit.gate_out import junit as junit_text
    from kat.audit.requirements import parse_lanes
    from kat.runs.files import write_json, write_text

    found = judge(
        a,
        b,
        policy,
        home=context.obj,
        verify=verify,
        lanes=parse_lanes(lane or []),
        n_rerun=rerun,
        rerun_seed=rerun_seed,
        data=data,
    )
    typer.echo(found.sentence)
    for name, outcome, sentence in rows(found):
        typer.echo(f"  {outcome:12s} {name}: {sentence}")
    for note in [note for one in found.opponents for note in one.notes] + found.evidence:
        typer.echo(f"  {note}")
    if json:
        write_json(json, found.model_dump(by_alias=True, mode="json"))
    if junit:
        write_text(junit, junit_text(found))
    steps = summary or (Path(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None)
    if steps:
        append_summary(found, steps)
    raise typer.Exit(found.exit_code)
