"""The reward suite on judges that the test decides: exact figures, symmetry, controls, and what it refuses."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.preferences import Pair, load_pairs, make_prompt, pair_row, rows_text
from kat.errors import EvidenceError, UsageError
from kat.evals.protocol import Judge, Judged, Stamp
from kat.evals.registry import get_suite
from kat.evals.reward import PROMPTS, RewardSuite, preferred
from kat.evals.runner import run_suite
from kat.model.reward import load_reward
from kat.runs.schemas import Metric, Results
from kat.stats.intervals import wilson
from tests.evals.fake_backend import FakeBackend
from tests.trainers.helpers import request, run
from tests.trainers.preference_helpers import reward_request

STAMP = Stamp("reward", "1", "p", "m", "i", "h", 0)
LETTERS = "abcdefgh"


class JudgeBackend(FakeBackend):
    """Scores a response by a function of (the user's text, the response)."""

    def __init__(self, judge: Callable[[str, str], float]) -> None:
        super().__init__()
        self.function, self.asked = judge, 0

    def judge(self, requests: Sequence[Judge]) -> list[list[float]]:
        self.asked += len(requests)
        return [[self.function(one.messages[-1]["content"], text) for text in one.responses] for one in requests]


def pair(k: int, chosen: str, rejected: str, prompt: str | None = None, source: str = "") -> Pair:
    message = {"role": "user", "content": prompt or f"question {k}"}
    return Pair(f"p{k}", make_prompt([message], source), chosen, rejected)


def write(folder: Path, pairs: Sequence[Pair]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text(rows_text(map(pair_row, pairs)))
    return path


def evaluate(folder: Path, pairs: Sequence[Pair], judge: Callable[[str, str], float], **options: Any) -> Results:
    suite = get_suite("reward")(write(folder, pairs), **options)
    return run_suite(suite, JudgeBackend(judge), folder / "out")  # type: ignore[arg-type]


def number(prompt: str, response: str) -> float:
    return float(response) if response.lstrip("-").replace(".", "").isdigit() else 0.0


def test_figures_by_hand(tmp_path: Path) -> None:
    margins = [2.0] * 30 + [-1.0] * 10
    pairs = [pair(k, f"{margin}", "0") for k, margin in enumerate(margins)]
    found = evaluate(tmp_path, pairs, number)
    m = found.metrics
    expected = wilson(30, 40)
    assert (m["accuracy"].estimate, m["accuracy"].low, m["accuracy"].high) == (0.75, expected.low, expected.high)
    assert "Wilson" in m["accuracy"].method
    assert m["margin"].estimate == pytest.approx(1.25)
    sem = np.std(margins, ddof=1) / math.sqrt(40)
    assert m["margin"].high - m["margin"].estimate == pytest.approx(2.0227 * sem, rel=1e-3)  # t, 39 degrees of freedom
    sigma = {x: 1 / (1 + math.exp(-x)) for x in (2.0, -1.0)}
    assert m["log_loss"].estimate == pytest.approx(-(30 * math.log(sigma[2.0]) + 10 * math.log(sigma[-1.0])) / 40)
    assert m["brier"].estimate == pytest.approx((30 * (1 - sigma[2.0]) ** 2 + 10 * (1 - sigma[-1.0]) ** 2) / 40)
    gaps = 30 * abs(sigma[2.0] - 1) + 10 * abs((1 - sigma[-1.0]) - 0)
    assert m["ece"].estimate == pytest.approx(gaps / 40)
    assert m["ece"].low <= m["ece"].estimate <= m["ece"].high
    assert m["response_blind"].estimate == 0.5
    assert m["longer_is_better"].estimate == 1.0
    assert (found.n_items, found.n_unparsed, found.primary) == (40, 0, "accuracy")


def test_a_calibrated_judge_has_a_small_calibration_error_and_an_overconfident_one_a_large_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 4_000)
    won = rng.random(4_000) < 1 / (1 + np.exp(-true))
    found = {}
    for factor in (1, 3):
        signed = np.where(won, true, -true) * factor
        suite = RewardSuite([], SimpleNamespace(name="", hash="", n_dropped=0, notes=()))  # type: ignore[arg-type]
        rows = [sample(suite, k, float(margin)) for k, margin in enumerate(signed)]
        found[factor] = suite.summarise(rows)
    assert found[1]["ece"].estimate < 0.03 < 0.08 < found[3]["ece"].estimate
    assert found[1]["accuracy"] == found[3]["accuracy"]
    assert found[1]["log_loss"].estimate < found[3]["log_loss"].estimate


def sample(suite: RewardSuite, k: int, margin: float) -> Any:
    one = pair(k, "x", "y")
    item = SimpleNamespace(pair=one, slices={}, id=one.id)
    stamp = Stamp("reward", "1", "p", "m", one.id, f"{k:04d}", 0)
    return suite.score(item, [Judged((margin, 0.0, 0.0, 0.0), None, None)], stamp)[0]  # type: ignore[arg-type]


numbers = st.floats(-50, 50).map(lambda value: round(value, 3))


@settings(deadline=None, max_examples=40)
@given(numbers, numbers)
def test_swapping_the_responses_negates_the_margin_and_mirrors_the_score(a: float, b: float) -> None:
    suite = RewardSuite([], SimpleNamespace(name="", hash="", n_dropped=0, notes=()))  # type: ignore[arg-type]
    found = []
    for chosen, rejected in (("x", "y"), ("y", "x")):
        one = pair(0, chosen, rejected)
        item = SimpleNamespace(pair=one, slices={}, id="p0")
        request = suite.requests(item)  # type: ignore[arg-type]
        scores = tuple({"x": a, "y": b}.get(text, 0.0) for text in request.responses)
        row = suite.score(item, [Judged(scores, None, None)], STAMP)[0]  # type: ignore[arg-type]
        metrics = suite.summarise([row, row.model_copy(update={"cluster": "other", "item_id": "other"})])
        found.append((metrics["margin"].estimate, row.score))
    (margin, score), (negated, mirrored) = found
    assert margin == pytest.approx(-negated)
    assert score == 1 - mirrored
    assert score == preferred(margin)


def test_ties_are_half_right_and_last_bits_are_ties(tmp_path: Path) -> None:
    pairs = [pair(k, "1", "0") for k in range(10)] + [pair(k, f"x{k}", f"y{k}") for k in range(10, 20)]
    found = evaluate(tmp_path, pairs, lambda p, r: number(p, r) + (1e-7 if r.startswith("x") else 0.0))
    assert found.metrics["accuracy"].estimate == 0.75
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert sorted(row["extracted"] for row in rows) == ["chosen"] * 10 + ["tie"] * 10


def test_a_judge_that_sees_the_label_is_caught_by_the_blinded_control(tmp_path: Path) -> None:
    """The seed's reward model read its answer at the slot of the right response."""

    class Leaking(JudgeBackend):
        def judge(self, requests: Sequence[Judge]) -> list[list[float]]:
            return [[1.0, 0.0, 1.0, 0.0] for _ in requests]

    suite = RewardSuite.load(write(tmp_path, [pair(k, f"a{k}", f"b{k}") for k in range(30)]))
    found = run_suite(suite, Leaking(lambda p, r: 0.0), tmp_path / "out")  # type: ignore[arg-type]
    assert found.metrics["accuracy"].estimate == found.metrics["response_blind"].estimate == 1.0


def test_slices_and_repeated_prompts(tmp_path: Path) -> None:
    pairs = [pair(k, "1" if k % 4 else "0", "0.5", source="one") for k in range(40)]
    pairs += [pair(k, "1", "0.5", prompt="the same", source="two") for k in range(40, 80)]
    pairs += [pair(k, "1", "0.5", source="small") for k in range(80, 90)]
    found = evaluate(tmp_path, pairs, number).metrics
    assert found["accuracy@source=one"].estimate == 0.75
    assert found["accuracy@source=two"].n == 40
    assert "accuracy@source=small" not in found
    assert found["accuracy"].estimate == pytest.approx(80 / 90)
    apart = [pair(k, one.chosen, one.rejected) for k, one in enumerate(pairs)]
    (tmp_path / "apart").mkdir()
    naive = evaluate(tmp_path / "apart", apart, number).metrics["accuracy"]
    assert width(found["accuracy"]) > 1.2 * width(naive)  # forty pairs of one prompt are not forty prompts


def width(metric: Metric) -> float:
    return metric.high - metric.low


def test_density_deciles_rise_with_the_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [pair(k, "1" if k < 100 else "0", "0.5") for k in range(200)]
    density = SimpleNamespace(
        rows=[SimpleNamespace(id=one.prompt.id) for one in pairs], weights=np.arange(1, 201) / 20_100
    )
    monkeypatch.setattr("kat.evals.reward.read_density", lambda folder, embeddings: density)
    found = evaluate(tmp_path, pairs, number, density=tmp_path / "density").metrics
    deciles = [found[f"accuracy@density_decile={k}"] for k in range(1, 11)]
    assert [metric.estimate for metric in deciles] == [1.0] * 5 + [0.0] * 5
    assert [metric.n for metric in deciles] == [20] * 10
    density.rows, density.weights = density.rows[1:], density.weights[1:]
    with pytest.raises(UsageError, match="no weight for 1 of the prompts"):
        RewardSuite.load(tmp_path / "pairs.jsonl", density=tmp_path / "density")


def test_a_broken_judge_and_no_data_are_said(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="are no numbers"):
        evaluate(tmp_path, [pair(0, "a", "b")], lambda p, r: math.nan)
    with pytest.raises(UsageError, match="identical"):
        RewardSuite.load(write(tmp_path, [pair(0, "a", "a")]))


def test_a_killed_run_goes_on_and_writes_the_same_rows(tmp_path: Path) -> None:
    pairs = [pair(k, f"{k % 3}", "1.5") for k in range(40)]
    suite = RewardSuite.load(write(tmp_path, pairs))
    run_suite(suite, JudgeBackend(number), tmp_path / "whole")  # type: ignore[arg-type]
    whole = (tmp_path / "whole" / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "samples.jsonl").write_bytes(b"".join(whole[:17]))
    backend = JudgeBackend(number)
    run_suite(suite, backend, tmp_path / "cut")  # type: ignore[arg-type]
    assert (tmp_path / "cut" / "samples.jsonl").read_bytes() == b"".join(whole)
    assert backend.asked < 40


def test_a_trained_checkpoint_is_judged_on_other_prompts_and_refused_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(request(tmp_path, out="base", steps=2))
    asked = reward_request(tmp_path, tmp_path / "base", steps=20, peak=0.3)
    run(asked)
    seen = load_pairs(asked.data).rows
    trained = set(json.loads((asked.out / PROMPTS).read_text()))
    held_out = [one for one in seen if one.prompt.id not in trained]
    assert trained and held_out and trained < {one.prompt.id for one in seen}
    with pytest.raises(EvidenceError, match=rf"was trained on {len(trained)} of the {len(seen) // 2} prompts"):
        RewardSuite.load(asked.data[0]).open_backend(str(asked.out), "cpu")

    fresh = RewardSuite.load(write(tmp_path, [*held_out, *(pair(k, "ri toto toto", "ri neka") for k in range(20))]))
    backend, notes = fresh.open_backend(str(asked.out), "cpu")
    found = run_suite(fresh, backend, tmp_path / "out")  # type: ignore[arg-type]
    assert notes == []
    assert found.metrics["response_blind"].estimate == 0.5
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    one = held_out[0]
    row = next(row for row in rows if row["item_id"] == one.id)
    direct = load_reward(asked.out).score([one.prompt.messages] * 2, [one.chosen, one.rejected])
    assert row["choices"] == [one.chosen, one.rejected]
    assert row["choice_logprobs"][:2] == pytest.approx(direct, abs=1e-5)

    whole = load_reward(asked.out)
    monkeypatch.setattr("kat.model.reward.load_reward", lambda model, device: replace(whole, folder=tmp_path / "old"))
    assert "does not say which prompts" in fresh.open_backend("old", "cpu")[1][0]
