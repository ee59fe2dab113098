"""The density folder: embeddings, weights, ids and what they were made from; and the weights of given prompts from it.

    embeddings.npy   (n, d) float16, to be memory-mapped
    weights.npy      (n,) float64, > 0, sum 1
    ids.jsonl        one row a prompt, in the order of the arrays
    metadata.json    model, data, k, dose and statistics, with the sha256 of the other three

Weights that don't fit what is asked are an error. Falling back to uniform weights would turn the treatment of a study
into its control.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kat.density.weights import Weights
from kat.errors import EvidenceError, UsageError
from kat.runs.files import canonical_json, hash_file, hash_json, read_json, write_json, write_text

SCHEMA = "kat.density/1"
ARRAYS = ("embeddings.npy", "weights.npy", "ids.jsonl")
PREVIEW = 200  # characters of a prompt that are kept to show it


class Statistics(BaseModel):
    """Of the weights. The mean of n weights that sum to 1 is 1/n, so no minimum above it can be."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    min: float
    mean: float
    median: float
    max: float
    ess: float = Field(description="effective sample size 1 / Σ w² over the distinct prompts")
    total_variation: float = Field(description="from uniform, over the distinct prompts: the dose that was reached")
    max_over_median: float
    radius_cv: float = Field(description="coefficient of variation of the neighbour distances r")


class Metadata(BaseModel):
    """metadata.json."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_: str = Field(default=SCHEMA, alias="schema")
    n: int = Field(description="prompts")
    n_distinct: int = Field(description="texts; prompts of the same text share one weight")
    dim: int
    dtype: str = "float16"
    model: str = Field(description="the embedder as it was named")
    model_hash: str
    data_hash: str = Field(description="of the set of prompt ids")
    k: int = Field(description="r is the geometric mean of the distances to neighbours k to 2k")
    dose: float = Field(description="the total variation from uniform that was asked for")
    alpha: float
    estimator: str
    neighbours: str
    statistics: Statistics
    files: dict[str, str] = Field(description="sha256 by name")
    versions: dict[str, str]

    @model_validator(mode="after")
    def _possible(self) -> "Metadata":
        s = self.statistics
        if not (0 < s.min <= s.mean <= s.max < 1 and s.min <= s.median <= s.max):
            raise ValueError(f"impossible statistics: min {s.min:.3g}, mean {s.mean:.3g}, max {s.max:.3g}")
        if not math.isclose(s.mean, 1 / self.n, rel_tol=1e-9):
            raise ValueError(f"impossible statistics: {self.n} weights that sum to 1 have no mean of {s.mean:.6g}")
        if not 1 <= s.ess <= self.n_distinct * (1 + 1e-9) or not 0 <= s.total_variation < 1:
            raise ValueError(f"impossible statistics: an effective sample of {s.ess:.6g} from {self.n_distinct}")
        return self


@dataclass(frozen=True)
class Row:
    """A line of ids.jsonl. `radius` is r; `text` the start of the prompt; `text_hash` what makes two prompts one."""

    id: str
    text_hash: str
    source: str
    n_chars: int
    radius: float
    text: str


@dataclass(frozen=True)
class Density:
    """A density folder in memory, all in one order. `embeddings` (n, d) float16 is a read-only memory map."""

    folder: Path
    metadata: Metadata
    rows: list[Row]
    weights: np.ndarray  # (n,) float64
    embeddings: np.ndarray


def hash_data(ids: Sequence[str]) -> str:
    """sha256 of a set of prompt ids; their order is no part of it."""
    return hash_json(sorted(ids))


def finish_folder(folder: Path, rows: Sequence[Row], found: Weights, **said: Any) -> None:
    """Write weights, ids and metadata beside embeddings.npy, which is there. `said`: the other fields of Metadata."""
    np.save(folder / "weights.npy", found.values)
    write_text(folder / "ids.jsonl", "".join(canonical_json(vars(row)) + "\n" for row in rows))
    values = found.values
    metadata = Metadata(
        n=len(rows),
        n_distinct=found.n_distinct,
        data_hash=hash_data([row.id for row in rows]),
        k=found.k,
        alpha=found.alpha,
        statistics=Statistics(
            min=float(values.min()),
            mean=float(values.mean()),
            median=float(np.median(values)),
            max=float(values.max()),
            ess=found.ess,
            total_variation=found.dose,
            max_over_median=found.max_over_median,
            radius_cv=found.cv,
        ),
        files={name: hash_file(folder / name) for name in ARRAYS},
        **said,
    )
    write_json(folder / "metadata.json", metadata.model_dump(by_alias=True))


def read_metadata(folder: Path) -> Metadata:
    """metadata.json. UsageError where there is none, EvidenceError where it can't be true."""
    path = Path(folder) / "metadata.json"
    if not path.is_file():
        raise UsageError(f"{folder}: no density folder (no metadata.json in it); make one with `kat density build`")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UsageError(f"{path}: not the metadata of a density folder ({SCHEMA})")
    try:
        return Metadata.model_validate(content)
    except ValidationError as error:
        why = error.errors()[0]
        where = ".".join(map(str, why["loc"]))
        raise EvidenceError(f"{path}: {f'{where}: ' if where else ''}{why['msg']}; build the folder again") from None


