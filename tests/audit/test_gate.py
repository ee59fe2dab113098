"""The merge gate on evidence made of nothing: every rule, every way to cheat it that is known, every exit code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kat.audit.gate import gate
from kat.audit.gate_out import junit, summary
from kat.audit.gate_schema import GateResult, worst
from kat.audit.requirements import check_families, check_lanes, parse_lanes
from kat.cli import main
from kat.errors import UsageError
from kat.evals.choices import Choices
from kat.evals.protocol import DataSource
from kat.evals.runner import run_suite
from kat.evals.scienceqa import ScienceQA
from tests.audit.worlds import consistent, edit_results, edit_rows, run
from tests.evals import make_items
from tests.evals.fake_backend import FakeBackend, knowing

SOURCE = DataSource("made up", "d" * 64)
ITEMS = make_items.items(300)
POLICY = 'claim = "checkpoint"\nsuite = "scienceqa"\nmargin = 0.05\n'
RECIPE = POLICY.replace("checkpoint", "recipe")


def model(share: float, name: str, unparsed: float = 0.0) -> FakeBackend:
    return knowing(ITEMS, share, name=name, unparsed=unparsed)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a knows .6, twin is another run of a's weights, much worse knows .2, like a answers as a with other weights."""
    folder = tmp_path_factory.mktemp("gate")
    answers = model(0.6, "a")
    run(ITEMS, answers, folder / "a", SOURCE)
    run(ITEMS, replace(answers), folder / "twin", SOURCE)
    run(ITEMS, replace(answers, identity="2" * 64), folder / "like", SOURCE)
    run(ITEMS, model(0.1, "worse"), folder / "worse", SOURCE)
    run(ITEMS, model(0.6, "other"), folder / "other", SOURCE)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "gate.toml").write_text(POLICY)
    return tmp_path


def judge(world: Path, a: str = "a", b: str = "other", policy: str | None = None, **options: object) -> GateResult:
    if policy is not None:
        (world / "gate.toml").write_text(policy)
    return gate(str(world / a), str(world / b), world / "gate.toml", home=world / "home", **options)  # type: ignore[arg-type]


# claim = checkpoint


def test_the_four_outcomes_and_their_exit_codes(world: Path) -> None:
    assert (judge(world, b="like").outcome, judge(world, b="like").exit_code) == ("PASS", 0)
    assert (judge(world, b="worse").outcome, judge(world, b="worse").exit_code) == ("FAIL", 1)
    found = judge(world, b="other")
    assert (found.outcome, found.exit_code) == ("INCONCLUSIVE", 3)
    assert "items let two equal models pass" in found.sentence
    assert (judge(world, b="a").outcome, judge(world, b="a").exit_code) == ("INVALID", 4)
    assert [worst(["PASS", one]) for one in ("INVALID", "FAIL", "INCONCLUSIVE")] == ["INVALID", "FAIL", "INCONCLUSIVE"]
    assert worst(["INCONCLUSIVE", "FAIL", "INVALID"]) == "INVALID" and worst(["INCONCLUSIVE", "FAIL"]) == "FAIL"


def test_zero_discordant_pairs_of_other_weights_pass_by_their_interval_only(world: Path) -> None:
    found = judge(world, b="like")
    figures = found.opponents[0].figures
    assert figures is not None and not found.opponents[0].bit_identical
    assert figures.difference == 0 and figures.low < 0 < figures.high
    assert judge(world, b="like", policy=POLICY.replace("0.05", "0.01")).outcome == "INCONCLUSIVE"


def test_equal_bits_of_two_runs_pass(world: Path) -> None:
    found = judge(world, b="twin")
    assert found.outcome == "PASS" and found.opponents[0].bit_identical and "Bit-identical" in found.sentence


def test_equal_bits_that_score_otherwise_are_no_evidence(world: Path) -> None:
    def spoil(rows: list[dict]) -> list[dict]:
        row = next(row for row in rows if row["score"] == 0)
        wanted = row["expected"]
        row.update(response=f"The correct answer is {wanted}.", extracted=wanted, score=1.0, span=None)
        return rows

    edit_rows(world / "twin", spoil)
    consistent(world / "twin")
    found = judge(world, b="twin")
    assert found.outcome == "INVALID" and "name the same weights" in found.sentence


