"""Does a reward model prefer what people preferred? Accuracy, margin, calibration on pairs of prompts it never saw.

The margin of a pair is score(chosen) − score(rejected); the pair is right above 0, and an exact tie (up to 1e-5) is
half right, so that a model which knows nothing scores exactly one half. Beside the model stand the rule that the longer
response is better, and the model itself blinded to the responses: it then sees two equal texts, and must be at one
half, or the labels have reached it some other way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from kat.data.preferences import Pair, load_pairs
from kat.density.folder import read_density
from kat.errors import EvidenceError, UsageError
from kat.evals.choice_metrics import as_metric
from kat.evals.protocol import DataSource, Judge, Judged, Message, ScoreType, Stamp
from kat.runs.files import hash_json, read_json
from kat.runs.schemas import Metric, Sample
from kat.stats.clustered import cr2
from kat.stats.intervals import mean_interval

if TYPE_CHECKING:
    from kat.model.reward import RewardCheckpoint

TIE = 1e-5  # float32 scores of equal texts differ by less, whatever batch they stand in
BINS = 10
RESAMPLES = 1_000
DECILES = np.arange(1, 10) / 10
MIN_SLICE = 20  # pairs; below it a slice is left out of the figures (its rows are in samples.jsonl)
BLIND = "…"  # stands for both responses
PROMPTS = "prompts.json"  # of a reward checkpoint: the ids of the prompts it was trained on


@dataclass(frozen=True)
class PairItem:
    """A pair with what the report splits by."""

    pair: Pair
    slices: dict[str, str]

    @property
    def id(self) -> str:
        return self.pair.id

    @property
    def hash(self) -> str:
        """sha256 of the prompt and both responses, chosen first."""
        return hash_json([self.pair.prompt.id, self.pair.chosen, self.pair.rejected])


class RewardBackend:
    """A reward checkpoint as the runner asks it. `trained_on` are the prompts that it saw; None where it can't say."""

    def __init__(self, checkpoint: "RewardCheckpoint") -> None:
        self._checkpoint = checkpoint
        self.name, self.identity = str(checkpoint.folder), checkpoint.identity
        self.context: int | None = checkpoint.model.config.sequence_len
        self.protocol: dict[str, object] = {
            "backend": "kat reward",
            "device": checkpoint.model.device.type,
            "dtype": str(checkpoint.model.head.weight.dtype).removeprefix("torch."),
        }
        path = checkpoint.folder / PROMPTS
        self.trained_on: frozenset[str] | None = frozenset(read_json(path)) if path.is_file() else None

    def prompt(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The prompt as text and as ids, up to where the assistant speaks."""
        from kat.tokenizer.chat import render_for_completion

        ids = render_for_completion(self._checkpoint.tokenizer, messages)
        return self._checkpoint.tokenizer.decode(ids), ids

    def judge(self, requests: Sequence[Judge]) -> list[list[float]]:
        """The score of each response of each request."""
        conversations = [request.messages for request in requests for _ in request.responses]
        scores = iter(self._checkpoint.score(conversations, [text for one in requests for text in one.responses]))
        return [[next(scores) for _ in request.responses] for request in requests]


class RewardSuite:
    """The suite over preference pairs; build it from a file with :meth:`load`."""

    name = "reward"
    version = "1"
    score_type: ScoreType = "bounded"
    primary = "accuracy"
    extractor_version: str | None = None

    def __init__(self, items: Sequence[PairItem], source: DataSource) -> None:
        self._items = list(items)
        self.data, self.data_hash, self.n_dropped = source.name, source.hash, source.n_dropped
        self.notes = source.notes
        self.settings: dict[str, object] = {"scoring": "reward", "ties": f"half, up to {TIE:g}"}

    @classmethod
    def load(cls, data: str | Path, *, density: Path | None = None) -> "RewardSuite":
        """The suite over a file of pairs; with the folder `density`, also by the deciles of the prompts' weights."""
        rows = load_pairs([Path(data)])
        items = [PairItem(pair, _slices(pair)) for pair in rows.rows]
        if density is not None:
            items = _with_deciles(items, density)
        return cls(items, DataSource(str(data), rows.hash, len(rows.faults), (rows.report(),) if rows.faults else ()))

    def open_backend(self, model: str, device: str) -> tuple[RewardBackend, list[str]]:
        """The reward checkpoint, and what to tell the user of it.

        Raises :class:`EvidenceError` where it was trained on any of these prompts: accuracy on them says nothing.
        """
        from kat.model.reward import load_reward

        backend = RewardBackend(load_reward(model, device))
        if backend.trained_on is None:
            return backend, [f"{model} does not say which prompts it was trained on: these may be among them"]
        prompts = {item.pair.prompt.id for item in self._items}
        if seen := len(prompts & backend.trained_on):
            raise EvidenceError(
                f"{model} was trained on {seen:,} of the {len(prompts):,} prompts of {self.data}; evaluate on a split "
                "by prompt (kat data pairs makes one)"
            )
        return backend, []

    def items(self) -> Sequence[PairItem]:
        """The pairs, in the file's order."""
        return self._items

    def requests(self, item: PairItem) -> Judge:
        """Both responses, and two equal ones for the blinded control."""
        return Judge(item.pair.prompt.messages, (item.pair.chosen, item.pair.rejected, BLIND, BLIND))

    def score(self, item: PairItem, responses: Sequence[Judged], stamp: Stamp) -> list[Sample]:
        """One row per pair; `choice_logprobs` are the scores of chosen, rejected and the two blinded responses."""
        (found,) = responses
        if not all(math.isfinite(score) for score in found.scores):
            raise EvidenceError(f"pair {item.id}: the scores {list(found.scores)} are no numbers; the model is broken")
        chosen, rejected = found.scores[:2]
        right = preferred(chosen - rejected)
        return [
            stamp.sample(
                prompt_hash=found.prompt_hash,
                prompt=found.prompt,
                cluster=item.pair.prompt.id,
                n_choices=2,
                choices=[item.pair.chosen, item.pair.rejected],
                expected="chosen",
                response="",
                finish_reason="scored",
                extracted={1.0: "chosen", 0.5: "tie", 0.0: "rejected"}[right],
                rule="tie" if right == 0.5 else "argmax",
                span=None,
                score=right,
                choice_logprobs=list(found.scores),
                slices=item.slices,
            )
        ]

    def summarise(self, samples: Sequence[Sample]) -> dict[str, Metric]:
        """Accuracy, margin, calibration and controls over all pairs, then accuracy by slice."""
        rows = sorted(samples, key=lambda row: (row.item_hash, row.item_id))
        margins, clusters = np.array([_margin(row) for row in rows]), [row.cluster for row in rows]
        p = 1 / (1 + np.exp(-np.clip(margins, -500, 500)))  # (n,) that the model's law gives to what was chosen
        blind = [preferred(_margin(row, 2)) for row in rows]
        found = {
            "accuracy": share([row.score for row in rows], clusters),
            "margin": _mean(margins, clusters),
            "log_loss": _mean(np.logaddexp(0.0, -margins), clusters),
            "brier": _bounded((1 - p) ** 2, clusters),
            "ece": _ece(margins, clusters),
            "longer_is_better": share([preferred(len(row.choices[0]) - len(row.choices[1])) for row in rows], clusters),
            "response_blind": share(blind, clusters),
        }
        for name, value in sorted({pair for row in rows for pair in row.slices.items()}, key=_slice_order):
            here = [row for row in rows if row.slices.get(name) == value]
            if MIN_SLICE <= len(here) < len(rows):
                found[f"accuracy@{name}={value}"] = share([row.score for row in here], [row.cluster for row in here])
        return found


def preferred(margin: float) -> float:
    """1 where the chosen response scores higher, 0 where the rejected one does, .5 for a tie."""
    return 0.5 if abs(margin) <= TIE else float(margin > 0)


def share(scores: Sequence[float], clusters: Sequence[str]) -> Metric:
    """A mean of right, tied and wrong: Wilson where no pair is tied and no prompt stands twice, else cluster-robust."""
    found = mean_interval(scores, "binary" if set(scores) <= {0.0, 1.0} else "bounded", clusters)
    return as_metric(found, found.method)


def _bounded(values: np.ndarray, clusters: Sequence[str]) -> Metric:
    found = mean_interval(values, "bounded", clusters)
    return as_metric(found, found.method)


def _mean(values: np.ndarray, clusters: Sequence[str], level: float = 0.95) -> Metric:
    """The mean of unbounded values with its cluster-robust t interval; one prompt alone has none."""
    groups = np.unique(clusters, return_inverse=True)[1]
    sums, sizes = np.bincount(groups, values), np.bincount(groups).astype(float)
    if len(sizes) < 2:
        mean = float(values.mean())
        return Metric(estimate=mean, low=mean, high=mean, level=level, n=len(values), method="one prompt: no interval")
    mean, error, df = cr2(sums, sizes)
    half = float(stats.t.ppf(0.5 + level / 2, df)) * error
    return Metric(
        estimate=mean, low=mean - half, high=mean + half, level=level, n=len(values), method="CR2 by prompt, t"
    )


def _ece(margins: np.ndarray, clusters: Sequence[str]) -> Metric:
    """Expected calibration error of the preferred side's probability, σ(|margin|), in 10 equal bins of [½, 1].

    Σ_b n_b/n · |mean confidence − share right| (Naeini, Cooper and Hauskrecht 2015), with the percentile interval of a
    bootstrap over prompts, from a fixed seed. It is biased upwards in small samples.
    """
    confidence = 1 / (1 + np.exp(-np.minimum(np.abs(margins), 500)))
    right = np.where(np.abs(margins) <= TIE, 0.5, margins > 0)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    groups = np.unique(clusters, return_inverse=True)[1]
    n_groups = int(groups.max()) + 1
    gaps = np.zeros((n_groups, BINS))  # of each prompt, in each bin: Σ (confidence − right), which is n_b × gap
    np.add.at(gaps, (groups, bins), confidence - right)
    sizes = np.bincount(groups)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)  # that each prompt is drawn
        drawn.append(np.abs(times @ gaps).sum() / (times @ sizes))
    estimate = float(np.abs(gaps.sum(0)).sum() / len(margins))
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    return Metric(
        estimate=estimate,
        low=min(low, estimate),
        high=max(high, estimate),
        level=0.95,
        n=len(margins),
        method=f"{BINS} bins, percentile bootstrap by prompt; biased upwards in small samples",
    )


