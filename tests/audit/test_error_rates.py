"""The report and the gate through the benchmark's simulations: rarely wrong, and of use."""

import numpy as np
import pytest

from benchmarks.gate_error_rates import (
    CLAIMS,
    World,
    binary_items,
    degenerate,
    far_from,
    judged,
    leaning_clusters,
    lectures,
    rates,
    rotation_averages,
    stated_effect,
)

SMALL = np.arange(600) // 12


def error(p: float, draws: int) -> float:
    """Three Monte-Carlo standard errors."""
    return 3 * (p * (1 - p) / draws) ** 0.5


def honest(world: World, draws: int, slack: float) -> None:
    null = rates(world, 0.0, draws, CLAIMS)
    assert null["different"] <= 0.055 + slack and null["FAIL"] <= 0.055 + slack, null
    margin = world.margin or stated_effect(world)
    assert rates(world, -margin, draws, frozenset({"PASS"}), margin=margin)["PASS"] <= 0.025 + max(
        slack, error(0.025, draws)
    )


def of_use(world: World, draws: int) -> None:
    effect = stated_effect(world)
    assert rates(world, -effect, draws)["different"] >= 0.75 - error(0.75, draws)
    margin = world.margin or effect
    assert rates(world, 0.0, draws, margin=margin)["PASS"] >= 0.75 - error(0.75, draws)


@pytest.mark.parametrize("world", [binary_items(200), rotation_averages(60), leaning_clusters(SMALL, 0.15)])
def test_a_few_hundred_draws(world):
    honest(world, 200, slack=error(0.05, 200))
    of_use(world, 80)


@pytest.mark.slow
@pytest.mark.parametrize("world", [binary_items(50), binary_items(200), rotation_averages(60), rotation_averages(200)])
def test_items_20000(world):
    honest(world, 20_000, slack=0.0)
    of_use(world, 2_000)


@pytest.mark.slow
@pytest.mark.parametrize("icc", [0.05, 0.15, 0.5])
def test_the_real_lectures_20000(real_data, icc):
    world = leaning_clusters(lectures(real_data), icc)
    honest(world, 20_000, slack=0.0)
    of_use(world, 1_000)


def test_no_difference_and_a_single_one_decide_nothing():
    for row in degenerate():
        _, _, outcome, interval, _, _ = row.split("|")
        low, high = (float(end) for end in interval.strip()[1:-1].split(","))
        assert outcome.strip() == "INCONCLUSIVE" and low < 0 < high


def test_clusters_do_lean():
    """The made-up clusters have the correlation that they are said to have."""
    rng, world = np.random.default_rng(0), leaning_clusters(np.arange(40_000) // 2, 0.3)
    a, b = world.draw(rng, 0.0)
    pairs = (b - a).reshape(-1, 2)
    both = pairs[(pairs != 0).all(axis=1)]
    assert np.mean(both[:, 0] * both[:, 1]) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("world", [rotation_averages(60), rotation_averages(120), leaning_clusters(SMALL, 0.15)])
def test_what_is_not_judged_could_not_have_been_claimed(world):
    rng = np.random.default_rng(6)
    for difference in (0.0, -0.04):
        for i in range(60):
            a, b = world.draw(rng, difference)
            words = judged(world, a, b, 0.04, i)
            for word in {"PASS", "FAIL", "different"} & {*words}:
                assert not far_from(frozenset({word}), b - a, world.clusters, 0.04)
