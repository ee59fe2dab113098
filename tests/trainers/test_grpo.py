"""GRPO on a tiny model: what is sampled is what is trained on, what must not move does not, and runs in pieces."""

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kat.data.encoded import encode_prompts
from kat.data.preferences import load_prompts
from kat.errors import UsageError
from kat.model.checkpoint import load_checkpoint
from kat.model.tensors import load_tensors
from kat.runs.settings import GrpoSettings, make_settings
from kat.runtime import World
from kat.trainers.grpo import GrpoTask
from kat.trainers.loop import Loop
from kat.trainers.rollout import CollapseError, completion_logits
from kat.trainers.stages import build_job
from tests.trainers.helpers import meta, metrics, ranks, request, run, same_result
from tests.trainers.preference_helpers import Said, grpo_request, prompts
from tests.trainers.test_loop import Silent

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose logits depend on the context."""
    here = tmp_path_factory.mktemp("init")
    run(request(here, steps=30, peak=3.0))
    return here / "out"


def loop_of(here: Path, init: Path, reward=None, **changes) -> Loop:
    """A loop at step 0, and its task."""
    job = build_job(grpo_request(here, init, reward=reward, **changes), QUIET)
    checkpoint = load_checkpoint(init)
    task = GrpoTask(job, checkpoint.model, checkpoint.tokenizer, World(), torch.float32)
    return Loop(
        checkpoint.model,
        task,
        job.settings,
        world=World(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        out=here / "x",
    )


def step_batches(loop: Loop) -> list[dict[str, torch.Tensor]]:
    return [loop.task.next_batch() for _ in range(loop.accumulate)]


def gradients(loop: Loop, batches) -> torch.Tensor:
    loop.model.zero_grad()
    loop.backward(batches)
    return torch.cat([p.grad.flatten() for p in loop.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_the_first_ratio_is_one_at_any_temperature(tmp_path: Path, init: Path, temperature: float) -> None:
    loop = loop_of(tmp_path, init, temperature=temperature)
    for batch in step_batches(loop):
        mask = batch["mask"]
        logits = completion_logits(loop.model, batch["ids"], mask, temperature)
        now = torch.log_softmax(logits, -1).gather(1, batch["ids"][mask][:, None])[:, 0]
        assert (now - batch["old"][mask]).abs().max() < 1e-5
        assert (now - batch["ref"][mask]).abs().max() < 1e-5
        assert now.std() > 0.1


def test_completions_are_counted_to_their_end_token(tmp_path: Path, init: Path) -> None:
    loop = loop_of(tmp_path, init, max_new_tokens=12, batch_size=16)
    task = loop.task
    batch = task.next_batch()
    eos, found = task.tokenizer.eos_id, 0
    for ids, mask in zip(batch["ids"], batch["mask"], strict=True):
        counted = ids[mask].tolist()
        assert eos not in counted[:-1]
        assert counted[-1] == eos or len(counted) == 12
        found += counted[-1] == eos
        first = int(mask.nonzero()[0])
        assert ids[first - 1] == task.tokenizer.special["<|assistant_start|>"]
        assert (mask.nonzero()[:, 0].diff() == 1).all()
    assert 0 < found < 16, "the case must hold both kinds"


def test_rewards_meet_their_own_completions_and_prompts(tmp_path: Path, init: Path) -> None:
    seen = {}

    class Spy(Said):
        def __call__(self, asked, responses):
            for prompt, response in zip(asked, responses, strict=True):
                seen.setdefault(prompt.id, []).append(response)
            return super().__call__(asked, responses)

    loop = loop_of(tmp_path, init, reward=Spy(), batch_size=16, scale_rewards="none")
    task = loop.task
    batch = task.next_batch()
    by_text = {task.tokenizer.decode(ids): prompt for ids, prompt in zip(task.data.ids, task.data.prompts, strict=True)}
    groups: dict[str, list[tuple[str, float]]] = {}
    for ids, mask, advantage in zip(batch["ids"], batch["mask"], batch["advantages"], strict=True):
        first = int(mask.nonzero()[0])
        prompt = by_text[task.tokenizer.decode(ids[:first].tolist())]
        said = [i for i in ids[mask].tolist() if i != task.tokenizer.eos_id]
        groups.setdefault(prompt.id, []).append((task.tokenizer.decode(said), float(advantage)))
    drawn = task.schedule.ids[:4]
    assert sorted(groups) == sorted(set(drawn))
    for name, rows in groups.items():
        assert sorted(text for text, _ in rows) == sorted(seen[name])
        if drawn.count(name) == 1:
            counts = [text.count("o") for text, _ in rows]
            for (_, advantage), count in zip(rows, counts, strict=True):
                assert advantage == pytest.approx(count - sum(counts) / len(counts), abs=1e-6)


def test_samples_of_a_group_differ_in_their_first_token(tmp_path: Path, init: Path) -> None:
    loop = loop_of(tmp_path, init, completions=16, batch_size=64, temperature=1.3)
    batch = loop.task.next_batch()
    firsts = [int(ids[int(mask.nonzero()[0])]) for ids, mask in zip(batch["ids"], batch["mask"], strict=True)]
    assert firsts != firsts[:1] * len(firsts) and len(set(firsts)) > 2


def test_flipping_the_rewards_flips_the_gradient(tmp_path: Path, init: Path) -> None:
    up, down = (
        gradients(loop, step_batches(loop))
        for loop in (loop_of(tmp_path, init, Said(factor=f), kl_coef=0.0) for f in (1.0, -1.0))
    )
    assert up.norm() > 1e-3
    assert torch.cosine_similarity(up, down, dim=0) < -0.999


@pytest.mark.parametrize("how", ["token-mean", "sequence-mean", "dr-grpo"])
@pytest.mark.parametrize("mask_truncated", [False, True])
def test_the_gradient_does_not_depend_on_the_micro_batches(
    tmp_path: Path, init: Path, how: str, mask_truncated: bool
) -> None:
    more = {"aggregation": how, "mask_truncated": mask_truncated, "max_new_tokens": 10, "kl_in": "exact"}
    whole = gradients(loop := loop_of(tmp_path, init, **more), step_batches(loop))
    assert whole.norm() > 1e-4
    for micro in (1, 2, 4):
        loop = loop_of(tmp_path, init, micro_batch_size=micro, **more)
        torch.testing.assert_close(gradients(loop, step_batches(loop)), whole, rtol=1e-4, atol=1e-6)


def test_without_variance_and_divergence_nothing_moves(tmp_path: Path, init: Path) -> None:
    result = run(grpo_request(tmp_path, init, reward=Said("q"), kl_coef=0.0, steps=4))
    before, after = (load_checkpoint(folder).model.state_dict() for folder in (init, result.folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_policy_and_reference_begin_as_the_checkpoint_and_only_one_moves(tmp_path: Path, init: Path) -> None:
    loop = loop_of(tmp_path, init)
    start = load_tensors(init / "model.safetensors")
    for model in (loop.task.policy, loop.task.reference):
        assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    loop.run(Silent(), None)
    assert all(torch.equal(tensor, start[name]) for name, tensor in loop.task.reference.state_dict().items())
    assert not torch.equal(loop.task.policy.state_dict()["lm_head.weight"], start["lm_head.weight"])


def test_the_log_says_what_happened(tmp_path: Path, init: Path) -> None:
    run(grpo_request(tmp_path, init, epochs_per_rollout=2, batch_size=16, peak=8.0, steps=6, max_kl=1e9))
    rows = metrics(tmp_path / "grpo")
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["kl"] == rows[1]["kl"]  # the same rollout, seen twice
    assert rows[2]["kl"] > 0.01
    assert [row["clip_fraction"] > 0 for row in rows] == [False, True] * 3  # a first pass is on policy
    assert [row["distinct_prompts"] for row in rows] == sorted(row["distinct_prompts"] for row in rows)
    for row in rows:
        assert 0 <= row["zero_variance_groups"] <= 1
        assert 1 <= row["length"] <= 6
        assert row["entropy"] <= math.log(300)
        assert row["effective_prompts"] <= row["distinct_prompts"]


def test_it_learns_what_it_is_rewarded_for(tmp_path: Path, init: Path) -> None:
    run(grpo_request(tmp_path, init, steps=12, completions=8, batch_size=32, kl_coef=0.0))
    rows = metrics(tmp_path / "grpo")
    first, last = (sum(row["reward"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 1


@pytest.mark.parametrize("target", [0.02])
def test_the_coefficient_follows_its_target(tmp_path: Path, init: Path, target: float) -> None:
    run(grpo_request(tmp_path, init, kl_target=target, kl_horizon=1, batch_size=16, steps=6))
    rows = metrics(tmp_path / "grpo")
    for row, after in itertools.pairwise(rows):
        error = min(max(row["kl"] / target - 1, -0.2), 0.2)
        assert after["kl_coef"] == pytest.approx(row["kl_coef"] * (1 + error))


VARIANTS = {
    "on policy": {"batch_size": 16},
    "within a rollout": {"epochs_per_rollout": 2, "batch_size": 8, "micro_batch_size": 4},
    "reward_k1": {
        "kl_in": "reward_k1",
        "kl_target": 0.05,
        "scale_rewards": "batch",
        "max_new_tokens": 12,
        "batch_size": 16,
    },
}


@given(st.sampled_from(list(VARIANTS)), st.lists(st.integers(0, 9), min_size=1, max_size=3))
@settings(deadline=None, max_examples=8)
def test_a_run_in_pieces_is_the_run(tmp_path_factory, init: Path, name: str, stops: list[int]) -> None:
    """Also where it stops with a rollout half consumed."""
    here = tmp_path_factory.mktemp("pieces")
    run(grpo_request(here, init, "straight", **VARIANTS[name]))
    for stop in sorted(stops):
        run(grpo_request(here, init, "pieces", **VARIANTS[name], max_steps=stop))
    run(grpo_request(here, init, "pieces", **VARIANTS[name]))
    assert same_result(here / "pieces", here / "straight")
    assert (here / "pieces" / "schedule.json").read_bytes() == (here / "straight" / "schedule.json").read_bytes()


def test_two_ranks_make_the_rollouts_of_one(tmp_path: Path, init: Path) -> None:
    asked = grpo_request(tmp_path, init, "one", batch_size=16, scale_rewards="batch", optimizer="adamw", lr=1e-3)
    run(asked)
    assert ranks(lambda: run(replace(asked, out=tmp_path / "two")), 2) == [0, 0]
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["reward"] == b["reward"]
        assert a["length"] == b["length"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    before, after = (load_tensors(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(before[name], after[name], atol=1e-4) for name in before)


# What goes wrong


def refused(asked, message: str, error: type[Exception] = UsageError) -> None:
    with pytest.raises(error, match=message) as caught:
        run(asked)
    assert "\n" not in str(caught.value)
    assert not asked.out.exists()


class Broken(Said):
    """A reward that goes wrong in some way."""

    def __init__(self, answer) -> None:
        object.__setattr__(self, "letter", "x")
        object.__setattr__(self, "factor", 1.0)
        object.__setattr__(self, "answer", answer)

    def __call__(self, prompts, responses):
        return self.answer(responses)


def fail(_responses):
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fail, "reward letter x raised ZeroDivisionError: division by zero"),
        (lambda r: [math.nan] * len(r), "reward letter x returned nan for the response"),
        (lambda r: [math.inf] * len(r), "reward letter x returned inf"),
        (lambda r: [1.0] * (len(r) - 1), "returned 15 numbers for 16 responses"),
        (lambda r: ["good"] * len(r), "raised ValueError"),
        (lambda r: None, "raised TypeError"),
    ],
)
def test_a_broken_reward_is_one_line(tmp_path: Path, init: Path, answer, message: str) -> None:
    refused(grpo_request(tmp_path, init, reward=Broken(answer)), message)


def test_a_constant_reward_stops_the_run(tmp_path: Path, init: Path) -> None:
    asked = grpo_request(tmp_path, init, reward=Said("q"), batch_size=16, steps=20, collapse_patience=5)
    refused(asked, "rollout 5: collapsed: for 5 rollouts every group had equal rewards", CollapseError)
    assert CollapseError.exit_code == 1


def test_rollouts_without_variance_are_counted_across_a_stop(tmp_path: Path, init: Path) -> None:
    settings = {"reward": Said("q"), "batch_size": 16, "steps": 20, "collapse_patience": 5}
    run(grpo_request(tmp_path, init, **settings, max_steps=3))
    with pytest.raises(CollapseError, match="rollout 5: collapsed: for 5 rollouts"):
        run(grpo_request(tmp_path, init, **settings))


def test_a_runaway_policy_stops_the_run(tmp_path: Path, init: Path) -> None:
    refused(
        grpo_request(tmp_path, init, peak=4.0, max_kl=0.2, kl_coef=0.0, steps=30),
        "collapsed: .* nats a token",
        CollapseError,
    )


def test_an_empty_policy_stops_the_run(tmp_path: Path, init: Path) -> None:
    checkpoint = load_checkpoint(init)
    loop = loop_of(tmp_path, init)
    with torch.no_grad():
        head = loop.model.lm_head.weight
        hidden = loop.model.hidden(torch.tensor([list(loop.task.data.ids[0])]))[0, -1]
        head[checkpoint.tokenizer.eos_id] = hidden * 1e3
        head[: checkpoint.tokenizer.eos_id] = 0
        loop.task.data = replace(loop.task.data, ids=(loop.task.data.ids[0],) * len(loop.task.data))
    with pytest.raises(CollapseError, match="every completion of a rollout is empty"):
        loop.task.next_batch()


def test_prompts_without_room_are_dropped_and_counted(tmp_path: Path, init: Path) -> None:
    rows = load_prompts([prompts(tmp_path / "prompts.jsonl")]).rows
    tokenizer = load_checkpoint(init).tokenizer
    lengths = sorted(len(ids) for ids in encode_prompts(rows, tokenizer, 999).ids)
    data = encode_prompts(rows, tokenizer, lengths[5])
    assert len(data) == 6
    assert data.n_dropped == 6
    refused(grpo_request(tmp_path, init, max_new_tokens=28), "none of 12 prompts leaves room")
    refused(grpo_request(tmp_path, init, max_new_tokens=32), "max_new_tokens 32 leaves no room")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completions": 1}, "completions"),
        ({"batch_size": 5}, "no multiple of batch_size 5"),
        ({"sampling": "density"}, "needs? .*density|density weights need"),
        ({"density": "folder"}, "`density` is given and nothing uses it"),
        ({"keep_best": True}, "GRPO has no validation"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_impossible_settings(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_settings(GrpoSettings, changes, "--set")


def test_a_uniform_and_a_weighted_arm_differ_in_the_schedule_alone(tmp_path: Path, init: Path, monkeypatch) -> None:
    import numpy as np

    from kat.trainers import preferences

    weights = np.array([0.5, *[0.5 / 11] * 11])
    monkeypatch.setattr(preferences, "load_density", lambda _folder, ids, **_: weights[: len(ids)], raising=False)
    uniform = build_job(grpo_request(tmp_path, init), QUIET)
    density = build_job(grpo_request(tmp_path, init, sampling="density", density="w", steps=400), QUIET)
    assert uniform.train.hash == density.train.hash
    share = density.schedule.ids.count(density.train.names[0]) / len(density.schedule.ids)
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / len(density.schedule.ids))
    assert uniform.schedule.hash != density.schedule.hash
    assert copy.copy(uniform.schedule) == uniform.schedule


def test_the_checkpoint_says_where_it_came_from(tmp_path: Path, init: Path) -> None:
    run(grpo_request(tmp_path, init))
    said = meta(tmp_path / "grpo")
    assert said["stage"] == "grpo"
    assert said["job"]["reward"] == Said().identity
    assert said["job"]["schedule"]
    assert said["parent"]["identity"] == meta(init)["identity"]
    refused_again = grpo_request(tmp_path, init, reward=Said("r"))
    with pytest.raises(UsageError, match="was trained with another reward"):
        run(refused_again)
