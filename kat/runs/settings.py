"""Typed settings of the stages. One flat model a stage; unknown names, wrong types and impossible values are errors."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kat.errors import UsageError

Schedule = Literal["constant", "linear", "wsd", "cosine", "plateau"]


class Settings(BaseModel):
    """Base of all settings: frozen, nothing unknown, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """One file needs no brackets, and `true` is not the number 1."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("true and false are no values of it")
        return (value,) if isinstance(value, str) and kind == tuple[str, ...] else value


class TokenizerSettings(Settings):
    """`kat train tokenizer`."""

    vocab_size: int = Field(4096, ge=256 + 9, description="tokens, the nine special ones included")
    max_bad: float = Field(0.01, ge=0, le=1, description="share of malformed data rows that is tolerated")


class TrainSettings(Settings):
    """What base, mid and SFT have in common. Rates are of the peak; batch_size counts rows of row_len tokens."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; None: as many as `epochs` makes")
    epochs: float = Field(1.0, gt=0, description="passes over the data; read only where steps is None")
    row_len: int | None = Field(None, ge=2, description="tokens a row; None: the model's sequence_len")
    batch_size: int = Field(32, ge=1, description="rows an optimizer step, over all ranks")
    micro_batch_size: int | None = Field(None, ge=1, description="rows a forward pass and rank; None: all at once")
    layout: Literal["stream", "packed"] = Field("packed", description="packed rows isolate their documents")
    supervise_prompts: bool = Field(False, description="also predict what the user says")
    answers: Literal["letter", "explained", "text"] = Field(
        "letter", description="multiple-choice rows answer `B. nest`, that with explanation and background, or `nest`"
    )
    option_orders: int = Field(1, ge=1, description="multiple-choice rows appear with so many orders of their options")

    optimizer: Literal["muon", "adamw"] = "muon"
    matrix_lr: float = Field(0.02, gt=0, description="Muon: matrices of the blocks")
    embedding_lr: float = Field(0.2, gt=0, description="AdamW beside Muon: token embedding, x (n_embd / 768)^-0.5")
    unembedding_lr: float = Field(0.004, gt=0, description="AdamW beside Muon: lm_head, x (n_embd / 768)^-0.5")
    lr: float = Field(1e-3, gt=0, description="optimizer = adamw: all weights")
    weight_decay: float = Field(0.0, ge=0, description="of weights with two dimensions, never of others")
    clip: float = Field(1.0, gt=0, description="largest global gradient norm")

    schedule: Schedule = "linear"
    warmup_steps: int = Field(0, ge=0)
    peak: float = Field(1.0, gt=0, description="multiplies every learning rate (nanochat's init_lr_frac)")
    final: float = Field(0.0, ge=0, le=1, description="learning rate at the end, as a share of the peak")
    decay_share: float = Field(0.2, gt=0, le=1, description="wsd: share of the steps that decay")
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    plateau_patience: int = Field(3, ge=1, description="validations without improvement before the rate falls")

    validation: tuple[str, ...] = Field((), description="files of validation rows; none: a share of the data")
    validation_share: float = Field(0.02, ge=0, lt=1, description="held out by content hash; 0: no validation")
    validation_every: int = Field(100, ge=1)
    validation_rows: int = Field(256, ge=1, description="at most so many rows are looked at")
    keep_best: bool = Field(False, description="the checkpoint is the step with the lowest validation loss")
    early_stop: int | None = Field(None, ge=1, description="validations without improvement before the run ends")

    save_every: int = Field(100, ge=1, description="steps between states to resume from")
    log_every: int = Field(10, ge=1)
    max_bad: float = Field(0.01, ge=0, le=1, description="share of malformed data rows that is tolerated")
    max_abs: float = Field(1e8, gt=0, description="a weight, gradient or activation above it stops the run")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainSettings":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        return self


class BaseSettings(TrainSettings):
    """`kat train base`: a new model, documents as one stream."""

    layout: Literal["stream", "packed"] = Field("stream", description="a stream cuts documents at the row's end")
    n_layer: int = Field(4, ge=1)
    n_embd: int = Field(256, ge=2)
    n_head: int = Field(4, ge=1)
    n_kv_head: int | None = Field(None, ge=1, description="None: as many as n_head")
    sequence_len: int = Field(256, ge=2, description="context the model is made for, in tokens")
    rope_base: float = Field(10_000.0, gt=0, description="base of the rotary frequencies")


class MidSettings(TrainSettings):
    """`kat train mid`: documents and conversations, everything predicted."""

    supervise_prompts: bool = True


class SftSettings(TrainSettings):
    """`kat train sft`: conversations, the assistant's turns predicted."""

    epochs: float = Field(3.0, gt=0)
    peak: float = Field(0.1, gt=0)
    keep_best: bool = True


STAGES: Mapping[str, type[Settings]] = {
    "tokenizer": TokenizerSettings,
    "base": BaseSettings,
    "mid": MidSettings,
    "sft": SftSettings,
}
S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S], config: Path | None, assignments: Sequence[str]) -> S:
    """Settings from a TOML file (optional), then `key=value` texts; values are TOML (strings may go unquoted)."""
    values = (read_toml(config) if config else {}) | parse_assignments(assignments)
    return make_settings(kind, values, str(config) if config else "--set")


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as a dictionary; values are TOML (strings may go unquoted)."""
    values = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--set {text}: write key=value")
        values[key.strip()] = parse_value(value.strip())
    return values


def make_settings(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """Validate values; the first fault becomes one line that names the setting and what is allowed."""
    for key in values:
        if key not in kind.model_fields:
            near = difflib.get_close_matches(key, kind.model_fields, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(kind.model_fields))}"
            raise UsageError(f"{where}: unknown setting {key!r}{hint}")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        what = fault["msg"].removeprefix("Value error, ")
        line = f"{name}: {what} (got {fault['input']!r})" if name else what
        raise UsageError(f"{where}: {line}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary, or a UsageError that names the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from None


def parse_value(text: str) -> Any:
    """A TOML value; what is none (`adamw`, `runs/x`) is taken as a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
