"""One optimizer step: gradient and loss against oracles; guards; early stop; the best checkpoint."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kat.data.batches import IGNORED
from kat.errors import UsageError
from kat.model.checkpoint import load_checkpoint
from kat.model.gpt import GPT, IGNORE
from kat.model.stability import InstabilityError
from kat.runs.settings import TrainSettings
from kat.runtime import World
from kat.trainers.loop import Loop, Task, micro_batches
from kat.trainers.native import CausalTask
from kat.trainers.stages import build_job
from tests.model.helpers import random_ids, random_model, transformers_twin
from tests.trainers.helpers import Console, meta, metrics, request, run, sft_request

CPU = torch.device("cpu")


class Scripted(Task):
    """A task on given rows, `micro` of them at a time."""

    unit, expected = "supervised tokens", "ln V = 4.5747"

    def __init__(self, ids: torch.Tensor, targets: torch.Tensor, micro: int, total_steps: int = 3) -> None:
        self.rows = [{"ids": ids[i : i + micro], "targets": targets[i : i + micro]} for i in range(0, len(ids), micro)]
        self.total_steps, self.at = total_steps, 0

    def next_batch(self):
        self.at += 1
        return self.rows[(self.at - 1) % len(self.rows)]

    def weight(self, batch) -> int:
        return int((batch["targets"] != IGNORE).sum())

    def loss(self, model, batch):
        return model(batch["ids"], batch["targets"], reduction="sum")

    def validate(self, _model, _world):
        return {}

    def cursor(self):
        return {"at": self.at}

    def seek(self, cursor, tensors) -> None:
        self.at = cursor["at"]


class Silent:
    """Events that nobody listens to."""

    should_stop = False

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.saved: list[int] = []

    def start(self, *_args) -> None: ...

    def log(self, step: int, **values) -> None:
        self.rows.append({"step": step, **values})

    def save(self, state, best=None) -> None:
        self.saved.append(state.step)


def loop_of(task, model: GPT | None = None, out: Path = Path("unused"), sgd: bool = True, **more) -> Loop:
    """With plain SGD at rate 1 and no clipping, a step moves the weights by minus the gradient."""
    model = model or random_model()
    settings = TrainSettings(**{"clip": 1e9, "schedule": "constant", "batch_size": 4, **more})
    loop = Loop(model, task, settings, world=World(), device=CPU, dtype=torch.float32, out=out)
    if sgd:
        loop.optimisers = [torch.optim.SGD(model.parameters(), lr=1.0)]
        loop.optimisers[0].param_groups[0]["initial_lr"] = 1.0
    return loop


def one_step(loop: Loop) -> tuple[dict, torch.Tensor]:
    """Metrics of a step and the gradient it followed, as one vector."""
    before = torch.cat([p.detach().flatten().double() for p in loop.model.parameters()])
    values = loop.train_step([loop.task.next_batch() for _ in range(loop.accumulate)])
    return values, before - torch.cat([p.detach().flatten().double() for p in loop.model.parameters()])


def ragged(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows with 20, 1, 0 and 7 supervised targets."""
    ids, targets = random_ids(4, 20, seed), random_ids(4, 20, seed + 50)
    for row, n in enumerate((20, 1, 0, 7)):
        targets[row, n:] = IGNORE
    return ids, targets


