"""How different a model's answers to one prompt are: the Vendi score of n samples at temperature 1, prompt by prompt.

The primary figure is the Vendi score on one frozen embedder's vectors of the first `window` tokens of each answer; an
answer that is shorter is embedded whole, so that none is ever left out. The token metrics are of all answers that have
the window, cut to it. Length, truncation, refusals and the reward stand beside: diversity counts only where the reward
is not inferior (see :mod:`kat.audit.diversity`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy import stats

from kat.data.preferences import Prompt, load_prompts
from kat.errors import EvidenceError, UsageError
from kat.evals.protocol import DataSource, Generate, Generated, ScoreType, Stamp
from kat.runs.schemas import Metric, Sample
from kat.stats.diversity import token_metrics, vendi_score
from kat.stats.intervals import mean_interval
from kat.stats.windows import QUANTILE, WANTED, common_window, first_tokens, tokens
from kat.stats.wording import is_refusal

if TYPE_CHECKING:
    from kat.density.embed import Embedder

LEVEL = 0.95


class Judge(Protocol):
    """A reward that no arm trained on; kat.evals.rewards opens one."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]: ...


@dataclass(frozen=True)
class Asked:
    """One prompt; its id is the hash of its messages, so it is its content's hash too."""

    prompt: Prompt

    @property
    def id(self) -> str:
        return self.prompt.id

    @property
    def hash(self) -> str:
        return self.prompt.id


