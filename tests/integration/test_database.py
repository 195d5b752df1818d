"""The database store: the same semantics as through the API, refusals where it is not sure, and what only it can do."""

import asyncio
import json
import os
import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from database import Database, Row, days, series
from prefect import flow, get_client
from prefect.blocks.system import Secret
from prefect.client.schemas.actions import ArtifactCreate
from prefect.states import Completed, Running
from prefect_artifact_retention.flows.cleanup import LISTENER, open_run, preview
from prefect_artifact_retention.flows.explanation import explain
from prefect_artifact_retention.flows.settings import RetentionSettings, load_settings
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, StoreError, Version
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.changes import Changes, KeyDeletion
from prefect_artifact_retention.stores.connection import Connection, connect
from prefect_artifact_retention.stores.database import DatabaseStore, open_database
from prefect_artifact_retention.stores.schema import ARTIFACT, check_schema
from prefect_artifact_retention.stores.server import Server as PrefectServer
from prefect_artifact_retention.stores.store import History, Store
from prefect_artifact_retention.tasks import prune_database
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport
from prefect_artifact_retention.tasks.run import Step
from pydantic import SecretStr
from servers import BY_DATABASE, POSTGRESQL_DATABASE, SQLITE_DATABASE, PatientClient, Server, on, thorough, when_planned

KEEP_1 = RetentionPolicy(name="keep one", keep_last=1)
KEEP_2 = RetentionPolicy(name="keep two", keep_last=2)
ROLE_POLICIES = [
    RetentionPolicy(name="idle", match_keys=["idle"], keep_last=1, drop_idle_keys_after_days=90),
    KEEP_1,
]
MEASURED = "pg_total_relation_size(regclass)"
"""What tells PostgreSQL's size of a table."""

DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "database.md").read_text(encoding="utf-8")
POLICIES = [
    RetentionPolicy(name="shield", match_keys=["*-shield"], match_types=["table"], keep_all=True),
    RetentionPolicy(name="idle", match_keys=["idle-*"], keep_last=2, drop_idle_keys_after_days=20),
    RetentionPolicy(name="calendar", match_keys=["day-*"], keep_daily=3, keep_weekly=2, grace_days=2, keep_oldest=True),
    RetentionPolicy(name="short", match_keys=["short-*"], keep_last=3, expire_after_days=15),
    RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=10),
    RetentionPolicy(name="rest", exclude_keys=["unmanaged-*"], keep_last=1, keep_within_days=4),
]


@flow
def writer() -> None:
    """Somebody's flow."""


def shown(report: CleanupReport) -> dict[str, Any]:
    """A report without what differs from run to run: through the API, several deletions at once are answered in any order."""
    of_keys = {"__all__": {"first_deleted", "last_deleted"}}
    changing = {"now": True, "duration_seconds": True, "key_reports": of_keys, "housekeeping": of_keys}
    return report.model_dump(mode="json", exclude=changing)


# --- the same as through the API


def some_data(chance: random.Random, depth: int = 0) -> object:
    """Anything that an artifact may hold."""
    plain = [
        lambda: None,
        lambda: chance.random() < 0.5,
        lambda: chance.randint(-(2**60), 2**60),
        lambda: chance.choice([0.1, 1.0, 1e16, 1e-7, -0.0, chance.random(), chance.random() * 1e22]),
        lambda: "".join(chance.choice('aé😀"\\\n\t/\u2028\x7f<') for _ in range(chance.randint(0, 9))),
    ]
    nested = [
        lambda: [some_data(chance, depth + 1) for _ in range(chance.randint(0, 3))],
        lambda: {f"k{number}é": some_data(chance, depth + 1) for number in range(chance.randint(0, 3))},
    ]
    return chance.choice(plain if depth > 2 else plain + nested)()


@on(*BY_DATABASE)
async def test_both_stores_read_the_same_versions(server: Server) -> None:
    """Every field of whatever producers write; sizes are measured in the database, and from what the API shows."""
    chance = random.Random(7)
    async with PatientClient(server) as client:
        for number in range(150):
            metadata = chance.choice(
                [None, {}, {"retention-hold": "true", "x": "é"}, {"retention-ttl-days": "3"}, {"y": "retention-"}]
            )
            body = {"key": f"key-{number % 7}", "type": "table", "data": some_data(chance), "metadata_": metadata}
            body |= {"flow_run_id": str(uuid4())} if chance.random() < 0.5 else {}
            assert (await client.post("/artifacts/", json=body)).is_success
    keys = [f"key-{number}" for number in range(7)]
    with server.active():
        async with connect() as connection, open_database(server.database.url) as database:
            api = ApiStore(connection)
            for key in keys:
                assert by_id((await history_of(database, key)).versions) == by_id((await api.history(key)).versions)
            assert await database.collections(keys) == await api.collections(keys)
            assert await database.all_collections([]) == await api.all_collections([])


@on(*BY_DATABASE)
async def test_metadata_that_cannot_be_read_keeps_its_version(server: Server) -> None:
    """Prefect writes objects only; whoever writes anything else into the database may mean a hold by it."""
    rows = await server.database.insert(series("report", [1, 2, 3, 4]))
    for row, metadata in zip(rows[1:3], (["retention-hold"], "retention-hold"), strict=True):
        await server.database.update_metadata(row.id, metadata)  # type: ignore[arg-type]
    report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    assert await server.database.ids() == {row.id for row in rows[:3]}
    assert report.outcome == "completed"
    assert sum("unreadable retention-hold" in warning for warning in report.warnings) == 2


@on(*BY_DATABASE)
async def test_a_listing_that_is_left_early_leaves_no_connection_behind(server: Server) -> None:
    """Though more has been asked for by then."""
    await server.database.insert([*series("one", [1, 2]), *series("other", [1, 2])])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("prefect_artifact_retention.stores.database.MAX_ROWS_PER_QUERY", 1)
        async with open_database(server.database.url) as store:
            async with aclosing(store.histories(["one", "other"])) as listing:
                async for (history,) in listing:
                    assert [version.key for version in history.versions] == ["one", "one"]
                    break
            assert store.transactions.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            assert [history.key async for batch in store.histories(["one", "other"]) for history in batch] == ["one", "other"]


def by_id(versions: Any) -> dict[UUID, Version]:  # noqa: ANN401 - any iterable
    """Versions in no order."""
    return {version.id: version for version in versions}


