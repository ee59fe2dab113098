"""Runs checks against a subject, one fresh subject each, and keeps what came of it."""

import importlib.resources
import json
import os
import random
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from kat.errors import UsageError
from kat.verify.check import Check, Failed, NotApplicable, Vacuous
from kat.verify.expected import Expected
from kat.verify.subject import Source, Traits, capabilities

OUTCOMES = ("PASS", "FAIL", "XFAIL", "XPASS", "SKIP", "VACUOUS", "ERROR")


@dataclass(frozen=True)
class Finding:
    """One check's outcome. The fields after `seconds` are filled where there is something to say."""

    check: str
    family: str
    level: int
    kind: str
    claim: str
    outcome: str
    seconds: float
    message: str = ""
    measured: float | None = None
    tolerance: float | None = None
    case: str = ""
    resembles: dict[str, str] | None = None  # {"id", "bug", "citation"}
    command: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Report:
    """All findings about one subject."""

    subject: str
    seed: int
    level: int
    findings: list[Finding] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        return sum(finding.outcome == outcome for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """1 on any FAIL or XPASS, else 4 on any VACUOUS or ERROR, else 0; 4 too where nothing ran at all."""
        if self.count("FAIL") or self.count("XPASS"):
            return 1
        ran = len(self.findings) - self.count("SKIP")
        return 4 if self.count("VACUOUS") or self.count("ERROR") or not ran else 0

    @property
    def coverage(self) -> float:
        """The share of the checks that could run."""
        return 1 - self.count("SKIP") / len(self.findings) if self.findings else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; schema kat.verify/1."""
        counts = {outcome: self.count(outcome) for outcome in OUTCOMES}
        return {
            "schema": "kat.verify/1",
            "subject": self.subject,
            "seed": self.seed,
            "level": self.level,
            "exit_code": self.exit_code,
            "coverage": round(self.coverage, 4),
            "counts": counts,
            "findings": [asdict(finding) for finding in self.findings],
        }


def select(checks: Sequence[Check], level: int, expression: str | None) -> list[Check]:
    """The checks up to a level whose id or family fits `-k`: words joined by `or`, `and`, `not`, as in pytest."""
    chosen = [c for c in checks if c.level <= level]
    if expression:
        fits = _expression(expression)
        chosen = [c for c in chosen if fits(f"{c.family} {c.id}")]
        if not chosen:
            raise UsageError(f"-k {expression}: no check up to level {level} fits; kat verify --list names them all")
    return chosen


def run_checks(
    source: Source,
    checks: Sequence[Check],
    *,
    seed: int = 0,
    level: int = 3,
    expected: Expected | None = None,
    progress: Callable[[Finding], None] | None = None,
) -> Report:
    """One finding a check. What an adapter does wrong is a finding too; only Ctrl-C ends the run."""
    import torch

    torch.set_num_threads(1)
    expected = expected or Expected()
    report = Report(source.spec, seed, level)

    def keep(finding: Finding) -> None:
        report.findings.append(finding)
        if progress:
            progress(finding)

    for entry in expected.unknown:
        keep(Finding(entry, "", 0, "", "", "ERROR", 0.0, f"{expected.file}: no check has this id"))
    offered = _offered(source, seed, expected.time_limit)
    for check in checks:
        finding = offered if isinstance(offered, Finding) else _run(source, check, offered, seed, expected.time_limit)
        if isinstance(offered, Finding):  # no subject at all: said once, with the check that stands for all
            keep(finding)
            break
        keep(_with_expectation(finding, expected.xfail.get(check.id)))
    return report


def _offered(source: Source, seed: int, limit: float) -> frozenset[str] | Finding:
    """What the subject can do; a finding where it cannot be made."""
    started = time.perf_counter()
    try:
        with _limited(limit):
            _reseed(seed)
            subject = source.make(seed=seed, tiny=True)
            found = capabilities(subject)
        if not found:
            raise TypeError(f"make returned a {type(subject).__name__}, which has none of the contract's methods")
        Traits.of(getattr(subject, "traits", None) or {})
        return found
    except KeyboardInterrupt:
        raise
    except UsageError:
        raise
    except BaseException as error:  # noqa: BLE001 (an adapter's failure, whatever it is, is an ERROR row)
        return Finding(
            "make",
            "",
            0,
            "",
            "make(seed, tiny=True) returns a subject, whose traits, if it has any, are known ones.",
            "ERROR",
            time.perf_counter() - started,
            _one_line(error),
            command=f"kat verify {shlex.quote(source.spec)} --seed {seed}",
            trace=traceback.format_exc(),
        )


def _run(source: Source, check: Check, offered: frozenset[str], seed: int, limit: float) -> Finding:
    from kat.verify.lab import Lab

    started = time.perf_counter()

    def finding(outcome: str, message: str = "", **more: Any) -> Finding:
        seconds = time.perf_counter() - started
        if outcome in ("FAIL", "ERROR", "VACUOUS"):
            spec = shlex.quote(source.spec)
            more["command"] = f"kat verify {spec} -k {check.id} --level {check.level} --seed {seed}"
        return Finding(check.id, check.family, check.level, check.kind, check.claim, outcome, seconds, message, **more)

    if missing := sorted(check.needs - offered):
        return finding("SKIP", f"needs {', '.join(missing)}")
    try:
        with _limited(limit):
            _reseed(seed)
            check.function(Lab(check, source.make, seed, source.spec))
    except KeyboardInterrupt:
        raise
    except NotApplicable as reason:
        return finding("SKIP", str(reason))
    except Vacuous as reason:
        return finding("VACUOUS", str(reason))
    except Failed as failure:
        bug = failure.resembles or (check.catches[0] if check.catches else None)
        return finding(
            "FAIL",
            failure.message,
            measured=failure.measured,
            tolerance=failure.tolerance,
            case=failure.case,
            resembles=real_bug(bug) if bug else None,
        )
    except BaseException as error:  # noqa: BLE001 (an adapter's failure, whatever it is, is an ERROR row)
        return finding("ERROR", _one_line(error), trace=traceback.format_exc())
    return finding("PASS")


def _with_expectation(finding: Finding, reason: str | None) -> Finding:
    """FAIL that was expected is XFAIL; a pass that was not is XPASS (strict). Other outcomes stay."""
    if reason is None or finding.outcome not in ("PASS", "FAIL"):
        return finding
    outcome = {"FAIL": "XFAIL", "PASS": "XPASS"}[finding.outcome]
    message = f"{reason} ({finding.message})" if outcome == "XFAIL" else f"passes, but is expected to fail: {reason}"
    return Finding(**{**vars(finding), "outcome": outcome, "message": message})


CLOCK = 4  # times its limit that a check may take by the clock: on a busy machine it gets little of the processor
PATIENCE = 30  # interruptions, one a second, after which a check that swallows them ends the whole run


class _TimeLimit(BaseException):
    """Not an Exception, so that an adapter that swallows those still ends."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer: in seconds of the processor, or CLOCK times that by the clock. Where signals
    can't be had (another thread, Windows) there is no limit."""

    armed, fired = True, 0
    worked, began = time.process_time(), time.perf_counter()

    def stop(*_: object) -> None:
        nonlocal fired
        if not armed or (time.process_time() - worked < seconds and time.perf_counter() - began < CLOCK * seconds):
            return
        fired += 1
        if fired > PATIENCE:  # the adapter swallows every interruption: nothing else ends it
            print(f"kat: a check ignores its time limit of {seconds:g} s; stopping", file=sys.stderr, flush=True)
            os._exit(4)
        raise _TimeLimit(f"took longer than {seconds:g} s")

    try:
        before = signal.signal(signal.SIGALRM, stop)
    except (ValueError, AttributeError):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second, in case the first one is swallowed
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if fired:
        raise _TimeLimit(f"took longer than {seconds:g} s, and swallowed the interruption")


def _reseed(seed: int) -> None:
    """Adapters may draw from global generators and switch gradients off; each check finds them in the same state."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_grad_enabled(True)


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, _TimeLimit):
        return text[0]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text[0] if text else 'no message'}{where}"


def real_bug(row: str) -> dict[str, str]:
    """The catalogue's row of this id: {"id", "bug", "citation"}."""
    return {"id": row, **catalogue()[row]}


def catalogue() -> dict[str, dict[str, str]]:
    """id -> {"bug", "citation"} of the silent bugs that the checks were made for."""
    return json.loads((importlib.resources.files("kat.verify") / "catalogue.json").read_text(encoding="utf-8"))


def _expression(text: str) -> Callable[[str], bool]:
    """`a or b and not c` over substrings; a plain recursive descent, nothing is evaluated as code."""
    tokens = text.replace("(", " ( ").replace(")", " ) ").split()

    def alternatives(i: int) -> tuple[Callable[[str], bool], int]:
        left, i = conjunction(i)
        while i < len(tokens) and tokens[i] == "or":
            right, i = conjunction(i + 1)
            left = (lambda a, b: lambda name: a(name) or b(name))(left, right)
        return left, i

    def conjunction(i: int) -> tuple[Callable[[str], bool], int]:
        left, i = term(i)
        while i < len(tokens) and tokens[i] == "and":
            right, i = term(i + 1)
            left = (lambda a, b: lambda name: a(name) and b(name))(left, right)
        return left, i

    def term(i: int) -> tuple[Callable[[str], bool], int]:
        if i >= len(tokens) or tokens[i] in ("or", "and", ")"):
            raise UsageError(f"-k {text}: a word is missing; write such as 'decode or (cache and not chunked)'")
        if tokens[i] == "not":
            inner, i = term(i + 1)
            return (lambda name: not inner(name)), i
        if tokens[i] == "(":
            inner, i = alternatives(i + 1)
            if i >= len(tokens) or tokens[i] != ")":
                raise UsageError(f"-k {text}: a bracket is not closed")
            return inner, i + 1
        word = tokens[i]
        return (lambda name: word in name), i + 1

    found, end = alternatives(0)
    if end != len(tokens):
        raise UsageError(f"-k {text}: {tokens[end]!r} stands where 'and' or 'or' is expected")
    return found
