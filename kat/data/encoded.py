"""Prompts and preference pairs as token ids: what the reward model and GRPO train on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from kat.data.preferences import Pair, Prompt
from kat.errors import UsageError
from kat.runs.files import hash_json
from kat.tokenizer.bpe import Tokenizer
from kat.tokenizer.chat import render_conversation, render_for_completion


@dataclass(frozen=True, eq=False)
class PairData:
    """Pairs as ids of whole conversations, end token included; `names` are the pairs' ids, `prompts` the prompts'.

    `n_dropped` pairs were longer than the context (either side) and are not here.
    """

    chosen: tuple[tuple[int, ...], ...]
    rejected: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    prompts: tuple[str, ...]
    prompt_lengths: tuple[int, ...]  # tokens up to where the assistant speaks
    n_dropped: int = 0

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def hash(self) -> str:
        """sha256 of the ids and of which pair and prompt they are of."""
        return hash_json([self.names, self.prompts, self.chosen, self.rejected])


@dataclass(frozen=True, eq=False)
class PromptData:
    """Prompts, and their ids up to where the assistant speaks.

    `n_dropped` prompts left no room for a completion and are not here.
    """

    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]
    n_dropped: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The prompts' ids, which are hashes of their messages."""
        return tuple(prompt.id for prompt in self.prompts)

    @cached_property
    def hash(self) -> str:
        """sha256 of the token ids and of what a reward may read."""
        truths = [dict(prompt.truth) if prompt.truth else None for prompt in self.prompts]
        return hash_json([self.names, self.ids, truths])


def encode_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer, max_len: int) -> PairData:
    """Encode both responses of each pair. A pair of which either side exceeds `max_len` tokens is dropped: cutting one
    side would compare two different questions."""
    chosen, rejected, names, prompts, lengths, dropped = [], [], [], [], [], 0
    for pair in pairs:
        sides = []
        for response in (pair.chosen, pair.rejected):
            conversation = [*pair.prompt.messages, {"role": "assistant", "content": response}]
            sides.append(tuple(render_conversation(tokenizer, conversation)[0]))
        if max(map(len, sides)) > max_len:
            dropped += 1
            continue
        chosen.append(sides[0])
        rejected.append(sides[1])
        names.append(pair.id)
        prompts.append(pair.prompt.id)
        lengths.append(len(render_for_completion(tokenizer, list(pair.prompt.messages))))
    return PairData(tuple(chosen), tuple(rejected), tuple(names), tuple(prompts), tuple(lengths), dropped)


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Tokenizer, max_len: int) -> PromptData:
    """Encode prompts; those longer than `max_len` tokens are dropped and counted. UsageError where none is left."""
    kept, rows = [], []
    for prompt in prompts:
        ids = tuple(render_for_completion(tokenizer, list(prompt.messages)))
        if len(ids) <= max_len:
            kept.append(prompt)
            rows.append(ids)
    if prompts and not kept:
        raise UsageError(
            f"none of {len(prompts):,} prompts leaves room for a completion within {max_len} tokens of prompt; lower "
            "max_new_tokens or take a model with a longer context"
        )
    return PromptData(tuple(kept), tuple(rows), len(prompts) - len(kept))
