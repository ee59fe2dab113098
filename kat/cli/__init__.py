"""The command line: one file a verb, each thin. Nothing here imports torch before a command runs."""

import sys

import typer

from kat.errors import KatError

CLOSED_PIPE = 128 + 13


def main(arguments: list[str] | None = None) -> None:
    """Run `kat`; a user's mistake is one line on stderr and the exit code of its kind."""
    from kat.cli.app import build_app

    try:
        code = _run(build_app(), arguments)
    except KatError as error:
        sys.exit(_say(str(error), error.exit_code))
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(_say("interrupted", 130))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted", 130))
    except Exception as error:  # noqa: BLE001 (the outermost handler: every outcome has a name and an exit code)
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if callable(show) and isinstance(code, int):  # the parser's own word on a wrong option
            show()
            sys.exit(code)
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            sys.exit(_say(f"{where}{error.strerror}", 2))
        import traceback

        traceback.print_exc()
        sys.exit(_say("this is a bug in kat; please report the lines above", 5))
    if code == 130:  # what typer makes of Ctrl-C
        _say("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _run(app: typer.Typer, arguments: list[str] | None) -> object:
    """The command's exit code. Where nobody reads the output any more (`kat gate … | head -1`) typer says 1, which is a
    gate's word for a regression: 141 is the shell's own for it."""
    try:
        return app(args=arguments, standalone_mode=False)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            sys.exit(CLOSED_PIPE)
        raise


def _say(line: str, code: int) -> int:
    print(f"kat: {line}", file=sys.stderr)
    return code