async def estate(server: Server) -> tuple[list[Row], dict[str, UUID]]:
    """Three hundred keys of all kinds, and artifacts without a key."""
    chance = random.Random(11)
    with server.active():
        async with get_client() as client:
            runs = [(await client.create_flow_run(writer, state=state)).id for state in (Running(), Completed())]
    rows: list[Row] = []
    latest: dict[str, UUID] = {}
    for number in range(300):
        kind = chance.choice(["idle", "day", "short", "unmanaged", "other", "some", None])
        key = f"{kind}-{number:03}{chance.choice(['', '', '-shield'])}" if kind else None
        ages = {chance.randint(1, 900) for _ in range(chance.randint(1, 6))}
        versions = [
            # Half an hour away from where the text of an age, or a verdict, would change between two runs.
            Row(key, timedelta(hours=age + 0.5), chance.choice(["x", [1, "é"], None]), chance.choice(["table", "markdown"]))
            for age in sorted(ages)
        ]
        for row in versions:
            row.metadata = chance.choice(
                [None] * 9 + [{"retention-hold": "true"}, {"retention-ttl-days": "9"}, {"retention-hold": "?"}]
            )
            row.flow_run_id = chance.choice([None, None, None, runs[0], runs[1], uuid4()])
        if key and chance.random() < 0.05:
            latest[key] = chance.choice([uuid4(), versions[-1].id])
        rows += versions
    return rows, latest


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_both_stores_plan_report_and_leave_the_same(server: Server) -> None:
    """Row for row, on random data: holds, TTLs, unfinished runs, idle and unmanaged keys, dangling and odd latest versions."""
    rows, latest = await estate(server)
    # Of both, to the second: to which day a version belongs must not depend on when it was inserted.
    now = datetime.now(UTC)
    found = {}
    for store in ("api", "database"):
        this = replace(server, store=store)
        await server.database.clear()
        await server.database.insert(rows, latest, now)
        with this.active():
            plan = shown(await preview(load_settings(), POLICIES))
            explained = [
                (await explain(RetentionSettings(policies=[each.model_dump() for each in POLICIES]), key)).model_dump(
                    exclude={"now"}
                )
                for key in sorted({row.key for row in rows if row.key})[::30]
            ]
        report = await this.cleanup(POLICIES, mode="delete")
        # What was freed on disk only the database tells.
        report.notes.clear()
        found[store] = plan, explained, shown(report), await server.database.ids(), await server.database.dangling()
    for through_database, through_api in zip(found["database"], found["api"], strict=True):
        assert through_database == through_api
    assert report.deleted > 200
    assert report.repaired


# --- where it is not sure, it refuses


def other_database(server: Server, file: Path) -> Server:
    """The same server, with the address of another database."""
    return replace(server, database=Database(f"sqlite+aiosqlite:///{file}"))


@on(*BY_DATABASE)
async def test_a_database_of_another_server_is_refused(server: Server, tmp_path: Path) -> None:
    """Whether it is empty or has artifacts of its own."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    ARTIFACT.metadata.create_all(engine)
    engine.dispose()
    stranger = other_database(server, tmp_path / "other.db")
    for others in ([], series("report", [1, 2, 3])):
        if others:
            await stranger.database.insert(others)
        with pytest.raises(
            StoreError, match=r"not the database of the Prefect server at .*: the current flow run is not in it"
        ):
            await stranger.run_flow([KEEP_1], mode="delete")
        with stranger.active(), pytest.raises(StoreError, match="they differ in the artifacts that changed last"):
            await preview(load_settings(), [KEEP_1])
    assert len(await server.database.ids()) == len(await stranger.database.ids()) == len(rows)


@on(SQLITE_DATABASE)  # a copy of a PostgreSQL database differs in nothing that matters here
async def test_a_copy_of_the_servers_database_takes_no_deletion(server: Server, tmp_path: Path) -> None:
    """It has all the artifacts, but not the flow run that deletes."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    original, copy = (sqlite3.connect(file) for file in (server.local.folder / "prefect.db", tmp_path / "copy.db"))
    original.backup(copy)
    for each in (original, copy):
        each.close()
    with pytest.raises(StoreError, match="the current flow run is not in it"):
        await other_database(server, tmp_path / "copy.db").run_flow([KEEP_1], mode="delete")
    assert len(await server.database.ids()) == len(rows)


@contextmanager
def unprivileged(file: Path) -> Iterator[None]:
    """Be somebody who may read this file, but not write to it or to its folder."""
    for each in (file, *file.parents):
        each.chmod(each.stat().st_mode | 0o555)
        if each.name.startswith("pytest-of"):
            break
    file.chmod(0o444)
    if os.geteuid():
        file.parent.chmod(0o555)
    try:
        # Root may write to any file.
        if os.geteuid() == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(os.getuid())
        file.chmod(0o644)
        file.parent.chmod(0o755)


