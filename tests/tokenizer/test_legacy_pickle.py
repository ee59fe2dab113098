"""nanochat's tokenizer.pkl: a real one is read, and nothing in any other is run."""

import ast
import contextlib
import copyreg
import io
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rustbpe
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from token_samples import corpus

import kat
from kat.errors import UsageError
from kat.tokenizer import legacy
from kat.tokenizer.bpe import Tokenizer
from kat.tokenizer.legacy import read_encoding, read_nanochat_pickle
from kat.tokenizer.special import SPECIAL_TOKENS, SPLIT_PATTERN


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    """What nanochat's tok_train leaves behind: rustbpe's ranks in a tiktoken.Encoding named rustbpe."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(corpus(5), 500, pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    return make(ranks)


def make(
    ranks: dict[bytes, int], pattern: str = SPLIT_PATTERN, special: dict[str, int] | None = None
) -> tiktoken.Encoding:
    if special is None:
        special = {token: len(ranks) + i for i, token in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding(name="rustbpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


BYTES = {bytes([byte]): byte for byte in range(256)}
SPECIAL = {token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)}


def refused(tmp_path: Path, data: bytes, message: str) -> str:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message) as error:
        read_nanochat_pickle(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_real_one_gives_the_same_ids(encoding: tiktoken.Encoding, tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(encoding, protocol))
    ranks, special, pattern = read_encoding(path)
    assert (ranks, special, pattern) == (encoding._mergeable_ranks, encoding._special_tokens, SPLIT_PATTERN)
    tok = Tokenizer.from_ranks(read_nanochat_pickle(path))
    assert tok.vocab_size == encoding.n_vocab == 509
    for text in [*corpus(6, 5), "".join(SPECIAL_TOKENS), "é😀\r\n  x"]:
        assert tok.encode(text) == encoding.encode_ordinary(text)
    assert tok.special == {token: encoding.encode_single_token(token) for token in SPECIAL_TOKENS}


def test_an_old_protocol_is_refused_by_name(encoding: tiktoken.Encoding, tmp_path: Path) -> None:
    """Protocols 0 to 2 write bytes as a call of _codecs.encode; nanochat (Python 3.8 and later) writes 4 or 5."""
    for protocol in (0, 1, 2):
        refused(
            tmp_path, pickle.dumps(encoding, protocol), "the pickle asks for '_codecs.encode'|'copy_reg._reconstructor'"
        )


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def nested(attack: object) -> tiktoken.Encoding:
    """A whole Encoding but for one object deep in its ranks."""
    encoding = make(dict(BYTES))
    encoding._mergeable_ranks[b"ab"] = attack  # type: ignore[assignment]
    return encoding


ATTACKS: dict[str, Callable[[str], object]] = {
    "posix.system": lambda mark: Call(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Call(eval, f"open({mark!r}, 'w')"),
    "builtins.exec": lambda mark: [Call(exec, f"open({mark!r}, 'w')")],
    "io.open": lambda mark: nested(Call(open, mark, "w")),
    "builtins.getattr": lambda mark: nested(Call(getattr, Call(open, mark, "w"), "name")),
    "posix.mkdir": lambda mark: {"mergeable_ranks": BYTES, "special_tokens": Call(os.mkdir, mark)},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ATTACKS)
def test_a_call_is_refused_by_name_and_never_made(tmp_path: Path, name: str, protocol: int) -> None:
    mark = tmp_path / "executed"
    data = pickle.dumps(ATTACKS[name](str(mark)), protocol)
    message = refused(tmp_path, data, "refused: the pickle asks for ")
    assert protocol < 3 or name in message  # the oldest protocols ask for _codecs.encode, or Python 2's name, before
    assert not mark.exists()
    with contextlib.suppress(TypeError):
        pickle.loads(data)  # noqa: S301 the attack is real: ordinary unpickling runs it
    assert mark.exists()


def text(value: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()


def by_stack(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


HEAD = pickle.PROTO + b"\x04"
STUB = by_stack("tiktoken.core", "Encoding")
NEW = STUB + pickle.EMPTY_TUPLE + pickle.NEWOBJ


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (by_stack("tiktoken.core", "functools.partial"), "asks for 'tiktoken.core.functools.partial'"),
        (by_stack("tiktoken.core", "Encoding.__init__"), "asks for 'tiktoken.core.Encoding.__init__'"),
        (by_stack("tiktoken", "Encoding"), "asks for 'tiktoken.Encoding'"),
        (by_stack("tiktoken.core.Encoding", "__init__"), "asks for"),
        (by_stack("a\nb", "c\n" + "d" * 90), r"asks for 'a\\nb.c\\nd"),
        (b"cos\nsystem\n", "asks for 'os.system'"),
        (b"(S'x'\nios\nsystem\n", "asks for 'os.system'"),
        (b"(ios\nsystem\n", "asks for 'os.system'"),
        (b"(" + STUB + b"o", "instruction OBJ"),
        (STUB + b")R", "instruction REDUCE"),
        (pickle.EXT1 + b"\x07", "instruction EXT1"),
        (b"Pabc\n", "instruction PERSID"),
        (NEW + b"}" + text("__class__") + text("x") + b"s" + b"b" + b"\x94" + b"0", "instruction POP"),
        # The class itself is given a state, as if it were an object: its __setstate__ would be called unbound.
        (STUB + b"}b", "not a whole pickle"),
        # A table of everything but ranks; attributes cannot be set from outside either.
        (NEW + b"}" + text("__setstate__") + text("x") + b"sb", "lacks mergeable_ranks"),
        (NEW + b"}" + text("state") + b"}" + b"sb", "lacks mergeable_ranks"),
        (NEW + text("cl100k_base") + b"b", "not a pickled tiktoken.Encoding with its ranks"),
        (NEW, "not a pickled tiktoken.Encoding with its ranks"),
        (STUB, "not a pickled tiktoken.Encoding with its ranks"),
        (b"}", "not a pickled tiktoken.Encoding with its ranks"),
        (NEW + text("a") + text("b") + b"s", "not a whole pickle"),
        (b"}" + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1), "a memo larger than the file"),
        (pickle.BINBYTES + struct.pack("<I", 2**31 - 1), "not a whole pickle"),
        (b"h\x05", "not a whole pickle"),
        (b"s", "not a whole pickle"),
    ],
)
def test_hand_made_pickles_are_refused(tmp_path: Path, body: bytes, message: str) -> None:
    refused(tmp_path, HEAD + body + pickle.STOP, message)


def test_a_name_hidden_from_the_first_look_is_refused_by_the_second(tmp_path: Path) -> None:
    """The admitted name is written last, the stack holds another: find_class sees the one that counts."""
    mark = tmp_path / "executed"
    names = text("posix") + pickle.MEMOIZE + text("mkdir") + pickle.MEMOIZE
    decoy = text("tiktoken.core") + text("Encoding")
    data = HEAD + names + decoy + pickle.BINGET + b"\x00" + pickle.BINGET + b"\x01" + pickle.STACK_GLOBAL
    refused(tmp_path, data + pickle.STOP, "refused: the pickle asks for 'posix.mkdir'")
    with pytest.raises(UsageError, match=r"posix\.mkdir"):
        legacy._Unpickler(io.BytesIO(pickle.dumps(Call(os.mkdir, str(mark))))).load()
    assert not mark.exists()


def test_the_extension_registry_is_no_way_in() -> None:
    copyreg.add_extension("posix", "mkdir", 0x4B41)
    try:
        with pytest.raises(UsageError, match=r"posix\.mkdir"):
            legacy._Unpickler(io.BytesIO(HEAD + pickle.EXT2 + b"\x41\x4b" + pickle.STOP)).load()
    finally:
        copyreg.remove_extension("posix", "mkdir", 0x4B41)


def test_a_harmless_class_is_refused_too(tmp_path: Path) -> None:
    refused(tmp_path, pickle.dumps(OrderedDict(a=1)), "asks for 'collections.OrderedDict'; only tiktoken.core.Encoding")


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_damaged_file_is_an_error_of_one_line_or_the_same_table(
    encoding: tiktoken.Encoding, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(pickle.dumps(encoding))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.pkl"
    path.write_bytes(content)
    try:
        complaint, tok = "", Tokenizer.from_ranks(read_nanochat_pickle(path))
    except UsageError as error:
        complaint, tok = str(error), None
    assert (tok is None) == bool(complaint)
    assert "\n" not in complaint
    assert tok is None or tok.vocab_size == 509


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (make(BYTES, pattern=r"\S+|\s+"), "split pattern .* is not nanochat's of October 2025"),
        (
            make(BYTES, special=SPECIAL | {"<|user_start|>": 258, "<|user_end|>": 257}),
            r"<\|user_start\|> has id 258, expected 257",
        ),
        (make(BYTES, special=dict(list(SPECIAL.items())[:8])), r"<\|output_end\|> has id None, expected 264"),
        (make(BYTES, special=SPECIAL | {"<|extra|>": 265}), r"special token '<\|extra\|>' is none of nanochat's nine"),
        (make(BYTES | {b"ab": 300}), "257 tokens but none with id 256"),
    ],
)
def test_another_tokenizer_is_refused(tmp_path: Path, made: tiktoken.Encoding, message: str) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(made))
    with pytest.raises(UsageError, match=message):
        Tokenizer.from_ranks(read_nanochat_pickle(path))


@pytest.mark.parametrize(
    "state",
    [
        {"mergeable_ranks": {"a": 1}, "special_tokens": SPECIAL, "pat_str": SPLIT_PATTERN},
        {"mergeable_ranks": {b"a": True}, "special_tokens": SPECIAL, "pat_str": SPLIT_PATTERN},
        {"mergeable_ranks": BYTES, "special_tokens": {b"a": 1}, "pat_str": SPLIT_PATTERN},
        {"mergeable_ranks": BYTES, "special_tokens": SPECIAL, "pat_str": b"x"},
        {"mergeable_ranks": BYTES, "special_tokens": SPECIAL},
    ],
)
def test_a_state_of_other_types_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: object) -> None:
    monkeypatch.setattr(legacy, "_INSTRUCTIONS", legacy._INSTRUCTIONS | {"NEWTRUE"})
    monkeypatch.setattr(tiktoken.Encoding, "__getstate__", lambda self: state)
    refused(tmp_path, pickle.dumps(make(BYTES)), "lacks mergeable_ranks, special_tokens or pat_str")


def test_files_that_cannot_be_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, b"", "not a whole pickle")
    refused(tmp_path, b"\x00\x01\x02 binary", "not a whole pickle")
    with pytest.raises(UsageError, match=r"none\.pkl: No such file"):
        read_nanochat_pickle(tmp_path / "none.pkl")
    with pytest.raises(UsageError, match=f"{tmp_path.name}: Is a directory"):
        read_nanochat_pickle(tmp_path)
    monkeypatch.setattr(legacy, "LARGEST_FILE", 10)
    refused(tmp_path, pickle.dumps(make(BYTES)), "bytes is too large for a tokenizer")


def test_this_is_the_only_file_of_kat_that_imports_pickle() -> None:
    able = {"pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    found = set()
    root = Path(kat.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] in able for name in names):
                found.add(path.relative_to(root).as_posix())
    assert found == {"tokenizer/legacy.py"}
