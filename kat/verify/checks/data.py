"""Masks, collation, packing and the order of batches.

A batch is read document by document (:func:`documents`), whichever way it pads, shifts and packs. Epochs are counted,
not asked for: after T examples every one of n has been given T // n times or once more, save for what the declared
design drops, repeats or holds back.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kat.verify.check import Failed, NotApplicable, Vacuous, check
from kat.verify.checks.tokenizer import (
    conversation,
    conversations,
    normalised,
    plain_row,
    roles,
    shown,
    supervised_runs,
)
from kat.verify.lab import AdapterError, Lab, accepts
from kat.verify.subject import Batch, Message, Row

LONGEST = 8192  # rows that are made to be too long are at most this long
ENOUGH = 512  # examples of an epoch that is longer are not all drawn


@check(
    family="data",
    level=0,
    needs={"encode_conversation", "decode"},
    kind="oracle",
    catches=("DM1", "DM3", "DM18", "DM20"),
)
def mask_covers_answers_and_end_tokens(lab: Lab) -> None:
    """Supervised are each assistant message and its end token, all of them and nothing else.

    Where everything is supervised by design: every token but the first. White space at the ends of a message may be
    trimmed. What a template writes into the answer itself (an empty <think> block) counts if the prompt ends before it.
    """

    def test(messages: list[Message]) -> None:
        ids, mask = plain_row(lab.subject.encode_conversation(messages))
        if lab.traits.supervised == "all":
            if not all(mask[1:]):
                raise Failed(f"id {mask.index(0, 1)} is not supervised, all are by design", case=shown(messages))
            return
        answers = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
        runs = supervised_runs(ids, mask)
        if len(runs) != len(answers):
            whole = "DM1" if sum(mask) >= len(mask) - 1 else "DM3"
            raise Failed(f"{len(runs)} supervised runs, {len(answers)} answers", case=shown(messages), resembles=whole)
        for k, run in zip(answers, runs, strict=True):
            end = next((i for i, token in enumerate(run) if token in lab.traits.eos_ids), len(run))
            text = lab.subject.decode(run[:end]).strip()
            content = normalised(lab, messages[k]["content"]).strip()
            case = f"{shown(messages)}; decoded supervised run: {lab.subject.decode(run)!r}"
            if not text.endswith(content) or (text != content and not _starts_after_prompt(lab, messages[:k], mask)):
                more = "DM1" if content in text else "DM3"
                raise Failed(f"supervised is {text!r}, the answer is {content!r}", case=case, resembles=more)
            if lab.traits.eos_ids and end == len(run):
                raise Failed("the end token of an answer is not supervised", case=case, resembles="DM3")

    lab.forall(conversations(*roles(lab)), test, examples=30)
    if lab.traits.supervised == "assistant" and lab.traits.eos_ids:
        _empty_answers_end(lab)


def _empty_answers_end(lab: Lab) -> None:
    """Fail where an answer that is empty or blank is written with its end token, and that is not supervised."""

    def ends(messages: list[Message]) -> tuple[int, int] | None:
        """(end tokens, supervised ones); None where such a message is refused."""
        try:
            ids, mask = plain_row(lab.subject.encode_conversation(messages))
        except Exception:  # noqa: BLE001 (which exception says no is the subject's choice)
            return None
        places = [t for t, token in enumerate(ids) if token in lab.traits.eos_ids]
        return len(places), sum(mask[t] for t in places)

    several = roles(lab)[1]
    for before, after in (([], []), *([([("Ask", "Owl")], []), ([], [("Why", "So")])] if several else [])):
        usual = ends(conversation(None, [*before, ("Ask", "Owl"), *after]))
        for content in ("", " ", "\n"):
            messages = conversation(None, [*before, ("Ask", content), *after])
            found = ends(messages)
            if found is not None and usual is not None and found[0] == usual[0] and found[1] != usual[1]:
                raise Failed(
                    f"{found[1]} end tokens are supervised, {usual[1]} where the answer is not empty",
                    case=shown(messages),
                    resembles="DM3",
                )


@check(family="data", level=0, needs={"collate"}, kind="oracle", catches=("DM4", "DM5", "MF19", "LN13", "RM10"))
def collate_keeps_rows(lab: Lab) -> None:
    """A batch holds each row's ids, its attention and exactly its supervised targets, in order, however it pads.

    The pad id as content, and an end token that equals the pad id, stay what they are.
    """
    from hypothesis import strategies as st

    t = lab.traits
    room = max(2, min(t.max_len, 12))
    # pad and end ids first: Hypothesis shrinks towards them, and a row of few ordinary ids is easier to read
    ids = [*([t.pad_id] if t.pad_id is not None else []), *t.eos_ids, *lab.ordinary_ids()[:8]]
    token = st.tuples(st.sampled_from(ids), st.booleans())
    row = st.lists(token, min_size=2, max_size=room).filter(lambda pairs: any(on for _, on in pairs[1:]))

    def test(drawn: list[list[tuple[int, bool]]]) -> None:
        _rows_are_kept(lab, [([i for i, _ in pairs], [0, *(int(on) for _, on in pairs[1:])]) for pairs in drawn])

    lab.forall(st.lists(row, min_size=1, max_size=4), test, examples=25)
    _rows_are_kept(lab, lab.rows())
    if t.max_len <= LONGEST:
        _rows_are_kept(lab, [lab.row(t.max_len, 3), lab.row(5, 2)])
    if t.eos_ids:
        body = lab.ids(1, 4)[0].tolist()
        _rows_are_kept(lab, [([*body, t.eos_ids[0]], [0, 0, 1, 1, 1]), ([*body[:2], t.eos_ids[0]], [0, 0, 1])])


@check(family="data", level=0, needs={"collate"}, kind="oracle", catches=("DM11",))
def collate_keeps_a_target_of_long_rows(lab: Lab) -> None:
    """A row that is too long is cut or dropped; one that is kept is a piece of the row with that piece's targets, and
    keeps at least one of them.

    A prompt that fills the context leaves a row that trains nothing: an example lost without a word.
    """
    room = lab.traits.max_len
    lab.require(room <= LONGEST, f"rows beyond a context of {room} tokens are not made here")
    rows = [lab.row(min(room, 8), 2)]
    for length, supervised in ((room + 1, 1), (room + 2, 1), (room + 9, 4), (room + 9, room), (2 * room + 3, 5)):
        ids = lab.ids(1, length)[0].tolist()
        rows.append((ids, [0] * (length - supervised) + [1] * supervised))
    for length in (room + 2, 2 * room + 3):  # an answer in the middle
        mask = [0] * length
        mask[2:6] = [1] * 4
        rows.append((lab.ids(1, length)[0].tolist(), mask))
    if lab.traits.supervised == "all":
        rows = [(ids, [0] + [1] * (len(ids) - 1)) for ids, _ in rows]
    for row in rows[1:]:
        try:
            batch = lab.subject.collate([rows[0], row])
        except Exception as error:  # noqa: BLE001 (which exception says no is the subject's choice)
            raise NotApplicable(f"collate refuses rows that are too long ({type(error).__name__})") from None
        found = documents(batch)
        places = [t for t, on in enumerate(row[1]) if on]
        where = f"{len(places)} targets at {places[0]} to {places[-1]}" if places else "no target"
        case = f"rows of {len(rows[0][0])} and {len(row[0])} tokens, the second with {where}"
        if not found or len(found) > 2:
            raise Failed(f"collate gives {len(found)} rows for 2", case=case)
        for document in found[1:]:
            expected = _piece(row, document)
            if expected is None:
                raise Failed("a row that was cut is no piece of the row", case=case)
            got = [(p, i) for p, i in document.targets if p > 0]
            lab.equal(got, expected, "targets of a row that was cut", case=case)
            if not got and lab.traits.long_rows_keep_a_target:
                raise Failed("a row that was cut keeps no target", case=case, resembles="DM11")


@check(family="data", level=0, needs={"pack"}, kind="oracle", catches=("DM7", "DM8", "DM17"))
def packed_documents_are_whole(lab: Lab) -> None:
    """A pack holds each row once, whole, with exactly its own targets: none in another document, none in the padding;
    positions rise by one within a document."""
    for rows in _packable(lab):
        batch = lab.subject.pack(rows)
        if batch.get("doc_ids") is None:
            raise AdapterError("pack returns no doc_ids")
        found = documents(batch)
        case = f"rows of lengths {[len(ids) for ids, _ in rows]}, documents of {[len(d.ids) for d in found]}"
        if stray := stray_targets(batch):
            raise Failed(f"{len(stray)} targets stand in the padding", case=case, resembles="DM7")
        left = list(rows)
        for document in found:
            if first := [i for p, i in document.targets if p == 0 and document.start > 0]:
                raise Failed(
                    f"the first token of a document, id {first[0]}, is a target of the document before it",
                    case=case,
                    resembles="DM7",
                )
            fitting = [row for row in left if _is_row(document, row, exact=True)]
            if not fitting:
                raise Failed(
                    f"a packed document of {len(document.ids)} ids with targets {document.targets[:4]} … is none of "
                    "the rows, whole and with its own targets",
                    case=case,
                    resembles="DM7",
                )
            left.remove(fitting[0])
            p = document.positions
            if p and p != list(range(p[0], p[0] + len(p))):
                raise Failed(f"positions of a document do not rise by one: {p[:6]}", case=case, resembles="DM8")
            if p and p[0] != 0 and lab.traits.pack_isolated and lab.traits.positions == "absolute":
                raise Failed(f"positions of a document start at {p[0]}", case=case, resembles="DM8")
        lab.equal(len(left), 0, "rows that are in no pack", case=case, resembles="DM17")


@check(
    family="data",
    level=2,
    needs={"pack", "loss", "forward", "named_parameters"},
    kind="oracle",
    tol=1e-4,
    catches=("DM7", "DM8"),
)
def packed_loss_is_that_of_documents_alone(lab: Lab) -> None:
    """The loss of a pack is the loss of its documents, each read alone; of whole rows where the declared design lets
    documents see each other."""
    subject, shared = lab.randomised(), False
    lab.require_context(subject)
    for rows in _packable(lab):
        batch = subject.pack(rows)
        found = documents(batch)
        if len({d.row for d in found}) == len(found):
            continue  # nothing shares a row
        with torch.no_grad():
            loss = float(lab.loss(subject, batch))
            if lab.traits.pack_isolated:
                places = [[(float(-logp), d) for d in found for logp in _logprobs(lab, subject, d)]]
                if lab.traits.positions == "relative" and accepts(subject.forward, "position_ids"):
                    # A document may keep its places in the row, which tables kept in bfloat16 round otherwise.
                    shifted = [(float(-logp), d) for d in found for logp in _logprobs(lab, subject, d, d.start)]
                    places.append(shifted)
            else:
                places = [[(float(-logp), d) for d, logp in _row_logprobs(lab, subject, batch, found)]]
        expected = [value for one in places for value in _aggregated(lab, one)]
        worst = min(abs(loss - value) for value in expected)
        case = f"rows of lengths {[len(ids) for ids, _ in rows]} in {len({d.row for d in found})} packed rows"
        alone = "alone" if lab.traits.pack_isolated else "in its row"
        lab.at_most(worst, f"the loss of a pack is not that of each document {alone}", case=case, resembles="DM8")
        shared = True
    if not shared:
        raise Vacuous("pack put no two documents into a row")


@check(
    family="data",
    level=0,
    needs={"batches"},
    kind="metamorphic",
    catches=("DM17", "CR7"),
)
def epoch_gives_each_example_once(lab: Lab) -> None:
    """Each example comes once in an epoch before any comes again, also where one epoch ends and the next begins."""
    lab.require(not lab.traits.replacement, "examples are drawn with replacement")
    n = _n_examples(lab)
    drawn = _draw(lab, lab.subject, n_ids=_wanted(n, 2.5))
    streams = [drawn]
    if drawn.finished and drawn.batches:  # one epoch at a time: the next one, if any, is behind the last state
        streams.append(_draw(lab, lab.subject, n_ids=_wanted(n, 1.5), state=drawn.batches[-1].state))
    counts: Counter[Any] = Counter()
    total = slack = 0
    last: Any = None
    largest = max(len(b.names) for s in streams for b in s.batches) if drawn.batches else 0
    for stream in streams:
        for k, batch in enumerate(stream.batches):
            for name in batch.names:
                if name == last and batch.spans:
                    slack += total % n == 0  # it may be an example that goes on, or one that comes again
                    continue
                counts[name] += 1
                total += 1
                last = name
            _balanced(lab, counts, total, n, largest, slack, f"after {k + 1} batches of seed {lab.seed}")
        if stream.finished and total and lab.traits.last_batch != "dropped" and total % n and lab.traits.buffer == 0:
            extra = largest if lab.traits.last_batch == "filled" else 0
            if total % n > extra:
                raise Failed(
                    f"an epoch ends after {total % n} of {n} examples",
                    case=f"seed {lab.seed}, batches of up to {largest}; if it is meant, declare last_batch",
                    resembles="DM17",
                )


@check(family="data", level=0, needs={"batches"}, kind="metamorphic", catches=("DI5", "CR7"))
def ranks_share_an_epoch_without_overlap(lab: Lab) -> None:
    """With 2 and 3 ranks every example goes to exactly one rank in an epoch."""
    lab.require(not lab.traits.replacement, "examples are drawn with replacement")
    n = _n_examples(lab)
    spans = any(batch.spans for batch in _draw(lab, lab.subject, n_ids=_wanted(n, 1.0)).batches)
    for world in (2, 3):
        streams = [
            _draw(lab, lab.subject, n_ids=_wanted(n, 1.7) // world + 1, rank=rank, world=world) for rank in range(world)
        ]
        case = f"{world} ranks, seed {lab.seed}, {n} examples"
        if _own_shards(streams, n):
            continue
        steps = min(len(stream.batches) for stream in streams)
        if all(stream.finished for stream in streams):
            steps = max(len(stream.batches) for stream in streams)
        largest = max(
            sum(len(stream.batches[k].names) for stream in streams if k < len(stream.batches)) for k in range(steps)
        )
        counts: Counter[Any] = Counter()
        spanning: set[Any] = set()
        for k in range(steps):
            names = [b.names for stream in streams for b in stream.batches[k : k + 1]]
            flat = [name for part in names for name in part]
            if spans:
                before, spanning = spanning, set(flat)
                flat = [name for name in spanning if name not in before]
            counts.update(flat)
            total = sum(counts.values())
            slack = largest if spans and total > n - largest else 0  # or it comes again, in the next epoch
            _balanced(lab, counts, total, n, largest, slack, f"{case}, after {k + 1} steps", row="DI5")
        total = sum(counts.values())
        if all(s.finished for s in streams) and total < n and lab.traits.last_batch != "dropped":
            raise Failed(f"the ranks' epochs together give {total} of {n} examples", case=case, resembles="DI5")


@check(family="data", level=0, needs={"batches"}, kind="statistical", catches=("DM13", "CR11", "DI5", "SG8"))
def batch_order_depends_on_seed_and_epoch(lab: Lab) -> None:
    """Two seeds give unrelated orders (Kendall's tau), and so do two epochs of one seed; an epoch of one seed is not
    the next one of its neighbour, unless that is declared."""
    lab.require(lab.traits.shuffle, "batches come in a fixed order by design")
    n = _n_examples(lab)
    drawn: dict[int, list[dict[Any, int]]] = {}

    def epochs(seed: int) -> list[dict[Any, int]]:
        """For each epoch: example -> number of the batch where it comes."""
        if seed not in drawn:
            stream = _draw(lab, lab.subject, n_ids=_wanted(n, 2.2), seed=seed)
            batches = list(stream.batches)
            if stream.finished and batches:
                batches += _draw(lab, lab.subject, n_ids=_wanted(n, 1.0), seed=seed, state=batches[-1].state).batches
            found: list[dict[Any, int]] = [{}, {}]
            for k, batch in enumerate(batches):
                for name in dict.fromkeys(batch.names):
                    if name not in found[0]:
                        found[0][name] = k
                    elif name not in found[1] and not (batch.spans and found[0][name] >= k - 1):
                        found[1][name] = k
            drawn[seed] = found
        return drawn[seed]

    def of_seeds(seed: int) -> float:
        pairs = [(seed, seed + 1), (seed + 1, seed + 2)]  # two: seeds may collide in pairs
        return 2 * min(_p_of_tau(lab, epochs(a)[0], epochs(b)[0]) for a, b in pairs)

    def of_epochs(seed: int) -> float:
        return _p_of_tau(lab, *epochs(seed))

    if len(set(epochs(lab.seed)[0].values())) < 4:
        raise NotApplicable("an epoch has fewer than 4 batches: there is no order to speak of")
    lab.statistical(of_seeds, "two seeds give related orders of the examples", n=n, resembles="DM13")
    if not lab.traits.replacement and n <= ENOUGH and len(epochs(lab.seed)[1]) > 3:
        lab.statistical(of_epochs, "two epochs of a seed give related orders of the examples", n=n, resembles="DI5")
        if lab.traits.epoch_seed == "mixed":

            def of_neighbours(seed: int) -> float:
                pairs = [(seed, seed + 1), (seed + 1, seed)]  # alike of a sum is one, of an exclusive or either
                return 2 * min(_p_of_tau(lab, epochs(a)[1], epochs(b)[0]) for a, b in pairs)

            lab.statistical(
                of_neighbours,
                "the second epoch of a seed has the order of its neighbour's first: seed and epoch are added",
                n=n,
                resembles="DM13",
            )


@check(family="data", level=0, needs={"batches"}, kind="metamorphic", catches=("CR11",))
def batches_are_a_function_of_the_seed(lab: Lab) -> None:
    """The same seed gives the same batches, whatever else drew from the global random generators."""
    import numpy as np

    n = _wanted(_n_examples(lab), 1.3)
    first = _draw(lab, lab.subject, n_ids=n)
    for place, subject in (("the same subject", lab.subject), ("a new subject", lab.fresh())):
        random.seed(4711)
        np.random.seed(4711)
        torch.manual_seed(4711)
        again = _draw(lab, subject, n_ids=n)
        _same(lab, again.batches, first.batches, f"drawn again from {place} with seed {lab.seed}", row="CR11")


@check(family="data", level=3, needs={"batches"}, kind="metamorphic", catches=("CR6", "CR7", "CR9"))
def batches_resume_exactly(lab: Lab) -> None:
    """Batches drawn from a saved state (as JSON) are those that would have come without the stop: within an epoch, on
    both sides of its end, in later epochs, on each rank, and after a second stop."""
    n = _n_examples(lab)
    for world in (1, 2):
        for rank in range(world):
            whole = _draw(lab, lab.subject, n_ids=int(_wanted(n, 2.3)) // world, rank=rank, world=world).batches
            if len(whole) < 2:
                raise Vacuous("an epoch is a single batch: there is no place to stop")
            seen: Counter[Any] = Counter()
            ends: list[int] = []  # numbers of batches after which an epoch ends, on this rank
            for k, batch in enumerate(whole):
                seen.update(batch.names)
                if sum(seen.values()) * world >= n * (len(ends) + 1):
                    ends.append(k + 1)
            places = {1, 2, *(end + d for end in ends for d in (-1, 0, 1))}
            long = max(1, ends[0] // 2) if ends else 1
            for k in sorted(k for k in places | {long} if 0 < k <= len(whole) - 1):
                length = len(whole) - k if k == long else 3
                case = f"seed {lab.seed}, rank {rank} of {world}, state after batch {k}; epochs end after {ends}"
                resumed = _resume(lab, whole[k - 1], length, rank, world)
                row = "CR6" if ends and k >= ends[0] else "CR7"
                _same(lab, resumed, whole[k : k + length], "resumed", case=case, row=row)
                if len(resumed) > 1 and (k == long or k in ends):
                    again = _resume(lab, resumed[0], 2, rank, world)
                    case = f"{case}, and resumed again one batch later"
                    _same(lab, again, whole[k + 1 : k + 3], "resumed twice", case=case, row="CR7")


@check(family="data", level=0, needs={"batches"}, kind="metamorphic", catches=("DM17", "DM3", "LN13"))
def example_is_the_same_in_every_batch(lab: Lab) -> None:
    """An example has the same tokens and the same targets in every epoch, with every seed, on every rank.

    What is cropped to fit a row, or shifted in one place only, shows as a difference; the example's id then lies.
    """
    n = _n_examples(lab)
    known: dict[Any, tuple[Any, str]] = {}
    mapped = 0
    for seed, rank, world in ((lab.seed, 0, 1), (lab.seed + 1, 0, 1), (lab.seed, 1, 2)):
        for k, batch in enumerate(
            _draw(lab, lab.subject, n_ids=_wanted(n, 2.0), seed=seed, rank=rank, world=world).batches
        ):
            if len(batch.documents) != len(batch.names) or batch.spans:
                continue
            mapped += 1
            for name, document in zip(batch.names, batch.documents, strict=True):
                targets = [(p, i) for p, i in document.targets if p > 0]
                upto = max((p for p, _ in targets), default=0)
                content = (document.ids[:upto], targets)
                case = f"example {name!r}, batch {k} of seed {seed}, rank {rank} of {world}"
                if name in known and known[name][0] != content:
                    raise Failed(
                        f"an example has {len(targets)} targets, elsewhere {len(known[name][0][1])} or other ones",
                        case=f"{case}; {known[name][1]}",
                        resembles="DM17",
                    )
                known.setdefault(name, (content, case))
    lab.require(mapped, "rows of batches can't be told apart by example")


@check(family="data", level=0, needs={"batches"}, kind="oracle", catches=("DM1", "DM2", "DM3", "DM18", "TK12"))
def batches_supervise_answers_to_their_end(lab: Lab) -> None:
    """In what is trained on, each supervised run starts where the model is to speak and ends with its one end token,
    and what is before it is not supervised.

    The mask's encoder may be right and the batches still wrong: this looks at the batches.
    """
    t = lab.traits
    lab.require(t.supervised == "assistant", "everything is supervised by design")
    lab.require(t.eos_ids, "no end token is declared")
    opener = None
    if lab.has("encode_prompt"):
        opener = int(lab.subject.encode_prompt([{"role": "user", "content": "Ask"}])[-1])
    runs = 0
    for k, batch in enumerate(_draw(lab, lab.subject, n_ids=_wanted(_n_examples(lab), 1.0)).batches):
        if batch.stray:
            raise Failed(f"{batch.stray} targets stand in the padding", case=f"batch {k}", resembles="LN13")
        for document in batch.documents:
            full = document.full_ids
            mask = [0] * len(full)
            for p, _ in document.targets:
                mask[p] = 1
            for start, end in _spans(mask):
                case = f"batch {k}, {document}"
                run = full[start:end]
                runs += 1
                if start <= 1 and document.start == 0 and batch.spans:
                    continue  # the row begins within an answer
                if start <= 1:
                    raise Failed("the very start of an example is supervised", case=case, resembles="DM1")
                if opener is not None and full[start - 1] != opener:
                    raise Failed(
                        f"before the supervised run stands id {full[start - 1]}, prompts end with {opener}",
                        case=case,
                        resembles="DM3",
                    )
                ends = [i for i, token in enumerate(run) if token in t.eos_ids]
                cut = end >= len(full) and (len(full) >= t.max_len or batch.spans)
                if not ends and not cut:
                    raise Failed(f"a supervised run has no end token: {run[-4:]}", case=case, resembles="DM3")
                if len(ends) > 1:
                    raise Failed(f"a supervised run has {len(ends)} end tokens", case=case, resembles="DM1")
                behind = run[ends[0] + 1 :] if ends else []
                if behind and not (lab.has("decode") and not lab.subject.decode(behind).strip()):
                    raise Failed(f"after the end token {behind} is supervised", case=case, resembles="DM2")
    if not runs:
        raise Vacuous("no batch has a target")


# Documents of a batch


@dataclass(frozen=True)
class Document:
    """One document in a batch: its ids as the model reads them, and (position, id) of its targets from its own start.

    Where a batch is shifted the last target is an id that is not read.
    """

    row: int
    start: int
    ids: list[int]
    targets: list[tuple[int, int]]
    positions: list[int]

    @property
    def full_ids(self) -> list[int]:
        """The ids, and the last target where it is not among them."""
        beyond = [i for p, i in self.targets if p == len(self.ids)]
        return [*self.ids, *beyond]


def documents(batch: Batch) -> list[Document]:
    """The documents of a batch by row and place: by doc_ids, else a row's attended tokens, else the whole row."""
    ids = torch.as_tensor(batch["ids"]).tolist()
    numbers = _numbers(batch).tolist()
    aligned = batch.get("mask") is not None
    labels = torch.as_tensor(batch["mask"] if aligned else batch["targets"]).tolist()
    positions = batch.get("position_ids")
    places = None if positions is None else torch.as_tensor(positions).tolist()
    found = []
    for b, row in enumerate(ids):
        if batch.get("doc_ids") is not None:
            groups = [columns for _, columns in _by_number(numbers[b])]
        else:
            groups = [[t for t, n in enumerate(numbers[b]) if n >= 0]]
        for columns in groups:
            if not columns:
                continue
            a = columns[0]
            if aligned:
                targets = [(t - a, row[t]) for t in columns if labels[b][t] > 0]
            else:
                targets = [(t - a + 1, labels[b][t]) for t in columns if labels[b][t] >= 0]
            own = [] if places is None else [places[b][t] for t in columns]
            found.append(Document(b, a, [row[t] for t in columns], targets, own))
    return found


def stray_targets(batch: Batch) -> list[tuple[int, int]]:
    """(row, column) of every target that stands outside all documents."""
    numbers = _numbers(batch)
    if batch.get("mask") is not None:
        on = torch.as_tensor(batch["mask"]) > 0
        on[:, 0] = False  # nothing stands before it: no target wherever the labels are shifted
    else:
        on = torch.as_tensor(batch["targets"]) >= 0
    return [(b, t) for b, t in (on & (numbers < 0)).nonzero().tolist()]


def _numbers(batch: Batch) -> Tensor:
    """(B, T) number of the document, -1 in the padding."""
    ids = torch.as_tensor(batch["ids"])
    if batch.get("doc_ids") is not None:
        return torch.as_tensor(batch["doc_ids"]).long()
    if batch.get("attention_mask") is not None and torch.as_tensor(batch["attention_mask"]).shape == ids.shape:
        return torch.where(torch.as_tensor(batch["attention_mask"]) > 0, 0, -1)
    return torch.zeros_like(ids)


def _by_number(row: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(number, its columns) for each unbroken run of one document number."""
    start = 0
    for t in range(1, len(row) + 1):
        if t == len(row) or row[t] != row[start]:
            if row[start] >= 0:
                yield row[start], list(range(start, t))
            start = t


def _spans(mask: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = None
    for t, on in enumerate([*mask, 0]):
        if on and start is None:
            start = t
        elif not on and start is not None:
            yield start, t
            start = None


def _is_row(document: Document, row: Row, exact: bool) -> bool:
    ids, mask = row
    if [(p, i) for p, i in document.targets if p > 0] != [(t, ids[t]) for t in range(1, len(ids)) if mask[t]]:
        return False
    if not exact:  # padding may be attended to, behind the row
        return document.ids[: len(ids) - 1] == list(ids[:-1])
    return document.ids in (list(ids), list(ids[:-1]))


def _rows_are_kept(lab: Lab, rows: list[Row]) -> None:
    batch = lab.subject.collate(rows)
    found = documents(batch)
    case = "rows (ids, mask): " + "; ".join(f"{list(ids)}, {list(mask)}" for ids, mask in rows)
    case = case if len(case) < 800 else f"rows of lengths {[len(ids) for ids, _ in rows]}"
    lab.equal(len(found), len(rows), "rows in the batch", case=case)
    if stray := stray_targets(batch):
        b, t = stray[0]
        raise Failed(
            f"the target at row {b}, column {t} stands outside the attended tokens", case=case, resembles="DM5"
        )
    exact = lab.traits.attn_mask and (batch.get("attention_mask") is not None or batch.get("doc_ids") is not None)
    packed = len({d.row for d in found}) < len(found)
    left = list(rows)
    for k, document in enumerate(found):
        match = next((row for row in left if _is_row(document, row, exact)), None) if packed else rows[k]
        if match is not None and _is_row(document, match, exact):
            left.remove(match)
            continue
        ids, mask = rows[k]
        expected = [(t, ids[t]) for t in range(1, len(ids)) if mask[t]]
        got = [(p, i) for p, i in document.targets if p > 0]
        lost = [pair for pair in expected if pair not in got]
        if lost and all(i in (lab.traits.pad_id, *lab.traits.eos_ids) for _, i in lost):
            raise Failed(f"row {k} lost its targets {lost}, ids of padding or end", case=case, resembles="DM4")
        lab.equal(got, expected, f"targets (position, id) of row {k}", case=case, resembles="DM5")
        lab.equal(document.ids, list(ids), f"attended ids of row {k}", case=case, resembles="DM5")


def _piece(row: Row, document: Document) -> list[tuple[int, int]] | None:
    """The targets of the piece of a row that a document is; None where it is no piece of it."""
    ids, mask = list(row[0]), row[1]
    n = len(document.ids)
    for start in (0, len(ids) - n, len(ids) - n - 1, *range(len(ids) - n + 1)):
        if start >= 0 and ids[start : start + n] == document.ids:
            beyond = start + n + any(p == n for p, _ in document.targets)
            return [(t - start, ids[t]) for t in range(start + 1, min(beyond, len(ids))) if mask[t]]
    if ids == document.ids[: len(ids)]:  # kept whole, with padding that is attended to
        return [(t, ids[t]) for t in range(1, len(ids)) if mask[t]]
    return None


def _starts_after_prompt(lab: Lab, before: list[Message], mask: list[int]) -> bool:
    if not lab.has("encode_prompt"):
        return False
    n = len(lab.subject.encode_prompt(before))
    return bool(mask[n]) and not mask[n - 1]


# Packs


def _packable(lab: Lab) -> list[list[Row]]:
    """Lists of rows, several of which fit into one packed row; the shortest list first."""
    room = min(lab.traits.max_len, 32)
    two = [lab.row(max(4, room // 4), 2), lab.row(max(4, room // 3), 2, tail=1)]
    for ids, mask in two:  # the first document ends, and the second begins, beside a target
        mask[-1] = 1
        mask[1] = 1
        del ids[len(mask) :]
    pretraining = [(lab.ids(1, length)[0].tolist(), [0] + [1] * (length - 1)) for length in (5, 4, 6)]
    lists = [two, pretraining, [lab.row(4, 2) for _ in range(4)], [*lab.rows(), *two]]
    if lab.traits.max_len <= LONGEST:  # as many tokens as a row holds, with and without the last target's place
        for total in (lab.traits.max_len, lab.traits.max_len + 1, lab.traits.max_len + 2):
            first = total // 3
            lists.append([lab.row(first, 2), lab.row(total - first, 3)])
    return lists


def _logprobs(lab: Lab, subject: Any, document: Document, first: int = 0) -> list[Tensor]:
    """Of a document's targets, read alone, its positions counted from `first`."""
    ids = torch.tensor([document.ids])
    kwargs = {"position_ids": torch.arange(first, first + ids.size(1))[None]} if first else {}
    logprobs = F.log_softmax(lab.forward(subject, ids, **kwargs)[0].float(), dim=-1)  # (T, V)
    return [logprobs[p - 1, i] for p, i in document.targets if p > 0]


def _row_logprobs(lab: Lab, subject: Any, batch: Batch, found: list[Document]) -> list[tuple[Document, Tensor]]:
    """Log-probabilities where documents see each other: one pass over the row as it stands."""
    ids = torch.as_tensor(batch["ids"])
    kwargs = {"position_ids": torch.as_tensor(batch["position_ids"])} if batch.get("position_ids") is not None else {}
    logprobs = F.log_softmax(lab.forward(subject, ids, **kwargs).float(), dim=-1)  # (B, T, V)
    return [(d, logprobs[d.row, d.start + p - 1, i]) for d in found for p, i in d.targets if d.start + p > 0]


def _aggregated(lab: Lab, places: list[tuple[float, Document]]) -> list[float]:
    """The loss by definition; where it is a mean of sequences a sequence may be a document or a row."""
    values = [value for value, _ in places]
    match lab.traits.loss_agg:
        case "token-mean":
            return [sum(values) / len(values)]
        case "token-sum":
            return [sum(values)]
    means = []
    for key in (lambda d: (d.row, d.start), lambda d: d.row):
        groups: dict[Any, list[float]] = {}
        for value, document in places:
            groups.setdefault(key(document), []).append(value)
        means.append(sum(sum(g) / len(g) for g in groups.values()) / len(groups))
    return means


# Batches


@dataclass(frozen=True)
class Seen:
    """What a batch held when it came. `spans`: examples may go on in the next row."""

    names: list[Any]
    ids: list[list[int]]
    documents: list[Document]
    stray: int
    state: str
    spans: bool


@dataclass(frozen=True)
class Stream:
    """Batches in order; `finished` where the iterator ended by itself."""

    batches: list[Seen]
    finished: bool


def _draw(
    lab: Lab,
    subject: Any,
    *,
    n_ids: float = 1e9,
    n_batches: int = 2000,
    seed: int | None = None,
    rank: int = 0,
    world: int = 1,
    state: str | None = None,
) -> Stream:
    """Batches until so many examples, or batches, have come. States are kept as JSON text, as in a file."""
    seed = lab.seed if seed is None else seed
    kwargs = {} if state is None else {"state": json.loads(state)}
    batches: list[Seen] = []
    count = 0
    spans = False
    for batch in subject.batches(seed, rank=rank, world=world, **kwargs):
        names = _names(batch)
        running = [*(batches[-1].names[-1:] if batches else []), *names]
        # documents without numbers run on from row to row: then a name may come twice in a row
        spans = spans or (batch.get("doc_ids") is None and any(a == b for a, b in itertools.pairwise(running)))
        batches.append(
            Seen(
                names,
                torch.as_tensor(batch["ids"]).tolist(),
                documents(batch),
                len(stray_targets(batch)),
                _json(batch["state"]),
                spans,
            )
        )
        count += len(names)
        if count >= n_ids or len(batches) >= n_batches:
            return Stream(_spanning(batches), False)
    return Stream(_spanning(batches), True)


def _spanning(batches: list[Seen]) -> list[Seen]:
    """Where one batch shows that examples go on from row to row, they do in all."""
    return [replace(batch, spans=True) for batch in batches] if any(b.spans for b in batches) else batches


def _names(batch: Batch) -> list[Any]:
    """The example ids, row after row."""
    names = batch["example_ids"]
    names = names.tolist() if isinstance(names, Tensor) or hasattr(names, "tolist") else list(names)
    return [name for part in names for name in (part if isinstance(part, list | tuple) else [part])]


def _json(state: Any) -> str:
    try:
        return json.dumps(state, sort_keys=True)
    except TypeError as error:
        raise AdapterError(f"batch['state'] can't be saved as JSON: {error}") from None


def _n_examples(lab: Lab) -> int:
    """Declared, or counted up to the first that comes again (which may come early where some are held back or left
    out: then over many batches)."""
    t = lab.traits
    if t.n_examples:
        return t.n_examples
    at_first = not t.buffer and t.last_batch == "kept" and not t.replacement
    seen: set[Any] = set()
    last: Any = None
    count = 0
    for batch in lab.subject.batches(lab.seed, rank=0, world=1):
        for name in _names(batch):
            if at_first and name in seen and name != last:
                return len(seen)
            seen.add(name)
            last = name
            count += 1
        if count >= 4 * ENOUGH:
            break
    if not seen:
        raise AdapterError("batches give no example_ids")
    return len(seen)


def _wanted(n: int, epochs: float) -> float:
    """How many examples to draw for so many epochs; of a large data set only a part of one."""
    return epochs * n if n <= ENOUGH else ENOUGH / 2


def _balanced(
    lab: Lab, counts: Counter[Any], total: int, n: int, largest: int, slack: int, case: str, row: str = "CR7"
) -> None:
    """Fail unless the counts are those of whole epochs and a part of one."""
    t = lab.traits
    if len(counts) > n:
        raise Failed(f"{len(counts)} different examples come, the data set has {n}", case=case)
    epochs = total // n + 1
    odd = max(0, largest - 1) * epochs
    held = t.buffer + slack + (odd if t.last_batch == "dropped" else 0)
    extra = slack + (odd if t.last_batch == "filled" else 0)
    for read in range(max(0, total - extra), total + held + 1):
        low, high = read // n, -(-read // n)
        missing = sum(max(0, low - c) for c in counts.values()) + low * (n - len(counts))
        if missing <= held and sum(max(0, c - high) for c in counts.values()) <= extra:
            return
    often = max(counts, key=lambda name: counts[name])
    message = f"{total} examples of {n} came: {often!r} {counts[often]} times"
    if n <= ENOUGH:
        rarely = min(counts, key=lambda name: counts[name])
        absent = n - len(counts)
        message += f", {absent} not at all" if absent else f", {rarely!r} {counts[rarely]} times"
    raise Failed(f"{message}; if it is meant, declare last_batch or buffer", case=case, resembles=row)


def _own_shards(streams: Sequence[Stream], n: int) -> bool:
    """Whether each rank goes round in a part of its own, and the parts are the whole data set."""
    parts = []
    for stream in streams:
        part: set[Any] = set()
        counts: Counter[Any] = Counter()
        for batch in stream.batches:
            counts.update(batch.names)
        part.update(counts)
        if not counts or max(counts.values()) - min(counts.values()) > 1:
            return False
        parts.append(part)
    return sum(map(len, parts)) == n == len(set().union(*parts))


def _p_of_tau(lab: Lab, first: dict[Any, int], second: dict[Any, int]) -> float:
    """p of "unrelated" for the places of the examples that both hold."""
    from scipy import stats

    names = [name for name in first if name in second]
    if len(names) < 2:
        return 1.0
    a, b = [first[name] for name in names], [second[name] for name in names]
    if lab.traits.buffer:  # a small shuffle buffer leaves most of the order: only equality is wrong
        return 0.0 if a == b else 1.0
    p = stats.kendalltau(a, b).pvalue
    return float(p) if p == p else 1.0


def _resume(lab: Lab, after: Seen, length: int, rank: int, world: int) -> list[Seen]:
    if length < 1:
        return []
    return _draw(lab, lab.subject, n_batches=length, rank=rank, world=world, state=after.state).batches


def _same(lab: Lab, got: list[Seen], expected: list[Seen], what: str, *, case: str = "", row: str) -> None:
    for k, (a, b) in enumerate(zip(got, expected, strict=False)):
        if a.names != b.names:
            raise Failed(
                f"batch {k} {what} has examples {a.names[:4]} …, expected {b.names[:4]} …", case=case, resembles=row
            )
        if a.ids != b.ids or [d.targets for d in a.documents] != [d.targets for d in b.documents]:
            raise Failed(f"batch {k} {what} has the same examples with other ids or targets", case=case, resembles=row)
    if len(got) < len(expected):
        raise Failed(f"{len(got)} batches {what}, expected {len(expected)}", case=case, resembles=row)