@on(SQLITE_DATABASE)
@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_a_file_that_cannot_be_written_is_told_before_the_plan(server: Server, tmp_path: Path, mode: str) -> None:
    """Another user's, or one on a read-only disk; whichever journal it has. A preview needs no more than to read it."""
    await server.database.insert(series("report", [1, 2, 3]))
    original, copy = (sqlite3.connect(file) for file in (server.local.folder / "prefect.db", tmp_path / "prefect.db"))
    original.backup(copy)
    copy.execute(f"PRAGMA journal_mode = {mode}")
    for each in (original, copy):
        each.close()
    # A file with a write-ahead log can be read by those who may not write as long as somebody has it open.
    server_of_copy = sqlite3.connect(tmp_path / "prefect.db")
    server_of_copy.execute("SELECT 1 FROM artifact").fetchall()
    with server.active():
        async with connect() as connection, open_database(f"sqlite:///{tmp_path / 'prefect.db'}") as store:
            with unprivileged(tmp_path / "prefect.db"):
                await store.check(PrefectServer(connection), (), deletes=False)
                with pytest.raises(StoreError, match=r"to delete, the file and its folder must be writable; unset ARTIFACT_"):
                    await store.check(PrefectServer(connection), (), deletes=True)
        async with connect() as connection, open_database(f"sqlite:///{tmp_path / 'prefect.db'}") as store:
            await store.check(PrefectServer(connection), (), deletes=True)
    server_of_copy.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER TABLE artifact RENAME COLUMN metadata_ TO labels", "artifact has no column metadata_"),
        ("DROP TABLE artifact_collection", "there is no table artifact_collection"),
        ("ALTER TABLE flow_run ADD COLUMN state_type DATETIME", "flow_run.state_type is of type DATETIME, not text"),
    ],
)
async def test_a_schema_that_is_not_as_known_is_refused(tmp_path: Path, change: str, words: str) -> None:
    """The difference is named, and so is the way out."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'changed.db'}")
    ARTIFACT.metadata.create_all(engine)
    with engine.begin() as connection:
        if "ADD COLUMN" in change:
            connection.execute(sa.text("ALTER TABLE flow_run DROP COLUMN state_type"))
        connection.execute(sa.text(change))
        with pytest.raises(StoreError, match=words) as refused:
            check_schema(connection)
    assert "unset ARTIFACT_RETENTION_DATABASE_URL" in str(refused.value)
    engine.dispose()


@on(POSTGRESQL_DATABASE)  # SQLite has no JSONB column
async def test_jsonb_would_be_refused(server: Server) -> None:
    """It is another text of another size than what the API shows."""
    async with server.database.engine.connect() as connection:
        transaction = await connection.begin()
        await connection.execute(sa.text("ALTER TABLE artifact ALTER COLUMN data TYPE JSONB"))
        with pytest.raises(StoreError, match=r"artifact.data is of type JSONB, not JSON"):
            await connection.run_sync(check_schema)
        await transaction.rollback()


@on(*BY_DATABASE)
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://user:s3cret@host/db", "must look like postgresql"),
        ("s3cret", "must look like postgresql"),
        ("postgresql://user:s3cret@host:port/db", "must look like postgresql"),
        ("sqlite:////nowhere/prefect.db", "there is no SQLite database"),
        ("sqlite://", "there is no SQLite database"),
        ("postgresql://user:s3cret@127.0.0.1:9/db", "cannot use the PostgreSQL database db at 127.0.0.1"),
        ("postgresql://user:s3cret@127.0.0.1:9/db?keepalives_idle=9", "keepalives_idle is not supported; leave it out"),
        ("postgresql://user:s3cret@127.0.0.1:99999/db", "cannot connect to the PostgreSQL database db"),
    ],
)
async def test_an_address_of_no_database_is_refused_with_a_message(server: Server, url: str, words: str) -> None:
    """Without what may be a password in it."""
    with replace(server, store="api").active(), pytest.raises(StoreError, match=words) as refused:
        await preview(RetentionSettings(database_url=SecretStr(url)), [KEEP_1])
    assert "s3cret" not in str(refused.value)


# --- where the address comes from


@on(*BY_DATABASE)
async def test_the_address_may_be_in_a_block_of_the_server(server: Server) -> None:
    """A Secret block; one that is not there is an error that names the setting."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    with replace(server, store="api").active(), patch.dict(os.environ, ARTIFACT_RETENTION_DATABASE_BLOCK="retention-db"):
        with pytest.raises(ConfigurationError, match=r"ARTIFACT_RETENTION_DATABASE_BLOCK: .* no Secret block retention-db"):
            await preview(load_settings(), [KEEP_1])
        await Secret(value=f"{server.database.url}\n").save("retention-db", overwrite=True)
        async with open_run(load_settings(), "preview", [KEEP_1], []) as run:
            assert isinstance(run.store, DatabaseStore)
            history = await history_of(run.store, "report")
            assert history.mark
            assert len(history.versions) == len(rows)
        async with get_client() as client:
            block = await client.read_block_document_by_name("retention-db", "secret")
            await client.delete_block_document(block.id)


@on(*BY_DATABASE)
async def test_a_block_that_the_server_does_not_show_is_a_plain_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a traceback, which could quote its address."""
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def break_blocks(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        is_block = "slug/secret/block_documents" in request.url.path
        return httpx.Response(500, request=request) if is_block else await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", break_blocks)
    with (
        replace(server, store="api").active(),
        patch.dict(os.environ, ARTIFACT_RETENTION_DATABASE_BLOCK="retention-db"),
        pytest.raises(StoreError, match="the Secret block retention-db cannot be read: 500"),
    ):
        await preview(load_settings(), [KEEP_1])


# --- pruned in bulk


@on(*BY_DATABASE)
async def test_what_has_not_changed_goes_in_bulk_and_the_counts_are_exact(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a task for each key: no version is asked for by itself."""
    rows = [row for number in range(40) for row in series(f"key-{number:02}", [1, 2, 3, 4])]
    rows += [*series(None, [1, 40, 50]), *series("idle-1", [100, 101]), *series("idle-2", [100])]
    for number, row in enumerate(rows):
        row.data = "x" * number
    await server.database.insert(rows)
    policies = [
        RetentionPolicy(name="idle", match_keys=["idle-*"], keep_last=1, drop_idle_keys_after_days=90),
        KEEP_2,
        RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30),
    ]
    report = await server.run_flow(policies, mode="delete")
    gone = [row for row in rows if row.id not in await server.database.ids()]
    assert (report.outcome, report.planned, report.deleted, report.spared) == ("completed", 85, 85, 0)
    assert len(gone) == 85
    assert report.bytes_freed == sum(len(json.dumps(row.data)) for row in gone) == report.bytes_planned
    # By Prefect's own log: the events by which the server learns of task runs get lost with a connection.
    tasks = {name for record in caplog.records if (name := getattr(record, "task_run_name", None))}
    assert tasks == {"discover", "plan", "prune", "verify", "reclaim", "report"}
    assert not await server.database.dangling()
    assert await server.database.run("SELECT key FROM artifact_collection WHERE key LIKE 'idle-%'") == []


@on(*BY_DATABASE)
async def test_a_key_of_more_than_a_batch_goes_in_several_batches(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so do many artifacts without a key; `max_deletions` stops in the middle of a batch, and bytes are exact."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.prune_database.MAX_TRANSACTION_VERSIONS", 7)
    rows = await server.database.insert(
        [*series("report", range(1, 31)), *series(None, range(40, 60)), *series("idle", [100] * 9)]
    )
    policies = [
        RetentionPolicy(name="idle", match_keys=["idle"], keep_last=1, drop_idle_keys_after_days=90),
        KEEP_2,
        RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30),
    ]
    first = await server.cleanup(policies, mode="delete", max_deletions=12)
    assert (first.outcome, first.deleted, first.bytes_freed) == ("unfinished", 12, 36)
    assert len(await server.database.ids()) == len(rows) - 12
    second = await server.cleanup(policies, mode="delete")
    assert (second.outcome, second.deleted, second.bytes_freed) == ("completed", 45, 135)
    assert await server.database.ids() == {row.id for row in rows[:2]}


