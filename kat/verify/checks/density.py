"""Embeddings, density weights, draws by them, and metrics of diversity.

Weights are looked at on points whose density is known: unit vectors around centres, each group with a spread of its
own, and points far from everything. Which power of the distance a weight is, is the subject's own choice.
"""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kat.errors import UsageError
from kat.verify.check import Failed, NotApplicable, Vacuous, check
from kat.verify.lab import AdapterError, Lab
from kat.verify.subject import open_subject

WORDS = ("river", "stone", "owl", "glass", "seven", "because", "there", "mill", "green", "ask")
SPREADS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.9)
GROUP, OUTLIERS, DIM = 25, 6, 24


def points(lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) unit vectors: GROUP around each of eight centres and OUTLIERS anywhere; and (n,) the number of each one's
    group, in the order of the spreads, the outliers last."""
    rng = np.random.default_rng(lab.seed + 17)
    centres, _ = np.linalg.qr(rng.normal(size=(DIM, len(SPREADS))))
    near = [centres[:, i] + spread / DIM**0.5 * rng.normal(size=(GROUP, DIM)) for i, spread in enumerate(SPREADS)]
    found = np.concatenate([*near, rng.normal(size=(OUTLIERS, DIM))])
    groups = np.repeat(np.arange(len(SPREADS) + 1), [GROUP] * len(SPREADS) + [OUTLIERS])
    order = rng.permutation(len(found))
    found = found[order] / np.linalg.norm(found[order], axis=1, keepdims=True)
    return found.astype(np.float32), groups[order]


def weights(subject: Any, embeddings: np.ndarray) -> np.ndarray:
    """(n,) float64; AdapterError where there are not as many as points."""
    found = np.asarray(subject.density_weights(embeddings), dtype=np.float64)
    if found.shape != (len(embeddings),):
        raise AdapterError(f"density_weights returns shape {found.shape} for {len(embeddings)} points")
    return found


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


# Weights


@check(family="density", level=0, needs={"density_weights"}, kind="oracle", tol=1e-6, catches=("DE9",))
def density_weights_are_a_distribution(lab: Lab) -> None:
    """Weights are positive and finite and sum to 1, also where many points are copies of one or lie on one another, and
    none is more than the declared number of times the median; a point that is no number is refused."""
    x, groups = points(lab)
    crowd = x[groups == 0][:1]
    twins = crowd + np.float32(1e-7) * np.arange(15, dtype=np.float32)[:, None]
    for what, embeddings in (
        ("distinct points", x),
        ("30 copies of a point among others", np.concatenate([x, np.repeat(crowd, 30, axis=0)])),
        ("15 points that differ in the last digit", np.concatenate([x, twins])),
    ):
        found = weights(lab.subject, embeddings)
        if not (np.isfinite(found).all() and (found > 0).all()):
            bad = int(np.argmin(np.where(np.isfinite(found), found, -1)))
            raise Failed(f"weight {bad} is {found[bad]:.6g}", measured=float(found[bad]), case=what)
        lab.at_most(abs(float(found.sum()) - 1), f"the weights sum to {found.sum():.9g}, not to 1", case=what)
        ratio = float(found.max() / np.median(found))
        lab.at_most(
            ratio,
            f"the largest weight is {ratio:.4g} times the median: few points own the draws",
            tol=lab.traits.density_max_ratio * (1 + 1e-6),
            case=what,
            resembles="DE9",
        )
    for value in (np.nan, np.inf):
        broken = x.copy()
        broken[3] = value
        try:
            found = np.asarray(lab.subject.density_weights(broken), dtype=np.float64)
        except Exception:  # noqa: BLE001 (refused, in whatever words)
            continue
        raise Failed(f"an embedding of {value} gets the weight {found[3]:.4g}", case=f"one of {len(x)} points")


@check(family="density", level=0, needs={"density_weights"}, kind="metamorphic", tol=0.1, catches=("DE1",))
def density_weights_grow_with_sparsity(lab: Lab) -> None:
    """Points weigh more the sparser it is around them: groups are ordered by their spread, and points far from
    everything weigh more than a tight cluster."""
    x, groups = points(lab)
    found = weights(lab.subject, x)
    means = np.array([found[groups == i].mean() for i in range(len(SPREADS) + 1)])
    case = f"mean weights x n of eight groups, tight to wide: {[float(f'{m * len(x):.3g}') for m in means[:-1]]}"
    if not means[-1] > means[0]:
        raise Failed(
            f"{OUTLIERS} points far from all others weigh {means[-1] * len(x):.4g} / n on the average, those of the "
            f"tightest cluster {means[0] * len(x):.4g} / n",
            measured=float(means[0] / means[-1]),
            tolerance=1.0,
            case=case,
        )
    rank = _spearman(means[:-1], np.array(SPREADS))
    lab.at_most(
        1 - rank, f"the rank correlation of weight and spread is {rank:.3g}, at least 0.9 is expected", case=case
    )


@check(family="density", level=0, needs={"density_weights"}, kind="metamorphic", tol=1e-4)
def density_weights_follow_their_points(lab: Lab) -> None:
    """A point's weight is the same wherever its row stands and in whatever unit the embeddings are."""
    x, _ = points(lab)
    found = weights(lab.subject, x)
    order = np.random.default_rng(lab.seed).permutation(len(x))
    for what, other, expected in (
        ("the rows in another order", weights(lab.subject, x[order]), found[order]),
        ("the rows in reverse", weights(lab.subject, x[::-1].copy()), found[::-1]),
        ("the embeddings times 8", weights(lab.subject, 8 * x), found),
        ("asked again", weights(lab.subject, x), found),
    ):
        worst = int(np.abs(other - expected).argmax())
        lab.at_most(
            float(np.abs(other - expected).max() * len(x)),
            f"a point weighs {other[worst] * len(x):.6g} / n, and {expected[worst] * len(x):.6g} / n before",
            case=what,
        )


