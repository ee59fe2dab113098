"""The diversity suite and its paired comparison: models that repeat themselves, babble, or answer too briefly."""

import hashlib
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from kat.audit.diversity import compare_diversity, table
from kat.audit.load import load_evidence
from kat.data.preferences import make_prompt, prompt_row, rows_text
from kat.errors import EvidenceError, UsageError
from kat.evals.diversity import Asked, Diversity
from kat.evals.protocol import DataSource
from kat.evals.recorded import read_responses, run_recorded
from kat.evals.runner import run_suite
from kat.stats.diversity import vendi_score
from kat.stats.windows import first_tokens, tokens
from tests.evals.fake_backend import FakeBackend
from tests.test_cli import kat

SOURCE = DataSource("made up", "d" * 64)
PROMPTS = [
    make_prompt([{"role": "user", "content": f"Tell me of creature {i}."}], slices=[("kind", "x")]) for i in range(24)
]


class Bag:
    """Texts as their bag of words on the sphere: no model, no order of the texts in it."""

    name, identity, dim = "bag", "b" * 64, 64

    def embed(self, texts):
        found = np.full((len(texts), self.dim), 0.01, dtype=np.float32)
        for i, text in enumerate(texts):
            for token in tokens(text):
                found[i, int(hashlib.sha256(token.encode()).hexdigest(), 16) % self.dim] += 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class Politeness:
    """A reward of .5, and 1 with "please" in the answer."""

    name, identity = "politeness", "p" * 64

    def __call__(self, prompts, responses):
        return [0.5 + 0.5 * ("please" in response) for response in responses]


def speaker(name, words, n_words=70, please=1.0):
    """A model that draws from `words` words."""

    def answer(text, seed):
        draw = random.Random(f"{name}{text}{seed}")
        said = [f"w{draw.randrange(words)}" for _ in range(n_words - 1)]
        return " ".join([("please" if draw.random() < please else "well"), *said])

    return FakeBackend(answer=answer, identity=hashlib.sha256(name.encode()).hexdigest(), name=name)


def suite(**options):
    return Diversity(PROMPTS, SOURCE, Bag(), Politeness(), draws=4, **options)


def evaluate(folder, backend, **options):
    run_suite(suite(**options), backend, folder)
    return folder


def test_every_figure_follows_from_the_rows(tmp_path):
    results = run_suite(suite(), speaker("a", 200), tmp_path)
    rows = load_evidence(tmp_path).items
    vendi = [vendi_score(Bag().embed([first_tokens(row.response, 64) for row in group])) for group in rows.values()]
    assert results.metrics["vendi"].estimate == pytest.approx(np.mean(vendi))
    assert results.metrics["vendi"].low < np.mean(vendi) < results.metrics["vendi"].high
    assert results.metrics["length_mean"].estimate == 70 and results.metrics["truncation_rate"].estimate == 0
    assert results.metrics["reward"].estimate == 1.0 and results.metrics["window"].estimate == 64
    assert 0 <= results.metrics["distinct_2"].estimate <= 1
    assert results.protocol["temperature"] == 1.0 and results.protocol["embedder"] == "b" * 64
    again = run_suite(suite(), speaker("a", 200), tmp_path)  # a finished folder is returned as it is
    assert again == results


def test_the_figures_do_not_depend_on_the_order_of_the_rows():
    """Rewards and lengths differ from prompt to prompt, so a mean over prompts is told from one over runs of rows."""
    stamp = SimpleNamespace(sample=lambda **fields: SimpleNamespace(item_hash=fields["cluster"], **fields))
    rows = []
    for i, prompt in enumerate(PROMPTS):
        answers = [
            SimpleNamespace(
                text=" ".join(f"w{(i * k) % 17}" for k in range(8 + i)) + (" please" if draw < i % 5 else ""),
                prompt_hash="",
                prompt="",
                finish_reason="stop",
            )
            for draw in range(4)
        ]
        rows += suite(window=6).score(Asked(prompt), answers, stamp)
    mixed = random.Random(0).sample(rows, len(rows))
    assert suite(window=6).summarise(mixed) == suite(window=6).summarise(rows)


def test_a_killed_run_resumes_to_the_same_figures(tmp_path):
    whole = run_suite(suite(), speaker("a", 200), tmp_path / "whole")
    dying = speaker("a", 200)
    dying.die_after = 2
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite(), dying, tmp_path / "cut")
    assert run_suite(suite(), speaker("a", 200), tmp_path / "cut").metrics == whole.metrics


def test_more_diverse_at_no_loss_of_reward_is_a_claim_of_both(tmp_path):
    dull, lively = evaluate(tmp_path / "a", speaker("a", 30)), evaluate(tmp_path / "b", speaker("b", 400))
    rude = evaluate(tmp_path / "c", speaker("c", 400, please=0.2))
    good = compare_diversity(dull, lively, margin=0.05)
    assert good.primary.word == "better" and good.sentence.startswith("B is more diverse than A at no loss of reward")
    assert {line.name: line.word for line in good.secondary}["self_bleu_4"] == "better"  # lower, which is better
    back = compare_diversity(lively, dull, margin=0.05)
    assert back.primary.word == "worse" and "B is less diverse" in back.sentence
    assert back.primary.found.difference == pytest.approx(-good.primary.found.difference)
    assert "at a loss of reward, so they count for nothing" in compare_diversity(dull, rude, margin=0.05).sentence
    assert "gibberish differs most" in compare_diversity(dull, lively).sentence  # no margin, no claim
    text = "\n".join(table(good))
    assert "not inferior" in text and "higher is worse" in text and "24 prompts, 4 answers each" in text


