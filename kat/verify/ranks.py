"""The same work in two processes that are ranks 0 and 1 of a gloo group, as torchrun would start them."""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kat.errors import UsageError
from kat.verify.check import NotApplicable
from kat.verify.lab import AdapterError, Lab
from kat.verify.subject import Make, open_subject

LIMIT = 60.0  # seconds for both

Work = Callable[[Make, Any, int], Any]  # (make, payload, rank) -> what can be saved by torch


def on_two_ranks(lab: Lab, work: Work, payload: Any) -> list[Any]:
    """[what `work` returns on rank 0, on rank 1]. work is a function of a module; payload can be pickled.

    Where a process can be forked (Linux, no CUDA), the subject needs no import. Elsewhere both processes open it anew.
    """
    if not (dist.is_available() and dist.is_gloo_available()):
        raise NotApplicable("torch was built without gloo")
    forked = sys.platform == "linux" and not torch.cuda.is_available()
    if not forked:
        try:
            open_subject(lab.spec or "")
        except UsageError:
            raise NotApplicable("the subject cannot be opened again in another process") from None
    context: Any = multiprocessing.get_context("fork" if forked else "spawn")
    with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
        source = lab.make if forked else lab.spec
        ranks = [context.Process(target=_rank, args=(source, work, payload, rank, folder)) for rank in range(2)]
        try:
            for process in ranks:
                process.start()
            _wait(ranks)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()
        found = [Path(folder) / f"{rank}.pt" for rank in range(2)]
        results = [torch.load(path, weights_only=False) if path.is_file() else None for path in found]
    for rank, result in enumerate(results):  # a rank that fails takes the other with it: the first error is the cause
        if result is not None and "error" in result and "Connection closed" not in result["error"]:
            raise AdapterError(f"rank {rank} of 2: {result['error']}")
    if any(result is None or "error" in result for result in results):
        raise AdapterError(f"two ranks gave no result within {LIMIT:g} s, or died")
    return [result["value"] for result in results if result is not None]


def _wait(ranks: list[Any]) -> None:
    """Until both are done, one has failed, or the time is up."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and any(process.is_alive() for process in ranks):
        if any(process.exitcode not in (None, 0) for process in ranks):
            time.sleep(0.2)  # the other one may be about to say what it saw
            return
        time.sleep(0.005)


def _rank(source: Make | str, work: Work, payload: Any, rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    path = Path(folder) / f"{rank}.pt"
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        make = open_subject(source).make if isinstance(source, str) else source
        result = {"value": work(make, payload, rank)}
    except BaseException as error:  # noqa: BLE001 (what the adapter raises is reported by the first process)
        where = traceback.extract_tb(error.__traceback__)[-1]
        result = {"error": f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"}
    torch.save(result, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    sys.stdout.flush()
    os._exit(1 if "error" in result else 0)  # no exit handlers of the process that was forked
