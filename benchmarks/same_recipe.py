"""The recipe gate on real training: one recipe under many seeds, split into two sides in many ways.

    kat noise tiny --seeds 28 --out ARM
    python benchmarks/same_recipe.py ARM [--policy ci/gate.toml] [--drop 0.03]

Nothing differs between two sides but their seeds, so FAIL is wrong. Every pair of runs and some splits go through
`kat gate` itself, from the files; many thousand splits through `judge_seeds`, its verdict, which the former must agree
with. Then the second side's scores are lowered by a planted drop, with the number of seeds that the tool prints for it
and the drop as the margin: FAIL is right.
"""

import argparse
import itertools
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from kat.audit.arms import load_arm
from kat.audit.gate import gate
from kat.audit.judge import judge_seeds
from kat.audit.policy import Policy, read_policy
from kat.stats.power import mde_seeds, seeds_for_difference

BY_FILE = 40  # splits that go through the whole gate


def shares(outcomes: list[str]) -> str:
    """``PASS 81.0 %, INCONCLUSIVE 19.0 %, FAIL 0.0 %``"""
    found = Counter(outcomes)
    return ", ".join(f"{name} {100 * found[name] / len(outcomes):.1f} %" for name in ("PASS", "INCONCLUSIVE", "FAIL"))


def policy_file(folder: Path, policy: Policy) -> Path:
    """The policy without what is not about the two arms: families, lanes, ledger, champion, noise."""
    path = folder / "policy.toml"
    path.write_text(
        f'claim = "recipe"\nsuite = "{policy.suite}"\nmargin = {policy.margin}\nmin_power = {policy.min_power}\n'
        f"min_seeds = {policy.min_seeds}\n"
    )
    return path


def by_pairs(runs: dict[int, Path], folder: Path, policy: Policy) -> list[str]:
    """The gate's outcome for every two runs."""
    path = policy_file(folder, policy)
    return [
        gate(str(runs[i]), str(runs[j]), path, home=folder).outcome for i, j in itertools.combinations(sorted(runs), 2)
    ]


def by_splits(scores: np.ndarray, k: int, draws: int, margin: float, min_power: float, drop: float = 0.0) -> list[str]:
    """The verdict's outcome for random disjoint sides of k seeds each, the second lowered by `drop`.

    The outcome rests on Welch's interval; the permutation test and the seeds that are named stand beside it and take
    nearly all of the time, so they are left out.
    """
    rng, outcomes = np.random.default_rng(k), []
    beside = mock.patch("kat.stats.seeds.stats.permutation_test", return_value=SimpleNamespace(pvalue=1.0))
    with beside, mock.patch("kat.audit.judge.seeds_needed", return_value=None):
        for _ in range(draws):
            chosen = rng.permutation(scores.size)[: 2 * k]
            a, b = scores[chosen[:k]], scores[chosen[k:]] - drop
            outcomes.append(judge_seeds(a.tolist(), b.tolist(), margin, min_power).outcome)
    return outcomes


def agree(runs: dict[int, Path], scores: dict[int, float], k: int, folder: Path, policy: Policy) -> int:
    """How many of some splits the whole gate judges as `judge_seeds` does; the sides are folders of links."""
    rng, alike, path = np.random.default_rng(0), 0, policy_file(folder, policy)
    for split in range(BY_FILE):
        chosen = rng.permutation(sorted(runs))[: 2 * k].tolist()
        sides = [folder / f"split-{split}-{side}" for side in "ab"]
        for side, seeds in zip(sides, (chosen[:k], chosen[k:]), strict=True):
            side.mkdir()
            for number, seed in enumerate(seeds):
                (side / f"seed-{number}").symlink_to(runs[seed].resolve())
        whole = gate(str(sides[0]), str(sides[1]), path, home=folder).outcome
        a, b = [scores[seed] for seed in chosen[:k]], [scores[seed] for seed in chosen[k:]]
        alike += whole == judge_seeds(a, b, policy.margin, policy.min_power).outcome
    return alike


def main(arm: Path, policy: Policy, drop: float, draws: int) -> None:
    loaded = load_arm(str(arm), policy.suite, arm)
    runs = {seed: run.evidence.folder for seed, run in loaded.runs.items()}
    by_seed = {
        seed: run.evidence.results.metrics[run.evidence.results.primary].estimate for seed, run in loaded.runs.items()
    }
    scores = np.array(list(by_seed.values()))
    sd, k = float(scores.std(ddof=1)), policy.min_seeds
    print(f"{scores.size} seeds, mean {scores.mean():.4f}, sd {sd:.4f}; margin {policy.margin:g}")
    print(f"with {k} seeds a side a difference of {mde_seeds(k, sd):.4f} is found 80 % of the time")
    with tempfile.TemporaryDirectory() as folder:
        pairs = by_pairs(runs, Path(folder), policy)
        print(f"every pair of runs, one a side ({len(pairs)}): {shares(pairs)}")
        print(f"{k} seeds a side, {draws:,} splits: {shares(by_splits(scores, k, draws, policy.margin, 0.8))}")
        print(f"  the whole gate agrees on {agree(runs, by_seed, k, Path(folder), policy)} of {BY_FILE}")
    needed = max(k, seeds_for_difference(drop, sd))
    if 2 * needed > scores.size:
        print(f"a drop of {drop:g} needs {needed} seeds a side: run kat noise with {2 * needed}")
        return
    planted = by_splits(scores, needed, draws, drop, policy.min_power, drop)
    same = by_splits(scores, needed, draws, drop, policy.min_power)
    print(f"{needed} seeds a side, margin {drop:g}, nothing planted: {shares(same)}")
    print(f"{needed} seeds a side, margin {drop:g}, a drop of {drop:g} planted: {shares(planted)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", type=Path, help="what kat noise wrote")
    parser.add_argument("--policy", type=Path, default=Path(__file__).parent.parent / "ci" / "gate.toml")
    parser.add_argument("--drop", type=float, default=0.03)
    parser.add_argument("--draws", type=int, default=20_000)
    given = parser.parse_args()
    main(given.arm, read_policy(given.policy), given.drop, given.draws)
