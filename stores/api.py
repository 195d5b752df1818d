"""The versions of a Prefect server or Cloud workspace, through its API.

What shapes this module: every read carries the full payload, there is no projection and no bulk delete; pages are by offset,
without a tie-breaker on dates; a page may hold at most 200 rows, or fewer where an administrator says so. So pages are sized
by the bytes that came back, rows are measured and dropped on arrival, and a listing is held against the server's count.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import TERMINAL_STATES
from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.control import HOLD, TTL_DAYS
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.model import RESULT, Versions
from prefect_artifact_retention.stores.connection import Connection, ResponseTooLargeError
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF, Collection, History
from pydantic import TypeAdapter

TESTED_VERSIONS = ((3, 8), (3, 9))
"""The oldest and the newest Prefect that this package is tested with (`make test-compat`)."""

MAX_PAGE_ROWS = 200
"""Prefect's default limit of a page; a server may set a lower one."""

TARGET_PAGE_BYTES = 2 * 2**20
"""What a page should weigh."""

MAX_PAGE_BYTES = 4 * TARGET_PAGE_BYTES
"""What a page may weigh; a heavier one is asked for again in smaller pieces."""

MAX_IDS_PER_REQUEST = 1_000
"""Ids or keys in one request; databases limit the parameters of a statement."""

MAX_UNREADABLE_ROWS = 20
"""Rows of a listing that the server may fail to show, one by one; more mean that the server itself is broken."""

HTTP_NOT_FOUND = 404
HTTP_UNPROCESSABLE = 422
HTTP_SERVER_ERROR = 500

MAX_COMBINED_LISTING_BYTES = 64 * 2**20
"""What the versions of several keys may weigh together: for each page of them, SQLite sorts them all with their payloads.
Those of a single key come by an index."""

FIRST_LISTING_KEYS = 20
MAX_LISTING_KEYS = 2_000
LISTING_ROWS = (2_000, 20_000)
"""Versions that one batch of keys should have, at first and at most: each batch costs a count and a page that is not full."""

MAX_QUOTED_CHARS = 40
"""Characters of an answer that is quoted."""

UNKEYED_FILTER = {"key": {"exists_": False}, "type": {"not_any_": [RESULT]}}
"""Artifacts without a key that somebody published: those without a type are of no type that differs."""

_TESTED = " to ".join(dict.fromkeys(".".join(map(str, version)) for version in TESTED_VERSIONS))
TERMINAL_STATE_TYPES = frozenset(state.value for state in TERMINAL_STATES)
NO_METADATA: Mapping[str, str] = {}

