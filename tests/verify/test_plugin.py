"""`parametrize_with_checks` in a test run of its own."""

import pytest

pytest_plugins = ["pytester"]

TEST = """
from kat.verify import parametrize_with_checks
from tests.verify.toy import {make}

@parametrize_with_checks([{make}])
def test_conformance(check, subject):
    check(subject)
"""


@pytest.fixture
def suite(pytester, monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))

    def run(make: str, *arguments: str):
        pytester.makepyfile(test_it=TEST.format(make=make))
        return pytester.runpytest_subprocess("-p", "no:randomly", *arguments)

    return run


def test_a_good_subject_passes_and_what_it_lacks_is_skipped(suite):
    result = suite("make", "-k", "future_tokens or decode_matches", "-v")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*toy-future_tokens_have_no_effect*PASSED*"])


def test_a_failure_shows_the_whole_finding(suite):
    result = suite("make_future", "-k", "future_tokens")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*property*", "*measured*", "*resembles*"])


def test_levels_above_are_left_out(suite):
    result = suite("make", "--kat-level", "0", "-k", "future_tokens")
    assert result.parseoutcomes().get("deselected", 0) > 0
    assert "passed" not in result.parseoutcomes()
