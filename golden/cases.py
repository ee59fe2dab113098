"""What the golden files hold, computed afresh. Everything comes from kat's own embedded world; one thread, float32."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from kat.data.choices import ChoiceItem, conversation
from kat.data.examples import Conversation, parse_example
from kat.data.microworld import build, write
from kat.model.checkpoint import load_checkpoint
from kat.model.config import GPTConfig
from kat.model.decoding import Sampling, generate
from kat.model.gpt import GPT
from kat.runs.settings import BaseSettings
from kat.tokenizer.bpe import Tokenizer, train_tokenizer
from kat.tokenizer.chat import render_conversation
from kat.trainers.stages import Request, texts_of, train

# Largest difference that another CPU may show. Ids, masks and texts are exact.
TOLERANCE = {"tokens": 0.0, "model": 2e-4, "training": 5e-3, "audit": 1e-9}
VOLATILE = {"provenance", "folder", "created", "versions", "run_id", "data", "model", "model_hash", "platform"}


def _world() -> Any:
    return build(7, n_documents=300, n_mid=60, n_train=200, n_validation=40, n_test=120)


def _tokenizer() -> Tokenizer:
    world = _world()
    rows = [parse_example(row) for row in [*world.documents, *world.mid, *world.train]]
    return train_tokenizer((text for row in rows for text in texts_of(row)), 480)


def tokens() -> dict[str, Any]:
    """Ids and masks of conversations, and of awkward text."""
    tokenizer = _tokenizer()
    rows = [parse_example(row) for row in [*_world().mid[:2], *_world().test[:3]]]
    talks = [
        list(row.messages) if isinstance(row, Conversation) else conversation(row)
        for row in rows
        if isinstance(row, Conversation | ChoiceItem)
    ]
    awkward = ["", "  two  spaces\r\n\n", "naïve ☃ 12345 <|assistant_end|>", "We'LL don't"]
    rendered = [render_conversation(tokenizer, talk) for talk in talks]
    return {
        "ids": [ids for ids, _ in rendered],
        "masks": [mask for _, mask in rendered],
        "text": {text: tokenizer.encode(text) for text in awkward},
        "tokenizer": tokenizer.hash,
    }


def model() -> dict[str, Any]:
    """Logits of a seeded random model and 24 greedy tokens from two ragged prompts."""
    torch.set_num_threads(1)
    gpt = GPT(GPTConfig(vocab_size=96, sequence_len=48, n_layer=2, n_embd=32, n_head=4, n_kv_head=2))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.normal_(0.0, 0.2, generator=generator)
        logits = gpt(torch.arange(12)[None] * 7 % 96)[0, -1]
    prompts = [[1, 2, 3], [50, 40, 30, 20, 10, 5]]
    rows = generate(gpt, prompts, Sampling(max_new_tokens=24), stop_ids=[], pad_id=95, seeds=[0, 0])
    return {
        "logits": [round(value, 6) for value in logits.tolist()],
        "greedy": [list(row[0].ids) for row in rows],
        "logprobs": [[round(p, 6) for p in row[0].logprobs] for row in rows],
    }


def training(device: str = "cpu") -> dict[str, Any]:
    """The loss of each of 20 steps of base training with Muon."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(_world(), folder / "world")
        _tokenizer().save(folder / "tokenizer")
        settings = BaseSettings(
            n_layer=2, n_embd=32, n_head=2, sequence_len=64, batch_size=4, steps=20, log_every=1, validation_every=10
        )
        request = Request(
            "base",
            (folder / "world" / "documents.jsonl",),
            folder / "base",
            folder / "tokenizer",
            settings,
            device=device,
        )
        train(request, Console(quiet=True))
        load_checkpoint(folder / "base")
        lines = (folder / "base" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        "loss": [round(row["loss"], 6) for row in rows],
        "supervised_tokens": [row["supervised_tokens"] for row in rows],
        "val_loss": [round(row["val_loss"], 6) for row in rows if "val_loss" in row],
    }


def audit() -> dict[str, Any]:
    """audit.json of two sets of recorded responses, without times, versions, paths and run ids."""
    from kat.audit.report import audit as compare
    from kat.data.sources import load_choice_items
    from kat.evals.recorded import read_responses, run_recorded
    from kat.evals.registry import get_suite

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(_world(), folder)
        items = load_choice_items(folder / "test.jsonl").rows
        for arm, skill in (("a", 2), ("b", 3)):
            rows = [{"id": item.id, "response": _response(item, k, skill)} for k, item in enumerate(items)]
            (folder / f"{arm}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            suite = get_suite("scienceqa")(folder / "test.jsonl")
            run_recorded(suite, read_responses(folder / f"{arm}.jsonl", suite), folder / arm, model=arm)
        train_items = load_choice_items(folder / "train.jsonl").rows
        compare(folder / "a", folder / "b", folder / "out", train_items=train_items)
        return _stable(json.loads((folder / "out" / "audit.json").read_text()), str(folder))


def _response(item: ChoiceItem, k: int, skill: int) -> str:
    """Right in `skill` of 5 items, unreadable in 1 of 10, else the first option."""
    if k % 10 == 9:
        return "I am not sure."
    letter = item.letters[item.answer] if k * 7 % 5 < skill else "A"
    return f"The correct answer is {letter}. {item.choices[item.letters.index(letter)]}"


def _stable(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {key: _stable(v, folder) for key, v in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [_stable(v, folder) for v in value]
    return value.replace(folder, "FOLDER") if isinstance(value, str) else value


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "tokens": tokens,
    "model": model,
    "training": training,
    "audit": audit,
}


def differences(golden: Any, fresh: Any, tolerance: float, path: str = "") -> list[str]:
    """Where two JSON values differ by more than the tolerance, as lines `path: golden -> fresh`."""
    if isinstance(golden, dict) and isinstance(fresh, dict):
        keys = sorted(set(golden) | set(fresh))
        return [
            line for key in keys for line in differences(golden.get(key), fresh.get(key), tolerance, f"{path}/{key}")
        ]
    if isinstance(golden, list) and isinstance(fresh, list) and len(golden) == len(fresh):
        pairs = enumerate(zip(golden, fresh, strict=True))
        return [line for i, (g, f) in pairs for line in differences(g, f, tolerance, f"{path}/{i}")]
    if isinstance(golden, float) and isinstance(fresh, int | float):
        return [] if abs(golden - fresh) <= tolerance * max(1.0, abs(golden)) else [f"{path}: {golden} -> {fresh}"]
    return [] if golden == fresh else [f"{path}: {str(golden)[:80]} -> {str(fresh)[:80]}"]
