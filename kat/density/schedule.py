"""Prompt sampling is data: which prompt is drawn when is drawn once, hashed and saved.

The arms of a study differ in this file and in nothing else, so the draws of every arm come from the same uniform
numbers: the t-th prompt of an arm is the inverse of its cumulative weights at the t-th number of the seed's stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kat.errors import EvidenceError, UsageError
from kat.runs.files import hash_json, read_json, write_json

SCHEMA = "kat.schedule/1"
Sampling = Literal["uniform", "density", "placebo"]
DECILES = 10


@dataclass(frozen=True)
class Schedule:
    """Prompt ids in the order in which they are drawn, and where they come from.

    seed: of the stream of uniform numbers. weights_hash: of the ids and weights that were drawn from, None if uniform.
    """

    ids: tuple[str, ...]
    sampling: Sampling
    seed: int
    weights_hash: str | None

    @cached_property
    def hash(self) -> str:
        """sha256 of all of it: equal hashes, equal draws from the same weights."""
        return hash_json(self._content())

    def _content(self) -> dict[str, Any]:
        content = {"sampling": self.sampling, "seed": self.seed, "weights_hash": self.weights_hash}
        return {"schema": SCHEMA, **content, "ids": list(self.ids)}


def hash_weights(ids: Sequence[str], weights: np.ndarray) -> str:
    """sha256 of ids and float64 weights in their order."""
    return hash_json({"ids": list(ids), "weights": np.asarray(weights, dtype="<f8").tobytes().hex()})


def draw_schedule(
    ids: Sequence[str], n: int, seed: int, weights: np.ndarray | None = None, sampling: Sampling = "uniform"
) -> Schedule:
    """n independent draws with replacement from `ids`, with probabilities `weights` (positive, sum 1).

    UsageError where weights and sampling don't go together: uniform draws take none, the other two can't do without.
    """
    ids = tuple(ids)
    if not ids:
        raise UsageError("no prompts to draw from")
    if len(set(ids)) < len(ids):
        raise UsageError(f"{len(ids) - len(set(ids)):,} of {len(ids):,} prompt ids stand twice; name each prompt once")
    if n < 1:
        raise UsageError(f"{n} draws: a schedule needs at least one")
    if sampling not in get_args(Sampling):
        raise UsageError(f"sampling {sampling!r}: use {', '.join(get_args(Sampling))}")
    if (weights is None) != (sampling == "uniform"):
        raise UsageError(f"sampling {sampling!r} {'needs' if weights is None else 'takes no'} weights")
    probabilities = np.full(len(ids), 1 / len(ids)) if weights is None else _checked(weights, len(ids))
    edges = np.cumsum(probabilities)
    numbers = np.random.default_rng(seed).random(n)
    drawn = np.searchsorted(edges / edges[-1], numbers, side="right")  # (n,), < len(ids) since numbers < 1
    return Schedule(
        tuple(ids[i] for i in drawn), sampling, seed, None if weights is None else hash_weights(ids, probabilities)
    )


def placebo_weights(weights: np.ndarray, lengths: Sequence[int], seed: int) -> np.ndarray:
    """The same weights, permuted among prompts of the same length decile: same effective sample, no density in them.

    lengths: (n,) of the prompts, in any unit; equal lengths share a decile.
    """
    weights = _checked(weights, len(lengths))
    edges = np.quantile(np.asarray(lengths), np.arange(1, DECILES) / DECILES)
    decile = np.searchsorted(edges, lengths, side="right")  # (n,) 0..9
    generator = np.random.default_rng(seed)
    placebo = weights.copy()
    for d in range(DECILES):
        members = np.flatnonzero(decile == d)
        placebo[members] = weights[generator.permutation(members)]
    return placebo


def _checked(weights: np.ndarray, n: int) -> np.ndarray:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,):
        raise UsageError(f"weights of shape {weights.shape} for {n:,} prompts; one weight a prompt")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UsageError("a weight is not positive and finite")
    if abs(weights.sum() - 1) > 1e-9:
        raise UsageError(f"the weights sum to {weights.sum():.12g}, not to 1; load those of exactly these prompts")
    return weights


def save_schedule(path: Path, schedule: Schedule) -> None:
    """Write a schedule and its hash as JSON, atomically."""
    write_json(path, {**schedule._content(), "hash": schedule.hash})


def load_schedule(path: Path) -> Schedule:
    """Read a schedule. UsageError where the file is none, EvidenceError where it was changed after saving."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UsageError(f"{path}: no schedule ({SCHEMA})")
    try:
        ids, sampling, seed = tuple(content["ids"]), content["sampling"], content["seed"]
        schedule = Schedule(ids, sampling, seed, content["weights_hash"])
        same = schedule.hash == content["hash"]
    except (KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise EvidenceError(f"{path}: damaged or edited (its content has not the hash that it states); draw it again")
    return schedule
