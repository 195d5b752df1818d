"""The store that reads and deletes versions in the database of a self-hosted Prefect server: PostgreSQL or SQLite.

It has the semantics of the API's store at a hundred times the speed: versions are read without their payloads, and deleted in
batches. A batch is one short transaction that locks the collections of its keys, and deletes nothing of a key of which any
version has changed since it was judged. Creating a version, and making another version the latest, wait for that lock.

A lock that is not granted in time is left to a later attempt. `lock_timeout` is below the second after which PostgreSQL checks
for deadlocks, so that no other transaction is ever the victim of a deadlock with this one.

PgBouncer may share a connection with others, from one transaction to the next. So statements are prepared without a name, and
every setting is one of its transaction: nothing is left behind, not even by a process that is killed.

The server's own deletion of a latest version reads the successor before it takes the lock. If that successor is deleted in
between, the collection is left dangling: `dangling` finds it and `repair` repairs it, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import re
from bisect import bisect_right
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
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.control import HOLD, read_control
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.model import RESULT, Versions
from prefect_artifact_retention.stores.addresses import LOOKS, is_sqlite, read_postgres_address
from prefect_artifact_retention.stores.rows import NO_METADATA, TERMINAL_STATE_TYPES, control_metadata
from prefect_artifact_retention.stores.schema import (
    ARTIFACT,
    ARTIFACT_EVENTS,
    COLLECTION,
    COPIED,
    EVENT,
    EVENT_RESOURCE,
    FLOW_RUN,
    TASK_RUN,
    VERSION_RESOURCE,
    WAY_OUT,
    check_schema,
    read_ids,
    read_times,
)
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF, History, KeptVersionError, Mark
from prefect_artifact_retention.stores.store import Collection as ArtifactCollection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

MAX_CONNECTIONS = 4
"""Open connections. PostgreSQL has a limit on them, which the server needs, too. A pool may give fewer; of two or three, one
is left to others."""

CONNECTION_WAIT_SECONDS = 3
"""How long each connection beyond the first is waited for. With less, a slow network passes for a small pool."""

MAX_READERS = 2
MAX_WRITERS = 2
"""Concurrent transactions on PostgreSQL; more leave less of its processors to the server. SQLite has one at a time."""

LOCK_TIMEOUT_MILLISECONDS = 500
"""How long a deletion waits for a lock. From 1000 on, it may end the transactions of others by a deadlock."""

WRITE_TIMEOUT_SECONDS = 30
"""The longest statement of a deletion: for as long, those who write to the same keys may wait."""

READ_TIMEOUT_SECONDS = 300
BUSY_TIMEOUT_SECONDS = 10
"""How long SQLite waits for another writer, and a VACUUM of PostgreSQL for the table."""

MAX_TRANSACTION_ATTEMPTS = 6
FIRST_RETRY_PAUSE_SECONDS = 0.05
"""The pause after the first attempt, doubled after each further one: 1.6 seconds in all, then the keys are left alone."""

RECONNECT_SECONDS = 60
"""How long a connection that is lost during a run is tried again: longer than PostgreSQL takes to restart. With more, a run
whose database has gone for good ends later."""

RECONNECT_PAUSE_SECONDS = 1

LOST_SQLSTATES = frozenset({"53300", "57P01", "57P02", "57P03"})
"""PostgreSQL's codes of a server that stops or starts, or has no connection left; besides those that begin with 08."""

TRANSIENT_SQLSTATES = frozenset({"40001", "40P01", "55P03"})
"""PostgreSQL's codes of errors after which a transaction is retried: a concurrent change, a deadlock, a lock timeout."""

STATEMENT_TIMEOUT_SQLSTATE = "57014"
"""PostgreSQL's code of a statement that `statement_timeout` has cancelled."""

MAX_KEYS_PER_QUERY = 10_000
MAX_ROWS_PER_QUERY = 20_000
"""Versions read at a time, unless a single key has more. With fewer, reading is slower; with more, it takes more memory."""

METADATA_ROWS_PER_FETCH = 1_000
"""Rows with metadata read at a time; more take more memory, as metadata may be large."""

METADATA_WORD = "retention"
"""What the names of all metadata entries that control retention contain, in lower or upper case."""

MAX_PURGED_EVENTS = 1_000
MAX_PURGED_BYTES = 32 * 2**20
"""Events deleted in one transaction, and the bytes of what they hold, unless a single one holds more."""

COMPARED_COLLECTIONS = 10
"""Collections compared between server and database before a preview. With fewer, another server's database may pass."""

