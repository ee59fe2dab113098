"""What a density folder says of its prompts: the figures by which a reader may believe in its weights."""

from dataclasses import dataclass

import numpy as np

from kat.density.folder import Density, Row
from kat.errors import UsageError
from kat.text import printable

HEAVIEST = 50


@dataclass(frozen=True)
class Summary:
    """The figures that statistics.md asks for. `with_second` is None where no second embedder is given."""

    n: int
    n_distinct: int
    k: int
    dose: float
    alpha: float
    ess: float
    max_over_median: float
    radius_cv: float
    with_length: float  # Spearman's rank correlation of r with the prompt's characters
    with_second: float | None  # … with r from another embedder

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        rows = [
            ("prompts", f"{self.n:,}" + (f" ({self.n_distinct:,} distinct)" if self.n_distinct < self.n else "")),
            ("neighbours", f"{self.k} to {2 * self.k}"),
            ("dose: total variation from uniform", f"{self.dose:.3f}"),
            ("α that the dose needed", f"{self.alpha:.3g}"),
            ("effective sample", f"{self.ess:,.0f} ({self.ess / self.n_distinct:.0%})"),
            ("largest weight / median", f"{self.max_over_median:.2f}"),
            ("coefficient of variation of r", f"{self.radius_cv:.3f}"),
            ("rank correlation with length", f"{self.with_length:+.2f}"),
        ]
        if self.with_second is not None:
            rows.append(("rank correlation with the second embedder", f"{self.with_second:+.2f}"))
        return rows


def summarise(density: Density, second: Density | None = None) -> Summary:
    """The figures of a folder; `second` is a folder of the same prompts by another embedder."""
    said = density.metadata
    return Summary(
        n=said.n,
        n_distinct=said.n_distinct,
        k=said.k,
        dose=said.statistics.total_variation,
        alpha=said.alpha,
        ess=said.statistics.ess,
        max_over_median=said.statistics.max_over_median,
        radius_cv=said.statistics.radius_cv,
        with_length=rank_correlation(
            np.array([row.radius for row in density.rows]), np.array([row.n_chars for row in density.rows])
        ),
        with_second=None if second is None else agreement(density, second),
    )


def agreement(density: Density, second: Density) -> float:
    """Spearman's correlation of the radii of two folders over the prompts, which must be the same."""
    if density.metadata.model_hash == second.metadata.model_hash:
        raise UsageError(f"{second.folder}: the same embedder as {density.folder}; a second opinion needs another")
    radius_of = {row.id: row.radius for row in second.rows}
    if density.metadata.data_hash != second.metadata.data_hash:
        raise UsageError(f"{second.folder}: made of other prompts than {density.folder}; update it with the same data")
    return rank_correlation(
        np.array([row.radius for row in density.rows]), np.array([radius_of[row.id] for row in density.rows])
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's ρ of two samples (n,); 0 where one of them is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def heaviest(density: Density, n: int = HEAVIEST) -> list[tuple[Row, float]]:
    """The n heaviest prompts and how many times its uniform share each has; of equal weights the farther one first."""
    radii = np.array([row.radius for row in density.rows])
    order = np.lexsort((-radii, -density.weights))[:n]
    return [(density.rows[i], float(density.weights[i]) * len(density.rows)) for i in order]


def one_line(text: str, width: int = 100) -> str:
    """A prompt as one short line that is safe to print."""
    shown = printable(" ".join(text.split()))
    return shown if len(shown) <= width else shown[: width - 1] + "…"
