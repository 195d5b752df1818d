"""The versions of a Prefect server or Cloud workspace, through its API.

What shapes this module: every read carries the full payload, there is no projection and no bulk delete; pages are by offset,
without a tie-breaker on dates; a page may hold at most 200 rows, or fewer where an administrator says so. So pages are sized
by the bytes that came back, rows are measured and dropped on arrival, and a listing is held against the server's count.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import orjson
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.control import HOLD, TTL_DAYS
from prefect_artifact_retention.stores.connection import Connection, ResponseTooLargeError
from pydantic import TypeAdapter

MOST_ROWS = 200
"""Prefect's default limit of a page; a server may set a lower one."""

PAGE_BYTES = 8 * 2**20
"""What a page should weigh."""

MOST_PAGE_BYTES = 4 * PAGE_BYTES
"""What a page may weigh; a heavier one is asked for again in smaller pieces."""

MOST_IDS = 1_000
"""Ids or keys in one request; databases limit the parameters of a statement."""

FIRST_BATCH_KEYS = 20
MOST_BATCH_KEYS = 2_000
BATCH_ROWS = (2_000, 20_000)
"""Versions that one batch of keys should have, at first and at most: each batch costs a count and a page that is not full."""

TERMINAL = frozenset(state.value for state in TERMINAL_STATES)
NO_METADATA: Mapping[str, str] = {}

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Collection:
    """All versions of one key, as the server sums them up: its latest version's id and type."""

    key: str
    latest_id: UUID
    type: str | None


@dataclass(frozen=True, slots=True)
class History:
    """The versions of one key. Incomplete if rows came and went so fast that no listing agreed with the count."""

    key: str
    versions: Sequence[Version]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class FlowRun:
    """A flow run: when it started, by the server's clock, and whether it has ended."""

    id: UUID
    name: str
    started: datetime
    finished: bool
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Expiry:
    """What the server deletes by itself, whatever any policy says.

    Attributes:
        of_runs: The artifacts of flow runs that ended longer ago than this; None if it does not.
        of_orphans: The artifacts of flow runs that no longer exist.
    """

    of_runs: timedelta | None
    of_orphans: bool


