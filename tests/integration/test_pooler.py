"""The database store behind a real PgBouncer, whose clients share connections and whatever is left behind on them."""

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal
from unittest.mock import patch
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
from command import COMMAND
from database import Database, series
from pooler import Pooler, pooled
from prefect_artifact_retention.flows.cleanup import preview
from prefect_artifact_retention.flows.explanation import explain
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import RetentionPolicy
from servers import POSTGRESQL_DATABASE, Server, on

pytestmark = [pytest.mark.thorough, on(POSTGRESQL_DATABASE)]

KEYS = 30
POLICIES = [RetentionPolicy(name="no key", unkeyed=True, keep_within_days=30), RetentionPolicy(name="one", keep_last=1)]
DEFAULTS = {"lock_timeout": "0", "statement_timeout": "0", "jit": "on", "search_path": '"$user", public'}


def through(server: Server, pooler: Pooler) -> Server:
    """The same server, its database reached through the pool."""
    return replace(server, database=Database(pooler.url))


async def fill(server: Server) -> None:
    """Some stale versions with keys, one of them idle-looking, and some without."""
    rows = [row for number in range(KEYS) for row in series(f"key-{number}", [1, 2, 3])]
    await server.database.insert([*rows, *(replace(row, flow_run_id=uuid4()) for row in series(None, [1, *range(40, 70)]))])


async def settings_of(pooler: Pooler, clients: int) -> Sequence[dict[str, str]]:
    """What each of the next clients of the pool finds, all at once, so that each has a connection of its own."""
    names = ", ".join(f"current_setting('{name}')" for name in DEFAULTS)
    connections = [await asyncpg.connect(pooler.url.replace("+asyncpg", ""), statement_cache_size=0) for _ in range(clients)]
    try:
        for connection in connections:
            await connection.execute("BEGIN")
        found = [await connection.fetchrow(f"SELECT {names}") for connection in connections]
        return [dict(zip(DEFAULTS, row, strict=True)) for row in found]
    finally:
        for connection in connections:
            await connection.close()


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("transaction", 1),
        pytest.param("transaction", 3, marks=pytest.mark.long),
        pytest.param("session", 1, marks=pytest.mark.long),
        ("session", 2),
    ],
)
async def test_preview_delete_and_explain_work_behind_a_pool(
    server: Server, monkeypatch: pytest.MonkeyPatch, mode: Literal["session", "transaction"], size: int
) -> None:
    """Also behind one of a single connection, for plans of several pages; and after the clients of other processes."""
    monkeypatch.setattr("prefect_artifact_retention.stores.database.MAX_ROWS_PER_QUERY", 10)
    await fill(server)
    with pooled(server.database.url, mode, size) as pooler:
        there = through(server, pooler)
        with there.active():
            # Each process numbers its prepared statements from one on.
            monkeypatch.setattr("asyncpg.connection._uid", 0)
            assert (await preview(load_settings(), POLICIES)).planned == 2 * KEYS + 30
            monkeypatch.setattr("asyncpg.connection._uid", 0)
            assert len((await explain(load_settings(), "key-1")).versions) == 3
        with patch.dict(os.environ, ARTIFACT_RETENTION_RECLAIM="vacuum"):
            report = await there.cleanup(POLICIES, mode="delete")
        assert (report.outcome, report.deleted, report.warnings) == ("completed", 2 * KEYS + 30, [])
        if mode == "transaction":
            # In session mode, PgBouncer itself resets a connection.
            assert list(await settings_of(pooler, size)) == [DEFAULTS] * size
    assert len(await server.database.ids()) == KEYS + 1


async def test_a_run_that_is_killed_leaves_no_setting_behind(server: Server) -> None:
    """As it waits to vacuum: the next client of the connection has its own timeouts."""
    await fill(server)
    with pooled(server.database.url, "transaction", 1) as pooler:
        environment = server.local.environment | {
            "ARTIFACT_RETENTION_DATABASE_URL": pooler.url,
            "ARTIFACT_RETENTION_RECLAIM": "vacuum",
        }
        waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LOCK TABLE %' AND wait_event_type = 'Lock'"
        async with server.database.engine.begin() as other:
            await other.execute(sa.text("LOCK TABLE artifact IN SHARE UPDATE EXCLUSIVE MODE"))
            command = [COMMAND, "delete", "--key", "key-*", "--keep-last", "1"]
            process = await asyncio.create_subprocess_exec(*command, cwd=server.local.folder, env=environment)
            while not await server.database.run(waiting):
                assert process.returncode is None
                await asyncio.sleep(0.1)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert list(await settings_of(pooler, 1)) == [DEFAULTS]
    assert len(await server.database.ids()) == KEYS + 31
