"""One pair of evaluations and its report, made once."""

import pytest

from kat.audit.report import audit
from tests.audit.worlds import two_runs


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with data.jsonl and the evaluations a and b of 240 items in 40 lectures; b knows more."""
    return two_runs(tmp_path_factory.mktemp("world"), 240, lectures=40)


@pytest.fixture(scope="session")
def report(world):
    """The audit of a and b, also written to world/out."""
    return audit(world / "a", world / "b", world / "out")
