"""The report as files: the same content thrice, and what the caller may add."""

import json
import math
import shutil

import numpy as np
import pytest

from kat.audit.document import sections
from kat.audit.render_html import render_html
from kat.audit.render_md import render_md
from kat.audit.report import audit
from kat.audit.schema import Audit
from kat.errors import EvidenceError, UsageError
from kat.evals.protocol import DataSource
from kat.evals.scienceqa import ScienceQA
from tests.audit.worlds import Page, edit_rows, rows_of, run
from tests.evals.fake_backend import knowing


def test_the_three_files_are_written_and_say_the_same(world, report):
    text = (world / "out" / "audit.json").read_text(encoding="utf-8")
    assert Audit.model_validate(json.loads(text)) == report
    html = (world / "out" / "audit.html").read_text(encoding="utf-8")
    md = (world / "out" / "audit.md").read_text(encoding="utf-8")
    flat_html = "".join(Page.of(html).words).replace("\u202f", " ").replace("\u00a0", " ")
    flat_md = md.replace("\\", "")
    for section in sections(report):
        assert section.title in flat_html
        assert section.title in flat_md
        for block in section.blocks:
            for row in getattr(block, "rows", ()):
                for cell in row:
                    assert cell.text in flat_html
                    assert cell.text in flat_md
    for shown in report.flips_shown:
        assert report.flips[shown].a.response in flat_html
        assert report.flips[shown].a.response in md
    assert report.verdict.sentence in flat_html
    assert report.verdict.sentence in flat_md


def test_ten_flips_are_shown_gains_and_losses_in_turn(report):
    ways = [report.flips[index].direction for index in report.flips_shown]
    assert ways == ["gained", "lost"] * 5
    said = f"B got right {report.n_gained} items that A did not, and lost {report.n_lost} items that A got right."
    assert said in render_md(report)
    assert report.flips == sorted(report.flips, key=lambda flip: flip.item_hash)


def test_the_report_does_not_depend_on_the_order_of_the_rows(world, report, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(world / name, tmp_path / name)
        edit_rows(tmp_path / name, lambda rows: rows[::-1])
    again = audit(tmp_path / "a", tmp_path / "b", None, data=world / "data.jsonl")
    changed = {"created", "a", "b", "provenance"}
    assert again.model_dump(exclude=changed) == report.model_dump(exclude=changed)


def test_a_folder_that_cannot_be_written_is_a_usage_error(world, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="choose another --out"):
        audit(world / "a", world / "b", tmp_path / "file")
    with pytest.raises(UsageError, match="choose another --out"):  # said at once, before any evidence is read
        audit(tmp_path / "no a", tmp_path / "no b", tmp_path / "file")


def test_training_curves_and_provenance_come_from_the_checkpoints(world, tmp_path):
    for name in ("a", "b"):
        identity = json.loads((world / name / "results.json").read_text(encoding="utf-8"))["model_hash"]
        (tmp_path / name).mkdir()
        meta = {"schema": "kat.checkpoint/1", "identity": identity, "stage": "sft", "step": 9, "seeds": {"train": 3}}
        (tmp_path / name / "kat.json").write_text(json.dumps(meta), encoding="utf-8")
        rows = [
            {"step": i, "loss": 5 / (i + 1), "lr": 0.1} | ({"val_loss": 5.0} if i % 10 == 0 else {}) for i in range(901)
        ]
        rows[3]["loss"] = math.nan
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    found = audit(world / "a", world / "b", tmp_path / "out", checkpoints=(tmp_path / "a", tmp_path / "b"))
    loss = next(curve for curve in found.curves["A"] if curve.name == "loss")
    assert (loss.n_logged, loss.n_not_finite) == (901, 1)
    assert len(loss.steps) <= 300
    assert loss.steps[-1] == 900
    values = [row["loss"] for row in rows if not math.isnan(row["loss"])]
    assert loss.values[0] == pytest.approx(np.mean(values[:3]))
    facts = {one.label: one for one in found.provenance}
    assert facts["checkpoint: seeds.train"].a == "3"
    assert "Training" in (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")

    with pytest.raises(EvidenceError, match="name the checkpoint that was evaluated"):
        audit(world / "a", world / "b", None, checkpoints=(tmp_path / "b", tmp_path / "a"))
    (tmp_path / "b" / "metrics.jsonl").write_text('{"loss": 1}\n', encoding="utf-8")
    with pytest.raises(EvidenceError, match="line 1: no step"):
        audit(world / "a", world / "b", None, checkpoints=(tmp_path / "a", tmp_path / "b"))


def test_an_untrained_twin_stands_beside_both(world, tmp_path):
    suite = ScienceQA.load(world / "data.jsonl")
    twin = run(
        suite.items(), knowing(suite.items(), 0.0, name="twin"), tmp_path / "twin", DataSource("x", suite.data_hash)
    )
    found = audit(world / "a", world / "b", None, twin=twin)
    beside = next(one for one in found.baselines if one.name == "untrained twin")
    scores = rows_of(twin)
    assert beside.score.estimate == pytest.approx(np.mean([row["score"] for row in scores.values()]))
    assert beside.b_above.estimate == pytest.approx(found.primary.b.estimate - beside.score.estimate)
    with pytest.raises(EvidenceError, match="weights of a model that it should stand beside"):
        audit(world / "a", world / "b", None, twin=world / "a")


def test_rendering_is_a_pure_function_of_the_audit(report):
    assert render_html(report) == render_html(report)
    assert render_md(Audit.model_validate(json.loads(json.dumps(report.model_dump(by_alias=True))))) == render_md(
        report
    )
