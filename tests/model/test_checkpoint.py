"""The checkpoint folder: round trip, transformers as the other reader, damage, atomic writing, identity."""

import json
import os
import resource
import shutil
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kat.errors import EvidenceError, UsageError
from kat.model import checkpoint as ck
from kat.model.checkpoint import build_model, load_checkpoint, save_checkpoint
from kat.model.config import GPTConfig
from kat.model.decoding import Sampling, generate
from kat.model.gpt import GPT
from kat.runs.files import hash_file, hash_json
from kat.tokenizer.chat import render_conversation, render_for_completion
from kat.tokenizer.special import SPECIAL_TOKENS
from tests.model.helpers import random_ids, random_model, tiny_tokenizer

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "kato ri\n\nméßu 漢 12?"},
    {"role": "assistant", "content": "lone\n"},
    {"role": "user", "content": "  so?"},
    {"role": "assistant", "content": "ka"},
]
FILES = (
    "config.json",
    "generation_config.json",
    "kat.json",
    "model.safetensors",
    "probe.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
META = {"stage": "sft", "step": 7, "metrics": {"loss": 1.5, "lr": 0.25}, "note": "ß ☃"}


def small_model(vocab: int = 300, **overrides) -> GPT:
    return random_model(**{"vocab_size": vocab, "n_layer": 2, "n_embd": 24, "n_head": 4, **overrides})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "one"
    save_checkpoint(folder, small_model(), tiny_tokenizer(), META)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


# Round trip

configs = st.builds(
    lambda head, kv, dim, **rest: GPTConfig(300, n_head=head * kv, n_kv_head=kv, n_embd=head * kv * dim, **rest),
    st.integers(2, 3),
    st.integers(1, 2),
    st.sampled_from([2, 4]),
    sequence_len=st.integers(2, 80),
    n_layer=st.integers(1, 3),
    rope_base=st.floats(2.0, 1e6),
    rope_table_dtype=st.just("bfloat16"),
    norm_eps=st.floats(1e-8, 1e-3),
    softcap=st.floats(0.5, 50.0),
)


@given(configs, st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**31))
@settings(deadline=None, max_examples=12)
def test_round_trip_with_every_field_off_its_default(tmp_path_factory, config, dtype, seed) -> None:
    defaults = GPTConfig(vocab_size=1)
    assume(all(getattr(config, field.name) != getattr(defaults, field.name) for field in fields(GPTConfig)))
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    model.to(dtype)
    folder = tmp_path_factory.mktemp("round") / "trip"
    identity = save_checkpoint(folder, model, tiny_tokenizer(), META)
    loaded = load_checkpoint(folder)
    assert loaded.model.config == config
    assert loaded.identity == identity == loaded.meta["identity"]
    assert {key: loaded.meta[key] for key in META} == META
    assert loaded.tokenizer.hash == tiny_tokenizer().hash
    for (name, a), (other, b) in zip(model.state_dict().items(), loaded.model.state_dict().items(), strict=True):
        assert name == other
        assert a.dtype == b.dtype == dtype
        assert a.view(torch.uint8).equal(b.view(torch.uint8)), name
    ids = random_ids(2, 9, vocab=300)
    with torch.no_grad():
        assert model(ids).equal(loaded.model(ids))


def test_a_loaded_model_can_be_trained(saved: Path) -> None:
    model = load_checkpoint(saved).model
    ids = random_ids(2, 6, vocab=300)
    model(ids, ids).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_files_can_be_read_by_others(saved: Path) -> None:
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in saved.iterdir()} == dict.fromkeys(FILES, "0o644")


# transformers reads the folder as it is


