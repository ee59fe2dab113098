"""The microworld's preferences against an independent reader of its English, and their probabilities."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kat.cli.app import build_app
from kat.data import microworld, microworld_preferences
from kat.data.microworld import ANIMALS, TEXT_RELATIONS, build
from kat.data.microworld_preferences import (
    DENSE,
    FILES,
    RARE,
    Preferences,
    best_reward,
    build_preferences,
    true_reward,
    write_preferences,
)
from kat.data.preferences import Prompt, load_pairs, load_prompts, make_prompt, prompt_text
from kat.density.weights import density_weights
from kat.errors import UsageError
from kat.tokenizer.bpe import train_tokenizer

SIZES = {"n_prompts": 200, "n_prompts_test": 60, "n_train": 1500, "n_validation": 100, "n_test": 600, "n_talk": 400}
GRAMMAR = [  # (relation, a sentence of it)
    ("things", r"The (\w+) (?:has|holds) the (\w+)\."),
    ("places", r"The (\w+) (?:is|sits) in the (\w+)\."),
    ("clothes", r"The (\w+) (?:wears|put on) the (\w+)\."),
]
VALUES = {relation.name: set(relation.values) for relation in TEXT_RELATIONS}


@pytest.fixture(scope="module")
def world() -> Preferences:
    return build_preferences(5, **SIZES)


def understand(sentence: str) -> tuple[str, str, str] | None:
    for relation, pattern in GRAMMAR:
        found = re.fullmatch(pattern, sentence)
        if found and found[1] in ANIMALS and found[2] in VALUES[relation]:
            return found[1], relation, found[2]
    return None


def expected_reward(prompt: Prompt, response: str) -> float:
    """The docstring's formula, over sentences found another way."""
    sentences = [s.strip() for s in re.findall(r"[^.]*\.|[^.]+$", response) if s.strip()]
    words = len(re.findall(r"\S+", response))
    reward = 0.0 if 5 <= words <= 13 else -2.0
    if not sentences:
        return reward
    meanings = [understand(s) for s in sentences]
    for meaning in meanings:
        if meaning is not None:
            liking = (meaning[1] == prompt.truth["liked"]) - (meaning[1] == prompt.truth["disliked"])
            reward += (2 + 8 * liking) / len(sentences)
    return reward


def test_the_reward_is_the_documented_one_on_every_response_of_the_world(world: Preferences) -> None:
    for pair in [*world.pairs_train, *world.pairs_test]:
        for response in (pair.chosen, pair.rejected):
            assert true_reward([pair.prompt], [response]) == pytest.approx([expected_reward(pair.prompt, response)])


def facts_of(names: list[str]) -> list[str]:
    return [r.statements[0].format(e=ANIMALS[0], v=v) for r in TEXT_RELATIONS if r.name in names for v in r.values]


pieces = st.one_of(st.text(max_size=30), st.sampled_from([*facts_of(list(VALUES)), "The", " ", ".", "..", "\n"]))


@settings(deadline=None, max_examples=150)
@given(st.lists(pieces, max_size=6).map("".join))
def test_any_text_has_a_reward_within_the_bounds(response: str) -> None:
    truth = {"animal": ANIMALS[0], "liked": "things", "disliked": "clothes"}
    prompt = make_prompt([{"role": "user", "content": f"Talk of the {ANIMALS[0]}."}], truth=truth)
    (reward,) = true_reward([prompt], [response])
    assert -8 <= reward <= best_reward() == 10
    assert reward == true_reward([prompt, prompt], ["x", response])[1]


def test_every_prompt_has_a_best_response_and_it_depends_on_the_prompt(world: Preferences) -> None:
    def best(prompt: Prompt) -> str:
        relation = next(r for r in TEXT_RELATIONS if r.name == prompt.truth["liked"])
        return " ".join(relation.statements[0].format(e=prompt.truth["animal"], v=v) for v in relation.values[:2])

    prompts = world.prompts_test
    assert true_reward(prompts, [best(prompt) for prompt in prompts]) == [best_reward()] * len(prompts)
    others = [best(prompts[k - 1]) for k in range(len(prompts))]
    assert np.mean(true_reward(prompts, others)) < best_reward() - 3
    assert {world.truth["likes"][land]["liked"] for land in DENSE} == set(VALUES)
    assert all(like["liked"] != like["disliked"] for like in world.truth["likes"].values())


