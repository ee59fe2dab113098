"""The reward model: a GPT whose last real token carries a scalar head.

A reward checkpoint is a causal checkpoint with one file more, reward_head.safetensors {weight (1, C), bias (1)}, so
that everything else that reads checkpoints can read it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kat.errors import EvidenceError, UsageError
from kat.model.checkpoint import HEAD, Checkpoint, load_checkpoint
from kat.model.gpt import GPT
from kat.model.tensors import load_tensors, save_tensors
from kat.runtime import set_threads
from kat.tokenizer.bpe import Tokenizer
from kat.tokenizer.chat import render_conversation

Message = dict[str, str]


class RewardModel(nn.Module):
    """score = head(hidden state of the last real token), with the language-modelling head left unused.

    The head starts at zero: every score is 0 at first, whatever the seed, and the loss is ln 2. The bias cancels in
    every margin, so no pair can train it; training sets it to centre the scores (:meth:`centre`).
    """

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.config = gpt.config
        self.gpt = gpt
        self.head = nn.Linear(gpt.config.n_embd, 1)
        self.gpt.lm_head.requires_grad_(False)
        self.head.bias.requires_grad_(False)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(self, ids: Tensor, last: Tensor) -> Tensor:
        """Scores (N,) in float32 of rows (N, T) padded on the right; last (N,): index of each row's last real token.

        The index is given, never found by looking for the pad id: that id may stand in the text.
        """
        hidden = self.gpt.hidden(ids)  # (N, T, C)
        return self.head(hidden[torch.arange(len(ids), device=ids.device), last])[:, 0].float()

    @torch.no_grad()
    def centre(self, mean: float) -> None:
        """Shift all scores by the same constant, so that what scored `mean` scores 0."""
        self.head.bias.sub_(mean)


def response_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], response: str) -> list[int]:
    """What a reward model reads: the whole conversation with the response's end token."""
    return render_conversation(tokenizer, [*messages, {"role": "assistant", "content": response}])[0]


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids (N, T), index of the last real token (N,))."""
    ids = torch.full((len(rows), max(map(len, rows))), pad_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row)
    return ids, torch.tensor([len(row) - 1 for row in rows])


@dataclass(frozen=True)
class RewardCheckpoint:
    """A loaded reward model. `meta` is kat.json, `identity` covers the head."""

    folder: Path
    model: RewardModel
    tokenizer: Tokenizer
    meta: dict[str, Any]
    identity: str

    @torch.inference_mode()
    def score_ids(self, rows: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
        """Scores of token rows; sorted into batches of like length, which changes no score but its last bits."""
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, last = pad_right([rows[i] for i in batch], self.tokenizer.pad_id)
            values = self.model(ids.to(self.model.device), last.to(self.model.device))
            for i, value in zip(batch, values.double().tolist(), strict=True):
                scores[i] = value
        return scores

    def score(self, conversations: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        """The score of each response to its conversation, which ends in a user turn."""
        return self.score_ids(
            [
                response_ids(self.tokenizer, messages, response)
                for messages, response in zip(conversations, responses, strict=True)
            ]
        )


def save_head(folder: Path, model: RewardModel) -> None:
    """Put the head into a checkpoint folder that is being filled."""
    save_tensors(folder / HEAD, {"weight": model.head.weight, "bias": model.head.bias})


def load_reward(folder: Path | str, device: torch.device | str = "cpu") -> RewardCheckpoint:
    """Load a reward checkpoint. UsageError where it has no reward head, EvidenceError where the head is damaged."""
    folder = Path(folder)
    checkpoint = load_checkpoint(folder, device)
    if not (folder / HEAD).is_file():
        stage = checkpoint.meta.get("stage")
        raise UsageError(f"{folder}: of stage {stage!r}, without a reward head; train one with `kat train reward`")
    set_threads(checkpoint.model.config.parameter_count())
    model = _with_head(checkpoint, folder).to(device).eval()
    return RewardCheckpoint(folder, model, checkpoint.tokenizer, checkpoint.meta, checkpoint.identity)


def _with_head(checkpoint: Checkpoint, folder: Path) -> RewardModel:
    model = RewardModel(checkpoint.model)
    head = load_tensors(folder / HEAD)
    expected = {name: tuple(tensor.shape) for name, tensor in model.head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in head.items()}
    if found != expected:
        raise EvidenceError(f"{folder / HEAD}: holds {found}, not {expected}")
    model.head.load_state_dict(head)
    return model
