"""Restoring: in the database exactly, through the API as new versions; whatever happens in the middle, once."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import prefect_artifact_retention as retention
import pytest
import sqlalchemy as sa
from database import Row, days, series
from fake import FakeServer
from moto.server import ThreadedMotoServer
from prefect.client.orchestration import get_client
from prefect.states import Completed
from prefect_artifact_retention.flows.restore import artifact_restore, open_restore
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from prefect_artifact_retention.stores import reposting
from prefect_artifact_retention.stores.archive.archive import Archive
from prefect_artifact_retention.stores.archive.model import ArchiveError, CollectionRow, LedgerQuery
from prefect_artifact_retention.tasks import restore_plan
from prefect_artifact_retention.tasks.restore import restore_all
from prefect_artifact_retention.tasks.restore_plan import Selection, plan_restore
from prefect_artifact_retention.tasks.restore_report import RestoreReport, headline, remark
from restoring import DECIDED_AT, EVERYTHING, RUN_ID, RUN_NAME, archived, collection_rows, made, snapshot, write_archive
from servers import BY_DATABASE, BY_FAKE, POSTGRESQL_DATABASE, SQLITE_DATABASE, PatientClient, Server, on, thorough
from sqlalchemy.ext.asyncio import AsyncConnection

AnyServer = Server | FakeServer

TYPES = ("markdown", "table", "link", "image", "progress", "json", "result", None)

TEXTS = (
    '"text"',
    "1.10",
    "-0",
    "50.0",
    "1e400",
    "1E2",
    "12345678901234567890",
    "0.1234567890123456789",
    '{"b": 1, "a": 2, "b": 3}',
    "[1,   2]",
    '"\\u0000"',
    '"\\ud800"',
    "null",
    "true",
    "{}",
    "[]",
    '""',
    '"\u00e9\U0001f600 \\u00e9"',
)
"""Texts of JSON, most of which are not the same once they have been read and written."""

SQLITE_TEXTS = (
    *TEXTS,
    "NaN",
    "1e999",
    "0.30000000000000004",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-5",
)


async def restore(
    archive: Archive,
    query: LedgerQuery = EVERYTHING,
    *,
    applies: bool = True,
    **options: Any,  # noqa: ANN401 - the other fields
) -> RestoreReport:
    """Restore what is asked for, without Prefect's engine."""
    async with open_restore(load_settings(), Selection(query, **options), archive=archive) as opened:
        await plan_restore(opened)
        if applies:
            await restore_all(opened)
    return opened.report


async def set_text(server: Server, version_id: UUID, column: str, text: str | None) -> None:
    """Store a text of JSON as it is, in the version and in what its collection copies."""
    kind = "TEXT" if server.database.is_sqlite else "JSON"
    shown = str(version_id) if server.database.is_sqlite else version_id
    for table, name in (("artifact", "id"), ("artifact_collection", "latest_id")):
        await server.database.run(
            f"UPDATE {table} SET {column} = CAST(:text AS {kind}) WHERE {name} = :id", [{"text": text, "id": shown}]
        )


async def delete(server: Server, folder: Path, rows: Iterable[Row], whole: Sequence[str] = ()) -> Archive:
    """Archive versions, and delete them as a cleanup in the database does; keys as a whole with their collections."""
    rows = list(rows)
    versions = await archived(server, f"{server.local.address}/api", [row.id for row in rows])
    collections = [row for key, row in (await collection_rows(server.database)).items() if key in whole]
    archive = write_archive(folder / "archive", versions, collections)
    for row in rows:
        await server.database.delete_version(row.id)
    for key in whole:
        await server.database.delete_key(key)
    return archive


async def latest(server: Server, key: str) -> UUID:
    """The latest version of a key."""
    return (await collection_rows(server.database))[key].latest_id


# --- in the database


@on(*BY_DATABASE)
async def test_what_is_restored_in_the_database_is_as_it_was(server: Server, tmp_path: Path) -> None:
    """Every type, every text of JSON, 5 MB, no metadata and odd ones; keys as a whole with their collections, and parts."""
    texts = SQLITE_TEXTS if server.database.is_sqlite else TEXTS
    rows = [Row("texts", days(100 - number), type=TYPES[number % len(TYPES)]) for number in range(len(texts))]
    rows += [Row("whole", days(number), data="x" * 5_000_000 if number == 2 else {"a": [1.5]}) for number in (1, 2, 3)]
    rows += [Row("part", days(number), metadata={"a": "b"} if number % 2 else None) for number in range(1, 9)]
    rows += [Row(None, days(5), type="table"), Row(None, days(6), metadata={"owner": "ada"})]
    await server.database.insert(rows)
    for row, text in zip(rows, texts, strict=False):
        await set_text(server, row.id, "data", text)
    await set_text(server, rows[3].id, "metadata_", None)
    await set_text(server, rows[4].id, "metadata_", "[1, 2]")
    # As Prefect stores it.
    await server.database.run("UPDATE artifact_collection SET metadata_ = 'null'")
    await server.database.run("UPDATE artifact SET description = 'd\u00e9scription' WHERE key = 'part'")
    before = await snapshot(server.database)
    assert len(before) == len(rows) + 3
    gone = [row for row in rows if row.key != "part" or row.age > days(3)]
    archive = await delete(server, tmp_path, gone, ["texts", "whole"])
    assert len(await snapshot(server.database)) == len(rows) - len(gone) + 1
    with server.active():
        report = await restore(archive, hold_days=0)
        assert (report.causes(), report.restored, report.present) == ([], len(gone), 0)
        assert await snapshot(server.database) == before
        again = await restore(archive, hold_days=0)
    assert (again.restored, again.present) == (0, len(gone))
    assert await snapshot(server.database) == before


