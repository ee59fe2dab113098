"""The runner, its outcomes and what it says, on a subject that shares no code with kat."""

import json
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kat.cli import main
from kat.verify import show
from kat.verify.checks import all_checks
from kat.verify.expected import Expected, read_expected
from kat.verify.runner import Report, catalogue, run_checks, select
from kat.verify.subject import Source, Traits, open_subject
from tests.verify import toy

ARGUMENTS = ["verify", "tests.verify.toy:make_raises", "-k", "future_tokens"]
ONE = [check for check in all_checks() if check.id == "future_tokens_have_no_effect"]


@pytest.fixture(autouse=True, scope="module")
def imported():
    """What torch imports on first use takes longer than the short limits below."""
    toy.make().train_step([toy.make().collate([([1, 2, 3], [0, 1, 1])])])


def run(make, **more) -> Report:
    return run_checks(Source("toy", "toy", make), ONE, **more)


@pytest.mark.parametrize(
    ("make", "outcome", "code", "word"),
    [
        (toy.make, "PASS", 0, ""),
        (toy.make_future, "FAIL", 1, "logits before position"),
        (toy.make_nan, "FAIL", 1, "NaN"),
        (toy.make_no_context, "VACUOUS", 4, "no context"),
        (toy.make_raises, "ERROR", 4, "RuntimeError: no"),
        (toy.make_wrong_shape, "ERROR", 4, "forward returns shape"),
        (toy.make_quits, "ERROR", 4, "SystemExit"),
        (toy.make_wrong_trait, "ERROR", 4, "unknown trait 'colour'"),
    ],
)
def test_each_outcome(make, outcome, code, word):
    report = run(make)
    assert [f.outcome for f in report.findings] == [outcome]
    assert report.exit_code == code
    assert word in report.findings[0].message


def test_a_check_that_hangs_is_an_error_and_the_others_still_run():
    checks = [*ONE, *[check for check in all_checks() if check.id == "decode_matches_forward"]]
    report = run_checks(Source("toy", "toy", toy.make_hangs), checks, expected=Expected(time_limit=0.3))
    assert [f.outcome for f in report.findings] == ["ERROR", "SKIP"]
    assert "longer than 0.3 s" in report.findings[0].message


def test_a_subject_that_cannot_be_made_is_one_error():
    report = run(toy.make_impossible)
    assert [(f.check, f.outcome) for f in report.findings] == [("make", "ERROR")]
    assert "no such model" in report.findings[0].message
    assert report.exit_code == 4


def test_nothing_that_applies_is_not_a_success():
    class Empty:
        traits = Traits(vocab=5)

        def lr(self, step):
            return 1.0

    report = run(lambda seed=0, tiny=True: Empty())
    assert report.findings[0].outcome == "SKIP"
    assert report.exit_code == 4


def test_expected_failures_are_strict(tmp_path):
    expected = Expected(xfail={"future_tokens_have_no_effect": "reads backwards on purpose"})
    failing, passing = run(toy.make_future, expected=expected), run(toy.make, expected=expected)
    assert (failing.findings[0].outcome, failing.exit_code) == ("XFAIL", 0)
    assert (passing.findings[0].outcome, passing.exit_code) == ("XPASS", 1)
    assert "on purpose" in failing.findings[0].message


def test_an_expectation_that_names_no_check_is_an_error_row_beside_the_others(tmp_path):
    (tmp_path / "kat_verify.toml").write_text('time_limit = 5\n[xfail]\nno_such_check = "why"\n')
    expected = read_expected(tmp_path, {check.id for check in all_checks()})
    report = run(toy.make, expected=expected)
    assert [(f.check, f.outcome) for f in report.findings] == [
        ("no_such_check", "ERROR"),
        ("future_tokens_have_no_effect", "PASS"),
    ]
    assert expected.time_limit == 5


