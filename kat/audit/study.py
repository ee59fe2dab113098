"""Read a study and believe none of it: every run that was declared is there once, under the plan that was declared."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from kat.audit.study_schema import (
    PREREGISTRATION_SCHEMA,
    STUDY_RESULT_SCHEMA,
    Preregistration,
    StudyResult,
    check_enough_seeds,
)
from kat.errors import EvidenceError, UsageError
from kat.evals.store import one_fault
from kat.runs.files import read_json, write_json
from kat.stats.study import Judgement, Runs, judge

PREREGISTRATION = "preregistration.json"
RESULTS = "results"
SHOWN = 3

Run = tuple[str, int]
"""(arm, seed)"""


@dataclass(frozen=True)
class Study:
    """A whole study: the plan, its hash, and the result of every declared run. Build it with :func:`make_study`."""

    plan: Preregistration
    plan_hash: str
    results: dict[Run, StudyResult]

    def runs(self, arm: str, metric: str) -> Runs:
        """One arm on one metric, the finished runs in the order of the seeds."""
        found = [self.results[arm, seed] for seed in self.plan.seeds]
        values = [one.metrics[metric] for one in found if one.outcome == "finished"]
        return Runs(np.array(values, dtype=np.float64), len(found) - len(values))


def write_preregistration(folder: Path, plan: Preregistration) -> str:
    """Write the plan before anything is trained, and return its hash.

    Raises :class:`UsageError` for a design that can't reach significance, and where another plan stands there already.
    """
    check_enough_seeds(plan)
    path = folder / PREREGISTRATION
    if path.exists():
        if load_plan(path).hash() != plan.hash():
            raise UsageError(f"{path}: another pre-registration stands here; a plan is not changed, use a new folder")
        return plan.hash()
    write_json(path, plan.model_dump(by_alias=True, mode="json"))
    return plan.hash()


def write_result(folder: Path, result: StudyResult) -> Path:
    """Write one run's result to its place in the study."""
    path = folder / RESULTS / f"{result.arm}-seed-{result.seed}.json"
    write_json(path, result.model_dump(by_alias=True, mode="json"))
    return path


def load_plan(path: Path) -> Preregistration:
    """Read a pre-registration; a fault of it is a :class:`UsageError` that names it."""
    value = read_json(path)
    found = value.get("schema") if isinstance(value, dict) else None
    if found != PREREGISTRATION_SCHEMA:
        raise UsageError(f"{path}: schema {found!r}, this kat reads {PREREGISTRATION_SCHEMA!r}")
    try:
        return Preregistration.model_validate(value)
    except ValidationError as error:
        raise UsageError(f"{path}: {one_fault(error).removeprefix('Value error, ')}") from None


def load_study(folder: Path) -> Study:
    """Read a study's folder.

    Raises :class:`UsageError` where it is no study or its design can't reach significance, and :class:`EvidenceError`
    for a run that is missing, undeclared, of another plan, or without a declared metric.
    """
    folder = Path(folder)
    if not (folder / PREREGISTRATION).is_file():
        raise UsageError(f"{folder}: no {PREREGISTRATION} here; name the folder of a study")
    plan = load_plan(folder / PREREGISTRATION)
    check_enough_seeds(plan)
    paths = sorted((folder / RESULTS).glob("*.json"))
    results = [_load_result(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        if path.name != f"{result.arm}-seed-{result.seed}.json":
            raise EvidenceError(f"{path}: holds {result.arm}, seed {result.seed}; a result was moved or copied")
    return make_study(plan, results, str(folder))


def make_study(plan: Preregistration, results: Iterable[StudyResult], where: str = "the study") -> Study:
    """The study of these results, checked as :func:`load_study` says; a missing seed is invalid until it is rerun."""
    check_enough_seeds(plan)
    plan_hash, metrics = plan.hash(), plan.metrics()
    found: dict[Run, StudyResult] = {}
    weights: dict[str, Run] = {}
    declared = {(arm, seed) for arm in plan.arms for seed in plan.seeds}
    for result in results:
        run = (result.arm, result.seed)
        if run not in declared:
            raise EvidenceError(f"{where}: {_name(run)} was not declared; a study has no runs beside its plan")
        if run in found:
            raise EvidenceError(f"{where}: {_name(run)} is there twice")
        if result.preregistration != plan_hash:
            raise EvidenceError(
                f"{where}: {_name(run)} was made under plan {result.preregistration[:12]}, this one is "
                f"{plan_hash[:12]}: the pre-registration was changed"
            )
        if result.outcome == "finished" and (lacking := [name for name in metrics if name not in result.metrics]):
            raise EvidenceError(f"{where}: {_name(run)} lacks the declared metric {lacking[0]}; evaluate it again")
        if result.model_hash is not None and (other := weights.setdefault(result.model_hash, run)) != run:
            raise EvidenceError(
                f"{where}: {_name(other)} and {_name(run)} have the same weights, bit for bit: one run was copied, or "
                "neither seed nor arm reaches the training"
            )
        found[run] = result
    if len(found) < len(declared):
        missing = [(arm, seed) for arm in plan.arms for seed in plan.seeds if (arm, seed) not in found]
        names = ", ".join(_name(run) for run in missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        raise EvidenceError(
            f"{where}: {len(missing)} of {len(declared)} runs missing ({names}); run them: no verdict without them, "
            "and a run that diverged is written down as diverged"
        )
    return Study(plan, plan_hash, found)


def judge_study(study: Study) -> Judgement:
    """The verdict on a whole study, by the rules that its plan declares."""
    rules = study.plan.rules()
    arms = dict.fromkeys((rules.treatment, *rules.comparisons, *rules.guard_against))
    return judge(rules, {arm: {name: study.runs(arm, name) for name in (rules.primary, rules.guard)} for arm in arms})


def _load_result(path: Path) -> StudyResult:
    try:
        value = read_json(path)
    except UsageError as error:
        raise EvidenceError(f"{error}; run it again") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if found != STUDY_RESULT_SCHEMA:
        raise EvidenceError(f"{path}: schema {found!r}, this kat reads {STUDY_RESULT_SCHEMA!r}")
    try:
        return StudyResult.model_validate(value)
    except ValidationError as error:
        raise EvidenceError(f"{path}: {one_fault(error).removeprefix('Value error, ')}") from None


def _name(run: Run) -> str:
    return f"{run[0]} seed {run[1]}"
