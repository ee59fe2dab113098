"""Planted bugs of the reward model: how it scores, what a step trains, what is saved and evaluated."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kat.verify.mutants.mutant import Mutant, around, patched, wrapped
from kat.verify.mutants.training import both, first_micro_batch_lost, mean_of_means, sum_of_means
from kat.verify.subject import Make, Message, Preference, capabilities

MODEL, TASK = "kat.model.reward.RewardModel", "kat.trainers.reward.RewardTask"
NO_COUNTERPART: dict[str, str] = {}


def reward_weights(inner: Any) -> dict[str, Tensor]:
    """The live weights of a subject's reward model."""
    own = "reward_parameters" in capabilities(inner)
    return dict(inner.reward_parameters() if own else inner.named_parameters())


# Scores


def scored(change: Callable[[list[Message], str], tuple[list[Message], str]]) -> Callable[[Make], Make]:
    """The scores, and the margins, are those of another prompt or response."""

    def score(inner: Any, prompt: Sequence[Message], response: str) -> float:
        return inner.score(*change(list(prompt), response))

    def score_pair(inner: Any, prompt: Sequence[Message], a: str, b: str) -> float:
        (other, first), (_, second) = change(list(prompt), a), change(list(prompt), b)
        return inner.score_pair(other, first, second)

    return wrapped(score=score, score_pair=score_pair)


def forward(bad: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[Make], Make]:
    """RewardModel.forward is another: bad(model, ids (N, T), last (N,)) -> (N,)."""
    return patched(f"{MODEL}.forward", bad)


def at(model: Any, hidden: Tensor, place: Tensor) -> Tensor:
    return model.head(hidden[torch.arange(len(hidden)), place])[:, 0].float()


def read_in_last_column(model: Any, ids: Tensor, last: Tensor) -> Tensor:
    return model.head(model.gpt.hidden(ids)[:, -1])[:, 0].float()


def mean_with_pads(model: Any, ids: Tensor, last: Tensor) -> Tensor:
    return model.head(model.gpt.hidden(ids).mean(dim=1))[:, 0].float()


def without_gradient(model: Any, ids: Tensor, last: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = model.gpt.hidden(ids)
    return at(model, hidden, last)


def centred_in_batch(model: Any, ids: Tensor, last: Tensor) -> Tensor:
    scores = at(model, model.gpt.hidden(ids), last)
    return scores - scores.mean()


def padding(find: Callable[[Tensor, int], int]) -> Callable[[Make], Make]:
    """Rows are padded with their own end token, and the last real token is looked for: find(row (T,), end) -> index."""

    def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
        end = rows[0][-1]
        ids = torch.full((len(rows), max(map(len, rows))), end)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.as_tensor(row)
        return ids, torch.tensor([find(row, end) for row in ids])

    return both(patched("kat.model.reward.pad_right", pad_right), patched("kat.trainers.reward.pad_right", pad_right))


def sorted_and_left_so(good: Any) -> Any:
    def score_ids(self: Any, rows: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
        return good(self, sorted(rows, key=len, reverse=True), batch_size)

    return score_ids


SCORES = (
    Mutant("score_is_read_in_the_last_column", ("RM3",), forward(read_in_last_column), native=True),
    Mutant(
        "score_is_read_before_the_first_pad",
        ("RM1",),
        padding(lambda row, end: int((row == end).nonzero()[0]) - 1),
        native=True,
    ),
    Mutant(
        "score_is_read_where_pads_are_counted", ("RM4",), padding(lambda row, end: int((row != end).sum()) - 1), True
    ),
    Mutant(
        "first_of_two_responses_scores_higher",
        ("RM7",),
        wrapped(score_pair=lambda inner, prompt, a, b: inner.score_pair(prompt, a, b) + 0.5),
    ),
    Mutant(
        "scores_stay_in_the_order_of_lengths",
        ("RM10",),
        patched("kat.model.reward.RewardCheckpoint.score_ids", around(sorted_and_left_so)),
        native=True,
    ),
    Mutant("score_is_a_mean_over_pads_too", (), forward(mean_with_pads), native=True),
    Mutant("scores_are_centred_in_their_batch", (), forward(centred_in_batch), native=True),
    Mutant("score_reads_the_prompt_only", (), scored(lambda prompt, response: (prompt, "ask"))),
    Mutant("score_reads_the_response_only", (), scored(lambda prompt, response: (prompt[-1:], response))),
    Mutant("score_reads_ten_characters", (), scored(lambda prompt, response: (prompt, response[:10]))),
    Mutant("score_reads_lower_case", (), scored(lambda prompt, response: (prompt, response.lower()))),
    Mutant("score_reads_three_turns", (), scored(lambda prompt, response: (prompt[-3:], response))),
    Mutant("score_strips_the_response", (), scored(lambda prompt, response: (prompt, response.strip()))),
    Mutant("score_cuts_long_responses", (), scored(lambda prompt, response: (prompt, response[:120]))),
    Mutant("score_reads_one_line", ("DM22",), scored(lambda prompt, response: (prompt, " ".join(response.split())))),
)


# Training


def steps(change: Callable[..., Any]) -> Callable[[Make], Make]:
    """reward_step is another: change(inner, micro_batches, weights)."""

    def reward_step(
        inner: Any, micro_batches: Sequence[Sequence[Preference]], weights: Sequence[Sequence[float]] | None = None
    ) -> Any:
        return change(inner, micro_batches, weights)

    return wrapped(reward_step=reward_step)


def step(inner: Any, micro_batches: Any, weights: Any) -> Any:
    return inner.reward_step(micro_batches) if weights is None else inner.reward_step(micro_batches, weights=weights)


def each_weight(change: Callable[[float], float]) -> Callable[[Make], Make]:
    def changed(inner: Any, micro_batches: Any, weights: Any) -> Any:
        return step(inner, micro_batches, weights and [[change(w) for w in batch] for batch in weights])

    return steps(changed)


def backwards(inner: Any, micro_batches: Any, weights: Any) -> Any:
    """The update is added where it should be subtracted."""
    before = {name: weight.detach().clone() for name, weight in reward_weights(inner).items()}
    metrics = step(inner, micro_batches, weights)
    with torch.no_grad():
        for name, weight in reward_weights(inner).items():
            weight.copy_(2 * before[name] - weight)
    return metrics


def frozen_weights_decay(inner: Any, micro_batches: Any, weights: Any) -> Any:
    metrics = step(inner, micro_batches, weights)
    with torch.no_grad():
        for weight in reward_weights(inner).values():
            if not weight.requires_grad:
                weight.mul_(0.99)
    return metrics


def pair_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Make], Make]:
    """The loss of scores (N,) of chosen and rejected responses is another."""
    return patched("kat.trainers.reward.bradley_terry", loss)


