"""volcengine/verl: the loss of its FSDP SFT trainer, and the accumulation of its training engine."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lift import lift
from torch import Tensor, nn
from toy import WithToy, padded

from kat.verify.subject import Traits


class _Torch:
    """torch on one process in float32: no autocast to bfloat16, nothing to reduce."""

    distributed = SimpleNamespace(
        all_reduce=lambda *_, **__: None, get_world_size=lambda: 1, ReduceOp=SimpleNamespace(SUM=0)
    )

    def autocast(self, **_: Any) -> Any:
        return contextlib.nullcontext()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class SftLoss(WithToy):
    """_compute_loss_and_backward of FSDPSFTTrainer, without the backward."""

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        self.compute = lift(
            Path(checkout, "verl/trainer/fsdp_sft_trainer.py"),
            "FSDPSFTTrainer._compute_loss_and_backward",
            torch=_Torch(),
            nn=nn,
            nullcontext=contextlib.nullcontext,
        )
        self.trainer = SimpleNamespace(
            use_remove_padding=False,
            device_name="cpu",
            fsdp_model=self._model,
            model=SimpleNamespace(config=SimpleNamespace(vocab_size=self.VOCAB)),
            config=SimpleNamespace(ulysses_sequence_parallel_size=1, data=SimpleNamespace(balance_dp_token=False)),
        )
        self.traits = Traits(name="verl SFT", vocab=self.VOCAB, max_len=self.MAX_LEN, pad_id=0, positions="absolute")

    def _model(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.model(input_ids, attention_mask, position_ids))

    def collate(self, rows: Any) -> dict[str, Tensor]:
        """Padded on the right, as verl's SFT data set does it."""
        ids, mask, attention = padded(rows, 0)
        return {"ids": ids, "mask": mask, "attention_mask": attention}

    def loss(self, batch: Any) -> Tensor:
        attention = batch["attention_mask"]
        fields = {"input_ids": batch["ids"], "attention_mask": attention, "loss_mask": batch["mask"]}
        fields["position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)
        return self.compute(self.trainer, fields, do_backward=False)


def sft_loss(seed: int = 0, tiny: bool = True, *, checkout: str) -> SftLoss:
    return SftLoss(checkout, seed)


class Engine(WithToy):
    """forward_backward_batch of the FSDP engine with sft_loss, on one rank."""

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        functional = Path(checkout, "verl/utils/torch_functional.py")
        losses = Path(checkout, "verl/workers/roles/utils/losses.py")
        masked = lift(functional, "masked_sum", "masked_mean", torch=torch)
        given: dict[str, Any] = {
            "masked_mean": masked.masked_mean,
            "masked_sum": masked.masked_sum,
            "torch": torch,
            "DatasetPadMode": SimpleNamespace(NO_PADDING="no_padding"),
            "tu": SimpleNamespace(get_non_tensor_data=lambda data, key, default: data.get(key, default)),
        }
        self.sft_loss = lift(losses, "sft_loss", **given)
        self.micro_batches: list[Any] = []
        self.run = lift(
            Path(checkout, "verl/workers/engine/fsdp/transformer_impl.py"),
            "FSDPEngine.forward_backward_batch",
            torch=_Torch(),
            nullcontext=contextlib.nullcontext,
            get_device_id=lambda: "cpu",
            tu=SimpleNamespace(assign_non_tensor=lambda data, **values: data.update(values)),
            prepare_micro_batches=self._split,
            postprocess_batch_func=lambda **outputs: outputs,
        )
        self.engine = SimpleNamespace(
            ulysses_sequence_parallel_size=1,
            get_data_parallel_group=lambda: None,
            get_data_parallel_size=lambda: 1,
            forward_step=self._forward_step,
        )
        self.traits = Traits(name="verl engine", vocab=self.VOCAB, max_len=self.MAX_LEN, pad_id=0, positions="absolute")

    def _split(self, data: Any, **_: Any) -> tuple[list[Any], None]:
        """The step's micro-batches; what the engine noted on the whole batch goes with each, as in a TensorDict."""
        notes = {name: value for name, value in data.items() if not isinstance(value, Tensor)}
        return [_Fields({**notes, **part}, [len(part["ids"])]) for part in self.micro_batches], None

    def _forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> tuple[Tensor, Any]:
        logits = self.model(micro_batch["ids"], micro_batch["attention_mask"])
        logprobs = logits.log_softmax(-1)[:, :-1].gather(2, micro_batch["ids"][:, 1:, None])[..., 0]
        return loss_function(
            model_output={"log_probs": logprobs},
            data={**micro_batch, "pad_mode": "right", "response_mask": micro_batch["loss_mask"][:, 1:]},
        )

    def collate(self, rows: Any) -> dict[str, Tensor]:
        ids, mask, attention = padded(rows, 0)
        return {"ids": ids, "mask": mask, "attention_mask": attention}

    def accumulate(self, micro_batches: Any) -> None:
        self.micro_batches = [{**batch, "loss_mask": batch["mask"]} for batch in micro_batches]
        rows = sum(len(batch["ids"]) for batch in micro_batches)
        masks = torch.cat([batch["mask"].flatten() for batch in micro_batches])
        data = _Fields({"loss_mask": masks, "global_batch_size": rows}, [rows])
        self.run(self.engine, data, lambda model_output, data: self.sft_loss(None, model_output, data))


class _Fields(dict[str, Any]):
    def __init__(self, values: Any, batch_size: list[int]) -> None:
        super().__init__(values)
        self.batch_size = batch_size


def engine(seed: int = 0, tiny: bool = True, *, checkout: str) -> Engine:
    return Engine(checkout, seed)
