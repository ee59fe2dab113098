"""Every check, in the order in which they run: cheap levels first."""

from types import ModuleType

from kat.verify.check import Check
from kat.verify.checks import (
    cache,
    data,
    density,
    distributed,
    evaluation,
    forward,
    generation,
    loss,
    objective,
    optimiser,
    resume,
    reward,
    rl,
    rollouts,
    tokenizer,
)

MODULES: tuple[ModuleType, ...] = (
    tokenizer,
    data,
    forward,
    cache,
    generation,
    loss,
    optimiser,
    resume,
    evaluation,
    reward,
    density,
    objective,
    rollouts,
    rl,
    distributed,
)


def all_checks() -> list[Check]:
    """All checks by level, then in the order of the files."""
    found = [value for module in MODULES for value in vars(module).values() if isinstance(value, Check)]
    return sorted(found, key=lambda check: check.level)
