"""A study judged, with everything that stands beside the verdict: study.json, study.md and study.html hold this."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import special

from kat.audit.study import Study, judge_study
from kat.audit.study_schema import Direction, Preregistration, sign
from kat.audit.study_words import number, qualifications, verdict_sentence
from kat.runs.provenance import now, versions
from kat.stats.multiplicity import holm
from kat.stats.study import Judgement, Runs, Word, compare_arms
from kat.stats.study_power import Noise, alike, seeds_needed, study_mde

STUDY_REPORT_SCHEMA: Literal["kat.study-report/1"] = "kat.study-report/1"
POWER = 0.8
METHODS = (
    "The unit is the training seed; a replicate is the whole chain from the first stage at which the arms differ. "
    "Responses are never pooled and seeds are not paired by prompt.",
    "Each part of the claim must hold by Welch's t over seeds and by the exact permutation of seeds between the two "
    "arms (the larger of the two p): the treatment's gain over every comparator at two-sided α, the guard not inferior "
    "by the margin at one-sided α. All parts must hold (an intersection-union test), so none is corrected.",
    "Not supported is said only where a part is refuted: a gain as large as the smallest one of interest is excluded, "
    "or the guard is inferior beyond the margin, at α divided by the number of parts. All else is undecided.",
    "A diverged run is an outcome. With one among the compared runs the part is tested on ranks: the treatment's "
    "diverged run ranks worst, a comparator's against what is being concluded; so a diverged run never helps a claim. "
    "Intervals and means are then of the finished runs. A missing run makes the study invalid until it is run.",
    "Secondary metrics: Welch and exact permutation, the larger p, Holm over all secondary metrics and arms. Intervals "
    "are Welch's and not corrected.",
)


class ArmSummary(BaseModel):
    """One arm on one metric. Mean, sd and its t interval are of the finished runs; None where there are too few."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    arm: str
    values: dict[int, float | None] = Field(description="by seed; null where the run diverged")
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


class Contrast(BaseModel):
    """Treatment − another arm on one metric, in its units."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    against: str
    difference: float | None
    low: float | None
    high: float | None
    level: float
    welch_p: float | None = Field(description="null, as the next, of metrics that stand beside: not tested")
    permutation_p: float | None
    p_adjusted: float | None = Field(description="Holm, of secondary metrics: of the larger of the two")
    hedges_g: float | None
    p_above: float = Field(description="P(a run of the treatment is better than one of the other arm)")
    on_ranks: bool
    word: str = Field(description="better | worse | not shown, by the metric's direction; '' where none is declared")


class MetricReport(BaseModel):
    """One metric over all arms."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    role: Literal["primary", "guard", "secondary", "beside"]
    higher_is: Direction | None
    arms: list[ArmSummary]
    contrasts: list[Contrast]


class PartReport(BaseModel):
    """One part of the claim; see :class:`kat.stats.study.Part`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["primary", "guard"]
    against: str
    p: float
    holds: bool
    p_against: float
    refuted: bool
    on_ranks: bool


class RunLine(BaseModel):
    """One run as it ended."""

    model_config = ConfigDict(extra="forbid")

    arm: str
    seed: int
    outcome: str
    reason: str
    model_hash: str | None
    run: str | None


class Heavy(BaseModel):
    """One of the prompts that the density weights make most of: what the treatment really did, for people to read."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: str
    times_uniform: float = Field(description="its weight over 1/n")
    source: str
    text: str = Field(description="the start of the prompt")


class StudyReport(BaseModel):
    """study.json. `mde` is the effect that the verdict finds 80 % of the time at the declared noise."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_: Literal["kat.study-report/1"] = Field(STUDY_REPORT_SCHEMA, alias="schema")
    created: str
    versions: dict[str, str]
    plan: Preregistration
    plan_hash: str
    word: Word
    sentence: str
    qualifications: list[str]
    parts: list[PartReport]
    metrics: list[MetricReport]
    runs: list[RunLine]
    mde: float | None
    seeds_needed: int | None
    heaviest: list[Heavy]
    methods: list[str]


def heaviest(folder: Path) -> list[Heavy]:
    """The 50 heaviest prompts of a density folder, heaviest first."""
    from kat.density import report as density_report
    from kat.density.folder import read_density

    found = density_report.heaviest(read_density(folder, embeddings=False))
    return [Heavy(id=row.id, times_uniform=share, source=row.source, text=row.text) for row, share in found]


def report(study: Study, heaviest: Sequence[Heavy] = ()) -> StudyReport:
    """Judge a study and put all figures together."""
    plan, judgement = study.plan, judge_study(study)
    metrics = [_metric(study, name) for name in plan.metrics()]
    _adjust(metrics)
    needed = seeds_from(study, judgement)
    mde = declared_mde(plan)
    by_name = {metric.name: {one.against: one for one in metric.contrasts} for metric in metrics}
    diverged = [one for one in study.results.values() if one.outcome == "diverged"]
    return StudyReport(
        schema=STUDY_REPORT_SCHEMA,
        created=now(),
        versions=versions(),
        plan=plan,
        plan_hash=study.plan_hash,
        word=judgement.word,
        sentence=verdict_sentence(plan, judgement, by_name, needed),
        qualifications=qualifications(plan, judgement, by_name, mde, diverged),
        parts=[PartReport(**vars(part)) for part in judgement.parts],
        metrics=metrics,
        runs=[
            RunLine(arm=arm, seed=seed, outcome=r.outcome, reason=r.reason, model_hash=r.model_hash, run=r.run)
            for arm in plan.arms
            for seed in plan.seeds
            for r in [study.results[arm, seed]]
        ],
        mde=mde,
        seeds_needed=needed,
        heaviest=list(heaviest),
        methods=list(METHODS),
    )


def declared_mde(plan: Preregistration) -> float | None:
    """The gain that "supported" is said of in 80 % of studies, at the noise that the plan declares; None without it,
    and where the margin is too small for the reward's noise."""
    if plan.primary.sd is None or plan.guard.sd is None:
        return None
    noise = alike(plan.primary.sd, len(plan.comparisons), plan.guard.sd, len(plan.guard.against))
    return study_mde(len(plan.seeds), noise, plan.guard.margin, plan.alpha, POWER)


