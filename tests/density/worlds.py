"""Point clouds whose density is known, and what must hold of the weights of any."""

import numpy as np

from kat.density.weights import Weights


def cloud(seed: int, n: int = 90, d: int = 6) -> np.ndarray:
    """(n, d) float32: clusters of different width, as many directions and spreads as a seed gives."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(int(generator.integers(1, 6)), d)) * generator.uniform(0.5, 4)
    spread = generator.gamma(1.5, 0.4, size=(n, 1)) + 0.02
    points = centres[generator.integers(len(centres), size=n)] + generator.normal(size=(n, d)) * spread
    return points.astype(np.float32)


def crowd_and_outliers(seed: int, crowd: int = 60, outliers: int = 6, d: int = 8) -> np.ndarray:
    """(crowd + outliers, d): the crowd first, close together; the outliers far from it and from each other."""
    generator = np.random.default_rng(seed)
    near = generator.normal(size=d) * 3 + generator.normal(size=(crowd, d)) * 0.1
    axes = np.linalg.qr(generator.normal(size=(d, d)))[0][:outliers] * 3
    return np.concatenate([near, axes]).astype(np.float32)


def must_hold(found: Weights, dose: float) -> None:
    """statistics.md, Density weights: the checks that need only the weights."""
    w = found.values
    distinct = found.n_distinct
    assert w.dtype == np.float64 and np.isfinite(w).all() and (w > 0).all()
    assert abs(w.sum() - 1) <= 1e-12
    assert found.ess >= 0.5 * distinct
    assert found.max_over_median <= 10
    assert dose <= found.dose <= dose + 1e-6
    if distinct == len(w):
        assert abs(np.abs(w - 1 / len(w)).sum() / 2 - found.dose) < 1e-12
        assert abs(1 / (w**2).sum() - found.ess) < 1e-6 * len(w)
        assert abs(w.max() / np.median(w) - found.max_over_median) < 1e-9
        assert w.min() >= 0.05 / len(w) * (1 - 1e-12)


def must_favour_the_sparse(found: Weights, crowd: int = 60) -> None:
    """Outliers weigh more than the crowd, and the order of the weights is that of the distances."""
    from scipy.stats import spearmanr

    assert found.values[crowd:].mean() > found.values[:crowd].mean()
    assert spearmanr(found.values, found.radii).statistic > 0.9
