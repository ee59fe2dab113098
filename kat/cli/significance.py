"""`kat eval grpo-significance STUDY`: judge a study of arms × seeds."""

from collections.abc import Sequence
from pathlib import Path

import typer

from kat.errors import UsageError


def significance(studies: Sequence[str], out: Path | None, density: Path | None) -> None:
    """Print the table and the verdict of one study; write study.json, study.md and study.html beside its results."""
    if len(studies) != 1:
        raise UsageError("kat eval grpo-significance: name the folder of one study")
    from kat.audit.study import load_study
    from kat.audit.study_page import lines
    from kat.audit.study_report import heaviest, report, write_report

    folder = Path(studies[0])
    study = load_study(folder)
    found = report(study, heaviest(density) if density is not None else ())
    target = out or folder / "report"
    write_report(found, target)
    for line in lines(found):
        typer.echo(line)
    typer.echo(f"{target / 'study.html'}")