def plan_sentence(plan: Preregistration) -> str:
    """What the study can show, to be said before it is run."""
    k = len(plan.seeds)
    design = f"{len(plan.arms)} arms × {k} seeds = {len(plan.arms) * k} runs"
    if plan.primary.sd is None or plan.guard.sd is None:
        return f"{design}. No noise is declared (primary.sd, guard.sd), so what it can find is not known beforehand."
    mde, asked = declared_mde(plan), number(plan.primary.smallest_effect)
    if mde is None:
        return (
            f"{design}. With a noise of {number(plan.guard.sd)} in {plan.guard.metric}, a margin of "
            f"{number(plan.guard.margin)} is too small for {k} seeds: arms of equal {plan.guard.metric} would not be "
            f"called so {100 * POWER:.0f} % of the time, so no gain, however large, would be found that often."
        )
    reach = "within reach" if mde <= plan.primary.smallest_effect else "NOT within reach"
    return (
        f"{design}. At the declared noise a true gain of {number(mde)} in {plan.primary.metric} is found 80 % of the "
        f"time; the smallest one of interest, {asked}, is {reach}."
    )


def seeds_from(study: Study, judgement: Judgement) -> int | None:
    """Seeds an arm that a new study needs to find the smallest gain of interest 80 % of the time, with the spread seen
    in this one; None where it is decided, where the spread is not known, and beyond 2,000."""
    plan = study.plan
    if judgement.word != "undecided":
        return None
    arms = {
        plan.primary.metric: (plan.treatment, *plan.comparisons),
        plan.guard.metric: (plan.treatment, *plan.guard.against),
    }
    sds = []
    for metric, names in arms.items():
        found = [study.runs(arm, metric).values for arm in names]
        if any(values.size < 2 for values in found):
            return None
        sds.append(tuple(float(values.std(ddof=1)) for values in found))
    return seeds_needed(plan.primary.smallest_effect, Noise(*sds), plan.guard.margin, plan.alpha, POWER)


def _metric(study: Study, name: str) -> MetricReport:
    plan = study.plan
    direction: Mapping[str, Direction] = {
        plan.primary.metric: plan.primary.higher_is,
        plan.guard.metric: plan.guard.higher_is,
        **plan.secondary,
    }
    higher_is = direction.get(name)
    role: Literal["primary", "guard", "secondary", "beside"] = "secondary" if name in plan.secondary else "beside"
    role = "primary" if name == plan.primary.metric else "guard" if name == plan.guard.metric else role
    others = [arm for arm in plan.arms if arm != plan.treatment]
    return MetricReport(
        name=name,
        role=role,
        higher_is=higher_is,
        arms=[_arm(study, arm, name) for arm in plan.arms],
        contrasts=[
            _contrast(arm, study.runs(arm, name), study.runs(plan.treatment, name), higher_is, plan.alpha)
            for arm in others
        ],
    )


def _arm(study: Study, arm: str, metric: str) -> ArmSummary:
    values = study.runs(arm, metric).values
    mean = float(values.mean()) if values.size else None
    sd = low = high = None
    if mean is not None and values.size > 1:
        sd = float(values.std(ddof=1))
        half = float(special.stdtrit(values.size - 1, 0.975)) * sd / math.sqrt(values.size)
        low, high = mean - half, mean + half
    by_seed = {seed: study.results[arm, seed].metrics.get(metric) for seed in study.plan.seeds}
    return ArmSummary(arm=arm, values=by_seed, mean=mean, sd=sd, low=low, high=high)


def _contrast(against: str, a: Runs, b: Runs, higher_is: Direction | None, alpha: float) -> Contrast:
    found = compare_arms(a, b, sign(higher_is or "better"), 1 - alpha)
    tested = higher_is is not None
    return Contrast(
        against=against,
        difference=found.difference,
        low=found.low,
        high=found.high,
        level=found.level,
        welch_p=found.welch_p if tested else None,
        permutation_p=found.permutation_p if tested else None,
        p_adjusted=None,
        hedges_g=found.hedges_g,
        p_above=found.p_above,
        on_ranks=found.on_ranks,
        word=_word(found.p, found.p_above, alpha) if tested else "",
    )


def _word(p: float, p_above: float, alpha: float) -> str:
    if p > alpha or p_above == 0.5:
        return "not shown"
    return "better" if p_above > 0.5 else "worse"


def _adjust(metrics: Sequence[MetricReport]) -> None:
    """Holm over all contrasts of all secondary metrics; their words follow the adjusted p."""
    tested = [one for metric in metrics if metric.role == "secondary" for one in metric.contrasts]
    larger = [max(one.permutation_p or 0.0, 0.0 if one.on_ranks else one.welch_p or 0.0) for one in tested]
    for one, p in zip(tested, holm(np.array(larger)), strict=True):
        one.p_adjusted = float(p)
        one.word = _word(float(p), one.p_above, 1 - one.level)


def write_report(found: StudyReport, folder: Path) -> None:
    """study.json, study.md and study.html in a folder."""
    from kat.audit.study_page import render_study_html, render_study_md
    from kat.runs.files import write_json, write_text

    write_text(folder / "study.html", render_study_html(found))
    write_text(folder / "study.md", render_study_md(found))
    write_json(folder / "study.json", found.model_dump(by_alias=True, mode="json"))
