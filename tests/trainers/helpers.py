"""Tiny runs of `kat train`, in this process or in forked ones (which cost no imports and can be killed)."""

import json
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from kat.errors import KatError
from kat.runs.settings import BaseSettings, SftSettings, TrainSettings
from kat.trainers.protocol import Result
from kat.trainers.stages import Request, train
from tests.model.helpers import tiny_tokenizer

TIMING = ("tokens_per_second", "peak_memory", "mfu")
BASE = {
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "n_kv_head": 1,
    "sequence_len": 32,
    "batch_size": 4,
    "steps": 10,
    "save_every": 3,
    "log_every": 2,
    "validation_every": 4,
    "validation_share": 0.1,
}


def documents(path: Path, n: int = 60, seed: int = 0) -> Path:
    """Documents of unequal length."""
    generator = random.Random(seed)
    words = ["kato", "ri", "lone", "méßu", "漢", "toto", "neka"]
    rows = [{"text": " ".join(generator.choices(words, k=generator.randint(3, 25)))} for _ in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def talks(path: Path, n: int = 40, seed: int = 0) -> Path:
    """Conversations of unequal length."""
    generator = random.Random(seed)
    words = ["kato", "ri", "lone", "toto"]

    def said(most: int) -> str:
        return " ".join(generator.choices(words, k=generator.randint(1, most)))

    rows = [
        {"messages": [{"role": "user", "content": said(4)}, {"role": "assistant", "content": said(6)}]}
        for _ in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokenizer_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save(folder)
    return folder


def request(here: Path, out: str = "out", **changes: Any) -> Request:
    """A base run in `here`; `changes` are settings, or fields of Request."""
    data, tokenizer = here / "documents.jsonl", here / "tokenizer"
    if not data.exists():
        documents(data)
    if not tokenizer.exists():
        tokenizer_folder(tokenizer)
    fields = {key: changes.pop(key) for key in list(changes) if key in Request.__dataclass_fields__}
    settings: TrainSettings = BaseSettings(**{**BASE, **changes})
    given = {"stage": "base", "data": (data,), "out": here / out, "init": tokenizer, "settings": settings}
    return Request(**{**given, "seed": 1, "device": "cpu", **fields})


def sft_request(here: Path, init: Path, out: str = "sft", **changes: Any) -> Request:
    data = here / "talks.jsonl"
    if not data.exists():
        talks(data)
    small = {
        "steps": 8,
        "batch_size": 4,
        "validation_every": 3,
        "log_every": 2,
        "save_every": 3,
        "validation_share": 0.2,
    }
    settings = SftSettings(**{**small, **changes})
    return Request("sft", (data,), here / out, init, settings, seed=1, device="cpu")


def run(asked: Request) -> Result:
    return train(asked, Console(quiet=True))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what a clock decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "kat.json").read_text())


def same_result(a: Path, b: Path) -> bool:
    """Bit-identical weights, state and metrics; asserts, so that the difference is named."""
    for name in ("model.safetensors", "trainer_state/tensors.safetensors", "trainer_state/state.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert metrics(a) == metrics(b)
    for key in ("identity", "step", "steps_trained", "stop_reason", "metrics", "selection"):
        assert meta(a)[key] == meta(b)[key], key
    return True


def leftovers(here: Path) -> list[str]:
    """What a run has left beside its result."""
    return sorted(path.name for path in here.iterdir() if path.name.startswith(".") or path.name.endswith(".training"))


# Forked processes


def fork(work: Callable[[], object], **environment: str) -> int:
    """Run `work` in a forked process; the process id. It exits with 0, a KatError's code, 130, or 99 for a bug."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.environ.update(environment)
        work()
        code = 0
    except KatError as error:
        print(error, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001 (the child ends here, whatever it was)
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a forked process; minus the signal's number where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextmanager
def child_of(work: Callable[[], object]) -> Iterator[int]:
    """A forked process that does not outlive the block."""
    child = fork(work)
    try:
        yield child
    finally:
        if not ended(child):
            os.kill(child, signal.SIGKILL)
        wait(child)


def until(condition: Callable[[], bool], child: int) -> bool:
    """Poll until the condition holds (True) or the process has ended (False)."""
    while not condition():
        if ended(child):
            return condition()
        time.sleep(0.001)
    return True


def ranks(work: Callable[[], object], n: int) -> list[int]:
    """Run `work` in n processes with the environment that torchrun gives; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [fork(work, RANK=str(i), LOCAL_RANK=str(i), **common) for i in range(n)]
    return [wait(child) for child in children]