@check(family="density", level=0, needs={"density_weights"}, kind="metamorphic", tol=0.0, catches=("DE9", "DE1"))
def copies_gain_no_weight(lab: Lab) -> None:
    """A point that is there m times among n rows has at most m / n of the draws, or what it had alone where that is
    more: nobody gains by repeating a prompt."""
    x, groups = points(lab)
    for what, chosen in (
        ("of the crowd", int(np.argmin(groups))),
        ("of the widest group", int(np.argmax(groups == 7))),
    ):
        alone = weights(lab.subject, x)[chosen]
        for m in (3, 12, 40):
            found = weights(lab.subject, np.concatenate([x, np.repeat(x[[chosen]], m - 1, axis=0)]))
            share = float(found[chosen] + found[len(x) :].sum())
            bound = max(m / (len(x) + m - 1), float(alone)) * (1 + 1e-6)
            lab.at_most(
                share,
                f"{m} copies of a point have a share of {share:.4g}; alone it had {alone:.4g}",
                tol=bound,
                case=f"a point {what}, {len(x) - 1} others",
            )


@check(family="density", level=0, needs={"density_weights"}, kind="metamorphic", tol=1e-6)
def density_weights_are_not_uniform(lab: Lab) -> None:
    """Where densities differ the weights do: their total variation from uniform reaches the declared dose, or at least
    .02 where none is declared."""
    x, _ = points(lab)
    found = weights(lab.subject, x)
    distance = float(np.abs(found / found.sum() - 1 / len(x)).sum() / 2)
    wanted = 0.02 if lab.traits.density_dose is None else lab.traits.density_dose
    lab.at_most(
        wanted - distance,
        f"the total variation from uniform is {distance:.4g}, {wanted:g} is expected",
        case=f"{len(x)} points in groups whose spreads differ by a factor of {SPREADS[-1] / SPREADS[0]:.0f}",
    )


@check(family="density", level=0, needs={"weights_of"}, kind="oracle", tol=1e-9, catches=("DE5",))
def every_id_has_its_own_weight(lab: Lab) -> None:
    """Ids get the weights that were saved of them, in whatever order they are asked for, in proportion; one that has
    none is an error and never a default."""
    names = [f"p{i}" for i in range(24)]
    rng = np.random.default_rng(lab.seed)
    values = rng.random(24) + 0.1
    known = dict(zip(names, (values / values.sum()).tolist(), strict=True))
    for what, asked in (("all", names), ("in another order", list(rng.permutation(names))), ("a part", names[5:17])):
        expected = np.array([known[name] for name in asked])
        found = np.asarray(lab.subject.weights_of(known, asked), dtype=np.float64)
        if found.shape != expected.shape:
            raise AdapterError(f"weights_of returns shape {found.shape} for {len(asked)} ids")
        worst = float(np.abs(found / found.sum() - expected / expected.sum()).max())
        lab.at_most(worst, "a weight is not the one that was saved of this id", case=what)
    asked = [*names[:8], "unknown"]
    try:
        found = np.asarray(lab.subject.weights_of(known, asked), dtype=np.float64)
    except Exception:  # noqa: BLE001 (refused, in whatever words)
        return
    raise Failed(
        f"an id without a weight gets {found[-1]:.4g}; the median of the others is {np.median(found[:-1]):.4g}",
        measured=float(found[-1] / np.median(found[:-1])),
        case=f"{len(names)} known ids, asked for 8 of them and one more",
    )


