"""Planted bugs of data, tokenizer, template and evaluation."""

import copy
import functools
import itertools
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kat.verify.mutants.mutant import Mutant, around, patched, wrapped
from kat.verify.subject import Batch, Message, Row

# Rows of the text families without a corresponding place in the contract or in kat as it is.
NO_COUNTERPART: dict[str, str] = {
    "DM16": "a batch without targets belongs to the loss family",
    "RL13": "rows of the contract have no further columns that a collator could drop",
    "EV7": "choices are generated and read, not scored by likelihood, in this contract",
    "EV11": "no Brier score",
    "EV14": "no stop strings; generation ends by id",
    "EV15": "no scoring of letter ids in the contract",
    "EV19": "manifests of experiments are kat audit's",
    "EV20": "eval_loss against loss belongs to the loss family",
    "EV22": "the number of completions belongs to the generation family",
}


# Tokenizer and template


def _contents(change: Callable[[str], str], roles: Sequence[str] = ("system", "user", "assistant")) -> dict[str, Any]:
    """Methods that change the contents of messages before the good ones see them."""

    def edit(messages: Sequence[Message]) -> list[Message]:
        return [{**m, "content": change(m["content"])} if m["role"] in roles else m for m in messages]

    return {
        "encode_conversation": lambda inner, messages: inner.encode_conversation(edit(messages)),
        "encode_prompt": lambda inner, messages: inner.encode_prompt(edit(messages)),
    }


def _without_system(messages: Sequence[Message]) -> list[Message]:
    return [m for m in messages if m["role"] != "system"]


def _parsed(inner: Any, ids: Sequence[int]) -> list[int]:
    """Ids whose text is encoded again, special tokens parsed, as a tokenizer does that is given one rendered string."""
    names = {inner.decode([i]): i for i in (*inner.traits.special_ids, *inner.traits.eos_ids)}
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", inner.decode(ids))
    return [i for part in parts for i in ([names[part]] if part in names else inner.encode(part))]


def _reparsed_conversation(inner: Any, messages: Sequence[Message]) -> Row:
    ids, mask = inner.encode_conversation(messages)
    other = _parsed(inner, ids)
    return other, [*mask[: len(other)], *[1] * (len(other) - len(mask))]


