"""Backends: scores and bits per byte recomputed by hand, and transformers on the same folder as the second opinion."""

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kat.errors import UsageError
from kat.model.backends import NativeBackend, ScoreRequest, common_prefix, open_backend
from kat.model.checkpoint import load_checkpoint, save_checkpoint
from kat.model.decoding import Sampling
from kat.tokenizer.chat import render_conversation, render_for_completion
from tests.model.helpers import random_model, tiny_tokenizer

ASK = [{"role": "user", "content": "kato ri?"}]
LONGER = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "toto lone 漢"},
    {"role": "assistant", "content": "ßu"},
    {"role": "user", "content": "and?"},
]
TEXTS = ["", "k", "kato ri toto", "méßu 漢 " * 60]  # the last one is longer than the context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backends") / "model"
    model = random_model(vocab_size=tiny_tokenizer().vocab_size, n_layer=2, sequence_len=40)
    save_checkpoint(folder, model, tiny_tokenizer(), {"stage": "sft"})
    return folder


@pytest.fixture(scope="module")
def native(folder: Path) -> NativeBackend:
    backend = open_backend(folder)
    assert isinstance(backend, NativeBackend)
    return backend


@pytest.fixture(scope="module")
def hf(folder: Path):
    pytest.importorskip("transformers")
    return open_backend(f"hf:{folder}")


@torch.no_grad()
def by_hand(backend: NativeBackend, row: list[int], start: int) -> float:
    """Sum of log-softmax of the tokens from `start` on, each from a pass over exactly what stands before it."""
    total = 0.0
    for t in range(start, len(row)):
        logits = backend.model(torch.tensor([row[:t]]))[0, -1].double()
        total += float(torch.log_softmax(logits, dim=-1)[row[t]])
    return total


REQUESTS = [
    ScoreRequest(ASK, "The answer is ", ("A", "B", "C", "lone toto")),
    ScoreRequest(LONGER, "", ("ka", "kato", "漢")),
    ScoreRequest(ASK, "ka", ("to", "to ri", "")),
]


def test_scores_are_the_sums_of_log_softmax(native: NativeBackend) -> None:
    tokenizer = native.tokenizer
    for request, scores in zip(REQUESTS, native.score(REQUESTS), strict=True):

        def full(text: str, request: ScoreRequest = request) -> list[int]:
            answer = {"role": "assistant", "content": request.prefix + text}
            return render_conversation(tokenizer, [*request.messages, answer])[0][:-1]

        columns = zip(*(full(text) for text in (*request.continuations, "")), strict=False)
        start = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
        for text, score in zip(request.continuations, scores, strict=True):
            assert score.logprob == pytest.approx(by_hand(native, full(text), start), abs=1e-4)
            assert score.n_tokens == len(full(text)) - start
            assert score.n_bytes == len(text.encode())


def test_the_joint_encoding_is_scored_where_a_merge_crosses_the_boundary(native: NativeBackend) -> None:
    """TK7: `k` + `a` is one token here; scoring the two encodings glued together would score another text."""
    tokenizer = native.tokenizer
    assert tokenizer.encode("ka") != tokenizer.encode("k") + tokenizer.encode("a")
    ((score,),) = native.score([ScoreRequest(ASK, "k", ("a",))])
    prompt = render_for_completion(tokenizer, ASK)
    row = prompt + tokenizer.encode("ka")
    assert score.logprob == pytest.approx(by_hand(native, row, len(prompt)), abs=1e-4)
    assert score.n_tokens == len(tokenizer.encode("ka")) == 1


def test_a_score_does_not_depend_on_its_neighbours(native: NativeBackend) -> None:
    alone = [native.score([request])[0] for request in REQUESTS]
    together = native.score(REQUESTS)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose([s.logprob for s in a], [s.logprob for s in b], atol=1e-4)
    assert native.score([]) == []