@on(*BY_DATABASE)
async def test_a_run_that_lives_again_and_a_hold_keep_artifacts_without_a_key(server: Server) -> None:
    """Both come after the plan; their neighbours go."""
    with server.active():
        async with get_client() as client:
            run_id = (await client.create_flow_run(writer, state=Completed())).id
    rows = series(None, [40, 41, 42])
    rows[0].flow_run_id = run_id
    await server.database.insert(rows)

    async def interfere() -> None:
        await server.database.update_metadata(rows[1].id, {"retention-hold": "true"})
        async with get_client() as client:
            await client.set_flow_run_state(run_id, Running(), force=True)

    with when_planned(interfere):
        report = await server.cleanup([RetentionPolicy(name="u", unkeyed=True, keep_within_days=30)], mode="delete")
    assert await server.database.ids() == {rows[0].id, rows[1].id}
    assert (report.deleted, report.spared) == (1, 2)


@on(*BY_DATABASE)
async def test_the_statement_that_deletes_artifacts_without_a_key_keeps_results_and_keys(server: Server) -> None:
    """Whatever it is given."""
    kinds = [Row(None, days(40)), Row(None, days(40), type="result"), Row("report", days(40)), Row(None, days(40), type=None)]
    rows = await server.database.insert(kinds)
    async with open_database(server.database.url) as database:
        await database.transactions.write(Changes.delete_unkeyed, [row.id for row in rows])
    assert await server.database.ids() == {row.id for row in rows[1:]}


@on(*BY_DATABASE)
async def test_the_servers_clock_counts_through_the_database_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dates the versions; the database may be on another machine, and on SQLite its clock is ours."""
    now = Connection.now

    async def ahead(connection: Connection) -> datetime:
        return await now(connection) + timedelta(days=2)

    monkeypatch.setattr(Connection, "now", ahead)
    await server.database.insert(series("report", [1, 27, 29]))
    report = await server.cleanup([RetentionPolicy(name="a month", keep_within_days=30)])
    assert report.planned == 1
    assert any("a delete run would be refused" in warning for warning in report.warnings)


@on(*BY_DATABASE)
async def test_a_deletion_rate_is_kept(server: Server) -> None:
    """Ten versions at four a second take two seconds at least."""
    await server.database.insert(series("report", range(1, 13)))
    with patch.dict(os.environ, ARTIFACT_RETENTION_MAX_DELETIONS_PER_SECOND="4"):
        report = await server.cleanup([KEEP_2], mode="delete")
    assert report.deleted == 10
    assert report.duration_seconds >= 2


@on(*BY_DATABASE)
async def test_a_batch_has_few_of_large_versions(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers wait for a transaction, and its time goes by bytes."""
    monkeypatch.setattr(prune_database, "MAX_TRANSACTION_BYTES", 10_000)
    batches: list[int] = []
    delete, delete_unkeyed = Changes.delete, Changes.delete_unkeyed

    async def count(changes: Changes, ids: list[UUID], *others: Any) -> None:  # noqa: ANN401 - passed on
        batches.append(len(ids))
        await delete(changes, ids, *others)

    async def count_unkeyed(changes: Changes, ids: set[UUID]) -> None:
        batches.append(len(ids))
        await delete_unkeyed(changes, ids)

    monkeypatch.setattr(Changes, "delete", count)
    monkeypatch.setattr(Changes, "delete_unkeyed", count_unkeyed)
    large = "x" * 3_900
    rows = [Row(key, days(age), data=large) for key in ("a", "b", None) for age in range(1, 8)]
    rows += [Row("huge", days(age), data="x" * 20_000) for age in range(1, 4)]
    rows += [Row("idle", days(age), data=large) for age in range(100, 104)]
    rows += [Row(f"small-{number}", days(age)) for number in range(20) for age in (1, 2)]
    await server.database.insert(rows)
    policies = [
        RetentionPolicy(name="idle", match_keys=["idle"], keep_last=1, drop_idle_keys_after_days=90),
        RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=1.5),
        KEEP_1,
    ]
    report = await server.cleanup(policies, mode="delete")
    assert (report.outcome, report.deleted, report.spared) == ("completed", 6 * 3 + 2 + 4 + 20, 0)
    assert len(await server.database.ids()) == 3 + 1 + 20
    # The small ones together, and of the large ones at most two.
    assert sum(batches) == report.deleted
    assert sorted(batches)[-2:] == [2, 22]


