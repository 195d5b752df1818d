"""Draws self-contained pages: HTML and SVG in one file, which loads nothing and runs no script, light and dark.

A page can be sent to a colleague: its policy forbids a browser whatever is not in the file. What the pointer is on tells its
numbers, by the `<title>` of each shape; tables beside the pictures have them, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from html import escape
from typing import NamedTuple
from zoneinfo import ZoneInfo

from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.periods import CALENDAR

WIDTH = 800
LEFT, RIGHT, TOP = 76, 14, 24
PLOT = 220
CELL = 14
"""Pixels."""

COLORS = 8
"""The lines that differ in color; more differ in their dashes."""

MAX_STEPS = 5
"""Steps of an axis; more draw more gridlines."""

MAX_STRIPS = 400
"""Places of a chart that tell their numbers; with more, pages get large."""

MAX_YEARS = 8
"""Years of a calendar; older versions are only counted."""

MAX_LINES = 6
"""Versions of a day that a calendar tells of."""

RULES = {
    **{period.rule: (period.word, period.word[0].upper()) for period in reversed(CALENDAR)},
    "keep_last": ("one of the last", "L"),
    "keep_within_days": ("by its age", "A"),
    "grace_days": ("grace", "G"),
    "keep_oldest": ("the oldest", "O"),
    "ttl": ("its own TTL", "T"),
    "keep_all": ("keep all", "K"),
}
"""The name and the letter of each rule in a calendar. A day has the color of the first that keeps a version of it."""

PROTECTED = "protected"
GONE = "gone"
OTHERS = {PROTECTED: ("protected", "P"), GONE: ("to delete", "-")}

STYLE = """
:root { color-scheme: light dark; --ink: #1e293b; --soft: #64748b; --line: #cbd5e1; --card: #fff; --page: #f1f5f9;
  --none: #e8edf3; --on: #fff }
body { margin: 0; padding: 24px 12px; background: var(--page); color: var(--ink); font: 14px/1.5 system-ui, sans-serif }
main { max-width: 860px; margin: auto }
h1 { font-size: 22px; margin: 0 0 4px }
h2 { font-size: 16px; margin: 0 0 6px }
p { margin: 4px 0; overflow-wrap: anywhere }
.soft { color: var(--soft) }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; margin: 14px 0;
  overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: 4px 8px; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.whole { white-space: nowrap }
svg { display: block; max-width: 100%; height: auto }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
svg .end { text-anchor: end }
svg .middle { text-anchor: middle }
svg text.mark { font-size: 9px; font-weight: 600; fill: var(--on); text-anchor: middle; pointer-events: none }
.axis { stroke: var(--line) }
.line { fill: none; stroke: var(--c); stroke-width: 2 }
.dashed { stroke-dasharray: 5 3 }
.hit { fill: transparent }
.hit:hover { fill: var(--soft); fill-opacity: .25 }
.day { fill: var(--c) }
.none { fill: var(--none) }
.key { display: inline-block; margin-right: 14px }
.swatch { display: inline-block; width: 14px; height: 14px; border-radius: 3px; background: var(--c); color: var(--on);
  text-align: center; font: 600 9px/14px system-ui, sans-serif; vertical-align: -2px; margin-right: 5px }
.c0, .keep_yearly { --c: #7c3aed } .c1, .keep_daily { --c: #2563eb } .c2, .keep_weekly { --c: #0f766e }
.c3, .keep_last { --c: #b45309 } .c4, .keep_monthly { --c: #be185d } .c5, .keep_hourly { --c: #0369a1 }
.c6, .keep_within_days { --c: #4d7c0f } .c7, .keep_all { --c: #475569 } .grace_days { --c: #a16207 }
.keep_oldest { --c: #9d174d } .ttl { --c: #115e59 } .protected { --c: #334155 } .gone { --c: #dc2626 }
@media (prefers-color-scheme: dark) {
:root { --ink: #e2e8f0; --soft: #94a3b8; --line: #475569; --card: #0f172a; --page: #020617; --none: #1e293b; --on: #020617 }
.c0, .keep_yearly { --c: #a78bfa } .c1, .keep_daily { --c: #60a5fa } .c2, .keep_weekly { --c: #2dd4bf }
.c3, .keep_last { --c: #fbbf24 } .c4, .keep_monthly { --c: #f472b6 } .c5, .keep_hourly { --c: #38bdf8 }
.c6, .keep_within_days { --c: #a3e635 } .c7, .keep_all { --c: #94a3b8 } .grace_days { --c: #fde047 }
.keep_oldest { --c: #fb7185 } .ttl { --c: #5eead4 } .protected { --c: #cbd5e1 } .gone { --c: #f87171 }
}
"""

SOURCES = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for a page: nothing but what is in it."""


class Line(NamedTuple):
    """A line of a chart, with a number for each day."""

    name: str
    amounts: Sequence[int]


class Mark(NamedTuple):
    """A version in a calendar.

    Attributes:
        created: When it was created.
        rules: The rules behind its verdict; `GONE` alone if it is to be deleted.
        text: What is told of it.
    """

    created: datetime
    rules: Sequence[str]
    text: str

    @property
    def kind(self) -> str:
        """The rule whose color it has."""
        return next((rule for rule in RULES if rule in self.rules), GONE if GONE in self.rules else PROTECTED)


def page(title: str, parts: Iterable[str]) -> str:
    """Return a page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{SOURCES}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_safe(title)}</title><style>{STYLE}</style></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def heading(title: str, *lines: str) -> str:
    """Return the head of a page, with lines below its title."""
    return f"<h1>{_safe(title)}</h1>" + "".join(f'<p class="soft">{_safe(line)}</p>' for line in lines)


def section(title: str, *parts: str) -> str:
    """Return a part of a page with a heading; the parts are HTML."""
    return f"<section><h2>{_safe(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{_safe(text)}</p>"


def html_table(rows: Iterable[Sequence[str]], *, numbers: int = 0, whole: int = 0) -> str:
    """Return a table, whose first row is its head; the last `numbers` columns are numbers, the first `whole` do not wrap."""
    head, *body = rows
    classes = [' class="whole"'] * whole + [""] * (len(head) - whole - numbers) + [' class="number"'] * numbers

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{kind}>{_safe(cell)}</{tag}>" for cell, kind in zip(row, classes, strict=True))

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{lines}</tbody></table>"


def line_chart(title: str, lines: Sequence[Line], begin: datetime, days: Sequence[int], form: Callable[[int], str]) -> str:
    """Draw lines over days.

    Args:
        title: What they show.
        lines: The lines, at least one.
        begin: The first day.
        days: The days that tell their numbers in any case.
        form: Formats a number.
    """
    last = len(lines[0].amounts) - 1
    ticks = _ticks(max(max(line.amounts) for line in lines))
    highest = ticks[-1]
    across, bottom = (WIDTH - LEFT - RIGHT) / max(1, last), TOP + PLOT
    parts = [
        *_grid(ticks, form),
        *_dates(begin, last, across, bottom),
        *(_path(number, line, across, highest) for number, line in enumerate(lines)),
        *_strips(lines, begin, days, across, form),
    ]
    legend = "".join(
        f'<span class="key"><span class="swatch c{number % COLORS}"></span>{_safe(line.name)}</span>'
        for number, line in enumerate(lines)
    )
    return f"<p>{legend}</p>" + _svg(bottom + 24, title, parts)


def _ticks(amount: int) -> range:
    """Return the numbers of an axis, from 0 to an amount or more, whose steps are 1, 2 or 5 times a power of ten."""
    amount = max(amount, 1)
    powers = (10**exponent for exponent in range(len(str(amount))))
    step = next(step for power in powers for step in (power, 2 * power, 5 * power) if step * MAX_STEPS >= amount)
    return range(0, -(-amount // step) * step + 1, step)


def _grid(ticks: range, form: Callable[[int], str]) -> Iterator[str]:
    for tick in ticks:
        y = TOP + PLOT * (1 - tick / ticks[-1])
        yield f'<line class="axis" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
        yield _text(LEFT - 6, y + 4, form(tick), "end")


def _dates(begin: datetime, last: int, across: float, bottom: float) -> Iterator[str]:
    step = max(1, round(last / 6))
    for day in range(0, last + 1, step):
        yield _text(LEFT + day * across, bottom + 16, f"{begin + timedelta(days=day):%Y-%m-%d}", "middle")


def _path(number: int, line: Line, across: float, highest: int) -> str:
    points = " ".join(
        f"{LEFT + day * across:.1f},{TOP + PLOT * (1 - amount / highest):.1f}" for day, amount in enumerate(line.amounts)
    )
    dashed = " dashed" if number >= COLORS else ""
    return f'<polyline class="line c{number % COLORS}{dashed}" points="{points}"/>'


def _strips(
    lines: Sequence[Line], begin: datetime, days: Sequence[int], across: float, form: Callable[[int], str]
) -> Iterator[str]:
    last = len(lines[0].amounts) - 1
    shown = sorted({*range(0, last + 1, -(-(last + 1) // MAX_STRIPS)), *days})
    for day, following in zip(shown, [*shown[1:], last + 1], strict=True):
        told = "\n".join(
            [f"{begin + timedelta(days=day):%Y-%m-%d}", *(f"{line.name}: {form(line.amounts[day])}" for line in lines)]
        )
        x, width = LEFT + (day - 0.5) * across, (following - day) * across
        yield (
            f'<rect class="hit" data-day="{day}" x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{PLOT}">'
            f"<title>{_safe_lines(told)}</title></rect>"
        )


def calendar(marks: Sequence[Mark], end: datetime, timezone: str) -> str:
    """Draw a calendar of the years that have versions, a column a week: each day with a version shows what keeps it.

    Args:
        marks: The versions.
        end: The last day.
        timezone: The IANA time zone of the days.
    """
    zone = ZoneInfo(timezone)
    by_day: defaultdict[date, list[Mark]] = defaultdict(list)
    for mark in sorted(marks, key=lambda mark: mark.created):
        by_day[mark.created.astimezone(zone).date()].append(mark)
    today = end.astimezone(zone).date()
    years = sorted({today.year, *(day.year for day in by_day)})
    drawn = years[-MAX_YEARS:]
    older = sum(len(found) for day, found in by_day.items() if day.year < drawn[0])
    parts: list[str] = []
    for row, year in enumerate(drawn):
        parts += _year(year, row * (9 * CELL + 8), by_day, max(today, *by_day) if by_day else today)
    kinds = {mark.kind for mark in marks}
    legend = "".join(
        f'<span class="key"><span class="swatch {kind}">{letter}</span>{name}</span>'
        for kind, (name, letter) in (RULES | OTHERS).items()
        if kind in kinds
    )
    note = f'<p class="soft">{count(older, "version")} before {drawn[0]} not drawn</p>' if older else ""
    return f"<p>{legend}</p>" + _svg(len(drawn) * (9 * CELL + 8), "Calendar of the versions", parts) + note


def _year(year: int, y: int, by_day: dict[date, list[Mark]], last: date) -> Iterator[str]:
    yield _text(0, y + 11, str(year))
    first = date(year, 1, 1)
    monday = first - timedelta(days=first.weekday())
    left = 40
    for weekday, name in ((0, "Mon"), (2, "Wed"), (4, "Fri")):
        yield _text(left - 5, y + CELL * (weekday + 2) - 3, name, "end")
    # A month of which no day is drawn has no label: that would stand above days of the one before.
    for begin in (begin for month in range(1, 13) if (begin := date(year, month, 1)) <= last):
        week = (begin - monday).days // 7
        yield _text(left + week * CELL, y + 11, f"{begin:%b}")
    for number in range((min(date(year, 12, 31), last) - first).days + 1):
        day = first + timedelta(days=number)
        week, weekday = divmod((day - monday).days, 7)
        yield from _day(day, by_day.get(day, ()), left + week * CELL, y + CELL * (weekday + 1))


def _day(day: date, marks: Sequence[Mark], x: int, y: int) -> Iterator[str]:
    size = CELL - 2
    if not marks:
        yield f'<rect class="none" x="{x}" y="{y}" width="{size}" height="{size}" rx="2"/>'
        return
    kinds = [mark.kind for mark in marks]
    kind = next(kind for kind in (*RULES, PROTECTED, GONE) if kind in kinds)
    stay = sum(each != GONE for each in kinds)
    head = f"{day:%Y-%m-%d}: {count(stay, 'version')} that {'stays' if stay == 1 else 'stay'}"
    head += f", {len(marks) - stay:,} to delete" if stay < len(marks) else ""
    told = [head, *(mark.text for mark in marks[:MAX_LINES])]
    told += [f"and {len(marks) - MAX_LINES:,} more"] if len(marks) > MAX_LINES else []
    yield (
        f'<rect class="day {kind}" data-day="{day}" x="{x}" y="{y}" width="{size}" height="{size}" rx="2">'
        f"<title>{_safe_lines(chr(10).join(told))}</title></rect>"
    )
    yield _text(x + size / 2, y + size - 3, (RULES | OTHERS)[kind][1], "mark")


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{_safe(text)}</text>'


def _svg(height: float, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{_safe(title)}" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}">{"".join(parts)}</svg>'
    )


def _safe(text: str) -> str:
    return escape(printable(text))


def _safe_lines(text: str) -> str:
    return "\n".join(_safe(line) for line in text.split("\n"))
