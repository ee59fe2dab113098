"""What a policy requires beside the comparison: families of `kat verify` that hold, lanes that ran."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from kat.audit.judge import Outcome
from kat.audit.verified import read_verified
from kat.audit.words import count
from kat.errors import EvidenceError, UsageError


@dataclass(frozen=True)
class Requirement:
    """One thing that was asked of this merge. `required` False: only said, never judged."""

    name: str
    outcome: Outcome
    sentence: str
    required: bool = True


def check_families(families: Sequence[str], file: Path | None) -> list[Requirement]:
    """FAIL where a property is violated, INVALID where one could not be tested, INCONCLUSIVE where none ran."""
    if file is None:
        said = "kat verify did not run; give what kat verify --json wrote as --verify FILE"
        return [Requirement(f"verify {family}", "INCONCLUSIVE", said) for family in families]
    try:
        found = read_verified(file)
    except EvidenceError as error:
        return [Requirement("verify", "INVALID", str(error))]
    checked = []
    for family in families:
        # A finding without a family is the subject itself, which could not be made: it speaks for every family.
        mine = [one for one in found.findings if one.family in (family, "")]
        broken = [one for one in mine if one.outcome in ("FAIL", "XPASS")]
        untested = [one for one in mine if one.outcome in ("VACUOUS", "ERROR")]
        passed = sum(one.outcome == "PASS" and one.family == family for one in mine)
        if broken:
            first = broken[0]
            outcome: Outcome = "FAIL"
            said = f"{count(len(broken), 'property', 'properties')} violated: {first.check}: {first.message}"
        elif untested:
            first = untested[0]
            outcome, said = "INVALID", f"{first.check} could not be tested ({first.outcome}): {first.message}"
        elif not passed:
            outcome, said = "INCONCLUSIVE", f"no check of this family ran on {found.subject}"
        else:
            outcome, said = "PASS", f"{count(passed, 'property', 'properties')} of {found.subject} hold"
        checked.append(Requirement(f"verify {family}", outcome, said))
    rest = [
        one
        for one in found.findings
        if one.family not in (*families, "") and one.outcome not in ("PASS", "SKIP", "XFAIL")
    ]
    if rest:
        said = f"{rest[0].check} {rest[0].outcome} and {len(rest) - 1} more" if len(rest) > 1 else rest[0].check
        checked.append(
            Requirement("verify, other families", "FAIL", f"not required by the policy, but: {said}", required=False)
        )
    return checked


def check_lanes(lanes: Sequence[str], files: Mapping[str, Path]) -> list[Requirement]:
    """A lane that ran left a JUnit file: FAIL where a test failed, INCONCLUSIVE where no test ran."""
    checked = []
    for name in dict.fromkeys([*lanes, *files]):
        required = name in lanes
        if name not in files:
            checked.append(Requirement(f"lane {name}", "INCONCLUSIVE", f"did not run; give --lane {name}=junit.xml"))
            continue
        outcome, said = _lane(files[name])
        checked.append(
            Requirement(f"lane {name}", outcome, said if required else f"{said} (not required)", required=required)
        )
    return checked


def parse_lanes(texts: Sequence[str]) -> dict[str, Path]:
    """`NAME=FILE` texts; UsageError for anything else."""
    lanes: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise UsageError(f"--lane {text}: write NAME=FILE, where FILE is the JUnit XML that the lane left")
        if name in lanes:
            raise UsageError(f"--lane {text}: the lane {name} is given twice")
        lanes[name] = Path(path)
    return lanes


def _lane(path: Path) -> tuple[Outcome, str]:
    """Counted from the test cases: what a file says of its own totals is not believed."""
    if not path.is_file():
        return "INCONCLUSIVE", f"did not run: no file {path}"
    try:
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    except (ElementTree.ParseError, OSError, UnicodeDecodeError):
        return "INVALID", f"{path}: not JUnit XML; the lane was cut off or the file is another"
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    ran = [case for case in cases if case.find("skipped") is None]
    if bad:
        return "FAIL", f"{len(bad)} of {count(len(ran), 'test')} failed, first {bad[0].get('name')}"
    if not ran:
        return "INCONCLUSIVE", f"no test ran ({count(len(cases), 'test')} skipped)"
    return "PASS", f"{count(len(ran), 'test')} passed"
