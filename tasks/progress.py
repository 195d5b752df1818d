"""How far a run is: a progress artifact, updated in place, that also tells other runs that this one is at work.

Two delete runs at once are harmless, only wasteful, so the younger gives way. Nothing is locked and no lease is held: a run is
taken to be at work while its progress artifact says that it deletes and was updated lately, and its flow run has not ended.
One that was killed, or whose server was restarted in the middle, holds nobody up for longer than `HEARTBEAT_TIMEOUT`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
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
"""Each update of a progress artifact is an event on the server: at most twenty of them a run, and one every two minutes."""

HEARTBEAT_SECONDS = 120
"""A run that is deleting says so at least this often."""

HEARTBEAT_TIMEOUT = timedelta(minutes=10)
"""How long after its last update a run is taken to be at work."""

PLANNING_PERCENT = 20
"""How much of the whole is planning; deleting takes the rest."""

MAX_DESCRIPTION_CHARS = 500

PHASE = "artifact-retention-phase"
DELETING = "deleting"

PROGRESS_VERSIONS_READ = 50
"""Progress artifacts looked at, the last updated first."""


class ProgressArtifact:
    """The keyed progress artifact of a run, updated in place at steps of five per cent.

    Nothing of the run depends on it: where the server refuses an update, the next one may succeed.
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
        """Say that the run is past its guard and deletes from now on."""
        self._phase = {PHASE: DELETING}
        await self._update(PLANNING_PERCENT, "Step 2/3: deleting")

    async def listen(self, step: Step, done: int, total: int) -> None:
        """Follow a run: a `Listener`."""
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
        """Say how the run ended: 100 % if it did all that it set out to do, or where it stopped."""
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
                # In a slot, because a server on SQLite bears no two that write at once.
                async with self.connection.reserve_slot():
                    await shielded(self.connection.client.update_artifact(self._id, change))


async def older_run(run: Run, own_id: UUID) -> str:
    """Find an older run that is deleting some of this run's keys just now, in words; empty if there is none.

    Args:
        run: The present run, whose collections are known.
        own_id: Its flow run.

    Raises:
        StoreError: The server is out of reach, or answers what it should not.
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
            return f"{label(other.name)} ({other.id}) has been at work since {other.started:%Y-%m-%d %H:%M:%S} UTC"
    return ""


def _is_deleting(row: Mapping[str, Any], now: datetime) -> bool:
    phase = (row.get("metadata_") or {}).get(PHASE)
    return bool(row["flow_run_id"]) and phase == DELETING and now - datetime.fromisoformat(row["updated"]) <= HEARTBEAT_TIMEOUT


def _age(run: FlowRun) -> tuple[datetime, UUID]:
    return run.started, run.id


def _overlap(scope: Iterable[str], keys: Iterable[str], other: FlowRun) -> bool:
    # Anybody may write a progress artifact, for a run of anything.
    given = other.parameters.get("keys")
    globs = [glob for glob in given if isinstance(glob, str)] if isinstance(given, list) else []
    return not (scope or globs) or any(fnmatchcase(key, glob) for key in keys for glob in globs or ["*"])
