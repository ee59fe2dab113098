"""The gpu lane: what the CPU computes, an NVIDIA GPU computes too. `ci/gpu.sh` runs it."""

import json
from pathlib import Path

import pytest
import torch

from golden.cases import differences, training
from kat.model.config import GPTConfig
from kat.model.decoding import Sampling, generate
from kat.model.gpt import GPT

pytestmark = pytest.mark.gpu
GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def device() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    return "cuda"


def model() -> GPT:
    gpt = GPT(GPTConfig(vocab_size=96, sequence_len=48, n_layer=2, n_embd=32, n_head=4, n_kv_head=2))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.normal_(0.0, 0.2, generator=generator)
    return gpt.eval()


def test_logits_are_those_of_the_cpu(device: str) -> None:
    tokens = torch.arange(40)[None] * 7 % 96
    with torch.no_grad():
        here, there = model()(tokens), model().to(device)(tokens.to(device)).cpu()
    assert torch.allclose(here, there, atol=1e-3)


def test_greedy_answers_are_those_of_the_cpu(device: str) -> None:
    wanted = json.loads((GOLDEN / "model.json").read_text())["greedy"]
    prompts = [[1, 2, 3], [50, 40, 30, 20, 10, 5]]
    rows = generate(model().to(device), prompts, Sampling(max_new_tokens=24), stop_ids=[], pad_id=95, seeds=[0, 0])
    assert [list(row[0].ids) for row in rows] == wanted


def test_training_is_that_of_the_cpu(device: str) -> None:
    """Twenty steps of Muon and AdamW: the losses stay together up to what the order of sums moves."""
    wanted = json.loads((GOLDEN / "training.json").read_text())
    assert not differences(wanted, training(device), 0.02)
