"""The prompts on a plane: UMAP of their embeddings, as a picture and as one self-contained page.

UMAP (McInnes et al., arXiv:1802.03426) keeps neighbours and little else: near points are alike, but how far apart two
groups lie, and how dense one looks, says nothing. Density is in the colour, which is measured where the points live.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from kat.data.rows import RowError, load_rows
from kat.density.folder import Density
from kat.density.report import one_line, summarise
from kat.errors import UsageError
from kat.runs.files import new_folder

MOST_DRAWN = 20_000  # points of the page; a random sample of more
MOST_NAMES = 8  # sources with a colour of their own
# Okabe and Ito's colours, which most colour-blind readers can tell apart, and a grey for the rest.
NAMED = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d00", "#6a3d9a")
OTHER = "#9a9a9a"
STEPS = 64  # of the scale of a number
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Colouring:
    """What the colour shows: `colours` (n,) hex, `values` (n,) as text, and the legend (colour, words)."""

    label: str
    colours: list[str]
    values: list[str]
    legend: list[tuple[str, str]]


def colour_by(density: Density, what: str, values: Path | None = None) -> Colouring:
    """Colour by `density` (r), by `source`, or by a number that the rows {id, NAME: number} of `values` hold.

    UsageError where `what` is none of these, or where no row is of a prompt in the folder.
    """
    if what in ("density", "source") and values is not None:
        raise UsageError(f"--colour {what} needs no --values; name the number to colour by")
    if what == "density":
        found = _numbers("distance to the neighbours, r (yellow: sparse)", [row.radius for row in density.rows])
        return replace(found, values=[""] * len(found.values))  # the page says r of every prompt anyway
    if what == "source":
        return _names([row.source or "(none)" for row in density.rows])
    if values is None:
        raise UsageError(f"--colour {what}: use density or source, or give rows with a number of that name by --values")
    number_of = _read_values(values, what)
    numbers = [number_of.get(row.id) for row in density.rows]
    if all(number is None for number in numbers):
        raise UsageError(f"{values}: no row is of a prompt in {density.folder}; ids are those of ids.jsonl")
    return _numbers(one_line(what, 40), numbers)


def lay_out(density: Density, seed: int, report: Report = lambda phase, done, total: None) -> np.ndarray:
    """(n, 2) float32 in [0, 1], by UMAP with cosine distances; the same seed gives the same places on one machine."""
    try:
        import umap
    except ImportError:
        raise UsageError("density map: needs umap-learn and matplotlib; install kat[viz]") from None
    points = density.embeddings.astype(np.float32)
    report("layout", 0, 1)
    # Few points have too few neighbours for its spectral start.
    options: dict[str, Any] = {"init": "random"} if len(points) < 50 else {}
    model = umap.UMAP(
        n_neighbors=min(15, len(points) - 1), min_dist=0.1, metric="cosine", random_state=seed, n_jobs=1, **options
    )
    places = model.fit_transform(points)
    report("layout", 1, 1)
    low, high = places.min(axis=0), places.max(axis=0)
    return ((places - low) / np.maximum(high - low, 1e-9)).astype(np.float32)


def write_map(out: Path, density: Density, places: np.ndarray, colouring: Colouring) -> tuple[Path, Path]:
    """Write map.png and map.html into the folder `out`; a folder of anything else is left alone."""
    out = Path(out)
    if out.exists() and not {path.name for path in out.iterdir()} <= {"map.png", "map.html"}:
        raise UsageError(f"{out}: exists and holds other files than a map; choose another place")
    title = f"{density.metadata.n:,} prompts by {one_line(density.metadata.model, 60)}"
    with new_folder(out) as temporary:
        _draw(temporary / "map.png", title, places, colouring)
        (temporary / "map.html").write_text(_page(title, density, places, colouring), encoding="utf-8")
    return out / "map.png", out / "map.html"


def _draw(path: Path, title: str, places: np.ndarray, colouring: Colouring) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise UsageError("density map: needs umap-learn and matplotlib; install kat[viz]") from None
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    size = float(np.clip(30_000 / len(places), 3, 40))
    # rasterised text of strangers stays text: no mathematics between dollar signs
    axes.scatter(places[:, 0], places[:, 1], s=size, c=colouring.colours, linewidths=0, alpha=0.8)
    axes.set_title(title, fontsize=12, loc="left", parse_math=False)
    axes.set(xticks=[], yticks=[], aspect="equal")
    for side in axes.spines.values():
        side.set_visible(False)
    handles = [Line2D([], [], marker="o", linestyle="", color=c, markersize=7) for c, _ in colouring.legend]
    legend = figure.legend(
        handles, [words for _, words in colouring.legend], loc="outside lower center", ncols=3, frameon=False,
        title=colouring.label, fontsize=10,
    )  # fmt: skip
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)
    figure.savefig(path, dpi=130)


def _page(title: str, density: Density, places: np.ndarray, colouring: Colouring) -> str:
    drawn = np.arange(len(places))
    if len(drawn) > MOST_DRAWN:
        drawn = np.sort(np.random.default_rng(0).choice(len(drawn), MOST_DRAWN, replace=False))
    palette = sorted({colouring.colours[i] for i in drawn})
    number = {colour: i for i, colour in enumerate(palette)}
    n = len(density.rows)
    points = [
        [
            round(float(places[i, 0]), 4),
            round(1 - float(places[i, 1]), 4),  # a page's y grows downwards
            number[colouring.colours[i]],
            round(float(density.weights[i]) * n, 3),
            round(row.radius, 4),
            colouring.values[i],
            row.source,
            one_line(row.text, 240) + ("…" if row.n_chars > len(row.text) else ""),
        ]
        for i in drawn.tolist()
        for row in (density.rows[i],)
    ]
    # No character of a prompt can end the script element or start a comment in it.
    data = json.dumps({"palette": palette, "points": points}, ensure_ascii=True, allow_nan=False)
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    script = files("kat.density").joinpath("map.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = files("kat.density").joinpath("map.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        title=title,
        colouring=colouring,
        figures=summarise(density).rows(),
        n=n,
        n_drawn=len(drawn),
        data=Markup(data),
        script=Markup(script),
        script_source=Markup(f"'sha256-{digest}'"),
    )


def _numbers(label: str, numbers: list[float | None] | list[float]) -> Colouring:
    """Viridis from the 2 % to the 98 % quantile; what has no number is grey."""
    try:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex
    except ImportError:
        raise UsageError("density map: needs umap-learn and matplotlib; install kat[viz]") from None
    known = np.array([number for number in numbers if number is not None], dtype=float)
    low, high = np.quantile(known, (0.02, 0.98))
    scale = [to_hex(colormaps["viridis"](i / (STEPS - 1))) for i in range(STEPS)]

    def step(number: float) -> int:
        return round((STEPS - 1) * min(max((number - low) / max(high - low, 1e-300), 0.0), 1.0))

    colours = [OTHER if number is None else scale[step(number)] for number in numbers]
    values = ["unknown" if number is None else f"{number:.4g}" for number in numbers]
    marks = np.linspace(low, high, 5) if high > low else np.array([low])
    legend = [(scale[step(mark)], f"{mark:.3g}") for mark in marks]
    if missing := len(numbers) - len(known):
        legend.append((OTHER, f"unknown ({missing:,})"))
    return Colouring(label, colours, values, legend)


def _names(names: list[str]) -> Colouring:
    """The most frequent names with a colour each, the rest together."""
    counts = Counter(names)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))[:MOST_NAMES]
    colour_of = dict(zip(ranked, NAMED, strict=False))
    legend = [(colour_of[name], f"{one_line(name, 40)} ({counts[name]:,})") for name in ranked]
    if rest := len(names) - sum(counts[name] for name in ranked):
        legend.append((OTHER, f"other ({rest:,})"))
    return Colouring("source", [colour_of.get(name, OTHER) for name in names], names, legend)


def _read_values(path: Path, name: str) -> dict[str, float]:
    """The mean number of each id; every row has to have one."""

    def parse(row: dict[str, Any]) -> tuple[str, float]:
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RowError(f"no number {name!r}")
        return str(row["id"]), float(value)

    sums: dict[str, list[float]] = {}
    for one, value in load_rows([path], parse, key=None).rows:
        sums.setdefault(one, []).append(value)
    return {one: sum(numbers) / len(numbers) for one, numbers in sums.items()}