def test_equal_models_are_not_told_apart(tmp_path):
    a, b = evaluate(tmp_path / "a", speaker("a", 100)), evaluate(tmp_path / "b", speaker("b", 100))
    found = compare_diversity(a, b, margin=0.05)
    assert found.primary.word == "not shown" and "not shown which" in found.sentence


def test_length_alone_is_no_diversity(tmp_path):
    """The same process, speaking longer: in one window of tokens nothing differs; whole texts would."""
    short, long = evaluate(tmp_path / "a", speaker("a", 60, 20)), evaluate(tmp_path / "b", speaker("b", 60, 120))
    with pytest.raises(UsageError, match="name the embedder"):
        compare_diversity(short, long)
    found = compare_diversity(short, long, Bag)
    assert (found.window.size, found.window.lowered) == (20, True)
    assert found.primary.word == "not shown"
    assert {line.name: line.word for line in found.secondary}["length"] == "higher"
    raw = [load_evidence(folder).results.metrics["vendi"].estimate for folder in (short, long)]
    assert abs(raw[1] - raw[0]) > 3 * abs(found.primary.found.difference)


def test_another_protocol_or_suite_is_refused(tmp_path):
    a, b = evaluate(tmp_path / "a", speaker("a", 99)), evaluate(tmp_path / "b", speaker("b", 99), max_new_tokens=64)
    with pytest.raises(EvidenceError, match="max_new_tokens"):
        compare_diversity(a, b)
    with pytest.raises(EvidenceError, match="compared with itself"):
        compare_diversity(a, a)
    with pytest.raises(UsageError, match="margin"):
        compare_diversity(a, b, margin=0.0)


@pytest.mark.parametrize("bad", [float("nan"), None])
def test_a_judge_or_an_embedder_that_gives_no_numbers_stops_the_run(tmp_path, bad):
    class NoJudge(Politeness):
        def __call__(self, prompts, responses):
            return [bad] * len(responses) if bad is not None else [1.0]

    class NoEmbedder(Bag):
        def embed(self, texts):
            return np.full((len(texts), 3), np.nan)

    with pytest.raises(EvidenceError, match=r"prompt [0-9a-f]{12}: reward politeness"):
        run_suite(Diversity(PROMPTS, SOURCE, Bag(), NoJudge(), draws=2), speaker("a", 9), tmp_path / "x")
    with pytest.raises(EvidenceError, match=r"prompt [0-9a-f]{12}: embeddings.*embedder bag"):
        run_suite(Diversity(PROMPTS, SOURCE, NoEmbedder(), draws=2), speaker("a", 9), tmp_path / "y")


def test_one_answer_a_prompt_has_no_diversity():
    with pytest.raises(UsageError, match="at least 2"):
        Diversity(PROMPTS, SOURCE, Bag(), draws=1)


def test_recorded_answers(tmp_path):
    rows = [{"id": p.id, "responses": [f"{p.id[:4]} {i % 3} and more" for i in range(4)]} for p in PROMPTS]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = run_recorded(
        suite(window=3), read_responses(tmp_path / "r.jsonl", suite(window=3)), tmp_path / "out", model="theirs"
    )
    assert results.metrics["duplicate_rate"].estimate == 0.25 and "truncation_rate" not in results.metrics
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row | {"responses": ["x"]}) + "\n" for row in rows))
    with pytest.raises(EvidenceError, match="1 responses recorded, the suite asks for 4"):
        run_recorded(suite(), read_responses(tmp_path / "r.jsonl", suite()), tmp_path / "no", model="theirs")


def test_the_command_evaluates_and_compares(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kat.density.embed.open_embedder", lambda spec, device="cpu": Bag())
    (tmp_path / "p.jsonl").write_text(rows_text(map(prompt_row, PROMPTS)))
    for name, words in (("a", 12), ("b", 300)):
        rows = []
        for prompt in PROMPTS:
            backend = speaker(name, words)
            rows.append({"id": prompt.id, "responses": [backend.answer(prompt.id, i) for i in range(3)]})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = ["--data", tmp_path / "p.jsonl", "--responses", tmp_path / f"{name}.jsonl", "--draws", 3]
        code, out, err = kat("eval", "diversity", *flags, "--out", tmp_path / name, capsys=capsys)
        assert code == 0, err
        assert "*vendi" in out
    code, out, _ = kat("eval", "diversity", tmp_path / "a", tmp_path / "b", capsys=capsys)
    assert code == 0 and "B − A" in out and "gibberish" in out
    code, _, err = kat("eval", "bpb", "x", "--draws", 3, capsys=capsys)
    assert code == 2 and err.strip() == "kat: --draws: suite bpb has no such option"