@pytest.mark.parametrize(
    "text",
    ["[xfail", "speed = 3", "[xfail]\na = 1", '[xfail]\na = ""', "time_limit = 0", "time_limit = true", "xfail = 3"],
)
def test_a_malformed_expectation_file_is_one_line(tmp_path, text):
    (tmp_path / "kat_verify.toml").write_text(text)
    with pytest.raises(Exception, match=r"kat_verify\.toml") as raised:
        read_expected(tmp_path, set())
    assert "\n" not in str(raised.value)
    assert type(raised.value).__name__ == "UsageError"


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ("decode_matches", {"decode_matches_forward"}),
        ("decode_matches or future_tokens", {"decode_matches_forward", "future_tokens_have_no_effect"}),
        ("cache and not decode_matches_forward", None),
        ("(future_tokens or decode_matches) and forward and not cache", {"future_tokens_have_no_effect"}),
    ],
)
def test_expressions(expression, chosen):
    found = {check.id for check in select(all_checks(), 4, expression)}
    if chosen is None:
        assert "decode_matches_forward" not in found
        assert found
    else:
        assert found == chosen


@pytest.mark.parametrize("expression", ["no_such_check", "decode or", "(decode", "decode)", "and", "decode cache"])
def test_wrong_expressions_are_usage_errors(expression):
    with pytest.raises(Exception, match="-k") as raised:
        select(all_checks(), 4, expression)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "spec",
    [
        "nothing",
        "no_such_module_anywhere:make",
        "tests.verify.toy:no_such_function",
        "no/such/file.py:make",
        "kat:/no/such/folder",
        "hf:/no/such/folder",
        "trl:no_such_stage",
        ":make",
    ],
)
def test_subjects_that_are_not_there(spec, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["verify", spec])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert said.startswith("kat: ")
    assert "\n" not in said


def test_a_module_that_breaks_while_it_is_imported(tmp_path, capsys):
    (tmp_path / "broken_adapter.py").write_text("1 / 0\n")
    with pytest.raises(SystemExit) as stopped:
        main(["verify", f"{tmp_path / 'broken_adapter.py'}:make"])
    assert stopped.value.code == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_json_and_junit_say_the_same_and_hostile_text_stays_text(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*ARGUMENTS, "--json", str(tmp_path / "out.json"), "--junit", str(tmp_path / "out.xml")])
    assert stopped.value.code == 4
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["schema"] == "kat.verify/1"
    assert found["counts"]["ERROR"] == 1
    assert found["exit_code"] == 4
    case = ElementTree.parse(tmp_path / "out.xml").getroot().find("testsuite/testcase")
    assert case.get("name") == found["findings"][0]["check"]
    assert "<b>today</b>" in case.find("error").text
    assert "again" in capsys.readouterr().out


def test_control_characters_do_not_break_the_xml():
    report = run(toy.make_raises)
    bad = type(report.findings[0])(**{**vars(report.findings[0]), "message": "a\x00b\x1b[31m￾"})
    suite = ElementTree.fromstring(show.junit([Report("a\x01", 0, 3, [bad])])).find("testsuite")
    assert suite.get("name") == "kat verify a\N{REPLACEMENT CHARACTER}"
    assert suite.find("testcase/error").get("message").startswith("a\N{REPLACEMENT CHARACTER}b")


def test_a_failure_reads_alone():
    text = show.failure_text(run(toy.make_future).findings[0])
    for label in ("property", "seen", "measured", "case", "resembles", "again"):
        assert f"  {label}" in text
    assert "kat verify toy -k future_tokens_have_no_effect --level 1 --seed 0" in text


def test_every_row_that_a_check_names_is_in_the_catalogue():
    assert len(catalogue()) == 147
    assert {row for check in all_checks() for row in check.catches} <= set(catalogue())


def test_every_check_has_its_own_name_and_says_what_it_tests():
    ids = [check.id for check in all_checks()]
    assert len(ids) == len(set(ids))
    assert all(check.claim.endswith(".") for check in all_checks())


