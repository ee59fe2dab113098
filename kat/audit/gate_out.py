"""The gate's result for GitHub (a step summary) and for whatever reads JUnit."""

from pathlib import Path
from xml.etree import ElementTree

from kat.audit.gate_schema import GateResult
from kat.audit.render_md import text
from kat.audit.words import count, interval, percent, points, visible


def rows(found: GateResult) -> list[tuple[str, str, str]]:
    """(what, outcome, sentence) of every opponent and condition."""
    said = [(f"against {one.role}", str(one.outcome), one.sentence) for one in found.opponents]
    return said + [(one.name, one.outcome if one.required else "–", one.sentence) for one in found.conditions]


def summary(found: GateResult) -> str:
    """GitHub-flavoured markdown. Strangers' text is made harmless."""
    lines = [f"## kat gate: {found.outcome}", "", text(found.sentence), ""]
    lines += ["| | outcome | |", "| --- | --- | --- |"]
    lines += [f"| {text(name)} | {outcome} | {text(sentence)} |" for name, outcome, sentence in rows(found)]
    judged = [one for one in found.opponents if one.figures is not None]
    if judged:
        lines += ["", "| opponent | A | B | B − A in points | 95 % interval | unit | power at no difference |"]
        lines.append("| --- | ---: | ---: | ---: | ---: | --- | ---: |")
        for one in judged:
            f = one.figures
            assert f is not None
            lines.append(
                f"| {text(one.role)} | {percent(f.a)} | {percent(f.b)} | {points(f.difference, 2)} "
                f"| {interval(f.low, f.high, signed=True, digits=2)} | {count(f.n_units, f.unit)} "
                f"| {percent(f.power, 0)} |"
            )
    notes = [note for one in found.opponents for note in one.notes]
    lines += ["", *(f"- {text(note)}" for note in [*notes, *found.evidence])]
    lines += ["", f"Policy {found.policy_hash[:12]}, data {(found.data_hash or 'unread')[:12]}."]
    return "\n".join(lines) + "\n"


def junit(found: GateResult) -> str:
    """A test case for each opponent and condition; INCONCLUSIVE fails, for it never merges by itself."""
    suite = ElementTree.Element("testsuite", name="kat gate")
    totals = {"failure": 0, "error": 0}
    cases = [(*row, True) for row in rows(found)[: len(found.opponents)]]
    cases += [(one.name, one.outcome, one.sentence, one.required) for one in found.conditions]
    for name, outcome, sentence, required in cases:
        case = ElementTree.SubElement(suite, "testcase", classname="kat.gate", name=visible(name))
        if not required:
            ElementTree.SubElement(case, "system-out").text = visible(sentence)
        elif outcome != "PASS":
            kind = "error" if outcome == "INVALID" else "failure"
            totals[kind] += 1
            ElementTree.SubElement(case, kind, type=str(outcome), message=visible(sentence))
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(totals["failure"]))
    suite.set("errors", str(totals["error"]))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def append_summary(found: GateResult, path: Path) -> None:
    """GitHub's step summary is a file that steps append to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(summary(found))
