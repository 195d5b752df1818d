"""The store that reads and deletes versions in the database of a self-hosted Prefect server: PostgreSQL or SQLite.

It has the semantics of the API's store at a hundred times the speed: versions are read without their payloads, and deleted in
batches, each in one short transaction that locks the collections of its keys.

The server's own deletion of a latest version reads the successor before it takes the lock. If that successor is deleted in
between, the collection is left dangling: `dangling` finds it and `repair` repairs it, and nothing is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, ParamSpec, TypeVar
from uuid import UUID

import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.stores.changes import Changes
from prefect_artifact_retention.stores.identity import check_writable, choose_schema, not_of
from prefect_artifact_retention.stores.queries import IS_UNKEYED, Queries, count
from prefect_artifact_retention.stores.schema import ARTIFACT, FLOW_RUN
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.stores.store import Collection as ArtifactCollection
from prefect_artifact_retention.stores.store import Copies, History
from prefect_artifact_retention.stores.transactions import Transactions, open_engine

MAX_READERS = 2
"""Pages read at a time: one is read while another is evaluated. More leave less of its processors to the server."""

MAX_WRITERS = 2
"""Concurrent deletions on PostgreSQL; more leave less of its processors to the server. SQLite has one at a time."""

MAX_KEYS_PER_QUERY = 10_000
MAX_ROWS_PER_QUERY = 20_000
"""Versions read at a time, unless a single key has more. With fewer, reading is slower; with more, it takes more memory."""

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


@dataclass(slots=True)
class Purge:
    """What was deleted of the events about deleted versions.

    Attributes:
        events: The number of events.
        size: The bytes of their payloads.
        error: Why some may be left; empty if none are.
    """

    events: int = 0
    size: int = 0
    error: str = ""


class DiskUse(NamedTuple):
    """What artifacts take on disk.

    Attributes:
        size: The bytes of the table with its indexes and large values; on SQLite, of the whole file.
        free: The bytes of pages that SQLite has yet to use again; 0 on PostgreSQL.
        rows: The rows of the table, as PostgreSQL's statistics have them; 0 on SQLite.
        dead_rows: The deleted rows that no vacuum has removed yet, likewise.
        vacuumed: When the table was vacuumed last, likewise; None if it never was.
    """

    size: int
    free: int = 0
    rows: int = 0
    dead_rows: int = 0
    vacuumed: datetime | None = None


_DISK_USE = """
SELECT pg_total_relation_size(relid), 0, n_live_tup, n_dead_tup, greatest(last_vacuum, last_autovacuum)
FROM pg_stat_all_tables WHERE relid = 'artifact'::regclass
"""


class DatabaseStore:
    """Reads and deletes versions in the database; a `Store`.

    Every method raises `StoreError` if the database cannot be reached, refuses a statement or does not answer in time.

    Attributes:
        transactions: Runs the transactions.
        purge: What was deleted of events; None if they are not to be.
    """

    def __init__(self, transactions: Transactions, max_per_second: int, *, purges_events: bool = False) -> None:
        self.transactions = transactions
        self.max_per_second = max_per_second
        self.purge = Purge() if purges_events else None
        self._next_deletion_at = 0.0

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is one of SQLite."""
        return self.transactions.is_sqlite

    @property
    def writers(self) -> int:
        """The number of transactions that may delete at the same time."""
        return 1 if self.is_sqlite else min(self.transactions.connections, MAX_WRITERS)

    async def check(self, server: Server, own_runs: Collection[UUID], *, deletes: bool, replaces: bool = False) -> None:
        """Check that this is the database of the server, and that it has the declared tables.

        In a delete run, the database must contain the current flow run, which a copy lacks. In a preview, and where the
        flow run is on another server, the collections that changed last must agree; see `check_has`. Of several schemas with
        such tables, the one that fits is used from then on.

        Raises:
            StoreError: It is another database or has other tables; or it cannot be written to, and the run deletes, or
                replaces data, too.
        """
        with_events = self.purge is not None
        try:
            if not self.is_sqlite:
                await self.transactions.limit_connections()
            await choose_schema(self.transactions, server, own_runs, with_events=with_events)
        except (OverflowError, TypeError, ValueError) as error:
            reason = self.transactions.reason(error)
            raise StoreError(f"cannot connect to {self.transactions.address}: {reason}") from None
        if deletes:
            await check_writable(self.transactions, with_events=with_events, with_data=replaces)
        self.transactions.is_established = True

    async def check_has(self, server: Server, version_id: UUID) -> None:
        """Check that an artifact that the server has just created is in the database: a copy of its database lacks it.

        Raises:
            StoreError: It is not, so that this is another database.
        """
        if not await self.existing([version_id]):
            raise not_of(server, self.transactions, "the progress artifact of this run")

    async def collections(self, keys: Sequence[str], unreadable: list[str | None] | None = None) -> list[ArtifactCollection]:  # noqa: ARG002
        """List the collections of these exact keys."""
        return await self._in_parts(keys, Queries.collections)

    async def all_collections(self, unreadable: list[str | None]) -> tuple[list[ArtifactCollection], int]:  # noqa: ARG002
        """List all collections in the order of their keys; a transaction sees all of them."""
        return await self.transactions.read(Queries.all_collections), 0

    async def histories(self, keys: Sequence[str]) -> AsyncGenerator[list[History]]:
        """List the versions of many keys in the order given, several keys at a time; a key may have none."""
        readers = min(self.transactions.connections, MAX_READERS)
        for part in _slices(keys):
            counts = await self.transactions.read(Queries.counts, part)
            async with aclosing(_ahead(_pages(part, counts), self._page_of_histories, readers)) as listing:
                async for histories in listing:
                    yield histories

    async def _page_of_histories(self, keys: Sequence[str]) -> list[History]:
        return await self.transactions.read(Queries.histories, keys)

    async def count_unkeyed(self) -> int:
        """Count the artifacts without a key, except those in which Prefect keeps the results of runs."""
        number: int = await self.transactions.read(Queries.scalar, count(ARTIFACT).where(IS_UNKEYED))
        return number

    async def unkeyed(self, expected: int, unreadable: list[str | None]) -> AsyncGenerator[list[Version]]:  # noqa: ARG002
        """List the artifacts that `count_unkeyed` counts, a page at a time, and hold no connection in between."""
        last: UUID | None = None
        while page := await self.transactions.read(Queries.unkeyed, last, MAX_ROWS_PER_QUERY):
            yield page
            last = page[-1].id

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Return those of the runs that exist and are not in a terminal state, with the times of their creation."""
        found: dict[UUID, datetime] = {}
        for part in _slices(list(flow_runs)):
            found |= await self.transactions.read(Queries.unfinished, part, ())
        for part in _slices(list(task_runs)):
            found |= await self.transactions.read(Queries.unfinished, (), part)
        return found

    async def payloads(self, ids: Sequence[UUID], keys: Sequence[str] = (), *, with_data: bool = True) -> Copies:
        """Read those of the versions that exist, with the texts of their JSON, and the rows of some collections.

        One transaction reads all: whoever asks for less at a time needs less memory.
        """
        return await self.transactions.read(Queries.payloads, ids, keys, with_data=with_data)

    async def existing(self, ids: Iterable[UUID]) -> set[UUID]:
        """Return those of the versions that exist."""
        parts = [await self.transactions.read(Queries.present, ARTIFACT.c.id, part) for part in _slices([*ids])]
        return set[UUID]().union(*parts)

    async def dangling(self, keys: Sequence[str]) -> list[str]:
        """Return those of the keys whose collection names a latest version that does not exist, or a left-over placeholder."""
        return await self._in_parts(keys, Queries.dangling)

    async def uncollected(self, keys: Iterable[str]) -> list[str]:  # noqa: ARG002
        """Return the keys of versions that have no collection, in order."""
        return await self.transactions.read(Queries.uncollected)

    async def gone_runs(self, flow_runs: Iterable[UUID]) -> set[UUID]:
        """Return those of the flow runs that do not exist."""
        gone = set(flow_runs)
        for part in _slices([*gone]):
            gone -= await self.transactions.read(Queries.present, FLOW_RUN.c.id, part)
        return gone

    async def repair(self, key: str, *, to_newest: bool = False) -> bool:
        """Repair a collection whose latest version has vanished, or finish such a repair. Return False if it needs none.

        With `to_newest`, also make the newest version the latest, and create a collection that is missing.
        """
        return await self.transactions.write(Changes.repair, key, to_newest=to_newest)

    async def delete_placeholders(self, key: str, ids: Sequence[UUID]) -> None:
        """Delete those of the versions that are placeholders of a key still, unless one is its latest version."""
        await self.transactions.write(Changes.delete_placeholders, key, ids)

    async def purge_events(self, ids: Sequence[UUID]) -> None:
        """Delete what the server's events hold of deleted versions, if asked to.

        A failure is noted, and not raised: the versions are gone.
        """
        if not self.purge:
            return
        try:
            for part in _slices(ids):
                while sizes := await self.transactions.write(Changes.purge_events, part):
                    self.purge.events += len(sizes)
                    self.purge.size += sum(sizes)
        except StoreError as error:
            self.purge.error = str(error)

    async def pace(self, deletions: int) -> None:
        """Pause after `deletions` deletions, so that the run stays within its limit per second."""
        if self.max_per_second and deletions:
            clock = asyncio.get_running_loop().time
            self._next_deletion_at = max(self._next_deletion_at, clock()) + deletions / self.max_per_second
            await asyncio.sleep(self._next_deletion_at - clock())

    async def disk_bytes(self) -> int:
        """Return the bytes that artifacts take on disk, with indexes and large values; on SQLite, those of the whole file."""
        pages = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        query = sa.text(pages if self.is_sqlite else "SELECT pg_total_relation_size('artifact')")
        size: int = await self.transactions.read(Queries.scalar, query)
        return size

    async def disk_use(self) -> DiskUse:
        """Read what artifacts take on disk, and how much of that is of rows that were deleted."""
        pages = "SELECT page_count * page_size, freelist_count * page_size FROM pragma_page_count(), pragma_page_size(), "
        query = f"{pages}pragma_freelist_count()" if self.is_sqlite else _DISK_USE
        (row,) = await self.transactions.read(Queries.all, sa.text(query))
        return DiskUse(*row)

    async def _in_parts(self, items: Sequence[T], read: Callable[[Queries, Sequence[T]], Awaitable[list[R]]]) -> list[R]:
        """Read what is asked of many items, in as many transactions as they need."""
        parts = [await self.transactions.read(read, part) for part in _slices(items)]
        return [each for part in parts for each in part]


@asynccontextmanager
async def open_database(url: str, max_per_second: int = 0, *, purges_events: bool = False) -> AsyncIterator[DatabaseStore]:
    """Open the database of a Prefect server.

    Args:
        url: The address, as in Prefect's `PREFECT_API_DATABASE_CONNECTION_URL`; the driver may be left out.
        max_per_second: Versions deleted in a second at most; 0 is no limit.
        purges_events: Whether to delete what the server's events hold of deleted versions, too.

    Raises:
        StoreError: The address is not one of a PostgreSQL or SQLite database. The connection is opened by the first use.
    """
    opened = open_engine(url)
    try:
        yield DatabaseStore(Transactions(opened), max_per_second, purges_events=purges_events)
    finally:
        await opened.engine.dispose()


async def _ahead(items: Iterable[T], read: Callable[[T], Coroutine[None, None, R]], at_once: int) -> AsyncGenerator[R]:
    """Read `at_once` items concurrently, and yield the results in the order of the items."""
    reading: deque[asyncio.Task[R]] = deque()
    try:
        for item in items:
            reading.append(asyncio.create_task(read(item)))
            if len(reading) == at_once:
                yield await reading.popleft()
        while reading:
            yield await reading.popleft()
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + MAX_KEYS_PER_QUERY] for start in range(0, len(items), MAX_KEYS_PER_QUERY))


def _pages(keys: Sequence[str], counts: Mapping[str, int]) -> Iterator[list[str]]:
    """Split keys into pages of at most `MAX_ROWS_PER_QUERY` versions; a key with more has a page of its own."""
    page: list[str] = []
    rows = 0
    for key in keys:
        rows += counts.get(key, 0)
        if page and rows > MAX_ROWS_PER_QUERY:
            yield page
            page, rows = [], counts.get(key, 0)
        page.append(key)
    if page:
        yield page