def test_a_copy_of_a_run_is_the_run_itself(world: Path) -> None:
    shutil.copytree(world / "a", world / "copy")
    found = judge(world, b="copy")
    assert found.outcome == "INVALID" and "compared with itself" in found.sentence


def test_permuted_questions_under_the_same_ids(world: Path) -> None:
    forged = [replace(ITEMS[(i + 1) % 300], id=ITEMS[i].id) for i in range(300)]
    run(forged, knowing(forged, 0.9, name="forged"), world / "forged", SOURCE)
    found = judge(world, b="forged")
    assert found.exit_code == 4 and "stand for one question" in found.sentence


def test_wrong_items_left_out(world: Path) -> None:
    edit_rows(world / "other", lambda rows: [row for row in rows if row["score"] == 1])
    assert "rows were removed or added" in judge(world).sentence
    consistent(world / "other")
    found = judge(world)
    assert found.exit_code == 4 and "are missing in" in found.sentence


def test_wrong_items_left_out_on_both_sides_show_in_the_data(world: Path) -> None:
    data = make_items.write(world / "data.jsonl", 300)
    suite = ScienceQA.load(data)
    for name, share in (("x", 0.5), ("y", 0.9)):
        run_suite(suite, knowing(suite.items(), share, name=name), world / name)
        gone = {item.hash for item in suite.items()[:40]}
        edit_rows(world / name, lambda rows, gone=gone: [row for row in rows if row["item_hash"] not in gone])
        consistent(world / name)
    found = judge(world, "x", "y")
    assert found.exit_code == 4 and "rows were removed" in found.sentence


def test_a_nan_is_no_number(world: Path) -> None:
    edit_results(world / "other", metrics=lambda old: old | {"accuracy": old["accuracy"] | {"estimate": float("nan")}})
    assert judge(world).exit_code == 4


def test_all_unparsed_on_both_sides_compares_nothing(world: Path) -> None:
    run(ITEMS, model(0.5, "mute", unparsed=1.0), world / "mute", SOURCE)
    run(ITEMS, model(0.5, "mute too", unparsed=1.0), world / "mute too", SOURCE)
    found = judge(world, "mute", "mute too")
    assert found.exit_code == 4 and "no readable answer to any of 300 items" in found.sentence
    assert judge(world, "a", "mute").outcome == "FAIL"
    assert judge(world, "mute", "a").outcome == "INVALID"


def test_one_item(world: Path) -> None:
    for name, share in (("one", 1.0), ("two", 0.0)):
        run(ITEMS[:1], knowing(ITEMS[:1], share, name=name), world / name, SOURCE)
    assert judge(world, "one", "two").exit_code == 3


def test_prompts_that_differ_or_are_unrecorded(world: Path) -> None:
    edit_rows(world / "like", lambda rows: [row | {"prompt_hash": "e" * 64} for row in rows])
    found = judge(world, b="like")
    assert found.exit_code == 4 and "the prompts of 300 rows differ" in found.sentence
    edit_rows(world / "like", lambda rows: [row | {"prompt_hash": None} for row in rows])
    assert "were not recorded" in judge(world, b="like").sentence
    assert judge(world, b="like", policy=POLICY + "allow_different_prompts = true\n").exit_code == 0


def test_the_suite_and_the_measure_are_the_policys(world: Path) -> None:
    found = judge(world, policy=POLICY.replace("scienceqa", "choices"))
    assert found.exit_code == 4 and "the policy asks for choices" in found.sentence
    found = judge(world, policy=POLICY + 'measure = "knowledge"\n')
    assert found.exit_code == 4 and "generates text" in found.sentence
    for name, identity in (("c", "3" * 64), ("d", "4" * 64)):
        run_suite(
            Choices(ITEMS, SOURCE), FakeBackend(logprob=lambda text, one: -ord(one), identity=identity), world / name
        )
    knowledge = POLICY.replace("scienceqa", "choices")
    assert judge(world, "c", "d", knowledge + 'measure = "knowledge"\n').exit_code == 0
    assert "forces a choice" in judge(world, "c", "d", knowledge).sentence


