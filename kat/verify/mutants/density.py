"""Planted bugs of density weights, of draws by them, of embeddings and of metrics of diversity."""

import functools
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kat.verify.mutants.mutant import Mutant, Wrapped, wrapped
from kat.verify.subject import Make, Traits

NO_COUNTERPART: dict[str, str] = {
    "DE8": "the arms are words that the settings check (sampling = uniform, density or placebo); no flag is parsed",
}
K = 10


# Weights


def weighed(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Make], Make]:
    """The weights are others: change(embeddings (n, d), good weights (n,)) -> (n,)."""

    def density_weights(inner: Any, embeddings: Any) -> np.ndarray:
        x = np.asarray(embeddings)
        return change(x, np.asarray(inner.density_weights(x), dtype=np.float64))

    return wrapped(density_weights=density_weights)


def distances(x: np.ndarray) -> np.ndarray:
    """(n,) the mean distance to the K nearest others."""
    x = x.astype(np.float64)
    squares = (x**2).sum(axis=1)
    between = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))
    return np.sort(between, axis=1)[:, 1 : K + 1].mean(axis=1)


def shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def each_copy_weighs(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Copies get the weight of one point each, not a share of it."""
    _, group, copies = np.unique(x, axis=0, return_inverse=True, return_counts=True)
    return shares(w * copies[group.reshape(-1)])


WEIGHTS = (
    Mutant("weight_is_one_over_distance", ("DE1",), weighed(lambda x, w: shares(1 / (distances(x) + 0.3)))),
    Mutant("weights_are_upside_down", (), weighed(lambda x, w: shares(1 / w))),
    Mutant(
        "distances_are_clamped_and_inverted", ("DE9",), weighed(lambda x, w: shares(1 / np.maximum(distances(x), 1e-6)))
    ),
    Mutant(
        "weight_is_distance_to_the_dimension", (), weighed(lambda x, w: shares((distances(x) + 1e-3) ** x.shape[1]))
    ),
    Mutant("each_copy_has_a_weight_of_its_own", (), weighed(each_copy_weighs)),
    Mutant("weights_have_mean_one", (), weighed(lambda x, w: w * len(w))),
    Mutant("small_weights_become_zero", (), weighed(lambda x, w: shares(np.where(w * len(w) < 0.8, 0, w)))),
    Mutant(
        "broken_embeddings_are_weighed",
        (),
        wrapped(density_weights=lambda inner, x: inner.density_weights(np.nan_to_num(x, posinf=1.0))),
    ),
    Mutant("weights_are_sorted", (), weighed(lambda x, w: np.sort(w))),
    Mutant("later_rows_weigh_more", (), weighed(lambda x, w: shares(w * np.linspace(0.95, 1.05, len(w))))),
    Mutant("weights_grow_with_the_unit", (), weighed(lambda x, w: shares(1 + distances(x)))),
    Mutant("weights_fall_back_to_uniform", (), weighed(lambda x, w: np.full(len(w), 1 / len(w)))),
    Mutant("weights_are_uniform_in_disguise", (), weighed(lambda x, w: 0.05 * w + 0.95 / len(w))),
    Mutant(
        "unknown_ids_weigh_one",
        ("DE5",),
        wrapped(weights_of=lambda inner, known, ids: np.array([known.get(name, 1.0) for name in ids])),
    ),
    Mutant(
        "unknown_ids_weigh_as_the_mean",
        (),
        wrapped(weights_of=lambda inner, known, ids: np.array([known.get(name, 1 / len(known)) for name in ids])),
    ),
    Mutant(
        "weights_are_joined_by_position",
        (),
        wrapped(weights_of=lambda inner, known, ids: inner.weights_of(known, list(known)[: len(ids)])),
    ),
)


# Draws


def drawn(choose: Callable[[Any, np.ndarray, int, int], Any]) -> Callable[[Make], Make]:
    """The draws are others: choose(inner, weights, n, seed)."""
    return wrapped(sample_indices=lambda inner, weights, n, seed: choose(inner, np.asarray(weights), n, seed))


def without_replacement(inner: Any, w: np.ndarray, n: int, seed: int) -> Any:
    if n > len(w):
        return inner.sample_indices(w, n, seed)
    return np.random.default_rng(seed).choice(len(w), size=n, replace=False, p=w).tolist()


def one_draw_shuffled(inner: Any, w: np.ndarray, n: int, seed: int) -> Any:
    found = list(inner.sample_indices(w, n, 0))
    random.Random(seed).shuffle(found)
    return found


DRAWS = (
    Mutant("draws_are_without_replacement", (), drawn(without_replacement)),
    Mutant(
        "draws_ignore_the_weights",
        (),
        drawn(lambda inner, w, n, seed: inner.sample_indices(np.full_like(w, 1 / len(w)), n, seed)),
    ),
    Mutant(
        "draws_follow_squared_weights",
        (),
        drawn(lambda inner, w, n, seed: inner.sample_indices(shares(w * w), n, seed)),
    ),
    Mutant("draws_are_sorted", (), drawn(lambda inner, w, n, seed: sorted(inner.sample_indices(w, n, seed)))),
    Mutant(
        "draws_come_in_twos",
        (),
        drawn(lambda inner, w, n, seed: np.repeat(inner.sample_indices(w, (n + 1) // 2, seed), 2)[:n].tolist()),
    ),
    Mutant("seeds_repeat_after_a_hundred", (), drawn(lambda inner, w, n, seed: inner.sample_indices(w, n, seed % 100))),
    Mutant("draws_ignore_the_seed", (), drawn(lambda inner, w, n, seed: inner.sample_indices(w, n, 0))),
    Mutant("seeds_shuffle_one_draw", (), drawn(one_draw_shuffled)),
    Mutant(
        "draws_come_from_the_global_generator",
        (),
        drawn(lambda inner, w, n, seed: np.random.choice(len(w), size=n, p=w).tolist()),
    ),
)


# Embeddings


def read(change: Callable[[str], str]) -> Callable[[Make], Make]:
    """Other texts are embedded."""
    return wrapped(embed=lambda inner, texts: inner.embed([change(text) for text in texts]))


def pads_are_averaged(inner: Any, texts: Sequence[str]) -> Any:
    """Each text is filled up to the longest, and what fills it enters the mean."""
    longest = max(len(text.split()) for text in texts)
    return inner.embed([text + " ." * (longest - len(text.split())) for text in texts])


def seeded_by_hash(inner: Any, texts: Sequence[str]) -> np.ndarray:
    rows = [np.random.default_rng(hash(text) % 2**32).normal(size=16) for text in texts]
    return np.stack([row / np.linalg.norm(row) for row in rows])


def centred_on_the_batch(inner: Any, texts: Sequence[str]) -> np.ndarray:
    found = np.asarray(inner.embed(texts))
    return found - found.mean(axis=0) * (len(found) > 1)


EMBEDDINGS = (
    Mutant("embedding_averages_pads", ("DE2",), wrapped(embed=pads_are_averaged)),
    Mutant("embedding_is_seeded_by_hash", ("DE3",), wrapped(embed=seeded_by_hash)),
    Mutant("embedding_is_centred_on_its_batch", (), wrapped(embed=centred_on_the_batch)),
    Mutant("embedding_reads_the_first_word", (), read(lambda text: text.split()[0])),
    Mutant("embedding_reads_lower_case", (), read(str.lower)),
    Mutant("embedding_reads_a_bag_of_words", (), read(lambda text: " ".join(sorted(text.split())))),
    Mutant("embedding_cuts_long_texts", (), read(lambda text: " ".join(text.split()[:40]))),
)


# Diversity


def measured(change: Callable[[Sequence[str], dict[str, float]], Mapping[str, float]]) -> Callable[[Make], Make]:
    """The metrics are others: change(texts, good metrics)."""
    return wrapped(diversity=lambda inner, texts: change(texts, dict(inner.diversity(texts))))


def gini_off_by_one_type(text: str) -> float:
    """Over the m types that are there, and lower by 1/m: -1 where one word is repeated."""
    counts = np.sort(list(Counter(text.split()).values()))
    m = len(counts)
    return float(2 * (np.arange(1, m + 1) * counts).sum() / (m * counts.sum()) - (m + 2) / m)


def directions_inverted(make: Make) -> Make:
    @functools.wraps(make)
    def bad(*args: Any, **kwargs: Any) -> Any:
        inner = make(*args, **kwargs)
        traits = Traits.of(inner.traits)
        other = {"better": "worse", "worse": "better"}
        subject: Any = Wrapped(inner, {})
        subject.traits = replace(traits, diversity={name: other[way] for name, way in traits.diversity.items()})
        return subject

    return bad


DIVERSITY = (
    Mutant(
        "gini_is_off_by_one_type",
        ("EV17",),
        measured(lambda texts, found: found | {"token_gini": float(np.mean([gini_off_by_one_type(t) for t in texts]))}),
    ),
    Mutant("directions_of_diversity_are_inverted", ("EV17",), directions_inverted),
    Mutant(
        "diversity_is_of_placeholders",
        ("EV18",),
        wrapped(diversity=lambda inner, texts: inner.diversity([f"Sample {i} of all" for i in range(len(texts))])),
    ),
    Mutant(
        "diversity_is_of_the_different_texts",
        (),
        wrapped(
            diversity=lambda inner, texts: inner.diversity([*dict.fromkeys(texts), *texts][: max(2, len(set(texts)))])
        ),
    ),
)

MUTANTS: tuple[Mutant, ...] = (*WEIGHTS, *DRAWS, *EMBEDDINGS, *DIVERSITY)
