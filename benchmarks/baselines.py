"""The baselines of the benchmarks: bare clients of the API and of the database, which only do what cannot be left out."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]
import httpx
from database import Database
from prefect.artifacts import Artifact, acreate_table_artifact

STALE = """
SELECT id FROM (SELECT id, created, row_number() OVER (PARTITION BY key ORDER BY created DESC) AS rank FROM artifact) ranked
WHERE rank > {keep_last}
"""

STALE_ROWS = "SELECT * FROM artifact WHERE key LIKE 'key-%' AND id NOT IN (SELECT latest_id FROM artifact_collection)"
"""All versions of the keys that were filled in, but for the latest."""

SAVE = f"CREATE TABLE saved.artifact AS {STALE_ROWS.replace('FROM artifact ', 'FROM main.artifact ')}"
LOAD = "INSERT INTO main.artifact SELECT * FROM saved.artifact"

IDS_AND_DATES = "SELECT id, created FROM artifact"

BATCH_VERSIONS = 5_000
"""Rows in one transaction of the batched DELETE, as in the database store."""

WRITERS = 2
"""Connections of the batched DELETE to PostgreSQL, as many as the database store writes by."""

PAGE_ROWS = 200
"""Rows in a page of the API, the most that Prefect's server gives."""

UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""As this package asks of a server of one's own: nothing is compressed that travels no further than this machine."""

HTTP_UNAVAILABLE_STATUS = 503
HTTP_NOT_FOUND_STATUS = 404
BUSY_PAUSE_SECONDS = 0.02
MAX_REQUEST_ATTEMPTS = 1_000
REQUEST_SECONDS = 30


def read_key_by_key(address: str, keys: Iterable[str]) -> int:
    """Read all versions through the API, one request after another, and return their number.

    The newest versions of one key are what the server's index has in this order, so it neither sorts nor scans.
    """
    seen = 0
    with httpx.Client(base_url=address, headers=UNCOMPRESSED, timeout=REQUEST_SECONDS) as client:
        for key in keys:
            wanted = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": PAGE_ROWS}
            is_whole = False
            offset = 0
            while not is_whole:
                response = client.post("/api/artifacts/filter", json=wanted | {"offset": offset})
                response.raise_for_status()
                rows = len(json.loads(response.content))
                is_whole = rows < PAGE_ROWS
                offset += rows
            seen += offset
    return seen


async def stale_ids(database: Database, keep_last: int) -> list[UUID]:
    """Return the ids of the stale versions, the oldest first."""
    return [UUID(str(row[0])) for row in await database.run(f"{STALE.format(keep_last=keep_last)} ORDER BY created")]


async def delete_one_by_one(address: str, ids: Sequence[UUID], at_once: int) -> float:
    """Delete versions through the API, `at_once` concurrently, and return the deletions per second."""
    pending = iter(ids)
    connections = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(base_url=address, limits=connections, timeout=REQUEST_SECONDS) as client:

        async def work() -> None:
            for version_id in pending:
                await _until_gone(client, version_id)

        began = time.monotonic()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return len(ids) / (time.monotonic() - began)


async def _until_gone(client: httpx.AsyncClient, version_id: UUID) -> None:
    """Delete a version, retried as often as a server on SQLite answers 503 or drops the connection."""
    for attempt in range(MAX_REQUEST_ATTEMPTS):
        try:
            response = await client.delete(f"/api/artifacts/{version_id}")
        except httpx.TransportError:
            pass
        else:
            if attempt and response.status_code == HTTP_NOT_FOUND_STATUS:
                return
            if response.status_code != HTTP_UNAVAILABLE_STATUS:
                response.raise_for_status()
                return
        await asyncio.sleep(BUSY_PAUSE_SECONDS)
    raise TimeoutError(f"{version_id} cannot be deleted")