@on(*BY_DATABASE)
async def test_what_a_cleanup_has_deleted_comes_back_from_its_archive_as_the_server_had_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions that Prefect itself has stored, of keys that stay, of one that goes as a whole, and without a key."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", str(tmp_path / "archive"))
    async with PatientClient(server) as client:
        for number in range(5):
            for key in ("stays", "idle"):
                body = {"key": key, "type": "table", "data": json.dumps([{"n": number}]), "description": f"number {number}"}
                (await client.post("/artifacts/", json=body)).raise_for_status()
        (await client.post("/artifacts/", json={"type": "markdown", "data": "no key"})).raise_for_status()
    earlier = "datetime(created, '-60 days') || '.000001'" if server.database.is_sqlite else "created - interval '60 days'"
    for table in ("artifact", "artifact_collection"):
        await server.database.run(f"UPDATE {table} SET created = {earlier}, updated = {earlier}")
    before = await snapshot(server.database)
    policies = [
        RetentionPolicy(name="idle", match_keys=["idle"], keep_last=1, drop_idle_keys_after_days=30),
        RetentionPolicy(name="others", keep_last=1),
        RetentionPolicy(name="no key", unkeyed=True, keep_within_days=30),
    ]
    report = await server.cleanup(policies, mode="delete")
    assert (report.outcome, report.deleted) == ("completed", 10)
    assert len(await server.database.ids()) == 1
    with server.active():
        async with open_restore(load_settings(), Selection(EVERYTHING, hold_days=0)) as opened:
            await plan_restore(opened)
            await restore_all(opened)
    assert (opened.report.causes(), opened.report.restored) == ([], 10)
    assert await snapshot(server.database) == before


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_the_collection_of_another_server_is_none_of_this_one(server: Server, tmp_path: Path) -> None:
    """One archive serves several, which have keys of the same name."""
    rows = series("report", [1, 2, 3])
    await server.database.insert(rows)
    await server.database.run("UPDATE artifact_collection SET metadata_ = 'null'")
    before = await snapshot(server.database)
    archive = await delete(server, tmp_path, rows, ["report"])
    theirs = made("report", 7, "https://elsewhere.example/api")
    row = CollectionRow(key="report", id=theirs.id, created=theirs.created, updated=theirs.created, latest_id=theirs.id)
    write_archive(tmp_path / "archive", [theirs], [row])
    with server.active():
        await restore(archive, hold_days=0)
    assert await snapshot(server.database) == before


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_the_collection_of_an_earlier_deletion_is_none_of_the_key_that_came_after_it(
    server: Server, tmp_path: Path
) -> None:
    """The key went as a whole, came again, went in parts, and the rest by hand: it had another collection by then."""
    old, new = series("report", [30, 31]), series("report", [1, 2])
    await server.database.insert(old)
    first = (await collection_rows(server.database))["report"]
    await delete(server, tmp_path, old, ["report"])
    await server.database.insert(new)
    second = await archived(server, f"{server.local.address}/api", [row.id for row in new])
    later = DECIDED_AT + timedelta(days=1)
    archive = write_archive(tmp_path / "archive", [each._replace(decided_at=later, was_latest=False) for each in second])
    for row in new:
        await server.database.delete_version(row.id)
    await server.database.delete_key("report")
    with server.active():
        assert (await restore(archive, hold_days=0)).restored == 4
    assert (await collection_rows(server.database))["report"].id != first.id


