"""What came of the checks, for a terminal, for tools (JSON, JUnit) and for a page."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from rich.columns import Columns
from rich.console import Console, Group
from rich.text import Text

from kat.verify.check import Check
from kat.verify.runner import OUTCOMES, Finding, Report

GLYPHS = {"PASS": "✓", "FAIL": "✗", "XFAIL": "x", "XPASS": "!", "SKIP": "·", "VACUOUS": "?", "ERROR": "E"}
COLOURS = {
    "PASS": "green",
    "FAIL": "bold red",
    "XFAIL": "yellow",
    "XPASS": "bold red",
    "SKIP": "dim",
    "VACUOUS": "bold magenta",
    "ERROR": "bold magenta",
}
LONGEST_CASE = 400  # characters on a terminal; the JSON has all
LOUD = ("FAIL", "XPASS", "VACUOUS", "ERROR")


def failure_text(finding: Finding, width: int = 100) -> str:
    """One finding as a block that reads alone: property, what was seen, what it resembles, how to see it again."""
    lines = [f"{finding.outcome} {finding.check}"]

    def add(label: str, text: str) -> None:
        if text:
            indent = " " * 13
            lines.append(textwrap.fill(text, width, initial_indent=f"  {label:<11}", subsequent_indent=indent))

    add("property", finding.claim)
    add("seen", finding.message)
    if finding.measured is not None:
        allowed = f", at most {finding.tolerance:g} is allowed" if finding.tolerance is not None else ""
        add("measured", f"{finding.measured:.3g}{allowed}")
    add("case", finding.case if len(finding.case) <= LONGEST_CASE else f"{finding.case[:LONGEST_CASE]} …")
    if finding.resembles:
        add("resembles", f"{finding.resembles['id']}: {finding.resembles['bug']} ({finding.resembles['citation']})")
    add("again", finding.command)
    if finding.outcome == "ERROR" and finding.trace:
        lines += [f"    {line}" for line in finding.trace.strip().splitlines()[-6:]]
    return "\n".join(lines)


def print_report(report: Report, console: Console) -> None:
    """The matrix by family, then every loud finding, then one line that sums up."""
    console.print(Text(f"kat verify {report.subject}   seed {report.seed}, levels 0 to {report.level}", style="bold"))
    for family in dict.fromkeys(finding.family for finding in report.findings):
        names = [_cell(finding) for finding in report.findings if finding.family == family]
        console.print(Text(f"\n{family or 'adapter'}", style="bold"))
        console.print(Columns(names, padding=(0, 3), equal=True))
    for finding in report.findings:
        if finding.outcome in LOUD:
            console.print()
            head, _, rest = failure_text(finding, min(console.width, 110)).partition("\n")
            console.print(Group(Text(head, style=COLOURS[finding.outcome]), Text(rest)))
    for finding in report.findings:
        if finding.outcome in ("XFAIL", "SKIP"):
            console.print(Text(f"{finding.outcome} {finding.check}: {finding.message}", style=COLOURS[finding.outcome]))
    console.print()
    console.print(Text(summary(report), style="bold red" if report.exit_code else "bold green"))


def summary(report: Report) -> str:
    """Counts, coverage, time and what the exit code means."""
    counts = ", ".join(f"{report.count(outcome)} {outcome}" for outcome in OUTCOMES if report.count(outcome))
    meaning = {
        0: "no property violated",
        1: "a property is violated",
        4: "not verified: something could not be tested",
    }[report.exit_code]
    seconds = sum(finding.seconds for finding in report.findings)
    return f"{meaning}: {counts or 'nothing ran'}; {report.coverage:.0%} of the checks apply; {seconds:.1f} s"


def _cell(finding: Finding) -> Text:
    return Text(f"{GLYPHS[finding.outcome]} {finding.check}", style=COLOURS[finding.outcome])


def junit(reports: Sequence[Report]) -> str:
    """The findings as JUnit XML, a test suite a subject."""
    root = ElementTree.Element("testsuites")
    for report in reports:
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_xml(f"kat verify {report.subject}"),
            tests=str(len(report.findings)),
            failures=str(report.count("FAIL") + report.count("XPASS")),
            errors=str(report.count("ERROR") + report.count("VACUOUS")),
            skipped=str(report.count("SKIP") + report.count("XFAIL")),
        )
        for finding in report.findings:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=_xml(f"{report.subject}.{finding.family}"),
                name=_xml(finding.check),
                time=f"{finding.seconds:.3f}",
            )
            kind = {
                "FAIL": "failure",
                "XPASS": "failure",
                "ERROR": "error",
                "VACUOUS": "error",
                "SKIP": "skipped",
                "XFAIL": "skipped",
            }.get(finding.outcome)
            if kind:
                ElementTree.SubElement(case, kind, message=_xml(finding.message)).text = _xml(failure_text(finding))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def list_text(checks: Iterable[Check]) -> str:
    """Every check with its family, level and property."""
    return "\n".join(f"{c.family:<12} {c.level}  {c.id}\n{'':<15} {c.claim}" for c in checks)
