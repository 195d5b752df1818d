"""Write artifacts: for producers, with a hold or a TTL of their own; for this package, its report and its progress.

Prefect's `create_markdown_artifact` and its like drop `metadata`, which is where holds and TTLs live. These helpers keep it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext, TaskRunContext
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.control import HOLD, MOST_TTL_DAYS, TTL_DAYS
from prefect_artifact_retention.policies.loading import PROGRESS_KEY, REPORT_KEY
from prefect_artifact_retention.stores.connection import reason
from prefect_artifact_retention.tasks.rendering import headline, markdown
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Run, Step, as_task

UPDATE_PERCENT = 5
"""Each update of a progress artifact is an event on the server: at most twenty of them a run."""

PLANNING_PERCENT = 20
"""How much of the whole is planning; deleting takes the rest."""

MOST_DESCRIPTION = 200

SCOPE = "artifact-retention-scope"
RESUME_AT = "artifact-retention-resume-at"
MOST_METADATA = 500
"""Characters; the server cuts metadata there."""

REPORTS_READ = 30
"""As many reports as the package keeps."""


async def publish_artifact(  # noqa: PLR0913 - the fields of an artifact
    data: object,
    *,
    type: str,  # noqa: A002 - Prefect's name of the field
    key: str | None = None,
    description: str | None = None,
    hold: bool | date = False,
    ttl_days: float | None = None,
) -> UUID:
    """Create an artifact that says how long it wants to be kept; in a flow or task it belongs to that run.

    Args:
        data: The content, in the shape of its type: markdown text, the rows of a table, a number for progress.
        type: `markdown`, `table`, `link`, `image`, `progress` or a type of your own.
        key: The key whose newest version this becomes.
        description: What the UI shows beside it.
        hold: True, or the last day (UTC), on which no policy may delete it.
        ttl_days: Keep it for as many days after its creation, and no longer.

    Raises:
        ValueError: The TTL is not a positive number of days.
    """
    metadata = {}
    if hold:
        metadata[HOLD] = "true" if hold is True else date(hold.year, hold.month, hold.day).isoformat()
    if ttl_days is not None:
        if not 0 < ttl_days <= MOST_TTL_DAYS:
            raise ValueError(f"ttl_days = {ttl_days!r} is not between 0 and {MOST_TTL_DAYS}")
        metadata[TTL_DAYS] = format(ttl_days, "f").rstrip("0").rstrip(".") if isinstance(ttl_days, float) else str(ttl_days)
    async with get_client() as client:
        return await create(client, data, type=type, key=key, description=description, metadata=metadata)


async def create(  # noqa: PLR0913 - the fields of an artifact
    client: PrefectClient,
    data: object,
    *,
    type: str,  # noqa: A002 - Prefect's name of the field
    key: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> UUID:
    """Create an artifact of the present flow run and task run, with its metadata."""
    flow_run, task_run = FlowRunContext.get(), TaskRunContext.get()
    artifact = await client.create_artifact(
        ArtifactCreate(
            key=key,
            type=type,
            description=description,
            data=data,
            metadata_=dict(metadata or {}) or None,
            task_run_id=task_run.task_run.id if task_run else None,
            flow_run_id=(
                task_run.task_run.flow_run_id if task_run else flow_run.flow_run.id if flow_run and flow_run.flow_run else None
            ),
        )
    )
    return artifact.id


class ProgressArtifact:
    """The keyed progress artifact of a run, updated in place at steps of five per cent.

    Nothing of the run depends on it: where the server refuses an update, the next one may succeed.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._id: UUID | None = None
        self._shown = 0.0
        self._updated = 0.0

    async def start(self, description: str) -> None:
        """Create the artifact at 0 %."""
        with suppress(httpx.HTTPError):
            self._id = await create(self._client, 0.0, type="progress", key=PROGRESS_KEY, description=description)

    async def listen(self, step: Step, done: int, total: int) -> None:
        """Follow a run: a `Listener`."""
        share = done / total if total else 1.0
        if step == "planning":
            percent, words = PLANNING_PERCENT * share, f"Step 1/3: planned {done}/{total} keys"
        else:
            percent = PLANNING_PERCENT + (100 - PLANNING_PERCENT) * share
            words = f"Step 2/3: deleted {done}/{total}"
        if percent - self._shown >= UPDATE_PERCENT and percent < 100 and time.monotonic() - self._updated >= 1:  # noqa: PLR2004
            await self._update(percent, words)

    async def finish(self, description: str, *, complete: bool) -> None:
        """Say how the run ended: 100 % if it did all that it set out to do, or where it stopped."""
        await self._update(100.0 if complete else self._shown, description)

    async def _update(self, percent: float, description: str) -> None:
        if self._id is not None:
            self._shown, self._updated = percent, time.monotonic()
            change = ArtifactUpdate(data=round(percent, 1), description=description[:MOST_DESCRIPTION])
            with suppress(httpx.HTTPError):
                await self._client.update_artifact(self._id, change)


async def publish_report(run: Run) -> None:
    """Write the report as a new version of its key, with where the next delete run begins.

    Raises:
        StoreError: The server does not take it.
    """
    report = run.report
    metadata = {SCOPE: _scope(report), RESUME_AT: report.stopped_at[:MOST_METADATA]} if report.mode == "delete" else {}
    try:
        await create(
            run.store.connection.client,
            markdown(report),
            type="markdown",
            key=REPORT_KEY,
            description=headline(report),
            metadata=metadata,
        )
    except httpx.HTTPError as error:
        raise StoreError(f"the report could not be written: {reason(error)}") from None


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
