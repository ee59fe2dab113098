"""nanochat's tokenizer.pkl, read without running anything in it.

nanochat pickles its `tiktoken.Encoding`. A pickle is a program: loading one calls whatever it names. This reader (the
only file of kat that imports pickle) lets in one name, tiktoken.core.Encoding, as an inert class that keeps the state
it is given, and only the instructions that a table of bytes and integers needs. Everything else is refused by name.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from kat.errors import UsageError
from kat.tokenizer.special import SPECIAL_TOKENS, SPLIT_PATTERN

ADMITTED = ("tiktoken.core", "Encoding")
LARGEST_FILE = 64 * 2**20  # bytes; a vocabulary of 65,536 takes one megabyte

# What pickle protocols 3 to 5 write for Encoding.__getstate__: no call (REDUCE, INST, OBJ), no tuple but the empty one.
_INSTRUCTIONS = {
    *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "EMPTY_TUPLE", "NEWOBJ", "BUILD"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "BININT", "BININT1", "BININT2"),
    *("SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE", "BINUNICODE"),
    *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
}


class _InertEncoding:
    """Stands in for tiktoken's class: keeps its state and does nothing with it."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ADMITTED:
            raise _refused(module, name)
        return _InertEncoding


def read_nanochat_pickle(path: Path) -> dict[bytes, int]:
    """The ranks (bytes of a token -> id) of a nanochat tokenizer.pkl, for `Tokenizer.from_ranks`.

    UsageError if the file holds anything else, another split pattern, or other special tokens than the nine after the
    ranks, in nanochat's order.
    """
    ranks, special, pattern = read_encoding(path)
    if pattern != SPLIT_PATTERN:
        raise UsageError(f"{path}: split pattern {_short(pattern)} is not nanochat's of October 2025; ids would differ")
    expected = {token: i for i, token in enumerate(SPECIAL_TOKENS, len(ranks))}
    for token, i in expected.items():
        if special.get(token) != i:
            raise UsageError(f"{path}: special token {token} has id {special.get(token)}, expected {i}")
    for token in special.keys() - expected.keys():
        raise UsageError(f"{path}: special token {_short(token)} is none of nanochat's nine")
    return ranks


def read_encoding(path: Path) -> tuple[dict[bytes, int], dict[str, int], str]:
    """(ranks, special token -> id, split pattern) of a pickled tiktoken.Encoding, nothing executed."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"{path}: {path.stat().st_size} bytes is too large for a tokenizer")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    try:
        _check_instructions(data)
        encoding = _Unpickler(io.BytesIO(data)).load()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except _BROKEN as error:
        raise UsageError(f"{path}: not a whole pickle ({type(error).__name__}: {_short(str(error))})") from None
    state = encoding.state if isinstance(encoding, _InertEncoding) else None
    if not isinstance(state, dict):
        raise UsageError(f"{path}: not a pickled tiktoken.Encoding with its ranks")
    ranks: Any = state.get("mergeable_ranks")
    special: Any = state.get("special_tokens")
    pattern: Any = state.get("pat_str")
    if not _is_table(ranks, bytes) or not _is_table(special, str) or not isinstance(pattern, str):
        raise UsageError(f"{path}: its tiktoken.Encoding lacks mergeable_ranks, special_tokens or pat_str")
    return ranks, special, pattern


# All that a damaged stream can raise in the pickle module: its documentation names the first and leaves the list open.
_BROKEN = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


def _check_instructions(data: bytes) -> None:
    """Refuse, before anything is loaded, a name or an instruction that a pickled Encoding does not have."""
    strings: list[str] = []
    foreign = ""
    for instruction, argument, _ in pickletools.genops(data):
        name = instruction.name
        if name in ("GLOBAL", "INST"):
            strings = str(argument).split(" ", 1)
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]
        # The name here is for the message; find_class is what decides.
        if name in ("GLOBAL", "INST", "STACK_GLOBAL") and tuple(strings) != ADMITTED:
            raise _refused(*strings)
        if name == "LONG_BINPUT" and isinstance(argument, int) and argument > len(data):
            raise UsageError("refused: a memo larger than the file")
        if name not in _INSTRUCTIONS:
            foreign = foreign or name
    if foreign:
        raise UsageError(f"refused: the pickle instruction {foreign} has no place in a tokenizer")


def _refused(*names: str) -> UsageError:
    return UsageError(f"refused: the pickle asks for {_short('.'.join(names))}; only {'.'.join(ADMITTED)} may be in it")


def _is_table(value: object, key: type) -> bool:
    return isinstance(value, dict) and all(isinstance(k, key) and type(i) is int for k, i in value.items())


def _short(text: str) -> str:
    """A foreign text for an error message: one line, at most 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
