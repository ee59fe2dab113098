"""A checkpoint is a Hugging Face folder.

transformers' AutoModelForCausalLM and AutoTokenizer load it as it is. kat adds kat.json (what the model is and where it
came from, with the sha256 of every other file and of itself) and probe.safetensors (token ids and the logits they gave
at save), which is recomputed at load: weights can load strictly and the model still be wrong.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kat.errors import EvidenceError, UsageError
from kat.model.config import VERSION_KEYS, GPTConfig
from kat.model.gpt import GPT
from kat.model.tensors import load_tensors, save_tensors
from kat.runs.files import canonical_json, hash_file, hash_json, new_folder, read_json, write_json
from kat.tokenizer.bpe import Tokenizer

SCHEMA = "kat.checkpoint/1"
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # max abs difference of logits
HEAD = "reward_head.safetensors"  # of a reward model: {weight (1, C), bias (1)}
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
    """Write a checkpoint folder atomically and return its identity. An existing checkpoint is replaced; a folder of
    anything else is a UsageError.

    `meta` holds stage, step, metrics, hashes of data and settings, parent, seeds …; it must be JSON.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "kat.json").is_file():
        raise UsageError(f"{folder}: exists and is no kat checkpoint; choose another place")
    with new_folder(folder) as temporary:
        return write_checkpoint(temporary, model, tokenizer, meta)


def write_checkpoint(folder: Path, model: GPT, tokenizer: Tokenizer, meta: Mapping[str, Any]) -> str:
    """Fill an existing folder with a checkpoint; other files that lie in it already enter the manifest."""
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UsageError(
            f"the model has {model.config.vocab_size} token embeddings and the tokenizer {tokenizer.vocab_size} tokens"
        )
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    dtype = _one_dtype(weights)
    special = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    config = model.config.to_hf(**special, dtype=str(dtype).removeprefix("torch."))
    save_tensors(folder / "model.safetensors", weights, metadata={"format": "pt"})
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
    save_tensors(folder / "probe.safetensors", {"ids": ids, "logits": _probe_logits(model, ids)})
    identity = identity_of(weights, folder)
    content = {"schema": SCHEMA, **meta, "identity": identity, "files": _manifest(folder)}
    write_json(folder / "kat.json", {**content, "sha256": hash_json(content)})
    return identity


def _one_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) > 1 or not dtypes <= set(PROBE_TOLERANCE):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UsageError(f"a checkpoint holds float32 or bfloat16 weights, all alike; these are {found}")
    return dtypes.pop()


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Load and check a kat checkpoint: hashes, constants, names and shapes of all tensors, vocabulary, probe.

    Raises UsageError where `folder` is no checkpoint, EvidenceError where it is one that was damaged.
    """
    folder = Path(folder)
    meta = verify_checkpoint(folder)
    config = read_config(folder)
    try:
        tokenizer = Tokenizer.load(folder)
    except UsageError as error:  # kat wrote it: it was changed since
        raise EvidenceError(str(error)) from None
    if tokenizer.vocab_size != config.vocab_size:
        raise EvidenceError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, config.json says {config.vocab_size}"
        )
    weights = load_tensors(folder / "model.safetensors")
    model = build_model(config, weights, str(folder))
    identity = identity_of(weights, folder)
    if identity != meta["identity"]:
        raise EvidenceError(
            f"{folder}: its content has identity {identity[:12]}, kat.json says {meta['identity'][:12]}"
        )
    _check_probe(folder, model)
    return Checkpoint(folder, model.to(device).eval(), tokenizer, meta, identity)


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of kat.json, once every file that it lists has the hash it states. The trainer's state is left out:
    who resumes checks it.

    Raises UsageError where `folder` is no checkpoint, EvidenceError where a file is missing or was changed.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    for name, expected in meta["files"].items():
        path = folder / name
        if name.startswith(f"{STATE}/"):
            continue
        if not path.is_file():
            raise EvidenceError(f"{path}: missing; kat.json lists it")
        if hash_file(path) != expected:
            raise EvidenceError(f"{path}: damaged or edited (its sha256 is not the one in kat.json)")
    return meta


def read_meta(folder: Path) -> dict[str, Any]:
    """kat.json of a checkpoint folder. UsageError where there is none, EvidenceError where it was changed."""
    path = Path(folder) / "kat.json"
    if not path.parent.exists():
        raise UsageError(f"{folder}: no such folder")
    if not path.is_file():
        raise UsageError(f"{folder}: not a kat checkpoint (no kat.json in it)")
    try:
        meta = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise EvidenceError(f"{path}: damaged (no JSON any more)") from None
    if not isinstance(meta, dict) or "sha256" not in meta:
        raise EvidenceError(f"{path}: damaged or from no kat (it has no sha256 of itself)")
    if hash_json({key: value for key, value in meta.items() if key != "sha256"}) != meta["sha256"]:
        raise EvidenceError(f"{path}: damaged or edited (its content has not the sha256 that it states)")
    if meta.get("schema") != SCHEMA:
        raise UsageError(f"{path}: schema {meta.get('schema')!r}; this kat reads {SCHEMA!r}")
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
    """design.md's identity: one sha256 over sorted tensor names, dtypes, shapes and bytes (a reward head's too),
    tokenizer.json, the chat template and config.json without its version keys, each part led by its length. `folder`
    holds the JSON files and perhaps the head."""
    digest = hashlib.sha256()
    if (folder / HEAD).is_file():
        weights = {**weights, **{f"reward_head.{name}": tensor for name, tensor in load_tensors(folder / HEAD).items()}}

    def add(part: bytes | memoryview) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        add(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        add(tensor.reshape(-1).view(torch.uint8).numpy().data)
    add((folder / "tokenizer.json").read_bytes() if (folder / "tokenizer.json").is_file() else b"")
    add(chat_template(folder).encode())
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in VERSION_KEYS}
    add(canonical_json(config).encode())
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
    return model.logits(model.hidden(ids.to(model.device))[:, -1]).float().cpu()


def _check_probe(folder: Path, model: GPT) -> None:
    path = folder / "probe.safetensors"
    probe = load_tensors(path)
    ids, stored = probe.get("ids"), probe.get("logits")
    vocab = model.config.vocab_size
    if ids is None or stored is None or stored.shape != (len(ids), vocab) or not 0 <= ids.min() <= ids.max() < vocab:
        raise EvidenceError(f"{path}: does not fit the model; it was changed after saving")
    difference = (_probe_logits(model, ids) - stored).abs().max().item()
    tolerance = PROBE_TOLERANCE[model.lm_head.weight.dtype]
    if not difference <= tolerance:
        raise EvidenceError(
            f"{folder}: the stored weights give other logits than at save (max difference {difference:.2g}, "
            f"tolerance {tolerance:g}); this kat computes another model"
        )


def _manifest(folder: Path) -> dict[str, str]:
    return {name: hash_file(folder / name) for name in _files(folder)}


def _files(folder: Path) -> Iterable[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != "kat.json")
