"""A study: one chain of stages under several arms and seeds, declared before it runs, judged when all of it is there.

A study is a recipe with three tables more:

    seeds = 8                                   # of every arm: 0 … 7
    [study]                                     # the pre-registration (kat.audit.study_schema), and where metrics are
    [arms.uniform]                              # each arm's `stage.setting = value`
    [chain.grpo]                                # stages that are run for every arm and seed; {seed} is the run's seed

The stages of [stages] are shared: they come before the arms differ and are run once. Everything of [chain] is run
again for each arm and seed, so that a replicate is the whole chain from where the arms differ.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from kat.audit.study import load_plan, load_study, write_preregistration, write_result
from kat.audit.study_page import lines
from kat.audit.study_report import StudyReport, heaviest, plan_sentence, report, write_report
from kat.audit.study_schema import Preregistration, StudyResult, check_enough_seeds
from kat.density.folder import read_density
from kat.errors import EvidenceError, UsageError
from kat.evals.folder import load_results
from kat.evals.store import RESULTS, one_fault
from kat.model.checkpoint import read_meta
from kat.pipeline.recipe import PLACEHOLDER, Recipe, command, make_recipe, read_recipe
from kat.pipeline.runner import Run, StageError
from kat.runs.provenance import now

__all__ = ["StudyRecipe", "is_study", "lines", "load_study_recipe", "run_study"]

STUDY = "study"
PREREGISTRATION = "preregistration.json"
DIVERGED = [1]  # the exit code of a run that collapsed or became unstable: an outcome, not missing data
LAST_SHARE = 0.1  # of a training log's rows, over which a metric of training is averaged


@dataclass(frozen=True)
class StudyRecipe:
    """A study as a recipe of all its runs. `metrics` maps a declared metric to `stage:name` of the chain."""

    recipe: Recipe
    shared: tuple[str, ...]
    chain: tuple[str, ...]
    plan: Preregistration
    metrics: Mapping[str, str]


def is_study(name: str) -> bool:
    """Whether a recipe's file has a [study] table."""
    return STUDY in read_recipe(name)[1]


def load_study_recipe(name: str, assignments: list[str]) -> StudyRecipe:
    """Read a study's file. `assignments` are `value=…`, `stage.setting=…` of shared stages or of the chain's.

    Raises :class:`UsageError` for an impossible design: too few seeds, arms that differ in an undeclared setting or in
    none, a metric that no stage of the chain gives.
    """
    title, content = read_recipe(name)
    for table in (STUDY, "arms", "chain", "stages"):
        if not isinstance(content.get(table), dict) or not content[table]:
            raise UsageError(f"{name}: a study needs a [{table}] table")
    declared, arms, chain = dict(content[STUDY]), content["arms"], content["chain"]
    rest = {key: value for key, value in content.items() if key not in (STUDY, "arms", "chain")}
    # One pass over a recipe that holds the chain once applies the assignments and says what is wrong with a stage.
    once = make_recipe(title, {**rest, "stages": {**rest["stages"], **chain}, "seed": 0}, assignments, name)
    n_seeds = once.values.get("seeds")
    if not isinstance(n_seeds, int) or isinstance(n_seeds, bool) or n_seeds < 1:
        raise UsageError(f"{name}: seeds is {n_seeds!r}; it is the number of seeds of each arm")
    metrics = declared.pop("metrics", None)
    if not isinstance(metrics, dict) or not metrics:
        raise UsageError(f'{name}: [study.metrics] says where each metric is: name = "stage:metric"')
    for metric, place in metrics.items():
        if not isinstance(place, str) or place.partition(":")[0] not in chain or not place.partition(":")[2]:
            raise UsageError(f"{name}: metric {metric} is {place!r}; write stage:metric with a stage of the chain")
    shared = tuple(stage.name for stage in once.stages if stage.name not in chain)
    steps = {
        stage.name: {"words": list(stage.words), "settings": dict(stage.settings), "processes": stage.processes}
        for stage in once.stages
    }
    plan = _plan(name, title, declared, arms, list(range(n_seeds)), {"stages": steps, "metrics": metrics})
    if lacking := [metric for metric in plan.metrics() if metric not in metrics]:
        raise UsageError(f"{name}: [study.metrics] does not say where {lacking[0]} is")
    stages = {key: _table(once, key) for key in shared}
    for arm, settings in arms.items():
        _check_arm(name, arm, settings, chain)
        for seed in plan.seeds:
            for key in chain:
                stages[f"{arm}/seed-{seed}/{key}"] = _of_run(_table(once, key), arm, seed, key, settings, tuple(chain))
    values = {key: value for key, value in once.values.items() if key != "seed"}
    return StudyRecipe(make_recipe(title, {**values, "stages": stages}, [], name), shared, tuple(chain), plan, metrics)