def read_density(folder: Path, embeddings: bool = True) -> Density:
    """A whole folder, checked against its hashes. `embeddings`: hash that file too, which takes the longest."""
    folder = Path(folder)
    metadata = read_metadata(folder)
    for name in ARRAYS:
        path = folder / name
        if not path.is_file():
            raise EvidenceError(f"{path}: missing; build the folder again")
        if (embeddings or name != "embeddings.npy") and hash_file(path) != metadata.files.get(name):
            raise EvidenceError(f"{path}: damaged or edited (its sha256 is not that in metadata.json); build it again")
    with (folder / "ids.jsonl").open(encoding="utf-8") as file:
        rows = [Row(**json.loads(line)) for line in file]
    weights = np.load(folder / "weights.npy", allow_pickle=False)
    matrix = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    if not len(rows) == metadata.n == len(weights) == len(matrix):
        raise EvidenceError(f"{folder}: its files disagree on the number of prompts; build it again")
    return Density(folder, metadata, rows, weights, matrix)


def load_density(
    folder: Path,
    prompt_ids: Sequence[str],
    *,
    model: str | None = None,
    k: int | None = None,
    dose: float | None = None,
    subset: bool = False,
) -> np.ndarray:
    """Weights (n,) float64 of these prompts in their order, > 0 and with sum 1. Never a uniform stand-in.

    An id that is given m times shares its weight among the m. The folder must be of exactly this set of prompts, or
    hold them all where a `subset` is meant. `model` (an identity), `k` and `dose` refuse weights that were made
    otherwise; so does a kat checkpoint that lies where the embedder lay and is another by now. UsageError, one line, on
    all that does not fit; EvidenceError where the folder was damaged.
    """
    density = read_density(folder, embeddings=False)
    said = density.metadata
    for name, asked, there in (("model", model, said.model_hash), ("k", k, said.k), ("dose", dose, said.dose)):
        if asked is not None and asked != there:
            short = (f"{asked:.12}", f"{there:.12}") if name == "model" else (asked, there)
            raise UsageError(f"{folder}: stale weights: {name} is {short[1]} there, {short[0]} here; build them anew")
    _refuse_retrained(folder, said)
    if not prompt_ids:
        raise UsageError(f"{folder}: weights of no prompts were asked for")
    weight_of = {row.id: weight for row, weight in zip(density.rows, density.weights.tolist(), strict=True)}
    copies = Counter(prompt_ids)
    if missing := [one for one in copies if one not in weight_of]:
        raise UsageError(
            f"{folder}: no weight for {len(missing):,} of {len(copies):,} prompts (the first: {missing[0]:.16}); "
            "run `kat density update` with these prompts"
        )
    if not subset and len(copies) < len(weight_of):
        raise UsageError(
            f"{folder}: weights of {len(weight_of):,} prompts, and {len(copies):,} of them are asked for: their "
            "density is another; run `kat density update` with these prompts"
        )
    values = np.array([weight_of[one] / copies[one] for one in prompt_ids])
    return values / math.fsum(values)


def _refuse_retrained(folder: Path, said: Metadata) -> None:
    """UsageError where the checkpoint that embedded the prompts was trained anew since, in its place."""
    place = Path(said.model)
    if not (place / "kat.json").is_file():
        return  # minilm, an hf: folder, or a checkpoint that is gone
    from kat.model.checkpoint import read_meta

    there = str(read_meta(place).get("identity"))
    if there != said.model_hash:
        raise UsageError(
            f"{folder}: stale weights: {place} is {there:.12} by now and was {said.model_hash:.12} when it embedded "
            "the prompts; build them anew"
        )