class Diversity:
    """The suite over prompts; build it from files with :meth:`load`."""

    name = "diversity"
    version = "1"
    score_type: ScoreType = "real"
    primary = "vendi"
    extractor_version: str | None = None

    def __init__(
        self,
        prompts: Sequence[Prompt],
        source: DataSource,
        embedder: "Embedder",
        judge: Judge | None = None,
        *,
        draws: int = 8,
        max_new_tokens: int = 128,
        window: int | None = None,
    ) -> None:
        if draws < 2:
            raise UsageError(f"draws {draws}: of one answer a prompt no diversity can be said; take at least 2")
        if window is not None and window < 1:
            raise UsageError(f"window {window}: at least 1 token")
        self._items, self.embedder, self.judge = [Asked(prompt) for prompt in prompts], embedder, judge
        self.data, self.data_hash, self.n_dropped, self.notes = source.name, source.hash, source.n_dropped, source.notes
        self.draws, self.max_new_tokens, self.window = draws, max_new_tokens, window or WANTED
        self.fixed = window is not None
        self._vectors: dict[str, np.ndarray] = {}
        self.settings: dict[str, object] = {
            "scoring": "generate",
            "draws": draws,
            "max_new_tokens": max_new_tokens,
            "temperature": 1.0,
            "top_k": None,
            "window": self.window,
            "window_quantile": None if self.fixed else QUANTILE,
            "embedder": embedder.identity,
            "reward": judge.identity if judge else None,
        }

    @classmethod
    def load(
        cls,
        data: Path | None = None,
        *,
        embedder: str = "minilm",
        reward: Sequence[str] = (),
        draws: int = 8,
        max_new_tokens: int = 128,
        window: int | None = None,
    ) -> "Diversity":
        """The suite over a .jsonl(.gz) of prompts. `embedder` and `reward` are opened by their names; a `window` that
        is given is kept as it is, the default of 64 tokens is lowered where too many answers are shorter."""
        from kat.density.embed import open_embedder

        if data is None:
            raise UsageError("diversity: name a file of prompts with --data")
        rows = load_prompts([data])
        source = DataSource(str(data), rows.hash, len(rows.faults), (rows.report(),) if rows.faults else ())
        judge = None
        if reward:
            from kat.evals.rewards import open_reward

            judge = open_reward(reward)
        return cls(
            rows.rows,
            source,
            open_embedder(embedder),
            judge,
            draws=draws,
            max_new_tokens=max_new_tokens,
            window=window,
        )

    def items(self) -> Sequence[Asked]:
        """The prompts, in the file's order."""
        return self._items

    def requests(self, item: Asked) -> Generate:
        """`draws` samples at temperature 1, without top-k."""
        return Generate(item.prompt.messages, self.max_new_tokens, temperature=1.0, n=self.draws)

    def score(self, item: Asked, responses: Sequence[Generated], stamp: Stamp) -> list[Sample]:
        """One row an answer. The score of each is the Vendi score of them all; its reward and its length are slices."""
        texts = [response.text for response in responses]
        try:
            vendi = vendi_score(self.embed(texts, self.window))
        except EvidenceError as error:
            raise EvidenceError(f"prompt {item.id[:12]}: {error} (embedder {self.embedder.name})") from None
        rewards = [f"{reward!r}" for reward in self._rewards(item.prompt, texts)]
        return [
            stamp.sample(
                prompt_hash=response.prompt_hash,
                prompt=response.prompt,
                cluster=item.hash,
                draw=draw,
                n_choices=0,
                choices=[],
                expected=None,
                response=response.text,
                finish_reason=response.finish_reason,
                extracted=None,
                rule=None,
                span=None,
                score=vendi,
                slices=dict(item.prompt.slices)
                | {"tokens": str(len(tokens(response.text)))}
                | ({"reward": rewards[draw]} if rewards else {}),
            )
            for draw, response in enumerate(responses)
        ]

    def embed(self, texts: Sequence[str], window: int) -> np.ndarray:
        """(n, d) vectors of the first `window` tokens of each text; each different text is embedded once."""
        cut = [first_tokens(text, window) for text in texts]
        new = [text for text in dict.fromkeys(cut) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self.embedder.embed(new), strict=True))
        return np.stack([self._vectors[text] for text in cut])

    def _rewards(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        if self.judge is None:
            return []
        values = [float(value) for value in self.judge([prompt] * len(texts), texts)]
        if len(values) != len(texts) or not np.isfinite(values).all():
            raise EvidenceError(
                f"prompt {prompt.id[:12]}: reward {self.judge.name} gave {values[:3]} … for {len(texts)} answers; one "
                "finite number each is needed"
            )
        return values

    def _vendi(self, rows: Sequence[Sample], window: int) -> np.ndarray:
        """(n,) the Vendi score of each row's prompt, from the first `window` tokens of its answers."""
        if window == self.window:
            return np.array([row.score for row in rows])
        answers: dict[str, list[str]] = {}
        for row in rows:
            answers.setdefault(row.item_hash, []).append(row.response)
        scores = {item: vendi_score(self.embed(texts, window)) for item, texts in answers.items()}
        return np.array([scores[row.item_hash] for row in rows])

    def summarise(self, samples: Sequence[Sample]) -> dict[str, Metric]:
        """Every metric from the rows: means over prompts with intervals, figures of the whole set without."""
        rows = sorted(samples, key=lambda row: (row.item_hash, row.draw))
        texts = [row.response for row in rows]
        lengths = np.array([int(row.slices["tokens"]) for row in rows], dtype=np.float64)
        window = self.window if self.fixed else common_window([[int(n) for n in lengths]], self.window).size
        found = {
            "vendi": _mean(rows, self._vendi(rows, window)),
            "vendi_across": _point(vendi_score(self.embed(texts, window)), len(texts)),
        }
        found |= {name: _point(value, len(texts)) for name, value in token_metrics(texts, window).items()}
        found |= {
            "window": _point(window, len(texts)),
            "excluded_rate": _point(float((lengths < window).mean()), len(texts)),
            "length_mean": _mean(rows, lengths),
            "length_sd": _point(float(lengths.std(ddof=1)), len(texts)),
            "refusal_rate": _share(rows, np.array([float(is_refusal(text)) for text in texts])),
        }
        if any(row.finish_reason != "recorded" for row in rows):
            found["truncation_rate"] = _share(rows, np.array([float(row.finish_reason == "length") for row in rows]))
        if self.judge is not None:
            found["reward"] = _mean(rows, np.array([float(row.slices["reward"]) for row in rows]))
        return found


def by_prompt(rows: Sequence[Sample], values: np.ndarray) -> np.ndarray:
    """(prompts,) means of a value (rows,) over the answers to each prompt; `rows` are sorted by prompt."""
    keys = [row.item_hash for row in rows]
    return np.array([np.mean([values[i] for i in group]) for _, group in groupby(range(len(keys)), keys.__getitem__)])


def _share(rows: Sequence[Sample], values: np.ndarray) -> Metric:
    """The mean over prompts of values in [0, 1]."""
    e = mean_interval(by_prompt(rows, values), "bounded", level=LEVEL)
    return Metric(
        estimate=e.estimate, low=e.low, high=e.high, level=LEVEL, n=e.n, method=f"mean over prompts, {e.method}"
    )


def _mean(rows: Sequence[Sample], values: np.ndarray) -> Metric:
    means = by_prompt(rows, values)
    mean, n = float(means.mean()), len(means)
    if n < 2:
        return Metric(estimate=mean, low=mean, high=mean, level=LEVEL, n=n, method="one prompt: no interval")
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * means.std(ddof=1) / np.sqrt(n))
    return Metric(estimate=mean, low=mean - half, high=mean + half, level=LEVEL, n=n, method="mean over prompts, t")


def _point(value: float, n: int) -> Metric:
    value = float(value)
    return Metric(estimate=value, low=value, high=value, level=LEVEL, n=n, method="of all answers: no interval")
