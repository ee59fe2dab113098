"""The reinforcement learning of `kat verify`: no false alarm on two correct implementations in every design, every
planted bug found, every check of use."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kat.verify.adapters import native
from kat.verify.check import Check, Failed
from kat.verify.checks import objective, rl, rollouts
from kat.verify.matrix import kills, unplanted
from kat.verify.mutants import rl as planted
from kat.verify.runner import run_checks
from kat.verify.show import failure_text
from kat.verify.subject import Source, Traits, open_subject
from tests.verify import toy_grpo

CHECKS: dict[str, Check] = {
    value.id: value
    for module in (objective, rollouts, rl)
    for value in vars(module).values()
    if isinstance(value, Check)
}
NATIVE = Source("native", "native", native.make)
TOY = Source("toy", "toy", toy_grpo.make)
WITHOUT_COEFFICIENT = {"kl_coefficient_follows_the_reported_divergence": "SKIP"}


def outcomes(source: Source, seed: int, names: Any = None) -> dict[str, str]:
    """What is no PASS, with the reason where it is no SKIP."""
    checks = [check for name, check in CHECKS.items() if names is None or name in names]
    found = run_checks(source, checks, seed=seed, level=4).findings
    return {
        f.check: f.outcome if f.outcome == "SKIP" else f"{f.outcome}: {f.message}" for f in found if f.outcome != "PASS"
    }


def alone(make: Any, **design: Any) -> Source:
    """One design, without the others that a subject names."""

    def made(seed: int = 0, tiny: bool = True, **overrides: Any) -> Any:
        subject = make(seed, tiny, **{**design, **overrides})
        subject.rl_variants = ()
        return subject

    return Source("alone", "alone", made)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_kat_passes(seed: int) -> None:
    assert outcomes(NATIVE, seed) == {}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_another_correct_implementation_passes(seed: int) -> None:
    assert outcomes(TOY, seed) == WITHOUT_COEFFICIENT


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "dr-grpo"])
def test_kat_passes_in_every_aggregation_and_scale(aggregation: str, scale: str) -> None:
    source = alone(native.make, aggregation=aggregation, scale_rewards=scale, micro_batch_size=4)
    assert outcomes(source, 3, (FORMULA, LOSS, COUNTED, CLIPPING, STEP)) == {}


@pytest.mark.parametrize("kl", ["loss_k3", "loss_k2", "reward_k1", "exact"])
def test_kat_passes_with_every_divergence(kl: str) -> None:
    source = alone(native.make, kl_in=kl, kl_coef=0.5, optimizer="adamw")
    assert outcomes(source, 4, (LOSS, BANDIT, METRICS, STEP, REPORTS, LIKELIER, COEFFICIENT)) == {}


DESIGNS: dict[str, dict[str, Any]] = {
    "recomputed": {"old": "recomputed", "agg": "sequence-mean", "beta": 0.2},
    "no divergence": {"kl": "none", "scale": "none"},
    "penalised sequences": {"kl": "reward_k1", "agg": "dr-grpo", "scale": "batch", "beta": 0.1},
}


@pytest.mark.parametrize("design", DESIGNS)
def test_other_correct_designs_pass(design: str) -> None:
    assert outcomes(alone(toy_grpo.make, **DESIGNS[design]), 5) == WITHOUT_COEFFICIENT


# What finds each planted bug. A bug may be found by more checks; each check is the one that finds some bug.
STARTS = "policy_starts_as_the_reference"
ROWS, LOGPROBS = "rollout_rows_end_at_the_end_token", "rollout_logprobs_are_the_policys"
FOLLOW, LIKELIER = "rollouts_follow_the_current_policy", "rewarded_completions_get_likelier"
FORMULA, EQUAL = "advantages_follow_the_declared_formula", "equal_rewards_give_no_advantage"
LOSS, COUNTED = "policy_loss_is_the_declared_objective", "policy_loss_sees_counted_tokens_alone"
CLIPPING, METRICS = "clipping_bites_on_the_declared_side", "policy_loss_metrics_match_their_definition"
BANDIT, STEP = "kl_term_descends_the_declared_divergence", "rl_step_descends_the_declared_objective"
REPORTS = "rl_step_metrics_match_their_definition"
COEFFICIENT = "kl_coefficient_follows_the_reported_divergence"
KILLER = {
    "reward_model_loaded_into_both": STARTS,
    "reference_made_from_rounded_policy": STARTS,
    "reference_is_the_policy": STARTS,
    "reference_follows_the_policy": STARTS,
    "reference_is_renewed_every_third_step": STARTS,
    "rollout_seeded_prompt_by_prompt": ROWS,
    "large_ratios_are_capped": LOSS,
    "empty_row_is_divided_by_its_length": COUNTED,
    "half_the_rows_get_a_tenth_of_their_gradient": STEP,
    "end_token_does_not_count": ROWS,
    "tokens_after_the_end_count": ROWS,
    "rollout_mask_by_pad_id": ROWS,
    "rollout_mask_by_end_id_of_the_row": ROWS,
    "rollout_prompts_sample_major": ROWS,
    "completions_of_the_next_prompt": LOGPROBS,
    "group_is_one_sample": ROWS,
    "rollout_ignores_seed": ROWS,
    "rollout_logprobs_raw": LOGPROBS,
    "rollout_logprobs_of_the_token_before": LOGPROBS,
    "rollout_retokenised": LOGPROBS,
    "end_token_becomes_text": LOGPROBS,
    "rollout_budget_one_short": ROWS,
    "sampler_keeps_old_weights": FOLLOW,
    "rollouts_sampled_from_the_reference": FOLLOW,
    "completion_scored_without_its_prompt": LOGPROBS,
    "temperature_squared": LOGPROBS,
    "each_sample_is_its_own_group": EQUAL,
    "deviation_with_n": FORMULA,
    "epsilon_under_the_root": FORMULA,
    "baseline_of_the_whole_batch": FORMULA,
    "scaled_by_the_batch": FORMULA,
    "not_scaled": FORMULA,
    "baseline_leaves_itself_out": FORMULA,
    "groups_are_columns": FORMULA,
    "rounding_of_the_mean_is_learned": EQUAL,
    "no_negative_advantage": FORMULA,
    "completions_averaged_alone": LOSS,
    "dr_grpo_divides_by_length": LOSS,
    "denominator_counts_padding": COUNTED,
    "loss_counts_what_follows_the_end": COUNTED,
    "response_mask_shifted": COUNTED,
    "first_token_not_counted": LOSS,
    "last_token_not_counted": LOSS,
    "kl_direction_reversed": BANDIT,
    "kl_has_no_gradient": BANDIT,
    "kl_is_a_plain_difference": BANDIT,
    "kl_sign": BANDIT,
    "kl_coefficient_squared": BANDIT,
    "sequence_level_ratio": LOSS,
    "reward_is_no_gradient": LOSS,
    "advantages_of_the_next_row": LOSS,
    "advantages_inverted": LOSS,
    "old_is_the_current_policy": LOSS,
    "loss_without_a_graph": LOSS,
    "maximum_instead_of_minimum": CLIPPING,
    "clipped_on_both_sides": CLIPPING,
    "never_clipped": CLIPPING,
    "clip_bounds_exchanged": CLIPPING,
    "ratio_detached": CLIPPING,
    "clip_fraction_of_all_ratios_outside": METRICS,
    "clip_fraction_is_the_ratio": METRICS,
    "rewards_reach_no_gradient": LIKELIER,
    "gradient_ascent_on_rewards": LIKELIER,
    "likelihood_is_part_of_the_reward": LIKELIER,
    "rewards_of_the_next_row": STEP,
    "rewards_sample_major": STEP,
    "negative_rewards_are_zero": LIKELIER,
    "reward_zero_is_missing": STEP,
    "reference_scored_by_the_policy": STEP,
    "rl_micro_batches_averaged_alone": STEP,
    "training_ignores_temperature": STEP,
    "step_recomputes_old": STEP,
    "coefficient_is_that_of_the_next_rollout": STEP,
    "prompt_tokens_count": STEP,
    "penalty_is_a_token_mean": STEP,
    "controller_fed_the_update_divergence": COEFFICIENT,
    "entropy_over_padding_too": REPORTS,
    "entropy_in_bits": REPORTS,
    "kl_metric_is_minus_the_ratio": REPORTS,
    "reward_metric_is_the_advantage": REPORTS,
}
PLANTED = {mutant.id: mutant for mutant in planted.MUTANTS}
ANYWHERE = [name for name, mutant in PLANTED.items() if not mutant.native]
NOT_REPORTED = {"kl_metric_is_minus_the_ratio"}  # the toy reports no divergence of a step


def test_every_planted_bug_and_every_check_is_in_the_table() -> None:
    assert set(KILLER) == set(PLANTED)
    assert set(KILLER.values()) == set(CHECKS)


@pytest.mark.parametrize("name", KILLER)
def test_planted_bug_is_found(name: str) -> None:
    verdict = kills(PLANTED[name], [CHECKS[KILLER[name]]], NATIVE)
    assert verdict.killers == (KILLER[name],), verdict


@pytest.mark.parametrize("name", [name for name in ANYWHERE if name not in NOT_REPORTED])
def test_planted_bug_is_found_in_the_other_implementation(name: str) -> None:
    verdict = kills(PLANTED[name], [CHECKS[KILLER[name]]], TOY)
    assert verdict.killers == (KILLER[name],), verdict


def test_rows_without_counterpart_say_why() -> None:
    rows = {row for mutant in planted.MUTANTS for row in mutant.rows}
    assert not rows & set(planted.NO_COUNTERPART)
    left = {row: why for row, why in unplanted().items() if row.startswith("RL")}
    assert "no reason given" not in left.values()
    assert not {row for row in ("LN3", "LN8", "LN16", "DM12", "TK8", "TK9") if row in unplanted()}


@pytest.mark.parametrize(
    ("trait", "value"), [("aggregation", "mean"), ("advantage_scale", "std"), ("kl", "k3"), ("old_logprobs", "new")]
)
def test_traits_are_validated(trait: str, value: str) -> None:
    with pytest.raises(ValueError, match=trait):
        Traits(**{trait: value})


def failure(check: str, make: Any) -> Failed:
    with pytest.raises(Failed) as caught:
        CHECKS[check](make)
    return caught.value


def test_a_failure_names_the_design_that_it_looks_like() -> None:
    def made(seed: int = 0, tiny: bool = True, **overrides: Any) -> Any:
        subject = toy_grpo.make(seed, tiny, agg="sequence-mean")
        declared = {**subject.traits, "aggregation": "token-mean"}
        subject.__class__ = type("Other", (toy_grpo.ToyGRPO,), {"traits": declared, "rl_variants": ()})
        return subject

    found = failure(LOSS, made)
    assert "but that of aggregation 'sequence-mean' ('token-mean' is declared)" in found.message
    assert "5 completions of 7, 1, 4, 2, 6 tokens" in found.case


def test_a_failure_says_which_temperature_it_sees() -> None:
    found = failure(LOGPROBS, PLANTED["rollout_logprobs_raw"].plant(native.make))
    assert "at the sampling temperature 0.5, but those at 1" in found.message
    assert "temperature=0.5" in found.case and found.resembles == "RL9"


Estimate = Callable[[torch.Tensor], torch.Tensor]


def reporting(estimate: Estimate) -> Any:
    """The toy, which also reports a divergence from its sampler: the mean of estimate(log-ratio)."""

    class Reporting(toy_grpo.ToyGRPO):
        def policy_loss(self, logprobs: Any, old: Any, ref: Any, advantages: Any, mask: Any, *more: Any) -> Any:
            loss, metrics = super().policy_loss(logprobs, old, ref, advantages, mask, *more)
            ratio = (logprobs - old)[mask == 1].detach().double()
            return loss, {**metrics, "approx_kl": float(estimate(ratio).mean())}

    return lambda seed=0, tiny=True, **options: Reporting(seed, options)


def test_the_divergence_from_the_sampler_is_checked() -> None:
    """RL24: the mean of minus the ratio was reported; any usual estimate will do."""
    right: tuple[Estimate, ...] = (lambda x: -x, lambda x: x.square() / 2, lambda x: x.exp() - 1 - x)
    for estimate in right:
        assert outcomes(Source("reporting", "reporting", reporting(estimate)), 0, (METRICS,)) == {}
    wrong: tuple[Estimate, ...] = (lambda x: -x.exp(), lambda x: x, torch.abs)
    for estimate in wrong:
        assert "the metric 'approx_kl' is" in failure(METRICS, reporting(estimate)).message


def test_a_divergence_without_an_expected_gradient_is_named_so() -> None:
    found = failure(BANDIT, PLANTED["kl_is_a_plain_difference"].plant(native.make))
    assert "the expected gradient of the divergence term is" in found.message and found.resembles == "RL14"


def test_a_failure_reads_alone() -> None:
    verdict = kills(PLANTED["clip_bounds_exchanged"], [CHECKS[CLIPPING]], NATIVE)
    text = failure_text(verdict.failures[0], 110)
    assert "FAIL clipping_bites_on_the_declared_side" in text
    assert "clipped to [0.9, 1.2]" in text and "resembles  RL24" in text
    assert "kat verify 'native with clip_bounds_exchanged' -k clipping_bites_on_the_declared_side --level 0" in text


def test_a_policy_whose_context_is_lost_is_found() -> None:
    class Blind(toy_grpo.ToyGRPO):
        def completion_logprobs(self, prompt_ids: Any, completion_ids: Any, temperature: float) -> torch.Tensor:
            return super().completion_logprobs([2], completion_ids, temperature)

    found = failure(LOGPROBS, lambda seed=0, tiny=True, **options: Blind(seed, options))
    assert "completion_logprobs" in found.message


FINDINGS = {
    EQUAL: "FAIL: a group of equal rewards has advantages",
    REPORTS: "FAIL: the metric 'kl' is",
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_trl_fails_what_is_reported_and_nothing_else(seed: int) -> None:
    """docs/findings.md has both, reproduced without kat."""
    pytest.importorskip("trl", reason="needs kat[trl]")
    found = outcomes(open_subject("trl:grpo"), seed)
    assert {name: text for name, text in found.items() if text != "SKIP"}.keys() == FINDINGS.keys()
    assert all(found[name].startswith(text) for name, text in FINDINGS.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ANYWHERE if KILLER[name] not in FINDINGS])
def test_planted_bug_is_found_in_trl(name: str) -> None:
    pytest.importorskip("trl", reason="needs kat[trl]")
    verdict = kills(PLANTED[name], [CHECKS[KILLER[name]]], open_subject("trl:grpo"))
    assert verdict.killers == (KILLER[name],), verdict
