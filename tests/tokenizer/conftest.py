"""A small tokenizer, its folder, and its twin in the `tokenizers` library, each made once."""

from pathlib import Path

import pytest
import tokenizers
import transformers
from token_samples import corpus, library

from kat.tokenizer.bpe import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tok() -> Tokenizer:
    return train_tokenizer(corpus(1), 700)


@pytest.fixture(scope="session")
def folder(tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer's folder as `save` writes it."""
    path = tmp_path_factory.mktemp("tokenizer")
    tok.save(path, model_max_length=512)
    return path


@pytest.fixture(scope="session")
def twin(folder: Path) -> tokenizers.Tokenizer:
    return library(folder)


@pytest.fixture(scope="session")
def auto(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The folder as transformers loads it."""
    return transformers.AutoTokenizer.from_pretrained(folder)