def oracle(model: GPT, ids: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Mean over all supervised tokens, one token at a time, and its gradient by autograd."""
    losses = [
        -torch.log_softmax(model(ids[b : b + 1, : t + 1])[0, -1].double(), dim=-1)[targets[b, t]]
        for b in range(len(ids))
        for t in range(ids.size(1))
        if targets[b, t] != IGNORE
    ]
    loss = torch.stack(losses).mean()
    model.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten().double() for p in model.parameters()])
    model.zero_grad()
    return loss.item(), gradient


@pytest.mark.parametrize("k", [1, 2, 4])
def test_gradient_and_loss_of_ragged_micro_batches_are_those_of_the_whole(k: int) -> None:
    ids, targets = ragged()
    loss, gradient = oracle(random_model(), ids, targets)
    values, found = one_step(loop_of(Scripted(ids, targets, 4 // k), micro_batch_size=4 // k))
    assert values["loss"] == pytest.approx(loss, rel=1e-5)
    assert values["supervised_tokens"] == 28
    assert values["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert (found - gradient).norm() / gradient.norm() < 1e-4
    means = [oracle(random_model(), ids[i : i + 1], targets[i : i + 1])[1] for i in (0, 1, 3)]
    assert (torch.stack(means).mean(0) - gradient).norm() / gradient.norm() > 0.1  # a mean of means is another thing


def test_the_reported_loss_does_not_depend_on_the_micro_batches() -> None:
    ids, targets = ragged(3)
    reported = [
        one_step(loop_of(Scripted(ids, targets, micro), micro_batch_size=micro))[0]["loss"] for micro in (4, 2, 1)
    ]
    assert reported == pytest.approx([reported[0]] * 3, rel=1e-6)


def test_what_no_supervised_target_sees_gets_no_gradient() -> None:
    ids = torch.arange(24).view(2, 12)
    targets = torch.full_like(ids, IGNORE)
    targets[0, 3] = 50
    model = random_model()
    one_step(loop := loop_of(Scripted(ids, targets, 2), model, batch_size=2))
    moved = (model.model.embed_tokens.weight != random_model().model.embed_tokens.weight).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert loop.accumulate == 1


def test_a_micro_batch_without_targets_adds_exactly_nothing() -> None:
    ids, targets = ragged()
    with_it = one_step(loop_of(Scripted(ids, targets, 1), micro_batch_size=1))
    rows = [0, 1, 3]
    task = Scripted(ids[rows], targets[rows], 1)
    without = one_step(loop_of(task, batch_size=3, micro_batch_size=1))
    assert with_it[0]["loss"] == without[0]["loss"]
    assert torch.equal(with_it[1], without[1])


def test_the_loss_is_transformers(tmp_path: Path) -> None:
    """Labels as transformers wants them: not shifted, and -100 where nothing is predicted."""
    base = Path(run(request(tmp_path, "base", steps=2)).folder)
    job = build_job(sft_request(tmp_path, base), Console(quiet=True))
    model = random_model(vocab_size=300)
    task = CausalTask(job, model.config, load_checkpoint(base).tokenizer, World())
    twin = transformers_twin(model)
    batch = task.next_batch()
    for row in range(len(batch["ids"])):
        first = batch["doc_ids"][row] == 0
        one = {name: tensor[row, first][None] for name, tensor in batch.items()}
        labels = torch.full((1, one["ids"].size(1) + 1), -100)
        labels[0, 1:] = one["targets"].masked_fill(one["targets"] == IGNORED, -100)
        whole = torch.cat((one["ids"], labels[:, -1:]), dim=1)
        with torch.no_grad():
            theirs = twin(whole, labels=labels).loss.item()
            ours = task.loss(model, one).item() / task.weight(one)
        assert 0 < task.weight(one) < one["ids"].size(1)
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_packed_rows_have_the_loss_of_their_examples_alone(tmp_path: Path) -> None:
    """The gradient too is that of a batch in which each example has a row of its own."""
    base = Path(run(request(tmp_path, "base", steps=2)).folder)
    job = build_job(sft_request(tmp_path, base), Console(quiet=True))
    model = random_model(vocab_size=300)
    task = CausalTask(job, model.config, load_checkpoint(base).tokenizer, World())
    batch = task.next_batch()
    assert int(batch["doc_ids"].max()) > 0
    total = 0.0
    for ids, targets, docs in zip(batch["ids"], batch["targets"], batch["doc_ids"], strict=True):
        for doc in range(int(docs.max()) + 1):
            own = docs == doc
            with torch.no_grad():
                total += float(model(ids[own][None], targets[own][None], reduction="sum"))
    with torch.no_grad():
        assert task.loss(model, batch).item() == pytest.approx(total, rel=1e-5)


# Clipping


def test_the_norm_over_all_parameters_is_clipped_and_the_true_one_reported() -> None:
    """OS11"""
    ids, targets = ragged()
    free, gradient = one_step(loop_of(Scripted(ids, targets, 4)))
    clip = free["grad_norm"] / 3
    values, found = one_step(loop_of(Scripted(ids, targets, 4), clip=clip))
    assert values["grad_norm"] == pytest.approx(free["grad_norm"])
    assert found.norm().item() == pytest.approx(clip, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(found, gradient, dim=0) > 0.9999


def test_rates_come_from_the_step_whatever_the_accumulation() -> None:
    """OS2, OS4, OS5, OS13: the rate of a real loop is the schedule's, by optimizer steps, for any accumulation."""
    rates = []
    for micro in (4, 1):
        events = Silent()
        ids, targets = ragged()
        task = Scripted(ids, targets, micro, total_steps=10)
        loop = loop_of(
            task,
            micro_batch_size=micro,
            sgd=False,
            schedule="linear",
            warmup_steps=2,
            log_every=1,
            optimizer="adamw",
            lr=0.01,
        )
        assert loop.run(events, None) == "finished"
        assert loop.step == 10
        assert task.at == 10 * (4 // micro)
        rates.append([row["lr"] for row in events.rows])
    assert rates[0] == rates[1]
    assert rates[0] == pytest.approx(
        [0.01 * x for x in (1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)]
    )


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "expected"),
    [(32, None, 1, (32, 1)), (32, 8, 1, (8, 4)), (32, 8, 2, (8, 2)), (32, None, 4, (8, 1)), (6, 1, 3, (1, 2))],
)
def test_batches_are_divided_exactly(batch, micro, ranks, expected) -> None:
    """OS14"""
    found = micro_batches(TrainSettings(batch_size=batch, micro_batch_size=micro), ranks)
    assert found == expected
    assert found[0] * found[1] * ranks == batch


