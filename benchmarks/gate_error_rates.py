"""How often the report and the gate are wrong, and how often of use: simulations through the real verdict code.

    python benchmarks/gate_error_rates.py [--draws 20000]        (with KAT_DATA: ScienceQA's lectures as clusters too)

Two models without a difference, or with a stated one, answer made-up items; `judge_items(compare_paired(…))` is the
gate, `compare_paired(…).direction` the report. What a comparison computes beside the interval that gates (Newcombe's,
the exact test …) takes most of its time and decides nothing, so it is left out; the report's own test is run as it is,
on every draw whose interval leaves 0 out, and nowhere else can it claim anything.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from kat.audit.judge import judge_items
from kat.data.scienceqa import load_scienceqa
from kat.stats.compare import compare_paired
from kat.stats.power import n_for_margin
from kat.stats.result import ScoreType

Draw = Callable[[np.random.Generator, float], tuple[np.ndarray, np.ndarray]]
"""(generator, true difference B − A) -> the scores (n,) of A and of B."""
MARGIN = 0.03
SHARE = 0.2  # of discordant items
WORDS = frozenset({"PASS", "FAIL", "different"})
CLAIMS = frozenset({"FAIL", "different"})


@dataclass(frozen=True)
class World:
    """Items and two models: how their scores are drawn, of which type they are, which items share a cluster."""

    name: str
    draw: Draw
    score_type: ScoreType
    clusters: np.ndarray | None = None
    margin: float | None = None  # at which its number of items is the one that the table asks for; None: the effect
    n: int | None = None  # of items that are alike, so that a draw is known by its two discordant counts,
    share: float = SHARE  # of which there are so many on average


def binary_items(n: int, share: float = SHARE) -> World:
    """n items; `share` of them are discordant. Half of the others are right in both."""

    def draw(rng: np.random.Generator, difference: float) -> tuple[np.ndarray, np.ndarray]:
        gained, lost = rng.multinomial(n, [(share + difference) / 2, (share - difference) / 2, 1 - share])[:2]
        return arms(int(gained), int(lost), n)

    margin = next(m for m in np.arange(0.001, 1, 0.0005) if n_for_margin(float(m), share) <= n)
    return World(f"{n:,} items, {share:g} discordant", draw, "binary", margin=float(margin), n=n, share=share)


def arms(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of A and B with these discordant items; half of the others are right in both."""
    rest = n - gained - lost
    counts = [gained, lost, rest // 2, rest - rest // 2]
    return np.repeat([0.0, 1.0, 1.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)


def rotation_averages(n: int, rotations: int = 4) -> World:
    """Each item's score is its mean over its rotations; items differ much in difficulty."""

    def draw(rng: np.random.Generator, difference: float) -> tuple[np.ndarray, np.ndarray]:
        skill = rng.uniform(0.2, 0.7, size=n)
        return rng.binomial(rotations, skill) / rotations, rng.binomial(rotations, skill + difference) / rotations

    return World(f"{n} items averaged over {rotations} rotations", draw, "bounded")


def leaning_clusters(groups: np.ndarray, icc: float, share: float = SHARE) -> World:
    """Whole clusters lean to one model: `icc` is the correlation of two discordant items of one cluster."""

    def draw(rng: np.random.Generator, difference: float) -> tuple[np.ndarray, np.ndarray]:
        towards, sharp = 0.5 + difference / (2 * share), 1 / icc - 1
        lean = rng.beta(sharp * towards, sharp * (1 - towards), size=int(groups.max()) + 1)[groups]
        signs = np.where(rng.random(groups.size) < lean, 1.0, -1.0) * (rng.random(groups.size) < share)
        return np.maximum(-signs, 0.0), np.maximum(signs, 0.0)

    return World(f"{groups.size:,} items in {int(groups.max()) + 1} clusters, ICC {icc:g}", draw, "binary", groups)


def lectures(data: Path) -> np.ndarray:
    """The lecture of each text-only test question of ScienceQA, as labels 0 … G − 1 (n,)."""
    items = load_scienceqa(data, "test").rows
    return np.unique([item.cluster for item in items], return_inverse=True)[1]


@contextmanager
def only_what_gates() -> Iterator[None]:
    """Leave out what stands beside the gating interval."""
    beside = {name: lambda *words: None for name in ("mde_paired", "newcombe_paired", "bonett_price")}
    ones = {name: lambda *words, **more: 1.0 for name in ("mcnemar_exact", "sign_flip")}
    with mock.patch.multiple("kat.stats.compare", **beside, **ones):
        yield


def rates(
    world: World,
    difference: float,
    draws: int,
    wanted: frozenset[str] = WORDS,
    *,
    margin: float = MARGIN,
    seed: int = 1,
) -> Counter[str]:
    """Shares of the wanted words among PASS, FAIL and "different" (the report calls one model better).

    A draw on which :func:`far_from` says that none of them can come out is counted as without them, unjudged.
    """
    rng, found = np.random.default_rng(seed), Counter[str]()
    for i, (a, b, times) in enumerate(drawn(world, rng, difference, draws)):
        if not far_from(wanted, b - a, world.clusters, margin):
            found.update(dict.fromkeys(judged(world, a, b, margin, i), times))
    return Counter({name: times / draws for name, times in found.items() if name in wanted})


def drawn(
    world: World, rng: np.random.Generator, difference: float, draws: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """The draws, equal tables of right and wrong only once: A's scores, B's scores, how often."""
    if world.n is None:
        for _ in range(draws):
            yield *world.draw(rng, difference), 1
        return
    shares = [(world.share + difference) / 2, (world.share - difference) / 2, 1 - world.share]
    tables = Counter(map(tuple, rng.multinomial(world.n, shares, size=draws)[:, :2].tolist()))
    for (gained, lost), times in tables.items():
        yield *arms(gained, lost, world.n), times


def judged(world: World, a: np.ndarray, b: np.ndarray, margin: float, seed: int) -> tuple[str, ...]:
    """The gate's outcome, and "different" where the report calls one model better."""
    with only_what_gates():
        gate = judge_items(compare_paired(a, b, world.score_type, world.clusters), margin, 0.8)
    gap = gate.difference
    if gap.low <= 0 <= gap.high:
        return (gate.outcome,)
    full = compare_paired(a, b, world.score_type, world.clusters, seed=seed, seen=False)
    assert (full.difference.low, full.difference.high) == (gap.low, gap.high)
    return (gate.outcome,) if full.direction == "not shown" else (gate.outcome, "different")


def far_from(wanted: frozenset[str], d: np.ndarray, groups: np.ndarray | None, margin: float) -> bool:
    """Whether the mean of d is so few standard errors from 0 (and from −margin) that no wanted word can come out.

    The error is the plain one over cluster sums, smaller than any that the report uses, and the limit of 1.5 lies well
    below every quantile that it uses: what is left out could not have been claimed.
    """
    sums = d if groups is None else np.bincount(groups, weights=d)
    sizes = np.ones(d.size) if groups is None else np.bincount(groups)
    error = np.sqrt(((sums - d.mean() * sizes) ** 2).sum()) / d.size
    near_pass = d.mean() + margin > 1.5 * error
    return not ("PASS" in wanted and near_pass) and abs(d.mean()) <= 1.5 * error


def stated_effect(world: World, seed: int = 2) -> float:
    """The minimum detectable effect that the report prints where there is no difference: the median of 50."""
    rng = np.random.default_rng(seed)
    effects = [compare_paired(*world.draw(rng, 0.0), world.score_type, world.clusters).mde for _ in range(50)]
    return float(np.median([1.0 if effect is None else effect for effect in effects]))


def row(world: World, draws: int) -> str:
    """No difference, then the power twins: a drop of the effect that is printed; equal models, and models that differ
    by the margin, at the margin for which the items are just enough."""
    null, effect = rates(world, 0.0, draws, CLAIMS), stated_effect(world)
    margin, some = world.margin or effect, draws // 10
    drop = rates(world, -effect, some, frozenset({"different"}), margin=effect / 2, seed=3)
    equal = rates(world, 0.0, some, frozenset({"PASS"}), margin=margin, seed=4)
    worse = rates(world, -margin, draws, frozenset({"PASS"}), margin=margin, seed=5)
    shares = (null["different"], null["FAIL"], drop["different"], equal["PASS"], worse["PASS"])
    cells = [f"{100 * share:.1f} %" for share in shares]
    return f"| {world.name} | {' | '.join(cells)} | {100 * effect:.1f} | {100 * margin:.1f} |"


def degenerate() -> list[str]:
    """All differences zero, and one that is not, of 50 rotation-averaged items: what the gate and the interval say."""
    said = []
    for name, b in (("all differences zero", np.zeros(50)), ("one of 50 not zero", np.r_[0.5, np.zeros(49)])):
        found = judge_items(compare_paired(np.zeros(50), b, "bounded"), MARGIN, 0.8)
        gap = found.difference
        said.append(f"| {name} | {found.outcome} | [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] | {gap.method} |")
    return said


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20_000)
    draws = parser.parse_args().draws
    worlds = [binary_items(n_for_margin(MARGIN, share), share) for share in (0.1, 0.2, 0.3)]
    worlds += [binary_items(n) for n in (50, 200)]
    worlds += [rotation_averages(60), rotation_averages(200)]
    if os.environ.get("KAT_DATA"):
        groups = lectures(Path(os.environ["KAT_DATA"]))
        worlds += [leaning_clusters(groups, icc) for icc in (0.05, 0.15, 0.5)]
    print(f"{draws:,} draws a cell; a tenth of them for the two columns of use (drop found; PASS, equal).\n")
    print("| items | called different | FAIL | drop found | PASS, equal | PASS, at −margin | effect | margin |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for world in worlds:
        print(row(world, draws), flush=True)
    print("\n| 50 rotation-averaged items | gate | interval, points | method |\n| --- | --- | --- | --- |")
    print("\n".join(degenerate()))