@pytest.fixture(scope="module")
def theirs(saved: Path):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(saved, local_files_only=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(saved, local_files_only=True)


def test_transformers_gives_the_same_logits(saved: Path, theirs) -> None:
    ids = random_ids(3, 40, vocab=300)
    with torch.no_grad():
        difference = (load_checkpoint(saved).model(ids) - theirs[0](ids).logits).abs().max().item()
    assert difference <= 1e-6
    assert type(theirs[0]).__name__ == "NanoChatForCausalLM"


def test_transformers_gives_the_same_64_greedy_tokens(saved: Path, theirs) -> None:
    loaded = load_checkpoint(saved)
    prompts = random_ids(3, 10, seed=3, vocab=280)
    for ids in prompts:
        output = theirs[0].generate(ids[None], attention_mask=torch.ones(1, 10), max_new_tokens=64)[0, 10:].tolist()
        ((row,),) = generate(
            loaded.model,
            [ids.tolist()],
            Sampling(max_new_tokens=64),
            stop_ids=[loaded.tokenizer.eos_id],
            pad_id=loaded.tokenizer.pad_id,
            seeds=[0],
        )
        assert list(row.ids) == output


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(deadline=None, max_examples=60)
def test_transformers_gives_the_same_ids(theirs, text: str) -> None:
    assume(not any(special in text for special in SPECIAL_TOKENS))  # where they differ by design
    assert theirs[1](text, add_special_tokens=False)["input_ids"] == tiny_tokenizer().encode(text)


def test_the_chat_template_gives_the_ids_and_masks_of_training(theirs) -> None:
    tokenizer = tiny_tokenizer()
    for talk in (TALK, TALK[1:3], TALK[:3]):
        out = theirs[1].apply_chat_template(
            talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
        )
        assert (out["input_ids"], out["assistant_masks"]) == render_conversation(tokenizer, talk)
    asked = theirs[1].apply_chat_template(TALK[:4], tokenize=True, add_generation_prompt=True, return_dict=True)
    assert asked["input_ids"] == render_for_completion(tokenizer, TALK[:4])


def test_transformers_stops_and_pads_where_kat_does(theirs) -> None:
    tokenizer = tiny_tokenizer()
    assert theirs[0].generation_config.eos_token_id == tokenizer.eos_id == theirs[1].eos_token_id
    assert theirs[0].generation_config.pad_token_id == tokenizer.pad_id == theirs[1].pad_token_id
    assert theirs[1].model_max_length == 48


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.33, 0.5, 0.66, 0.97])
def test_a_flipped_byte_anywhere_is_found(copy: Path, name: str, place: float) -> None:
    path = copy / name
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    while chr(data[at]).isspace():  # JSON with other blanks says the same
        at -= 1
    data[at] ^= 0x01
    path.write_bytes(data)
    with pytest.raises(EvidenceError, match=name):
        load_checkpoint(copy)


@pytest.mark.parametrize("name", [name for name in FILES if name != "kat.json"])
def test_a_missing_file_is_found(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(EvidenceError, match=f"{name}: missing"):
        load_checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_found(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EvidenceError, match=r"model\.safetensors"):
        load_checkpoint(copy)


def seal(folder: Path, **changes: object) -> None:
    """Make kat.json fit whatever now lies in the folder: what an attacker, or a well-meaning script, would do."""
    meta = json.loads((folder / "kat.json").read_text())
    meta["files"] = {name: hash_file(folder / name) for name in meta["files"]}
    meta |= changes
    del meta["sha256"]
    (folder / "kat.json").write_text(json.dumps({**meta, "sha256": hash_json(meta)}))


def identity(folder: Path) -> str:
    return ck.identity_of(load_file(folder / "model.safetensors"), folder)


def change_tensors(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "model.layers.1.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(NAME), f"{NAME} is missing"),
        (lambda w: w.update({"model.norm.weight": torch.ones(3)}), r"model\.norm\.weight belongs to no part"),
        (lambda w: w.update({NAME: w[NAME].t().contiguous()}), rf"{NAME} has shape \(24, 96\)"),
        (lambda w: w.update({NAME: w[NAME] + 1e-6}), "identity"),
    ],
)
def test_other_tensors_under_a_new_manifest_are_named(copy: Path, change, message: str) -> None:
    change_tensors(copy, change)
    seal(copy)
    with pytest.raises(EvidenceError, match=message):
        load_checkpoint(copy)


