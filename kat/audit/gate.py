"""The merge gate: one outcome for "may B replace A?", by the rules that a policy declared beforehand.

B is judged against main and against a pinned champion (ten merges at −1.9 points with a margin of 2 would lose 19
against a main that moves with them); the worst outcome of all opponents and requirements is the gate's.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kat.audit.arms import Arm, Run, load_arm
from kat.audit.find import find_evaluation
from kat.audit.judge import Judgement, Outcome, judge_items, judge_seeds, seeds_needed
from kat.audit.ledger import items_hash, open_ledger
from kat.audit.load import Evidence, load_evidence
from kat.audit.pair import Pair, pair
from kat.audit.policy import FORCED_CHOICE, Policy, place, read_policy
from kat.audit.questions import find_items
from kat.audit.requirements import Requirement, check_families, check_lanes
from kat.audit.rerun import UNVERIFIED, rerun
from kat.audit.table import table
from kat.audit.words import count
from kat.errors import EvidenceError
from kat.pipeline.noise import Noise, read_noise
from kat.runs.provenance import now, versions
from kat.stats.compare import compare_paired

GATE_SCHEMA = "kat.gate/1"
EXIT: Mapping[Outcome, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4}
WORST: Sequence[Outcome] = ("INVALID", "FAIL", "INCONCLUSIVE", "PASS")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Figures(_Part):
    """The numbers behind an outcome; scores and differences are shares."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    level: float
    method: str
    unit: str = Field(description="what was taken to be independent: item, cluster or seed")
    n_units: int
    power: float = Field(description="chance that two equal models would have passed")
    needed: int | None = Field(description="items, or seeds a side, at which that chance is .8")
    needed_observed: int | None = Field(description="the same where the true difference is the one observed")


class Opponent(_Part):
    """B against one A. `scores_a` and `scores_b` are by training seed, claim = recipe."""

    role: str = Field(description="main or champion")
    a: str
    outcome: Outcome
    sentence: str
    bit_identical: bool = False
    figures: Figures | None = None
    scores_a: dict[int, float] | None = None
    scores_b: dict[int, float] | None = None
    notes: list[str] = []


class Condition(_Part):
    """A required family, lane, regeneration or ledger; `required` False is only said."""

    name: str
    outcome: Outcome
    sentence: str
    required: bool = True


class GateResult(_Part):
    """What `kat gate` says; gate.json is this."""

    schema_: str = Field(GATE_SCHEMA, alias="schema")
    created: str
    versions: dict[str, str]
    policy: dict[str, object]
    policy_hash: str
    data_hash: str | None = Field(description="sha256 over the content hashes of the items; null where none was read")
    b: str
    outcome: Outcome
    exit_code: int
    sentence: str
    reasons: list[str]
    opponents: list[Opponent]
    conditions: list[Condition]
    evidence: list[str] = Field(description="for each run: verified, or consistent, not verified, and why")
    attempt: int | None = None


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


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """INVALID before FAIL before INCONCLUSIVE before PASS."""
    return min(outcomes, key=WORST.index)


