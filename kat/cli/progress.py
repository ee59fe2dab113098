"""Progress bars for items, where there is a terminal to draw it on."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def item_progress(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `report(done, total)`; silent where the output is no terminal."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextlib.contextmanager
def phase_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `report(phase, done, total)`: a bar a phase; where the output is no terminal, a line every fifth of it."""
    if not console.is_terminal:
        said: set[tuple[str, int]] = set()

        def say(phase: str, done: int, total: int) -> None:
            fifth = 5 * done // max(total, 1)
            if fifth and (phase, fifth) not in said:
                said.add((phase, fifth))
                console.print(f"{phase}: {done:,} of {total:,}", highlight=False)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def draw(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task(phase, total=total)
            progress.update(bars[phase], completed=done, total=total)

        yield draw
