"""`doctor`: what it finds on real servers, what `--fix` repairs, and that it says nothing of what is healthy."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from archives import archived, by, end, write
from database import LOCKED_SECONDS, Database, Row, days, series
from fake import FakeServer
from prefect import Flow, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import ArtifactSort
from prefect_artifact_retention.flows.cli import DONE, FAILED, main
from prefect_artifact_retention.flows.doctor import artifact_doctor
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.loading import DOCTOR_KEY
from prefect_artifact_retention.stores import transactions
from prefect_artifact_retention.stores.archive.archive import open_archive
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF
from prefect_artifact_retention.tasks.archive import NOTHING_ARCHIVED
from prefect_artifact_retention.tasks.checkup import CheckupFailed
from servers import (
    BY_DATABASE,
    BY_FAKE,
    FAKE,
    POSTGRESQL_API,
    POSTGRESQL_DATABASE,
    REAL,
    SQLITE_API,
    SQLITE_DATABASE,
    Server,
    drain,
    on,
    thorough,
)

NEWEST = "SELECT id FROM artifact n WHERE n.key = c.key ORDER BY created DESC LIMIT 1"

BREAKAGE = {
    "vanished": (25, "DELETE FROM artifact WHERE id IN (SELECT latest_id FROM artifact_collection WHERE key LIKE :keys)"),
    "emptied": (10, "DELETE FROM artifact WHERE key LIKE :keys"),
    "foreign": (
        5,
        "UPDATE artifact_collection SET latest_id = (SELECT id FROM artifact WHERE key = 'single') WHERE key LIKE :keys",
    ),
    "older": (
        40,
        f"UPDATE artifact_collection AS c SET latest_id = ({NEWEST.replace(' DESC', '')}) WHERE key LIKE :keys",
    ),
    "unlisted": (20, "DELETE FROM artifact_collection WHERE key LIKE :keys"),
}
"""A hundred keys, and the statement that breaks those of each kind."""

POLICIES = """
[[policies]]
name = "reports"
match_keys = ["daily*"]
keep_last = 5

[[policies]]
name = "invoices"
match_keys = ["invoice-*"]
keep_all = true
"""


@pytest.fixture(autouse=True)
async def vacuumed(server: Server | FakeServer) -> None:
    """A database without the dead rows of the tests before, of which `doctor` would tell once they are 10,000."""
    if isinstance(server, Server):
        await server.database.vacuum()


async def doctor(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, Any], str]:
    """Run the command, and return its exit code, its document, and what it says on stderr."""
    capsys.readouterr()
    # A --config is told to the flow by a variable.
    with server.active(), patch.dict(os.environ):
        code = await asyncio.to_thread(main, ["doctor", "--json", *arguments])
    printed = capsys.readouterr()
    return code, json.loads(printed.out), printed.err


def counts(document: dict[str, Any]) -> dict[str, int]:
    """The findings of a document."""
    return {finding["kind"]: finding["count"] for finding in document["findings"]}


async def break_collections(database: Database) -> None:
    """Break a hundred collections on purpose, beside healthy ones."""
    sizes = {name: size for name, (size, _statement) in BREAKAGE.items()} | {"healthy": 60}
    keys = [f"{name}-n{number:02}" for name, size in sizes.items() for number in range(size)]
    rows = [Row(key, days(age), data=f"{key} {age}") for key in keys for age in (3, 2, 1)]
    await database.insert([*rows, Row("single", days(400))])
    for name, (_size, statement) in BREAKAGE.items():
        await database.run(statement, [{"keys": f"{name}-%"}])


async def still_broken(database: Database) -> set[str]:
    """The keys whose collection does not name the newest version, with its data; seen without this package."""
    query = (
        "SELECT a.key FROM artifact a LEFT JOIN artifact_collection c ON c.key = a.key "
        f"WHERE a.id = ({NEWEST.replace('c.key', 'a.key')}) AND (c.latest_id IS NULL OR c.latest_id <> a.id "
        "OR CAST(c.data AS TEXT) <> CAST(a.data AS TEXT))"
    )
    return {row[0] for row in await database.run(query)} | {*await database.dangling()}


@on(thorough(SQLITE_API), POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE), thorough(POSTGRESQL_API))
async def test_a_hundred_broken_collections_are_found_and_repaired(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Only with --fix, which says so first; then nothing is said of them. Of the healthy ones, nothing ever is."""
    await break_collections(server.database)
    before = await server.database.run("SELECT id FROM artifact ORDER BY id")
    broken = {"latest_missing": 40, "latest_not_newest": 40, "no_collection": 20}

    code, found, complaints = await doctor(server, capsys)
    assert (code, counts(found)) == (FAILED, broken)
    assert "repairing" not in complaints
    assert all(len(finding["examples"]) == 10 for finding in found["findings"])
    assert not any(example.startswith(("healthy", "single")) for each in found["findings"] for example in each["examples"])
    assert await server.database.run("SELECT id FROM artifact ORDER BY id") == before
    assert len(await still_broken(server.database)) == 100

    code, fixed, complaints = await doctor(server, capsys, "--fix")
    assert (code, counts(fixed)) == (DONE, broken)
    assert {each["kind"]: each["repaired"] for each in fixed["findings"]} == broken
    assert "repairing the collections of 100 keys" in complaints
    assert await still_broken(server.database) == set()
    after = await server.database.run("SELECT id FROM artifact ORDER BY id")
    # The server has kept the latest version of the ten keys of which no version was left.
    assert {*before} < {*after}
    assert len(after) == len(before) + 10

    assert (await doctor(server, capsys))[:1] == (DONE,)
    assert (await doctor(server, capsys))[1]["findings"] == []