async def select_ids_and_dates(database: Database) -> int:
    """SELECT the id and date of each version, by the driver of the database, and return their number."""
    if database.is_sqlite:
        return await asyncio.to_thread(_on_sqlite, database, lambda connection: len(_rows(connection, IDS_AND_DATES)))
    connection = await asyncpg.connect(_address(database))
    try:
        return len(await connection.fetch(IDS_AND_DATES))
    finally:
        await connection.close()


async def batched_delete(database: Database, keep_last: int) -> int:
    """SELECT the stale rows and DELETE them in batches, by the driver of the database. Return the number of rows deleted.

    As the package does, it deletes over as many connections as the database gains by, and waits as little for the disk.
    """
    select = STALE.format(keep_last=keep_last)
    if database.is_sqlite:
        return await asyncio.to_thread(_on_sqlite, database, lambda connection: _delete_on_sqlite(connection, select))
    async with asyncpg.create_pool(_address(database), min_size=WRITERS, max_size=WRITERS) as pool:
        ids = [row["id"] for row in await pool.fetch(select)]
        batches = (ids[start : start + BATCH_VERSIONS] for start in range(0, len(ids), BATCH_VERSIONS))

        async def work() -> None:
            for batch in batches:
                await pool.execute("DELETE FROM artifact WHERE id = ANY($1)", batch)

        await asyncio.gather(*(work() for _ in range(WRITERS)))
    return len(ids)


async def save_stale(database: Database, file: Path) -> None:
    """Write the stale rows into a file: one of COPY, in its binary format, or a database of SQLite."""
    if database.is_sqlite:
        await asyncio.to_thread(_on_sqlite, database, lambda connection: _attached(connection, file, SAVE))
        return
    connection = await asyncpg.connect(_address(database))
    try:
        await connection.copy_from_query(STALE_ROWS, output=file, format="binary")
    finally:
        await connection.close()


async def load_stale(database: Database, file: Path) -> float:
    """Insert these rows again, by one COPY or INSERT, and return the seconds."""
    began = time.monotonic()
    if database.is_sqlite:
        await asyncio.to_thread(_on_sqlite, database, lambda connection: _attached(connection, file, LOAD))
        return time.monotonic() - began
    connection = await asyncpg.connect(_address(database))
    try:
        await connection.copy_to_table("artifact", source=file, format="binary")
    finally:
        await connection.close()
    return time.monotonic() - began


def _attached(connection: sqlite3.Connection, file: Path, statement: str) -> int:
    connection.execute("ATTACH ? AS saved", [str(file)])
    rows = connection.execute(statement).rowcount
    connection.commit()
    return rows


def _delete_on_sqlite(connection: sqlite3.Connection, select: str) -> int:
    for setting in ("foreign_keys = ON", "synchronous = NORMAL", "cache_size = -16000"):
        connection.execute(f"PRAGMA {setting}")
    ids = [row[0] for row in _rows(connection, select)]
    for start in range(0, len(ids), BATCH_VERSIONS):
        batch = json.dumps(ids[start : start + BATCH_VERSIONS])
        connection.execute("DELETE FROM artifact WHERE id IN (SELECT value FROM json_each(?))", [batch])
        connection.commit()
    return len(ids)


def _on_sqlite(database: Database, work: Callable[[sqlite3.Connection], int]) -> int:
    connection = sqlite3.connect(str(database.engine.url.database), timeout=REQUEST_SECONDS)
    try:
        return work(connection)
    finally:
        connection.close()


def _rows(connection: sqlite3.Connection, select: str) -> list[tuple[str, ...]]:
    return connection.execute(select).fetchall()


def _address(database: Database) -> str:
    return str(database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False))


async def naive_appends(key: str, rows: Sequence[dict[str, object]]) -> float:
    """Append rows one by one as people do, by reading, merging and creating, and return the appends per second.

    Of two who do so at once, one loses the row of the other.
    """
    began = time.monotonic()
    for row in rows:
        found = await Artifact.aget(key)
        table = json.loads(str(found.data)) if found else []
        await acreate_table_artifact([*table, row], key=key)
    return len(rows) / (time.monotonic() - began)
