"""The gate's ledger as a section of the report."""

import json

import pytest

from kat.audit.document import sections
from kat.audit.gate import gate
from kat.audit.render_html import render_html
from kat.audit.render_md import render_md
from kat.audit.report import audit
from kat.errors import EvidenceError, UsageError
from tests.audit.worlds import two_runs

POLICY = 'claim = "checkpoint"\nsuite = "scienceqa"\nmargin = {margin}\nledger = "ledger.jsonl"\n'


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return two_runs(tmp_path_factory.mktemp("runs"), n=40)


def policy(folder, margin=0.02, text=POLICY):
    path = folder / f"policy-{margin}.toml"
    path.write_text(text.format(margin=margin))
    return path


def section(report):
    return next(one for one in sections(report) if one.ident == "attempts")


def test_every_attempt_of_the_gate_stands_in_the_report(runs, tmp_path):
    """Three on this policy, one on these items under another, one on other items that does not count."""
    (tmp_path / "other").mkdir()
    other = two_runs(tmp_path / "other", n=30)
    for folder, margin in ((runs, 0.02), (runs, 0.02), (runs, 0.5), (other, 0.02), (runs, 0.02)):
        gate(str(folder / "a"), str(folder / "b"), policy(tmp_path, margin), home=tmp_path)
    report = audit(runs / "a", runs / "b", None, policy=policy(tmp_path))
    assert report.attempts.kept and report.attempts.under_other_policies == 1
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    wanted = [(rows[i]["time"], rows[i]["outcome"]) for i in (0, 1, 4)]
    assert [(one.time, one.outcome) for one in report.attempts.attempts] == wanted
    said, table = section(report).blocks
    assert said.text.startswith("3 attempts on this policy and these items")
    assert "1 on these items under other policies" in said.text
    assert [row[0].text for row in table.rows] == ["1", "2", "3"]
    assert all(row[-1].text.endswith("this pair") for row in table.rows)
    for page in (render_html(report), render_md(report)):
        assert rows[4]["b"][0][:12] in page


def test_reading_a_ledger_makes_none(runs, tmp_path):
    report = audit(runs / "a", runs / "b", None, policy=policy(tmp_path))
    assert report.attempts.attempts == [] and section(report).blocks[0].text.startswith("None yet")
    assert not (tmp_path / "ledger.jsonl").exists()
    silent = policy(tmp_path, text='claim = "recipe"\nsuite = "scienceqa"\nmargin = {margin}\n')
    assert "declares no ledger" in section(audit(runs / "a", runs / "b", None, policy=silent)).blocks[0].text


def test_a_ledger_that_was_edited_is_refused(runs, tmp_path):
    for _ in range(2):
        gate(str(runs / "a"), str(runs / "b"), policy(tmp_path), home=tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(EvidenceError, match="chain of hashes"):
        audit(runs / "a", runs / "b", None, policy=policy(tmp_path))


def test_a_wrong_policy_is_a_users_mistake(runs, tmp_path):
    with pytest.raises(UsageError, match="marginn"):
        audit(runs / "a", runs / "b", None, policy=policy(tmp_path, text="marginn = {margin}\n"))
