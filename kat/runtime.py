"""Device, dtype, seeds, threads and torch.distributed: everything that depends on the machine, in one place."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kat.errors import UsageError

# Dense bf16 tensor-core peaks in FLOP/s, from the vendors' data sheets; a device not listed has no MFU.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}


@dataclass(frozen=True)
class World:
    """This process among those of one run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value: int) -> int:
        """Sum of an integer over all ranks (exact: int64)."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.int64, device=_collective_device())
        dist.all_reduce(total)
        return int(total.item())

    def sum_float(self, value: float) -> float:
        """Sum of a number over all ranks, in float64."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=_collective_device())
        dist.all_reduce(total)
        return float(total.item())

    def max(self, value: int) -> int:
        """Largest of an integer over all ranks."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.int64, device=_collective_device())
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest.item())

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, rank by rank, on the CPU; every rank brings a tensor of the same shape and dtype."""
        if self.size == 1:
            return rows
        mine = rows.to(_collective_device()).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.cat(parts).cpu()

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def _collective_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


@contextlib.contextmanager
def distributed(device: torch.device) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment; without torchrun, a world of one."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0")))
    if dist.is_initialized():  # by the caller, who also leaves it
        yield world
        return
    if device.type == "cuda":
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps` as a torch device that is there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: not a device kat runs on; use auto, cpu, cuda or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device here; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: no Apple GPU here; use --device cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def set_threads(n_weights: int | None = None) -> int:
    """Threads of this process: KAT_THREADS, else OMP_NUM_THREADS, else one for models below 50 M weights.

    Two threads on small matrices are slower than one, and far slower on a machine that is busy.
    """
    wanted = os.environ.get("KAT_THREADS") or os.environ.get("OMP_NUM_THREADS")
    if wanted:
        try:
            threads = max(1, int(wanted))
        except ValueError:
            raise UsageError(f"KAT_THREADS/OMP_NUM_THREADS is {wanted!r}; it must be a whole number") from None
    elif n_weights is not None and n_weights > 50_000_000:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    else:
        threads = 1
    torch.set_num_threads(threads)
    return threads


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast where the run asks for bfloat16, else nothing."""
    if dtype == torch.bfloat16:
        return torch.autocast(device.type, dtype=dtype)
    return contextlib.nullcontext()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 (under autocast) on CUDA and float32 elsewhere."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name not in ("float32", "bfloat16"):
        raise UsageError(f"dtype {name!r}: use auto, float32 or bfloat16")
    return torch.float32 if name == "float32" else torch.bfloat16


def peak_flops(device: torch.device) -> float | None:
    """bf16 peak of this device in FLOP/s, or None where no data sheet is in the table."""
    if device.type != "cuda":
        return None
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device))


def total_memory(device: torch.device) -> int | None:
    """Bytes that the device (for a CPU: the machine) has in all; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the GPU's allocator on CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The global generators' states, as tensors that safetensors can store."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