async def test_of_a_healthy_server_it_says_that_it_is_healthy(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Series of keys, versions of the same moment, and artifacts without a key are nothing to speak of."""
    rows = [row for number in range(1, 30) for row in series(f"report-{number}", [40, 3, 0.5])]
    await server.database.insert([*rows, *[Row("twins", days(1)) for _twin in range(2)], *series(None, [1, 2])])
    code, found, _complaints = await doctor(server, capsys, "--fix")
    assert (code, found["findings"]) == (DONE, [])
    with server.active():
        assert await asyncio.to_thread(main, ["doctor"]) == DONE
    assert capsys.readouterr().out.startswith("Healthy: 30 keys with 91 versions (273 B), and nothing is broken\n")


async def test_what_deserves_a_look_is_told_and_fails_nothing(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Keys and policies without each other, keys that look alike, versions of runs that are gone."""
    (tmp_path / "retention.toml").write_text(POLICIES, encoding="utf-8")
    gone = uuid4()
    rows = [*series("daily-report", [1, 2]), *series("daily-report-2", [1, 2]), *series("stray", [1, 2])]
    await server.database.insert([*rows, Row("daily", days(0.1), data="y" * 700, flow_run_id=gone)])
    code, found, _complaints = await doctor(server, capsys, "--config", str(tmp_path / "retention.toml"))
    assert code == DONE
    assert {each["kind"]: each["examples"] for each in found["findings"]} == {
        "keys_without_policy": ["stray"],
        "policies_without_key": ['policy "invoices" PROTECTS NOTHING today: it matches no key'],
        "look_alikes": ["daily-report, daily-report-2"],
        "runs_gone": [f"{gone}: 1 version"],
    }
    assert not any(each["is_broken"] for each in found["findings"])
    assert (found["most_bytes"][0]["key"], found["most_bytes"][0]["bytes"]) == ("daily", 702)
    added = [(day["versions"], day["bytes"]) for day in found["growth"] if day["versions"]]
    assert (sum(each[0] for each in added), sum(each[1] for each in added)) == (7, 720)
    assert len(found["growth"]) == 84
    # 720 bytes in two days.
    assert 720 + 30 * 350 < found["projected_bytes"] < 720 + 30 * 361


async def test_metadata_that_nobody_can_read_is_broken(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the key, the version and the entry; --fix leaves it alone."""
    (row,) = await server.database.insert([Row("report", days(1), metadata={"retention-hold": "forever"})])
    code, found, complaints = await doctor(server, capsys, "--fix")
    assert code == FAILED
    assert found["findings"][0]["examples"] == [f"report, {row.id}: unreadable retention-hold 'forever'"]
    assert "repairing" not in complaints


@on(FAKE, thorough(SQLITE_API))
async def test_what_the_server_fails_to_show_ends_no_examination(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is broken, and named by its neighbour; all others are examined."""
    rows = await server.database.insert([row for key in ("a", "b", "c") for row in series(key, [2, 1])])
    await server.database.break_data(rows[3].id)
    code, found, _complaints = await doctor(server, capsys, "--fix")
    assert (code, counts(found)) == (FAILED, {"unreadable": 1})
    assert found["findings"][0]["examples"] == ["the key after a: nothing deleted, because the server fails to show it (500)"]
    assert (found["keys_seen"], found["total"]["versions"]) == (2, 4)


@on(*BY_FAKE)
async def test_a_repair_that_was_interrupted_is_finished(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The placeholder goes, and the newest of the others is the latest again."""
    rows = await server.database.insert(series("report", [3, 2]))
    with server.active():
        async with get_client() as client:
            placeholder = ArtifactCreate(key="report", data="x", metadata_={PLACEHOLDER_OF: str(rows[1].id)})
            await client.create_artifact(placeholder)
    code, found, _complaints = await doctor(server, capsys, "--fix")
    assert (code, counts(found), found["findings"][0]["repaired"]) == (DONE, {"latest_missing": 1}, 1)
    assert await server.database.ids() == {row.id for row in rows}


async def test_a_placeholder_behind_a_newer_version_is_found_and_deleted(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a repair through the API leaves it that is killed, and whose key is written to; without --fix, it stays.

    One with a hold is a version that a person wants, and one of its own key is nobody's else.
    """
    left = {PLACEHOLDER_OF: str(uuid4())}
    held = Row("report", days(2.5), metadata=left | {"retention-hold": "true"})
    placeholder = Row("report", days(2), metadata=left)
    rows = await server.database.insert([*series("report", [3, 1]), placeholder, held, *series("other", [2, 1])])
    for arguments, code, those in (((), FAILED, rows), (("--fix",), DONE, [row for row in rows if row is not placeholder])):
        assert (await doctor(server, capsys, *arguments))[0] == code
        assert await server.database.ids() == {row.id for row in those}
    code, found, _complaints = await doctor(server, capsys)
    assert (code, found["findings"]) == (DONE, [])


@on(SQLITE_API, POSTGRESQL_DATABASE, thorough(POSTGRESQL_API), thorough(SQLITE_DATABASE))
async def test_a_key_without_versions_whose_latest_is_of_another_key_gets_its_copy_back(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other key keeps its version."""
    (lost, other) = await server.database.insert([Row("report", days(2), data="kept"), Row("other", days(1), data="other")])
    await server.database.run("DELETE FROM artifact WHERE id = :id", [{"id": id_of(server, lost)}])
    change = "UPDATE artifact_collection SET latest_id = :id WHERE key = 'report'"
    await server.database.run(change, [{"id": id_of(server, other)}])
    code, found, _complaints = await doctor(server, capsys, "--fix")
    assert (code, counts(found), found["findings"][0]["repaired"]) == (DONE, {"latest_missing": 1}, 1)
    assert sorted(await versions(server)) == [("other", "other")] * 2 + [("report", "kept")] * 2
    assert (await doctor(server, capsys))[1]["findings"] == []


async def test_of_many_findings_ten_are_told_and_all_are_counted(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many there are, no more of them are in memory."""
    rows = [Row(f"key-n{number}", days(1), metadata={"retention-hold": "forever"}) for number in range(30)]
    await server.database.insert(rows)
    _code, found, _complaints = await doctor(server, capsys)
    (finding,) = found["findings"]
    assert (finding["kind"], finding["count"], len(finding["examples"])) == ("metadata_unreadable", 30, 10)
    with server.active():
        assert await asyncio.to_thread(main, ["doctor"]) == FAILED
    assert "and 27 more" in " ".join(capsys.readouterr().out.split())


@on(POSTGRESQL_DATABASE)  # SQLite has no roles
async def test_a_role_that_may_only_read_is_shown_all_and_told_what_it_lacks(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one message; nothing is repaired."""
    rows = await server.database.insert(series("report", [2, 1]))
    await server.database.delete_version(rows[1].id)
    await server.database.run("DROP ROLE IF EXISTS reader")
    await server.database.run("CREATE ROLE reader LOGIN PASSWORD 's3cret'")
    await server.database.run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    url = sa.make_url(server.database.url).set(username="reader", password="s3cret")  # noqa: S106 - of a server that lives for one test
    reader = replace(server, database=Database(url.render_as_string(hide_password=False)))
    try:
        code, found, complaints = await doctor(reader, capsys, "--fix")
        with reader.active():
            await asyncio.to_thread(main, ["doctor", "--fix"])
        shown = capsys.readouterr()
    finally:
        await server.database.run("DROP OWNED BY reader")
        await server.database.run("DROP ROLE reader")
    assert (code, counts(found)) == (FAILED, {"latest_missing": 1})
    (error,) = found["errors"]
    lacking = "DELETE on artifact, UPDATE on artifact_collection, DELETE on artifact_collection"
    assert f"the role may not {lacking};" in error
    assert complaints.count("permission denied") == 1
    assert "1 broken" in shown.out
    assert "permission denied" not in shown.out
    assert "s3cret" not in complaints + str(found)
    assert await server.database.dangling() == ["report"]


@on(SQLITE_DATABASE)
async def test_a_file_that_somebody_else_writes_to_is_given_up_at_once(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one message, after one wait, though two keys are broken; what was found is told, and nothing is half done."""
    rows = await server.database.insert([*series("a", [2, 1]), *series("b", [2, 1])])
    for row in rows[1::2]:
        await server.database.delete_version(row.id)
    file = sa.make_url(server.database.url).database or ""
    with closing(sqlite3.connect(file, LOCKED_SECONDS)) as somebody, monkeypatch.context() as impatient:
        impatient.setattr(transactions, "BUSY_TIMEOUT_SECONDS", 0.1)
        impatient.setattr(transactions, "FIRST_RETRY_PAUSE_SECONDS", 0.01)
        somebody.execute("BEGIN IMMEDIATE")
        code, found, complaints = await doctor(server, capsys, "--fix")
        somebody.rollback()
    assert (code, counts(found)) == (FAILED, {"latest_missing": 2})
    assert complaints.count("database is locked") == len(found["errors"]) == 1
    assert await server.database.dangling() == ["a", "b"]
    assert (await doctor(server, capsys, "--fix"))[0] == DONE
    assert await server.database.dangling() == []


def id_of(server: Server, row: Row) -> object:
    """The id of a version as its database takes it."""
    return str(row.id) if server.database.is_sqlite else row.id


@on(*BY_DATABASE)
async def test_through_the_database_a_run_of_last_month_and_the_disk_are_seen(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that has not finished is named, with what it keeps."""
    with server.active():
        async with get_client() as client:
            run = await client.create_flow_run(Flow(lambda: None, name="unfinished"))
    when = "datetime(created, '-40 days') || '.000000'" if server.database.is_sqlite else "created - interval '40 days'"
    await server.database.run(f"UPDATE flow_run SET created = {when} WHERE name = '{run.name}'")
    await server.database.insert([Row("report", days(age), flow_run_id=run.id) for age in (39, 38)])
    code, found, _complaints = await doctor(server, capsys)
    assert (code, counts(found)) == (DONE, {"runs_unfinished": 2})
    assert found["findings"][0]["examples"][0].startswith(f"{run.id}, since ")
    assert found["findings"][0]["examples"][0].endswith(": 2 versions, 6 B")
    assert found["disk"]["bytes"] > 0


async def post(key: str, data: str) -> None:
    """Write a version, as a producer does."""
    async with get_client() as client:
        await client.create_artifact(ArtifactCreate(key=key, data=data))


async def versions(server: Server | FakeServer) -> list[tuple[str, str]]:
    """The keys and data of all versions, the oldest first, as the server shows them; and its latest ones after these."""
    shown = []
    async with httpx.AsyncClient() as client:
        for path in ("", "latest/"):
            response = await client.post(f"{server.local.address}/api/artifacts/{path}filter", json={})
            rows = sorted(response.json(), key=lambda row: row["created"])
            shown += [(row["key"], row["data"]) for row in rows]
    return shown


@on(SQLITE_API, POSTGRESQL_DATABASE)
@pytest.mark.parametrize("by", ["doctor", "cleanup"])
async def test_a_collection_with_the_metadata_of_a_placeholder_costs_no_version(
    server: Server, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    """What it names is deleted only if it is a placeholder itself, and of its key; either way, it is repaired."""
    rows = await server.database.insert([Row("single", days(5)), *series("other", [3, 2]), *series("own", [3, 2])])
    metadata = json.dumps({PLACEHOLDER_OF: str(uuid4())})
    named = {"other": rows[0].id, "own": rows[3].id}
    kind = server.database.json_type
    change = f"UPDATE artifact_collection SET latest_id = :id, metadata_ = CAST(:metadata AS {kind}) WHERE key = :key"
    as_stored = str if server.database.is_sqlite else lambda each: each
    changes = [{"key": key, "id": as_stored(each), "metadata": metadata} for key, each in named.items()]
    await server.database.run(change, changes)
    if by == "doctor":
        code, found, _complaints = await doctor(server, capsys, "--fix")
        assert (code, counts(found)) == (DONE, {"latest_missing": 2})
    else:
        report = await server.cleanup([RetentionPolicy(name="all", keep_all=True)], mode="delete")
        assert (report.outcome, report.repaired, report.deleted) == ("completed", ["other", "own"], 0)
    assert await server.database.ids() == {row.id for row in rows}
    assert (await doctor(server, capsys))[1]["findings"] == []


@on(*BY_FAKE)
async def test_a_version_that_is_written_during_a_repair_stays_the_latest(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a key that had no version left, the old copy does not become newer than it."""
    (row,) = await server.database.insert([Row("report", days(3), data="old")])
    await server.database.delete_version(row.id)
    send = httpx.AsyncHTTPTransport.handle_async_request
    posted: list[httpx.Request] = []

    async def post_first(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path.endswith("/artifacts/") and not posted:
            posted.append(request)
            await post("report", "produced")
        return await send(transport, request)

    with patch.object(httpx.AsyncHTTPTransport, "handle_async_request", post_first):
        code, _found, _complaints = await doctor(server, capsys, "--fix")
    assert (code, len(posted)) == (DONE, 1)
    assert await versions(server) == [("report", "produced")] * 2


@on(SQLITE_API)
@pytest.mark.parametrize("left", [0, 2])
async def test_an_answer_that_is_lost_leaves_no_second_copy(
    server: Server, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither of a key without a version, nor a placeholder that a producer's version has hidden."""
    rows = await server.database.insert([Row("report", days(3), data="old"), *series("report", [2, 1][:left])])
    if left:
        await server.database.run("UPDATE artifact_collection SET latest_id = :id", [{"id": str(rows[0].id)}])
    else:
        await server.database.delete_version(rows[0].id)
    send = httpx.AsyncHTTPTransport.handle_async_request
    lost: list[httpx.Request] = []

    async def lose(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if request.method == "POST" and request.url.path.endswith("/artifacts/") and not lost:
            lost.append(request)
            if left:
                await post("report", "produced")
            raise httpx.ReadTimeout("lost", request=request)
        return response

    with patch.object(httpx.AsyncHTTPTransport, "handle_async_request", lose):
        code, _found, _complaints = await doctor(server, capsys, "--fix")
    assert (code, len(lost)) == (DONE, 1)
    expected = ["old", "x", "x", "produced", "produced"] if left else ["old", "old"]
    assert await versions(server) == [("report", data) for data in expected]


@on(FAKE)
async def test_a_key_that_others_change_all_the_time_is_not_broken(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not examined, and the document says so."""
    server.limit = 5
    rows = await server.database.insert(series("busy", [number / 10 for number in range(1, 90)]))
    going = iter(reversed(rows))
    answer = server.answer

    async def answer_and_delete(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/artifacts/filter"):
            await server.database.delete_version(next(going).id)
        return await answer(request)

    with patch.object(server, "answer", answer_and_delete):
        code, found, _complaints = await doctor(server, capsys)
    assert (code, found["findings"]) == (DONE, [])
    assert found["warnings"] == ["busy: not examined, because its versions changed while they were read"]


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_the_room_that_deleted_rows_take_is_told_until_a_vacuum(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It deserves a look, and is not broken."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.doctor.MIN_DEAD_ROWS", 1_000)
    monkeypatch.setattr("prefect_artifact_retention.tasks.doctor.MIN_FREE_BYTES", 1_000_000)
    # The file also has what earlier tests have left of flow runs.
    monkeypatch.setattr("prefect_artifact_retention.tasks.doctor.MAX_DEAD_SHARE", 0.01)
    await server.database.insert(Row("report", days(number), data="x" * 1_500) for number in range(2_000))
    if not server.database.is_sqlite:
        await server.database.run("ALTER TABLE artifact SET (autovacuum_enabled = false)")
    try:
        await server.database.delete_key("report")
        if not server.database.is_sqlite:
            # The statistics follow the deletion.
            dead = "SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = 'artifact'::regclass"
            async with asyncio.timeout(30):
                while (await server.database.run(dead))[0][0] < 2_000:  # noqa: ASYNC110 - a database makes no event
                    await asyncio.sleep(0.1)
        code, document, _complaints = await doctor(server, capsys)
        assert (code, [(each["kind"], each["is_broken"]) for each in document["findings"]]) == (
            DONE,
            [("not_vacuumed", False)],
        )
        await server.database.vacuum()
        assert (await doctor(server, capsys))[1]["findings"] == []
    finally:
        if not server.database.is_sqlite:
            await server.database.run("ALTER TABLE artifact RESET (autovacuum_enabled)")


# --- the archive


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the archive that is configured."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", str(tmp_path / "archive"))
    return tmp_path / "archive"


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def examples(document: dict[str, Any]) -> dict[str, list[str]]:
    """The findings of a document, with their examples."""
    return {finding["kind"]: finding["examples"] for finding in document["findings"]}


@on(FAKE, thorough(POSTGRESQL_DATABASE))
async def test_what_is_missing_of_the_archive_is_broken_and_left_alone(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """Each file with what to do, which mends it; what no run minds only deserves a look."""
    await server.database.insert(series("report", [2, 1]))
    archive = open_archive(str(folder))
    for run in range(1, 5):
        write(archive, by(run, [archived(number=run)]))
    end(archive, 3)
    assert (await doctor(server, capsys))[1]["findings"] == []
    whole = content(folder)

    data, manifests = folder / "data", folder / "manifests"
    cut = data / "run-1-00001.parquet"
    cut.write_bytes(cut.read_bytes()[:-1])
    (data / "run-2-00001.parquet").unlink()
    (manifests / "run-3-00001.json").unlink()
    # Of a run that was killed before it said anything.
    (manifests / "run-4-00001.json").unlink()
    (folder / "notes.txt").touch()
    (folder / "staging/check-1").touch()
    damaged = content(folder)
    code, found, complaints = await doctor(server, capsys, "--fix")
    assert (code, content(folder)) == (FAILED, damaged)
    assert "repairing" not in complaints
    assert {kind: [text.partition(" ")[0] for text in texts] for kind, texts in examples(found).items()} == {
        "archive_damaged": ["data/run-1-00001.parquet", "data/run-2-00001.parquet", "manifests/run-3-00001.json"],
        "archive_left_over": ["notes.txt", "data/run-4-00001.parquet", "staging/check-1"],
    }
    assert all("Put it back, or remove " in text for text in examples(found)["archive_damaged"])
    assert [finding["is_broken"] for finding in found["findings"]] == [True, False]
    assert all(str(folder) in finding["what"] for finding in found["findings"])

    cut.unlink()
    for name in ("run-1-00001", "run-2-00001"):
        (manifests / f"{name}.json").unlink()
    (manifests / "run-3-00001.json").write_bytes(whole["manifests/run-3-00001.json"])
    code, found, _complaints = await doctor(server, capsys)
    assert (code, counts(found)) == (DONE, {"archive_left_over": 3})


def put_a_file(folder: Path) -> None:
    """A file where the archive should be."""
    folder.write_text("somebody's")


def put_something_else(folder: Path) -> None:
    """A folder of something else."""
    (folder / "photos").mkdir(parents=True)


def raise_the_version(folder: Path) -> None:
    """An archive of a newer version of this package."""
    write(open_archive(str(folder)), [archived(number=1)])
    (manifest,) = (folder / "manifests").iterdir()
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | {"schema_version": 99}))


@on(FAKE)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put_a_file, "an archive is in a folder, and {} is a file"),
        (put_something_else, "the archive {}: there is something else (photos), and no archive"),
        (raise_the_version, "of version 99 of the format, and this package knows 1: a newer one is needed"),
    ],
)
async def test_an_archive_that_cannot_be_read_is_broken_and_ends_no_examination(
    server: FakeServer, capsys: pytest.CaptureFixture[str], folder: Path, change: Callable[[Path], None], words: str
) -> None:
    """The setting is named once, and all else is examined."""
    await server.database.insert([Row("report", days(1), metadata={"retention-hold": "forever"})])
    change(folder)
    code, found, _complaints = await doctor(server, capsys)
    assert (code, counts(found)) == (FAILED, {"metadata_unreadable": 1, "archive_unreadable": 1})
    (told,) = examples(found)["archive_unreadable"]
    assert told.startswith("ARTIFACT_RETENTION_ARCHIVE_URL: archive_url: ")
    assert words.format(folder) in told
    assert told.count("archive_url") == 1


@on(FAKE)
async def test_an_archive_that_has_nothing_yet_is_a_warning_and_is_not_made(
    server: FakeServer, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """Nothing is written to it, so there is no folder afterwards, either."""
    await server.database.insert(series("report", [2, 1]))
    code, found, _complaints = await doctor(server, capsys)
    assert (code, found["findings"], found["warnings"]) == (DONE, [], [NOTHING_ARCHIVED.format(folder)])
    assert not any(folder.parent.iterdir())


@on(SQLITE_API)
async def test_without_an_archive_its_libraries_are_not_needed(server: Server) -> None:
    """They are not even loaded: without the extra, they are not there."""
    await server.database.insert(series("report", [2, 1]))
    code = """
    import sys
    from prefect_artifact_retention.flows.cli import main
    print(main(["doctor"]), "pyarrow" in sys.modules)
    """
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=server.local.folder,
        env=server.local.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Healthy: 1 key with 2 versions" in done.stdout
    assert done.stdout.splitlines()[-1] == f"{DONE} False"


@on(*REAL)
async def test_the_flow_leaves_its_result_with_charts_and_ends_as_the_command_does(server: Server) -> None:
    """Failed, named Broken, while anything is broken; Completed, named Healthy, once all is repaired."""
    rows = await server.database.insert([*series("report", [40, 3, 2]), *series("other", [1])])
    await server.database.delete_version(rows[2].id)
    with server.active():
        broken = await artifact_doctor(return_state=True)
        repaired = await artifact_doctor(fix=True, return_state=True)
        healthy = await artifact_doctor(return_state=True)
        async with get_client() as client:
            only = ArtifactFilter(key={"any_": [DOCTOR_KEY]})
            artifacts = await client.read_artifacts(artifact_filter=only, sort=ArtifactSort.CREATED_DESC)
        drain()
    assert (broken.type, broken.name) == (StateType.FAILED, "Broken")
    assert "Keys whose latest version does not exist" in str(broken.message)
    with pytest.raises(CheckupFailed):
        await broken.result()
    assert [(each.type, each.name) for each in (repaired, healthy)] == [(StateType.COMPLETED, "Healthy")] * 2
    assert str(repaired.message).startswith("1 repaired, and nothing else is broken: 2 keys with 3 versions")
    # Without what it has written itself.
    assert str(healthy.message).startswith("Healthy: 2 keys with 3 versions")
    assert [each.description for each in artifacts] == [
        str(state.message).partition(". ")[0] for state in (healthy, repaired, broken)
    ]
    for each in artifacts:
        assert str(each.data).count("](data:image/svg+xml;base64,") == 2
        assert each.type == "markdown"
