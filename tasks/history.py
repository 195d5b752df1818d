"""The history: a table artifact that gains one row a run, for the Prefect UI and for the report's trend."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated

import httpx
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.loading import HISTORY_KEY
from prefect_artifact_retention.stores.connection import reason
from prefect_artifact_retention.tasks.charts import Bar
from prefect_artifact_retention.tasks.publish import create
from prefect_artifact_retention.tasks.rendering import headline, label, scope_label, with_links
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Run
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

MAX_HISTORY_ROWS = 200
"""More than half a year of nights."""

HISTORY_VERSIONS_READ = 5
"""As many runs may end in the same instant, and none loses its row."""

Amount = Annotated[int, Field(ge=0, le=10**15, strict=True)]
MAX_TEXT_CHARS = 500
ShortText = Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(printable)]
"""Anybody may write a history."""


class Row(BaseModel):
    """One run, by the names that the table's columns have."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    when: ShortText = Field(alias="when (UTC)")
    run: ShortText
    mode: ShortText
    scope: ShortText
    outcome: ShortText
    keys_seen: Amount = Field(alias="keys")
    versions_before: Amount = Field(alias="versions before")
    stale: Amount
    deleted: Amount
    versions_after: Amount = Field(alias="versions after")
    bytes_before: Amount = Field(alias="bytes before")
    bytes_after: Amount = Field(alias="bytes after")
    seconds: float = Field(ge=0, allow_inf_nan=False)
    link: ShortText = ""


async def extend_history(run: Run, run_name: str, links: Mapping[str, str]) -> list[Row]:
    """Write a new version of the history, with one more row, and return its rows, the newest first.

    Artifacts cannot be appended to, so what is there is read and written again. Runs that end in the same instant do not see
    each other's row, and only one of them writes the latest version; the next run takes up the rows of the others.

    Args:
        run: The run.
        run_name: The name of its flow run.
        links: Addresses of the pages that belong to it: "This run" goes into its row, "Reports" into the description.

    Raises:
        StoreError: The server is out of reach, or does not take it.
    """
    versions = await run.server.newest_rows(HISTORY_KEY, HISTORY_VERSIONS_READ)
    before = _merged([_rows(version.get("data")) for version in versions])
    rows = [_row(run.report, run_name, links), *before][:MAX_HISTORY_ROWS]
    description = with_links(
        f"{count(len(rows), 'run')}, the newest first. The last: {headline(run.report)}", links, "Reports"
    )
    # As Prefect's own create_table_artifact stores it.
    data = json.dumps([row.model_dump() for row in rows])
    try:
        await create(run.server.connection.client, data, type="table", key=HISTORY_KEY, description=description)
    except httpx.HTTPError as error:
        raise StoreError(f"the history could not be written: {reason(error)}") from None
    return rows


def trend(rows: Sequence[Row], report: CleanupReport) -> tuple[list[Bar], list[Bar]]:
    """The delete runs over the same keys as bars, the oldest first: of versions, and of bytes."""
    scope = scope_label(report.scope)[:MAX_TEXT_CHARS]
    runs = [row for row in reversed(rows) if row.scope == scope and row.mode == "delete" and row.versions_before]
    return (
        [Bar(label(row.when), row.versions_before, row.versions_after) for row in runs],
        [Bar(label(row.when), row.bytes_before, row.bytes_after) for row in runs],
    )


def _row(report: CleanupReport, run_name: str, links: Mapping[str, str]) -> Row:
    return Row(
        when=f"{report.now:%Y-%m-%d %H:%M}",
        run=printable(run_name)[:MAX_TEXT_CHARS],
        mode=report.mode,
        scope=scope_label(report.scope)[:MAX_TEXT_CHARS],
        outcome=report.outcome,
        keys_seen=len(report.key_reports),
        versions_before=report.versions_seen,
        stale=report.planned,
        deleted=report.deleted,
        versions_after=report.versions_seen - report.deleted - report.already_gone,
        bytes_before=report.bytes_seen,
        bytes_after=report.bytes_seen - report.bytes_freed,
        seconds=round(report.duration_seconds, 1),
        link=links.get("This run", ""),
    )


def _merged(versions: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of some versions of the history, which are the newest first, as its rows are."""
    rows: list[Row] = []
    for version in reversed(versions):
        known = set(rows)
        rows = [*(row for row in version if row not in known), *rows]
    return rows


def _rows(data: object) -> list[Row]:
    """Read the rows of a table artifact; whatever else somebody wrote there is no history."""
    try:
        rows = json.loads(data) if isinstance(data, str) else data
    except (ValueError, RecursionError):
        return []
    found: list[Row] = []
    for row in rows if isinstance(rows, list) else []:
        with suppress(ValidationError):
            found.append(Row.model_validate(row))
    return found
