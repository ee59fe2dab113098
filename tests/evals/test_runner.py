"""The runner: every item once, resumable to the byte, and never a row of another run."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.errors import EvidenceError, UsageError
from kat.evals.asking import Planned
from kat.evals.choices import Choices
from kat.evals.folder import load_results
from kat.evals.plan import batch_plan, choose
from kat.evals.protocol import DataSource, prompt_hash
from kat.evals.runner import run_suite
from kat.evals.scienceqa import ScienceQA
from kat.evals.store import open_store, read_samples
from kat.runs.schemas import Sample
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend, knowing

SOURCE = DataSource("made up", "d" * 64)


def science(n: int = 30, **options) -> ScienceQA:
    return ScienceQA(make_items.items(n, lectures=4), SOURCE, **options)


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def results_but_run(folder: Path) -> dict:
    value = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert len(value.pop("run_id")) == 32
    value.pop("created")
    return value


def test_every_item_is_asked_once_and_scored_by_its_own_answer(tmp_path):
    suite = science(30)
    backend = knowing(suite.items(), 0.5, name="half")
    results = run_suite(suite, backend, tmp_path / "out", batch_size=7, model="half")
    rows = rows_of(tmp_path / "out")
    assert sorted(row["item_id"] for row in rows) == sorted(item.id for item in suite.items())
    assert sorted(text for batch in backend.batches for text in batch) == sorted(
        backend.prompt(suite.requests(item).messages)[0].split("\n", 1)[1] for item in suite.items()
    )
    by_id = {item.id: item for item in suite.items()}
    for row in rows:
        item = by_id[row["item_id"]]
        assert row["item_hash"] == item.hash
        assert row["expected"] == item.letter
        assert row["model_hash"] == backend.identity
        assert row["prompt_hash"] == prompt_hash(list(row["prompt"].encode()))
        assert row["score"] == float(row["response"].startswith(f"The correct answer is {item.letter}."))
    assert results.n_items == 30
    assert results.metrics["accuracy"].estimate == pytest.approx(sum(row["score"] for row in rows) / 30)
    assert load_results(tmp_path / "out" / "results.json") == results


@pytest.mark.parametrize("kind", ["generate", "score"])
@pytest.mark.parametrize("die_after", [0, 1, 3])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, kind, die_after):
    items = make_items.items(23, lectures=3)
    suite = ScienceQA(items, SOURCE) if kind == "generate" else Choices(items, SOURCE)

    def backend(**options) -> FakeBackend:
        known = knowing(items, 0.6, name="m", unparsed=0.2)
        # As in a real model, the last bits of a score depend on the batch that it was padded in.
        return FakeBackend(
            known.answer, lambda text, letter: -len(text) / 7 - ord(letter) % 3, identity="5" * 64, **options
        )

    run_suite(suite, backend(), tmp_path / "whole", batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, backend(die_after=die_after), tmp_path / "cut", batch_size=5)
    assert not (tmp_path / "cut" / "results.json").exists()
    with (tmp_path / "cut" / "samples.jsonl").open("ab") as file:
        file.write(b'{"schema":"kat.sample/1","suite":"scien')  # what a kill in the middle of a write leaves
    second = backend()
    run_suite(suite, second, tmp_path / "cut", batch_size=5)
    assert (tmp_path / "cut" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert results_but_run(tmp_path / "cut") == results_but_run(tmp_path / "whole")
    whole = backend()
    run_suite(suite, whole, tmp_path / "again", batch_size=5)
    assert second.batches == whole.batches[die_after:], "what was on the disk already was asked again"


def test_a_batch_that_lost_one_row_is_met_again_as_it_was(tmp_path):
    suite = science(12)
    first, second = knowing(suite.items(), 0.5, name="m"), knowing(suite.items(), 0.5, name="m")
    run_suite(suite, first, tmp_path / "whole", batch_size=4)
    run_suite(suite, second, tmp_path / "cut", batch_size=4)
    path = tmp_path / "cut" / "samples.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    (tmp_path / "cut" / "results.json").unlink()
    third = knowing(suite.items(), 0.5, name="m")
    run_suite(suite, third, tmp_path / "cut", batch_size=4)
    assert third.batches == first.batches[1:]
    assert path.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def test_a_finished_folder_is_returned_as_it_is(tmp_path):
    suite = science(9)
    first = run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path / "out")
    path = tmp_path / "out" / "results.json"
    path.write_text(path.read_text(encoding="utf-8").replace(first.created, "long ago"), encoding="utf-8")
    idle = knowing(suite.items(), 0.5, name="m")
    again = run_suite(suite, idle, tmp_path / "out")
    assert again == first.model_copy(update={"created": "long ago"})
    assert load_results(path) == again
    assert idle.batches == []


def test_results_that_do_not_follow_from_the_rows_are_refused(tmp_path):
    suite = science(9)
    found = run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path)
    better = {"accuracy": found.metrics["accuracy"].model_copy(update={"estimate": 0.99, "high": 1.0})}
    forged = found.model_copy(update={"metrics": found.metrics | better})
    (tmp_path / "results.json").write_text(json.dumps(forged.model_dump(by_alias=True)), encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"do not follow from samples\.jsonl"):
        run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path)


@pytest.mark.parametrize("finished", [True, False])
def test_rows_of_another_model_protocol_or_seed_are_refused_by_name(tmp_path, finished):
    suite, out = science(8), tmp_path / "out"
    mine = knowing(suite.items(), 0.5, name="m")
    run_suite(suite, mine, out)
    if not finished:  # what an interrupted run leaves: rows, and no results.json that could tell whose they are
        (out / "results.json").unlink()
    before = (out / "samples.jsonl").read_bytes()

    other = knowing(suite.items(), 0.5, name="other")
    with pytest.raises(EvidenceError, match=rf"model_hash {mine.identity[:12]} is not .*{other.identity[:12]}"):
        run_suite(suite, other, out)
    with pytest.raises(EvidenceError, match="protocol_hash"):
        run_suite(science(8, max_new_tokens=32), knowing(suite.items(), 0.5, name="m"), out)
    bf16 = knowing(suite.items(), 0.5, name="m")
    bf16.protocol = bf16.protocol | {"dtype": "bfloat16"}
    with pytest.raises(EvidenceError, match="protocol_hash"):
        run_suite(suite, bf16, out)
    with pytest.raises(EvidenceError, match="seed"):
        run_suite(suite, knowing(suite.items(), 0.5, name="m"), out, seed=1)
    with pytest.raises(EvidenceError, match="not among the items"):
        run_suite(science(8), knowing(suite.items(), 0.5, name="m"), out, limit=3)
    assert (out / "samples.jsonl").read_bytes() == before


def test_results_of_another_data_file_or_seed_are_refused(tmp_path):
    suite, out = science(8), tmp_path / "out"
    run_suite(suite, knowing(suite.items(), 0.5, name="m"), out)
    renamed = ScienceQA(suite.items(), DataSource("made up", "e" * 64))
    with pytest.raises(EvidenceError, match=r"data_hash d{12}.*e{12}"):
        run_suite(renamed, knowing(suite.items(), 0.5, name="m"), out)


def test_a_row_that_stands_twice_is_refused(tmp_path):
    suite = science(4)
    run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(EvidenceError, match="is there twice"):
        run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path)


def test_a_larger_limit_extends_a_smaller_one(tmp_path):
    suite = science(40)
    small = run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path / "out", limit=10)
    more = knowing(suite.items(), 0.5, name="m")
    large = run_suite(suite, more, tmp_path / "out", limit=25)
    assert sum(map(len, more.batches)) >= 15
    assert (small.n_items, large.n_items, len(rows_of(tmp_path / "out"))) == (10, 25, 25)
    assert small.run_id == large.run_id


@given(n=st.integers(1, 60), limit=st.integers(1, 60), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_limits_are_nested_random_and_in_the_files_order(n, limit, seed):
    items = list(range(n))
    chosen = choose(items, limit, seed, "x")
    assert len(chosen) == min(n, limit)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(choose(items, limit + 5, seed, "x"))
    assert choose(items, limit, seed, "x") == chosen


def test_a_limit_is_not_the_head_of_the_file():
    assert choose(list(range(1000)), 10, 0, "x") != list(range(10))
    assert choose(list(range(1000)), 10, 0, "x") != choose(list(range(1000)), 10, 1, "x")


@given(
    lengths=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), min_size=1, max_size=40), size=st.integers(1, 9)
)
@settings(deadline=None, max_examples=60)
def test_batches_hold_every_item_once_longest_first(lengths, size):
    plan = [
        Planned(i, None, None, tuple(("h", str(i), 0, k) for k in range(n)), length)
        for i, (length, n) in enumerate(lengths)
    ]
    batches = batch_plan(plan, size)
    flat = [planned for batch in batches for planned in batch]
    assert sorted(planned.item for planned in flat) == list(range(len(lengths)))
    assert [planned.length for planned in flat] == sorted((planned.length for planned in flat), reverse=True)
    assert all(len(batch) == 1 or sum(planned.n_rows for planned in batch) <= size for batch in batches)


def test_a_response_depends_on_the_item_and_the_seed_not_on_the_batch(tmp_path):
    items = make_items.items(12)
    suite = science(12)
    for name, size in (("a", 1), ("b", 12)):
        run_suite(
            suite, FakeBackend(lambda text, seed: f"The answer is {'AB'[seed % 2]}."), tmp_path / name, batch_size=size
        )
    a = {row["item_id"]: (row["seed"], row["response"]) for row in rows_of(tmp_path / "a")}
    b = {row["item_id"]: (row["seed"], row["response"]) for row in rows_of(tmp_path / "b")}
    assert a == b
    assert len({seed for seed, _ in a.values()}) == len(items)
    run_suite(suite, FakeBackend(), tmp_path / "c", seed=1)
    assert {row["seed"] for row in rows_of(tmp_path / "c")}.isdisjoint(seed for seed, _ in a.values())


def test_a_number_that_is_none_stops_the_run(tmp_path):
    suite = Choices(make_items.items(4), SOURCE)
    with pytest.raises(EvidenceError, match="no numbers"):
        run_suite(suite, FakeBackend(logprob=lambda text, letter: float("nan")), tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


def test_progress_counts_items_also_on_resuming(tmp_path):
    suite = science(11)
    calls: list[tuple[int, int]] = []
    run_suite(
        suite, knowing(suite.items(), 0.5, name="m"), tmp_path, batch_size=4, progress=lambda *now: calls.append(now)
    )
    assert calls == [(4, 11), (8, 11), (11, 11)]


def test_impossible_settings_are_usage_errors(tmp_path):
    suite = science(3)
    backend = knowing(suite.items(), 0.5, name="m")
    with pytest.raises(UsageError, match="limit 0"):
        run_suite(suite, backend, tmp_path / "a", limit=0)
    with pytest.raises(UsageError, match="batch size 0"):
        run_suite(suite, backend, tmp_path / "b", batch_size=0)
    with pytest.raises(UsageError, match="no item"):
        run_suite(ScienceQA([], SOURCE), backend, tmp_path / "c")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="choose another --out"):
        run_suite(suite, backend, tmp_path / "file")


def test_two_evaluations_do_not_write_into_one_folder(tmp_path):
    suite = science(3)
    with open_store(tmp_path), pytest.raises(UsageError, match="another evaluation is writing"):
        run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path)
    run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace('"kat.sample/1"', '"kat.sample/0"', 1), "line 1: schema 'kat.sample/0'"),
        (lambda text: text.replace('"score":1.0', '"score":NaN', 1), "not a JSON row|finite"),
        (lambda text: "half a row\n" + text, "line 1: not a JSON row"),
        (lambda text: text.replace('"draw":0,', "", 1).replace('"seed":', '"sead":', 1), "line 1: s"),
        (lambda text: "[1]\n" + text, "line 1: a list"),
    ],
)
def test_a_damaged_row_is_named_by_its_line(tmp_path, spoil, message):
    suite = science(6)
    run_suite(suite, FakeBackend(lambda text, seed: f"The answer is {suite.items()[0].letter}."), tmp_path)
    path = tmp_path / "samples.jsonl"
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(EvidenceError, match=message):
        read_samples(path)
    with pytest.raises(EvidenceError, match=message):
        run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path)


def test_an_unfinished_file_is_no_evidence(tmp_path):
    with pytest.raises(EvidenceError, match="no such file"):
        read_samples(tmp_path / "samples.jsonl")
    (tmp_path / "samples.jsonl").write_bytes(b"")
    with pytest.raises(EvidenceError, match="empty"):
        read_samples(tmp_path / "samples.jsonl")
    (tmp_path / "samples.jsonl").write_bytes(b'{"schema":"kat.sam')
    with pytest.raises(EvidenceError, match="line 1: cut in the middle"):
        read_samples(tmp_path / "samples.jsonl")


@given(text=st.text(), name=st.text())
@settings(deadline=None, max_examples=60)
def test_any_text_comes_back_from_a_row_unchanged(tmp_path_factory, text, name):
    from kat.evals.store import dump_sample, parse_sample

    row = Sample(
        suite="s", suite_version="1", item_id=name, item_hash="h", prompt_hash=None, protocol_hash="p", model_hash="m",
        cluster="c", seed=1, prompt=text, n_choices=2, choices=[text, "b"], expected="A", response=text,
        finish_reason="stop", extracted=None, rule="unparsed", span=None, score=0.0,
    )  # fmt: skip
    line = dump_sample(row)
    assert line.count(b"\n") == 1
    assert parse_sample(line, "here") == row
