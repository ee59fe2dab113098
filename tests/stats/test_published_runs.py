"""Two published runs on ScienceQA's test split (figures only): GPT-3 (2-shot, chain of thought) and LLaVA-13B v1.3."""

import gzip
import json

import numpy as np
import pytest
import statsmodels.api as sm

from kat.data.letters import extract
from kat.data.scienceqa import load_scienceqa
from kat.stats.clustered import fit_clusters
from kat.stats.compare import compare_paired
from kat.stats.missing import sensitivity


@pytest.fixture(scope="module")
def published(real_data):
    """Scores and parse marks of both models in the order of the items, lecture labels, which items are text only."""
    items = load_scienceqa(real_data, "test", text_only=False).rows
    arms = []
    for name in ("gpt3_cot", "llava13b_v1_3"):
        with gzip.open(real_data / f"scienceqa_outputs_{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            responses = {row["id"]: row["response"] for row in map(json.loads, lines)}
        letters = [extract(responses[item.id], item.choices).letter for item in items]
        right = np.array([letter == item.letter for letter, item in zip(letters, items, strict=True)], dtype=float)
        arms.append((right, np.array([letter is not None for letter in letters], dtype=float)))
    lectures = np.unique([item.cluster for item in items], return_inverse=True)[1]
    return *arms, lectures, np.array([not item.has_image for item in items])


def test_accuracies_with_unparsed_counted_wrong(published):
    (gpt3, parsed_gpt3), (llava, parsed_llava), _, _ = published
    assert gpt3.mean() == pytest.approx(0.7227, abs=0.0003)  # 75.17 % as published counts 123 lucky guesses
    assert (1 - parsed_gpt3).sum() == 243
    assert llava.mean() == pytest.approx(0.9109, abs=5e-5)
    assert (1 - parsed_llava).sum() == 4
    result = sensitivity(gpt3, parsed_gpt3, llava, parsed_llava)
    assert (result.low, result.high) == pytest.approx((0.1306, 0.1889), abs=5e-5)
    assert result.sign_identified
    assert result.tipping is None


def test_lectures_widen_the_text_only_comparison_threefold(published):
    (gpt3, _), (llava, _), lectures, text_only = published
    a, b, groups = gpt3[text_only], llava[text_only], lectures[text_only]
    d = b - a
    assert d.std(ddof=1) / np.sqrt(d.size) == pytest.approx(0.0090, abs=5e-5)
    groups = np.unique(groups, return_inverse=True)[1]
    fit = fit_clusters(d, groups, (1.0, -1.0), 200)
    stata = sm.OLS(d, np.ones(d.size)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert stata.bse[0] < fit.error == pytest.approx(0.0264, abs=5e-5)
    assert fit.error == pytest.approx(stata.bse[0], rel=0.02)
    result = compare_paired(a, b, "binary", groups)
    assert result.direction == "better"
    assert (result.difference.high - result.difference.low) / 2 >= 0.04
    narrow = result.if_independent.difference
    assert (narrow.high - narrow.low) / 2 == pytest.approx(0.0177, abs=5e-5)
