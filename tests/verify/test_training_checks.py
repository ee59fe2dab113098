"""The training families of `kat verify`: no false alarm on two correct subjects, every planted bug found, every check
of use."""

from typing import Any

import pytest
import torch

from kat.errors import UsageError
from kat.verify.adapters import native
from kat.verify.check import Check
from kat.verify.checks import distributed, loss, optimiser, resume
from kat.verify.matrix import kills
from kat.verify.mutants import training
from kat.verify.runner import run_checks
from kat.verify.subject import Source, open_subject
from tests.verify import plain

CHECKS: dict[str, Check] = {
    value.id: value
    for module in (loss, optimiser, resume, distributed)
    for value in vars(module).values()
    if isinstance(value, Check)
}
NATIVE = Source("native", "native", native.make)


def outcomes(source: Source, seed: int, names: Any = None) -> dict[str, str]:
    checks = [check for name, check in CHECKS.items() if names is None or name in names]
    report = run_checks(source, checks, seed=seed, level=4)
    return {
        f.check: f.outcome if f.outcome in ("PASS", "SKIP") else f"{f.outcome}: {f.message}" for f in report.findings
    }


def plain_make(**settings: Any) -> Any:
    return lambda seed=0, tiny=True, **overrides: plain.make(seed, tiny, **{**settings, **overrides})


DESIGNS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sequence-mean": {"agg": "sequence-mean", "optimizer": "sgd"},
    "token-sum": {"agg": "token-sum", "optimizer": "adam", "warmup_steps": 0},
    "dropout": {"dropout": 0.3},
    "never-clips": {"optimizer": "sgd", "clip": 1e9, "weight_decay": 0.0},
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_kat_passes(seed: int) -> None:
    found = outcomes(NATIVE, seed)
    assert set(found.values()) == {"PASS", "SKIP"}, found
    assert [name for name, outcome in found.items() if outcome == "SKIP"] == ["dropout_acts_in_training_alone"]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
@pytest.mark.parametrize("design", DESIGNS)
def test_another_correct_subject_passes(design: str, seed: int) -> None:
    found = outcomes(Source("plain", "plain", plain_make(**DESIGNS[design])), seed)
    skipped = {name for name, outcome in found.items() if outcome == "SKIP"}
    without_dropout = {"dropout_acts_in_training_alone"} if design != "dropout" else set()
    assert skipped == {"two_ranks_match_one", "ranks_draw_disjoint_shards"} | without_dropout
    assert set(found.values()) == {"PASS", "SKIP"}