def renormalised(good: Any) -> Any:
    def loss(self: Any, model: Any, batch: dict[str, Tensor]) -> Tensor:
        weights = batch["weights"]
        return good(self, model, {**batch, "weights": weights / weights.mean().clamp(min=1e-9)})

    return loss


def rejected_is_cut(good: Any) -> Any:
    """The filter on the length of the rejected response never runs; it is cut to the context instead."""

    def encode_pairs(pairs: Any, tokenizer: Any, max_len: int) -> Any:
        pairs = list(pairs)
        data = good(pairs, tokenizer, 1 << 30)
        cut = dataclasses.replace(data, rejected=tuple(row[:max_len] for row in data.rejected))
        fits = [len(row) <= max_len for row in data.chosen]
        if all(fits):
            return cut
        return good([pair for pair, fit in zip(pairs, fits, strict=True) if fit], tokenizer, max_len)

    return encode_pairs


TRAINING = (
    Mutant("backbone_of_the_reward_model_gets_no_gradient", ("RM6",), forward(without_gradient), native=True),
    Mutant("pair_gradients_add_up_over_micro_batches", ("LN3",), sum_of_means, native=True),
    Mutant(
        "responses_lose_their_line_breaks",
        ("DM22",),
        patched(
            "kat.data.preferences._response", around(lambda good: lambda row, key: " ".join(good(row, key).split()))
        ),
        native=True,
    ),
    Mutant(
        "rejected_responses_are_cut_to_the_context",
        ("DM14",),
        patched("kat.verify.adapters.native_preferences.encode_pairs", around(rejected_is_cut)),
        native=True,
    ),
    Mutant("loss_weights_are_normalised_in_each_batch", ("DE7",), patched(f"{TASK}.loss", around(renormalised)), True),
    Mutant("loss_weight_of_zero_counts_as_missing", ("RM11",), each_weight(lambda w: w or 1.0)),
    Mutant("loss_weights_are_squared", (), each_weight(lambda w: w * w)),
    Mutant("loss_weights_are_thrown_away", (), steps(lambda inner, batches, weights: inner.reward_step(batches))),
    Mutant("pairs_are_averaged_in_each_micro_batch", (), mean_of_means, native=True),
    Mutant("first_micro_batch_of_pairs_is_lost", (), first_micro_batch_lost, native=True),
    Mutant("losses_of_pairs_are_summed", (), patched(f"{TASK}.weight", lambda self, batch: 1), native=True),
    Mutant("rejected_is_preferred_in_training", (), pair_loss(lambda a, b: F.softplus(a - b)), native=True),
    Mutant("loss_of_pairs_is_a_hinge", (), pair_loss(lambda a, b: F.relu(1 - (a - b))), native=True),
    Mutant("margins_are_capped_in_training", (), pair_loss(lambda a, b: F.softplus((b - a).clamp(-5, 5))), native=True),
    Mutant("rejected_gets_no_gradient", (), pair_loss(lambda a, b: F.softplus(b.detach() - a)), native=True),
    Mutant("update_of_the_reward_model_is_backwards", (), steps(backwards)),
    Mutant("frozen_weights_of_the_reward_model_decay", (), steps(frozen_weights_decay), native=True),
)


