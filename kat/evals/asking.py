"""Put one batch of requests to a backend and hand back each item's responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kat.errors import EvidenceError, UsageError
from kat.evals.protocol import (
    Ask,
    Generate,
    Generated,
    Judge,
    Judged,
    Key,
    Measured,
    Nll,
    Request,
    Response,
    ScoreChoices,
    Scored,
    Stamp,
    prompt_hash,
)

if TYPE_CHECKING:
    from kat.model.backends import Backend


@dataclass(frozen=True)
class Planned:
    """One item with what will be asked of it: the stamp of its rows, the keys they must have, its prompt's length."""

    item: Any
    request: Request
    stamp: Stamp
    keys: tuple[Key, ...]
    length: int

    @property
    def n_rows(self) -> int:
        """Rows that this item puts into a batch."""
        return len(self.keys)


def ask(backend: "Backend", batch: Sequence[Planned]) -> list[list[Response]]:
    """The responses to one batch, item by item. A batch of a suite asks for one kind of thing."""
    kinds = {type(planned.request) for planned in batch}
    if kinds == {Generate}:
        return _generate(backend, batch)
    if kinds == {ScoreChoices}:
        return _score(backend, batch)
    if len(kinds) > 1:
        raise UsageError(f"suite {batch[0].stamp.suite!r} asks for different kinds of things in one run")
    if kinds == {Judge}:
        return _judge(backend, batch)
    texts = [planned.request.text for planned in batch if isinstance(planned.request, Nll)]
    return [[Measured(float(nats), n_bytes, n_tokens)] for nats, n_bytes, n_tokens in backend.nll(texts)]


def _generate(backend: "Backend", batch: Sequence[Planned]) -> list[list[Response]]:
    from kat.model.decoding import Sampling

    requests = [planned.request for planned in batch if isinstance(planned.request, Generate)]
    first = requests[0]
    if any(
        (r.max_new_tokens, r.temperature, r.n) != (first.max_new_tokens, first.temperature, first.n) for r in requests
    ):
        raise UsageError(f"suite {batch[0].stamp.suite!r} asks for different sampling settings in one run")
    sampling = Sampling(max_new_tokens=first.max_new_tokens, temperature=first.temperature)
    seeds = [planned.stamp.seed for planned in batch]
    conversations = [list(request.messages) for request in requests]
    found: list[list[Response]] = []
    for messages, completions in zip(
        conversations, backend.generate(conversations, sampling, seeds, first.n), strict=True
    ):
        text, ids = backend.prompt(messages)
        found.append([Generated(c.text, c.finish_reason, text, prompt_hash(ids)) for c in completions])
    return found


def _judge(backend: Any, batch: Sequence[Planned]) -> list[list[Response]]:
    """The backend is a reward model's (:class:`kat.evals.reward.RewardBackend`)."""
    requests = [planned.request for planned in batch if isinstance(planned.request, Judge)]
    found: list[list[Response]] = []
    for request, scores in zip(requests, backend.judge(requests), strict=True):
        text, ids = backend.prompt(list(request.messages))
        found.append([Judged(tuple(scores), text, prompt_hash(ids))])
    return found


def _score(backend: "Backend", batch: Sequence[Planned]) -> list[list[Response]]:
    from kat.model.backends import ScoreRequest

    asks: list[Ask] = [
        ask for planned in batch if isinstance(planned.request, ScoreChoices) for ask in planned.request.asks
    ]
    scores = iter(backend.score([ScoreRequest(list(ask.messages), ask.prefix, ask.continuations) for ask in asks]))
    found: list[list[Response]] = []
    for planned in batch:
        responses: list[Response] = []
        for ask in planned.request.asks if isinstance(planned.request, ScoreChoices) else ():
            text, ids = backend.prompt(list(ask.messages))
            logprobs = tuple(float(score.logprob) for score in next(scores))
            if len(logprobs) != len(ask.continuations):
                raise EvidenceError(
                    f"backend {backend.name}: {len(logprobs)} scores for {len(ask.continuations)} choices"
                )
            responses.append(Scored(logprobs, text, prompt_hash(ids)))
        found.append(responses)
    return found
