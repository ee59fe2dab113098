"""`kat audit A B`: the report that compares two evaluations."""

from pathlib import Path
from typing import Annotated

import typer

from kat.errors import UsageError


def audit(
    context: typer.Context,
    a: Annotated[str | None, typer.Argument(help="Baseline: an evaluation folder, a checkpoint, or a stage.")] = None,
    b: Annotated[str | None, typer.Argument(help="Candidate.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for audit.json, audit.md, audit.html.")] = None,
    suite: Annotated[str, typer.Option(help="Which evaluation, where A and B are checkpoints.")] = "scienceqa",
    data: Annotated[
        Path | None, typer.Option(help="The evaluated file, where it has moved; with --counts, for chance.")
    ] = None,
    train: Annotated[
        list[Path] | None, typer.Option("--train", help="Training rows: baselines that learn, similarity.")
    ] = None,
    twin: Annotated[str | None, typer.Option(help="Evaluation (or checkpoint) of the untrained twin.")] = None,
    verify: Annotated[Path | None, typer.Option(help="What `kat verify --json` wrote about the code behind B.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A gate's policy: its attempts on these items are shown.")] = None,
    counts: Annotated[
        tuple[str, str] | None, typer.Option("--counts", help="Two of right/parsed/asked, instead of A and B.")
    ] = None,
) -> None:
    """Compare B with A. Exit 0 once the report is written, whatever it says; 4 where the evidence is invalid."""
    if counts is not None:
        if a or b:
            raise UsageError("kat audit: give A and B, or --counts, not both")
        _counts(*counts, data)
        return
    if not a or not b:
        raise UsageError("kat audit: name the baseline and the candidate, or give --counts")
    home: Path = context.obj
    from kat.audit.find import find_evaluation
    from kat.audit.report import audit as compare
    from kat.data.choices import ChoiceItem
    from kat.data.sources import load_examples

    arm_a, arm_b = find_evaluation(a, suite, home), find_evaluation(b, suite, home)
    items = None
    if train:
        rows = load_examples(train)
        if rows.faults:
            typer.echo(f"--train: {rows.report()}", err=True)
        items = [row for row in rows.rows if isinstance(row, ChoiceItem)]
    folder = out or home / "audits" / f"{arm_a.evals.parent.name}-{arm_b.evals.parent.name}-{suite}"
    known = (arm_a.checkpoint, arm_b.checkpoint)
    found = compare(
        arm_a.evals,
        arm_b.evals,
        folder,
        data=data,
        train_items=items,
        twin=find_evaluation(twin, suite, home).evals if twin else None,
        verify=verify,
        policy=policy,
        checkpoints=(known[0], known[1]) if known[0] and known[1] else None,
    )
    typer.echo(f"{found.verdict.word}. {found.verdict.sentence}")
    typer.echo(f"{folder / 'audit.html'}")


def _counts(a: str, b: str, data: Path | None) -> None:
    from kat.stats.counts import audit_counts

    found = audit_counts(_three(a), _three(b))
    for sentence in found.sentences():
        typer.echo(sentence)
    if data is not None:
        from kat.evals.baselines import chance
        from kat.evals.sources import load_choice_items

        items, _ = load_choice_items(data, text_only=False)
        typer.echo(found.beside_chance(float(chance(items).scores.mean()), len(items)))


def _three(text: str) -> tuple[int, int, int]:
    parts = text.split("/")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--counts {text}: write right/parsed/asked, such as 13/34/50")
    return int(parts[0]), int(parts[1]), int(parts[2])