def _parts(ids: Sequence[int], mask: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(supervised or not, ids) in turn."""
    for on, pairs in itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1]):
        yield on, [i for i, _ in pairs]


def _rebuilt(change: Callable[[Any, list[int]], list[int]], side: int) -> Callable[..., Row]:
    """encode_conversation with the ids of each supervised (1) or other (0) part changed; the mask follows."""

    def encode(inner: Any, messages: Sequence[Message]) -> Row:
        ids: list[int] = []
        mask: list[int] = []
        for on, part in _parts(*inner.encode_conversation(messages)):
            new = change(inner, part) if on == side else part
            ids += new
            mask += [on] * len(new)
        return ids, mask

    return encode


def _masked(change: Callable[[Any, list[int], list[int]], list[int]]) -> Callable[..., Row]:
    """encode_conversation with another mask: change(inner, ids, mask)."""

    def encode(inner: Any, messages: Sequence[Message]) -> Row:
        ids, mask = inner.encode_conversation(messages)
        return ids, change(inner, list(ids), list(mask))

    return encode


def _last_run_only(inner: Any, ids: list[int], mask: list[int]) -> list[int]:
    start = max(t for t in range(1, len(mask)) if mask[t] and not mask[t - 1])
    return [0] * start + mask[start:]


def _empty_answers_unsupervised(inner: Any, messages: Sequence[Message]) -> Row:
    """A run of supervised tokens counts where it has more than the end token."""
    ids, mask = inner.encode_conversation(messages)
    new: list[int] = []
    for on, part in _parts(ids, mask):
        new += [int(on and part[0] not in inner.traits.eos_ids)] * len(part)
    return ids, new


def _joined_with_space(inner: Any, messages: Sequence[Message]) -> Row:
    """The answer encoded together with a blank that the prompt has as a token of its own."""
    ids, _ = inner.encode_conversation([*messages[:-1], {**messages[-1], "content": " " + messages[-1]["content"]}])
    n = len(inner.encode_prompt(messages[:-1]))
    return ids, [0] * n + [1] * (len(ids) - n)


def _with_two_bos(inner: Any, messages: Sequence[Message]) -> Row:
    ids, mask = inner.encode_conversation(messages)
    return [inner.traits.bos_id, *ids], [0, *mask]


def _with_header_behind(inner: Any, messages: Sequence[Message]) -> Row:
    ids, mask = inner.encode_conversation(messages)
    return [*ids, inner.encode_prompt(messages[:-1])[-1]], [*mask, 1]


TOKENIZER = (
    Mutant("text_is_lower_cased", ("TK10",), wrapped(encode=lambda inner, text: inner.encode(text.lower()))),
    Mutant("messages_are_lower_cased", ("TK10",), wrapped(**_contents(str.lower))),
    Mutant("messages_are_stripped", (), wrapped(**_contents(str.strip))),
    Mutant(
        "decode_drops_what_is_not_ascii",
        ("VQ5",),
        wrapped(decode=lambda inner, ids: inner.decode(ids).encode("ascii", "ignore").decode()),
    ),
    Mutant(
        "encode_puts_bos_before_text",
        ("TK3",),
        wrapped(encode=lambda inner, text: [inner.traits.bos_id, *inner.encode(text)]),
    ),
    Mutant(
        "conversation_has_two_bos",
        ("TK3", "TK4"),
        wrapped(
            encode_conversation=_with_two_bos,
            encode_prompt=lambda inner, messages: [inner.traits.bos_id, *inner.encode_prompt(messages)],
        ),
    ),
    Mutant(
        "prompt_lacks_bos", ("TK13",), wrapped(encode_prompt=lambda inner, messages: inner.encode_prompt(messages)[1:])
    ),
    Mutant(
        "turns_end_twice", ("TK4",), wrapped(encode_conversation=_rebuilt(lambda inner, part: [*part, part[-1]], 1))
    ),
    Mutant(
        "end_token_is_that_of_documents",
        ("TK12",),
        wrapped(encode_conversation=_rebuilt(lambda inner, part: [*part[:-1], inner.traits.bos_id], 1)),
    ),
    Mutant(
        "end_token_of_users_ends_answers",
        ("TK12",),
        wrapped(encode_conversation=_rebuilt(lambda inner, part: [*part[:-1], inner.traits.eos_ids[0] - 2], 1)),
    ),
    Mutant(
        "generation_prompt_after_training_conversation",
        ("DM19",),
        wrapped(encode_conversation=_with_header_behind),
    ),
    Mutant(
        "prompt_has_no_assistant_header",
        ("TK13",),
        wrapped(encode_prompt=lambda inner, messages: inner.encode_prompt(messages)[:-1]),
    ),
    Mutant(
        "answer_merges_with_the_prompt",
        ("TK7",),
        wrapped(
            encode_conversation=_joined_with_space,
            encode_prompt=lambda inner, messages: [*inner.encode_prompt(messages), *inner.encode(" ")],
        ),
    ),
    Mutant(
        "system_message_is_dropped",
        ("TK11",),
        wrapped(
            encode_conversation=lambda inner, messages: inner.encode_conversation(_without_system(messages)),
            encode_prompt=lambda inner, messages: inner.encode_prompt(_without_system(messages)),
        ),
    ),
    Mutant(
        "line_ends_become_blanks",
        ("DM22",),
        wrapped(**_contents(lambda text: " ".join(text.split(" ")).replace("\n", " "))),
    ),
    Mutant(
        "first_token_of_answers_is_dropped",
        ("DM20",),
        wrapped(encode_conversation=_rebuilt(lambda inner, part: part[1:] if len(part) > 1 else part, 1)),
    ),
    Mutant(
        "special_tokens_in_messages_are_parsed",
        (),
        wrapped(
            encode_conversation=_reparsed_conversation,
            encode_prompt=lambda inner, messages: _parsed(inner, inner.encode_prompt(messages)),
        ),
    ),
    Mutant(
        "special_tokens_in_text_are_parsed", (), wrapped(encode=lambda inner, text: _parsed(inner, inner.encode(text)))
    ),
    Mutant(
        "text_is_normalised", (), wrapped(encode=lambda inner, text: inner.encode(unicodedata.normalize("NFKC", text)))
    ),
    Mutant(
        "carriage_returns_are_lost", (), wrapped(encode=lambda inner, text: inner.encode(text.replace("\r\n", "\n")))
    ),
    Mutant("decode_strips_blanks", (), wrapped(decode=lambda inner, ids: inner.decode(ids).strip())),
    Mutant("decode_is_token_by_token", (), wrapped(decode=lambda inner, ids: "".join(inner.decode([i]) for i in ids))),
    Mutant(
        "history_keeps_only_the_last_exchange",
        (),
        wrapped(
            encode_conversation=lambda inner, messages: inner.encode_conversation(
                [*messages[:-2][:1][: messages[0]["role"] == "system"], *messages[-2:]]
            ),
            encode_prompt=lambda inner, messages: inner.encode_prompt(
                [*messages[:-1][:1][: messages[0]["role"] == "system"], *messages[-1:]]
            ),
        ),
    ),
    Mutant(
        "token_bytes_count_characters",
        (),
        wrapped(
            token_bytes=lambda inner: [len(inner.decode([i])) * (n > 0) for i, n in enumerate(inner.token_bytes())]
        ),
    ),
    Mutant(
        "token_bytes_count_replacement_characters",
        (),
        wrapped(
            token_bytes=lambda inner: [
                len(inner.decode([i]).encode()) * (n > 0) for i, n in enumerate(inner.token_bytes())
            ]
        ),
    ),
    Mutant(
        "special_tokens_count_bytes",
        (),
        wrapped(
            token_bytes=lambda inner: [
                len(inner.decode([i]).encode()) if n == 0 else n for i, n in enumerate(inner.token_bytes())
            ]
        ),
    ),
)

# Masks and collation


def _collated(edit: Callable[[Any, list[Row]], list[Row]]) -> Callable[..., Batch]:
    """collate of rows that were changed before."""
    return lambda inner, rows: inner.collate(edit(inner, [(list(ids), list(mask)) for ids, mask in rows]))


def _relabelled(change: Callable[[Any, Batch], Batch], method: str) -> dict[str, Any]:
    """A method whose batch is changed; tensors are copies."""

    def bad(inner: Any, rows: Sequence[Row]) -> Batch:
        return change(inner, copy.deepcopy(getattr(inner, method)(rows)))

    return {method: bad}


def _drop_where(batch: Batch, where: Any) -> Batch:
    """Without the targets at these places; `where` is aligned with the targets' ids."""
    if batch.get("mask") is not None:
        batch["mask"] = torch.where(where, 0, batch["mask"])
    else:
        batch["targets"] = torch.where(where, -1, batch["targets"])
    return batch


def _without_pad_targets(inner: Any, batch: Batch) -> Batch:
    labels = batch["ids"] if batch.get("mask") is not None else batch["targets"]
    return _drop_where(batch, labels == inner.traits.pad_id)


def _without_end_targets(inner: Any, batch: Batch) -> Batch:
    """pad_token = eos_token: whatever equals it is taken for padding."""
    labels = batch["ids"] if batch.get("mask") is not None else batch["targets"]
    return _drop_where(batch, labels == inner.traits.eos_ids[0])


def _padding_supervised(inner: Any, batch: Batch) -> Batch:
    """Wherever there is no token, the pad id is a target."""
    blank = batch["attention_mask"] == 0
    if batch.get("mask") is not None:
        batch["mask"] = torch.where(blank, 1, batch["mask"])
    else:
        batch["targets"] = torch.where(blank, inner.traits.pad_id, batch["targets"])
    return batch


def _attention_by_pad_id(inner: Any, batch: Batch) -> Batch:
    batch["attention_mask"] = (batch["ids"] != inner.traits.pad_id).long()
    batch.pop("doc_ids", None)
    return batch


def _everything_supervised(inner: Any, rows: list[Row]) -> list[Row]:
    return [(ids, [0, *[1] * (len(ids) - 1)]) for ids, _ in rows]


def _by_length(inner: Any, rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -len(row[0]))


def _masks_not_reordered(inner: Any, rows: list[Row]) -> list[Row]:
    """Rows sorted by length, masks left where they were."""
    order = sorted(range(len(rows)), key=lambda k: -len(rows[k][0]))
    masks = [rows[k][1] for k in range(len(rows))]
    return [(rows[k][0], (masks[j] + [0] * len(rows[k][0]))[: len(rows[k][0])]) for j, k in enumerate(order)]


def _cut_without_dropping(inner: Any, rows: Sequence[Row]) -> Batch:
    """Right truncation that keeps prompts without an answer: the row's last token is supervised, then forgotten."""
    room = inner.traits.max_len
    batch = inner.collate(
        [(list(i)[:room], [*list(m)[: room - 1], 1][: len(i)] if len(i) > room else m) for i, m in rows]
    )
    n = [k for k, (ids, mask) in enumerate(rows) if len(ids) > room and not any(mask[:room])]
    for k in n:
        batch["mask" if batch.get("mask") is not None else "targets"][k] = 0 if batch.get("mask") is not None else -1
    return batch


def _targets_cross(inner: Any, rows: Sequence[Row]) -> Batch:
    """Labels made after packing: the last token of a document is trained to give the next one's first."""
    batch = copy.deepcopy(inner.pack(rows))
    doc, ids, targets = batch["doc_ids"], batch["ids"], batch["targets"]
    last = (doc[:, 1:] != doc[:, :-1]) & (doc[:, 1:] >= 0)
    targets[:, :-1] = torch.where(last, ids[:, 1:], targets[:, :-1])
    return batch


def _one_document(inner: Any, rows: Sequence[Row]) -> Batch:
    """The loss is told of one document a row: the documents see each other. What is shown stays right."""
    return inner.pack(rows)


def _loss_without_documents(inner: Any, batch: Batch) -> Any:
    return inner.loss({**batch, "doc_ids": torch.where(batch["doc_ids"] >= 0, 0, -1)})


def _loss_of_joined_neighbours(inner: Any, batch: Batch) -> Any:
    """Only the first two documents of a row see each other."""
    return inner.loss({**batch, "doc_ids": torch.where(batch["doc_ids"] == 1, 0, batch["doc_ids"])})


MASKS = (
    Mutant(
        "mask_is_thrown_away",
        ("DM1",),
        wrapped(encode_conversation=_masked(lambda inner, ids, mask: [0] + [1] * (len(mask) - 1))),
    ),
    Mutant(
        "mask_starts_a_token_late",
        ("DM3",),
        wrapped(encode_conversation=_masked(lambda inner, ids, mask: [0, *mask[:-1]])),
    ),
    Mutant(
        "mask_starts_a_token_early",
        ("DM2",),
        wrapped(encode_conversation=_masked(lambda inner, ids, mask: [*mask[1:], 0])),
    ),
    Mutant(
        "mask_lacks_end_tokens",
        (),
        wrapped(
            encode_conversation=_masked(
                lambda inner, ids, mask: [m * (i not in inner.traits.eos_ids) for i, m in zip(ids, mask, strict=True)]
            )
        ),
    ),
    Mutant("end_of_an_empty_answer_unsupervised", (), wrapped(encode_conversation=_empty_answers_unsupervised)),
    Mutant("mask_covers_the_last_answer_only", (), wrapped(encode_conversation=_masked(_last_run_only))),
    Mutant(
        "mask_covers_headers",
        (),
        wrapped(
            encode_conversation=_masked(
                lambda inner, ids, mask: [int(m or (t + 1 < len(mask) and mask[t + 1])) for t, m in enumerate(mask)]
            )
        ),
    ),
    Mutant(
        "mask_of_answers_is_inverted",
        ("DM18",),
        wrapped(encode_conversation=_masked(lambda inner, ids, mask: [1 - m for m in mask])),
    ),
    Mutant("collate_trains_on_prompts", ("DM1", "DM18"), wrapped(collate=_collated(_everything_supervised))),
    Mutant(
        "collate_ignores_targets_that_equal_pad",
        ("DM5", "DM4"),
        wrapped(**_relabelled(_without_pad_targets, "collate")),
    ),
    Mutant("collate_ignores_end_tokens", ("DM4",), wrapped(**_relabelled(_without_end_targets, "collate"))),
    Mutant("collate_trains_on_padding", ("LN13",), wrapped(**_relabelled(_padding_supervised, "collate"))),
    Mutant("attention_is_what_is_not_pad", ("DM5",), wrapped(**_relabelled(_attention_by_pad_id, "collate"))),
    Mutant(
        "collate_reverses_rows",
        ("MF19",),
        wrapped(collate=_collated(lambda inner, rows: [(ids[::-1], mask[::-1]) for ids, mask in rows])),
    ),
    Mutant("collate_sorts_rows", (), wrapped(collate=_collated(_by_length))),
    Mutant("collate_sorts_ids_but_not_masks", ("RM10",), wrapped(collate=_collated(_masks_not_reordered))),
    Mutant(
        "collate_cuts_to_the_shortest_row",
        (),
        wrapped(
            collate=_collated(
                lambda inner, rows: [(i[: (n := min(len(ids) for ids, _ in rows))], m[:n]) for i, m in rows]
            )
        ),
    ),
    Mutant(
        "collate_loses_the_last_token",
        (),
        wrapped(collate=_collated(lambda inner, rows: [(i[:-1], m[:-1]) if len(i) > 2 else (i, m) for i, m in rows])),
    ),
    Mutant(
        "collate_drops_the_smallest_row",
        (),
        wrapped(
            collate=_collated(
                lambda inner, rows: (
                    rows if len(rows) < 2 else [row for row in rows if row is not min(rows, key=lambda r: len(r[0]))]
                )
            )
        ),
    ),
    Mutant("long_prompts_leave_no_target", ("DM11",), wrapped(collate=_cut_without_dropping)),
    Mutant("labels_are_shifted_after_packing", ("DM7",), wrapped(pack=_targets_cross), native=True),
    Mutant(
        "pack_crops_documents",
        ("DM17",),
        wrapped(
            pack=lambda inner, rows: inner.pack(
                [(i[:-1], m[:-1]) if k == len(rows) - 1 and len(i) > 2 else (i, m) for k, (i, m) in enumerate(rows)]
            )
        ),
    ),
    Mutant("pack_drops_a_document", ("DM17",), wrapped(pack=lambda inner, rows: inner.pack(rows[:-1]))),
    Mutant("pack_repeats_a_document", (), wrapped(pack=lambda inner, rows: inner.pack([*rows, rows[0]]))),
    Mutant("packed_documents_see_each_other", ("DM8",), wrapped(loss=_loss_without_documents), native=True),
    Mutant(
        "first_two_packed_documents_see_each_other", ("DM8",), wrapped(loss=_loss_of_joined_neighbours), native=True
    ),
)

# Batches


def _batches(change: Callable[..., Iterator[Batch]]) -> Callable[[Any], Any]:
    """batches() whose arguments or results are changed: change(good, seed, rank, world, state)."""

    def bad(inner: Any, seed: int, rank: int = 0, world: int = 1, state: Any = None) -> Iterator[Batch]:
        return change(inner.batches, seed, rank, world, state)

    return wrapped(batches=bad)


def _epoch_of(state: Any) -> int:
    return state["epoch"]


def _each(change: Callable[[int, Batch], Batch]) -> Callable[[Any], Any]:
    """batches() with each batch changed: change(number since the start or resume, batch)."""
    return _batches(
        lambda good, seed, rank, world, state: (
            change(k, copy.deepcopy(batch)) for k, batch in enumerate(good(seed, rank, world, state))
        )
    )


def _skip_one(good: Any, seed: int, rank: int, world: int, state: Any) -> Iterator[Batch]:
    source = good(seed, rank, world, state)
    if state is not None:
        next(source)
    return source


def _prefetched(good: Any, seed: int, rank: int, world: int, state: Any) -> Iterator[Batch]:
    """The state of the loader, which is a batch ahead of the trainer."""
    source = good(seed, rank, world, state)
    now = next(source)
    for ahead in source:
        yield {**now, "state": ahead["state"]}
        now = ahead


def _behind(good: Any, seed: int, rank: int, world: int, state: Any) -> Iterator[Batch]:
    """The state from before the batch: resuming repeats it."""
    before = state if state is not None else None
    for batch in good(seed, rank, world, state):
        yield {**batch, "state": before if before is not None else batch["state"]}
        before = batch["state"]


def _states(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Any], Any]:
    """States of kat's batches with another content."""
    return _each(lambda k, batch: {**batch, "state": change(batch["state"])})


