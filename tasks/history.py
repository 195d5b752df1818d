"""The history: a table artifact that gains one row a run, for the Prefect UI and for the report's trend."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.loading import HISTORY_KEY
from prefect_artifact_retention.policies.words import count
from prefect_artifact_retention.stores.connection import reason
from prefect_artifact_retention.tasks.charts import Bar
from prefect_artifact_retention.tasks.publish import create
from prefect_artifact_retention.tasks.rendering import headline, label, scope_label
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Run

MOST_ROWS = 200
"""More than half a year of nights."""

Row = Mapping[str, Any]


async def extend_history(run: Run, run_name: str) -> list[Row]:
    """Write a new version of the history, with one more row, and return its rows, the newest first.

    Artifacts cannot be appended to, so the latest version is read and written again. Of two runs that end within the same
    instant, one may lose its row.

    Raises:
        StoreError: The server is out of reach, or does not take it.
    """
    latest = await run.store.latest_row(HISTORY_KEY)
    rows = [_row(run.report, run_name), *_rows(latest["data"] if latest else None)][:MOST_ROWS]
    # As Prefect's own create_table_artifact stores it.
    description = f"{count(len(rows), 'run')}, the newest first. The last: {headline(run.report)}"
    try:
        await create(run.store.connection.client, json.dumps(rows), type="table", key=HISTORY_KEY, description=description)
    except httpx.HTTPError as error:
        raise StoreError(f"the history could not be written: {reason(error)}") from None
    return rows


def trend(rows: Sequence[Row], report: CleanupReport) -> tuple[list[Bar], list[Bar]]:
    """The delete runs over the same keys as bars, the oldest first: of versions, and of bytes."""
    scope = scope_label(report.scope)
    runs = [row for row in reversed(rows) if row.get("scope") == scope and row.get("mode") == "delete" and _is_complete(row)]
    return tuple(  # type: ignore[return-value]  # of two
        [Bar(label(str(row["when (UTC)"])), row[f"{what} before"], row[f"{what} after"]) for row in runs]
        for what in ("versions", "bytes")
    )


def _row(report: CleanupReport, run_name: str) -> Row:
    gone = report.deleted + report.already_gone
    return {
        "when (UTC)": f"{report.now:%Y-%m-%d %H:%M}",
        "run": run_name,
        "mode": report.mode,
        "scope": scope_label(report.scope),
        "outcome": report.outcome,
        "keys": len(report.key_reports),
        "versions before": report.versions_seen,
        "stale": report.planned,
        "deleted": report.deleted,
        "versions after": report.versions_seen - gone,
        "bytes before": report.bytes_seen,
        "bytes after": report.bytes_seen - report.bytes_freed,
        "seconds": round(report.duration_seconds, 1),
    }


def _is_complete(row: Row) -> bool:
    numbers = [row.get(f"{what} {side}") for what in ("versions", "bytes") for side in ("before", "after")]
    return all(isinstance(number, int) and number >= 0 for number in numbers) and bool(row["versions before"])


def _rows(data: object) -> list[Row]:
    """Read the rows of a table artifact; whatever else somebody wrote there is no history."""
    try:
        rows = json.loads(data) if isinstance(data, str) else data
    except ValueError:
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
