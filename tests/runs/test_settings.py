"""Typed settings: defaults, files, assignments, and one line for what is wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kat.errors import UsageError
from kat.runs.settings import (
    STAGES,
    BaseSettings,
    GrpoSettings,
    MidSettings,
    RewardSettings,
    SftSettings,
    TokenizerSettings,
    TrainSettings,
    load_settings,
    make_settings,
    parse_value,
    read_toml,
)


def test_every_stage_has_settings_and_every_setting_a_meaning() -> None:
    assert list(STAGES) == ["tokenizer", "base", "mid", "sft", "reward", "grpo"]
    for kind in STAGES.values():
        kind()
    obvious = {"optimizer", "schedule", "warmup_steps", "plateau_factor", "validation_every", "log_every"}
    obvious |= {"n_layer", "n_embd", "n_head", "max_new_tokens"}
    for kind in (BaseSettings, SftSettings, RewardSettings, GrpoSettings):
        for name in kind.model_fields:  # a stage with another default means the same by it
            said = [c.model_fields[name].description for c in kind.__mro__ if name in getattr(c, "model_fields", ())]
            assert any(said) or name in obvious, f"{kind.__name__}.{name}"


def test_the_file_then_the_assignments(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('matrix_lr = 0.03\noptimizer = "adamw"\nvalidation = ["a.jsonl", "b.jsonl"]\nsteps = 7\n')
    found = load_settings(SftSettings, path, ["steps=9", " warmup_steps = 3 ", "schedule=cosine", "keep_best=false"])
    assert (found.matrix_lr, found.optimizer, found.steps) == (0.03, "adamw", 9)
    assert (found.warmup_steps, found.schedule, found.keep_best) == (3, "cosine", False)
    assert found.validation == ("a.jsonl", "b.jsonl")
    assert found.peak == SftSettings().peak


def test_one_file_may_be_given_without_brackets() -> None:
    assert load_settings(SftSettings, None, ["validation=held out.jsonl"]).validation == ("held out.jsonl",)


def test_zero_is_a_value() -> None:
    """OS6"""
    found = load_settings(TrainSettings, None, ["warmup_steps=0", "weight_decay=0", "final=0", "validation_share=0"])
    assert (found.warmup_steps, found.weight_decay, found.final, found.validation_share) == (0, 0.0, 0.0, 0.0)


WRONG = [
    (["wramup_steps=3"], r"--set: unknown setting 'wramup_steps'; did you mean warmup_steps\?"),
    (["zzz=3"], "--set: unknown setting 'zzz'; known: answers, batch_size"),
    (["steps=0"], r"--set: steps: Input should be greater than or equal to 1 \(got 0\)"),
    (["steps=2.5"], r"steps: .*\(got 2.5\)"),
    (["steps=many"], r"steps: .*\(got 'many'\)"),
    (["steps=true"], r"steps: .*\(got True\)"),
    (["clip=nan"], r"clip: Input should be a finite number \(got nan\)"),
    (["clip=inf"], "clip: Input should be a finite number"),
    (["optimizer=sgd"], r"optimizer: Input should be 'muon' or 'adamw' \(got 'sgd'\)"),
    (["plateau_factor=1"], "plateau_factor: Input should be less than 1"),
    (["batch_size=6", "micro_batch_size=4"], "--set: batch_size 6 is no multiple of micro_batch_size 4"),
    (["steps"], "--set steps: write key=value"),
]


@pytest.mark.parametrize(("assignments", "message"), WRONG)
def test_what_is_wrong_is_said_in_one_line(assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_settings(TrainSettings, None, assignments)
    assert "\n" not in str(error.value)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("step = 3\n")
    with pytest.raises(UsageError, match=r"s\.toml: unknown setting 'step'; did you mean steps\?"):
        load_settings(TrainSettings, path, [])
    path.write_text("steps = \n")
    with pytest.raises(UsageError, match=r"s\.toml: not TOML \(.*line 1"):
        read_toml(path)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not TOML"):
        read_toml(path)
    with pytest.raises(UsageError, match="no such file"):
        read_toml(tmp_path / "gone.toml")


def test_settings_of_one_stage_are_not_those_of_another() -> None:
    with pytest.raises(UsageError, match="unknown setting 'n_layer'"):
        make_settings(SftSettings, {"n_layer": 2}, "here")
    with pytest.raises(UsageError, match="vocab_size: Input should be greater than or equal to 265"):
        make_settings(TokenizerSettings, {"vocab_size": 264}, "here")
    assert MidSettings().supervise_prompts
    assert not SftSettings().supervise_prompts
    assert BaseSettings().layout == "stream"


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BaseSettings().steps = 3


@given(st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False))
def test_values_are_toml(value: object) -> None:
    assert parse_value(str(value).lower()) == value


@given(st.from_regex(r"[a-z][a-z /._-]{0,20}", fullmatch=True))
def test_words_need_no_quotes(word: str) -> None:
    if word not in ("true", "false", "inf", "nan"):
        assert parse_value(word) == word
