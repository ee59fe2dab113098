"""The merge gate: one outcome for "may B replace A?", by the rules that a policy declared beforehand.

B is judged against main and against a pinned champion (ten merges at −1.9 points with a margin of 2 would lose 19
against a main that moves with them); the worst outcome of all opponents and requirements is the gate's.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from kat.audit.arms import Arm, Run, load_arm
from kat.audit.find import find_evaluation
from kat.audit.gate_schema import EXIT, GATE_SCHEMA, WORST, Condition, GateResult, Opponent, worst
from kat.audit.judge import Outcome
from kat.audit.ledger import items_hash, open_ledger
from kat.audit.load import load_evidence
from kat.audit.opponents import judge_checkpoints, judge_recipes
from kat.audit.policy import FORCED_CHOICE, Policy, place, read_policy
from kat.audit.requirements import Requirement, check_families, check_lanes
from kat.audit.rerun import UNVERIFIED, rerun
from kat.errors import EvidenceError
from kat.pipeline.noise import Noise, read_noise
from kat.runs.provenance import now, versions


class _Seen:
    """What was read on the way: for the ledger and for the regeneration of items."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.data_hash: str | None = None
        self.a: list[str] = []
        self.b: list[str] = []

    def keep(self, role: str, arm: Arm, *, candidate: bool) -> None:
        """Note one side; the ledger's A is main."""
        for run in arm.runs.values():
            self.runs[str(run.evidence.folder.resolve())] = run
        identities = [run.evidence.results.model_hash for run in arm.runs.values()]
        if candidate:
            first = next(iter(arm.runs.values())).evidence
            self.data_hash, self.b = items_hash(first.items), identities
        elif role == "main":
            self.a = identities


def gate(
    a: str,
    b: str,
    policy_file: Path,
    *,
    home: Path,
    verify: Path | None = None,
    lanes: Mapping[str, Path] | None = None,
    n_rerun: int = 0,
    rerun_seed: int | None = None,
    data: Path | None = None,
) -> GateResult:
    """Judge B against A (and against the policy's champion). Evidence that must not be trusted is the outcome INVALID.

    `a` and `b` are evaluation folders or checkpoints (claim = checkpoint), or folders with one evaluation a training
    seed (claim = recipe). Raises :class:`~kat.errors.UsageError` for a wrong policy, name or option.
    """
    policy = read_policy(policy_file)
    noise = read_noise(place(policy_file, policy.noise)) if policy.noise is not None else None
    sides = [("main", a)]
    if policy.champion is not None:
        sides.append(("champion", str(place(policy_file, policy.champion))))
    seen = _Seen()
    opponents = [_opponent(role, name, b, policy, noise, home, data, seen) for role, name in sides]
    found = [*check_families(policy.verify, verify), *check_lanes(policy.lanes, lanes or {})]
    words, again = _evidence(seen, n_rerun, rerun_seed, data)
    conditions = [*found, *again]
    outcome = worst([*(one.outcome for one in opponents), *(one.outcome for one in conditions if one.required)])
    attempt = None
    if policy.ledger is not None:
        attempt, broken = _attempt(place(policy_file, policy.ledger), policy, seen, outcome)
        conditions.append(broken or Requirement("ledger", "PASS", f"attempt {attempt} on this policy and data"))
        outcome = worst([outcome, conditions[-1].outcome])
    return GateResult(
        schema=GATE_SCHEMA,
        created=now(),
        versions=versions(),
        policy=policy.model_dump(mode="json"),
        policy_hash=policy.hash,
        data_hash=seen.data_hash,
        b=b,
        outcome=outcome,
        exit_code=EXIT[outcome],
        sentence=_sentence(outcome, opponents, conditions, attempt),
        reasons=_reasons(opponents, conditions),
        opponents=opponents,
        conditions=[Condition(**asdict(one)) for one in conditions],
        evidence=words,
        attempt=attempt,
    )


