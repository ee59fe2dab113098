"""Responses that somebody else generated: every item exactly once, nothing dropped in silence."""

import gzip
import json

import pytest

from kat.data.rows import load_rows
from kat.errors import EvidenceError, UsageError
from kat.evals.choices import Choices
from kat.evals.protocol import DataSource
from kat.evals.recorded import load_answered, read_responses, run_recorded
from kat.evals.scienceqa import ScienceQA
from kat.evals.store import read_samples
from tests.evals import make_items

SOURCE = DataSource("made up", "d" * 64)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(items, n_right):
    """The first `n_right` items right, one unparsed, the others wrong."""
    rows = []
    for i, item in enumerate(items):
        letter = item.letter if i < n_right else item.letters[item.answer - 1]
        rows.append({"id": item.id, "response": "" if i == len(items) - 1 else f"The answer is {letter}.", "extra": 1})
    return rows


def test_recorded_responses_are_scored_and_the_prompt_is_said_to_be_unrecorded(tmp_path):
    items = make_items.items(10)
    suite = ScienceQA(items, SOURCE)
    recorded = read_responses(write(tmp_path / "r.jsonl", answers(items, 6)), suite)
    results = run_recorded(suite, recorded, tmp_path / "out", model="somebody's")
    assert results.metrics["accuracy"].estimate == 0.6
    assert (results.n_items, results.n_unparsed, results.model) == (10, 1, "somebody's")
    assert results.metrics["accuracy_unparsed_dropped"].estimate == pytest.approx(6 / 9)
    assert results.metrics["accuracy_unparsed_right"].estimate == pytest.approx(0.7)
    assert results.protocol["max_new_tokens"] == "unrecorded"
    for row in read_samples(tmp_path / "out" / "samples.jsonl"):
        assert (row.prompt, row.prompt_hash, row.finish_reason) == (None, None, "recorded")
        assert row.model_hash == recorded.identity


def test_identity_is_that_of_the_responses_whatever_their_order(tmp_path):
    items = make_items.items(6)
    suite = ScienceQA(items, SOURCE)
    rows = answers(items, 3)
    first = read_responses(write(tmp_path / "a.jsonl", rows), suite)
    assert read_responses(write(tmp_path / "b.jsonl", rows[::-1]), suite).identity == first.identity
    rows[0]["response"] += " "
    assert read_responses(write(tmp_path / "c.jsonl", rows), suite).identity != first.identity


def test_missing_duplicate_and_unknown_ids_are_named_and_counted(tmp_path):
    items = make_items.items(8)
    suite = ScienceQA(items, SOURCE)
    rows = answers(items, 4)
    with pytest.raises(EvidenceError, match=r"4 responses \(q0, q1, q2, …\) missing of 8"):
        read_responses(write(tmp_path / "r.jsonl", rows[4:]), suite)
    with pytest.raises(EvidenceError, match=r"1 id \(q2\) given twice"):
        read_responses(write(tmp_path / "r.jsonl", [*rows, rows[2]]), suite)
    found = read_responses(write(tmp_path / "r.jsonl", [*rows, {"id": "zz", "response": "B"}]), suite)
    assert found.unknown == ("zz",)
    assert found.identity != read_responses(write(tmp_path / "r.jsonl", rows), suite).identity


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "q0"}, "no response"),
        ({"id": "q0", "response": None}, "response is not text"),
        ({"id": ["q0"], "response": "A"}, "id is neither text nor an integer"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path, row, message):
    items = make_items.items(3)
    path = write(tmp_path / "r.jsonl", [*answers(items, 1), row])
    with pytest.raises(UsageError, match=f"line 4: {message}"):
        read_responses(path, ScienceQA(items, SOURCE))


def test_all_responses_empty_is_a_score_of_zero_not_of_chance(tmp_path):
    items = make_items.items(12)
    suite = ScienceQA(items, SOURCE)
    path = write(tmp_path / "r.jsonl", [{"id": item.id, "response": ""} for item in items])
    results = run_recorded(suite, read_responses(path, suite), tmp_path / "out", model="mute")
    assert results.metrics["accuracy"].estimate == 0.0
    assert results.metrics["parse_rate"].estimate == 0.0
    assert "accuracy_unparsed_dropped" not in results.metrics
    assert results.metrics["accuracy_chance_corrected"].estimate < 0


def test_a_suite_that_generates_nothing_takes_no_responses(tmp_path):
    items = make_items.items(3)
    suite = Choices(items, SOURCE)
    recorded = read_responses(write(tmp_path / "r.jsonl", answers(items, 1)), suite)
    with pytest.raises(UsageError, match="no --responses"):
        run_recorded(suite, recorded, tmp_path / "out", model="m")


