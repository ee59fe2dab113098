"""What every trl subject stands on: a trainer before its first step, one step of it, a tiny model, silence.

A training step is one pass of the loop that `trainer.train()` runs (`Trainer._run_epoch`): gradients, clipping,
optimizer, schedule and log are all its.
"""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kat.errors import UsageError
from kat.verify.subject import Traits

VOCAB, MAX_LEN, TOTAL_STEPS = 96, 64, 20
PAD, BOS, EOS = 0, 1, 2


class TrlSubject:
    """What the subjects of all stages share: a trainer that stands before its first step, and one step of it."""

    name: str
    trainer: Any
    model: Any

    def arguments(self, seed: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of any of trl's configs: its defaults as far as a CPU goes."""
        self._folder = tempfile.TemporaryDirectory(prefix="kat-verify-trl-", ignore_cleanup_errors=True)
        return {
            "output_dir": self._folder.name,
            "seed": seed,
            "max_steps": TOTAL_STEPS,
            "bf16": False,  # no CPU computes it exactly
            "use_cpu": True,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",  # saved when asked
            "disable_tqdm": True,
            **overrides,
        }

    def begin(self, trainer: Any) -> None:
        """Take the trainer to where its first step would come."""
        self.trainer = trainer
        self._begin(None)
        self.model = trainer.model
        self.model.eval()

    @property
    def traits(self) -> Traits:
        args = self.trainer.args
        return Traits(
            name=self.name,
            vocab=VOCAB,
            max_len=MAX_LEN,
            pad_id=PAD,
            bos_id=BOS,
            eos_ids=(EOS,),
            special_ids=(PAD, BOS, EOS),
            lr_peak=args.learning_rate,
            lr_final=0.0,
            warmup_steps=args.get_warmup_steps(args.max_steps),
            total_steps=args.max_steps,
            max_grad_norm=args.max_grad_norm,
        )

    def _begin(self, checkpoint: str | None) -> None:
        """Everything that `train()` does before its first step, of a new or of a resumed run."""
        trainer = self.trainer

        def until_first_step(args: Any, resume_from_checkpoint: str | None, **_: Any) -> None:
            """The beginning of `Trainer._inner_training_loop`, up to its loop over epochs."""
            held = trainer.accelerator
            for things in (held._models, held._optimizers, held._schedulers, held._dataloaders):
                things.clear()  # as free_memory does, which then spends half a second on garbage
            loader = trainer.get_train_dataloader()
            trainer._init_training_state(args.max_steps, 1, args.max_steps, resume_from_checkpoint, None)
            self._wrapped, _ = trainer._prepare_for_training(args.max_steps, loader, resume_from_checkpoint)
            trainer._tr_loss = torch.tensor(0.0)
            trainer._total_loss_scalar = 0.0
            trainer._initial_global_step = trainer._globalstep_last_logged = trainer.state.global_step
            trainer._initial_num_input_tokens_seen = trainer.state.num_input_tokens_seen
            self._wrapped.zero_grad()
            trainer.control = trainer.callback_handler.on_train_begin(args, trainer.state, trainer.control)
            if resume_from_checkpoint is not None:
                trainer._load_rng_state(resume_from_checkpoint)

        trainer._inner_training_loop = until_first_step
        trainer.train(resume_from_checkpoint=checkpoint)

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self.model.named_parameters()

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def step(self, batches: Sequence[Any]) -> Mapping[str, Any]:
        """trl's log of one optimizer step on these micro-batches, as its loader would give them."""
        trainer, k = self.trainer, len(batches)
        trainer.args.gradient_accumulation_steps = k
        with quiet():
            trainer._run_epoch(
                model=self._wrapped,
                epoch=0,
                train_dataloader=batches,
                steps_in_epoch=k,
                num_update_steps_per_epoch=1,
                trial=None,
                ignore_keys_for_eval=None,
                start_time=None,
                resume_from_checkpoint=None,
                epochs_trained=0,
                steps_trained_in_current_epoch=0,
            )
        self.model.eval()
        return next(entry for entry in reversed(trainer.state.log_history) if "loss" in entry)

    def param_groups(self) -> Iterable[Mapping[str, Any]]:
        return self.trainer.optimizer.param_groups

    def lr(self, step: int) -> float:
        """The trainer's own schedule, asked without its optimizer."""
        import transformers

        args = self.trainer.args
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
        schedule = transformers.get_scheduler(
            args.lr_scheduler_type,
            optimiser,
            num_warmup_steps=args.get_warmup_steps(args.max_steps),
            num_training_steps=args.max_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        return args.learning_rate * schedule.lr_lambdas[0](step)

    # State

    def save(self, path: Path) -> None:
        """The trainer's own checkpoint folder, below this path."""
        self.trainer.args.output_dir = str(path)
        with quiet():
            self.trainer._save_checkpoint(self.model, None)

    def load(self, path: Path) -> None:
        """Go on from the newest checkpoint, as `train(resume_from_checkpoint=True)` does."""
        from transformers.trainer_utils import get_last_checkpoint

        checkpoint = get_last_checkpoint(str(path))
        if checkpoint is None:
            raise UsageError(f"{path}: no checkpoint to go on from")
        with quiet():
            self._begin(checkpoint)
        self.model.eval()


def tiny_model(name: str, seed: int) -> Any:
    import transformers

    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LEN,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "nanochat": (transformers.NanoChatConfig, transformers.NanoChatForCausalLM),
    }
    config, kind = kinds[name]
    transformers.set_seed(seed)
    return kind(config(**common))


def tiny_tokenizer() -> Any:
    """SFTTrainer wants one; rows come with their ids, so it is never asked for any."""
    import transformers
    from tokenizers import Tokenizer, models

    words = {f"<{i}>": i for i in range(VOCAB)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<3>")),
        pad_token=f"<{PAD}>",
        bos_token=f"<{BOS}>",
        eos_token=f"<{EOS}>",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, warnings and logs on the terminal of who verifies."""
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if not bars:
            datasets.enable_progress_bars()
