"""What the report says of the repeatability of answers: batches, rotations, letters."""

from itertools import pairwise

import pytest

from kat.audit.document import sections
from kat.audit.report import audit
from kat.evals.protocol import DataSource
from kat.evals.runner import run_suite
from kat.evals.scienceqa import ScienceQA
from kat.stats.intervals import wilson
from tests.audit.worlds import letters
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend, knowing
from tests.evals.test_batch_check import Wavering

SOURCE = DataSource("made up", "d" * 64)


def section(report):
    return next(one for one in sections(report) if one.ident == "steady")


def test_items_that_the_batch_decides_are_shown_with_an_interval(tmp_path):
    items = make_items.items(30)
    backend = Wavering()
    backend.unsure = frozenset(item.question for item in items[:6])
    suite = ScienceQA(items, SOURCE)
    run_suite(suite, backend, tmp_path / "a", batch_size=8, batch_check=30)
    run_suite(suite, knowing(items, 0.5, name="b"), tmp_path / "b", batch_size=8)
    report = audit(tmp_path / "a", tmp_path / "b", None)
    found, expected = report.steady.batches_a, wilson(6, 30)
    assert (found.flipped.estimate, found.flipped.low, found.flipped.high) == (0.2, expected.low, expected.high)
    table, missing = section(report).blocks[:2]
    assert [cell.text for cell in table.rows[0]] == ["A", "30", "8 and 1", "6", "20.0 %", "[9.5, 37.3]"]
    assert missing.text.startswith("Whether the batch size changes answers was not measured for B: kat eval")


def test_letters_are_counted_beside_the_key(report, world):
    rows = [row for row in report.steady.letters if row.right]
    assert sum(row.right for row in rows) == pytest.approx(1)
    parsed = next(one for one in report.secondary if one.name == "parse_rate")
    assert sum(row.a for row in report.steady.letters) == pytest.approx(parsed.a.estimate)
    assert sum(row.b for row in report.steady.letters) == pytest.approx(parsed.b.estimate)


def test_rotations_show_a_model_that_only_likes_a_letter(tmp_path):
    """A always takes the first letter: never the same option in every rotation. B always takes the same option."""
    items = make_items.items(40)
    right = {item.choices[item.answer] for item in items}

    def knows(text, letter):
        line = next(line for line in text.splitlines() if line.startswith(f"{letter.strip()}. "))
        return 0.0 if line[3:] in right else -9.0

    letters(items, FakeBackend(logprob=lambda text, letter: -float(ord(letter.strip()[0]))), tmp_path / "a", SOURCE)
    letters(items, FakeBackend(logprob=knows, identity="7" * 64), tmp_path / "b", SOURCE)
    report = audit(tmp_path / "a", tmp_path / "b", None)
    assert report.steady.rotation_a.estimate == 0.0
    assert report.steady.rotation_b.estimate == next(one for one in report.secondary if one.name == "steady").b.estimate
    assert report.steady.letters[0].a == 1.0
    assert all(x.right >= y.right for x, y in pairwise(report.steady.letters))
    assert "The same option is best in all of them on 0.0 %" in section(report).blocks[1].text
