"""Runs `kat verify` on public repositories just before and just after the fix of a silent bug.

    python examples/silent_bugs/run.py --clones DIR [--only DM1,SG2] [--every-check] [--write docs/findings.md]

DIR holds clones (or bare git folders) named owner/name or owner+name. Both commits of an entry are unpacked into a
temporary folder; each is looked at in a process of its own. An entry holds when a check FAILs before the fix and all
of the entry's checks PASS at the fix.
"""

import argparse
import functools
import importlib.util
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- silent_bugs: begin -->", "<!-- silent_bugs: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=Path, metavar="DIR", help="folder of clones named owner/name or owner+name")
    parser.add_argument("--only", default="", metavar="IDS", help="entries, separated by commas")
    parser.add_argument("--every-check", action="store_true", help="also run all other checks; list what else fails")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this markdown file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all outcomes and findings")
    parser.add_argument("--worker", metavar="JOB", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker(json.loads(options.worker))
    if options.clones is None:
        parser.error("--clones DIR is needed")

    entries = tomllib.loads((HERE / "manifest.toml").read_text(encoding="utf-8"))["bug"]
    wanted = {name for name in options.only.split(",") if name}
    if unknown := wanted - {entry["id"] for entry in entries}:
        parser.error(f"no entry {', '.join(sorted(unknown))}")
    results = []
    with tempfile.TemporaryDirectory(prefix="silent-bugs-") as scratch:
        for entry in entries:
            if not wanted or entry["id"] in wanted:
                results.append(result := examine(entry, options.clones, Path(scratch), options.every_check))
                print(_line(result), flush=True)
    held = sum(result["verdict"] == "told apart" for result in results)
    repositories = {r["repository"] for r in results if r["verdict"] == "told apart"}
    print(f"\n{held} of {len(results)} told apart, in {len(repositories)} repositories")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.write:
        write(options.write, table(results))
    return 0 if held == len(results) else 1


def examine(entry: dict[str, Any], clones: Path, scratch: Path, every: bool) -> dict[str, Any]:
    """The entry with `before` and `fix` outcomes, and a verdict: told apart, not told apart, or cannot run: why."""
    started = time.perf_counter()
    result = {**entry, "commits": {"before": entry["before"], "fix": entry["fix"]}, "seconds": 0.0}
    missing = [name for name in entry.get("needs", ()) if importlib.util.find_spec(name) is None]
    repository = find_clone(clones, entry["repository"])
    if missing:
        return {**result, "verdict": f"cannot run: no package {', '.join(missing)}"}
    if repository is None:
        return {**result, "verdict": f"cannot run: no clone of {entry['repository']} in {clones}"}
    for side in ("before", "fix"):
        commit = entry[side]
        try:
            home = (
                scratch
                / entry["repository"].replace("/", "+")
                / "+".join([commit, *entry.get("paths", ())]).replace("/", "-")
            )
            checkout = unpack(repository, commit, entry.get("paths", ()), home)
        except subprocess.CalledProcessError:
            return {**result, "verdict": f"cannot run: {repository} has no commit {commit}"}
        report = run_worker(entry, checkout, every)
        if "problem" in report:
            return {**result, "verdict": f"cannot run: {side}: {report['problem']}"}
        result[side] = report["findings"]
    named = {side: {f["check"]: f for f in result[side] if f["check"] in entry["checks"]} for side in ("before", "fix")}
    told = any(f["outcome"] == "FAIL" for f in named["before"].values()) and all(
        f["outcome"] == "PASS" for f in named["fix"].values()
    )
    return {**result, "verdict": "told apart" if told else "not told apart", "seconds": time.perf_counter() - started}


def find_clone(clones: Path, repository: str) -> Path | None:
    """A clone, a bare clone, or a folder that holds one as `repo`."""
    for name in (repository, repository.replace("/", "+"), repository.rpartition("/")[2]):
        for path in (clones / name, clones / f"{name}.git", clones / name / "repo"):
            if (path / ".git").exists() or (path / "HEAD").is_file():
                return path
    return None


def unpack(repository: Path, commit: str, paths: Sequence[str], folder: Path) -> Path:
    """The files of a commit, or those below some paths; nothing in the clone changes."""
    if not folder.is_dir():
        archive = subprocess.run(
            ["git", "-C", str(repository), "archive", "--format=tar", commit, "--", *paths],
            check=True,
            capture_output=True,
        ).stdout
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True)
        with tempfile.TemporaryFile() as file:
            file.write(archive)
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                tar.extractall(part, filter="data")
        part.rename(folder)
    return folder


