"""The run form and the report in a real browser, in both of Prefect's user interfaces.

Every step leaves a screenshot in `test-output/screenshots`; docs/images has some of them.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import httpx
import pytest
from database import Row
from platforms import ROOT, TIMEOUT_SECONDS, Platform, end
from playwright.sync_api import Locator, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as NotSeenError
from prefect_artifact_retention.tasks.history import Row as HistoryRow

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = ROOT / "test-output" / "screenshots"
KEYS = {
    "report-sales": 60,
    "report-churn": 45,
    "quality-orders": 30,
    "model-fraud-metrics": 24,
    "daily-load": 18,
    "dashboard-link": 9,
}
WIDTH, HEIGHT = 1440, 900
LONG_MS = TIMEOUT_SECONDS * 1000
"""For a run; now and then, a Prefect server on SQLite holds its writes up for a minute."""
MAX_PRESSES = 20
PRESS_AGAIN_MS = 10_000
KEPT = 6
"""By the policy of the checkout."""

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not CHROMIUM, reason="no browser: there is no chromium on the PATH"),
]


@dataclass(frozen=True)
class Interface:
    """One of Prefect's user interfaces, and the theme in which it is looked at."""

    name: str
    prefix: str
    theme: Literal["light", "dark"]


INTERFACES = [
    pytest.param(Interface("v2", "/v2", "light"), id="v2"),
    pytest.param(Interface("v1", "", "dark"), id="v1", marks=pytest.mark.long),
]


@dataclass(frozen=True)
class Visitor:
    """A person with a browser, on one server's user interface."""

    page: Page
    interface: Interface
    address: str

    def go(self, path: str) -> None:
        """Open a page of the user interface."""
        self.page.goto(f"{self.address}{self.interface.prefix}{path}")

    def field(self, name: str, kind: str) -> Locator:
        """The first input of that kind below the label of a form's field."""
        return self.page.locator(f"xpath=//label[contains(., '{name} (Optional)')]/following::{kind}").first

    def choose(self, name: str, option: str) -> None:
        """Choose one of a field's options, by keyboard: a click does not open those of the older interface."""
        select = self.field(name, "fieldset[1]//button")
        select.focus()
        select.press("Space")
        self.page.get_by_role("option", name=option).click()

    def shoot(self, name: str) -> None:
        """Keep a screenshot of the whole page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        # The older interface scrolls inside its page, so the window is made as tall as what is in it.
        self.page.wait_for_timeout(1000)
        tallest = "Math.max(...Array.from(document.querySelectorAll('*')).map(element => element.scrollHeight))"
        self.page.set_viewport_size({"width": WIDTH, "height": min(self.page.evaluate(tallest), 4000)})
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=SCREENSHOTS / f"{name}-{self.interface.name}.png", animations="disabled")
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


@contextmanager
def visitor(address: str, interface: Interface) -> Iterator[Visitor]:
    """A browser with an empty profile, until the context ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=interface.theme)
        page.set_default_timeout(TIMEOUT_SECONDS * 400)
        expect.set_options(timeout=TIMEOUT_SECONDS * 400)
        try:
            yield Visitor(page, interface, address)
        finally:
            browser.close()


def fill(deployed: Platform) -> None:
    """Versions of some keys, of different sizes."""
    deployed.fill([])
    for number, (key, versions) in enumerate(KEYS.items(), start=1):
        deployed.insert([Row(key, timedelta(days=age + 0.5), data="x" * 1500 * number) for age in range(versions)])


def remember_earlier_nights(deployed: Platform) -> None:
    """A history of ten nights, for the trend."""
    nights = [
        HistoryRow(
            when=f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d} 03:00",
            run="delete all keys",
            mode="delete",
            scope="all keys",
            outcome="completed",
            keys_seen=6,
            versions_before=150 + 6 * days,
            stale=10 + days,
            deleted=10 + days,
            versions_after=140 + 5 * days,
            bytes_before=(600 + 20 * days) * 1000,
            bytes_after=(560 + 16 * days) * 1000,
            seconds=1.5,
        ).model_dump()
        for days in range(1, 11)
    ]
    deployed.insert([Row("artifact-retention-history", timedelta(days=1), data=json.dumps(nights), type="table")])