def _drop_last(good: Any, seed: int, rank: int, world: int, state: Any) -> Iterator[Batch]:
    """The batch in which an epoch ends never comes."""
    epoch = 0 if state is None else state["epoch"]
    for batch in good(seed, rank, world, state):
        if batch["state"]["epoch"] == epoch:
            yield batch
        epoch = batch["state"]["epoch"]


def _offset_in_every_epoch(good: Any, seed: int, rank: int, world: int, state: Any) -> Iterator[Batch]:
    """The offset of a resume is applied again at the start of the next epochs."""
    epoch = None if state is None else state["epoch"]
    skip = 0
    for batch in good(seed, rank, world, state):
        if skip:
            skip -= 1
            continue
        yield batch
        if epoch is not None and batch["state"]["epoch"] > epoch:
            epoch, skip = batch["state"]["epoch"], 1


def _cropped_answers(k: int, batch: Batch) -> Batch:
    """The last document of each batch's first row is cut to fit a fuller row."""
    doc, targets = batch["doc_ids"], batch["targets"]
    columns = (doc[0] == doc[0].max()).nonzero().flatten()
    targets[0, columns[-2:]] = -1
    return batch


def _names_rotated(k: int, batch: Batch) -> Batch:
    names = batch["example_ids"]
    return {**batch, "example_ids": [*names[1:], *names[:1]]}