@on(*BY_DATABASE)
async def test_a_restored_version_becomes_the_latest_only_if_it_had_been(server: Server, tmp_path: Path) -> None:
    """Not beside a latest that was not the newest; not of a key that was created anew; but of one that comes back in parts."""
    busy, anew, parts = (series(key, [1, 2, 3, 4]) for key in ("busy", "anew", "parts"))
    await server.database.insert([*busy, *anew, *parts], latest={"busy": busy[2].id, "anew": anew[1].id})
    archive = await delete(server, tmp_path, [busy[0], busy[3], *anew, *parts], ["anew", "parts"])
    (new,) = await server.database.insert([Row("anew", days(0.5))])
    before = await collection_rows(server.database)
    with server.active():
        await restore(archive, LedgerQuery(keys=("busy", "anew")), hold_days=0)
        assert await collection_rows(server.database) == before
        assert (await latest(server, "busy"), await latest(server, "anew")) == (busy[2].id, new.id)
        for row in (parts[2], parts[3], parts[1]):
            await restore(archive, LedgerQuery(ids=(row.id,)), hold_days=0)
        assert await latest(server, "parts") == parts[1].id
        await restore(archive, LedgerQuery(keys=("parts",)), hold_days=0)
    assert await latest(server, "parts") == parts[0].id
    assert len(await server.database.ids()) == 13
    assert await server.database.dangling() == []


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE, SQLITE_DATABASE)
async def test_producers_of_a_key_that_is_restored_lose_nothing(server: Server, tmp_path: Path) -> None:
    """Each latest version is one that they have created, also of a key that had gone."""
    keys = [f"key-{number}" for number in range(6)]
    rows = [row for key in keys for row in series(key, [number / 10 for number in range(1, 101)])]
    await server.database.insert(rows)
    archive = await delete(server, tmp_path, [row for row in rows if row.age > days(0.5) or row.key in keys[3:]], keys[3:])
    async with PatientClient(server) as client:
        created: dict[str, list[UUID]] = {key: [] for key in keys}

        async def produce(key: str) -> None:
            for number in range(10):
                answer = await client.post("/artifacts/", json={"key": key, "type": "markdown", "data": f"new {number}"})
                created[key].append(UUID(answer.raise_for_status().json()["id"]))

        with server.active():
            async with open_restore(load_settings(), Selection(EVERYTHING, hold_days=0), archive=archive) as opened:
                await plan_restore(opened)
                await asyncio.gather(restore_all(opened), *(produce(key) for key in keys))
    assert opened.report.causes() == []
    assert await server.database.ids() == {*(row.id for row in rows), *(each for ids in created.values() for each in ids)}
    assert {key: row.latest_id for key, row in (await collection_rows(server.database)).items()} == {
        key: ids[-1] for key, ids in created.items()
    }


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_what_is_restored_is_on_hold_and_the_next_cleanup_deletes_nothing_of_it(server: Server, tmp_path: Path) -> None:
    """A hold that ends later stays, as does one without an end; without a key, it is in the metadata."""
    rows = [*series("plain", [40, 50]), *series("longer", [40, 50]), *series("short", [40, 50])]
    loose = [Row(None, days(50), metadata={"owner": "ada"}), Row(None, days(51), metadata={"retention-hold": "true"})]
    await server.database.insert([*rows, *loose])
    archive = await delete(server, tmp_path, [rows[1], rows[3], rows[5], *loose])
    until = datetime.now(UTC).date() + timedelta(days=7)
    policies = [RetentionPolicy(name="one", keep_last=1), RetentionPolicy(name="no key", unkeyed=True, keep_within_days=3)]
    with server.active():
        await retention.ahold("longer", by="ada")
        await retention.ahold("short", until=until - timedelta(days=3), by="ada")
        report = await restore(archive)
        held = {hold.key: (hold.by, hold.until) for hold in await retention.aholds()}
    assert held == {
        "plain": (f"restore of {RUN_NAME}", until),
        "longer": ("ada", None),
        "short": (f"restore of {RUN_NAME}", until),
    }
    assert {each.key: each.held_until for each in report.key_reports} == {
        "plain": until,
        "longer": None,
        "short": until,
        None: until,
    }
    found = await server.database.run("SELECT metadata_ FROM artifact WHERE key IS NULL ORDER BY created DESC")
    metadata = [json.loads(row[0]) if isinstance(row[0], str) else row[0] for row in found]
    assert metadata[0] | {"retention-hold-since": ""} == {
        "owner": "ada",
        "retention-hold": str(until),
        "retention-hold-by": f"restore of {RUN_NAME}",
        "retention-hold-since": "",
    }
    assert metadata[1] == {"retention-hold": "true"}
    assert (await server.cleanup(policies, mode="delete")).deleted == 0


@on(POSTGRESQL_DATABASE)
async def test_a_key_that_postgresql_refuses_fails_in_words_and_others_are_restored(server: Server, tmp_path: Path) -> None:
    """A NaN of a SQLite server is no JSON to it; nothing of the key is restored, and nothing is guessed."""
    await server.database.insert(series("stays", [1]))
    address = f"{server.local.address}/api"
    bad = made("bad", 2, address, data='{"loss": NaN}')
    archive = write_archive(
        tmp_path / "archive", [made("bad", 1, address), bad, made("good", 1, address), made("so", 1, address)]
    )
    with server.active():
        report = await restore(archive)
    assert [(each.key, each.restored) for each in report.key_reports] == [("bad", 0), ("good", 1), ("so", 1)]
    assert "invalid input syntax for type json" in report.key_reports[0].error
    assert f"no NaN and nothing else that is no JSON, as in version {bad.id}" in report.key_reports[0].error
    assert len(await server.database.ids()) == 3