def test_published_responses_of_gpt3_count_their_empty_ones_as_wrong(real_data, tmp_path):
    """75.17 % as published (random guesses for 243 empty responses), 72.27 % with the unparsed counted as wrong."""
    suite = ScienceQA.load(real_data / "scienceqa_test.jsonl.gz")
    text_only = {item.id for item in suite.items()}
    everything = real_data / "scienceqa_outputs_gpt3_cot.jsonl.gz"
    recorded = read_responses(everything, suite)
    assert len(suite.items()) == 2224
    assert len(recorded.unknown) == 4241 - 2224
    results = run_recorded(suite, recorded, tmp_path / "out", model="GPT-3")
    with gzip.open(everything, "rt", encoding="utf-8") as file:
        published = {row["id"]: row for row in map(json.loads, file)}
    letters = {row.item_id: row for row in read_samples(tmp_path / "out" / "samples.jsonl")}
    agree = [
        letters[name].extracted == "ABCDE"[row["published_prediction"]]
        for name, row in published.items()
        if name in text_only and row["response"].strip()
    ]
    assert sum(agree) >= 0.995 * len(agree)
    empty = [name for name in text_only if not published[name]["response"].strip()]
    assert results.n_unparsed >= len(empty) > 0
    assert all(letters[name].score == 0 for name in empty)


def test_any_local_multiple_choice_file_makes_a_suite(real_data):
    for name in ("mc_arc_easy_test", "mc_openbookqa_test", "mc_mmlu_test"):
        suite = ScienceQA.load(real_data / f"{name}.jsonl.gz")
        rows = load_rows([real_data / f"{name}.jsonl.gz"], lambda row: row, key=None)
        assert len(suite.items()) + suite.n_dropped == rows.n_lines


def with_images(path, n=12):
    """Rows of which every third needs an image."""
    rows = make_items.rows(n)
    return write(path, [dict(row, has_image=i % 3 == 0) for i, row in enumerate(rows)])


def test_answers_to_questions_with_images_count_where_any_was_given(tmp_path):
    data = with_images(tmp_path / "data.jsonl")
    everything = ScienceQA.load(data, text_only=False).items()
    responses = write(tmp_path / "r.jsonl", answers(everything, 12))
    suite, recorded = load_answered(ScienceQA.load, data, responses)
    assert len(suite.items()) == 12
    run_recorded(suite, recorded, tmp_path / "out", model="sees")
    images = [row.slices["image"] for row in read_samples(tmp_path / "out" / "samples.jsonl")]
    assert sorted(images) == ["no"] * 8 + ["yes"] * 4


def test_a_model_that_answered_no_image_is_asked_for_the_text_only_questions(tmp_path):
    data = with_images(tmp_path / "data.jsonl")
    text_only = ScienceQA.load(data).items()
    suite, _ = load_answered(ScienceQA.load, data, write(tmp_path / "r.jsonl", answers(text_only, 8)))
    assert len(suite.items()) == 8
    assert "image" not in suite._slices(suite.items()[0])


def test_some_images_answered_and_others_missing_is_invalid(tmp_path):
    data = with_images(tmp_path / "data.jsonl")
    everything = ScienceQA.load(data, text_only=False).items()
    responses = write(tmp_path / "r.jsonl", [row for row in answers(everything, 12) if row["id"] != everything[0].id])
    with pytest.raises(EvidenceError, match=r"1 response .* missing"):
        load_answered(ScienceQA.load, data, responses)


def test_the_responses_are_read_once(tmp_path, monkeypatch):
    data = with_images(tmp_path / "data.jsonl")
    responses = write(tmp_path / "r.jsonl", answers(ScienceQA.load(data).items(), 8))
    read: list[object] = []

    def counted(paths, *words, **more):
        read.extend(paths)
        return load_rows(paths, *words, **more)

    monkeypatch.setattr("kat.evals.recorded.load_rows", counted)
    _, recorded = load_answered(ScienceQA.load, data, responses)
    assert read == [responses] and len(recorded.by_id) == 8


def test_a_report_on_questions_with_images_finds_them_again(tmp_path):
    from kat.audit.report import audit

    data = with_images(tmp_path / "data.jsonl", 40)
    items = ScienceQA.load(data, text_only=False).items()
    for name, right in (("a", 20), ("b", 35)):
        responses = write(tmp_path / f"{name}.jsonl", answers(items, right))
        suite, recorded = load_answered(ScienceQA.load, data, responses)
        run_recorded(suite, recorded, tmp_path / name, model=name)
    report = audit(tmp_path / "a", tmp_path / "b", None)
    assert report.n_items == 40
    assert all(flip.question for flip in report.flips)
