"""pytorch/torchtune: left padding, two chat tokenizers, packing and the loss of the full finetune recipe."""

import contextlib
import functools
import io
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lift import lift, use
from torch import Tensor, nn
from toy import Bytes, WithToy

from kat.verify.subject import Traits

STUBS = ("torchao", "datasets", "sentencepiece", "omegaconf", "tqdm", "blobfile", "kagglehub", "PIL", "torchdata")
PACKAGES = ("torchtune", "torchtune.data", "torchtune.datasets", "torchtune.modules", "torchtune.models")


class LeftPadding:
    """collate by left_pad_sequence in its default layout, time first."""

    def __init__(self, checkout: str) -> None:
        self.left_pad = use(checkout, "torchtune.data._collate", stubs=STUBS, bare=PACKAGES).left_pad_sequence
        self.traits = Traits(name="torchtune left_pad_sequence", vocab=48, max_len=64, pad_id=0, padding=("left",))

    def collate(self, rows: Any) -> dict[str, Tensor]:
        ids, mask, attention = (
            self.left_pad([torch.tensor(part) for part in parts], padding_value=0).T
            for parts in ([r[0] for r in rows], [r[1] for r in rows], [[1] * len(r[0]) for r in rows])
        )
        return {"ids": ids, "mask": mask, "attention_mask": attention}


def left_padding(seed: int = 0, tiny: bool = True, *, checkout: str) -> LeftPadding:
    return LeftPadding(checkout)


class Chat:
    """A chat tokenizer of torchtune."""

    def __init__(self, checkout: str, tokenizer: Any, **traits: Any) -> None:
        self.tokenizer = tokenizer
        self.Message = use(checkout, "torchtune.data._messages", stubs=STUBS, bare=PACKAGES).Message
        self.traits = Traits(**traits)

    def encode_conversation(self, messages: Any) -> tuple[list[int], list[int]]:
        converted = [
            self.Message(role=m["role"], content=m["content"], masked=m["role"] != "assistant", eot=True)
            for m in messages
        ]
        ids, masked = self.tokenizer.tokenize_messages(converted)
        return list(ids), [int(not m) for m in masked]

    def decode(self, ids: Any) -> str:
        return self.tokenizer.decode(list(ids))


class _SentencePiece(Bytes):
    """What the Phi-3 tokenizer asks of SentencePieceBaseTokenizer, on bytes."""

    bos_id, eos_id, pad_id = 1, 2, 0

    def __init__(self, path: str) -> None:
        super().__init__(first=3)

    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, trim_leading_whitespace: bool = False, **_: Any
    ) -> list[int]:
        text = text.lstrip(" ") if trim_leading_whitespace else text
        return [self.bos_id] * add_bos + super().encode(text) + [self.eos_id] * add_eos


def phi3(seed: int = 0, tiny: bool = True, *, checkout: str) -> Chat:
    """Phi3MiniTokenizer with its defaults, its SentencePiece model replaced by bytes."""
    use(checkout, "torchtune.data._messages", stubs=STUBS, bare=PACKAGES)
    file = Path(checkout, "torchtune/models/phi3/_tokenizer.py")
    truncate = use(checkout, "torchtune.data._utils", stubs=STUBS, bare=PACKAGES).truncate
    names = lift(
        file,
        "PHI3_SPECIAL_TOKENS",
        "Phi3MiniTokenizer",
        SentencePieceBaseTokenizer=_SentencePiece,
        truncate=truncate,
    )
    tokenizer = names.Phi3MiniTokenizer("no file")
    special = tokenizer.special_tokens
    return Chat(
        checkout,
        tokenizer,
        name="torchtune Phi3MiniTokenizer",
        vocab=32_064,
        trims=True,
        bos_id=tokenizer.bos_id,
        eos_ids=(special["<|end|>"], tokenizer.eos_id),
        special_ids=tuple(special.values()),
    )