@on(SQLITE_DATABASE)
async def test_the_report_claims_the_holds_that_are_there_and_no_others(server: Server, tmp_path: Path) -> None:
    """A key that fails was put on hold before; without a key, a version whose metadata are no object has none."""
    address = f"{server.local.address}/api"
    archive = write_archive(tmp_path / "archive", [made("bad", 1, address)])
    (part,) = (tmp_path / "archive/data").iterdir()
    part.write_bytes(part.read_bytes().replace(b"PAR1", b"PAR0", 1))
    write_archive(tmp_path / "archive", [made("good", 1, address), made(None, 1, address, metadata='"odd"')])
    with server.active():
        report = await restore(archive)
        held = {hold.key: hold.describe() for hold in await retention.aholds()}
    assert {each.key: each.restored for each in report.key_reports} == {"bad": 0, "good": 1, None: 1}
    assert {each.key: each.held for each in report.key_reports if each.held} == held
    assert held.keys() == {"bad", "good"}
    assert "nothing of it was restored, and it is on hold all the same" in remark(report.key_reports[0])
    assert "not on hold, because their metadata are no object" in report.warnings[0]


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_a_key_that_does_not_fit_into_memory_is_restored_in_one_transaction_all_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keys beside it, in batches of their own."""
    monkeypatch.setattr(restore_plan, "MAX_BATCH_BYTES", 20_000)
    monkeypatch.setattr(restore_plan, "MAX_BATCH_VERSIONS", 8)
    rows = [
        Row(key, days(number), data="x" * 1_000) for key in ("a", "big", "c") for number in range(1, 40 if key == "big" else 9)
    ]
    await server.database.insert([*rows, *(Row(None, days(number)) for number in range(1, 20))])
    await server.database.run("UPDATE artifact_collection SET metadata_ = 'null'")
    before = await snapshot(server.database)
    loose = [Row(None, days(0), id=each) for each in await server.database.ids("key IS NULL")]
    archive = await delete(server, tmp_path, [*rows, *loose], ["a", "big", "c"])
    with server.active():
        report = await restore(archive, hold_days=0)
    assert (report.causes(), report.restored) == ([], len(before) - 3)
    assert await snapshot(server.database) == before


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_what_a_damaged_part_of_the_archive_has_is_not_restored_and_all_else_is(server: Server, tmp_path: Path) -> None:
    """The report says which part it is."""
    await server.database.insert(series("stays", [1]))
    address = f"{server.local.address}/api"
    archive = write_archive(tmp_path / "archive", [made("a", 1, address), made("bad", 1, address)])
    (part,) = (tmp_path / "archive" / "data").iterdir()
    write_archive(tmp_path / "archive", [made("bad", 2, address), *(made("z", number, address) for number in range(3))])
    content = bytearray(part.read_bytes())
    content[content.index(b"number") if b"number" in content else 40] ^= 1
    part.write_bytes(content)
    with server.active():
        report = await restore(archive)
    assert [(each.key, each.restored) for each in report.key_reports] == [("a", 0), ("bad", 0), ("z", 3)]
    for each in report.key_reports[:2]:
        assert f"data/{part.name} is not as it was written" in each.error
    assert len(await server.database.ids()) == 4


class KilledError(BaseException):
    """The process is gone: nothing of it catches this."""


@on(SQLITE_DATABASE, thorough(POSTGRESQL_DATABASE))
async def test_a_restore_that_is_killed_before_any_statement_is_completed_by_a_rerun(server: Server, tmp_path: Path) -> None:
    """At no time is there a part of a key, or a collection without its latest version."""
    rows = [*series("whole", [1, 2, 3]), *series("part", [1, 2, 3]), Row(None, days(4))]
    await server.database.insert(rows)
    await server.database.run("UPDATE artifact_collection SET metadata_ = 'null'")
    before = await snapshot(server.database)
    gone = [row for row in rows if row is not rows[3]]
    archive = await delete(server, tmp_path, gone, ["whole"])
    collections = await collection_rows(server.database)
    statement = 0
    is_killed = True
    while is_killed:
        statement += 1
        is_killed = await _killed_before(statement, archive, server)
        ids = await server.database.ids()
        assert ids in ({rows[3].id}, {row.id for row in rows})
        assert await server.database.dangling() == []
        if is_killed and len(ids) == len(rows):
            assert await snapshot(server.database) == before
            await delete(server, tmp_path / str(statement), gone, ["whole"])
    assert await snapshot(server.database) == before
    assert statement > 5
    assert collections.keys() == {"part"}


async def _killed_before(number: int, archive: Archive, server: Server) -> bool:
    """Restore, and let the process be gone before this statement. Return whether there was one."""
    left = number

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KilledError

    with server.active():
        async with open_restore(load_settings(), Selection(EVERYTHING, hold_days=0), archive=archive) as opened:
            assert opened.database
            sa.event.listen(opened.database.transactions.engine.sync_engine, "before_cursor_execute", count)
            try:
                await plan_restore(opened)
                await restore_all(opened)
            except KilledError:
                return True
    return False


@on(POSTGRESQL_DATABASE)
@pytest.mark.parametrize("is_lost", [False, True], ids=["another is first", "connection lost"])
async def test_what_happens_while_versions_are_inserted_restores_them_once(
    server: Server, tmp_path: Path, *, is_lost: bool
) -> None:
    """Another restore has inserted one of them, and not committed yet, so nobody can see it; or the connection is lost."""
    rows = series("report", [1, 2, 3])
    await server.database.insert(rows)
    await server.database.run("UPDATE artifact_collection SET metadata_ = 'null'")
    before = await snapshot(server.database)
    await server.database.run(f"CREATE TABLE copied AS SELECT * FROM artifact WHERE id = '{rows[1].id}'")
    archive = await delete(server, tmp_path, rows[1:])

    async def go_on_once_waited_for(other: AsyncConnection) -> None:
        waiting = "FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        while not (await server.database.run(f"SELECT count(*) {waiting}"))[0][0]:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        if is_lost:
            await server.database.run(f"SELECT pg_terminate_backend(pid) {waiting}")
            await other.rollback()
        else:
            await other.commit()

    async with server.database.engine.connect() as other:
        await other.execute(sa.text("INSERT INTO artifact SELECT * FROM copied"))
        with server.active():
            report, _done = await asyncio.gather(restore(archive, hold_days=0), go_on_once_waited_for(other))
    await server.database.run("DROP TABLE copied")
    assert (report.causes(), report.restored, report.present) == ([], 1 + is_lost, 1 - is_lost)
    assert await snapshot(server.database) == before


@on(POSTGRESQL_DATABASE)
async def test_a_connection_that_is_lost_while_much_is_copied_restores_it_once(server: Server, tmp_path: Path) -> None:
    """The driver would wait for ever for a buffer that nobody empties any more."""
    data = json.dumps("x" * 200_000)
    archive = write_archive(
        tmp_path / "archive", [made("report", n, f"{server.local.address}/api", data=data) for n in range(40)]
    )
    await server.database.run("CREATE SEQUENCE inserted")
    await server.database.run(
        "CREATE FUNCTION end_once() RETURNS trigger AS $$ BEGIN IF nextval('inserted') = 5 THEN "
        "PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$ LANGUAGE plpgsql"
    )
    await server.database.run("CREATE TRIGGER ending BEFORE INSERT ON artifact FOR EACH ROW EXECUTE FUNCTION end_once()")
    try:
        with server.active():
            report = await asyncio.wait_for(restore(archive, hold_days=0), 120)
        ((inserted,),) = await server.database.run("SELECT last_value FROM inserted")
    finally:
        await server.database.run("DROP FUNCTION end_once CASCADE")
        await server.database.run("DROP SEQUENCE inserted")
    assert (report.causes(), report.restored) == ([], 40)
    assert inserted > 40


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an archive in the bucket of a server that speaks S3's protocol."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    bucket = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    bucket.start()
    address = "http://{}:{}".format(*bucket.get_host_and_port())
    httpx.put(f"{address}/bucket").raise_for_status()
    for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "r"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    yield "s3://bucket/archive"
    bucket.stop()


@pytest.mark.long
@pytest.mark.parametrize("place", ["folder", "s3"])
@on(*BY_DATABASE)
async def test_ten_thousand_versions_come_back_without_any_difference(
    server: Server, place: str, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted by a cleanup: of keys that stay, of keys that go as a whole, and without a key; both tables, field by field."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", s3 if place == "s3" else str(tmp_path / "archive"))
    texts = SQLITE_TEXTS if server.database.is_sqlite else TEXTS
    ages = [40 + number / 100 for number in range(491)]
    rows = [row for number in range(20) for row in series(f"stays-{number}" if number < 18 else f"idle-{number}", ages)]
    rows += [Row(None, days(age), type="table") for age in ages[:198]]
    for number, row in enumerate(rows):
        row.data, row.metadata = {"number": number, "text": "x" * 1000}, {"number": str(number)} if number % 3 else None
        row.type = row.type and TYPES[number % 5]
    await server.database.insert(rows)
    for row, text in zip(rows[1:], texts, strict=False):
        await set_text(server, row.id, "data", text)
    await server.database.run("UPDATE artifact SET description = 'number ' || id")
    latest = "FROM artifact WHERE artifact.id = latest_id"
    await server.database.run(
        f"UPDATE artifact_collection SET metadata_ = (SELECT metadata_ {latest}), description = (SELECT description {latest})"
    )
    before = await snapshot(server.database)
    policies = [
        RetentionPolicy(name="idle", match_keys=["idle-*"], keep_last=1, drop_idle_keys_after_days=30),
        RetentionPolicy(name="others", keep_last=1),
        RetentionPolicy(name="no key", unkeyed=True, keep_within_days=30),
    ]
    report = await server.cleanup(policies, mode="delete")
    assert (report.outcome, report.deleted) == ("completed", 10_000)
    assert len(await server.database.ids()) == 18
    with server.active():
        async with open_restore(load_settings(), Selection(EVERYTHING, hold_days=0)) as opened:
            await plan_restore(opened)
            await restore_all(opened)
    assert (opened.report.causes(), opened.report.restored) == ([], 10_000)
    assert await snapshot(server.database) == before


# --- through the API


@on(*BY_FAKE)
async def test_through_the_api_new_versions_come_in_their_order_under_a_key_of_their_own(
    server: AnyServer, tmp_path: Path
) -> None:
    """They say which they restore, and are on hold; the key itself stays as it is, and a rerun creates none."""
    address = f"{server.local.address}/api"
    before = await server.database.insert(series("report", [1]))
    versions = [made("report", number, address) for number in (3, 1, 2)]
    archive = write_archive(tmp_path / "archive", versions)
    with server.active():
        report = await restore(archive)
        again = await restore(archive)
    assert (report.causes(), report.restored, report.way) == ([], 3, "api")
    assert (again.restored, again.present) == (0, 3)
    assert [each["id"] for each in await server.database.versions("report")] == [before[0].id]
    restored = (await server.database.versions("report-restored"))[::-1]
    assert [each["data"] for each in restored] == ["report 1", "report 2", "report 3"]
    runs = [UUID(str(each["flow_run_id"])) for each in restored]
    assert runs == [versions[1].flow_run_id, versions[2].flow_run_id, versions[0].flow_run_id]
    first = restored[0]
    until = datetime.now(UTC).date() + timedelta(days=7)
    assert first["description"] == f"number 1\n\nRestored from version {versions[1].id}, created 2026-10-01 01:00:00 UTC"
    assert first["metadata_"] | {"retention-hold-since": ""} == {
        "owner": "ada",
        "artifact-retention-restored-from": str(versions[1].id),
        "artifact-retention-restored-created": "2026-10-01T01:00:00.000001+00:00",
        "retention-hold": str(until),
        "retention-hold-by": f"restore of {RUN_NAME}",
        "retention-hold-since": "",
    }


@on(*BY_FAKE)
async def test_the_same_key_is_restored_through_the_api_only_if_it_has_gone(server: AnyServer, tmp_path: Path) -> None:
    """Another key can be named, for one key at a time; whatever was restored before counts."""
    address = f"{server.local.address}/api"
    await server.database.insert(series("there", [1]))
    archive = write_archive(
        tmp_path / "archive", [made(key, number, address) for key in ("gone", "there") for number in (1, 2)]
    )
    with server.active():
        first = await restore(archive, LedgerQuery(ids=(made("gone", 1, address).id,)), same_key=True)
        report = await restore(archive, same_key=True)
        assert first.restored == 1
        assert [(each.key, each.restored, each.present) for each in report.key_reports] == [("gone", 1, 1), ("there", 0, 0)]
        assert "nothing is restored beside them through the API" in report.key_reports[1].error
        assert len(await server.database.versions("gone")) == 2
        with pytest.raises(ConfigurationError, match="the versions of 2 keys are to go under one"):
            await restore(archive, to_key="elsewhere")
        await restore(archive, LedgerQuery(keys=("there",)), to_key="elsewhere", hold_days=0)
    assert [each["data"] for each in await server.database.versions("elsewhere")] == ["there 2", "there 1"]
    assert len(await server.database.versions("there")) == 1


@on(*BY_FAKE)
async def test_what_was_restored_under_one_key_is_not_restored_again_under_another(server: AnyServer, tmp_path: Path) -> None:
    """Whatever the flags of either restore: the report says where it is."""
    address = f"{server.local.address}/api"
    # Of the second, no flow run is known, by which it would be looked for.
    two = [made("a", 1, address), made("a", 2, address, flow_run_id=None)]
    archive = write_archive(tmp_path / "archive", [*two, made("b", 1, address), made("b", 2, address)])
    with server.active():
        await restore(archive, LedgerQuery(keys=("a",)), same_key=True, hold_days=0)
        await restore(archive, LedgerQuery(ids=(made("b", 1, address).id,)), hold_days=0)
        preview = await restore(archive, applies=False)
        assert (preview.missing, remark(preview.key_reports[0])) == (1, "2 restored already, as new versions of a")
        assert (await restore(archive, LedgerQuery(keys=("a",)), to_key="c")).restored == 0
        again = await restore(archive, same_key=True)
        # A producer goes on above what was restored.
        await retention.apublish_markdown("new", key="a")
        third = await restore(archive, same_key=True)
        more = write_archive(tmp_path / "more", [*two, made("a", 3, address)])
        refused = await restore(more, to_key="a", applies=False)
        # A preview promises nothing of a key that a restore refuses.
        assert headline(refused) == "0 versions of 0 keys to restore, 2 present already, 1 key failed"
    assert [(each.key, each.restored, each.present, each.elsewhere) for each in again.key_reports] == [
        ("a", 0, 2, {}),
        ("b", 1, 1, {"b-restored": 1}),
    ]
    assert (third.causes(), third.restored, third.present) == ([], 0, 4)
    assert (len(refused.causes()), refused.present, refused.missing) == (1, 2, 0)
    assert sorted((await server.database.keys()).values()) == ["a", "a", "a", "b", "b-restored"]


@on(*BY_FAKE)
async def test_what_was_restored_elsewhere_and_deleted_there_is_restored_here(server: AnyServer, tmp_path: Path) -> None:
    """Whoever wants it under the other key deletes what is in the way."""
    archive = write_archive(tmp_path / "archive", [made("a", number, f"{server.local.address}/api") for number in (1, 2)])
    with server.active():
        await restore(archive)
        for version_id in await server.database.ids():
            await server.database.delete_version(version_id)
        await server.database.delete_key("a-restored")
        assert (await restore(archive, same_key=True)).restored == 2
    assert sorted((await server.database.keys()).values()) == ["a", "a"]


async def test_what_was_restored_is_looked_for_without_reading_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for each key, however many large versions it has: by the flow runs that wrote what is missing."""
    with FakeServer().listening() as server:
        await server.database.insert([Row("busy", days(number), data="x" * 10_000) for number in range(1, 500)])
        versions = [made(key, number, f"{server.address}/api") for key in ("busy", "other") for number in range(300)]
        archive = write_archive(tmp_path / "archive", versions)
        answer = server.answer
        asked: list[str] = []
        read = 0

        async def counting(request: httpx.Request) -> httpx.Response:
            nonlocal read
            response = await answer(request)
            asked.append(request.url.path)
            read += len(response.content)
            return response

        monkeypatch.setattr(server, "answer", counting)
        with server.active():
            assert (await restore(archive, applies=False)).missing == 600
        assert len([path for path in asked if path.endswith("/artifacts/filter")]) == 2
        assert read < 10_000


