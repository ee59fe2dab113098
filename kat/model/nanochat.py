"""Import of a nanochat checkpoint of October 2025: `model_000650.pt`, `meta_000650.json` and its tokenizer folder."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kat.errors import UsageError
from kat.model.checkpoint import build_model, probe_ids, read_meta, save_checkpoint
from kat.model.config import GPTConfig
from kat.model.gpt import GPT
from kat.runs.files import hash_file, read_json
from kat.runs.provenance import new_run_id, now, versions
from kat.tokenizer.bpe import Tokenizer
from kat.tokenizer.legacy import read_nanochat_pickle

# nanochat's name of each weight -> transformers' (and kat's); no transposes.
NAMES = (
    (r"transformer\.wte\.weight", r"model.embed_tokens.weight"),
    (r"transformer\.h\.(\d+)\.attn\.c_([qkv])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"transformer\.h\.(\d+)\.attn\.c_proj\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (r"transformer\.h\.(\d+)\.mlp\.c_fc\.weight", r"model.layers.\1.mlp.fc1.weight"),
    (r"transformer\.h\.(\d+)\.mlp\.c_proj\.weight", r"model.layers.\1.mlp.fc2.weight"),
    (r"lm_head\.weight", r"lm_head.weight"),
)
CONFIG_KEYS = {"sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"}


def import_nanochat(folder: Path, out: Path, step: int | None = None) -> dict[str, Any]:
    """Write a kat checkpoint at `out` from a nanochat folder; return kat.json's `import` section.

    Weights in bfloat16 become float32. nanochat keeps its rotary tables in bfloat16 even on a CPU; so does the
    imported model, and the difference to float32 tables (transformers') on the probe is recorded. Running it again
    changes nothing.
    """
    weights_path, meta_path = _find(folder, step)
    digest = hash_file(weights_path)
    if out.exists():
        record = read_meta(out).get("import") if (out / "kat.json").is_file() else None
        if not record or record["weights_sha256"] != digest:
            raise UsageError(f"{out}: exists and is not this import; choose another --out or remove it")
        return record
    meta = read_json(meta_path)
    config = _config(meta, meta_path)
    val_bpb = meta.get("val_bpb")
    if isinstance(val_bpb, float) and not math.isfinite(val_bpb):
        val_bpb = None
    weights = _rename(_read(weights_path), weights_path)
    tokenizer = _tokenizer(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise UsageError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}; not a pair"
        )
    model = build_model(config, weights, str(weights_path))
    record = {
        "from": "nanochat (October 2025)",
        "weights_sha256": digest,
        "step": meta.get("step"),
        "val_bpb": val_bpb,
        "max_logit_difference_to_float32_tables": _table_difference(model, weights),
    }
    save_checkpoint(
        out,
        model,
        tokenizer,
        {
            "stage": "imported",
            "step": meta.get("step"),
            "metrics": {"val_bpb": val_bpb},
            "parent": None,
            "import": record,
            "run_id": new_run_id(),
            "created": now(),
            "versions": versions(),
        },
    )
    return record


def _find(folder: Path, step: int | None) -> tuple[Path, Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    steps = sorted(int(m[1]) for p in folder.glob("model_*.pt") if (m := re.fullmatch(r"model_(\d+)\.pt", p.name)))
    if not steps:
        raise UsageError(f"{folder}: no model_<step>.pt in it; give the folder of a nanochat checkpoint")
    if step is not None and step not in steps:
        raise UsageError(f"{folder}: no model_{step:06d}.pt; steps there: {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    meta = folder / f"meta_{chosen:06d}.json"
    if not meta.is_file():
        raise UsageError(f"{meta}: missing beside model_{chosen:06d}.pt")
    return folder / f"model_{chosen:06d}.pt", meta


def _config(meta: dict[str, Any], where: Path) -> GPTConfig:
    stated = meta.get("model_config") if isinstance(meta, dict) else None
    if not isinstance(stated, dict) or not set(stated) >= CONFIG_KEYS:
        raise UsageError(f"{where}: no model_config with {', '.join(sorted(CONFIG_KEYS))}")
    if extra := sorted(set(stated) - CONFIG_KEYS):
        raise UsageError(f"{where}: model_config has {extra[0]!r}: a later nanochat, whose architecture is another one")
    if wrong := [key for key, value in stated.items() if not isinstance(value, int)]:
        raise UsageError(f"{where}: model_config has {wrong[0]} {stated[wrong[0]]!r}, not a whole number")
    return GPTConfig(**stated, rope_table_dtype="bfloat16")


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict, by torch's restricted loader: tensors and plain containers, nothing executable."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (torch raises many types; each means: no plain state dict)
        raise UsageError(
            f"{path}: not a plain PyTorch state dict ({type(error).__name__}); nothing in it was run"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UsageError(f"{path}: holds more than named tensors; not a nanochat checkpoint")
    return state


def _rename(state: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    weights = {}
    for key, tensor in state.items():
        plain = key.removeprefix("_orig_mod.")  # torch.compile's prefix
        for pattern, replacement in NAMES:
            name, count = re.subn(f"^{pattern}$", replacement, plain)
            if count:
                break
        else:
            raise UsageError(f"{where}: unknown tensor {key!r}: not nanochat's architecture of October 2025")
        if name in weights:
            raise UsageError(f"{where}: two tensors for {name}, with and without the prefix _orig_mod.")
        weights[name] = tensor.float()
    return weights


def _tokenizer(folder: Path) -> Tokenizer:
    # Beside the weights; or where nanochat itself has it, two folders above (<base>/chatsft_checkpoints/d20).
    for place in (folder / "tokenizer", folder, folder.absolute().parent.parent / "tokenizer"):
        if (place / "tokenizer.pkl").is_file():
            return Tokenizer.from_ranks(read_nanochat_pickle(place / "tokenizer.pkl"))
    raise UsageError(f"{folder}: no tokenizer.pkl in it, in its tokenizer/, or in nanochat's own ../../tokenizer/")


@torch.no_grad()
def _table_difference(model: GPT, weights: dict[str, Tensor]) -> float:
    exact = build_model(replace(model.config, rope_table_dtype="float32"), weights, "float32 tables")
    ids = probe_ids(model.config)
    return float((model(ids) - exact(ids)).abs().max())
