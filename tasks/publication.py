"""Publishes the result of a run: the report, and the history, which also says where the next delete run begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import httpx
from prefect import runtime
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.loading import HISTORY_KEY, PROGRESS_KEY, REPORT_KEY
from prefect_artifact_retention.stores.connection import reason, ui_address
from prefect_artifact_retention.stores.destination import going_to
from prefect_artifact_retention.tasks.charts import keys_chart, trend_chart
from prefect_artifact_retention.tasks.history import delete_runs, extend_history, stalled_runs, trend
from prefect_artifact_retention.tasks.publish import create_first_accepted
from prefect_artifact_retention.tasks.rendering import headline, markdown
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Run, as_task

MIN_REPORT_CHARS = 500
"""A report that cannot be written with as many characters is not written. With fewer, it would be its headline only."""


async def publish_report(run: Run) -> None:
    """Write a new version of the report and of the history.

    A skipped run writes only its row of the history, so that the latest report stays that of the run before. What fails in the
    history or the charts is a warning of the report, which is published without it.

    Raises:
        StoreError: The server refuses the report.
    """
    report = run.report
    try:
        rows = await extend_history(run, str(runtime.flow_run.name), links())
    except StoreError as error:
        rows = []
        report.warn(str(error))
    except Exception as error:  # noqa: BLE001 - versions may be gone for good, and only the report says so
        rows = []
        report.warn(f"the history could not be written: unexpected {type(error).__name__}")
    if report.mode == "delete":
        report.stopped_at = rows[0].next_start if rows else run.next_start or ""
        report.stalled_runs = stalled_runs(delete_runs(rows, report))
    if report.outcome == "skipped":
        return
    try:
        pictures = [picture for picture in (keys_chart(report), trend_chart(*trend(rows, report))) if picture]
    except Exception as error:  # noqa: BLE001 - as above
        pictures = []
        report.warn(f"the charts could not be drawn: unexpected {type(error).__name__}")
    try:
        await create_first_accepted(
            run.server.connection.client,
            _texts(report, [(picture.alt, picture.data_uri) for picture in pictures]),
            type="markdown",
            key=REPORT_KEY,
            description=headline(report),
        )
    except httpx.HTTPError as error:
        raise StoreError(f"the report could not be written: {reason(error)}") from None


def _texts(report: CleanupReport, pictures: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Render the report, for a proxy that takes no large artifact also without pictures, and cut shorter and shorter."""
    yield markdown(report, links=links(), pictures=pictures)
    because = "a proxy or the server takes no larger artifact (413)"
    before = list(report.warnings)
    if pictures:
        report.warn(f"the report has no charts: {because}")
        yield markdown(report, links=links())
        report.warnings[:] = before
    report.warn(f"the report was cut: {because}")
    whole = markdown(report, links=links())
    length = len(whole) // 2
    while length >= MIN_REPORT_CHARS:
        # At the end of a line, so that no table breaks in a row.
        end = whole.rfind("\n", 0, length)
        yield f"{whole[:end]}\n\nThe rest was cut: a proxy or the server takes no larger artifact.\n"
        length //= 2


def links() -> Mapping[str, str]:
    """Return the addresses of this run's pages in the user interface, by name; empty if no user interface is known."""
    keys = {"Reports": REPORT_KEY, "History": HISTORY_KEY, "Progress": PROGRESS_KEY}
    return run_link() | {name: page for name, key in keys.items() if (page := page_of(key))}


def run_link() -> dict[str, str]:
    """Return the address of this run's page, on the server on which it runs, by its name; empty if that is not known."""
    with going_to(None):
        ui = ui_address()
    return {"This run": f"{ui}/runs/flow-run/{runtime.flow_run.id}"} if ui else {}


def page_of(key: str) -> str:
    """Return the address of the page of a key; empty if no user interface is known."""
    ui = ui_address()
    return f"{ui}/artifacts/key/{key}" if ui else ""


report_task = as_task(publish_report, "report")