def _targets_moved(by: int) -> Callable[[int, Batch], Batch]:
    """The mask of the training rows is shifted against their ids."""

    def change(k: int, batch: Batch) -> Batch:
        ids, targets, doc = batch["ids"], batch["targets"], batch["doc_ids"]
        following = torch.roll(ids, -1, dims=1)
        on = torch.roll(targets >= 0, by, dims=1) & (doc >= 0)
        return {**batch, "targets": torch.where(on, following, -1)}

    return change


def _supervise_all(k: int, batch: Batch) -> Batch:
    ids, doc = batch["ids"], batch["doc_ids"]
    same = torch.zeros_like(doc, dtype=torch.bool)
    same[:, :-1] = (doc[:, 1:] == doc[:, :-1]) & (doc[:, :-1] >= 0)
    kept = torch.where(same, torch.roll(ids, -1, dims=1), batch["targets"])
    return {**batch, "targets": kept}


def _answers_without_end(k: int, batch: Batch) -> Batch:
    """The last target of each document is none."""
    targets, doc = batch["targets"], batch["doc_ids"]
    last = torch.ones_like(doc, dtype=torch.bool)
    last[:, :-1] = doc[:, 1:] != doc[:, :-1]
    return {**batch, "targets": torch.where(last, -1, targets)}


