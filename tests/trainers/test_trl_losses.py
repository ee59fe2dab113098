"""On frozen batches kat's losses are those of trl's own trainers, and so are their gradients."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from kat.runtime import World
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.grpo import GrpoTask
from kat.trainers.native import build_task, initial_model, with_head
from kat.trainers.policy_loss import group_advantages, k3
from kat.trainers.rollout import completion_logits
from kat.trainers.stages import build_job
from tests.trainers.helpers import request, run, sft_request
from tests.trainers.preference_helpers import grpo_request, reward_request
from tests.trainers.test_loop import Silent

pytest.importorskip("trl", reason="needs kat[trl]")
from kat.trainers.trl import _trainer, packed_rows
from kat.trainers.trl_rollout import Remembered
from kat.trainers.trl_run import Run

QUIET = Console(quiet=True)
CLOSE = {"rtol": 0, "atol": 1e-6}
ROWS, WIDTH, LONGEST = 8, 20, 6  # of the frozen batch of completions


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in it whose logits depend on the context."""
    folder = tmp_path_factory.mktemp("trl")
    run(request(folder, "init", steps=30, peak=3.0, sequence_len=48))
    return folder


def open_run(asked) -> tuple[Run, Any]:
    """A run at step 0 and trl's trainer of it; both hold the same parameters."""
    job = build_job(asked, QUIET)
    device, dtype = torch.device("cpu"), torch.float32
    tokenizer = Tokenizer.load(job.tokenizer)
    gpt = initial_model(job, tokenizer, device, 1)
    model = with_head(gpt, job.settings) if job.stage == "reward" else gpt
    run_ = Run(job, Silent(), model, build_task(job, gpt, tokenizer, World(), dtype), device, dtype)
    return run_, _trainer(run_, Remembered(job.reward) if job.reward else None)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return {name: gradient for name, gradient in found.items() if bool(gradient.any())}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs) and ours
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda text, at=name: f"{at}: {text}"
        )


# SFT and the reward model