def test_clusters_gate_here_too(world: Path) -> None:
    items = make_items.items(300, lectures=10)
    for name in ("p", "q"):
        run(items, knowing(items, 0.6, name=name), world / name, SOURCE)
    figures = judge(world, "p", "q").opponents[0].figures
    assert figures is not None and (figures.unit, figures.n_units) == ("cluster", 10)


def test_the_champion_is_a_second_opponent(world: Path) -> None:
    (world / "other").rename(world / "best")
    found = judge(world, "worse", "like", POLICY + 'champion = "best"\n')
    assert [one.role for one in found.opponents] == ["main", "champion"]
    assert [one.outcome for one in found.opponents] == ["PASS", "INCONCLUSIVE"]
    assert found.exit_code == 3 and found.sentence.startswith("INCONCLUSIVE. Against the champion: ")


# claim = recipe


def seeds(folder: Path, rates: list[float], tag: str, first: int = 0) -> Path:
    for seed, rate in enumerate(rates, first):
        run(ITEMS, model(rate, f"{tag}-{seed}"), folder / f"seed-{seed}", SOURCE)
    return folder


def test_a_recipe_is_judged_over_seeds(world: Path) -> None:
    seeds(world / "main", [0.6] * 5, "main")
    seeds(world / "branch", [0.1] * 5, "branch")
    found = judge(world, "main", "branch", RECIPE)
    assert found.outcome == "FAIL"
    figures = found.opponents[0].figures
    assert figures is not None and (figures.unit, figures.n_units) == ("seed", 10)
    assert found.opponents[0].scores_a is not None and list(found.opponents[0].scores_a) == [0, 1, 2, 3, 4]
    assert judge(world, "branch", "main", RECIPE).outcome == "PASS"


def test_few_seeds_never_pass_unless_their_bits_are_equal(world: Path) -> None:
    seeds(world / "main", [0.3] * 5, "main")
    seeds(world / "one", [0.9], "one")
    seeds(world / "four", [0.9] * 4, "four")
    for name in ("one", "four"):
        found = judge(world, "main", name, RECIPE)
        assert found.exit_code == 3 and "fewer than 5 seeds a side" in found.sentence
    assert judge(world, "a", "other", RECIPE).exit_code == 3
    run(ITEMS, model(0.3, "main-0"), world / "same" / "seed-0", SOURCE)
    found = judge(world, "main", "same", RECIPE)
    assert found.exit_code == 0 and "for seed 0" in found.sentence
    run(ITEMS, model(0.3, "main-4"), world / "moved" / "seed-0", SOURCE)
    assert judge(world, "main", "moved", RECIPE).exit_code == 3
    seeds(world / "part", [0.3], "main")
    seeds(world / "part", [0.3], "part", first=1)
    assert judge(world, "main", "part", RECIPE).exit_code == 3


def test_runs_of_a_recipe_are_all_there_and_each_its_own(world: Path) -> None:
    seeds(world / "main", [0.6] * 5, "main")
    branch = seeds(world / "branch", [0.6] * 6, "branch")
    shutil.move(branch / "seed-3", world / "aside")
    assert "seed 3 is missing" in judge(world, "main", "branch", RECIPE).sentence
    (branch / "seed-3").mkdir()
    assert "a run that failed is an outcome" in judge(world, "main", "branch", RECIPE).sentence
    (branch / "seed-3").rmdir()
    shutil.copytree(branch / "seed-2", branch / "seed-3")
    assert "are one run" in judge(world, "main", "branch", RECIPE).sentence
    edit_results(branch / "seed-3", run_id="0" * 32)
    found = judge(world, "main", "branch", RECIPE)
    assert found.exit_code == 4 and "have the same weights, bit for bit" in found.sentence
    shutil.rmtree(branch / "seed-3")
    shutil.copytree(world / "main" / "seed-1", branch / "seed-3")
    assert "compared with itself" in judge(world, "main", "branch", RECIPE).sentence


def test_every_run_must_pair(world: Path) -> None:
    seeds(world / "main", [0.6] * 5, "main")
    branch = seeds(world / "branch", [0.6] * 5, "branch")
    edit_rows(branch / "seed-4", lambda rows: rows[:-1])
    consistent(branch / "seed-4")
    found = judge(world, "main", "branch", RECIPE)
    assert found.exit_code == 4 and "are missing in" in found.sentence