@on(*BY_FAKE, SQLITE_DATABASE)
async def test_the_original_key_is_no_key_to_restore_to_while_it_has_versions(server: AnyServer, tmp_path: Path) -> None:
    """Old versions would become its latest ones, also where a database is set: under another key, nothing is exact."""
    archive = write_archive(tmp_path / "archive", [made("report", number, f"{server.local.address}/api") for number in (1, 2)])
    (there,) = await server.database.insert(series("report", [1]))
    with server.active():
        report = await restore(archive, to_key="report")
        assert "nothing is restored beside them through the API" in report.key_reports[0].error
        assert await server.database.ids() == {there.id}
        await server.database.delete_version(there.id)
        await server.database.delete_key("report")
        assert (await restore(archive, to_key="report")).restored == 2


@on(*BY_FAKE)
async def test_a_key_that_is_written_again_before_its_restore_keeps_its_latest_version(
    server: AnyServer, tmp_path: Path
) -> None:
    """When the restore was planned, it had no versions."""
    archive = write_archive(tmp_path / "archive", [made("gone", number, f"{server.local.address}/api") for number in (1, 2)])
    with server.active():
        async with open_restore(load_settings(), Selection(EVERYTHING, same_key=True), archive=archive) as opened:
            await plan_restore(opened)
            assert opened.report.causes() == []
            (new,) = await server.database.insert(series("gone", [1]))
            await restore_all(opened)
    assert "nothing is restored beside them through the API" in opened.report.key_reports[0].error
    assert await server.database.ids() == {new.id}


