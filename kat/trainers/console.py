"""Events of a run on disk and on screen: metrics.jsonl, states, a progress bar, Ctrl-C as a request to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kat.model.gpt import GPT
from kat.model.reward import RewardModel
from kat.text import printable
from kat.trainers.protocol import State
from kat.trainers.run_folder import METRICS, MetricsLog, save_best, save_state

SHOWN = ("loss", "val_loss", "reward", "kl", "tokens_per_second")


class RunEvents:
    """What `kat train` gives to a trainer: see :class:`kat.trainers.protocol.Events`."""

    def __init__(self, folder: Path | None, console: Console, title: str, resume_step: int) -> None:
        """`folder` is None on ranks that only listen for Ctrl-C."""
        self.folder, self.console, self.title = folder, console, title
        self.metrics = MetricsLog(folder / METRICS, resume_step) if folder else None
        self.stop_requested = False
        self._every = 100  # steps between lines where there is no terminal
        self._progress: Progress | None = None

    def start(self, lines: list[str], first_step: int, total: int) -> None:
        self._every = min(100, max(1, total // 5))
        for line in lines:
            shown = escape(printable(line))  # it quotes the data
            self.console.print(f"[dim]{escape(self.title)}[/dim] {shown}", highlight=False, soft_wrap=True)
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar = self._progress.add_task(self.title, total=total, completed=first_step, note="")
            self._progress.start()

    def log(self, step: int, **metrics: float | int | str | None) -> None:
        if self.metrics:
            self.metrics.write(step, dict(metrics))
        shown = {name: value for name in SHOWN if isinstance(value := metrics.get(name), int | float)}
        note = "  ".join(
            f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.4g}" for name, value in shown.items()
        )
        if self._progress:
            self._progress.update(self._bar, completed=step, note=note)
        elif "val_loss" in metrics or step % self._every == 0:
            say(self.console, f"{self.title} step {step}: {note}")

    def save(self, state: State, best: GPT | RewardModel | None = None) -> None:
        assert self.folder is not None and self.metrics is not None, "only the main rank saves"
        self.metrics.sync()
        if best is not None:
            save_best(self.folder, best, state.step)
        save_state(self.folder, state)

    @property
    def should_stop(self) -> bool:
        return self.stop_requested

    @contextlib.contextmanager
    def listening(self) -> Iterator["RunEvents"]:
        """Turn the first Ctrl-C (or a scheduler's SIGTERM) into a request to stop after the step; the second kills."""
        previous: dict[signal.Signals, object] = {}

        def request(_signal: int, _frame: object) -> None:
            self.stop_requested = True
            self._restore(previous)
            say(self.console, "stopping after this step; once more to kill")

        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, request)
        try:
            yield self
        finally:
            self._restore(previous)
            if self._progress:
                self._progress.stop()
            if self.metrics:
                self.metrics.close()

    @staticmethod
    def _restore(previous: dict[signal.Signals, Any]) -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def say(console: Console, line: str) -> None:
    """Print one plain line: no markup, no colours for numbers, no wrapping."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