def test_runs_without_recorded_seeds_match_by_order_and_say_so(world: Path) -> None:
    for arm in ("main", "branch"):
        for name in "abcde":
            run(ITEMS, model(0.6, f"{arm}-{name}"), world / arm / name, SOURCE)
    found = judge(world, "main", "branch", RECIPE)
    assert found.outcome in ("PASS", "INCONCLUSIVE") and "matched by their order" in found.opponents[0].notes[0]


def test_noise_says_how_many_seeds_decide(world: Path) -> None:
    from kat.pipeline.noise import summarise
    from kat.runs.files import write_json
    from kat.runs.schemas import Results

    seeds(world / "main", [0.6] * 5, "main")
    seeds(world / "one", [0.6], "one")
    results = {
        seed: Results.model_validate(json.loads((world / "main" / f"seed-{seed}" / "results.json").read_text()))
        for seed in range(5)
    }
    noise = summarise("made-up", "evals/sft", results, [])
    write_json(world / "noise.json", noise.model_dump(by_alias=True, mode="json"))
    found = judge(world, "main", "one", RECIPE.replace("0.05", "0.01") + 'noise = "noise.json"\n')
    from kat.stats.power import seeds_for_difference

    assert noise.sd is not None and seeds_for_difference(0.01, noise.sd) > 5
    assert f"About {seeds_for_difference(0.01, noise.sd)} seeds a side decide" in found.sentence
    edit = json.loads((world / "noise.json").read_text()) | {"sd": 0.0001}
    (world / "noise.json").write_text(json.dumps(edit))
    with pytest.raises(Exception, match="do not follow from its scores"):
        judge(world, "main", "one")


# What else is required


def verified(world: Path, **outcomes: str) -> Path:
    findings = [
        {"check": f"{family}_check", "family": family, "outcome": outcome, "message": "seen"}
        for family, outcome in outcomes.items()
    ]
    names = ("PASS", "FAIL", "XFAIL", "XPASS", "SKIP", "VACUOUS", "ERROR")
    counts = {name: sum(outcome == name for outcome in outcomes.values()) for name in names}
    path = world / "verify.json"
    content = {
        "schema": "kat.verify/1", "subject": "native", "seed": 0, "level": 3, "exit_code": 0, "coverage": 1.0,
        "counts": counts, "findings": findings,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("PASS", 0), ("FAIL", 1), ("XPASS", 1), ("VACUOUS", 4), ("ERROR", 4), ("SKIP", 3), ("XFAIL", 3)],
)
def test_a_required_family(world: Path, outcome: str, code: int) -> None:
    policy = POLICY + 'verify = ["loss"]\n'
    file = verified(world, loss=outcome, cache="PASS")
    assert judge(world, b="twin", policy=policy, verify=file).exit_code == code


def test_a_required_family_without_a_file_or_in_an_edited_one(world: Path) -> None:
    policy = POLICY + 'verify = ["loss"]\n'
    found = judge(world, b="twin", policy=policy)
    assert found.exit_code == 3 and "kat verify did not run" in found.sentence
    assert judge(world, b="twin", policy=policy, verify=verified(world, cache="PASS")).exit_code == 3
    file = verified(world, loss="FAIL")
    file.write_text(file.read_text().replace('"outcome": "FAIL"', '"outcome": "PASS"'))
    assert judge(world, b="twin", policy=policy, verify=file).exit_code == 4


def test_a_family_that_is_not_required_is_only_said(world: Path) -> None:
    found = check_families(["loss"], verified(world, loss="PASS", cache="FAIL"))
    assert [(one.outcome, one.required) for one in found] == [("PASS", True), ("FAIL", False)]
    policy = POLICY + 'verify = ["loss"]\n'
    assert judge(world, b="twin", policy=policy, verify=world / "verify.json").exit_code == 0


def test_a_subject_that_could_not_be_made_speaks_for_every_family(world: Path) -> None:
    found = check_families(["loss"], verified(world, **{"": "ERROR"}))
    assert [one.outcome for one in found] == ["INVALID"]