def change_config(folder: Path, *path: str, to: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    table = config
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = to
    (folder / "config.json").write_text(json.dumps(config))


CONSTANTS = [
    (("rope_parameters", "rope_theta"), 100_000.0),
    (("final_logit_softcapping",), 30.0),
    (("rms_norm_eps",), 1e-6),
    (("kat_constants", "qk_scale"), 1.2),
    (("kat_constants", "rope_sign"), 1),
    (("kat_constants", "softcap_order"), "after_float32"),
    (("kat_constants", "rope_table_dtype"), "bfloat16"),
    (("max_position_embeddings",), 64),
    (("num_attention_heads",), 2),
    (("hidden_act",), "gelu"),
    (("vocab_size",), 301),
    (("num_hidden_layers",), "2"),
    (("rope_parameters",), []),
]


@pytest.mark.parametrize(("path", "value"), CONSTANTS, ids=[path[-1] for path, _ in CONSTANTS])
def test_another_constant_under_a_new_manifest_is_found(copy: Path, path: tuple[str, ...], value: object) -> None:
    change_config(copy, *path, to=value)
    seal(copy)
    with pytest.raises(EvidenceError):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("rope_parameters", "rope_theta"), 100_000.0), (("final_logit_softcapping",), 30.0), (("rms_norm_eps",), 0.1)],
)
def test_the_probe_finds_another_model_even_where_all_hashes_fit(copy: Path, path, value) -> None:
    change_config(copy, *path, to=value)
    seal(copy, identity=identity(copy))
    with pytest.raises(EvidenceError, match="give other logits than at save"):
        load_checkpoint(copy)


@pytest.mark.parametrize("probe", [{}, {"ids": torch.tensor([[1, 2]])}, {"ids": torch.tensor([[999]])}])
def test_a_probe_that_does_not_fit_is_found(copy: Path, probe: dict) -> None:
    logits = {"logits": torch.zeros(1, 300)} if probe.get("ids", torch.zeros(0)).numel() == 1 else {}
    save_file({**probe, **logits, "x": torch.zeros(1)}, copy / "probe.safetensors")
    seal(copy)
    with pytest.raises(EvidenceError, match="does not fit the model"):
        load_checkpoint(copy)


def test_another_vocabulary_is_found(copy: Path) -> None:
    tiny_tokenizer(310).save(copy, model_max_length=48)
    seal(copy)
    with pytest.raises(EvidenceError, match=r"310 tokens, config\.json says 300"):
        load_checkpoint(copy)
    (copy / "tokenizer.json").write_text("{}")
    seal(copy)
    with pytest.raises(EvidenceError, match=r"tokenizer\.json"):
        load_checkpoint(copy)


def test_what_is_no_checkpoint_is_a_usage_error(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="not a kat checkpoint"):
        load_checkpoint(tmp_path)
    newer = Path(shutil.copytree(saved, tmp_path / "newer"))
    seal(newer, schema="kat.checkpoint/9")
    with pytest.raises(UsageError, match=r"kat\.checkpoint/9.*this kat reads"):
        load_checkpoint(newer)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"schema": "kat.checkpoint/1"}', "\0\0"])
def test_a_kat_json_that_is_none_is_evidence_of_damage(copy: Path, content: str) -> None:
    (copy / "kat.json").write_text(content)
    with pytest.raises(EvidenceError, match=r"kat\.json"):
        load_checkpoint(copy)


def test_the_trainer_state_may_be_left_out(tmp_path: Path) -> None:
    with ck.new_folder(tmp_path / "c") as folder:
        (folder / "trainer_state").mkdir()
        (folder / "trainer_state" / "state.json").write_text("{}")
        ck.write_checkpoint(folder, small_model(), tiny_tokenizer(), META)
    shutil.rmtree(tmp_path / "c" / "trainer_state")
    assert load_checkpoint(tmp_path / "c").meta["stage"] == META["stage"]


# What cannot be saved


def test_a_pair_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="97 token embeddings and the tokenizer 300"):
        save_checkpoint(tmp_path / "c", random_model(), tiny_tokenizer(), META)
    mixed = small_model()
    mixed.lm_head.bfloat16()
    for model, found in ((mixed, "bfloat16, float32"), (small_model().double(), "float64")):
        with pytest.raises(UsageError, match=found):
            save_checkpoint(tmp_path / "c", model, tiny_tokenizer(), META)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(UsageError, match="exists and is no kat checkpoint"):
        save_checkpoint(tmp_path, small_model(), tiny_tokenizer(), META)
    assert (tmp_path / "diary.txt").read_text() == "dear"