def _opponent(
    role: str, a: str, b: str, policy: Policy, noise: Noise | None, home: Path, data: Path | None, seen: _Seen
) -> Opponent:
    judge: Callable[[Arm, Arm], Opponent] = (
        (lambda left, right: _checkpoints(role, left, right, policy, data))
        if policy.claim == "checkpoint"
        else (lambda left, right: _recipes(role, left, right, policy, noise, data))
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


def _checkpoints(role: str, left: Arm, right: Arm, policy: Policy, data: Path | None) -> Opponent:
    """claim = checkpoint: these two, items as the unit."""
    paired = _pair(left.runs[0].evidence, right.runs[0].evidence, policy, data)
    notes = list(paired.notes)
    if paired.same_model and _identical(paired):
        what = "responses" if paired.a.recorded else "weights"
        said = f"the same {what}, bit for bit, and every item scored the same"
        return _bit_identical(role, left.name, said, notes)
    _check_baseline(left)
    rows = table(paired)
    found = compare_paired(rows.a, rows.b, rows.score_type, rows.clusters)
    judged = judge_items(found, policy.margin, policy.min_power)
    return _judged(role, left.name, judged, notes)


def _recipes(role: str, left: Arm, right: Arm, policy: Policy, noise: Noise | None, data: Path | None) -> Opponent:
    """claim = recipe: the training seed is the unit; one run a side passes only where its bits are equal."""
    notes = [] if left.recorded and right.recorded else ["Seeds are not recorded: runs are matched by their order."]
    known = {run.evidence.results.run_id for run in left.runs.values()}
    for run in right.runs.values():
        if run.evidence.results.run_id in known:
            raise EvidenceError(f"{run.evidence.folder}: a run compared with itself (it is one of A's too)")
    first = left.runs[min(left.runs)].evidence
    others = [run.evidence for arm in (left, right) for run in arm.runs.values() if run.evidence is not first]
    for other in others:
        notes += [note for note in _pair(first, other, policy, data).notes if note not in notes]
    shared = [seed for seed in right.runs if seed in left.runs]
    equal = [seed for seed in shared if _same_bits(left.runs[seed].evidence, right.runs[seed].evidence)]
    if equal and len(equal) == len(right.runs):
        said = f"the same weights, bit for bit, for {_seeds(equal)}, and every item scored the same"
        return _bit_identical(role, left.name, said, notes)
    _check_baseline(left)
    scores_a, scores_b = _scores(left), _scores(right)
    if min(len(scores_a), len(scores_b)) < policy.min_seeds:
        needed = seeds_needed(policy.margin, noise.sd) if noise is not None and noise.sd else None
        seeds = max(policy.min_seeds, needed or 0)
        said = (
            f"{len(scores_a)} and {count(len(scores_b), 'training run')}, whose bits differ: nothing about a recipe "
            f"follows from fewer than {policy.min_seeds} seeds a side. About {count(seeds, 'seed')} a side decide."
        )
        return Opponent(
            role=role,
            a=left.name,
            outcome="INCONCLUSIVE",
            sentence=said,
            scores_a=scores_a,
            scores_b=scores_b,
            notes=notes,
        )
    if noise is not None and noise.suite != policy.suite:
        raise EvidenceError(f"the policy's noise was measured on {noise.suite}, not on {policy.suite}")
    measured = (noise.sd, len(noise.scores)) if noise is not None and noise.sd is not None else None
    judged = judge_seeds(list(scores_a.values()), list(scores_b.values()), policy.margin, policy.min_power, measured)
    one = _judged(role, left.name, judged, notes)
    return one.model_copy(update={"scores_a": scores_a, "scores_b": scores_b})


def _pair(a: Evidence, b: Evidence, policy: Policy, data: Path | None) -> Pair:
    """Pair two runs, hold them against the data file where it is there, and refuse prompts that may have differed."""
    paired = pair(a, b)
    find_items(paired, data)
    if policy.allow_different_prompts:
        return paired
    for n, what in ((paired.n_prompts_differ, "differ"), (paired.n_prompts_unrecorded, "were not recorded")):
        if n:
            raise EvidenceError(
                f"the prompts of {count(n, 'row')} {what} between {a.folder} and {b.folder}; evaluate both alike, or "
                "say allow_different_prompts = true in the policy"
            )
    return paired


def _identical(paired: Pair) -> bool:
    """Whether equal weights gave equal scores. Greedy or scored answers of equal weights cannot differ."""
    if all(item.score_a == item.score_b for item in paired.items):
        return True
    if paired.a.results.protocol.get("temperature", 0) == 0:
        raise EvidenceError(
            f"{paired.a.folder} and {paired.b.folder} name the same weights, bit for bit, and score otherwise: one of "
            "them is not the evaluation of these weights, or it cannot be repeated"
        )
    return False


def _same_bits(a: Evidence, b: Evidence) -> bool:
    return a.results.model_hash == b.results.model_hash and _identical(pair(a, b))


def _check_baseline(arm: Arm) -> None:
    """Refuse a baseline without one readable answer. A candidate that fell silent is a regression, not a fault."""
    if any(
        row.extracted is not None for run in arm.runs.values() for rows in run.evidence.items.values() for row in rows
    ):
        return
    n = sum(len(run.evidence.items) for run in arm.runs.values())
    raise EvidenceError(
        f"{arm.name}: no readable answer to any of {count(n, 'item')}; a silent baseline proves nothing"
    )


def _scores(arm: Arm) -> dict[int, float]:
    return {seed: run.evidence.results.metrics[run.evidence.results.primary].estimate for seed, run in arm.runs.items()}


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _bit_identical(role: str, a: str, said: str, notes: list[str]) -> Opponent:
    sentence = f"Bit-identical: {said}."
    return Opponent(role=role, a=a, outcome="PASS", sentence=sentence, bit_identical=True, notes=notes)


def _judged(role: str, a: str, judged: Judgement, notes: list[str]) -> Opponent:
    gap = judged.difference
    figures = Figures(
        a=judged.mean_a,
        b=judged.mean_b,
        difference=gap.estimate,
        low=gap.low,
        high=gap.high,
        level=gap.level,
        method=gap.method,
        unit=judged.unit,
        n_units=judged.n_units,
        power=judged.power,
        needed=judged.needed,
        needed_observed=judged.needed_observed,
    )
    return Opponent(role=role, a=a, outcome=judged.outcome, sentence=judged.sentence, figures=figures, notes=notes)


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