async def test_a_version_that_the_server_refuses_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is one that failed, with the version's id; the newer versions of it are restored."""
    with FakeServer().listening() as server:
        versions = [made("report", number, f"{server.address}/api") for number in range(5)]
        archive = write_archive(tmp_path / "archive", versions)
        answer = server.answer

        async def refusing(request: httpx.Request) -> httpx.Response:
            if request.method == "POST" and request.url.path.endswith("/artifacts/") and b"number 1" in request.content:
                return httpx.Response(422, json={"detail": "too odd"}, request=request)
            return await answer(request)

        monkeypatch.setattr(server, "answer", refusing)
        with server.active():
            report = await restore(archive)
        (key,) = report.key_reports
        assert key.restored == 4
        assert f"version {versions[1].id} is not restored" in key.error
        assert "422" in key.error
        restored = await server.database.versions("report-restored")
        assert [each["data"] for each in restored] == [f"report {number}" for number in (4, 3, 2, 0)]


@on(*BY_FAKE)
async def test_a_part_of_the_archive_that_is_missing_costs_its_own_versions_only(server: AnyServer, tmp_path: Path) -> None:
    """The restore fails, and says which part it is, and how to do without it."""
    address = f"{server.local.address}/api"
    archive = write_archive(tmp_path / "archive", [made("a", number, address) for number in range(3)])
    (part,) = (tmp_path / "archive/data").iterdir()
    write_archive(tmp_path / "archive", [made(key, number, address) for number in range(3, 5) for key in ("a", "b")])
    part.unlink()
    with server.active():
        preview = await restore(archive, applies=False)
        report = await restore(archive)
        assert (await restore(archive, LedgerQuery(keys=("b",)))).causes() == []
    assert [(each.key, each.restored, each.error) for each in report.key_reports] == [("a", 2, ""), ("b", 2, "")]
    (error,) = report.causes()
    assert preview.causes() == [error]
    assert f"cannot read data/{part.name}" in error
    assert f"Put it back, or remove manifests/{part.stem}.json to do without them" in error


