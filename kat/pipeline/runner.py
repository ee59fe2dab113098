"""Run a recipe: each stage in a process of its own, as many at a time as the machine has cores.

What a stage was run on is remembered as one hash over its command, its settings and the content of everything it reads.
A stage whose hash is the same, and whose output is still there, is skipped; one that was interrupted goes on.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kat import __version__
from kat.errors import KatError
from kat.model.checkpoint import verify_checkpoint
from kat.pipeline.recipe import Recipe, Stage, command, input_paths
from kat.runs.files import hash_file, hash_json, read_json, write_json

Say = Callable[[str], None]


class StageError(KatError):
    """A stage failed; the exit code is the stage's."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(line)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Plan:
    """What will happen to a stage, and why."""

    stage: Stage
    action: str  # "done" | "run" | "resume"
    reason: str


class Run:
    """One recipe in one folder."""

    def __init__(self, recipe: Recipe, folder: Path, say: Say) -> None:
        self.recipe, self.folder, self.say = recipe, folder, say
        self.notes = folder / ".stages"

    def plan(self, start: str | None = None) -> list[Plan]:
        """Each stage with what would happen. Stages after one that runs are planned to run."""
        forced = self.recipe.after(start) if start else set()
        plans: list[Plan] = []
        running: set[str] = set()
        for stage in self.recipe.stages:
            if stage.name in forced:
                plan = Plan(stage, "run", "asked for by --from" if stage.name == start else f"follows {start}")
            elif waiting := running & set(stage.needs):
                plan = Plan(stage, "run", f"follows {min(waiting)}")
            else:
                plan = self._plan_one(stage)
            if plan.action != "done":
                running.add(stage.name)
            plans.append(plan)
        return plans

    def _plan_one(self, stage: Stage) -> Plan:
        note = self._note(stage)
        if note is None:
            return Plan(stage, "run", "never run")
        if note["input_hash"] != self.input_hash(stage):
            return Plan(stage, "run", "its inputs, settings or command changed")
        if not note["finished"]:
            return Plan(stage, "resume", "was interrupted")
        if stage.writes and self._content(self.folder / stage.name) != note["output_hash"]:
            return Plan(stage, "run", "its output is gone or was changed")
        return Plan(stage, "done", "unchanged")

    def execute(self, start: str | None, jobs: int) -> None:
        """Run what :meth:`plan` says. Raises StageError when a stage fails, or ended with a code that its `exits` allow
        (then when all is done); the others that run are waited for. What follows a stage that ended so and left nothing
        is left out.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        plans = {plan.stage.name: plan for plan in self.plan(start)}
        for plan in plans.values():
            if plan.action == "done":
                self.say(f"{plan.stage.name}: unchanged, skipped")
        done = {name for name, plan in plans.items() if plan.action == "done"}
        for stage in self.recipe.stages:  # of an earlier run
            if stage.name in done and self._left_nothing(stage):
                _give_up(stage.name, plans, done, self.say)
        todo = [plan for plan in plans.values() if plan.stage.name not in done]
        running: dict[Future[None], Plan] = {}
        processes = _Processes(home=self.folder.parent.parent)
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            try:
                while todo or running:
                    for plan in _startable(todo, list(running.values()), done, jobs):
                        todo.remove(plan)
                        running[pool.submit(self._run_stage, plan, processes)] = plan
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        stage = running.pop(future).stage
                        done.add(stage.name)
                        future.result()
                        if self._left_nothing(stage):
                            _give_up(stage.name, plans, done, self.say)
                            todo = [plan for plan in todo if plan.stage.name not in done]
            except BaseException:
                processes.interrupt()
                raise
        for stage in self.recipe.stages:
            if code := (self._note(stage) or {}).get("exit_code"):
                log = self.notes / f"{_flat(stage.name)}.log"
                raise StageError(f"{stage.name}: ended with exit code {code}; what it found: {log}", code)

    def exit_code(self, stage: Stage) -> int | None:
        """The code that the stage ended with; None where it has not been run to its end."""
        return (self._note(stage) or {}).get("exit_code")

    def last_line(self, stage: Stage) -> str:
        """The last line that the stage printed."""
        return _last_line(self.notes / f"{_flat(stage.name)}.log")

    def _left_nothing(self, stage: Stage) -> bool:
        """Whether the stage ended with a code that it may end with, without what it should have written."""
        note = self._note(stage) or {}
        return bool(note.get("exit_code")) and stage.writes and not (self.folder / stage.name).exists()

    def _run_stage(self, plan: Plan, processes: "_Processes") -> None:
        stage = plan.stage
        words = command(self.recipe, stage, self.folder)
        note = {"input_hash": self.input_hash(stage), "command": words, "finished": False, "output_hash": None}
        if plan.action == "run":
            self._clear(stage)
        self._write_note(stage, note)
        self.say(f"{stage.name}: kat {' '.join(words)}")
        started = time.perf_counter()
        log = self.notes / f"{_flat(stage.name)}.log"
        launch = [*_launcher(stage.processes), *words]
        code = processes.run(launch, log, lambda line: self.say(f"{stage.name} | {line}"))
        seconds = time.perf_counter() - started
        if code == 130 or code < 0:
            raise StageError(f"{stage.name}: interrupted; run the same command again to go on", 130)
        if code != 0 and code not in stage.exits:
            raise StageError(f"{stage.name}: stopped with exit code {code}: {_last_line(log)} (all of it: {log})", code)
        output = self._content(self.folder / stage.name) if stage.writes else None
        self._write_note(
            stage, {**note, "finished": True, "output_hash": output, "seconds": round(seconds, 1), "exit_code": code}
        )
        self.say(f"{stage.name}: done in {seconds:.0f} s{f', exit code {code}' if code else ''}")

    def input_hash(self, stage: Stage) -> str:
        """Hash over command, settings, kat's version and the content of all that the stage reads."""
        words = command(self.recipe, stage, self.folder)
        inputs: dict[str, str] = {}
        for path in input_paths(self.recipe, stage, self.folder):
            if path.exists() and self.folder not in path.parents:
                inputs[str(path)] = self._content(path)
        for name in stage.needs:
            inputs[name] = self._content(self.folder / name)
        here = str(self.folder)  # the run may be moved without becoming another
        stated = [word.replace(here, "{run}") for word in words]
        ranks = stage.processes
        return hash_json({"kat": __version__, "words": stated, "ranks": ranks, "inputs": sorted(inputs.values())})

    def _content(self, path: Path) -> str:
        """Content hash of a stage's output: the identity of a checkpoint that is whole, else that of all its files."""
        if (path / "kat.json").is_file():
            try:
                return str(verify_checkpoint(path)["identity"])
            except KatError:
                return "damaged"
        if (path / "kat_tokenizer.json").is_file():
            return str(read_json(path / "kat_tokenizer.json")["tokenizer_hash"])
        if path.is_file():
            return hash_file(path)
        if not path.is_dir():
            return "missing"
        return hash_json({p.relative_to(path).as_posix(): hash_file(p) for p in sorted(path.rglob("*")) if p.is_file()})

    def _clear(self, stage: Stage) -> None:
        """Remove what an outdated run of this stage left."""
        if not stage.writes:
            return
        out = self.folder / stage.name
        for path in (out, out.with_name(f"{out.name}.training")):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()

    def _note(self, stage: Stage) -> dict[str, Any] | None:
        path = self.notes / f"{_flat(stage.name)}.json"
        return read_json(path) if path.is_file() else None

    def _write_note(self, stage: Stage, note: dict[str, Any]) -> None:
        write_json(self.notes / f"{_flat(stage.name)}.json", note)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _give_up(name: str, plans: dict[str, Plan], done: set[str], say: Say) -> None:
    """Call done, without running it, all that follows the stage."""
    for plan in plans.values():
        if plan.stage.name not in done and name in plan.stage.needs:
            say(f"{plan.stage.name}: left out, {name} left nothing")
            done.add(plan.stage.name)
            _give_up(plan.stage.name, plans, done, say)


