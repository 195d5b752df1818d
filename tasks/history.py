"""The history: a table artifact with a row for each run, for the Prefect UI and for the report's trend chart."""

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
from prefect_artifact_retention.tasks.publish import create_first_accepted
from prefect_artifact_retention.tasks.rendering import headline, label, scope_label, with_links
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Run
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

MAX_HISTORY_ROWS = 200
"""Rows kept, more than half a year of nights. With more, the artifact grows with each run for longer."""

HISTORY_VERSIONS_READ = 5
"""Versions of the history that are merged. If more runs than this end in the same instant, a row is lost."""

Amount = Annotated[int, Field(ge=0, le=10**15, strict=True)]
MAX_TEXT_CHARS = 500
ShortText = Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(printable)]
"""A bounded text, because anybody may write a version of the history; a row with a longer one is dropped."""


class Row(BaseModel):
    """The row of one run. The aliases are the names of the table's columns."""

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
    """Write a new version of the history with a row for this run, and return its rows, the newest first.

    An artifact cannot be appended to, so the rows are read and written again. Runs that end in the same instant do not see
    each other's rows; the next run merges the versions that they wrote.

    Args:
        run: The run.
        run_name: The name of its flow run.
        links: Addresses by name: "This run" goes into the row, "Reports" into the description.

    Raises:
        StoreError: The server cannot be reached, or refuses the artifact.
    """
    versions = await run.server.newest_rows(HISTORY_KEY, HISTORY_VERSIONS_READ)
    before = _merged([_rows(version.get("data")) for version in versions])
    rows = [_row(run.report, run_name, links), *before][:MAX_HISTORY_ROWS]
    description = with_links(
        f"{count(len(rows), 'run')}, the newest first. The last: {headline(run.report)}", links, "Reports"
    )
    lengths = _halved(len(rows))
    # As Prefect's own create_table_artifact stores it.
    tables = (json.dumps([row.model_dump() for row in rows[:length]]) for length in lengths)
    client = run.server.connection.client
    try:
        taken = await create_first_accepted(client, tables, type="table", key=HISTORY_KEY, description=description)
    except httpx.HTTPError as error:
        raise StoreError(f"the history could not be written: {reason(error)}") from None
    if taken:
        run.report.warn(
            f"the history was cut to its last {lengths[taken]} runs: a proxy or the server takes no larger artifact (413)"
        )
    return rows[: lengths[taken]]


def _halved(length: int) -> list[int]:
    """Return a length and its halves, down to one."""
    return [length >> halvings for halvings in range(length.bit_length())]


def trend(rows: Sequence[Row], report: CleanupReport) -> tuple[list[Bar], list[Bar]]:
    """Return the delete runs of the same scope as bars of versions and bars of bytes, the oldest first."""
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
        # A version that was updated after the plan may have freed more than the plan saw.
        bytes_after=sum(max(0, key.bytes_seen - key.bytes_freed) for key in report.key_reports),
        seconds=round(report.duration_seconds, 1),
        link=links.get("This run", ""),
    )


def _merged(versions: Sequence[Sequence[Row]]) -> list[Row]:
    """Merge the rows of several versions of the history, the newest version first."""
    rows: list[Row] = []
    for version in reversed(versions):
        known = set(rows)
        rows = [*(row for row in version if row not in known), *rows]
    return rows


def _rows(data: object) -> list[Row]:
    """Read the rows of a table artifact; anything that is no valid row is dropped."""
    try:
        rows = json.loads(data) if isinstance(data, str) else data
    except (ValueError, RecursionError):
        return []
    found: list[Row] = []
    for row in rows if isinstance(rows, list) else []:
        with suppress(ValidationError):
            found.append(Row.model_validate(row))
    return found
