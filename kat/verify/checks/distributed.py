"""Two processes against one."""

import itertools
import random
from typing import Any

import numpy as np
import torch

from kat.verify.check import Failed, Vacuous, check
from kat.verify.checks.loss import REFUSALS, require_deterministic_training
from kat.verify.lab import Lab, Named, randomise, relative_difference, snapshot
from kat.verify.ranks import on_two_ranks
from kat.verify.subject import Make
from kat.verify.watch import norm, watched


@check(
    family="distributed",
    level=4,
    needs={"train_step", "collate", "named_parameters"},
    kind="metamorphic",
    tol=1e-4,
    catches=("DI1", "DI3", "DI4", "DI7", "OS5", "OS9", "LN16"),
)
def two_ranks_match_one(lab: Lab) -> None:
    """Two processes that each take a part of the rows, with very different numbers of targets, make the steps that one
    process makes on all of them: same gradients, metrics and parameters, and both ranks stay equal."""
    lab.require(lab.traits.data_parallel, "train_step is not declared to be data-parallel (trait data_parallel)")
    require_deterministic_training(lab)
    rows = lab.rows()
    steps = [
        ([[rows[0], rows[3]]], [[rows[1]]]),  # 30 targets and 2
        ([[rows[2]], [rows[4]]], [[rows[5]], [rows[0], rows[6]]]),
        ([[rows[7]], [rows[2]]], [[(rows[1][0], [0] * len(rows[1][0]))], [rows[6]]]),  # one part without a target
    ]
    if lab.traits.supervised == "all":
        del steps[2]
    try:
        lab.subject.collate(steps[-1][1][0])
    except REFUSALS:
        del steps[-1]
    single = _train(lab.make, {"seed": lab.seed, "steps": [([*a, *b],) for a, b in steps]}, 0)
    ranks = on_two_ranks(lab, _train, {"seed": lab.seed, "steps": steps})
    for i, (a, b) in enumerate(steps):
        targets = [[sum(sum(m[1:]) for _, m in part) for part in rank] for rank in (a, b)]
        case = f"step {i}, micro-batches of {targets[0]} targets on rank 0 and of {targets[1]} on rank 1"
        slack = 1.0 if i == 0 else 100.0  # Muon's bfloat16 makes differences of the first step larger
        for rank in range(2):
            for name, expected in single["metrics"][i].items():
                value = ranks[rank]["metrics"][i].get(name)
                if name in ("loss", "lr", "grad_norm", "supervised_tokens") and value is not None:
                    lab.at_most(
                        abs(value - expected) / max(abs(expected), 1e-3),
                        f"rank {rank} of 2 reports {name} {value:.6g}; one process on all rows {expected:.6g}",
                        case=case,
                        tol=slack * lab.tol,
                        resembles="DI4",
                    )
            gradients = single["gradients"][i]
            if not gradients or not norm(gradients):
                continue
            found = ranks[rank]["gradients"][i]
            missing = sorted(set(gradients) - set(found))
            if missing:
                raise Failed(f"rank {rank} of 2 has no gradient for {missing[0]}", case=case, resembles="DI1")
            scale = norm(found) / norm(gradients)
            lab.at_most(
                relative_difference(found, gradients),
                f"rank {rank} of 2 updates with another gradient than one process on all rows "
                f"(its norm is {scale:.3g} times as large)",
                case=case,
                tol=slack * lab.tol,
                resembles="DI3" if abs(scale - 0.5) < 0.01 or abs(scale - 2) < 0.01 else "DI1",
            )
        first, second = ranks[0]["parameters"][i], ranks[1]["parameters"][i]
        for name, weight in first.items():
            if not torch.equal(weight, second[name]):
                raise Failed(f"after the step {name} differs between the two ranks", case=case, resembles="DI1")
        if not any(not torch.equal(w, single["start"][name]) for name, w in single["parameters"][-1].items()):
            raise Vacuous("no parameter moves in these steps")
        lab.at_most(
            relative_difference(first, single["parameters"][i]),
            "the parameters of two ranks are not those of one process on all rows",
            case=case,
            tol=1e-3,
            resembles="OS9",
        )


def _train(make: Make, payload: Any, rank: int) -> dict[str, Any]:
    """Train on this rank's part of each step; metrics, the gradients that the optimizer saw, and the parameters."""
    subject = make(seed=payload["seed"], tiny=True)
    randomise(subject, payload["seed"])
    result: dict[str, Any] = {"metrics": [], "gradients": [], "parameters": [], "start": snapshot(subject)}
    for step in payload["steps"]:
        with watched(subject) as updates:
            metrics = subject.train_step([subject.collate(part) for part in step[rank]])
        gradients: Named = {name: g for update in updates for name, g in update.gradients.items()}
        result["metrics"].append({k: float(v) for k, v in metrics.items() if isinstance(v, int | float)})
        result["gradients"].append(gradients)
        result["parameters"].append(snapshot(subject))
    return result


@check(
    family="distributed",
    level=4,
    needs={"batches"},
    kind="metamorphic",
    catches=("DI5", "EV10", "CR11"),
)
def ranks_draw_disjoint_shards(lab: Lab) -> None:
    """What two processes draw depends on the seed and the rank alone, not on either process's own random state, and no
    example of an epoch goes to both."""
    n = lab.traits.n_examples
    half = 8 if n is None else max(2, n // 2)
    drawn = on_two_ranks(lab, _draw, {"seed": lab.seed, "examples": half})
    case = f"seed {lab.seed}, 2 ranks, the first {half} examples of {n if n is not None else 'an unknown number'}"
    for rank in range(2):
        here = _ids(lab.subject, lab.seed, rank, half)
        if here != drawn[rank]:
            raise Failed(f"rank {rank} draws {drawn[rank][:6]} and, in another process, {here[:6]}", case=case)
    both = sorted(set(map(str, drawn[0])) & set(map(str, drawn[1])))
    if both and not lab.traits.replacement and n is not None:
        raise Failed(f"example {both[0]} goes to both ranks in one epoch", case=case, resembles="DI5")


def _draw(make: Make, payload: Any, rank: int) -> list[str]:
    for module in (random, np.random):
        module.seed(100 + rank)
    torch.manual_seed(100 + rank)
    return _ids(make(seed=payload["seed"], tiny=True), payload["seed"], rank, payload["examples"])


def _ids(subject: Any, seed: int, rank: int, examples: int) -> list[str]:
    """The names of the examples in this rank's first batches, until both ranks together have about so many."""
    found: list[str] = []
    for batch in itertools.islice(subject.batches(seed, rank=rank, world=2), examples):
        if len(found) + len(batch["example_ids"]) > examples // 2:
            break
        found += [str(name) for name in batch["example_ids"]]
    return found