LANES = {
    "passed": ("<testsuite><testcase name='a'/></testsuite>", "PASS"),
    "nested": ("<testsuites><testsuite><testcase name='a'/></testsuite></testsuites>", "PASS"),
    "failed": ("<testsuite failures='0'><testcase name='a'><failure/></testcase></testsuite>", "FAIL"),
    "error": ("<testsuite><testcase name='a'/><testcase name='b'><error/></testcase></testsuite>", "FAIL"),
    "skipped": ("<testsuite><testcase name='a'><skipped/></testcase></testsuite>", "INCONCLUSIVE"),
    "empty": ("<testsuite tests='9'/>", "INCONCLUSIVE"),
    "cut": ("<testsuite><testcase", "INVALID"),
}


@pytest.mark.parametrize("name", LANES)
def test_a_lane_is_counted_from_its_cases(tmp_path: Path, name: str) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(LANES[name][0])
    found = check_lanes(["gpu"], {"gpu": path})
    assert [(one.outcome, one.required) for one in found] == [(LANES[name][1], True)]
    assert not check_lanes([], {"gpu": path})[0].required


def test_a_required_lane_that_did_not_run(world: Path) -> None:
    policy = POLICY + 'lanes = ["gpu"]\n'
    assert judge(world, b="twin", policy=policy).exit_code == 3
    assert judge(world, b="twin", policy=policy, lanes={"gpu": world / "none.xml"}).exit_code == 3
    (world / "junit.xml").write_text(LANES["failed"][0])
    assert judge(world, b="twin", policy=policy, lanes={"gpu": world / "junit.xml"}).exit_code == 1
    found = judge(world, b="twin", policy=POLICY, lanes={"gpu": world / "none.xml"})
    assert found.exit_code == 0 and "(not required)" in found.conditions[0].sentence


@pytest.mark.parametrize("text", ["gpu", "=x", "gpu="])
def test_a_wrong_lane_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=FILE"):
        parse_lanes([text])


# Ledger