def _opponent(
    role: str, a: str, b: str, policy: Policy, noise: Noise | None, home: Path, data: Path | None, seen: _Seen
) -> Opponent:
    judge: Callable[[Arm, Arm], Opponent] = (
        (lambda left, right: judge_checkpoints(role, left, right, policy, data))
        if policy.claim == "checkpoint"
        else (lambda left, right: judge_recipes(role, left, right, policy, noise, data))
    )
    try:
        right = _load(b, policy, home)
        seen.keep(role, right, candidate=True)
        left = _load(a, policy, home)
        seen.keep(role, left, candidate=False)
        return judge(left, right)
    except EvidenceError as error:
        return Opponent(role=role, a=a, outcome="INVALID", sentence=f"Invalid evidence: {error}")


def _load(name: str, policy: Policy, home: Path) -> Arm:
    """One side, its suite and its way of scoring held against the policy."""
    if policy.claim == "recipe":
        arm = load_arm(name, policy.suite, home)
    else:
        found = find_evaluation(name, policy.suite, home)
        arm = Arm(name, {0: Run(0, load_evidence(found.evals), found)}, recorded=False)
    for run in arm.runs.values():
        results = run.evidence.results
        if results.suite != policy.suite:
            raise EvidenceError(f"{run.evidence.folder}: of suite {results.suite}; the policy asks for {policy.suite}")
        forced = results.protocol.get("scoring") in FORCED_CHOICE
        if forced != (policy.measure == "knowledge"):
            kind = "forces a choice" if forced else "generates text"
            raise EvidenceError(
                f"{run.evidence.folder}: suite {results.suite} {kind}, but "
                f"the policy's measure is {policy.measure!r}; use another suite or declare another measure"
            )
    return arm


def _evidence(seen: _Seen, n: int, seed: int | None, data: Path | None) -> tuple[list[str], list[Requirement]]:
    """One word for each run; a run whose items come out otherwise is invalid. The draw differs from gate to gate, so
    that nobody can know which rows will be looked at."""
    if n < 1:
        return [f"{folder}: {UNVERIFIED} (no --rerun)" for folder in seen.runs], []
    draw = secrets.randbits(32) if seed is None else seed
    words, faults = [], []
    for folder, run in seen.runs.items():
        try:
            words.append(f"{folder}: {rerun(run.evidence, run.found, n, draw, data)}")
        except EvidenceError as error:
            words.append(f"{folder}: not what its checkpoint says")
            faults.append(Requirement("rerun", "INVALID", str(error)))
    return words, faults


def _attempt(path: Path, policy: Policy, seen: _Seen, outcome: Outcome) -> tuple[int | None, Requirement | None]:
    try:
        with open_ledger(path) as ledger:
            before, _ = ledger.attempts(policy.hash, seen.data_hash)
            ledger.append(policy.hash, seen.data_hash, seen.a, seen.b, outcome)
            return before + 1, None
    except EvidenceError as error:
        return None, Requirement("ledger", "INVALID", str(error))


def _sentence(
    outcome: Outcome, opponents: Sequence[Opponent], conditions: Sequence[Requirement], attempt: int | None
) -> str:
    """The first reason for the outcome; on a pass what main was found to be."""
    deciding = [
        one.sentence if one.role == "main" else f"Against the champion: {one.sentence}"
        for one in opponents
        if one.outcome == outcome
    ]
    deciding += [f"{one.name}: {one.sentence}" for one in conditions if one.required and one.outcome == outcome]
    said = f"{outcome}. {deciding[0]}"
    if attempt is not None:
        said = f"{said.rstrip('.')}. This is attempt {attempt} on this policy and data."
    return said


def _reasons(opponents: Sequence[Opponent], conditions: Sequence[Requirement]) -> list[str]:
    """Everything that kept the outcome from PASS, the worst first."""
    found = [(one.outcome, f"{one.role}: {one.sentence}") for one in opponents]
    found += [(one.outcome, f"{one.name}: {one.sentence}") for one in conditions if one.required]
    return [said for outcome, said in sorted(found, key=lambda one: WORST.index(one[0])) if outcome != "PASS"]
