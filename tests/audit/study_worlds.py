"""Studies for tests: a plan, and results whose numbers are drawn as the test wants."""

import numpy as np

from kat.audit.study import write_preregistration, write_result
from kat.audit.study_schema import Preregistration, StudyResult

ARMS = ("uniform", "placebo", "density")


def make_plan(seeds=8, **changes):
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    fields = {
        "schema": "kat.preregistration/1",
        "name": "rare animals",
        "created": "2026-01-01T00:00:00+00:00",
        "question": "Density-aware sampling makes the outputs more diverse at no loss of reward.",
        "arms": {arm: {"sampling": arm, "steps": 40} for arm in ARMS},
        "varies": ["sampling"],
        "treatment": "density",
        "comparisons": ["uniform", "placebo"],
        "seeds": seeds,
        "primary": {"metric": "vendi", "higher_is": "better", "smallest_effect": 0.3, "sd": 0.2},
        "guard": {"metric": "reward", "margin": 0.1, "against": ["uniform"], "sd": 0.04},
        "secondary": {"distinct_2": "better", "compression_ratio": "worse"},
        "beside": ["length_mean", "kl"],
        "exclusions": ["responses shorter than the window are left out of the token metrics and counted"],
        "settings": {"window": 64, "embedder": "minilm"},
    }
    return Preregistration.model_validate(fields | changes)


def make_results(plan, gain=0.6, seed=0, diverged=(), reward_gain=0.0):
    """One result a run; density's vendi lies `gain` above the others'."""
    rng, found = np.random.default_rng(seed), []
    for arm in plan.arms:
        for one in plan.seeds:
            lift = float(arm == plan.treatment)
            metrics = {
                "vendi": 3 + lift * gain + rng.normal(0, 0.2),
                "reward": 0.5 + lift * reward_gain + rng.normal(0, 0.04),
                "distinct_2": 0.6 + lift * gain / 10 + rng.normal(0, 0.02),
                "compression_ratio": 4 - lift * gain / 2 + rng.normal(0, 0.2),
                "length_mean": 40 + rng.normal(0, 3),
                "kl": 0.2 + rng.normal(0, 0.02),
            }
            dead = (arm, one) in diverged
            found.append(
                StudyResult(
                    schema="kat.study-result/1",
                    preregistration=plan.hash(),
                    arm=arm,
                    seed=one,
                    outcome="diverged" if dead else "finished",
                    reason="the policy's entropy fell to 0" if dead else "",
                    metrics={} if dead else metrics,
                    model_hash=None if dead else f"{arm}-{one}".encode().hex().ljust(64, "0"),
                    run=f"runs/{arm}-seed-{one}",
                )
            )
    return found


def write_study(folder, plan, results):
    write_preregistration(folder, plan)
    for result in results:
        write_result(folder, result)
    return folder