def test_hostile_calls_are_refused_in_a_line(world: Preferences) -> None:
    with pytest.raises(UsageError, match="2 prompts but 1 responses"):
        true_reward(world.prompts[:2], ["x"])
    for truth in (None, {"choices": ["a", "b"], "answer": 0}):
        with pytest.raises(UsageError, match="not of the microworld"):
            true_reward([make_prompt([{"role": "user", "content": "Hi"}], truth=truth)], ["x"])


def test_labels_are_bradley_terry_and_the_bayes_rate_is_what_the_truth_reaches() -> None:
    world = build_preferences(2, **{**SIZES, "n_train": 6_000})
    pairs = world.pairs_train
    margins = np.subtract(
        true_reward([p.prompt for p in pairs], [p.chosen for p in pairs]),
        true_reward([p.prompt for p in pairs], [p.rejected for p in pairs]),
    )
    size = np.abs(margins)
    p = 1 / (1 + np.exp(-size))  # that the better one is chosen
    for low, high in ((0.01, 1.8), (1.8, 2.8), (2.8, 5), (5, 20)):
        here = (size > low) & (size <= high)
        assert here.sum() > 200
        z = (np.sum(margins[here] > 0) - p[here].sum()) / math.sqrt(np.sum(p[here] * (1 - p[here])))
        assert abs(z) < 4
    assert 0.85 < world.truth["bayes_rate"]["train"] < 0.93
    assert world.truth["bayes_rate"]["train"] == pytest.approx(p.mean(), abs=1e-5)
    reached = np.mean((margins > 0) + 0.5 * (margins == 0))
    assert reached == pytest.approx(p.mean(), abs=4 * 0.32 / math.sqrt(len(pairs)))


def test_the_longer_response_is_no_better_and_no_word_of_the_response_alone_decides(world: Preferences) -> None:
    longer = [np.sign(len(p.chosen) - len(p.rejected)) for p in world.pairs_train]
    assert 0.38 < 0.5 + np.mean(longer) / 2 < 0.55


def test_no_prompt_is_in_two_splits_and_training_pairs_ask_the_prompts_of_grpo(world: Preferences) -> None:
    names = ("pairs_train", "pairs_validation", "pairs_test")
    ids = {name: {pair.prompt.id for pair in getattr(world, name)} for name in names}
    assert ids["pairs_train"] == {prompt.id for prompt in world.prompts}
    assert ids["pairs_test"] == {prompt.id for prompt in world.prompts_test}
    assert not ids["pairs_train"] & (ids["pairs_test"] | ids["pairs_validation"])
    assert not ids["pairs_test"] & ids["pairs_validation"]
    assert all(pair.chosen != pair.rejected for pair in world.pairs_train)


def test_a_seventh_of_the_prompts_is_rare_and_in_words_of_its_own(world: Preferences) -> None:
    lands = Counter(dict(prompt.slices)["cluster"] for prompt in world.prompts)
    assert sum(lands[land] for land in RARE) == 30
    assert {lands[land] for land in RARE} == {6}
    assert all(lands[land] >= 56 for land in DENSE)
    for prompt in world.prompts:
        slices = dict(prompt.slices)
        assert slices["kind"] == ("rare" if slices["cluster"] in RARE else "dense")
        assert slices["cluster"] in prompt_text(prompt)
        assert prompt.truth["animal"] in prompt_text(prompt)


def test_density_weights_of_tf_idf_vectors_find_the_rare_clusters() -> None:
    prompts = build_preferences(1, **{**SIZES, "n_prompts": 1000}).prompts
    words = [set(re.findall(r"\w+", prompt_text(prompt).lower())) for prompt in prompts]
    idf = {word: math.log(len(prompts) / sum(word in one for one in words)) for word in set().union(*words)}
    vectors = np.array([[idf[word] * (word in one) for word in sorted(idf)] for one in words])
    weights = density_weights(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), k=10, dose=0.2).values
    rare = np.array([dict(prompt.slices)["kind"] == "rare" for prompt in prompts])
    assert rare.mean() == 0.15
    assert weights[rare].sum() > 0.25


