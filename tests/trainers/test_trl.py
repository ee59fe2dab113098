"""`--trainer trl`: the runs that kat's own trainers make, and one line where trl cannot make them."""

import importlib.util
import json
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from kat.errors import EvidenceError, UsageError
from kat.model.checkpoint import load_checkpoint
from kat.model.reward import load_reward
from kat.model.stability import InstabilityError
from kat.runs.settings import STAGES
from kat.trainers import trl as adapter
from kat.trainers.console import RunEvents
from kat.trainers.protocol import load_trainer
from kat.trainers.rollout import CollapseError
from kat.trainers.stages import Interrupted, Request
from kat.trainers.trl_settings import HONOURED
from tests.trainers.helpers import leftovers, meta, metrics, request, run, sft_request
from tests.trainers.preference_helpers import Said, grpo_request, reward_request

TRL = "kat.trainers.trl:TrlTrainer"
MAKE = {"sft": sft_request, "reward": reward_request, "grpo": grpo_request}
WHOLE: dict[str, Any] = {"sft": {}, "reward": {}, "grpo": {"batch_size": 16}}  # nothing that trl refuses
STATES = 100  # save_every's default: trl keeps no states
installed = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs kat[trl]")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in it whose logits depend on the context."""
    folder = tmp_path_factory.mktemp("trl")
    run(request(folder, "init", steps=30, peak=3.0, sequence_len=48))
    return folder


def asked(here: Path, stage: str, out: str = "out", **changes: Any) -> Request:
    given = {"save_every": STATES, **WHOLE[stage], **changes}
    return replace(MAKE[stage](here, here / "init", out, **given), trainer=TRL)


# The same runs


RUNS: dict[str, Any] = {
    "sft": {
        **{"optimizer": "adamw", "micro_batch_size": 2, "schedule": "cosine", "warmup_steps": 2},
        "clip": 1e-6,  # of the size of AdamW's epsilon, so that it decides how far a step goes
    },
    "reward": {"optimizer": "adamw", "head_lr": 0.3, "micro_batch_size": 2, "weight_decay": 0.1},
    "grpo": {
        **{"optimizer": "adamw", "lr": 3e-3, "steps": 20, "epochs_per_rollout": 2, "micro_batch_size": 4},
        **{"clip_low": 0.02, "clip_high": 0.03, "temperature": 0.9, "scale_rewards": "batch"},
        **{"mask_truncated": True, "max_new_tokens": 16},
    },
}


@installed
@pytest.mark.parametrize("stage", RUNS)
def test_both_trainers_take_the_same_steps(here: Path, stage: str) -> None:
    theirs = asked(here, stage, f"{stage}-trl", **RUNS[stage])
    ours = replace(theirs, out=here / f"{stage}-native", trainer="native")
    results = [run(ours), run(theirs)]
    assert {result.stop_reason for result in results} == {"finished"}
    pairs = list(zip(metrics(ours.out), metrics(theirs.out), strict=True))
    names = set(pairs[-1][1]) - {"tokens"}
    unit = {"sft": "supervised_tokens", "reward": "pairs", "grpo": "completion_tokens"}[stage]
    assert set(pairs[-1][0]) - set(pairs[-1][1]) == {unit} and set(pairs[-1][1]) <= set(pairs[-1][0])
    for a, b in pairs:
        for name in names & set(a):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=2e-4), (a["step"], name)
    if stage == "grpo":
        assert len({a["reward"] for a, _ in pairs}) > 5
        assert [a["reward"] for a, _ in pairs] == [b["reward"] for _, b in pairs]  # the very same completions
        assert max(b["clip_fraction"] for _, b in pairs) > 0.1
        assert any(0 < b["truncated"] < 1 for _, b in pairs)
        assert [b["kl"] for _, b in pairs][:2] == pytest.approx([0, 0], abs=1e-6)
    before = dict(load_checkpoint(here / "init").model.named_parameters())
    a, b = (dict(load_checkpoint(folder).model.named_parameters()) for folder in (ours.out, theirs.out))
    for name, weight in a.items():
        moved = (weight - before[name]).norm()
        assert (weight - b[name]).norm() <= 0.02 * moved, name
    assert meta(theirs.out)["job"] == {**meta(ours.out)["job"], "trainer": TRL}
    for key in ("step", "steps_trained", "steps_planned", "selection", "ended"):
        assert meta(theirs.out)[key] == meta(ours.out)[key]
    for name in ("schedule.json", "reward_head.safetensors"):
        assert (theirs.out / name).exists() == (ours.out / name).exists()
    if stage == "reward":
        score = [load_reward(folder).score_ids([[1, 2, 3], [4, 5]]) for folder in (ours.out, theirs.out)]
        assert score[0] == pytest.approx(score[1], abs=1e-3)
    assert leftovers(here) == []


