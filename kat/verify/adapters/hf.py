"""A Hugging Face causal language model as a subject: `hf:FOLDER`, or any model in memory.

Everything goes through transformers' own forward, cache, generate, loss and tokenizer. The weights are loaded once and
copied for each subject; nothing is downloaded.
"""

import copy
import importlib.util
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kat.errors import UsageError
from kat.verify.subject import Batch, Completion, Make, Message, Row, Traits

IGNORE = -100  # transformers' label of a token that is no target
LONGEST = 4096  # the longest row that is asked for where a config names no limit


def open_make(folder: str) -> Make:
    """The function that makes subjects of a model folder."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UsageError(f"hf:{folder}: no config.json there; give a Hugging Face model folder")
    if importlib.util.find_spec("transformers") is None:
        raise UsageError("hf: models need transformers; install kat[hf]")
    import transformers
    from safetensors import SafetensorError

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"hf:{folder}: transformers cannot load it ({why})") from None
    tokenizer = None
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"hf:{folder}: transformers cannot load its tokenizer ({why})") from None
    return of_model(model, tokenizer)


def of_model(model: Any, tokenizer: Any = None) -> Make:
    """The function that makes subjects of a transformers model in memory, each with a copy of its weights.

    Overrides are constants of the config; the copy is then made anew, with random weights of the seed.
    """

    def make(seed: int = 0, tiny: bool = True, **overrides: Any) -> HFSubject:
        if not overrides:
            return HFSubject(copy.deepcopy(model), tokenizer)
        config = copy.deepcopy(model.config)
        for key, value in overrides.items():
            if not hasattr(config, key):
                raise UsageError(f"{config.model_type}: its config has no {key!r}")
            setattr(config, key, value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return HFSubject(type(model)(config), tokenizer)

    return make


class HFSubject:
    """See kat.verify.subject.Subject; what the model or its tokenizer cannot do is not offered."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.float().eval(), tokenizer
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        if "position_ids" not in self._takes:
            self.forward = self._forward_without_positions  # type: ignore[method-assign,assignment]
        if {"past_key_values", "use_cache"} <= self._takes:
            self.forward_cached = self._forward_cached
        if {"labels", "attention_mask"} <= self._takes:
            self.loss, self.accumulate, self.collate = self._loss, self._accumulate, self._collate
        if tokenizer is not None:
            self.encode, self.decode = self._encode, self._decode
            if bytes_of_tokens(tokenizer) is not None:
                self.token_bytes = self._token_bytes
            if tokenizer.chat_template:
                self.encode_prompt = self._encode_prompt
                if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
                    self.encode_conversation = self._encode_conversation
        config = self.model.config.get_text_config()
        end = self.model.generation_config.eos_token_id
        self.eos_ids = tuple(end) if isinstance(end, list) else () if end is None else (end,)
        self.pad_id = _first(getattr(tokenizer, "pad_token_id", None), config.pad_token_id)
        self._fill = _first(self.pad_id, *self.eos_ids, 0)
        # A call of generate says all about its sampling: what the folder's generation_config.json adds is left out.
        import transformers

        self.model.generation_config = transformers.GenerationConfig(
            eos_token_id=list(self.eos_ids) or None, pad_token_id=self._fill
        )

    @property
    def traits(self) -> Traits:
        config, vocab = self.model.config.get_text_config(), int(self.model.get_output_embeddings().weight.size(0))
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        learned = any(
            part in name
            for name, _ in self.model.named_parameters()
            for part in ("wpe", "embed_positions", "position_embedding")
        )
        # Some layers may see the whole context.
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and not all("sliding" in kind for kind in kinds):
            window = None
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        special = self.tokenizer.all_special_ids if self.tokenizer is not None else ()
        return Traits(
            name=f"transformers {type(self.model).__name__}",
            vocab=vocab,
            max_len=getattr(config, "max_position_embeddings", None) or LONGEST,
            pad_id=self.pad_id,
            bos_id=self._bos_id(_first(getattr(self.tokenizer, "bos_token_id", None), config.bos_token_id)),
            eos_ids=self.eos_ids,
            special_ids=tuple(sorted({i for i in special if i < vocab})),
            positions="absolute" if learned else "relative",
            window=window,
            tied_head=embedding.weight is head.weight,
            normalisation=_normal_form(self.tokenizer),
            trims=_trims(getattr(self.tokenizer, "chat_template", None)),
            logprobs="tempered",
        )

    def _bos_id(self, named: int | None) -> int | None:
        """The named token, unless the template opens every turn with it or never writes it: then none begins a row."""
        if named is None or not hasattr(self, "encode_prompt"):
            return named
        roles = ("user", "assistant", "user")
        ids = self._encode_prompt([{"role": role, "content": "Owl"} for role in roles])
        return named if ids[:1] == [named] and ids.count(named) < len(roles) else None

    # Model

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        return self.model(
            input_ids=ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).logits

    def _forward_without_positions(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model(input_ids=ids, attention_mask=attention_mask).logits

    def _forward_cached(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output = self.model(input_ids=ids, past_key_values=state, use_cache=True)
        return output.logits, output.past_key_values

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self.model.named_parameters()

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """transformers' generate on one batch, padded on the left."""
        rows = [list(prompt) for prompt in prompts for _ in range(n)]
        width = max(map(len, rows))
        ids = torch.tensor([[self._fill] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        options: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            options = {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": 1.0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            )
        logits = torch.stack(output.logits, dim=1).float() / (temperature or 1.0)  # (rows, T, V)
        chosen = output.sequences[:, width:]
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, chosen[..., None])[..., 0]
        done = [self._completion(i.tolist(), p.tolist()) for i, p in zip(chosen, logprobs, strict=True)]
        return [done[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        """Without what pads a row that ended before others."""
        end = next((i for i, token in enumerate(ids) if token in self.eos_ids), None)
        length = len(ids) if end is None else end + 1
        return Completion(ids[:length], logprobs[:length], "length" if end is None else "stop")

    # Training, as transformers' Trainer calls the model

    def _collate(self, rows: Sequence[Row]) -> Batch:
        """Padded on the right."""
        width = max(len(ids) for ids, _ in rows)
        return {
            "ids": torch.tensor([ids + [self._fill] * (width - len(ids)) for ids, _ in rows]),
            "mask": torch.tensor([mask + [0] * (width - len(mask)) for _, mask in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
        }

    def _loss(self, batch: Batch) -> Tensor:
        return self._loss_of(batch, None)

    def _accumulate(self, micro_batches: Sequence[Batch]) -> None:
        total = sum(int(batch["mask"][:, 1:].sum()) for batch in micro_batches)
        for batch in micro_batches:
            self._loss_of(batch, total).backward()

    def _loss_of(self, batch: Batch, num_items: int | None) -> Tensor:
        labels = batch["ids"].masked_fill(batch["mask"] == 0, IGNORE)
        count = {} if num_items is None else {"num_items_in_batch": num_items}
        return self.model(input_ids=batch["ids"], attention_mask=batch["attention_mask"], labels=labels, **count).loss

    # Text

    def _encode(self, text: str) -> list[int]:
        """Text as text: special tokens in it are not parsed. (The chat template has no such way: it always parses.)"""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _token_bytes(self) -> list[int]:
        """Bytes of each token's text, 0 for special ones and for rows of the head that no token has."""
        lengths = bytes_of_tokens(self.tokenizer) or []
        return [lengths[i] if i < len(lengths) else 0 for i in range(self.traits.vocab)]

    def _encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        return self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]

    def _encode_conversation(self, messages: Sequence[Message]) -> Row:
        output = self.tokenizer.apply_chat_template(list(messages), return_dict=True, return_assistant_tokens_mask=True)
        return list(output["input_ids"]), list(output["assistant_masks"])


def _normal_form(tokenizer: Any) -> str | None:
    """The Unicode normal form that a tokenizer brings every text to; None where it has none."""
    normaliser = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None))
    return next((form for form in ("NFKC", "NFKD", "NFC", "NFD") if form in normaliser), None)


def _trims(template: str | dict[str, str] | None) -> bool:
    """Whether a chat template strips white space off messages."""
    return re.search(r"\|\s*trim\b|\.[lr]?strip\(", str(template or "")) is not None


def bytes_of_tokens(tokenizer: Any) -> list[int] | None:
    """Bytes of each token of a byte-level BPE, 0 for special ones; None for any other tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or "ByteLevel" not in repr(backend.decoder):
        return None
    lengths = [0] * len(tokenizer)
    added = dict(tokenizer.added_tokens_decoder)
    for token, i in tokenizer.get_vocab().items():
        if i in added:
            lengths[i] = 0 if added[i].special else len(token.encode())
        elif i < len(lengths):
            lengths[i] = len(token)  # one character a byte
    return lengths


def _first(*values: int | None) -> Any:
    """The first that is given."""
    return next((value for value in values if value is not None), None)