def _startable(todo: Iterable[Plan], running: Iterable[Plan], done: set[str], jobs: int) -> list[Plan]:
    """Stages whose needs are met and whose processes fit beside those that run; one always may, if nothing runs."""
    busy = sum(plan.stage.processes for plan in running)
    chosen: list[Plan] = []
    for plan in todo:
        fits = busy + plan.stage.processes <= jobs or busy == 0
        if set(plan.stage.needs) <= done and fits:
            chosen.append(plan)
            busy += plan.stage.processes
    return chosen


def _launcher(processes: int) -> list[str]:
    """How to start `kat` in so many ranks."""
    if processes == 1:
        return [sys.executable, "-m", "kat"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "kat"]


class _Processes:
    """The children that run now, so that Ctrl-C reaches each exactly once."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(self, words: list[str], log: Path, show: Say) -> int:
        """Run a command in a session of its own, its output line by line to `show` and to the log; its exit code."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "KAT_HOME": str(self.home),
        }
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
            with self._lock:
                self._running.add(process)
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    if line.strip():
                        show(line.rstrip())
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def interrupt(self) -> None:
        """Ask each child to save and stop."""
        with self._lock:
            for process in self._running:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)


def default_jobs() -> int:
    """As many one-thread processes as there are cores; one where a GPU does the work."""
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _flat(name: str) -> str:
    return name.replace("/", "--")


def report_paths(folder: Path, recipe: Recipe) -> Iterable[Path]:
    """The html reports a run left."""
    for stage in recipe.stages:
        path = folder / stage.name / "audit.html"
        if path.is_file():
            yield path
