"""What GRPO can maximise: named by a text, opened once, added up; a wrong name is a line."""

import sys
from pathlib import Path

import pytest
import torch

from kat.data.choices import parse_choice_item
from kat.data.preferences import choice_prompt, make_prompt
from kat.errors import UsageError
from kat.evals.rewards import choice_reward, open_reward
from kat.model.checkpoint import save_checkpoint
from kat.model.reward import RewardModel, load_reward, save_head
from kat.runs.files import new_folder
from kat.tokenizer.bpe import train_tokenizer
from tests.model.helpers import random_model, tiny_tokenizer

PROMPTS = [make_prompt([{"role": "user", "content": text}]) for text in ("ri?", "kato lone?")]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward checkpoint with random weights."""
    from kat.model.checkpoint import write_checkpoint

    tokenizer = tiny_tokenizer()
    model = RewardModel(random_model(3, vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        model.head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("judge") / "rm"
    with new_folder(folder) as temporary:
        save_head(temporary, model)
        write_checkpoint(temporary, model.gpt, tokenizer, {"stage": "reward"})
    return folder


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = (", "SyntaxError"),
        ("raise ValueError('not\\nhere')", "ValueError: not here"),
        ("import sys; sys.exit(0)", "SystemExit"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_reward_for_tests.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=f"cannot be imported .{why}") as caught:
        open_reward(["broken_reward_for_tests:f"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [":f", "module:"])
def test_half_a_name_of_a_function_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="write module:function"):
        open_reward([name])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("return None", "TypeError"),
    ],
)
def test_a_function_that_fails_or_exits_is_one_line(
    body: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "failing_reward_for_tests", raising=False)
    (tmp_path / "failing_reward_for_tests.py").write_text(f"def f(prompts, responses):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = open_reward(["failing_reward_for_tests:f"])
    with pytest.raises(UsageError, match=f"reward failing_reward_for_tests:f raised {why}") as caught:
        reward(PROMPTS, ["a", "b"])
    assert "\n" not in str(caught.value)


def test_a_function_that_sorts_what_it_gets_changes_nothing_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sorting_reward_for_tests.py").write_text(
        "def sorts(prompts, responses):\n    responses.sort()\n    return [0.0] * len(responses)\n"
        "def length(prompts, responses):\n    return [len(text) for text in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    responses = ["zzz", "a"]
    assert open_reward([f"sorting_reward_for_tests:{name}" for name in ("sorts", "length")])(PROMPTS, responses) == [
        3,
        1,
    ]
    assert responses == ["zzz", "a"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_rewards_for_tests.py").write_text(
        "def length(prompts, responses):\n    return [len(r) for r in responses]\n"
        "def short(prompts, responses):\n    return [1.0]\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_rewards_for_tests", None)
    return "my_rewards_for_tests"


def test_a_checkpoint_scores_as_the_reward_model_itself(judge: Path) -> None:
    found = open_reward([str(judge)])
    wanted = load_reward(judge).score([list(p.messages) for p in PROMPTS], ["toto", "neka ri"])
    assert found(PROMPTS, ["toto", "neka ri"]) == wanted
    assert len(set(wanted)) == 2
    assert found.identity != open_reward([f"2*{judge}"]).identity


def test_rewards_are_added_with_their_factors(judge: Path, mine: str) -> None:
    both = open_reward([f"-0.5*{judge}", f"{mine}:length"])
    alone = open_reward([str(judge)])(PROMPTS, ["toto", "ri"])
    assert both(PROMPTS, ["toto", "ri"]) == pytest.approx([4 - 0.5 * alone[0], 2 - 0.5 * alone[1]])
    assert both.name == f"-0.5*{judge} + {mine}:length"


def test_a_functions_identity_follows_its_text(mine: str, tmp_path: Path) -> None:
    before = open_reward([f"{mine}:length"]).identity
    assert open_reward([f"{mine}:length"]).identity == before
    file = tmp_path / f"{mine}.py"
    file.write_text(file.read_text().replace("len(r)", "-len(r)"))
    sys.modules.pop(mine)
    import linecache

    linecache.clearcache()
    assert open_reward([f"{mine}:length"]).identity != before


def test_choices_reward_the_right_option() -> None:
    item = parse_choice_item({"id": "a", "question": "Who?", "choices": ["fox", "owl", "bear"], "answer": 1})
    prompt = choice_prompt(item)
    said = ["B", "The answer is B. owl", "owl", "A", "fox", "A or B", "", "<script>B</script>"]
    assert choice_reward([prompt] * len(said), said)[:6] == [1, 1, 1, 0, 0, 0]
    assert choice_reward([prompt], [""]) == [0]
    with pytest.raises(UsageError, match="is no multiple-choice prompt"):
        choice_reward(PROMPTS[:1], ["B"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "no reward checkpoint is there; write module:function"),
        ("no_such_module_x:f", "cannot be imported"),
        ("math:no_such", "cannot be imported"),
        ("math:pi", "a float, not a function"),
        ("0*microworld", "the factor must be a finite number other than 0"),
        ("inf*microworld", "the factor must be a finite number"),
    ],
)
def test_a_wrong_name_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_reward([spec])
    assert "\n" not in str(caught.value)


def test_no_reward_a_wrong_count_and_another_tokenizer(judge: Path, mine: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no reward"):
        open_reward([])
    with pytest.raises(UsageError, match="returned 1 numbers for 2 responses"):
        open_reward([f"{mine}:short"])(PROMPTS, ["a", "b"])
    other = train_tokenizer(["other words make another tokenizer " * 9], 280)
    with pytest.raises(UsageError, match="its tokenizer is not the policy's"):
        open_reward([str(judge)], other)
    open_reward([str(judge)], tiny_tokenizer())
    plain = tmp_path / "plain"
    save_checkpoint(plain, random_model(0, vocab_size=tiny_tokenizer().vocab_size), tiny_tokenizer(), {"stage": "sft"})
    with pytest.raises(UsageError, match="without a reward head"):
        open_reward([str(plain)])
