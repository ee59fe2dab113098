"""Evidence is refused, in one line that names it, wherever it does not agree with itself or with the other side."""

import shutil
from dataclasses import replace

import pytest

from kat.audit.load import load_evidence
from kat.audit.pair import pair
from kat.audit.questions import find_items
from kat.errors import EvidenceError, UsageError
from kat.evals.bpb import BitsPerByte, Text
from kat.evals.protocol import DataSource
from kat.evals.runner import run_suite
from tests.audit.worlds import consistent, edit_results, edit_rows, letters, rows_of, run, two_runs
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend, knowing

SOURCE = DataSource("made up", "d" * 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return two_runs(tmp_path_factory.mktemp("world"), 60)


@pytest.fixture
def world(made, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copy(made / "data.jsonl", tmp_path / "data.jsonl")
    return tmp_path


def paired(world, **options):
    return pair(load_evidence(world / "a"), load_evidence(world / "b"), **options)


def refuse(world, message):
    with pytest.raises(EvidenceError, match=message) as caught:
        paired(world)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_honest_evidence_pairs_by_content(world):
    found = paired(world)
    assert len(found.items) == 60
    for item in found.items:
        assert item.a[0].item_hash == item.b[0].item_hash
        assert item.a[0].expected == item.b[0].expected
    assert (found.n_prompts_differ, found.n_prompts_unrecorded, found.same_model) == (0, 0, False)


# Two forgeries that published gates let pass: evalsig 0.1.2 answered ALLOW and statgate SHIP to both.


def test_questions_permuted_under_the_same_ids_are_refused(world, tmp_path):
    items = make_items.items(60, lectures=12)
    order = [*range(1, 60), 0]
    forged = [replace(items[k], id=items[i].id) for i, k in enumerate(order)]
    run(forged, knowing(forged, 0.9, name="forged"), tmp_path / "forged", SOURCE)
    shutil.rmtree(world / "b")
    shutil.move(tmp_path / "forged", world / "b")
    refuse(world, r"60 ids \(.*\) stand for one question in .* and for another")


def test_permuted_rows_that_keep_the_hashes_are_refused(world):
    def swap(rows):
        rows[0]["choices"], rows[1]["choices"] = rows[1]["choices"], rows[0]["choices"]
        for row in rows[:2]:
            row.update(n_choices=len(row["choices"]), expected="A", extracted="A", score=1.0)
            row.update(response="The answer is A.", span=[4, 15])
        return rows

    edit_rows(world / "b", swap)
    consistent(world / "b")
    refuse(world, "show other options under one content hash")


def test_wrong_items_that_were_removed_are_refused(world):
    def without_wrong(rows):
        wrong = [row for row in rows if row["score"] == 0][:20]
        return [row for row in rows if row not in wrong]

    edit_rows(world / "b", without_wrong)
    refuse(world, "speaks of 60 items, samples.jsonl holds 40; rows were removed")
    consistent(world / "b")
    refuse(world, r"20 of 60 items of .*a \(.*\) are missing in .*b")


def test_items_removed_on_both_sides_are_found_in_the_data_file(world):
    keep = set(list(rows_of(world / "b"))[:50])
    for name in ("a", "b"):
        edit_rows(world / name, lambda rows: [row for row in rows if row["item_hash"] in keep])
        consistent(world / name)
    found = paired(world)
    with pytest.raises(EvidenceError, match=r"holds 60 items, both evaluations only 50 .* rows were removed"):
        find_items(found, world / "data.jsonl")


def test_a_score_or_a_letter_that_was_edited_is_refused(world):
    path = world / "b" / "samples.jsonl"
    before = path.read_bytes()

    def better(rows):
        row = next(row for row in rows if row["score"] == 0)
        row["score"] = 1.0
        return rows

    edit_rows(world / "b", better)
    consistent(world / "b")
    refuse(world, "score 1.0 for .* where .* is right")

    def reread(rows):
        row = next(row for row in rows if row["score"] == 0 and row["extracted"])
        row.update(score=1.0, extracted=row["expected"])
        return rows

    path.write_bytes(before)
    edit_rows(world / "b", reread)
    consistent(world / "b")
    refuse(world, "but its response reads")


# One run, compared with itself.


def test_a_run_compared_with_itself_is_refused(world):
    with pytest.raises(EvidenceError, match="A and B are one folder"):
        pair(load_evidence(world / "a"), load_evidence(world / "a" / ".." / "a"))
    shutil.rmtree(world / "b")
    shutil.copytree(world / "a", world / "b")
    refuse(world, "a run compared with itself")


def test_the_same_model_evaluated_twice_is_said_to_be_bit_identical(tmp_path):
    items = make_items.items(20)
    for name in ("a", "b"):
        run(items, knowing(items, 0.5, name="one"), tmp_path / name, SOURCE)
    assert paired(tmp_path).same_model


# Damage.


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-40], "line 60: cut in the middle"),
        (lambda text: text.replace('"score":0.0', '"score":NaN', 1), "finite number|not a JSON row"),
        (lambda text: text.replace("kat.sample/1", "kat.sample/2", 1), "line 1: schema 'kat.sample/2'"),
        (lambda text: text.replace('"suite":"scienceqa"', '"suite":"choices"', 1), "line 1: suite choices"),
        (lambda text: text + text.split("\n")[0] + "\n", "line 61: item .* stands there twice"),
        (lambda text: text + "not json\n", "line 61: not a JSON row"),
        (lambda text: text + "\n", "line 61: not a JSON row"),
        (lambda text: text.replace('"expected":"A"', '"expected":"E"', 1), "no question"),
        (lambda text: text.replace('"score":1.0', '"score":7.0', 1), "outside 0 to 1"),
        (lambda text: text.replace('"rule":', '"ruel":', 1), "rule"),
        (lambda text: "", "empty"),
    ],
)
def test_damaged_rows_are_refused_by_their_line(world, spoil, message):
    path = world / "b" / "samples.jsonl"
    text = path.read_text(encoding="utf-8")
    assert spoil(text) != text
    path.write_text(spoil(text), encoding="utf-8")
    refuse(world, message)