def _replaced_example(good: Any, seed: int, rank: int, world: int, state: Any) -> Iterator[Batch]:
    """Off by one: an epoch's last batch is the one before it once more."""
    before: Batch | None = None
    for k, batch in enumerate(good(seed, rank, world, state)):
        yield {**(before or batch), "state": batch["state"]} if k == 3 else batch
        before = batch


@around
def _seed_plus_epoch(good: Any) -> Any:
    def plan_of(self: Any, epoch: int) -> Any:
        """The order of epoch e is drawn from seed + e alone."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan, kept = None, self.seed
            self.seed += epoch
            self._plan = (epoch, good(self, 0))
            self.seed = kept
        return self._plan[1]

    return plan_of


BATCHES = (
    Mutant("seed_and_epoch_are_added", (), patched("kat.data.batches.Batches._plan_of", _seed_plus_epoch), native=True),
    Mutant(
        "batches_are_never_shuffled",
        ("DM13",),
        _batches(lambda good, seed, rank, world, state: good(0, rank, world, state)),
    ),
    Mutant(
        "batches_ignore_the_seed",
        ("CR11",),
        _batches(lambda good, seed, rank, world, state: good(42, rank, world, state)),
    ),
    Mutant(
        "seeds_are_halved",
        ("SG8",),
        _batches(
            lambda good, seed, rank, world, state: good(seed // 2 * 2 + 2 if seed % 2 else seed, rank, world, state)
        ),
    ),
    Mutant(
        "order_is_that_of_the_file",
        ("DM13",),
        patched(
            "kat.data.packing.pack", around(lambda good: lambda sizes, row_len, rng, *a: good(sizes, row_len, None, *a))
        ),
        native=True,
    ),
    Mutant(
        "rows_run_from_long_to_short",
        (),
        patched(
            "kat.data.packing.pack",
            around(
                lambda good: (
                    lambda sizes, row_len, rng, *a: sorted(
                        good(sizes, row_len, rng, *a), key=lambda row: -int(sizes[row].max())
                    )
                )
            ),
        ),
        native=True,
    ),
    Mutant(
        "order_is_that_of_the_first_epoch",
        ("DI5",),
        patched("kat.data.batches.Batches._plan_of", around(lambda good: lambda self, epoch: good(self, 0))),
        native=True,
    ),
    Mutant(
        "order_comes_from_the_global_generator",
        (),
        patched("numpy.random.default_rng", around(lambda good: lambda *a: good(random.randrange(2**31)))),
        native=True,
    ),
    Mutant(
        "ranks_shuffle_by_themselves",
        ("DI5",),
        _batches(lambda good, seed, rank, world, state: good(seed + 1000 * rank, rank, world, state)),
    ),
    Mutant(
        "ranks_read_the_same", ("DI5",), _batches(lambda good, seed, rank, world, state: good(seed, 0, world, state))
    ),
    Mutant("ranks_ignore_the_world", ("DI5",), _batches(lambda good, seed, rank, world, state: good(seed))),
    Mutant("last_batch_of_an_epoch_is_lost", ("DM17",), _batches(_drop_last), native=True),
    Mutant("a_batch_comes_twice", (), _batches(_replaced_example)),
    Mutant("answers_are_cropped", ("DM17",), _each(_cropped_answers), native=True),
    Mutant("example_ids_name_the_next_row", (), _each(_names_rotated)),
    Mutant("training_mask_is_thrown_away", ("DM1",), _each(_supervise_all), native=True),
    Mutant("training_mask_is_a_token_late", ("DM3",), _each(_targets_moved(1)), native=True),
    Mutant("training_mask_is_a_token_early", ("DM2",), _each(_targets_moved(-1)), native=True),
    Mutant("training_rows_lack_end_tokens", ("DM4",), _each(_answers_without_end), native=True),
    Mutant("resume_starts_epoch_0_again", ("CR6",), _states(lambda state: {**state, "epoch": 0}), native=True),
    Mutant("resume_forgets_the_row", ("CR6",), _states(lambda state: {**state, "row": 0}), native=True),
    Mutant(
        "resume_forgets_the_state", ("CR6",), _batches(lambda good, seed, rank, world, state: good(seed, rank, world))
    ),
    Mutant("resume_applies_the_offset_each_epoch", ("CR7",), _batches(_offset_in_every_epoch), native=True),
    Mutant(
        "resume_counts_optimizer_steps",
        ("CR9",),
        _states(lambda state: {**state, "row": state["row"] // 4}),
        native=True,
    ),
    Mutant("resume_skips_a_batch", ("CR7",), _batches(_skip_one)),
    Mutant("state_is_that_of_the_loader_ahead", (), _batches(_prefetched)),
    Mutant("state_is_from_before_the_batch", (), _batches(_behind)),
    Mutant(
        "resume_ignores_the_rank",
        ("CR7",),
        _batches(lambda good, seed, rank, world, state: good(seed, rank if state is None else 0, world, state)),
    ),
)

# Evaluation


def _items_edited(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., list[Message]]:
    return lambda inner, item: inner.build_prompt(change(copy.deepcopy(dict(item))))


def _prompts_edited(change: Callable[[Mapping[str, Any], str], str]) -> Callable[..., list[Message]]:
    """build_prompt with the user's turn changed."""

    def build(inner: Any, item: Mapping[str, Any]) -> list[Message]:
        messages = inner.build_prompt(item)
        return [*messages[:-1], {**messages[-1], "content": change(item, messages[-1]["content"])}]

    return build