# Saving and evaluation


def not_restored(kept: Callable[[str], bool]) -> Callable[[Make], Make]:
    """Loading leaves some tensors of the reward model as they were."""

    def load(inner: Any, path: Any) -> None:
        before = {name: weight.detach().clone() for name, weight in reward_weights(inner).items() if kept(name)}
        inner.load(path)
        with torch.no_grad():
            for name, weight in reward_weights(inner).items():
                if name in before:
                    weight.copy_(before[name])

    return wrapped(load=load)


def moments_lost(inner: Any, path: Any) -> None:
    inner.load(path)
    for optimiser in inner.reward.loop.optimisers:
        optimiser.state.clear()


def seen_prompts_unknown(good: Any) -> Any:
    def init(self: Any, checkpoint: Any) -> None:
        good(self, checkpoint)
        self.trained_on = None

    return init


def ties_are(value: float) -> Callable[[Make], Make]:
    """A pair whose margin is 0 counts `value`; by score_pair, pair by pair."""

    def reward_accuracy(inner: Any, pairs: Sequence[Preference]) -> float:
        inner.reward_accuracy(pairs)
        margins = [inner.score_pair(*pair) for pair in pairs]
        return sum(float(m > 0) + value * float(m == 0) for m in margins) / len(margins)

    return wrapped(reward_accuracy=reward_accuracy)


def last_pairs_are_left_out(inner: Any, pairs: Sequence[Preference]) -> float:
    """Whole batches of two are evaluated, and what is left over is not."""
    return inner.reward_accuracy(list(pairs)[: len(pairs) // 2 * 2])


def seen_by_pair(inner: Any, pairs: Sequence[Preference]) -> float:
    """A pair is known where it was trained on, its prompt with other responses is not."""
    new = [pair for pair in pairs if repr(pair) not in vars(inner).get("_seen", set())]
    if len(new) < len(pairs):
        raise ValueError("trained on")
    margins = [inner.score_pair(*pair) for pair in pairs]
    return sum(m > 0 for m in margins) / len(margins)


def seen_pairs_kept(inner: Any, micro_batches: Any, weights: Any = None) -> Any:
    inner._seen = vars(inner).get("_seen", set()) | {repr(pair) for batch in micro_batches for pair in batch}
    return step(inner, micro_batches, weights)


def seen_prompts_forgotten(inner: Any, path: Any) -> None:
    """A model that was loaded does not know what it was trained on."""
    inner.load(path)
    inner._forgets = True


def unless_forgotten(inner: Any, pairs: Sequence[Preference]) -> float:
    if not vars(inner).get("_forgets"):
        return inner.reward_accuracy(pairs)
    margins = [inner.score_pair(*pair) for pair in pairs]
    return sum(m > 0 for m in margins) / len(margins)


def is_head(name: str) -> bool:
    return name.startswith(("head", "score"))


SAVING = (
    Mutant("ties_are_right", (), ties_are(1.0)),
    Mutant("ties_are_wrong", (), ties_are(0.0)),
    Mutant("last_pairs_are_not_evaluated", (), wrapped(reward_accuracy=last_pairs_are_left_out)),
    Mutant(
        "trained_prompt_with_other_responses_is_evaluated",
        ("RM8",),
        wrapped(reward_accuracy=seen_by_pair, reward_step=seen_pairs_kept),
    ),
    Mutant(
        "loaded_model_forgets_its_prompts",
        ("RM8",),
        wrapped(load=seen_prompts_forgotten, reward_accuracy=unless_forgotten),
    ),
    Mutant("reward_checkpoint_lacks_the_trained_blocks", ("CR4",), not_restored(lambda name: ".layers." in name)),
    Mutant("reward_checkpoint_lacks_the_head", (), not_restored(is_head)),
    Mutant("reward_checkpoint_lacks_the_embedding", (), not_restored(lambda name: "embed" in name)),
    Mutant("reward_training_resumes_without_moments", (), wrapped(load=moments_lost), native=True),
    Mutant(
        "trained_prompts_are_evaluated",
        ("RM8",),
        patched("kat.evals.reward.RewardBackend.__init__", around(seen_prompts_unknown)),
        native=True,
    ),
    Mutant(
        "evaluation_knows_which_was_chosen",
        ("RM7",),
        patched("kat.evals.reward.preferred", lambda margin: float(margin != 0)),
        native=True,
    ),
    Mutant(
        "accuracy_is_of_the_first_pairs",
        (),
        wrapped(reward_accuracy=lambda inner, pairs: inner.reward_accuracy(list(pairs)[: len(pairs) // 2])),
    ),
)

MUTANTS: tuple[Mutant, ...] = (*SCORES, *TRAINING, *SAVING)