def press_custom_run(seen: Visitor, deployed: Platform) -> None:
    """From the page of `on-demand` to its form."""
    seen.go(f"/deployments/deployment/{deployed.deployment('on-demand')['id']}")
    seen.page.locator("[role=tab], .p-tab").filter(has_text="Description").click()
    expect(seen.page.get_by_text("It never deletes")).to_be_visible()
    seen.shoot("deployment")
    seen.page.get_by_role("button", name="Run", exact=True).click()
    seen.page.get_by_text("Custom run").click()
    seen.field("max_deletions", "input[1]").wait_for()


def submit(seen: Visitor) -> str:
    """Submit the form, and return the flow run that it has started."""
    # A form takes up what was typed, and is ready to be sent, a moment later; until then, the button may do nothing.
    seen.page.wait_for_timeout(1000)
    for _press in range(MAX_PRESSES):
        with suppress(NotSeenError):
            with seen.page.expect_request("**/create_flow_run", timeout=PRESS_AGAIN_MS) as sent:
                seen.page.get_by_role("button", name="Submit").click()
            response = sent.value.response()
            assert response
            if response.status == httpx.codes.SERVICE_UNAVAILABLE:
                # A server on SQLite is now and then too busy for a moment; a person would press again.
                seen.page.wait_for_timeout(1000)
                continue
            assert response.ok, response.text()
            return str(response.json()["id"])
    raise AssertionError("the form is not sent")


def look_at_report(seen: Visitor, words: str, shot: str) -> None:
    """From the report's key page to the newest version: its first line, its chart and its tables are there to be seen."""
    seen.go("/artifacts/key/artifact-retention-report")
    link = seen.page.locator("a[href*='/artifacts/artifact/']").first
    link.click()
    expect(seen.page.get_by_role("heading", name=words, level=1)).to_be_visible()
    charts = seen.page.get_by_role("img", name=re.compile("^Bar chart of"))
    for chart in charts.all():
        expect(chart).to_be_visible()
        assert chart.evaluate("image => image.complete && image.naturalWidth > 500")
    assert charts.count() >= 1
    expect(seen.page.get_by_role("cell", name="report-sales", exact=True)).to_be_visible()
    expect(seen.page.get_by_role("link", name="History", exact=True)).to_be_visible()
    seen.shoot(shot)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_colleague_deletes_by_the_run_form_and_sees_the_report(deployed: Platform, interface: Interface) -> None:
    """On demand, Custom run, two fields changed, Submit, Completed, a picture and a table."""
    fill(deployed)
    remember_earlier_nights(deployed)
    with visitor(deployed.local.address, interface) as seen:
        press_custom_run(seen, deployed)
        seen.choose("mode", "delete")
        seen.field("max_deletions", "input[1]").fill("500")
        seen.shoot("run-form")
        run_id = submit(seen)
        seen.go(f"/runs/flow-run/{run_id}")
        expect(seen.page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=LONG_MS)
        seen.shoot("flow-run")
        look_at_report(seen, f"Deleted {sum(KEYS.values()) - KEPT * len(KEYS)} versions", "report")
        assert seen.page.get_by_role("img", name=re.compile("^Bar chart of the last")).count() == 1
        # One interface follows it in the same tab, the other in a new one.
        seen.page.goto(seen.page.get_by_role("link", name="History", exact=True).get_attribute("href") or "")
        expect(seen.page.get_by_text("artifact-retention-history").first).to_be_visible()
        seen.shoot("history")
        seen.go("/artifacts/key/artifact-retention-progress")
        expect(seen.page.get_by_role("link", name="Reports").first).to_be_visible()
        seen.shoot("progress")
    run = deployed.ask("GET", f"/flow_runs/{run_id}")
    assert (run["state"]["type"], run["parameters"]["mode"], run["parameters"]["max_deletions"]) == (
        "COMPLETED",
        "delete",
        500,
    )
    assert len(deployed.left() & keyed(deployed)) == KEPT * len(KEYS)


