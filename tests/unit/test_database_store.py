"""What the store of a database does at its edges, on a file of SQLite without a server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.changes import Changes
from prefect_artifact_retention.stores.database import DatabaseStore, open_database
from prefect_artifact_retention.stores.queries import hash_of
from prefect_artifact_retention.stores.schema import ARTIFACT, ARTIFACT_EVENTS, EVENT, EVENT_RESOURCE, VERSION_RESOURCE
from prefect_artifact_retention.stores.transactions import MAX_CONNECTIONS


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DatabaseStore]:
    """The store of a database that has the tables, and nothing in them."""
    file = tmp_path / "prefect.db"
    engine = sa.create_engine(f"sqlite:///{file}")
    for table in (ARTIFACT, EVENT):
        table.metadata.create_all(engine)
    engine.dispose()
    async with open_database(f"sqlite:///{file}", purges_events=True) as opened:
        yield opened


async def insert_event(store: DatabaseStore, version_id: UUID) -> None:
    """Insert an event about a version."""
    event_id = uuid4()
    async with store.transactions.engine.begin() as connection:
        await connection.execute(sa.insert(EVENT).values(id=event_id, event=ARTIFACT_EVENTS[0], payload={}))
        resource = f"{VERSION_RESOURCE}{version_id}"
        await connection.execute(sa.insert(EVENT_RESOURCE).values(event_id=event_id, resource_id=resource))


async def test_only_the_events_of_the_versions_deleted_are_purged(store: DatabaseStore) -> None:
    """Of a version that somebody else has deleted, they are not ours."""
    ours, others = uuid4(), uuid4()
    for version_id in (ours, others):
        await insert_event(store, version_id)
    await store.purge_events([ours])
    async with store.transactions.engine.connect() as connection:
        left = list(await connection.scalars(sa.select(EVENT_RESOURCE.c.resource_id)))
    assert left == [f"{VERSION_RESOURCE}{others}"]


@pytest.mark.parametrize(("available", "kept"), [(1, 1), (2, 1), (3, 2), (MAX_CONNECTIONS, MAX_CONNECTIONS)])
async def test_one_of_few_connections_is_left_to_others(store: DatabaseStore, available: int, kept: int) -> None:
    """It is closed, and opened by no later use."""
    opened: set[int] = set()

    def connect(_dialect: object, record: Any, _arguments: object, _options: object) -> None:  # noqa: ANN401
        if len(opened) == available:
            raise OSError("too many connections")
        opened.add(id(record))

    pool = store.transactions.engine.sync_engine.pool
    sa.event.listen(store.transactions.engine.sync_engine, "do_connect", connect)
    sa.event.listen(pool, "invalidate", lambda _connection, record, _error: opened.discard(id(record)))
    await store.transactions.limit_connections()
    assert len(opened) == kept
    assert store.transactions.connections == kept
    await store.disk_bytes()
    assert len(opened) == kept


async def test_a_short_password_is_masked_only_where_it_is_a_word() -> None:
    """Else the message would be a riddle, of which the letters that are missing are the password."""
    async with open_database("postgresql://user:e@127.0.0.1:1/db") as opened:
        with pytest.raises(StoreError, match="Connect call failed") as failed:
            await opened.disk_bytes()
        assert "***" not in str(failed.value)
        assert opened.transactions.reason(ValueError("the password e is wrong")) == "the password *** is wrong"
    async with open_database("postgresql://user:fail@127.0.0.1:1/db") as opened:
        with pytest.raises(StoreError, match=r"call \*\*\*ed"):
            await opened.disk_bytes()


async def test_a_row_that_exists_is_a_reason_to_begin_again_for_a_restore_only(store: DatabaseStore) -> None:
    """Another restore may have been first; for anybody else, it will be the same the next time."""
    attempts = 0

    async def insert(_changes: Changes) -> int:
        nonlocal attempts
        attempts += 1
        if attempts != 2:
            raise sa.exc.DBAPIError("INSERT", None, asyncpg.UniqueViolationError("it is there already"))
        return attempts

    assert await store.transactions.insert(insert) == 2
    with pytest.raises(StoreError, match="it is there already"):
        await store.transactions.write(insert)
    assert attempts == 3


def test_the_sum_of_the_hashes_of_rows_tells_when_two_of_them_exchange_a_value() -> None:
    """Of whatever rows: a sum of Python's hashes of tuples stays the same for nearly half of them."""
    pairs = [(str(uuid4()), str(uuid4())) for _ in range(100)]
    unnoticed = [a for a, b in pairs if hash_of(a, "x") + hash_of(b, "y") == hash_of(a, "y") + hash_of(b, "x")]
    assert unnoticed == []
