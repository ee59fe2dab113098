"""`--trainer trl`: SFT, reward model and GRPO by trl's SFTTrainer, RewardTrainer and GRPOTrainer.

The same job gives them the same token ids, masks and pairs, the same schedule, the same optimisers and rates, and in
GRPO the same completions: kat's engine samples them from the weights that trl trains. What is trl's own is the loss,
the advantages, the log-probabilities, accumulation and clipping.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kat.data.encoded import PairData
from kat.errors import UsageError
from kat.runs.settings import GrpoSettings
from kat.runtime import World, pick_device, pick_dtype, set_threads
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.loop import INTERRUPTED
from kat.trainers.native import CausalTask, build_task, initial_model, with_head
from kat.trainers.optimisers import describe_groups
from kat.trainers.protocol import Capabilities, Events, Job, Result
from kat.trainers.reward import RewardTask
from kat.trainers.run_folder import training_folder, write_result
from kat.trainers.trl_model import Combined, twin_of
from kat.trainers.trl_rollout import Remembered, Rollouts, on_rollouts, remembered_rewards
from kat.trainers.trl_run import Run, callback_of
from kat.trainers.trl_settings import (
    check_settings,
    common_arguments,
    grpo_arguments,
    reward_arguments,
    sft_arguments,
)


class TrlTrainer:
    """See kat.trainers.protocol.Trainer. A run that was stopped starts anew: no state is kept."""

    def capabilities(self) -> Capabilities:
        return Capabilities(stages=frozenset({"sft", "reward", "grpo"}), exact_resume=False)

    def fit(self, job: Job, events: Events, resume: Path | None = None) -> Result:
        """Run the job to its end and write the checkpoint at job.out."""
        device = pick_device(job.device)
        _check_machine(device, resume)
        check_settings(job)
        if job.loss_weights is not None:
            raise UsageError("--trainer trl: loss_weights: RewardTrainer has none; use sampling or --trainer native")
        dtype = pick_dtype(job.dtype, device)
        tokenizer = Tokenizer.load(job.tokenizer)
        gpt = initial_model(job, tokenizer, device, world_size=1).to(device)
        set_threads(gpt.config.parameter_count())
        model = with_head(gpt, job.settings).to(device) if job.stage == "reward" else gpt
        score = Remembered(job.reward) if job.reward is not None else None
        run = Run(
            job, events, model, build_task(on_rollouts(job, score), gpt, tokenizer, World(), dtype), device, dtype
        )
        with _quiet():
            trainer = _trainer(run, score)
        events.start(_preflight(run), 0, run.task.total_steps)
        if job.stop_at == 0:
            run.reason = "stopped at step 0 as asked"
        else:
            with _quiet():
                trainer.train()
        if run.reason != INTERRUPTED:
            write_result(job, run, tokenizer, run.reason)
        return Result(job.out, run.step, run.reason, run.last)


def _trainer(run: Run, score: Remembered | None) -> Any:
    """trl's trainer of the stage, on the job's data in the job's order."""
    import transformers
    import trl
    from datasets import Dataset

    job, task = run.job, run.task
    assert job.init is not None
    scratch = training_folder(job.out) / "trl"
    arguments = common_arguments(job, task.total_steps, run.device, run.dtype, scratch)
    optimizer, twin = Combined(run.optimisers), twin_of(run.model, job.init)
    twin.register_forward_pre_hook(run.count_tokens, with_kwargs=True)
    common: dict[str, Any] = {
        "model": twin,
        "processing_class": transformers.AutoTokenizer.from_pretrained(job.tokenizer, local_files_only=True),
        "optimizers": (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        "callbacks": [callback_of(run)],
    }
    trainer: Any
    if isinstance(task, CausalTask):
        trainer = trl.SFTTrainer(
            args=trl.SFTConfig(**arguments, **sft_arguments()),
            train_dataset=Dataset.from_dict({"row": list(range(task.total_steps * job.settings.batch_size))}),
            data_collator=lambda _: packed_rows(task.next_batch()),
            **common,
        )
    elif isinstance(task, RewardTask):
        assert isinstance(job.train, PairData)
        pairs = {
            "chosen_ids": [list(job.train.chosen[i]) for i in task.draws],
            "rejected_ids": [list(job.train.rejected[i]) for i in task.draws],
        }
        trainer = trl.RewardTrainer(
            args=trl.RewardConfig(**arguments, **reward_arguments()), train_dataset=Dataset.from_dict(pairs), **common
        )
    else:
        assert isinstance(job.settings, GrpoSettings) and score is not None
        trainer = weighed_grpo_trainer(run)(
            args=trl.GRPOConfig(**arguments, **grpo_arguments(job.settings)),
            train_dataset=Dataset.from_dict({"prompt": [str(draw) for draw in range(len(task.draws))]}),
            reward_funcs=remembered_rewards,
            rollout_func=Rollouts(run, task, score, job.settings.mask_truncated),
            **common,
        )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def weighed_grpo_trainer(run: Run) -> Any:
    """GRPOTrainer, whose metrics are means over micro-batches: the run is told of how many tokens each is."""
    import trl

    class Weighed(trl.GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
            loss = super()._compute_loss(model, inputs)
            run.weigh(self._metrics["train"], int(inputs["completion_mask"].sum()))
            return loss

    return Weighed


def packed_rows(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """kat's packed rows (B, T) as transformers takes them: (B, T + 1), since it shifts the labels itself.

    Positions that begin again tell it where a document begins; it keeps them apart as long as no mask is given.
    """
    ids, targets = batch["ids"], batch["targets"]
    place = torch.arange(ids.size(1) + 1).expand(len(ids), -1)  # (B, T + 1)
    if "doc_ids" in batch:
        documents = F.pad(batch["doc_ids"], (0, 1), value=-1)
        first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        place = place - (place * first).cummax(dim=1).values
    labels = F.pad(targets.masked_fill(targets < 0, -100), (1, 0), value=-100)
    return {"input_ids": F.pad(ids, (0, 1)), "labels": labels, "position_ids": place}


def _preflight(run: Run) -> list[str]:
    packages = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("trl", "transformers", "accelerate"))
    return [
        f"example: {run.task.example()}",
        *describe_groups(run.optimisers),
        f"{packages}, device {run.device}, {str(run.dtype).removeprefix('torch.')}, {run.task.total_steps} steps",
    ]


def _check_machine(device: torch.device, resume: Path | None) -> None:
    if missing := [name for name in ("trl", "transformers", "accelerate") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"--trainer trl: {missing[0]} is not installed; pip install 'kat[trl]'")
    if resume is not None:
        raise UsageError("--trainer trl: keeps no state to go on from; choose another --out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or (device.type == "cuda" and torch.cuda.device_count() > 1):
        raise UsageError("--trainer trl: trains in one process on one device; leave torchrun out, show it one GPU")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice on the terminal from libraries that the user did not call."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("trl", "transformers", "accelerate", "datasets")]
    levels = [logger.level for logger in loggers]
    try:
        transformers_logging.disable_progress_bar()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(trl|transformers|accelerate|torch\.optim)\b")
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
