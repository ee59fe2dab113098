"""The files of a study: the pre-registration that is written before any training, and one result for each arm and seed.

    STUDY/preregistration.json
    STUDY/results/<arm>-seed-<seed>.json

Both are versioned; a reader refuses a version it does not know. Every result carries the hash of the pre-registration
it was made under, so that a plan that was changed afterwards shows.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kat.errors import UsageError
from kat.runs.files import hash_json
from kat.stats.seeds import smallest_permutation_p
from kat.stats.study import FEWEST_SEEDS, Rules

PREREGISTRATION_SCHEMA: Literal["kat.preregistration/1"] = "kat.preregistration/1"
STUDY_RESULT_SCHEMA: Literal["kat.study-result/1"] = "kat.study-result/1"

Direction = Literal["better", "worse"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")


class Primary(BaseModel):
    """The metric that the claim is about."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    metric: str
    higher_is: Direction
    smallest_effect: float = Field(gt=0, description="the smallest gain of interest, in the metric's units")
    sd: float | None = Field(None, gt=0, description="the standard deviation over seeds that was expected")


class Guard(BaseModel):
    """The metric that must not get worse by the margin: the reward by a judge that no arm trained on."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    metric: str
    higher_is: Direction = "better"
    margin: float = Field(gt=0, description="in the metric's units")
    against: list[str] = Field(min_length=1, description="arms that the treatment must not be inferior to")
    sd: float | None = Field(None, gt=0, description="the standard deviation over seeds that was expected")


class Preregistration(BaseModel):
    """What is declared before the study; nothing of it may be changed afterwards."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_: Literal["kat.preregistration/1"] = Field(PREREGISTRATION_SCHEMA, alias="schema")
    name: str
    created: str
    question: str = Field(description="the claim in one sentence")
    arms: dict[str, dict[str, Any]] = Field(description="each arm's settings; they differ in `varies` alone")
    varies: list[str] = Field(min_length=1, description="the settings in which the arms differ")
    treatment: str
    comparisons: list[str] = Field(min_length=1, description="every arm that the treatment must beat")
    seeds: list[int]
    alpha: float = Field(0.05, gt=0, le=0.1)
    primary: Primary
    guard: Guard
    secondary: dict[str, Direction] = Field({}, description="metric to what a higher value is; Holm-corrected")
    beside: list[str] = Field([], description="metrics that are shown and not tested: length, KL")
    exclusions: list[str] = Field([], description="what is left out of a metric, in words")
    settings: dict[str, Any] = Field({}, description="what all arms share: prompts, window, embedder, judge …")

    def rules(self) -> Rules:
        """What the verdict needs of it."""
        return Rules(
            treatment=self.treatment,
            comparisons=tuple(self.comparisons),
            primary=self.primary.metric,
            primary_sign=sign(self.primary.higher_is),
            smallest_effect=self.primary.smallest_effect,
            guard=self.guard.metric,
            guard_sign=sign(self.guard.higher_is),
            margin=self.guard.margin,
            guard_against=tuple(self.guard.against),
            alpha=self.alpha,
        )

    def metrics(self) -> list[str]:
        """Every metric that a finished run must report, the primary first."""
        return [self.primary.metric, self.guard.metric, *self.secondary, *self.beside]

    def hash(self) -> str:
        """sha256 of the canonical JSON of the whole pre-registration."""
        return hash_json(self.model_dump(by_alias=True, mode="json"))

    @model_validator(mode="after")
    def _consistent(self) -> "Preregistration":
        if bad := [name for name in self.arms if not NAME.fullmatch(name)]:
            raise ValueError(f"arm {bad[0]!r}: letters, digits, _ and . only")
        if len(set(self.seeds)) < max(len(self.seeds), 1) or min(self.seeds, default=0) < 0:
            raise ValueError("seeds: different numbers from 0 are needed")
        for role, arms in (("comparisons", self.comparisons), ("guard.against", self.guard.against)):
            strangers = [arm for arm in arms if arm not in self.arms or arm == self.treatment]
            if strangers or len(set(arms)) < len(arms):
                raise ValueError(f"{role}: {', '.join(strangers) or 'twice the same'}; arms other than the treatment")
        if self.treatment not in self.arms:
            raise ValueError(f"treatment {self.treatment!r} is no arm")
        metrics = self.metrics()
        if twice := {name for name in metrics if metrics.count(name) > 1}:
            raise ValueError(f"metric {sorted(twice)[0]!r} has two roles; give it one")
        self._arms_differ()
        return self

    def _arms_differ(self) -> None:
        """Arms that differ in an undeclared setting, or in none, make no study."""
        names = sorted({name for arm in self.arms.values() for name in arm})
        missing = object()
        for name in names:
            values = {repr(arm.get(name, missing)) for arm in self.arms.values()}
            if len(values) > 1 and name not in self.varies:
                raise ValueError(f"arms: they differ in {name!r}, which `varies` does not declare")
        seen: dict[str, str] = {}
        for arm, settings in self.arms.items():
            if (other := seen.setdefault(hash_json(settings), arm)) != arm:
                raise ValueError(f"arms: {other} and {arm} have the same settings: the treatment is empty")


class StudyResult(BaseModel):
    """One run of one arm: its numbers, or that it diverged and how (so has a run whose metric can't be computed)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_: Literal["kat.study-result/1"] = Field(STUDY_RESULT_SCHEMA, alias="schema")
    preregistration: str = Field(description="hash of the pre-registration that the run was made under")
    arm: str
    seed: int
    outcome: Literal["finished", "diverged"]
    reason: str = Field("", description="of a run that diverged: how")
    metrics: dict[str, float] = Field({}, description="of a finished run: every declared metric, others beside")
    model_hash: str | None = Field(None, description="identity of the final weights")
    run: str | None = Field(None, description="where the run lies")

    @model_validator(mode="after")
    def _outcome(self) -> "StudyResult":
        if self.outcome == "diverged" and not self.reason.strip():
            raise ValueError("a run that diverged must say how (reason)")
        if self.outcome == "diverged" and self.metrics:
            raise ValueError("a run that diverged has no metrics: it counts as a run that diverged")
        return self


def sign(higher_is: Direction) -> int:
    """+1 where higher is better, −1 where it is worse."""
    return 1 if higher_is == "better" else -1


def check_enough_seeds(plan: Preregistration) -> None:
    """UsageError for a design that can't reach significance, before anything is trained."""
    k, needed = len(plan.seeds), FEWEST_SEEDS
    while smallest_permutation_p(needed, needed) > plan.alpha:
        needed += 1
    if k < needed:
        raise UsageError(
            f"{plan.name}: {k} seeds an arm; fewer than {needed} can't reach p = {plan.alpha:g} by any permutation "
            f"({k} against {k}: {smallest_permutation_p(k, k):.2g}), so declare at least {needed}"
        )