def _margin(row: Sample, first: int = 0) -> float:
    scores = row.choice_logprobs
    if scores is None or len(scores) != 4:
        raise EvidenceError(f"pair {row.item_id}: holds no four scores; evaluate again")
    return scores[first] - scores[first + 1]


def _slices(pair: Pair) -> dict[str, str]:
    return ({"source": pair.prompt.source} if pair.prompt.source else {}) | dict(pair.prompt.slices)


def _with_deciles(items: Sequence[PairItem], folder: Path) -> list[PairItem]:
    """With the slice density_decile: 1 holds the prompts with the smallest weights (the crowd), 10 the rarest."""
    density = read_density(folder, embeddings=False)
    weight = {row.id: float(value) for row, value in zip(density.rows, density.weights, strict=True)}
    missing = {item.pair.prompt.id for item in items} - weight.keys()
    if missing:
        raise UsageError(
            f"--density {folder}: no weight for {len(missing):,} of the prompts (the first: {min(missing):.12}…); run "
            "`kat density update` with these prompts too"
        )
    edges = np.quantile(sorted({item.pair.prompt.id: weight[item.pair.prompt.id] for item in items}.values()), DECILES)
    return [
        PairItem(
            item.pair,
            item.slices | {"density_decile": str(1 + int(np.searchsorted(edges, weight[item.pair.prompt.id])))},
        )
        for item in items
    ]


def _slice_order(pair: tuple[str, str]) -> tuple[str, int, str]:
    name, value = pair
    return name, int(value) if value.isdigit() else 0, value