def _plan(where: str, title: str, declared: dict[str, Any], arms: Any, seeds: list[int], more: Any) -> Preregistration:
    try:
        plan = Preregistration.model_validate(
            {**declared, "name": title, "created": now(), "arms": arms, "seeds": seeds, "settings": more}
        )
    except ValidationError as error:
        raise UsageError(f"{where}: {one_fault(error).removeprefix('Value error, ')}") from None
    check_enough_seeds(plan)
    return plan


def _table(recipe: Recipe, name: str) -> dict[str, Any]:
    """The stage as a recipe's table again, its command as words."""
    stage = recipe.stage(name)
    table = {"command": stage.words, "settings": dict(stage.settings), "processes": stage.processes}
    return table | ({"exits": list(stage.exits)} if stage.exits else {})


def _check_arm(where: str, arm: str, settings: Any, chain: Mapping[str, Any]) -> None:
    if not isinstance(settings, dict) or not settings:
        raise UsageError(f"{where}: arm {arm} is empty; state its setting, also where it is the default")
    for key in settings:
        if key.rpartition(".")[0] not in chain:
            raise UsageError(f"{where}: arm {arm}: {key!r} is no stage.setting of the chain ({', '.join(chain)})")


def _of_run(
    table: dict[str, Any], arm: str, seed: int, name: str, settings: Mapping[str, Any], chain: tuple[str, ...]
) -> dict[str, Any]:
    """The stage for one arm and seed: it reads its own run's stages, and may diverge."""
    own = {key.rpartition(".")[2]: value for key, value in settings.items() if key.rpartition(".")[0] == name}

    def fill(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [fill(part) for part in value]
        if not isinstance(value, str):
            return value
        return PLACEHOLDER.sub(lambda match: _place(match[1], arm, seed, chain), value)

    filled = {key: fill(value) for key, value in {**table["settings"], **own}.items()}
    return {**table, "command": fill(table["command"]), "settings": filled, "exits": DIVERGED}


def _place(name: str, arm: str, seed: int, chain: tuple[str, ...]) -> str:
    if name == "seed":
        return str(seed)
    return f"{{{arm}/seed-{seed}/{name}}}" if name in chain else f"{{{name}}}"


def run_study(study: StudyRecipe, folder: Path, say: Callable[[str], None], jobs: int) -> StudyReport:
    """Declare, run what is not there yet, judge; the report lies in `folder`/study/report.

    A run that ends with exit code 1 is written down as diverged. Raises what the runner raises where a stage fails
    otherwise, EvidenceError where the treatment turns out to be empty, before any arm is trained.
    """
    plan = _registered(study.plan, folder / STUDY)
    say(plan_sentence(plan))
    shared = replace(study.recipe, stages=tuple(s for s in study.recipe.stages if s.name in study.shared))
    Run(shared, folder, say).execute(None, jobs)
    check_treatment(study, folder)
    run = Run(study.recipe, folder, say)
    try:
        run.execute(None, jobs)
    except StageError as error:
        if error.exit_code not in DIVERGED:
            raise
    for arm in plan.arms:
        for seed in plan.seeds:
            write_result(folder / STUDY, result_of(study, plan, run, arm, seed))
    densities = density_folders(study, folder)
    found = report(load_study(folder / STUDY), heaviest(densities[0]) if densities else ())
    write_report(found, folder / STUDY / "report")
    return found


def _registered(plan: Preregistration, folder: Path) -> Preregistration:
    """The plan as it was first written: a study that goes on keeps its date, and may not change anything else."""
    path = folder / PREREGISTRATION
    if path.exists():
        plan = plan.model_copy(update={"created": load_plan(path).created})
    write_preregistration(folder, plan)
    return plan


def density_folders(study: StudyRecipe, folder: Path) -> list[Path]:
    """The folders of density weights that any arm uses."""
    found = {
        word.partition("=")[2].strip("'\"")
        for stage in study.recipe.stages
        if stage.name not in study.shared
        for word in command(study.recipe, stage, folder)
        if word.startswith("density=")
    }
    return [Path(text) for text in sorted(found)]


def check_treatment(study: StudyRecipe, folder: Path) -> None:
    """Refuse weights that would treat nothing: half of the prompts at least must count, and the dose must be there."""
    for path in density_folders(study, folder):
        said = read_density(path, embeddings=False)
        weights = np.asarray(said.weights, dtype=np.float64)
        n, dose = len(weights), float(np.abs(weights - 1 / len(weights)).sum() / 2)
        effective = float(1 / np.square(weights).sum())
        if dose < said.metadata.dose - 1e-3:
            raise EvidenceError(
                f"{path}: weights {dose:.3f} from uniform, declared {said.metadata.dose:g}: empty treatment"
            )
        if effective < n / 2 * (1 - 1e-6):
            raise EvidenceError(
                f"{path}: an effective sample of {effective:.0f} of {n} prompts, less than half: too steep"
            )


def result_of(study: StudyRecipe, plan: Preregistration, run: Run, arm: str, seed: int) -> StudyResult:
    """What one run came to, read from what its stages wrote."""
    here = run.folder / arm / f"seed-{seed}"
    common: dict[str, Any] = {
        "preregistration": plan.hash(),
        "arm": arm,
        "seed": seed,
        "run": f"{arm}/seed-{seed}",
    }
    for name in study.chain:
        stage = study.recipe.stage(f"{arm}/seed-{seed}/{name}")
        if code := run.exit_code(stage):
            if code not in DIVERGED:
                raise EvidenceError(f"{stage.name}: ended with exit code {code}: neither finished nor diverged")
            return StudyResult(**common, outcome="diverged", reason=f"{name}: {run.last_line(stage)}")
    values = {metric: metric_of(here, place) for metric, place in study.metrics.items()}
    trained = [here / name / "kat.json" for name in study.chain if (here / name / "kat.json").is_file()]
    model = read_meta(trained[-1].parent)["identity"] if trained else None
    return StudyResult(**common, outcome="finished", metrics=values, model_hash=model)


def metric_of(run: Path, place: str) -> float:
    """`stage:name`: the estimate of an evaluation, or the mean over the last tenth of a training log."""
    stage, _, name = place.partition(":")
    folder = run / stage
    if (folder / RESULTS).is_file():
        metrics = load_results(folder / RESULTS).metrics
        if name not in metrics:
            raise UsageError(f"{folder}: no metric {name!r}; there are {', '.join(metrics)}")
        return metrics[name].estimate
    if not (folder / "metrics.jsonl").is_file():
        raise EvidenceError(f"{folder}: neither {RESULTS} nor metrics.jsonl; run the study again")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [row[name] for row in rows if name in row]
    if not values:
        raise UsageError(f"{folder}: its training log has no {name!r}")
    return float(np.mean(values[-max(1, round(LAST_SHARE * len(values))) :]))
