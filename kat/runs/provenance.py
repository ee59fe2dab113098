"""What ran where: versions, platform, time, run ids."""

import platform
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from kat import __version__

PACKAGES = ("torch", "numpy", "scipy", "tokenizers", "tiktoken", "safetensors", "transformers", "trl")


def versions() -> dict[str, str]:
    """kat, Python, platform and the installed packages that can change a result."""
    found = {
        "kat": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """This second in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_id() -> str:
    """32 random hex digits: two runs never share one, a copied folder keeps it."""
    return uuid.uuid4().hex
