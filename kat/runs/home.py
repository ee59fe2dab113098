"""Where kat keeps what the user gave no place for, and how names of models are resolved."""

import os
from pathlib import Path

from platformdirs import user_data_path

from kat.errors import UsageError


def home_folder(option: Path | None = None) -> Path:
    """`--home`, else KAT_HOME, else the per-user data folder."""
    chosen = option or os.environ.get("KAT_HOME")
    return Path(chosen).expanduser().absolute() if chosen else user_data_path("kat")


def resolve_model(name: str, home: Path) -> str:
    """A checkpoint path as typed, `hf:FOLDER`, or a recipe's stage such as `demo/sft` under home."""
    if name.startswith("hf:") or Path(name).exists():
        return name
    under_home = home / "runs" / name
    if under_home.exists():
        return str(under_home)
    raise UsageError(f"{name}: no such checkpoint here, and no such stage in {home / 'runs'}")


def short_name(name: str, home: Path) -> str:
    """`demo/sft` for a stage under home, however it was named; any other name as it is."""
    if name.startswith("hf:"):
        return name
    runs = (home / "runs").resolve()
    path = Path(name).resolve()
    return path.relative_to(runs).as_posix() if runs in path.parents else name
