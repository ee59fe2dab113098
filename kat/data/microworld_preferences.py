"""The microworld's preferences: prompts, pairs and a true reward, so that reward models and policies can be checked.

A prompt asks for a few words about an animal in one of eight lands. A response is one or more sentences that the
documents could hold, such as "The fox has the key. The fox is in the barn.". The true reward is a known bounded
function of both: it wants one or two well-formed sentences, and each land likes to hear of things, of places or of
clothes, and dislikes another of the three. Which ones is drawn with the world, so it stands in no text: a reward model
can only learn it from the pairs, a policy only from rewards. Pairs are drawn by the Bradley-Terry model on the true
reward, so the best possible accuracy is known.

The lands are the prompt clusters. Three are *dense*: most of the prompts, near-duplicates of each other. Five are
*rare*: few prompts each, in words of their own, so a density weight must find them.

The lands, and what is said of an animal, are words of the documents; each is one token of a vocabulary of 640.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kat.data.microworld import ANIMALS, TEXT_RELATIONS, WORLD_RELATIONS
from kat.data.preferences import Pair, Prompt, make_prompt, pair_row, prompt_row, rows_text
from kat.errors import UsageError
from kat.runs.files import write_json, write_text

DENSE = ("forest", "river", "valley")
RARE = ("swamp", "desert", "beach", "jungle", "island")
RARE_SHARE = 0.15  # of the prompts of every file

FORM, LIKING, LENGTH = 2.0, 8.0, 2.0
N_WORDS = (5, 13)  # one or two sentences

Likes = dict[str, dict[str, str]]  # land -> {"liked": relation, "disliked": relation}

FILES = {  # that `kat data microworld` writes
    *(f"{name}.jsonl" for name in ("documents", "mid", "train", "validation", "test", "prompts", "prompts_test")),
    *(f"{name}.jsonl" for name in ("pairs_train", "pairs_validation", "pairs_test", "sft_talk")),
    *("world.json", "preferences.json"),
}

_RELATION = {  # of every well-formed sentence
    statement.format(e=animal, v=value): relation.name
    for relation in TEXT_RELATIONS
    for statement in relation.statements
    for animal in ANIMALS
    for value in relation.values
}


def true_reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """The reward of each response to its prompt: what no model is shown and every model is judged by.

    With n the sentences (what stands before each full stop, and what follows the last one), it is

        2 · well-formed / n  +  8 · Σ like / n  −  2 · [words ∉ 5…13]

    where like is 1 for a well-formed sentence of the relation (things, places, clothes) that the land likes, −1 for one
    of the relation that it dislikes. It lies in [−8, 10]. Any text is a response; an empty one is worth −2. That the
    sentences are about the animal asked for earns nothing: a reward model of the demo's size did not learn to see it
    from 16,000 pairs, and what no reward model sees no policy can be taught. Raises :class:`UsageError` for a prompt
    that is not of the microworld, and for unequal numbers.
    """
    if len(prompts) != len(responses):
        raise UsageError(f"{len(prompts)} prompts but {len(responses)} responses")
    return [_reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def best_reward() -> float:
    """The largest true reward, which some response to every prompt reaches."""
    return FORM + LIKING


def _reward(prompt: Prompt, response: str) -> float:
    truth = prompt.truth
    if truth is None or not {"liked", "disliked"} <= truth.keys():
        raise UsageError(f"prompt {prompt.id:.12}: not of the microworld: its truth names no likes")
    *whole, rest = response.split(".")
    sentences = [f"{sentence.strip()}." for sentence in whole] + ([rest.strip()] if rest.strip() else [])
    misfit = LENGTH * (not N_WORDS[0] <= len(response.split()) <= N_WORDS[1])
    if not sentences:
        return -misfit
    known = [_RELATION[sentence] for sentence in sentences if sentence in _RELATION]
    likes = sum((relation == truth["liked"]) - (relation == truth["disliked"]) for relation in known)
    return (FORM * len(known) + LIKING * likes) / len(sentences) - misfit


@dataclass(frozen=True)
class Preferences:
    """Pairs and prompts of each split, conversations to fine-tune on (SFT rows), and the truth.

    No prompt of validation or test stands in `prompts`, from which the training pairs and the talks are made.
    """

    prompts: list[Prompt]
    prompts_test: list[Prompt]
    pairs_train: list[Pair]
    pairs_validation: list[Pair]
    pairs_test: list[Pair]
    sft_talk: list[dict[str, Any]]
    truth: dict[str, Any]


def build_preferences(
    seed: int,
    n_prompts: int = 1_000,
    n_prompts_test: int = 300,
    n_train: int = 16_000,
    n_validation: int = 600,
    n_test: int = 2_000,
    n_talk: int = 4_000,
) -> Preferences:
    """Draw prompts, pairs and talks; the same arguments give the same rows.

    15 % of the prompts of each file are of rare lands, the rest of dense ones, equally many of each land. Raises
    :class:`UsageError` on impossible sizes.
    """
    sizes = {"prompts": n_prompts, "prompts_test": n_prompts_test, "pairs_train": n_train}
    sizes |= {"pairs_validation": n_validation, "pairs_test": n_test, "sft_talk": n_talk}
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"microworld: {size} rows of {name}; at least 1 is needed")
    likes = _draw_likes(np.random.default_rng([seed, 10]))
    taken: set[str] = set()
    rng = np.random.default_rng([seed, 11])
    test, validation, train = (_prompts(rng, n, likes, taken) for n in (n_prompts_test, n_prompts_test, n_prompts))
    pairs, bayes = {}, {}
    for k, (name, prompts, n) in enumerate(
        (("train", train, n_train), ("validation", validation, n_validation), ("test", test, n_test))
    ):
        pairs[name], bayes[name] = _pairs(np.random.default_rng([seed, 12 + k]), name, prompts, n)
    talk = _talks(np.random.default_rng([seed, 15]), train, n_talk)
    random = true_reward([by_id for by_id, _ in talk], [text for _, text in talk])
    truth = {
        "seed": seed,
        "clusters": {"dense": list(DENSE), "rare": list(RARE), "rare_share": RARE_SHARE},
        "likes": likes,
        "bayes_rate": {name: round(rate, 6) for name, rate in bayes.items()},
        "best_reward": best_reward(),
        "talk_reward": round(float(np.mean(random)), 6),
    }
    rows = [
        {"id": f"talk-{k}", "messages": [*prompt.messages, {"role": "assistant", "content": text}], "kind": "talk"}
        for k, (prompt, text) in enumerate(talk)
    ]
    return Preferences(train, test, pairs["train"], pairs["validation"], pairs["test"], rows, truth)


def write_preferences(world: Preferences, folder: Path) -> None:
    """Write the six files as JSONL and the truth as preferences.json; equal worlds, equal bytes."""
    for name in ("prompts", "prompts_test"):
        write_text(folder / f"{name}.jsonl", rows_text(map(prompt_row, getattr(world, name))))
    for name in ("pairs_train", "pairs_validation", "pairs_test"):
        write_text(folder / f"{name}.jsonl", rows_text(map(pair_row, getattr(world, name))))
    write_text(folder / "sft_talk.jsonl", rows_text(world.sft_talk))
    write_json(folder / "preferences.json", world.truth)


def _draw_likes(rng: np.random.Generator) -> Likes:
    """For each land the relation it likes and the one it dislikes; the dense lands like different ones."""
    names = [relation.name for relation in TEXT_RELATIONS]
    likes: Likes = {}
    for lands in (DENSE, RARE):
        order = rng.permutation(3)
        for k, land in enumerate(lands):
            liked = int(order[k % 3])
            likes[land] = {"liked": names[liked], "disliked": names[(liked + int(rng.integers(1, 3))) % 3]}
    return likes


_DENSE_WORDING = "{first} {ask} something about the {e} in the {land}."
_FIRST = ("Please", "Now", "So", "Then", "Well,")
_ASKS = ("tell me", "say", "give me", "write", "add", "read me")

_RARE_WORDINGS = {
    "swamp": (
        "A {colour} swamp, {food}, a {things} and a {sound}: who is there? It is the {e}!",
        "You hear a {sound} by the swamp. Which {clothes}, which {things}, what {food} for the {e}?",
    ),
    "desert": (
        "If you go to the desert with a {things}, look for a {e}, a {places} and {food}.",
        "{food} or a {clothes}? A {colour} desert makes a {sound}. Does the {e} live so?",
    ),
    "beach": (
        "Which {e} has its home on a {colour} beach with a {places}, and what eats the {food}?",
        "A beach, a {sound}, a {clothes}, a {things}, a {e}. What else?",
    ),
    "jungle": (
        "Give {food} and a {things} to a {e} of the jungle if its {clothes} is {colour}. What then?",
        "It looks {colour} by the {places} in the jungle if the {e} makes a {sound}. And so?",
    ),
    "island": (
        "The home of one {e} is a {colour} island with {food} and a {places}. What does it look like?",
        "On an island you see a {e}, a {things} and a {clothes}, and you hear a {sound}. Which one?",
    ),
}


def _prompts(rng: np.random.Generator, n: int, likes: Likes, taken: set[str]) -> list[Prompt]:
    """n prompts in random order, none of which is in `taken`, which grows by them."""
    n_rare = round(n * RARE_SHARE)
    lands = [RARE[k % len(RARE)] for k in range(n_rare)] + [DENSE[k % len(DENSE)] for k in range(n - n_rare)]
    prompts = [_fresh_prompt(rng, land, likes, taken) for land in lands]
    return [prompts[k] for k in rng.permutation(n)]


def _fresh_prompt(rng: np.random.Generator, land: str, likes: Likes, taken: set[str]) -> Prompt:
    for _ in range(1_000):
        animal = _one(rng, ANIMALS)
        text = _rare_text(rng, land, animal) if land in RARE else _dense_text(rng, land, animal)
        if text not in taken:
            taken.add(text)
            slices = (("cluster", land), ("kind", "rare" if land in RARE else "dense"))
            truth = {"animal": animal, "land": land, **likes[land]}
            return make_prompt([{"role": "user", "content": text}], "microworld", truth, slices)
    raise UsageError(f"microworld: more prompts about the {land} than it has; ask for fewer")


def _dense_text(rng: np.random.Generator, land: str, animal: str) -> str:
    return _DENSE_WORDING.format(first=_one(rng, _FIRST), ask=_one(rng, _ASKS), e=animal, land=land)


def _rare_text(rng: np.random.Generator, land: str, animal: str) -> str:
    words = {relation.name: _one(rng, relation.values) for relation in TEXT_RELATIONS + WORLD_RELATIONS}
    text = str(_one(rng, _RARE_WORDINGS[land])).format(e=animal, **words)
    return text[0].upper() + text[1:]


def _talks(rng: np.random.Generator, prompts: Sequence[Prompt], n: int) -> list[tuple[Prompt, str]]:
    """Prompts with a response that nobody optimised: about any value, often about another animal, now and then broken
    or said twice. There is much to gain from a reward, and all of it is in reach of somebody who samples."""
    pairs = []
    for k in range(n):
        prompt = prompts[k % len(prompts)]
        sentences = [_sentence(rng, prompt, 0.7, None) for _ in range(_n_sentences(rng))]
        if rng.random() < 0.2:
            sentences.append(sentences[0])
        if rng.random() < 0.3:
            sentences[-1] = _break(rng, sentences[-1])
        pairs.append((prompt, " ".join(sentences)))
    return [pairs[k] for k in rng.permutation(n)]


def _pairs(rng: np.random.Generator, split: str, prompts: Sequence[Prompt], n: int) -> tuple[list[Pair], float]:
    """n pairs over the prompts in turn, and the Bayes rate: the accuracy of the true reward, expected over the labels.

    chosen is drawn with probability sigmoid(r_chosen − r_rejected) (Bradley and Terry, 1952).
    """
    pairs, rates = [], []
    for k in range(n):
        prompt = prompts[k % len(prompts)]
        a = b = _response(rng, prompt)
        while b == a:
            b = _response(rng, prompt)
        first, second = true_reward([prompt, prompt], [a, b])
        p = 1 / (1 + math.exp(second - first))
        chosen, rejected = (a, b) if rng.random() < p else (b, a)
        pairs.append(Pair(f"{split}-{k}", prompt, chosen, rejected))
        rates.append(max(p, 1 - p))
    return pairs, float(np.mean(rates))


def _response(rng: np.random.Generator, prompt: Prompt) -> str:
    """A response of any quality: to the land's taste or against it, on the subject or off it, sometimes broken."""
    taste = _one(rng, ("liked", "disliked", None, None))
    faithful = _one(rng, (0.6, 0.9, 1.0))
    sentences = [_sentence(rng, prompt, faithful, taste) for _ in range(_n_sentences(rng))]
    if rng.random() < 0.1:
        sentences.append(sentences[0])
    if rng.random() < 0.15:
        sentences[-1] = _break(rng, sentences[-1])
    return " ".join(sentences)


def _n_sentences(rng: np.random.Generator) -> int:
    return int(rng.choice(3, p=(0.5, 0.4, 0.1))) + 1


def _sentence(rng: np.random.Generator, prompt: Prompt, faithful: float, taste: str | None) -> str:
    assert prompt.truth is not None
    animal = prompt.truth["animal"] if rng.random() < faithful else _one(rng, ANIMALS)
    relation = _one(rng, TEXT_RELATIONS)
    if taste is not None and rng.random() < 0.7:
        relation = next(one for one in TEXT_RELATIONS if one.name == prompt.truth[taste])
    return str(_one(rng, relation.statements)).format(e=animal, v=_one(rng, relation.values))


def _break(rng: np.random.Generator, sentence: str) -> str:
    """The sentence without one of its words, with one twice, or cut off."""
    words = sentence.split(" ")
    k = int(rng.integers(1, len(words)))
    return " ".join(_one(rng, (words[: k - 1] + words[k:], words[:k] + words[k - 1 :], words[:k])))


def _one(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]
