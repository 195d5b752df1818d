"""The progress artifact of a run, updated in place, by which other runs also see that this one is deleting.

Two concurrent delete runs are harmless, but duplicate work, so the one that comes second is skipped. There is no lock and no
lease: a run counts as active while its progress artifact is in the deleting phase and was updated within
`HEARTBEAT_TIMEOUT`, and its flow run has not ended. So a run that was killed blocks others for no longer than that.

The server dates these artifacts, so they also show its clock, where the `Date` header of an answer may be a proxy's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID

import httpx
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.loading import OWN_KEYS, PROGRESS_KEY
from prefect_artifact_retention.stores.connection import Connection, reason
from prefect_artifact_retention.stores.rows import FlowRun
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.tasks.producers.progress import LiveArtifact
from prefect_artifact_retention.tasks.producers.requests import take
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

PHASE = "artifact-retention-phase"
ANNOUNCED = "artifact-retention-announced"
DELETING = "deleting"
RUN = "artifact-retention-run"
RUN_NAME = "artifact-retention-run-name"
SCOPE = "artifact-retention-scope"
"""What a guest says of itself in the metadata, because the server does not know its flow run."""

MAX_METADATA_CHARS = 500
"""The server cuts off a longer value."""

PROGRESS_VERSIONS_READ = 50
"""Progress artifacts searched for active runs, the last updated first. With fewer, an active run among many may be missed."""


@dataclass(frozen=True)
class Guest:
    """A run whose flow run is on another server than its artifacts.

    Attributes:
        run_id: The id of its flow run.
        name: The name of its flow run.
        keys: The globs of its keys; empty for all.
    """

    run_id: UUID
    name: str
    keys: Sequence[str]

    @property
    def metadata(self) -> dict[str, str]:
        """What it says of itself: without its keys, if these are too long, so that it counts as one of all keys."""
        keys = json.dumps(list(self.keys))
        scope = {SCOPE: keys} if self.keys and len(keys) <= MAX_METADATA_CHARS else {}
        return {RUN: str(self.run_id), RUN_NAME: self.name[:MAX_METADATA_CHARS], **scope}


class ProgressArtifact:
    """The keyed progress artifact of a run.

    A run does not depend on its updates: if the server refuses one, the run goes on, and the next may succeed.

    Attributes:
        announced: When the run announced that it deletes; None before.
        guest: The run, if the server does not know its flow run.
    """

    def __init__(self, connection: Connection, guest: Guest | None = None) -> None:
        self.connection = connection
        self.guest = guest
        self._artifact = LiveArtifact(PROGRESS_KEY)
        self._is_begun = False
        self._created_at = 0.0
        self._shown = 0.0
        self._updated = 0.0
        self._phase: Mapping[str, str] = {}
        self.announced: datetime | None = None

    async def start(self, description: str) -> None:
        """Create the artifact at 0 %.

        Raises:
            StoreError: The server cannot be reached, or refuses the artifact.
        """
        self._is_begun = True
        try:
            # Shielded with what it leads to: a run that is stopped meanwhile knows its artifact, to say there that it stopped.
            await take(self._artifact.create(0.0, description, self._metadata), self.connection.client)
        except httpx.HTTPError as error:
            raise StoreError(f"the progress artifact could not be written: {reason(error)}") from None
        except ValueError as error:
            why = "the server's answer to a new artifact cannot be read"
            raise StoreError(f"the progress artifact could not be written: {why}") from error
        self._created_at = time.monotonic()

    @property
    def id(self) -> UUID | None:
        """The id of the artifact; None if there is none, or it is not known."""
        return self._artifact.id

    async def find(self, server: Server, own_runs: Collection[UUID]) -> None:
        """Find the artifact of a run that was stopped before it knew which one the server had created.

        Raises:
            StoreError: The server cannot be reached, or sends an unexpected answer.
        """
        if self._is_begun and self._artifact.id is None:
            own = {self.guest.run_id} if self.guest else set(own_runs)
            rows = await server.newest_rows(PROGRESS_KEY, PROGRESS_VERSIONS_READ)
            self._artifact.id = next((UUID(row["id"]) for row in rows if _run_id(row) in own), None)

    def now(self) -> datetime:
        """Return the time by the clock with which the server dates artifacts: when it created this one, and since.

        Raises:
            StoreError: The artifact has not been created, or without a date.
        """
        if self._artifact.created is None:
            raise StoreError("the server did not date the progress artifact, so its clock is not known")
        return self._artifact.created + timedelta(seconds=time.monotonic() - self._created_at)

    async def announce_deleting(self) -> None:
        """Set the deleting phase, once the run is past its guard."""
        self.announced = self.now()
        self._phase = {PHASE: DELETING, ANNOUNCED: self.announced.isoformat()}
        await self._update(PLANNING_PERCENT, "Step 2/3: deleting")

    async def listen(self, step: Step, done: int, total: int) -> None:
        """Update the artifact if the progress warrants it; a `Listener` of the run."""
        share = done / total if total else 1.0
        if step == "planning":
            percent, description = PLANNING_PERCENT * share, f"Step 1/3: planned {done:,}/{total:,} keys"
        else:
            percent = PLANNING_PERCENT + (100 - PLANNING_PERCENT) * share
            description = f"Step 2/3: {'archiving, ' if step == 'archiving' else ''}deleted {done:,}/{total:,}"
        since = time.monotonic() - self._updated
        if (percent - self._shown >= UPDATE_PERCENT and percent < 100 and since >= 1) or since >= HEARTBEAT_SECONDS:  # noqa: PLR2004
            await self._update(min(percent, 99.0), description)

    async def finish(self, description: str, *, complete: bool) -> None:
        """Leave the deleting phase, with the description of the outcome, at 100 % if the run is complete."""
        self._phase = {}
        await self._update(100.0 if complete else self._shown, description)

    async def _update(self, percent: float, description: str) -> None:
        if self._artifact.id is not None:
            self._shown, self._updated = percent, time.monotonic()
            with suppress(httpx.HTTPError):
                # In a slot of its own: a server on SQLite takes one write at a time.
                async with self.connection.reserve_slot():
                    steps = self._artifact.update(percent, description, {**self._metadata, **self._phase})
                await take(steps, self.connection.client)

    @property
    def _metadata(self) -> dict[str, str]:
        return self.guest.metadata if self.guest else {}


async def other_run(run: Run, own_id: UUID, now: datetime, announced: datetime | None) -> str:
    """Describe an active run that deletes some of this run's keys and goes first; empty if there is none.

    The first to announce that it deletes goes first. Two may both go on whose announcements are under way at the same moment,
    which costs them double work only.

    Args:
        run: The current run, after `discover`.
        own_id: The id of its flow run.
        now: The time by the clock that dates the updates of progress artifacts.
        announced: When this run announced that it deletes; None before.

    Raises:
        StoreError: The server cannot be reached, or sends an unexpected answer.
    """
    rows = await run.server.newest_rows(PROGRESS_KEY, PROGRESS_VERSIONS_READ, sort="UPDATED_DESC")
    active = {run_id: row for row in reversed(rows) if (run_id := _run_id(row)) and _is_deleting(row, now)}
    active.pop(own_id, None)
    keys = [each.key for each in run.collections if each.key not in OWN_KEYS]
    others = await run.server.flow_runs(other_id for other_id, row in active.items() if row["flow_run_id"])
    guests = [_guest(other_id, row) for other_id, row in active.items() if not row["flow_run_id"]]
    for other in sorted([*others, *guests], key=lambda other: (other.started, other.id)):
        row = active[other.id]
        goes_first = announced is None or (_announced(row), other.id) < (announced, own_id)
        if goes_first and not other.finished and _overlap(run.report.scope, keys, other):
            alive = datetime.fromisoformat(row["updated"]).astimezone(UTC)
            return (
                f"{label(other.name)} ({other.id}) has been at work since {other.started:%Y-%m-%d %H:%M:%S} UTC, "
                f"and was last alive at {alive:%Y-%m-%d %H:%M:%S} UTC"
            )
    return ""


def _is_deleting(row: Mapping[str, Any], now: datetime) -> bool:
    phase = (row.get("metadata_") or {}).get(PHASE)
    return bool(phase == DELETING and now - datetime.fromisoformat(row["updated"]) <= HEARTBEAT_TIMEOUT)


def _run_id(row: Mapping[str, Any]) -> UUID | None:
    """Return the id of the flow run that a progress artifact is of, on whatever server that is; None if it does not say."""
    said = row["flow_run_id"] or (row.get("metadata_") or {}).get(RUN)
    try:
        return UUID(said)
    except (TypeError, ValueError, AttributeError):
        # Anybody may write an artifact of this key.
        return None


def _guest(run_id: UUID, row: Mapping[str, Any]) -> FlowRun:
    """Return what a progress artifact says of a flow run on another server, which has ended once it is silent."""
    metadata = row["metadata_"]
    try:
        keys = json.loads(metadata.get(SCOPE) or "[]")
    except ValueError:
        keys = []
    started = datetime.fromisoformat(row["created"]).astimezone(UTC)
    name = str(metadata.get(RUN_NAME, ""))
    return FlowRun(id=run_id, name=name, started=started, finished=False, parameters={"keys": keys})


def _announced(row: Mapping[str, Any]) -> datetime:
    """Read when a run announced that it deletes; when its artifact was created, if that cannot be read."""
    try:
        return datetime.fromisoformat(row["metadata_"][ANNOUNCED]).astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError):
        return datetime.fromisoformat(row["created"]).astimezone(UTC)


def _overlap(scope: Iterable[str], keys: Iterable[str], other: FlowRun) -> bool:
    # Anybody may write an artifact of this key, so the parameters may be those of any flow.
    given = other.parameters.get("keys")
    globs = [glob for glob in given if isinstance(glob, str)] if isinstance(given, list) else []
    return not (scope or globs) or any(fnmatchcase(key, glob) for key in keys for glob in globs or ["*"])