@pytest.mark.long
@pytest.mark.parametrize("interface", INTERFACES)
def test_a_form_left_as_it_is_previews_and_a_list_can_be_filled_in(deployed: Platform, interface: Interface) -> None:
    """Nothing is deleted; the report is of the keys asked for."""
    fill(deployed)
    with visitor(deployed.local.address, interface) as seen:
        press_custom_run(seen, deployed)
        seen.field("keys", "button[contains(., 'Add item')]").click()
        seen.field("keys", "fieldset[1]//*[self::textarea or self::input]").fill("report-*")
        run_id = submit(seen)
        seen.go(f"/runs/flow-run/{run_id}")
        expect(seen.page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=LONG_MS)
        stale = KEYS["report-sales"] + KEYS["report-churn"] - 2 * KEPT
        look_at_report(seen, f"Would delete {stale} versions", "report-of-a-preview")
    assert deployed.ask("GET", f"/flow_runs/{run_id}")["parameters"]["keys"] == ["report-*"]
    assert len(deployed.left() & keyed(deployed)) == sum(KEYS.values())


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_wrong_value_does_not_leave_the_form(deployed: Platform, interface: Interface) -> None:
    """The person is told, and no run begins."""
    with visitor(deployed.local.address, interface) as seen:
        press_custom_run(seen, deployed)
        seen.field("refuse_above_percent", "input[1]").fill("200")
        before = deployed.ask("POST", "/flow_runs/count", {})
        seen.page.get_by_role("button", name="Submit").click()
        seen.page.wait_for_timeout(3000)
        # The browser itself tells in one of them, the server's answer in the other.
        by_the_browser = seen.field("refuse_above_percent", "input[1]").evaluate("input => input.validationMessage")
        assert "100" in by_the_browser or seen.page.get_by_text("greater than the maximum of 100").count()
        seen.shoot("refused")
        assert seen.page.get_by_role("button", name="Submit").is_visible()
        assert deployed.ask("POST", "/flow_runs/count", {}) == before


@pytest.mark.long
@pytest.mark.parametrize("interface", INTERFACES[:1])
def test_the_examples_look_as_the_page_for_flow_authors_shows_them(deployed: Platform, interface: Interface) -> None:
    """The report, the log of ten writers, and the progress of a job in its midst."""
    deployed.fill([])
    with visitor(deployed.local.address, interface) as seen:
        for name, key, words in (
            ("daily_report", "daily-report", "200 orders on"),
            ("append_only_log", "load-log", "source 9 is loaded"),
        ):
            subprocess.run([sys.executable, f"examples/{name}.py"], cwd=ROOT, env=deployed.local.environment, check=True)
            look_at_latest(seen, key, words)
        job = "import runpy; runpy.run_path('examples/long_job.py')['long_job'](rows=20_000)"
        process = subprocess.Popen([sys.executable, "-c", job], cwd=ROOT, env=deployed.local.environment)
        try:
            look_at_latest(seen, "load", "Loading: ")
        finally:
            end(process, signal.SIGKILL)


def look_at_latest(seen: Visitor, key: str, words: str) -> None:
    """The newest version of a key, by the link of the key's page."""
    link = seen.page.locator("a[href*='/artifacts/artifact/']").first
    for _try in range(MAX_PRESSES):
        seen.go(f"/artifacts/key/{key}")
        with suppress(NotSeenError, AssertionError):
            link.click(timeout=PRESS_AGAIN_MS)
            expect(seen.page.get_by_text(words).first).to_be_visible(timeout=PRESS_AGAIN_MS)
            seen.shoot(key)
            return
    raise AssertionError(f"{key} never shows {words!r}")


def keyed(deployed: Platform) -> set[str]:
    """The ids of all versions of the keys above."""
    names = ", ".join(f"'{key}'" for key in KEYS)
    return {str(row[0]) for row in deployed.sql(f"SELECT id FROM artifact WHERE key IN ({names})")}
