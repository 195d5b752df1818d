"""The store that reads and deletes versions through the API of a Prefect server or Cloud workspace.

The API returns each version with its full payload, has no bulk deletion, and pages by offset, without a tie-breaker on dates,
at most 200 rows at a time (an administrator may lower that). So the size of a page follows the bytes of the last one, payloads
are measured and dropped on arrival, many keys are listed a page at a time, and the number of rows listed is compared with the
server's count.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.control import HOLD, select_control
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.model import RESULT, Versions
from prefect_artifact_retention.stores.connection import Connection, ListingTimedOutError, ResponseTooLargeError
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF, Collection, History
from pydantic import TypeAdapter

TESTED_VERSIONS = ((3, 8), (3, 9))
"""The oldest and the newest Prefect that this package is tested with (`make test-compat`)."""

MAX_PAGE_ROWS = 200
"""Prefect's default limit of a page. A server with a lower one refuses the page, which is then asked for in halves."""

PAGES_BEFORE_LARGER = 10
"""After as many pages of the size to which refused ones were halved, they are doubled: the server may only have been busy.
With fewer, more pages time out on a server that is always as slow; with more, a run stays slow for longer."""

TARGET_PAGE_BYTES = 2 * 2**20
"""The size aimed at for a page. With smaller pages, a listing takes more requests; with larger ones, more memory."""

MAX_PAGE_BYTES = 4 * TARGET_PAGE_BYTES
"""A larger page is refused before it is read, and asked for again with fewer rows."""

MAX_IDS_PER_REQUEST = 1_000
"""Ids or keys in one request. The server's database limits the parameters of a statement, so more would fail."""

MAX_BODY_BYTES = 2**17
"""The size of the ids or keys in one request, for keys may be long. With more, proxies with a low limit refuse it, and it is
sent again in halves; with less, there are more requests."""

MAX_UNREADABLE_ROWS = 20
"""Rows that a listing may leave out because the server fails to show them. With more, the server counts as broken."""

HTTP_NOT_FOUND = 404
HTTP_CONTENT_TOO_LARGE = 413
HTTP_UNPROCESSABLE = 422
HTTP_SERVER_ERROR = 500

LISTED_ROWS = 2_000
"""Versions that are counted, listed and evaluated together, unless a single key has more. With fewer, there are more counts;
with more, a version that is deleted meanwhile makes more keys be listed again."""

PAGE_FILL = 0.9
"""How full a page is meant to be. Fuller ones are more often too full, and asked for again with fewer keys."""

MAX_QUOTED_CHARS = 40
"""A longer answer is cut off in messages."""

UNKEYED_FILTER = {"key": {"exists_": False}, "type": {"not_any_": [RESULT]}}
"""Selects artifacts without a key, except results of runs: of type `result`, or NULL, which SQL never finds unequal."""

_TESTED = " to ".join(dict.fromkeys(".".join(map(str, version)) for version in TESTED_VERSIONS))
TERMINAL_STATE_TYPES = frozenset(state.value for state in TERMINAL_STATES)
NO_METADATA: Mapping[str, str] = {}

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class FlowRun:
    """A flow run.

    Attributes:
        id: The id.
        name: The name.
        started: When it started, by the server's clock; when it was created, if it has not started.
        finished: Whether it is in a terminal state.
        parameters: The parameters of the flow.
    """

    id: UUID
    name: str
    started: datetime
    finished: bool
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Expiry:
    """The artifacts that the server itself deletes, regardless of any policy.

    Attributes:
        of_runs: The age after which the artifacts of ended flow runs are deleted; None if they are not.
        of_orphans: Whether the artifacts of flow runs that no longer exist are deleted.
    """

    of_runs: timedelta | None
    of_orphans: bool


