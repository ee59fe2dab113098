"""From files and settings to a job: what goes in, what is refused before anything is written."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kat.data.choices import parse_choice_item
from kat.data.examples import Conversation, Document, parse_example
from kat.errors import UsageError
from kat.model.checkpoint import load_checkpoint, save_checkpoint
from kat.runs.settings import BaseSettings, SftSettings, TokenizerSettings
from kat.tokenizer.bpe import Tokenizer
from kat.trainers import protocol
from kat.trainers.protocol import Capabilities, Job, Result, load_trainer
from kat.trainers.stages import build_job, hold_out, texts_of, train, train_tokenizer_stage, with_option_orders
from tests.model.helpers import random_model, tiny_tokenizer
from tests.trainers.helpers import documents, leftovers, meta, request, run, sft_request, talks, tokenizer_folder

QUIET = Console(quiet=True)
ITEM = {"id": "q", "question": "Which?", "choices": ["a", "b", "c"], "answer": 1, "hint": "h", "solution": "s"}


def said(work) -> str:
    stream = io.StringIO()
    work(Console(file=stream, width=20))  # lines are never wrapped
    return stream.getvalue()


# The tokenizer


def test_a_tokenizer_is_trained_once(tmp_path: Path) -> None:
    data = documents(tmp_path / "d.jsonl")
    small = TokenizerSettings(vocab_size=280)
    first = said(lambda console: train_tokenizer_stage([data], tmp_path / "tok", small, console))
    assert "tokenizer: 60 rows read" in first
    assert "280 tokens, " in first
    assert Tokenizer.load(tmp_path / "tok").vocab_size == 280
    assert json.loads((tmp_path / "tok" / "kat_tokenizer.json").read_text())["tokenizer_hash"]
    assert "already there" in said(lambda console: train_tokenizer_stage([data], tmp_path / "tok", small, console))
    for changed in (TokenizerSettings(vocab_size=281), small):
        if changed is small:
            documents(data, seed=1)
        with pytest.raises(UsageError, match="tok: exists and comes from another job"):
            train_tokenizer_stage([data], tmp_path / "tok", changed, QUIET)
    with pytest.raises(UsageError, match="vocab_size 4000 is out of reach"):
        train_tokenizer_stage([data], tmp_path / "big", TokenizerSettings(vocab_size=4000), QUIET)
    assert not (tmp_path / "big").exists()


def test_a_tokenizer_sees_every_text_of_a_row() -> None:
    talk = Conversation("c", ({"role": "user", "content": "u"}, {"role": "assistant", "content": "w"}))
    assert texts_of(Document("d", "t")) == ["t"]
    assert texts_of(talk) == ["u", "w"]
    assert texts_of(parse_choice_item({**ITEM, "lecture": "l"})) == ["Which?", "a", "b", "c", "h", "l", "s"]


# Splitting and multiplying rows


@given(st.floats(0.05, 0.6), st.integers(0, 99), st.integers(1, 200))
@settings(deadline=None, max_examples=25)
def test_a_row_falls_on_the_same_side_whatever_else_is_there(share: float, seed: int, n: int) -> None:
    rows = [Document(str(i), f"text {i}") for i in range(200)]
    train_rows, held = hold_out(rows, share)
    assert sorted(map(str, train_rows + held)) == sorted(map(str, rows))
    assert abs(len(held) / 200 - share) < 0.2
    some = random.Random(seed).sample(rows, n)
    renamed = [replace(row, id="x" + row.id) for row in some]  # by content, not by name
    assert {row.text for row in hold_out(renamed, share)[1]} == {row.text for row in held} & {row.text for row in some}


def test_all_kinds_of_rows_are_held_out_by_content() -> None:
    rows = [parse_example({**ITEM, "id": str(i), "question": f"Q{i}?"}) for i in range(50)]
    rows += [
        parse_example(
            {"id": f"t{i}", "messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "a"}]}
        )
        for i in range(50)
    ]
    train_rows, held = hold_out(rows, 0.5)
    for kind in (Conversation, type(rows[0])):
        assert any(isinstance(row, kind) for row in held)
        assert any(isinstance(row, kind) for row in train_rows)


def test_a_choice_item_is_held_out_by_its_content_not_by_its_name() -> None:
    items = [parse_choice_item({**ITEM, "id": str(i), "question": f"Which {i}?"}) for i in range(200)]
    renamed = [replace(item, id=f"other {item.id}") for item in items]
    first, second = (hold_out(rows, 0.3)[1] for rows in (items, renamed))
    assert 20 < len(first) < 100
    assert [item.question for item in first] == [item.question for item in second]


def test_option_orders_are_rotations_with_names_of_their_own() -> None:
    item, document = parse_example(ITEM), Document("d", "t")
    expanded = with_option_orders([item, document], 5)
    assert [row.id for row in expanded] == ["q", "q@1", "q@2", "d"]
    for row in expanded[:3]:
        assert row.choices[row.answer] == "b"
    assert len({row.choices for row in expanded[:3]}) == 3
    assert with_option_orders([item, document], 1) == [item, document]


# The job


def test_the_job_says_what_was_read(tmp_path: Path) -> None:
    text = said(lambda console: build_job(request(tmp_path, layout="packed"), console))
    assert "base: 60 rows read" in text
    assert "base: training on " in text
    assert "base: validating on " in text
    assert "cut to the row" in text


def test_long_rows_are_split_or_cut_and_counted(tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "ka"}, {"role": "assistant", "content": "to " * 90}]})
        + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "ka " * 90}, {"role": "assistant", "content": "to"}]})
        + "\n"
    )
    base = Path(run(request(tmp_path, "base", max_steps=0)).folder)
    job = build_job(sft_request(tmp_path, base, validation_share=0), QUIET)
    assert (len(job.train), job.train.n_cut, job.train.n_dropped) == (1, 1, 1)
    assert len(job.train.ids) == 32 + 1  # 32 inputs and, shifted by one, 32 targets


def test_nothing_supervised_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = Path(run(request(tmp_path, "base", max_steps=0)).folder)
    row = {"messages": [{"role": "user", "content": "ka " * 90}, {"role": "assistant", "content": "to"}]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match="no row has a supervised token within 32 tokens; raise row_len"):
        run(sft_request(tmp_path, base, validation_share=0))
    assert leftovers(tmp_path) == []


def test_validation_rows_without_a_supervised_token_are_said_and_left_out(tmp_path: Path) -> None:
    base = Path(run(request(tmp_path, "base", max_steps=0)).folder)
    row = {"messages": [{"role": "user", "content": "ka " * 90}, {"role": "assistant", "content": "to"}]}
    (tmp_path / "held.jsonl").write_text(json.dumps(row) + "\n")
    asked = sft_request(tmp_path, base, validation=(str(tmp_path / "held.jsonl"),))
    assert "going without validation" in said(lambda console: train(asked, console))
    assert meta(tmp_path / "sft")["metrics"]["val_loss"] is None
    assert meta(tmp_path / "sft")["selection"] == "last step"  # keep_best, but nothing to choose by


def test_validation_files_are_used_whole_and_never_trained_on(tmp_path: Path) -> None:
    held = documents(tmp_path / "held.jsonl", n=7, seed=9)
    job = build_job(request(tmp_path, validation=(str(held),), layout="packed"), QUIET)
    alone = build_job(request(tmp_path, validation_share=0, layout="packed"), QUIET)
    assert len(job.validation) >= 7
    assert job.train.hash == alone.train.hash
    assert alone.validation is None


def checkpoint(folder: Path, **overrides) -> Path:
    save_checkpoint(folder, random_model(vocab_size=300, **overrides), tiny_tokenizer(), {"stage": "base"})
    return folder


def test_where_a_stage_may_start(tmp_path: Path) -> None:
    tokenizer, init = tokenizer_folder(tmp_path / "tokenizer"), checkpoint(tmp_path / "init")
    job = build_job(sft_request(tmp_path, init), QUIET)
    assert (job.init, job.tokenizer) == (init, init)
    onwards = replace(request(tmp_path), init=init, settings=BaseSettings(batch_size=4, steps=2))
    assert build_job(onwards, QUIET).init == init
    wrong = [
        (replace(onwards, settings=BaseSettings(n_layer=2)), "the checkpoint decides n_layer; leave that setting out"),
        (sft_request(tmp_path, tokenizer), "not a kat checkpoint"),
        (sft_request(tmp_path, tmp_path / "gone"), "no such folder"),
        (replace(sft_request(tmp_path, init), init=None), "sft: --init is missing; give a checkpoint"),
        (replace(request(tmp_path), init=None), "base: --init is missing; give a tokenizer folder"),
        (sft_request(tmp_path, init, row_len=49), "row_len 49 is longer than the model's context of 48 tokens"),
        (replace(sft_request(tmp_path, init), trainer="nobody"), "--trainer nobody: unknown"),
        (replace(sft_request(tmp_path, init), stage="dpo"), "--trainer native: does not train dpo"),
        (replace(sft_request(tmp_path, init), device="nowhere"), "--device nowhere"),
        (replace(sft_request(tmp_path, init), dtype="int8"), "dtype 'int8'"),
        (replace(sft_request(tmp_path, init), seed=-1), "--seed -1: give a whole number"),
        (replace(sft_request(tmp_path, init), seed=2**63), "--seed 9223372036854775808: give"),
        (replace(sft_request(tmp_path, init), out=Path(".")), "--out .: name the folder"),
    ]
    for asked, message in wrong:
        with pytest.raises(UsageError, match=message):
            train(asked, QUIET)
    assert leftovers(tmp_path) == []


def test_a_damaged_parent_stops_before_anything_else(tmp_path: Path) -> None:
    from kat.errors import EvidenceError

    init = checkpoint(tmp_path / "init")
    data = bytearray((init / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (init / "model.safetensors").write_bytes(data)
    with pytest.raises(EvidenceError, match=r"model\.safetensors: damaged"):
        train(sft_request(tmp_path, init), QUIET)
    assert leftovers(tmp_path) == []


def test_a_bfloat16_parent_is_trained_in_float32(tmp_path: Path) -> None:
    model = random_model(vocab_size=300).bfloat16()
    save_checkpoint(tmp_path / "init", model, tiny_tokenizer(), {"stage": "base"})
    out = run(sft_request(tmp_path, tmp_path / "init")).folder
    assert {tensor.dtype for tensor in load_checkpoint(out).model.state_dict().values()} == {torch.float32}


def test_bfloat16_autocast_trains_float32_weights(tmp_path: Path) -> None:
    out = run(request(tmp_path, dtype="bfloat16")).folder
    assert meta(out)["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_checkpoint(out).model.state_dict().values()} == {torch.float32}
    run(request(tmp_path, "float32"))
    a, b = (load_checkpoint(tmp_path / name).model.lm_head.weight for name in ("out", "float32"))
    assert 0 < (a - b).norm() / b.norm() < 0.2


def test_mid_predicts_everything_and_sft_the_assistant_only(tmp_path: Path) -> None:
    from kat.runs.settings import MidSettings

    init = checkpoint(tmp_path / "init")
    sft = build_job(sft_request(tmp_path, init, validation_share=0), QUIET).train
    asked = sft_request(tmp_path, init)
    mid = build_job(replace(asked, stage="mid", settings=MidSettings(validation_share=0)), QUIET).train
    assert np.array_equal(sft.ids, mid.ids)
    assert mid.n_supervised == len(mid.ids) - len(mid)
    assert 0 < sft.n_supervised < mid.n_supervised


def test_what_a_checkpoint_says_of_its_making(tmp_path: Path) -> None:
    init = checkpoint(tmp_path / "init")
    out = run(sft_request(tmp_path, init)).folder
    found = meta(out)
    assert found["stage"] == "sft"
    assert found["parent"] == {"identity": meta(init)["identity"], "folder": str(init)}
    assert found["data_files"] == [str(tmp_path / "talks.jsonl")]
    assert found["seed"] == 1
    assert found["settings"]["batch_size"] == 4
    assert found["metrics"]["tokens"] == 8 * 4 * 48
    assert found["steps_trained"] == found["steps_planned"] == 8
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["run_id"]) == 32


def test_epochs_become_steps(tmp_path: Path) -> None:
    run(request(tmp_path, steps=None, epochs=2.0, batch_size=4, validation_share=0))
    job = build_job(request(tmp_path, validation_share=0), QUIET)
    rows = -(-(len(job.train.ids) - 1) // 32)
    assert meta(tmp_path / "out")["steps_trained"] == round(rows * 2.0 / 4)


# Trainers of others


class Recording:
    """The smallest trainer: remembers its job, trains nothing."""

    seen: tuple[Job, Path | None] | None = None

    def capabilities(self) -> Capabilities:
        return Capabilities(stages=frozenset({"sft"}), exact_resume=False)

    def fit(self, job: Job, events, resume: Path | None = None) -> Result:
        type(self).seen = (job, resume)
        events.start(["line"], 0, 1)
        events.log(1, loss=2.0)
        loaded = load_checkpoint(job.init)
        save_checkpoint(job.out, loaded.model, loaded.tokenizer, {"stage": job.stage})
        return Result(job.out, 1, "finished")


def test_a_trainer_of_somebody_else_gets_the_job(tmp_path: Path) -> None:
    init = checkpoint(tmp_path / "init")
    asked = replace(sft_request(tmp_path, init), trainer="tests.trainers.test_stages:Recording")
    result = train(asked, QUIET)
    job, resume = Recording.seen
    assert resume is None
    assert (job.stage, job.init, job.seed, job.settings) == ("sft", init, 1, asked.settings)
    assert result.stop_reason == "finished"
    assert load_checkpoint(result.folder).meta["stage"] == "sft"
    assert leftovers(tmp_path) == []
    with pytest.raises(UsageError, match="does not train base"):
        train(replace(request(tmp_path), trainer="tests.trainers.test_stages:Recording"), QUIET)
    with pytest.raises(UsageError, match="sft: exists and was not trained by this command"):
        train(asked, QUIET)


class Elsewhere(Recording):
    def capabilities(self) -> Capabilities:
        return Capabilities(stages=frozenset({"sft"}), devices=frozenset({"cuda"}))


def test_a_trainer_is_not_asked_for_what_it_cannot_do(tmp_path: Path) -> None:
    asked = sft_request(tmp_path, checkpoint(tmp_path / "init"))
    with pytest.raises(UsageError, match="does not train on cpu; use cuda"):
        train(replace(asked, trainer="tests.trainers.test_stages:Elsewhere"), QUIET)
    other = replace(asked, trainer="tests.trainers.test_stages:Recording")
    train(replace(asked, max_steps=2), QUIET)
    with pytest.raises(UsageError, match=r"was trained with another trainer .*Recording"):
        train(other, QUIET)
    working = tmp_path / "new.training"
    (working / "state-000000003").mkdir(parents=True)
    (working / "state-000000003" / "state.json").write_text('{"step": 3}')
    with pytest.raises(UsageError, match=r"cannot go on from step 3; remove .*new\.training"):
        train(replace(other, out=tmp_path / "new"), QUIET)


@pytest.mark.parametrize("name", ["no.such.module:X", "kat.trainers.native:Nothing"])
def test_a_trainer_that_cannot_be_imported_is_said(name: str) -> None:
    with pytest.raises(UsageError, match=f"--trainer {name}: cannot be imported"):
        load_trainer(name)


def test_trainers_come_by_entry_point_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "other"

        def load(self):
            return Recording

    monkeypatch.setattr(protocol, "entry_points", lambda group: [Point()] if group == "kat.trainers" else [])
    assert isinstance(load_trainer("other"), Recording)
    with pytest.raises(UsageError, match="use native, other or module:Object"):
        load_trainer("third")


# The screen


def test_plain_lines_where_nobody_watches_and_no_markup_in_them(tmp_path: Path) -> None:
    init = checkpoint(tmp_path / "init")
    row = {"messages": [{"role": "user", "content": "[red]ka[/red]"}, {"role": "assistant", "content": "[/] to"}]}
    (tmp_path / "talks.jsonl").write_text((json.dumps(row) + "\n") * 1)
    talks(tmp_path / "more.jsonl")
    asked = sft_request(tmp_path, init, validation_share=0)
    text = said(
        lambda console: train(replace(asked, data=(tmp_path / "talks.jsonl", tmp_path / "more.jsonl")), console)
    )
    assert "[red]ka[/red]" in text
    assert "⟦[/] to<|assistant_end|>⟧" in text
    assert "sft: finished: " in text
    assert "\x1b" not in text


def test_a_progress_bar_where_somebody_watches(tmp_path: Path) -> None:
    stream = io.StringIO()
    train(request(tmp_path), Console(file=stream, force_terminal=True, width=120))
    assert "10/10" in stream.getvalue()


def test_the_stage_runs_in_a_thread(tmp_path: Path) -> None:
    """Signals belong to the main thread; a plain Python call from another one works all the same."""
    import threading

    thread = threading.Thread(target=run, args=(request(tmp_path),))
    thread.start()
    thread.join()
    assert (tmp_path / "out" / "kat.json").is_file()


def test_settings_are_of_the_stage() -> None:
    assert SftSettings().keep_best
    assert SftSettings().peak == 0.1


def test_a_shape_beyond_the_memory_of_the_machine_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"base: a step over .* tokens needs about .* GiB, cpu has"):
        run(request(tmp_path, sequence_len=200_000_000))
    assert leftovers(tmp_path) == []
