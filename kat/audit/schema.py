"""audit.json: everything the report says, as data. audit.md and audit.html are drawn from this and from nothing else.

Rates, scores and differences are shares (0.05 is five points); only the texts speak of points and percent.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kat.runs.schemas import Metric

AUDIT_SCHEMA = "kat.audit/1"

Colour = Literal["better", "worse", "inconclusive", "identical"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Arm(_Part):
    """One of the two models. `letter` is A (the baseline) or B (the candidate)."""

    letter: str
    model: str
    model_hash: str
    run_id: str
    folder: str
    created: str
    metrics: dict[str, Metric] = Field(description="as results.json has them")


class Difference(_Part):
    """B minus A with its interval. `unit` is what was taken to be independent: an item or a cluster of items."""

    estimate: float
    low: float
    high: float
    level: float
    p: float
    n: int = Field(description="items")
    n_units: int
    unit: Literal["item", "cluster"]
    method: str
    test: str


class Seen(_Part):
    """The smallest difference this comparison had a fair chance of finding (minimum detectable effect)."""

    effect: float | None
    power: float
    alpha: float
    method: str
    n_for_observed: int | None = Field(description="items at which a true difference of the observed size is found")
    n_for_points: dict[str, int] = Field(description="items for a true difference of so many points")


class Comparison(_Part):
    """One metric of both models and their paired difference; the cluster-robust one gates where there is one."""

    name: str
    label: str
    a: Metric
    b: Metric
    by_item: Difference
    by_cluster: Difference | None
    a_only: int = Field(description="items on which A's score is higher")
    b_only: int = Field(description="items on which B's score is higher")
    both: int = Field(description="items on which the scores are equal and not 0")
    neither: int = Field(description="items on which both score 0")
    effect: float | None = Field(description="odds of B among the items that one has right, or mean over sd; or null")
    effect_kind: Literal["odds", "standardised"]
    p_exact: float | None = Field(None, description="exact McNemar, binary scores only")
    p_adjusted: float | None = None
    adjustment: str | None = None
    sentence: str

    @property
    def gating(self) -> Difference:
        """The difference that decides."""
        return self.by_cluster or self.by_item


class Decomposition(_Part):
    """The accuracy difference as parse rate plus accuracy given parsed; the two parts add up to the whole exactly."""

    parse_a: float
    parse_b: float
    given_parsed_a: float | None
    given_parsed_b: float | None
    total: float
    from_parsing: float
    from_answers: float
    sentence: str


class Sensitivity(_Part):
    """What the unparsed responses could have changed."""

    n_unparsed_a: int
    n_unparsed_b: int
    dropped_a: Metric | None = Field(description="accuracy of A over what it parsed: not over the same items as B's")
    dropped_b: Metric | None
    best_a: float = Field(description="every unparsed response of A counted as right")
    best_b: float
    difference_low: float = Field(description="A's unparsed all right, B's all wrong")
    difference_high: float
    tipping: int | None = Field(description="unparsed responses that would have to be right to undo the verdict")
    sentence: str


class Baseline(_Part):
    """What a rule without a model scores on the same items, and how far each model is above it."""

    name: str
    label: str
    description: str
    score: Metric
    a_above: Difference
    b_above: Difference
    needs_no_model: bool = True


class Slice(_Part):
    """The comparison within one part of the items."""

    key: str
    value: str
    n: int
    a: float
    b: float
    difference: Difference | None
    p_adjusted: float | None = None
    note: str | None = None


class Side(_Part):
    """One model's answer to a flipped item."""

    score: float
    response: str
    extracted: str | None
    rule: str | None
    span: tuple[int, int] | None


class Flip(_Part):
    """An item that one model got right and the other did not (or less often, over its rotations)."""

    item_id: str
    item_hash: str
    question: str | None
    choices: list[str]
    expected: str
    direction: Literal["gained", "lost"]
    slices: dict[str, str]
    a: Side
    b: Side


class Curve(_Part):
    """A training curve: the points kept of those that were logged, and how many were not finite."""

    name: str
    steps: list[int]
    values: list[float]
    n_logged: int
    n_not_finite: int


class Provenance(_Part):
    """One fact of both runs."""

    label: str
    a: str
    b: str


class Extractor(_Part):
    """The same responses read by another way of finding the letter; "kat" is the one that the report stands on."""

    name: str
    source: str
    a: float
    b: float
    parsed_a: float
    parsed_b: float
    difference: Difference


class Contamination(_Part):
    """Items whose question stands in the training data, and the comparison with and without them."""

    n_train: int
    same_question: int
    same_choices: int = Field(description="question and set of options, in any order and with any answer")
    slices: list[Slice]


class Checked(_Part):
    """One check of `kat verify`; `message` says what was seen where it is not a plain pass."""

    check: str
    family: str
    outcome: str
    message: str


class Verified(_Part):
    """What `kat verify` found about the code behind the candidate."""

    subject: str
    seed: int
    level: int
    counts: dict[str, int]
    coverage: float = Field(description="share of the checks that apply to the subject")
    exit_code: int
    findings: list[Checked]


class Batches(_Part):
    """The share of items whose answer changes between two batch sizes, of those that were asked in both."""

    batch_size: int
    again_in: int
    flipped: Metric


class Letters(_Part):
    """One letter: how often it is right, and how often A and B give it, as shares of all rows."""

    letter: str
    right: float
    a: float
    b: float


class Steady(_Part):
    """How repeatable the answers of each model are; null where it was not measured or does not apply."""

    batches_a: Batches | None
    batches_b: Batches | None
    rotation_a: Metric | None = Field(description="share of items with the same best option in every rotation")
    rotation_b: Metric | None
    letters: list[Letters]


class Attempt(_Part):
    """One attempt at the gate: the identities of the weights on both sides (one for each seed) and the outcome."""

    time: str
    a: list[str]
    b: list[str]
    outcome: str


class Attempts(_Part):
    """The gate's attempts on one policy and these items; `kept` is false where the policy declares no ledger."""

    policy_hash: str
    data_hash: str
    kept: bool
    attempts: list[Attempt]
    under_other_policies: int


class Verdict(_Part):
    """One sentence, one colour, and what qualifies it."""

    colour: Colour
    word: str
    sentence: str
    qualifications: list[str]


class Audit(_Part):
    """The whole report."""

    schema_: str = Field(AUDIT_SCHEMA, alias="schema")
    created: str
    versions: dict[str, str]
    suite: str
    suite_version: str
    score_type: str
    data: str
    n_items: int
    n_clusters: int
    bit_identical: bool
    recorded: bool = Field(description="both models are responses that somebody recorded")
    prompts: str
    notes: list[str]
    a: Arm
    b: Arm
    verdict: Verdict
    primary: Comparison
    seen: Seen
    secondary: list[Comparison]
    attempts: Attempts | None = Field(description="null where no policy was given")
    steady: Steady
    decomposition: Decomposition | None
    sensitivity: Sensitivity | None
    extractors: list[Extractor]
    baselines: list[Baseline]
    not_computed: list[str]
    similarity: list[Slice]
    similarity_note: str
    contamination: Contamination | None
    slices: list[Slice]
    slices_left_out: list[str] = Field(description="keys with too many values to show")
    n_gained: int
    n_lost: int
    flips: list[Flip]
    flips_shown: list[int] = Field(description="indices into `flips` that audit.md shows; audit.html has all")
    curves: dict[str, list[Curve]]
    verified: Verified | None
    provenance: list[Provenance]
    methods: list[str]