def test_the_same_seed_finds_the_same(tmp_path):
    def figures(report):
        return [(f.check, f.outcome, f.measured, f.case) for f in report.findings]

    assert figures(run(toy.make_future, seed=3)) == figures(run(toy.make_future, seed=3))


def test_a_file_is_an_adapter_and_settings_reach_its_make(tmp_path):
    adapter = tmp_path / "my_adapter.py"
    adapter.write_text("def make(seed=0, tiny=True, word=''):\n    raise ValueError(f'the word is {word}')\n")
    source = open_subject(f"{adapter}:make", {"word": "owl"})
    assert source.folder == Path(tmp_path)
    report = run_checks(source, ONE)
    assert "the word is owl" in report.findings[0].message


def test_logits_that_are_no_numbers_are_said_to_be_that():
    assert run(toy.make_nan).findings[0].message == "forward gives NaN or infinite logits"


def test_a_swallowed_time_limit_is_an_error_all_the_same():
    class Swallows(toy.ToySubject):
        def forward(self, ids, attention_mask=None, position_ids=None):
            try:
                time.sleep(5)
            except BaseException:  # noqa: BLE001 (what a stranger's code may do)
                return super().forward(ids)

    report = run(lambda seed=0, tiny=True: Swallows(seed), expected=Expected(time_limit=0.2))
    assert report.findings[0].outcome == "ERROR"
    assert "swallowed" in report.findings[0].message


def test_the_time_limit_is_of_the_processor_and_by_the_clock_four_times_that():
    class Sleeps(toy.ToySubject):
        def __init__(self, seed):
            super().__init__(seed)
            self.calls = 0

        def forward(self, ids, attention_mask=None, position_ids=None):
            self.calls += 1
            time.sleep(2.0 if self.calls == 1 else 0.0)  # as on a machine that is busy with something else
            return super().forward(ids, attention_mask, position_ids)

    (finding,) = run(lambda seed=0, tiny=True: Sleeps(seed), expected=Expected(time_limit=1.5)).findings
    assert finding.outcome == "PASS"


def test_a_make_that_returns_nothing_is_one_error():
    report = run(lambda seed=0, tiny=True: None)
    assert [(f.check, f.outcome) for f in report.findings] == [("make", "ERROR")]
    assert "NoneType" in report.findings[0].message


def test_a_checkpoint_of_kat_is_a_subject_too(tmp_path):
    from kat.model.checkpoint import save_checkpoint
    from kat.verify.adapters import native

    made = native.make(seed=3)
    save_checkpoint(tmp_path / "c", made.model, made.tokenizer, {"stage": "sft"})
    report = run_checks(open_subject(f"kat:{tmp_path / 'c'}"), all_checks(), level=3)
    assert {f.outcome for f in report.findings} == {"PASS", "SKIP"}
    assert report.exit_code == 0


@pytest.mark.parametrize("option", ["--json", "--junit"])
@pytest.mark.parametrize("place", ["a folder", "below a file"])
def test_where_to_write_is_looked_at_before_the_run(tmp_path, capsys, option, place):
    (tmp_path / "file").touch()
    path = tmp_path if place == "a folder" else tmp_path / "file" / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "no_such_module_anywhere:make", option, str(path)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith(f"kat: {option} {path}: ")
    assert said.count("\n") == 1


def test_an_interrupted_run_says_so(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kat.verify.runner.run_checks", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(ARGUMENTS)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "kat: interrupted\n"


def test_an_unknown_trait_is_said_once():
    checks = [check for check in all_checks() if check.family == "forward"]
    report = run_checks(Source("toy", "toy", toy.make_wrong_trait), checks)
    assert [(f.check, f.outcome) for f in report.findings] == [("make", "ERROR")]
    assert "unknown trait 'colour'" in report.findings[0].message


def test_a_trl_stage_that_is_not_there_is_said_with_those_that_are(monkeypatch):
    import importlib.util as util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "trl" else real(name, *rest))
    with pytest.raises(Exception, match=r"trl:foo: no such stage; there is trl:sft"):
        open_subject("trl:foo")
