"""Draws line charts on logarithmic axes, as SVG that follows the reader's light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from benchmarks.results import Chart

CHART_WIDTH, CHART_HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 80, 730, 60, 310
"""Pixels: the size of the picture, and the area of the plot in it."""

LEGEND = 366
LEGEND_ROW = 24
LEGEND_COLUMN = 330

CHART_STYLE = """\
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#334155}
.title{font-size:14px;font-weight:600;fill:#0f172a}.end{text-anchor:end}.middle{text-anchor:middle}
.card{fill:#ffffff;stroke:#e2e8f0}.grid{stroke:#e2e8f0}
polyline{fill:none;stroke-width:2}.s0{stroke:#2563eb;color:#2563eb}.s1{stroke:#d97706;color:#d97706}
.s2{stroke:#059669;color:#059669}.s3{stroke:#9333ea;color:#9333ea}circle{fill:currentColor}
@media(prefers-color-scheme:dark){text{fill:#cbd5e1}.title{fill:#f8fafc}
.card{fill:#0f172a;stroke:#334155}.grid{stroke:#334155}.s0{stroke:#60a5fa;color:#60a5fa}.s1{stroke:#fbbf24;color:#fbbf24}
.s2{stroke:#34d399;color:#34d399}.s3{stroke:#c084fc;color:#c084fc}}"""

MAX_DECADES = 2
"""On an axis of more decades, only powers of ten have a grid line; with a higher number, the labels overlap."""


def svg(chart: Chart) -> str:
    """Draw a chart."""
    points = [point for line in chart.lines.values() for point in line]
    x_ticks, across = _axis([x for x, _ in points], LEFT, RIGHT)
    y_ticks, up = _axis([y for _, y in points], BOTTOM, TOP)
    parts = [
        f'<text x="20" y="28" class="title">{escape(chart.title)}</text>',
        f'<text x="20" y="48">{escape(chart.y)}</text>',
        f'<text x="{RIGHT}" y="{BOTTOM + 38}" class="end">{escape(chart.x)}</text>',
        *(_tick(tick, across(tick), vertical=True) for tick in x_ticks),
        *(_tick(tick, up(tick), vertical=False) for tick in y_ticks),
    ]
    for number, (name, line) in enumerate(chart.lines.items()):
        parts += _line(f"s{number}", [(across(x), up(y)) for x, y in line])
        parts += _legend(number, name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{CHART_WIDTH}" height="{CHART_HEIGHT}" '
        f'viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}"><style>{CHART_STYLE}</style>'
        f'<rect x="0.5" y="0.5" width="{CHART_WIDTH - 1}" height="{CHART_HEIGHT - 1}" rx="8" class="card"/>'
        f"{''.join(parts)}</svg>\n"
    )


def format_number(number: float) -> str:
    """Format a number with three significant digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"  # noqa: PLR2004 - three digits


def _axis(values: Sequence[float], start: float, end: float) -> tuple[list[float], Callable[[float], float]]:
    """Return the ticks of a logarithmic axis around these values, and the function that maps a value to its position."""
    first = math.floor(math.log10(min(values)))
    last = math.ceil(math.log10(max(values)))
    steps = (1,) if last - first > MAX_DECADES else (1, 2, 5)
    ticks = [step * 10.0**decade for decade in range(first, last + 1) for step in steps]
    inside = [tick for tick in ticks if min(values) < tick < max(values)]
    low = max(tick for tick in ticks if tick <= min(values))
    high = min((tick for tick in ticks if tick >= max(values) and tick > low), default=10 * low)
    span = math.log(high / low)
    shown = sorted({low, *inside, high})
    return shown, lambda value: start + (end - start) * math.log(value / low) / span


def _tick(value: float, place: float, *, vertical: bool) -> str:
    x1, y1, x2, y2 = (place, TOP, place, BOTTOM) if vertical else (LEFT, place, RIGHT, place)
    line = f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    x, y, kind = (place, BOTTOM + 18, "middle") if vertical else (LEFT - 8, place + 4, "end")
    return f'{line}<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{format_number(value)}</text>'


def _line(kind: str, points: Iterable[tuple[float, float]]) -> Iterator[str]:
    places = [(f"{x:.1f}", f"{y:.1f}") for x, y in points]
    yield f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
    yield from (f'<circle class="{kind}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in places)


def _legend(number: int, name: str) -> Iterator[str]:
    x, y = LEFT + LEGEND_COLUMN * (number % 2), LEGEND + LEGEND_ROW * (number // 2)
    yield from _line(f"s{number}", [(x, y), (x + 24, y)])
    yield f'<text x="{x + 34}" y="{y + 4}">{escape(name)}</text>'
