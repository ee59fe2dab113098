"""Seed noise: a recipe run unchanged under several seeds, and what its spread lets anybody see.

Each seed is a run of its own (`runs/<recipe>-seed-<i>`), made by the same runner as `kat run`, and so resumable. Its
evidence is copied to one folder, which `kat gate` takes as an arm:

    <out>/noise.json
    <out>/seed-0/{results.json, samples.jsonl}
    <out>/seed-1/…
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import stats

from kat.errors import EvidenceError, UsageError
from kat.evals.folder import load_results
from kat.evals.store import RESULTS, SAMPLES, one_fault
from kat.pipeline.recipe import PLACEHOLDER, Recipe, Stage, load_recipe
from kat.pipeline.runner import Run
from kat.runs.files import new_folder, read_json, write_json
from kat.runs.provenance import now, versions
from kat.runs.schemas import Results
from kat.stats.power import mde_seeds, seeds_for_difference
from kat.stats.seeds import smallest_permutation_p

NOISE_SCHEMA = "kat.noise/1"
NOISE = "noise.json"
ASKED = (0.01, 0.02, 0.03)
LEVEL = 0.95


class Noise(BaseModel):
    """noise.json. Scores, mean and sd are in the metric's own units; `sd` is None below two seeds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_: str = Field(NOISE_SCHEMA, alias="schema")
    created: str
    versions: dict[str, str]
    recipe: str
    settings: list[str] = Field(description="the --set of the run")
    stage: str
    suite: str
    metric: str
    n_items: int
    same_items: bool = Field(description="every seed was evaluated on the same data")
    scores: dict[int, float] = Field(description="by seed")
    models: dict[int, str] = Field(description="identity of the evaluated weights by seed")
    mean: float
    sd: float | None
    sd_low: float | None = Field(description="χ² interval of the sd")
    sd_high: float | None
    level: float
    smallest_change: float | None = Field(description="found 80 % of the time with this many seeds a side")
    seeds_needed: dict[str, int] = Field(description="seeds a side for a change of so much")

    def sentences(self) -> list[str]:
        """What a person wants to know, in the order in which they ask it."""
        k = len(self.scores)
        named = f"{self.metric} of {self.stage} ({self.suite}, {self.n_items:,} items)"
        listed = ", ".join(f"{score:.4f}" for score in self.scores.values())
        lines = [f"{named} over {k} seed{'' if k == 1 else 's'}: mean {self.mean:.4f} ({listed})."]
        if self.sd is None:
            return [*lines, "One seed shows no noise: run at least two, better five."]
        lines.append(
            f"Seed noise: sd {self.sd:.4f}, {100 * self.level:g} % interval {self.sd_low:.4f} to {self.sd_high:.4f}."
        )
        if not self.same_items:
            lines.append("The evaluated items change with the seed, so this is the noise of seeds and items together.")
        if self.sd == 0:
            return [*lines, "Every seed scored the same: these items are too few or too easy to show any noise."]
        lines.append(f"With {k} seeds a side a change of {self.smallest_change:.4f} is found 80 % of the time.")
        needed = ", ".join(f"{change} needs {n:,}" for change, n in self.seeds_needed.items())
        lines.append(f"Seeds a side for a change of: {needed}.")
        lines.append(
            "So of two runs of this unchanged recipe one in twenty pairs differs by more than about "
            f"{1.96 * math.sqrt(2) * self.sd:.4f}."
        )
        return lines


def few_seeds(k: int) -> str | None:
    """What must be said before training: with fewer than 4 seeds a side no permutation of them gets below .05."""
    if k < 1:
        raise UsageError(f"--seeds {k}: at least 1 is needed")
    if k >= 4:
        return None
    if k == 1:
        return "1 seed: nothing about the noise can follow from it; 4 is the least that a comparison of recipes needs."
    least = smallest_permutation_p(k, k)
    return f"{k} seeds a side: no permutation test of two such arms gets below p = {least:.2f}; take at least 4."


def choose_stage(recipe: Recipe, wanted: str | None = None, suite: str | None = None) -> Stage:
    """The evaluation that is measured: the candidate's side of the recipe's audit, else its last evaluation."""
    evaluated = [stage for stage in recipe.stages if stage.words[0] == "eval" and stage.writes]
    if wanted is not None:
        stage = recipe.stage(wanted)
        if stage not in evaluated:
            raise UsageError(f"--stage {wanted}: no evaluation; there are {', '.join(one.name for one in evaluated)}")
        return stage
    if suite is not None:
        evaluated = [stage for stage in evaluated if stage.words[1] == suite]
    if not evaluated:
        raise UsageError(f"recipe {recipe.name}: no stage evaluates {'anything' if suite is None else suite}")
    names = {f"{{{stage.name}}}": stage for stage in evaluated}
    audited = [stage.words[2] for stage in recipe.stages if stage.words[0] == "audit" and len(stage.words) > 2]
    return next((names[word] for word in reversed(audited) if word in names), evaluated[-1])


def only(recipe: Recipe, stage: Stage) -> Recipe:
    """The recipe cut down to a stage and what it needs."""
    needed = {stage.name}
    for one in reversed(recipe.stages):
        if one.name in needed:
            needed |= set(one.needs)
    return replace(recipe, stages=tuple(one for one in recipe.stages if one.name in needed))


