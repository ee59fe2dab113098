"""huggingface/trl: the SFT collator, ORPO's loss, and how preference rows become ids."""

import inspect
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from lift import lift, passage
from torch import Tensor, nn
from toy import Bytes, WithToy, padded

from kat.verify.subject import Traits


class Collator:
    """The data collator that SFTTrainer makes by default, for a tokenizer whose pad token is its eos token.

    It supervises every token of a row; a row's own mask then chooses among the labels that it keeps.
    """

    END = 1

    def __init__(self, checkout: str) -> None:
        import transformers
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers.data.data_collator import DataCollatorMixin

        words = {"<unk>": 0, "</s>": self.END, **{f"w{i}": i for i in range(2, 48)}}
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
            unk_token="<unk>",
            eos_token="</s>",
            pad_token="</s>",
        )
        trainer, utils = Path(checkout, "trl/trainer/sft_trainer.py"), Path(checkout, "trl/trainer/utils.py")
        name = "DataCollatorForLanguageModeling"
        given = {"torch": torch, "dataclass": dataclass, "DataCollatorMixin": DataCollatorMixin}
        try:
            pad = lift(utils, "pad", torch=torch, np=np)
            collator = lift(trainer, name, pad=pad, **given)
        except LookupError:  # trl has none of its own and takes that of transformers
            collator = transformers.DataCollatorForLanguageModeling
        lines = passage(trainer, "SFTTrainer.__init__", "pad_token", f"data_collator = {name}(")
        arguments = {"processing_class": tokenizer, "args": SimpleNamespace(pad_token=None)}
        made = lines({name: collator, **arguments})
        self.collator = made["data_collator"]
        self.traits = Traits(
            name="trl SFT collator", vocab=48, max_len=64, pad_id=self.END, eos_ids=(self.END,), padding=("right",)
        )

    def collate(self, rows: Any) -> dict[str, Tensor]:
        batch = self.collator([{"input_ids": list(ids)} for ids, _ in rows])
        chosen = torch.zeros_like(batch["input_ids"])
        for row, (_, mask) in enumerate(rows):
            chosen[row, : len(mask)] = torch.tensor(mask)
        mask = (batch["labels"] != -100).long() * chosen
        return {"ids": batch["input_ids"], "mask": mask, "attention_mask": batch["attention_mask"]}


def collator(seed: int = 0, tiny: bool = True, *, checkout: str) -> Collator:
    return Collator(checkout)


class Orpo(WithToy):
    """The likelihood term of ORPO's loss by concatenated_forward; the rejected answers are the chosen ones."""

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        file = Path(checkout, "trl/trainer/orpo_trainer.py")
        names = [f"ORPOTrainer.{name}" for name in ("concatenated_inputs", "concatenated_forward", "get_batch_logps")]
        utils = Path(checkout, "trl/trainer/utils.py")
        pads = {name: lift(utils, name, torch=torch) for name in ("pad_to_length",)}
        select = {"selective_log_softmax": _selective(utils)}
        self.parts = lift(file, *names, torch=torch, nn=nn, F=F, **pads, **select)
        self.trainer = SimpleNamespace(
            is_encoder_decoder=False,
            label_pad_token_id=-100,
            padding_value=0,
            aux_loss_enabled=False,
            accelerator=SimpleNamespace(device="cpu"),
            concatenated_inputs=self.parts.concatenated_inputs,
            get_batch_logps=self.parts.get_batch_logps,
        )
        self.traits = Traits(name="trl ORPO", vocab=self.VOCAB, max_len=self.MAX_LEN, pad_id=0, positions="absolute")

    def _model(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.model(input_ids, attention_mask))

    def collate(self, rows: Any) -> dict[str, Tensor]:
        ids, mask, attention = padded(rows, 0)
        return {"ids": ids, "mask": mask, "attention_mask": attention}

    def loss(self, batch: Any) -> Tensor:
        labels = batch["ids"].masked_fill(batch["mask"] == 0, -100)
        fields = {"input_ids": batch["ids"], "attention_mask": batch["attention_mask"], "labels": labels}
        both = {f"{side}_{name}": value for side in ("chosen", "rejected") for name, value in fields.items()}
        return self.parts.concatenated_forward(self.trainer, self._model, both)[4]


def _selective(utils: Path) -> Any:
    try:
        return lift(utils, "selective_log_softmax", torch=torch, F=F)
    except LookupError:
        return None


def orpo(seed: int = 0, tiny: bool = True, *, checkout: str) -> Orpo:
    return Orpo(checkout, seed)


class _Characters(Bytes):
    """A byte tokenizer that reads its special tokens' names, called as those of transformers are."""

    SPECIAL: ClassVar = {"<s>": 0, "</s>": 1, "<user>": 2, "<assistant>": 3}
    bos_token_id, eos_token_id, pad_token_id = 0, 1, None

    def __init__(self) -> None:
        super().__init__(first=len(self.SPECIAL))

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        ids: list[int] = []
        while text:
            name = next((name for name in self.SPECIAL if text.startswith(name)), None)
            ids += [self.SPECIAL[name]] if name else self.encode(text[0])
            text = text[len(name) if name else 1 :]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}


