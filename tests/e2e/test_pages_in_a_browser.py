"""The pages of `simulate` and `explain` in a real browser: nothing goes wrong, and what they draw is what they say.

Each leaves a screenshot in `test-output/screenshots`; docs/images has one of them.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest
from database import Row, series
from fake import FakeServer
from platforms import ROOT
from playwright.sync_api import Page, sync_playwright
from prefect_artifact_retention.flows.cli import main

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SCREENSHOTS = ROOT / "test-output" / "screenshots"
POLICIES = """\
[[policies]]
name = "audit"
match_keys = ["audit-*"]
keep_all = true

[[policies]]
name = "days, weeks & months"
match_keys = ["report-*"]
keep_daily = 7
keep_weekly = 4
keep_monthly = 12
timezone = "Europe/Zurich"

[[policies]]
name = "everything <else>"
keep_last = 10
keep_within_days = 30
"""
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="no browser: there is no chromium on the PATH"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page of a simulation, and that of a key."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "retention.toml").write_text(POLICIES, encoding="utf-8")
    config = ["--config", str(folder / "retention.toml")]

    async def write() -> None:
        with FakeServer(clock=lambda: NOW).listening() as server, server.active():
            keys = {"report-sales": 40, "report-churn": 40, "audit-access": 20, "load-orders": 60}
            rows = [row for key, number in keys.items() for row in series(key, (age + 0.3 for age in range(number)))]
            held = Row("report-sales", timedelta(days=41), metadata={"retention-hold": "true"})
            await server.database.insert([*rows, held])
            for arguments in (["simulate"], ["explain", "report-sales"]):
                page = str(folder / f"{arguments[0]}.html")
                assert await asyncio.to_thread(main, [*arguments, "--html", page, *config]) == 0

    with patch.dict(os.environ):
        asyncio.run(write())
    return folder


@contextmanager
def opened(file: Path, theme: Theme) -> Iterator[tuple[Page, list[str]]]:
    """A page in a browser without a network, with what goes wrong in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 960, "height": 800}, color_scheme=theme)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url))
        page.goto(file.as_uri())
        try:
            assert wrong.pop(0) == file.as_uri()
            yield page, wrong
        finally:
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=SCREENSHOTS / f"page-of-{file.stem}-{theme}.png", full_page=True)
            browser.close()


def color(page: Page, selector: str, property_: str) -> str:
    """A computed color."""
    script = f"element => getComputedStyle(element).getPropertyValue('{property_}')"
    return str(page.locator(selector).first.evaluate(script))


def number(text: str) -> int:
    """The versions in a cell of the table, or in a line of a chart's title."""
    found = re.search(r"([\d,]+)(?: \(|$)", text)
    assert found, text
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("theme", THEMES)
def test_the_pictures_of_a_simulation_have_the_numbers_of_its_table(pages: Path, theme: Theme) -> None:
    """At each milestone, and in each calendar; in a light and in a dark browser, without an error and without a request."""
    with opened(pages / "simulate.html", theme) as (page, wrong):
        rows = [row.locator("td").all_inner_texts() for row in page.locator("section table tbody tr").all()]
        assert [row[0] for row in rows] == ["audit", "days, weeks & months", "everything <else>"]
        charts = page.locator("svg[aria-label*='over time']")
        assert charts.count() == 2
        for column, day in ((3, 30), (4, 365)):
            for chart, what in ((0, 0), (1, 1)):
                told = charts.nth(chart).locator(f"rect[data-day='{day}'] title").text_content() or ""
                lines = told.splitlines()[1:]
                cells = [re.fullmatch(r"(.*) \((.*)\)", row[column]) for row in rows]
                expected = [f"{row[0]}: {cell[what + 1]}" for row, cell in zip(rows, cells, strict=True) if cell]
                assert lines == expected
        heights = (
            charts.nth(0)
            .locator("polyline")
            .evaluate_all("lines => lines.map(line => { const p = line.points; return p.getItem(p.numberOfItems - 1).y })")
        )
        bottom = float(charts.nth(0).locator("line").first.get_attribute("y1") or "")
        ends = [number(row[4]) for row in rows]
        for height, end in zip(heights, ends, strict=True):
            assert (bottom - height) / (bottom - heights[0]) == pytest.approx(end / ends[0], abs=0.01)
        calendars = page.locator("svg[aria-label^='Calendar']")
        stays = [
            sum(
                number(title.split("\n")[0].split(": ")[1].split(" version")[0])
                for title in calendars.nth(index).locator("rect.day title").all_text_contents()
            )
            for index in range(calendars.count())
        ]
        headings = page.locator("section p", has_text=" of report-").or_(page.locator("section p", has_text=" of audit-"))
        assert [int(text.split()[0]) for text in headings.all_inner_texts()] == stays[:2]
        assert wrong == []
        background, ink = (color(page, "section", "background-color"), color(page, "td", "color"))
        assert (background, ink) == {
            "light": ("rgb(255, 255, 255)", "rgb(30, 41, 59)"),
            "dark": ("rgb(15, 23, 42)", "rgb(226, 232, 240)"),
        }[theme]


@pytest.mark.parametrize("theme", THEMES)
def test_the_calendar_of_a_key_has_each_version_of_its_table(pages: Path, theme: Theme) -> None:
    """Those that stay by their rule, the others as to delete; and each says when it goes."""
    with opened(pages / "explain.html", theme) as (page, wrong):
        rows = [row.locator("td").all_inner_texts() for row in page.locator("table tbody tr").all()]
        days = page.locator("svg rect.day")
        assert len(rows) == days.count() == 41
        kept = sum(row[1] == "keep" for row in rows)
        assert page.locator("h1").inner_text() == f"report-sales: {kept} kept, {41 - kept} to delete"
        assert page.locator("svg rect.gone").count() == 41 - kept
        assert page.locator("svg rect.protected").count() == 1
        for row in rows:
            title = page.locator(f"svg rect[data-day='{row[2][:10]}'] title").text_content() or ""
            assert f"goes {row[4]}; version {row[0]}" in title
        assert wrong == []
        assert color(page, "svg rect.gone", "fill") == {"light": "rgb(220, 38, 38)", "dark": "rgb(248, 113, 113)"}[theme]
