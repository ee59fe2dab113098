"""The checks of forward, cache and generation: what they find, and that correct models of other designs pass."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from kat.errors import UsageError
from kat.model import gpt
from kat.model.cache import KVCache
from kat.verify.adapters import native
from kat.verify.check import Check, Vacuous
from kat.verify.checks import cache, forward, generation
from kat.verify.checks.generation import teach
from kat.verify.lab import Lab
from kat.verify.matrix import kills, likely
from kat.verify.mutants.model import CACHE, FORWARD, GENERATION, MUTANTS, NO_COUNTERPART
from kat.verify.mutants.mutant import around, patched
from kat.verify.runner import Report, catalogue, run_checks
from kat.verify.subject import Make, Source, Traits

CHECKS = [c for module in (forward, cache, generation) for c in vars(module).values() if isinstance(c, Check)]
NATIVE = Source("native", "native", native.make)


def report(make: Make, seed: int = 0, checks: list[Check] = CHECKS) -> Report:
    return run_checks(Source("subject", "subject", make), checks, seed=seed)


def assert_no_alarm(made: Report) -> None:
    bad = [f for f in made.findings if f.outcome not in ("PASS", "SKIP")]
    assert not bad, "\n".join(f"{f.outcome} {f.check}: {f.message} {f.measured} {f.case}\n{f.trace}" for f in bad)


@pytest.mark.parametrize("seed", [0, 1])
def test_native_passes(seed: int) -> None:
    made = report(native.make, seed)
    assert_no_alarm(made)
    assert {f.outcome for f in made.findings} == {"PASS"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 20))
def test_native_passes_with_every_seed(seed: int) -> None:
    assert_no_alarm(report(native.make, seed))


# Planted bugs


KILLER = {
    "next_token_seen": "future_tokens_have_no_effect",
    "own_token_not_seen": "padding_has_no_effect",
    "previous_token_not_seen": "earlier_tokens_have_an_effect",
    "undeclared_window": "earlier_tokens_have_an_effect",
    "groups_interleaved": "forward_matches_reference",
    "rotary_pairs_in_one_layer": "forward_matches_reference",
    "rotary_on_keys_only": "position_ids_act_as_declared",
    "no_rotary_at_all": "position_ids_act_as_declared",
    "rotary_base_of_another_model": "forward_matches_reference",
    "rotary_angles_in_bfloat16": "forward_matches_reference",
    "rotary_table_rescaled_when_grown": "forward_has_no_memory",
    "softcap_in_bfloat16": "batch_rows_are_independent",
    "embedding_off_graph": "gradient_matches_finite_difference",
    "keys_off_graph": "gradient_matches_finite_difference",
    "values_of_a_head_off_graph": "gradient_matches_finite_difference",
    "logits_off_graph": "gradient_matches_finite_difference",
    "batch_and_time_swapped": "batch_rows_are_independent",
    "logits_centred_over_the_batch": "cache_is_right_or_refuses_beyond_max_len",
    "attention_mask_ignored": "padding_has_no_effect",
    "position_ids_ignored": "position_ids_act_as_declared",
    "positions_past_the_context_are_its_last": "position_ids_act_as_declared",
    "attention_mask_from_pad_id": "padding_has_no_effect",
    "pad_id_masked_as_content": "padding_has_no_effect",
    "pad_id_never_seen": "padding_has_no_effect",
    "attention_mask_shifted": "padding_has_no_effect",
    "attention_mask_of_the_first_row": "padding_has_no_effect",
    "positions_of_the_first_row": "position_ids_act_as_declared",
    "attention_mask_overwritten": "forward_has_no_memory",
    "dropout_in_evaluation": "forward_has_no_memory",
    "cache_returns_only_new_keys": "cache_is_right_or_refuses_beyond_max_len",
    "cache_written_from_the_start": "cache_is_right_or_refuses_beyond_max_len",
    "decode_ignores_offset": "cache_is_right_or_refuses_beyond_max_len",
    "query_rotated_from_zero": "cache_is_right_or_refuses_beyond_max_len",
    "chunk_masked_from_top_left": "cache_is_right_or_refuses_beyond_max_len",
    "chunk_sees_its_own_future": "cache_is_right_or_refuses_beyond_max_len",
    "window_forgotten_in_decode": "long_greedy_generation_is_the_argmax_path",
    "keys_stored_unrotated": "cache_is_right_or_refuses_beyond_max_len",
    "softcap_missing_with_cache": "decode_matches_forward",
    "scores_scaled_in_decode": "cache_is_right_or_refuses_beyond_max_len",
    "cache_rows_reordered": "cache_is_right_or_refuses_beyond_max_len",
    "values_one_slot_late": "cache_is_right_or_refuses_beyond_max_len",
    "cache_growth_loses_a_token": "cache_is_right_or_refuses_beyond_max_len",
    "cache_stuck_at_capacity": "cache_is_right_or_refuses_beyond_max_len",
    "positions_wrap_at_capacity": "cache_is_right_or_refuses_beyond_max_len",
    "one_state_for_all_sequences": "cache_states_are_separate",
    "state_not_cleared_for_a_new_sequence": "chunked_prefill_matches_forward",
    "cache_kept_between_generations": "samples_differ_and_repeat_with_the_seed",
    "prompts_padded_without_a_mask": "generation_is_right_or_refuses_beyond_max_len",
    "padding_reverses_prompts": "end_token_ends_a_completion",
    "padded_prefill_counts_the_padding": "generation_is_right_or_refuses_beyond_max_len",
    "ragged_rows_decode_one_ahead": "generation_is_right_or_refuses_beyond_max_len",
    "ragged_mask_misses_the_last_token": "generation_is_right_or_refuses_beyond_max_len",
    "padding_seen_after_prefill": "generation_is_right_or_refuses_beyond_max_len",
    "last_prompt_token_dropped": "end_token_ends_a_completion",
    "bos_put_before_prompts": "samples_follow_the_softmax",
    "pad_ids_stripped_from_prompts": "greedy_generation_is_the_argmax_path",
    "first_token_broadcast": "samples_differ_and_repeat_with_the_seed",
    "temperature_zero_samples": "end_token_ends_a_completion",
    "samples_of_a_group_equal": "end_token_ends_a_completion",
    "identical_prompts_sampled_alike": "samples_differ_and_repeat_with_the_seed",
    "always_greedy": "samples_differ_and_repeat_with_the_seed",
    "temperature_ignored": "samples_follow_the_softmax",
    "temperature_multiplies": "samples_follow_the_softmax",
    "seed_ignored": "samples_differ_and_repeat_with_the_seed",
    "seed_from_global_generator": "samples_differ_and_repeat_with_the_seed",
    "one_draw_for_all_tokens": "samples_follow_the_softmax",
    "top_k_one_too_many": "top_k_keeps_the_k_likeliest",
    "top_k_ignored": "top_k_keeps_the_k_likeliest",
    "top_k_without_temperature": "top_k_keeps_the_k_likeliest",
    "top_k_not_renormalised": "top_k_keeps_the_k_likeliest",
    "draws_in_bfloat16": "samples_follow_the_softmax",
    "nucleus_by_default": "samples_follow_the_softmax",
    "repetition_penalty_by_default": "generation_is_right_or_refuses_beyond_max_len",
    "end_token_unknown": "end_token_ends_a_completion",
    "end_token_of_another_model": "end_token_ends_a_completion",
    "end_token_cut_off": "end_token_ends_a_completion",
    "end_token_in_prompt_ends": "greedy_generation_is_the_argmax_path",
    "first_end_ends_the_batch": "end_token_ends_a_completion",
    "ended_rows_filled_up": "end_token_ends_a_completion",
    "completion_decoded_and_encoded": "end_token_ends_a_completion",
    "completion_text_retokenised": "greedy_generation_is_the_argmax_path",
    "one_token_too_many": "end_token_ends_a_completion",
    "finish_always_length": "end_token_ends_a_completion",
    "logprobs_raw": "logprobs_are_those_of_forward",
    "logprobs_of_what_top_k_leaves": "logprobs_are_those_of_forward",
    "logprobs_of_the_likeliest": "logprobs_are_those_of_forward",
    "logprobs_one_late": "logprobs_are_those_of_forward",
    "logprob_of_end_token_missing": "logprobs_are_those_of_forward",
    "only_first_prompts_answered": "end_token_ends_a_completion",
    "prompts_sorted_by_length": "end_token_ends_a_completion",
    "samples_and_prompts_transposed": "end_token_ends_a_completion",
    "engine_keeps_old_weights": "generation_uses_the_current_weights",
    "prefixes_keep_old_weights": "generation_uses_the_current_weights",
    "generation_rounds_weights": "generate_leaves_no_trace",
    "generation_switches_gradients_off": "generate_leaves_no_trace",
    "rotary_table_is_an_inference_tensor": "generate_leaves_no_trace",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_mutant_is_killed(mutant: Any) -> None:
    """By the check that is named for it; the whole matrix is a slow test."""
    check = next(c for c in CHECKS if c.id == KILLER[mutant.id])
    assert kills(mutant, [check], NATIVE).killers == (check.id,)


def test_each_check_kills_a_mutant() -> None:
    assert set(KILLER) == {mutant.id for mutant in MUTANTS}
    assert set(KILLER.values()) == {check.id for check in CHECKS}


def test_rows_are_those_of_the_catalogue() -> None:
    rows = catalogue()
    assert {row for mutant in MUTANTS for row in mutant.rows} <= set(rows)
    assert {row for check in CHECKS for row in check.catches} <= set(rows)
    planted = {row for mutant in MUTANTS for row in mutant.rows}
    assert {row for row in rows if row[:2] in ("MF", "SG")} == {r for r in planted if r[:2] in ("MF", "SG")} | set(
        NO_COUNTERPART
    )
    assert not planted & set(NO_COUNTERPART)
    assert sum(not mutant.rows for mutant in MUTANTS) >= len(MUTANTS) * 0.3


# Correct models of other designs


def tiny_models() -> dict[str, Callable[[], Any]]:
    """Randomly initialised transformers models, made when called."""
    import transformers as tr

    ids = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {**ids, **sizes, "max_position_embeddings": 64}
    grouped = {**common, "num_key_value_heads": 2}
    window = {"head_dim": 8, "sliding_window": 6}
    return {
        "nanochat": lambda: tr.NanoChatForCausalLM(tr.NanoChatConfig(**grouped)),
        "llama": lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**grouped)),
        "gpt2": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "qwen2": lambda: tr.Qwen2ForCausalLM(tr.Qwen2Config(**grouped)),
        "qwen2-tied": lambda: tr.Qwen2ForCausalLM(tr.Qwen2Config(**grouped, tie_word_embeddings=True)),
        "mistral": lambda: tr.MistralForCausalLM(tr.MistralConfig(**grouped, sliding_window=6)),
        "gpt-neox": lambda: tr.GPTNeoXForCausalLM(tr.GPTNeoXConfig(**common)),
        "opt": lambda: tr.OPTForCausalLM(
            tr.OPTConfig(
                **ids,
                hidden_size=32,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
                word_embed_proj_dim=32,
            )
        ),
        "bloom": lambda: tr.BloomForCausalLM(tr.BloomConfig(**ids, hidden_size=32, n_layer=2, n_head=4)),
        "gemma2": lambda: tr.Gemma2ForCausalLM(tr.Gemma2Config(**grouped, **window)),
        "gemma3": lambda: tr.Gemma3ForCausalLM(tr.Gemma3TextConfig(**grouped, **window, sliding_window_pattern=2)),
        "phi3": lambda: tr.Phi3ForCausalLM(tr.Phi3Config(**grouped)),
        "mixtral": lambda: tr.MixtralForCausalLM(tr.MixtralConfig(**grouped, num_local_experts=4)),
        "gpt-oss": lambda: tr.GptOssForCausalLM(
            tr.GptOssConfig(**grouped, **window, num_local_experts=4, num_experts_per_tok=2)
        ),
    }


ASKED = ("nanochat", "llama", "gpt2", "qwen2", "qwen2-tied", "mistral")


@functools.cache
def hf_make(name: str) -> Make:
    pytest.importorskip("transformers")
    from kat.verify.adapters.hf import of_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return of_model(tiny_models()[name]())


# The checks that differ most between designs; all of them, and 20 seeds, under slow.
QUICK = [
    forward.padding_has_no_effect,
    forward.position_ids_act_as_declared,
    forward.earlier_tokens_have_an_effect,
    cache.chunked_prefill_matches_forward,
    cache.cache_is_right_or_refuses_beyond_max_len,
]


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_alarm_on_transformers(name: str, seed: int) -> None:
    made = report(hf_make(name), seed, QUICK)
    assert_no_alarm(made)
    assert {f.outcome for f in made.findings} == {"PASS"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("seed", range(20))
def test_no_alarm_on_transformers_with_every_seed(name: str, seed: int) -> None:
    made = report(hf_make(name), seed)
    assert_no_alarm(made)
    assert [f.check for f in made.findings if f.outcome == "SKIP"] == ["forward_matches_reference"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-neox", "opt", "bloom", "gemma2", "gemma3", "phi3", "mixtral", "gpt-oss"])
@pytest.mark.parametrize("seed", range(3))
def test_no_alarm_on_other_designs(name: str, seed: int) -> None:
    """Learned positions with an offset, ALiBi, windows in every other layer, softcaps, experts."""
    assert_no_alarm(report(hf_make(name), seed))


@pytest.mark.slow
def test_no_alarm_on_a_large_model_of_which_fewer_cases_are_tried() -> None:
    tr = pytest.importorskip("transformers")
    from kat.verify.adapters.hf import of_model
    from kat.verify.checks import all_checks

    sizes = {"vocab_size": 8192, "hidden_size": 320, "intermediate_size": 640, "num_hidden_layers": 2}
    config = tr.LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=128)
    make = of_model(tr.LlamaForCausalLM(config))
    assert Lab(forward.future_tokens_have_no_effect, make).large
    assert_no_alarm(report(make, 0, [check for check in all_checks() if check.level < 4]))


class Variant:
    """The native subject with another layout of what it computes."""

    reference_logits = None  # of the layouts below transformers knows nothing

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class FusedQkv(Variant):
    """One matrix holds q, k and v of a layer; gradients reach it through torch.func. The trainer behind the model knows
    nothing of it."""

    init_weights = eval_loss = accumulate = train_step = param_groups = None
    rl_setup = rollout = completion_logprobs = rl_step = None

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        state = dict(inner.model.named_parameters())
        self.sizes = [state[f"model.layers.0.self_attn.{x}_proj.weight"].size(0) for x in "qkv"]
        self.fused = {}
        for layer in range(inner.model.config.n_layer):
            parts = [state.pop(f"model.layers.{layer}.self_attn.{x}_proj.weight") for x in "qkv"]
            self.fused[f"qkv.{layer}"] = torch.nn.Parameter(torch.cat(parts).detach())
        self.rest = state

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return [*self.fused.items(), *self.rest.items()]

    def _weights(self) -> dict[str, Tensor]:
        split = {}
        for name, weight in self.fused.items():
            for x, part in zip("qkv", weight.split(self.sizes), strict=True):
                split[f"model.layers.{name.partition('.')[2]}.self_attn.{x}_proj.weight"] = part
        return split

    def forward(self, ids: Tensor, attention_mask: Any = None, position_ids: Any = None) -> Tensor:
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        return torch.func.functional_call(self.inner.model, self._weights(), (ids,), given)

    def loss(self, batch: Any) -> Tensor:
        given = (batch["ids"], batch["targets"])
        return torch.func.functional_call(self.inner.model, self._weights(), given, {"doc_ids": batch["doc_ids"]})

    def forward_cached(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = state or KVCache(self.inner.model.config.n_layer)
        return torch.func.functional_call(self.inner.model, self._weights(), (ids,), {"cache": state}), state

    @torch.no_grad()
    def generate(self, prompts: Any, **options: Any) -> Any:
        live = dict(self.inner.model.named_parameters())
        for name, part in self._weights().items():
            live[name].copy_(part)
        return self.inner.generate(prompts, **options)

    def load(self, path: Any) -> None:
        self.inner.load(path)
        self.__init__(self.inner)  # type: ignore[misc]

    def save(self, path: Any) -> None:
        self.generate([[1]], max_new_tokens=1)
        self.inner.save(path)


class TimeFirstCache(Variant):
    """The state is a tuple that is never written to: (length, keys and values (T, B, H, D))."""

    def forward_cached(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        held = KVCache(self.inner.model.config.n_layer)
        if state is not None:
            held.length = state[0]
            held._keys = [k.permute(1, 2, 0, 3).contiguous() for k in state[1]]
            held._values = [v.permute(1, 2, 0, 3).contiguous() for v in state[2]]
        logits, held = self.inner.forward_cached(ids, held)
        keys = tuple(k[:, :, : held.length].permute(2, 0, 1, 3).contiguous() for k in held._keys)
        values = tuple(v[:, :, : held.length].permute(2, 0, 1, 3).contiguous() for v in held._values)
        return logits, (held.length, keys, values)


class LeftOnly(Variant):
    """Takes padding on the left only, and no position_ids; log-probabilities are raw or missing."""

    @property
    def traits(self) -> Traits:
        return Traits(**{**vars(self.inner.traits), "padding": ("left",), "logprobs": "raw"})

    def forward(self, ids: Tensor, attention_mask: Any = None) -> Tensor:
        if attention_mask is None:
            return self.inner.forward(ids)
        assert bool(attention_mask[:, -1].all()), "padding on the right"
        return self.inner.forward(ids, attention_mask, (attention_mask.cumsum(1) - 1).clamp(min=0))

    def generate(self, prompts: Any, **options: Any) -> Any:
        from kat.verify.subject import Completion

        groups = self.inner.generate(prompts, **options)
        return [[Completion(c.ids, None, None) for c in group] for group in groups]


class RefusesLongRows(Variant):
    """Nothing goes beyond the context; generation ends there with "length"."""

    def forward(self, ids: Tensor, attention_mask: Any = None, position_ids: Any = None) -> Tensor:
        assert ids.size(1) <= self.inner.traits.max_len
        return self.inner.forward(ids, attention_mask, position_ids)

    def forward_cached(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        assert (state.length if state is not None else 0) + ids.size(1) <= self.inner.traits.max_len
        return self.inner.forward_cached(ids, state)

    def generate(self, prompts: Any, max_new_tokens: int = 32, **options: Any) -> Any:
        room = self.inner.traits.max_len - max(map(len, prompts))
        return self.inner.generate(prompts, max_new_tokens=min(max_new_tokens, room), **options)


class TiedHead(Variant):
    """Embedding and head are one tensor; kat's checkpoints and optimisers have no place for that."""

    save = load = None
    reward_accuracy = embed = diversity = None  # read a checkpoint
    rl_setup = rollout = completion_logprobs = advantages = policy_loss = rl_step = None

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        inner.model.lm_head.weight = inner.model.model.embed_tokens.weight