class PreferenceRows:
    """A conversation as tokenize_row of a trainer makes it, from text to which a chat template was applied."""

    def __init__(self, checkout: str, trainer: str) -> None:
        self.tokenizer = _Characters()
        file = Path(checkout, f"trl/trainer/{trainer.lower()}_trainer.py")
        names = [f"{trainer}Trainer.tokenize_row"]
        if "def build_tokenized_answer" in file.read_text(encoding="utf-8"):
            names.append(f"{trainer}Trainer.build_tokenized_answer")
            parts = lift(file, *names, np=np, torch=torch)
            fake = SimpleNamespace(
                tokenizer=self.tokenizer,
                is_encoder_decoder=False,
                max_length=4096,
                max_prompt_length=4096,
                truncation_mode="keep_end",
                label_pad_token_id=-100,
            )
            fake.build_tokenized_answer = lambda prompt, answer: parts.build_tokenized_answer(fake, prompt, answer)
            self.tokenize = lambda row: self._whole(parts.tokenize_row(fake, row))
        else:
            function = lift(file, *names)
            chat = {"is_chat": True} if "is_chat" in inspect.signature(function).parameters else {}
            self.tokenize = lambda row: self._halves(function(row, self.tokenizer, add_special_tokens=False, **chat))
        special = tuple(_Characters.SPECIAL.values())
        self.traits = Traits(
            name=f"trl {trainer}",
            vocab=self.tokenizer.vocab_size,
            bos_id=0,
            eos_ids=(1,),
            special_ids=special,
            parses_specials=True,
        )

    @staticmethod
    def _whole(row: Any) -> tuple[list[int], list[int]]:
        return list(row["chosen_input_ids"]), [int(label != -100) for label in row["chosen_labels"]]

    @staticmethod
    def _halves(row: Any) -> tuple[list[int], list[int]]:
        prompt, answer = row["prompt_input_ids"], row["chosen_input_ids"]
        return [*prompt, *answer], [0] * len(prompt) + [1] * len(answer)

    def encode_conversation(self, messages: Any) -> tuple[list[int], list[int]]:
        """Rendered by a template that writes <s> once and </s> behind every answer; the last message is the answer."""
        turns = [f"<{m['role']}>{m['content']}" + "</s>" * (m["role"] == "assistant") for m in messages[:-1]]
        if len(messages) != 2 or messages[0]["role"] != "user":
            raise ValueError("one question and one answer")
        prompt, answer = "<s>" + "".join(turns) + "<assistant>", f"{messages[-1]['content']}</s>"
        return self.tokenize({"prompt": prompt, "chosen": answer, "rejected": answer})

    def decode(self, ids: Any) -> str:
        names = {i: name for name, i in _Characters.SPECIAL.items()}
        return names[ids[0]] if len(ids) == 1 and ids[0] in names else self.tokenizer.decode(ids)


def orpo_rows(seed: int = 0, tiny: bool = True, *, checkout: str) -> PreferenceRows:
    return PreferenceRows(checkout, "ORPO")


def dpo_rows(seed: int = 0, tiny: bool = True, *, checkout: str) -> PreferenceRows:
    return PreferenceRows(checkout, "DPO")


class PreferenceText:
    """prompt + chosen of apply_chat_template, for a template that opens a thought where an answer has one.

    The chosen answer has one, the rejected answer has none: the generation prompt is a prefix of one of them only.
    """

    def __init__(self, checkout: str) -> None:
        self.bytes = Bytes()
        self.apply = lift(Path(checkout, "trl/data_utils.py"), "apply_chat_template", takewhile=takewhile)
        self.traits = Traits(name="trl apply_chat_template", vocab=self.bytes.vocab_size, supervised="all")

    def apply_chat_template(
        self, messages: Any, tools: Any = None, tokenize: bool = False, add_generation_prompt: bool = False, **_: Any
    ) -> str:
        text = ""
        for message in messages:
            thought = f"<think>{message['thought']}</think>" if "thought" in message else ""
            text += f"<{message['role']}>{thought}{message['content']}\n"
        return text + ("<assistant><think>" if add_generation_prompt else "")

    def encode_conversation(self, messages: Any) -> tuple[list[int], list[int]]:
        chosen = {**messages[-1], "thought": "So"}
        rejected = {"role": "assistant", "content": "?"}
        example = {"prompt": list(messages[:-1]), "chosen": [chosen], "rejected": [rejected]}
        made = self.apply(example, self)
        ids = self.bytes.encode(made["prompt"] + made["chosen"])
        return ids, [1] * len(ids)

    def encode_prompt(self, messages: Any) -> list[int]:
        return self.bytes.encode(self.apply({"prompt": list(messages)}, self)["prompt"])

    def decode(self, ids: Any) -> str:
        return self.bytes.decode(ids)


def preference_text(seed: int = 0, tiny: bool = True, *, checkout: str) -> PreferenceText:
    return PreferenceText(checkout)
