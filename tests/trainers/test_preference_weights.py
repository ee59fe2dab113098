"""What density weights become in a job: of prompts, of the pairs of a prompt, permuted for a placebo, and never of a
folder that is of other prompts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kat.density.schedule import placebo_weights
from kat.trainers import preferences

WEIGHT = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
PAIRS: Any = SimpleNamespace(prompts=("a", "b", "a", "c", "a"), prompt_lengths=(3, 7, 3, 9, 3))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the folder was asked for: (ids, subset)."""
    calls: list[Any] = []

    def load(folder: Any, ids: Any, *, subset: bool = False, **_: Any) -> np.ndarray:
        calls.append((tuple(ids), subset))
        found = np.array([WEIGHT[one] for one in ids])
        return found / found.sum()

    monkeypatch.setattr(preferences, "load_density", load)
    return calls


def test_the_pairs_of_a_prompt_share_its_weight(asked: list[Any]) -> None:
    found = preferences._pair_weights("density", "folder", PAIRS, 0)
    assert found == pytest.approx(np.array([0.5 / 3, 0.3, 0.5 / 3, 0.15, 0.5 / 3]) / 0.95)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert asked == [(("a", "b", "c"), True)]  # the held-out prompts are in the folder too


def test_a_placebo_of_pairs_permutes_the_prompts_weights_not_the_pairs(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def reversed_(weights: np.ndarray, lengths: Any, seed: int) -> np.ndarray:
        given.append((list(lengths), seed))
        return weights[::-1]

    monkeypatch.setattr(preferences, "placebo_weights", reversed_)
    found = preferences._pair_weights("placebo", "folder", PAIRS, 4)
    assert given == [([3, 7, 9], 4)]
    assert found == pytest.approx(np.array([0.15 / 3, 0.3, 0.15 / 3, 0.5, 0.15 / 3]) / 0.95)


@pytest.mark.parametrize("dropped", [0, 2])
def test_prompts_have_the_weights_of_their_folder_and_of_no_larger_one(asked: list[Any], dropped: int) -> None:
    """Only where prompts were dropped, being too long, may the folder know more than there are."""
    data: Any = SimpleNamespace(names=("d", "a"), n_dropped=dropped, ids=((1, 2), (3,)))
    found = preferences.prompt_weights("density", "folder", data, 0)
    assert found == pytest.approx(np.array([0.05, 0.5]) / 0.55)
    assert asked == [(("d", "a"), dropped > 0)]


def test_a_placebo_of_prompts_is_dealt_by_their_lengths_in_tokens(asked: list[Any]) -> None:
    data: Any = SimpleNamespace(names=("a", "b", "c", "d"), n_dropped=0, ids=((1,), (1,), (1,), (1,)))
    weights = np.array(list(WEIGHT.values()))
    found = preferences.prompt_weights("placebo", "folder", data, 3)
    assert np.array_equal(found, placebo_weights(weights, [1, 1, 1, 1], 3)) and sorted(found) == sorted(weights)
    assert preferences.prompt_weights("uniform", None, data, 3) is None
