"""B against one A: two checkpoints by their items, or two recipes by their training seeds."""

from collections.abc import Sequence
from pathlib import Path

from kat.audit.arms import Arm
from kat.audit.gate_schema import Figures, Opponent
from kat.audit.judge import Judgement, judge_items, judge_seeds, seeds_needed
from kat.audit.load import Evidence
from kat.audit.pair import Pair, pair
from kat.audit.policy import Policy
from kat.audit.questions import find_items
from kat.audit.table import table
from kat.audit.words import count
from kat.errors import EvidenceError
from kat.pipeline.noise import Noise
from kat.stats.compare import compare_paired


def judge_checkpoints(role: str, left: Arm, right: Arm, policy: Policy, data: Path | None) -> Opponent:
    """claim = checkpoint: these two, items as the unit."""
    paired = _pair(left.runs[0].evidence, right.runs[0].evidence, policy, data)
    notes = list(paired.notes)
    if paired.same_model and _identical(paired):
        if paired.a.recorded:  # two empty files are equal bit for bit
            _check_baseline(left)
        what = "responses" if paired.a.recorded else "weights"
        said = f"the same {what}, bit for bit, and every item scored the same"
        return _bit_identical(role, left.name, said, notes)
    _check_baseline(left)
    rows = table(paired)
    found = compare_paired(rows.a, rows.b, rows.score_type, rows.clusters)
    judged = judge_items(found, policy.margin, policy.min_power)
    return _judged(role, left.name, judged, notes)


def judge_recipes(role: str, left: Arm, right: Arm, policy: Policy, noise: Noise | None, data: Path | None) -> Opponent:
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
        if first.recorded:
            _check_baseline(left)
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
