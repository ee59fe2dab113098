"""The golden files, against what the code computes now. `make golden` renews them and shows the difference."""

import json
from pathlib import Path

import pytest

from golden.cases import CASES, TOLERANCE, differences

FOLDER = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", CASES)
def test_nothing_moved(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    moved = differences(golden, json.loads(json.dumps(CASES[name]())), TOLERANCE[name])
    assert not moved, f"{len(moved)} differences, first: " + "; ".join(moved[:5])


def test_differences_are_seen() -> None:
    assert differences({"a": [1.0, 2]}, {"a": [1.0, 2]}, 0) == []
    assert differences({"a": [1.0, 2]}, {"a": [1.1, 2]}, 0.05) == ["/a/0: 1.0 -> 1.1"]
    assert differences({"a": [1]}, {"a": [1, 2]}, 1) == ["/a: [1] -> [1, 2]"]
    assert differences({"a": 1}, {}, 1) == ["/a: 1 -> None"]