def noise(
    name: str,
    k: int,
    home: Path,
    out: Path,
    say: Callable[[str], None],
    *,
    assignments: Sequence[str] = (),
    stage: str | None = None,
    suite: str | None = None,
    jobs: int = 1,
) -> Noise:
    """Run the recipe with seeds 0 … k − 1 and write `out`; what is done already is not done again.

    Raises :class:`UsageError` for a recipe without a `seed` that reaches the measured stage, :class:`EvidenceError`
    where two seeds gave the same weights, and the runner's error where a stage fails: a seed that diverges is an
    outcome, and no noise is reported without it.
    """
    few_seeds(k)
    if any(text.partition("=")[0].strip() == "seed" for text in assignments):
        raise UsageError("--set seed=…: kat noise sets the seed itself")
    results: dict[int, Results] = {}
    measured: Stage | None = None
    for seed in range(k):
        recipe = load_recipe(name, assignments)
        if "seed" not in recipe.values:
            raise UsageError(f"recipe {recipe.name}: no top-level `seed`, so every run of it would be the same")
        recipe = load_recipe(name, [*assignments, f"seed={seed}"])
        measured = choose_stage(recipe, stage, suite)
        recipe = only(recipe, measured)
        if not any("seed" in PLACEHOLDER.findall(word) for one in recipe.stages for word in one.words):
            raise UsageError(f"recipe {recipe.name}: no stage before {measured.name} uses {{seed}}")
        folder = home / "runs" / f"{recipe.name}-seed-{seed}"
        Run(recipe, folder, _prefixed(say, f"seed {seed}: ")).execute(None, jobs)
        results[seed] = load_results(folder / measured.name / RESULTS)
        _copy(folder / measured.name, out / f"seed-{seed}", results[seed])
    assert measured is not None
    found = summarise(recipe.name, measured.name, results, list(assignments))
    write_json(out / NOISE, found.model_dump(by_alias=True, mode="json"))
    return found


def _prefixed(say: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda line: say(prefix + line)


def _copy(source: Path, target: Path, results: Results) -> None:
    if (target / RESULTS).is_file() and load_results(target / RESULTS).run_id == results.run_id:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as temporary:
        for name in (RESULTS, SAMPLES):
            shutil.copyfile(source / name, temporary / name)


def summarise(recipe: str, stage: str, results: dict[int, Results], settings: list[str]) -> Noise:
    """The noise of evaluated runs, by seed."""
    first = next(iter(results.values()))
    seen: dict[str, int] = {}
    for seed, one in results.items():
        if (other := seen.setdefault(one.model_hash, seed)) != seed:
            raise EvidenceError(
                f"recipe {recipe}: seeds {other} and {seed} gave the same weights, bit for bit; the seed does not "
                f"reach the training behind {stage}"
            )
    scores = {seed: one.metrics[one.primary].estimate for seed, one in results.items()}
    mean, sd, low, high = spread(list(scores.values()))
    k = len(scores)
    return Noise(
        schema=NOISE_SCHEMA,
        created=now(),
        versions=versions(),
        recipe=recipe,
        settings=settings,
        stage=stage,
        suite=first.suite,
        metric=first.primary,
        n_items=first.n_items,
        same_items=len({one.data_hash for one in results.values()}) == 1,
        scores=scores,
        models={seed: one.model_hash for seed, one in results.items()},
        mean=mean,
        sd=sd,
        sd_low=low,
        sd_high=high,
        level=LEVEL,
        smallest_change=mde_seeds(k, sd) if sd else None,
        seeds_needed={f"{change:g}": seeds_for_difference(change, sd) for change in ASKED} if sd else {},
    )


def spread(scores: Sequence[float]) -> tuple[float, float | None, float | None, float | None]:
    """Mean, sd with n − 1, and the sd's χ² interval: √((n − 1) s² / χ²)."""
    values = np.asarray(scores, dtype=np.float64)
    if values.size < 2:
        return float(values.mean()), None, None, None
    df, sd = values.size - 1, float(values.std(ddof=1))
    low, high = stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], df)
    return float(values.mean()), sd, sd * math.sqrt(df / low), sd * math.sqrt(df / high)


def read_noise(path: Path) -> Noise:
    """noise.json, its figures computed again from its scores."""
    path = path / NOISE if path.is_dir() else path
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != NOISE_SCHEMA:
        raise UsageError(f"{path}: not of schema {NOISE_SCHEMA}; it should be what kat noise wrote")
    try:
        found = Noise.model_validate(value)
    except ValidationError as error:
        raise UsageError(f"{path}: {one_fault(error)}; run kat noise again") from None
    if not found.scores:
        raise UsageError(f"{path}: no scores in it; run kat noise again")
    again = spread(list(found.scores.values()))
    for stated, computed in zip((found.mean, found.sd, found.sd_low, found.sd_high), again, strict=True):
        if (stated is None) != (computed is None) or abs((stated or 0.0) - (computed or 0.0)) > 1e-9:
            raise EvidenceError(f"{path}: its figures do not follow from its scores; it was edited, so run it again")
    return found
