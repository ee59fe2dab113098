"""Which of two models is better on the same items: the one function that chooses the method.

The choice follows the score type, never the data's wish: binary scores by McNemar's mid-p and Tango's interval (no
Wald, t or bootstrap interval for a binary difference below 200 items), bounded scores by sign flips with a t or a
generalised Bonett-Price interval, and whatever the type, by a CR2 interval and sign flips of whole clusters as soon as
one holds two items.
"""

import numpy as np
from numpy.typing import ArrayLike

from kat.errors import EvidenceError
from kat.stats.checks import check_clusters, check_level, check_scores
from kat.stats.clustered import fit_clusters, grouped, n_differing
from kat.stats.intervals import t_mean
from kat.stats.paired import bonett_price, bonett_price_bounded, mcnemar_exact, mcnemar_midp, newcombe_paired, tango
from kat.stats.permutation import sign_flip
from kat.stats.power import mde_bounded, mde_paired
from kat.stats.result import Comparison, ScoreType, Test

POWER = 0.8


def compare_paired(
    a: ArrayLike,
    b: ArrayLike,
    score_type: ScoreType,
    clusters: ArrayLike | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    seen: bool = True,
) -> Comparison:
    """B − A on the same items; `a` and `b` (n,) are the items' scores in the same order.

    `clusters` (n,) names what items share (lecture, passage). With any cluster larger than 1 the cluster-robust
    result gates and the item-level one is kept as `if_independent`. `seed` drives the permutation tests. `seen` off
    leaves out the minimum detectable effect, which costs most of the time. Raises EvidenceError for scores that are
    empty, of different number, NaN or out of range.
    """
    check_level(level)
    scores_a, scores_b = check_scores(a, score_type, "A's scores"), check_scores(b, score_type, "B's scores")
    if scores_a.size != scores_b.size:
        raise EvidenceError(
            f"A has {scores_a.size} scores and B {scores_b.size}: a paired comparison needs the same items"
        )
    groups = check_clusters(clusters, scores_a.size)
    rng = np.random.default_rng(seed)
    by_item = _binary if score_type == "binary" else _bounded
    independent = by_item(scores_a, scores_b, level, rng, seen)
    if groups is None or not grouped(groups):
        return independent
    return _clustered(scores_a, scores_b, score_type, groups, level, rng, independent)


def _binary(a: np.ndarray, b: np.ndarray, level: float, rng: np.random.Generator, seen: bool) -> Comparison:
    n, gained, lost = a.size, int((b > a).sum()), int((a > b).sum())
    both, neither = int((a * b).sum()), int(((1 - a) * (1 - b)).sum())
    return Comparison(
        score_type="binary",
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=tango(gained, lost, n, level),
        test=Test("McNemar mid-p", mcnemar_midp(gained, lost)),
        beside=(Test("McNemar exact", mcnemar_exact(gained, lost)),),
        intervals_beside=(newcombe_paired(both, gained, lost, neither, level), bonett_price(gained, lost, n, level)),
        gained=gained,
        lost=lost,
        sd=_sd(b - a),
        mde=mde_paired(n, (gained + lost) / n, POWER, 1 - level) if seen else None,
        speaks_of="items like these",
    )


def _bounded(a: np.ndarray, b: np.ndarray, level: float, rng: np.random.Generator, seen: bool) -> Comparison:
    d = b - a
    robust = bonett_price_bounded(d, level)
    enough = d.size >= 100 and min(n_nonzero(d), n_differing(d)) >= 20
    spread = d if enough else np.append(d, [1.0, -1.0])
    return Comparison(
        score_type="bounded",
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=t_mean(d, level, (-1.0, 1.0)) if enough else robust,
        test=Test("sign-flip permutation", sign_flip(d, rng)),
        beside=(),
        intervals_beside=(robust,) if enough else (),
        gained=int((d > 1e-12).sum()),
        lost=int((d < -1e-12).sum()),
        sd=_sd(d),
        mde=mde_bounded(spread.size, _sd(spread), POWER, 1 - level) if seen else None,
        speaks_of="items like these",
    )


def _clustered(
    a: np.ndarray,
    b: np.ndarray,
    score_type: ScoreType,
    groups: np.ndarray,
    level: float,
    rng: np.random.Generator,
    independent: Comparison,
) -> Comparison:
    d = b - a
    fit = fit_clusters(d, groups, (1.0, -1.0), min_items=200 if score_type == "binary" else 100)
    mde = fit.mde(POWER, 1 - level)
    return Comparison(
        score_type=score_type,
        mean_a=independent.mean_a,
        mean_b=independent.mean_b,
        difference=fit.interval(level),
        test=Test("cluster sign-flip permutation", sign_flip(d, rng, groups)),
        beside=(Test("t on CR2, Satterthwaite", fit.p()),),
        intervals_beside=(),
        gained=independent.gained,
        lost=independent.lost,
        sd=independent.sd,
        mde=mde if mde <= 1 else None,
        speaks_of="new clusters like these",
        if_independent=independent,
    )


def n_nonzero(d: np.ndarray) -> int:
    """Number of items on which the two models differ (rotation averages that are equal up to rounding do not)."""
    return int((np.abs(d) > 1e-12).sum())


def _sd(d: np.ndarray) -> float:
    return float(d.std(ddof=1)) if d.size > 1 else 0.0
