"""`kat train STAGE`: run one stage; the same command again resumes it."""

from pathlib import Path
from typing import Annotated

import typer

from kat.errors import UsageError


def train(
    stage: Annotated[str, typer.Argument(help="tokenizer, base, mid, sft, reward or grpo")],
    data: Annotated[
        list[Path],
        typer.Option("--data", help="Rows to train on (.jsonl, .jsonl.gz, .txt): texts, pairs or prompts; repeatable."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The checkpoint folder to write.")],
    init: Annotated[
        Path | None, typer.Option("--init", help="Checkpoint to start from; for base, a tokenizer folder.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, key=value; may be repeated; wins over --config.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides weights and order of the data.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (bfloat16 on CUDA, else float32), float32, bfloat16")] = "auto",
    max_steps: Annotated[
        int | None, typer.Option(min=0, help="Stop after this step; the schedule stays, and a later call goes on.")
    ] = None,
    sampling: Annotated[
        str | None, typer.Option(help="reward, grpo: uniform, density or placebo (as --set sampling=…)")
    ] = None,
    density: Annotated[
        Path | None, typer.Option(help="reward, grpo: the folder of `kat density build` (as --set density=…)")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="grpo: reward checkpoint, module:function, microworld or choices; repeatable."),
    ] = None,
    trainer: Annotated[str, typer.Option(help="native, trl, a plug-in's name, or package.module:Object")] = "native",
) -> None:
    """Train one stage: tokenizer, base, mid, sft, reward or grpo. Running the same command again resumes or says that
    it is done."""
    from rich.console import Console

    from kat.runs.settings import STAGES, GrpoSettings, LoopSettings, TokenizerSettings, load_settings

    if stage not in STAGES:
        raise UsageError(f"{stage}: no such stage; choose {', '.join(STAGES)}")
    given = {"sampling": sampling, "density": str(density) if density else None, "reward": tuple(reward or ()) or None}
    named = {key: value for key, value in given.items() if value is not None}
    settings = load_settings(STAGES[stage], config, assignments or [], named)
    console = Console(stderr=True)
    from kat.trainers.stages import Request, train_tokenizer_stage
    from kat.trainers.stages import train as train_stage

    if isinstance(settings, TokenizerSettings):
        train_tokenizer_stage(data, out, settings, console)
        return
    assert isinstance(settings, LoopSettings)
    judge = None
    if isinstance(settings, GrpoSettings) and settings.reward and init is not None:
        from kat.evals.rewards import open_reward
        from kat.runtime import pick_device
        from kat.tokenizer.bpe import Tokenizer

        judge = open_reward(settings.reward, Tokenizer.load(init), str(pick_device(device)))
    train_stage(
        Request(stage, tuple(data), out, init, settings, seed, device, dtype, trainer, max_steps, judge), console
    )
