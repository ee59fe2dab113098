"""The forward pass against transformers' NanoChat, and the properties any causal model has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.errors import UsageError
from kat.model.cache import KVCache
from kat.model.config import GPTConfig
from kat.model.gpt import GPT, IGNORE
from tests.model.helpers import random_ids, random_model, transformers_twin

heads = st.sampled_from([(6, 6), (6, 3), (6, 2), (6, 1)])


@pytest.mark.parametrize("n_kv_head", [6, 3, 2, 1])
def test_logits_equal_transformers_exactly(n_kv_head: int) -> None:
    model = random_model(n_kv_head=n_kv_head, rope_base=500.0, softcap=7.0)
    ids = random_ids(3, 40)
    with torch.no_grad():
        assert (model(ids) - transformers_twin(model)(ids).logits).abs().max().item() == 0.0


def test_gradients_equal_transformers() -> None:
    model, ids = random_model(), random_ids(2, 30)
    twin = transformers_twin(model)
    targets = torch.cat((ids[:, 1:], torch.full((2, 1), IGNORE)), dim=1)
    model(ids, targets).backward()
    twin(ids, labels=ids).loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name != "model.embed_tokens.weight":  # transformers zeroes the gradient of the pad row
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


@given(heads, st.integers(1, 12), st.data())
@settings(deadline=None, max_examples=15)
def test_future_tokens_do_not_matter_and_past_ones_do(pair, position, data) -> None:
    model = random_model(n_head=pair[0], n_kv_head=pair[1])
    ids = random_ids(2, 14)
    other = ids.clone()
    other[:, position] = (other[:, position] + data.draw(st.integers(1, 96))) % 97
    with torch.no_grad():
        difference = (model(ids) - model(other)).abs().amax(dim=(0, 2))
    assert difference[:position].max().item() == 0.0
    assert difference[position:].max().item() > 1e-3


def test_packed_documents_are_isolated() -> None:
    model, a, b = random_model(), random_ids(1, 9, seed=1), random_ids(1, 11, seed=2)
    row = torch.cat((a, b), dim=1)
    docs = torch.tensor([[0] * 9 + [1] * 11])
    with torch.no_grad():
        packed = model(row, doc_ids=docs)
        alone = torch.cat((model(a), model(b)), dim=1)
        assert (model(row)[:, 9:] - alone[:, 9:]).abs().max() > 1e-2  # without doc_ids they do see each other
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_a_row(side: str) -> None:
    model, ids, pad = random_model(), random_ids(2, 10), 5
    padding = torch.full((2, 4), 96)
    row, mask = torch.cat((ids, padding), 1), torch.cat((torch.ones(2, 10), torch.zeros(2, 4)), 1)
    real = slice(0, 10)
    if side == "left":
        row, mask, real = torch.cat((padding, ids), 1), mask.flip(1), slice(4, 14)
    row[:, real][:, 3] = ids[:, 3] = pad  # the pad value may also be content: the mask decides, not the id
    positions = (mask.cumsum(1) - 1).clamp(min=0).long()
    with torch.no_grad():
        padded = model(row, attention_mask=mask, position_ids=positions)[:, real]
        torch.testing.assert_close(padded, model(ids), rtol=0, atol=1e-4)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), heads)
@settings(deadline=None, max_examples=20)
def test_chunked_prefill_and_decoding_match_the_full_pass(chunks, pair) -> None:
    model = random_model(n_head=pair[0], n_kv_head=pair[1])
    ids = random_ids(3, sum(chunks))
    cache, pieces, start = KVCache(model.config.n_layer), [], 0
    with torch.no_grad():
        for size in chunks:
            pieces.append(model(ids[:, start : start + size], cache=cache))
            start += size
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=0, atol=1e-4)
    assert cache.length == ids.size(1)


def test_loss_is_the_mean_over_supervised_targets_only() -> None:
    model, ids, targets = random_model(), random_ids(3, 12), random_ids(3, 12, seed=9)
    targets[0, :7] = targets[1] = IGNORE
    logprobs = torch.log_softmax(model(ids), dim=-1)
    picked = [-logprobs[b, t, targets[b, t]] for b in range(3) for t in range(12) if targets[b, t] != IGNORE]
    torch.testing.assert_close(model(ids, targets), torch.stack(picked).mean())
    torch.testing.assert_close(model(ids, targets, reduction="sum"), torch.stack(picked).sum())


def test_a_batch_without_targets_contributes_exactly_nothing() -> None:
    model, ids = random_model(), random_ids(2, 8)
    for reduction in ("mean", "sum"):
        model.zero_grad()
        loss = model(ids, torch.full_like(ids, IGNORE), reduction=reduction)
        loss.backward()
        assert loss.item() == 0.0
        assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


def test_every_parameter_learns_and_its_gradient_is_the_finite_difference() -> None:
    model = random_model().double()
    model.rotary.dtype = torch.float64
    ids, targets = random_ids(2, 10), random_ids(2, 10, seed=4)
    model.hidden(ids)
    model(ids, targets).backward()
    for name, weight in model.named_parameters():
        assert weight.grad.norm() > 0, name
        index = tuple((weight.grad.abs() == weight.grad.abs().max()).nonzero()[0].tolist())
        with torch.no_grad():
            original = weight[index].item()
            losses = []
            for delta in (1e-5, -1e-5):
                weight[index] = original + delta
                losses.append(model(ids, targets).item())
            weight[index] = original
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(weight.grad[index].item(), rel=1e-4), name


def test_hidden_states_are_those_the_head_reads() -> None:
    model, ids = random_model(), random_ids(2, 8)
    logits, hidden = model(ids, return_hidden_states=True)
    assert hidden.shape == (2, 8, 48)
    torch.testing.assert_close(logits, 15.0 * torch.tanh(hidden @ model.lm_head.weight.T / 15.0))


def test_a_new_model_is_uniform() -> None:
    model = GPT(GPTConfig(vocab_size=97, n_layer=2, n_embd=32, n_head=2, n_kv_head=2))
    model.init_weights(torch.Generator().manual_seed(3))
    loss = model(random_ids(2, 20), random_ids(2, 20, seed=1))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(97.0)).item(), abs=1e-5)


def test_initialisation_fills_every_weight_with_the_published_spread() -> None:
    """CR2: what is left uninitialised becomes weights."""
    model = GPT(GPTConfig(vocab_size=97, n_layer=2, n_embd=64, n_head=2, n_kv_head=1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    model.init_weights(torch.Generator().manual_seed(0))
    for name, weight in model.named_parameters():
        if name.endswith(("lm_head.weight", "o_proj.weight", "fc2.weight")):
            expected = 0.0
        elif "embed" in name:
            expected = 1.0
        else:
            expected = min(1.0, (weight.size(0) / weight.size(1)) ** 0.5) / weight.size(1) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05), name
        assert abs(weight.mean().item()) <= 0.05 * expected, name


def test_seeds_decide_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = GPT(GPTConfig(vocab_size=50, n_layer=1, n_embd=16, n_head=2, n_kv_head=1))
        model.init_weights(torch.Generator().manual_seed(seed))
        return model.model.layers[0].self_attn.q_proj.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_public_20_layer_shape_has_its_published_size() -> None:
    # sdobson/nanochat, model_000650.pt: 560,988,160 parameters (anchor: the checkpoint's model card)
    config = GPTConfig(vocab_size=65536, sequence_len=2048, n_layer=20, n_embd=1280, n_head=10, n_kv_head=10)
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameter_count() == 560_988_160


@pytest.mark.parametrize(
    "bad",
    [
        {"n_layer": 0},
        {"n_head": 5},
        {"n_head": 48},
        {"n_kv_head": 4},
        {"n_kv_head": 12},
        {"rope_base": 0.0},
        {"softcap": -1.0},
        {"rope_table_dtype": "float16"},
    ],
)
def test_impossible_shapes_are_refused(bad: dict) -> None:
    with pytest.raises(UsageError, match="model:"):
        random_model(**bad)
