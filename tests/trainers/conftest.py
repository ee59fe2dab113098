"""Hundreds of tiny runs: what a power cut would lose is not tested, so nothing waits for the disk."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda _handle: None)
    yield
    patch.undo()
