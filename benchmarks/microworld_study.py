"""What the density study's run says beside its verdict: the reward model, the gain in true reward, the draws.

    kat run density-study
    python benchmarks/microworld_study.py ~/.local/share/kat/runs/density-study

Reads what the run wrote; trains nothing. The gain is that of the uniform arm, whose only teacher was the reward model:
the true reward of each seed's policy on prompts it never saw, minus that of the model all of them start from.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

from kat.audit.study import load_study
from kat.density.folder import load_density
from kat.density.schedule import load_schedule
from kat.evals.folder import load_results
from kat.runs.files import read_json


def reward_model(run: Path) -> None:
    truth, found = (
        read_json(run / "world" / "preferences.json"),
        load_results(run / "evals" / "reward" / "results.json"),
    )
    accuracy = found.metrics["accuracy"]
    bayes = truth["bayes_rate"]["test"]
    print(
        f"reward model: accuracy {100 * accuracy.estimate:.1f} % [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}] "
        f"on {found.n_items:,} pairs of unseen prompts; Bayes rate {100 * bayes:.1f} %, "
        f"{100 * (bayes - accuracy.estimate):.1f} points short"
    )


def gains(run: Path, arm: str) -> None:
    study = load_study(run / "study")
    start = load_results(run / "evals" / "start" / "results.json").metrics["reward"].estimate
    best = read_json(run / "world" / "preferences.json")["best_reward"]
    finals = study.runs(arm, "reward").values
    gain = finals - start
    test = stats.ttest_1samp(gain, 0)
    low, high = test.confidence_interval(0.95)
    kl = study.runs(arm, "kl").values
    print(
        f"GRPO, arm {arm}: true reward {start:.2f} → {finals.mean():.2f} over {len(finals)} seeds "
        f"({', '.join(f'{x:.2f}' for x in finals)}); gain {gain.mean():+.2f} [{low:+.2f}, {high:+.2f}], "
        f"p = {test.pvalue:.1g}; {100 * gain.mean() / (best - start):.0f} % of the headroom to {best:g}; "
        f"KL(policy ‖ start) {kl.mean():.2f} nats a token, at most {kl.max():.2f}"
    )


def draws(run: Path) -> None:
    """Do the rare clusters come as often as the weights say? Chi-square over rare and dense, all seeds of an arm."""
    study = load_study(run / "study")
    rows = [json.loads(line) for line in (run / "world" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    rare = {row["id"] for row in rows if row["slices"]["kind"] == "rare"}
    ids = [row["id"] for row in rows]
    weights = load_density(run / "density", ids)
    expected = {
        "uniform": len(rare) / len(ids),
        "density": sum(w for i, w in zip(ids, weights, strict=True) if i in rare),
    }
    for arm in study.plan.arms:
        drawn = [
            one for seed in study.plan.seeds for one in load_schedule(run / arm / f"seed-{seed}/grpo/schedule.json").ids
        ]
        n, found = len(drawn), sum(one in rare for one in drawn)
        line = f"arm {arm}: {100 * found / n:.1f} % of {n:,} draws are of rare clusters"
        if arm in expected:
            share = expected[arm]
            p = stats.chisquare([found, n - found], [n * share, n * (1 - share)]).pvalue
            line += f", {100 * share:.1f} % by its weights (chi-square p = {p:.2f})"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    reward_model(run)
    for arm in load_study(run / "study").plan.arms:
        gains(run, arm)
    draws(run)
    runs = [p for p in (run / ".stages").glob("*--grpo.json") if "seed" in p.name]
    seconds = np.array([read_json(path)["seconds"] for path in runs])
    print(
        f"{len(seconds)} GRPO runs: median {np.median(seconds):.0f} s, {seconds.sum() / 60:.0f} process-minutes in all"
    )


if __name__ == "__main__":
    main()
