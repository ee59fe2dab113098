"""What a suite is: it names its items, says what to ask the model about each, and scores the answers.

A suite knows nothing of models and the runner knows nothing of questions. A suite asks for one of four things
(:class:`Generate`, :class:`ScoreChoices`, :class:`Nll`, :class:`Judge`), gets the matching responses and turns them
into :class:`~kat.runs.schemas.Sample` rows with the :class:`Stamp` that the runner gives it. Others plug in by the
entry point group ``kat.suites`` (:mod:`kat.evals.registry`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from kat.runs.files import hash_json
from kat.runs.schemas import Metric, Sample

ScoreType: TypeAlias = Literal["binary", "bounded", "real"]
"""binary: one 0/1 score an item · bounded: the item's score is a mean in [0, 1] · real: any number, of which the suite
says what is better."""

Message: TypeAlias = dict[str, str]


@dataclass(frozen=True)
class Generate:
    """Ask for `n` completions of a conversation that ends in a user turn."""

    messages: tuple[Message, ...]
    max_new_tokens: int
    temperature: float = 0.0
    n: int = 1


@dataclass(frozen=True)
class Ask:
    """One context and the continuations whose log-probabilities are wanted after `prefix`."""

    messages: tuple[Message, ...]
    prefix: str
    continuations: tuple[str, ...]


@dataclass(frozen=True)
class ScoreChoices:
    """Ask for the log-probabilities of every continuation of every ask; rotation i of an item is `asks[i]`."""

    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class Nll:
    """Ask for the negative log-likelihood of a text."""

    text: str


@dataclass(frozen=True)
class Judge:
    """Ask a reward model for the score of each response to a conversation that ends in a user turn."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]


Request: TypeAlias = Generate | ScoreChoices | Nll | Judge


@dataclass(frozen=True)
class Generated:
    """One completion. `prompt` and `prompt_hash` are None where nobody recorded them."""

    text: str
    finish_reason: str
    prompt: str | None
    prompt_hash: str | None


@dataclass(frozen=True)
class Scored:
    """The log-probabilities (nats, summed over tokens) of an ask's continuations, in their order."""

    logprobs: tuple[float, ...]
    prompt: str | None
    prompt_hash: str | None


@dataclass(frozen=True)
class Measured:
    """A text's negative log-likelihood in nats, its bytes and its tokens; special tokens are in none of them."""

    nats: float
    n_bytes: int
    n_tokens: int


@dataclass(frozen=True)
class Judged:
    """The scores of a conversation's responses, in their order."""

    scores: tuple[float, ...]
    prompt: str | None
    prompt_hash: str | None


Response: TypeAlias = Generated | Scored | Measured | Judged


class Item(Protocol):
    """What the runner needs of an item. `hash` is of its content, so that it survives a renumbering."""

    @property
    def id(self) -> str: ...
    @property
    def hash(self) -> str: ...


@dataclass(frozen=True)
class Stamp:
    """The identity that every row of one item carries, filled in by the runner."""

    suite: str
    suite_version: str
    protocol_hash: str
    model_hash: str
    item_id: str
    item_hash: str
    seed: int

    def sample(self, **fields: Any) -> Sample:
        """A row with this identity; `fields` are the rest of :class:`~kat.runs.schemas.Sample`."""
        identity = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Sample(**identity, **fields)


class Suite(Protocol):
    """A suite over one data set. Built by a factory ``factory(data, **options)`` that the registry finds.

    `settings` are the parts of the protocol that the suite decides (scoring mode, max_new_tokens, temperature …);
    `extractor_version` is None for a suite that reads no letters from text. `n_dropped` counts the faulty rows of the
    data file. `summarise` computes every metric from the rows alone.
    """

    name: str
    version: str
    score_type: ScoreType
    primary: str
    extractor_version: str | None
    settings: dict[str, object]
    data: str
    data_hash: str
    n_dropped: int

    def items(self) -> Sequence[Any]: ...
    def requests(self, item: Any) -> Request: ...
    def score(self, item: Any, responses: Sequence[Any], stamp: Stamp) -> list[Sample]: ...
    def summarise(self, samples: Sequence[Sample]) -> dict[str, Metric]: ...


@dataclass(frozen=True)
class DataSource:
    """Where a suite's items came from: a name to show, the hash of the bytes, and how many rows were faulty."""

    name: str
    hash: str
    n_dropped: int = 0
    notes: tuple[str, ...] = field(default=())


Key: TypeAlias = tuple[str, str, int, int]
"""(item_hash, item_id, draw, rotation): what a row answers. The id is in it because data sets repeat contents."""


def sample_key(sample: Sample) -> Key:
    """The key of a row."""
    return (sample.item_hash, sample.item_id, sample.draw, sample.rotation)


def expected_keys(item: Item, request: Request) -> list[Key]:
    """The keys of the rows that this request must yield, in order."""
    if isinstance(request, Generate):
        return [(item.hash, item.id, draw, 0) for draw in range(request.n)]
    if isinstance(request, ScoreChoices):
        return [(item.hash, item.id, 0, rotation) for rotation in range(len(request.asks))]
    return [(item.hash, item.id, 0, 0)]


def item_seed(seed: int, item: Item) -> int:
    """The seed of one item's sampling: it depends on the run's seed and on the item, never on the batch it is in."""
    digest = hashlib.sha256(f"{seed}\n{item.hash}\n{item.id}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def full_protocol(suite: Suite, backend: dict[str, object]) -> dict[str, object]:
    """Everything that decides what a response means, apart from the model, the data and the prompt."""
    return {
        "suite": suite.name,
        "suite_version": suite.version,
        "extractor_version": suite.extractor_version,
        **suite.settings,
        "backend": backend,
    }


def protocol_hash(protocol: dict[str, object]) -> str:
    """sha256 of the canonical JSON of the protocol."""
    return hash_json(protocol)


def prompt_hash(ids: Sequence[int]) -> str:
    """sha256 of the canonical JSON list of the prompt's token ids."""
    return hash_json([int(i) for i in ids])