def run_worker(entry: dict[str, Any], checkout: Path, every: bool) -> dict[str, Any]:
    job = {"adapter": entry["adapter"], "checks": None if every else entry["checks"], "checkout": str(checkout)}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        said = done.stderr.strip().splitlines()
        return {"problem": said[-1] if said else f"exit status {done.returncode}"}
    return json.loads(lines[-1])


def worker(job: dict[str, Any]) -> int:
    """In a process of its own: checks on one checkout; one line of JSON on stdout."""
    from kat.verify.checks import all_checks
    from kat.verify.expected import Expected
    from kat.verify.runner import run_checks
    from kat.verify.subject import Source, open_subject

    file, _, function = job["adapter"].partition(":")
    opened = open_subject(f"{HERE / file}:{function}")
    make = functools.partial(opened.make, checkout=job["checkout"])
    known = {check.id: check for check in all_checks()}
    if job["checks"] is None:
        chosen = list(known.values())
    elif unknown := set(job["checks"]) - set(known):
        print(json.dumps({"problem": f"kat has no check {', '.join(sorted(unknown))}"}))
        return 4
    else:
        chosen = [known[name] for name in job["checks"]]
    limit = Expected(time_limit=300)  # a first import of transformers takes a while
    report = run_checks(Source(job["adapter"], opened.name, make), chosen, level=3, expected=limit)
    keep = ("check", "outcome", "message", "measured", "tolerance", "case", "seconds", "trace")
    findings = [{name: getattr(f, name) for name in keep} for f in report.findings]
    if findings and findings[0]["check"] == "make":
        print(json.dumps({"problem": f"the adapter raises {findings[0]['message']}"}))
        return 4
    print(json.dumps({"findings": findings}))
    return 0


def _outcomes(result: dict[str, Any], side: str) -> str:
    """What the entry's checks came to on one side, the measured value with it."""
    parts = []
    for f in result[side]:
        if f["check"] in result["checks"]:
            measured = f" ({f['measured']:.3g}, at most {f['tolerance']:.3g})" if f["measured"] is not None else ""
            parts.append(f"{f['outcome']}{measured}")
    return ", ".join(dict.fromkeys(parts))


def _line(result: dict[str, Any]) -> str:
    head = f"{result['id']:6} {result['repository']:32} "
    if isinstance(result["before"], str) or isinstance(result["fix"], str):
        return head + result["verdict"]
    line = f"{head}{_outcomes(result, 'before')} -> {_outcomes(result, 'fix')}: {result['verdict']}"
    named = ", ".join(result["checks"])
    also = [
        f"{f['check']} {f['outcome']} ({f['message']})"
        for f in result["fix"]
        if f["outcome"] in ("FAIL", "ERROR", "VACUOUS") and f["check"] not in result["checks"]
    ]
    return "\n".join(
        [f"{line}  [{named}]  {result['seconds']:.1f} s", *(f"         at the fix also: {a}" for a in also)]
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown; one row an entry."""
    lines = ["| row | repository | bug | check | before | at the fix |", "|---|---|---|---|---|---|"]
    for r in results:
        checks = "<br>".join(f"`{name}`" for name in r["checks"])
        if isinstance(r["before"], str) or isinstance(r["fix"], str):
            before, fix = r["verdict"], ""
        else:
            before, fix = (
                f"{_outcomes(r, side)} `{r['commits'][side][:7]}`" + ("" if told else " (!)")
                for side, told in (("before", r["verdict"] == "told apart"), ("fix", r["verdict"] == "told apart"))
            )
        cells = [r["id"], r["repository"], r["bug"], checks, before, fix]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    held = [r for r in results if r["verdict"] == "told apart"]
    lines += ["", f"{len(held)} of {len(results)} told apart, in {len({r['repository'] for r in held})} repositories."]
    return "\n".join(lines)


def write(file: Path, text: str) -> None:
    """Replace what stands between the two marks, or append it."""
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    block = f"{BEGIN}\n{text}\n{END}"
    if BEGIN in old and END in old:
        head, _, rest = old.partition(BEGIN)
        new = head + block + rest.partition(END)[2]
    else:
        new = f"{old.rstrip()}\n\n{block}\n".lstrip()
    file.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