@installed
def test_muon_is_the_optimizer_where_it_is_asked_for(here: Path) -> None:
    theirs = asked(here, "reward", "muon-trl", steps=2, backbone="trained")
    run(theirs), run(replace(theirs, out=here / "muon-native", trainer="native"))
    before = dict(load_checkpoint(here / "init").model.named_parameters())
    a, b = (dict(load_checkpoint(here / f"muon-{name}").model.named_parameters()) for name in ("native", "trl"))
    for name, weight in a.items():
        if "layers" in name:  # Newton-Schulz in bfloat16 makes much of the last bits
            assert (
                torch.cosine_similarity((weight - before[name]).flatten(), (b[name] - before[name]).flatten(), 0) > 0.9
            )


@installed
def test_a_frozen_backbone_stays_as_it_was(here: Path) -> None:
    theirs = asked(here, "reward", "frozen", backbone="frozen", steps=3, log_every=1)
    result = run(theirs)
    run(replace(theirs, out=here / "frozen-native", trainer="native"))
    norms = [[row["grad_norm"] for row in metrics(folder)] for folder in (result.folder, here / "frozen-native")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)  # what has no rate counts for no norm
    before = load_checkpoint(here / "init").model.state_dict()
    trained = load_reward(result.folder).model
    assert trained.head.weight.any()
    for name, weight in trained.gpt.state_dict().items():
        assert torch.equal(weight, before[name]), name


