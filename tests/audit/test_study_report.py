"""The study's report: words that follow verdict and direction, a page that is whole, safe and self-contained."""

import json
import re

import pytest
from scipy import stats

from kat.audit.study import load_study, make_study
from kat.audit.study_page import render_study_html, render_study_md
from kat.audit.study_report import plan_sentence, report
from kat.density.build import build_density
from kat.density.folder import read_density
from kat.stats.study_power import Noise, study_power
from tests.audit.study_worlds import make_plan, make_results, write_study
from tests.density.test_folder import WordEmbedder, prompts
from tests.test_cli import kat


def judged(seeds=5, plan=None, **world):
    plan = plan or make_plan(seeds=seeds)
    return report(make_study(plan, make_results(plan, **world)))


def contrast(found, metric, against):
    arms = next(one for one in found.metrics if one.name == metric).contrasts
    return next(one for one in arms if one.against == against)


def test_supported_names_every_part_with_its_figures():
    found = judged(gain=0.8)
    assert found.word == "supported" and all(part.holds for part in found.parts)
    for word in ("higher vendi than uniform", "higher vendi than placebo", "not inferior to uniform in reward"):
        assert word in found.sentence
    by_arm = {one.arm: list(one.values.values()) for one in found.metrics[0].arms}
    a, b = by_arm["uniform"], by_arm["density"]
    oracle = stats.ttest_ind(b, a, equal_var=False)
    one = contrast(found, "vendi", "uniform")
    assert (one.low, one.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    assert one.welch_p == pytest.approx(oracle.pvalue)


def test_words_follow_the_direction_and_beside_is_not_tested():
    found = judged(gain=0.8)
    lower = contrast(found, "compression_ratio", "uniform")
    assert lower.difference < 0 and lower.word == "better" and lower.p_adjusted >= lower.permutation_p
    assert contrast(found, "kl", "uniform").permutation_p is None and contrast(found, "kl", "uniform").word == ""


def test_undecided_says_how_many_seeds_a_new_study_needs_and_the_number_is_right():
    found = judged(gain=0.2, seed=3)
    assert found.word == "undecided" and "a new study needs" in found.sentence and "do not count" in found.sentence
    sds = {(m.name, a.arm): a.sd for m in found.metrics for a in m.arms}
    noise = Noise(
        tuple(sds["vendi", arm] for arm in ("density", "uniform", "placebo")),
        tuple(sds["reward", arm] for arm in ("density", "uniform")),
    )
    needed = found.seeds_needed
    assert study_power(needed, 0.3, noise, 0.1) >= 0.8 > study_power(needed - 1, 0.3, noise, 0.1)
    assert f"needs {needed} seeds an arm" in found.sentence


def test_not_supported_is_said_with_what_is_excluded_and_never_for_mere_lack_of_evidence():
    found = judged(gain=-0.3)
    assert found.word == "not supported" and "is excluded" in found.sentence and found.seeds_needed is None
    worse = judged(gain=0.8, reward_gain=-0.5)
    assert worse.word == "not supported" and "worse than uniform by more than the margin" in worse.sentence
    tiny = make_plan(seeds=5, primary={"metric": "vendi", "higher_is": "better", "smallest_effect": 0.02})
    for seed in range(3):  # an interval that is wide against what is of interest excludes nothing
        assert judged(plan=tiny, gain=0.0, seed=seed).word == "undecided"


def test_a_diverged_run_is_named_and_a_wreck_of_a_study_still_has_words():
    found = judged(gain=0.8, diverged={("placebo", 2)})
    assert any(
        "placebo: 1 of 5 runs diverged (seed 2: the policy's entropy fell to 0)" in q for q in found.qualifications
    )
    assert contrast(found, "vendi", "placebo").on_ranks
    wreck = judged(gain=0.8, diverged={("uniform", seed) for seed in range(5)})
    assert wreck.word == "undecided" and "Too few runs finished" in wreck.sentence
    assert "all diverged" in render_study_html(wreck)


def test_before_the_study_what_it_can_find_is_said():
    said = plan_sentence(make_plan(seeds=5))
    assert said.startswith("3 arms × 5 seeds = 15 runs.") and "NOT within reach" in said
    easy = make_plan(seeds=5, primary={"metric": "vendi", "higher_is": "better", "smallest_effect": 3, "sd": 0.2})
    assert "is within reach" in plan_sentence(easy)
    noisy = make_plan(seeds=5, guard={"metric": "reward", "margin": 0.1, "against": ["uniform"], "sd": 0.4})
    assert "no gain, however large" in plan_sentence(noisy)
    blind = make_plan(primary={"metric": "vendi", "higher_is": "better", "smallest_effect": 1})
    assert "No noise is declared" in plan_sentence(blind)


def test_a_real_but_small_gain_is_called_small():
    plan = make_plan(seeds=6, primary={"metric": "vendi", "higher_is": "better", "smallest_effect": 3.0, "sd": 0.2})
    found = judged(plan=plan, gain=0.8)
    assert found.word == "supported"
    assert sum("smaller than the smallest one of interest" in line for line in found.qualifications) == 2


def test_the_page_is_self_contained_and_hostile_text_stays_text():
    plan = make_plan(seeds=4, name="<script>alert(1)</script>", settings={"window": "<img src=x onerror=alert(1)>"})
    found = judged(plan=plan, diverged={("density", 0)})
    html, md = render_study_html(found), render_study_md(found)
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html
    assert not re.search(r"(src|href)=\"(?!#)", html)
    assert "\\<img" in md and found.plan_hash in md
    assert html.count('class="seed"') == 2 * 11  # two figures, 12 runs of which one diverged
    assert "NaN" not in html and "nan" not in md


def test_the_heaviest_prompts_stand_in_the_report(tmp_path, capsys):
    folder = tmp_path / "density"
    build_density(prompts(60), WordEmbedder(), folder, k=3, dose=0.1)
    density = read_density(folder)
    study = write_study(tmp_path / "study", make_plan(seeds=4), make_results(make_plan(seeds=4)))
    code, out, err = kat("eval", "grpo-significance", study, "--density", folder, capsys=capsys)
    assert code == 0, err
    written = json.loads((study / "report" / "study.json").read_text())
    first, most = written["heaviest"][0]["text"], density.weights.max()
    assert first in [row.text for row, weight in zip(density.rows, density.weights, strict=True) if weight == most]
    assert len(written["heaviest"]) == 50
    assert written["heaviest"][0]["times_uniform"] == pytest.approx(60 * most)
    assert written["plan_hash"] == load_study(study).plan_hash and written["word"].upper() in out
    assert all(first in (study / "report" / name).read_text() for name in ("study.md", "study.html"))
    code, _, err = kat("eval", "grpo-significance", study, "--density", tmp_path, capsys=capsys)
    assert code == 2 and "kat density build" in err


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    code, _, err = kat("eval", "grpo-significance", capsys=capsys)
    assert code == 2 and "name the folder of one study" in err
    code, _, err = kat("eval", "grpo-significance", tmp_path, capsys=capsys)
    assert code == 2 and err.count("\n") == 1
    study = write_study(tmp_path / "study", make_plan(seeds=4), make_results(make_plan(seeds=4))[:-1])
    code, _, err = kat("eval", "grpo-significance", study, capsys=capsys)
    assert code == 4 and "density seed 3" in err and err.count("\n") == 1 and not (study / "report").exists()
