"""The report's figures as inline SVG: text and rules on the page's own colours, nothing to load, nothing to run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from kat.audit.words import visible

WIDTH = 720
LABELS = 220
NUMBERS = 156
ROW = 27
AXIS = 40


@dataclass(frozen=True)
class Mark:
    """One row of an interval chart: a dot, its interval (or none), and the numbers written beside it.

    `role` is the CSS class that colours it: ``a``, ``b``, ``diff``, ``rule`` (a baseline) or ``faint``.
    """

    label: str
    estimate: float
    low: float | None
    high: float | None
    numbers: str
    role: str = "diff"
    gap: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a panel: steps, values, CSS class; `dots` marks the single points."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    role: str
    dots: bool = False


@dataclass(frozen=True)
class SeedRow:
    """One arm of a seed chart: a dot for each finished run, its mean with an interval (or none) below the dots."""

    label: str
    values: Sequence[float]
    mean: float | None
    low: float | None
    high: float | None
    numbers: str
    role: str


def seed_chart(rows: Sequence[SeedRow], *, title: str, unit: str, name: str) -> str:
    """Arms over a common axis in the metric's own units, every training seed a dot."""
    ends = [v for row in rows for v in (*row.values, row.mean, row.low, row.high) if v is not None]
    ticks = nice_ticks(min(ends), max(ends)) if ends else [0.0, 1.0]
    left, right, height = LABELS, WIDTH - NUMBERS, 2 * ROW
    scale, bottom = _Scale(ticks[0], ticks[-1], left, right), 14.0 + height * len(rows)
    body: list[str] = []
    for tick in ticks:
        x = scale(tick)
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{bottom:.1f}"/>')
        body.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 15:.1f}">{_tick(tick, ticks, False)}</text>')
    body.append(f'<text class="tick" x="{(left + right) / 2:.1f}" y="{bottom + 32:.1f}">{escape(unit)}</text>')
    for number, row in enumerate(rows):
        middle = 14.0 + height * (number + 0.5)
        body.append(f'<g class="{row.role}">')
        body.append(f'<text class="label" x="{left - 14}" y="{middle + 4:.1f}">{_label(row.label)}</text>')
        body += [f'<circle class="seed" cx="{scale(v):.1f}" cy="{middle - 8:.1f}" r="4.2"/>' for v in row.values]
        if row.low is not None and row.high is not None:
            low, high, below = scale(row.low), scale(row.high), middle + 9
            body.append(f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{below:.1f}" y2="{below:.1f}"/>')
            for end in (low, high):
                body.append(
                    f'<line class="cap" x1="{end:.1f}" x2="{end:.1f}" y1="{below - 4:.1f}" y2="{below + 4:.1f}"/>'
                )
        if row.mean is not None:
            body.append(_dot(scale(row.mean), middle + 9, "diff"))
        body.append(f'<text class="number" x="{WIDTH}" y="{middle + 4:.1f}">{escape(row.numbers)}</text></g>')
    return _svg(WIDTH, bottom + AXIS, body, title, name)


def interval_chart(marks: Sequence[Mark], *, title: str, unit: str, zero: bool, name: str) -> str:
    """Dots with intervals over a common axis (shares, drawn as percent or points); a rule at zero where `zero`.

    `title` is what a screen reader says; `name` makes the ids unique in the page.
    """
    ends = [v for m in marks for v in (m.estimate, m.low, m.high) if v is not None]
    ticks = nice_ticks(100 * min([*ends, 0.0] if zero else ends), 100 * max([*ends, 0.0] if zero else ends))
    left, right = LABELS, WIDTH - NUMBERS
    scale = _Scale(ticks[0], ticks[-1], left, right)
    body: list[str] = []
    y = 14.0
    rows: list[tuple[float, Mark]] = []
    for mark in marks:
        y += 10 if mark.gap else 0
        rows.append((y + ROW / 2, mark))
        y += ROW
    bottom = y + 4
    for tick in ticks:
        x = scale(tick)
        role = "zero" if zero and tick == 0 else "grid"
        body.append(f'<line class="{role}" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{bottom:.1f}"/>')
        body.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 15:.1f}">{_tick(tick, ticks, zero)}</text>')
    body.append(f'<text class="tick" x="{(left + right) / 2:.1f}" y="{bottom + 32:.1f}">{escape(unit)}</text>')
    for middle, mark in rows:
        body.append(f'<g class="{mark.role}">')
        body.append(f'<text class="label" x="{left - 14}" y="{middle + 4:.1f}">{_label(mark.label)}</text>')
        if mark.low is not None and mark.high is not None:
            low, high = scale(100 * mark.low), scale(100 * mark.high)
            body.append(f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>')
            for end in (low, high):
                body.append(
                    f'<line class="cap" x1="{end:.1f}" x2="{end:.1f}" y1="{middle - 4:.1f}" y2="{middle + 4:.1f}"/>'
                )
        body.append(_dot(scale(100 * mark.estimate), middle, mark.role))
        body.append(f'<text class="number" x="{WIDTH}" y="{middle + 4:.1f}">{escape(mark.numbers)}</text></g>')
    return _svg(WIDTH, bottom + AXIS, body, title, name)


def curve_chart(panels: Sequence[tuple[str, Sequence[Line]]], *, title: str, unit: str, name: str) -> str:
    """Panels side by side with one common vertical axis: training curves by step."""
    values = [v for _, lines in panels for line in lines for v in line.values]
    ticks = nice_ticks(min(values), max(values))
    height, top, gutter = 210.0, 34.0, 44.0
    width = (WIDTH - gutter * len(panels)) / len(panels)
    vertical = _Scale(ticks[0], ticks[-1], top + height, top)
    body: list[str] = []
    for number, (heading, lines) in enumerate(panels):
        left = gutter + number * (width + gutter)
        steps = [step for line in lines for step in line.steps]
        across = nice_ticks(min(steps), max(steps), wanted=4)
        scale = _Scale(min(steps), max(max(steps), min(steps) + 1), left, left + width)
        body.append(f'<text class="panel" x="{left:.1f}" y="16">{_label(heading, 52)}</text>')
        for tick in ticks:
            y = vertical(tick)
            body.append(f'<line class="grid" x1="{left:.1f}" x2="{left + width:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            body.append(f'<text class="tick end" x="{left - 8:.1f}" y="{y + 4:.1f}">{_tick(tick, ticks, False)}</text>')
        for tick in across:
            if min(steps) <= tick <= max(steps):
                role = "tick end" if scale(tick) > WIDTH - 16 else "tick"
                body.append(
                    f'<text class="{role}" x="{scale(tick):.1f}" y="{top + height + 17:.1f}">{tick:,.0f}</text>'
                )
        body.append(f'<text class="tick" x="{left + width / 2:.1f}" y="{top + height + 34:.1f}">{escape(unit)}</text>')
        body += [_line(line, scale, vertical) for line in lines]
    return _svg(WIDTH, top + height + 42, body, title, name)


def nice_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers, at most about `wanted`, the first ≤ low and the last ≥ high; the range is never empty."""
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 1, high + 1
    raw = (high - low) / max(1, wanted - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


class _Scale:
    """A linear map from values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._high, self._start, self._end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)


def _line(line: Line, scale: _Scale, vertical: _Scale) -> str:
    dots = [(scale(step), vertical(value)) for step, value in zip(line.steps, line.values, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
    drawn = (
        f'<g class="{line.role}"><polyline class="curve" points="{path}"><title>{_label(line.label)}</title></polyline>'
    )
    if line.dots:
        drawn += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in dots)
    return drawn + "</g>"


def _dot(x: float, y: float, role: str) -> str:
    """A circle for A, a square for B, a diamond for a difference, a bar for a baseline: readable without colour."""
    if role == "b":
        return f'<rect class="dot" x="{x - 4.6:.1f}" y="{y - 4.6:.1f}" width="9.2" height="9.2"/>'
    if role == "a":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    if role == "rule":
        return f'<line class="stem" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 7:.1f}" y2="{y + 7:.1f}"/>'
    path = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
    return f'<polygon class="dot" points="{path}"/>'


def _tick(tick: float, ticks: Sequence[float], signed: bool) -> str:
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    text = f"{tick:{'+' if signed and tick else ''}.{digits}f}"
    return text.replace("-", "−")


def _label(text: str, length: int = 32) -> str:
    text = visible(text)
    return escape(text if len(text) <= length else text[: length - 1] + "…")


def _svg(width: float, height: float, body: Sequence[str], title: str, name: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{escape(visible(title))}</title>{"".join(body)}</svg>'
    )
