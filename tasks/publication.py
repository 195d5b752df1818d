"""What a run leaves behind for people: the report, the history, and where the next delete run begins."""

from __future__ import annotations

import hashlib

import httpx
from prefect import runtime
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.loading import HISTORY_KEY, PROGRESS_KEY, REPORT_KEY
from prefect_artifact_retention.stores.connection import reason
from prefect_artifact_retention.tasks.charts import keys_chart, trend_chart
from prefect_artifact_retention.tasks.history import extend_history, trend
from prefect_artifact_retention.tasks.publish import create
from prefect_artifact_retention.tasks.rendering import headline, markdown
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Run, as_task

SCOPE = "artifact-retention-scope"
RESUME_AT = "artifact-retention-resume-at"
MOST_METADATA = 500
"""Characters; the server cuts metadata there."""

REPORTS_READ = 30
"""As many reports as the package keeps."""


async def publish_report(run: Run) -> None:
    """Write the report as a new version of its key, with where the next delete run begins, and the history with one more row.

    A skipped run has nothing to report, and leaves the report of the last one where it is.

    Raises:
        StoreError: The server does not take the report.
    """
    report = run.report
    try:
        rows = await extend_history(run, str(runtime.flow_run.name))
    except StoreError as error:
        rows = []
        report.warn(str(error))
    if report.outcome == "skipped":
        return
    pictures = [picture for picture in (keys_chart(report), trend_chart(*trend(rows, report))) if picture]
    metadata = {SCOPE: _scope(report), RESUME_AT: report.stopped_at[:MOST_METADATA]} if report.mode == "delete" else {}
    try:
        await create(
            run.store.connection.client,
            markdown(report, links=_links(), pictures=[(picture.alt, picture.data_uri) for picture in pictures]),
            type="markdown",
            key=REPORT_KEY,
            description=headline(report),
            metadata=metadata,
        )
    except httpx.HTTPError as error:
        raise StoreError(f"the report could not be written: {reason(error)}") from None


def key_url(key: str) -> str:
    """Where Prefect's user interface shows a key; empty if no user interface is known."""
    ui = (get_current_settings().ui_url or "").rstrip("/")
    return f"{ui}/artifacts/key/{key}" if ui else ""


def _links() -> list[tuple[str, str]]:
    """The pages that belong to the report, by name; none where no user interface is known."""
    flow_run = url_for("flow-run", obj_id=str(runtime.flow_run.id)) if runtime.flow_run.id else None
    pages = [
        ("This run", flow_run or ""),
        ("History of all runs", key_url(HISTORY_KEY)),
        ("Progress", key_url(PROGRESS_KEY)),
        ("Earlier reports", key_url(REPORT_KEY)),
    ]
    return [(name, url) for name, url in pages if url]


async def read_resume_key(run: Run) -> str:
    """Read where the last delete run over the same keys stopped; empty if it did not, or if there was none lately."""
    for row in await run.store.newest_rows(REPORT_KEY, REPORTS_READ):
        metadata = row.get("metadata_") or {}
        if metadata.get(SCOPE) == _scope(run.report):
            return str(metadata.get(RESUME_AT, ""))
    return ""


def _scope(report: CleanupReport) -> str:
    return hashlib.sha256("\n".join(report.scope).encode()).hexdigest()[:12]


report_task = as_task(publish_report, "report")
