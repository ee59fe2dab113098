"""Devices, dtypes, threads, generators; sums over ranks."""

from pathlib import Path

import pytest
import torch

from kat.errors import UsageError
from kat.runtime import (
    World,
    autocast,
    distributed,
    peak_flops,
    peak_memory,
    pick_device,
    pick_dtype,
    rng_state,
    set_rng_state,
    set_threads,
)
from tests.trainers.helpers import ranks

CPU = torch.device("cpu")


def test_devices() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "", "meta", "xla", "cpu:x"):
        with pytest.raises(UsageError, match="use auto, cpu, cuda or mps"):
            pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_devices_that_are_not_here() -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UsageError, match="no CUDA device here; use --device cpu"):
            pick_device(name)


def test_dtypes() -> None:
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(UsageError, match="dtype 'float16': use auto, float32 or bfloat16"):
        pick_dtype("float16", CPU)


def test_autocast_is_bfloat16_or_nothing() -> None:
    x = torch.ones(2, 2)
    with autocast(CPU, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert (x @ x).dtype == torch.float32


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert set_threads() == torch.get_num_threads() == 3
        monkeypatch.setenv("KAT_THREADS", "2")
        assert set_threads(10**9) == 2
        monkeypatch.setenv("KAT_THREADS", "many")
        with pytest.raises(UsageError, match="'many'; it must be a whole number"):
            set_threads()
        monkeypatch.delenv("KAT_THREADS")
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert set_threads() == set_threads(1_000_000) == 1
        assert set_threads(10**9) >= 1
    finally:
        torch.set_num_threads(before)


def test_generators_go_on_from_a_saved_state() -> None:
    state = {name: tensor.clone() for name, tensor in rng_state(CPU).items()}
    first = torch.rand(3)
    set_rng_state(state, CPU)
    assert torch.equal(torch.rand(3), first)


def test_peaks() -> None:
    assert peak_flops(CPU) is None
    assert 10**7 < peak_memory(CPU) < 10**12  # bytes, not kilobytes


def test_one_process_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "1"):
        if value:
            monkeypatch.setenv("WORLD_SIZE", value)
        with distributed(CPU) as world:
            assert world == World(0, 1, 0)
            assert world.is_main
            assert (world.sum(5), world.sum_float(0.1)) == (5, 0.1)
            world.barrier()


def test_sums_over_ranks_are_exact(tmp_path: Path) -> None:
    def work() -> None:
        with distributed(CPU) as world, distributed(CPU) as again:
            assert again == world
            assert world.sum(2**53 + 1 + world.rank) == 2 * (2**53 + 1) + 1
            assert world.sum_float(0.1 * (world.rank + 1)) == 0.1 + 0.2
            world.barrier()
            assert world.is_main == (world.rank == 0)
            (tmp_path / str(world.rank)).touch()

    assert ranks(work, 2) == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
