"""Named tensors on disk: safetensors files whose faults are errors that a user understands."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kat.errors import EvidenceError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors (from any device) to a safetensors file. Raises OSError, naming it, where it cannot be written."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(on_cpu, path, metadata=metadata)
        os.chmod(path, 0o644)  # safetensors makes files that only their owner can read
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU. Raises EvidenceError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise EvidenceError(f"{path}: missing") from None
    except SafetensorError as error:
        raise EvidenceError(f"{path}: not a readable safetensors file ({error})") from None