@on(POSTGRESQL_DATABASE)  # SQLite knows no timeout of a statement
async def test_what_takes_too_long_in_a_batch_goes_in_smaller_ones(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk does not stop a run for good."""
    monkeypatch.setattr("prefect_artifact_retention.stores.transactions.WRITE_TIMEOUT_SECONDS", 1)
    await server.database.insert([row for key in ("report", None) for row in series(key, range(1, 31))])
    await server.database.run(
        "CREATE FUNCTION take_time() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(0.06); RETURN OLD; END' LANGUAGE plpgsql"
    )
    await server.database.run("CREATE TRIGGER slow BEFORE DELETE ON artifact FOR EACH ROW EXECUTE FUNCTION take_time()")
    try:
        policies = [KEEP_1, RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=1.5)]
        report = await server.cleanup(policies, mode="delete")
    finally:
        await server.database.run("DROP TRIGGER slow ON artifact")
        await server.database.run("DROP FUNCTION take_time")
    assert (report.outcome, report.deleted) == ("completed", 58)
    assert len(await server.database.ids()) == 2


@on(POSTGRESQL_DATABASE)  # SQLite plans for any values always
async def test_each_statement_is_planned_for_its_own_values(server: Server) -> None:
    """PostgreSQL settles for a plan for any values once a prepared statement was used five times: half as fast, in batches."""
    await server.database.insert(series("report", [1, 2, 3]))
    async with open_database(server.database.url) as store:
        for _time in range(10):
            (history,) = [each async for page in store.histories(["report"]) for each in page]
            assert len(history.versions) == 3
        async with store.transactions.engine.connect() as connection:
            generic = sa.text("SELECT statement FROM pg_prepared_statements WHERE statement LIKE :ours AND generic_plans > 0")
            assert (await connection.scalars(generic, {"ours": "%FROM artifact%"})).all() == []


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE)  # no other session can hold a table of SQLite and let it be written to
async def test_a_vacuum_does_not_wait_for_ever(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the table may do so for hours: the report says that nothing was vacuumed, and what is stale has gone."""
    monkeypatch.setattr("prefect_artifact_retention.stores.transactions.BUSY_TIMEOUT_SECONDS", 1)
    await server.database.insert(series("report", [1, 2, 3]))
    async with server.database.engine.begin() as other:
        await other.execute(sa.text("LOCK TABLE artifact IN SHARE UPDATE EXCLUSIVE MODE"))
        with patch.dict(os.environ, ARTIFACT_RETENTION_RECLAIM="vacuum"):
            report = await server.cleanup([KEEP_1], mode="delete")
    assert report.deleted == 2
    (warning,) = report.warnings
    assert "nothing was vacuumed" in warning
    assert "lock timeout" in warning


@on(*BY_DATABASE)
async def test_a_run_cancelled_in_the_middle_of_a_batch_counts_what_has_gone(server: Server) -> None:
    """The transaction ends, and its versions are in the report."""
    rows = await server.database.insert([row for number in range(50) for row in series(f"key-{number}", [1, 2, 3, 4])])
    runs: list[asyncio.Task[CleanupReport]] = []

    async def listen(step: Step, done: int, _total: int) -> None:
        if step == "deleting" and done >= 40:
            asyncio.get_running_loop().call_later(0.002, runs[0].cancel)

    token = LISTENER.set(listen)
    try:
        with patch.dict(os.environ, ARTIFACT_RETENTION_MAX_DELETIONS_PER_SECOND="20"):
            runs.append(asyncio.create_task(server.run_flow([KEEP_2], mode="delete")))
            with pytest.raises(asyncio.CancelledError):
                await runs[0]
    finally:
        LISTENER.reset(token)
    gone = len(rows) - len(await server.database.ids())
    assert 40 <= gone < 100
    (description,) = await server.database.run("SELECT description FROM artifact WHERE key = 'artifact-retention-report'")
    assert f"Deleted {gone} versions" in description[0]


@on(POSTGRESQL_DATABASE)  # nobody can end another's connection there
async def test_a_run_cancelled_in_the_middle_of_a_batch_that_fails_ends_all_the_same(server: Server) -> None:
    """The batch waits for a version that somebody has locked, until an administrator ends its connection."""
    rows = await server.database.insert(series("report", [1, 2, 3, 4]))
    waiting = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE FROM artifact%'"
    async with server.database.engine.begin() as somebody:
        await somebody.execute(sa.text("SELECT id FROM artifact WHERE id = :id FOR UPDATE"), {"id": rows[3].id})
        run = asyncio.create_task(server.cleanup([KEEP_2], mode="delete"))
        ended = 0
        while not run.done():
            if ended or await server.database.run(f"SELECT 1 {waiting}"):
                if not run.cancelling():
                    run.cancel()
                ended += len(await server.database.run(f"SELECT pg_terminate_backend(pid) {waiting}"))
            await asyncio.wait([run], timeout=0.02)
    with pytest.raises(asyncio.CancelledError):
        await run
    assert ended
    assert len(await server.database.ids()) == 4


# --- space on disk


@pytest.mark.thorough
@on(*BY_DATABASE)
async def test_the_report_says_what_space_was_freed_or_why_none_was(server: Server) -> None:
    """After a deletion the space stays with the database; a VACUUM gives back what SQLite can, and PostgreSQL at the end.

    A VACUUM frees nothing while a transaction of the server's own is open that could still see it.
    """
    policies = [RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30)]
    freed: list[bool] = []
    for how in ("none", *["vacuum"] * 5):
        rows = [Row(None, days(40), data=random.Random(number).randbytes(20_000).hex()) for number in range(300)]
        await server.database.insert(rows)
        with patch.dict(os.environ, ARTIFACT_RETENTION_RECLAIM=how):
            report = await server.cleanup(policies, mode="delete")
        assert report.deleted == 300
        (note,) = report.notes
        assert "on disk before the run and takes" in note
        assert ("none freed: the space of deleted rows is used again" in note) != (" MB freed" in note)
        assert report.warnings == []
        freed.append(" MB freed" in note)
        if freed[-1]:
            break
    assert (freed[0], freed[-1]) == (False, True)


@on(*BY_DATABASE)
async def test_a_vacuum_gives_back_nothing_in_postgresql_where_the_newest_rows_stay(server: Server) -> None:
    """Which is the usual case; the report says so. SQLite writes its file anew."""
    chance = random.Random(1)
    if not server.database.is_sqlite:
        # Other tests have left free space, at whose beginning these rows would be.
        async with server.database.engine.connect() as connection:
            alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await alone.execute(sa.text("VACUUM FULL artifact"))
    # The oldest is written first, as producers do.
    rows = [Row(f"key-{age % 5}", days(age), data=chance.randbytes(10_000).hex()) for age in range(300, 0, -1)]
    await server.database.insert(rows)
    with patch.dict(os.environ, ARTIFACT_RETENTION_RECLAIM="vacuum"):
        report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.deleted, report.warnings) == (295, [])
    (note,) = report.notes
    if server.database.is_sqlite:
        assert " MB freed" in note
    else:
        assert "none freed: the space of deleted rows is used again, and given back by pg_repack; VACUUM gives back" in note


# --- collections without their latest version


@on(POSTGRESQL_DATABASE)  # SQLite refuses the server's transaction
@pytest.mark.usefixtures("others_delete_meanwhile")
async def test_a_successor_pruned_while_a_person_deletes_the_latest_comes_back(server: Server) -> None:
    """The server read which version follows, we deleted it, and the server named it the latest: it is created again."""
    first, second = await server.database.insert(
        [Row("report", days(1)), Row("report", days(2), data="é", metadata={"a": "b"})]
    )
    deleted = False

    async def listen(step: Step, done: int, _total: int) -> None:
        nonlocal deleted
        if step == "deleting" and done and not deleted:
            deleted = True
            await server.database.run(
                "UPDATE artifact_collection SET latest_id = :id, data = to_json(CAST('é' AS TEXT)), created = :at, "
                "updated = :at, metadata_ = '{\"a\": \"b\"}' WHERE key = 'report'",
                [{"id": second.id, "at": datetime.now(UTC) - second.age}],
            )
            await server.database.run("DELETE FROM artifact WHERE id = :id", [{"id": first.id}])

    token = LISTENER.set(listen)
    try:
        report = await server.cleanup([KEEP_1], mode="delete")
    finally:
        LISTENER.reset(token)
    assert report.repaired == ["report"]
    assert await server.database.ids() == {second.id}
    assert not await server.database.dangling()
    ((data, metadata, created),) = await server.database.run(
        "SELECT data, metadata_, created FROM artifact WHERE key = 'report'"
    )
    assert (data, metadata) == ("é", {"a": "b"})
    assert abs(datetime.now(UTC) - second.age - created) < timedelta(minutes=1)


