"""`kat verify SUBJECT`: find bugs that don't crash."""

from pathlib import Path
from typing import Annotated

import typer

from kat.errors import UsageError


def verify(
    subject: Annotated[
        str | None,
        typer.Argument(help="native, kat:FOLDER, hf:FOLDER, trl:sft, package.module:make or adapter.py:make."),
    ] = None,
    level: Annotated[
        int, typer.Option(min=0, max=4, help="Run levels 0..N: pure, forward, training step, resume, two processes.")
    ] = 3,
    expression: Annotated[
        str | None, typer.Option("-k", help="Only checks whose name or family fits, e.g. 'decode or padding'.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the subject and of all that is drawn.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, handed to the adapter's make.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the findings as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the findings as JUnit XML.")] = None,
    list_checks: Annotated[bool, typer.Option("--list", help="Name every check and its property.")] = False,
    mutants: Annotated[
        bool,
        typer.Option("--mutants", help="Plant known bugs in the subject (native); which check finds each?"),
    ] = False,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="With --mutants: write the matrix.")] = None,
    lint_tests: Annotated[
        list[Path] | None, typer.Option("--lint-tests", help="Find tests that cannot fail, in files or folders.")
    ] = None,
) -> None:
    """Exit 1 where a property is violated, 4 where something could not be tested, else 0."""
    if list_checks:
        _list()
    elif lint_tests:
        _lint(lint_tests)
    elif mutants:
        _mutants(subject or "native", expression, seed, markdown)
    elif subject is None:
        raise UsageError("kat verify: name a subject (such as native), or give --list, --mutants or --lint-tests")
    else:
        _verify(subject, settings or [], level, expression, seed, json, junit)


def _verify(
    spec: str, settings: list[str], level: int, expression: str | None, seed: int, json: Path | None, junit: Path | None
) -> None:
    from rich.console import Console

    from kat.runs.files import require_writable, write_json, write_text
    from kat.runs.settings import parse_assignments
    from kat.verify import show
    from kat.verify.checks import all_checks
    from kat.verify.expected import read_expected
    from kat.verify.runner import run_checks, select
    from kat.verify.subject import open_subject

    for option, path in (("--json", json), ("--junit", junit)):
        if path is not None:
            require_writable(path, option)
    checks = select(all_checks(), level, expression)
    source = open_subject(spec, parse_assignments(settings))
    expected = read_expected(source.folder, {check.id for check in all_checks()})
    console = Console(highlight=False)
    with console.status("") as status:
        done = 0

        def progress(finding: object) -> None:
            nonlocal done
            done += 1
            status.update(f"{done} of {len(checks)} checks")

        report = run_checks(source, checks, seed=seed, level=level, expected=expected, progress=progress)
    show.print_report(report, console)
    if json:
        write_json(json, report.to_json())
    if junit:
        write_text(junit, show.junit([report]))
    raise typer.Exit(report.exit_code)


def _list() -> None:
    from kat.verify.checks import all_checks
    from kat.verify.show import list_text

    typer.echo(list_text(all_checks()))


def _lint(paths: list[Path]) -> None:
    from kat.verify.lint import lint

    findings = lint(paths)
    for finding in findings:
        typer.echo(f"{finding.file}:{finding.line}: {finding.rule}: {finding.message}")
    typer.echo(f"{len(findings)} test(s) that cannot fail" if findings else "every test can fail")
    raise typer.Exit(1 if findings else 0)


def _mutants(spec: str, expression: str | None, seed: int, markdown: Path | None) -> None:
    from kat.runs.files import require_writable, write_text
    from kat.verify.checks import all_checks
    from kat.verify.matrix import Verdict, matrix, matrix_markdown, matrix_summary
    from kat.verify.mutants import MUTANTS
    from kat.verify.runner import select
    from kat.verify.subject import open_subject

    if markdown is not None:
        require_writable(markdown, "--markdown")
    checks = select(all_checks(), 4, expression)
    chosen = [mutant for mutant in MUTANTS if spec == "native" or not mutant.native]

    def seen(verdict: Verdict) -> None:
        word = ", ".join(verdict.killers) if verdict.killers else "SURVIVES"
        typer.echo(f"{verdict.mutant.id} [{', '.join(verdict.mutant.rows) or 'beyond the catalogue'}]: {word}")

    verdicts = matrix(chosen, checks, open_subject(spec), seen)
    typer.echo(matrix_summary(verdicts, checks))
    if markdown:
        write_text(markdown, matrix_markdown(verdicts, checks, spec))
    raise typer.Exit(1 if any(not verdict.killers for verdict in verdicts) else 0)