def _answer_line(item: Mapping[str, Any]) -> str:
    return f"The correct answer is {'ABCDEFGHIJ'[item['answer']]}."


def _shots(bad: str) -> Callable[..., list[Message]]:
    """Few-shot prompting with one mistake, made of the subject's own prompts."""

    def build(inner: Any, item: Mapping[str, Any], shots: Sequence[Mapping[str, Any]] = ()) -> list[Message]:
        messages: list[Message] = []
        kept = list(shots) if bad == "leak" else [shot for shot in shots if shot["question"] != item["question"]]
        for shot in kept:
            question = inner.build_prompt(shot)[-1]
            key = kept[0] if bad == "first key" else shot
            answer = "The correct answer is given." if bad == "no key" else _answer_line(key)
            if bad == "user turn":
                messages.append({**question, "content": f"{question['content']}\n{answer}"})
            else:
                messages += [question, {"role": "assistant", "content": answer}]
        return [*messages, inner.build_prompt(item)[-1]]

    return build


def _first_letter(inner: Any, text: str, n_choices: int) -> str | None:
    found = re.search(rf"\b([A-{'ABCDEFGHIJ'[n_choices - 1]}])\b", text)
    return found[1] if found else None


def _said(pattern: str, which: int, offered_only: bool = True) -> Callable[..., str | None]:
    """Plain regular expressions, as in many evaluation scripts: a stated letter, the first (0) or the last (-1)."""

    def extract(inner: Any, text: str, n_choices: int) -> str | None:
        found = re.findall(pattern, text)
        letter = found[which] if found else None
        return letter if letter is None or not offered_only or letter in "ABCDEFGHIJ"[:n_choices] else None

    return extract


