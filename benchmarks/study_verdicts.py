"""Does the verdict on a density study keep its word? Whole studies are simulated and judged by the code that judges
real ones: the objects are those that a study's files are read into.

    python benchmarks/study_verdicts.py [--studies 20000] [--results docs/results.md]

Seeds are normal; every arm's mean, spread and chance to diverge are set by the scenario, and what is true of it decides
which words are false. `--results` puts the table into that file, between its markers.
"""

import argparse
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kat.audit.study import judge_study, make_study
from kat.audit.study_schema import Guard, Preregistration, Primary, StudyResult
from kat.errors import EvidenceError
from kat.runs.files import write_text
from kat.stats.study_power import alike, study_mde

ARMS = ("uniform", "placebo", "density")
MARGIN, SMALLEST, SD = 3.0, 1.5, 1.0
WORDS = ("supported", "not supported", "undecided", "invalid")
START, END = "<!-- study-verdicts: start -->", "<!-- study-verdicts: end -->"
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Scenario:
    """What is true of uniform, placebo and density (in this order), in standard deviations over seeds.

    `bar`: a word with the share that it must not pass (`at most`) or must reach (`at least`).
    """

    name: str
    seeds: int = 8
    diversity: Triple = (0.0, 0.0, 0.0)
    reward: Triple = (0.0, 0.0, 0.0)
    spread: Triple = (1.0, 1.0, 1.0)
    diverges: Triple = (0.0, 0.0, 0.0)
    missing: float = 0.0
    bar: tuple[str, str, float] = ("supported", "at most", 0.05)


def scenarios() -> list[Scenario]:
    """No effect in every disguise, then the effects that must be found."""
    mde = {k: printed_mde(k) for k in (4, 8)}
    found, refuted = ("supported", "at least", 0.75), ("not supported", "at most", 0.05)
    rough: Triple = (1.0, 0.5, 2.0)
    return [
        Scenario(
            "no effect; unequal spread, diverged runs, missing seeds",
            spread=rough,
            diverges=(0.05, 0.02, 0.05),
            missing=0.002,
        ),
        Scenario("no effect, 4 seeds, unequal spread", seeds=4, spread=rough),
        Scenario("no effect, but uniform diverges in 30 % of runs", diverges=(0.3, 0.0, 0.0)),
        Scenario("better than uniform, not than placebo", diversity=(0.0, 9.0, 9.0)),
        Scenario("more diverse, reward worse by the margin", diversity=(0.0, 0.0, 9.0), reward=(0.0, 0.0, -MARGIN)),
        Scenario("effect of interest is real", diversity=(0.0, 0.0, SMALLEST), bar=refuted),
        Scenario(f"effect at the printed MDE ({mde[8]:.2f})", diversity=(0.0, 0.0, mde[8]), bar=found),
        Scenario(f"the same with 4 seeds ({mde[4]:.2f})", seeds=4, diversity=(0.0, 0.0, mde[4]), bar=found),
    ]


def printed_mde(seeds: int, margin: float = MARGIN) -> float:
    """The smallest effect that the study says, before it is run, it finds 80 % of the time."""
    found = study_mde(seeds, alike(SD, 2, SD, 1), margin)
    assert found is not None
    return found


def plan(seeds: int, margin: float = MARGIN) -> Preregistration:
    """The pre-registration of every simulated study; its units are standard deviations over seeds."""
    return Preregistration(
        schema="kat.preregistration/1",
        name="simulated",
        created="2026-01-01T00:00:00+00:00",
        question="Density-aware sampling makes the outputs more diverse at no loss of reward.",
        arms={arm: {"sampling": arm} for arm in ARMS},
        varies=["sampling"],
        treatment="density",
        comparisons=["uniform", "placebo"],
        seeds=list(range(seeds)),
        primary=Primary(metric="vendi", higher_is="better", smallest_effect=SMALLEST, sd=SD),
        guard=Guard(metric="reward", margin=margin, against=["uniform"], sd=SD),
    )


def draw_results(scenario: Scenario, plan_hash: str, rng: np.random.Generator) -> list[StudyResult]:
    """The results of one study: every declared run, some of them diverged, a few of them missing."""
    k = scenario.seeds
    draws = rng.standard_normal((3, 2, k)) * np.array(scenario.spread)[:, None, None]
    draws += np.array([scenario.diversity, scenario.reward]).T[:, :, None]
    diverged = rng.random((3, k)) < np.array(scenario.diverges)[:, None]
    missing = rng.random((3, k)) < scenario.missing
    return [
        StudyResult(
            schema="kat.study-result/1",
            preregistration=plan_hash,
            arm=arm,
            seed=seed,
            outcome="diverged" if diverged[i, seed] else "finished",
            reason="loss is not finite" if diverged[i, seed] else "",
            metrics={} if diverged[i, seed] else {"vendi": draws[i, 0, seed], "reward": draws[i, 1, seed]},
        )
        for i, arm in enumerate(ARMS)
        for seed in range(k)
        if not missing[i, seed]
    ]


def words(scenario: Scenario, studies: int, seed: int = 0) -> dict[str, float]:
    """The share of each verdict among simulated studies. A missing seed makes a study invalid: no verdict on it."""
    rng, declared, found = np.random.default_rng(seed), plan(scenario.seeds), Counter[str]()
    plan_hash = declared.hash()
    for _ in range(studies):
        try:
            found[judge_study(make_study(declared, draw_results(scenario, plan_hash, rng))).word] += 1
        except EvidenceError:
            found["invalid"] += 1
    return {word: found[word] / studies for word in WORDS}


def table(studies: int) -> list[str]:
    """The table in markdown, each row with its bar and whether it holds."""
    lines = [
        f"{studies:,} studies a row, seeds an arm 8 unless said; margin {MARGIN:g}, smallest effect of interest "
        f"{SMALLEST:g}, in standard deviations over seeds (`python benchmarks/study_verdicts.py`).",
        "",
        "| what is true | supported | not supported | undecided | invalid | bar | |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for scenario in scenarios():
        start, shares = time.process_time(), words(scenario, studies)
        word, kind, share = scenario.bar
        holds = shares[word] <= share if kind == "at most" else shares[word] >= share
        cells = " | ".join(f"{100 * shares[name]:.1f} %" for name in WORDS)
        lines.append(
            f"| {scenario.name} | {cells} | {word} {kind} {100 * share:g} % | {'holds' if holds else '**MISSED**'} |"
        )
        print(f"{lines[-1]}  {time.process_time() - start:.0f} s", flush=True)
    error = 100 * 1.96 * math.sqrt(0.05 * 0.95 / studies)
    return [*lines, "", f"Sampling error of a share of 5 %: ± {error:.1f} points."]


def put_between(text: str, lines: list[str]) -> str:
    """The document with the table between its markers, at its end where it has none yet."""
    block = "\n".join([START, *lines, END])
    if START in text and END in text:
        return text[: text.index(START)] + block + text[text.index(END) + len(END) :]
    return f"{text.rstrip()}\n\n## Verdicts of a density study, simulated\n\n{block}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--results", type=Path)
    asked = parser.parse_args()
    found = table(asked.studies)
    print("\n".join(found))
    if asked.results is not None:
        write_text(asked.results, put_between(asked.results.read_text(encoding="utf-8"), found))
