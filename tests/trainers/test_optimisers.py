"""Parameter groups, decay, state; AdamW and Muon against their definitions in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from kat.runs.settings import TrainSettings
from kat.trainers.optimisers import (
    build_optimisers,
    describe_groups,
    load_state_tensors,
    main_lr,
    set_lr,
    state_tensors,
)
from tests.model.helpers import random_ids, random_model

BOTH = ("adamw", "muon")


def make(kind: str, model=None, **more):
    model = model or random_model()
    settings = TrainSettings(optimizer=kind, **more)
    return model, settings, build_optimisers(model, settings)


def with_vectors():
    """A model that also has 1-D parameters, as a reward head or a later norm would."""
    model = random_model()
    model.model.layers[0].gain = nn.Parameter(torch.ones(48))
    return model


def step(model, optimisers, seed: int = 0) -> None:
    ids = random_ids(2, 16, seed)
    model(ids, ids).backward()
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("kind", BOTH)
def test_every_parameter_is_in_exactly_one_group(kind: str) -> None:
    model, _, optimisers = make(kind, with_vectors())
    grouped = [id(p) for o in optimisers for group in o.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len(set(grouped)) == len(grouped)


@pytest.mark.parametrize("kind", BOTH)
def test_without_gradients_a_step_moves_exactly_what_decays(kind: str) -> None:
    """OS10: decay on weights with two dimensions, never on others."""
    model, _, optimisers = make(kind, with_vectors(), weight_decay=0.3, lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimiser in optimisers:
        optimiser.step()
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            assert (p.norm() < before[name].norm()).item(), name
        else:
            assert torch.equal(p, before[name]), name


def test_the_groups_are_nanochats() -> None:
    model, settings, (adamw, muon) = make("muon")
    scale = (48 / 768) ** -0.5
    rates = {group["name"]: group["initial_lr"] for o in (adamw, muon) for group in o.param_groups}
    assert rates == pytest.approx({"head": 0.004 * scale, "embedding": 0.2 * scale, "matrices": 0.02})
    assert main_lr(settings) == rates["matrices"]
    in_muon = {id(p) for p in muon.param_groups[0]["params"]}
    assert in_muon == {id(p) for p in model.model.layers.parameters()}
    lines = describe_groups([adamw, muon])
    assert len(lines) == 3
    assert "matrices: Muon, 18 tensors" in lines[2]


@pytest.mark.parametrize("kind", BOTH)
def test_rates_are_the_peak_times_the_share_however_often_they_are_set(kind: str) -> None:
    _, _, optimisers = make(kind)
    peaks = [group["lr"] for o in optimisers for group in o.param_groups]
    for share in (0.5, 0.25, 0.5):
        set_lr(optimisers, share)
    assert [group["lr"] for o in optimisers for group in o.param_groups] == [peak * 0.5 for peak in peaks]


@pytest.mark.parametrize("kind", BOTH)
def test_state_round_trip_continues_bit_for_bit(kind: str) -> None:
    model, _, optimisers = make(kind)
    for i in range(3):
        step(model, optimisers, i)
    saved = {name: tensor.clone() for name, tensor in state_tensors(optimisers).items()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    other, _, fresh = make(kind)
    other.load_state_dict(weights)
    load_state_tensors(fresh, saved)
    assert {name: t.tolist() for name, t in state_tensors(fresh).items()} == {n: t.tolist() for n, t in saved.items()}
    for m, o in ((model, optimisers), (other, fresh)):
        step(m, o, 7)
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, weights[name]), name


def test_adamw_is_its_definition() -> None:
    """arXiv:1711.05101, with eps outside the bias correction (OS8: a large eps shows where it stands)."""
    model, _, (adamw, _) = make("muon", weight_decay=0.1)
    adamw.param_groups[0]["eps"] = 1e-3
    weight = model.lm_head.weight
    lr, (b1, b2), w = adamw.param_groups[0]["lr"], adamw.param_groups[0]["betas"], weight.detach().double().numpy()
    m = v = np.zeros_like(w)
    generator = torch.Generator().manual_seed(2)
    for t in range(1, 11):
        grad = torch.randn(weight.shape, generator=generator) * 1e-3
        for p in model.parameters():
            p.grad = grad.clone() if p is weight else torch.zeros_like(p)
        adamw.step()
        g = grad.double().numpy()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w * (1 - lr * 0.1) - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-3)
    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-5, atol=1e-7)


def test_muon_steps_by_an_almost_orthogonal_matrix() -> None:
    """Keller Jordan's Muon: the update of an n x m matrix has singular values near 1, times sqrt(max(1, n / m))."""
    model, _, (_, muon) = make("muon")
    for p in model.parameters():  # singular values from 0.2 to 1: five iterations do not lift much smaller ones
        u, s, v = torch.linalg.svd(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), False)
        p.grad = u * torch.linspace(1, 0.2, len(s)) @ v
    before = {name: p.detach().clone() for name, p in model.model.layers.named_parameters()}
    muon.step()
    for name, p in model.model.layers.named_parameters():
        update = (before[name] - p.detach()) / 0.02
        values = torch.linalg.svdvals(update) / max(1.0, p.size(0) / p.size(1)) ** 0.5
        assert 0.6 < values.min() < values.max() < 1.3, name
