"""Where the tables of the database are, and what its connections go through: schemas, outages, lost answers."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from database import Database, series
from prefect_artifact_retention.flows.cleanup import LISTENER
from prefect_artifact_retention.policies import RetentionPolicy, StoreError
from prefect_artifact_retention.tasks.report import CleanupFailed
from prefect_artifact_retention.tasks.run import Listener, Step
from servers import POSTGRESQL_DATABASE, Server, on
from wire import Fault, Line, line_to

pytestmark = on(POSTGRESQL_DATABASE)

KEEP_1 = RetentionPolicy(name="keep one", keep_last=1)
TABLES = ("artifact", "artifact_collection", "flow_run", "task_run")


def at(server: Server, url: str) -> Server:
    """The same server, with another address of its database."""
    return replace(server, database=Database(url))


# --- schemas


@asynccontextmanager
async def old_copy(server: Server, schema: str) -> AsyncIterator[None]:
    """Copies of the tables in a schema, and a role `somebody` that finds these and not the server's own."""
    await server.database.run(f"CREATE SCHEMA {schema}")
    try:
        for table in TABLES:
            await server.database.run(f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING ALL)")
            await server.database.run(f"INSERT INTO {schema}.{table} SELECT * FROM public.{table}")
        await server.database.run("CREATE ROLE somebody LOGIN SUPERUSER")
        await server.database.run(f"ALTER ROLE somebody SET search_path = {schema}")
        yield
    finally:
        await server.database.run(f"DROP SCHEMA {schema} CASCADE")
        await server.database.run("DROP ROLE IF EXISTS somebody")


def as_somebody(server: Server, query: str = "") -> Server:
    """The server, its database reached as the role with the other path."""
    url = sa.make_url(server.database.url).set(username="somebody").render_as_string(hide_password=False)
    return at(server, f"{url}{query}")


@pytest.mark.thorough
async def test_of_several_schemas_the_servers_own_is_taken(server: Server) -> None:
    """Beside an old copy that the role finds first, as in `public` where Prefect has a `search_path` of its own; all of it."""
    await server.database.insert(series("report", [1, 2, 3]))
    async with old_copy(server, '"Old copy"'):
        await server.database.insert(series("later", [1, 2, 3, 4, 5]))
        there = as_somebody(server)
        assert (await there.cleanup([KEEP_1])).planned == 6
        before = await server.database.run('SELECT count(*) FROM "Old copy".artifact')
        report = await there.run_flow([KEEP_1], mode="delete")
        assert (report.deleted, report.errors) == (6, [])
        await server.database.insert(series("more", [1, 2, 3]))
        with patch.dict(os.environ, ARTIFACT_RETENTION_RECLAIM="vacuum"):
            report = await there.run_flow([KEEP_1], mode="delete")
        assert (report.deleted, report.warnings) == (2, [])
        assert await server.database.run('SELECT count(*) FROM "Old copy".artifact') == before
    assert len(await server.database.ids()) == 3


async def test_schemas_with_the_same_artifacts_must_be_told_apart(server: Server) -> None:
    """A preview has no flow run by which to know its server; the message says how the address names a schema."""
    await server.database.insert(series("report", [1, 2, 3]))
    async with old_copy(server, "old"):
        with pytest.raises(StoreError, match=r"in its schemas old and public; name .*options=-csearch_path%3D"):
            await as_somebody(server).cleanup([KEEP_1])
        named = as_somebody(server, "&options=-csearch_path%3Dpublic")
        assert (await named.cleanup([KEEP_1])).planned == 2
        assert (await named.run_flow([KEEP_1], mode="delete")).deleted == 2
        with pytest.raises(StoreError, match="the current flow run is not in it"):
            await as_somebody(server, "&options=-csearch_path%3Dold").run_flow([KEEP_1], mode="delete")
        with pytest.raises(StoreError, match="there is no table artifact"):
            await as_somebody(server, "&search_path=pg_catalog").cleanup([KEEP_1])
    assert len(await server.database.ids()) == 1


async def test_a_setting_that_postgresql_does_not_know_is_named(server: Server) -> None:
    """What asyncpg does not know either goes to PostgreSQL as a setting."""
    with pytest.raises(StoreError, match='unrecognized configuration parameter "nonsense"'):
        await at(server, f"{server.database.url}&nonsense=1").cleanup([KEEP_1])


# --- outages


