"""What `kat verify` looks at: any object with some of the methods below, and its declared design.

An adapter is a function `make(seed=0, tiny=True, **overrides)` that returns a fresh subject. Every method is optional:
a check that needs one which is missing is skipped and lowers the coverage. Ids are LongTensors (B, T); masks have the
same shape and hold 1 for a real or a supervised token.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from kat.errors import UsageError

Message = dict[str, str]
Row = tuple[list[int], list[int]]  # ids and, aligned with them, 1 where the token is supervised
Batch = dict[str, Any]
Preference = tuple[Sequence[Message], str, str]  # prompt, chosen, rejected
Rollout = Mapping[str, Any]  # prompt_ids: N lists; completion_ids, mask and logprobs: (N, T), mask 1 to the end token


@dataclass(frozen=True)
class Traits:
    """The declared design of a subject: each selects which property is expected, none switches a check off.

    vocab: size of the logits' last dimension. max_len: longest row that forward takes.
    pad_id, bos_id, eos_ids: special ids; bos_id begins every conversation and stands nowhere else (None where there is
    no such token: one that opens each turn is in special_ids); eos_ids end a completion. special_ids: more ids that no
    user text gives.
    attn_mask: forward and generate honour an attention mask; padding: the sides it may stand on.
    positions: "relative" where a shift of all positions changes nothing (rotary, ALiBi), else "absolute"; "none".
    window: how far back the layers see, where that is limited. tied_head: embedding and head are one tensor.
    pack_isolated: documents that share a row do not see each other.
    loss_agg: "token-mean" (sum over the whole step's supervised tokens / their number), "sequence-mean", "token-sum".
    long_rows_keep_a_target: a row that is too long is dropped, or cut so that something in it is still learned; False
    where it is plainly cut.
    supervised: "assistant" (each assistant message and its end token) or "all".
    parses_specials: special tokens typed as text become special ids, on purpose.
    trims: white space at the ends of a message is dropped on purpose, as many chat templates do.
    normalisation: "NFC", "NFKC", "NFD" or "NFKD" where the tokenizer normalises a text before it encodes it.
    shuffle: batches come in an order that depends on the seed. replacement: examples are drawn with replacement.
    epoch_seed: "mixed" claims that no epoch of a seed has the order of another seed's epoch, and is held to that;
    "any" claims nothing (torch's DistributedSampler adds seed and epoch: two seeds are then no independent runs).
    n_examples: size of the data set behind batches().
    last_batch: the last, smaller batch of an epoch is "kept", "dropped", or "filled" with examples that come twice.
    buffer: how many examples, over all ranks, may wait while later ones go first (a shuffle buffer, a best-fit packer).
    lr_peak, lr_final, warmup_steps, total_steps: of the schedule behind lr(step); None = not declared.
    max_grad_norm: what gradients are clipped to. decay_1d: weight decay is meant for 1-D parameters too.
    data_parallel: where torch.distributed is initialised, the ranks' train_steps are one step on all their rows.
    logprobs: a completion's log-probabilities are "tempered", those at the sampling temperature over the whole
    vocabulary; "sampled", renormalised over what top_k leaves; or "raw", those at temperature 1.
    density_max_ratio: of the largest density weight to the median. density_dose: the least total variation of density
    weights from uniform ones, None where nothing is claimed. embeds_whole_texts: no token of a long text is cut.
    diversity: what a higher value of each diversity metric is, "better" or "worse".
    Of reinforcement learning: aggregation of the token losses of a step: "token-mean" (sum / number of counted
    tokens), "sequence-mean" (mean over rows of their means) or "dr-grpo" (sum / (rows × max_new_tokens)).
    advantage_scale: what centred rewards are divided by: the standard deviation (n − 1) of the "group" or of the whole
    "batch", each plus advantage_eps, or nothing ("none").
    clip_low, clip_high: the ratio is clipped to [1 − clip_low, 1 + clip_high].
    kl: the divergence from the reference, times kl_coef: in the loss "loss_k3" (its gradient is that of KL(ref‖π)),
    "loss_k3_weighted" (times the ratio, whose gradient is that of KL(π‖ref)), "loss_k2" or "exact" (over the
    vocabulary; to policy_loss it is one of two tokens), in the reward "reward_k1" (the completion's whole log-ratio),
    or "none". kl_target, kl_horizon: nats a token that the coefficient is steered to, by at most a fifth in so many
    rollouts; None where it is fixed.
    old_logprobs: a step compares the policy with the rollout's "stored" log-probabilities, or with those "recomputed"
    at its start, which makes every ratio 1.
    temperature, max_new_tokens: of a rollout.
    """

    name: str = ""
    vocab: int = 0
    max_len: int = 64
    pad_id: int | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    special_ids: tuple[int, ...] = ()
    attn_mask: bool = True
    padding: tuple[str, ...] = ("left", "right")
    positions: str = "relative"
    window: int | None = None
    tied_head: bool = False
    pack_isolated: bool = True
    loss_agg: str = "token-mean"
    long_rows_keep_a_target: bool = True
    supervised: str = "assistant"
    parses_specials: bool = False
    trims: bool = False
    normalisation: str | None = None
    shuffle: bool = True
    replacement: bool = False
    epoch_seed: str = "any"
    n_examples: int | None = None
    last_batch: str = "kept"
    buffer: int = 0
    lr_peak: float | None = None
    lr_final: float | None = None
    warmup_steps: int | None = None
    total_steps: int | None = None
    max_grad_norm: float | None = None
    decay_1d: bool = False
    data_parallel: bool = False
    logprobs: str = "tempered"
    density_max_ratio: float = 10.0
    density_dose: float | None = None
    embeds_whole_texts: bool = True
    diversity: Mapping[str, str] = field(default_factory=dict)
    aggregation: str = "token-mean"
    advantage_scale: str = "group"
    advantage_eps: float = 1e-4
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: str = "loss_k3"
    kl_coef: float = 0.04
    kl_target: float | None = None
    kl_horizon: int = 1
    old_logprobs: str = "stored"
    temperature: float = 1.0
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        choices = {
            "positions": ("relative", "absolute", "none"),
            "loss_agg": ("token-mean", "sequence-mean", "token-sum"),
            "supervised": ("assistant", "all"),
            "logprobs": ("tempered", "sampled", "raw"),
            "epoch_seed": ("any", "mixed"),
            "normalisation": (None, "NFC", "NFKC", "NFD", "NFKD"),
            "last_batch": ("kept", "dropped", "filled"),
            "aggregation": ("token-mean", "sequence-mean", "dr-grpo"),
            "advantage_scale": ("group", "batch", "none"),
            "kl": ("loss_k3", "loss_k3_weighted", "loss_k2", "exact", "reward_k1", "none"),
            "old_logprobs": ("stored", "recomputed"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"trait {name} is {getattr(self, name)!r}; it is one of {', '.join(map(str, allowed))}"
                )
        if wrong := set(self.diversity.values()) - {"better", "worse"}:
            raise ValueError(f"trait diversity holds {min(wrong)!r}; a higher value is 'better' or 'worse'")
        if not set(self.padding) <= {"left", "right"}:
            raise ValueError(f"trait padding is {self.padding!r}; it holds 'left', 'right' or both")

    @classmethod
    def of(cls, declared: Any) -> "Traits":
        """Traits from an adapter's own object: a Traits, a mapping (unknown names are errors), or anything with
        attributes of these names."""
        if isinstance(declared, cls):
            return declared
        names = {one.name for one in fields(cls)}
        if isinstance(declared, Mapping):
            if unknown := sorted(set(declared) - names):
                raise ValueError(f"unknown trait {unknown[0]!r}; known are {', '.join(sorted(names))}")
            values = dict(declared)
        else:
            values = {name: getattr(declared, name) for name in names if hasattr(declared, name)}
        for name in ("eos_ids", "special_ids", "padding"):
            if name in values:
                value = values[name]
                values[name] = (value,) if isinstance(value, int | str) else tuple(value or ())
        return cls(**values)


@dataclass(frozen=True)
class Completion:
    """One sampled continuation: ids with the end token that ended it, a log-probability an id (or none), and why it
    ended: "stop" or "length"."""

    ids: Sequence[int]
    logprobs: Sequence[float] | None = None
    finish: str | None = None


class Subject(Protocol):
    """Every method that checks may call. An adapter has those it can offer, and no others."""

    traits: Traits
    variants: Sequence[Mapping[str, Any]]
    """Optional: overrides for `make` that take the model's configuration off its defaults; saving must keep them."""
    rl_variants: Sequence[Mapping[str, Any]]
    """Optional: overrides for `make` that take reinforcement learning off its defaults, the model as it is."""

    def encode_conversation(self, messages: Sequence[Message]) -> Row: ...
    def encode_prompt(self, messages: Sequence[Message]) -> list[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self) -> Sequence[int]: ...
    def forward(self, ids: Any, attention_mask: Any = None, position_ids: Any = None) -> Any: ...
    def reference_logits(self, ids: Any) -> Any:
        """Logits (B, T, V) of the same weights by an implementation that shares no code with the subject."""

    def forward_cached(self, ids: Any, state: Any = None) -> tuple[Any, Any]: ...
    def loss(self, batch: Batch) -> Any: ...
    def eval_loss(self, batch: Batch) -> float:
        """The mean over supervised tokens that validation reports for this batch."""

    def named_parameters(self) -> Iterable[tuple[str, Any]]: ...
    def init_weights(self, seed: int) -> None: ...
    def train_step(self, micro_batches: Sequence[Batch]) -> Mapping[str, float]: ...
    def accumulate(self, micro_batches: Sequence[Batch]) -> None: ...
    def collate(self, rows: Sequence[Row]) -> Batch: ...
    def pack(self, rows: Sequence[Row]) -> Batch:
        """All rows in as few packed rows as they fit in, with doc_ids (B, T), -1 where there is padding."""

    def batches(self, seed: int, rank: int = 0, world: int = 1, state: Any = None) -> Iterator[Batch]: ...
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[list[Completion]]: ...
    def param_groups(self) -> Iterable[Mapping[str, Any]]: ...
    def lr(self, step: int) -> float: ...
    def state_dict(self) -> dict[str, Any]: ...
    def save(self, path: Path) -> None: ...
    def load(self, path: Path) -> None: ...
    def build_prompt(self, item: Mapping[str, Any], shots: Sequence[Mapping[str, Any]] = ()) -> list[Message]:
        """The messages up to the answer. An item has the keys id, question, choices (list), answer (index), hint,
        lecture, solution, subject, topic, grade and has_image. shots are candidates: the item itself, where it is among
        them, must not be shown."""

    def extract(self, text: str, n_choices: int) -> str | None: ...
    def grade(self, item: Mapping[str, Any], text: str) -> float: ...
    def aggregate(self, scores: Sequence[float], groups: Sequence[str] | None = None) -> Mapping[str, float]: ...

    # Reward model
    def score(self, prompt: Sequence[Message], response: str) -> float: ...
    def score_pair(self, prompt: Sequence[Message], a: str, b: str) -> float:
        """The margin of a over b, from one batch that holds both."""

    def reward_step(
        self, micro_batches: Sequence[Sequence[Preference]], weights: Sequence[Sequence[float]] | None = None
    ) -> Mapping[str, float]:
        """One optimizer step of the reward model: {"loss", …}. weights, where the method takes them: what each pair's
        loss counts, 1 on the average of the data set."""

    def reward_parameters(self) -> Iterable[tuple[str, Any]]:
        """Live weights of the reward model, where `named_parameters` are another model's."""

    def reward_accuracy(self, pairs: Sequence[Preference]) -> float:
        """The share of held-out pairs whose chosen response scores higher, a tie half; refuses prompts that it was
        trained on by an exception."""

    # Reinforcement learning: N = P * G completions of P prompts, the G of one prompt one after another
    def rl_setup(self) -> Mapping[str, Mapping[str, Any]]:
        """{"policy", "reference"}: live state dicts, equal before the first step."""

    def rollout(self, prompts: Sequence[Sequence[int]], n: int, seed: int) -> Rollout: ...
    def completion_logprobs(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], temperature: float
    ) -> Any: ...
    def advantages(self, rewards: Any) -> Any:
        """(P, G) of rewards (P, G)."""

    def policy_loss(
        self, logprobs: Any, old: Any, ref: Any, advantages: Any, mask: Any
    ) -> tuple[Any, Mapping[str, float]]:
        """(scalar loss, metrics) of (N, T) log-probabilities and mask, and advantages (N,). Metrics that are
        looked at: clip_fraction, kl (from the reference), approx_kl (from the sampler)."""

    def rl_step(self, rollout: Rollout, rewards: Any) -> Mapping[str, float]:
        """One optimizer step of the policy on a rollout, with rewards (P, G)."""

    # Density
    def embed(self, texts: Sequence[str]) -> Any: ...
    def density_weights(self, embeddings: Any) -> Any: ...
    def sample_indices(self, weights: Any, n: int, seed: int) -> Sequence[int]: ...
    def weights_of(self, known: Mapping[str, float], ids: Sequence[str]) -> Any:
        """(n,) the weights of these ids, from those that were saved of all known ones; an exception where one is
        missing."""

    def diversity(self, texts: Sequence[str]) -> Mapping[str, float]:
        """Metrics of how different texts are, each with a direction in traits.diversity."""


Make = Callable[..., Any]
CAPABILITIES = tuple(name for name in vars(Subject) if not name.startswith("_"))


def capabilities(subject: Any) -> frozenset[str]:
    """Which of the contract's methods a subject offers."""
    return frozenset(name for name in CAPABILITIES if callable(getattr(subject, name, None)))


@dataclass(frozen=True)
class Source:
    """Where subjects come from: what the user typed, the adapter's function, and the folder of its kat_verify.toml."""

    spec: str
    name: str
    make: Make
    folder: Path | None = None


def open_subject(spec: str, overrides: Mapping[str, Any] | None = None) -> Source:
    """`native`, `kat:FOLDER`, `hf:FOLDER`, `trl:sft`, `package.module:make` or `path/to/adapter.py:make`.

    Behind any of them, ` with MUTANT` plants one of kat's mutants, so that its failures can be seen again. overrides
    go to every call of make.
    """
    source = _open(spec)
    return replace(source, make=functools.partial(source.make, **overrides)) if overrides else source


def _open(spec: str) -> Source:
    good, planted, mutant = spec.rpartition(" with ")
    if planted:
        return _with_mutant(_open(good), mutant)
    kind, _, rest = spec.partition(":")
    if kind in ("native", "kat", "hf", "trl"):
        adapter = importlib.import_module(f"kat.verify.adapters.{'native' if kind == 'kat' else kind}")
        make = adapter.open_make(rest)
        return Source(spec, spec, make, Path(rest) if kind in ("kat", "hf") else None)
    if not rest:
        raise UsageError(
            f"{spec}: no such subject; give native, kat:FOLDER, hf:FOLDER, trl:STAGE or package.module:make"
        )
    module = _import(kind, spec)
    make = getattr(module, rest, None)
    if not callable(make):
        raise UsageError(f"{spec}: {kind} has no function {rest!r}")
    file = getattr(module, "__file__", None)
    return Source(spec, module.__name__.rpartition(".")[2], make, Path(file).parent if file else None)


def _with_mutant(good: Source, name: str) -> Source:
    mutants = importlib.import_module("kat.verify.mutants").MUTANTS
    for mutant in mutants:
        if mutant.id == name:
            return replace(good, spec=f"{good.spec} with {name}", make=mutant.plant(good.make))
    raise UsageError(f"{good.spec} with {name}: no such mutant; docs/mutants.md names them all")


def _import(name: str, spec: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _import_file(Path(name))
        if "" not in sys.path:
            sys.path.insert(0, "")  # a module in the folder where the user stands
        return importlib.import_module(name)
    except FileNotFoundError:
        raise UsageError(f"{spec}: no file {name}") from None
    except ModuleNotFoundError as error:
        missing = error.name or name
        hint = "is it on the path?" if name.startswith(missing) else "which the adapter imports: install it"
        raise UsageError(f"{spec}: no module {missing!r}; {hint}") from None
    except Exception as error:  # whatever the adapter's own code does at import is the outcome
        raise UsageError(f"{spec}: importing it raises {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that a second process finds what it pickles
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module
