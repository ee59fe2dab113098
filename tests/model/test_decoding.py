"""Sampling with the cache: against the model without a cache, transformers' generate and its logits processors."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from kat.errors import UsageError
from kat.model.decoding import BLOCK, Sampling, choose, generate, stream
from tests.model.helpers import random_ids, random_model, tiny_tokenizer, transformers_twin

VOCAB, PAD = 97, 96


def prompt(length: int, seed: int = 0) -> list[int]:
    return random_ids(1, length, seed)[0].tolist()


def decode(model, prompts, *, seeds=None, stop_ids=(), n=1, **sampling):
    return generate(
        model,
        prompts,
        Sampling(**sampling),
        stop_ids=stop_ids,
        pad_id=PAD,
        seeds=list(range(len(prompts))) if seeds is None else seeds,
        n=n,
    )


@torch.no_grad()
def greedy_without_cache(model, ids: list[int], new: int) -> list[int]:
    row = list(ids)
    for _ in range(new):
        row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    return row[len(ids) :]


def test_greedy_equals_the_model_without_a_cache_past_context_and_first_capacity() -> None:
    model, ids = random_model(), prompt(7)
    new = BLOCK + 7 + 30
    assert new + 7 > model.config.sequence_len * 2
    ((row,),) = decode(model, [ids], max_new_tokens=new)
    assert list(row.ids) == greedy_without_cache(model, ids, new)
    assert row.finish_reason == "length"
    assert len(set(row.ids)) > 5  # a constant output would prove little


def test_64_greedy_tokens_equal_transformers_generate() -> None:
    model, ids = random_model(n_kv_head=3), random_ids(3, 11, seed=5)
    twin = transformers_twin(model)
    twin.generation_config.eos_token_id = None
    theirs = twin.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)[:, 11:]
    ours = decode(model, ids.tolist(), max_new_tokens=64)
    assert [list(row.ids) for (row,) in ours] == theirs.tolist()


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5), st.sampled_from([6, 2, 1]))
@settings(deadline=None, max_examples=8)
def test_ragged_prompts_come_out_as_if_alone(lengths: list[int], n_kv_head: int) -> None:
    model = random_model(n_kv_head=n_kv_head)
    prompts = [prompt(length, seed=i) for i, length in enumerate(lengths)]
    together = decode(model, prompts, max_new_tokens=12)
    for (row,), ids in zip(together, prompts, strict=True):
        ((alone,),) = decode(model, [ids], max_new_tokens=12)
        assert row.ids == alone.ids
        np.testing.assert_allclose(row.logprobs, alone.logprobs, atol=1e-4)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_rows_that_stop_leave_the_others_as_they_were(ragged: bool, penalty: float) -> None:
    model = random_model()
    prompts = [prompt(5 + ragged * i, seed=i) for i in range(6)]
    options = {"max_new_tokens": 30, "repetition_penalty": penalty}
    free = [row.ids for (row,) in decode(model, prompts, **options)]
    stop = next(
        t for t in range(VOCAB) if 2 <= sum(t in ids[2:20] for ids in free) <= sum(t in ids for ids in free) < 6
    )
    stopped = decode(model, prompts, stop_ids=[stop], **options)
    assert {row.finish_reason for (row,) in stopped} == {"stop", "length"}
    for (row,), ids in zip(stopped, free, strict=True):
        end = ids.index(stop) + 1 if stop in ids else None
        assert row.ids == ids[:end]
        assert row.finish_reason == ("length" if end is None else "stop")
        assert len(row.logprobs) == len(row.ids)


def test_a_stop_at_the_last_token_is_a_stop() -> None:
    model, ids = random_model(), prompt(5)
    ((free,),) = decode(model, [ids], max_new_tokens=6)
    assert free.finish_reason == "length"
    first = free.ids.index(free.ids[-1]) + 1
    ((row,),) = decode(model, [ids], max_new_tokens=first, stop_ids=[free.ids[-1]])
    assert row.ids == free.ids[:first]
    assert row.finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_those_of_a_full_forward_pass_at_the_sampling_temperature(temperature: float) -> None:
    model, ids = random_model(), prompt(9)
    options = {"temperature": temperature, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.3}
    ((row,),) = decode(model, [ids], max_new_tokens=20, **options)
    full = torch.tensor([[*ids, *row.ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(full)[0, 8:-1] / (temperature or 1.0), dim=-1)
    expected = logprobs.gather(1, full[0, 9:, None])[:, 0]
    np.testing.assert_allclose(row.logprobs, expected.numpy(), atol=1e-4)


def test_first_tokens_of_n_samples_follow_softmax() -> None:
    """The samples share one prefill; each draws its own first token (nanochat of October 2025 shares one)."""
    model, ids, n = random_model(std=0.1), prompt(6), 6000
    (rows,) = decode(model, [ids], max_new_tokens=1, temperature=1.0, n=n, seeds=[3])
    probs = torch.softmax(model(torch.tensor([ids]))[0, -1].double(), dim=-1).detach().numpy()
    counts = np.bincount([row.ids[0] for row in rows], minlength=VOCAB)
    rare = probs * n < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(probs[~rare], probs[rare].sum()) * n
    assert len(expected) > 10
    assert chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-4


def test_different_seeds_are_independent_draws() -> None:
    """One sample of each of many neighbouring seeds: uniform, and not correlated from one seed to the next."""
    model = random_model()
    rows = decode(model, [prompt(3)] * 400, max_new_tokens=2, temperature=50.0, seeds=list(range(400)))
    firsts = np.array([row.ids[0] for (row,) in rows])
    assert len(set(firsts.tolist())) > 80
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.2
    seconds = np.array([row.ids[1] for (row,) in rows])
    assert abs(np.corrcoef(firsts, seconds)[0, 1]) < 0.2


def test_later_tokens_follow_softmax_too() -> None:
    """Given the first token, the second is distributed as the model says."""
    model, ids = random_model(std=0.2), prompt(4)
    (rows,) = decode(model, [ids], max_new_tokens=2, temperature=1.0, n=4000, seeds=[1])
    first, _ = max(((t, sum(r.ids[0] == t for r in rows)) for t in {r.ids[0] for r in rows}), key=lambda x: x[1])
    seconds = [row.ids[1] for row in rows if row.ids[0] == first]
    probs = torch.softmax(model(torch.tensor([[*ids, first]]))[0, -1].double(), dim=-1).detach().numpy()
    counts = np.bincount(seconds, minlength=VOCAB)
    rare = probs * len(seconds) < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(probs[~rare], probs[rare].sum()) * len(seconds)
    assert chisquare(observed, expected).pvalue > 1e-4


def test_a_seed_decides_its_text_whatever_the_neighbours() -> None:
    model = random_model()
    options = {"max_new_tokens": BLOCK + 10, "temperature": 1.0, "top_k": 20}
    prompts = [prompt(6, seed=i) for i in range(4)]
    together = decode(model, prompts, seeds=[5, 6, 7, 8], n=2, **options)
    assert together == decode(model, prompts, seeds=[5, 6, 7, 8], n=2, **options)
    (alone,) = decode(model, [prompts[2]], seeds=[7], n=1, **options)
    assert alone[0].ids == together[2][0].ids
    (more,) = decode(model, [prompts[2]], seeds=[7], n=5, **options)
    assert [row.ids for row in more[:2]] == [row.ids for row in together[2]]
    assert len({row.ids for row in more}) == 5
    ((other,),) = decode(model, [prompts[2]], seeds=[9], **options)
    assert other.ids != alone[0].ids


def test_a_longer_limit_goes_on_from_the_same_text() -> None:
    model, ids = random_model(), prompt(6)
    ((short,),) = decode(model, [ids], max_new_tokens=9, temperature=1.0)
    ((long,),) = decode(model, [ids], max_new_tokens=40, temperature=1.0)
    assert long.ids[:9] == short.ids


def test_nothing_is_left_of_an_earlier_call() -> None:
    model, ids = random_model(), prompt(8)
    fresh = decode(random_model(), [ids], max_new_tokens=15)
    decode(model, [prompt(30, seed=4)] * 3, max_new_tokens=40, temperature=2.0, repetition_penalty=3.0)
    assert decode(model, [ids], max_new_tokens=15) == fresh


def test_a_model_that_has_generated_can_still_be_trained() -> None:
    """Rotary tables that grow while generating must not be tensors of inference mode."""
    model = random_model()
    decode(model, [prompt(5)], max_new_tokens=60)
    ids = random_ids(2, 40)
    model(ids, ids).backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.norm() > 0


def test_the_decoding_layout_changes_no_value() -> None:
    plain, laid_out = random_model(), random_model().lay_out_for_decoding()
    assert any(not weight.is_contiguous() for weight in laid_out.parameters())
    for (name, a), (_, b) in zip(plain.named_parameters(), laid_out.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    ids = prompt(9)
    ((a,),), ((b,),) = decode(plain, [ids], max_new_tokens=40), decode(laid_out, [ids], max_new_tokens=40)
    assert a.ids == b.ids
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


# The choice of a token, against transformers' processors.


def allowed_by_transformers(logits: torch.Tensor, seen: list[list[int]], s: Sampling) -> torch.Tensor:
    """(B, V) probabilities that transformers would sample from."""
    from transformers.generation import logits_process as lp

    processors = []
    if s.repetition_penalty != 1:
        processors.append(lp.RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    processors.append(lp.TemperatureLogitsWarper(s.temperature))
    if s.top_k is not None:
        processors.append(lp.TopKLogitsWarper(s.top_k))
    if s.top_p is not None and s.top_p < 1:
        processors.append(lp.TopPLogitsWarper(s.top_p))
    scores = logits.clone()
    for processor in processors:
        scores = processor(torch.tensor(seen), scores)
    return torch.softmax(scores, dim=-1)


@pytest.mark.parametrize("seed", range(80))
def test_the_distribution_is_transformers(seed: int) -> None:
    """A fine grid of draws reads the distribution off the inverse CDF: each token's share of it is its probability."""
    pick = random.Random(seed)
    temperature, penalty = pick.uniform(0.2, 3.0), pick.choice([1.0, 1.3, 0.7])
    top_k, top_p = pick.choice([None, pick.randint(1, 30)]), pick.choice([None, pick.uniform(0.05, 1.0), 1.0])
    s = Sampling(1, temperature, top_k, top_p, penalty)
    logits = torch.randn(1, 23, generator=torch.Generator().manual_seed(seed)) * 3
    seen_ids = [[1, 5, 5, 9]]
    seen = torch.zeros(1, 23, dtype=torch.bool)
    seen[0, seen_ids[0]] = True
    grid = (torch.arange(4000) + 0.5) / 4000
    tokens, logprobs = choose(logits.expand(4000, -1), s, grid, seen.expand(4000, -1) if penalty != 1 else None)
    shares = torch.bincount(tokens, minlength=23) / 4000
    expected = allowed_by_transformers(logits, seen_ids, s)[0]
    assert (shares - expected).abs().max() < 1e-3
    plain = torch.log_softmax(logits[0] / temperature, dim=-1)
    torch.testing.assert_close(logprobs, plain[tokens])


