"""Writes the measured part of docs/performance.md, between two markers, with its charts and their numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.charts import format_number, svg
from benchmarks.results import Chart, Figure, Results

BEGIN = "<!-- measured by `make bench` -->"
END = "<!-- end of what was measured -->"


def write(results: Results, page: Path) -> None:
    """Write the measured part of the page, its charts, and the numbers as JSON."""
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    page.write_text(f"{head}{BEGIN}\n\n{measured(results)}\n{END}{tail}", encoding="utf-8")
    for name, chart in results.charts.items():
        (page.parent / _picture(name)).write_text(svg(chart), encoding="utf-8")
    document = json.dumps(dataclasses.asdict(results), indent=1)
    page.with_suffix(".json").write_text(document + "\n", encoding="utf-8")


def measured(results: Results) -> str:
    """Format the machine, the table of figures, and each chart with its numbers as markdown."""
    lines = ["; ".join(f"{name}: {value}" for name, value in results.machine.items()) + ".", "", *table(results.figures)]
    for name, chart in results.charts.items():
        lines += ["", f"### {chart.title}", "", f"![{_alt(chart)}]({_picture(name)})", "", *_numbers(chart)]
    return "\n".join(lines) + "\n"


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """Format the figures with their targets as a table, with a column for each database."""
    yield "| figure | server on | target | measured | met | from |"
    yield "|---|---|---|---|---|---|"
    for figure in sorted(figures, key=lambda figure: _first(figures, figure.name)):
        sign = "≤" if figure.at_most else "≥"
        target = "" if figure.target is None else f"{sign} {_amount(figure.target, figure.unit)}"
        met = "" if figure.target is None else "yes" if figure.is_met else "**no**"
        number = _amount(figure.measured, figure.unit)
        yield f"| {figure.name} | {figure.backend} | {target} | {number} | {met} | {figure.detail} |"


def _first(figures: Sequence[Figure], name: str) -> int:
    return next(number for number, figure in enumerate(figures) if figure.name == name)


def _amount(number: float, unit: str) -> str:
    return f"{format_number(number)} {unit}".strip()


def _picture(name: str) -> str:
    return f"images/bench-{name}.svg"


def _alt(chart: Chart) -> str:
    return f"Line chart of {chart.y} by {chart.x}: {'; '.join(chart.lines)}"


def _numbers(chart: Chart) -> Iterator[str]:
    columns = sorted({x for line in chart.lines.values() for x, _ in line})
    yield f"| {chart.y}, by {chart.x} | " + " | ".join(map(format_number, columns)) + " |"
    yield "|---|" + "---:|" * len(columns)
    for name, line in chart.lines.items():
        by_x = dict(line)
        yield f"| {name} | " + " | ".join(format_number(by_x[x]) if x in by_x else "" for x in columns) + " |"