@pytest.mark.parametrize(("layout", "micro"), [("packed", 4), ("packed", 1), ("stream", 2)])
def test_sft_loss(here: Path, layout: str, micro: int) -> None:
    run_, trainer = open_run(sft_request(here, here / "init", layout=layout, micro_batch_size=micro))
    batches = [run_.task.next_batch() for _ in range(4 // micro)]
    rows, count = trainer.get_batch_samples(iter(map(packed_rows, batches)), len(batches), torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(batches)
    theirs = sum(trainer.compute_loss(trainer.model, row, num_items_in_batch=count) for row in rows)
    theirs.backward()
    their_gradients = gradients(run_.model)
    weight = sum(map(run_.task.weight, batches))
    ours = sum(run_.task.loss(run_.model, batch) for batch in batches) / weight
    ours.backward()
    assert int(count) == weight
    assert layout == "stream" or any(batch["doc_ids"].max() > 0 for batch in batches)  # some row has two documents
    torch.testing.assert_close(ours, theirs, **CLOSE)
    same(gradients(run_.model), their_gradients)


@pytest.mark.parametrize("backbone", ["trained", "frozen"])
def test_bradley_terry_loss(here: Path, backbone: str) -> None:
    run_, trainer = open_run(reward_request(here, here / "init", backbone=backbone))
    with torch.no_grad():
        run_.model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    for theirs_in in itertools.islice(trainer.get_train_dataloader(), 3):
        theirs = trainer.compute_loss(trainer.model, theirs_in)
        theirs.backward()
        their_gradients = gradients(run_.model)
        batch = run_.task.next_batch()
        ours = run_.task.loss(run_.model, batch) / run_.task.weight(batch)
        ours.backward()
        assert torch.equal(batch["ids"], theirs_in["input_ids"])
        assert abs(ours.item() - 0.6931) > 0.01
        torch.testing.assert_close(ours, theirs, **CLOSE)
        same(gradients(run_.model), their_gradients)


# GRPO


@pytest.fixture(scope="module")
def grpo(here: Path) -> tuple[Run, Any]:
    asked = grpo_request(here, here / "init", prompts_per_rollout=2, completions=4, batch_size=8, temperature=0.7)
    return open_run(asked)


@pytest.fixture(scope="module")
def frozen(grpo: tuple[Run, Any]) -> dict[str, Tensor]:
    """ROWS completions of unequal length behind prompts of unequal length: log-probabilities off by up to 0.6 nats from
    the policy's, so that ratios leave the clipping range on both sides; the last row is a truncated one."""
    task = grpo[0].task
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, task.policy.config.vocab_size - 9, (ROWS, WIDTH), generator=generator)
    mask = torch.zeros(ROWS, WIDTH, dtype=torch.bool)
    for row, (start, length) in enumerate([(5, 6), (3, 1), (9, 4), (14, 6), (7, 5), (2, 3), (11, 2), (4, 6)]):
        mask[row, start : start + length] = True
        ids[row, start + length :] = task.tokenizer.pad_id
    with torch.no_grad():
        logits = completion_logits(task.policy, ids, mask, task.settings.temperature)
    logprobs = torch.zeros(ROWS, WIDTH).masked_scatter(
        mask, torch.log_softmax(logits, -1).gather(1, ids[mask][:, None])[:, 0]
    )

    def off(most: float) -> Tensor:
        return torch.where(mask, logprobs + most * (2 * torch.rand(ROWS, WIDTH, generator=generator) - 1), 0.0)

    advantages = torch.randn(ROWS, generator=generator)
    return {"ids": ids, "mask": mask, "old": off(0.6), "ref": off(0.9), "advantages": advantages, "logprobs": logprobs}


def to_trl(task: GrpoTask, rows: dict[str, Tensor], items: Tensor, masked: Tensor) -> dict[str, Tensor]:
    """The rows as trl lays them out: prompts padded on the left, completions on the right."""

    def laid_out(values: Tensor, fill: float) -> Tensor:
        result = torch.full((len(values), LONGEST), fill, dtype=values.dtype)
        for i, (row, mask) in enumerate(zip(values, rows["mask"], strict=True)):
            result[i, : int(mask.sum())] = row[mask]
        return result

    starts = rows["mask"].int().argmax(dim=1)
    prompts = torch.full((len(starts), int(starts.max())), task.tokenizer.pad_id)
    for i, (row, start) in enumerate(zip(rows["ids"], starts.tolist(), strict=True)):
        prompts[i, prompts.size(1) - start :] = row[:start]
    counted = laid_out(rows["mask"].long(), 0)
    return {
        "prompt_ids": prompts,
        "prompt_mask": (torch.arange(prompts.size(1)) >= prompts.size(1) - starts[:, None]).long(),
        "completion_ids": laid_out(rows["ids"], task.tokenizer.pad_id),
        "completion_mask": counted * (~masked)[:, None],
        "old_per_token_logps": laid_out(rows["old"], 0.0),
        "ref_per_token_logps": laid_out(rows["ref"], 0.0),
        "advantages": rows["advantages"],
        "num_items_in_batch": items,
    }


LOSS = {"token-mean": "dapo", "sequence-mean": "grpo", "dr-grpo": "dr_grpo"}
CASES = [
    (aggregation, kl_coef, high, micro, masked)
    for aggregation, masked in [
        ("token-mean", False),
        ("token-mean", True),
        ("sequence-mean", False),
        ("dr-grpo", False),
    ]
    for kl_coef, high, micro in [(0.0, 0.2, 8), (0.1, 0.28, 8), (0.1, 0.28, 2)]
]


@pytest.mark.parametrize(("aggregation", "kl_coef", "high", "micro", "masked"), CASES)
def test_grpo_loss(
    grpo: tuple[Run, Any],
    frozen: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    aggregation: str,
    kl_coef: float,
    high: float,
    micro: int,
    masked: bool,
) -> None:
    run_, trainer = grpo
    task = run_.task
    monkeypatch.setattr(
        task, "settings", task.settings.model_copy(update={"aggregation": aggregation, "clip_high": high})
    )
    monkeypatch.setattr(task, "kl_coef", kl_coef)
    for name, value in {"loss_type": LOSS[aggregation], "beta": kl_coef, "epsilon_high": high}.items():
        monkeypatch.setattr(trainer, name, value)
    accumulate = ROWS // micro
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", accumulate, raising=False)
    monkeypatch.setattr(trainer.args, "steps_per_generation", accumulate)
    monkeypatch.setattr(trainer, "max_completion_length", task.settings.max_new_tokens)
    monkeypatch.setattr(task, "last_metrics", {}, raising=False)
    trainer._metrics["train"].clear()
    truncated = torch.zeros(ROWS, dtype=torch.bool)
    truncated[-1] = masked
    items = (frozen["mask"] & ~truncated[:, None]).sum()
    ours = theirs = torch.tensor(0.0)
    weight = 0
    for start in range(0, ROWS, micro):
        rows = {name: values[start : start + micro] for name, values in frozen.items()}
        theirs = theirs + trainer._compute_loss(
            trainer.model, to_trl(task, rows, items, truncated[start : start + micro])
        )
    theirs.backward()
    their_gradients = gradients(run_.model)
    for start in range(0, ROWS, micro):
        rows = {name: values[start : start + micro] for name, values in frozen.items()}
        rows["mask"] = rows["mask"] & ~truncated[start : start + micro, None]
        ours = ours + task.loss(run_.model, rows)
        weight += task.weight(rows)
    (ours / weight).backward()
    torch.testing.assert_close(ours / weight, theirs, **CLOSE)
    same(gradients(run_.model), their_gradients)
    own, logs = task.metrics(World()), trainer._metrics["train"]
    assert own["clip_fraction"] > 0.1
    if micro == ROWS:  # trl takes the mean over micro-batches, however many tokens each has
        assert logs["clip_ratio/region_mean"][0] == pytest.approx(own["clip_fraction"], abs=1e-6)
        assert logs["entropy"][0] == pytest.approx(own["entropy"], abs=1e-5)
        if kl_coef:
            mask = frozen["mask"] & ~truncated[:, None]
            assert logs["kl"][0] == pytest.approx(float(k3(frozen["logprobs"], frozen["ref"])[mask].mean()), abs=1e-6)


def trl_rewarded(trainer: Any, rewards: list[float], ends: list[bool]) -> dict[str, Tensor]:
    """What trl makes of completions of 3 tokens with these rewards; those that do not end are truncated."""
    eos = trainer._tokenizer.eos_token_id
    completions = [[20, 21, eos if end else 22] for end in ends]

    def rollout(prompts: list[str], _trainer: Any) -> dict[str, Any]:
        logprobs = [[0.0] * 3] * len(prompts)
        return {
            "prompt_ids": [[5, 6]] * len(prompts),
            "completion_ids": completions,
            "logprobs": logprobs,
            "reward": rewards,
        }

    trainer.rollout_func = rollout
    return trainer._generate_and_score_completions([{"prompt": "0"} for _ in rewards])


# Exact in float32, in which trl computes; see test_equal_rewards_are_worth_nothing for what it makes of other numbers.
eighths = st.integers(-16, 16).map(lambda n: n / 8)


@settings(max_examples=25, deadline=None)
@given(
    rewards=st.lists(st.lists(eighths, min_size=4, max_size=4), min_size=2, max_size=2),
    scale=st.sampled_from(["group", "batch", "none"]),
)
def test_group_advantages(grpo: tuple[Run, Any], rewards: list[list[float]], scale: Any) -> None:
    trainer = grpo[1]
    trainer.scale_rewards = scale
    theirs = trl_rewarded(trainer, rewards[0] + rewards[1], [True] * 8)["advantages"]
    torch.testing.assert_close(group_advantages(torch.tensor(rewards), scale).flatten(), theirs, **CLOSE)


def test_equal_rewards_are_worth_nothing(grpo: tuple[Run, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of three equal float32 numbers is not always that number, and trl divides what is left by 1e-4: its
    advantages are up to 0.0024 here."""
    monkeypatch.setattr(grpo[1], "num_generations", 3)
    monkeypatch.setattr(grpo[1], "scale_rewards", "group")
    for value in [n / 10 for n in range(1, 40)]:
        rewards = [value, value, value, value, value, 5.0]
        theirs = trl_rewarded(grpo[1], rewards, [True] * 6)["advantages"]
        ours = group_advantages(torch.tensor(rewards).view(2, 3)).flatten()
        assert not ours[:3].any() and ours[3:].all()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-3)


def test_truncated_completions_are_counted_alike(grpo: tuple[Run, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo[1], "mask_truncated_completions", True)
    ends = [True, False, True, True, False, True, True, True]
    made = trl_rewarded(grpo[1], [0.0, 1.0] * 4, ends)
    assert made["completion_mask"].bool().any(dim=1).tolist() == ends
    assert int(made["num_items_in_batch"]) == 3 * sum(ends)