@pytest.mark.parametrize("draw", [0.0, 0.5, math.nextafter(1.0, 0.0), 1.0])
def test_no_draw_falls_on_a_token_without_probability(draw: float) -> None:
    logits = torch.tensor([[-math.inf, 0.0, 2.0, -math.inf]])
    for options in ({}, {"top_k": 2}, {"top_p": 0.999}, {"top_k": 4, "top_p": 1.0}):
        token, logprob = choose(logits, Sampling(1, 1.0, **options), torch.tensor([draw]), None)
        assert token.item() in (1, 2)
        assert math.isfinite(logprob.item())


def test_greedy_penalty_avoids_repetition_of_either_sign() -> None:
    seen = torch.tensor([[True, False, False]])
    for logits in ([2.0, 1.5, -9.0], [-1.0, -1.2, -9.0]):
        token, _ = choose(torch.tensor([logits]), Sampling(repetition_penalty=2.0), None, seen)
        assert token.item() == 1


def test_the_penalty_sees_the_prompt_and_the_continuation() -> None:
    model, ids = random_model(), prompt(8)
    ((row,),) = decode(model, [ids], max_new_tokens=40, repetition_penalty=1e6)
    assert len(set(row.ids)) == 40
    assert not set(row.ids) & set(ids)


# Streaming


