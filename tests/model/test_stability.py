"""Stability guards: what counts as broken, and where it began."""

import math

import pytest
import torch

from kat.model.stability import Limits, diagnose, fault, first_fault, gradient_fault
from tests.model.helpers import random_ids, random_model

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0, -2.0], None),
        ([], None),
        ([0.0, 0.0], None),
        ([1.0, NAN], "NaN"),
        ([INF, NAN], "NaN"),
        ([1.0, -INF], "Inf"),
        ([1.0, -101.0], "overflow"),
        ([100.0], None),
        ([1e-6, -1e-7, 0.0], "underflow"),
        ([1e-6, 1e-5], None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_faults(values: list[float], expected: str | None, dtype: torch.dtype) -> None:
    found = fault(torch.tensor(values, dtype=dtype), Limits(overflow=100.0, underflow=8e-6))
    assert (found or "").split(" ")[0] == (expected or "")


def test_the_default_underflow_is_where_float32_loses_digits() -> None:
    tiny = torch.finfo(torch.float32).tiny
    assert fault(torch.tensor([tiny, 0.0]), Limits()) is None
    assert "underflow" in (fault(torch.tensor([tiny / 2, 0.0]), Limits()) or "")


def test_the_first_broken_tensor_is_named() -> None:
    good, bad = torch.ones(2), torch.tensor([NAN])
    assert first_fault([("a", good), ("b", None), ("c", bad), ("d", bad)], Limits()) == "c: NaN"
    assert first_fault([("a", good)], Limits()) is None


def look(model, ids) -> str:
    return diagnose(model, Limits(), [lambda: model(ids)])


def test_a_broken_weight_is_named() -> None:
    model, ids = random_model(), random_ids(1, 6)
    with torch.no_grad():
        model.model.layers[1].mlp.fc2.weight[3, 4] = NAN
    assert look(model, ids) == "weight model.layers.1.mlp.fc2.weight: NaN"


def test_the_first_broken_output_is_named_in_the_order_of_the_pass() -> None:
    model, ids = random_model(), random_ids(1, 6)

    def spoil(_module, _args, output):
        output[0, 2, 0] = INF
        return output

    handle = model.model.layers[1].self_attn.o_proj.register_forward_hook(spoil)
    assert look(model, ids) == "output of model.layers.1.self_attn.o_proj: Inf"
    handle.remove()
    assert "in range" in look(model, ids)  # and the hooks of the search are gone
    assert not any(module._forward_hooks for module in model.modules())


def test_every_batch_is_looked_at() -> None:
    model = random_model()
    fine, broken = torch.full((1, 4), 6), torch.full((1, 4), 5)
    model.model.embed_tokens.register_forward_hook(lambda _m, args, out: out * NAN if (args[0] == 5).any() else out)
    assert "in range" in look(model, fine)
    both = [lambda: model(fine), lambda: model(broken)]
    assert diagnose(model, Limits(), both) == "output of model.embed_tokens: NaN"


def test_a_broken_gradient_is_named_where_it_began() -> None:
    """Backwards a NaN spreads to all that came before it, so the last broken weight in forward order is the origin."""
    model, ids = random_model(), random_ids(1, 6)
    model.model.layers[1].self_attn.o_proj.register_full_backward_hook(lambda _m, grads, _out: (grads[0] * NAN,))
    model(ids, ids).backward()
    assert model.model.embed_tokens.weight.grad.isnan().any()
    assert gradient_fault(model, Limits()) == "model.layers.1.self_attn.v_proj.weight: NaN"
    assert look(model, ids) == "gradient of model.layers.1.self_attn.v_proj.weight: NaN"


def test_a_healthy_step_says_so() -> None:
    model, ids = random_model(), random_ids(2, 6)
    model(ids, ids).backward()
    assert gradient_fault(model, Limits()) is None
    assert "in range" in look(model, ids)
