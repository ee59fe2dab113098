"""gate.json: everything that `kat gate` says, as data. The summary, the JUnit file and the exit code follow from it."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from kat.audit.judge import Outcome

GATE_SCHEMA = "kat.gate/1"
EXIT: Mapping[Outcome, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4}
WORST: Sequence[Outcome] = ("INVALID", "FAIL", "INCONCLUSIVE", "PASS")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Figures(_Part):
    """The numbers behind an outcome; scores and differences are shares."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    level: float
    method: str
    unit: str = Field(description="what was taken to be independent: item, cluster or seed")
    n_units: int
    power: float = Field(description="chance that two equal models would have passed")
    needed: int | None = Field(description="items, or seeds a side, at which that chance is .8")
    needed_observed: int | None = Field(description="the same where the true difference is the one observed")


class Opponent(_Part):
    """B against one A. `scores_a` and `scores_b` are by training seed, claim = recipe."""

    role: str = Field(description="main or champion")
    a: str
    outcome: Outcome
    sentence: str
    bit_identical: bool = False
    figures: Figures | None = None
    scores_a: dict[int, float] | None = None
    scores_b: dict[int, float] | None = None
    notes: list[str] = []


class Condition(_Part):
    """A required family, lane, regeneration or ledger; `required` False is only said."""

    name: str
    outcome: Outcome
    sentence: str
    required: bool = True


class GateResult(_Part):
    """What `kat gate` says; gate.json is this."""

    schema_: str = Field(GATE_SCHEMA, alias="schema")
    created: str
    versions: dict[str, str]
    policy: dict[str, object]
    policy_hash: str
    data_hash: str | None = Field(description="sha256 over the content hashes of the items; null where none was read")
    b: str
    outcome: Outcome
    exit_code: int
    sentence: str
    reasons: list[str]
    opponents: list[Opponent]
    conditions: list[Condition]
    evidence: list[str] = Field(description="for each run: verified, or consistent, not verified, and why")
    attempt: int | None = None


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """INVALID before FAIL before INCONCLUSIVE before PASS."""
    return min(outcomes, key=WORST.index)
