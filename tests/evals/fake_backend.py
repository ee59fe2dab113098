"""A backend whose answers are decided by the test: no weights, no tensors, every call counted."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

Answer = Callable[[str, int], str]
"""(the user's text, the seed) -> the response."""


def user_text(messages: Sequence[dict[str, str]]) -> str:
    return messages[-1]["content"]


@dataclass
class FakeBackend:
    """Answers by `answer`; scores a continuation by `logprob(user text, continuation)`."""

    answer: Answer = lambda text, seed: "The correct answer is A."
    logprob: Callable[[str, str], float] = lambda text, continuation: -float(len(continuation))
    nats: Callable[[str], float] = lambda text: 0.5 * len(text.encode())
    identity: str = "1" * 64
    name: str = "fake"
    protocol: dict[str, Any] = field(
        default_factory=lambda: {"name": "fake", "version": "1", "dtype": "float32", "device": "cpu"}
    )
    die_after: int | None = None
    batches: list[list[str]] = field(default_factory=list)

    def prompt(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        text = "\n".join(message["content"] for message in messages)
        return text, list(text.encode())

    def generate(self, conversations: Any, sampling: Any, seeds: Sequence[int], n: int = 1) -> list[list[Any]]:
        self._called([user_text(messages) for messages in conversations])
        return [
            [
                SimpleNamespace(text=self.answer(user_text(messages), seed + draw), finish_reason="stop")
                for draw in range(n)
            ]
            for messages, seed in zip(conversations, seeds, strict=True)
        ]

    def score(self, requests: Any) -> list[list[Any]]:
        self._called([user_text(request.messages) for request in requests])
        return [
            [
                SimpleNamespace(logprob=self.logprob(user_text(request.messages), one), n_tokens=1, n_bytes=1)
                for one in request.continuations
            ]
            for request in requests
        ]

    def nll(self, texts: Sequence[str]) -> list[tuple[float, int, int]]:
        self._called(list(texts))
        return [(self.nats(text), len(text.encode()), len(text)) for text in texts]

    def _called(self, texts: list[str]) -> None:
        if self.die_after is not None and len(self.batches) >= self.die_after:
            raise KeyboardInterrupt
        self.batches.append(texts)


def knowing(items: Sequence[Any], share: float, *, name: str, unparsed: float = 0.0) -> FakeBackend:
    """A model that knows `share` of the items (drawn by its name), guesses the rest, and at times answers nothing."""
    from kat.data.choices import question_text

    facts = {question_text(item): item for item in items}

    def answer(text: str, seed: int) -> str:
        item = facts[text]
        draw = random.Random(hashlib.sha256(f"{name}/{text}".encode()).digest())
        if draw.random() < unparsed:
            return "I would rather talk about the weather."
        letter = item.letter if draw.random() < share else draw.choice(item.letters)
        return f"The correct answer is {letter}. {item.choices[item.letters.index(letter)]}"

    return FakeBackend(answer=answer, identity=hashlib.sha256(name.encode()).hexdigest(), name=name)
