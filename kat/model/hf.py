"""A Hugging Face causal language model folder as a backend (extra `hf`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from kat.errors import UsageError
from kat.model.backends import Completion, ContinuationScore, Message, ScoreRequest, common_prefix
from kat.model.checkpoint import identity_of
from kat.model.decoding import Sampling
from kat.runtime import set_threads


class HFBackend:
    """transformers' AutoModelForCausalLM and AutoTokenizer from a local folder. Nothing is downloaded or executed."""

    model: Any  # transformers' own types depend on the checkpoint
    tokenizer: Any

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        if not (folder / "config.json").is_file():
            raise UsageError(f"hf:{folder}: no config.json there; give a Hugging Face model folder")
        try:
            import transformers
        except ImportError:
            raise UsageError("hf: models need transformers; install kat[hf]") from None
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"hf:{folder}: transformers cannot load it ({why})") from None
        self.model.to(device).eval()
        set_threads(sum(p.numel() for p in self.model.parameters()))
        end = self.model.generation_config.eos_token_id
        self.stop_ids = sorted(end if isinstance(end, list) else [end] if end is not None else [])
        self.pad_id = next(i for i in (self.tokenizer.pad_token_id, *self.stop_ids, 0) if i is not None)
        # A request says all about its sampling: what the folder's generation_config.json would add is left out.
        self.model.generation_config = transformers.GenerationConfig(
            eos_token_id=self.stop_ids or None, pad_token_id=self.pad_id
        )
        self.context: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self.name, self.identity = f"hf:{folder}", identity_of(self.model.state_dict(), folder)
        self.protocol: dict[str, Any] = {
            "backend": f"transformers/{transformers.__version__}",
            "device": torch.device(device).type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "stop_ids": self.stop_ids,
        }

    def prompt(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The chat template's prompt; without a template, the messages' texts one after another."""
        if self.tokenizer.chat_template:
            try:
                text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            except jinja2.TemplateError as error:
                raise UsageError(f"{self.name}: its chat template refuses this conversation ({error})") from None
            return text, self._plain(text)
        text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        return text, self.tokenizer(text)["input_ids"]

    @torch.inference_mode()
    def generate(
        self, conversations: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int], n: int = 1
    ) -> list[list[Completion]]:
        """transformers' own generate, one conversation at a time, so that a seed means the same in any batch."""
        return [
            self._generate_one(self.prompt(messages)[1], sampling, seed, n)
            for messages, seed in zip(conversations, seeds, strict=True)
        ]

    def _generate_one(self, prompt: list[int], sampling: Sampling, seed: int, n: int) -> list[Completion]:
        options: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            top_k, top_p = sampling.top_k or 0, sampling.top_p or 1.0  # transformers' words for "all"
            options = {"do_sample": True, "temperature": sampling.temperature, "top_k": top_k, "top_p": top_p}
        ids = torch.tensor([prompt] * n, device=self.model.device)
        with torch.random.fork_rng(devices=[ids.device] if ids.is_cuda else []):
            torch.manual_seed(seed)
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=sampling.max_new_tokens,
                repetition_penalty=sampling.repetition_penalty,
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            )
        logits = torch.stack(output.logits, dim=1).float() / (sampling.temperature or 1.0)  # (n, T, V)
        chosen = output.sequences[:, len(prompt) :]
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, chosen[..., None])[..., 0]
        return [self._completion(i.tolist(), p.tolist()) for i, p in zip(chosen, logprobs, strict=True)]

    def _completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        length = len(ids) if end is None else end + 1
        text = self.tokenizer.decode(ids[: length if end is None else end], clean_up_tokenization_spaces=False)
        return Completion(tuple(ids[:length]), text, tuple(logprobs[:length]), "length" if end is None else "stop")

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[list[ContinuationScore]]:
        results = []
        for request in requests:
            prompt = self.prompt(request.messages)[1]
            rows = [prompt + self._plain(request.prefix + text) for text in request.continuations]
            start = common_prefix([*rows, prompt + self._plain(request.prefix)])
            results.append(
                [
                    ContinuationScore(self._logprob(row, start), len(row) - start, len(text.encode()))
                    for row, text in zip(rows, request.continuations, strict=True)
                ]
            )
        return results

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _logprob(self, row: list[int], start: int) -> float:
        """Sum of log p(row[t] | row[:t]) over t >= start."""
        ids = torch.tensor([row], device=self.model.device)
        logits = self.model(input_ids=ids[:, :-1]).logits[0, start - 1 :].float()
        return -float(F.cross_entropy(logits, ids[0, start:], reduction="sum"))

    @torch.inference_mode()
    def nll(self, texts: Sequence[str]) -> list[tuple[float, int, int]]:
        results = []
        context = getattr(self.model.config, "max_position_embeddings", 1024)
        first = next(i for i in (self.tokenizer.bos_token_id, *self.stop_ids, 0) if i is not None)
        for text in texts:
            ids = self._plain(text)
            row, nats = [first, *ids], 0.0
            # The native backend's windows: the context's length, each token predicted exactly once.
            for start in range(0, len(row) - 1, context):
                nats -= self._logprob(row[start : start + context + 1], 1)
            results.append((nats, len(text.encode()), len(ids)))
        return results
