"""Items asked again in batches of another size: those whose answer changes are counted, and nothing else moves."""

import pytest

from kat.errors import UsageError
from kat.evals.bpb import BitsPerByte
from kat.evals.choices import Choices
from kat.evals.folder import load_results
from kat.evals.protocol import DataSource
from kat.evals.runner import run_suite
from kat.evals.scienceqa import ScienceQA
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend, knowing

SOURCE = DataSource("made up", "d" * 64)


class Wavering(FakeBackend):
    """Answers B instead of A to the items in `unsure`, as soon as it is asked them alone."""

    unsure: frozenset[str] = frozenset()

    def generate(self, conversations, sampling, seeds, n=1):
        found = super().generate(conversations, sampling, seeds, n)
        for messages, completions in zip(conversations, found, strict=True):
            alone = len(conversations) == 1 and any(word in messages[-1]["content"] for word in self.unsure)
            completions[0].text = f"The answer is {'B' if alone else 'A'}."
        return found


def test_items_that_change_with_the_batch_are_counted(tmp_path):
    items = make_items.items(30)
    backend = Wavering()
    backend.unsure = frozenset(item.question for item in items[:12])
    found = run_suite(ScienceQA(items, SOURCE), backend, tmp_path, batch_size=8, batch_check=30).batch_check
    assert (found.n, found.n_flipped, found.batch_size, found.again_in) == (30, 12, 8, 1)


def test_alone_at_first_means_together_the_second_time(tmp_path):
    suite = ScienceQA(make_items.items(20), SOURCE)
    backend = knowing(suite.items(), 0.5, name="m", unparsed=0.2)
    found = run_suite(suite, backend, tmp_path, batch_size=1, batch_check=9).batch_check
    assert (found.n, found.n_flipped, found.again_in) == (9, 0, 16)
    assert [len(batch) for batch in backend.batches] == [1] * 20 + [9]


def test_the_check_changes_no_row_and_is_done_once(tmp_path):
    suite = ScienceQA(make_items.items(20), SOURCE)
    run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path / "plain")
    plain = (tmp_path / "plain" / "samples.jsonl").read_bytes()
    for _ in range(2):
        backend = knowing(suite.items(), 0.5, name="m")
        first = run_suite(suite, backend, tmp_path / "out", batch_check=5)
        assert (tmp_path / "out" / "samples.jsonl").read_bytes() == plain
    assert backend.batches == [] and load_results(tmp_path / "out" / "results.json") == first
    assert run_suite(suite, backend, tmp_path / "out") == first, "a later run without the check keeps it"
    later = run_suite(suite, knowing(suite.items(), 0.5, name="m"), tmp_path / "plain", batch_check=5)
    assert later.batch_check == first.batch_check


def test_every_rotation_is_asked_again(tmp_path):
    items = make_items.items(10)
    backend = FakeBackend(logprob=lambda text, letter: -float(ord(letter)))
    found = run_suite(Choices(items, SOURCE), backend, tmp_path, batch_size=32, batch_check=4).batch_check
    assert (found.n, found.n_flipped) == (4, 0)
    assert [len(batch) for batch in backend.batches[-4:]] == sorted(
        (len(batch) for batch in backend.batches[-4:]), reverse=True
    )


def test_a_suite_without_answers_has_nothing_to_check(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "some words"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="no answer that could change"):
        run_suite(BitsPerByte.load(tmp_path / "text.jsonl"), FakeBackend(), tmp_path / "out", batch_check=1)
