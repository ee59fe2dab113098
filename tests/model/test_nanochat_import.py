"""A nanochat folder of October 2025, made here in its exact layout, and read without running anything in it."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

from kat.errors import EvidenceError, UsageError
from kat.model.checkpoint import load_checkpoint
from kat.model.nanochat import import_nanochat
from kat.tokenizer.special import SPECIAL_TOKENS, SPLIT_PATTERN
from tests.model.helpers import random_ids, tiny_tokenizer

CONFIG = {"sequence_len": 48, "vocab_size": 300, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32}


def state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """The names and shapes of nanochat's GPT at its commit dfc88334 (2025-10-31), as torch.compile prefixes them."""
    wide, kv, hidden = CONFIG["n_embd"], CONFIG["n_embd"] // 2, 4 * CONFIG["n_embd"]
    shapes = {"transformer.wte.weight": (300, wide)}
    for layer in range(CONFIG["n_layer"]):
        block = f"transformer.h.{layer}"
        shapes |= {
            f"{block}.attn.c_q.weight": (wide, wide),
            f"{block}.attn.c_k.weight": (kv, wide),
            f"{block}.attn.c_v.weight": (kv, wide),
            f"{block}.attn.c_proj.weight": (wide, wide),
            f"{block}.mlp.c_fc.weight": (hidden, wide),
            f"{block}.mlp.c_proj.weight": (wide, hidden),
        }
    shapes["lm_head.weight"] = (300, wide)
    generator = torch.Generator().manual_seed(seed)
    weights = {f"_orig_mod.{name}": torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    weights["_orig_mod.transformer.wte.weight"] = weights["_orig_mod.transformer.wte.weight"].bfloat16()
    return weights


def tokenizer_pickle(path: Path) -> None:
    ranks = tiny_tokenizer().ranks
    special = {token: len(ranks) + i for i, token in enumerate(SPECIAL_TOKENS)}
    encoding = tiktoken.Encoding("rustbpe", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(encoding))


def make(folder: Path, *, config: dict | None = None, state: object = None, step: int = 650) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict() if state is None else state, folder / f"model_{step:06d}.pt")
    meta = {"step": step, "val_bpb": 0.81, "model_config": config or CONFIG, "user_config": {"depth": 2}}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta, indent=2))
    tokenizer_pickle(folder / "tokenizer" / "tokenizer.pkl")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("nanochat") / "d2")


