"""A study's files: what is refused before and after the runs, and that they judge as the objects do."""

import json

import numpy as np
import pytest

from benchmarks.study_verdicts import MARGIN, Scenario, draw_results, plan, printed_mde, put_between, words
from kat.audit.study import judge_study, load_plan, load_study, make_study, write_preregistration
from kat.audit.study_schema import StudyResult
from kat.errors import EvidenceError, UsageError
from tests.audit.study_worlds import make_plan, make_results, write_study


def test_files_judge_exactly_as_the_objects_that_the_simulation_makes(tmp_path):
    rough = Scenario(
        "rough", diversity=(0, 0, 1.6), spread=(1, 0.5, 2), diverges=(0.1, 0.05, 0.1), reward=(0, 0, -MARGIN / 4)
    )
    rng, seen = np.random.default_rng(0), set()
    for number in range(12):
        declared = plan(rough.seeds)
        results = draw_results(rough, declared.hash(), rng)
        folder = write_study(tmp_path / str(number), declared, results)
        read = load_study(folder)
        assert read.results == make_study(declared, results).results
        assert judge_study(read) == judge_study(make_study(declared, results))
        seen.add(judge_study(read).word)
    assert len(seen) >= 2  # not the same word always


def test_a_design_that_cannot_reach_significance_is_refused_before_anything_is_written(tmp_path):
    for changes, word in (
        ({"seeds": 3}, "3 seeds an arm; fewer than 4 can't reach p = 0.05 .* 3: 0.1"),
        ({"seeds": 4, "alpha": 0.01}, "4 seeds an arm; fewer than 5 can't reach p = 0.01 .* 4: 0.029"),
    ):
        with pytest.raises(UsageError, match=word):
            write_preregistration(tmp_path / "s", make_plan(**changes))
    assert not (tmp_path / "s").exists()


def test_a_plan_is_not_changed(tmp_path):
    first = write_preregistration(tmp_path, make_plan())
    assert write_preregistration(tmp_path, make_plan()) == first  # the same again resumes
    with pytest.raises(UsageError, match="a plan is not changed"):
        write_preregistration(tmp_path, make_plan(seeds=9))
    folder = write_study(tmp_path / "t", make_plan(), make_results(make_plan()))
    path = folder / "preregistration.json"
    path.write_text(path.read_text().replace('"smallest_effect": 0.3', '"smallest_effect": 0.2'))
    with pytest.raises(EvidenceError, match="pre-registration was changed"):
        load_study(folder)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"treatment": "other"}, "is no arm"),
        ({"comparisons": ["density"]}, "other than the treatment"),
        ({"seeds": [0, 0, 1, 2]}, "different numbers"),
        ({"secondary": {"vendi": "better"}}, "two roles"),
        ({"arms": {a: {"sampling": a, "lr": i} for i, a in enumerate(("uniform", "placebo", "density"))}}, "'lr'"),
        ({"arms": {a: {"sampling": "uniform"} for a in ("uniform", "placebo", "density")}}, "treatment is empty"),
        ({"arms": {"a/b": {}, "uniform": {}, "placebo": {}, "density": {}}}, "letters"),
        ({"primary": {"metric": "vendi", "higher_is": "better", "smallest_effect": 0}}, "greater than 0"),
        ({"guard": {"metric": "reward", "margin": 0.1, "against": []}}, "guard.against"),
    ],
)
def test_a_plan_that_makes_no_study_is_refused(tmp_path, changes, word):
    value = make_plan().model_dump(by_alias=True, mode="json") | changes
    (tmp_path / "p.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match=word) as error:
        load_plan(tmp_path / "p.json")
    assert "\n" not in str(error.value)


def test_a_missing_seed_is_invalid_and_a_diverged_one_is_an_outcome():
    declared = make_plan()
    results = make_results(declared, diverged={("uniform", 3)})
    assert make_study(declared, results).runs("uniform", "vendi").n_diverged == 1
    with pytest.raises(EvidenceError, match=r"1 of 24 runs missing \(uniform seed 3\)"):
        make_study(declared, [one for one in results if (one.arm, one.seed) != ("uniform", 3)])


def test_results_that_are_no_evidence_are_refused(tmp_path):
    declared, results = make_plan(), make_results(make_plan())
    for change, word in (
        ({"seed": 77}, "not declared"),
        ({"preregistration": "0" * 64}, "was changed"),
        ({"metrics": {"vendi": 1.0, "reward": 1.0}}, "lacks the declared metric distinct_2"),
        ({"model_hash": results[5].model_hash}, "same weights"),
    ):
        with pytest.raises(EvidenceError, match=word):
            make_study(declared, [results[0].model_copy(update=change), *results[1:]])
    with pytest.raises(EvidenceError, match="there twice"):
        make_study(declared, [*results, results[0]])
    folder = write_study(tmp_path, declared, results)
    path = folder / "results" / "density-seed-2.json"
    value = json.loads(path.read_text())
    for change, word in (
        ({"metrics": value["metrics"] | {"vendi": float("nan")}}, "metrics.vendi: Input should be a finite number"),
        ({"outcome": "diverged", "metrics": {}}, "must say how"),
        ({"outcome": "diverged", "reason": "x"}, "has no metrics"),
        ({"schema": "kat.study-result/0"}, "this kat reads"),
        ({"seed": 3}, "moved or copied"),
    ):
        path.write_text(json.dumps(value | change))
        with pytest.raises(EvidenceError, match=word):
            load_study(folder)


def test_a_folder_that_is_no_study(tmp_path):
    with pytest.raises(UsageError, match="name the folder of a study"):
        load_study(tmp_path)


def test_a_diverged_result_needs_its_reason():
    with pytest.raises(ValueError, match="must say how"):
        StudyResult(
            schema="kat.study-result/1", preregistration="0" * 64, arm="density", seed=0, outcome="diverged", reason=" "
        )


def test_the_table_goes_between_its_markers_and_nothing_else_changes():
    once = put_between("# Results\n\ntext\n", ["a"])
    assert put_between(once, ["b"]) == once.replace("\na\n", "\nb\n") and once.startswith("# Results\n\ntext\n")


@pytest.mark.slow
def test_the_verdict_keeps_its_word():
    """20,000 studies a row stand in docs/results.md; here fewer, with their sampling error."""
    nothing = Scenario("", spread=(1.0, 0.5, 2.0), diverges=(0.05, 0.02, 0.05), missing=0.002)
    assert words(nothing, 2_000)["supported"] <= 0.05
    assert words(Scenario("", diversity=(0, 0, printed_mde(8))), 1_000)["supported"] >= 0.75
    worse = Scenario("", seeds=5, diversity=(0, 0, 9), reward=(0, 0, -MARGIN))
    assert words(worse, 2_000)["supported"] <= 0.05 + 2 * 0.005
