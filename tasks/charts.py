"""Draws the charts of the report: SVG that follows the light or dark theme, as data URIs that Prefect's markdown shows.

In both charts, a bar is the amount before the run; its first part is the amount left, the rest was deleted or is stale. An SVG
in an `<img>` can load and run nothing, so each is self-contained.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from prefect_artifact_retention.tasks.rendering import label, size
from prefect_artifact_retention.tasks.report import CleanupReport, KeyReport

MAX_BARS = 10
MAX_RUNS = 30
"""Keys or runs in a chart; more make it taller, or its bars thinner."""

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
    """One bar: an amount before and after the run."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one unit, with the function that formats their numbers."""

    unit: str
    bars: Sequence[Bar]
    format: Callable[[int], str]

    @property
    def highest(self) -> int:
        """The amount of the longest bar."""
        return max(1, *(bar.before for bar in self.bars))


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


def targets_chart(versions: Sequence[Bar], amounts: Sequence[Bar], *, deletes: bool) -> Picture | None:
    """Draw versions and bytes before and after a sweep, by target; None without any."""
    if not versions:
        return None
    panels = [Panel("versions", versions[:MAX_RUNS], "{:,}".format), Panel("size of their data", amounts[:MAX_RUNS], size)]
    return _before_and_after("target", panels, deletes=deletes)


def _before_and_after(what: str, panels: Sequence[Panel], *, deletes: bool) -> Picture:
    parts = [
        _text(MARGIN, 28, f"Before and after, by {what}", "title"),
        *_legend(*("left", "deleted") if deletes else ("would be left", "stale")),
        *(_text(MARGIN, TITLE + 33 + row * ROW, _short(bar.name)) for row, bar in enumerate(panels[0].bars)),
    ]
    width = (WIDTH - 2 * MARGIN - NAMES) // len(panels)
    for column, panel in enumerate(panels):
        parts += _across(panel, MARGIN + NAMES + column * width, width)
    summary = "; ".join(f"{bar.name}: {bar.before:,} versions before, {bar.after:,} after" for bar in panels[0].bars[:3])
    height = TITLE + 20 + len(panels[0].bars) * ROW + MARGIN
    return Picture(_svg(height, parts), f"Bar chart of versions and bytes before and after, by {what}. {summary}")


def trend_chart(versions: Sequence[Bar], amounts: Sequence[Bar], what: str = "runs") -> Picture | None:
    """Draw versions and bytes before and after each of the last runs, the oldest first; None for fewer than two runs."""
    if len(versions) < 2:  # noqa: PLR2004 - one run is no trend
        return None
    panels = [Panel("versions", versions[-MAX_RUNS:], "{:,}".format), Panel("size of their data", amounts[-MAX_RUNS:], size)]
    runs = panels[0].bars
    parts = [_text(MARGIN, 28, f"The last {len(runs)} {what}", "title"), *_legend("left", "deleted")]
    width = (WIDTH - 3 * MARGIN) // len(panels)
    for column, panel in enumerate(panels):
        parts += _upright(panel, MARGIN + column * (width + MARGIN), width)
    ends = " to ".join(f"{run.after:,} versions left on {run.name}" for run in (runs[0], runs[-1]))
    return Picture(_svg(TITLE + PLOT + 50, parts), f"Bar chart of the last {len(runs)} {what}, from {ends}")


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
        yield _text(x + scale * bar.before + 6, y + 13, f"{panel.format(bar.before)} → {panel.format(bar.after)}", "soft")


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