def test_a_span_outside_its_response_is_refused(world):
    def stretch(rows):
        row = next(row for row in rows if row["span"])
        row["span"] = [0, len(row["response"]) + 1]
        return rows

    edit_rows(world / "b", stretch)
    refuse(world, "span .* outside the response")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", "kat.results/9", "schema 'kat.results/9'"),
        ("model_hash", "7" * 64, "model_hash .* speaks of 777777777777"),
        ("protocol", lambda old: old | {"max_new_tokens": 32}, "not the hash of its protocol"),
        ("n_unparsed", 59, "speaks of 59 unparsed"),
        ("metrics", lambda old: old | {"accuracy": old["accuracy"] | {"estimate": 0.999}}, "accuracy 0.999000, but"),
        ("primary", "luck", "'luck' is not among its metrics"),
        ("n_items", None, "n_items"),
    ],
)
def test_results_that_do_not_follow_from_the_rows_are_refused(world, field, value, message):
    edit_results(world / "b", **{field: value})
    refuse(world, message)


def test_missing_files_are_named(world, tmp_path):
    with pytest.raises(EvidenceError, match="no folder of an evaluation"):
        load_evidence(tmp_path / "nothing")
    (world / "a" / "results.json").unlink()
    refuse(world, r"results\.json: no such file")
    (world / "b" / "samples.jsonl").unlink()
    with pytest.raises(EvidenceError, match=r"samples\.jsonl: no such file"):
        load_evidence(world / "b")


# Unlike evaluations.


def test_another_protocol_is_refused_by_its_difference_unless_declared(world, tmp_path):
    items = make_items.items(60, lectures=12)
    shutil.rmtree(world / "b")
    backend = knowing(items, 0.5, name="sft")
    backend.protocol = backend.protocol | {"dtype": "bfloat16"}
    run(items, backend, world / "b", SOURCE)
    refuse(world, r"different protocols \(backend.dtype: float32 in A, bfloat16 in B\)")
    found = paired(world, protocol_is_treatment=True)
    assert found.protocol_differences == ("backend.dtype: float32 in A, bfloat16 in B",)


def test_another_suite_is_refused(world):
    items = make_items.items(60, lectures=12)
    shutil.rmtree(world / "b")
    letters(items, FakeBackend(identity="9" * 64), world / "b", SOURCE)
    refuse(world, "suite is 'scienceqa' in .* and 'choices' in")


def test_another_extractor_is_refused(world):
    edit_results(world / "b", extractor_version="somebody-else/3")
    refuse(world, "extractor_version is 'kat-letters/.*' in .* and 'somebody-else/3'")