def test_nothing_that_is_written_says_what_a_land_likes(world: Preferences) -> None:
    """In the talks every relation is equally common in every land."""
    found: dict[str, Counter[str]] = {}
    by_text = {prompt_text(prompt): dict(prompt.slices)["cluster"] for prompt in world.prompts}
    for row in world.sft_talk:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        land = by_text[row["messages"][0]["content"]]
        for sentence in re.findall(r"[^.]+\.", row["messages"][1]["content"]):
            meaning = understand(sentence.strip())
            found.setdefault(land, Counter())[meaning[1] if meaning else "broken"] += 1
    for land in DENSE:
        whole, broken = sum(found[land].values()), found[land].pop("broken")
        assert 0.05 < broken / whole < 0.3
        n = sum(found[land].values())
        assert all(abs(count - n / 3) < 4 * math.sqrt(n * 2 / 9) for count in found[land].values())


def test_equal_seeds_write_equal_bytes_and_the_rows_read_back(world: Preferences, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        write_preferences(build_preferences(seed, **SIZES), tmp_path / name)
    for file in sorted(path.name for path in (tmp_path / "a").iterdir()):
        a, b, c = ((tmp_path / folder / file).read_bytes() for folder in "abc")
        assert a == b != c
    assert load_prompts([tmp_path / "a" / "prompts.jsonl"], max_bad=0).rows == world.prompts
    assert load_pairs([tmp_path / "a" / "pairs_test.jsonl"], max_bad=0).rows == world.pairs_test
    assert json.loads((tmp_path / "a" / "preferences.json").read_text()) == world.truth


def test_what_matters_is_one_token_with_or_without_the_talks(world: Preferences) -> None:
    main = build(5, n_documents=1200, n_mid=400, n_train=1200, n_validation=20, n_test=20)  # a tenth of the real one
    texts = [row["text"] for row in main.documents]
    texts += [message["content"] for row in main.mid for message in row["messages"]]
    texts += [f"{i['hint']}\n{i['question']}\n" + "\n".join(f"A. {c}" for c in i["choices"]) for i in main.train]
    talks = [message["content"] for row in world.sft_talk for message in row["messages"]]
    values = [value for relation in TEXT_RELATIONS for value in relation.values]
    for tok in (train_tokenizer(texts, 640), train_tokenizer(texts + talks, 640)):
        assert [word for word in (*values, *DENSE, *RARE) if len(tok.encode(f" {word}")) > 1] == []
        assert max(len(tok.encode(f"{prompt_text(p.prompt)} {p.chosen}")) for p in world.pairs_train) < 100
        assert max(len(tok.encode(row["messages"][1]["content"])) for row in world.sft_talk) <= 32


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="0 rows of pairs_train"):
        build_preferences(0, **{**SIZES, "n_train": 0})
    with pytest.raises(UsageError, match="more prompts about the"):
        build_preferences(0, **{**SIZES, "n_prompts": 3_000})


def test_the_command_writes_all_or_nothing_and_never_over_another_folder(
    world: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microworld_preferences, "build_preferences", lambda seed: world)
    small = build(0, n_documents=20, n_mid=20, n_train=40, n_validation=8, n_test=8)
    monkeypatch.setattr(microworld, "build", lambda seed: small)
    (tmp_path / "plain").mkdir()
    microworld.write(small, tmp_path / "plain")
    run = CliRunner()
    out = tmp_path / "world"
    for _ in range(2):
        assert run.invoke(build_app(), ["data", "microworld", "--out", str(out)]).exit_code == 0
    assert {path.name for path in out.iterdir()} == FILES
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
    mine = out / "notes.txt"
    mine.write_text("mine")
    refused = run.invoke(build_app(), ["data", "microworld", "--out", str(out)])
    assert refused.exit_code != 0
    assert isinstance(refused.exception, UsageError) and "exists and is no microworld" in str(refused.exception)
    assert mine.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
