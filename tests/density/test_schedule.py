"""Prompt schedules: the draws follow the weights, every arm reads the same uniform numbers, a file keeps its word."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from kat.density.schedule import draw_schedule, load_schedule, placebo_weights, save_schedule
from kat.errors import EvidenceError, UsageError

IDS = [f"p{i}" for i in range(12)]
WEIGHTS = np.arange(1, 13) / 78
few = settings(max_examples=40, deadline=None)


def some_weights(seed, n):
    weights = np.random.default_rng(seed).gamma(2, size=n) + 0.05
    return weights / weights.sum()


@pytest.mark.parametrize("sampling", ["uniform", "density"])
def test_draws_follow_the_weights(sampling):
    weights = WEIGHTS if sampling == "density" else None
    drawn = draw_schedule(IDS, 20_000, 3, weights, sampling)
    counts = [drawn.ids.count(one) for one in IDS]
    expected = 20_000 * (WEIGHTS if sampling == "density" else np.full(12, 1 / 12))
    assert chisquare(counts, expected).pvalue > 1e-4
    other = 20_000 * (np.full(12, 1 / 12) if sampling == "density" else WEIGHTS)
    assert chisquare(counts, other).pvalue < 1e-12


@few
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 40))
def test_each_draw_is_the_inverse_of_the_cumulative_weights(seed, n, size):
    """By a plain walk through the weights, at the numbers that all arms share."""
    weights, ids = some_weights(seed, size), [f"p{i}" for i in range(size)]
    drawn = draw_schedule(ids, n, seed, weights, "density").ids
    for number, one in zip(np.random.default_rng(seed).random(n), drawn, strict=True):
        total, candidate = 0.0, 0
        while (total := total + weights[candidate]) <= number:
            candidate += 1
        assert one == ids[candidate]


@few
@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 50))
def test_a_longer_schedule_begins_with_the_shorter(seed, a, b):
    short, long = sorted((a, b))
    weights = some_weights(seed, 12)
    for arm in ({}, {"weights": weights, "sampling": "density"}):
        assert draw_schedule(IDS, long, seed, **arm).ids[:short] == draw_schedule(IDS, short, seed, **arm).ids


def test_equal_weights_draw_what_uniform_draws():
    same = draw_schedule(IDS, 100, 5, np.full(12, 1 / 12), "placebo")
    uniform = draw_schedule(IDS, 100, 5)
    assert same.ids == uniform.ids and same.hash != uniform.hash and uniform.weights_hash is None


def test_the_hash_knows_what_matters():
    schedules = [
        draw_schedule(IDS, 9, 0),
        draw_schedule(IDS, 10, 0),
        draw_schedule(IDS, 9, 1),
        draw_schedule(IDS, 9, 0, WEIGHTS, "density"),
        draw_schedule(IDS, 9, 0, WEIGHTS, "placebo"),
        draw_schedule(IDS, 9, 0, WEIGHTS[::-1], "density"),
    ]
    assert len({one.hash for one in schedules}) == len(schedules)
    assert draw_schedule(IDS, 9, 0).hash == schedules[0].hash
    assert schedules[3].weights_hash == schedules[4].weights_hash != schedules[5].weights_hash


@few
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 30))
def test_a_placebo_has_the_same_weights_in_each_length_decile(seed, n, longest):
    generator = np.random.default_rng(seed)
    weights, lengths = some_weights(seed, n), generator.integers(1, longest + 1, size=n)
    placebo = placebo_weights(weights, lengths, seed)
    assert sorted(placebo) == sorted(weights)
    edges = [np.quantile(lengths, q / 10) for q in range(1, 10)]
    decile = np.array([sum(length >= edge for edge in edges) for length in lengths])
    for d in set(decile):
        assert sorted(placebo[decile == d]) == sorted(weights[decile == d])


def test_a_placebo_has_no_density_in_it():
    weights, lengths = some_weights(0, 2000), np.random.default_rng(1).integers(1, 500, size=2000)
    placebo = placebo_weights(weights, lengths, 7)
    assert abs(np.corrcoef(weights, placebo)[0, 1]) < 0.1
    assert np.array_equal(placebo, placebo_weights(weights, lengths, 7))
    assert not np.array_equal(placebo, placebo_weights(weights, lengths, 8))


def test_a_file_keeps_a_schedule(tmp_path):
    schedule = draw_schedule(IDS, 50, 4, WEIGHTS, "density")
    save_schedule(tmp_path / "schedule.json", schedule)
    found = load_schedule(tmp_path / "schedule.json")
    assert found == schedule and found.hash == schedule.hash


@pytest.mark.parametrize("key", ["ids", "sampling", "seed", "weights_hash", "hash", "missing"])
def test_a_changed_file_is_no_evidence(tmp_path, key):
    path = tmp_path / "schedule.json"
    save_schedule(path, draw_schedule(IDS, 50, 4, WEIGHTS, "density"))
    content = json.loads(path.read_text())
    if key == "missing":
        del content["ids"]
    else:
        content[key] = content[key][1:] if isinstance(content[key], list | str) else content[key] + 1
    path.write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match="damaged or edited"):
        load_schedule(path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"schema": "kat.density/1"}'])
def test_another_file_is_no_schedule(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError, match="no schedule"):
        load_schedule(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (([], 3, 0), "no prompts to draw from"),
        ((IDS + IDS[:2], 3, 0), "2 of 14 prompt ids stand twice"),
        ((IDS, 0, 0), "at least one"),
        ((IDS, 3, 0, WEIGHTS), "'uniform' takes no weights"),
        ((IDS, 3, 0, None, "density"), "'density' needs weights"),
        ((IDS, 3, 0, WEIGHTS, "sparse"), "use uniform, density, placebo"),
        ((IDS, 3, 0, WEIGHTS[:5], "density"), "one weight a prompt"),
        ((IDS, 3, 0, WEIGHTS * 2, "density"), "sum to 2, not to 1"),
        ((IDS, 3, 0, np.where(WEIGHTS > 0.1, 0, WEIGHTS), "density"), "not positive and finite"),
        ((IDS, 3, 0, np.full(12, np.nan), "density"), "not positive and finite"),
    ],
)
def test_bad_input(arguments, word):
    with pytest.raises(UsageError, match=word):
        draw_schedule(*arguments)