@pytest.mark.parametrize(("batch", "micro", "ranks"), [(4, None, 3), (1, None, 2), (8, 4, 4)])
def test_batches_that_cannot_be_divided_are_refused(batch, micro, ranks) -> None:
    with pytest.raises(UsageError, match=f"batch_size {batch} is no multiple"):
        micro_batches(TrainSettings(batch_size=batch, micro_batch_size=micro), ranks)


# Guards


def test_a_step_without_supervised_tokens_is_an_error() -> None:
    ids = random_ids(4, 8)
    with pytest.raises(UsageError, match="step 0: no supervised token"):
        one_step(loop_of(Scripted(ids, torch.full_like(ids, IGNORE), 2), micro_batch_size=2))


def broken(model: GPT, where: str, value: float) -> None:
    with torch.no_grad():
        dict(model.named_parameters())[where].view(-1)[7] = value


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ("model.layers.1.self_attn.v_proj.weight", math.nan, "weight model.layers.1.self_attn.v_proj.weight: NaN"),
        ("model.layers.2.mlp.fc1.weight", math.inf, "weight model.layers.2.mlp.fc1.weight: Inf"),
        ("lm_head.weight", 1e30, "weight lm_head.weight: overflow"),
    ],
)
def test_a_broken_tensor_stops_the_run_by_name_and_the_batch_is_kept(tmp_path, where, value, named) -> None:
    model = random_model()
    broken(model, where, value)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids, targets = ragged()
    events = Silent()
    loop = loop_of(Scripted(ids, targets, 2), model, tmp_path / "out", micro_batch_size=2, log_every=1)
    with pytest.raises(InstabilityError, match="step") as error:
        loop.run(events, None)
    assert named in str(error.value)
    assert not events.saved
    (path,) = tmp_path.glob("out.unstable-*.safetensors")
    assert path.name in str(error.value)
    kept = load_file(path)
    assert torch.equal(torch.cat((kept["0.ids"], kept["1.ids"])), ids)
    assert torch.equal(torch.cat((kept["0.targets"], kept["1.targets"])), targets)
    if not math.isfinite(value):  # OS15: nothing moved, nothing was replaced by zero
        for name, p in model.named_parameters():
            assert torch.equal(p.nan_to_num(), before[name].nan_to_num()), name