def independent_logits(state: dict[str, torch.Tensor], ids: torch.Tensor, table: torch.dtype) -> np.ndarray:
    """The architecture from its description, in NumPy float64, one token and head at a time."""
    weights = {name.removeprefix("_orig_mod."): t.double().numpy() for name, t in state.items()}
    n_head, n_kv, dim = CONFIG["n_head"], CONFIG["n_kv_head"], CONFIG["n_embd"] // CONFIG["n_head"]

    def norm(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1.1920929e-7)

    def rotated(x: np.ndarray, t: int) -> np.ndarray:
        frequency = (1.0 / (10_000.0 ** (torch.arange(0, dim, 2).float() / dim))) * t
        cos = frequency.cos().to(table).double().numpy()
        sin = frequency.sin().to(table).double().numpy()
        a, b = x[: dim // 2], x[dim // 2 :]
        return np.concatenate((a * cos + b * sin, b * cos - a * sin))

    out = []
    for row in ids.tolist():
        x = norm(weights["transformer.wte.weight"][row])
        for layer in range(CONFIG["n_layer"]):
            w = {n.split(".", 3)[3]: v for n, v in weights.items() if n.startswith(f"transformer.h.{layer}.")}
            h = norm(x)
            q, k, v = (h @ w[f"attn.c_{part}.weight"].T for part in "qkv")
            y = np.zeros_like(x)
            for head in range(n_head):
                own, shared = slice(head * dim, (head + 1) * dim), head // (n_head // n_kv)
                group = slice(shared * dim, (shared + 1) * dim)
                queries = np.stack([norm(rotated(q[t, own], t)) for t in range(len(row))])
                keys = np.stack([norm(rotated(k[t, group], t)) for t in range(len(row))])
                scores = queries @ keys.T / np.sqrt(dim)
                scores[np.triu_indices(len(row), 1)] = -np.inf
                share = np.exp(scores - scores.max(-1, keepdims=True))
                y[:, own] = (share / share.sum(-1, keepdims=True)) @ v[:, group]
            x = x + y @ w["attn.c_proj.weight"].T
            x = x + np.maximum(norm(x) @ w["mlp.c_fc.weight"].T, 0) ** 2 @ w["mlp.c_proj.weight"].T
        out.append(15 * np.tanh(norm(x) @ weights["lm_head.weight"].T / 15))
    return np.stack(out)


def test_logits_are_those_of_nanochat_and_differ_from_transformers_as_recorded(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    record = import_nanochat(folder, tmp_path / "out")
    loaded = load_checkpoint(tmp_path / "out")
    ids = random_ids(2, 30, vocab=300)
    with torch.no_grad():
        ours = loaded.model(ids)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    np.testing.assert_allclose(ours, independent_logits(state_dict(), ids, torch.bfloat16), atol=1e-4)
    np.testing.assert_allclose(theirs, independent_logits(state_dict(), ids, torch.float32), atol=1e-4)
    recorded = record["max_logit_difference_to_float32_tables"]
    assert 1e-3 < recorded < 0.5
    assert 1e-3 < (ours - theirs).abs().max().item() < 3 * recorded
    assert loaded.meta["import"] == record
    assert loaded.meta["stage"] == "imported"
    assert loaded.meta["step"] == record["step"] == 650


def test_weights_are_the_files_in_float32(folder: Path, tmp_path: Path) -> None:
    import_nanochat(folder, tmp_path / "out")
    weights = load_checkpoint(tmp_path / "out").model.state_dict()
    original = state_dict()
    assert weights["model.embed_tokens.weight"].equal(original["_orig_mod.transformer.wte.weight"].float())
    assert weights["model.layers.1.self_attn.k_proj.weight"].equal(
        original["_orig_mod.transformer.h.1.attn.c_k.weight"]
    )
    assert weights["model.layers.0.self_attn.o_proj.weight"].equal(
        original["_orig_mod.transformer.h.0.attn.c_proj.weight"]
    )
    assert weights["model.layers.0.mlp.fc2.weight"].equal(original["_orig_mod.transformer.h.0.mlp.c_proj.weight"])
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert sum(t.numel() for t in weights.values()) == sum(t.numel() for t in original.values())


def test_the_tokenizer_is_the_pickled_one(folder: Path, tmp_path: Path) -> None:
    import_nanochat(folder, tmp_path / "out")
    assert load_checkpoint(tmp_path / "out").tokenizer.ranks == tiny_tokenizer().ranks


def test_a_state_dict_without_the_prefix_and_with_a_flat_tokenizer_is_read_too(tmp_path: Path) -> None:
    plain = {name.removeprefix("_orig_mod."): tensor for name, tensor in state_dict().items()}
    source = make(tmp_path / "flat", state=plain)
    (source / "tokenizer" / "tokenizer.pkl").rename(source / "tokenizer.pkl")
    import_nanochat(source, tmp_path / "out")
    assert load_checkpoint(tmp_path / "out").model.config.n_layer == 2


def test_importing_again_changes_nothing_and_nothing_else_is_overwritten(folder: Path, tmp_path: Path) -> None:
    record = import_nanochat(folder, tmp_path / "out")
    before = (tmp_path / "out" / "kat.json").read_bytes()
    assert import_nanochat(folder, tmp_path / "out") == record
    other = make(tmp_path / "other", state=state_dict(1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    for out in (tmp_path / "out", tmp_path / "mine", other):
        with pytest.raises(UsageError, match="exists and is not this import"):
            import_nanochat(other, out)
    assert (tmp_path / "out" / "kat.json").read_bytes() == before
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"
    assert (other / "model_000650.pt").is_file()


def test_nanochats_own_layout_is_found(tmp_path: Path) -> None:
    source = make(tmp_path / "base" / "chatsft_checkpoints" / "d2")
    (source / "tokenizer").rename(tmp_path / "base" / "tokenizer")
    record = import_nanochat(source, tmp_path / "out")
    assert record["weights_sha256"] == hashlib.sha256((source / "model_000650.pt").read_bytes()).hexdigest()


def test_the_last_step_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    source = make(make(tmp_path / "two", step=9), step=1000, state=state_dict(1))
    assert import_nanochat(source, tmp_path / "last")["step"] == 1000
    assert import_nanochat(source, tmp_path / "first", step=9)["step"] == 9
    with pytest.raises(UsageError, match=r"no model_000007\.pt; steps there: 9, 1000"):
        import_nanochat(source, tmp_path / "none", step=7)


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_nothing_in_a_malicious_file_runs(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    weights = make(tmp_path / "weights", state={**state_dict(), "x": Malice(mark)})
    with pytest.raises(UsageError, match=r"model_000650\.pt: not a plain PyTorch state dict"):
        import_nanochat(weights, tmp_path / "out")
    tokens = make(tmp_path / "tokens")
    (tokens / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(Malice(mark)))
    with pytest.raises(UsageError, match=r"tokenizer\.pkl: refused"):
        import_nanochat(tokens, tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


WRONG = [
    ({"state": {**state_dict(), "transformer.resid_lambdas": torch.ones(2)}}, "unknown tensor 'transformer.resid"),
    ({"state": {**state_dict(), "lm_head.weight": torch.zeros(300, 32)}}, "two tensors for lm_head.weight"),
    ({"state": {**state_dict(), "step": 3}}, "more than named tensors"),
    ({"state": [1, 2]}, "more than named tensors"),
    ({"config": {**CONFIG, "window_pattern": "SSSL"}}, "'window_pattern': a later nanochat"),
    ({"config": {key: value for key, value in CONFIG.items() if key != "n_head"}}, "no model_config with"),
    ({"config": {**CONFIG, "n_layer": "2"}}, "n_layer '2', not a whole number"),
    ({"config": {**CONFIG, "n_head": 5}}, "n_embd 32 over n_head 5"),
    ({"config": {**CONFIG, "vocab_size": 512}}, "the tokenizer has 300 tokens, the model 512"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_what_is_no_nanochat_of_october_2025_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        import_nanochat(make(tmp_path / "in", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path) -> None:
    state = state_dict()
    del state["_orig_mod.transformer.h.1.mlp.c_fc.weight"]
    with pytest.raises(EvidenceError, match=r"model\.layers\.1\.mlp\.fc1\.weight is missing"):
        import_nanochat(make(tmp_path / "a", state=state), tmp_path / "out")
    state = {**state_dict(), "_orig_mod.lm_head.weight": torch.zeros(299, 32)}
    with pytest.raises(EvidenceError, match=r"lm_head\.weight has shape \(299, 32\)"):
        import_nanochat(make(tmp_path / "b", state=state), tmp_path / "out")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        import_nanochat(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no model_<step>\.pt in it"):
        import_nanochat(tmp_path / "empty", tmp_path / "out")
    source = make(tmp_path / "in")
    (source / "tokenizer" / "tokenizer.pkl").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer\.pkl"):
        import_nanochat(source, tmp_path / "out")
    (source / "meta_000650.json").unlink()
    with pytest.raises(UsageError, match=r"meta_000650\.json: missing"):
        import_nanochat(source, tmp_path / "out")
    (source / "model_000650.pt").write_bytes(b"")
    (source / "meta_000650.json").write_text(json.dumps({"model_config": CONFIG}))
    with pytest.raises(UsageError, match=r"model_000650\.pt: not a plain"):
        import_nanochat(source, tmp_path / "out")
