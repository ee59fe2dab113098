"""The sign-flip permutation test: were the models equal, each item's difference could as well have the other sign."""

import numpy as np
from scipy import stats

EXACT_UP_TO = 13  # 2^13 = 8,192 sign patterns are enumerated; beyond that they are drawn
BLOCK = 1_000


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