@around
def _other_sign(good: Any) -> Any:
    return lambda x, cos, sin: good(x, cos, -sin)


def of(variant: type[Variant]) -> Make:
    return lambda seed=0, tiny=True, **overrides: variant(native.make(seed, tiny, **overrides))


VARIANTS: dict[str, Make] = {
    "fused-qkv": of(FusedQkv),
    "time-first-cache": of(TimeFirstCache),
    "left-only": of(LeftOnly),
    "refuses-long-rows": of(RefusesLongRows),
    "tied-head": of(TiedHead),
    "other-rotary-sign": patched("kat.model.gpt.rotate", _other_sign)(of(Variant)),
    "bfloat16-tables": functools.partial(native.make, rope_table_dtype="bfloat16"),
    "one-head-one-layer": functools.partial(native.make, n_head=1, n_kv_head=1, n_layer=1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_no_alarm_on_a_benign_variant(name: str) -> None:
    assert_no_alarm(report(VARIANTS[name], 0, [*QUICK, forward.gradient_matches_finite_difference]))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_no_alarm_on_a_benign_variant_in_any_check(name: str, seed: int) -> None:
    assert_no_alarm(report(VARIANTS[name], seed))


def test_fresh_nanochat_model_is_vacuous_unless_randomised() -> None:
    """What the checks stand on: a fresh model's later logits do not depend on earlier tokens."""
    lab = Lab(forward.future_tokens_have_no_effect, native.make)
    with pytest.raises(Vacuous, match="no context"):
        lab.require_context(lab.fresh())
    lab.require_context(lab.randomised())


def test_teach_makes_a_greedy_path() -> None:
    lab = Lab(generation.end_token_ends_a_completion, native.make)
    subject = lab.randomised()
    end = lab.traits.eos_ids[0]
    lessons = [([5, 6], [7, 8, end]), ([9], [end])]
    teach(lab, subject, lessons)
    for prompt, completion in lessons:
        logits = subject.forward(torch.tensor([[*prompt, *completion[:-1]]]))[0, len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == completion


# The Hugging Face adapter


def test_hf_folder_that_is_none(tmp_path: Any) -> None:
    from kat.verify.adapters.hf import open_make

    with pytest.raises(UsageError, match=r"no config\.json there"):
        open_make(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="transformers cannot load it"):
        open_make(str(tmp_path))


def test_hf_folder_without_and_with_a_tokenizer(tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    from kat.model.checkpoint import save_checkpoint
    from kat.verify.adapters.hf import open_make
    from kat.verify.subject import capabilities

    hf_make("llama")().model.save_pretrained(tmp_path / "bare")
    subject = open_make(str(tmp_path / "bare"))()
    assert {"forward", "forward_cached", "generate", "loss", "collate"} <= capabilities(subject)
    assert not {"encode", "encode_prompt", "token_bytes"} & capabilities(subject)

    kats = native.make(0)
    save_checkpoint(tmp_path / "kat", kats.model, kats.tokenizer, {"stage": "sft", "step": 0})
    make = open_make(str(tmp_path / "kat"))
    subject = make()
    text, talk = "river café 7", [{"role": "user", "content": "glass?"}, {"role": "assistant", "content": "stone"}]
    assert subject.decode(subject.encode(text)) == text
    assert subject.encode_prompt(talk[:1]) == kats.encode_prompt(talk[:1])
    assert list(subject.token_bytes()) == list(kats.token_bytes())
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(subject.forward(ids), kats.forward(ids))
        next(iter(subject.named_parameters()))[1].add_(1)  # a copy of its own
        torch.testing.assert_close(make().forward(ids), kats.forward(ids))
    assert subject.traits.vocab == kats.traits.vocab and subject.traits.eos_ids == kats.traits.eos_ids
    assert gpt.IGNORE == -1


def test_hf_overrides_make_another_model() -> None:
    make = hf_make("llama")
    assert make(num_hidden_layers=1).model.config.num_hidden_layers == 1
    with pytest.raises(UsageError, match="no 'colour'"):
        make(colour=1)


def test_hf_loss_and_accumulation_are_the_trainers() -> None:
    subject = hf_make("llama")()
    rows = [([5, 6, 7, 8, 9], [0, 0, 1, 1, 1]), ([4, 3], [0, 1])]
    together = subject.loss(subject.collate(rows))
    lab = Lab(forward.future_tokens_have_no_effect, hf_make("llama"))
    torch.testing.assert_close(together, lab.oracle_loss(subject, rows))
    one = lab.gradient(subject, [subject.collate(rows)])
    two = lab.gradient(subject, [subject.collate(rows[:1]), subject.collate(rows[1:])])
    for name in one:
        torch.testing.assert_close(one[name], two[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [m for m in (*FORWARD, *CACHE, *GENERATION) if not m.native], ids=lambda mutant: mutant.id
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_mutant_of_a_transformers_model_is_killed(mutant: Any, name: str) -> None:
    from kat.verify.subject import capabilities

    if "completion_" in mutant.id and "encode" not in capabilities(hf_make(name)()):
        pytest.skip("it needs a tokenizer")
    checks = likely(mutant, CHECKS)
    source = Source(name, name, hf_make(name))
    assert any(kills(mutant, [check], source).killers for check in checks)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_mutant_is_killed_by_another_seed_too(mutant: Any) -> None:
    check = next(c for c in CHECKS if c.id == KILLER[mutant.id])
    assert kills(mutant, [check], NATIVE, seed=3).killers == (check.id,)
