"""Draws the charts of the reports: SVG that follows the light or dark theme, as data URIs that Prefect's markdown shows.

In the charts of a cleanup, a bar is the amount before the run; its first part is the amount left, the rest was deleted or is
stale. In those of a checkup, the rest of a bar is what came last, or is expected. An SVG in an `<img>` can load and run
nothing, so each is self-contained.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from prefect_artifact_retention.tasks.checkup import PROJECTED_DAYS, Checkup, KeySize
from prefect_artifact_retention.tasks.rendering import label, size
from prefect_artifact_retention.tasks.report import CleanupReport, KeyReport

MAX_BARS = 10
MAX_RUNS = 30
"""Keys or runs in a chart; more make it taller, or its bars thinner."""

WEEK_DAYS = 7
MAX_DAYS = 14
"""Days in the chart of the growth; more make its bars thinner."""

WIDTH = 760
MARGIN = 20
NAMES = 190
ROW = 26
TITLE = 56
PLOT = 130
NUMBERS = 130
"""Pixels; NUMBERS is the width of the numbers behind a bar."""

MAX_NAME_CHARS = 26
"""Characters of a key that fit into NAMES; a longer key is cut off."""

STYLE = """\
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#334155}
.title{font-size:14px;font-weight:600;fill:#0f172a}.soft{fill:#64748b}.end{text-anchor:end}.middle{text-anchor:middle}
.card{fill:#ffffff;stroke:#e2e8f0}.axis{stroke:#cbd5e1}.kept{fill:#2563eb}.gone{fill:#fbbf24}
@media(prefers-color-scheme:dark){text{fill:#cbd5e1}.title{fill:#f8fafc}.soft{fill:#94a3b8}
.card{fill:#0f172a;stroke:#334155}.axis{stroke:#475569}.kept{fill:#60a5fa}.gone{fill:#b45309}}"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: an amount before and after the run; or all of an amount, and its first part."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one unit, with the function that formats their numbers, and what is written behind a bar."""

    unit: str
    bars: Sequence[Bar]
    format: Callable[[int], str]
    numbers: str = "{before} → {after}"

    @property
    def highest(self) -> int:
        """The amount of the longest bar."""
        return max(1, *(bar.before for bar in self.bars))

    def text(self, bar: Bar) -> str:
        """The numbers of a bar."""
        return self.numbers.format(before=self.format(bar.before), after=self.format(bar.after))


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG document and the text for those who cannot see it."""

    svg: str
    alt: str

    @property
    def data_uri(self) -> str:
        """The picture as a data URI, for an image in markdown."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


def keys_chart(report: CleanupReport) -> Picture | None:
    """Draw versions and bytes before and after, for the keys with the most stale versions; None if nothing is stale."""
    stale = sorted((key for key in report.key_reports if key.planned), key=lambda key: key.planned, reverse=True)[:MAX_BARS]
    if not stale:
        return None
    deletes = report.mode == "delete"
    panels = [
        Panel("versions", [_versions(key, deletes=deletes) for key in stale], "{:,}".format),
        Panel("size of their data", [_bytes(key, deletes=deletes) for key in stale], size),
    ]
    return _before_and_after("key", panels, deletes=deletes)


def largest_chart(checkup: Checkup) -> Picture | None:
    """Draw versions and bytes of the largest keys, and how much of that the last week has added; None without versions."""
    if not (largest := checkup.most_bytes[:MAX_BARS]):
        return None
    versions = [Bar(label(key.key), key.versions, key.versions - key.versions_of_week) for key in largest]
    amounts = [Bar(label(key.key), key.bytes, key.bytes - key.bytes_of_week) for key in largest]
    panels = [
        Panel("versions", versions, "{:,}".format, numbers="{before}"),
        Panel("size of their data", amounts, size, numbers="{before}"),
    ]
    summary = "; ".join(_in_words(key) for key in largest[:3])
    return Picture(
        _by_name("The largest keys", ("older", "of the last week"), panels), f"Bar chart of the largest keys. {summary}"
    )


def _in_words(key: KeySize) -> str:
    return f"{label(key.key)}: {size(key.bytes)}, of which {size(key.bytes_of_week)} of the last week"


def growth_chart(checkup: Checkup) -> Picture | None:
    """Draw the bytes that each day and week have added, and their sum as it was and will be; None without versions.

    What has been deleted meanwhile is in none of them.
    """
    if not checkup.total.versions:
        return None
    oldest_first = checkup.growth[::-1]
    weeks = [oldest_first[start : start + WEEK_DAYS] for start in range(0, len(oldest_first), WEEK_DAYS)]
    names = [f"{week[-1].until:%m-%d}" for week in weeks]
    a_week = [sum(day.bytes for day in week) for week in weeks]
    sums = [checkup.total.bytes - sum(a_week[number + 1 :]) for number in range(len(weeks))]
    panels = [
        Panel("a day", [Bar(f"{day.until:%m-%d}", day.bytes, day.bytes) for day in oldest_first[-MAX_DAYS:]], size),
        Panel("a week", [Bar(*each) for each in zip(names, a_week, a_week, strict=True)], size),
        Panel(
            "in all",
            [
                *(Bar(*each) for each in zip(names, sums, sums, strict=True)),
                Bar(f"in {PROJECTED_DAYS} days", checkup.projected_bytes, checkup.total.bytes),
            ],
            size,
        ),
    ]
    summary = (
        f"{size(checkup.total.bytes_of_day)} in the last day, {size(checkup.total.bytes_of_week)} in the last week, "
        f"{size(checkup.total.bytes)} in all, {size(checkup.projected_bytes)} in {PROJECTED_DAYS} days"
    )
    svg = _over_time("Growth, as far as it is still there", ("there today", "expected"), panels)
    return Picture(svg, f"Bar chart of the growth: {summary}")


def targets_chart(versions: Sequence[Bar], amounts: Sequence[Bar], *, deletes: bool) -> Picture | None:
    """Draw versions and bytes before and after a sweep, by target; None without any."""
    if not versions:
        return None
    panels = [Panel("versions", versions[:MAX_RUNS], "{:,}".format), Panel("size of their data", amounts[:MAX_RUNS], size)]
    return _before_and_after("target", panels, deletes=deletes)


def _before_and_after(what: str, panels: Sequence[Panel], *, deletes: bool) -> Picture:
    legend = ("left", "deleted") if deletes else ("would be left", "stale")
    summary = "; ".join(f"{bar.name}: {bar.before:,} versions before, {bar.after:,} after" for bar in panels[0].bars[:3])
    svg = _by_name(f"Before and after, by {what}", legend, panels)
    return Picture(svg, f"Bar chart of versions and bytes before and after, by {what}. {summary}")


def trend_chart(versions: Sequence[Bar], amounts: Sequence[Bar], what: str = "runs") -> Picture | None:
    """Draw versions and bytes before and after each of the last runs, the oldest first; None for fewer than two runs."""
    if len(versions) < 2:  # noqa: PLR2004 - one run is no trend
        return None
    panels = [Panel("versions", versions[-MAX_RUNS:], "{:,}".format), Panel("size of their data", amounts[-MAX_RUNS:], size)]
    runs = panels[0].bars
    ends = " to ".join(f"{run.after:,} versions left on {run.name}" for run in (runs[0], runs[-1]))
    svg = _over_time(f"The last {len(runs)} {what}", ("left", "deleted"), panels)
    return Picture(svg, f"Bar chart of the last {len(runs)} {what}, from {ends}")


def _by_name(title: str, legend: tuple[str, str], panels: Sequence[Panel]) -> str:
    """Draw panels of horizontal bars, whose names are those of the first one's."""
    parts = [
        _text(MARGIN, 28, title, "title"),
        *_legend(*legend),
        *(_text(MARGIN, TITLE + 33 + row * ROW, _short(bar.name)) for row, bar in enumerate(panels[0].bars)),
    ]
    width = (WIDTH - 2 * MARGIN - NAMES) // len(panels)
    for column, panel in enumerate(panels):
        parts += _across(panel, MARGIN + NAMES + column * width, width)
    return _svg(TITLE + 20 + len(panels[0].bars) * ROW + MARGIN, parts)


def _over_time(title: str, legend: tuple[str, str], panels: Sequence[Panel]) -> str:
    """Draw panels of vertical bars, the oldest first."""
    parts = [_text(MARGIN, 28, title, "title"), *_legend(*legend)]
    width = (WIDTH - (len(panels) + 1) * MARGIN) // len(panels)
    for column, panel in enumerate(panels):
        parts += _upright(panel, MARGIN + column * (width + MARGIN), width)
    return _svg(TITLE + PLOT + 50, parts)


def _versions(key: KeyReport, *, deletes: bool) -> Bar:
    gone = key.deleted + key.already_gone if deletes else key.planned
    return Bar(label(key.key), key.versions, key.versions - gone)


def _bytes(key: KeyReport, *, deletes: bool) -> Bar:
    return Bar(label(key.key), key.bytes_seen, max(0, key.bytes_seen - (key.bytes_freed if deletes else key.bytes)))


def _across(panel: Panel, x: float, width: float) -> Iterator[str]:
    """Draw horizontal bars, one a row, with their numbers behind them."""
    yield _text(x, TITLE + 8, panel.unit, "soft")
    scale = (width - NUMBERS) / panel.highest
    for row, bar in enumerate(panel.bars):
        y = TITLE + 20 + row * ROW
        yield _rect(x, y, scale * bar.before, 16, "gone")
        yield _rect(x, y, scale * bar.after, 16, "kept")
        yield _text(x + scale * bar.before + 6, y + 13, panel.text(bar), "soft")


def _upright(panel: Panel, x: float, width: float) -> Iterator[str]:
    """Draw vertical bars above an axis with the first and the last name."""
    bottom = TITLE + 20 + PLOT
    step = width / len(panel.bars)
    yield _text(x, TITLE + 8, f"{panel.unit}, at most {panel.format(panel.highest)}", "soft")
    wide = min(step * 0.8, 40)
    for column, bar in enumerate(panel.bars):
        for amount, kind in ((bar.before, "gone"), (bar.after, "kept")):
            tall = PLOT * amount / panel.highest
            yield _rect(x + (column + 0.5) * step - wide / 2, bottom - tall, wide, tall, kind)
    yield f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x + width}" y2="{bottom}"/>'
    yield _text(x, bottom + 18, panel.bars[0].name, "soft")
    yield _text(x + width, bottom + 18, panel.bars[-1].name, "soft end")


def _legend(left: str, gone: str) -> Iterator[str]:
    x = float(WIDTH - MARGIN)
    for text, kind in ((gone, "gone"), (left, "kept")):
        x -= 7 * len(text)
        yield _text(x, 28, text, "soft")
        x -= 18
        yield _rect(x, 18, 12, 12, kind)
        x -= 16


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…"


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" class="{kind}"/>'


def _svg(height: int, parts: Iterable[str]) -> str:
    card = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" class="card"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
        f"<style>{STYLE}</style>{card}{''.join(parts)}</svg>"
    )