# Draws


def _chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    from scipy import stats

    return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


@check(family="density", level=0, needs={"sample_indices"}, kind="statistical", catches=("DE9",))
def draws_follow_the_weights(lab: Lab) -> None:
    """Each draw takes an index with the probability that is its weight, whatever was drawn before it: in one long
    schedule, over many short ones whose seeds follow one another, and at the first place as at the last."""
    w = np.array([0.3, 0.02, 0.02, 0.06, 0.05, 0.15, 0.05, 0.05, 0.1, 0.2])
    n = len(w)

    def counts(schedules: Sequence[Sequence[int]]) -> np.ndarray:
        drawn = np.concatenate([np.asarray(one, dtype=np.int64) for one in schedules])
        if drawn.min() < 0 or drawn.max() >= n:
            raise Failed(f"index {drawn.max()} is drawn from {n} weights")
        return np.bincount(drawn, minlength=n)

    for what, draws, times in (("one schedule of 4,000 draws", 4000, 1), ("400 schedules of 10 draws", n, 400)):

        def p_value(seed: int, draws: int = draws, times: int = times) -> float:
            made = [lab.subject.sample_indices(w, draws, seed * 1000 + i) for i in range(times)]
            if any(len(one) != draws for one in made):
                raise Failed(f"{len(made[0])} indices for {draws} draws from {n} weights", case=f"seed {seed * 1000}")
            return _chi_square(counts(made), w * draws * times)

        lab.statistical(p_value, f"the draws of {what} do not follow the weights", n=draws * times)

    def at(place: int, seed: int) -> float:
        made = [lab.subject.sample_indices(w, n, seed * 1000 + i) for i in range(400)]
        return _chi_square(counts([[one[place]] for one in made]), w * 400)

    for place, what in ((0, "first"), (n - 1, "last")):
        lab.statistical(
            functools.partial(at, place), f"the {what} draws of schedules do not follow the weights: order tells", n=400
        )

    def repeats(seed: int) -> float:
        from scipy.stats import binomtest

        drawn = np.asarray(lab.subject.sample_indices(w, 4000, seed * 1000), dtype=np.int64)
        pairs = drawn[0::2] == drawn[1::2]  # disjoint, so that they are independent
        return float(binomtest(int(pairs.sum()), len(pairs), float((w**2).sum())).pvalue)

    lab.statistical(repeats, "a draw is not independent of the one before it: too many or too few repeat it", n=2000)


@check(family="density", level=0, needs={"sample_indices"}, kind="metamorphic")
def draws_are_a_function_of_the_seed(lab: Lab) -> None:
    """The same seed draws the same indices, whatever was drawn before and by whichever subject; another seed draws
    others, and not the same in another order."""
    w = np.full(40, 1 / 40)
    first = list(map(int, lab.subject.sample_indices(w, 64, lab.seed)))
    np.random.rand(3)
    others = [list(map(int, lab.subject.sample_indices(w, 64, lab.seed + 1 + i))) for i in range(3)]
    again = list(map(int, lab.subject.sample_indices(w, 64, lab.seed)))
    lab.equal(again, first, "the same seed draws otherwise the second time", case=f"seed {lab.seed}, 64 draws of 40")
    elsewhere = list(map(int, lab.fresh(lab.seed + 5).sample_indices(w, 64, lab.seed)))
    lab.equal(elsewhere, first, "the draws depend on more than their seed", case="a subject made with another seed")
    if first in others or others[0] == others[1]:
        raise Failed("two seeds draw the same indices", case=f"seeds {lab.seed} to {lab.seed + 3}, 64 draws of 40")
    for apart in (100, 1000, 1024, 65_536):
        if list(map(int, lab.subject.sample_indices(w, 64, lab.seed + apart))) == first:
            raise Failed("two seeds draw the same indices", case=f"seeds {lab.seed} and {lab.seed + apart}")
    if sorted(first) == sorted(others[0]):
        raise Failed("two seeds draw the same indices in another order", case=f"seeds {lab.seed} and {lab.seed + 1}")