def test_a_nan_that_begins_in_a_gradient_is_named_there(tmp_path: Path) -> None:
    model = random_model()
    model.model.layers[1].self_attn.o_proj.register_full_backward_hook(lambda _m, grads, _out: (grads[0] * math.nan,))
    ids, targets = ragged()
    with pytest.raises(InstabilityError, match=r"gradient of model\.layers\.1\.self_attn\.v_proj\.weight: NaN"):
        one_step(loop_of(Scripted(ids, targets, 4), model, tmp_path / "out"))


def test_an_underflowing_gradient_stops_the_run(tmp_path: Path) -> None:
    model = random_model()
    model.lm_head.weight.register_hook(lambda g: g * 1e-40)
    ids, targets = ragged()
    with pytest.raises(InstabilityError, match=r"gradient of lm_head\.weight: underflow"):
        one_step(loop_of(Scripted(ids, targets, 4), model, tmp_path / "out"))


def test_a_validation_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    task = Scripted(*ragged(), 4)
    task.validate = lambda *_: {"val_loss": math.nan}
    with pytest.raises(InstabilityError, match="validation loss is nan"):
        loop_of(task, out=tmp_path / "out", validation_every=2).run(Silent(), None)


def test_a_full_disk_does_not_hide_what_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path, *_args, **_more):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("kat.trainers.loop.save_tensors", full)
    model = random_model()
    broken(model, "lm_head.weight", math.nan)
    with pytest.raises(InstabilityError, match=r"weight lm_head\.weight: NaN; .*No space left"):
        one_step(loop_of(Scripted(*ragged(), 4), model, tmp_path / "out"))


# Validation, early stop, the best checkpoint


def scripted_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> dict[int, torch.Tensor]:
    """Validation returns these losses in turn; the heads of the models that were validated, by validation."""
    heads: dict[int, torch.Tensor] = {}

    def validate(_self, model, _world):
        heads[len(heads)] = model.lm_head.weight.detach().clone()
        return {"val_loss": losses[len(heads) - 1]}

    monkeypatch.setattr(CausalTask, "validate", validate)
    return heads


def test_the_best_checkpoint_is_the_lowest_validation_loss(tmp_path, monkeypatch) -> None:
    heads = scripted_losses(monkeypatch, [3.0, 1.0, 1.0, 2.0, 5.0])
    out = run(request(tmp_path, steps=10, validation_every=2, keep_best=True, save_every=1)).folder
    assert meta(out)["step"] == 4
    assert meta(out)["steps_trained"] == 10
    assert meta(out)["selection"] == "lowest validation loss"
    assert meta(out)["metrics"]["best_val_loss"] == 1.0
    assert meta(out)["metrics"]["val_loss"] == 5.0
    assert torch.equal(load_checkpoint(out).model.lm_head.weight, heads[1])


def test_without_keep_best_the_last_step_is_the_checkpoint(tmp_path, monkeypatch) -> None:
    heads = scripted_losses(monkeypatch, [3.0, 1.0, 2.0])
    out = run(request(tmp_path, steps=6, validation_every=2)).folder
    assert meta(out)["step"] == 6
    assert meta(out)["selection"] == "last step"
    assert torch.equal(load_checkpoint(out).model.lm_head.weight, heads[2])


def test_early_stop_waits_for_so_many_validations(tmp_path, monkeypatch) -> None:
    scripted_losses(monkeypatch, [3.0, 2.0, 2.5, 1.0, 1.1, 1.2, 1.0, 0.1])
    result = run(request(tmp_path, steps=20, validation_every=2, early_stop=3, keep_best=True))
    assert result.step == 14
    assert result.stop_reason.startswith("stopped early")
    assert meta(result.folder)["step"] == 8


