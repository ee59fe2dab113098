"""The suites on a real model of kat's: what the fake backends cannot show."""

import math

import pytest
import torch

from kat.data.preferences import make_prompt, prompt_row, rows_text
from kat.evals.bpb import BitsPerByte, Text
from kat.evals.choices import Choices
from kat.evals.protocol import DataSource
from kat.evals.runner import run_suite
from kat.evals.scienceqa import ScienceQA
from kat.evals.store import read_samples
from kat.model.backends import open_backend
from kat.model.checkpoint import save_checkpoint
from tests.evals import make_items
from tests.model.helpers import random_model, tiny_tokenizer
from tests.test_cli import kat

SOURCE = DataSource("made up", "d" * 64)


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    tokenizer = tiny_tokenizer()
    model = random_model(vocab_size=tokenizer.vocab_size, sequence_len=512)
    save_checkpoint(folder, model, tokenizer, {"stage": "sft"})
    return open_backend(folder)


@pytest.fixture(scope="module")
def items():
    return make_items.items(6)


def test_the_protocol_and_the_prompts_are_recorded(backend, items, tmp_path):
    results = run_suite(ScienceQA(items, SOURCE, max_new_tokens=4), backend, tmp_path)
    assert results.model_hash == backend.identity
    assert results.protocol["backend"] == backend.protocol
    assert {"device", "dtype", "stop_ids"} <= set(results.protocol["backend"])
    for row in read_samples(tmp_path / "samples.jsonl"):
        assert row.prompt.startswith("<|bos|><|user_start|>")
        assert row.prompt.endswith("<|assistant_start|>")
        assert row.finish_reason in ("stop", "length")


@pytest.mark.parametrize("suite", [Choices, ScienceQA])
def test_scores_do_not_depend_on_the_batch_beyond_rounding(backend, items, tmp_path, suite):
    for name, size in (("one", 1), ("all", 64)):
        run_suite(suite(items, SOURCE), backend, tmp_path / name, batch_size=size)
    one = {(r.item_id, r.rotation): r for r in read_samples(tmp_path / "one" / "samples.jsonl")}
    for row in read_samples(tmp_path / "all" / "samples.jsonl"):
        other = one[row.item_id, row.rotation]
        assert (row.response, row.extracted) == (other.response, other.extracted)
        assert (row.choice_logprobs or []) == pytest.approx(other.choice_logprobs or [], abs=1e-4)


def test_letter_scores_are_those_of_the_whole_row_under_the_model(backend, items, tmp_path):
    """Oracle: log-softmax of a plain forward over the row that training would see for this answer."""
    from kat.data.choices import ANSWER_PREFIX, prompt_messages
    from kat.tokenizer.chat import render_conversation

    run_suite(Choices(items[:2], SOURCE), backend, tmp_path)
    by_id = {item.id: item for item in items}
    for row in read_samples(tmp_path / "samples.jsonl"):
        turned = by_id[row.item_id].rotated(row.rotation)
        for letter, found in zip(turned.letters, row.choice_logprobs, strict=True):
            answer = {"role": "assistant", "content": ANSWER_PREFIX + letter}
            ids = render_conversation(backend.tokenizer, [*prompt_messages(turned), answer])[0]
            with torch.inference_mode():
                logprobs = backend.model(torch.tensor([ids[:-2]]))[0, -1].float().log_softmax(-1)
            assert found == pytest.approx(float(logprobs[ids[-2]]), abs=1e-4)


def test_bits_per_byte_of_a_model_without_weights_is_that_of_a_uniform_guess(tmp_path):
    tokenizer = tiny_tokenizer()
    model = random_model(vocab_size=tokenizer.vocab_size, std=0.0)
    save_checkpoint(tmp_path / "zero", model, tokenizer, {"stage": "base"})
    text = "kato rimé " * 30
    results = run_suite(BitsPerByte([Text("t", text)], SOURCE), open_backend(tmp_path / "zero"), tmp_path / "out")
    tokens = len(tokenizer.encode(text))
    expected = tokens * math.log2(tokenizer.vocab_size) / len(text.encode())
    assert results.metrics["bits_per_byte"].estimate == pytest.approx(expected, rel=1e-5)
    letters = run_suite(Choices(make_items.items(4), SOURCE), _wide(tmp_path, tokenizer), tmp_path / "letters")
    assert letters.metrics["accuracy"].estimate == pytest.approx(letters.metrics["chance"].estimate, abs=1e-12)


def _wide(folder, tokenizer):
    model = random_model(vocab_size=tokenizer.vocab_size, sequence_len=512, std=0.0)
    save_checkpoint(folder / "wide", model, tokenizer, {"stage": "base"})
    return open_backend(folder / "wide")


def test_diversity_of_two_models_by_the_command(tmp_path, capsys):
    """Two random models: evaluated, judged by a function, paired."""
    tokenizer = tiny_tokenizer()
    for seed in (1, 2):
        model = random_model(seed, vocab_size=tokenizer.vocab_size, sequence_len=256)
        save_checkpoint(tmp_path / f"m{seed}", model, tokenizer, {"stage": "sft"})
    prompts = [make_prompt([{"role": "user", "content": f"Say {i}."}]) for i in range(6)]
    (tmp_path / "p.jsonl").write_text(rows_text(map(prompt_row, prompts)))
    flags = ["--data", tmp_path / "p.jsonl", "--embedder", tmp_path / "m1", "--draws", 3, "--max-new-tokens", 12]
    judge = ["--reward", "tests.evals.test_native:brevity", "--margin", 0.5]
    models = [tmp_path / "m1", tmp_path / "m2"]
    code, out, err = kat("--home", tmp_path / "h", "eval", "diversity", *models, *flags, *judge, capsys=capsys)
    assert code == 0, err
    assert "6 prompts, 3 answers each" in out and "truncated" in out and "reward" in out and "vendi_across" in out
    files = (tmp_path / "h" / "evals").glob("*/diversity/samples.jsonl")
    rows = [row for path in files for row in read_samples(path)]
    assert len(rows) == 2 * 6 * 3 and len({row.response for row in rows}) > 18  # sampled, not greedy
    assert all(float(row.slices["reward"]) == brevity([None], [row.response])[0] for row in rows)


def brevity(prompts, responses):
    return [1 / (1 + len(response)) for response in responses]