# Embeddings


def embedded(subject: Any, texts: Sequence[str]) -> np.ndarray:
    """(n, d) float64, finite."""
    value = subject.embed(list(texts))
    found = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
    if found.ndim != 2 or len(found) != len(texts):
        raise AdapterError(f"embed returns shape {found.shape} for {len(texts)} texts")
    if not np.isfinite(found).all():
        raise Failed("an embedding is not finite", case=repr(texts[int(np.argmin(np.isfinite(found).all(axis=1)))]))
    return found


def texts(lab: Lab) -> list[str]:
    """Texts of one word to thirty, and one of which another is the beginning."""
    found = [" ".join(lab.rng.choice(WORDS) for _ in range(n)) for n in (1, 30, 3, 12, 2, 7)]
    return [*found, f"{found[2]} {found[3]}"]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, in units of the vectors' length."""
    return float(np.abs(a - b).max() / max(np.linalg.norm(b), 1e-12))


@check(family="density", level=1, needs={"embed"}, kind="metamorphic", tol=1e-5, catches=("DE2",))
def embedding_ignores_its_batch(lab: Lab) -> None:
    """A text has the same embedding alone, beside longer texts, and in any order."""
    subject = lab.randomised()
    given = texts(lab)
    alone = np.concatenate([embedded(subject, [text]) for text in given])
    if max(_distance(row, alone[0]) for row in alone[1:]) <= 1e-3:
        raise Vacuous("all texts have one embedding")
    for what, order in (("all at once", range(len(given))), ("in reverse", range(len(given))[::-1])):
        found = embedded(subject, [given[i] for i in order])
        for row, i in zip(found, order, strict=True):
            lab.at_most(
                _distance(row, alone[i]),
                "a text has another embedding in a batch than alone",
                case=f"{given[i]!r}, {what} with texts of up to 30 words",
            )


@check(family="density", level=1, needs={"embed"}, kind="metamorphic", tol=1e-4, catches=("DE9", "TK10"))
def embedding_reads_the_whole_text(lab: Lab) -> None:
    """The embedding changes with the first, a middle and the last word of a text, with a capital letter, with the order
    of the words, and (unless declared) with the last words of a text that is longer than the context."""
    subject = lab.randomised()
    words = [WORDS[i % 7] for i in range(12)]
    others: dict[str, list[str]] = {
        "the first word": ["ask", *words[1:]],
        "a middle word": [*words[:6], "ask", *words[7:]],
        "the last word": [*words[:-1], "ask"],
        "a capital letter": [*words[:5], words[5].capitalize(), *words[6:]],
        "the order of the words": [*words[6:], *words[:6]],
    }
    pairs = {what: (" ".join(words), " ".join(other)) for what, other in others.items()}
    n = lab.traits.max_len
    if lab.traits.embeds_whole_texts and n <= 2048:
        long = [WORDS[i % 7] for i in range(n + 20)]
        pairs["the end of a long text"] = (" ".join(long), " ".join([*long[:-8], *["ask"] * 8]))
    for what, (text, other) in pairs.items():
        found = embedded(subject, [text, other])
        change = float(np.abs(found[1] - found[0]).max() / max(np.linalg.norm(found[0]), 1e-12))
        if not change > lab.tol:
            raise Failed(
                f"{what} is not read: two texts have one embedding",
                measured=change,
                case=f"{text[:60]!r} and {other[:60]!r}, {len(text.split())} words",
                resembles="DE9" if "long" in what else "TK10" if "capital" in what else "DE9",
            )