def test_attempts_are_counted_on_this_policy_and_data(world: Path) -> None:
    policy = POLICY + 'ledger = "attempts.jsonl"\n'
    assert judge(world, policy=policy).attempt == 1
    found = judge(world, b="worse")
    assert found.attempt == 2 and found.sentence.endswith("This is attempt 2 on this policy and data.")
    assert judge(world, policy=policy.replace("0.05", "0.06")).attempt == 1
    rows = [json.loads(line) for line in (world / "attempts.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["INCONCLUSIVE", "FAIL", rows[2]["outcome"]]
    assert rows[0]["previous"] is None and len({row["previous"] for row in rows}) == 3
    assert rows[0]["a"] != rows[0]["b"] and rows[0]["data_hash"] == rows[1]["data_hash"] == found.data_hash


@pytest.mark.parametrize("change", ["edit", "remove", "insert", "cut"])
def test_a_ledger_that_was_touched_is_refused(world: Path, change: str) -> None:
    policy = POLICY + 'ledger = "attempts.jsonl"\n'
    for _ in range(3):
        judge(world, b="twin", policy=policy)
    path = world / "attempts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "edit":
        lines[1] = lines[1].replace(b"PASS", b"FAIL")
    elif change == "remove":
        del lines[1]
    elif change == "insert":
        lines.insert(1, lines[0])
    else:
        lines[2] = lines[2][:-20]
    path.write_bytes(b"".join(lines))
    found = judge(world, b="twin")
    assert found.exit_code == 4 and "attempts.jsonl" in found.sentence
    assert path.read_bytes() == b"".join(lines)


# Rerun


@pytest.fixture
def checkpoint(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints x and y under home, and evaluations of them on a file; opening one gives its fake model."""
    data = make_items.write(world / "data.jsonl", 60)
    suite = ScienceQA.load(data)
    backends = {}
    for name in ("x", "y"):
        backend = knowing(suite.items(), 0.6, name=name)
        backend.protocol = {"name": "fake", "device": "cpu"}
        folder = world / "home" / "runs" / "r" / name
        folder.mkdir(parents=True)
        (folder / "kat.json").write_text(json.dumps({"identity": backend.identity}))
        backends[str(folder)] = backend
        run_suite(suite, backend, world / f"evals-{name}", model=f"r/{name}")
    monkeypatch.setattr("kat.model.backends.open_backend", lambda model, device="cpu": backends[str(model)])
    return world


def test_regenerated_items_verify_the_evidence(checkpoint: Path) -> None:
    found = judge(checkpoint, "evals-x", "evals-y", n_rerun=59)
    assert len(found.evidence) == 2 and all("verified: 59 items of 60" in one for one in found.evidence)
    assert all(
        "verified: 60 items of 60" in one for one in judge(checkpoint, "evals-x", "evals-y", n_rerun=99).evidence
    )


def test_a_forged_row_is_named(checkpoint: Path) -> None:
    def forge(rows: list[dict]) -> list[dict]:
        row = next(row for row in rows if row["score"] == 0)
        row.update(response=f"The answer is {row['expected']}.", extracted=row["expected"], score=1.0, span=None)
        return rows

    edit_rows(checkpoint / "evals-y", forge)
    consistent(checkpoint / "evals-y")
    assert judge(checkpoint, "evals-x", "evals-y").outcome != "INVALID"
    found = judge(checkpoint, "evals-x", "evals-y", n_rerun=60)
    assert found.exit_code == 4 and "evals-y: item q" in found.sentence and "generated again it is" in found.sentence


def test_an_item_that_only_its_batch_moves_is_no_forgery(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kat.audit import rerun as module

    honest = module.ask

    def moved(backend: FakeBackend, batch: list) -> list:
        if len(batch) > 1:
            return [list(reversed(honest(backend, batch)))[i] for i in range(len(batch))]
        return honest(backend, batch)

    monkeypatch.setattr(module, "ask", moved)
    assert judge(checkpoint, "evals-x", "evals-y", n_rerun=60).outcome != "INVALID"


def test_without_the_checkpoint_the_word_is_another(checkpoint: Path) -> None:
    assert all("consistent, not verified" in one for one in judge(checkpoint, "evals-x", "evals-y").evidence)
    shutil.rmtree(checkpoint / "home" / "runs" / "r" / "y")
    words = judge(checkpoint, "evals-x", "evals-y", n_rerun=5).evidence
    assert sorted("consistent, not verified: the checkpoint r/y is not here" in one for one in words) == [False, True]


# The command


def kat(*words: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_command_writes_what_it_says(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(world / "steps.md"))
    words = ("gate", world / "a", world / "worse", "--policy", world / "gate.toml")
    code, out, _ = kat(*words, "--json", world / "g.json", "--junit", world / "g.xml", capsys=capsys)
    assert code == 1 and out.startswith("FAIL. Worse, and not shown to be within the margin of 5 points")
    written = json.loads((world / "g.json").read_text())
    assert (written["schema"], written["outcome"], written["exit_code"]) == ("kat.gate/1", "FAIL", 1)
    assert GateResult.model_validate(written).outcome == "FAIL"
    assert "## kat gate: FAIL" in (world / "steps.md").read_text()
    suite = ElementTree.parse(world / "g.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")


def test_a_result_that_cannot_be_written_is_no_pass(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("gate", world / "a", world / "twin", "--policy", world / "gate.toml")
    assert kat(*words, capsys=capsys)[0] == 0
    (world / "file").write_text("")
    for option in ("--json", "--junit", "--summary"):
        code, _, err = kat(*words, option, world / "file" / "x", capsys=capsys)
        assert code == 2 and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [(("none", "a", "--policy", "gate.toml"), "none"), (("a", "twin", "--policy", "none.toml"), "no such file")],
)
def test_wrong_usage_is_exit_2(
    world: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(world)
    code, _, err = kat("gate", *words, capsys=capsys)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_a_models_name_is_no_markup(world: Path) -> None:
    (world / "like").rename(world / "<b>|x`")
    found = judge(world, "<b>|x`", "<b>|x`", POLICY)
    assert "<b>|x`" in found.sentence and found.exit_code == 4
    assert "\\<b\\>\\|x\\`" in summary(found) and "<b" not in summary(found).replace("\\<b", "")
    assert ElementTree.fromstring(junit(found)).get("errors") == "1"
