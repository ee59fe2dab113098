"""Two published sets of responses, audited: figures that others computed, and the uncertainty they left out."""

import pytest

from kat.audit.report import audit
from kat.evals.recorded import read_responses, run_recorded
from kat.evals.scienceqa import ScienceQA


def test_gpt3_against_llava_on_the_text_only_questions(real_data, tmp_path):
    """Paired standard errors on 2,224 items, computed apart from kat: .0090 by item and .0260 by lecture."""
    suite = ScienceQA.load(real_data / "scienceqa_test.jsonl.gz")
    for name, file in (("gpt3", "scienceqa_outputs_gpt3_cot"), ("llava", "scienceqa_outputs_llava13b_v1_3")):
        recorded = read_responses(real_data / f"{file}.jsonl.gz", suite)
        run_recorded(suite, recorded, tmp_path / name, model=name)
    found = audit(tmp_path / "gpt3", tmp_path / "llava", tmp_path / "out")
    assert found.n_items == 2224
    by_item, by_cluster = found.primary.by_item, found.primary.by_cluster
    assert (by_item.high - by_item.low) / 2 / 1.96 == pytest.approx(0.0090, abs=0.0002)
    assert (by_cluster.high - by_cluster.low) / 2 / 1.97 == pytest.approx(0.0260, abs=0.0012)
    assert (by_cluster.high - by_cluster.low) / 2 >= 0.04
    assert found.verdict.colour == "better"
    assert found.prompts.startswith("unrecorded for 2,224")
    chance = next(one for one in found.baselines if one.name == "chance")
    assert chance.score.estimate == pytest.approx(0.441, abs=5e-4)