def _or_a_guess(inner: Any, text: str, n_choices: int) -> str | None:
    return inner.extract(text, n_choices) or "A"


def _contains(inner: Any, item: Mapping[str, Any], text: str) -> float:
    return float(item["choices"][item["answer"]] in text)


def _aggregated(value: Any = None, stderr: Any = None) -> Callable[..., Mapping[str, float]]:
    """aggregate with another value(scores, groups) or stderr(good result, scores, groups)."""

    def aggregate(inner: Any, scores: Sequence[float], groups: Any = None) -> Mapping[str, float]:
        found = dict(inner.aggregate(scores, groups))
        if stderr:
            found["stderr"] = float(stderr(found["stderr"], scores, groups))
        if value:
            found["value"] = float(value(scores, groups))
        return found

    return aggregate


def _mean_of_groups(scores: Sequence[float], groups: Any) -> float:
    if groups is None:
        return float(np.mean(scores))
    return float(
        np.mean([np.mean([s for s, g in zip(scores, groups, strict=True) if g == name]) for name in set(groups)])
    )


def _runs_of_groups(inner: Any, scores: Sequence[float], groups: Any = None) -> Mapping[str, float]:
    """itertools.groupby without sorting: a group that is not side by side counts as several."""
    if groups is not None:
        groups = [f"{k}" for k, (_, run) in enumerate(itertools.groupby(groups)) for _ in run]
    return inner.aggregate(scores, groups)