@on(*BY_DATABASE)
async def test_a_repaired_collection_has_the_data_of_its_newest_version(server: Server) -> None:
    """As the server itself would write it."""
    rows = series("broken", [1, 2, 3])
    rows[0].data, rows[0].metadata = {"é": 1}, {"a": "b"}
    await server.database.insert(rows, latest={"broken": uuid4()})
    await server.database.run("UPDATE artifact_collection SET data = NULL")
    report = await server.cleanup([KEEP_1], mode="delete")
    assert report.repaired == ["broken"]
    columns = "type, CAST(data AS TEXT), CAST(metadata_ AS TEXT), created, updated, flow_run_id"
    (repaired,) = await server.database.run(f"SELECT latest_id, {columns} FROM artifact_collection WHERE key = 'broken'")
    (newest,) = await server.database.run(
        f"SELECT id, {columns} FROM artifact WHERE key = 'broken' ORDER BY created DESC LIMIT 1"
    )
    assert repaired == newest


# --- pruned apart, under the lock of a key


async def publish(server: Server, key: str) -> UUID:
    """Create a version as its producer does."""
    with server.active():
        async with get_client() as client:
            return (await client.create_artifact(ArtifactCreate(key=key, type="markdown", data="new"))).id


@on(*BY_DATABASE)
async def test_a_key_that_has_changed_is_judged_anew(server: Server) -> None:
    """What has come to be held or in use, or is the latest by now, stays; a hold that is over keeps nothing."""
    with server.active():
        async with get_client() as client:
            run_id = (await client.create_flow_run(writer, state=Completed())).id
    rows = series("report", [2, 3, 4, 5, 6])
    rows[3].flow_run_id, rows[4].metadata = run_id, {"retention-hold": "2020-01-01"}
    await server.database.insert([*rows, *series("other", [1, 2])])

    async def interfere() -> None:
        await server.database.update_metadata(rows[1].id, {"retention-hold": "true"})
        await server.database.update_metadata(rows[2].id, {"retention-hold": "yess"})
        async with get_client() as client:
            await client.set_flow_run_state(run_id, Running(), force=True)

    with when_planned(interfere):
        report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.outcome, report.planned, report.deleted, report.spared) == ("completed", 5, 2, 3)
    assert await server.database.ids("key = 'report'") == {row.id for row in rows[:4]}


@on(*BY_DATABASE)
async def test_a_key_that_changes_all_the_time_is_pruned_all_the_same(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan of it is ever up to date; whatever comes meanwhile stays, and one that goes meanwhile is counted as gone."""
    monkeypatch.setattr(prune_database, "MAX_TRANSACTION_VERSIONS", 4)
    rows = await server.database.insert(series("report", range(1, 31)))
    newer: list[UUID] = []

    async def listen(step: Step, _done: int, _total: int) -> None:
        if step == "deleting":
            await server.database.delete_version(rows[10].id)
            newer.append(await publish(server, "report"))

    token = LISTENER.set(listen)
    try:
        report = await server.cleanup([KEEP_2], mode="delete")
    finally:
        LISTENER.reset(token)
    assert (report.outcome, report.planned, report.deleted, report.already_gone) == ("completed", 28, 27, 1)
    assert len(newer) > 8
    assert await server.database.ids() == {*(row.id for row in rows[:2]), *newer}


@on(*BY_DATABASE)
@pytest.mark.parametrize("comes", ["a run", "a hold", "a version"])
async def test_an_idle_key_that_comes_to_life_between_two_batches_keeps_what_is_left(
    server: Server, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    """Whatever shows it, and whichever version it concerns: that need be none of the next batch."""
    monkeypatch.setattr(prune_database, "MAX_TRANSACTION_VERSIONS", 4)
    with server.active():
        async with get_client() as client:
            run_id = (await client.create_flow_run(writer, state=Completed())).id
    rows = series("idle", range(100, 112))
    rows[1].flow_run_id = run_id
    await server.database.insert(rows)
    newer: list[UUID] = []
    done = False

    async def listen(step: Step, deleted: int, _total: int) -> None:
        nonlocal done
        if step != "deleting" or not deleted or done:
            return
        done = True
        if comes == "a run":
            async with get_client() as client:
                await client.set_flow_run_state(run_id, Running(), force=True)
        elif comes == "a hold":
            await server.database.update_metadata(rows[1].id, {"retention-hold": "true"})
        else:
            newer.append(await publish(server, "idle"))

    policy = RetentionPolicy(name="idle", keep_last=20, drop_idle_keys_after_days=90)
    token = LISTENER.set(listen)
    try:
        report = await server.cleanup([policy], mode="delete")
    finally:
        LISTENER.reset(token)
    assert (report.outcome, report.deleted, report.spared) == ("completed", 4, 8)
    assert await server.database.ids() == {*(row.id for row in rows[:8]), *newer}
    assert not await server.database.dangling()


@on(POSTGRESQL_DATABASE)  # SQLite has one writer at a time
async def test_a_key_that_stays_locked_fails_and_no_other_does(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether somebody has locked its collection or one of its versions; and so it is with an artifact without a key."""
    monkeypatch.setattr("prefect_artifact_retention.stores.transactions.LOCK_TIMEOUT_MILLISECONDS", 50)
    rows = [*series("collection", [1, 2]), *series("version", [1, 2]), *series("free", [1, 2]), *series(None, [40, 41, 42])]
    await server.database.insert(rows)
    async with server.database.engine.begin() as somebody:
        await somebody.execute(sa.text("SELECT * FROM artifact_collection WHERE key = 'collection' FOR UPDATE"))
        locked = {rows[3].id, rows[7].id}
        await somebody.execute(sa.text("SELECT * FROM artifact WHERE id = ANY(:ids) FOR UPDATE"), {"ids": list(locked)})
        policies = [KEEP_1, RetentionPolicy(name="u", unkeyed=True, keep_within_days=30)]
        with pytest.raises(CleanupFailed) as failed:
            await server.cleanup(policies, mode="delete")
    report = failed.value.report
    assert (report.deleted, report.failed) == (3, 3)
    errors = {each.key: each.error for each in report.key_reports if each.error}
    assert errors.keys() == {"collection", "version", None}
    assert all("lock timeout" in error for error in errors.values())
    assert await server.database.ids() == {rows[0].id, rows[1].id, rows[2].id, rows[4].id} | locked


@on(*BY_DATABASE)
async def test_a_version_that_the_database_refuses_to_delete_fails_its_key_only(server: Server) -> None:
    """Somebody may have a table of their own that refers to it. What is older goes, and so do all other keys."""
    rows = series("referred", range(1, 31)) + series("free", [1, 2]) + series(None, [40, 41])
    rows += [row for number in range(prune_database.MAX_FAILURES) for row in series(f"also-{number:02}", [1, 2])]
    await server.database.insert(rows)
    refused = {rows[20].id, rows[33].id, *(row.id for row in rows[35::2])}
    kind = "CHAR(36)" if server.database.is_sqlite else "UUID"
    await server.database.run(f"CREATE TABLE theirs (artifact_id {kind} REFERENCES artifact (id))")
    try:
        for version_id in refused:
            await server.database.run(f"INSERT INTO theirs VALUES ('{version_id}')")
        policies = [KEEP_1, RetentionPolicy(name="u", unkeyed=True, keep_within_days=30)]
        with pytest.raises(CleanupFailed) as failed:
            await server.cleanup(policies, mode="delete")
    finally:
        await server.database.run("DROP TABLE theirs")
    report = failed.value.report
    assert (report.deleted, report.failed, report.errors) == (9 + 1 + 1, 2 + prune_database.MAX_FAILURES, [])
    assert {each.key for each in report.key_reports if each.error} == {"referred", None, *(row.key for row in rows[34:])}
    assert await server.database.ids() == {row.id for row in (*rows[:21], rows[30], *rows[33:])}


@on(POSTGRESQL_DATABASE)  # SQLite has one writer at a time
@pytest.mark.parametrize("stops", ["failures", "time"])
async def test_a_database_that_stays_locked_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch, stops: str) -> None:
    """After some keys, or once the time is over, of a batch each or not; with thousands, the run would never end."""
    monkeypatch.setattr("prefect_artifact_retention.stores.transactions.LOCK_TIMEOUT_MILLISECONDS", 10)
    monkeypatch.setattr(prune_database, "MAX_TRANSACTION_VERSIONS", 2)
    monkeypatch.setattr(prune_database, "MAX_FAILURES", 3 if stops == "failures" else 99)
    monkeypatch.setattr("prefect_artifact_retention.tasks.run.MIN_DELETIONS", 2)
    rows = await server.database.insert([row for number in range(8) for row in series(f"key-{number}", [1, 2, 3])])
    budget = {} if stops == "failures" else {"time_budget_minutes": 0.02}
    async with server.database.engine.begin() as somebody:
        await somebody.execute(sa.text("SELECT * FROM artifact_collection FOR UPDATE"))
        with pytest.raises(CleanupFailed) as failed:
            await server.cleanup([KEEP_1], mode="delete", **budget)
    report = failed.value.report
    assert report.deleted == 0
    assert sum(bool(each.error) for each in report.key_reports) in ({3, 4} if stops == "failures" else {2, 3})
    assert any("3 times in a row, nothing could be deleted" in error for error in report.errors) == (stops == "failures")
    assert await server.database.ids() == {row.id for row in rows}


