"""A recipe is a TOML file: settings of the whole, and stages that are `kat` command lines.

    seed = 0                              # {seed} in a command

    [stages.tokenizer]
    command = "train tokenizer --data {world}/documents.jsonl --out {out}"
    settings = {vocab_size = 768}         # become --set vocab_size=768
    processes = 2                         # run under torchrun with so many ranks (default 1)
    exits = [1, 4]                        # with these codes too the other stages go on; the run then ends with the code

`{out}` is the stage's own folder under the run, `{name}` that of another stage (which makes it a dependency),
`{data}` the folder KAT_DATA, `{NAME}` any value of the recipe's [values] table or a top-level value.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from kat.errors import UsageError
from kat.runs.settings import parse_value, read_toml

PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]*")


@dataclass(frozen=True)
class Stage:
    """One `kat` process: its name (a path under the run), words of its command, and `--set` settings."""

    name: str
    words: tuple[str, ...]
    settings: Mapping[str, Any]
    needs: tuple[str, ...]
    writes: bool  # False: a stage that prints and leaves no folder
    processes: int = 1
    exits: tuple[int, ...] = ()  # codes other than 0 with which the others go on; the run still ends with the code


@dataclass(frozen=True)
class Recipe:
    """Stages in an order in which they can run."""

    name: str
    values: Mapping[str, Any]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise UsageError(f"recipe {self.name}: no stage {name!r}; there are {known}")

    def after(self, name: str) -> set[str]:
        """The stage and all that depend on it."""
        chosen = {self.stage(name).name}
        for stage in self.stages:
            if chosen & set(stage.needs):
                chosen.add(stage.name)
        return chosen


def recipe_names() -> list[str]:
    """The recipes that come with kat."""
    return sorted(
        path.name.removesuffix(".toml")
        for path in files("kat.pipeline.recipes").iterdir()
        if path.name.endswith(".toml")
    )


def load_recipe(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or from a TOML file; `assignments` are `value=…` or `stage.setting=…`."""
    title, content = read_recipe(name)
    if "study" in content:
        raise UsageError(f"{name}: a study of several arms and seeds, not one pipeline; kat run runs it")
    return make_recipe(title, content, assignments, name)


def read_recipe(name: str) -> tuple[str, dict[str, Any]]:
    """(title, content) of a recipe of kat's own or of a TOML file."""
    if name.endswith(".toml"):
        return Path(name).stem, read_toml(Path(name))
    if name in recipe_names():
        return name, read_toml(Path(str(files("kat.pipeline.recipes") / f"{name}.toml")))
    raise UsageError(f"recipe {name!r}: not a .toml file and none of {', '.join(recipe_names())}")


def make_recipe(title: str, content: Mapping[str, Any], assignments: Sequence[str], where: str) -> Recipe:
    """Check a recipe's content and put its stages in order."""
    tables = content.get("stages")
    if not isinstance(tables, dict) or not tables:
        raise UsageError(f"{where}: no [stages.…] in it")
    values = {key: value for key, value in content.items() if key != "stages"}
    settings = {name: dict(_table(table, name, where).get("settings", {})) for name, table in tables.items()}
    for text in assignments:
        _assign(text, values, settings, where)
    stages = [_stage(name, table, settings[name], tuple(tables), where) for name, table in tables.items()]
    return Recipe(title, values, _in_order(stages, where))


def _table(table: Any, name: str, where: str) -> Mapping[str, Any]:
    if not STAGE_NAME.fullmatch(name) or ".." in name:
        raise UsageError(f"{where}: {name!r} is no name for a stage; use lower-case letters, digits, - and /")
    if not isinstance(table, dict) or not isinstance(table.get("command"), str | tuple | list):
        raise UsageError(f"{where}: stage {name} needs a command")
    if unknown := sorted(set(table) - {"command", "settings", "processes", "exits"}):
        raise UsageError(
            f"{where}: stage {name}: unknown key {unknown[0]!r}; known: command, exits, settings, processes"
        )
    if not isinstance(table.get("settings", {}), dict):
        raise UsageError(f"{where}: stage {name}: settings is {table['settings']!r}; write {{name = value, …}}")
    exits = table.get("exits", [])
    if not isinstance(exits, list) or not all(isinstance(code, int) and 0 < code < 128 for code in exits):
        raise UsageError(f"{where}: stage {name}: exits is {exits!r}; it is a list of exit codes such as [1, 4]")
    if not isinstance(table.get("processes", 1), int) or table.get("processes", 1) < 1:
        raise UsageError(f"{where}: stage {name}: processes is {table['processes']!r}; it must be 1 or more")
    return table


