"""`kat generate` continues a text, `kat chat` talks; only what the model says is printed."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kat.errors import UsageError

if TYPE_CHECKING:
    from kat.model.checkpoint import Checkpoint
    from kat.model.decoding import Sampling

Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Sample among the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Sample in the nucleus of this mass.")]
Penalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: tokens already seen become less likely.")
]
MaxTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens at most.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps")]


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A checkpoint, or a recipe's stage such as demo/sft.")],
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; else standard input.")] = None,
    instruct: Annotated[
        bool, typer.Option("--instruct", help="The prompt is a user's message to be answered.")
    ] = False,
    max_new_tokens: MaxTokens = 128,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = None,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Continue a text (or answer a message with --instruct). Prints the continuation only, as it comes."""
    text = sys.stdin.read() if prompt is None else prompt
    checkpoint = _load(context, model, device)
    tokenizer = checkpoint.tokenizer
    if instruct:
        from kat.tokenizer.chat import render_for_completion

        ids = render_for_completion(tokenizer, [{"role": "user", "content": text}])
    else:
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    context_len = checkpoint.model.config.sequence_len
    if len(ids) > context_len:
        print(
            f"kat: the prompt's {len(ids)} tokens are more than the context of {context_len} that the model is made "
            "for; what it says may be nonsense",
            file=sys.stderr,
        )
    sampling = _sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty)
    _answer(checkpoint, ids, sampling, seed)


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A checkpoint, or a recipe's stage such as demo/sft.")],
    max_new_tokens: MaxTokens = 256,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = None,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Talk to a model. An empty line or Ctrl-D ends it; /new starts over."""
    from kat.tokenizer.chat import render_for_completion

    checkpoint = _load(context, model, device)
    sampling = _sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty)
    messages: list[dict[str, str]] = []
    turn = 0
    while line := _read_line():
        if line == "/new":
            messages.clear()
            continue
        messages.append({"role": "user", "content": line})
        ids = render_for_completion(checkpoint.tokenizer, messages)
        if len(ids) + 1 > checkpoint.model.config.sequence_len:
            messages.pop()
            context_len = checkpoint.model.config.sequence_len
            print(
                f"kat: the conversation is longer than the context of {context_len} tokens; /new starts over",
                file=sys.stderr,
            )
            continue
        answer = _answer(checkpoint, ids, sampling, seed + turn)
        messages.append({"role": "assistant", "content": answer})
        turn += 1


def _load(context: typer.Context, model: str, device: str) -> "Checkpoint":
    from pathlib import Path

    from kat.model.checkpoint import load_checkpoint
    from kat.runs.home import resolve_model
    from kat.runtime import pick_device, set_threads

    name = resolve_model(model, context.obj)
    if name.startswith("hf:"):
        raise UsageError(f"{name}: kat generate and kat chat run kat checkpoints; give a folder with kat.json")
    checkpoint = load_checkpoint(Path(name), pick_device(device))
    set_threads(checkpoint.model.config.parameter_count())
    checkpoint.model.lay_out_for_decoding()
    return checkpoint


def _sampling(tokens: int, temperature: float, top_k: int | None, top_p: float | None, penalty: float) -> "Sampling":
    from kat.model.decoding import Sampling

    return Sampling(tokens, temperature, top_k, top_p, penalty)


def _answer(checkpoint: "Checkpoint", ids: list[int], sampling: "Sampling", seed: int) -> str:
    from kat.model.decoding import stream
    from kat.text import printable

    pieces = []
    for piece in stream(checkpoint.model, checkpoint.tokenizer, ids, sampling, seed):
        pieces.append(piece)
        sys.stdout.write(printable(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(pieces)


def _read_line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
