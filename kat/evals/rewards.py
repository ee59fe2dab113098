"""What GRPO can maximise: a reward checkpoint, anybody's function, the microworld's truth, the right choice, or a sum.

A reward is named by a text: a folder, `module:function`, `microworld` or `choices`, each perhaps with a factor in front
(`0.5*folder`).
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kat.data.letters import extract
from kat.data.preferences import Prompt
from kat.errors import KatError, UsageError
from kat.model.reward import load_reward
from kat.runs.files import hash_json
from kat.tokenizer.bpe import Tokenizer

Score = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
MICROWORLD = "kat.data.microworld_preferences:true_reward"


@dataclass(frozen=True)
class Term:
    """One reward of the sum. `identity` is a hash of what decides its values."""

    name: str
    factor: float
    score: Score
    identity: str


@dataclass(frozen=True)
class Sum:
    """The weighted sum of rewards; see kat.trainers.protocol.Reward."""

    terms: tuple[Term, ...]

    @property
    def name(self) -> str:
        return " + ".join(term.name if term.factor == 1 else f"{term.factor:g}*{term.name}" for term in self.terms)

    @property
    def identity(self) -> str:
        return hash_json([[term.factor, term.identity] for term in self.terms])

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        total = [0.0] * len(responses)
        for term in self.terms:
            values = _values(term, prompts, responses)
            if len(values) != len(responses):
                raise UsageError(
                    f"reward {term.name} returned {len(values)} numbers for {len(responses)} responses; return one each"
                )
            total = [sum_ + term.factor * value for sum_, value in zip(total, values, strict=True)]
        return total


def _values(term: Term, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """What a reward returns, of copies: a function may sort what it is given. UsageError where it raises, or exits."""
    try:
        return [float(value) for value in term.score(list(prompts), list(responses))]
    except KatError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code
        said = " ".join(str(error).split())
        raise UsageError(f"reward {term.name} raised {type(error).__name__}: {said}") from error


def open_reward(specs: Sequence[str], tokenizer: Tokenizer | None = None, device: str = "cpu") -> Sum:
    """The sum of the rewards that are named. UsageError where one cannot be opened, or is a reward checkpoint with
    another tokenizer than the policy's (`tokenizer`)."""
    if not specs:
        raise UsageError("no reward: give a reward checkpoint, module:function, microworld or choices")
    return Sum(tuple(_open(spec, tokenizer, device) for spec in specs))


def _open(spec: str, tokenizer: Tokenizer | None, device: str) -> Term:
    factor, name = _factor(spec)
    if name == "choices":
        return Term(name, factor, choice_reward, "choices/1")
    if name == "microworld":
        return _function(MICROWORLD, factor)
    if (Path(name) / "kat.json").is_file():
        return _checkpoint(Path(name), factor, tokenizer, device)
    if ":" in name:
        return _function(name, factor)
    raise UsageError(f"reward {name}: no reward checkpoint is there; write module:function for a function of yours")


def _factor(spec: str) -> tuple[float, str]:
    head, star, rest = spec.partition("*")
    if not star:
        return 1.0, spec
    try:
        factor = float(head)
    except ValueError:
        return 1.0, spec
    if not 0 < abs(factor) < float("inf"):
        raise UsageError(f"reward {spec}: the factor must be a finite number other than 0")
    return factor, rest


def _checkpoint(folder: Path, factor: float, tokenizer: Tokenizer | None, device: str) -> Term:
    judge = load_reward(folder, device)
    if tokenizer is not None and judge.tokenizer.hash != tokenizer.hash:
        raise UsageError(
            f"reward {folder}: its tokenizer is not the policy's; train the reward model from the same checkpoint"
        )

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return judge.score([list(prompt.messages) for prompt in prompts], responses)

    return Term(str(folder), factor, score, judge.identity)


def _function(name: str, factor: float) -> Term:
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise UsageError(f"reward {name}: write module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module in the folder where the user stands
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a module of the user's: what it raises is theirs)
        said = " ".join(str(error).split())
        raise UsageError(f"reward {name}: cannot be imported ({type(error).__name__}: {said})") from None
    if not callable(function):
        raise UsageError(f"reward {name}: a {type(function).__name__}, not a function of (prompts, responses)")
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        source = name  # built in, or made at run time: there is no text of it
    return Term(name, factor, function, hashlib.sha256(f"{name}\n{source}".encode()).hexdigest())


def choice_reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """1 where the response names the right option of a multiple-choice prompt, else 0. UsageError where a prompt has
    no choices in its truth."""
    rewards = []
    for prompt, response in zip(prompts, responses, strict=True):
        truth = prompt.truth or {}
        choices, answer = truth.get("choices"), truth.get("answer")
        if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise UsageError(f"reward choices: prompt {prompt.id[:12]} is no multiple-choice prompt (no truth in it)")
        found = extract(response, choices)
        rewards.append(float(found.letter == chr(ord("A") + answer)))
    return rewards