def _assign(text: str, values: dict[str, Any], settings: dict[str, dict[str, Any]], where: str) -> None:
    key, separator, value = text.partition("=")
    stage, dot, setting = key.strip().rpartition(".")
    if not separator:
        raise UsageError(f"--set {text}: write value=… or stage.setting=…")
    if dot and stage in settings:
        settings[stage][setting] = parse_value(value.strip())
    elif not dot and key.strip() in values:
        values[key.strip()] = parse_value(value.strip())
    else:
        known = ", ".join([*values, *(f"{name}.…" for name in settings)])
        raise UsageError(f"--set {text}: {where} has no such value or stage; known: {known}")


def _stage(
    name: str, table: Mapping[str, Any], settings: Mapping[str, Any], names: tuple[str, ...], where: str
) -> Stage:
    stated = table["command"]
    try:
        words = tuple(shlex.split(stated) if isinstance(stated, str) else map(str, stated))
    except ValueError as error:
        raise UsageError(f"{where}: stage {name}: its command cannot be split into words ({error})") from None
    used = {match for word in (*words, *map(str, settings.values())) for match in PLACEHOLDER.findall(word)}
    needs = tuple(other for other in names if other in used and other != name)
    processes, exits = table.get("processes", 1), tuple(table.get("exits", ()))
    return Stage(name, words, settings, needs, "out" in used, processes, exits)


def _in_order(stages: Sequence[Stage], where: str) -> tuple[Stage, ...]:
    """Topological order that keeps the file's order where it may."""
    ordered: list[Stage] = []
    left = list(stages)
    while left:
        done = {stage.name for stage in ordered}
        ready = next((stage for stage in left if set(stage.needs) <= done), None)
        if ready is None:
            raise UsageError(f"{where}: stages {', '.join(stage.name for stage in left)} wait for each other")
        ordered.append(ready)
        left.remove(ready)
    return tuple(ordered)


def command(recipe: Recipe, stage: Stage, run: Path) -> list[str]:
    """The stage's words with all placeholders filled in, settings as `--set`."""

    def fill(text: str) -> str:
        return PLACEHOLDER.sub(lambda match: _value(recipe, stage, run, match[1]), text)

    words = [fill(word) for word in stage.words]
    for key, value in stage.settings.items():
        words += ["--set", f"{key}={_toml(value, fill)}"]
    return words


def input_paths(recipe: Recipe, stage: Stage, run: Path) -> list[Path]:
    """What the stage reads from outside the run: absolute paths in its command and settings (those under {data} are),
    and paths given as a value of the recipe. Other words are never taken for files of the folder where we stand."""
    texts = [*stage.words, *(text for value in stage.settings.values() for text in _strings(value))]
    given = {str(value) for value in recipe.values.values() if isinstance(value, str) and value}
    filled = [PLACEHOLDER.sub(lambda match: _value(recipe, stage, run, match[1]), text) for text in texts]
    return [Path(text).absolute() for text in filled if text and (Path(text).is_absolute() or text in given)]


def _strings(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for part in value for text in _strings(part)]
    return [value] if isinstance(value, str) else []


def _value(recipe: Recipe, stage: Stage, run: Path, name: str) -> str:
    if name == "out":
        return str(run / stage.name)
    if name in {other.name for other in recipe.stages}:
        return str(run / name)
    if name == "data":
        return str(data_folder(recipe.name))
    if name in recipe.values:
        if recipe.values[name] == "":
            raise UsageError(f"recipe {recipe.name}: {name} is not given; say --set {name}=…")
        return str(recipe.values[name])
    raise UsageError(f"recipe {recipe.name}: stage {stage.name}: {{{name}}} is neither a stage nor a value")


def data_folder(recipe: str) -> Path:
    """KAT_DATA as a folder that is there."""
    folder = os.environ.get("KAT_DATA")
    if not folder or not Path(folder).is_dir():
        raise UsageError(f"recipe {recipe}: set KAT_DATA to the folder of real data (see docs/data.md)")
    return Path(folder).absolute()


def _toml(value: Any, fill: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v, fill) if not isinstance(v, str) else repr(fill(v)) for v in value) + "]"
    return fill(value) if isinstance(value, str) else repr(value)