@installed
def test_tokens_that_a_user_types_stay_text(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' tokenizer would make one end token of it."""
    rows = [{"messages": [{"role": "user", "content": f"{k} <|assistant_end|>"}]} for k in range(4)]
    (here / "typed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[list[int]] = []
    original = adapter.Rollouts.__call__

    def watched(self: Any, *given: Any) -> dict[str, Any]:
        result = original(self, *given)
        seen.extend(result["prompt_ids"])
        return result

    monkeypatch.setattr(adapter.Rollouts, "__call__", watched)
    run(asked(here, "grpo", "typed", data=(here / "typed.jsonl",), steps=1))
    tokenizer = load_checkpoint(here / "init").tokenizer
    assert seen
    for ids in seen:
        assert tokenizer.eos_id not in ids and "<|assistant_end|>" in tokenizer.decode(ids)


# What is refused, and what stops a run


def test_what_is_honoured_are_settings() -> None:
    for stage, names in HONOURED.items():
        assert names < set(STAGES[stage].model_fields)


@installed
@pytest.mark.parametrize(
    ("stage", "change", "why"),
    [
        ("sft", {"save_every": 7}, r"save_every = 7 is not honoured there; leave it out \(its default is 100\)"),
        ("sft", {"max_abs": 10.0}, "max_abs = 10.0 is not honoured"),
        ("grpo", {"kl_in": "loss_k2"}, "kl_in = loss_k2 is not honoured"),
        ("grpo", {"kl_target": 0.1}, "kl_target = 0.1 is not honoured"),
        ("grpo", {"mask_truncated": True, "aggregation": "dr-grpo"}, "mask_truncated with aggregation = dr-grpo"),
        ("grpo", {"batch_size": 8}, "token-mean with 16 completions a rollout and batch_size 8"),
    ],
)
def test_settings_that_trl_has_not_are_named(here: Path, stage: str, change: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        run(asked(here, stage, "refused", **change))
    assert leftovers(here) == [] and not (here / "refused").exists()


@installed
def test_loss_weights_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kat.trainers import stages

    build = stages.build_job

    def weighed(*given: Any) -> Any:
        job = build(*given)
        return replace(job, loss_weights=torch.ones(len(job.train)).double().numpy())

    monkeypatch.setattr(stages, "build_job", weighed)
    with pytest.raises(UsageError, match="--trainer trl: loss_weights"):
        run(asked(here, "reward", "weighed"))


@installed
def test_an_early_stop_cannot_go_on(here: Path) -> None:
    untouched = run(asked(here, "reward", "early", max_steps=0))
    assert (untouched.step, untouched.stop_reason) == (0, "stopped at step 0 as asked")
    result = run(asked(here, "reward", "early-3", max_steps=3))
    assert (result.step, result.stop_reason) == (3, "stopped at step 3 as asked")
    assert metrics(here / "early-3")[-1]["lr_share"] > 0.07  # of a schedule over nine steps
    with pytest.raises(UsageError, match="stopped early and has no trainer_state/ to go on from"):
        run(asked(here, "reward", "early-3"))


@installed
def test_an_interrupted_run_starts_anew(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(asked(here, "grpo", "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(RunEvents, "should_stop", property(lambda self: self.metrics.path.read_text().count("\n") > 2))
        with pytest.raises(Interrupted, match="interrupted at step 3; run the same command again to start it anew"):
            run(asked(here, "grpo", "again"))
    assert run(asked(here, "grpo", "again")).metrics == whole.metrics
    assert meta(here / "again")["identity"] == meta(here / "whole")["identity"]


@installed
def test_another_reference_is_noticed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(request(here, "other", steps=5, peak=3.0, sequence_len=48))
    twin_of = adapter.twin_of

    def renamed(model: Any, folder: Path) -> Any:
        twin = twin_of(model, folder)
        twin.config._name_or_path = str(here / "other")
        return twin

    monkeypatch.setattr(adapter, "twin_of", renamed)
    with pytest.raises(EvidenceError, match="before the first step: trl's reference is not the initial model"):
        run(asked(here, "grpo", "reference"))


@installed
def test_another_order_of_prompts_is_noticed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = adapter.grpo_arguments
    monkeypatch.setattr(adapter, "grpo_arguments", lambda s: {**arguments(s), "shuffle_dataset": True})
    with pytest.raises(EvidenceError, match="of the schedule where 0 to 3 come next"):
        run(asked(here, "grpo", "order"))


@installed
def test_no_step_with_a_broken_gradient_is_saved(here: Path) -> None:
    with pytest.raises(InstabilityError, match=r"step \d: loss .*(inf|nan); nothing is saved"):
        run(asked(here, "reward", "broken", optimizer="adamw", lr=1e37, head_lr=1e37))
    assert not (here / "broken").exists()


@installed
def test_a_collapse_stops_it(here: Path) -> None:
    with pytest.raises(CollapseError, match="for 2 rollouts every group had equal rewards"):
        run(asked(here, "grpo", "flat", reward=Said(factor=0.0), collapse_patience=2))
    with pytest.raises(CollapseError, match="no completion of a rollout ends"):
        run(asked(here, "grpo", "cut", mask_truncated=True, max_new_tokens=1))
    with pytest.raises(CollapseError, match="entropy"):
        run(asked(here, "grpo", "noise", min_entropy=6.0))


@installed
def test_float32_tables_are_all_that_transformers_computes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kat.trainers.trl_model import twin_of

    model = load_checkpoint(here / "init").model
    model.config = replace(model.config, rope_table_dtype="bfloat16")
    with pytest.raises(UsageError, match="declares bfloat16 rotary tables"):
        twin_of(model, here / "init")
    model = load_checkpoint(here / "init").model
    model.rotary = type(model.rotary)(model.config.head_dim, 100.0, torch.float32)
    with pytest.raises(EvidenceError, match="other hidden states than kat"):
        twin_of(model, here / "init")


def test_what_is_missing_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not train base"):
        run(replace(request(here, "base"), trainer=TRL))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else name)
    with pytest.raises(UsageError, match=r"--trainer trl: trl is not installed; pip install 'kat\[trl\]'"):
        run(asked(here, "sft", "missing"))
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="trains in one process on one device"):
        adapter._check_machine(torch.device("cpu"), None)


def test_its_name_is_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    points = [
        EntryPoint(name, value, "kat.trainers") for name, value in project["entry-points"]["kat.trainers"].items()
    ]
    monkeypatch.setattr("kat.trainers.protocol.entry_points", lambda group: [p for p in points if p.group == group])
    assert load_trainer("trl").capabilities() == adapter.TrlTrainer().capabilities()
