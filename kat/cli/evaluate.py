"""`kat eval SUITE MODEL…`: score models, or responses that somebody recorded; judge a study of many runs."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kat.errors import UsageError

RESULTS = "results.json"

if TYPE_CHECKING:
    from kat.runs.schemas import Results


def evaluate(
    context: typer.Context,
    suite: Annotated[
        str,
        typer.Argument(
            help="scienceqa, choices, choices-text, bpb, reward, diversity, a plug-in's, or grpo-significance"
        ),
    ],
    models: Annotated[
        list[str] | None, typer.Argument(help="Checkpoints, hf:FOLDER, or stages such as demo/sft.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Rows to evaluate on.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many items, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of --limit.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for samples.jsonl and results.json.")] = None,
    responses: Annotated[
        Path | None, typer.Option("--responses", help="Recorded rows {id, response} to score.")
    ] = None,
    model_name: Annotated[str | None, typer.Option("--model-name", help="What to call the recorded model.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    batch_check: Annotated[
        int, typer.Option("--batch-check", min=0, help="Ask so many items again in batches of another size.")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    embedder: Annotated[
        str | None, typer.Option(help="diversity: minilm (default) or a checkpoint; one and the same for all models.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="diversity: reward checkpoint, module:function, microworld or choices; repeatable."),
    ] = None,
    draws: Annotated[int | None, typer.Option(min=2, help="diversity: answers to each prompt, default 8.")] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="diversity: tokens of each answer; default 64, lowered for short answers.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="diversity: length of an answer, at most.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="diversity A B: by how much B's reward may be worse, in its units.")
    ] = None,
    density: Annotated[
        Path | None,
        typer.Option(
            help="reward: density folder, for accuracy by its deciles; grpo-significance: to show its heaviest prompts."
        ),
    ] = None,
) -> None:
    """Evaluate models on a suite. The same command again resumes; what is done is not done twice.

    `diversity` with several models compares each with the first. `grpo-significance STUDY` judges a study's folder.
    """
    from kat.evals.registry import get_suite
    from kat.runs.home import resolve_model, short_name

    home: Path = context.obj
    options = {"embedder": embedder, "reward": tuple(reward) if reward else None, "draws": draws, "window": window}
    options |= {"max_new_tokens": max_new_tokens}
    if suite == "grpo-significance":
        from kat.cli.significance import significance

        significance(models or [], out, density)
        return
    factory = with_options(suite, get_suite(suite), options | {"density": density})
    if responses is not None:
        if models:
            raise UsageError("kat eval: give models or --responses, not both")
        if batch_check:
            raise UsageError("--batch-check: recorded responses cannot be asked again; leave it out")
        _recorded(suite, factory, data, responses, model_name, out, home, limit, seed)
        return
    pairable = suite == "diversity"
    done = {name: Path(name) for name in models or [] if pairable and (Path(name) / RESULTS).is_file()}
    if not models or len(done) < len(models):
        needed = inspect.signature(factory).parameters.get("data")
        if data is None and needed is not None and needed.default is inspect.Parameter.empty:
            raise UsageError(f"kat eval {suite}: name its rows with --data")
        loaded = factory(data) if data else factory()
        _say_notes(suite, loaded)
    if not models:
        raise UsageError("kat eval: name at least one model, or give --responses")
    if out is not None and len(models) > 1:
        raise UsageError(f"--out {out}: one folder cannot hold {len(models)} models; evaluate them one by one")
    for name in models:
        if name not in done:
            model, short = resolve_model(name, home), short_name(name, home)
            done[name] = _run(loaded, model, short, out, home, limit, seed, batch_size, batch_check, device)
    if pairable and len(models) > 1:
        from kat.cli.diversity import show_comparisons

        show_comparisons([done[name] for name in models], embedder, margin)


def with_options(suite: str, factory: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """The factory with the options that were given; UsageError for one that this suite does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(factory).parameters
    for name in given:
        if name not in known:
            raise UsageError(f"--{name.replace('_', '-')}: suite {suite} has no such option")
    return functools.partial(factory, **given) if given else factory


def _run(
    suite: Any,
    model: str,
    name: str,
    out: Path | None,
    home: Path,
    limit: int | None,
    seed: int,
    batch: int,
    batch_check: int,
    device: str,
) -> Path:
    from rich.console import Console

    from kat.cli.progress import item_progress
    from kat.evals.runner import run_suite
    from kat.model.backends import open_backend
    from kat.runtime import pick_device

    if hasattr(suite, "open_backend"):  # a suite over something else than language models
        backend, notes = suite.open_backend(model, str(pick_device(device)))
        for note in notes:
            typer.echo(f"{suite.name}: {note}", err=True)
    else:
        backend = open_backend(model, str(pick_device(device)))
    folder = out or default_folder(home, backend.identity, suite.name)
    with item_progress(Console(stderr=True), f"{suite.name} {name}") as progress:
        results = run_suite(
            suite,
            backend,
            folder,
            limit=limit,
            seed=seed,
            batch_size=batch,
            batch_check=batch_check,
            progress=progress,
            model=name,
        )
    show(results, folder)
    return folder


def _say_notes(name: str, suite: Any) -> None:
    for note in getattr(suite, "notes", ()):
        typer.echo(f"{name}: {note}", err=True)


def _recorded(
    name: str,
    factory: Any,
    data: Path | None,
    responses: Path,
    model_name: str | None,
    out: Path | None,
    home: Path,
    limit: int | None,
    seed: int,
) -> None:
    from kat.audit.words import count
    from kat.evals.recorded import load_answered, run_recorded

    suite, recorded = load_answered(factory, data, responses)
    _say_notes(name, suite)
    folder = out or default_folder(home, recorded.identity, suite.name)
    results = run_recorded(suite, recorded, folder, model=model_name or responses.name, limit=limit, seed=seed)
    if recorded.unknown:
        typer.echo(f"{responses}: {count(len(recorded.unknown), 'response')} without an item, left out", err=True)
    show(results, folder)


def default_folder(home: Path, identity: str, suite: str) -> Path:
    """Where the evidence about a model lies when the user names no place."""
    return home / "evals" / identity[:12] / suite


def show(results: "Results", folder: Path) -> None:
    """The metrics of one evaluation, one a line."""
    typer.echo(f"{results.model} on {results.suite}, {results.n_items:,} items")
    for name, m in results.metrics.items():
        mark = "*" if name == results.primary else " "
        typer.echo(f" {mark}{name:28s} {m.estimate:8.4f}  [{m.low:.4f}, {m.high:.4f}]  {m.method}")
    if results.batch_check is not None:
        check = results.batch_check
        typer.echo(f"  {check.n_flipped:,} of {check.n:,} items answer otherwise in batches of {check.again_in}")
    if results.n_over_context:
        typer.echo(f"  {results.n_over_context:,} prompts are longer than the context that the model is made for")
    typer.echo(f"  {folder}")
