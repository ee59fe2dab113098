"""Are untrained models told apart? 12 models with random weights, 66 pairs, 200 items whose key is unbalanced.

    python benchmarks/untrained_twins.py

None of them knows anything, so a report that calls a pair different is wrong. Beside kat's verdict (rotation-averaged
letters, sign-flip test and interval) stands what others do: one order of the options and McNemar's exact test. Then one
model of each pair gets a skill worth 5 points (some items that it always has right), and the pair is judged again.
"""

import itertools
import random
import tempfile
from pathlib import Path

import numpy as np
import torch

from kat.audit.load import load_evidence
from kat.audit.pair import pair
from kat.audit.table import table
from kat.data.choices import ChoiceItem
from kat.evals.choices import Choices
from kat.evals.protocol import DataSource
from kat.evals.runner import run_suite
from kat.model.backends import NativeBackend
from kat.model.checkpoint import Checkpoint
from kat.model.config import GPTConfig
from kat.model.gpt import GPT
from kat.stats.compare import compare_paired
from kat.stats.paired import mcnemar_exact
from kat.tokenizer.bpe import Tokenizer, train_tokenizer

MODELS, ITEMS, SKILL = 12, 200, 0.05
WORDS = ("river", "stone", "owl", "glass", "seven", "mill", "green", "garden", "winter", "bridge", "copper", "lantern")


def items(seed: int = 0) -> list[ChoiceItem]:
    """200 made-up questions of 2 to 4 options; the first option is right in 60 % of them."""
    draw = random.Random(seed)
    made = []
    for i in range(ITEMS):
        options = tuple(draw.sample(WORDS, draw.choice((2, 2, 3, 4))))
        answer = 0 if draw.random() < 0.6 else draw.randrange(len(options))
        question = f"Which word stands in box {i} beside the {draw.choice(WORDS)} and the {draw.choice(WORDS)}?"
        made.append(ChoiceItem(f"item-{i}", question, options, answer, cluster=f"item-{i}"))
    return made


def twin(seed: int, tokenizer: Tokenizer) -> NativeBackend:
    """A model with random weights, none of them zero."""
    model = GPT(GPTConfig(tokenizer.vocab_size, sequence_len=128, n_layer=2, n_embd=64, n_head=4, n_kv_head=4))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
    return NativeBackend(Checkpoint(Path(f"twin-{seed}"), model.eval(), tokenizer, {}, f"{seed:064d}"))


def measure(models: int = MODELS) -> dict[str, float]:
    """Shares of pairs that are called different: by kat, by plain letters, and of those with a planted skill."""
    torch.set_num_threads(1)
    questions = items()
    tokenizer = train_tokenizer([f"{q.question} {' '.join(q.choices)}" for q in questions], vocab_size=400)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(models):
            suite = Choices(questions, DataSource("untrained twins", "0" * 64))
            run_suite(suite, twin(i, tokenizer), Path(folder) / str(i))
        evidence = [load_evidence(Path(folder) / str(i)) for i in range(models)]
    called = plain = found = 0
    pairs = list(itertools.combinations(range(models), 2))
    for i, j in pairs:
        paired = pair(evidence[i], evidence[j])
        data = table(paired)
        called += compare_paired(data.a, data.b, "bounded", data.clusters).direction != "not shown"
        first = np.array([[item.a[0].score, item.b[0].score] for item in paired.items])
        plain += mcnemar_exact(int((first[:, 1] > first[:, 0]).sum()), int((first[:, 0] > first[:, 1]).sum())) <= 0.05
        found += (
            compare_paired(data.a, skilled(data.b, seed=i * models + j), "bounded", data.clusters).direction == "better"
        )
    return {
        "called different by kat": called / len(pairs),
        "called different by exact McNemar on plain letters": plain / len(pairs),
        "skill of 5 points found by kat": found / len(pairs),
    }


def skilled(scores: np.ndarray, seed: int) -> np.ndarray:
    """The scores of a model that in addition always has some items right: 5 points more on average."""
    gained, better = 0.0, scores.copy()
    for index in np.random.default_rng(seed).permutation(len(scores)):
        if gained >= SKILL * len(scores):
            break
        gained += 1.0 - better[index]
        better[index] = 1.0
    return better


if __name__ == "__main__":
    for name, share in measure().items():
        print(f"{name}: {share:.1%}")
