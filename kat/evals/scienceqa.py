"""Generate an answer to a multiple-choice question, read the letter out of it, and count every item.

The prompt is the chat that trained the model (:func:`kat.data.choices.prompt_messages`); the letter is read by
:mod:`kat.data.letters`. A response in which no single offered letter is found is unparsed and counts as wrong.
"""

from collections.abc import Sequence
from pathlib import Path

from kat.data import letters
from kat.data.choices import ChoiceItem, prompt_messages
from kat.evals.choice_metrics import generation_metrics
from kat.evals.protocol import DataSource, Generate, Generated, ScoreType, Stamp
from kat.evals.sources import load_choice_items
from kat.runs.schemas import Metric, Sample


class ScienceQA:
    """The suite over any multiple-choice items; build it from a file with :meth:`load`."""

    name = "scienceqa"
    version = "1"
    score_type: ScoreType = "binary"
    primary = "accuracy"
    extractor_version: str | None = letters.VERSION

    def __init__(self, items: Sequence[ChoiceItem], source: DataSource, *, max_new_tokens: int = 64) -> None:
        self._items = list(items)
        self.data, self.data_hash, self.n_dropped, self.notes = source.name, source.hash, source.n_dropped, source.notes
        self.settings: dict[str, object] = {
            "scoring": "generate",
            "max_new_tokens": max_new_tokens,
            "temperature": 0.0,
            "draws": 1,
        }
        self._max_new_tokens = max_new_tokens
        self._images = any(item.has_image for item in self._items)

    @classmethod
    def load(
        cls, data: str | Path = "hub", *, max_new_tokens: int = 64, split: str = "test", text_only: bool = True
    ) -> "ScienceQA":
        """The suite over a local file, or over ScienceQA's test questions from the hub.

        With `text_only` the questions that need an image are left out, as kat's models read text; somebody else's
        recorded responses may answer them too.
        """
        items, source = load_choice_items(data, split=split, text_only=text_only)
        return cls(items, source, max_new_tokens=max_new_tokens)

    def items(self) -> Sequence[ChoiceItem]:
        """The questions, in the file's order."""
        return self._items

    def requests(self, item: ChoiceItem) -> Generate:
        """One greedy completion of the item's chat prompt."""
        return Generate(tuple(prompt_messages(item)), self._max_new_tokens)

    def score(self, item: ChoiceItem, responses: Sequence[Generated], stamp: Stamp) -> list[Sample]:
        """One row per draw: the letter that was read, by which rule, where, and whether it is the right one."""
        rows = []
        for draw, response in enumerate(responses):
            found = letters.extract(response.text, item.choices)
            rows.append(
                stamp.sample(
                    prompt_hash=response.prompt_hash,
                    prompt=response.prompt,
                    cluster=item.cluster or item.hash,
                    draw=draw,
                    n_choices=len(item.choices),
                    choices=list(item.choices),
                    expected=item.letters[item.answer],
                    response=response.text,
                    finish_reason=response.finish_reason,
                    extracted=found.letter,
                    rule=found.rule,
                    span=found.span,
                    score=float(found.letter == item.letters[item.answer]),
                    slices=self._slices(item),
                )
            )
        return rows

    def _slices(self, item: ChoiceItem) -> dict[str, str]:
        """The item's own, and whether it needs an image where some items do."""
        return dict(item.slices) | ({"image": "yes" if item.has_image else "no"} if self._images else {})

    def summarise(self, samples: Sequence[Sample]) -> dict[str, Metric]:
        """Accuracy over every item, its bounds and its chance-corrected form, and the parse rate."""
        return generation_metrics(samples)
