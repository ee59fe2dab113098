"""What `kat verify` found, as a section of the report."""

import json
from pathlib import Path

from pydantic import ValidationError

from kat.audit.blocks import Block, Cell, Para, Section, Table
from kat.audit.schema import Audit, Verified
from kat.audit.words import count, percent
from kat.errors import EvidenceError, UsageError

QUIET = ("PASS", "SKIP")


def read_verified(path: Path) -> Verified:
    """The findings in a file of schema kat.verify/1. UsageError where there is none, EvidenceError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; it is what kat verify --json writes") from None
    except ValueError:
        raise EvidenceError(f"{path}: no JSON; it should be what kat verify --json wrote") from None
    if not isinstance(content, dict) or content.get("schema") != "kat.verify/1":
        raise EvidenceError(f"{path}: not of schema kat.verify/1; it should be what kat verify --json wrote")
    names = ("subject", "seed", "level", "counts", "coverage", "exit_code")
    try:
        findings = [
            {name: finding[name] for name in ("check", "family", "outcome", "message")}
            for finding in content["findings"]
        ]
        found = Verified.model_validate({**{name: content[name] for name in names}, "findings": findings})
    except (KeyError, TypeError, ValidationError) as error:
        why = str(error).splitlines()[0]
        raise EvidenceError(f"{path}: damaged ({why}); run kat verify --json again") from None
    counts = {outcome: sum(one.outcome == outcome for one in found.findings) for outcome in found.counts}
    if counts != found.counts:
        raise EvidenceError(f"{path}: its counts are not those of its findings; it was edited")
    return found


def verified(audit: Audit) -> Section:
    """A sentence, the families in a table, and every finding that is not a plain pass."""
    title = "Is the code behind it right?"
    found = audit.verified
    if found is None:
        text = "Not verified: no result of `kat verify` was given (kat audit --verify FILE)."
        return Section(title, "verify", (Para(text),))
    failed = found.counts.get("FAIL", 0) + found.counts.get("XPASS", 0)
    open_ends = found.counts.get("VACUOUS", 0) + found.counts.get("ERROR", 0)
    verdict = "Every property that applies holds" if not failed and not open_ends else ""
    if failed:
        verdict = f"{count(failed, 'property', 'properties')} violated"
    elif open_ends:
        verdict = f"{count(open_ends, 'check')} could not be run"
    ran = sum(found.counts.values()) - found.counts.get("SKIP", 0)
    blocks: list[Block] = [
        Para(
            f"{verdict}: kat verify {found.subject}, seed {found.seed}, levels 0 to {found.level}; "
            f"{count(ran, 'check')} ran, {percent(found.coverage, 0)} of all."
        )
    ]
    families = dict.fromkeys(one.family for one in found.findings)
    rows = []
    for family in families:
        outcomes = [one.outcome for one in found.findings if one.family == family]
        other = sum(outcome not in QUIET for outcome in outcomes)
        texts = (family or "adapter", str(outcomes.count("PASS")), str(other), str(outcomes.count("SKIP")))
        rows.append(tuple(Cell(text) for text in texts))
    blocks.append(Table("Checks by family", ("family", "passed", "other", "do not apply"), tuple(rows)))
    loud = [one for one in found.findings if one.outcome not in QUIET]
    if loud:
        cells = tuple((Cell(one.outcome), Cell(one.check), Cell(one.message)) for one in loud)
        blocks.append(Table("Findings", ("outcome", "check", "what was seen"), cells, left=3))
    return Section(title, "verify", tuple(blocks))
