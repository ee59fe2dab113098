"""The gate's policy: what is claimed, by how much the candidate may be worse, and what must have run.

    claim = "recipe"            # or "checkpoint": these two checkpoints, items as the unit
    measure = "delivered"       # unparsed counts as wrong; "knowledge": forced choice on both sides
    suite = "scienceqa"
    margin = 0.02               # two points

It is declared before the run and kept under version control; nothing in it can be set on the command line.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from kat.runs.files import hash_json
from kat.runs.settings import Settings, make_settings, read_toml
from kat.verify.check import FAMILIES

FORCED_CHOICE = ("letters", "text")
"""Scoring modes in which a model cannot fail to answer."""


class Policy(Settings):
    """One gate. Paths stand as they are written; :meth:`place` finds them beside the policy file."""

    claim: Literal["checkpoint", "recipe"]
    measure: Literal["delivered", "knowledge"] = "delivered"
    suite: str = Field(min_length=1, description="the suite that every run must be of")
    margin: float = Field(gt=0, lt=1, description="share of right answers by which B may be worse; .02: two points")
    min_power: float = Field(0.8, ge=0, lt=1, description="chance to pass that two equal models must have had")
    min_seeds: int = Field(5, ge=5, description="training seeds a side, claim = recipe")
    allow_different_prompts: bool = Field(False, description="also where nobody recorded the prompts")
    champion: Path | None = Field(None, description="a second A, which does not move with main")
    verify: tuple[str, ...] = Field((), description="families of kat verify that must have run and hold")
    lanes: tuple[str, ...] = Field((), description="lanes (--lane NAME=junit.xml) that must have run without failure")
    ledger: Path | None = Field(None, description="file of all attempts, which only grows")
    noise: Path | None = Field(None, description="noise.json of kat noise: says how many seeds decide")

    @field_validator("verify")
    @classmethod
    def _known_families(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in FAMILIES:
                raise ValueError(f"no family {name!r}; there are {', '.join(FAMILIES)}")
        return value

    @property
    def hash(self) -> str:
        """sha256 of what is declared: comments and order do not matter, every value does."""
        return hash_json(self.model_dump(mode="json", exclude={"ledger"}))


def read_policy(path: Path) -> Policy:
    """The policy in a TOML file. UsageError, in one line, for an unknown key or a value that cannot be."""
    return make_settings(Policy, read_toml(path), str(path))


def place(policy_file: Path, path: Path) -> Path:
    """A path of the policy, which is relative to the policy file."""
    return path if path.is_absolute() else policy_file.parent / path
