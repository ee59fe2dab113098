"""What trl is told: every argument on which a run depends, from kat's settings. What it cannot do is refused by name.

trl's and transformers' defaults differ from kat's and change between versions (bfloat16 and gradient checkpointing are
on, the data is shuffled, a learning rate is drawn from the stage's name), so nothing here is left to them.
"""

from pathlib import Path
from typing import Any

import torch

from kat.errors import UsageError
from kat.runs.settings import GrpoSettings
from kat.trainers.loop import micro_batches
from kat.trainers.protocol import Job

# The settings that a run by trl honours. Any other one, also one that kat learns later, must stand at its default.
EVERYWHERE = {
    *("steps", "epochs", "batch_size", "micro_batch_size"),
    *("optimizer", "matrix_lr", "embedding_lr", "unembedding_lr", "lr", "weight_decay", "clip"),
    *("schedule", "warmup_steps", "peak", "final", "decay_share", "plateau_factor", "plateau_patience"),
    *("validation", "validation_share", "validation_every", "validation_rows", "keep_best", "early_stop"),
    *("log_every", "max_bad"),
}
HONOURED = {
    "sft": EVERYWHERE | {"row_len", "layout", "supervise_prompts", "answers", "option_orders"},
    "reward": EVERYWHERE | {"backbone", "head_lr", "sampling", "density"},
    "grpo": EVERYWHERE
    | {"reward", "prompts_per_rollout", "completions", "epochs_per_rollout", "temperature", "max_new_tokens"}
    | {"scale_rewards", "aggregation", "clip_low", "clip_high", "mask_truncated", "kl_coef", "sampling", "density"}
    | {"collapse_patience", "max_kl", "min_entropy"},
}
LOSS_TYPES = {"token-mean": "dapo", "sequence-mean": "grpo", "dr-grpo": "dr_grpo"}


def check_settings(job: Job) -> None:
    """Raise UsageError, naming the setting, where the job asks for what trl's trainers do not do."""
    s = job.settings
    for name, field in type(s).model_fields.items():
        if name not in HONOURED[job.stage] and getattr(s, name) != field.default:
            raise UsageError(
                f"--trainer trl: {name} = {getattr(s, name)} is not honoured there; leave it out (its default is "
                f"{field.default}) or train with --trainer native"
            )
    if isinstance(s, GrpoSettings):
        _check_grpo(s)


def _check_grpo(s: GrpoSettings) -> None:
    if s.mask_truncated and s.aggregation != "token-mean":
        raise UsageError(
            f"--trainer trl: mask_truncated with aggregation = {s.aggregation}: trl takes truncated completions out of "
            "the sum and leaves them in the number it is divided by; use token-mean or --trainer native"
        )
    if s.aggregation == "token-mean" and s.prompts_per_rollout * s.completions != s.batch_size:
        raise UsageError(
            f"--trainer trl: aggregation = token-mean with {s.prompts_per_rollout * s.completions} completions a "
            f"rollout and batch_size {s.batch_size}: trl divides each step by the rollout's tokens, not by its own; "
            "make them equal or use --trainer native"
        )


def common_arguments(job: Job, total_steps: int, device: torch.device, dtype: torch.dtype, out: Path) -> dict[str, Any]:
    """Arguments of transformers' Trainer. The rates are kat's: see kat.trainers.trl_model.Combined."""
    rows, accumulate = micro_batches(job.settings, 1)
    return {
        "output_dir": str(out),
        "seed": job.seed % 2**32,  # what numpy takes; it decides nothing but in which order a rollout's rows are used
        "max_steps": total_steps,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulate,
        "max_grad_norm": job.settings.clip,
        "use_cpu": device.type == "cpu",
        "bf16": dtype == torch.bfloat16,
        "fp16": False,
        "tf32": None,
        "gradient_checkpointing": False,
        "torch_compile": False,
        "use_liger_kernel": False,
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
        "auto_find_batch_size": False,
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": 0,
        "dataloader_drop_last": False,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "push_to_hub": False,
    }


def sft_arguments() -> dict[str, Any]:
    """Arguments of SFTConfig: rows come as kat packs them."""
    return {
        "loss_type": "nll",
        "packing": False,
        "padding_free": False,
        "max_length": None,
        "assistant_only_loss": False,
        "completion_only_loss": False,
        "shuffle_dataset": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def reward_arguments() -> dict[str, Any]:
    """Arguments of RewardConfig."""
    return {"disable_dropout": True, "max_length": None, "center_rewards_coefficient": None}


def grpo_arguments(s: GrpoSettings) -> dict[str, Any]:
    """Arguments of GRPOConfig. No top-k, no top-p: trl's log-probabilities do not know of them."""
    return {
        "disable_dropout": True,
        "shuffle_dataset": False,
        "num_generations": s.completions,
        "generation_batch_size": s.prompts_per_rollout * s.completions,
        "num_iterations": s.epochs_per_rollout,
        "max_completion_length": s.max_new_tokens,
        "temperature": s.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "beta": s.kl_coef,
        "epsilon": s.clip_low,
        "epsilon_high": s.clip_high,
        "delta": None,
        "importance_sampling_level": "token",
        "scale_rewards": s.scale_rewards,
        "multi_objective_aggregation": "sum_then_normalize",
        "loss_type": LOSS_TYPES[s.aggregation],
        "mask_truncated_completions": s.mask_truncated,
        "sync_ref_model": False,
        "top_entropy_quantile": 1.0,
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
        "off_policy_mask_threshold": None,
        "use_bias_correction_kl": False,
        "use_vllm": False,
        "log_completions": False,
    }
