"""Do kat's trainers and trl's agree over whole runs? The same jobs on the microworld by both, over several seeds.

    python benchmarks/trl_agreement.py [SEEDS]

GRPO takes 20 steps on the same schedule with the microworld's true reward; the reward model and SFT take 40. At the
first step both trainers see the very same completions, and go on with their own; how far seeds differ says what noise
is.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from kat.data import microworld, microworld_preferences
from kat.evals.rewards import open_reward
from kat.runs.settings import BaseSettings, GrpoSettings, RewardSettings, SftSettings, TokenizerSettings
from kat.trainers.stages import Request, train, train_tokenizer_stage

QUIET = Console(quiet=True)
TRL = "kat.trainers.trl:TrlTrainer"
LAST = 5  # steps whose rewards are averaged
SHORT = {"save_every": 100, "log_every": 1}


def policy(here: Path) -> Path:
    """A small model that has learned to talk about animals, made once."""
    microworld.write(microworld.build(0), here)
    microworld_preferences.write_preferences(microworld_preferences.build_preferences(0), here)
    texts = [here / "documents.jsonl", here / "sft_talk.jsonl"]
    train_tokenizer_stage(texts, here / "tokenizer", TokenizerSettings(vocab_size=640), QUIET)
    shape: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 2, "sequence_len": 96, "embedding_lr": 0.02}
    base = BaseSettings(**shape, batch_size=8, steps=300, schedule="wsd", validation_share=0)
    train(Request("base", (texts[0],), here / "base", here / "tokenizer", base, device="cpu"), QUIET)
    talk = SftSettings(batch_size=8, steps=300, peak=0.5, embedding_lr=0.02, validation_share=0, keep_best=False)
    train(Request("sft", (texts[1],), here / "sft", here / "base", talk, device="cpu"), QUIET)
    return here / "sft"


def both(asked: Request) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The logs of the run by kat and by trl."""
    logs = []
    for name, trainer in (("native", "native"), ("trl", TRL)):
        out = asked.out.with_name(f"{asked.out.name}-{name}")
        train(replace(asked, out=out, trainer=trainer), QUIET)
        logs.append([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
    return logs[0], logs[1]


def report(what: str, native: list[float], trl: list[float]) -> None:
    """One row: means, paired difference with its 95 % interval, and how far the seeds of one trainer differ."""
    difference = np.array(trl) - np.array(native)
    half = float(stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference)))
    print(
        f"| {what} | {np.mean(native):.4f} | {np.mean(trl):.4f} | {difference.mean():+.4f} "
        f"[{difference.mean() - half:+.4f}, {difference.mean() + half:+.4f}] | {np.std(native, ddof=1):.4f} |",
        flush=True,
    )


def of_grpo(here: Path, init: Path, optimizer: str, seeds: int) -> None:
    """20 steps of 64 completions by each trainer."""
    settings = GrpoSettings(
        **{"steps": 20, "batch_size": 64, "max_new_tokens": 20, "optimizer": optimizer, "lr": 1e-3},
        **{"peak": 1.0 if optimizer == "adamw" else 0.3, "embedding_lr": 0.02, **SHORT},
    )
    reward = open_reward(["microworld"])
    first, same, ends = [], [], []
    for seed in range(seeds):
        out = here / f"grpo-{optimizer}-{seed}"
        a, b = both(Request("grpo", (here / "prompts.jsonl",), out, init, settings, seed, "cpu", reward=reward))
        equal = [x["reward"] == y["reward"] for x, y in zip(a, b, strict=True)]
        same.append(equal.index(False) if False in equal else len(equal))
        first.append(max(abs(a[0][key] - b[0][key]) for key in ("loss", "grad_norm")))
        ends.append([float(np.mean([row["reward"] for row in log[-LAST:]])) for log in (a, b)] + [a[0]["reward"]])
    kat, trl, begin = map(list, zip(*ends, strict=True))
    title = f"GRPO, {optimizer}"
    report(f"{title}: reward of the last {LAST} steps (of the first: {np.mean(begin):.4f})", kat, trl)
    print(f"| {title}: loss and gradient norm of step 1, largest difference | | | {max(first):.1e} | |")
    print(f"| {title}: steps with the very same rewards, by seed | | | {', '.join(map(str, same))} | |", flush=True)


def of_pairs_and_talks(here: Path, init: Path, seeds: int) -> None:
    """40 steps of the reward model and of SFT by each trainer."""
    common: dict[str, Any] = {"steps": 40, "batch_size": 16, "validation_every": 40, "keep_best": False, **SHORT}
    judge = RewardSettings(**common, validation=(str(here / "pairs_validation.jsonl"),))
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        files = (here / "pairs_train.jsonl",)
        a, b = both(Request("reward", files, here / f"reward-{seed}", init, judge, seed, "cpu"))
        for key in ("val_accuracy", "val_loss"):
            found.setdefault(f"reward model, muon: {key} after 40 steps", []).append((a[-1][key], b[-1][key]))
        files, talk = (here / "sft_talk.jsonl",), SftSettings(**common)
        a, b = both(Request("sft", files, here / f"sft-{seed}", here / "base", talk, seed, "cpu"))
        found.setdefault("SFT, muon: val_loss after 40 steps", []).append((a[-1]["val_loss"], b[-1]["val_loss"]))
    for what, values in found.items():
        report(what, *map(list, zip(*values, strict=True)))


def main(seeds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kat-trl-") as name:
        init = policy(Path(name))
        print("| | kat | trl | difference, 95 % | sd over seeds |\n|---|---|---|---|---|")
        for optimizer in ("adamw", "muon"):
            of_grpo(Path(name), init, optimizer, seeds)
        of_pairs_and_talks(Path(name), init, seeds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
