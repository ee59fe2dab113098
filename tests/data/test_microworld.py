"""The microworld against an independent reader of its own English."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import chisquare

from kat.data.choices import ChoiceItem, answer_text
from kat.data.examples import Conversation, Document, parse_example
from kat.data.microworld import TEXT_RELATIONS, WORLD_RELATIONS, Microworld, Relation, build, write
from kat.errors import UsageError
from kat.tokenizer.bpe import train_tokenizer

SIZES = {"n_documents": 400, "n_mid": 300, "n_train": 1200, "n_validation": 120, "n_test": 600}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def world() -> Microworld:
    return build(3, **SIZES)


def items(world: Microworld, split: str, kind: str | None = None) -> list[ChoiceItem]:
    found = [parse_example(row) for row in getattr(world, split)]
    assert all(isinstance(item, ChoiceItem) for item in found)
    return [item for item in found if kind is None or dict(item.slices)["kind"] == kind]


def understand(text: str, relations: tuple[Relation, ...]) -> set[tuple[str, str, str]]:
    """Every (subject, relation, value) that a text states, by its sentences alone."""
    facts = set()
    for relation in relations:
        for statement in relation.statements:
            pattern = re.escape(statement).replace(r"\{e\}", "(?P<e>[a-z]+)").replace(r"\{v\}", "(?P<v>[a-z]+)")
            facts |= {(found["e"], relation.name, found["v"]) for found in re.finditer(pattern, text)}
    return facts


def asked(item: ChoiceItem, relations: tuple[Relation, ...]) -> tuple[str, str]:
    """(subject, relation) of a question."""
    for relation in relations:
        for question in relation.questions:
            found = re.fullmatch(re.escape(question).replace(r"\{e\}", "([a-z]+)"), item.question)
            if found:
                return found[1], relation.name
    raise AssertionError(item.question)


@pytest.mark.parametrize("split", SPLITS)
def test_a_reading_hint_entails_exactly_one_option_the_right_one(world: Microworld, split: str) -> None:
    for item in items(world, split, "reading"):
        subject, relation = asked(item, TEXT_RELATIONS)
        stated = understand(item.hint, TEXT_RELATIONS)
        entailed = [choice for choice in item.choices if (subject, relation, choice) in stated]
        assert entailed == [item.choices[item.answer]]
        assert len(stated) == item.hint.count(".")  # the reader understood every sentence


def test_a_crowded_hint_names_every_option_so_that_mention_decides_nothing(world: Microworld) -> None:
    reading = items(world, "test", "reading")
    crowded = [item for item in reading if dict(item.slices)["category"] == "crowded"]
    assert 0.15 < len(crowded) / len(reading) < 0.35
    assert all(choice in item.hint for item in crowded for choice in item.choices)
    assert {dict(item.slices)["category"] for item in reading} == {"plain", "crowded"}


def test_no_document_states_what_a_reading_item_asks(world: Microworld) -> None:
    """Hints are drawn per item: the same question has several answers over the split."""
    answers: dict[tuple[str, str], set[str]] = {}
    for item in items(world, "train", "reading"):
        answers.setdefault(asked(item, TEXT_RELATIONS), set()).add(item.choices[item.answer])
    assert all(len(values) > 1 for values in answers.values())


@pytest.mark.parametrize("split", SPLITS)
def test_a_recall_answer_stands_in_the_documents_and_in_the_truth(world: Microworld, split: str) -> None:
    stated = set().union(*(understand(row["text"], WORLD_RELATIONS) for row in world.documents))
    assert stated == {(c, name, value) for c, values in world.facts.items() for name, value in values.items()}
    values = {relation.name: relation.values for relation in WORLD_RELATIONS}
    for item in items(world, split, "recall"):
        creature, relation = asked(item, WORLD_RELATIONS)
        assert item.hint == ""
        assert item.choices[item.answer] == world.facts[creature][relation]
        assert set(item.choices) <= set(values[relation])
        assert (creature, relation) in world.asked[split]


def test_held_out_questions_are_never_asked_in_training(world: Microworld) -> None:
    questions = {split: {asked(item, WORLD_RELATIONS) for item in items(world, split, "recall")} for split in SPLITS}
    assert not questions["train"] & (questions["test"] | questions["validation"])
    assert not questions["test"] & questions["validation"]
    contents = {split: Counter(item.hash for item in items(world, split)) for split in SPLITS}
    assert all(max(counts.values()) == 1 for counts in contents.values())
    assert not contents["train"] & contents["test"]
    assert not contents["train"] & contents["validation"]
    assert not contents["test"] & contents["validation"]
    everything = json.dumps([world.mid, world.documents])
    for item in items(world, "test") + items(world, "validation"):
        assert not item.hint or item.hint not in everything
        assert dict(item.slices)["kind"] == "reading" or item.question not in everything


def test_mid_practises_letters_and_knows_no_facts(world: Microworld) -> None:
    creatures = set(world.facts)
    for row in world.mid:
        talk = parse_example(row)
        assert isinstance(talk, Conversation)
        options = dict(re.findall(r"^([A-D])\. (\w+)$", talk.messages[1]["content"], re.MULTILINE))
        for user, assistant in zip(talk.messages[1::2], talk.messages[2::2], strict=True):
            letter, word = re.fullmatch(r"The correct answer is ([A-D])\. (\w+)", assistant["content"]).groups()
            assert options[letter] == word
            assert f" {word}" in user["content"].split("\n")[0]
        assert not creatures & set(re.findall(r"[a-z]+", talk.messages[1]["content"]))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["reading", "recall"])
def test_letters_and_numbers_of_options_are_balanced(world: Microworld, split: str, kind: str) -> None:
    found = items(world, split, kind)
    by_n = Counter(len(item.choices) for item in found)
    assert set(by_n) == {2, 3, 4}
    assert max(by_n.values()) - min(by_n.values()) <= 1
    for n in by_n:
        letters = Counter(item.letter for item in found if len(item.choices) == n)
        assert set(letters) == set("ABCD"[:n])
        assert chisquare([letters[letter] for letter in "ABCD"[:n]]).pvalue > 0.5


def test_the_right_option_is_not_told_by_its_value(world: Microworld) -> None:
    """Of the options of a relation, each value is right about as often as it is offered."""
    found = [item for split in SPLITS for item in items(world, split, "reading")]
    for relation in TEXT_RELATIONS:
        here = [item for item in found if dict(item.slices)["topic"] == relation.name]
        offered = {v: sum(1 / len(item.choices) for item in here if v in item.choices) for v in relation.values}
        right = Counter(item.choices[item.answer] for item in here)
        scale = sum(right.values()) / sum(offered.values())
        expected = [offered[v] * scale for v in relation.values]
        assert chisquare([right[v] for v in relation.values], expected).pvalue > 1e-4


def test_clusters_are_the_fact_for_recall_and_the_item_for_reading(world: Microworld) -> None:
    """A shared lecture must not make one cluster of everything: then nothing could ever be significant."""
    reading, recall = items(world, "test", "reading"), items(world, "test", "recall")
    assert len({item.cluster for item in reading}) == len(reading)
    assert {item.cluster for item in recall} == {
        f"{c}-{name}" for c, name in (asked(i, WORLD_RELATIONS) for i in recall)
    }


def test_the_columns_are_scienceqas(world: Microworld) -> None:
    columns = {"question", "choices", "answer", "hint", "lecture", "solution", "subject", "topic", "grade"}
    for row in world.train:
        assert columns <= row.keys()
        assert all(row[name] for name in columns - {"answer", "hint"})
        assert row["choices"][row["answer"]] in row["solution"]


def test_equal_seeds_write_equal_bytes_and_the_files_read_back(world: Microworld, tmp_path: Path) -> None:
    write(world, tmp_path / "a")
    write(build(3, **SIZES), tmp_path / "b")
    write(build(4, **SIZES), tmp_path / "c")
    for name in ("documents", "mid", *SPLITS):
        a, b, c = ((tmp_path / folder / f"{name}.jsonl").read_bytes() for folder in "abc")
        assert a == b != c
        rows = [json.loads(line) for line in a.decode().splitlines()]
        assert rows == getattr(world, name)
        assert len({row["id"] for row in rows}) == len(rows) == SIZES[f"n_{name}"]
        kinds = {"documents": Document, "mid": Conversation}
        assert {type(parse_example(row)) for row in rows} == {kinds.get(name, ChoiceItem)}
    truth = json.loads((tmp_path / "a" / "world.json").read_text())
    assert truth["facts"] == world.facts


def test_another_size_of_one_file_leaves_the_others_alone(world: Microworld) -> None:
    other = build(3, **{**SIZES, "n_documents": 10, "n_mid": 10, "n_train": 50})
    assert other.test == world.test
    assert other.validation == world.validation
    assert other.facts == world.facts


def test_every_word_that_matters_is_one_token_and_the_rows_are_short(world: Microworld) -> None:
    texts = [row["text"] for row in world.documents]
    texts += [m["content"] for row in world.mid for m in row["messages"]]
    texts += [f"{i.hint}\n{i.question}\n" + "\n".join(f"A. {c}" for c in i.choices) for i in items(world, "train")]
    tok = train_tokenizer(texts, 640)  # the demo's vocabulary
    values = [value for relation in TEXT_RELATIONS + WORLD_RELATIONS for value in relation.values]
    assert [word for word in values if len(tok.encode(f" {word}")) > 1] == []
    lengths = [len(tok.encode(f"{i.hint} {i.question} {' A. '.join(i.choices)}")) for i in items(world, "test")]
    assert max(lengths) <= 60
    assert all(len(tok.encode(answer_text(item))) <= 8 for item in items(world, "test"))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"n_test": 0}, "0 rows of test"),
        ({"n_documents": -5}, "-5 rows of documents"),
        ({"n_creatures": 7}, "7 creatures"),
        ({"n_creatures": 100_000}, "creatures"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(0, **{**SIZES, **sizes})
