"""What could be seen, as sentences, as a table, and as a picture on one page."""

from html import escape

from kat.audit.charts import Line, curve_chart
from kat.audit.words import count
from kat.stats.power import mde_paired, mde_seeds, n_for_margin, seeds_for_difference
from kat.stats.seeds import smallest_permutation_p

ITEMS = (50, 100, 200, 500, 1000, 2000, 4241, 10_000)
DISCORDANT = (0.1, 0.2, 0.3)
MARGINS = (0.01, 0.02, 0.03, 0.05)
STYLE = """
:root { color-scheme: light dark; --line: #8886; --ink: light-dark(#1d2433, #e6e8ee); }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: light-dark(#fff, #14171f);
  max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } svg { width: 100%; height: auto; font-size: 12px; overflow: visible; }
svg text { fill: currentColor; }
.tick { text-anchor: middle; } .tick.end { text-anchor: end; } .grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 2; stroke: currentColor; } circle { fill: currentColor; }
.p1 { color: light-dark(#1763b6, #7db8ff); } .p2 { color: light-dark(#a8480f, #ffab70); }
.p3 { color: light-dark(#3d7a1f, #8fd06c); }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .8rem; text-align: right; }
th { border-bottom: 1px solid var(--line); font-weight: 600; } caption { text-align: left; padding-bottom: .3rem; }
"""


def items_sentence(items: int, discordant: float, design_effect: float, power: float, mde: float | None) -> str:
    """The smallest difference that so many items can show."""
    among = f"With {count(items, 'item')}, {discordant:.0%} of them discordant"
    among += f" and a design effect of {design_effect:g}" if design_effect != 1 else ""
    if mde is None:
        return f"{among}, no difference is found {power:.0%} of the time."
    return f"{among}, a difference of {100 * mde:.1f} points is found {power:.0%} of the time, smaller ones less often."


def seed_sentences(seeds: int | None, difference: float | None, sd: float, power: float) -> list[str]:
    """What so many seeds can show, and how many a difference needs."""
    lines = []
    if seeds is not None:
        lines.append(
            f"With {seeds} seeds a side and a seed noise of {100 * sd:g} points, a difference of "
            f"{100 * mde_seeds(seeds, sd, power):.1f} points is found {power:.0%} of the time."
        )
        floor = smallest_permutation_p(seeds, seeds)
        if floor > 0.05:
            lines.append(f"No permutation of {seeds} seeds a side gets below p = {floor:.2g}: take at least 4.")
    if difference is not None:
        k = seeds_for_difference(difference, sd, power)
        lines.append(
            f"A difference of {100 * abs(difference):g} points with a seed noise of {100 * sd:g} points needs {k} "
            f"seeds a side to be found {power:.0%} of the time."
        )
    if not lines:
        lines = seed_sentences(5, None, sd, power)
    return lines


def mde_rows(power: float, design_effect: float) -> list[list[str]]:
    """Items, then the smallest difference in points for each share of discordant items."""
    rows = []
    for n in ITEMS:
        found = [mde_paired(n, share, power, design_effect=design_effect) for share in DISCORDANT]
        rows.append([f"{n:,}", *("–" if mde is None else f"{100 * mde:.1f}" for mde in found)])
    return rows


def margin_rows(power: float, design_effect: float) -> list[list[str]]:
    """Margin in points, then the items it needs for each share of discordant items."""
    return [
        [f"{100 * margin:g}"]
        + [f"{n_for_margin(margin, share, power, design_effect=design_effect):,}" for share in DISCORDANT]
        for margin in MARGINS
    ]


def _captions(power: float, design_effect: float) -> tuple[str, str]:
    effect = f", design effect {design_effect:g}" if design_effect != 1 else ""
    return (
        f"Smallest difference in points found {power:.0%} of the time (McNemar mid-p, two-sided .05{effect})",
        f"Items to show 'not worse by the margin' {power:.0%} of the time (one-sided .025, equal models{effect})",
    )


def table_text(power: float, design_effect: float) -> list[str]:
    """Both tables as lines of text."""
    first, second = _captions(power, design_effect)
    shares = [f"{share:.0%}" for share in DISCORDANT]
    lines = []
    for caption, head, rows in (
        (first, "items", mde_rows(power, design_effect)),
        (second, "margin", margin_rows(power, design_effect)),
    ):
        lines += [caption, "".join(f"{cell:>12}" for cell in [head, *(f"{share} disc." for share in shares)])]
        lines += ["".join(f"{cell:>12}" for cell in row) for row in rows] + [""]
    return lines[:-1]


def page(power: float, design_effect: float) -> str:
    """One self-contained html page: the curves and both tables."""
    first, second = _captions(power, design_effect)
    grid = range(50, 2001, 25)
    lines = []
    for number, share in enumerate(DISCORDANT, 1):
        points = [(n, mde_paired(n, share, power, design_effect=design_effect)) for n in grid]
        shown = [(n, 100 * mde) for n, mde in points if mde is not None]
        lines.append(Line(f"{share:.0%} discordant", [n for n, _ in shown], [mde for _, mde in shown], f"p{number}"))
    chart = curve_chart([("smallest difference, points", lines)], title=first, unit="items", name="power")
    legend = " ".join(f'<span class="{line.role}">▬ {escape(line.label)}</span>' for line in lines)
    shares = [f"{share:.0%} discordant" for share in DISCORDANT]
    tables = _table(first, ["items", *shares], mde_rows(power, design_effect)) + _table(
        second, ["margin, points", *shares], margin_rows(power, design_effect)
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What could be seen</title><style>{STYLE}</style>"
        f"<h1>What could be seen</h1>{chart}<p>{legend}</p>{tables}</html>\n"
    )


def _table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tr>{top}</tr>{body}</table>"