@pytest.mark.parametrize("fault", ["before the commit", "after the commit"])
@pytest.mark.parametrize("unkeyed", [False, True])
async def test_a_deletion_whose_answer_is_lost_counts_if_it_was_committed(
    server: Server,
    fault: Fault,
    unkeyed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """If it was not, it is made again: either way the count is that of what this run has deleted."""
    policy = RetentionPolicy(name="no key", unkeyed=True, keep_within_days=2.5) if unkeyed else KEEP_1
    await server.database.insert(series(None if unkeyed else "report", [1, 2, 3, 4, 5]))
    kept = 2 if unkeyed else 1
    async with line_to(server.database.url) as line:
        line.fault = fault
        line.is_due = lambda sent: b"DELETE FROM artifact" in sent
        report = await at(server, line.url).cleanup([policy], mode="delete")
        assert line.failures == 1
    assert (report.outcome, report.deleted, report.already_gone, report.errors) == ("completed", 5 - kept, 0, [])
    assert len(await server.database.ids()) == kept


@pytest.mark.parametrize("step", ["planning", "deleting"])
async def test_a_run_goes_on_after_an_outage_of_seconds(server: Server, monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    """As of a restart; in the plan and between two batches."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.prune_database.MAX_TRANSACTION_VERSIONS", 4)
    monkeypatch.setattr("prefect_artifact_retention.stores.database.MAX_ROWS_PER_QUERY", 10)
    await server.database.insert([row for number in range(10) for row in series(f"key-{number}", [1, 2, 3])])
    async with line_to(server.database.url) as line:
        listening = _cut_once(line, step)
        token = LISTENER.set(listening)
        try:
            report = await at(server, line.url).cleanup([KEEP_1], mode="delete")
        finally:
            LISTENER.reset(token)
        assert line.failures
    assert (report.outcome, report.deleted, report.already_gone, report.errors) == ("completed", 20, 0, [])
    assert len(await server.database.ids()) == 10


def _cut_once(line: Line, at_step: Step, seconds: float = 2) -> Listener:
    restored: list[asyncio.TimerHandle] = []

    async def listen(step: Step, _done: int, _total: int) -> None:
        if step == at_step and not restored:
            line.cut()
            restored.append(asyncio.get_running_loop().call_later(seconds, setattr, line, "fault", ""))

    return listen


async def test_an_outage_that_lasts_ends_the_run_once_for_all_keys(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is counted for all of them together, and the report says what was deleted before."""
    monkeypatch.setattr("prefect_artifact_retention.stores.transactions.RECONNECT_SECONDS", 3)
    monkeypatch.setattr("prefect_artifact_retention.tasks.prune_database.MAX_TRANSACTION_VERSIONS", 4)
    await server.database.insert([row for number in range(10) for row in series(f"key-{number}", [1, 2, 3])])
    async with line_to(server.database.url) as line:
        token = LISTENER.set(_cut_once(line, "deleting", seconds=1000))
        began = asyncio.get_running_loop().time()
        try:
            with pytest.raises(CleanupFailed) as failed:
                await at(server, line.url).cleanup([KEEP_1], mode="delete")
        finally:
            LISTENER.reset(token)
        assert asyncio.get_running_loop().time() - began < 30
    assert len(await server.database.ids()) == 30 - failed.value.report.deleted


async def test_a_database_that_is_not_there_at_the_beginning_is_told_at_once(server: Server) -> None:
    """A wrong port is no restart."""
    async with line_to(server.database.url) as line:
        line.cut()
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreError, match="cannot use the PostgreSQL database"):
            await at(server, line.url).cleanup([KEEP_1])
        assert asyncio.get_running_loop().time() - began < 10


@pytest.mark.thorough
@pytest.mark.parametrize("limit", [1, 2])
async def test_a_role_with_few_connections_is_enough(server: Server, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The run uses as many as it gets, and none while it evaluates a page."""
    monkeypatch.setattr("prefect_artifact_retention.stores.database.MAX_ROWS_PER_QUERY", 10)
    policies = [RetentionPolicy(name="no key", unkeyed=True, keep_within_days=10.5), KEEP_1]
    await server.database.insert([row for key in ("a", "b", "c", None) for row in series(key, range(1, 31))])
    await server.database.run(f"CREATE ROLE few LOGIN CONNECTION LIMIT {limit}")
    try:
        await server.database.run("GRANT ALL ON ALL TABLES IN SCHEMA public TO few")
        url = sa.make_url(server.database.url).set(username="few").render_as_string(hide_password=False)
        report = await at(server, url).cleanup(policies, mode="delete")
    finally:
        await server.database.run("DROP OWNED BY few")
        await server.database.run("DROP ROLE few")
    assert (report.outcome, report.deleted) == ("completed", 3 * 29 + 20)