@on(POSTGRESQL_DATABASE)  # SQLite has one writer at a time
async def test_nothing_is_deleted_of_a_key_that_somebody_is_writing_to(server: Server) -> None:
    """Whoever creates a version holds its collection until it is there; its neighbour goes meanwhile."""
    await server.database.insert([*series("busy", [1, 2]), *series("quiet", [1, 2])])
    async with open_database(server.database.url) as store, server.database.engine.connect() as producer:
        collections = {each.key: each for each in await store.collections(["busy", "quiet"])}
        deletions = []
        for key, collection in collections.items():
            history = await history_of(store, key)
            stale = [version.id for version in history.versions if version.id != collection.latest_id]
            assert history.mark
            deletions.append(KeyDeletion(collection, history.mark, stale, is_last=True))
        await producer.execute(sa.text("UPDATE artifact_collection SET latest_id = latest_id WHERE key = 'busy'"))
        assert await store.transactions.write(Changes.delete_unchanged, deletions) == {"quiet": None}
        await producer.rollback()
        assert await store.transactions.write(Changes.delete_unchanged, deletions) == {"busy": None}


async def history_of(store: Store, key: str) -> History:
    """The versions of one key."""
    (history,) = [each async for page in store.histories([key]) for each in page]
    return history


async def deletion_of(store: DatabaseStore, key: str, *, stays: int) -> KeyDeletion:
    """What would delete all versions of a key but the newest few."""
    (collection,) = await store.collections([key])
    history = await history_of(store, key)
    assert history.mark
    newest_first = sorted(history.versions, key=lambda version: version.created, reverse=True)
    return KeyDeletion(collection, history.mark, [version.id for version in newest_first[stays:]], is_last=True)


@on(*BY_DATABASE)
async def test_a_key_whose_run_has_not_finished_is_passed_over_and_the_rest_of_its_batch_goes(server: Server) -> None:
    """Nothing of it, not even its versions of other runs; nor its collection, where all of it was to go."""
    with server.active():
        async with get_client() as client:
            run_id = (await client.create_flow_run(writer, state=Running())).id
    for stays in (0, 1):
        rows = [*series("alive", [1, 2, 3]), *series("over", [1, 2, 3])]
        rows[2].flow_run_id = run_id
        await server.database.insert(rows)
        async with open_database(server.database.url) as store:
            deletions = [await deletion_of(store, key, stays=stays) for key in ("alive", "over")]
            assert await store.transactions.write(Changes.delete_unchanged, deletions) == {"over": None}
            assert [each.key for each in await store.collections(["alive", "over"])] == ["alive", "over"][: 1 + stays]
        assert await server.database.ids() == {row.id for row in rows[: 3 + stays]}
        await server.database.clear()


