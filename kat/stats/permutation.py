"""Permutation tests: of items by flipping signs, of training seeds by splitting them anew between two arms.

Were the models equal, each item's difference could as well have the other sign; were the arms equal, each seed could as
well stand in the other arm.
"""

import functools
import itertools
import math

import numpy as np
from scipy import stats

EXACT_UP_TO = 13  # 2^13 = 8,192 sign patterns are enumerated; beyond that they are drawn
BLOCK = 1_000
EXACT_SPLITS = 200_000  # 10 v 10 seeds are enumerated (184,756 splits); beyond that splits are drawn
DRAWN_SPLITS = 20_000


def sign_flip(d: np.ndarray, rng: np.random.Generator, groups: np.ndarray | None = None, draws: int = 9_999) -> float:
    """Two-sided p of "the mean of d is 0" by flipping the signs of d (n,), or of whole clusters (`groups` 0..G−1).

    Exact by enumeration up to 13 units that are not 0, else p = (c + 1) / (draws + 1) over drawn signs (Phipson and
    Smyth 2010). Units whose difference is 0 change nothing and are left out; with fewer than two left p is 1.
    """
    units = d if groups is None else np.bincount(groups, weights=d)
    units = units[np.abs(units) > 1e-12]
    if units.size < 2:
        return 1.0
    if units.size <= EXACT_UP_TO:
        exact = stats.permutation_test(
            (units,), np.sum, permutation_type="samples", vectorized=True, n_resamples=2**EXACT_UP_TO, batch=256
        )
        return float(min(1.0, exact.pvalue))
    # Of m units of one size v, Binomial(m, ½) keep their sign: one draw for each size instead of one for each unit.
    sizes, counts = np.unique(np.round(np.abs(units), 12), return_counts=True)
    at_least = abs(units.sum()) - 1e-9 * sizes.max()
    as_extreme = 0
    for start in range(0, draws, BLOCK):
        kept = rng.binomial(counts, 0.5, size=(min(BLOCK, draws - start), sizes.size))  # (draws of the block, sizes)
        as_extreme += int((np.abs((2 * kept - counts) @ sizes) >= at_least).sum())
    return (as_extreme + 1) / (draws + 1)


def split_p(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p of "a (n,) and b (m,) come from one distribution": twice the smaller of the two one-sided ones."""
    return min(1.0, 2 * min(split_p_above(a, b), split_p_above(b, a)))


def split_p_above(a: np.ndarray, b: np.ndarray) -> float:
    """One-sided p of "b (m,) does not tend to lie above a (n,)", by the difference of the means over all splits.

    The share of the ways to split the n + m values into arms of these sizes in which b's mean is at least as high.
    Exact up to 200,000 splits, else (c + 1) / (draws + 1) over 20,000 splits drawn from a fixed seed (Phipson and
    Smyth 2010).
    """
    values = np.concatenate([a, b])
    values = values - values.mean()
    # Of centred values the sum of one arm decides: the difference of the means is that sum times a constant.
    table, observed = splits(a.size, b.size), values[a.size :].sum() - 1e-12 * values.size * float(np.abs(values).max())
    sums = table @ values
    as_high = int(np.count_nonzero(sums >= observed))
    if not is_exact(a.size, b.size):
        return (as_high + 1) / (DRAWN_SPLITS + 1)
    if a.size != b.size:
        return as_high / len(table)
    return (as_high + int(np.count_nonzero(sums <= -observed))) / (2 * len(table))


def is_exact(n: int, m: int) -> bool:
    """Whether the splits of n + m seeds are enumerated, not drawn."""
    return math.comb(n + m, n) <= EXACT_SPLITS


@functools.lru_cache(maxsize=8)
def splits(n: int, m: int) -> np.ndarray:
    """(splits, n + m) float64: which of n + m values make up an arm of m. All of them, or 20,000 that are drawn.

    Of arms of one size only the splits without the first value: those with it are their complements.
    """
    if is_exact(n, m):
        chosen = np.array(list(itertools.combinations(range(int(n == m), n + m), m)), dtype=np.intp)
    else:
        chosen = np.argsort(np.random.default_rng(0).random((DRAWN_SPLITS, n + m)), axis=1)[:, :m]
    found = np.zeros((len(chosen), n + m))
    np.put_along_axis(found, chosen, 1.0, axis=1)
    found.setflags(write=False)
    return found
