"""The reward model: what it reads, what moves, what a pair's weight means, and that it is also a causal checkpoint."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kat.errors import EvidenceError, UsageError
from kat.model.checkpoint import load_checkpoint
from kat.model.reward import RewardCheckpoint, RewardModel, load_reward, pad_right, response_ids
from kat.model.tensors import load_tensors, save_tensors
from kat.runs.settings import RewardSettings, make_settings
from kat.runtime import World
from kat.trainers.loop import Loop
from kat.trainers.reward import RewardTask, bradley_terry
from kat.trainers.stages import build_job
from tests.model.helpers import random_model, tiny_tokenizer
from tests.trainers.helpers import meta, metrics, ranks, request, run, same_result
from tests.trainers.preference_helpers import pairs, reward_request

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("init")
    run(request(here, steps=30, peak=3.0))
    return here / "out"


def judge(seed: int = 0) -> RewardCheckpoint:
    """A reward model with random weights everywhere."""
    tokenizer = tiny_tokenizer()
    model = RewardModel(random_model(seed, vocab_size=tokenizer.vocab_size)).eval()
    with torch.no_grad():
        model.head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(seed))
        model.head.bias.fill_(0.3)
    return RewardCheckpoint(Path("nowhere"), model, tokenizer, {}, "identity")


def loop_of(job, init: Path) -> Loop:
    checkpoint = load_checkpoint(init)
    model = RewardModel(checkpoint.model)
    with torch.no_grad():  # at zero no gradient would reach the backbone
        model.head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    task = RewardTask(job, checkpoint.tokenizer, World())
    cpu = torch.device("cpu")
    return Loop(model, task, job.settings, world=World(), device=cpu, dtype=torch.float32, out=Path("unused"))


def gradient(loop: Loop) -> torch.Tensor:
    loop.model.zero_grad()
    loop.backward([loop.task.next_batch() for _ in range(loop.accumulate)])
    return torch.cat([p.grad.flatten() for p in loop.model.parameters() if p.grad is not None])


words = st.lists(st.sampled_from(["kato", "ri", "lone", "漢", "neka"]), min_size=1, max_size=8).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
@settings(deadline=None, max_examples=25)
def test_a_score_depends_on_its_own_row_alone(rows: list[tuple[str, str]]) -> None:
    """Not on the padding, its width, the rows beside it, or their order."""
    one = judge()
    asked = [[{"role": "user", "content": prompt}] for prompt, _ in rows]
    scores = one.score(asked, [response for _, response in rows])
    for k, (messages, (_, response)) in enumerate(zip(asked, rows, strict=True)):
        ids = response_ids(one.tokenizer, messages, response)
        with torch.no_grad():
            hidden = one.model.gpt.hidden(torch.tensor([ids]))[0, -1]
            alone = hidden @ one.model.head.weight[0] + one.model.head.bias[0]
        assert scores[k] == pytest.approx(float(alone), abs=1e-4)


def test_the_pad_id_inside_the_text_is_a_token_like_others() -> None:
    one = judge()
    pad = one.tokenizer.pad_id
    rows = [[5, pad, 7, 8], [5, pad, pad], [9, 4, 3, 2, 1, 6]]
    ids, last = pad_right(rows, pad)
    together = one.model(ids, last)
    for row, score in zip(rows, together, strict=True):
        torch.testing.assert_close(one.model(torch.tensor([row]), torch.tensor([len(row) - 1]))[0], score)
    assert together.std() > 0.01


def test_bradley_terry_is_its_formula_and_antisymmetric() -> None:
    chosen, rejected = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    wanted = [-math.log(1 / (1 + math.exp(-(c - r)))) for c, r in zip(chosen, rejected, strict=True)]
    torch.testing.assert_close(bradley_terry(chosen, rejected), torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(
        torch.exp(-bradley_terry(chosen, rejected)) + torch.exp(-bradley_terry(rejected, chosen)),
        torch.ones(50).double(),
    )
    assert torch.isfinite(bradley_terry(torch.tensor([-1e5]), torch.tensor([1e5]))).all()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("backbone", ["trained", "frozen"])
def test_what_has_a_rate_moves_and_what_has_none_does_not(
    tmp_path: Path, init: Path, optimizer: str, backbone: str
) -> None:
    asked = reward_request(tmp_path, init, optimizer=optimizer, backbone=backbone, keep_best=False, weight_decay=0.1)
    run(asked)
    before, after = load_tensors(init / "model.safetensors"), load_tensors(asked.out / "model.safetensors")
    for name in before:
        moved = not torch.equal(before[name], after[name])
        assert moved == (backbone == "trained" and name != "lm_head.weight"), name
    assert load_tensors(asked.out / "reward_head.safetensors")["weight"].abs().max() > 0


def test_the_first_loss_is_ln_2_and_it_learns(tmp_path: Path, init: Path) -> None:
    run(reward_request(tmp_path, init, steps=60, peak=0.3, keep_best=False))
    rows = metrics(tmp_path / "reward")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["loss"] < 0.3
    assert rows[-1]["val_accuracy"] > 0.8
    found = load_reward(tmp_path / "reward")
    asked = [[{"role": "user", "content": "ri 500"}]] * 2
    liked, other = found.score(asked, ["kato toto toto", "kato ri neka"])
    assert liked > other


def test_scores_are_centred_on_the_training_pairs(tmp_path: Path, init: Path) -> None:
    asked = reward_request(tmp_path, init)
    run(asked)
    found, job = load_reward(asked.out), build_job(asked, QUIET)
    assert abs(np.mean(found.score_ids([*job.train.chosen, *job.train.rejected]))) < 1e-4
    assert float(found.model.head.bias) != 0


def test_it_is_still_a_causal_checkpoint_and_its_identity_covers_the_head(tmp_path: Path, init: Path) -> None:
    import transformers

    asked = reward_request(tmp_path, init)
    run(asked)
    twin = transformers.AutoModelForCausalLM.from_pretrained(asked.out)
    ids = torch.tensor([[3, 4, 5, 6]])
    plain = load_checkpoint(asked.out)
    torch.testing.assert_close(twin(ids).logits, plain.model(ids), atol=1e-4, rtol=1e-4)
    assert load_reward(asked.out).identity == plain.identity == meta(asked.out)["identity"]
    head = load_tensors(asked.out / "reward_head.safetensors")
    save_tensors(asked.out / "reward_head.safetensors", {**head, "bias": head["bias"] + 1})
    with pytest.raises(EvidenceError, match=r"reward_head\.safetensors: damaged"):
        load_reward(asked.out)
    with pytest.raises(UsageError, match="without a reward head; train one with `kat train reward`"):
        load_reward(init)


@example(stops=[3, 4], frozen=False)  # the best step is the one at which the first piece stopped
@given(stops=st.lists(st.integers(0, 10), min_size=1, max_size=2), frozen=st.booleans())
@settings(deadline=None, max_examples=6)
def test_a_run_in_pieces_is_the_run(tmp_path_factory, init: Path, stops: list[int], frozen: bool) -> None:
    here = tmp_path_factory.mktemp("pieces")
    more = {"backbone": "frozen" if frozen else "trained", "micro_batch_size": 2}
    run(reward_request(here, init, "straight", **more))
    for stop in sorted(stops):
        run(reward_request(here, init, "pieces", **more, max_steps=stop))
    run(reward_request(here, init, "pieces", **more))
    assert same_result(here / "pieces", here / "straight")
    heads = [load_tensors(here / name / "reward_head.safetensors") for name in ("pieces", "straight")]
    assert torch.equal(heads[0]["weight"], heads[1]["weight"])


def test_two_ranks_train_what_one_does(tmp_path: Path, init: Path) -> None:
    asked = reward_request(tmp_path, init, "one", optimizer="adamw", keep_best=False)
    run(asked)
    assert ranks(lambda: run(replace(asked, out=tmp_path / "two")), 2) == [0, 0]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for name in ("loss", "grad_norm", "pairs", "val_loss", "val_accuracy"):
            assert a.get(name) == pytest.approx(b.get(name), abs=1e-4), name


def test_loss_weights_are_those_of_the_whole_data_whatever_the_batch(tmp_path: Path, init: Path) -> None:
    """Over one pass of all pairs, the mean weighted gradient is the gradient of Σ w_i · ℓ_i."""
    asked = reward_request(tmp_path, init, validation_share=0.0, keep_best=False)
    job = build_job(asked, QUIET)
    n = len(job.train)
    weights = np.random.default_rng(0).dirichlet(np.ones(n))
    found = {}
    for size in (1, 4, n):
        schedule = replace(job.schedule, ids=job.train.names)  # each pair once
        weighed = replace(
            job, loss_weights=weights, schedule=schedule, settings=job.settings.model_copy(update={"batch_size": size})
        )
        loop = loop_of(weighed, init)
        found[size] = torch.stack([gradient(loop) for _ in range(n // size)]).mean(dim=0)
    loop = loop_of(job, init)
    batch = loop.task._batch(loop.task.data, list(range(n)))
    chosen, rejected = loop.model(batch["ids"], batch["last"]).chunk(2)
    loop.model.zero_grad()
    (torch.from_numpy(weights).float() * bradley_terry(chosen, rejected)).sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in loop.model.parameters() if p.grad is not None])
    for size, mean in found.items():
        torch.testing.assert_close(mean, wanted, rtol=1e-3, atol=1e-6), size


def test_validation_never_sees_a_prompt_of_training(tmp_path: Path, init: Path) -> None:
    asked = reward_request(tmp_path, init, validation_share=0.3)
    job = build_job(asked, QUIET)
    assert len(job.validation) > 0
    assert not set(job.train.prompts) & set(job.validation.prompts)
    other = replace(asked, settings=asked.settings.model_copy(update={"validation": (str(asked.data[0]),)}))
    with pytest.raises(UsageError, match="40 training pairs have a prompt of the validation rows"):
        run(other)


def test_pairs_beyond_the_context_are_dropped_and_counted(tmp_path: Path, init: Path) -> None:
    data = pairs(tmp_path / "pairs.jsonl")
    long = {"id": "long", "prompt": [{"role": "user", "content": "ri " * 90}], "chosen": "a", "rejected": "b"}
    import json

    data.write_text(data.read_text() + json.dumps(long) + "\n")
    job = build_job(reward_request(tmp_path, init, validation_share=0.0), QUIET)
    assert job.train.n_dropped == 1
    assert "long" not in job.train.names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampling": "density", "loss_weights": "density", "density": "w"},
            "not both: together they weigh by its square",
        ),
        ({"sampling": "density"}, "density weights need `density`"),
        ({"loss_weights": "placebo"}, "placebo weights need `density`"),
        ({"density": "w"}, "`density` is given and nothing uses it"),
        ({"backbone": "warm"}, "backbone"),
    ],
)
def test_impossible_settings(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_settings(RewardSettings, changes, "--set")
