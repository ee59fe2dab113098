"""The app: every verb and the options that all share."""

from pathlib import Path
from typing import Annotated

import typer

from kat import __version__
from kat.cli import audit, data, density, doctor, evaluate, gate, generate, importing, noise, power, run, train, verify


def build_app() -> typer.Typer:
    """The command tree of `kat`."""
    app = typer.Typer(
        name="kat",
        help="Train small language models stage by stage, and say honestly whether a checkpoint is better.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_options)
    app.command("train")(train.train)
    app.command("eval")(evaluate.evaluate)
    app.command("verify")(verify.verify)
    app.command("audit")(audit.audit)
    app.command("power")(power.power)
    app.command("gate")(gate.gate)
    app.command("noise")(noise.noise)
    app.command("run")(run.run)
    app.add_typer(data.build(), name="data")
    app.add_typer(density.build(), name="density")
    app.command("generate")(generate.generate)
    app.command("chat")(generate.chat)
    app.add_typer(importing.build(), name="import")
    app.command("doctor")(doctor.doctor)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kat {__version__}")
        raise typer.Exit()


def _options(
    context: typer.Context,
    home: Annotated[
        Path | None, typer.Option(help="Where defaults live; else KAT_HOME, else a per-user folder.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from kat.runs.home import home_folder

    context.obj = home_folder(home)