@pytest.mark.parametrize("seed", range(4))
def test_streamed_pieces_are_whole_characters_and_join_to_the_batch_text(seed: int) -> None:
    tokenizer = tiny_tokenizer()
    model = random_model(vocab_size=tokenizer.vocab_size)
    ids = [tokenizer.bos_id, *tokenizer.encode("kato 漢ri méßu")]
    sampling = Sampling(max_new_tokens=80, temperature=1.5)
    pieces = list(stream(model, tokenizer, ids, sampling, seed))
    ((row,),) = generate(model, [ids], sampling, stop_ids=[tokenizer.eos_id], pad_id=tokenizer.pad_id, seeds=[seed])
    kept = row.ids[:-1] if row.finish_reason == "stop" else row.ids
    assert "".join(pieces) == tokenizer.decode(kept)
    assert all(pieces)
    assert not torch.is_inference_mode_enabled()


def test_a_character_of_several_tokens_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    scripted = [*"a☃é".encode(), tokenizer.eos_id]  # one token a byte
    model = random_model(vocab_size=tokenizer.vocab_size)
    script = iter(scripted)
    monkeypatch.setattr("kat.model.decoding.choose", lambda *_: (torch.tensor([next(script)]), torch.tensor([0.0])))
    assert list(stream(model, tokenizer, [1], Sampling(), 0)) == ["a", "☃", "é"]


def test_the_caller_of_stream_is_not_put_into_inference_mode() -> None:
    tokenizer = tiny_tokenizer()
    model = random_model(vocab_size=tokenizer.vocab_size)
    for _ in stream(model, tokenizer, [5], Sampling(max_new_tokens=5, temperature=1.0), 0):
        assert not torch.is_inference_mode_enabled()


# What cannot be asked for


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 1e-30},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.nan},
        {"repetition_penalty": math.inf},
    ],
)
def test_impossible_sampling_is_refused_by_name(bad: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Sampling(**bad)


@pytest.mark.parametrize(
    ("prompts", "more", "message"),
    [
        ([], {}, "at least one token"),
        ([[1], []], {}, "at least one token"),
        ([[1], [2]], {"seeds": [0]}, "2 prompts but 1 seeds"),
        ([[1]], {"n": 0}, "n is 0"),
        ([[1, 97]], {}, "token 97 is outside the model's vocabulary of 97"),
        ([[-1, 5]], {}, "token -1"),
    ],
)
def test_impossible_requests_are_refused(prompts, more, message) -> None:
    with pytest.raises(UsageError, match=message):
        decode(random_model(), prompts, max_new_tokens=2, **more)