def test_prompts_that_differ_are_counted(world):
    edit_rows(world / "b", lambda rows: [row | {"prompt_hash": "0" * 64} for row in rows[:7]] + rows[7:])
    assert paired(world).n_prompts_differ == 7
    edit_rows(world / "b", lambda rows: [row | {"prompt_hash": None} for row in rows[:9]] + rows[9:])
    assert paired(world).n_prompts_unrecorded == 9


def test_a_measure_that_is_no_accuracy_is_a_usage_error(tmp_path):
    for name, nats in (("a", 1.0), ("b", 2.0)):
        backend = FakeBackend(nats=lambda text, nats=nats: nats * len(text), identity=name * 64)
        run_suite(BitsPerByte([Text("t", "some text")], SOURCE), backend, tmp_path / name)
    with pytest.raises(UsageError, match="bits_per_byte, which is no accuracy"):
        paired(tmp_path)


def test_contents_that_a_data_set_repeats_pair_by_their_ids(tmp_path):
    items = make_items.items(6)
    items = [*items, replace(items[0], id="again")]
    for name, know in (("a", 0.0), ("b", 1.0)):
        run(items, knowing(items, know, name=name), tmp_path / name, SOURCE)
    found = paired(tmp_path)
    assert len(found.items) == 7
    assert all(item.a[0].item_id == item.b[0].item_id for item in found.items)
    shutil.rmtree(tmp_path / "b")
    renumbered = [*items[:6], replace(items[0], id="other")]
    run(renumbered, knowing(items, 1.0, name="b"), tmp_path / "b", SOURCE)
    refuse(tmp_path, "its content stands there several times")


def test_renumbered_items_still_pair_by_their_content(tmp_path):
    items = make_items.items(12)
    run(items, knowing(items, 0.5, name="a"), tmp_path / "a", SOURCE)
    renamed = [replace(item, id=f"n{item.id}") for item in items[::-1]]
    run(renamed, knowing(items, 1.0, name="b"), tmp_path / "b", SOURCE)
    found = paired(tmp_path)
    assert all(item.b[0].item_id == f"n{item.a[0].item_id}" for item in found.items)
    assert sum(item.score_b for item in found.items) == 12


def test_a_lost_rotation_is_found(tmp_path):
    items = make_items.items(8)
    for name in "ab":
        letters(items, FakeBackend(identity=name * 64), tmp_path / name, SOURCE)
    assert len(paired(tmp_path).items) == 8
    edit_rows(tmp_path / "b", lambda rows: rows[:-1])
    refuse(tmp_path, "lacks a rotation")


def test_rotations_of_different_questions_are_found(tmp_path):
    items = make_items.items(8)
    for name in "ab":
        letters(items, FakeBackend(identity=name * 64), tmp_path / name, SOURCE)

    def other_option(rows):
        row = next(row for row in rows if row["rotation"] == 1)
        row["choices"] = ["somewhere else", *row["choices"][1:]]
        return rows

    edit_rows(tmp_path / "b", other_option)
    refuse(tmp_path, "are not of one question")


def test_one_id_for_two_questions_is_refused(world):
    def renamed(rows):
        rows[1]["item_id"] = rows[0]["item_id"]
        return rows

    edit_rows(world / "b", renamed)
    refuse(world, "stands for two different questions")


# The data behind the rows.


def test_the_data_must_be_the_evaluated_one(world):
    edit_results(world / "a", data=str(world / "data.jsonl"))
    found = paired(world)
    items, note = find_items(found, None)
    assert note == ""
    assert [item.hash for item in items] == [item.key[0] for item in found.items]
    other = make_items.write(world / "other.jsonl", 60, seed=4)
    with pytest.raises(EvidenceError, match="not the evaluated data's"):
        find_items(found, other)
    with pytest.raises(EvidenceError, match=r"evaluated items \(such as .*\) are not in the data"):
        find_items(found, make_items.items(60, seed=4))
    (world / "data.jsonl").write_text('{"id": "1", "question": "q", "choices": ["a", "b"], "answer": 0}\n', "utf-8")
    assert find_items(found, None) == (None, f"the data file {world / 'data.jsonl'} has changed since the evaluation")
    (world / "data.jsonl").write_text("", encoding="utf-8")
    assert "could not be read" in find_items(found, None)[1]
    (world / "data.jsonl").unlink()
    assert "is not there to read the questions from" in find_items(found, None)[1]
