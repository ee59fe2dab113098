"""`kat import nanochat DIR --out CKPT`."""

from pathlib import Path
from typing import Annotated

import typer


def build() -> typer.Typer:
    """The `import` group."""
    app = typer.Typer(help="Turn somebody else's checkpoint into a kat checkpoint.", no_args_is_help=True)
    app.callback()(lambda: None)
    app.command("nanochat")(nanochat)
    return app


def nanochat(
    folder: Annotated[Path, typer.Argument(help="Folder with model_<step>.pt, meta_<step>.json and tokenizer.pkl.")],
    out: Annotated[Path, typer.Option("--out", help="The checkpoint folder to write.")],
    step: Annotated[
        int | None, typer.Option(help="Which step, where the folder holds several; default the last.")
    ] = None,
) -> None:
    """Import a nanochat checkpoint of October 2025. Nothing in it is executed."""
    from kat.model.nanochat import import_nanochat

    record = import_nanochat(folder, out, step)
    typer.echo(
        f"{out}: imported step {record['step']}; logits differ from float32 rotary tables by at most "
        f"{record['max_logit_difference_to_float32_tables']:.2g}"
    )
