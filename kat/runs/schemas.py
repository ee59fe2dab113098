"""What kat writes for other people's tools: the rows of samples.jsonl and the content of results.json.

Both are versioned; a reader refuses a version it does not know. Every figure of a report can be recomputed from
samples.jsonl alone.
"""

from pydantic import BaseModel, ConfigDict, Field

SAMPLE_SCHEMA = "kat.sample/1"
RESULTS_SCHEMA = "kat.results/1"


class Sample(BaseModel):
    """One row of samples.jsonl: one item, one draw, one rotation of its options."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_: str = Field(SAMPLE_SCHEMA, alias="schema")
    suite: str
    suite_version: str
    item_id: str
    item_hash: str = Field(description="sha256 of the item's content: question, choices in order, answer, hint")
    prompt_hash: str | None = Field(description="sha256 of the exact prompt token ids; null when unrecorded")
    protocol_hash: str
    model_hash: str
    cluster: str
    draw: int = 0
    rotation: int = 0
    seed: int
    prompt: str | None
    n_choices: int
    choices: list[str]
    expected: str | None = Field(description="the right letter in this rotation; null where a suite has none")
    response: str
    finish_reason: str
    extracted: str | None
    rule: str | None = Field(description="the extraction rule that matched, 'ambiguous' or 'unparsed'")
    span: tuple[int, int] | None = Field(description="characters of the response that the rule matched")
    score: float
    choice_logprobs: list[float] | None = None
    slices: dict[str, str] = {}


class Metric(BaseModel):
    """One figure with its interval."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    estimate: float
    low: float
    high: float
    level: float
    n: int
    method: str


class BatchCheck(BaseModel):
    """Items that the same model was asked again in batches of another size, and how many answered otherwise."""

    model_config = ConfigDict(extra="forbid")

    n: int = Field(description="items asked again, drawn by the seed")
    n_flipped: int = Field(description="of them, items of which a letter is another")
    batch_size: int = Field(description="rows in a batch of the evaluation")
    again_in: int = Field(description="rows in a batch of the second time")


class Results(BaseModel):
    """results.json: what a suite says of one model on one data set."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_: str = Field(RESULTS_SCHEMA, alias="schema")
    suite: str
    suite_version: str
    score_type: str = Field(description="binary | bounded: which paired test applies to the item scores")
    metrics: dict[str, Metric]
    primary: str
    n_items: int
    n_unparsed: int
    n_dropped_rows: int = 0
    n_over_context: int = Field(0, description="items whose prompt is longer than the context the model is made for")
    batch_check: BatchCheck | None = None
    limit: int | None = None
    seed: int
    data: str
    data_hash: str
    model: str
    model_hash: str
    protocol: dict[str, object]
    protocol_hash: str
    extractor_version: str | None
    run_id: str
    created: str
    versions: dict[str, str]
