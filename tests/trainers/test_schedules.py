"""Learning-rate schedules: pure functions of the step, in closed form."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.runs.settings import TrainSettings
from kat.trainers.schedules import cosine, linear, lr_share, plateau, wsd

shapes = st.tuples(st.integers(1, 300), st.integers(0, 40), st.floats(0, 1))
KINDS = ("constant", "linear", "cosine", "wsd", "plateau")


def make(kind: str, **more) -> TrainSettings:
    return TrainSettings(schedule=kind, **more)


def series(s: TrainSettings, total: int, losses: tuple[float, ...] = ()) -> list[float]:
    return [lr_share(s, step, total, losses) for step in range(total + 1)]


@given(st.sampled_from(KINDS), shapes, st.floats(0.05, 1), st.floats(0.1, 2))
@settings(deadline=None, max_examples=150)
def test_rises_to_the_peak_at_the_end_of_the_warm_up_and_never_again(kind, shape, decay, peak) -> None:
    """OS1: a multiplier that ramps up instead of down."""
    total, warmup, final = shape
    s = make(kind, warmup_steps=warmup, final=final, decay_share=decay, peak=peak)
    rates = series(s, total)
    rise, fall = rates[: min(warmup, total - 1) + 1], rates[warmup:]
    assert all(a < b for a, b in itertools.pairwise(rise))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(fall))
    if warmup < total:
        assert rates[warmup] == pytest.approx(peak)
    assert all(0 <= rate <= peak * (1 + 1e-12) for rate in rates)
    if kind in ("linear", "cosine", "wsd") and warmup < total:
        assert rates[total] == pytest.approx(final * peak, abs=1e-9)


@given(st.sampled_from(KINDS), shapes, st.lists(st.floats(0.1, 9), max_size=12))
@settings(deadline=None, max_examples=60)
def test_a_pure_function_of_the_step(kind, shape, losses) -> None:
    """OS2: a rate re-read from where the schedule itself wrote it compounds."""
    total, warmup, final = shape
    s = make(kind, warmup_steps=warmup, final=final)
    steps = list(range(total))
    forwards = {step: lr_share(s, step, total, losses) for step in steps}
    backwards = {step: lr_share(s, step, total, tuple(losses)) for step in reversed(steps)}
    assert forwards == backwards


@given(st.integers(2, 200), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_closed_forms_without_warm_up(total, final) -> None:
    """OS6: a warm-up of 0 is a value, so that step 0 is the peak."""
    for step in range(total):
        done = step / total
        assert linear(step, total, 0, final) == pytest.approx((1 - done) + done * final, abs=1e-9)
        bow = final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
        assert cosine(step, total, 0, final) == pytest.approx(bow, abs=1e-9)
    for kind in KINDS:
        assert lr_share(make(kind, warmup_steps=0), 0, total, ()) == 1.0


def test_cosine_is_torchs() -> None:
    import torch

    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=40, eta_min=0.1)
    for step in range(40):
        assert cosine(step, 40, 0, 0.1) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        theirs.step()


def test_warm_up_values() -> None:
    assert series(make("constant", warmup_steps=4), 6) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert series(make("linear", warmup_steps=1), 3) == pytest.approx([0.5, 1, 0.5, 0])


def test_wsd_is_stable_then_linear() -> None:
    rates = [wsd(step, 100, 10, 0.1, 0.2) for step in range(101)]
    assert rates[10:81] == [1.0] * 71
    assert rates[90] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_wsd_whose_decay_is_longer_than_the_rest_does_not_jump() -> None:
    rates = [wsd(step, 100, 50, 0.0, 1.0) for step in range(101)]
    assert rates[50] == 1.0
    assert max(abs(a - b) for a, b in itertools.pairwise(rates[50:])) < 0.021


def test_plateau_falls_after_patience_validations_without_a_new_minimum() -> None:
    losses = [5.0, 4.0, 4.1, 4.0, 3.9, 3.95, 3.95, 3.9, 3.95, 3.95, 3.95]
    shares = [plateau(losses[:n], 0.5, 3, 0.0) for n in range(len(losses) + 1)]
    assert shares == [1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert plateau([1.0] * 100, 0.1, 1, 0.02) == 0.02


def test_plateau_equals_torchs() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    losses = (torch.rand(80, generator=generator) + torch.linspace(1, 0, 80).sqrt()).tolist()
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # torch waits for one validation more than `patience`, and keeps 1e-4 relative slack unless told not to
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=2, threshold=0, eps=0)
    for n, loss in enumerate(losses, start=1):
        theirs.step(loss)
        assert plateau(losses[:n], 0.5, 3, 0.0) == pytest.approx(optimiser.param_groups[0]["lr"])