@check(family="density", level=4, needs={"embed"}, kind="metamorphic", tol=1e-5, catches=("DE3",))
def embedding_is_the_same_in_another_process(lab: Lab) -> None:
    """Another process, with another seed of Python's hash, gives the same texts the same embeddings."""
    given = texts(lab)
    here, again = embedded(lab.fresh(), given), embedded(lab.fresh(), given)
    lab.at_most(_distance(again, here), "a subject of the same seed gives the same texts other embeddings")
    if max(_distance(row, here[0]) for row in here[1:]) <= 1e-6:
        raise Vacuous("all texts have one embedding")
    there = _elsewhere(lab, given, here)
    for text, a, b in zip(given, there, here, strict=True):
        lab.at_most(_distance(a, b), "a text has another embedding in another process", case=repr(text))


def _elsewhere(lab: Lab, given: Sequence[str], here: np.ndarray) -> np.ndarray:
    """The embeddings by the same subject in a process of its own, where it is opened by its name."""
    try:
        opened = open_subject(lab.spec or "")
    except UsageError:
        raise NotApplicable("the subject cannot be opened again in another process") from None
    named = embedded(opened.make(seed=lab.seed, tiny=True), given)
    same = named.shape == here.shape and _distance(named, here) <= lab.tol
    lab.require(same, f"{lab.spec} opens another subject than this one, which was made with settings")
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
        path = Path(folder) / "embeddings.npy"
        command = [sys.executable, "-c", _CHILD, str(lab.spec), str(lab.seed), str(path), *given]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode:
            raise AdapterError(f"another process: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return np.load(path)


_CHILD = """
import random, sys
import numpy as np, torch
from kat.verify.subject import open_subject
torch.set_num_threads(1)
spec, seed, path, *texts = sys.argv[1:]
random.seed(int(seed)), np.random.seed(int(seed)), torch.manual_seed(int(seed))
value = open_subject(spec).make(seed=int(seed), tiny=True).embed(texts)
np.save(path, np.asarray(value.detach() if hasattr(value, "detach") else value, dtype=np.float64))
"""


# Diversity


@check(family="evaluation", level=1, needs={"diversity"}, kind="metamorphic", tol=1e-9, catches=("EV17", "EV18"))
def diversity_metrics_point_where_they_say(lab: Lab) -> None:
    """Of all sets of texts, one word repeated in every text is the worst by each metric, one text repeated is no better
    than different ones, and texts without a word in common are better than both, as the declared direction counts."""
    directions: Mapping[str, str] = lab.traits.diversity
    lab.require(directions, "traits.diversity declares no metric")
    n, length = 6, 12
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ala", "emu", "ion", "oak", "urn", "iris", "elm", "ash")]
    lab.rng.shuffle(words)
    different = [" ".join(words[i * length : (i + 1) * length]) for i in range(n)]
    common = [" ".join(lab.rng.choices(words[:10], k=length)) for _ in range(n)]
    sets = {"one word": [" ".join([words[0]] * length)] * n, "one text": [different[0]] * n, "different": different}
    found = {what: lab.subject.diversity(some) for what, some in {**sets, "ten words": common}.items()}
    if missing := set(directions) - set(found["different"]):
        raise AdapterError(f"diversity returns no {min(missing)}, which traits.diversity declares")
    # Half of each set is one text. Whichever that is, an entropy cannot grow for all of them.
    halves = [
        lab.subject.diversity([different[j]] * (n // 2) + [*different, *different][j : j + n // 2]) for j in range(n)
    ]
    for metric, direction in directions.items():
        sign = 1 if direction == "better" else -1
        values = {what: float(value[metric]) for what, value in found.items()}
        values["half one text"] = sign * min(sign * float(value[metric]) for value in halves)
        case = ", ".join(f"{what}: {value:.4g}" for what, value in values.items())
        if not np.isfinite(list(values.values())).all():
            raise Failed(f"{metric} is no number", case=case)
        good = {what: sign * value for what, value in values.items()}
        if not good["different"] - good["one word"] > lab.tol:
            raise Failed(
                f"{metric} is {values['one word']:.4g} for one repeated word and {values['different']:.4g} for texts "
                f"without a word in common; a higher value is declared as {direction}",
                case=case,
                resembles="EV18" if values["different"] == values["one word"] else "EV17",
            )
        for low, high in (*(("one word", what) for what in good), ("one text", "half one text"), *_BELOW):
            if not good[high] >= good[low] - lab.tol:
                raise Failed(
                    f"by {metric} the set '{low}' ({values[low]:.4g}) is more diverse than '{high}' "
                    f"({values[high]:.4g})",
                    case=case,
                )


_BELOW = (("one text", "different"), ("half one text", "different"))