def test_a_plateau_lowers_the_rate(tmp_path, monkeypatch) -> None:
    scripted_losses(monkeypatch, [3.0, 3.0, 3.0, 3.0, 3.0])
    settings = {"schedule": "plateau", "plateau_patience": 2, "plateau_factor": 0.5, "log_every": 1}
    out = run(request(tmp_path, steps=10, validation_every=2, **settings)).folder
    shares = [row["lr_share"] for row in metrics(out)]
    assert shares == [1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("layout", ["stream", "packed"])
def test_validation_is_the_mean_over_supervised_tokens_for_any_micro_batch(tmp_path: Path, layout: str) -> None:
    job = build_job(request(tmp_path, layout=layout, validation_share=0.5), Console(quiet=True))
    model = random_model(vocab_size=300)
    tokenizer = load_tokenizer(tmp_path)
    found = []
    for micro in (4, 2, 1):
        task = CausalTask(with_settings(job, micro_batch_size=micro), model.config, tokenizer, World())
        with torch.no_grad():
            values = task.validate(model, World())
            assert task.validate(model, World()) == values  # always the same rows
        found.append((values["val_loss"], values["val_bpb"]))
    np.testing.assert_allclose(found, [found[0]] * 3, rtol=1e-6)
    if layout == "packed":
        nats = plain = n = n_bytes = 0.0
        data = job.validation
        for i in range(len(data)):
            ids = torch.from_numpy(data.ids[data.offsets[i] : data.offsets[i + 1]].astype(np.int64))
            with torch.no_grad():
                logprobs = torch.log_softmax(model(ids[None, :-1])[0].double(), dim=-1)
            losses = -logprobs.gather(1, ids[1:, None])[:, 0]
            sizes = torch.from_numpy(tokenizer.token_bytes().astype(np.int64))[ids[1:]]
            nats, plain = nats + float(losses.sum()), plain + float(losses[sizes > 0].sum())
            n, n_bytes = n + len(losses), n_bytes + int(sizes.sum())
        assert found[0] == pytest.approx((nats / n, plain / math.log(2) / n_bytes), rel=1e-5)


def test_only_so_many_validation_rows_are_looked_at(tmp_path: Path) -> None:
    job = build_job(request(tmp_path, validation_share=0.5), Console(quiet=True))
    model = random_model(vocab_size=300)
    found = set()
    for micro in (4, 1):
        few = with_settings(job, micro_batch_size=micro, validation_rows=3)
        task = CausalTask(few, model.config, load_tokenizer(tmp_path), World())
        with torch.no_grad():
            found.add(round(task.validate(model, World())["val_loss"], 5))
    assert len(found) == 1
    task = CausalTask(job, model.config, load_tokenizer(tmp_path), World())
    with torch.no_grad():
        assert round(task.validate(model, World())["val_loss"], 5) not in found


def load_tokenizer(here: Path):
    from kat.tokenizer.bpe import Tokenizer

    return Tokenizer.load(here / "tokenizer")


def with_settings(job, **changes):
    from dataclasses import replace

    return replace(job, settings=job.settings.model_copy(update=changes))


# The log and the pre-flight


def test_the_log_says_what_happened(tmp_path: Path) -> None:
    out = run(request(tmp_path, steps=9, log_every=4, validation_every=6)).folder
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 4, 6, 8, 9]
    assert [row["step"] for row in rows if "val_loss" in row] == [6, 9]
    for row in rows:
        assert row.keys() >= {"loss", "lr", "lr_share", "grad_norm", "tokens", "tokens_per_second", "peak_memory"}
        assert row["mfu"] is None
        assert row["tokens"] == row["step"] * 4 * 32
        assert row["tokens_per_second"] > 0
    assert rows[0]["loss"] == pytest.approx(math.log(300), abs=1e-4)  # a new model is uniform
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_preflight_tells_and_changes_nothing() -> None:
    ids, targets = ragged()
    task = Scripted(ids, targets, 2)
    loop = loop_of(task, micro_batch_size=2, sgd=False)
    weights = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    rng = torch.get_rng_state()
    lines = "\n".join(loop.preflight("a ⟦b⟧"))
    for part in ("⟦b⟧", "2x20 tokens, 21 supervised", "ln V = 4.5747", "Muon", "float32", "2 micro-batch(es) a step"):
        assert part in lines
    assert torch.equal(rng, torch.get_rng_state())
    expected = oracle(random_model(), ids[:2], targets[:2])[0]
    assert f"loss at step 0: {expected:.4f}" in lines
    assert task.at == 0
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in loop.model.named_parameters())
