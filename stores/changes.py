"""What is changed in a Prefect server's database in one transaction: versions deleted, collections repaired, events purged.

Whoever deletes versions of a key locks its collection first: creating a version, and making another version the latest, wait
for that lock.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.archive.model import CollectionRow
from prefect_artifact_retention.stores.queries import IS_UNKEYED, Queries, count, is_placeholder
from prefect_artifact_retention.stores.schema import (
    ARTIFACT,
    ARTIFACT_EVENTS,
    COLLECTION,
    COPIED,
    EVENT,
    EVENT_RESOURCE,
    VERSION_RESOURCE,
)
from prefect_artifact_retention.stores.store import Collection as ArtifactCollection
from prefect_artifact_retention.stores.store import Mark
from sqlalchemy.dialects import postgresql, sqlite

MAX_PURGED_EVENTS = 1_000
MAX_PURGED_BYTES = 32 * 2**20
"""Events deleted in one transaction, and the bytes of what they hold, unless a single one holds more."""


_UPDATE_ARRAYS = (
    "UPDATE artifact SET data = given.data::json FROM unnest($1::uuid[], $2::text[]) AS given (id, data) "
    "WHERE artifact.id = given.id"
)
_UPDATE_ROW = "UPDATE artifact SET data = ? WHERE id = ?"


class Replacement(NamedTuple):
    """Other data for a version that stays, provided that it is as it was archived.

    Attributes:
        id: Its id.
        key: Its key.
        latest_type: The type of the latest version of the key when it was judged.
        state: The state of the version when it was archived.
        flow_run_id: The flow run that wrote it.
        task_run_id: The task run that wrote it.
        data: The text of the JSON of its new data, which is no bare number.
    """

    id: UUID
    key: str
    latest_type: str | None
    state: object
    flow_run_id: UUID | None
    task_run_id: UUID | None
    data: str


@dataclass(frozen=True, slots=True)
class KeyDeletion:
    """Versions of one key to delete in a transaction, provided that nothing of the key has changed since it was judged.

    Attributes:
        collection: The collection when it was judged.
        mark: The state of its versions when they were judged.
        ids: The versions to delete; the latest among them only if they are all versions of the key.
        is_last: Whether no further deletion of the same key follows.
        archived: The sum of the states of the versions as they were archived; None if they need not be.
    """

    collection: ArtifactCollection
    mark: Mark
    ids: Sequence[UUID]
    is_last: bool
    archived: int | None = None

    @property
    def key(self) -> str:
        """The key."""
        return self.collection.key


class _State(NamedTuple):
    """What is compared of a key: its mark, the sum of the states of some versions, and the runs that wrote its versions."""

    mark: Mark
    sum: int | None
    flow_runs: Collection[UUID]
    task_runs: Collection[UUID]

    @property
    def runs(self) -> Iterator[UUID]:
        """All runs."""
        return chain(self.flow_runs, self.task_runs)


class Changes(Queries):
    """Reads and changes rows in the transaction of a connection, which sees one state of the database."""

    async def lock(self, keys: Collection[str], *, skip_locked: bool = False) -> list[ArtifactCollection]:
        """Read collections, and lock them in the order of their keys; SQLite locks the whole database."""
        query = self.selected_collections(keys).with_for_update(key_share=True, skip_locked=skip_locked)
        return [ArtifactCollection(*row) for row in await self.all(query)]

    async def delete_unchanged(self, deletions: Sequence[KeyDeletion]) -> dict[str, Mark | None]:
        """Delete stale versions of several keys.

        A key is passed over if it has changed since it was judged, or one of the versions since it was archived; if another
        transaction is changing it; or if a run that wrote one of its versions has not finished: an idle key, all of which is
        to go, need not be idle any more.

        Args:
            deletions: At most one for each key.

        Returns:
            The keys of which the versions were deleted, with their new mark if a further deletion follows.
        """
        locked = set(await self.lock([each.key for each in deletions], skip_locked=True))
        archived = [version_id for each in deletions if each.archived is not None for version_id in each.ids]
        states = await self._states([each.key for each in locked], archived)
        running = await self.unfinished(
            {run_id for state in states.values() for run_id in state.flow_runs},
            {run_id for state in states.values() for run_id in state.task_runs},
        )
        going = [
            each
            for each in deletions
            if each.collection in locked
            and (state := states.get(each.key))
            and (state.mark == each.mark and each.archived in {None, state.sum})
            and running.keys().isdisjoint(state.runs)
        ]
        emptied = [each.key for each in going if len(each.ids) == each.mark[0]]
        await self.delete([version_id for each in going for version_id in each.ids], [each.key for each in going], emptied)
        left = await self._states([each.key for each in going if not each.is_last])
        return {each.key: left[each.key].mark if each.key in left else None for each in going}

    async def delete(self, ids: Collection[UUID], keys: Collection[str], emptied: Collection[str] = ()) -> None:
        """Delete versions of some keys that are locked.

        Args:
            ids: The versions.
            keys: Their keys.
            emptied: Those of the keys of which no version is left; their collections go, too.

        Raises:
            StoreError: One of the versions does not exist, or is the latest of a collection that stays.
        """
        if not ids:
            return
        if emptied:
            await self.connection.execute(sa.delete(COLLECTION).where(self.among(COLLECTION.c.key, emptied)))
        latest = sa.select(COLLECTION.c.latest_id).where(self.among(COLLECTION.c.key, keys))
        these = self.among(ARTIFACT.c.id, ids), self.among(ARTIFACT.c.key, keys), ARTIFACT.c.id.not_in(latest)
        if (await self.connection.execute(sa.delete(ARTIFACT).where(*these))).rowcount != len(ids):
            # The caller's transaction is rolled back; a savepoint here would cost SQLite a copy of each page.
            raise StoreError("a version that was to be deleted is the latest of its key, or does not exist")

    async def replace_data(self, replacements: Sequence[Replacement]) -> set[UUID]:
        """Replace the data of versions, and nothing else of them. Return their ids.

        A version is passed over if it has changed since it was archived; if it is the latest by now, or the latest is of
        another type, which may have another policy; if another transaction is changing its key; or if a run that wrote it has
        not finished.
        """
        locked = await self.lock({each.key for each in replacements}, skip_locked=True)
        collections = {each.key: each for each in locked}
        states = await self.states([each.id for each in replacements])
        running = await self.unfinished(
            {each.flow_run_id for each in replacements if each.flow_run_id},
            {each.task_run_id for each in replacements if each.task_run_id},
        )
        going = {
            each.id: each.data
            for each in replacements
            if states.get(each.id) == each.state
            and (collection := collections.get(each.key))
            and (collection.latest_id != each.id and collection.type == each.latest_type)
            and running.keys().isdisjoint({each.flow_run_id, each.task_run_id})
        }
        if going and self.is_sqlite:
            rows = [(data, str(version_id)) for version_id, data in going.items()]
            await self.connection.exec_driver_sql(_UPDATE_ROW, rows)
        elif going:
            await self.connection.exec_driver_sql(_UPDATE_ARRAYS, (list(going), list(going.values())))
        return set(going)

    async def delete_unkeyed(self, ids: Collection[UUID]) -> None:
        """Delete artifacts without a key."""
        await self.connection.execute(sa.delete(ARTIFACT).where(self.among(ARTIFACT.c.id, ids), IS_UNKEYED))

    async def purge_events(self, ids: Collection[UUID]) -> Sequence[int]:
        """Delete some of the events about these versions. Return the bytes of the payload of each."""
        about = self.among(EVENT_RESOURCE.c.resource_id, [f"{VERSION_RESOURCE}{version_id}" for version_id in ids])
        listing = (
            sa.select(EVENT.c.id, self.bytes(EVENT.c.payload))
            .where(EVENT.c.id.in_(sa.select(EVENT_RESOURCE.c.event_id).where(about)), EVENT.c.event.in_(ARTIFACT_EVENTS))
            .limit(MAX_PURGED_EVENTS)
        )
        rows = await self.all(listing)
        number = max(1, bisect_right(list(accumulate(row[1] for row in rows)), MAX_PURGED_BYTES))
        going = [row[0] for row in rows[:number]]
        await self.connection.execute(sa.delete(EVENT_RESOURCE).where(self.among(EVENT_RESOURCE.c.event_id, going)))
        await self.connection.execute(sa.delete(EVENT).where(self.among(EVENT.c.id, going)))
        return [row[1] for row in rows[:number]]

    async def create_collection(self, latest_id: UUID, row: CollectionRow | None = None) -> bool:
        """Create the collection of a version, which becomes the latest. Return False if there is one.

        Args:
            latest_id: The version.
            row: The collection as it was; None makes a new one.
        """
        given: dict[str, sa.ColumnElement[Any]] = {"latest_id": ARTIFACT.c.id}
        given |= {name: ARTIFACT.c[name] for name in ("key", "created", "updated", *COPIED)}
        given["id"] = sa.literal(row.id if row else uuid4(), COLLECTION.c.id.type)
        if row:
            given |= {name: sa.literal(getattr(row, name), COLLECTION.c[name].type) for name in ("created", "updated")}
        columns = (column.label(f"given_{name}") for name, column in given.items())
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        inserting = insert(COLLECTION).from_select(list(given), sa.select(*columns).where(ARTIFACT.c.id == latest_id))
        return (
            await self.scalar(inserting.on_conflict_do_nothing(index_elements=["key"]).returning(COLLECTION.c.key)) is not None
        )

    async def repair(self, key: str, *, to_newest: bool = False) -> bool:
        """Repair a collection whose latest version has vanished, or finish such a repair. Return False if it needs none.

        The newest version of the key becomes its latest. If there is none, the vanished version is created again from the copy
        of its data in the collection.

        Args:
            key: The key.
            to_newest: Whether to make the newest version the latest, too, if another one is, and to create a collection that
                is missing.
        """
        collections = await self.lock([key])
        if not collections:
            newest = await self.newest(key) if to_newest else None
            return newest is not None and await self.create_collection(newest)
        is_latest = ARTIFACT.c.id == collections[0].latest_id
        if await self.scalar(count(ARTIFACT).where(is_latest)):
            others = collections[0].is_placeholder and await self.scalar(
                count(ARTIFACT).where(ARTIFACT.c.key == key, ~is_latest)
            )
            if others:
                # A placeholder that an interrupted repair through the API has left; or another version than the collection
                # has the metadata of.
                own = ARTIFACT.c.key == key, is_placeholder(ARTIFACT)
                await self.connection.execute(sa.delete(ARTIFACT).where(is_latest, *own))
            elif not to_newest or (
                not await self.is_behind(key, collections[0].latest_id) and await self.newest(key) is not None
            ):
                return False
        newest = await self.newest(key)
        if newest is None:
            if await self.scalar(count(ARTIFACT).where(is_latest)):
                # It is a version of another key, which keeps it.
                await self.connection.execute(sa.update(COLLECTION).where(COLLECTION.c.key == key).values(latest_id=uuid4()))
            # For a version that was the latest from its creation on, the collection has that date in `updated` only.
            copied = ("latest_id", "key", "updated", "updated", *COPIED)
            row = sa.select(*(COLLECTION.c[name].label(f"copied_{index}") for index, name in enumerate(copied)))
            names = ["id", "key", "created", "updated", *COPIED]
            await self.connection.execute(sa.insert(ARTIFACT).from_select(names, row.where(COLLECTION.c.key == key)))
        else:
            names = ["created", "updated", *COPIED]
            values = {name: sa.select(ARTIFACT.c[name]).where(ARTIFACT.c.id == newest).scalar_subquery() for name in names}
            change = sa.update(COLLECTION).where(COLLECTION.c.key == key).values(latest_id=newest, **values)
            await self.connection.execute(change)
        return True

    async def delete_placeholders(self, key: str, ids: Collection[UUID]) -> None:
        """Delete those of the versions that are placeholders of a key still, unless one is its latest version, or none is."""
        if not (latest := [each.latest_id for each in await self.lock([key])]):
            return
        own = ARTIFACT.c.key == key, is_placeholder(ARTIFACT), ARTIFACT.c.id.not_in(latest)
        await self.connection.execute(sa.delete(ARTIFACT).where(self.among(ARTIFACT.c.id, ids), *own))

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Insert rows by COPY, which only PostgreSQL has."""
        driver: Any = (await self.connection.get_raw_connection()).driver_connection
        copying = asyncio.ensure_future(driver.copy_records_to_table(table, columns=columns, records=rows))

        def end(_driver: object) -> None:
            copying.cancel()

        # Once its buffer is full, the driver would wait for a lost connection for ever.
        driver.add_termination_listener(end)
        try:
            await copying
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            driver.terminate()
            lost = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
            raise sa.exc.DBAPIError("COPY", None, lost) from None
        except (asyncpg.PostgresError, ValueError, TypeError, OverflowError) as error:
            # As of any other statement; SQLAlchemy knows nothing of this one. The others are what the driver cannot encode.
            raise sa.exc.DBAPIError("COPY", None, error) from error
        finally:
            driver.remove_termination_listener(end)

    async def touch(self) -> None:
        """Write what is there already: a transaction of SQLite can begin, and not find out before its first change."""
        version = (await self.connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
        await self.connection.exec_driver_sql(f"PRAGMA user_version = {int(version)}")

    async def mark(self, key: str) -> Mark | None:
        """Read the mark of a key; None if it has no version."""
        state = (await self._states([key])).get(key)
        return state.mark if state else None

    async def _states(self, keys: Collection[str], ids: Collection[UUID] = ()) -> Mapping[str, _State]:
        """Read the marks of keys that have versions, the sums of the states of some of these, and the runs that wrote all."""
        if not keys:
            return {}
        runs = (ARTIFACT.c.flow_run_id, ARTIFACT.c.task_run_id)
        lists = (self.listed(column).filter(column.is_not(None)) for column in runs)
        compared = sa.func.sum(self.state).filter(self.among(ARTIFACT.c.id, ids))
        states = sa.select(ARTIFACT.c.key, sa.func.count(), sa.func.sum(self.fingerprint), compared, *lists)
        rows = await self.all(states.where(self.among(ARTIFACT.c.key, keys)).group_by(ARTIFACT.c.key))
        return {
            key: _State(
                (number, int(fingerprints)),
                None if compared is None else int(compared),
                self.read_listed_ids(flow_runs),
                self.read_listed_ids(task_runs),
            )
            for key, number, fingerprints, compared, flow_runs, task_runs in rows
        }