def test_letters_share_one_pass(native: NativeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    hidden = native.model.hidden
    monkeypatch.setattr(native.model, "hidden", lambda ids, **more: rows.append(len(ids)) or hidden(ids, **more))
    native.score([ScoreRequest(ASK, "The answer is ", ("A", "B", "C"))])
    assert rows == [1]


def test_nll_predicts_each_token_once_and_counts_no_special_token(native: NativeBackend) -> None:
    tokenizer, context = native.tokenizer, native.model.config.sequence_len
    assert len(tokenizer.encode(TEXTS[-1])) > 3 * context
    for text, (nats, n_bytes, n_tokens) in zip(TEXTS, native.nll(TEXTS), strict=True):
        row = [tokenizer.bos_id, *tokenizer.encode(text)]
        expected = sum(
            by_hand(native, row[start : start + context + 1], 1) for start in range(0, len(row) - 1, context)
        )
        assert nats == pytest.approx(-expected, abs=1e-3)
        assert (n_bytes, n_tokens) == (len(text.encode()), len(row) - 1)
    assert native.nll(["k"])[0][0] == pytest.approx(-by_hand(native, [tokenizer.bos_id, *tokenizer.encode("k")], 1))


def test_a_uniform_model_has_the_entropy_of_its_vocabulary(tmp_path: Path) -> None:
    model = random_model(vocab_size=300)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    save_checkpoint(tmp_path / "u", model, tiny_tokenizer(), {})
    ((nats, _, n_tokens),) = open_backend(tmp_path / "u").nll(["kato ri toto"])
    assert nats == pytest.approx(n_tokens * math.log(300), rel=1e-6)


def test_completions_end_without_the_end_token_in_their_text(native: NativeBackend) -> None:
    ((free,),) = native.generate([ASK], Sampling(max_new_tokens=6), [0])
    assert free.finish_reason == "length"
    assert free.text == native.tokenizer.decode(free.ids)
    head = native.model.lm_head.weight
    with torch.no_grad():
        kept = head.clone()
        head[native.tokenizer.eos_id] = head[free.ids[0]] * 1.5  # now the end token comes where the first token came
    try:
        ((ended,),) = native.generate([ASK], Sampling(max_new_tokens=6), [0])
    finally:
        with torch.no_grad():
            head.copy_(kept)
    assert ended.finish_reason == "stop"
    assert ended.ids[-1] == native.tokenizer.eos_id
    assert ended.text == native.tokenizer.decode(ended.ids[:-1])


def test_a_special_token_typed_by_a_user_stays_text(native: NativeBackend) -> None:
    _, ids = native.prompt([{"role": "user", "content": "hi <|assistant_end|>"}])
    assert native.tokenizer.eos_id not in ids


# transformers on the same folder


def test_both_backends_see_the_same_model(native: NativeBackend, hf) -> None:
    assert hf.identity == native.identity
    assert hf.protocol["stop_ids"] == native.protocol["stop_ids"] == [native.tokenizer.eos_id]
    assert hf.protocol["backend"] != native.protocol["backend"]
    for talk in (ASK, LONGER):
        assert hf.prompt(talk) == native.prompt(talk)


def test_both_backends_complete_alike(native: NativeBackend, hf) -> None:
    for sampling in (Sampling(max_new_tokens=50), Sampling(max_new_tokens=20, repetition_penalty=1.4)):
        ours = native.generate([ASK, LONGER], sampling, [0, 1])
        theirs = hf.generate([ASK, LONGER], sampling, [0, 1])
        for (a,), (b,) in zip(ours, theirs, strict=True):
            assert (a.ids, a.text, a.finish_reason) == (b.ids, b.text, b.finish_reason)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_both_backends_score_alike(native: NativeBackend, hf) -> None:
    for ours, theirs in zip(native.score(REQUESTS), hf.score(REQUESTS), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
            assert (a.n_tokens, a.n_bytes) == (b.n_tokens, b.n_bytes)
    for a, b in zip(native.nll(TEXTS), hf.nll(TEXTS), strict=True):
        assert a == pytest.approx(b, abs=1e-3)


def test_transformers_samples_by_seed(hf) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=1.0, top_k=50)
    ((a, b),) = hf.generate([ASK], sampling, [3], n=2)
    assert a.ids != b.ids
    state = torch.get_rng_state()
    assert hf.generate([LONGER, ASK], sampling, [9, 3], n=2)[1] == [a, b]
    assert torch.equal(state, torch.get_rng_state())


def test_a_folders_own_generation_config_changes_nothing(folder: Path, hf, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    text = (copy / "generation_config.json").read_text()
    extra = '"no_repeat_ngram_size": 1, "temperature": 9.0, "do_sample": true, "max_length": 3,'
    (copy / "generation_config.json").write_text(
        text.replace("{", "{" + extra, 1).replace('"do_sample": false', '"x": 0')
    )
    sampling = Sampling(max_new_tokens=30)
    assert open_backend(f"hf:{copy}").generate([ASK], sampling, [0]) == hf.generate([ASK], sampling, [0])


def test_a_model_without_a_chat_template_is_asked_in_plain_text(folder: Path, hf, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    plain = open_backend(f"hf:{copy}")
    text, ids = plain.prompt(LONGER[:2])
    assert text == "Be kind.\n\ntoto lone 漢\n\n"
    assert ids == tiny_tokenizer().encode(text)
    assert plain.identity != hf.identity


def test_what_is_no_model_folder_is_refused(folder: Path, hf, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json there"):
        open_backend(f"hf:{tmp_path}")
    with pytest.raises(UsageError, match="no such folder"):
        open_backend(tmp_path / "x")
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match="transformers cannot load it"):
        open_backend(f"hf:{broken}")
    with pytest.raises(UsageError, match="chat template refuses"):
        hf.prompt([{"role": "user", "content": "<|assistant_end|>"}])


def test_a_backend_is_what_the_folder_says(folder: Path, native: NativeBackend) -> None:
    loaded = load_checkpoint(folder)
    assert native.identity == loaded.identity
    assert native.name == str(folder)
    assert native.protocol["dtype"] == "float32"
    assert native.protocol["device"] == "cpu"


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_prefix([[1], []]) == 0
    assert common_prefix([[5, 6]]) == 2