class ApiStore:
    """Reads and deletes versions through the Prefect API.

    Every method raises `StoreError` if the server cannot be reached or sends an unexpected answer.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._page_rows = 25
        # By what the server has refused for good, and by what it has been too slow for lately.
        self._allowed_page_rows = self._max_page_rows = MAX_PAGE_ROWS
        # The pages of the latter size since it changed.
        self._max_pages = 0
        # As the server counted them last.
        self._rows_per_key = 1.0
        self._max_body_bytes = MAX_BODY_BYTES

    async def now(self) -> datetime:
        """Read the server's clock."""
        return await self.connection.now()

    async def count_unkeyed(self) -> int:
        """Count the artifacts without a key, except those in which Prefect keeps the results of runs."""
        return await self._count("/artifacts", UNKEYED_FILTER)

    async def collections(self, keys: Sequence[str], unreadable: list[str | None] | None = None) -> list[Collection]:
        """List the collections of these exact keys.

        Pages shift when collections go meanwhile, and a key that was skipped would be taken for a deleted one. So the keys not
        found are counted, and asked for again.

        Args:
            keys: The keys.
            unreadable: For each collection that the server fails to show, the key before it is appended (None: it is the
                first). Without this list, such a collection is an error.
        """
        found: dict[str, Collection] = {}

        async def find(part: Sequence[str]) -> None:
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
                unreadable.extend(passed_over)

        await self._in_parts(list(dict.fromkeys(keys)), find)
        return list(found.values())

    async def all_collections(self, unreadable: list[str | None]) -> tuple[list[Collection], int]:
        """List all collections, in the order of their keys as the server sorts them.

        Keys that are deleted during the listing shift its pages and hide others, so the listing is repeated up to twice.

        Args:
            unreadable: As for `collections`.

        Returns:
            The collections, and how many more the server counts.
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
        """List the versions of many keys in the order given, several keys at a time; a key may have none."""
        start = 0
        while start < len(keys):
            together = self._first_part(keys[start:], min(MAX_IDS_PER_REQUEST, max(1, int(LISTED_ROWS / self._rows_per_key))))
            start += len(together)
            async for histories in self._list_together(together):
                yield histories

    async def history(self, key: str, expected: int = 0) -> History:
        """List the versions of one key.

        The first listing is sorted by date, for which the server has an index. If it has fewer rows than were counted before,
        it is repeated, sorted by id, which has no ties. Rows created meanwhile are newer than the run, and harmless.
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
        """List the versions of some keys together; if that is not possible, halve the keys, down to single ones."""
        pending = [list(keys)]
        while pending:
            some = pending.pop()
            if len(some) == 1:
                yield [await self._list_single(some[0])]
            elif histories := await self._list_combined(some):
                yield histories
            else:
                half = len(some) // 2
                pending += [some[half:], some[:half]]

    async def _list_single(self, key: str) -> History:
        try:
            return await self.history(key)
        except StoreError as error:
            if error.status != HTTP_SERVER_ERROR:
                raise
            return History(key, Versions.of(()), complete=False, error=str(error))

    async def _list_combined(self, keys: Sequence[str]) -> list[History] | None:
        """List the versions of some keys, as many keys at a time as fit one page; None if fewer should be listed together.

        That is so if they have many versions, of which some go meanwhile; or if the request is too large. A page of a few keys
        costs the server no more than what it sends, while it would sort all keys again for each page of a listing of all.
        """
        try:
            expected = await self._count("/artifacts", {"key": {"any_": keys}})
        except StoreError as error:
            if error.status != HTTP_CONTENT_TOO_LARGE:
                raise
            self._max_body_bytes = _body_bytes(keys) // 2
            return None
        self._rows_per_key = rows_per_key = max(1, expected) / len(keys)
        if expected > 2 * LISTED_ROWS:
            return None
        found: list[History] = []
        most = len(keys)
        while len(found) < len(keys):
            fitting = int(PAGE_FILL * self._page_limit / rows_per_key)
            some = keys[len(found) :][: max(1, min(most, fitting))]
            histories = await self._list_in_a_page(some) if rows_per_key < self._page_limit else None
            if histories is None and len(some) > 1:
                most = len(some) // 2
                continue
            found += histories or [await self._list_single(some[0])]
            most = len(keys)
        return found if sum(len(history.versions) for history in found) >= expected else None

    async def _list_in_a_page(self, keys: Sequence[str]) -> list[History] | None:
        """List the versions of some keys in one page; None if fewer keys should be asked for.

        That is so if the page is full, or the server takes too long for it, finds the request too large, or fails to show a
        version.
        """
        limit = self._page_limit
        body = {"artifacts": {"key": {"any_": list(keys)}}, "sort": "ID_DESC", "limit": limit, "offset": 0}
        try:
            response = await self._page("/artifacts/filter", body, limit, is_divisible=len(keys) > 1)
        except ListingTimedOutError:
            return None
        except StoreError as error:
            if error.status == HTTP_CONTENT_TOO_LARGE:
                self._max_body_bytes = _body_bytes(keys) // 2
            elif error.status != HTTP_SERVER_ERROR:
                raise
            return None
        rows = self._rows(response, "/artifacts/filter", limit) if response else []
        if response is None or len(rows) >= limit:
            return None
        by_key: dict[str | None, list[Version]] = {key: [] for key in keys}
        for row in rows:
            version = _version(row)
            by_key[version.key].append(version)
        return [History(key, Versions.of(by_key[key])) for key in keys]

    async def unkeyed(self, expected: int, unreadable: list[str | None]) -> AsyncGenerator[list[Version]]:
        """List the artifacts that `count_unkeyed` counts, a page at a time.

        Each listing begins at a random offset and wraps around, so that runs which stop early see all of them in the long run.
        Pages shift when rows go meanwhile: a row may be missed until the next run.

        Args:
            expected: What `count_unkeyed` returned.
            unreadable: An item is appended for each artifact that the server fails to show.
        """
        start = random.randrange(max(1, expected))  # noqa: S311 - no secret
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
        """Read those of the versions `ids` that still exist."""
        return await self._existing("artifacts", ids, _version)

    async def all_exist(self, ids: Sequence[UUID]) -> bool:
        """Return whether all versions `ids` still exist."""

        async def exist(part: Sequence[UUID]) -> bool:
            return await self._count("/artifacts", _any_of(part)) >= len(part)

        return all(await self._in_parts(ids, exist))

    async def flow_runs(self, ids: Iterable[UUID]) -> list[FlowRun]:
        """Read those of the flow runs `ids` that exist."""
        return await self._existing("flow_runs", ids, _flow_run)

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Return those of the runs that exist and are not in a terminal state, with the times of their creation."""
        # Not filtered by state: a run that ends meanwhile would leave the listing, shift its pages, and hide another run.
        runs = await self._existing("flow_runs", flow_runs, _run) + await self._existing("task_runs", task_runs, _run)
        return {run_id: since for run_id, since, finished in runs if not finished}

    async def detect_concurrency(self, flow_name: str) -> None:
        """Allow concurrent requests from now on, if the server is on PostgreSQL.

        Prefect's API does not name the database. But it passes the pattern of a filter to LIKE, and in it a backslash is an
        escape on PostgreSQL (https://www.postgresql.org/docs/current/functions-matching.html), and an ordinary character
        on SQLite (https://www.sqlite.org/lang_expr.html). Any doubtful answer counts as SQLite.

        Args:
            flow_name: The name of a flow that exists on the server.
        """
        only = {"name": {"any_": [flow_name], "like_": f"\\{flow_name}"}}
        with suppress(StoreError):
            if self.connection.is_cloud or await self._count("/flows", only, body_field="flows"):
                self.connection.allow_concurrency()

    async def delete(
        self,
        version_id: UUID,
        *,
        is_latest: bool = False,  # noqa: ARG002 - the server does not check it
        start_attempt: Callable[[], bool] | None = None,
    ) -> bool:
        """Delete one version. Return True if this call deleted it, False if it no longer existed.

        A 404 may come from a proxy, so it counts only if the server does not count the version either.

        Raises:
            OutdatedSnapshotError: `start_attempt` returned False: the version may have become the latest, or be held, by now.
        """
        attempts: list[float] = []
        try:
            await self.connection.request("DELETE", f"/artifacts/{version_id}", attempts=attempts, start_attempt=start_attempt)
        except StoreError as error:
            if error.status != HTTP_NOT_FOUND or await self._count("/artifacts", _any_of([version_id])):
                raise
            # A 404 for a second attempt means that the first succeeded, and its answer was lost.
            return len(attempts) > 1
        return True

    def reserve_slot(self) -> AbstractAsyncContextManager[None]:
        """Reserve a slot for the requests of this context, so that none waits for other requests of the cleanup."""
        return self.connection.reserve_slot()

    async def dangling(self, keys: Sequence[str]) -> list[str]:
        """Return those of the keys whose collection names a latest version that does not exist, or a left-over placeholder.

        Checked twice, because the latest version may change between the two requests of a check.
        """
        suspects = list(keys)
        for _check in range(2):
            collections = await self.collections(suspects)
            half_repaired = [each.key for each in collections if each.is_placeholder and await self._has_others(each)]
            latest = {each.latest_id: each.key for each in collections if each.key not in half_repaired}
            for version_id in await self._known_to_exist(list(latest)):
                del latest[version_id]
            for version in await self.versions(list(latest)):
                del latest[version.id]
            suspects = [*half_repaired, *latest.values()]
        return suspects

    async def _known_to_exist(self, ids: Sequence[UUID]) -> list[UUID]:
        """Return the ids of those parts of `ids` that exist as a whole, which takes no listing."""

        async def existing(part: Sequence[UUID]) -> Sequence[UUID]:
            return part if await self._count("/artifacts", _any_of(part)) == len(part) else ()

        return [version_id for part in await self._in_parts(ids, existing) for version_id in part]

    async def _has_others(self, collection: Collection) -> bool:
        return await self._count("/artifacts", {"key": {"any_": [collection.key]}}) > 1

    async def repair(self, key: str) -> bool:
        """Repair a collection whose latest version has vanished, or finish such a repair. Return False if it needs none.

        The server names a new latest version only when one is created, so the data of the vanished version, of which the
        collection has a copy, are posted as a new version. If the key has other versions, the new one is a placeholder: it is
        deleted at once, and the server names the newest of the others. If that fails, or a lost answer leads to two
        placeholders, `dangling` finds them.
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
        # Without other versions, the new one stays, and is no placeholder.
        wire["metadata_"] = (metadata | {PLACEHOLDER_OF: str(collection.latest_id)}) if others else (metadata or None)
        posted = self.connection.json(await self.connection.request("POST", "/artifacts/", wire))
        if others:
            await self.delete(UUID(posted["id"]))
        return True

    async def untested_version(self) -> str:
        """Return a warning if this package is not tested with the server's version; empty if it is, or on Cloud."""
        if self.connection.is_cloud:
            return ""
        tested = f"this package is tested with Prefect {_TESTED}, and may misread other versions"
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
        """Read what the server's own `db_vacuum` deletes; None if the server does not show its settings."""
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
        """Read the server's row for a key, with its copy of the latest version's data; None if there is none."""
        async for page in self._pages("/artifacts/latest/filter", {"key": {"any_": [key]}}, "KEY_ASC"):
            for row in page:
                return row
        return None

    async def last_changed(self, limit: int) -> list[Collection]:
        """Read the collections that changed last."""
        body = {"artifacts": {}, "sort": "UPDATED_DESC", "limit": limit}
        return [_collection(row) for row in await self.connection.ask("/artifacts/latest/filter", body)]

    async def newest_rows(self, key: str, limit: int, *, sort: str = "CREATED_DESC") -> list[dict[str, Any]]:
        """Read the newest (or last updated) versions of one key as rows of the server, with payloads."""
        rows: list[dict[str, Any]] = []
        self._page_rows = min(self._page_rows, limit)
        async for page in self._pages("/artifacts/filter", {"key": {"any_": [key]}}, sort):
            rows += page
            if len(rows) >= limit:
                break
        return rows[:limit]

    async def _versions(self, only: object, sort: str) -> list[Version]:
        """List versions, without the duplicates of shifting pages."""
        found: dict[UUID, Version] = {}
        async for page in self._pages("/artifacts/filter", only, sort):
            found.update((version.id, version) for version in map(_version, page))
            page.clear()
        return list(found.values())

    async def _existing(self, kind: str, ids: Iterable[UUID], read: Callable[[Mapping[str, Any]], Item]) -> list[Item]:
        """Read those rows that exist.

        Rows that are deleted during the listing shift its pages and hide others, and a run that was skipped would be taken for
        one that has ended. So the ids not found are counted, and asked for again.
        """
        found: list[Item] = []

        async def find(part: Sequence[UUID]) -> None:
            missing = set(part)
            for _attempt in range(3):
                async for page in self._pages(f"/{kind}/filter", _any_of(missing), "ID_DESC", body_field=kind):
                    rows = {UUID(row["id"]): row for row in page}
                    found.extend([read(rows[row_id]) for row_id in rows.keys() & missing])
                    missing -= rows.keys()
                    # Free the payloads before the next request: many tasks wait for their pages at the same time.
                    rows.clear()
                    page.clear()
                if not missing or not await self._count(f"/{kind}", _any_of(missing), body_field=kind):
                    break
            else:
                raise StoreError(f"{self.connection.address} counts {kind} that it does not list")

        await self._in_parts(sorted(set(ids)), find)
        return found

    def _first_part(self, items: Sequence[Item], limit: int = MAX_IDS_PER_REQUEST) -> Sequence[Item]:
        """Return the first of the ids or keys, as many as one request takes; at least one, and at most `limit`."""
        first, size = items[:limit], 0
        for number, item in enumerate(first):
            size += _body_bytes([item])
            if number and size > self._max_body_bytes:
                return first[:number]
        return first

    async def _in_parts(self, items: Sequence[Item], ask: Callable[[Sequence[Item]], Awaitable[Answer]]) -> list[Answer]:
        """Ask for ids or keys in as many requests as they need. A part that is too large for a proxy (413) is halved."""
        answers: list[Answer] = []
        while items:
            part = self._first_part(items)
            try:
                answers.append(await ask(part))
            except StoreError as error:
                if error.status != HTTP_CONTENT_TOO_LARGE or len(part) == 1:
                    raise
                self._max_body_bytes = _body_bytes(part) // 2
                continue
            items = items[len(part) :]
        return answers

    async def _count(self, path: str, only: object, *, body_field: str = "artifacts") -> int:
        count = await self.connection.ask(f"{path}/count", {body_field: only})
        if not isinstance(count, int):
            raise StoreError(f"{self.connection.address} answers {path}/count with {str(count)[:100]!r}, not with a number")
        return count

    async def _page(self, path: str, body: object, limit: int, *, is_divisible: bool = False) -> httpx.Response | None:
        """Ask for one page of a listing; None if it must be asked for again with fewer rows."""
        max_bytes = MAX_PAGE_BYTES if limit > 1 else 0
        try:
            response = await self.connection.request(
                "POST", path, body, max_bytes=max_bytes, is_divisible=is_divisible or limit > 1
            )
        except ResponseTooLargeError:
            self._page_rows = max(1, limit // 4)
        except ListingTimedOutError:
            if is_divisible:
                raise
            self._limit_pages(limit // 2)
        except StoreError as error:
            if error.status != HTTP_UNPROCESSABLE or limit == 1:
                raise
            # Most likely, an administrator has lowered the limit of a page.
            self._allowed_page_rows = limit // 2
            self._limit_pages(limit // 2)
        else:
            self._max_pages += limit == self._max_page_rows
            if self._max_pages >= PAGES_BEFORE_LARGER:
                self._limit_pages(min(2 * limit, self._allowed_page_rows))
            return response
        return None

    def _limit_pages(self, rows: int) -> None:
        self._max_page_rows, self._max_pages = rows, 0

    async def _pages(  # noqa: PLR0913 - the options of a listing
        self,
        path: str,
        only: object,
        sort: str,
        *,
        body_field: str = "artifacts",
        start: int = 0,
        unreadable: list[str | None] | None = None,
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Page through a listing by offset, from row `start` on. The size of a page follows the bytes of the page before.

        A page for which the server takes too long is asked for with fewer rows, and so are the next `PAGES_BEFORE_LARGER`.

        With `unreadable`, a page that the server fails to show (500) is asked for with fewer rows, down to the single row that
        fails. That row is skipped, and the key of the row before it is appended to the list.
        """
        offset = start
        last_key: str | None = None
        while True:
            limit = self._page_limit
            body = {body_field: only, "sort": sort, "limit": limit, "offset": offset}
            try:
                response = await self._page(path, body, limit)
            except StoreError as error:
                if error.status != HTTP_SERVER_ERROR or unreadable is None or len(unreadable) == MAX_UNREADABLE_ROWS:
                    raise
                elif limit > 1:
                    self._page_rows = max(1, limit // 4)
                else:
                    unreadable.append(last_key)
                    offset += 1
                continue
            if response is None:
                continue
            rows = self._rows(response, path, limit)
            del response
            if rows:
                last_key = rows[-1].get("key")
            got = len(rows)
            yield rows
            if got < limit:
                return
            offset += got

    @property
    def _page_limit(self) -> int:
        """The rows to ask for in the next page."""
        return min(self._page_rows, self._max_page_rows)

    def _rows(self, response: httpx.Response, path: str, limit: int) -> list[dict[str, Any]]:
        """Read the rows of a page that was asked for with a limit, and adapt the size of the next page to their size."""
        rows = self.connection.json(response)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise StoreError(f"{self.connection.address} answers {path} with something else than a list of rows")
        row_bytes = len(response.content) // max(1, len(rows))
        self._page_rows = max(1, min(TARGET_PAGE_BYTES // max(1, row_bytes), limit * 4))
        return rows


def _body_bytes(items: Iterable[object]) -> int:
    """Return the size of ids or keys as JSON, with their quotes and commas."""
    return sum(len(str(item).encode()) + 3 for item in items)


def _any_of(ids: Iterable[UUID]) -> Mapping[str, Any]:
    return {"id": {"any_": sorted(str(each) for each in ids)}}


def _as_known(read: Callable[[Mapping[str, Any]], Item]) -> Callable[[Mapping[str, Any]], Item]:
    """Wrap a function that reads a row: a row of an unknown shape, as of another Prefect version, raises `StoreError`."""

    def read_known(row: Mapping[str, Any]) -> Item:
        try:
            return read(row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__} {str(error)[:MAX_QUOTED_CHARS]}"
            raise StoreError(f"the server lists an item that cannot be read as a row of Prefect {_TESTED}: {what}") from error

    return read_known


@_as_known
def _run(row: Mapping[str, Any]) -> tuple[UUID, datetime, bool]:
    """Read the id of a run, the time of its creation, and whether it is in a terminal state."""
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
    updated = datetime.fromisoformat(row["updated"])
    return Collection(row["key"], UUID(row["latest_id"]), row["type"], is_placeholder, updated)


@_as_known
def _version(row: Mapping[str, Any]) -> Version:
    """Read a version, with the size of its data instead of the data."""
    return Version(
        id=UUID(row["id"]),
        key=row["key"],
        created=datetime.fromisoformat(row["created"]),
        updated=datetime.fromisoformat(row["updated"]),
        type=row["type"],
        # The text that Prefect's server stores.
        size=len(json.dumps(row["data"])),
        flow_run_id=_optional_id(row["flow_run_id"]),
        task_run_id=_optional_id(row["task_run_id"]),
        metadata=control_metadata(_metadata(row)),
    )


def _metadata(row: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    return row.get("metadata_", row.get("metadata"))


def control_metadata(metadata: Any) -> Mapping[str, str]:  # noqa: ANN401 - JSON
    """Select what controls retention from an artifact's metadata. Metadata that is no object counts as an invalid hold."""
    if not metadata:
        return NO_METADATA
    if not isinstance(metadata, dict):
        return {HOLD: "(metadata that is no object)"}
    return select_control(metadata) or NO_METADATA


def _optional_id(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)
