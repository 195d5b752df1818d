"""The baselines of the benchmarks: bare clients of the API and of the database, and the script that people write."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]
import httpx
from database import Database
from prefect.artifacts import Artifact, acreate_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import ObjectNotFound
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.concurrency import for_each
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.database import MAX_WRITERS
from prefect_artifact_retention.stores.server import Server

STALE = """
SELECT id FROM (SELECT id, created, row_number() OVER (PARTITION BY key ORDER BY created DESC) AS rank FROM artifact) ranked
WHERE rank > {keep_last}
"""

STATEMENT_VERSIONS = 5_000
"""Rows in one transaction of the batched DELETE, as in the database store."""

SCRIPT_PAGE_ROWS = 200
"""Rows in a page of the usual script, the most that Prefect's server gives."""

MAX_CONCURRENT_DELETES = 16
"""The connections of Prefect's own client."""

HTTP_UNAVAILABLE_STATUS = 503
HTTP_NOT_FOUND_STATUS = 404
BUSY_PAUSE_SECONDS = 0.02
MAX_REQUEST_ATTEMPTS = 1_000
REQUEST_SECONDS = 10

Delete = Callable[[UUID], Awaitable[object]]


async def stale_ids(database: Database, keep_last: int) -> list[UUID]:
    """Return the ids of the stale versions, the oldest first."""
    return [UUID(str(row[0])) for row in await database.run(f"{STALE.format(keep_last=keep_last)} ORDER BY created")]


async def rate(ids: Sequence[UUID], delete: Delete, at_once: int) -> float:
    """Delete versions, `at_once` concurrently, and return the deletions per second."""
    pending = iter(ids)

    async def work() -> None:
        for version_id in pending:
            await _until_gone(version_id, delete)

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return len(ids) / (time.monotonic() - began)


async def _until_gone(version_id: UUID, delete: Delete) -> None:
    """Delete a version, retried as often as a server on SQLite answers 503 or drops the connection."""
    for attempt in range(MAX_REQUEST_ATTEMPTS):
        try:
            await delete(version_id)
        except httpx.HTTPStatusError as error:
            if attempt and error.response.status_code == HTTP_NOT_FOUND_STATUS:
                return
            if error.response.status_code != HTTP_UNAVAILABLE_STATUS:
                raise
        except ObjectNotFound:
            # Prefect's client has tried again by itself.
            return
        except httpx.TransportError:
            pass
        else:
            return
        await asyncio.sleep(BUSY_PAUSE_SECONDS)
    raise TimeoutError(f"{version_id} cannot be deleted")


async def bare_client(address: str, ids: Sequence[UUID], at_once: int) -> float:
    """Send DELETE requests by a bare HTTP client, and return the deletions per second."""
    async with httpx.AsyncClient(base_url=address, timeout=REQUEST_SECONDS) as client:

        async def delete(version_id: UUID) -> None:
            response = await client.delete(f"/api/artifacts/{version_id}")
            response.raise_for_status()

        return await rate(ids, delete, at_once)


async def fixed_client(ids: Sequence[UUID], at_once: int) -> float:
    """Send DELETE requests by Prefect's client as this package opens it, at a fixed concurrency."""
    async with connect() as connection:
        return await rate(ids, connection.client.delete_artifact, at_once)


async def adaptive_client(ids: Sequence[UUID]) -> float:
    """Delete through the API store, with its adaptive concurrency."""
    async with connect() as connection:
        store = ApiStore(connection)
        await Server(connection).detect_concurrency(artifact_cleanup.name)
        return await rate(ids, store.delete, MAX_CONCURRENT_DELETES)


async def usual_script(keep_last: int) -> int:
    """Page through all artifacts by offset, delete the old ones on the way, and return the number of rows deleted.

    Each deletion shifts the rows behind it, so the next page begins too late, and some stale rows are skipped.
    """
    seen: Counter[str | None] = Counter()
    deleted = offset = 0
    async with get_client() as client:
        while page := await client.read_artifacts(sort=ArtifactSort.CREATED_DESC, limit=SCRIPT_PAGE_ROWS, offset=offset):
            for artifact in page:
                seen[artifact.key] += 1
                if seen[artifact.key] > keep_last:
                    await client.delete_artifact(artifact.id)
                    deleted += 1
            offset += SCRIPT_PAGE_ROWS
    return deleted


async def batched_delete(database: Database, keep_last: int) -> int:
    """SELECT the stale rows and DELETE them in batches, by the driver of the database. Return the number of rows deleted.

    As the package does, it deletes over as many connections as the database gains by, leaves no state of a run that points to
    what has gone, and waits as little for the disk.
    """
    select = STALE.format(keep_last=keep_last)
    if database.is_sqlite:
        return await asyncio.to_thread(_sqlite, str(database.engine.url.database), select)
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with asyncpg.create_pool(url, min_size=MAX_WRITERS, max_size=MAX_WRITERS) as pool:
        ids = [row["id"] for row in await pool.fetch(select)]
        batches = (ids[start : start + STATEMENT_VERSIONS] for start in range(0, len(ids), STATEMENT_VERSIONS))
        await for_each(batches, partial(pool.execute, "DELETE FROM artifact WHERE id = ANY($1)"), MAX_WRITERS)
    return len(ids)


def _sqlite(path: str, select: str) -> int:
    connection = sqlite3.connect(path, timeout=60)
    try:
        for setting in ("foreign_keys = ON", "synchronous = NORMAL", "cache_size = 20000"):
            connection.execute(f"PRAGMA {setting}")
        ids = [row[0] for row in connection.execute(select)]
        for start in range(0, len(ids), STATEMENT_VERSIONS):
            batch = json.dumps(ids[start : start + STATEMENT_VERSIONS])
            connection.execute("DELETE FROM artifact WHERE id IN (SELECT value FROM json_each(?))", [batch])
            connection.commit()
    finally:
        connection.close()
    return len(ids)


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
