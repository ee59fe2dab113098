"""Bits per byte of documents: nats / (ln 2 · UTF-8 bytes), summed over documents before dividing.

Special tokens (the BOS before a document, the end token after it) are in neither the nats nor the bytes, so the figure
compares models with different tokenizers. Lower is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from kat.errors import EvidenceError
from kat.evals.protocol import DataSource, Measured, Nll, ScoreType, Stamp
from kat.evals.sources import load_documents
from kat.runs.files import hash_json
from kat.runs.schemas import Metric, Sample


@dataclass(frozen=True)
class Text:
    """One document with the hash of its content."""

    id: str
    text: str

    @property
    def hash(self) -> str:
        """sha256 of the text."""
        return hash_json([self.text])


class BitsPerByte:
    """The suite over documents; build it from files with :meth:`load`."""

    name = "bpb"
    version = "1"
    score_type: ScoreType = "real"
    primary = "bits_per_byte"
    extractor_version: str | None = None

    def __init__(self, items: Sequence[Text], source: DataSource) -> None:
        self._items = list(items)
        self.data, self.data_hash, self.n_dropped, self.notes = source.name, source.hash, source.n_dropped, source.notes
        self.settings: dict[str, object] = {"scoring": "nll", "special_tokens": "in neither nats nor bytes"}

    @classmethod
    def load(cls, data: str | Path | Sequence[Path]) -> "BitsPerByte":
        """The suite over .jsonl(.gz) documents or .txt files."""
        documents, source = load_documents(data)
        return cls([Text(document.id, document.text) for document in documents], source)

    def items(self) -> Sequence[Text]:
        """The documents, in the file's order."""
        return self._items

    def requests(self, item: Text) -> Nll:
        """The whole text."""
        return Nll(item.text)

    def score(self, item: Text, responses: Sequence[Measured], stamp: Stamp) -> list[Sample]:
        """One row per document: its bits per byte; minus its nats as the one log-probability; its counts as slices."""
        (found,) = responses
        if found.n_bytes < 1 or not math.isfinite(found.nats):
            raise EvidenceError(f"document {item.id}: {found.nats} nats over {found.n_bytes} bytes is no measurement")
        return [
            stamp.sample(
                prompt_hash=None,
                prompt=None,
                cluster=item.hash,
                n_choices=0,
                choices=[],
                expected=None,
                response="",
                finish_reason="scored",
                extracted=None,
                rule=None,
                span=None,
                score=found.nats / (math.log(2) * found.n_bytes),
                choice_logprobs=[-found.nats],
                slices={"bytes": str(found.n_bytes), "tokens": str(found.n_tokens)},
            )
        ]

    def summarise(self, samples: Sequence[Sample]) -> dict[str, Metric]:
        """The pooled bits per byte with the interval of a ratio estimator over documents (Cochran 1977, 6.5)."""
        nats = np.array([-(row.choice_logprobs or [math.nan])[0] for row in samples])
        n_bytes = np.array([int(row.slices["bytes"]) for row in samples])
        n_tokens = np.array([int(row.slices["tokens"]) for row in samples])
        return {
            "bits_per_byte": _ratio(nats / math.log(2), n_bytes, "pooled over documents, ratio estimator, t interval"),
            "nats_per_token": _ratio(nats, n_tokens, "pooled over documents, ratio estimator, t interval"),
        }


def _ratio(above: np.ndarray, below: np.ndarray, method: str, level: float = 0.95) -> Metric:
    n = len(above)
    ratio = float(above.sum() / below.sum())
    if n < 2:
        return Metric(estimate=ratio, low=ratio, high=ratio, level=level, n=n, method="one document: no interval")
    error = math.sqrt(n / (n - 1) * float(((above - ratio * below) ** 2).sum())) / float(below.sum())
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    return Metric(estimate=ratio, low=max(0.0, ratio - half), high=ratio + half, level=level, n=n, method=method)
