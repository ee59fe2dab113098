"""One interface to every model an evaluation can ask: native checkpoints and Hugging Face folders.

Responses that somebody else recorded are no model; kat.evals.recorded scores those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kat import __version__
from kat.model.checkpoint import Checkpoint, load_checkpoint
from kat.model.decoding import Sampling, generate
from kat.runtime import set_threads
from kat.tokenizer.chat import render_conversation, render_for_completion

Message = dict[str, str]


@dataclass(frozen=True)
class Completion:
    """What a model answered: token ids with the end token, text without it, a log-probability a token."""

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    finish_reason: str  # "stop" | "length" | "recorded"


@dataclass(frozen=True)
class ScoreRequest:
    """How likely are these continuations of the assistant's turn that starts with `prefix`?"""

    messages: list[Message]
    prefix: str
    continuations: tuple[str, ...]


@dataclass(frozen=True)
class ContinuationScore:
    """Summed log-probability (nats) of a continuation's tokens, and their number in tokens and in bytes."""

    logprob: float
    n_tokens: int
    n_bytes: int


class Backend(Protocol):
    """A model as the suites see it."""

    name: str
    identity: str
    protocol: dict[str, Any]
    context: int | None  # tokens that the model is made for, where it says

    def prompt(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The prompt as text and as ids, up to where the assistant speaks."""

    def generate(
        self, conversations: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int], n: int = 1
    ) -> list[list[Completion]]:
        """n completions of each conversation; one seed a conversation."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[ContinuationScore]]:
        """The joint encoding of prefix and continuation is what is scored, never two encodings glued together."""

    def nll(self, texts: Sequence[str]) -> list[tuple[float, int, int]]:
        """(nats, bytes, tokens) of each text after BOS; special tokens are in none of the three."""


class NativeBackend:
    """A kat checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model, self.tokenizer = checkpoint.model, checkpoint.tokenizer
        self.name, self.identity = str(checkpoint.folder), checkpoint.identity
        self.context: int | None = self.model.config.sequence_len
        self.protocol = {
            "backend": f"kat/{__version__}",
            "device": self.model.device.type,
            "dtype": str(self.model.lm_head.weight.dtype).removeprefix("torch."),
            "stop_ids": [self.tokenizer.eos_id],
        }

    def prompt(self, messages: list[Message]) -> tuple[str, list[int]]:
        ids = render_for_completion(self.tokenizer, messages)
        return self.tokenizer.decode(ids), ids

    def generate(
        self, conversations: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int], n: int = 1
    ) -> list[list[Completion]]:
        prompts = [self.prompt(messages)[1] for messages in conversations]
        batches = generate(
            self.model,
            prompts,
            sampling,
            stop_ids=[self.tokenizer.eos_id],
            pad_id=self.tokenizer.pad_id,
            seeds=seeds,
            n=n,
        )
        return [
            [
                Completion(
                    s.ids,
                    self.tokenizer.decode(s.ids[:-1] if s.finish_reason == "stop" else s.ids),
                    s.logprobs,
                    s.finish_reason,
                )
                for s in sequences
            ]
            for sequences in batches
        ]

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[ContinuationScore]]:
        if not requests:
            return []
        rows: list[list[int]] = []  # full token rows, several a request
        starts: list[int] = []  # where the scored part of each begins
        sizes: list[int] = []
        for request in requests:
            full = [self._assistant_ids(request, text) for text in request.continuations]
            start = common_prefix([*full, self._assistant_ids(request, "")])
            rows += full
            starts += [start] * len(full)
            sizes += [len(text.encode()) for text in request.continuations]
        sums = iter(self._sum_logprobs(rows, starts))
        scores = iter(
            ContinuationScore(total, len(row) - start, size)
            for total, row, start, size in zip(sums, rows, starts, sizes, strict=True)
        )
        return [[next(scores) for _ in request.continuations] for request in requests]

    def _assistant_ids(self, request: ScoreRequest, continuation: str) -> list[int]:
        """Ids up to and without the end token of an assistant turn `prefix + continuation`."""
        answer = {"role": "assistant", "content": request.prefix + continuation}
        return render_conversation(self.tokenizer, [*request.messages, answer])[0][:-1]

    @torch.inference_mode()
    def _sum_logprobs(self, rows: Sequence[list[int]], starts: Sequence[int]) -> list[float]:
        """Sum of log p(row[t] | row[:t]) over t >= start, for each row.

        Rows that differ in their last token only (the letters of one question) share one pass of the model. They are
        padded on the right, which causal attention does not see.
        """
        contexts = list(dict.fromkeys(tuple(row[:-1]) for row in rows))
        place = {context: i for i, context in enumerate(contexts)}
        ids = torch.full((len(contexts), max(map(len, contexts))), self.tokenizer.pad_id)
        for i, context in enumerate(contexts):
            ids[i, : len(context)] = torch.tensor(context)
        hidden = self.model.hidden(ids.to(self.model.device))  # (contexts, T, C)
        scored = [
            (i, place[tuple(row[:-1])], t - 1, row[t])
            for i, (row, start) in enumerate(zip(rows, starts, strict=True))
            for t in range(start, len(row))
        ]
        of_row, of_context, at, target = torch.tensor(scored, dtype=torch.long).view(-1, 4).unbind(1)
        logprobs = self._logprobs(hidden[of_context, at], target.to(hidden.device))
        return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, of_row, logprobs).tolist()

    def _logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(N,) float64 log-probabilities, on the CPU, of targets (N,) after hidden states (N, C)."""
        return -F.cross_entropy(self.model.logits(hidden).float(), targets, reduction="none").double().cpu()

    @torch.inference_mode()
    def nll(self, texts: Sequence[str]) -> list[tuple[float, int, int]]:
        results = []
        context = self.model.config.sequence_len
        for text, ids in zip(texts, self.tokenizer.encode_batch(texts), strict=True):
            nats, row = 0.0, [self.tokenizer.bos_id, *ids]
            # Windows of the model's context that overlap by one token: each token is predicted exactly once.
            for start in range(0, len(row) - 1, context):
                window = torch.tensor(row[start : start + context + 1], device=self.model.device)
                nats -= float(self._logprobs(self.model.hidden(window[None, :-1])[0], window[1:]).sum())
            results.append((nats, len(text.encode()), len(ids)))
        return results


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all rows share."""
    shortest = min(map(len, rows))
    for i in range(shortest):
        if any(row[i] != rows[0][i] for row in rows):
            return i
    return shortest


def open_backend(model: str | Path, device: str = "cpu") -> Backend:
    """A backend for a kat checkpoint folder or `hf:FOLDER`."""
    name = str(model)
    if name.startswith("hf:"):
        from kat.model.hf import HFBackend

        return HFBackend(Path(name.removeprefix("hf:")), device)
    checkpoint = load_checkpoint(Path(name), device)
    set_threads(checkpoint.model.config.parameter_count())
    checkpoint.model.lay_out_for_decoding()
    return NativeBackend(checkpoint)
