"""Bits per byte against its definition."""

import math

import numpy as np
import pytest
from scipy import stats

from kat.errors import EvidenceError, UsageError
from kat.evals.bpb import BitsPerByte, Text
from kat.evals.protocol import DataSource
from kat.evals.runner import run_suite
from kat.evals.store import read_samples
from tests.evals.fake_backend import FakeBackend

SOURCE = DataSource("made up", "d" * 64)


def test_a_uniform_model_over_bytes_needs_eight_bits(tmp_path):
    texts = [Text(str(i), "wörter " * (i + 1)) for i in range(5)]
    backend = FakeBackend(nats=lambda text: math.log(256) * len(text.encode()))
    results = run_suite(BitsPerByte(texts, SOURCE), backend, tmp_path)
    assert results.metrics["bits_per_byte"].estimate == pytest.approx(8.0, abs=1e-12)
    assert results.n_unparsed == 0


def test_documents_are_pooled_before_dividing_and_recomputable_from_the_rows(tmp_path):
    rng = np.random.default_rng(0)
    texts = [Text(str(i), "x" * int(rng.integers(5, 400))) for i in range(40)]
    rate = {text.text: float(rng.uniform(0.5, 3)) for text in texts}
    backend = FakeBackend(nats=lambda text: rate[text] * len(text))
    found = run_suite(BitsPerByte(texts, SOURCE), backend, tmp_path).metrics["bits_per_byte"]
    rows = read_samples(tmp_path / "samples.jsonl")
    bits = np.array([row.score * int(row.slices["bytes"]) for row in rows])
    size = np.array([int(row.slices["bytes"]) for row in rows])
    assert found.estimate == pytest.approx(bits.sum() / size.sum(), rel=1e-12)
    assert found.estimate != pytest.approx(np.mean([row.score for row in rows]), rel=1e-3)
    # Oracle for the interval: the jackknife of the ratio, which the linearisation approximates.
    left_out = (bits.sum() - bits) / (size.sum() - size)
    error = math.sqrt(39 / 40 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.975, 39) * error, rel=0.05)


def test_one_document_has_no_interval_and_says_so(tmp_path):
    results = run_suite(BitsPerByte([Text("a", "abc")], SOURCE), FakeBackend(), tmp_path)
    assert results.metrics["bits_per_byte"].method == "one document: no interval"


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, nats):
    with pytest.raises(EvidenceError, match="no measurement"):
        run_suite(BitsPerByte([Text("a", "abc")], SOURCE), FakeBackend(nats=lambda text: nats), tmp_path)


def test_documents_are_read_from_files(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n', encoding="utf-8")
    assert [item.text for item in BitsPerByte.load(tmp_path / "d.jsonl").items()] == ["one", "two"]
    (tmp_path / "q.jsonl").write_text(
        '{"id": "a", "question": "q", "choices": ["a", "b"], "answer": 0}\n', encoding="utf-8"
    )
    with pytest.raises(UsageError, match="not a document"):
        BitsPerByte.load(tmp_path / "q.jsonl")
