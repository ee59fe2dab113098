"""pytorch/torchtune: left padding, two chat tokenizers, packing and the loss of the full finetune recipe."""

import contextlib
import functools
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
    """SFT rows through torchtune's labels, PackedDataset and the recipe's _loss_step, with a toy model."""

    ROW_LEN = 64

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        self.packed = use(checkout, "torchtune.datasets._packed", stubs=STUBS, bare=PACKAGES)
        sft = Path(checkout, "torchtune/datasets/_sft.py")
        import numpy as np

        self.labels = lift(sft, "SFTTransform.__call__", np=np, CROSS_ENTROPY_IGNORE_IDX=-100)
        self.step = lift(Path(checkout, "recipes/full_finetune_single_device.py"), "_loss_step", torch=torch)
        self.recipe = SimpleNamespace(
            _model=self._logits,
            _loss_fn=nn.CrossEntropyLoss(ignore_index=-100),
            activations_handling_ctx=contextlib.nullcontext(),
            ignore_labels_cache=torch.full((64, 1), -100),
        )
        self.traits = Traits(
            name="torchtune packed", vocab=self.VOCAB, max_len=self.ROW_LEN, pad_id=0, positions="absolute"
        )

    def _logits(self, tokens: Tensor, mask: Tensor | None = None, input_pos: Tensor | None = None) -> Tensor:
        return self.model(tokens, None, input_pos, mask)

    def _sample(self, row: Any) -> dict[str, Any]:
        """A row with labels as SFTTransform makes them."""
        ids, mask = row
        transform = SimpleNamespace(
            _message_transform=None, _model_transform=lambda sample: {**sample, "mask": [not m for m in mask]}
        )
        made = self.labels(transform, {"tokens": list(ids), "messages": []})
        return {"tokens": list(made["tokens"]), "labels": [int(label) for label in made["labels"]]}

    def pack(self, rows: Any) -> dict[str, Tensor]:
        samples = [self._sample(row) for row in rows]
        with contextlib.redirect_stderr(None):
            packs = self.packed.PackedDataset(samples, max_seq_len=self.ROW_LEN, padding_idx=0).packs
        documents, seen = [], []
        for pack in packs:
            lengths = pack["seq_lens"].tolist()
            numbers = [n for n, length in enumerate(lengths) for _ in range(length)]
            numbers = [*numbers, *[-1] * (self.ROW_LEN - len(numbers))][: self.ROW_LEN]
            documents.append(torch.tensor(numbers))
            same = documents[-1][:, None] == documents[-1][None, :]
            seen.append(same & torch.ones_like(same).tril())
        return {
            "ids": torch.stack([p["tokens"] for p in packs]),
            "labels": torch.stack([p["labels"] for p in packs]),
            "input_pos": torch.stack([p["input_pos"] for p in packs]),
            "doc_ids": torch.stack(documents),
            "seen": torch.stack(seen),
        }

    def loss(self, batch: Any) -> Tensor:
        return self.step(
            self.recipe,
            {
                "tokens": batch["ids"],
                "labels": batch["labels"].clone(),
                "mask": batch.get("seen"),
                "input_pos": batch.get("input_pos"),
            },
        )


def packed_rows(seed: int = 0, tiny: bool = True, *, checkout: str) -> Packed:
    return Packed(checkout, seed)
