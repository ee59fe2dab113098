"""Jobs of the reward stage and of GRPO: pairs or prompts as ids, and the schedule that they are drawn by."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from kat.data.encoded import PairData, PromptData, encode_pairs, encode_prompts
from kat.data.preferences import Pair, load_pairs, load_prompts
from kat.density.folder import load_density
from kat.density.schedule import draw_schedule, placebo_weights
from kat.errors import UsageError
from kat.model.checkpoint import read_config
from kat.runs.settings import GrpoSettings, RewardSettings, Weighting
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.console import say
from kat.trainers.protocol import Job

if TYPE_CHECKING:
    from kat.trainers.stages import Request


def reward_job(request: "Request", init: Path, console: Console) -> Job:
    """Pairs, held out by prompt; drawn, or weighed, as the settings say."""
    s = request.settings
    assert isinstance(s, RewardSettings)
    tokenizer, context = Tokenizer.load(init), read_config(init).sequence_len
    rows = load_pairs(request.data, max_bad=s.max_bad)
    say(console, f"reward: {rows.report()}")
    if s.validation:
        held_out = load_pairs([Path(path) for path in s.validation], max_bad=s.max_bad).rows
        asked = {pair.prompt.id for pair in held_out}
        if shared := sum(pair.prompt.id in asked for pair in rows.rows):
            raise UsageError(f"reward: {shared:,} training pairs have a prompt of the validation rows; split by prompt")
        training = rows.rows
    else:
        training, held_out = hold_out_prompts(rows.rows, s.validation_share)
    if not training:
        raise UsageError("reward: no pair is left to train on")
    data = _encoded("training on", training, tokenizer, context, console)
    validation = _encoded("validating on", held_out, tokenizer, context, console) if held_out else None
    if not len(data):
        raise UsageError(f"reward: no pair fits into the context of {context} tokens")
    steps = s.steps or max(1, round(len(data) * s.epochs / s.batch_size))
    drawn = _pair_weights(s.sampling, s.density, data, request.seed)
    return Job(
        stage="reward",
        init=init,
        tokenizer=init,
        train=data,
        validation=validation if validation is not None and len(validation) else None,
        settings=s,
        seed=request.seed,
        device=request.device,
        dtype=request.dtype,
        out=request.out,
        stop_at=request.max_steps,
        schedule=draw_schedule(data.names, steps * s.batch_size, request.seed, drawn, s.sampling),
        loss_weights=_pair_weights(s.loss_weights, s.density, data, request.seed),
    )


def grpo_job(request: "Request", init: Path, console: Console) -> Job:
    """Prompts, and the schedule of all rollouts."""
    s = request.settings
    assert isinstance(s, GrpoSettings)
    if request.reward is None:
        raise UsageError("grpo: --reward is missing; give a reward checkpoint, module:function, microworld or choices")
    tokenizer, context = Tokenizer.load(init), read_config(init).sequence_len
    rows = load_prompts(request.data, max_bad=s.max_bad)
    say(console, f"grpo: {rows.report()}")
    room = context - s.max_new_tokens
    if room < 2:
        raise UsageError(f"grpo: max_new_tokens {s.max_new_tokens} leaves no room in the context of {context} tokens")
    data = encode_prompts(rows.rows, tokenizer, room)
    if len(data) < 2:
        raise UsageError("grpo: a single prompt is no distribution; give at least two")
    note = f", {data.n_dropped:,} dropped: longer than {room} tokens" if data.n_dropped else ""
    say(console, f"grpo: {len(data):,} prompts{note}")
    weights = prompt_weights(s.sampling, s.density, data, request.seed)
    n_rollouts = -(-s.steps * s.batch_size // (s.prompts_per_rollout * s.completions * s.epochs_per_rollout))
    return Job(
        stage="grpo",
        init=init,
        tokenizer=init,
        train=data,
        validation=None,
        settings=s,
        seed=request.seed,
        device=request.device,
        dtype=request.dtype,
        out=request.out,
        stop_at=request.max_steps,
        schedule=draw_schedule(data.names, n_rollouts * s.prompts_per_rollout, request.seed, weights, s.sampling),
        reward=request.reward,
    )


def hold_out_prompts(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Split by the prompt's hash, so that no prompt stands on both sides, whatever else is in the files."""
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[int(pair.prompt.id[:12], 16) < share * 16**12].append(pair)
    return sides


def _encoded(what: str, pairs: Sequence[Pair], tokenizer: Tokenizer, context: int, console: Console) -> PairData:
    data = encode_pairs(pairs, tokenizer, context)
    say(
        console,
        f"reward: {what} {len(data):,} pairs of {len(set(data.prompts)):,} prompts "
        f"({data.n_dropped:,} dropped: longer than {context} tokens)",
    )
    return data


def prompt_weights(sampling: Weighting, folder: str | None, data: PromptData, seed: int) -> np.ndarray | None:
    """(prompts,) weights that sum to 1, or None for uniform draws. A prompt without a weight is an error."""
    if sampling == "uniform":
        return None
    assert folder is not None
    weights = load_density(Path(folder), data.names, subset=data.n_dropped > 0)
    if sampling == "placebo":
        weights = placebo_weights(weights, [len(ids) for ids in data.ids], seed)
    return weights


def _pair_weights(sampling: Weighting, folder: str | None, data: PairData, seed: int) -> np.ndarray | None:
    """(pairs,) weights that sum to 1: a prompt's weight, shared among its pairs."""
    if sampling == "uniform":
        return None
    assert folder is not None
    of_prompt = Counter(data.prompts)
    prompts = tuple(of_prompt)
    weights = load_density(Path(folder), prompts, subset=True)  # without the held-out prompts
    if sampling == "placebo":
        length = dict(zip(data.prompts, data.prompt_lengths, strict=True))
        weights = placebo_weights(weights, [length[prompt] for prompt in prompts], seed)
    by_prompt = dict(zip(prompts, weights, strict=True))
    shares = np.array([by_prompt[prompt] / of_prompt[prompt] for prompt in data.prompts])
    return shares / shares.sum()
