"""The checks of tokenizer, template, data and evaluation: kat passes, every planted bug is found, and correct code of
other designs raises no alarm."""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from kat.verify.adapters.native import N_EXAMPLES, make, tiny_tokenizer
from kat.verify.check import Check, NotApplicable
from kat.verify.checks import data, evaluation, tokenizer
from kat.verify.matrix import kills
from kat.verify.mutants.mutant import Mutant, Wrapped
from kat.verify.mutants.text import MUTANTS, NO_COUNTERPART
from kat.verify.runner import catalogue, run_checks
from kat.verify.subject import Batch, Message, Row, Source, Traits

CHECKS = {c.id: c for module in (tokenizer, data, evaluation) for c in vars(module).values() if isinstance(c, Check)}
NATIVE = Source("native", "native", make)


def outcomes(make_subject: Any, *names: str, seed: int = 0) -> dict[str, str]:
    """check -> outcome, and what was seen where it is none of PASS and SKIP."""
    checks = [CHECKS[name] for name in names] or list(CHECKS.values())
    report = run_checks(Source("other", "other", make_subject), checks, seed=seed, level=4)
    return {
        f.check: f.outcome if f.outcome in ("PASS", "SKIP") else f"{f.outcome} {f.message} {f.case}"
        for f in report.findings
    }


@pytest.mark.parametrize("seed", range(5))
def test_kat_passes(seed: int) -> None:
    skipped = {name: outcome for name, outcome in outcomes(make, seed=seed).items() if outcome != "PASS"}
    assert skipped == {"shots_keep_their_answers_in_assistant_turns": "SKIP"}  # kat asks without examples