class ApiStore:
    """Reads and deletes versions through the Prefect API.

    Every method raises `StoreError` where the server is out of reach or answers what it should not.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._page_rows = 25
        self._most_rows = MOST_ROWS

    async def now(self) -> datetime:
        """Read the server's clock."""
        return await self.connection.now()

    async def count_unkeyed(self) -> int:
        """Count the artifacts without a key."""
        return await self._count("/artifacts", {"key": {"exists_": False}})

    async def collections(self, keys: Sequence[str] | None = None) -> list[Collection]:
        """List the collections, in the order of their keys as the server sorts them.

        Args:
            keys: List only these exact keys; None lists all.
        """
        if keys is None:
            return list((await self._all_collections()).values())
        found: dict[str, Collection] = {}
        for chunk in _chunks(keys, MOST_IDS):
            async for page in self._pages("/artifacts/latest/filter", {"key": {"any_": chunk}}, "KEY_ASC"):
                found.update((row["key"], _collection(row)) for row in page)
        return list(found.values())

    async def _all_collections(self) -> dict[str, Collection]:
        found: dict[str, Collection] = {}
        for _attempt in range(3):
            expected = await self._count("/artifacts/latest", {})
            async for page in self._pages("/artifacts/latest/filter", {}, "KEY_ASC"):
                found.update((row["key"], _collection(row)) for row in page)
            if len(found) >= expected:
                break
        # Keys that went while we looked may have hidden others. What was not seen is left alone until the next run.
        return found

    async def histories(self, keys: Sequence[str]) -> AsyncIterator[list[History]]:
        """List the versions of many keys, some keys at a time, in the order given; a key without any has an empty history."""
        rows_seen = keys_seen = 0
        size = FIRST_BATCH_KEYS
        start = 0
        while start < len(keys):
            batch = keys[start : start + size]
            start += size
            async for histories in self._batch(batch):
                rows_seen += sum(len(history.versions) for history in histories)
                yield histories
            keys_seen += len(batch)
            target = min(max(BATCH_ROWS[0], rows_seen // 4), BATCH_ROWS[1])
            size = min(max(1, target * keys_seen // max(1, rows_seen)), MOST_BATCH_KEYS)

    async def history(self, key: str) -> History:
        """List the versions of one key.

        By date first, which the server's index serves at any depth; then by id, where no two rows tie, until the listing has
        at least the rows that were counted before it. Rows created meanwhile are newer than the run and do no harm.
        """
        only = {"key": {"any_": [key]}}
        for sort in ("CREATED_DESC", "ID_DESC", "ID_DESC"):
            expected = await self._count("/artifacts", only)
            versions = await self._versions(only, sort)
            if len(versions) >= expected:
                return History(key, versions)
        return History(key, versions, complete=False)

    async def _batch(self, keys: Sequence[str]) -> AsyncIterator[list[History]]:
        """List the versions of some keys together, in halves where they are many, key by key where the count disagrees."""
        pending = [list(keys)]
        while pending:
            batch = pending.pop()
            if len(batch) == 1:
                yield [await self.history(batch[0])]
                continue
            together = {"key": {"any_": batch}}
            expected = await self._count("/artifacts", together)
            if expected > 2 * BATCH_ROWS[1]:
                half = len(batch) // 2
                pending += [batch[half:], batch[:half]]
                continue
            versions = await self._versions(together, "ID_DESC")
            if len(versions) < expected:
                for key in batch:
                    yield [await self.history(key)]
                continue
            by_key: dict[str | None, list[Version]] = {key: [] for key in batch}
            for version in versions:
                by_key[version.key].append(version)
            yield [History(key, by_key[key]) for key in batch]

    async def unkeyed(self) -> AsyncIterator[list[Version]]:
        """List the artifacts without a key, a page at a time.

        Pages shift when rows go meanwhile: a row may be missed until the next run, never taken for another.
        """
        async for page in self._pages("/artifacts/filter", {"key": {"exists_": False}}, "ID_DESC"):
            yield [_version(row) for row in page]

    async def versions(self, ids: Sequence[UUID]) -> list[Version]:
        """Read the versions that still exist of those named."""
        found = []
        for chunk in _chunks(ids, MOST_IDS):
            found += await self._versions({"id": {"any_": [str(version_id) for version_id in chunk]}}, "ID_DESC")
        return found

    async def flow_runs(self, ids: Sequence[UUID]) -> list[FlowRun]:
        """Read the flow runs that exist of those named."""
        only = {"id": {"any_": [str(run_id) for run_id in ids]}}
        return [
            FlowRun(
                id=UUID(row["id"]),
                name=row["name"],
                started=datetime.fromisoformat(row["start_time"] or row["created"]),
                finished=row["state_type"] in TERMINAL,
                parameters=row["parameters"],
            )
            async for page in self._pages("/flow_runs/filter", only, "ID_DESC", body_field="flow_runs")
            for row in page
        ]

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Tell which of these runs exist and are not in a terminal state, and since when they exist."""
        found: dict[UUID, datetime] = {}
        for kind, ids in (("flow_runs", flow_runs), ("task_runs", task_runs)):
            for chunk in _chunks(sorted(set(ids)), MOST_IDS):
                # Not filtered by state: rows that leave the listing while it is read would hide others.
                only = {"id": {"any_": [str(run_id) for run_id in chunk]}}
                async for page in self._pages(f"/{kind}/filter", only, "ID_DESC", body_field=kind):
                    found.update(
                        (UUID(row["id"]), datetime.fromisoformat(row["created"]))
                        for row in page
                        if row["state_type"] not in TERMINAL
                    )
        return found

    async def delete(self, version_id: UUID) -> bool:
        """Delete one version. True if this deleted it, False if it had already gone."""
        attempts: list[float] = []
        try:
            await self.connection.request("DELETE", f"/artifacts/{version_id}", attempts=attempts)
        except StoreError as error:
            if error.status != 404:  # noqa: PLR2004 - HTTP
                raise
            # Not found by a second attempt means that the first did its work and its answer was lost.
            return len(attempts) > 1
        return True

    async def dangling(self, keys: Sequence[str]) -> list[str]:
        """Tell which of these collections name a latest version that does not exist.

        Looked at twice, because a version may come or go between reading its collection and looking for it.
        """
        suspects = list(keys)
        for _look in range(2):
            latest = {collection.latest_id: collection.key for collection in await self.collections(suspects)}
            for chunk in _chunks(list(latest), MOST_IDS):
                ids = [str(version_id) for version_id in chunk]
                if await self._count("/artifacts", {"id": {"any_": ids}}) == len(chunk):
                    for version_id in chunk:
                        del latest[version_id]
            for version in await self.versions(list(latest)):
                del latest[version.id]
            suspects = list(latest.values())
        return suspects

    async def repair(self, key: str) -> bool:
        """Give a collection whose latest version has vanished one again; False if it has one, or is gone itself.

        Nothing but a new version makes the server name another latest, so the copy that the collection still has of its data
        is posted as one. Where the key has others, that one is deleted at once, and the server names the newest of them.
        """
        row = await self.latest_row(key)
        if row is None or await self._count("/artifacts", {"id": {"any_": [row["latest_id"]]}}):
            return False
        others = await self._count("/artifacts", {"key": {"any_": [key]}})
        copied = ("key", "type", "description", "data", "metadata_", "flow_run_id", "task_run_id")
        wire = {field: row.get(field, row.get(field.rstrip("_"))) for field in copied}
        posted = self.connection.json(await self.connection.request("POST", "/artifacts/", wire))
        if others:
            await self.delete(UUID(posted["id"]))
        return True

    async def expiry(self) -> Expiry | None:
        """What the server's own `db_vacuum` deletes; None if the server does not tell."""
        try:
            settings = self.connection.json(await self.connection.request("GET", "/admin/settings"))
            vacuum = settings["server"]["services"]["db_vacuum"]
            enabled = vacuum["enabled"]
            retention = TypeAdapter(timedelta).validate_python(vacuum["retention_period"])
        except (StoreError, KeyError, TypeError, ValueError):
            return None
        # As Prefect reads it (ServerServicesDBVacuumSettings.enabled_vacuum_types): true is all, false is events.
        kinds = {"flow_runs"} if enabled is True else set(enabled or ())
        return Expiry(retention if "flow_runs" in kinds else None, of_orphans=bool(kinds & {"flow_runs", "orphans"}))

    async def latest_row(self, key: str) -> dict[str, Any] | None:
        """Read a collection with the copy of its latest version's data, as the server has it; None if there is none."""
        async for page in self._pages("/artifacts/latest/filter", {"key": {"any_": [key]}}, "KEY_ASC"):
            for row in page:
                return row
        return None

    async def newest_rows(self, key: str, most: int, *, sort: str = "CREATED_DESC") -> list[dict[str, Any]]:
        """Read the newest (or last updated) versions of one key as the server has them, payloads included."""
        rows: list[dict[str, Any]] = []
        async for page in self._pages("/artifacts/filter", {"key": {"any_": [key]}}, sort):
            rows += page
            if len(rows) >= most:
                break
        return rows[:most]

    async def _versions(self, only: object, sort: str) -> list[Version]:
        """List versions; a row that a shifting page repeats counts once."""
        found: dict[UUID, Version] = {}
        async for page in self._pages("/artifacts/filter", only, sort):
            for row in page:
                version = _version(row)
                found[version.id] = version
            page.clear()
        return list(found.values())

    async def _count(self, path: str, only: object) -> int:
        count = await self.connection.ask(f"{path}/count", {"artifacts": only})
        if not isinstance(count, int):
            raise StoreError(f"{self.connection.address} answers {path}/count with {str(count)[:100]!r}, not with a number")
        return count

    async def _pages(
        self, path: str, only: object, sort: str, *, body_field: str = "artifacts"
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Page through a listing by offset, each page sized by the bytes that came back before."""
        offset = 0
        while True:
            limit = min(self._page_rows, self._most_rows)
            body = {body_field: only, "sort": sort, "limit": limit, "offset": offset}
            try:
                response = await self.connection.request("POST", path, body, most_bytes=MOST_PAGE_BYTES if limit > 1 else 0)
            except ResponseTooLargeError:
                self._page_rows = max(1, limit // 4)
                continue
            except StoreError as error:
                if error.status != 422 or limit == 1:  # noqa: PLR2004 - HTTP
                    raise
                # Refused, most likely because an administrator lowered the limit.
                self._most_rows = max(1, limit // 2)
                continue
            rows = self.connection.json(response)
            if not isinstance(rows, list):
                raise StoreError(f"{self.connection.address} answers {path} with something else than a list")
            got = len(rows)
            fitting = PAGE_BYTES * max(1, got) // max(1, len(response.content))
            del response
            self._page_rows = max(1, min(fitting, limit * 4))
            yield rows
            if got < limit:
                return
            offset += got


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _collection(row: Mapping[str, Any]) -> Collection:
    return Collection(row["key"], UUID(row["latest_id"]), row["type"])


def _version(row: Mapping[str, Any]) -> Version:
    """Measure a row and let go of its payload."""
    metadata = row.get("metadata_", row.get("metadata")) or NO_METADATA
    if metadata:
        metadata = {name: metadata[name] for name in (HOLD, TTL_DAYS) if name in metadata} or NO_METADATA
    return Version(
        id=UUID(row["id"]),
        key=row["key"],
        created=datetime.fromisoformat(row["created"]),
        updated=datetime.fromisoformat(row["updated"]),
        type=row["type"],
        size=len(orjson.dumps(row["data"])),
        flow_run_id=_optional_id(row["flow_run_id"]),
        task_run_id=_optional_id(row["task_run_id"]),
        metadata=metadata,
    )


def _optional_id(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)
