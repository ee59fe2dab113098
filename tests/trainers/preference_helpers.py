"""Tiny prompts, pairs and requests of the reward stage and of GRPO."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kat.runs.settings import GrpoSettings, RewardSettings
from kat.trainers.stages import Request

WORDS = ["kato", "ri", "lone", "méßu", "漢", "toto", "neka"]
GRPO = {
    "steps": 8,
    "batch_size": 8,
    "prompts_per_rollout": 4,
    "completions": 4,
    "max_new_tokens": 6,
    "save_every": 3,
    "peak": 1.0,
    "matrix_lr": 0.01,
    "embedding_lr": 0.01,
    "kl_coef": 0.1,
}
REWARD = {"steps": 9, "batch_size": 4, "save_every": 4, "log_every": 2, "validation_every": 3, "validation_share": 0.2}


@dataclass(frozen=True)
class Said:
    """A reward that counts a letter; its identity is its letter."""

    letter: str = "o"
    factor: float = 1.0

    @property
    def name(self) -> str:
        return f"letter {self.letter}"

    @property
    def identity(self) -> str:
        return f"{self.letter} {self.factor}"

    def __call__(self, prompts, responses) -> list[float]:
        assert len(prompts) == len(responses)
        return [self.factor * response.count(self.letter) for response in responses]


def said(generator: random.Random, most: int) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(1, most)))


def prompts(path: Path, n: int = 12, seed: int = 0) -> Path:
    """Prompts of unequal length, no two alike."""
    generator = random.Random(seed)
    texts = {f"{said(generator, 4)} {k}": None for k in range(n)}
    path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in texts))
    return path


def pairs(path: Path, n: int = 40, seed: int = 0) -> Path:
    """The chosen response says `toto` more often; two pairs a prompt, responses of unequal length."""
    generator = random.Random(seed)
    rows = []
    for k in range(n):
        prompt = [{"role": "user", "content": f"ri {k // 2}"}]
        good, bad = f"{said(generator, 3)} toto toto", f"{said(generator, 4)} neka"
        rows.append({"id": f"pair-{k}", "prompt": prompt, "chosen": good, "rejected": bad})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def grpo_request(here: Path, init: Path, out: str = "grpo", reward: Any = None, **changes: Any) -> Request:
    data = here / "prompts.jsonl"
    if not data.exists():
        prompts(data)
    fields = {key: changes.pop(key) for key in list(changes) if key in ("seed", "max_steps", "data")}
    settings = GrpoSettings(**{**GRPO, **changes})
    given = {"seed": 1, "data": (data,), **fields}
    return Request(
        stage="grpo", out=here / out, init=init, settings=settings, device="cpu", reward=reward or Said(), **given
    )


def reward_request(here: Path, init: Path, out: str = "reward", **changes: Any) -> Request:
    data = here / "pairs.jsonl"
    if not data.exists():
        pairs(data)
    fields = {key: changes.pop(key) for key in list(changes) if key in ("seed", "max_steps", "data")}
    settings = RewardSettings(**{**REWARD, **changes})
    given = {"seed": 1, "data": (data,), **fields}
    return Request(stage="reward", out=here / out, init=init, settings=settings, device="cpu", **given)