Item = TypeVar("Item")


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
        self._row_bytes = 0
        """Of an artifact in the last page of some."""
        self._max_page_rows = MAX_PAGE_ROWS

    async def now(self) -> datetime:
        """Read the server's clock."""
        return await self.connection.now()

    async def count_unkeyed(self) -> int:
        """Count the artifacts without a key, but for those in which Prefect keeps the results of runs."""
        return await self._count("/artifacts", UNKEYED_FILTER)

    async def collections(self, keys: Sequence[str], unreadable: list[str | None] | None = None) -> list[Collection]:
        """List the collections of these exact keys.

        A key that a shifting page hides would pass for one that is gone, so keys not found are counted, and asked for again.

        Args:
            keys: The keys.
            unreadable: Gains, for each collection that the server fails to show, the key before it (None: it is the first).
                Without it, such a collection is an error.
        """
        found: dict[str, Collection] = {}
        for part in _slices(list(dict.fromkeys(keys)), MAX_IDS_PER_REQUEST):
            missing = set(part)
            for _attempt in range(3):
                passed_over: list[str | None] = []
                only = {"key": {"any_": sorted(missing)}}
                async for page in self._collections(only, None if unreadable is None else passed_over):
                    found.update(page)
                    missing -= page.keys()
                counted = await self._count("/artifacts/latest", {"key": {"any_": sorted(missing)}}) if missing else 0
                if counted <= len(passed_over):
                    break
            else:
                raise StoreError(f"{self.connection.address} counts collections that it does not list")
            if unreadable is not None:
                unreadable += passed_over
        return list(found.values())

    async def all_collections(self, unreadable: list[str | None]) -> tuple[list[Collection], int]:
        """List all collections, in the order of their keys as the server sorts them.

        Keys that go while we look may hide others.

        Args:
            unreadable: As above.

        Returns:
            The collections, and how many more the server counts that were not seen.
        """
        found: dict[str, Collection] = {}
        for _attempt in range(3):
            expected = await self._count("/artifacts/latest", {})
            unreadable.clear()
            async for page in self._collections({}, unreadable):
                found.update(page)
            unseen = max(0, expected - len(found) - len(unreadable))
            if not unseen:
                break
        return list(found.values()), unseen

    async def _collections(self, only: object, unreadable: list[str | None] | None) -> AsyncIterator[dict[str, Collection]]:
        async for page in self._pages("/artifacts/latest/filter", only, "KEY_ASC", unreadable=unreadable):
            yield {row["key"]: _collection(row) for row in page}

    async def histories(self, keys: Sequence[str]) -> AsyncGenerator[list[History]]:
        """List the versions of many keys, some keys at a time, in the order given; a key without any has an empty history."""
        rows_seen = keys_seen = 0
        size = FIRST_LISTING_KEYS
        start = 0
        while start < len(keys):
            batch = keys[start : start + size]
            start += size
            async for histories in self._list_together(batch):
                rows_seen += sum(len(history.versions) for history in histories)
                yield histories
            keys_seen += len(batch)
            target = min(max(LISTING_ROWS[0], rows_seen // 4), LISTING_ROWS[1])
            size = min(max(1, target * keys_seen // max(1, rows_seen)), MAX_LISTING_KEYS)

    async def history(self, key: str, expected: int = 0) -> History:
        """List the versions of one key.

        By date first, which the server's index serves at any depth; then by id, where no two rows tie, until the listing has
        at least the rows that were counted before it. Rows created meanwhile are newer than the run and do no harm.
        """
        only = {"key": {"any_": [key]}}
        for sort in ("CREATED_DESC", "ID_DESC", "ID_DESC"):
            expected = expected or await self._count("/artifacts", only)
            versions = await self._versions(only, sort)
            if len(versions) >= expected:
                return History(key, Versions.of(versions))
            expected = 0
        return History(key, Versions.of(versions), complete=False)

    async def _list_together(self, keys: Sequence[str]) -> AsyncIterator[list[History]]:
        """List the versions of some keys together, or in halves, down to the one key whose versions cannot be listed."""
        pending = [list(keys)]
        while pending:
            batch = pending.pop()
            if len(batch) == 1:
                yield [await self._list_single(batch[0])]
            elif histories := await self._list_combined(batch):
                yield histories
            else:
                half = len(batch) // 2
                pending += [batch[half:], batch[:half]]

    async def _list_single(self, key: str) -> History:
        try:
            return await self.history(key)
        except StoreError as error:
            if error.status != HTTP_SERVER_ERROR:
                raise
            return History(key, Versions.of(()), complete=False, error=str(error))

    async def _list_combined(self, keys: Sequence[str]) -> list[History] | None:
        """List the versions of some keys; None if they are too much, shift too much, or the server fails to show one."""
        together = {"key": {"any_": keys}}
        expected = await self._count("/artifacts", together)
        if expected > 2 * LISTING_ROWS[1] or self._too_heavy(expected):
            return None
        try:
            versions: dict[UUID, Version] = {}
            async for page in self._pages("/artifacts/filter", together, "ID_DESC"):
                versions.update((version.id, version) for version in map(_version, page))
                page.clear()
                if self._too_heavy(expected):
                    return None
        except StoreError as error:
            if error.status != HTTP_SERVER_ERROR:
                raise
            return None
        if len(versions) < expected:
            return None
        by_key: dict[str | None, list[Version]] = {key: [] for key in keys}
        for version in versions.values():
            by_key[version.key].append(version)
        return [History(key, Versions.of(by_key[key])) for key in keys]

    async def unkeyed(self, expected: int, unreadable: list[str | None]) -> AsyncGenerator[list[Version]]:
        """List the artifacts that `count_unkeyed` counts, a page at a time.

        Each listing begins at some other place, so that those which are left early come to see all of them. Pages shift when
        rows go meanwhile: a row may be missed until the next run, never taken for another.

        Args:
            expected: How many they are.
            unreadable: Gains one item for each artifact that the server fails to show.
        """
        start = random.randrange(max(1, expected))  # noqa: S311 - any place will do
        async for page in self._pages("/artifacts/filter", UNKEYED_FILTER, "ID_DESC", start=start, unreadable=unreadable):
            yield [_version(row) for row in page]
        if not start:
            return
        left = start + len(unreadable)
        async for page in self._pages("/artifacts/filter", UNKEYED_FILTER, "ID_DESC", unreadable=unreadable):
            yield [_version(row) for row in page]
            left -= len(page)
            if left <= len(unreadable):
                return

    async def versions(self, ids: Iterable[UUID]) -> list[Version]:
        """Read the versions that still exist of those named."""
        return await self._existing("artifacts", ids, _version)

    async def all_exist(self, ids: Sequence[UUID]) -> bool:
        """Tell whether all of these versions still exist."""
        for part in _slices(ids, MAX_IDS_PER_REQUEST):
            if await self._count("/artifacts", _any_of(part)) < len(part):
                return False
        return True

    async def flow_runs(self, ids: Iterable[UUID]) -> list[FlowRun]:
        """Read the flow runs that exist of those named."""
        return await self._existing("flow_runs", ids, _flow_run)

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Tell which of these runs exist and are not in a terminal state, and since when they exist."""
        # Not filtered by state: rows that leave the listing while it is read would hide others.
        runs = await self._existing("flow_runs", flow_runs, _run) + await self._existing("task_runs", task_runs, _run)
        return {run_id: since for run_id, since, finished in runs if not finished}

    async def detect_concurrency(self, flow_name: str) -> None:
        """Let several requests be under way at once from now on, if the server is not on SQLite.

        Nothing of Prefect's API says so. But it hands the patterns of its filters to LIKE as they are, where PostgreSQL takes
        a backslash for an escape (https://www.postgresql.org/docs/current/functions-matching.html), and SQLite for a character
        like any other (https://www.sqlite.org/lang_expr.html). Who does not answer as PostgreSQL does may be on SQLite.

        Args:
            flow_name: Of a flow that the server knows.
        """
        only = {"name": {"any_": [flow_name], "like_": f"\\{flow_name}"}}
        with suppress(StoreError):
            if self.connection.is_cloud or await self._count("/flows", only, body_field="flows"):
                self.connection.allow_concurrency()

    async def delete(
        self,
        version_id: UUID,
        *,
        is_latest: bool = False,  # noqa: ARG002 - the server deletes what it is told
        start_attempt: Callable[[], bool] | None = None,
    ) -> bool:
        """Delete one version. True if this deleted it, False if it had already gone.

        "Not found" is believed once the version is not counted either: a proxy may say it, too.

        Raises:
            OutdatedSnapshotError: It may not be sent, or not again: the version may have become the latest, or may be held.
        """
        attempts: list[float] = []
        try:
            await self.connection.request("DELETE", f"/artifacts/{version_id}", attempts=attempts, start_attempt=start_attempt)
        except StoreError as error:
            if error.status != HTTP_NOT_FOUND or await self._count("/artifacts", _any_of([version_id])):
                raise
            # Not found by a second attempt means that the first did its work and its answer was lost.
            return len(attempts) > 1
        return True

    def reserve_slot(self) -> AbstractAsyncContextManager[None]:
        """Let no request of this context wait for others: what is looked at in it is as fresh as can be."""
        return self.connection.reserve_slot()

    async def dangling(self, keys: Sequence[str]) -> list[str]:
        """Tell which of these collections name a latest version that does not exist, or that a mending should have removed.

        Looked at twice, because a version may come or go between reading its collection and looking for it.
        """
        suspects = list(keys)
        for _look in range(2):
            collections = await self.collections(suspects)
            half_repaired = [each.key for each in collections if each.is_placeholder and await self._has_others(each)]
            latest = {each.latest_id: each.key for each in collections if each.key not in half_repaired}
            for part in _slices(list(latest), MAX_IDS_PER_REQUEST):
                if await self._count("/artifacts", _any_of(part)) == len(part):
                    for version_id in part:
                        del latest[version_id]
            for version in await self.versions(list(latest)):
                del latest[version.id]
            suspects = [*half_repaired, *latest.values()]
        return suspects

    async def _has_others(self, collection: Collection) -> bool:
        return await self._count("/artifacts", {"key": {"any_": [collection.key]}}) > 1

    async def repair(self, key: str) -> bool:
        """Give a collection whose latest version has vanished one again, or finish that; False if there is nothing to do.

        Nothing but a new version makes the server name another latest, so the copy that the collection still has of its data
        is posted as one. Where the key has others, that one is deleted at once, and the server names the newest of them.
        Where that fails, or the server has made two of it because its answer was lost, `dangling` finds what is left.
        """
        row = await self.latest_row(key)
        if row is None:
            return False
        collection = _collection(row)
        if await self._count("/artifacts", _any_of([collection.latest_id])):
            if half_repaired := collection.is_placeholder and await self._has_others(collection):
                await self.delete(collection.latest_id)
            return half_repaired
        others = await self._count("/artifacts", {"key": {"any_": [key]}})
        wire = {field: row[field] for field in ("key", "type", "description", "data", "flow_run_id", "task_run_id")}
        metadata = {name: value for name, value in (_metadata(row) or {}).items() if name != PLACEHOLDER_OF}
        # Only a copy that is to go again is marked as one.
        wire["metadata_"] = (metadata | {PLACEHOLDER_OF: str(collection.latest_id)}) if others else (metadata or None)
        posted = self.connection.json(await self.connection.request("POST", "/artifacts/", wire))
        if others:
            await self.delete(UUID(posted["id"]))
        return True

    async def untested_version(self) -> str:
        """Say what is not certain about the server's version; empty if this package is tested with it, or if it is Cloud."""
        if self.connection.is_cloud:
            return ""
        tested = f"this package is tested with Prefect {_TESTED}, and may misread another"
        try:
            answer = str(self.connection.json(await self.connection.request("GET", "/admin/version")))
        except StoreError:
            answer = ""
        if not (numbers := re.match(r"([0-9]{1,6})\.([0-9]{1,6})(?![0-9])", answer)):
            return f"the server does not say which version of Prefect it runs; {tested}"
        if TESTED_VERSIONS[0] <= (int(numbers[1]), int(numbers[2])) <= TESTED_VERSIONS[1]:
            return ""
        return f"the server runs Prefect {printable(answer[:MAX_QUOTED_CHARS])}; {tested}"

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

    async def last_changed(self, limit: int) -> list[Collection]:
        """Read the collections that changed last."""
        body = {"artifacts": {}, "sort": "UPDATED_DESC", "limit": limit}
        return [_collection(row) for row in await self.connection.ask("/artifacts/latest/filter", body)]

    async def newest_rows(self, key: str, limit: int, *, sort: str = "CREATED_DESC") -> list[dict[str, Any]]:
        """Read the newest (or last updated) versions of one key as the server has them, payloads included."""
        rows: list[dict[str, Any]] = []
        self._page_rows = min(self._page_rows, limit)
        async for page in self._pages("/artifacts/filter", {"key": {"any_": [key]}}, sort):
            rows += page
            if len(rows) >= limit:
                break
        return rows[:limit]

    def _too_heavy(self, rows: int) -> bool:
        return rows * self._row_bytes > MAX_COMBINED_LISTING_BYTES

    async def _versions(self, only: object, sort: str) -> list[Version]:
        """List versions; a row that a shifting page repeats counts once."""
        found: dict[UUID, Version] = {}
        async for page in self._pages("/artifacts/filter", only, sort):
            found.update((version.id, version) for version in map(_version, page))
            page.clear()
        return list(found.values())

    async def _existing(self, kind: str, ids: Iterable[UUID], read: Callable[[Mapping[str, Any]], Item]) -> list[Item]:
        """Read those rows of some ids that exist.

        Rows that go while a listing is read hide others, and a run that is hidden would pass for one that has ended. So ids
        that were not found are counted, and asked for again.
        """
        found: list[Item] = []
        for part in _slices(sorted(set(ids)), MAX_IDS_PER_REQUEST):
            missing = set(part)
            for _attempt in range(3):
                async for page in self._pages(f"/{kind}/filter", _any_of(missing), "ID_DESC", body_field=kind):
                    rows = {UUID(row["id"]): row for row in page}
                    found += [read(rows[row_id]) for row_id in rows.keys() & missing]
                    missing -= rows.keys()
                    # Many tasks wait for their next pages at the same time; none shall hold the payloads of its last one.
                    rows.clear()
                    page.clear()
                if not missing or not await self._count(f"/{kind}", _any_of(missing), body_field=kind):
                    break
            else:
                raise StoreError(f"{self.connection.address} counts {kind} that it does not list")
        return found

    async def _count(self, path: str, only: object, *, body_field: str = "artifacts") -> int:
        count = await self.connection.ask(f"{path}/count", {body_field: only})
        if not isinstance(count, int):
            raise StoreError(f"{self.connection.address} answers {path}/count with {str(count)[:100]!r}, not with a number")
        return count

    async def _pages(  # noqa: PLR0913 - what makes a listing
        self,
        path: str,
        only: object,
        sort: str,
        *,
        body_field: str = "artifacts",
        start: int = 0,
        unreadable: list[str | None] | None = None,
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Page through a listing by offset, from some row on, each page sized by the bytes that came back before.

        With `unreadable`, a page that the server fails to show is asked for in smaller pieces, and the single row that is at
        fault passed over; the list gains the key of the row before it.
        """
        offset = start
        last_key: str | None = None
        while True:
            limit = min(self._page_rows, self._max_page_rows)
            body = {body_field: only, "sort": sort, "limit": limit, "offset": offset}
            try:
                response = await self.connection.request("POST", path, body, max_bytes=MAX_PAGE_BYTES if limit > 1 else 0)
            except ResponseTooLargeError:
                self._page_rows = max(1, limit // 4)
                continue
            except StoreError as error:
                if error.status == HTTP_UNPROCESSABLE and limit > 1:
                    # Most likely because an administrator lowered the limit.
                    self._max_page_rows = max(1, limit // 2)
                elif error.status != HTTP_SERVER_ERROR or unreadable is None or len(unreadable) == MAX_UNREADABLE_ROWS:
                    raise
                elif limit > 1:
                    self._page_rows = max(1, limit // 4)
                else:
                    unreadable.append(last_key)
                    offset += 1
                continue
            rows = self.connection.json(response)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise StoreError(f"{self.connection.address} answers {path} with something else than a list of rows")
            got = len(rows)
            row_bytes = len(response.content) // max(1, got)
            del response
            self._page_rows = max(1, min(TARGET_PAGE_BYTES // max(1, row_bytes), limit * 4))
            if rows:
                last_key = rows[-1].get("key")
                self._row_bytes = row_bytes if body_field == "artifacts" else self._row_bytes
            yield rows
            if got < limit:
                return
            offset += got


def _slices(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _any_of(ids: Iterable[UUID]) -> Mapping[str, Any]:
    return {"id": {"any_": sorted(str(each) for each in ids)}}


def _as_known(read: Callable[[Mapping[str, Any]], Item]) -> Callable[[Mapping[str, Any]], Item]:
    """Let a row that is not as we know it, as of another version of Prefect, be an error in words."""

    def read_known(row: Mapping[str, Any]) -> Item:
        try:
            return read(row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__} {str(error)[:MAX_QUOTED_CHARS]}"
            raise StoreError(f"the server lists what cannot be read as a row of Prefect {_TESTED}: {what}") from error

    return read_known


@_as_known
def _run(row: Mapping[str, Any]) -> tuple[UUID, datetime, bool]:
    """Of a run: its id, since when it exists, and whether it has ended."""
    return UUID(row["id"]), datetime.fromisoformat(row["created"]), row["state_type"] in TERMINAL_STATE_TYPES


@_as_known
def _flow_run(row: Mapping[str, Any]) -> FlowRun:
    return FlowRun(
        id=UUID(row["id"]),
        name=row["name"],
        started=datetime.fromisoformat(row["start_time"] or row["created"]),
        finished=row["state_type"] in TERMINAL_STATE_TYPES,
        parameters=row["parameters"],
    )


@_as_known
def _collection(row: Mapping[str, Any]) -> Collection:
    metadata = _metadata(row) or {}
    is_placeholder = metadata.get(PLACEHOLDER_OF) is not None and metadata.get(HOLD) is None
    return Collection(row["key"], UUID(row["latest_id"]), row["type"], is_placeholder)


@_as_known
def _version(row: Mapping[str, Any]) -> Version:
    """Measure a row and let go of its payload."""
    return Version(
        id=UUID(row["id"]),
        key=row["key"],
        created=datetime.fromisoformat(row["created"]),
        updated=datetime.fromisoformat(row["updated"]),
        type=row["type"],
        # As Prefect's server stores it.
        size=len(json.dumps(row["data"])),
        flow_run_id=_optional_id(row["flow_run_id"]),
        task_run_id=_optional_id(row["task_run_id"]),
        metadata=control_metadata(_metadata(row)),
    )


def _metadata(row: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    return row.get("metadata_", row.get("metadata"))


def control_metadata(metadata: Any) -> Mapping[str, str]:  # noqa: ANN401 - JSON
    """Those entries of an artifact's metadata that say how long it is kept; an unreadable hold where they cannot be told."""
    if not metadata:
        return NO_METADATA
    if not isinstance(metadata, dict):
        return {HOLD: "(metadata that is no object)"}
    return {name: metadata[name] for name in (HOLD, TTL_DAYS) if name in metadata}


def _optional_id(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)
