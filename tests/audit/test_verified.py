"""`kat verify`'s findings as a section of the report."""

import json

import pytest

from kat.audit.document import sections
from kat.audit.render_html import render_html
from kat.audit.report import audit
from kat.audit.verified import read_verified
from kat.errors import EvidenceError, UsageError
from kat.verify.checks import all_checks
from kat.verify.runner import run_checks
from kat.verify.subject import Source
from tests.audit.worlds import two_runs
from tests.verify import toy


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return two_runs(tmp_path_factory.mktemp("runs"), n=40)


def findings(folder, make=toy.make):
    checks = [check for check in all_checks() if check.id in ("future_tokens_have_no_effect", "decode_matches_forward")]
    path = folder / "verify.json"
    path.write_text(json.dumps(run_checks(Source("toy<script>", "toy", make), checks).to_json()))
    return path


def test_the_section_says_what_was_found(runs, tmp_path):
    report = audit(runs / "a", runs / "b", None, verify=findings(tmp_path, toy.make_future))
    section = next(one for one in sections(report) if one.ident == "verify")
    assert "1 property violated" in section.blocks[0].text
    page = render_html(report)
    assert "toy<script>" not in page
    assert "toy&lt;script&gt;" in page
    assert "future_tokens_have_no_effect" in page


def test_without_findings_the_report_says_not_verified(runs):
    report = audit(runs / "a", runs / "b", None)
    assert report.verified is None
    section = next(one for one in sections(report) if one.ident == "verify")
    assert section.blocks[0].text.startswith("Not verified")


def test_a_clean_run_holds(runs, tmp_path):
    report = audit(runs / "a", runs / "b", None, verify=findings(tmp_path))
    section = next(one for one in sections(report) if one.ident == "verify")
    assert "Every property that applies holds" in section.blocks[0].text
    assert report.verified.counts["PASS"] == 1
    assert report.verified.counts["SKIP"] == 1


def test_wrong_files(tmp_path):
    with pytest.raises(UsageError, match="kat verify --json"):
        read_verified(tmp_path / "none.json")
    for content in ("", "[]", '{"schema": "kat.audit/1"}', '{"schema": "kat.verify/1"}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(EvidenceError, match=r"bad\.json"):
            read_verified(tmp_path / "bad.json")


def test_edited_counts_are_refused(tmp_path):
    path = findings(tmp_path, toy.make_future)
    content = json.loads(path.read_text())
    content["counts"]["FAIL"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match="edited"):
        read_verified(path)
