"""One side of a gate: a single evaluation, or a folder with one evaluation for each training seed."""

import re
from dataclasses import dataclass
from pathlib import Path

from kat.audit.find import Found, find_evaluation
from kat.audit.load import Evidence, load_evidence
from kat.errors import EvidenceError
from kat.evals.store import RESULTS, SAMPLES

SEED = re.compile(r"(?:.*[-_])?seed[-_]?(\d+)")


@dataclass(frozen=True)
class Run:
    """One evaluated training run. `seed` is its training seed, or its place in the order of names."""

    seed: int
    evidence: Evidence
    found: Found


@dataclass(frozen=True)
class Arm:
    """All runs of one side by seed. `recorded`: the seeds were named, not counted."""

    name: str
    runs: dict[int, Run]
    recorded: bool


def load_arm(name: str, suite: str, home: Path) -> Arm:
    """Read one side. A folder whose sub-folders are evaluations holds one run a training seed.

    Raises :class:`EvidenceError` for a seed without an evaluation (a run that diverged is an outcome, not missing
    data), for a gap in the numbers, and for runs that are one run, or one set of weights, under several seeds.
    """
    path = Path(name)
    inner = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    single = any((path / file).is_file() for file in (RESULTS, SAMPLES, "kat.json"))
    if single or not any((p / RESULTS).is_file() for p in inner):
        found = find_evaluation(name, suite, home)
        match = SEED.fullmatch(found.evals.name)
        seed = int(match[1]) if match else 0
        return Arm(name, {seed: Run(seed, load_evidence(found.evals), found)}, match is not None)
    named = {int(match[1]): p for p in inner if (match := SEED.fullmatch(p.name))}
    recorded = len(named) == len(inner)
    if not recorded:
        inner = [p for p in inner if (p / RESULTS).is_file()]
        named = dict(enumerate(inner))
    runs = {}
    for seed, folder in sorted(named.items()):
        if not (folder / RESULTS).is_file():
            raise EvidenceError(f"{folder}: not evaluated; a run that failed is an outcome, not missing data")
        found = find_evaluation(str(folder), suite, home)
        runs[seed] = Run(seed, load_evidence(folder), found)
    _check(name, runs, recorded)
    return Arm(name, runs, recorded)


def _check(name: str, runs: dict[int, Run], recorded: bool) -> None:
    first = min(runs)
    gap = next((seed for seed in range(first, max(runs)) if seed not in runs), None)
    if recorded and gap is not None:
        raise EvidenceError(f"{name}: seed {gap} is missing between others; a run may not be left out")
    ids: dict[str, int] = {}
    weights: dict[str, int] = {}
    for seed, run in runs.items():
        results = run.evidence.results
        if (other := ids.setdefault(results.run_id, seed)) != seed:
            raise EvidenceError(f"{name}: runs {other} and {seed} are one run (run_id {results.run_id[:12]})")
        if (other := weights.setdefault(results.model_hash, seed)) != seed:
            raise EvidenceError(
                f"{name}: runs {other} and {seed} have the same weights, bit for bit; the seed does not reach the "
                "training, or one run was copied"
            )
