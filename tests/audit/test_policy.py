"""The gate's policy: what it may say, and one line for what it may not."""

from pathlib import Path

import pytest

from kat.audit.policy import place, read_policy
from kat.errors import UsageError

GOOD = 'claim = "checkpoint"\nsuite = "scienceqa"\nmargin = 0.02\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "gate.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_strict_ones(tmp_path: Path) -> None:
    policy = read_policy(write(tmp_path, GOOD))
    assert (policy.measure, policy.min_power, policy.min_seeds) == ("delivered", 0.8, 5)
    assert not policy.allow_different_prompts
    assert policy.champion is policy.ledger is policy.noise is None
    assert policy.verify == policy.lanes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "margn = 0.1\n", "unknown setting 'margn'; did you mean margin?"),
        (GOOD + "colour = 1\n", "unknown setting 'colour'; known: allow_different_prompts, champion, claim"),
        (GOOD.replace("0.02", "0"), "margin"),
        (GOOD.replace("0.02", "1.0"), "margin"),
        (GOOD.replace("0.02", "-0.02"), "margin"),
        (GOOD.replace("0.02", "nan"), "margin"),
        (GOOD.replace("0.02", '"two"'), "margin"),
        (GOOD.replace("0.02", "true"), "margin"),
        (GOOD.replace("checkpoint", "weights"), "claim"),
        (GOOD + 'measure = "taste"\n', "measure"),
        (GOOD + "min_seeds = 4\n", "min_seeds"),
        (GOOD + "min_power = 1.0\n", "min_power"),
        (GOOD + 'verify = ["looss"]\n', "no family 'looss'; there are data, tokenizer"),
        (GOOD.replace("margin = 0.02\n", ""), "margin: Field required"),
        ("claim = ", "not TOML"),
    ],
)
def test_a_wrong_policy_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_policy(write(tmp_path, text))
    assert message in str(caught.value) and "gate.toml" in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_policy(tmp_path / "none.toml")


def test_the_hash_is_of_what_is_declared(tmp_path: Path) -> None:
    first = read_policy(write(tmp_path, GOOD)).hash
    lines = GOOD.splitlines()
    assert read_policy(write(tmp_path, "# why\n" + "\n".join(reversed(lines)))).hash == first
    assert read_policy(write(tmp_path, GOOD + 'ledger = "elsewhere.jsonl"\n')).hash == first
    for other in (GOOD.replace("0.02", "0.03"), GOOD + "min_power = 0.5\n", GOOD + 'champion = "best"\n'):
        assert read_policy(write(tmp_path, other)).hash != first


def test_paths_are_relative_to_the_policy(tmp_path: Path) -> None:
    assert place(tmp_path / "ci" / "gate.toml", Path("best")) == tmp_path / "ci" / "best"
    assert place(tmp_path / "ci" / "gate.toml", Path("/best")) == Path("/best")
