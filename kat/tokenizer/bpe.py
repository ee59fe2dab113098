"""The tokenizer: trained with `tokenizers`, encoded with `tiktoken`, both from the same ranks.

A rank table maps the bytes of a token to its id, and the id is the merge priority (lower merges first). Everything
else, the tiktoken encoding and tokenizer.json, is made from it by :meth:`Tokenizer.from_ranks`.

A Python string may hold lone surrogates, which no UTF-8 text can. kat encodes a lone surrogate as U+FFFD, and two
halves of a pair as the character they mean (tiktoken's own rule); `tokenizers` refuses such a string.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from kat.errors import UsageError
from kat.runs.files import write_json, write_text
from kat.tokenizer import hf_json
from kat.tokenizer.special import BOS, EOS, PAD, SPECIAL_TOKENS, SPLIT_PATTERN

# Training counts a piece longer than this in parts of this many characters (a megabyte without a space would cost the
# trainer quadratic time, and teach it tokens as long as the piece). Encoding is not affected.
LONGEST_TRAINING_PIECE = 512

# tiktoken's regular expressions keep one stack entry for each blank that `\s+(?!\S)` tries, and stop at a million; a
# run of this many blanks is cut out before.
LONG_RUN = 100_000
# White space as Unicode has it (Python's \s adds four control characters), without the two line ends.
_BLANK = r"[\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


def _blank_runs(shortest: int) -> re.Pattern[str]:
    """Whole runs of at least `shortest` blanks, save those before a line end (those need no stack)."""
    return re.compile(rf"(?<!{_BLANK}){_BLANK}{{{shortest},}}+(?![\r\n])")


_LONG_BLANKS = _blank_runs(LONG_RUN)


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A byte-level BPE tokenizer; make one with `from_ranks`, `load` or `train_tokenizer`.

    vocab_size: all ids, the nine special tokens included; they are the last nine.
    bos_id, eos_id, pad_id: the ids of <|bos|>, <|assistant_end|> and <|output_end|>.
    special: special token -> id.
    ranks: bytes of a token -> id, without the special tokens.
    hash: sha256 of the tokenizer.json that `save` writes: equal hashes, equal ids for every text.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    special: dict[str, int]
    ranks: dict[bytes, int]
    hash: str
    _json: str
    _encoding: tiktoken.Encoding
    _one_piece: tiktoken.Encoding
    _token_bytes: np.ndarray

    @classmethod
    def from_ranks(cls, ranks: dict[bytes, int]) -> "Tokenizer":
        """A tokenizer of len(ranks) + 9 ids. UsageError if an id or a single byte is missing."""
        _check_ranks(ranks)
        ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
        special = {token: i for i, token in enumerate(SPECIAL_TOKENS, len(ranks))}
        text = hf_json.dump(hf_json.tokenizer_json(ranks))
        lengths = np.array([len(token) for token in ranks] + [0] * len(special), dtype=np.int32)
        lengths.flags.writeable = False
        return cls(
            vocab_size=len(ranks) + len(special),
            bos_id=special[BOS],
            eos_id=special[EOS],
            pad_id=special[PAD],
            special=special,
            ranks=ranks,
            hash=hashlib.sha256(text.encode()).hexdigest(),
            _json=text,
            _encoding=tiktoken.Encoding("kat", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special),
            _one_piece=tiktoken.Encoding("kat", pat_str="(?s:.+)", mergeable_ranks=ranks, special_tokens={}),
            _token_bytes=lengths,
        )

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer.json of a folder. UsageError, naming what differs, for a foreign or damaged file."""
        path = Path(folder) / "tokenizer.json"
        try:
            return cls.from_ranks(hf_json.read_ranks(path))
        except UsageError as error:
            if str(error).startswith(str(path)):
                raise
            raise UsageError(f"{path}: {error}") from None

    def save(self, folder: Path, model_max_length: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json (with the chat template) to a folder, each atomically.

        model_max_length: the model's context in tokens; transformers warns about longer texts.
        """
        folder = Path(folder)
        write_text(folder / "tokenizer.json", self._json)
        write_json(folder / "tokenizer_config.json", hf_json.tokenizer_config_json(model_max_length))

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Special tokens in it are plain text: none of their ids is ever returned."""
        if len(text) <= LONG_RUN:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        start = 0
        for run in _LONG_BLANKS.finditer(text):
            # `\s+(?!\S)` takes the whole run at the end of the text, and leaves its last blank to a word after it.
            end = run.end() if run.end() == len(text) else run.end() - 1
            ids += self._encoding.encode_ordinary(text[start : run.start()])
            ids += self._one_piece.encode_ordinary(text[run.start() : end])
            start = end
        return ids + self._encoding.encode_ordinary(text[start:])

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, on `num_threads` threads."""
        if num_threads == 1 or any(len(text) > LONG_RUN for text in texts):
            return [self.encode(text) for text in texts]
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=num_threads)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of the ids, special tokens by their names. UsageError for an id outside the vocabulary."""
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise UsageError(
                f"token id {wrong} is outside the tokenizer's {self.vocab_size} ids: it belongs to another tokenizer"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens by their names; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int32, read-only: the length in bytes of each token, 0 for the special tokens.

        Over the ids of a text it sums to the text's UTF-8 length: the denominator of bits per byte.
        """
        return self._token_bytes

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash[:12]})"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on texts, read once, in order; equal texts give an equal tokenizer.json.

    vocab_size counts the 256 bytes and the nine special tokens, of which training sees nothing (a special token's name
    in a text is text). UsageError if it is below 265, or more than the text has pairs to merge for.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of strings, not one string")
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UsageError(f"vocab_size {vocab_size} is too small: 256 bytes and 9 special tokens need {smallest}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=0,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.FixedLength(LONGEST_TRAINING_PIECE),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.train_from_iterator(map(_without_surrogates, texts), trainer)
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    reached = len(vocab) + len(SPECIAL_TOKENS)
    if reached < vocab_size:
        raise UsageError(
            f"vocab_size {vocab_size} is out of reach: the text has pairs to merge for {reached}; "
            f"give more text or a vocab_size of at most {reached}"
        )
    return Tokenizer.from_ranks(_ranks_of(vocab))


def _ranks_of(vocab: dict[str, int]) -> dict[bytes, int]:
    """Ranks from a trained vocabulary: byte b has rank b, then the merged tokens in the order of their merges."""
    byte_of = {character: byte for byte, character in enumerate(hf_json.byte_characters())}
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in sorted(vocab, key=vocab.__getitem__):
        if len(token) > 1:
            ranks[bytes(byte_of[character] for character in token)] = len(ranks)
    return ranks


def _check_ranks(ranks: dict[bytes, int]) -> None:
    if b"" in ranks:
        raise UsageError("the vocabulary has an empty token")
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise UsageError(f"the vocabulary lacks the single byte 0x{byte:02x}, so some texts could not be encoded")
    missing = set(range(len(ranks))) - set(ranks.values())
    if missing:
        raise UsageError(f"the vocabulary has {len(ranks)} tokens but none with id {min(missing)}")
    for token in SPECIAL_TOKENS:
        if token.encode() in ranks:
            raise UsageError(f"the vocabulary has {token} as an ordinary token (id {ranks[token.encode()]})")


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