MIN_SECRET_CHARS = 4
"""A password that is shorter is masked in messages only where it is a word of its own."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class KeyDeletion:
    """Versions of one key to delete in a transaction, provided that nothing of the key has changed since it was judged.

    Attributes:
        collection: The collection when it was judged.
        mark: The state of its versions when they were judged.
        ids: The versions to delete; the latest among them only if they are all versions of the key.
        is_last: Whether no further deletion of the same key follows.
    """

    collection: ArtifactCollection
    mark: Mark
    ids: Sequence[UUID]
    is_last: bool

    @property
    def is_whole(self) -> bool:
        """Whether all versions of the key are deleted, so that the collection is deleted, too."""
        return len(self.ids) == self.mark[0]


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


class DatabaseStore:
    """Reads and deletes versions in the database; a `Store`.

    Every method raises `StoreError` if the database cannot be reached, refuses a statement or does not answer in time.
    """

    def __init__(self, opened: Opened, max_per_second: int, *, purges_events: bool = False) -> None:
        engine = opened.engine
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.readers = 1 if self.is_sqlite else MAX_READERS
        self.writers = 1 if self.is_sqlite else MAX_WRITERS
        self.address = opened.label
        self.search_path = opened.search_path
        self.purge = Purge() if purges_events else None
        self._unpurged: list[UUID] = []
        self._secrets = opened.secrets
        writing = {"begin": "IMMEDIATE"} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._fingerprint = _CONTENT if self.is_sqlite else _WRITER
        self._writer = engine.execution_options(**writing)
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._is_checked = False
        self._lost_since: float | None = None
        self.max_per_second = max_per_second
        self._next_deletion_at = 0.0

    async def check(self, server: Server, own_runs: Collection[UUID], *, deletes: bool) -> None:
        """Check that this is the database of the server, and that it has the declared tables.

        In a delete run, the database must contain the current flow run, which a copy lacks. In a preview, the collections that
        changed last must agree. Of several schemas with such tables, the one that fits is used from then on.

        Raises:
            StoreError: It is another database or has other tables; or it cannot be written to, and the run deletes.
        """
        try:
            if not self.is_sqlite:
                await self._limit_connections()
            await self._choose_schema(server, own_runs)
        except (OverflowError, TypeError, ValueError) as error:
            raise StoreError(f"cannot connect to {self.address}: {self._reason(error)}") from None
        if deletes:
            await self._check_writable()
        self._is_checked = True

    async def _limit_connections(self) -> None:
        """Use no more connections than can be had at once, by the limits of the database and of a pool before it.

        Where these are few, one is left to others, such as the server.
        """
        connections: list[AsyncConnection] = []
        usable = used = 0
        with self._translated_errors():
            try:
                for _number in range(MAX_CONNECTIONS):
                    async with asyncio.timeout(CONNECTION_WAIT_SECONDS if usable else None):
                        connections.append(await self.engine.connect())
                        await connections[-1].execute(sa.select(1))
                    usable += 1
            except (sa.exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                if not usable:
                    raise
            finally:
                used = usable if usable in (0, 1, MAX_CONNECTIONS) else usable - 1
                for connection in connections[used:usable]:
                    await connection.invalidate()
                # The unused ones first: the pool opens them again only if all others are in use, which the slots prevent.
                for connection in reversed(connections):
                    await connection.close()
        self._slots = asyncio.Semaphore(used)
        self.readers, self.writers = min(used, MAX_READERS), min(used, MAX_WRITERS)

    async def _choose_schema(self, server: Server, own_runs: Collection[UUID]) -> None:
        """Check the tables of each schema that has some, and use those that are the server's.

        Raises:
            StoreError: None are, or those of several schemas may be.
        """
        others: list[StoreError] = []
        fitting: list[tuple[int, str, str]] = []
        for schema, search_path in await self._schemas():
            self.search_path = search_path
            try:
                fitting.append((await self._agreement(server, own_runs), schema, search_path))
            except _LostConnectionError:
                raise
            except StoreError as error:
                others.append(error)
        if not fitting:
            raise others[0]
        best = max(agreement for agreement, _schema, _search_path in fitting)
        alike = [each for each in fitting if each[0] == best]
        if len(alike) > 1 and best:
            names = " and ".join(schema for _agreement, schema, _search_path in alike)
            raise StoreError(
                f"{self.address} has the same artifacts in its schemas {names}; name the server's in the address, as in "
                f"options=-csearch_path%3D{alike[-1][1]}"
            )
        self.search_path = alike[0][2]

    async def _schemas(self) -> Sequence[tuple[str, str]]:
        """List the schemas in which there may be tables of Prefect, each with the search path by which they are found."""
        if self.is_sqlite or self.search_path:
            return [("", self.search_path)]
        return [(row[0], row[1]) for row in await self._read_rows(sa.text(_SCHEMAS))] or [("", "")]

    async def _agreement(self, server: Server, own_runs: Collection[UUID]) -> int:
        """Return in how many of what changed last the tables agree with the server.

        Raises:
            StoreError: They are another server's, or not as declared.
        """
        await self._read(lambda connection: connection.run_sync(check_schema, with_events=self.purge is not None))
        missing = f"{self.address} is not the database of the Prefect server at {server.connection.address}"
        if own_runs:
            if set(own_runs) != set(await self._present(FLOW_RUN.c.id, own_runs)):
                raise StoreError(f"{missing}: the current flow run is not in it; {WAY_OUT}")
            return len(own_runs)
        for _attempt in range(3):
            latest = await server.last_changed(COMPARED_COLLECTIONS)
            present = await self.collections([each.key for each in latest])
            # On a busy server, some collections change between the two reads.
            agreed = len(set(latest) & set(present))
            if agreed * 2 > len(latest) or not (latest or await self._read_scalar(_count(COLLECTION))):
                return agreed
        raise StoreError(f"{missing}: they differ in the artifacts that changed last; {WAY_OUT}")

    async def _check_writable(self) -> None:
        """Check that versions can be deleted, before a plan is made in vain.

        Raises:
            StoreError: They cannot.
        """
        if self.is_sqlite:
            try:
                await self._write(self._touch)
            except _TransientError:
                # Somebody else is writing, so it can be written to.
                return
            except StoreError as error:
                raise StoreError(f"{error}; to delete, the file and its folder must be writable; {WAY_OUT}") from None
            return
        if await self._read_scalar(sa.text(_IS_READ_ONLY)):
            raise StoreError(f"{self.address} is read-only, as a replica is; {WAY_OUT}")
        needed = [*_NEEDED, *(_NEEDED_FOR_EVENTS if self.purge else ())]
        for table, privilege in needed:
            if not await self._read_scalar(sa.select(sa.func.has_table_privilege(table, privilege))):
                raise StoreError(f"{self.address}: permission denied: the role may not {privilege} on {table}; {WAY_OUT}")

    async def _touch(self, connection: AsyncConnection) -> None:
        """Write what is there already: a transaction of SQLite can begin, and not find out before its first change."""
        version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
        await connection.exec_driver_sql(f"PRAGMA user_version = {int(version)}")

    async def collections(self, keys: Sequence[str], unreadable: list[str | None] | None = None) -> list[ArtifactCollection]:  # noqa: ARG002
        """List the collections of these exact keys."""
        return [each for part in _slices(keys) for each in await self._read(partial(self._collections, keys=part))]

    async def all_collections(self, unreadable: list[str | None]) -> tuple[list[ArtifactCollection], int]:  # noqa: ARG002
        """List all collections in the order of their keys; a transaction sees all of them."""
        rows = await self._read_rows(_collections().order_by(COLLECTION.c.key))
        return [ArtifactCollection(*row) for row in rows], 0

    async def histories(self, keys: Sequence[str]) -> AsyncGenerator[list[History]]:
        """List the versions of many keys in the order given, several keys at a time; a key may have none."""
        for part in _slices(keys):
            counted = sa.select(ARTIFACT.c.key, sa.func.count()).where(self._among(ARTIFACT.c.key, part))
            counts = {row[0]: row[1] for row in await self._read_rows(counted.group_by(ARTIFACT.c.key))}
            async with aclosing(_ahead(_pages(part, counts), self._read_histories, self.readers)) as listing:
                async for histories in listing:
                    yield histories

    async def _read_histories(self, keys: Sequence[str]) -> list[History]:
        return await self._read(partial(self._histories, keys=keys))

    async def history(self, key: str, expected: int = 0) -> History:  # noqa: ARG002 - a transaction sees all of them
        """List the versions of one key."""
        return (await self._read_histories([key]))[0]

    async def count_unkeyed(self) -> int:
        """Count the artifacts without a key, except those in which Prefect keeps the results of runs."""
        count: int = await self._read_scalar(_count(ARTIFACT).where(_IS_UNKEYED))
        return count

    async def unkeyed(self, expected: int, unreadable: list[str | None]) -> AsyncGenerator[list[Version]]:  # noqa: ARG002
        """List the artifacts that `count_unkeyed` counts, a page at a time, and hold no connection in between."""
        listing = self._versions().where(_IS_UNKEYED).order_by(ARTIFACT.c.id).limit(MAX_ROWS_PER_QUERY)
        page = listing
        while rows := await self._read_rows(page):
            yield [_version(row) for row in rows]
            page = listing.where(ARTIFACT.c.id > rows[-1][0])

    async def versions(self, ids: Iterable[UUID]) -> list[Version]:
        """Read those of the versions `ids` that still exist."""
        return [
            _version(row)
            for part in _slices(list(ids))
            for row in await self._read_rows(self._versions().where(self._among(ARTIFACT.c.id, part)))
        ]

    async def all_exist(self, ids: Sequence[UUID]) -> bool:
        """Return whether all versions `ids` still exist."""
        return bool(await self._read_scalar(_count(ARTIFACT).where(self._among(ARTIFACT.c.id, ids))) == len(ids))

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Return those of the runs that exist and are not in a terminal state, with the times of their creation."""
        found: dict[UUID, datetime] = {}
        for table, ids in ((FLOW_RUN, list(flow_runs)), (TASK_RUN, list(task_runs))):
            for part in _slices(ids):
                lasting = sa.select(table.c.id, table.c.created).where(self._among(table.c.id, part), _is_unfinished(table))
                found.update((row[0], row[1]) for row in await self._read_rows(lasting))
        return found

    def reserve_slot(self) -> AbstractAsyncContextManager[None]:
        """Do nothing: each deletion reads what it depends on in its own transaction."""
        return nullcontext()

    async def delete(
        self,
        version_id: UUID,
        *,
        is_latest: bool = False,
        start_attempt: Callable[[], bool] | None = None,  # noqa: ARG002 - the transaction checks for itself
    ) -> bool:
        """Delete one version. Return True if this call deleted it, False if it no longer existed.

        With the only version of a key, its collection is deleted, too.

        Raises:
            KeptVersionError: The version is held; its run has not finished; or it is the latest of its key, and others exist
                or `is_latest` is False.
        """
        await self.pace(1)
        deleted = bool(await self._write(partial(self._delete, version_id=version_id, is_latest=is_latest)))
        if deleted:
            # The events of what somebody else has deleted are theirs.
            self._unpurged.append(version_id)
        return deleted

    async def delete_unchanged(self, deletions: Sequence[KeyDeletion]) -> dict[str, Mark | None]:
        """Delete stale versions of several keys in one transaction.

        A key is skipped if it has changed since it was judged, if another transaction is changing it, or if a run that wrote
        one of the versions has not finished. If the transaction keeps failing, or takes too long, all keys are skipped.

        Args:
            deletions: At most one for each key.

        Returns:
            The keys of which the versions were deleted, with their new mark if a further deletion follows.
        """
        delete = partial(self._delete_unchanged, deletions=deletions)
        try:
            try:
                marks = await self._write(partial(delete, skip_in_use=False))
            except KeptVersionError:
                # Usually, a run has become active again. To ask for the runs first, each time, would be slower.
                marks = await self._write(partial(delete, skip_in_use=True))
        except (_TransientError, _SlowError):
            return {}
        self._unpurged += (version_id for each in deletions if each.collection.key in marks for version_id in each.ids)
        return marks

    async def delete_unkeyed(self, ids: Sequence[UUID]) -> set[UUID]:
        """Delete artifacts without a key, except those that have retention metadata or are of an unfinished run.

        Returns:
            The ids deleted; none if the transaction keeps failing, or takes too long.
        """
        try:
            deleted = await self._write(lambda connection: self._delete_unkeyed(connection, ids))
        except (_TransientError, _SlowError):
            return set()
        self._unpurged += deleted
        return deleted

    async def purge_events(self) -> None:
        """Delete what the server's events hold of the versions deleted since the last call, if asked to.

        A failure is noted, and not raised: the versions are gone.
        """
        ids, self._unpurged = self._unpurged, []
        if not self.purge:
            return
        try:
            for part in _slices(ids):
                while sizes := await self._write(partial(self._purge_some, ids=part)):
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

    async def dangling(self, keys: Sequence[str]) -> list[str]:
        """Return those of the keys whose collection names a latest version that does not exist, or a left-over placeholder."""
        exists = sa.exists().where(ARTIFACT.c.id == COLLECTION.c.latest_id)
        others = sa.exists().where(ARTIFACT.c.key == COLLECTION.c.key, ARTIFACT.c.id != COLLECTION.c.latest_id)
        needs_repair = sa.or_(~exists, sa.and_(_IS_PLACEHOLDER, others))
        broken = sa.select(COLLECTION.c.key).where(needs_repair).order_by(COLLECTION.c.key)
        among = (self._among(COLLECTION.c.key, part) for part in _slices(keys))
        return [row[0] for these in among for row in await self._read_rows(broken.where(these))]

    async def repair(self, key: str) -> bool:
        """Repair a collection whose latest version has vanished, or finish such a repair. Return False if it needs none.

        The newest version of the key becomes its latest. If there is none, the vanished version is created again from the copy
        of its data in the collection.
        """
        return await self._write(lambda connection: self._repair(connection, key))

    async def disk_bytes(self) -> int:
        """Return the bytes that artifacts take on disk, with indexes and large values; on SQLite, those of the whole file."""
        pages = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        size: int = await self._read_scalar(sa.text(pages if self.is_sqlite else "SELECT pg_total_relation_size('artifact')"))
        return size

    async def vacuum(self) -> None:
        """Vacuum the table of the artifacts; on SQLite, the whole file.

        Raises:
            StoreError: The role may not vacuum the table, or it stays locked.
        """
        if self.is_sqlite:
            with self._translated_errors():
                async with self.engine.execution_options(begin="").connect() as connection:
                    await connection.exec_driver_sql("VACUUM")
            return
        ((table, role, may_vacuum),) = await self._read_rows(sa.text(_VACUUM))
        if not may_vacuum:
            # PostgreSQL itself would only warn.
            raise StoreError(f"{self.address}: the role {role} may not vacuum the table artifact")
        # The creation of an index, or another vacuum, may lock the table for hours, and a VACUUM can have no setting: so
        # the lock is waited for here; an autovacuum gives way to that.
        await self._read_once(partial(self._lock_for_vacuum, table=table))
        messages: list[str] = []
        async with self._slots:
            with self._translated_errors():
                async with self.engine.connect() as connection:
                    driver: Any = (await connection.get_raw_connection()).driver_connection
                    driver.add_log_listener(lambda _connection, message: messages.append(str(message)))
                    # In no transaction, so it must not be a prepared statement.
                    await driver.execute(f"VACUUM (SKIP_LOCKED, ANALYZE) {table}")
        if skipped := next((message for message in messages if "lock not available" in message), None):
            raise StoreError(f"{self.address}: {printable(skipped)}")

    async def _lock_for_vacuum(self, connection: AsyncConnection, table: str) -> None:
        await self._bound(connection, {"lock_timeout": BUSY_TIMEOUT_SECONDS * 1000})
        await connection.exec_driver_sql(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")

    # --- within a transaction

    async def _now(self, connection: AsyncConnection) -> datetime:
        if self.is_sqlite:
            text: str = (await connection.execute(sa.select(sa.func.strftime("%Y-%m-%d %H:%M:%f", "now")))).scalar_one()
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
        clock: datetime = (await connection.execute(sa.select(sa.func.clock_timestamp()))).scalar_one()
        return clock.astimezone(UTC)

    async def _delete(self, connection: AsyncConnection, version_id: UUID, *, is_latest: bool) -> int:
        this = ARTIFACT.c.id == version_id
        row = sa.select(ARTIFACT.c.key, ARTIFACT.c.metadata_, sa.and_(*_runs_have_ended())).where(this)
        key, metadata, runs_have_ended = (await connection.execute(row)).one_or_none() or (None, None, True)
        if not runs_have_ended or (metadata and await self._is_held(connection, metadata)):
            raise KeptVersionError(f"{version_id} is held, or the run that wrote it has not finished")
        collections = [] if key is None else await self._collections(connection, [key], lock=True)
        if any(each.latest_id == version_id for each in collections):
            if not is_latest or await connection.scalar(_count(ARTIFACT).where(ARTIFACT.c.key == key, ~this)):
                raise KeptVersionError(f"{version_id} is the latest version of its key")
            await connection.execute(sa.delete(COLLECTION).where(COLLECTION.c.key == key))
        return (await connection.execute(sa.delete(ARTIFACT).where(this))).rowcount

    async def _is_held(self, connection: AsyncConnection, metadata: Mapping[str, Any]) -> bool:
        control = read_control(control_metadata(metadata), await self._now(connection))
        return bool(control.held or control.unreadable)

    async def _delete_unchanged(
        self, connection: AsyncConnection, deletions: Sequence[KeyDeletion], *, skip_in_use: bool
    ) -> dict[str, Mark | None]:
        keys = [each.collection.key for each in deletions]
        locked = set(await self._collections(connection, keys, lock=True, skip_locked=True))
        marks = await self._marks(connection, [each.key for each in locked])
        going = [each for each in deletions if each.collection in locked and marks.get(each.collection.key) == each.mark]
        if skip_in_use:
            in_use = await self._keys_in_use(connection, [version_id for each in going for version_id in each.ids])
            going = [each for each in going if each.collection.key not in in_use]
        await self._delete_all_of(connection, going)
        left = await self._marks(connection, [each.collection.key for each in going if not each.is_last])
        return {each.collection.key: left.get(each.collection.key) for each in going}

    async def _delete_all_of(self, connection: AsyncConnection, deletions: Sequence[KeyDeletion]) -> None:
        """Delete the versions, and the collections of which no version is left.

        Raises:
            KeptVersionError: A version must be kept: it is the latest of a remaining collection, or its run has not finished.
                The caller has to roll back; a savepoint here would cost SQLite a copy of each page.
        """
        ids = [version_id for each in deletions for version_id in each.ids]
        if not ids:
            return
        if emptied := [each.collection.key for each in deletions if each.is_whole]:
            await connection.execute(sa.delete(COLLECTION).where(self._among(COLLECTION.c.key, emptied)))
        keys = [each.collection.key for each in deletions]
        latest = sa.select(COLLECTION.c.latest_id).where(self._among(COLLECTION.c.key, keys))
        is_stale = self._among(ARTIFACT.c.key, keys), ARTIFACT.c.id.not_in(latest)
        these = sa.delete(ARTIFACT).where(self._among(ARTIFACT.c.id, ids), *is_stale, *_runs_have_ended())
        if (await connection.execute(these)).rowcount != len(ids):
            raise KeptVersionError(f"{self.address} keeps a version that was to be deleted; the whole batch was rolled back")

    async def _delete_unkeyed(self, connection: AsyncConnection, ids: Sequence[UUID]) -> set[UUID]:
        these = self._among(ARTIFACT.c.id, ids)
        plain = self._control_text().is_(None)
        free = sa.select(ARTIFACT.c.id).where(these, _IS_UNKEYED, plain, *_runs_have_ended())
        going = set(await connection.scalars(free))
        await connection.execute(sa.delete(ARTIFACT).where(self._among(ARTIFACT.c.id, going)))
        return going

    async def _purge_some(self, connection: AsyncConnection, ids: Collection[UUID]) -> Sequence[int]:
        """Delete some of the events about these versions. Return the bytes of the payload of each."""
        about = self._among(EVENT_RESOURCE.c.resource_id, [f"{VERSION_RESOURCE}{version_id}" for version_id in ids])
        listing = (
            sa.select(EVENT.c.id, self._bytes(EVENT.c.payload))
            .where(EVENT.c.id.in_(sa.select(EVENT_RESOURCE.c.event_id).where(about)), EVENT.c.event.in_(ARTIFACT_EVENTS))
            .limit(MAX_PURGED_EVENTS)
        )
        rows = (await connection.execute(listing)).all()
        number = max(1, bisect_right(list(accumulate(row[1] for row in rows)), MAX_PURGED_BYTES))
        going = [row[0] for row in rows[:number]]
        await connection.execute(sa.delete(EVENT_RESOURCE).where(self._among(EVENT_RESOURCE.c.event_id, going)))
        await connection.execute(sa.delete(EVENT).where(self._among(EVENT.c.id, going)))
        return [row[1] for row in rows[:number]]

    async def _repair(self, connection: AsyncConnection, key: str) -> bool:
        collections = await self._collections(connection, [key], lock=True)
        if not collections:
            return False
        is_latest = ARTIFACT.c.id == collections[0].latest_id
        if await connection.scalar(_count(ARTIFACT).where(is_latest)):
            others = collections[0].is_placeholder and await connection.scalar(
                _count(ARTIFACT).where(ARTIFACT.c.key == key, ~is_latest)
            )
            if not others:
                return False
            # A placeholder that an interrupted repair through the API has left.
            await connection.execute(sa.delete(ARTIFACT).where(is_latest))
        ranked = sa.select(ARTIFACT.c.id).order_by(ARTIFACT.c.created.desc(), ARTIFACT.c.id.desc())
        newest = await connection.scalar(ranked.where(ARTIFACT.c.key == key).limit(1))
        if newest is None:
            # For a version that was the latest from its creation on, the collection has that date in `updated` only.
            copied = ("latest_id", "key", "updated", "updated", *COPIED)
            row = sa.select(*(COLLECTION.c[name].label(f"copied_{index}") for index, name in enumerate(copied)))
            names = ["id", "key", "created", "updated", *COPIED]
            await connection.execute(sa.insert(ARTIFACT).from_select(names, row.where(COLLECTION.c.key == key)))
        else:
            names = ["created", "updated", *COPIED]
            values = {name: sa.select(ARTIFACT.c[name]).where(ARTIFACT.c.id == newest).scalar_subquery() for name in names}
            change = sa.update(COLLECTION).where(COLLECTION.c.key == key).values(latest_id=newest, **values)
            await connection.execute(change)
        return True

    async def _collections(
        self, connection: AsyncConnection, keys: Collection[str], *, lock: bool = False, skip_locked: bool = False
    ) -> list[ArtifactCollection]:
        """Read collections, and lock them in the order of their keys if `lock` is set; SQLite locks the whole database."""
        query = _collections().where(self._among(COLLECTION.c.key, keys)).order_by(COLLECTION.c.key)
        if lock:
            query = query.with_for_update(key_share=True, skip_locked=skip_locked)
        return [ArtifactCollection(*row) for row in await connection.execute(query)]

    async def _histories(self, connection: AsyncConnection, keys: Sequence[str]) -> list[History]:
        """Read versions as one row a key, with a list for each column: several times as fast as one row a version."""
        these = self._among(ARTIFACT.c.key, keys)
        rows = sa.select(
            ARTIFACT.c.key,
            self._fingerprint.label("fingerprint"),
            sa.cast(self._control_text().is_not(None), sa.Integer).label("is_controlled"),
            *self._plain_columns(),
        ).where(these)
        if not self.is_sqlite:
            # Without this, PostgreSQL sorts whole rows, payloads included, before it computes the columns.
            rows = rows.offset(0)
        key, fingerprint, is_controlled, *columns = rows.subquery().c
        sums = sa.func.count(), sa.func.sum(fingerprint), sa.func.sum(is_controlled)
        found = (await connection.execute(sa.select(key, *sums, *map(self._listed, columns)).group_by(key))).all()
        controls = await self._controls(connection, [row[0] for row in found if row[3]])
        histories = {}
        for name, count, fingerprints, _controlled, *lists in found:
            ids, *others = self._read_columns(lists)
            metadata = [controls.get(version_id, NO_METADATA) for version_id in ids]
            histories[name] = History(name, Versions(name, [ids, *others, metadata]), mark=(count, int(fingerprints)))
        return [histories.get(name) or History(name, Versions.of(()), mark=(0, 0)) for name in keys]

    async def _controls(self, connection: AsyncConnection, keys: Sequence[str]) -> Mapping[UUID, Mapping[str, str]]:
        """Read the holds and TTLs of the versions of these keys.

        They are read apart from the versions, because metadata may be large and seldom has any.
        """
        if not keys:
            return {}
        text = self._control_text()
        rows = sa.select(ARTIFACT.c.id, text).where(self._among(ARTIFACT.c.key, keys), text.is_not(None))
        stream = await connection.stream(rows.execution_options(yield_per=METADATA_ROWS_PER_FETCH))
        return {version_id: _control(metadata) async for version_id, metadata in stream}

    def _listed(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Aggregate the values of a column into a list, in the same order as the other columns."""
        if self.is_sqlite:
            return sa.func.json_group_array(sa.type_coerce(column, sa.types.NullType()))
        return sa.type_coerce(sa.func.array_agg(column), sa.types.NullType())

    def _read_columns(self, lists: Sequence[Any]) -> Sequence[Sequence[Any]]:
        if not self.is_sqlite:
            return lists
        ids, created, updated, types, sizes, flow_run_ids, task_run_ids = map(json.loads, lists)
        times = read_times(created), read_times(updated)
        return [read_ids(ids), *times, types, sizes, read_ids(flow_run_ids), read_ids(task_run_ids)]

    async def _marks(self, connection: AsyncConnection, keys: Sequence[str]) -> dict[str, Mark]:
        """Read the marks of keys: the number of their versions, and the sum of the fingerprints."""
        marked = sa.select(ARTIFACT.c.key, sa.func.count(), sa.func.sum(self._fingerprint))
        rows = await connection.execute(marked.where(self._among(ARTIFACT.c.key, keys)).group_by(ARTIFACT.c.key))
        return {key: (count, int(fingerprints)) for key, count, fingerprints in rows.all()}

    async def _keys_in_use(self, connection: AsyncConnection, ids: Collection[UUID]) -> set[str]:
        """Return the keys of those versions whose flow run or task run has not finished."""
        in_use = sa.select(ARTIFACT.c.key).where(self._among(ARTIFACT.c.id, ids), ~sa.and_(*_runs_have_ended())).distinct()
        return set(await connection.scalars(in_use))

    async def _present(self, column: sa.Column[UUID], ids: Collection[UUID]) -> Sequence[UUID]:
        return [row[0] for row in await self._read_rows(sa.select(column).where(self._among(column, ids)))]

    async def _read_scalar(self, query: sa.Executable) -> Any:  # noqa: ANN401 - whatever is asked for
        return await self._read(lambda connection: connection.scalar(query))

    async def _read_rows(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        async def read(connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
            return (await connection.execute(query)).all()

        return await self._read(read)

    # --- transactions

    async def _read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Read in a transaction, retried as `_write` is.

        Raises:
            StoreError: The database cannot be reached or refuses a statement.
        """
        return await self._retried(partial(self._read_once, work))

    async def _read_once(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with self._slots:
            with self._translated_errors():
                async with self.engine.begin() as connection:
                    await self._bound(connection, {"statement_timeout": READ_TIMEOUT_SECONDS * 1000})
                    return await work(connection)

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Do some work in a transaction that sees one state of the database, retried after transient errors.

        Raises:
            StoreError: The database cannot be reached or refuses a statement; a `_TransientError` if the last attempt met one.
        """
        return await self._retried(partial(self._write_once, work))

    async def _write_once(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        transaction: int | None = None
        done: list[T] = []
        try:
            async with self._slots:
                with self._translated_errors():
                    async with self._writer.begin() as connection:
                        timeouts = {
                            "statement_timeout": WRITE_TIMEOUT_SECONDS * 1000,
                            "lock_timeout": LOCK_TIMEOUT_MILLISECONDS,
                        }
                        transaction = await self._bound(connection, timeouts, sa.func.txid_current())
                        done.append(await work(connection))
        except _LostConnectionError:
            # It may have been lost after the COMMIT was sent.
            if not done or not await self._is_committed(transaction):
                raise
        return done[0]

    async def _is_committed(self, transaction: int | None) -> bool:
        """Return whether a transaction was committed whose connection was lost."""
        status = sa.select(sa.func.txid_status(sa.literal(transaction, sa.BigInteger)))
        for _poll in range(RECONNECT_SECONDS):
            # The server may not have noticed yet that nobody is there any more.
            if (found := await self._read_scalar(status)) != "in progress":
                return bool(found == "committed")
            await asyncio.sleep(1)
        return False

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat a transaction after transient errors; and after the loss of its connection, once the run has begun."""
        pause = FIRST_RETRY_PAUSE_SECONDS
        attempts = 0
        while True:
            try:
                result = await attempt()
            except _TransientError:
                self._lost_since = None
                attempts += 1
                if attempts == MAX_TRANSACTION_ATTEMPTS:
                    raise
                await asyncio.sleep(pause)
                pause *= 2
            except _LostConnectionError:
                if not self._is_checked or self._seconds_lost() > RECONNECT_SECONDS:
                    raise
                await asyncio.sleep(RECONNECT_PAUSE_SECONDS)
            else:
                self._lost_since = None
                return result

    def _seconds_lost(self) -> float:
        """Return for how long the database has been out of reach, for all transactions together."""
        now = asyncio.get_running_loop().time()
        self._lost_since = self._lost_since or now
        return now - self._lost_since

    async def _bound(
        self, connection: AsyncConnection, settings: Mapping[str, int], *asked: sa.ColumnElement[int]
    ) -> int | None:
        """Apply settings and the search path to the transaction. Return the first of the values asked for, if any."""
        if self.is_sqlite:
            return None
        named: dict[str, object] = {**settings, **({"search_path": self.search_path} if self.search_path else {})}
        applied = (sa.func.set_config(name, str(value), sa.true()) for name, value in named.items())
        row = (await connection.execute(sa.select(*asked, *applied))).one()
        return row[0] if asked else None

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate errors into `StoreError`, without passwords and data: the libraries quote whole statements."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            code = getattr(error.orig, "sqlstate", None)
            kind: type[StoreError] = StoreError
            if error.connection_invalidated or _is_lost(code):
                kind = _LostConnectionError
            elif code == STATEMENT_TIMEOUT_SQLSTATE:
                kind = _SlowError
            elif code in TRANSIENT_SQLSTATES or "database is locked" in str(error.orig):
                kind = _TransientError
            raise kind(f"{self.address}: {self._reason(error.orig)}") from None
        except (sa.exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            is_lost = isinstance(error, OSError) or _is_lost(getattr(error, "sqlstate", None))
            kind = _LostConnectionError if is_lost else StoreError
            raise kind(f"cannot use {self.address}: {self._reason(error)}") from None

    def _reason(self, error: BaseException | None) -> str:
        cause = error.__cause__ if error and error.__cause__ else error
        text = printable(str(cause).partition("\n")[0]) or type(cause).__name__
        for secret in self._secrets:
            # A short one would be found in the middle of words, and the message would be a riddle that gives it away.
            quoted = re.escape(secret) if len(secret) >= MIN_SECRET_CHARS else rf"(?<!\w){re.escape(secret)}(?!\w)"
            text = re.sub(quoted, "***", text)
        return text

    # --- expressions

    def _among(self, column: sa.Column[Any], values: Collection[Any]) -> sa.ColumnElement[bool]:
        """Compare a column with any number of values, which are passed as a single parameter."""
        if self.is_sqlite:
            listed = sa.func.json_each(json.dumps([str(value) for value in values])).table_valued("value")
            return column.in_(sa.select(sa.type_coerce(listed.c.value, column.type)))
        return column == sa.any_(sa.literal(list(values), sa.ARRAY(column.type)))

    def _versions(self) -> sa.Select[Any]:
        """Select the fields of `Version`, in its order."""
        version_id, *columns = self._plain_columns()
        return sa.select(version_id, ARTIFACT.c.key, *columns, self._control_text())

    def _control_text(self) -> sa.ColumnElement[str | None]:
        """The metadata as text if it may have retention entries, else NULL."""
        text = sa.cast(ARTIFACT.c.metadata_, sa.Text)
        # In the collation of a Turkish database, the lower case of I is no i.
        compared = text if self.is_sqlite else sa.collate(text, "C")
        return sa.case((sa.func.lower(compared).contains(METADATA_WORD), text))

    def _bytes(self, column: sa.Column[Any]) -> sa.ColumnElement[int]:
        """The length of a column of JSON; without a value, that of a null."""
        length = sa.func.length(sa.cast(column, sa.BLOB)) if self.is_sqlite else sa.func.octet_length(sa.cast(column, sa.Text))
        return sa.func.coalesce(length, 4)

    def _plain_columns(self) -> tuple[sa.ColumnElement[Any], ...]:
        """The fields of `Version`, in its order, without the key and the metadata."""
        size = self._bytes(ARTIFACT.c.data)
        if self.is_sqlite:
            # SQLite stores a bare number as a number, and prints fractions differently from Python.
            size = sa.case((sa.func.typeof(ARTIFACT.c.data) == "real", sa.func.python_length(ARTIFACT.c.data)), else_=size)
        c = ARTIFACT.c
        return (
            *(c.id, c.created, c.updated, c.type),
            sa.type_coerce(size, sa.types.NullType()),
            *(c.flow_run_id, c.task_run_id),
        )


class _TransientError(StoreError):
    """Another transaction is changing or locking the same rows."""


class _SlowError(StoreError):
    """A statement has reached its timeout."""


class _LostConnectionError(StoreError):
    """The connection was lost, or could not be opened; the database may be restarting."""


def _is_lost(sqlstate: str | None) -> bool:
    return sqlstate is not None and (sqlstate in LOST_SQLSTATES or sqlstate.startswith("08"))


_WRITER: sa.ColumnElement[int] = sa.literal_column(
    "hashtextextended(artifact.xmin::text, uuid_hash(artifact.id))", sa.BigInteger
)
"""The fingerprint of a row in PostgreSQL: the transaction that wrote it, which differs after every change."""

_CONTENT: sa.ColumnElement[int] = sa.literal_column(
    "python_hash(artifact.id || artifact.created || artifact.updated || coalesce(artifact.metadata_, ''))", sa.BigInteger
)
"""The fingerprint of a row in SQLite, which keeps no transaction ids: the columns on which a verdict depends."""

_FEWER_BITS = 20
"""Bits dropped from a fingerprint: the sum over a million versions must fit into 64 bits, or SQLite fails."""

_IS_READ_ONLY = "SELECT current_setting('transaction_read_only') = 'on'"
_NEEDED = (("artifact", "DELETE"), ("artifact_collection", "UPDATE"), ("artifact_collection", "DELETE"))
_NEEDED_FOR_EVENTS = tuple((table, privilege) for table in ("events", "event_resources") for privilege in ("SELECT", "DELETE"))
"""What a role must be granted, besides what is read."""

_VACUUM = """
SELECT format('%I.%I', nspname, relname), current_user, CASE WHEN current_setting('server_version_num')::int >= 170000
  THEN has_table_privilege(c.oid, 'MAINTAIN') ELSE pg_has_role(relowner, 'USAGE') END
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = 'artifact'::regclass
"""
"""The whole name of the table of the artifacts, the role, and whether it may vacuum the table."""

_SCHEMAS = """
SELECT quote_ident(nspname), CASE WHEN NOT pg_table_is_visible(c.oid)
  THEN concat_ws(', ', quote_ident(nspname), nullif(current_setting('search_path'), '')) ELSE '' END
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relname = 'artifact' AND relkind IN ('r', 'p')
  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
ORDER BY pg_table_is_visible(c.oid) DESC, nspname
"""
"""The schemas with a table of the artifacts, first the one that is found without its name, and search paths for the others."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine, which connects when it is first used.

    Attributes:
        engine: The engine.
        label: The database, as messages name it.
        search_path: The schemas in which its tables are looked for; empty for the role's own.
        secrets: What messages must not have.
    """

    engine: AsyncEngine
    label: str
    search_path: str = ""
    secrets: tuple[str, ...] = ()


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
    opened = _open(url)
    try:
        yield DatabaseStore(opened, max_per_second, purges_events=purges_events)
    finally:
        await opened.engine.dispose()


def _open(text: str) -> Opened:
    # Kubernetes secrets often end with a line break.
    text = text.strip()
    if is_sqlite(text):
        try:
            url = sa.make_url(text).set(drivername="sqlite+aiosqlite")
        except (sa.exc.ArgumentError, ValueError):
            raise StoreError(LOOKS) from None
        return Opened(_sqlite_engine(url), f"the SQLite database {url.database}")
    address = read_postgres_address(text)
    # No named prepared statements: the next transaction may get another connection from a pool, which does not know them. And
    # after five uses, PostgreSQL plans one for any values, and assumes ten where there are thousands. The setting
    # plan_cache_mode would affect the triggers of each row, too.
    unnamed = {"statement_cache_size": 0, "prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}
    engine = _pooled("postgresql+asyncpg://", dsn=address.dsn, timeout=address.timeout, **unnamed)
    host = f" at {address.host}" if address.host else ""
    return Opened(engine, f"the PostgreSQL database {address.name}{host}", address.search_path, address.secrets)


def _pooled(url: str | sa.URL, **connect_args: object) -> AsyncEngine:
    return create_async_engine(url, connect_args=connect_args, pool_size=MAX_CONNECTIONS, max_overflow=0, pool_use_lifo=True)


def _sqlite_engine(url: sa.URL) -> AsyncEngine:
    # SQLite would create a missing file.
    if not url.database or not Path(url.database).is_file():
        raise StoreError(f"there is no SQLite database {url.database}; {WAY_OUT}")
    engine = _pooled(url, timeout=BUSY_TIMEOUT_SECONDS)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401 - the adapter of a driver
        # None: the driver begins no transactions by itself.
        connection.isolation_level = None
        connection.create_function("python_hash", 1, lambda text: hash(text) >> _FEWER_BITS)
        connection.create_function("python_length", 1, lambda value: len(json.dumps(value)))
        # As Prefect sets it: states of runs may refer to an artifact, and must not refer to a deleted one.
        cursor = connection.cursor()
        for setting in ("foreign_keys = ON", "synchronous = NORMAL", "cache_size = 20000"):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        if mode := connection.get_execution_options().get("begin", "DEFERRED"):
            connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


_IS_UNKEYED = sa.and_(ARTIFACT.c.key.is_(None), ARTIFACT.c.type != RESULT)
"""Selects artifacts without a key, except results of runs: of type `result`, or NULL, which SQL never finds unequal."""

_IS_PLACEHOLDER = sa.and_(
    COLLECTION.c.metadata_[PLACEHOLDER_OF].as_string().is_not(None), COLLECTION.c.metadata_[HOLD].as_string().is_(None)
)


def _collections() -> sa.Select[tuple[str, UUID, str | None, bool, datetime]]:
    return sa.select(COLLECTION.c.key, COLLECTION.c.latest_id, COLLECTION.c.type, _IS_PLACEHOLDER, COLLECTION.c.updated)


def _count(table: sa.Table) -> sa.Select[tuple[int]]:
    return sa.select(sa.func.count()).select_from(table)


def _is_unfinished(table: sa.Table) -> sa.ColumnElement[bool]:
    state = sa.cast(table.c.state_type, sa.Text)
    return sa.or_(state.is_(None), state.not_in(sorted(TERMINAL_STATE_TYPES)))


def _runs_have_ended() -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """Conditions that the flow run and the task run of an artifact are finished, or no longer exist."""
    return (
        ~sa.exists().where(FLOW_RUN.c.id == ARTIFACT.c.flow_run_id, _is_unfinished(FLOW_RUN)),
        ~sa.exists().where(TASK_RUN.c.id == ARTIFACT.c.task_run_id, _is_unfinished(TASK_RUN)),
    )


def _version(row: Sequence[Any]) -> Version:
    *columns, metadata = row
    return Version._make((*columns, _control(metadata)))


def _control(metadata: str | None) -> Mapping[str, str]:
    if metadata is None:
        return NO_METADATA
    try:
        return control_metadata(json.loads(metadata))
    except ValueError:
        return control_metadata(metadata)


async def _ahead(items: Iterable[T], read: Callable[[T], Coroutine[Any, Any, R]], at_once: int) -> AsyncGenerator[R]:
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
