"""One torch thread, real data only where KAT_DATA says it is."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, or a skip."""
    folder = os.environ.get("KAT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KAT_DATA is unset or no folder: real data is not here")
    return Path(folder)
