"""A checkpoint is a Hugging Face folder.

transformers' AutoModelForCausalLM and AutoTokenizer load it as it is. kat adds kat.json (what the model is and where it
came from, with the sha256 of every other file) and probe.safetensors (token ids and the logits they gave at save),
which is recomputed at load: weights can load strictly and the model still be wrong.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kat.errors import EvidenceError, UsageError
from kat.model.config import GPTConfig
from kat.model.gpt import GPT
from kat.runs.files import canonical_json, hash_file, new_folder, read_json, write_json
from kat.tokenizer.bpe import Tokenizer

SCHEMA = "kat.checkpoint/1"
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # max abs difference of logits
VERSION_KEYS = ("transformers_version", "_name_or_path")  # of config.json; no part of what the model computes
STATE = "trainer_state"  # what resuming needs; a reader of the model may do without it


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. `meta` is the content of kat.json, `identity` the hash design.md defines."""

    folder: Path
    model: GPT
    tokenizer: Tokenizer
    meta: dict[str, Any]
    identity: str


def save_checkpoint(folder: Path, model: GPT, tokenizer: Tokenizer, meta: Mapping[str, Any]) -> str:
    """Write a checkpoint folder atomically (an existing one is replaced) and return its identity.

    `meta` holds stage, step, metrics, hashes of data and settings, parent, seeds …; it must be JSON.
    """
    with new_folder(folder) as temporary:
        return write_checkpoint(temporary, model, tokenizer, meta)


def write_checkpoint(folder: Path, model: GPT, tokenizer: Tokenizer, meta: Mapping[str, Any]) -> str:
    """Fill an existing folder with a checkpoint; other files that lie in it already enter the manifest."""
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UsageError(
            f"the model has {model.config.vocab_size} token embeddings and the tokenizer {tokenizer.vocab_size} tokens"
        )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    special = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    config = model.config.to_hf(**special, dtype=dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            "do_sample": False,
        },
    )
    tokenizer.save(folder, model_max_length=model.config.sequence_len)
    ids = probe_ids(model.config)
    save_file({"ids": ids, "logits": _probe_logits(model, ids)}, folder / "probe.safetensors")
    identity = identity_of(weights, folder)
    write_json(
        folder / "kat.json",
        {"schema": SCHEMA, **meta, "identity": identity, "files": _manifest(folder)},
    )
    return identity


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Load and check a kat checkpoint: hashes, constants, names and shapes of all tensors, vocabulary, probe.

    Raises UsageError where `folder` is no checkpoint, EvidenceError where it is one that was damaged.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    _verify_files(folder, meta)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise EvidenceError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, config.json says {config.vocab_size}"
        )
    weights = _read_weights(folder / "model.safetensors")
    model = build_model(config, weights, str(folder))
    identity = identity_of(weights, folder)
    if identity != meta["identity"]:
        raise EvidenceError(
            f"{folder}: its content has identity {identity[:12]}, kat.json says {meta['identity'][:12]}"
        )
    _check_probe(folder, model)
    return Checkpoint(folder, model.to(device).eval(), tokenizer, meta, identity)


def read_meta(folder: Path) -> dict[str, Any]:
    """kat.json of a checkpoint folder, or a UsageError that says why there is none."""
    folder = Path(folder)
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder")
    if not (folder / "kat.json").is_file():
        raise UsageError(f"{folder}: not a kat checkpoint (no kat.json in it)")
    meta = read_json(folder / "kat.json")
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else type(meta).__name__
        raise UsageError(f"{folder}/kat.json: schema {found!r}; this kat reads {SCHEMA!r}")
    return meta


def read_config(folder: Path) -> GPTConfig:
    """The model's constants, without its weights."""
    return GPTConfig.from_hf(read_json(folder / "config.json"), f"{folder}/config.json")


def build_model(config: GPTConfig, weights: Mapping[str, Tensor], where: str) -> GPT:
    """A GPT with exactly these weights; a missing, extra or misshapen tensor is named."""
    with torch.device("meta"):
        model = GPT(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights:
            raise EvidenceError(f"{where}: tensor {name} is missing")
        if tuple(weights[name].shape) != shape:
            raise EvidenceError(f"{where}: tensor {name} has shape {tuple(weights[name].shape)}, config wants {shape}")
    if extra := sorted(set(weights) - set(expected)):
        raise EvidenceError(f"{where}: tensor {extra[0]} belongs to no part of the model ({len(extra)} such)")
    model.load_state_dict(dict(weights), strict=True, assign=True)
    return model.requires_grad_(True)


def identity_of(weights: Mapping[str, Tensor], folder: Path) -> str:
    """design.md's identity: one sha256 over sorted tensor names, dtypes, shapes and bytes, tokenizer.json, the chat
    template and config.json without its version keys. `folder` holds the three JSON files."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update((folder / "tokenizer.json").read_bytes() if (folder / "tokenizer.json").is_file() else b"")
    digest.update(chat_template(folder).encode())
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in VERSION_KEYS}
    digest.update(canonical_json(config).encode())
    return digest.hexdigest()


def chat_template(folder: Path) -> str:
    """The chat template of a Hugging Face folder, wherever it is kept; empty where there is none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "tokenizer_config.json").is_file():
        return str(read_json(folder / "tokenizer_config.json").get("chat_template") or "")
    return ""


def probe_ids(config: GPTConfig) -> Tensor:
    """(2, T) token ids that cover the vocabulary evenly and half the context (at most 64 tokens)."""
    length = max(2, min(64, config.sequence_len // 2))
    return (torch.arange(2 * length) * 7919 % config.vocab_size).view(2, length)


@torch.no_grad()
def _probe_logits(model: GPT, ids: Tensor) -> Tensor:
    """Float32 logits (2, V) after the last token of each row."""
    return model.logits(model.hidden(ids.to(model.device))[:, -1]).float().cpu().contiguous()


def _check_probe(folder: Path, model: GPT) -> None:
    probe = _read_weights(folder / "probe.safetensors")
    difference = (_probe_logits(model, probe["ids"]) - probe["logits"]).abs().max().item()
    tolerance = PROBE_TOLERANCE[model.lm_head.weight.dtype]
    if not difference <= tolerance:
        raise EvidenceError(
            f"{folder}: the stored weights give other logits than at save (max difference {difference:.2g}, "
            f"tolerance {tolerance:g}); this kat computes another model"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise EvidenceError(f"{path}: missing") from None
    except SafetensorError as error:
        raise EvidenceError(f"{path}: not a readable safetensors file ({error})") from None


def _manifest(folder: Path) -> dict[str, str]:
    return {name: hash_file(folder / name) for name in _files(folder)}


def _files(folder: Path) -> Iterable[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != "kat.json")


def _verify_files(folder: Path, meta: Mapping[str, Any]) -> None:
    for name, expected in meta["files"].items():
        if name.startswith(f"{STATE}/"):
            continue  # the trainer checks it when it resumes
        path = folder / name
        if not path.is_file():
            raise EvidenceError(f"{path}: missing; kat.json lists it")
        if hash_file(path) != expected:
            raise EvidenceError(f"{path}: damaged or edited (its sha256 is not the one in kat.json)")
