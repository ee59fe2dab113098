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
Weighting = Literal["uniform", "density", "placebo"]


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


class LoopSettings(Settings):
    """What every stage has that the loop trains. Rates are of the peak; batch_size counts rows (base, mid, SFT), pairs
    (reward) or completions (GRPO)."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; None: as many as `epochs` makes")
    epochs: float = Field(1.0, gt=0, le=1e6, description="passes over the data; read only where steps is None")
    batch_size: int = Field(32, ge=1, description="rows an optimizer step, over all ranks")
    micro_batch_size: int | None = Field(None, ge=1, description="rows a forward pass and rank; None: all at once")

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
    def _consistent(self) -> "LoopSettings":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        return self


class TrainSettings(LoopSettings):
    """What base, mid and SFT have in common; a row is row_len tokens."""

    row_len: int | None = Field(None, ge=2, description="tokens a row; None: the model's sequence_len")
    layout: Literal["stream", "packed"] = Field("packed", description="packed rows isolate their documents")
    supervise_prompts: bool = Field(False, description="also predict what the user says")
    answers: Literal["letter", "explained", "text"] = Field(
        "letter", description="multiple-choice rows answer `B. nest`, that with explanation and background, or `nest`"
    )
    option_orders: int = Field(1, ge=1, description="multiple-choice rows appear with so many orders of their options")


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

    epochs: float = Field(3.0, gt=0, description="passes over the data, where no steps are given")
    peak: float = Field(0.1, gt=0)
    keep_best: bool = True


class RewardSettings(LoopSettings):
    """`kat train reward`: Bradley-Terry on pairs. Density enters by sampling or by loss weights, never both: the two
    together would weigh by its square."""

    peak: float = Field(0.1, gt=0)
    keep_best: bool = True
    backbone: Literal["trained", "frozen"] = Field("trained", description="frozen: the scalar head alone learns")
    head_lr: float = Field(0.03, gt=0, description="AdamW: the scalar head, under either optimizer")
    sampling: Weighting = Field("uniform", description="how pairs are drawn; density and placebo need `density`")
    loss_weights: Weighting = Field("uniform", description="how losses are weighed; density and placebo need `density`")
    density: str | None = Field(None, description="folder that `kat density build` wrote for these prompts")

    @model_validator(mode="after")
    def _once(self) -> "RewardSettings":
        if self.sampling != "uniform" and self.loss_weights != "uniform":
            raise ValueError("density by sampling or by loss_weights, not both: together they weigh by its square")
        _needs_density(self.density, self.sampling, self.loss_weights)
        return self


class GrpoSettings(LoopSettings):
    """`kat train grpo`: groups of completions of one prompt, each judged against its group (arXiv:2402.03300)."""

    steps: int = Field(200, ge=1)
    batch_size: int = Field(64, ge=1, description="completions an optimizer step, over all ranks")
    peak: float = Field(0.05, gt=0)
    schedule: Schedule = "constant"
    validation_share: float = Field(0.0, ge=0, le=0, description="GRPO validates nothing: evaluate its checkpoint")
    log_every: int = Field(1, ge=1)

    reward: tuple[str, ...] = Field(
        (), description="reward checkpoint, module:function, `microworld` or `choices`, each perhaps as `0.5*…`; summed"
    )
    prompts_per_rollout: int = Field(8, ge=1, description="prompts drawn at a time, over all ranks")
    completions: int = Field(8, ge=2, description="G, completions of each prompt")
    epochs_per_rollout: int = Field(1, ge=1, description="passes over a rollout before the next is made")
    temperature: float = Field(1.0, ge=0.01, description="of sampling, and of every log-probability")
    max_new_tokens: int = Field(64, ge=1)
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="what the advantage is divided by")
    aggregation: Literal["token-mean", "sequence-mean", "dr-grpo"] = Field(
        "token-mean", description="trl's dapo, grpo and dr_grpo"
    )
    clip_low: float = Field(0.2, gt=0, le=1, description="the ratio is clipped to [1 - clip_low, 1 + clip_high]")
    clip_high: float = Field(0.2, gt=0, description="see clip_low")
    mask_truncated: bool = Field(False, description="completions without an end token teach nothing")
    kl_in: Literal["loss_k3", "loss_k2", "reward_k1", "exact"] = Field(
        "loss_k3", description="how the divergence from the initial policy enters; see docs/grpo.md"
    )
    kl_coef: float = Field(0.04, ge=0, description="weight of the divergence from the initial policy")
    kl_target: float | None = Field(None, gt=0, description="nats a token; the coefficient then follows it")
    kl_horizon: int = Field(20, ge=1, description="rollouts over which the coefficient follows kl_target")
    sampling: Weighting = Field("uniform", description="how prompts are drawn; density and placebo need `density`")
    density: str | None = Field(None, description="folder that `kat density build` wrote for these prompts")
    collapse_patience: int = Field(10, ge=1, description="rollouts without any reward variance before the run stops")
    max_kl: float = Field(5.0, gt=0, description="nats a token from the initial policy; above it the run stops")
    min_entropy: float = Field(1e-3, ge=0, description="nats a token; below it the run stops")

    @model_validator(mode="after")
    def _whole_batches(self) -> "GrpoSettings":
        rows = self.prompts_per_rollout * self.completions
        if rows % self.batch_size:
            raise ValueError(
                f"prompts_per_rollout x completions = {rows} rows are no multiple of batch_size {self.batch_size}"
            )
        if self.keep_best or self.early_stop or self.validation or self.schedule == "plateau":
            raise ValueError("keep_best, early_stop, validation and schedule = plateau: GRPO has no validation")
        _needs_density(self.density, self.sampling)
        return self


def _needs_density(folder: str | None, *uses: str) -> None:
    """Weights are named where they are used, and used where they are named: an arm is never silently uniform."""
    used = any(use != "uniform" for use in uses)
    if used and not folder:
        raise ValueError(
            f"{next(use for use in uses if use != 'uniform')} weights need `density`, the folder they are in"
        )
    if folder and not used:
        raise ValueError("`density` is given and nothing uses it; set sampling = density, or leave it out")


STAGES: Mapping[str, type[Settings]] = {
    "tokenizer": TokenizerSettings,
    "base": BaseSettings,
    "mid": MidSettings,
    "sft": SftSettings,
    "reward": RewardSettings,
    "grpo": GrpoSettings,
}
S = TypeVar("S", bound=Settings)


def load_settings(
    kind: type[S], config: Path | None, assignments: Sequence[str], named: Mapping[str, Any] | None = None
) -> S:
    """Settings from a TOML file (optional), then `key=value` texts, whose values are TOML (strings may go unquoted),
    then those that the command line names by an option of their own."""
    values = (read_toml(config) if config else {}) | parse_assignments(assignments) | dict(named or {})
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
