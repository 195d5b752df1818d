"""The progress artifact of a run, updated in place, by which other runs also see that this one is deleting.

Two concurrent delete runs are harmless, but duplicate work, so the younger one is skipped. There is no lock and no lease: a
run counts as active while its progress artifact is in the deleting phase and was updated within `HEARTBEAT_TIMEOUT`, and its
flow run has not ended. So a run that was killed blocks others for no longer than `HEARTBEAT_TIMEOUT`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.actions import ArtifactUpdate
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.loading import OWN_KEYS, PROGRESS_KEY
from prefect_artifact_retention.stores.api import FlowRun
from prefect_artifact_retention.stores.connection import Connection, shielded
from prefect_artifact_retention.tasks.publish import create
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.run import Run, Step

UPDATE_PERCENT = 5
"""The step of an update. Each update is an event on the server, so a smaller step writes more rows to its database."""

HEARTBEAT_SECONDS = 120
"""The longest time between two updates. With more, `HEARTBEAT_TIMEOUT` may take a slow run for a dead one."""

HEARTBEAT_TIMEOUT = timedelta(minutes=10)
"""How long after its last update a run counts as active. With less, a slow run is taken for a dead one; with more, a run that
was killed blocks the next one for longer."""

PLANNING_PERCENT = 20
"""The share of planning in the progress; the rest is deleting."""

MAX_DESCRIPTION_CHARS = 500
"""A longer description is cut off."""

PHASE = "artifact-retention-phase"
DELETING = "deleting"

PROGRESS_VERSIONS_READ = 50
"""Progress artifacts searched for active runs, the last updated first. With fewer, an active run among many may be missed."""


class ProgressArtifact:
    """The keyed progress artifact of a run.

    The run does not depend on it: if the server refuses an update, the run goes on, and the next update may succeed.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._id: UUID | None = None
        self._shown = 0.0
        self._updated = 0.0
        self._phase: Mapping[str, str] = {}

    async def start(self, description: str) -> None:
        """Create the artifact at 0 %."""
        with suppress(httpx.HTTPError, StoreError):
            self._id = await create(self.connection.client, 0.0, type="progress", key=PROGRESS_KEY, description=description)

    async def announce_deleting(self) -> None:
        """Set the deleting phase, once the run is past its guard."""
        self._phase = {PHASE: DELETING}
        await self._update(PLANNING_PERCENT, "Step 2/3: deleting")

    async def listen(self, step: Step, done: int, total: int) -> None:
        """Update the artifact if the progress warrants it; a `Listener` of the run."""
        share = done / total if total else 1.0
        if step == "planning":
            percent, description = PLANNING_PERCENT * share, f"Step 1/3: planned {done}/{total} keys"
        else:
            percent = PLANNING_PERCENT + (100 - PLANNING_PERCENT) * share
            description = f"Step 2/3: deleted {done}/{total}"
        since = time.monotonic() - self._updated
        if (percent - self._shown >= UPDATE_PERCENT and percent < 100 and since >= 1) or since >= HEARTBEAT_SECONDS:  # noqa: PLR2004
            await self._update(min(percent, 99.0), description)

    async def finish(self, description: str, *, complete: bool) -> None:
        """Leave the deleting phase, with the description of the outcome, at 100 % if the run is complete."""
        self._phase = {}
        await self._update(100.0 if complete else self._shown, description)

    async def _update(self, percent: float, description: str) -> None:
        if self._id is not None:
            self._shown, self._updated = percent, time.monotonic()
            # An update replaces all metadata.
            change = ArtifactUpdate(
                data=round(percent, 1), description=description[:MAX_DESCRIPTION_CHARS], metadata_=dict(self._phase)
            )
            with suppress(httpx.HTTPError):
                # In a slot of its own: a server on SQLite takes one write at a time.
                async with self.connection.reserve_slot():
                    await shielded(self.connection.client.update_artifact(self._id, change))


async def older_run(run: Run, own_id: UUID) -> str:
    """Describe an older active run that deletes some of this run's keys; empty if there is none.

    Args:
        run: The current run, after `discover`.
        own_id: The id of its flow run.

    Raises:
        StoreError: The server cannot be reached, or sends an unexpected answer.
    """
    now = await run.server.now()
    rows = await run.server.newest_rows(PROGRESS_KEY, PROGRESS_VERSIONS_READ, sort="UPDATED_DESC")
    deleting = {UUID(row["flow_run_id"]) for row in rows if _is_deleting(row, now)} - {own_id}
    if not deleting:
        return ""
    runs = await run.server.flow_runs([own_id, *deleting])
    own = next((each for each in runs if each.id == own_id), None)
    if own is None:
        raise StoreError(f"the flow run {own_id} of this run is no longer there")
    keys = [each.key for each in run.collections if each.key not in OWN_KEYS]
    for other in sorted(runs, key=_age):
        if not other.finished and _age(other) < _age(own) and _overlap(run.report.scope, keys, other):
            alive = max(datetime.fromisoformat(row["updated"]) for row in rows if row["flow_run_id"] == str(other.id))
            return (
                f"{label(other.name)} ({other.id}) has been at work since {other.started:%Y-%m-%d %H:%M:%S} UTC, "
                f"and was last alive at {alive.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
            )
    return ""


def _is_deleting(row: Mapping[str, Any], now: datetime) -> bool:
    phase = (row.get("metadata_") or {}).get(PHASE)
    return bool(row["flow_run_id"]) and phase == DELETING and now - datetime.fromisoformat(row["updated"]) <= HEARTBEAT_TIMEOUT


def _age(run: FlowRun) -> tuple[datetime, UUID]:
    return run.started, run.id


def _overlap(scope: Iterable[str], keys: Iterable[str], other: FlowRun) -> bool:
    # Anybody may write an artifact of this key, so the parameters may be those of any flow.
    given = other.parameters.get("keys")
    globs = [glob for glob in given if isinstance(glob, str)] if isinstance(given, list) else []
    return not (scope or globs) or any(fnmatchcase(key, glob) for key in keys for glob in globs or ["*"])