@on(*BY_DATABASE)
@pytest.mark.parametrize("change", ["metadata", "moved metadata", "a date"])
async def test_what_somebody_changes_by_hand_since_a_key_was_judged_keeps_it(server: Server, change: str) -> None:
    """Even if no update of Prefect's shows it: the same number of versions, last updated at the same times."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    if change == "moved metadata":
        await server.database.update_metadata(rows[0].id, {"retention-hold": "true"})
        await server.database.update_metadata(rows[1].id, {})
    async with open_database(server.database.url) as store:
        deletion = await deletion_of(store, "report", stays=1)
        if change == "moved metadata":
            await server.database.update_metadata(rows[0].id, {})
        if change != "a date":
            await server.database.update_metadata(rows[1].id, {"retention-hold": "true"})
        else:
            newest = "SELECT max(created) FROM artifact"
            await server.database.run(f"UPDATE artifact SET created = ({newest}) WHERE id = '{rows[2].id}'")
        before = await server.database.ids()
        assert await store.transactions.write(Changes.delete_unchanged, [deletion]) == {}
    assert await server.database.ids() == before


@on(*BY_DATABASE)
async def test_an_idle_key_whose_latest_version_is_updated_meanwhile_stays(server: Server) -> None:
    """Though it was updated at the same second of another minute, as by a schedule."""
    rows = await server.database.insert(series("report", [100, 101]))
    later = (
        "datetime(updated, '+5 minutes') || substr(updated, 20)"
        if server.database.is_sqlite
        else "updated + interval '5 minutes'"
    )
    async with open_database(server.database.url) as store:
        deletion = await deletion_of(store, "report", stays=0)
        await server.database.run(f"UPDATE artifact SET updated = {later} WHERE id = '{rows[0].id}'")
        assert await store.transactions.write(Changes.delete_unchanged, [deletion]) == {}
    assert await server.database.ids() == {row.id for row in rows}


@on(*BY_DATABASE)
async def test_a_batch_with_a_latest_version_deletes_nothing(server: Server) -> None:
    """Whoever asks for it: the store looks for itself."""
    rows = await server.database.insert([*series("report", [1, 2]), *series("other", [1, 2])])
    async with open_database(server.database.url) as store:
        wrong = replace(await deletion_of(store, "report", stays=1), ids=[rows[0].id])
        with pytest.raises(StoreError, match="a version that was to be deleted is the latest of its key"):
            await store.transactions.write(Changes.delete_unchanged, [await deletion_of(store, "other", stays=1), wrong])
    assert await server.database.ids() == {row.id for row in rows}


@on(*BY_DATABASE)
@pytest.mark.parametrize(
    "change", ["data", "metadata", "description", "exchanged", "a number", "none left", "another key", "no copy"]
)
async def test_a_batch_deletes_only_what_is_as_it_was_archived(server: Server, change: str) -> None:
    """Though it was judged since: beside keys that go, one that needs no copy, and versions that stay."""
    rows = await server.database.insert(row for key in "abcd" for row in series(key, [1, 2, 3, 4]))
    victim = rows[6].id
    async with open_database(server.database.url) as store:
        ids = {key: (await deletion_of(store, key, stays=2)).ids for key in "abcd"}
        await server.database.update_data(victim, 0.3 if change == "a number" else "its own")
        states = {**await store.transactions.read(Changes.states, [row.id for row in rows])}
        if change == "data":
            await server.database.update_data(victim, "y")
        elif change == "a number":
            await server.database.update_data(victim, 0.1 + 0.2)
        elif change == "exchanged":
            await server.database.update_data(victim, rows[7].data)
            await server.database.update_data(rows[7].id, "its own")
        elif change == "metadata":
            await server.database.update_metadata(victim, {"a": "b"})
        elif change == "none left":
            await server.database.delete_version(victim)
        elif change == "no copy":
            states[victim] = 1
        else:
            values = {"description": "description = 'other'", "another key": "key = 'd'"}
            await server.database.run(f"UPDATE artifact SET {values[change]} WHERE id = '{victim}'")
        deletions = [
            replace(
                await deletion_of(store, key, stays=2),
                ids=ids[key],
                archived=sum(states[each] for each in ids[key]) if key != "d" else None,
            )
            for key in "abcd"
        ]
        before = await server.database.ids()
        assert await store.transactions.write(Changes.delete_unchanged, deletions) == dict.fromkeys("acd")
    assert await server.database.ids() == before.difference(ids["a"], ids["c"], ids["d"])


# --- a role that may do just what is needed


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE)  # SQLite has no roles
async def test_the_documented_grants_are_enough_and_no_more_than_needed(server: Server) -> None:
    """A run deletes, repairs and drops an idle key as that role; without any of the grants it would not.

    It also does without what it only reports: the vacuum, and the size on disk. Where it may change nothing, it says so.
    """
    grants = re.search(r"```sql\n(CREATE ROLE.*?)```", DOCUMENTATION, flags=re.DOTALL)
    assert grants
    statements = [each.strip() for each in grants[1].replace("'...'", "'s3cret'").split(";") if each.strip()]
    await server.database.run("DROP ROLE IF EXISTS artifact_retention")
    for statement in statements:
        await server.database.run(statement)
    url = sa.make_url(server.database.url).set(username="artifact_retention", password="s3cret")  # noqa: S106 - of a server that lives for one test
    limited = replace(server, database=Database(url.render_as_string(hide_password=False)))
    try:
        for taken in ("", *(each for each in statements if each.startswith("GRANT"))):
            await server.database.clear()
            await server.database.insert([*series("report", [1, 2, 3]), *series("idle", [100])])
            await server.database.insert(series("broken", [1, 2]), latest={"broken": uuid4()})
            if taken:
                await server.database.run(taken.replace("GRANT", "REVOKE", 1).replace(" TO ", " FROM "))
                with pytest.raises((CleanupFailed, StoreError), match="permission denied"):
                    await limited.cleanup(ROLE_POLICIES, mode="delete")
                await server.database.run(taken)
                continue
            report = await limited.cleanup(ROLE_POLICIES, mode="delete")
            assert (report.outcome, report.deleted, report.repaired) == ("completed", 3, ["broken"])
            with patch.dict(os.environ, ARTIFACT_RETENTION_RECLAIM="vacuum"):
                await server.database.insert(series("other", [1, 2]))
                report = await limited.cleanup(ROLE_POLICIES, mode="delete")
            assert any("may not vacuum" in warning for warning in report.warnings)
            await server.database.run(f"REVOKE EXECUTE ON FUNCTION {MEASURED} FROM PUBLIC")
            await server.database.insert(series("third", [1, 2]))
            report = await limited.cleanup(ROLE_POLICIES, mode="delete")
            assert (report.outcome, report.deleted, report.notes) == ("completed", 1, [])
            assert any("the space freed on disk is not known" in warning for warning in report.warnings)
        # As a replica is.
        await server.database.run("ALTER ROLE artifact_retention SET default_transaction_read_only = on")
        with pytest.raises(StoreError, match=r"is read-only, as a replica is; unset ARTIFACT_RETENTION_DATABASE_URL"):
            await limited.cleanup(ROLE_POLICIES, mode="delete")
        assert (await limited.cleanup(ROLE_POLICIES)).outcome == "completed"
    finally:
        await server.database.run(f"GRANT EXECUTE ON FUNCTION {MEASURED} TO PUBLIC")
        await server.database.run("DROP OWNED BY artifact_retention")
        await server.database.run("DROP ROLE artifact_retention")