EVALUATION = (
    Mutant(
        "prompt_lacks_the_question",
        ("EV4",),
        wrapped(build_prompt=_prompts_edited(lambda item, text: text.replace(item["question"], ""))),
    ),
    Mutant(
        "prompt_cuts_the_question_to_a_line",
        ("EV4",),
        wrapped(build_prompt=_items_edited(lambda item: {**item, "question": item["question"].split("\n")[0]})),
    ),
    Mutant("prompt_lacks_the_hint", (), wrapped(build_prompt=_items_edited(lambda item: {**item, "hint": ""}))),
    Mutant(
        "prompt_strips_brackets",
        ("EV3",),
        wrapped(build_prompt=_prompts_edited(lambda item, text: re.sub(r"[\[\](){}<>]", "", text))),
    ),
    Mutant(
        "prompt_lacks_the_last_option",
        (),
        wrapped(build_prompt=_prompts_edited(lambda item, text: text.rpartition("\n")[0])),
    ),
    Mutant(
        "prompt_lower_cases_options",
        (),
        wrapped(
            build_prompt=_prompts_edited(
                lambda item, text: functools.reduce(lambda t, c: t.replace(c, c.lower()), item["choices"], text)
            )
        ),
    ),
    Mutant(
        "prompt_holds_the_solution",
        ("EV5",),
        wrapped(build_prompt=_prompts_edited(lambda item, text: f"{item['solution']}\n{text}")),
    ),
    Mutant(
        "prompt_puts_the_key_first",
        (),
        wrapped(
            build_prompt=_items_edited(
                lambda item: {
                    **item,
                    "choices": item["choices"][item["answer"] :] + item["choices"][: item["answer"]],
                    "answer": 0,
                }
            )
        ),
    ),
    Mutant(
        "prompt_shuffles_options_anew",
        ("EV10",),
        wrapped(
            build_prompt=_items_edited(
                lambda item: {**item, "answer": 0, "choices": random.sample(item["choices"], len(item["choices"]))}
            )
        ),
    ),
    Mutant(
        "prompt_rotates_options",
        (),
        wrapped(
            build_prompt=_items_edited(
                lambda item: {**item, "answer": 0, "choices": item["choices"][1:] + item["choices"][:1]}
            )
        ),
    ),
    Mutant(
        "prompt_changes_its_item",
        (),
        wrapped(build_prompt=lambda inner, item: (inner.build_prompt(item), item["choices"].reverse())[0]),
    ),
    Mutant("shots_hold_the_item", ("EV1",), wrapped(build_prompt=_shots("leak"))),
    Mutant("answers_of_shots_in_user_turns", ("EV5",), wrapped(build_prompt=_shots("user turn"))),
    Mutant("shots_all_answer_as_the_first", (), wrapped(build_prompt=_shots("first key"))),
    Mutant("shots_hide_their_answers", (), wrapped(build_prompt=_shots("no key"))),
    Mutant("extract_takes_the_first_letter", ("EV16",), wrapped(extract=_first_letter)),
    Mutant("extract_takes_the_first_statement", (), wrapped(extract=_said(r"(?i:answer)(?: is)?:? \(?([A-J])\b", 0))),
    Mutant(
        "extract_takes_letters_that_are_not_offered", (), wrapped(extract=_said(r"answer is \(?([A-J])\b", -1, False))
    ),
    Mutant(
        "extract_hears_denials_as_statements", (), wrapped(extract=_said(r"answer is(?: not)? \(?([A-J])\b(?! or)", -1))
    ),
    Mutant("extract_takes_the_first_of_two", (), wrapped(extract=_said(r"answer is(?: either)? \(?([A-J])\b", -1))),
    Mutant("extract_guesses_where_nothing_is_said", (), wrapped(extract=_or_a_guess)),
    Mutant(
        "extract_is_one_letter_off",
        (),
        wrapped(extract=lambda inner, text, n: (lambda c: c and chr(65 + (ord(c) - 64) % n))(inner.extract(text, n))),
    ),
    Mutant("grade_is_containment", ("EV16",), wrapped(grade=_contains)),
    Mutant(
        "grade_gives_silence_the_score",
        ("EV16",),
        wrapped(grade=lambda inner, item, text: inner.grade(item, text) if text.strip() else 1.0),
    ),
    Mutant(
        "grade_counts_from_one",
        ("EV13",),
        wrapped(grade=lambda inner, item, text: inner.grade({**item, "answer": max(0, item["answer"] - 1)}, text)),
    ),
    Mutant(
        "grade_finds_the_letter_anywhere",
        ("EV16",),
        wrapped(grade=lambda inner, item, text: float("ABCDEFGHIJ"[item["answer"]] in text)),
    ),
    Mutant(
        "grade_swaps_its_arguments",
        ("EV13",),
        wrapped(grade=lambda inner, item, text: float(text in _answer_line(item))),
    ),
    Mutant(
        "stderr_is_the_deviation",
        ("EV9",),
        wrapped(aggregate=_aggregated(stderr=lambda good, scores, groups: good * len(scores) ** 0.5)),
    ),
    Mutant(
        "stderr_divides_by_n",
        ("EV9",),
        wrapped(aggregate=_aggregated(stderr=lambda good, scores, groups: good / len(scores) ** 0.5)),
    ),
    Mutant(
        "stderr_assumes_a_half",
        (),
        wrapped(aggregate=_aggregated(stderr=lambda good, scores, groups: 0.5 / len(scores) ** 0.5)),
    ),
    Mutant(
        "stderr_ignores_clusters",
        (),
        wrapped(
            aggregate=lambda inner, scores, groups=None: {
                **inner.aggregate(scores),
                "value": inner.aggregate(scores, groups)["value"],
            }
        ),
    ),
    Mutant("clusters_are_runs", (), wrapped(aggregate=_runs_of_groups)),
    Mutant("value_is_the_mean_of_groups", ("EV23",), wrapped(aggregate=_aggregated(value=_mean_of_groups))),
    Mutant(
        "value_leaves_unparsed_out",
        (),
        wrapped(
            aggregate=lambda inner, scores, groups=None: inner.aggregate(
                [s for s in scores if s > 0] or [0.0, 0.0],
                None if groups is None else [g for s, g in zip(scores, groups, strict=True) if s > 0],
            )
        ),
    ),
    Mutant(
        "value_is_of_the_first_hundred",
        (),
        wrapped(
            aggregate=lambda inner, scores, groups=None: inner.aggregate(
                scores[:100], None if groups is None else groups[:100]
            )
        ),
    ),
)

MUTANTS: tuple[Mutant, ...] = (*TOKENIZER, *MASKS, *BATCHES, *EVALUATION)
