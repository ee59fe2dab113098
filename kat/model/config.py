"""Every constant of the model, and its spelling in a Hugging Face config.json (model_type ``nanochat``)."""

import math
from dataclasses import dataclass, fields
from typing import Any

from kat.errors import EvidenceError, UsageError

# Constants that kat's forward pass hard-codes. They stand in config.json so that a checkpoint made with another value
# is refused instead of loaded and wrong (nanochat changed two of them between October 2025 and July 2026).
FIXED = {
    "rope_sign": -1,  # q, k are rotated by -theta
    "qk_scale": 1.0,  # multiplies q and k after QK-norm
    "qk_norm": "after_rope",
    "softcap_order": "before_float32",
    "embedding_norm": True,
}
TABLE_DTYPES = ("float32", "bfloat16")
VERSION_KEYS = ("transformers_version", "_name_or_path")  # of config.json; no part of what the model computes


@dataclass(frozen=True)
class GPTConfig:
    """nanochat's architecture of October 2025.

    `rope_table_dtype` is float32 except for imported nanochat checkpoints, whose tables were bfloat16 even on a CPU.
    `norm_eps` is what ``F.rms_norm`` uses for float32 when it is given none.
    """

    vocab_size: int
    sequence_len: int = 1024
    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 6
    n_kv_head: int = 6
    rope_base: float = 10_000.0
    rope_table_dtype: str = "float32"
    norm_eps: float = 1.1920929e-7
    softcap: float = 15.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "sequence_len", "n_layer", "n_embd", "n_head", "n_kv_head"):
            if getattr(self, name) < 1:
                raise UsageError(f"model: {name} is {getattr(self, name)}; it must be at least 1")
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 2:
            raise UsageError(
                f"model: n_embd {self.n_embd} over n_head {self.n_head} must be an even whole number of channels a head"
            )
        if self.n_kv_head > self.n_head or self.n_head % self.n_kv_head:
            raise UsageError(f"model: n_head {self.n_head} is no multiple of n_kv_head {self.n_kv_head}")
        if self.rope_table_dtype not in TABLE_DTYPES:
            raise UsageError(f"model: rope_table_dtype {self.rope_table_dtype!r} is none of {TABLE_DTYPES}")
        for name in ("rope_base", "norm_eps", "softcap"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"model: {name} is {getattr(self, name)}; it must be positive and finite")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.n_embd // self.n_head

    def parameter_count(self) -> int:
        """Number of weights: two embeddings and, a layer, q, k, v, o and the two matrices of the MLP."""
        attention = 2 * self.n_embd**2 + 2 * self.n_embd * self.n_kv_head * self.head_dim
        return 2 * self.vocab_size * self.n_embd + self.n_layer * (attention + 8 * self.n_embd**2)

    def training_bytes(self, tokens: int) -> int:
        """About how much memory a training pass over so many tokens takes at the least, in float32: weights, gradients
        and moments, and what each block keeps for its backward pass."""
        kept = self.n_layer * 20 * self.n_embd + 4 * self.n_embd  # activations a token
        return 4 * (4 * self.parameter_count() + kept * tokens)

    def flops_per_token(self) -> int:
        """Training FLOPs a token, forward and backward (PaLM, arXiv:2204.02311, appendix B)."""
        matmul_weights = self.parameter_count() - self.vocab_size * self.n_embd
        return 6 * matmul_weights + 12 * self.n_layer * self.n_embd * self.sequence_len

    def to_hf(self, *, bos_id: int, eos_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
        """The content of config.json; transformers reads it as a NanoChatConfig."""
        return {
            "architectures": ["NanoChatForCausalLM"],
            "model_type": "nanochat",
            "dtype": dtype,
            "vocab_size": self.vocab_size,
            "hidden_size": self.n_embd,
            "intermediate_size": 4 * self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_kv_head,
            "max_position_embeddings": self.sequence_len,
            "hidden_act": "relu2",
            "attention_dropout": 0.0,
            "attention_bias": False,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_base},
            "final_logit_softcapping": self.softcap,
            "tie_word_embeddings": False,
            "use_cache": True,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
            "pad_token_id": pad_id,
            "kat_constants": {**FIXED, "rope_table_dtype": self.rope_table_dtype},
        }

    @classmethod
    def from_hf(cls, config: Any, where: str) -> "GPTConfig":
        """Read the config.json of a kat checkpoint. Anything that :meth:`to_hf` does not write, and this model does not
        compute, is an :class:`EvidenceError` that names the key."""

        def need(table: Any, key: str, kind: type | tuple[type, ...] = object) -> Any:
            if not isinstance(table, dict) or key not in table:
                raise EvidenceError(f"{where}: {key!r} is missing")
            if not isinstance(table[key], kind):
                raise EvidenceError(f"{where}: {key} is {table[key]!r}, a {type(table[key]).__name__}")
            return table[key]

        def same(table: Any, key: str, value: Any) -> None:
            if need(table, key) != value:
                raise EvidenceError(f"{where}: {key} is {table[key]!r}; kat computes only {value!r}")

        number = (int, float)
        same(config, "model_type", "nanochat")
        same(config, "hidden_act", "relu2")
        same(config, "intermediate_size", 4 * need(config, "hidden_size", int))
        same(config, "attention_bias", False)
        same(config, "tie_word_embeddings", False)
        rope, constants = need(config, "rope_parameters"), need(config, "kat_constants")
        same(rope, "rope_type", "default")
        for key, value in FIXED.items():
            same(constants, key, value)
        try:
            return cls(
                vocab_size=need(config, "vocab_size", int),
                sequence_len=need(config, "max_position_embeddings", int),
                n_layer=need(config, "num_hidden_layers", int),
                n_embd=need(config, "hidden_size", int),
                n_head=need(config, "num_attention_heads", int),
                n_kv_head=need(config, "num_key_value_heads", int),
                rope_base=need(rope, "rope_theta", number),
                rope_table_dtype=need(constants, "rope_table_dtype", str),
                norm_eps=need(config, "rms_norm_eps", number),
                softcap=need(config, "final_logit_softcapping", number),
            )
        except UsageError as error:  # an impossible shape
            raise EvidenceError(f"{where}: {error}") from None


def config_fields() -> tuple[str, ...]:
    """Names of the model settings a user may give (all but the vocabulary, which the tokenizer decides)."""
    return tuple(field.name for field in fields(GPTConfig) if field.name != "vocab_size")