# The quickest check that finds each planted bug; which others do is the kill matrix's matter.
KILLED_BY = {
    "text_is_lower_cased": "token_bytes_sum_to_text_bytes",
    "messages_are_lower_cased": "mask_covers_answers_and_end_tokens",
    "messages_are_stripped": "messages_are_recoverable",
    "end_of_an_empty_answer_unsupervised": "mask_covers_answers_and_end_tokens",
    "seed_and_epoch_are_added": "batch_order_depends_on_seed_and_epoch",
    "decode_drops_what_is_not_ascii": "mask_covers_answers_and_end_tokens",
    "encode_puts_bos_before_text": "typed_special_tokens_stay_text",
    "conversation_has_two_bos": "special_tokens_stand_where_they_should",
    "prompt_lacks_bos": "prompt_is_prefix_of_conversation",
    "turns_end_twice": "special_tokens_stand_where_they_should",
    "end_token_is_that_of_documents": "special_tokens_stand_where_they_should",
    "end_token_of_users_ends_answers": "special_tokens_stand_where_they_should",
    "generation_prompt_after_training_conversation": "special_tokens_stand_where_they_should",
    "prompt_has_no_assistant_header": "batches_supervise_answers_to_their_end",
    "answer_merges_with_the_prompt": "special_tokens_stand_where_they_should",
    "system_message_is_dropped": "messages_are_recoverable",
    "line_ends_become_blanks": "mask_covers_answers_and_end_tokens",
    "first_token_of_answers_is_dropped": "prompt_is_prefix_of_conversation",
    "special_tokens_in_messages_are_parsed": "messages_cannot_hold_special_tokens",
    "special_tokens_in_text_are_parsed": "typed_special_tokens_stay_text",
    "text_is_normalised": "token_bytes_sum_to_text_bytes",
    "carriage_returns_are_lost": "decode_inverts_encode",
    "decode_strips_blanks": "typed_special_tokens_stay_text",
    "decode_is_token_by_token": "mask_covers_answers_and_end_tokens",
    "history_keeps_only_the_last_exchange": "special_tokens_stand_where_they_should",
    "token_bytes_count_characters": "token_bytes_sum_to_text_bytes",
    "token_bytes_count_replacement_characters": "token_bytes_sum_to_text_bytes",
    "special_tokens_count_bytes": "token_bytes_sum_to_text_bytes",
    "mask_is_thrown_away": "special_tokens_stand_where_they_should",
    "mask_starts_a_token_late": "special_tokens_stand_where_they_should",
    "mask_starts_a_token_early": "special_tokens_stand_where_they_should",
    "mask_lacks_end_tokens": "special_tokens_stand_where_they_should",
    "mask_covers_the_last_answer_only": "special_tokens_stand_where_they_should",
    "mask_covers_headers": "prompt_is_prefix_of_conversation",
    "mask_of_answers_is_inverted": "special_tokens_stand_where_they_should",
    "collate_trains_on_prompts": "collate_keeps_rows",
    "collate_ignores_targets_that_equal_pad": "collate_keeps_rows",
    "collate_ignores_end_tokens": "collate_keeps_rows",
    "collate_trains_on_padding": "collate_keeps_rows",
    "attention_is_what_is_not_pad": "collate_keeps_rows",
    "collate_reverses_rows": "collate_keeps_a_target_of_long_rows",
    "collate_sorts_rows": "collate_keeps_rows",
    "collate_sorts_ids_but_not_masks": "collate_keeps_rows",
    "collate_cuts_to_the_shortest_row": "collate_keeps_rows",
    "collate_loses_the_last_token": "collate_keeps_rows",
    "collate_drops_the_smallest_row": "collate_keeps_rows",
    "long_prompts_leave_no_target": "collate_keeps_a_target_of_long_rows",
    "labels_are_shifted_after_packing": "packed_documents_are_whole",
    "pack_crops_documents": "packed_documents_are_whole",
    "pack_drops_a_document": "packed_documents_are_whole",
    "pack_repeats_a_document": "packed_documents_are_whole",
    "packed_documents_see_each_other": "packed_loss_is_that_of_documents_alone",
    "first_two_packed_documents_see_each_other": "packed_loss_is_that_of_documents_alone",
    "batches_are_never_shuffled": "batch_order_depends_on_seed_and_epoch",
    "batches_ignore_the_seed": "batch_order_depends_on_seed_and_epoch",
    "seeds_are_halved": "batch_order_depends_on_seed_and_epoch",
    "order_is_that_of_the_file": "batch_order_depends_on_seed_and_epoch",
    "order_is_that_of_the_first_epoch": "batch_order_depends_on_seed_and_epoch",
    "order_comes_from_the_global_generator": "batches_are_a_function_of_the_seed",
    "ranks_shuffle_by_themselves": "ranks_share_an_epoch_without_overlap",
    "ranks_read_the_same": "ranks_share_an_epoch_without_overlap",
    "ranks_ignore_the_world": "ranks_share_an_epoch_without_overlap",
    "last_batch_of_an_epoch_is_lost": "epoch_gives_each_example_once",
    "a_batch_comes_twice": "epoch_gives_each_example_once",
    "answers_are_cropped": "example_is_the_same_in_every_batch",
    "example_ids_name_the_next_row": "example_is_the_same_in_every_batch",
    "training_mask_is_thrown_away": "batches_supervise_answers_to_their_end",
    "training_mask_is_a_token_late": "example_is_the_same_in_every_batch",
    "training_mask_is_a_token_early": "batches_supervise_answers_to_their_end",
    "training_rows_lack_end_tokens": "batches_supervise_answers_to_their_end",
    "resume_starts_epoch_0_again": "batches_resume_exactly",
    "resume_forgets_the_row": "batches_resume_exactly",
    "resume_forgets_the_state": "batches_resume_exactly",
    "resume_applies_the_offset_each_epoch": "batches_resume_exactly",
    "resume_counts_optimizer_steps": "batches_resume_exactly",
    "resume_skips_a_batch": "batches_resume_exactly",
    "state_is_that_of_the_loader_ahead": "batches_resume_exactly",
    "state_is_from_before_the_batch": "batches_resume_exactly",
    "resume_ignores_the_rank": "batches_resume_exactly",
    "prompt_lacks_the_question": "prompt_shows_question_options_and_hint",
    "prompt_cuts_the_question_to_a_line": "prompt_shows_question_options_and_hint",
    "prompt_lacks_the_hint": "prompt_shows_question_options_and_hint",
    "prompt_strips_brackets": "prompt_shows_question_options_and_hint",
    "prompt_lacks_the_last_option": "prompt_shows_question_options_and_hint",
    "prompt_lower_cases_options": "prompt_shows_question_options_and_hint",
    "prompt_holds_the_solution": "prompt_does_not_know_the_answer",
    "prompt_puts_the_key_first": "prompt_does_not_know_the_answer",
    "prompt_shuffles_options_anew": "prompt_does_not_know_the_answer",
    "prompt_rotates_options": "letters_of_prompt_and_grade_agree",
    "prompt_changes_its_item": "prompt_shows_question_options_and_hint",
    "shots_hold_the_item": "shots_keep_their_answers_in_assistant_turns",
    "answers_of_shots_in_user_turns": "shots_keep_their_answers_in_assistant_turns",
    "shots_all_answer_as_the_first": "shots_keep_their_answers_in_assistant_turns",
    "shots_hide_their_answers": "shots_keep_their_answers_in_assistant_turns",
    "extract_takes_the_first_letter": "extract_reads_only_what_is_said",
    "extract_takes_the_first_statement": "extract_reads_only_what_is_said",
    "extract_takes_letters_that_are_not_offered": "extract_reads_only_what_is_said",
    "extract_hears_denials_as_statements": "extract_reads_only_what_is_said",
    "extract_takes_the_first_of_two": "extract_reads_only_what_is_said",
    "extract_guesses_where_nothing_is_said": "extract_reads_only_what_is_said",
    "extract_is_one_letter_off": "extract_reads_only_what_is_said",
    "grade_is_containment": "grade_follows_the_key",
    "grade_gives_silence_the_score": "grade_follows_the_key",
    "grade_counts_from_one": "grade_follows_the_key",
    "grade_finds_the_letter_anywhere": "grade_follows_the_key",
    "grade_swaps_its_arguments": "grade_follows_the_key",
    "stderr_is_the_deviation": "aggregate_is_the_mean_with_its_error",
    "stderr_divides_by_n": "aggregate_is_the_mean_with_its_error",
    "stderr_assumes_a_half": "aggregate_is_the_mean_with_its_error",
    "stderr_ignores_clusters": "aggregate_counts_clusters_not_items",
    "clusters_are_runs": "aggregate_counts_clusters_not_items",
    "value_is_the_mean_of_groups": "aggregate_counts_clusters_not_items",
    "value_leaves_unparsed_out": "aggregate_is_the_mean_with_its_error",
    "value_is_of_the_first_hundred": "aggregate_is_the_mean_with_its_error",
    "rows_run_from_long_to_short": "batch_order_depends_on_seed_and_epoch",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    verdict = kills(mutant, [CHECKS[KILLED_BY[mutant.id]]], NATIVE)
    assert verdict.killers and not verdict.other


def test_every_check_finds_a_planted_bug_and_every_row_exists() -> None:
    assert set(KILLED_BY.values()) == set(CHECKS)
    assert set(KILLED_BY) == {mutant.id for mutant in MUTANTS}
    rows = {row for mutant in MUTANTS for row in mutant.rows} | {row for c in CHECKS.values() for row in c.catches}
    assert rows | set(NO_COUNTERPART) <= set(catalogue())
    assert not rows & set(NO_COUNTERPART)


# Other designs of collation

TOK = tiny_tokenizer()
TRAITS = Traits(
    vocab=TOK.vocab_size,
    max_len=48,
    pad_id=TOK.pad_id,
    bos_id=TOK.bos_id,
    eos_ids=(TOK.eos_id,),
    special_ids=tuple(TOK.special.values()),
)
COLLATE = ("collate_keeps_rows", "collate_keeps_a_target_of_long_rows")


def padded(
    rows: Sequence[Row],
    side: str = "right",
    attention: bool = True,
    shifted: bool = False,
    multiple: int = 1,
    pad: int = TOK.pad_id,
) -> Batch:
    """Rows in a batch with aligned masks, or shifted: inputs and targets, -100 where there is none."""
    if shifted:
        rows = [(list(ids), list(mask)) for ids, mask in rows]
    width = -(-max(len(ids) for ids, _ in rows) // multiple) * multiple
    ids, masks, real = [], [], []
    for row, mask in rows:
        blank = width - len(row)
        before, after = (blank, 0) if side == "left" else (0, blank)
        ids.append([pad] * before + list(row) + [pad] * after)
        masks.append([0] * before + list(mask) + [0] * after)
        real.append([0] * before + [1] * len(row) + [0] * after)
    batch: Batch = {"ids": torch.tensor(ids)}
    if shifted:
        targets = torch.where(torch.tensor(masks) > 0, batch["ids"], -100)[:, 1:]
        batch = {"ids": batch["ids"][:, :-1], "targets": targets}
        real = [r[1:] for r in real]
    else:
        batch["mask"] = torch.tensor(masks)
    if attention:
        batch["attention_mask"] = torch.tensor(real)
    return batch


class Other:
    """A subject of some methods."""

    def __init__(self, traits: Traits = TRAITS, **methods: Any) -> None:
        self.traits = traits
        vars(self).update(methods)


def making(traits: Traits = TRAITS, **methods: Any) -> Any:
    return lambda seed=0, tiny=True, **overrides: Other(traits, **methods)


def cut_left(rows: Sequence[Row]) -> list[Row]:
    return [(ids[-48:], mask[-48:]) for ids, mask in rows]


def dropped(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if len(row[0]) <= 48]


def refused(rows: Sequence[Row]) -> list[Row]:
    if any(len(ids) > 48 for ids, _ in rows):
        raise ValueError("too long")
    return list(rows)


NO_MASK = Traits(**{**vars(TRAITS), "attn_mask": False})
PAD_IS_END = Traits(**{**vars(TRAITS), "pad_id": TOK.eos_id})
PAD_IS_A_WORD = Traits(**{**vars(TRAITS), "pad_id": 0})


@pytest.mark.parametrize(
    ("traits", "collate"),
    [
        (TRAITS, lambda rows: padded(rows)),
        (TRAITS, lambda rows: padded(dropped(rows), "left")),
        (TRAITS, lambda rows: padded(dropped(rows), shifted=True)),
        (TRAITS, lambda rows: padded(refused(rows), "left", multiple=8)),
        (TRAITS, lambda rows: padded(refused(rows), multiple=8)),
        (NO_MASK, lambda rows: padded(dropped(rows), attention=False)),
        (NO_MASK, lambda rows: padded(dropped(rows), attention=False, shifted=True, multiple=4)),
        (PAD_IS_END, lambda rows: padded(dropped(rows), pad=TOK.eos_id)),
        (PAD_IS_END, lambda rows: padded(dropped(rows), "left", pad=TOK.eos_id)),
        (PAD_IS_A_WORD, lambda rows: padded(dropped(rows), "left", pad=0)),
    ],
    ids=["right", "left", "shifted", "refuses", "multiple", "plain", "plain shifted", "end", "end left", "word"],
)
def test_no_alarm_on_other_collators(traits: Traits, collate: Any) -> None:
    for seed in range(3):
        assert set(outcomes(making(traits, collate=collate), *COLLATE, seed=seed).values()) <= {"PASS", "SKIP"}


def test_no_alarm_where_long_rows_are_cut_on_the_left() -> None:
    rows_are_kept = making(collate=lambda rows: padded([row for row in cut_left(rows) if any(row[1][1:])]))
    assert outcomes(rows_are_kept, *COLLATE) == dict.fromkeys(COLLATE, "PASS")


def test_no_alarm_on_a_collator_that_concatenates() -> None:
    """All rows behind one another, kept apart by positions: no padding at all."""

    def collate(rows: Sequence[Row]) -> Batch:
        return {
            "ids": torch.tensor([[i for ids, _ in rows for i in ids]]),
            "mask": torch.tensor([[0 if t == 0 else m for _, mask in rows for t, m in enumerate(mask)]]),
            "doc_ids": torch.tensor([[k for k, (ids, _) in enumerate(rows) for _ in ids]]),
            "position_ids": torch.tensor([[t for ids, _ in rows for t in range(len(ids))]]),
        }

    def pack(rows: Sequence[Row]) -> Batch:
        return collate(rows[::-1])

    names = ("collate_keeps_rows", "packed_documents_are_whole")
    assert outcomes(making(collate=collate, pack=pack), *names) == dict.fromkeys(names, "PASS")


def test_no_alarm_on_packs_whose_documents_see_each_other() -> None:
    """As nanochat packs: one causal row, positions run on."""

    def share(inner: Any, batch: Batch) -> Any:
        return inner.loss({**batch, "doc_ids": torch.where(batch["doc_ids"] >= 0, 0, -1)})

    def open_packs(seed: int = 0, tiny: bool = True, **overrides: Any) -> Any:
        subject = Wrapped(make(seed, tiny, **overrides), {"loss": share})
        subject.traits = Traits(**{**vars(subject._inner.traits), "pack_isolated": False})
        return subject

    name = "packed_loss_is_that_of_documents_alone"
    assert outcomes(open_packs, name) == {name: "PASS"}
    closed = open_packs()
    closed.traits = make().traits
    assert outcomes(lambda **_: closed, name)[name].startswith("FAIL")


# Other designs of loaders

BATCHES = [name for name, check in CHECKS.items() if check.needs == {"batches"}]
EXAMPLES: list[Row] = [
    ([TOK.bos_id, *range(40, 42 + k % 7), TOK.eos_id], [0, 0, *[1] * (k % 7 + 1), 1]) for k in range(41)
]


class Loader:
    """Loaders as they are written elsewhere, over 41 examples in batches of 3 rows.

    kind: "sampler" is torch's DistributedSampler (seed and epoch are added, short shards are filled), "finite" is one
    epoch and no more, "drop" leaves the last batch of an epoch out, "buffer" is a shuffle buffer of 8 examples on a
    stream, "shards" gives each rank its own part, "fixed" never shuffles, "stream" cuts one long row into windows.
    """

    def __init__(self, kind: str, traits: Mapping[str, Any]) -> None:
        self.kind = kind
        self.traits = Traits(**{**vars(TRAITS), **traits})

    def batches(self, seed: int, rank: int = 0, world: int = 1, state: Any = None) -> Iterator[Batch]:
        epoch, at = (state["epoch"], state["at"]) if state else (0, 0)
        while True:
            groups = self.epoch(seed, epoch, rank, world)
            for k in range(at, len(groups)):
                place = {"epoch": epoch + 1, "at": 0} if k + 1 == len(groups) else {"epoch": epoch, "at": k + 1}
                yield {**self.collate(groups[k]), "state": place}
            epoch, at = epoch + 1, 0
            if self.kind == "finite":
                return

    def epoch(self, seed: int, epoch: int, rank: int, world: int) -> list[list[int]]:
        n = len(EXAMPLES)
        order = list(range(n))
        if self.kind == "shards":
            mine = order[rank::world]
            random.Random(f"{seed} {epoch} {rank}").shuffle(mine)
        elif self.kind == "buffer":
            rng, waiting, order = random.Random(f"{seed} {epoch}"), [], []
            for k in range(n):
                waiting.append(k)
                if len(waiting) == 8:
                    order.append(waiting.pop(rng.randrange(8)))
            rng.shuffle(waiting)
            mine = (order + waiting)[rank::world]
        else:
            if self.kind != "fixed":
                random.Random(f"{seed + epoch}").shuffle(order)
            if self.kind == "sampler":
                order += order[: -n % world]
            if self.kind == "drop":
                order = order[: n // (3 * world) * 3 * world]
            mine = order[rank::world]
        return [mine[k : k + 3] for k in range(0, len(mine), 3)]

    def collate(self, examples: list[int]) -> Batch:
        return {**padded([EXAMPLES[k] for k in examples], "left"), "example_ids": [[k] for k in examples]}


@pytest.mark.parametrize(
    ("kind", "traits"),
    [
        ("sampler", {"last_batch": "filled"}),
        ("finite", {}),
        ("finite", {"n_examples": 41}),
        ("drop", {"last_batch": "dropped", "n_examples": 41}),
        ("buffer", {"buffer": 8}),
        ("shards", {}),
        ("fixed", {"shuffle": False}),
    ],
)
def test_no_alarm_on_other_loaders(kind: str, traits: dict[str, Any]) -> None:
    for seed in range(2):
        found = outcomes(lambda **_: Loader(kind, traits), *BATCHES, seed=seed)
        allowed = {"batch_order_depends_on_seed_and_epoch"} if kind == "fixed" else set()
        assert {name for name, outcome in found.items() if outcome == "SKIP"} == allowed
        assert set(found.values()) <= {"PASS", "SKIP"}


@pytest.mark.parametrize(
    ("kind", "traits"),
    [("drop", {"n_examples": 41}), ("sampler", {}), ("fixed", {}), ("finite", {"epoch_seed": "mixed"})],
)
def test_designs_that_are_not_declared_are_findings(kind: str, traits: dict[str, Any]) -> None:
    found = outcomes(lambda **_: Loader(kind, traits), *BATCHES)
    assert any(outcome.startswith("FAIL") for outcome in found.values())


def test_no_alarm_on_a_stream_of_windows() -> None:
    """Examples behind one another, cut into rows: an example goes on in the next row, and in the next batch."""
    rows = [(EXAMPLES[k], k) for k in range(41)]

    class Windows(Loader):
        def epoch(self, seed: int, epoch: int, rank: int, world: int) -> list[list[Any]]:
            order = rows[:]
            random.Random(f"{seed} {epoch}").shuffle(order)
            tokens = [(i, m, k) for (ids, mask), k in order for i, m in zip(ids, mask, strict=True)]
            windows = [tokens[t : t + 11] for t in range(0, len(tokens) - 1, 10)]
            groups = [windows[k : k + 2 * world] for k in range(0, len(windows), 2 * world)]
            return [group[rank::world] for group in groups if len(group) > rank]

        def collate(self, examples: list[Any]) -> Batch:
            batch = padded(
                [([i for i, _, _ in w], [m for _, m, _ in w]) for w in examples], shifted=True, attention=False
            )
            return {**batch, "example_ids": [list(dict.fromkeys(k for _, _, k in w)) for w in examples]}

    for seed in range(3):
        found = outcomes(lambda **_: Windows("stream", {}), *BATCHES, seed=seed)
        assert set(found.values()) <= {"PASS", "SKIP"}, found


def test_no_alarm_on_sampling_with_replacement() -> None:
    class Draws(Loader):
        def epoch(self, seed: int, epoch: int, rank: int, world: int) -> list[list[int]]:
            rng = random.Random(f"{seed} {epoch} {rank}")
            return [rng.choices(range(41), k=3) for _ in range(14)]

    found = outcomes(lambda **_: Draws("draws", {"replacement": True, "n_examples": 41}), *BATCHES)
    assert set(found.values()) <= {"PASS", "SKIP"}, found


# Other tokenizers and templates


def chat(turn: Any, **traits: Any) -> Any:
    """A subject with kat's vocabulary and another template: turn(role, content) -> [(ids, supervised)]."""

    def row(messages: Sequence[Message]) -> Row:
        pairs = [(TOK.bos_id, 0)]
        for message in messages:
            for ids, on in turn(message["role"], message["content"]):
                pairs += [(i, on) for i in ids]
        return [i for i, _ in pairs], [on for _, on in pairs]

    def prompt(messages: Sequence[Message]) -> list[int]:
        ids, mask = row([*messages, {"role": "assistant", "content": "x"}])
        return (
            ids[: len(mask) - next(k for k, on in enumerate(reversed(mask)) if on) - mask[::-1].count(1)]
            if False
            else (ids[: max(t for t in range(1, len(ids)) if mask[t] and not mask[t - 1])])
        )

    special = tuple(TOK.special.values())
    declared = Traits(**{**vars(TRAITS), "special_ids": special, **traits})
    return making(declared, encode_conversation=row, encode_prompt=prompt, encode=TOK.encode, decode=TOK.decode)


def chatml(role: str, content: str) -> list[tuple[list[int], int]]:
    """<start>role\\ncontent<end>\\n, contents trimmed, every turn ended by the same token."""
    start, end, on = TOK.special["<|user_start|>"], TOK.eos_id, int(role == "assistant")
    return [([start, *TOK.encode(f"{role}\n")], 0), ([*TOK.encode(content.strip()), end], on), (TOK.encode("\n"), 0)]


def chatml_with_line_end(role: str, content: str) -> list[tuple[list[int], int]]:
    """The line end behind the end token is supervised too."""
    (head, _), (body, on), (tail, _) = chatml(role, content)
    return [(head, 0), (body + tail, on)]


TEXT = [name for name, check in CHECKS.items() if "encode_conversation" in check.needs]


@pytest.mark.parametrize("turn", [chatml, chatml_with_line_end])
def test_no_alarm_on_other_templates(turn: Any) -> None:
    assert outcomes(chat(turn, trims=True), *TEXT) == dict.fromkeys(TEXT, "PASS")


def test_trimming_that_is_not_declared_is_a_finding() -> None:
    found = outcomes(chat(chatml), *TEXT)
    assert {name for name, outcome in found.items() if outcome != "PASS"} == {"messages_are_recoverable"}


def test_no_alarm_on_templates_that_refuse() -> None:
    def turn(role: str, content: str) -> list[tuple[list[int], int]]:
        if role == "system" or "<|" in content:
            raise ValueError("not in this template")
        return chatml(role, content)

    assert outcomes(chat(turn, trims=True), *TEXT) == dict.fromkeys(TEXT, "PASS")


def test_no_alarm_where_everything_is_supervised() -> None:
    def whole(role: str, content: str) -> list[tuple[list[int], int]]:
        return [(ids, 1) for ids, _ in chatml(role, content)]

    subject = chat(whole, supervised="all", trims=True)()
    del subject.encode_prompt  # made of the mask here
    assert set(outcomes(lambda **_: subject, *TEXT).values()) == {"PASS", "SKIP"}


def test_no_alarm_on_a_normalising_tokenizer() -> None:
    import unicodedata

    names = ("decode_inverts_encode", "token_bytes_sum_to_text_bytes")

    def subject(form: str | None) -> Any:
        return making(
            Traits(**{**vars(TRAITS), "normalisation": form}),
            encode=lambda text: TOK.encode(unicodedata.normalize("NFC", text)),
            decode=TOK.decode,
            token_bytes=TOK.token_bytes,
        )

    assert outcomes(subject("NFC"), *names) == dict.fromkeys(names, "PASS")
    assert outcomes(subject(None), *names)["decode_inverts_encode"].startswith("FAIL")


def test_no_alarm_on_a_tokenizer_that_parses_special_tokens() -> None:
    def encode(text: str) -> list[int]:
        parts = re.split("(" + "|".join(map(re.escape, TOK.special)) + ")", text)
        return [i for part in parts for i in ([TOK.special[part]] if part in TOK.special else TOK.encode(part))]

    name = "typed_special_tokens_stay_text"
    declared = Traits(**{**vars(TRAITS), "parses_specials": True})
    assert outcomes(making(declared, encode=encode, decode=TOK.decode), name) == {name: "PASS"}
    assert outcomes(making(encode=encode, decode=TOK.decode), name)[name].startswith("FAIL")
    assert outcomes(making(declared, encode=TOK.encode, decode=TOK.decode), name)[name].startswith("FAIL")


# Other evaluations


def few_shot(item: Mapping[str, Any], shots: Sequence[Mapping[str, Any]] = ()) -> list[Message]:
    """Letters in brackets, no system message, examples as turns."""

    def question(one: Mapping[str, Any]) -> Message:
        options = "\n".join(f"({'ABCDEFGHIJ'[k]}) {c}" for k, c in enumerate(one["choices"]))
        return {"role": "user", "content": f"Question: {one['question']}\nContext: {one['hint']}\nOptions:\n{options}"}

    messages: list[Message] = []
    for shot in shots:
        if shot["id"] != item["id"]:
            messages += [question(shot), {"role": "assistant", "content": f"Answer: {'ABCDEFGHIJ'[shot['answer']]}"}]
    return [*messages, question(item)]


def last_answer(text: str, n_choices: int) -> str | None:
    """The last "Answer: X" that is an offered letter and nothing else on its line; as simple-evals reads it."""
    found = re.findall(r"(?im)^answer\s*:\s*\(?([A-J])\)?\.?\s*$", text)
    return found[-1] if found and found[-1] in "ABCDEFGHIJ"[:n_choices] else None


def plain_grade(item: Mapping[str, Any], text: str) -> float:
    return float(last_answer(text, len(item["choices"])) == "ABCDEFGHIJ"[item["answer"]])


def plain_aggregate(scores: Sequence[float], groups: Sequence[str] | None = None) -> dict[str, float]:
    """The textbook formulas, as lm-evaluation-harness and Miller (2024, "Adding error bars to evals") give them."""
    values = np.array(scores)
    if groups is None:
        return {"value": values.mean(), "stderr": values.std(ddof=1) / math.sqrt(len(values))}
    residuals: dict[str, float] = {}
    for value, group in zip(values - values.mean(), groups, strict=True):
        residuals[group] = residuals.get(group, 0.0) + value
    return {"value": values.mean(), "stderr": math.sqrt(sum(r * r for r in residuals.values())) / len(values)}


def bootstrapped(scores: Sequence[float]) -> dict[str, float]:
    values, rng = np.array(scores), np.random.default_rng(0)
    return {"value": values.mean(), "stderr": rng.choice(values, (300, len(values))).mean(axis=1).std()}


def test_no_alarm_on_other_evaluations() -> None:
    subject = making(build_prompt=few_shot, extract=last_answer, grade=plain_grade, aggregate=plain_aggregate)
    names = [name for name, check in CHECKS.items() if check.family == "evaluation"]
    for seed in range(3):
        assert outcomes(subject, *names, seed=seed) == dict.fromkeys(names, "PASS")


def test_no_alarm_on_a_bootstrap() -> None:
    found = outcomes(
        making(aggregate=bootstrapped), "aggregate_is_the_mean_with_its_error", "aggregate_counts_clusters_not_items"
    )
    assert list(found.values()) == ["PASS", "SKIP"]


def test_no_alarm_where_an_item_among_its_shots_is_refused() -> None:
    def build(item: Mapping[str, Any], shots: Sequence[Mapping[str, Any]] = ()) -> list[Message]:
        if any(shot["id"] == item["id"] for shot in shots):
            raise ValueError("the item is one of its examples")
        return few_shot(item, shots)

    name = "shots_keep_their_answers_in_assistant_turns"
    assert outcomes(making(build_prompt=build), name) == {name: "PASS"}


# What a failure says


def test_a_failure_shows_the_smallest_conversation() -> None:
    bad = next(mutant for mutant in MUTANTS if mutant.id == "mask_lacks_end_tokens")
    report = run_checks(Source("bad", "bad", bad.plant(make)), [CHECKS["mask_covers_answers_and_end_tokens"]])
    (finding,) = report.findings
    assert finding.message == "the end token of an answer is not supervised"
    assert finding.case.startswith("user: ") and len(finding.case) < 120
    assert finding.resembles is not None and finding.resembles["id"] == "DM3"


def test_the_examples_are_all_seen() -> None:
    """The checks of batches draw whole epochs of the native subject, or they would see nothing at its end."""
    lab_ids = {name for batch, _ in zip(make().batches(0), range(30), strict=False) for name in batch["example_ids"]}
    assert len(lab_ids) == N_EXAMPLES


def test_a_check_that_cannot_apply_says_so() -> None:
    with pytest.raises(NotApplicable, match="fewer than 4 batches"):
        CHECKS["batch_order_depends_on_seed_and_epoch"](Few())


class Few:
    traits = TRAITS

    def batches(self, seed: int, rank: int = 0, world: int = 1, state: Any = None) -> Iterator[Batch]:
        while True:
            yield {**padded(EXAMPLES[:5]), "example_ids": list(range(5)), "state": {}}
