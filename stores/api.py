"""The store that reads and deletes versions through the API of a Prefect server or Cloud workspace.

The API returns each version with its full payload, and has no bulk deletion and no tie-breaker on dates. So payloads are
measured and dropped on arrival, many keys are listed a page at a time, and the number of rows listed is compared with the
server's count.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from math import inf
from typing import Any
from uuid import UUID

import orjson
from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.model import RESULT, Versions
from prefect_artifact_retention.stores.archive.model import CollectionRow
from prefect_artifact_retention.stores.connection import (
    HTTP_NOT_FOUND,
    READS_AHEAD,
    Connection,
    ListingTimedOutError,
    without_retries,
)
from prefect_artifact_retention.stores.paging import (
    HTTP_CONTENT_TOO_LARGE,
    HTTP_SERVER_ERROR,
    MAX_IDS_PER_REQUEST,
    Paging,
    any_of,
    body_bytes,
)
from prefect_artifact_retention.stores.rows import (
    copied_from,
    read_collection,
    read_collection_row,
    read_histories,
    read_run,
    read_stored,
    read_version,
    read_without_data,
    row_metadata,
)
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF, Collection, Copies, History, StoredVersion

LISTED_ROWS = 2_000
"""Versions that are counted, listed and evaluated together, unless a single key has more. With fewer, there are more counts;
with more, a run keeps to its time budget less exactly."""

MAX_LISTINGS = 3
"""Listings of keys under way at once, so that the server is never idle. With fewer, it waits while versions are evaluated;
with more, more pages are in memory."""

MAX_REPLACEMENT_SECONDS = 10
MAX_REPLACEMENT_REQUESTS = 3
"""How old the reading may be on which data are replaced, or for how many requests of a rate limit. With more, what somebody
writes meanwhile may be lost; with less, a server that is slow refuses more often."""

NEWEST_ROWS = 20
"""The newest versions that are read to look for one. With fewer, others that write to the same key may hide it."""

UNKEYED_FILTER = {"key": {"exists_": False}, "type": {"not_any_": [RESULT]}}
"""Selects artifacts without a key, except results of runs: of type `result`, or NULL, which SQL never finds unequal."""


class ApiStore(Paging):
    """Reads and deletes versions through the Prefect API.

    Every method raises `StoreError` if the server cannot be reached or sends an unexpected answer.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        # As the server counted them last.
        self._rows_per_key = 1.0

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
            yield {row["key"]: read_collection(row) for row in page}

    async def histories(self, keys: Sequence[str], *, listings: int = MAX_LISTINGS) -> AsyncGenerator[list[History]]:
        """List the versions of many keys in the order given, several keys at a time; a key may have none.

        The next keys are listed while the versions of the last ones are evaluated, in so many listings at once.
        """
        asked = deque[asyncio.Task[list[History]]]()
        start = 0
        try:
            while asked or start < len(keys):
                while start < len(keys) and len(asked) < listings:
                    some, expected = await self._next_keys(keys[start : start + MAX_IDS_PER_REQUEST])
                    asked.append(asyncio.create_task(self._list_together(some, expected)))
                    start += len(some)
                yield await asked[0]
                asked.popleft()
        finally:
            for listing in asked:
                listing.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _next_keys(self, keys: Sequence[str]) -> tuple[Sequence[str], int]:
        """Return the first of some keys, as many as to list together, and how many versions they have."""
        while True:
            fits_a_page = self._rows_per_key < self._page_limit
            some = self._first_part(keys, max(1, int(LISTED_ROWS / self._rows_per_key)) if fits_a_page else 1)
            try:
                expected = await self._count("/artifacts", {"key": {"any_": list(some)}})
            except StoreError as error:
                if error.status != HTTP_CONTENT_TOO_LARGE or len(some) == 1:
                    raise
                self._max_body_bytes = body_bytes(some) // 2
                continue
            self._rows_per_key = max(1, expected) / len(some)
            if expected <= 2 * LISTED_ROWS or len(some) == 1:
                return some, expected

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

    async def _list_together(self, keys: Sequence[str], expected: int) -> list[History]:
        """List the versions of some keys, as many keys at a time as fit a page; one that does not fit is listed alone.

        A page of a few keys costs the server no more than what it sends, while it would sort all keys again for each page of a
        listing of all.
        """
        READS_AHEAD.set(True)
        if len(keys) == 1:
            return [await self._list_alone(keys[0], expected)]
        found: dict[str, History] = {}
        rows_per_key = max(1, expected) / len(keys)
        cut: list[str] = []
        most = len(keys)
        while missing := [key for key in keys if key not in found]:
            some = missing[: max(1, min(most, int(self._page_limit / rows_per_key)))]
            histories = await self._list_in_a_page(some, cut) if rows_per_key < self._page_limit else []
            if not histories and len(some) > 1:
                most = len(some) // 2
                continue
            found.update((history.key, history) for history in histories or [await self._list_alone(some[0])])
            most = len(keys)
        if cut and sum(len(found[key].versions) for key in cut) < await self._count("/artifacts", {"key": {"any_": cut}}):
            # Versions created since the count would make up for those that were cut off.
            found.update([(key, await self._list_alone(key)) for key in cut])
        if sum(len(history.versions) for history in found.values()) >= expected:
            return [found[key] for key in keys]
        half = len(keys) // 2
        return [history for some in (keys[:half], keys[half:]) for history in await self._list_again(some)]

    async def _list_again(self, keys: Sequence[str]) -> list[History]:
        return await self._list_together(keys, await self._count("/artifacts", {"key": {"any_": list(keys)}}))

    async def _list_alone(self, key: str, expected: int = 0) -> History:
        try:
            return await self.history(key, expected)
        except StoreError as error:
            if error.status != HTTP_SERVER_ERROR:
                raise
            return History(key, Versions.of(()), complete=False, error=str(error))

    async def _list_in_a_page(self, keys: Sequence[str], cut: list[str]) -> list[History]:
        """List the versions of some keys in one page, for as many of the keys as fit it; none if fewer should be asked for.

        That is so if the first key fills the page, or the server takes too long for it, finds the request too large, or fails
        to show a version. A page that comes back shorter than its limit is whole. Of a full one, which is sorted by key, the
        last key may have more versions: it is left out, or, if no key is missing, appended to `cut`, to be counted.
        """
        limit = self._page_limit
        body = {"artifacts": {"key": {"any_": list(keys)}}, "sort": "KEY_ASC", "limit": limit, "offset": 0}
        try:
            response = await self._page("/artifacts/filter", body, limit, is_divisible=len(keys) > 1)
        except ListingTimedOutError:
            return []
        except StoreError as error:
            if error.status == HTTP_CONTENT_TOO_LARGE:
                self._max_body_bytes = body_bytes(keys) // 2
            elif error.status != HTTP_SERVER_ERROR:
                raise
            return []
        if response is None:
            return []
        rows = self._rows(response, "/artifacts/filter", limit)
        by_key = dict(read_histories(rows))
        if len(rows) >= limit:
            if 1 < len(by_key) == len(keys):
                cut.append(next(reversed(by_key)))
            else:
                by_key.popitem()
                keys = [key for key in keys if key in by_key]
        return [History(key, by_key.get(key) or Versions.of(())) for key in keys]

    async def _versions(self, only: object, sort: str) -> list[Version]:
        """List versions, without the duplicates of shifting pages."""
        found: dict[UUID, Version] = {}
        async for page in self._pages("/artifacts/filter", only, sort):
            found.update((version.id, version) for version in map(read_version, page))
            page.clear()
        return list(found.values())

    async def count_unkeyed(self) -> int:
        """Count the artifacts without a key, except those in which Prefect keeps the results of runs."""
        return await self._count("/artifacts", UNKEYED_FILTER)

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
            yield [read_version(row) for row in page]
        if not start:
            return
        left = start + len(unreadable)
        async for page in self._pages("/artifacts/filter", UNKEYED_FILTER, "ID_DESC", unreadable=unreadable):
            yield [read_version(row) for row in page]
            left -= len(page)
            if left <= len(unreadable):
                return

    async def versions(self, ids: Iterable[UUID]) -> list[Version]:
        """Read those of the versions `ids` that still exist."""
        return await self._existing("artifacts", ids, read_version)

    async def payloads(self, ids: Sequence[UUID], keys: Sequence[str] = (), *, with_data: bool = True) -> Copies:
        """Read those of the versions that exist, and the rows of some collections. The payloads come in any case."""
        versions = await self._existing("artifacts", ids, read_stored if with_data else read_without_data, json.loads)
        collections: list[CollectionRow] = []

        async def read(part: Sequence[str]) -> None:
            only = {"key": {"any_": list(part)}}
            async for page in self._pages("/artifacts/latest/filter", only, "KEY_ASC", load=json.loads):
                collections.extend(map(read_collection_row, page))

        await self._in_parts(keys, read)
        return Copies([*zip(*versions, strict=True)] or [()] * len(StoredVersion._fields), collections)

    async def existing(self, ids: Iterable[UUID]) -> set[UUID]:
        """Return those of the versions that exist."""

        async def find(part: Sequence[UUID]) -> Iterable[UUID]:
            number = await self._count("/artifacts", any_of(part))
            if number in {0, len(part)}:
                return part if number else ()
            return [version.id for version in await self.versions(part)]

        return {version_id for part in await self._in_parts(sorted(set(ids)), find) for version_id in part}

    async def all_exist(self, ids: Sequence[UUID]) -> bool:
        """Return whether all versions `ids` still exist."""
        return len(await self._known_to_exist(ids)) == len(ids)

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Return those of the runs that exist and are not in a terminal state, with the times of their creation."""
        # Not filtered by state: a run that ends meanwhile would leave the listing, shift its pages, and hide another run.
        runs = await self._existing("flow_runs", flow_runs, read_run) + await self._existing("task_runs", task_runs, read_run)
        return {run_id: since for run_id, since, finished in runs if not finished}

    async def delete(self, version_id: UUID, *, deadline: float = inf, attempts: list[float] | None = None) -> bool:
        """Delete one version. Return True if this call deleted it, False if it no longer existed.

        A 404 may come from a proxy, so it counts only if the server does not count the version either. Of `attempts`, see
        `Connection.request`.

        Raises:
            OutdatedCheckError: The deadline, by the monotonic clock, has passed before the server took it.
        """
        attempts = [] if attempts is None else attempts
        try:
            await self.connection.request("DELETE", f"/artifacts/{version_id}", attempts=attempts, deadline=deadline)
        except StoreError as error:
            if error.status != HTTP_NOT_FOUND or await self._count("/artifacts", any_of([version_id])):
                raise
            # A 404 for a second attempt means that the first succeeded, and its answer was lost.
            return len(attempts) > 1
        return True

    def replacement_deadline(self) -> float:
        """Return until when, by the monotonic clock, data may be replaced on a reading that begins now."""
        return time.monotonic() + max(MAX_REPLACEMENT_SECONDS, MAX_REPLACEMENT_REQUESTS * self.connection.seconds_per_request)

    async def replace_data(self, version_id: UUID, data: str, *, deadline: float) -> bool:
        """Replace the data of a version by those that a text of JSON has. Return False if it does not exist.

        It is sent once: sent again after its answer was lost, it might overwrite what somebody has written since.

        Raises:
            OutdatedCheckError: The deadline, by the monotonic clock, has passed before it was sent.
        """
        try:
            with without_retries():
                body = {"data": orjson.Fragment(data)}
                await self.connection.request("PATCH", f"/artifacts/{version_id}", body, deadline=deadline)
        except StoreError as error:
            if error.status == HTTP_NOT_FOUND:
                return False
            raise
        return True

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
            return part if await self._count("/artifacts", any_of(part)) == len(part) else ()

        return [version_id for part in await self._in_parts(ids, existing) for version_id in part]

    async def _has_others(self, collection: Collection) -> bool:
        return await self._count("/artifacts", {"key": {"any_": [collection.key]}}) > 1

    async def uncollected(self, keys: Iterable[str]) -> list[str]:
        """Return the keys of versions that have no collection, in order.

        Only if the server counts more versions with a key than these keys have, all of them are listed.

        Args:
            keys: The keys that have a collection.
        """
        known = list(keys)
        expected = await self._count("/artifacts", {"key": {"exists_": True}})

        async def count_versions(part: Sequence[str]) -> int:
            return await self._count("/artifacts", {"key": {"any_": list(part)}})

        if sum(await self._in_parts(known, count_versions)) == expected:
            return []
        found: set[str] = set()
        unreadable: list[str | None] = []
        async for page in self._pages("/artifacts/filter", {"key": {"exists_": True}}, "KEY_ASC", unreadable=unreadable):
            found.update(row["key"] for row in page)
            page.clear()
        return sorted(found.difference(known))

    async def gone_runs(self, flow_runs: Iterable[UUID]) -> set[UUID]:
        """Return those of the flow runs that do not exist."""
        gone = set(flow_runs)

        async def find(part: Sequence[UUID]) -> Iterable[UUID]:
            if await self._count("/flow_runs", any_of(part), body_field="flow_runs") == len(part):
                return part
            return [run_id for run_id, _since, _finished in await self._existing("flow_runs", part, read_run)]

        return gone.difference(*await self._in_parts(sorted(gone), find))

    async def repair(self, key: str, *, to_newest: bool = False) -> bool:
        """Repair a collection whose latest version has vanished, or finish such a repair. Return False if it needs none.

        The server names a new latest version only when one is created, so the data of the vanished version, of which the
        collection has a copy, are posted as a new version. If the key has other versions, the new one is a placeholder: it is
        deleted at once, and the server names the newest of the others. If that fails, or a lost answer leads to two
        placeholders, `dangling` finds them.

        Args:
            key: The key.
            to_newest: Whether to make the newest version the latest, too, if another one is, and to create a collection that
                is missing. The placeholder then has the data of the newest version.
        """
        row = await self.latest_row(key)
        if row is None:
            return to_newest and await self._promote_newest(key, None)
        collection = read_collection(row)
        if await self._count("/artifacts", any_of([collection.latest_id])):
            if collection.is_placeholder and await self._has_others(collection):
                # The collection may have the metadata of another version than it names.
                if collection.latest_id in await self._placeholders(key, [collection.latest_id]):
                    await self.delete(collection.latest_id)
                    return True
                return await self._promote_newest(key, None)
            if not to_newest:
                return False
            if await self._count("/artifacts", {"key": {"any_": [key]}}):
                return await self._promote_newest(key, collection.latest_id)
            # What it names is a version of another key.
        others = await self._count("/artifacts", {"key": {"any_": [key]}})
        await self._post_again(row, collection.latest_id, as_placeholder=bool(others))
        return True

    async def delete_placeholders(self, key: str, ids: Sequence[UUID]) -> None:
        """Delete those of the versions that are placeholders of a key still, unless it has no other version."""
        for version_id in await self._placeholders(key, ids):
            if await self._count("/artifacts", {"key": {"any_": [key]}}) > 1:
                await self.delete(version_id)

    async def _placeholders(self, key: str, ids: Sequence[UUID]) -> list[UUID]:
        """Return those of the versions that are placeholders of a key."""

        def read(row: Mapping[str, Any]) -> tuple[UUID, bool]:
            return UUID(row["id"]), row["key"] == key and copied_from(row) is not None

        return [version_id for version_id, is_one in await self._existing("artifacts", ids, read) if is_one]

    async def _promote_newest(self, key: str, latest_id: UUID | None) -> bool:
        """Make the newest version of a key its latest, unless that is as new. Return whether it was not."""
        body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
        rows = await self.connection.ask("/artifacts/filter", body)
        if not rows:
            return False
        newest = read_version(rows[0])
        latest = await self.versions([latest_id]) if latest_id else []
        if any(each.key == key and each.created >= newest.created for each in latest):
            return False
        # It stays, with its metadata; a hold on the placeholder would pass for one that a person has put there.
        await self._post_again({**rows[0], "metadata_": None}, newest.id, as_placeholder=True)
        return True

    async def _post_again(self, row: Mapping[str, Any], version_id: UUID, *, as_placeholder: bool) -> None:
        """Post the data of a row as a new version. A placeholder is deleted at once.

        So is what is no placeholder if somebody else has written to the key first, or an attempt whose answer was lost has
        posted it already.
        """
        wire = {field: row[field] for field in ("key", "type", "description", "data", "flow_run_id", "task_run_id")}
        metadata = {name: value for name, value in (row_metadata(row) or {}).items() if name != PLACEHOLDER_OF}
        # Without other versions, the new one stays, and is no placeholder.
        wire["metadata_"] = (metadata | {PLACEHOLDER_OF: str(version_id)}) if as_placeholder else (metadata or None)
        attempts: list[float] = []
        try:
            posted = self.connection.json(await self.connection.request("POST", "/artifacts/", wire, attempts=attempts))
        except StoreError:
            if as_placeholder:
                with suppress(StoreError):
                    await self._delete_copies(row["key"], version_id)
            raise
        if as_placeholder or await self._has_older(row["key"], read_version(posted)):
            await self.delete(UUID(posted["id"]))
        if as_placeholder and len(attempts) > 1:
            await self._delete_copies(row["key"], version_id)

    async def _has_older(self, key: str, version: Version) -> bool:
        """Whether a key has an older version; of two equal repairs at the same moment, only one finds that it has."""
        versions = await self._versions({"key": {"any_": [key]}}, "CREATED_DESC")
        return any((each.created, each.id) < (version.created, version.id) for each in versions)

    async def _delete_copies(self, key: str, version_id: UUID) -> None:
        """Delete placeholders whose posting was not answered: once others write to the key, nothing else would find them."""
        body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": NEWEST_ROWS}
        for row in await self.connection.ask("/artifacts/filter", body):
            if copied_from(row) == str(version_id):
                await self.delete(UUID(row["id"]))