# What finds each planted bug. A bug may be found by more checks; each check is the one that finds some bug.
KILLER = {
    "gradients_not_averaged": "two_ranks_match_one",
    "averaged_twice": "two_ranks_match_one",
    "token_counts_of_own_rank": "two_ranks_match_one",
    "loss_of_own_rank": "two_ranks_match_one",
    "one_rank_drifts": "two_ranks_match_one",
    "shards_depend_on_process_state": "ranks_draw_disjoint_shards",
    "rope_base_not_saved": "configuration_survives_save",
    "norm_eps_not_saved": "configuration_survives_save",
    "head_missing_from_init": "init_depends_on_seed_alone",
    "init_ignores_seed": "init_depends_on_seed_alone",
    "init_draws_from_global_generator": "init_depends_on_seed_alone",
    "last_block_not_restored": "load_restores_model",
    "weights_not_restored": "load_restores_model",
    "moments_not_restored": "resume_is_exact",
    "resumed_step_counts_micro_batches": "resume_is_exact",
    "schedule_starts_again_on_resume": "resume_is_exact",
    "loaded_weights_are_bfloat16": "load_restores_model",
    "save_rounds_the_live_weights": "load_restores_model",
    "load_swallows_errors": "damaged_checkpoint_is_refused",
    "loads_share_memory": "loaded_subjects_share_nothing",
    "mask_shifted_by_one": "loss_matches_token_oracle",
    "first_target_of_a_row_dropped": "loss_matches_token_oracle",
    "mask_thrown_away_in_loss": "loss_ignores_padding_order_and_tail",
    "pads_are_targets": "loss_matches_token_oracle",
    "batch_without_targets_is_nan": "batch_without_targets_is_inert",
    "mean_over_ignored_too": "uniform_model_has_loss_ln_v",
    "mean_of_row_means": "loss_matches_token_oracle",
    "micro_batches_averaged_alone": "grad_accumulation_equivalent",
    "accumulation_not_divided": "grad_accumulation_equivalent",
    "scale_of_first_micro_batch": "grad_accumulation_equivalent",
    "last_micro_batch_only": "grad_accumulation_equivalent",
    "loss_times_micro_batches": "reported_metrics_match_definition",
    "reports_last_micro_batch": "reported_metrics_match_definition",
    "denominator_counts_all_labels": "reported_metrics_match_definition",
    "validation_without_shift": "eval_loss_matches_training_loss",
    "validation_on_other_rows": "eval_loss_matches_training_loss",
    "validation_is_mean_of_rows": "eval_loss_matches_training_loss",
    "validation_leaves_gradients": "eval_loss_matches_training_loss",
    "validation_switches_gradients_off": "eval_loss_matches_training_loss",
    "label_smoothing_left_on": "loss_matches_token_oracle",
    "small_activations_get_no_gradient": "loss_matches_token_oracle",
    "first_micro_batch_lost": "grad_accumulation_equivalent",
    "last_special_id_is_no_target": "loss_matches_token_oracle",
    "loss_depends_on_global_generator": "loss_is_a_function_of_weights_and_batch",
    "counts_all_tokens": "reported_metrics_match_definition",
    "schedule_ramps_up": "lr_follows_declared_schedule",
    "rate_compounds": "step_uses_lr_of_its_number",
    "schedule_in_micro_batches": "step_uses_lr_of_its_number",
    "scheduler_steps_a_micro_batch": "step_uses_lr_of_its_number",
    "warmup_zero_is_ignored": "lr_follows_declared_schedule",
    "eps_before_bias_correction": "update_matches_reference",
    "clips_the_head_only": "optimiser_sees_clipped_gradient_of_this_step",
    "update_a_micro_batch": "train_step_is_one_update",
    "broken_gradients_become_numbers": "broken_gradient_never_reaches_weights",
    "parameter_in_no_group": "every_parameter_is_in_one_group",
    "embedding_gets_no_gradient": "step_moves_what_is_trained",
    "decay_goes_through_moments": "update_matches_reference",
    "parameter_in_two_groups": "every_parameter_is_in_one_group",
    "gradient_ascent": "training_lowers_the_loss",
    "moments_forgotten_each_step": "update_matches_reference",
    "moments_cleared_every_six_steps": "update_matches_reference",
    "dropout_in_the_first_step_only": "dropout_acts_in_training_alone",
    "validation_applies_dropout": "dropout_acts_in_training_alone",
    "gradients_never_zeroed": "optimiser_sees_clipped_gradient_of_this_step",
    "clips_by_value": "optimiser_sees_clipped_gradient_of_this_step",
    "clips_each_parameter": "optimiser_sees_clipped_gradient_of_this_step",
    "clips_each_micro_batch": "optimiser_sees_clipped_gradient_of_this_step",
    "large_gradients_are_skipped": "optimiser_sees_clipped_gradient_of_this_step",
    "reports_norm_after_clipping": "optimiser_sees_clipped_gradient_of_this_step",
    "schedule_is_one_step_ahead": "step_uses_lr_of_its_number",
    "one_optimizer_keeps_its_rate": "step_uses_lr_of_its_number",
    "updates_twice": "train_step_is_one_update",
    "weights_rounded_each_step": "update_matches_reference",
    "frozen_weights_decay": "zero_gradient_moves_only_what_decays",
    "warmup_half_as_long": "lr_follows_declared_schedule",
    "decay_twice_as_long": "lr_follows_declared_schedule",
    "steps_without_targets_spoil_weights": "batch_without_targets_is_inert",
    "save_forgets_moments": "resume_is_exact",
}
PLANTED = {mutant.id: mutant for mutant in training.MUTANTS}


def test_every_planted_bug_and_every_check_is_in_the_table() -> None:
    assert set(KILLER) == set(PLANTED)
    assert set(KILLER.values()) == set(CHECKS)


@pytest.mark.parametrize("name", KILLER)
def test_planted_bug_is_found(name: str) -> None:
    verdict = kills(PLANTED[name], [CHECKS[KILLER[name]]], NATIVE)
    assert verdict.killers == (KILLER[name],), verdict


