"""Does kat verify keep silent on correct code? Every check, levels 0 to 3, on correct subjects, over 20 seeds.

    python benchmarks/false_alarms.py --log FILE.jsonl [--only "llama;trl-sft"] [-k EXPR] [--write docs/findings.md]

Subjects: kat's own, kat's in other layouts (fused qkv, left padding, tied head, time-first cache, the other sign of the
rotation, …), tiny random transformers models, and trl's SFTTrainer and RewardTrainer with their defaults. A seed draws
the weights and all inputs. The log keeps what was run, so that a long run can be stopped and gone on with; with -k the
checks that fit are run again and take the place of what the log has of them.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kat.verify.adapters import native  # noqa: E402 (the tests' subjects lie beside this folder)
from kat.verify.checks import all_checks  # noqa: E402
from kat.verify.runner import run_checks, select  # noqa: E402
from kat.verify.subject import Make, Source, open_subject  # noqa: E402
from tests.verify.test_model_checks import ASKED, VARIANTS, hf_make  # noqa: E402

BEGIN, END = "<!-- false_alarms: begin -->", "<!-- false_alarms: end -->"
# What fails for a reason that docs/findings.md gives.
FINDINGS = {
    "trl-sft": {"broken_gradient_never_reaches_weights", "damaged_checkpoint_is_refused"},
    "trl-reward": {"pairs_count_alike_in_any_micro_batch"},
    "trl-grpo": {"equal_rewards_give_no_advantage", "rl_step_metrics_match_their_definition"},
}

SUBJECTS: dict[str, Callable[[], Make]] = {
    "native": lambda: native.make,
    **{name: lambda name=name: hf_make(name) for name in ASKED},  # type: ignore[misc]
    "trl-sft": lambda: open_subject("trl:sft").make,
    "trl-reward": lambda: open_subject("trl:reward").make,
    "trl-grpo": lambda: open_subject("trl:grpo").make,
    **{f"native, {name}": lambda make=make: make for name, make in VARIANTS.items()},  # type: ignore[misc]
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--log", type=Path, required=True, metavar="FILE", help="what was run, one line a subject and seed"
    )
    parser.add_argument("--only", default="", metavar="A;B", help="only these subjects")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("-k", dest="expression", default=None, help="only checks that fit, also where they were run")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this markdown file")
    options = parser.parse_args()
    chosen = [name.strip() for name in options.only.split(";") if name.strip()] or list(SUBJECTS)
    if unknown := set(chosen) - set(SUBJECTS):
        sys.exit(f"no subject {sorted(unknown)[0]!r}; there are: {'; '.join(SUBJECTS)}")
    known = read(options.log)
    for seed in range(options.seeds):  # seed by seed, so that a run that is stopped has seen every subject
        for name in chosen:
            if options.expression is not None or (name, seed) not in known:
                run(name, seed, options.expression, options.log)
    lines = table(read(options.log))
    print("\n".join(lines))
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


def run(name: str, seed: int, expression: str | None, log: Path) -> None:
    """Run one subject with one seed, and keep what came of it."""
    started = time.process_time()
    checks = select(all_checks(), 3, expression)
    if name.startswith("native, "):  # another layout of the model; what is built on a model is the native subject's
        checks = [check for check in checks if check.family not in ("reward", "density", "rl")]
    report = run_checks(Source(name, name, SUBJECTS[name]()), checks, seed=seed)
    loud = {f.check: f"{f.outcome}: {f.message} {f.case}" for f in report.findings if f.outcome not in ("PASS", "SKIP")}
    line = {
        "subject": name,
        "seed": seed,
        "cpu_seconds": round(time.process_time() - started, 1),
        "outcomes": {f.check: f.outcome for f in report.findings},
        "loud": loud,
    }
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    for check, message in loud.items():
        if check not in FINDINGS.get(name, ()):
            print(f"{name}, seed {seed}: {check}: {message}", flush=True)


def read(log: Path) -> dict[tuple[str, int], dict[str, str]]:
    """(subject, seed) -> check -> outcome; later lines take the place of earlier ones."""
    found: dict[tuple[str, int], dict[str, str]] = {}
    for text in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        line: dict[str, Any] = json.loads(text)
        found.setdefault((line["subject"], line["seed"]), {}).update(line["outcomes"])
    return found


def table(known: dict[tuple[str, int], dict[str, str]]) -> list[str]:
    """A row a subject: seeds, checks that apply, and everything that is neither PASS nor SKIP."""
    lines = [
        "| subject | seeds | checks that apply | runs | passed | findings (above) | false alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for name in SUBJECTS:
        runs = [outcomes for (subject, _), outcomes in known.items() if subject == name]
        if not runs:
            continue
        seen: Sequence[tuple[str, str]] = [pair for run in runs for pair in run.items() if pair[1] != "SKIP"]
        passed = sum(outcome == "PASS" for _, outcome in seen)
        loud = Counter(check for check, outcome in seen if outcome != "PASS")
        real = {check: n for check, n in loud.items() if check in FINDINGS.get(name, ())}
        false = {check: n for check, n in loud.items() if check not in real}
        applies = len({check for check, _ in seen})
        shown = [", ".join(f"`{c}` × {n}" for c, n in part.items()) or "–" for part in (real, false)]
        lines.append(f"| {name} | {len(runs)} | {applies} | {len(seen):,} | {passed:,} | {shown[0]} | {shown[1]} |")
        total.update(runs=len(seen), passed=passed, real=sum(real.values()), false=sum(false.values()))
    lines += [
        "",
        f"{total['runs']:,} runs of a check: {total['passed']:,} passed, {total['real']} findings, "
        f"{total['false']} false alarms.",
    ]
    return lines


if __name__ == "__main__":
    main()