@functools.cache
def _byte_level_files() -> tuple[str, str]:
    """vocab.json and merges.txt of a byte-level BPE without merges, in GPT-2's spelling of bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelling = {byte: chr(byte) for byte in printable}
    spelling |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in spelling)}
    folder = Path(tempfile.mkdtemp(prefix="kat-bytes-"))
    (folder / "vocab.json").write_text(json.dumps({spelling[byte]: byte for byte in range(256)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return str(folder / "vocab.json"), str(folder / "merges.txt")


def qwen2(seed: int = 0, tiny: bool = True, *, checkout: str) -> Chat:
    """Qwen2Tokenizer with its defaults; a completion is ended by the tokenizer's own eos_id."""
    module = use(checkout, "torchtune.models.qwen2._tokenizer", stubs=STUBS, bare=(*PACKAGES, "torchtune.models.qwen2"))
    tokenizer = module.Qwen2Tokenizer(*_byte_level_files())
    return Chat(
        checkout,
        tokenizer,
        name="torchtune Qwen2Tokenizer",
        vocab=152_064,
        pad_id=tokenizer.pad_id,
        eos_ids=(tokenizer.eos_id,),
        special_ids=tuple(tokenizer.special_tokens.values()),
        parses_specials=True,
    )


class Packed(WithToy):
    """Texts through TextCompletionDataset, PackedDataset and the recipe's _loss_step, with a toy model.

    Every token of a text is a target; a row's own mask chooses among those behind its first token.
    """

    ROW_LEN = 64

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        self.packed = use(checkout, "torchtune.datasets._packed", stubs=STUBS, bare=PACKAGES)
        texts = Path(checkout, "torchtune/datasets/_text_completion.py")
        self.prepare = lift(texts, "TextCompletionDataset._prepare_sample", CROSS_ENTROPY_IGNORE_IDX=-100)
        self.step = lift(Path(checkout, "recipes/full_finetune_single_device.py"), "_loss_step", torch=torch)
        self.traits = Traits(
            name="torchtune packed", vocab=self.VOCAB, max_len=self.ROW_LEN, pad_id=0, positions="absolute"
        )

    def _logits(self, tokens: Tensor, mask: Tensor, input_pos: Tensor) -> Tensor:
        return self.model(tokens, None, input_pos, mask)

    def _run(self, batch: Any, loss: Any) -> Any:
        """The recipe's step with a loss function of (logits, labels), both flat."""
        recipe = SimpleNamespace(
            _model=self._logits,
            _loss_fn=loss,
            activations_handling_ctx=contextlib.nullcontext(),
            ignore_labels_cache=torch.full((len(batch["ids"]), 1), -100),
        )
        fields = {"tokens": batch["ids"], "labels": batch["labels"].clone(), "input_pos": batch["position_ids"]}
        return self.step(recipe, {**fields, "mask": batch["seen"]})

    def pack(self, rows: Any) -> dict[str, Tensor]:
        texts = SimpleNamespace(
            _column="text",
            _tokenizer=SimpleNamespace(encode=lambda text, **_: list(text), max_seq_len=None),
            add_eos=False,
        )
        samples = [self.prepare(texts, {"text": ids}) for ids, _ in rows]
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            packs = self.packed.PackedDataset(samples, max_seq_len=self.ROW_LEN, padding_idx=0).packs
        documents = torch.full((len(packs), self.ROW_LEN), -1)
        wanted = torch.zeros(len(packs), self.ROW_LEN + 1, dtype=torch.bool)
        left = list(enumerate(rows))
        for pack, line, chosen in zip(packs, documents, wanted, strict=True):
            start = 0
            for length in pack["seq_lens"].tolist():
                span = slice(start, start + length)
                if left and pack["tokens"][span].tolist() == list(left[0][1][0]):
                    number, (_, mask) = left.pop(0)
                    line[span] = number
                    chosen[span] = torch.tensor([1, *mask[1:]], dtype=torch.bool)
                start += length
        batch = {
            "ids": torch.stack([p["tokens"] for p in packs]),
            "labels": torch.stack([p["labels"] for p in packs]),
            "position_ids": torch.stack([p["input_pos"] for p in packs]),
            "doc_ids": documents,
            "wanted": wanted[:, 1:],
            "seen": (documents[:, :, None] == documents[:, None, :]).tril(),
        }
        found: list[Tensor] = []

        def look(logits: Tensor, labels: Tensor) -> Tensor:
            found.append(labels.view(len(packs), -1))
            return logits.sum()

        self._run(batch, look)
        return {**batch, "targets": torch.where(batch["wanted"], found[0], -1).clamp(min=-1)}

    def loss(self, batch: Any) -> Tensor:
        wanted = batch["wanted"].reshape(-1)

        def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(logits, torch.where(wanted, labels, -100), ignore_index=-100)

        return self._run(batch, cross_entropy)


def packed_rows(seed: int = 0, tiny: bool = True, *, checkout: str) -> Packed:
    return Packed(checkout, seed)
