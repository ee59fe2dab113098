"""Find a suite by its name: kat's own, and those that other packages register under the entry point ``kat.suites``.

    [project.entry-points."kat.suites"]
    mysuite = "mypackage.suites:MySuite.load"

An entry point is a factory: ``factory(data, **options)`` returns a :class:`~kat.evals.protocol.Suite`.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

from kat.errors import UsageError
from kat.evals.protocol import Suite

GROUP = "kat.suites"

BUILT_IN = {
    "scienceqa": "kat.evals.scienceqa:ScienceQA.load",
    "choices": "kat.evals.choices:Choices.load",
    "choices-text": "kat.evals.choices:Choices.load_text",
    "reward": "kat.evals.reward:RewardSuite.load",
    "bpb": "kat.evals.bpb:BitsPerByte.load",
    "diversity": "kat.evals.diversity:Diversity.load",
}

SuiteFactory = Callable[..., Suite]


def suite_names() -> list[str]:
    """Every suite that can be named, kat's own first."""
    return [*BUILT_IN, *sorted(entry.name for entry in _entries() if entry.name not in BUILT_IN)]


def get_suite(name: str) -> SuiteFactory:
    """The factory of the suite `name`. A plug-in cannot take the name of one of kat's own.

    Raises :class:`UsageError` for an unknown name, for two plug-ins of one name, and for a plug-in that cannot be
    imported.
    """
    if name in BUILT_IN:
        return _load(BUILT_IN[name])
    found = [entry for entry in _entries() if entry.name == name]
    if not found:
        raise UsageError(f"no suite {name!r}; there are {', '.join(suite_names())}")
    if len(found) > 1:
        makers = " and ".join(sorted(entry.value for entry in found))
        raise UsageError(f"suite {name!r} is registered twice ({makers}); uninstall one of them")
    try:
        factory = found[0].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"suite {name!r} ({found[0].value}) cannot be imported: {error}") from error
    if not callable(factory):
        raise UsageError(f"suite {name!r} ({found[0].value}) is no factory: it must be callable with the data")
    return factory


def _entries() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


def _load(place: str) -> SuiteFactory:
    module, _, path = place.partition(":")
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    return value
