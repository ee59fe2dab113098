"""Multiple choice by log-likelihood: no text is generated and nothing has to be parsed.

*letters*: after ``The correct answer is `` the letters A, B, … are compared, once for every cyclic rotation of the
options; an item's score is its mean over the rotations. Without the rotations a model that merely likes one letter is
"significantly better" than one that likes another: 36 % of the pairs of untrained models.

*text*: after the same prefix the options' full texts are compared by log-probability per UTF-8 byte, so that neither
the option's length nor the tokenizer decides; the order of the options stays as it is.

Exactly equal best log-probabilities (an untrained model with a zero head has nothing else) are shared between the tied
letters in *letters*, so that knowing nothing scores exactly chance, and count as no answer in *text*.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kat.data.choices import ANSWER_PREFIX, ChoiceItem, prompt_messages
from kat.errors import EvidenceError, UsageError
from kat.evals.choice_metrics import rotation_metrics, text_metrics
from kat.evals.protocol import Ask, DataSource, ScoreChoices, Scored, ScoreType, Stamp
from kat.evals.sources import load_choice_items
from kat.runs.schemas import Metric, Sample


class Choices:
    """The suite over any multiple-choice items; build it from a file with :meth:`load`."""

    version = "1"
    primary = "accuracy"
    extractor_version: str | None = None

    def __init__(
        self, items: Sequence[ChoiceItem], source: DataSource, *, mode: Literal["letters", "text"] = "letters"
    ) -> None:
        if mode not in ("letters", "text"):
            raise UsageError(f"choices: mode {mode!r} is unknown; it is letters or text")
        self._items = list(items)
        self._mode = mode
        self.name = "choices" if mode == "letters" else "choices-text"
        self.score_type: ScoreType = "bounded" if mode == "letters" else "binary"
        self.data, self.data_hash, self.n_dropped, self.notes = source.name, source.hash, source.n_dropped, source.notes
        self.settings: dict[str, object] = {
            "scoring": mode,
            "prefix": ANSWER_PREFIX,
            "rotations": "all" if mode == "letters" else "none",
            "normalisation": "none" if mode == "letters" else "utf-8 bytes",
            "ties": "shared" if mode == "letters" else "no answer",
        }

    @classmethod
    def load(
        cls, data: str | Path = "hub", *, mode: Literal["letters", "text"] = "letters", split: str = "test"
    ) -> "Choices":
        """The suite over a local file, or over ScienceQA's text-only test questions from the hub."""
        items, source = load_choice_items(data, split=split)
        return cls(items, source, mode=mode)

    @classmethod
    def load_text(cls, data: str | Path = "hub", *, split: str = "test") -> "Choices":
        """:meth:`load` with the options' full texts."""
        return cls.load(data, mode="text", split=split)

    def items(self) -> Sequence[ChoiceItem]:
        """The questions, in the file's order."""
        return self._items

    def requests(self, item: ChoiceItem) -> ScoreChoices:
        """One ask per rotation of the options (letters), or one ask for their texts."""
        if self._mode == "text":
            return ScoreChoices((Ask(tuple(prompt_messages(item)), ANSWER_PREFIX, item.choices),))
        turned = [item.rotated(k) for k in range(len(item.choices))]
        return ScoreChoices(tuple(Ask(tuple(prompt_messages(one)), ANSWER_PREFIX, one.letters) for one in turned))

    def score(self, item: ChoiceItem, responses: Sequence[Scored], stamp: Stamp) -> list[Sample]:
        """One row per rotation: the log-probabilities (nats, sums over tokens), the best option and its score."""
        rows = []
        for rotation, response in enumerate(responses):
            turned = item.rotated(rotation)
            best = best_options(response.logprobs, turned.choices if self._mode == "text" else None)
            sure = best[0] if len(best) == 1 else None
            right = turned.answer in best
            rows.append(
                stamp.sample(
                    prompt_hash=response.prompt_hash,
                    prompt=response.prompt,
                    cluster=item.cluster or item.hash,
                    rotation=rotation,
                    n_choices=len(turned.choices),
                    choices=list(turned.choices),
                    expected=turned.letters[turned.answer],
                    response="",
                    finish_reason="scored",
                    extracted=None if sure is None else turned.letters[sure],
                    rule="tie" if sure is None else "argmax",
                    span=None,
                    score=float(right) if sure is not None else right / len(best) if self._mode == "letters" else 0.0,
                    choice_logprobs=list(response.logprobs),
                    slices=dict(item.slices),
                )
            )
        return rows

    def summarise(self, samples: Sequence[Sample]) -> dict[str, Metric]:
        """Accuracy with its interval; for letters also the unrotated order's figure, and how steady the answer is."""
        return rotation_metrics(samples) if self._mode == "letters" else text_metrics(samples)


def best_options(logprobs: Sequence[float], texts: Sequence[str] | None) -> list[int]:
    """Indices of the highest log-probability, per UTF-8 byte of the option's text where `texts` is given."""
    if any(value != value or value in (float("inf"), float("-inf")) for value in logprobs):
        raise EvidenceError(f"log-probabilities {list(logprobs)} are no numbers; the model is broken")
    values = list(logprobs)
    if texts is not None:
        values = [value / len(text.encode()) for value, text in zip(values, texts, strict=True)]
    top = max(values)
    return [i for i, value in enumerate(values) if value == top]