@on(*BY_FAKE)
async def test_a_part_without_its_manifest_is_missed_if_its_run_has_ended(server: AnyServer, tmp_path: Path) -> None:
    """The run's last word lists it, so its versions were deleted."""
    write_archive(tmp_path / "archive", [made("a", 1, f"{server.local.address}/api")])
    archive = write_archive(tmp_path / "archive", [made("b", 2, f"{server.local.address}/api")])
    (tmp_path / "archive/manifests" / f"{RUN_ID}-00001.json").unlink()
    with server.active():
        report = await restore(archive)
    assert report.restored == 1
    assert [f"manifests/{RUN_ID}-00001.json is missing" in error for error in report.causes()] == [True]


@on(*BY_FAKE)
async def test_a_missing_part_of_another_server_fails_no_restore(server: AnyServer, tmp_path: Path) -> None:
    """What is in there would not be restored anyway; from its own server, it is missed."""
    write_archive(tmp_path / "archive", [made("a", 1, f"{server.local.address}/api")])
    write_archive(tmp_path / "archive", [made("a", 2, "https://elsewhere.example/api")])
    archive = write_archive(tmp_path / "archive", [made("b", 3, "https://elsewhere.example/api")])
    (tmp_path / "archive/data" / f"{RUN_ID}-00003.parquet").unlink()
    with server.active():
        report = await restore(archive)
        theirs = await restore(archive, applies=False, from_server="https://elsewhere.example/api")
    assert (report.causes(), report.restored) == ([], 1)
    assert [f"{RUN_ID}-00003" in error for error in theirs.causes()] == [True]


@on(*BY_FAKE)
async def test_a_missing_part_is_told_where_nothing_else_is_found(server: AnyServer, tmp_path: Path) -> None:
    """Nobody can tell whether it is of this server, which a worker may reach by another address."""
    archive = write_archive(tmp_path / "archive", [made("a", 1, "http://in-the-cluster:4200/api")])
    (part,) = (tmp_path / "archive/data").iterdir()
    part.unlink()
    with server.active(), pytest.raises(ArchiveError, match=f"nothing that is asked for; .*cannot read data/{part.name}"):
        await restore(archive, applies=False)


@on(*BY_FAKE)
async def test_artifacts_without_a_key_are_restored_once_through_the_api(server: AnyServer, tmp_path: Path) -> None:
    """As new ones without a key."""
    archive = write_archive(tmp_path / "archive", [made(None, number, f"{server.local.address}/api") for number in (1, 2)])
    with server.active():
        assert (await restore(archive)).restored == 2
        assert (await restore(archive)).present == 2
    assert list((await server.database.keys()).values()) == [None, None]


