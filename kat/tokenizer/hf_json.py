"""The two JSON files of a tokenizer, in the format of the `tokenizers` and `transformers` libraries.

Both are made from the ranks alone, so that equal ranks give equal bytes.
"""

import json
from pathlib import Path
from typing import Any

from kat.errors import UsageError
from kat.runs.files import read_json
from kat.tokenizer.chat import CHAT_TEMPLATE
from kat.tokenizer.special import BOS, EOS, PAD, SPECIAL_TOKENS, SPLIT_PATTERN


def byte_characters() -> list[str]:
    """The character that stands for each byte in tokenizer.json (GPT-2's byte-level alphabet).

    A byte that is a visible Latin-1 character stands for itself; the other 68 take the characters from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]


def tokenizer_json(ranks: dict[bytes, int]) -> dict[str, Any]:
    """The content of tokenizer.json for these ranks (checked by the caller), special tokens at the end.

    tiktoken joins the adjacent pair whose concatenation has the lowest rank, whichever pair of tokens it is made of,
    and looks a whole piece up before it merges anything. `tokenizers` joins listed pairs only. The two agree when every
    pair of tokens that makes a token is listed, in the order of what they make, and `ignore_merges` is on.
    """
    characters = byte_characters()
    name = {token: "".join(characters[byte] for byte in token) for token in ranks}
    order = sorted(ranks, key=ranks.__getitem__)
    cuts = ((token[:i], token[i:]) for token in order for i in range(1, len(token)))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **plain} for i, token in enumerate(SPECIAL_TOKENS, len(ranks))],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,  # adds no token; transformers would put one of its own where there is none
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {name[token]: ranks[token] for token in order},
            "merges": [[name[left], name[right]] for left, right in cuts if left in ranks and right in ranks],
        },
    }


def tokenizer_config_json(model_max_length: int | None) -> dict[str, Any]:
    """The content of tokenizer_config.json: what `transformers.AutoTokenizer` needs beside tokenizer.json."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    return config


def dump(value: dict[str, Any]) -> str:
    """The text of tokenizer.json: one line for each token and each merge, so that two of them can be compared."""
    return json.dumps(value, ensure_ascii=False, indent=1, separators=(",", ": ")) + "\n"


def read_ranks(path: Path) -> dict[bytes, int]:
    """The ranks in a tokenizer.json that kat wrote (or transformers wrote again from kat's).

    Raises UsageError, naming what differs, for anything else: a file that is no JSON, another model type, ids with a
    hole, special tokens missing or elsewhere, another pre-tokenizer, other merges.
    """
    data = read_json(path)
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict):
        raise UsageError(f"{path}: not a tokenizer (no 'model' in it)")
    if model.get("type") != "BPE":
        raise UsageError(f"{path}: model type is {model.get('type')!r}; kat reads byte-level BPE only")
    ranks = _ranks(path, model.get("vocab"))
    added = data.get("added_tokens")
    added = added if isinstance(added, list) else []
    found = {t.get("id"): t.get("content") for t in added if isinstance(t, dict) and _is_id(t.get("id"))}
    for i, token in enumerate(SPECIAL_TOKENS, len(ranks)):
        if found.get(i) != token:
            raise UsageError(f"{path}: id {i} is {found.get(i)!r}, expected the special token {token!r}")
    if len(added) != len(SPECIAL_TOKENS):
        raise UsageError(f"{path}: {len(added)} added tokens, expected the {len(SPECIAL_TOKENS)} of kat")
    expected = tokenizer_json(ranks)
    # transformers notes its last call's truncation and padding in the file; they change no id.
    for key in expected.keys() - {"version", "truncation", "padding", "model"}:
        if data.get(key) != expected[key]:
            raise UsageError(f"{path}: {key} is not the one that kat writes, so ids would differ")
    for key in expected["model"]:
        if model.get(key) != expected["model"][key]:
            raise UsageError(f"{path}: model.{key} is not the one that kat writes, so ids would differ")
    return ranks


def _ranks(path: Path, vocab: Any) -> dict[bytes, int]:
    if not isinstance(vocab, dict) or not all(_is_id(i) for i in vocab.values()):
        raise UsageError(f"{path}: model.vocab is not a table of tokens and ids")
    missing = set(range(len(vocab))) - set(vocab.values())
    if missing:
        raise UsageError(f"{path}: model.vocab has {len(vocab)} tokens but none with id {min(missing)}")
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ranks = {}
    for token, i in vocab.items():
        if not all(character in byte_of for character in token):
            raise UsageError(f"{path}: token {token!r} (id {i}) is not written in the byte-level alphabet")
        ranks[bytes(byte_of[character] for character in token)] = i
    return ranks


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
