"""The two files: what transformers makes of them, and what kat says of damaged or foreign ones."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from token_samples import corpus, texts
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kat.errors import UsageError
from kat.tokenizer.bpe import Tokenizer
from kat.tokenizer.special import SPECIAL_TOKENS


def test_save_writes_two_files_and_load_reads_them(tok: Tokenizer, folder: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    loaded = Tokenizer.load(folder)
    assert (loaded.hash, loaded.ranks, loaded.special) == (tok.hash, tok.ranks, tok.special)
    text = "".join(corpus(3, 4))
    assert loaded.encode(text) == tok.encode(text)
    loaded.save(tmp_path, model_max_length=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_hash_is_that_of_the_file(tok: Tokenizer, folder: Path) -> None:
    assert hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() == tok.hash


@given(texts())
@settings(deadline=None, max_examples=150)
def test_transformers_gives_the_same_ids_without_special_tokens(
    tok: Tokenizer, auto: PreTrainedTokenizerBase, text: str
) -> None:
    assume(not any(token in text for token in SPECIAL_TOKENS))
    assert auto(text)["input_ids"] == tok.encode(text)
    assert auto.decode(tok.encode(text)) == text


def test_transformers_parses_a_typed_special_token_and_kat_does_not(
    tok: Tokenizer, auto: PreTrainedTokenizerBase
) -> None:
    """The one difference, stated so that a change of it is noticed."""
    assert auto("<|user_end|>")["input_ids"] == [tok.special["<|user_end|>"]]
    assert tok.decode(tok.encode("<|user_end|>")) == "<|user_end|>"
    assert tok.special["<|user_end|>"] not in tok.encode("<|user_end|>")


def test_transformers_knows_the_special_tokens_and_the_context(tok: Tokenizer, auto: PreTrainedTokenizerBase) -> None:
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (tok.bos_id, tok.eos_id, tok.pad_id)
    assert len(auto) == tok.vocab_size
    assert auto.model_max_length == 512
    assert auto.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(tok.special.values())
    ids = [tok.bos_id, *tok.encode("a  , b 's"), *tok.special.values()]
    assert auto.decode(ids, skip_special_tokens=True) == "a  , b 's"


def test_transformers_reads_a_checkpoint_folder_alike(tok: Tokenizer, folder: Path, tmp_path: Path) -> None:
    """With a config.json beside it AutoTokenizer asks the model type first."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nanochat", "vocab_size": tok.vocab_size}))
    text = "the water  flows\r\n 2026 — it's 😀"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tok.encode(text)


def test_a_folder_that_transformers_wrote_again_loads(tok: Tokenizer, folder: Path, tmp_path: Path) -> None:
    again = AutoTokenizer.from_pretrained(folder)
    again(["a", "b c d"], padding=True, truncation=True, max_length=2)
    again.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() != (folder / "tokenizer.json").read_bytes()
    assert Tokenizer.load(tmp_path).hash == tok.hash


def change(*keys: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return apply


def swap_ids(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def swap_specials(data: dict[str, Any]) -> None:
    added = data["added_tokens"]
    added[1]["content"], added[2]["content"] = added[2]["content"], added[1]["content"]


def rename_token(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    token = next(token for token, i in vocab.items() if i == 400)
    data["model"]["vocab"] = {("€" if name == token else name): i for name, i in vocab.items()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("model", value=None), "not a tokenizer"),
        (change("model", "type", value="WordPiece"), "model type is 'WordPiece'"),
        (change("model", "vocab", value=[1, 2]), "not a table of tokens and ids"),
        (change("model", "vocab", "a", value=0.5), "not a table of tokens and ids"),
        (change("model", "vocab", "new", value=900), "692 tokens but none with id 691"),
        (change("model", "vocab", "a", value=5), "691 tokens but none with id 97"),
        (rename_token, "token '€' .id 400. is not written in the byte-level alphabet"),
        (change("added_tokens", value=[]), "id 691 is None, expected the special token '<|bos|>'"),
        (swap_specials, "id 692 is '<|user_end|>', expected the special token '<|user_start|>'"),
        (lambda data: data["added_tokens"].append({"id": 700, "content": "<|x|>"}), "10 added tokens"),
        (lambda data: data["added_tokens"][0].update(special=False), "added_tokens is not the one that kat writes"),
        (change("normalizer", value={"type": "NFC"}), "normalizer is not the one"),
        (lambda data: data["pre_tokenizer"]["pretokenizers"].pop(0), "pre_tokenizer is not the one"),
        (change("post_processor", value={"type": "Bert"}), "post_processor is not the one"),
        (change("decoder", value=None), "decoder is not the one"),
        (change("model", "ignore_merges", value=False), "model.ignore_merges is not the one"),
        (change("model", "byte_fallback", value=True), "model.byte_fallback is not the one"),
        (lambda data: data["model"]["merges"].pop(), "model.merges is not the one"),
        (lambda data: data["model"]["merges"].reverse(), "model.merges is not the one"),
    ],
)
def test_a_foreign_or_damaged_file_is_named(
    folder: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    damage(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(
        UsageError, match=re.escape(str(tmp_path / "tokenizer.json")) + ".*" + message.replace("|", r"\|")
    ) as e:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not a JSON file"),
        (b'{"model": {"type": "BPE"', "not a JSON file"),
        (b"\x80\x04\x95", "not a JSON file"),
        (b"[]", "not a tokenizer"),
        (b"{}", "not a tokenizer"),
        (b'{"model": 7}', "not a tokenizer"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UsageError, match=f"tokenizer.json: {message}"):
        Tokenizer.load(tmp_path)


def test_a_foreign_tokenizer_of_the_library_is_refused(tmp_path: Path) -> None:
    """A byte-level BPE without kat's special tokens, as its owner saved it."""
    foreign = tokenizers.ByteLevelBPETokenizer()
    foreign.train_from_iterator(corpus(1), vocab_size=400, special_tokens=["<s>"])
    foreign.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"tokenizer\.json: id 400 is None, expected the special token"):
        Tokenizer.load(tmp_path)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_changed_byte_is_refused_or_changes_no_id(
    tok: Tokenizer, folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray((folder / "tokenizer.json").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path_factory.mktemp("damaged")
    (damaged / "tokenizer.json").write_bytes(content)
    try:
        loaded, complaint = Tokenizer.load(damaged), ""
    except UsageError as error:
        loaded, complaint = None, str(error)
    assert (loaded is None) == (str(damaged) in complaint)
    assert "\n" not in complaint
    assert loaded is None or loaded.hash == tok.hash