@on(*BY_FAKE)
async def test_what_cannot_be_restored_is_named(server: AnyServer, tmp_path: Path) -> None:
    """What was archived without its data, and what was deleted on another server, unless that is named."""
    address, other = f"{server.local.address}/api", "https://elsewhere.example/api"
    archive = write_archive(tmp_path / "archive", [made("mine", 1, address)])
    write_archive(tmp_path / "archive", [made("mine", 2, address)], payloads=False)
    write_archive(tmp_path / "archive", [made("theirs", 1, other)])
    with server.active():
        preview = await restore(archive, applies=False)
        assert await server.database.ids() == set()
        report = await restore(archive)
        assert (preview.missing, preview.unavailable, preview.others) == (1, 1, {other: 1})
        assert [(each.key, each.restored, each.unavailable) for each in report.key_reports] == [("mine", 1, 1)]
        with pytest.raises(ArchiveError, match=f"was deleted on {address}, but on {other}"):
            await restore(archive, LedgerQuery(keys=("theirs",)))
        with pytest.raises(ArchiveError, match=f"was deleted on https://typo.example/api, but on .*{other} .*: name that one"):
            await restore(archive, LedgerQuery(keys=("theirs",)), from_server="https://typo.example/api")
        with pytest.raises(ArchiveError, match=r"has nothing that is asked for: no deleted version of key 'nobodys'$"):
            await restore(archive, LedgerQuery(keys=("nobodys",)))
        assert (await restore(archive, from_server=other)).restored == 1


@on(*BY_FAKE)
async def test_what_was_deleted_here_is_restored_whatever_address_the_server_had(server: AnyServer, tmp_path: Path) -> None:
    """A worker in the cluster has another address for it than a person at a desk. It is the one that knows the run."""
    with server.active():
        async with get_client() as client:
            known = (await client.create_flow_run(artifact_restore, state=Completed())).id
        inside = "http://prefect-server:4200/api"
        archive = write_archive(tmp_path / "archive", [made("mine", 1, inside)._replace(run_id=str(known))])
        write_archive(tmp_path / "archive", [made("theirs", 1, "https://elsewhere.example/api")])
        report = await restore(archive)
        assert [(each.key, each.restored) for each in report.key_reports] == [("mine", 1)]
        assert list(report.others) == ["https://elsewhere.example/api"]


Act = Callable[[httpx.Request, Callable[[], Awaitable[httpx.Response]]], Awaitable[httpx.Response]]


async def lost_before(request: httpx.Request, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:  # noqa: ARG001
    """The request never arrives."""
    raise httpx.ConnectError("injected", request=request)


async def lost_after(request: httpx.Request, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The answer never arrives."""
    await send()
    raise httpx.ReadError("injected", request=request)


async def late(request: httpx.Request, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The server acts long after it was given up."""
    LATE.append(send)
    raise httpx.ReadTimeout("injected", request=request)


LATE: list[Callable[[], Awaitable[httpx.Response]]] = []


@pytest.mark.parametrize("act", [lost_before, lost_after, late], ids=lambda act: act.__name__)
async def test_a_creation_that_is_not_answered_is_not_repeated_blindly(
    act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version is restored once, also where the server acts only after the request was repeated."""
    monkeypatch.setattr(reposting, "ATTEMPT_PAUSES", (0.0, 0.0))
    LATE.clear()
    with FakeServer().listening() as server:
        archive = write_archive(tmp_path / "archive", [made("report", number, f"{server.address}/api") for number in range(4)])
        answer, creations = server.answer, 0

        async def faulty(request: httpx.Request) -> httpx.Response:
            nonlocal creations
            if request.method == "POST" and request.url.path.endswith("/artifacts/"):
                creations += 1
                if creations == 2:
                    return await act(request, lambda: answer(request))
                if creations == 4 and LATE:
                    await LATE.pop()()
            return await answer(request)

        monkeypatch.setattr(server, "answer", faulty)
        with server.active():
            report = await restore(archive)
        assert (report.causes(), report.restored) == ([], 4)
        restored = await server.database.versions("report-restored")
        assert sorted(each["data"] for each in restored) == [f"report {number}" for number in range(4)]
        assert creations == (4 if act is lost_after else 5)
        assert await server.database.dangling() == []


async def test_a_restore_through_the_api_that_is_killed_before_any_request_is_completed_by_a_rerun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version is there once, in the order in which they were created."""
    with FakeServer().listening() as server:
        keys = ("a", "b", None)
        versions = [made(key, number, f"{server.address}/api") for key in keys for number in (1, 2)]
        archive = write_archive(tmp_path / "archive", versions)
        answer = server.answer
        requests = left = 0
        is_killed = True
        while is_killed:
            server.reset()
            requests += 1
            left = requests

            async def dying(request: httpx.Request) -> httpx.Response:
                nonlocal left
                left -= 1
                if not left:
                    raise KilledError
                return await answer(request)

            monkeypatch.setattr(server, "answer", dying)
            is_killed = False
            with server.active():
                try:
                    await restore(archive)
                except KilledError:
                    is_killed = True
                monkeypatch.setattr(server, "answer", answer)
                assert (await restore(archive)).causes() == []
            for key in ("a", "b"):
                found = await server.database.versions(f"{key}-restored")
                assert [each["data"] for each in found] == [f"{key} 2", f"{key} 1"]
            assert len(await server.database.ids()) == len(versions)
        assert requests > 10