def test_no_row_is_both_planted_and_without_counterpart() -> None:
    planted = {row for mutant in training.MUTANTS for row in mutant.rows}
    assert not planted & set(training.NO_COUNTERPART)


def found_in_plain(change: Any, check: str, **settings: Any) -> str:
    """The outcome of a check on the other subject after `change` has been done to each."""

    def make(seed: int = 0, tiny: bool = True, **overrides: Any) -> Any:
        subject = plain.make(seed, tiny, **{**settings, **overrides})
        change(subject)
        return subject

    return outcomes(Source("plain", "plain", make), 0, [check])[check].partition(":")[0]


def test_decay_on_biases_is_found() -> None:
    def decay(subject: Any) -> None:
        subject.optimizer.param_groups[1]["weight_decay"] = 0.1

    assert found_in_plain(decay, "every_parameter_is_in_one_group") == "FAIL"
    assert found_in_plain(decay, "zero_gradient_moves_only_what_decays") == "FAIL"


@pytest.mark.parametrize("agg", ["token-mean", "sequence-mean", "token-sum"])
@pytest.mark.parametrize("check", ["loss_matches_token_oracle", "loss_ignores_padding_order_and_tail"])
def test_aggregation_other_than_declared_is_found(agg: str, check: str) -> None:
    other = {"token-mean": "sequence-mean", "sequence-mean": "token-mean", "token-sum": "sequence-mean"}[agg]

    def change(subject: Any) -> None:
        declared = plain.PlainSubject.traits.fget(subject)  # type: ignore[attr-defined]
        subject.__class__ = type("Other", (plain.PlainSubject,), {"traits": declared})
        subject.agg = other

    assert found_in_plain(change, check, agg=agg) == "FAIL"


def test_pad_id_as_content_is_a_target() -> None:
    def change(subject: Any) -> None:
        good = subject.collate

        def collate(rows: Any) -> Any:
            batch = good(rows)
            batch["mask"] = batch["mask"] * (batch["ids"] != plain.PAD)
            return batch

        subject.collate = collate

    assert found_in_plain(change, "loss_matches_token_oracle") == "FAIL"


def test_generator_that_is_not_restored_is_found() -> None:
    def change(subject: Any) -> None:
        good = subject.load

        def load(path: Any) -> None:
            state = torch.get_rng_state()
            good(path)
            torch.set_rng_state(state)

        subject.load = load

    assert found_in_plain(change, "resume_is_exact") == "PASS"  # nothing is drawn
    assert found_in_plain(change, "resume_is_exact", dropout=0.3) == "FAIL"


def test_an_optimizer_that_torch_does_not_see_is_no_failure() -> None:
    """A hand-written update shows no gradients; what can be seen is tested, the rest is skipped."""

    class ByHand:
        def __init__(self, inner: Any) -> None:
            self.param_groups = inner.param_groups

        def zero_grad(self) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = None

        @torch.no_grad()
        def step(self) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.add_(p.grad, alpha=-group["lr"])

    def make(seed: int = 0, tiny: bool = True, **overrides: Any) -> Any:
        subject = plain.make(seed, tiny, **overrides)
        subject.optimizer = ByHand(subject.optimizer)
        return subject

    found = outcomes(Source("plain", "plain", make), 0, [n for n, c in CHECKS.items() if c.family == "optimiser"])
    assert set(found.values()) <= {"PASS", "SKIP"}, found
    assert [name for name, outcome in found.items() if outcome == "SKIP"] == [
        "zero_gradient_moves_only_what_decays",
        "optimiser_sees_clipped_gradient_of_this_step",
        "update_matches_reference",
        "dropout_acts_in_training_alone",
    ]


# trl


def test_trl_that_is_not_installed_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util as util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "trl" else real(name, *rest))
    with pytest.raises(UsageError, match=r"trl:sft: trl is not installed; pip install 'kat\[trl\]'"):
        open_subject("trl:sft")


# What transformers.Trainer does with them is no property of a correct trainer: a NaN in one gradient reaches every
# weight, and a checkpoint without optimizer.pt is gone on from with the schedule at its start.
TRL_FINDINGS = {"broken_gradient_never_reaches_weights", "damaged_checkpoint_is_refused"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_sft_trainer_of_trl(seed: int) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("accelerate")
    found = outcomes(open_subject("trl:sft"), seed)
    assert {name for name, outcome in found.items() if outcome not in ("PASS", "SKIP")} == TRL_FINDINGS, found