# Atomic


@contextmanager
def small_files_only(size: int):
    """Writing beyond `size` bytes of any file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [2_000, 100])
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing_and_the_old_folder_whole(tmp_path: Path, size: int, there: bool) -> None:
    folder = tmp_path / "c"
    before = save_checkpoint(folder, small_model(seed=1), tiny_tokenizer(), META) if there else None
    with small_files_only(size), pytest.raises(OSError, match="File too large") as error:
        save_checkpoint(folder, small_model(), tiny_tokenizer(), META)
    assert error.value.filename
    assert error.value.strerror
    if there:
        assert load_checkpoint(folder).identity == before
    assert [path.name for path in tmp_path.iterdir()] == (["c"] if there else [])


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("step", ["write_json", "save_tensors", "identity_of", "_manifest"])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch, step: str, there: bool) -> None:
    folder = tmp_path / "c"
    before = save_checkpoint(folder, small_model(), tiny_tokenizer(), META) if there else None

    def fail(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ck, step, fail)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, small_model(seed=1), tiny_tokenizer(), META)
    assert [path.name for path in tmp_path.iterdir()] == (["c"] if there else [])
    if there:
        assert load_checkpoint(folder).identity == before


def test_replacing_leaves_one_complete_folder(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    first = save_checkpoint(folder, small_model(), tiny_tokenizer(), META)
    (folder / "stray").write_text("of the old one")
    second = save_checkpoint(folder, small_model(seed=1), tiny_tokenizer(), META)
    assert first != second == load_checkpoint(folder).identity
    assert os.listdir(tmp_path) == ["c"]
    assert not (folder / "stray").exists()


# Identity


def test_identity_changes_with_any_part_and_with_nothing_else(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    original = ck.identity_of(weights, copy)
    seen = {original}

    def changed(to: dict) -> None:
        found = ck.identity_of(to, copy)
        assert found not in seen
        seen.add(found)

    for name in weights:
        other = weights[name].clone()
        other.view(torch.uint8).view(-1)[-1] ^= 1
        changed({**weights, name: other})
    changed({**weights, NAME: weights[NAME].bfloat16()})
    changed({**weights, NAME: weights[NAME].view(torch.int32)})
    changed({**weights, NAME: weights[NAME].reshape(24, 96)})
    changed({("x" if name == NAME else name): tensor for name, tensor in weights.items()})
    changed({name: tensor for name, tensor in weights.items() if name != NAME})
    assert ck.identity_of(dict(reversed(weights.items())), copy) == original

    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace("nanochat", "nanochut").replace("assistant", "asistant"))
        changed(weights)
        (copy / name).write_text(text)

    config = json.loads((copy / "config.json").read_text())
    more = {**config, "transformers_version": "9.9", "_name_or_path": "/elsewhere"}
    (copy / "config.json").write_text(json.dumps(dict(reversed(more.items()))))
    (copy / "generation_config.json").write_text("{}")
    assert ck.identity_of(weights, copy) == original


def test_identity_survives_transformers_saving_it_again(saved: Path, theirs, tmp_path: Path) -> None:
    theirs[0].save_pretrained(tmp_path)
    again = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(saved / "model.safetensors").items():
        assert torch.equal(tensor, again[name])


def test_a_chat_template_counts_wherever_it_is_kept(copy: Path) -> None:
    template = ck.chat_template(copy)
    assert "<|assistant_start|>" in template
    config = json.loads((copy / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    assert ck.chat_template(copy) == ""
    (copy / "chat_template.jinja").write_text(template)
    assert ck.chat_template(copy) == template


def test_build_model_names_what_is_wrong() -> None:
    model = small_model()
    weights = dict(model.state_dict())
    with pytest.raises(EvidenceError, match=r"here: tensor lm_head\.weight has shape \(300, 24\), config wants"):
        build_model(
            replace(model.config, vocab_size=301, n_embd=24),
            {**weights, "model.embed_tokens.weight": torch.zeros(301, 24)},
            "here",
        )
