"""What a run deletes is in the archive first, as it was; and what is not there stays."""

import asyncio
import gc
import json
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import httpx
import pytest
from database import Row, days, series
from fake import FakeServer
from prefect import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.filesystems import RemoteFileSystem
from prefect_artifact_retention.flows.cleanup import LISTENER
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, StoreError
from prefect_artifact_retention.stores.archive import writing
from prefect_artifact_retention.stores.archive.archive import open_archive
from prefect_artifact_retention.stores.archive.location import Location
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError
from prefect_artifact_retention.stores.database import MAX_WRITERS
from prefect_artifact_retention.tasks import archive, archiving, checks, prune_database
from prefect_artifact_retention.tasks.archive import NOTHING_ARCHIVED
from prefect_artifact_retention.tasks.rendering import markdown
from prefect_artifact_retention.tasks.report import CleanupFailed, Mode
from prefect_artifact_retention.tasks.run import Step
from restoring import when_archived
from servers import BY_DATABASE, BY_FAKE, FAKE, POSTGRESQL_DATABASE, SQLITE_API, SQLITE_DATABASE, Server, drain, on, thorough

KEEP_1 = RetentionPolicy(name="keep one", keep_last=1)
IDLE = RetentionPolicy(name="idle", match_keys=["idle-*"], keep_last=1, drop_idle_keys_after_days=90)
UNKEYED = RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30)
POLICIES = [IDLE, UNKEYED, KEEP_1]

EVERYWHERE = on(*BY_FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
ANYWHERE = on(FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))

PLACES = pytest.mark.parametrize("key", ["report", "idle-report", None])
"""A key that stays, one that goes as a whole, and none."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the archive of all runs of a test."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", str(tmp_path / "archive"))
    return tmp_path / "archive"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three versions in a part, and in a transaction."""
    monkeypatch.setattr(archiving, "MAX_PART_VERSIONS", 3)
    monkeypatch.setattr(prune_database, "MAX_TRANSACTION_VERSIONS", 3)


def archived(folder: Path) -> dict[UUID, ArchivedVersion]:
    """What the archive says was deleted, by id."""
    return {version.id: version for some in open_archive(str(folder)).versions() for version in some}


def rows_in_parts(folder: Path) -> int:
    """What it has in all, whatever became of it."""
    return sum(part.rows for part in open_archive(str(folder)).manifests())


def files(folder: Path) -> list[Path]:
    """All files of an archive."""
    return [path for path in folder.rglob("*") if path.is_file()]


def put_a_file(path: Path) -> None:
    """Put a file where a folder should be: not even root can write there then."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("somebody's")


def replace_by_a_file(folder: Path) -> Callable[[], Awaitable[None]]:
    """Take an archive away, and put something else there, as a disk that is full or gone."""

    async def replace() -> None:
        with suppress(FileNotFoundError):
            shutil.move(folder, folder.with_name("taken"))
        put_a_file(folder)

    return replace


# --- what is deleted


@EVERYWHERE
async def test_what_is_deleted_is_in_the_archive(server: Server, folder: Path) -> None:
    """Keyed, idle and without a key; what stays is not in it."""
    rows = [*series("report", [1, 2, 3]), *series("idle-key", [100, 101]), *series(None, [1, 40])]
    kept = {rows[0].id, rows[5].id}
    await server.database.insert(rows)
    report = await server.cleanup(POLICIES, mode="delete")
    assert set(await server.database.keys()) == kept
    found = archived(folder)
    assert found.keys() == {row.id for row in rows} - kept
    assert (report.outcome, report.deleted, report.archive.versions) == ("completed", 5, 5)
    latest = [version for version in found.values() if version.was_latest]
    assert [version.key for version in latest] == ["idle-key"]
    assert open_archive(str(folder)).collections(["idle-key", "report"])["idle-key"][-1].latest_id == latest[0].id
    assert {(version.key, *version.rules, version.policy) for version in found.values()} == {
        ("report", "unclaimed", "keep one"),
        ("idle-key", "drop_idle_keys_after_days", "idle"),
        (None, "unclaimed", "unkeyed"),
    }
    assert {json.loads(version.data) for version in found.values()} == {"x"}
    (run,) = open_archive(str(folder)).runs()
    assert (run.outcome, run.versions, run.deleted, list(run.spared)) == ("completed", 5, 5, [])


JSON_TEXTS = (
    *(None, "null", '"text"', "[]", "{}", '[{"a": null}]', "true", "0", "-0", "50.0", "1.10", "1E2", "0.1"),
    *("0.30000000000000004", "12345678901234567890", "1e999", "-1e999", '{"b": 1, "a": 2, "b": 3}', '"\\ud800"'),
    *('"\\u0000 \\u007f"', '"\\u00fc"', '{ "blank" :  1 }', f'"{"long " * 20_000}"', '"\u00fc \u2028"'),
)
TYPES = (None, "markdown", "table", "link", "image", "progress", "unheard-of")


@on(*BY_DATABASE)
async def test_every_field_is_archived_as_the_database_has_it(server: Server, folder: Path) -> None:
    """Whatever JSON somebody has written: PostgreSQL keeps its text, SQLite makes numbers of some."""
    database = server.database
    texts = dict(zip([uuid4() for _text in JSON_TEXTS], JSON_TEXTS, strict=True))
    rows = [
        Row("report", days(2 + number), type=TYPES[number % len(TYPES)], id=each, flow_run_id=uuid4(), task_run_id=uuid4())
        for number, each in enumerate(texts)
    ]
    await database.insert([Row("report", days(1)), *rows])
    # By the affinity of the column, as Prefect writes it.
    value = "CAST(:text AS VARCHAR)" if database.is_sqlite else "CAST(CAST(:text AS VARCHAR) AS JSON)"
    change = f"UPDATE artifact SET data = {value}, metadata_ = {value}, description = CAST(:text AS VARCHAR) WHERE id = :id"
    await database.run(
        change.replace("CAST(:text AS VARCHAR)", ":text") if database.is_sqlite else change,
        [{"id": str(each) if database.is_sqlite else each, "text": text} for each, text in texts.items()],
    )
    names = "id, flow_run_id, task_run_id, key, type, description, created, updated, "
    names += "data, typeof(data), metadata_" if database.is_sqlite else "CAST(data AS TEXT), 'text', CAST(metadata_ AS TEXT)"
    was = {UUID(str(row[0])): row for row in await database.run(f"SELECT {names} FROM artifact")}
    report = await server.cleanup([KEEP_1], mode="delete")
    found = archived(folder)
    assert found.keys() == texts.keys()
    assert report.bytes_freed == sum(version.size for version in found.values())
    for each, version in found.items():
        _id, flow_run_id, task_run_id, *plain, created, updated, data, kind, metadata = was[each]
        assert [version.key, version.type, version.description] == plain
        assert (str(version.flow_run_id), str(version.task_run_id)) == (str(flow_run_id), str(task_run_id))
        if not database.is_sqlite:
            assert (version.created, version.updated) == (created, updated)
        else:
            assert [f"{date:%Y-%m-%d %H:%M:%S.%f}" for date in (version.created, version.updated)] == [created, updated]
        if kind in {"text", "null"}:
            assert (version.data, version.metadata) == (data, metadata)
        else:
            # SQLite reads the same number from the text.
            assert await database.run(f"SELECT {version.data}, typeof({version.data})") == [(data, kind)]


@ANYWHERE
async def test_a_ledger_has_no_payloads(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells the same of the versions, and the report names no command that would bring them back."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_PAYLOADS", "false")
    await server.database.insert(series("report", [1, 2, 3]))
    report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.archive.payloads, report.archive.restore, report.archive.versions) == (False, "", 2)
    assert [(part.rows, part.has_payloads) for part in open_archive(str(folder)).manifests()] == [(2, False)]
    assert open_archive(str(folder)).ledger().column("size").to_pylist() == [3, 3]


@on(FAKE, *BY_DATABASE)
async def test_the_own_artifacts_of_the_package_are_not_archived(server: Server, folder: Path) -> None:
    """They go after some runs; nobody wants them back."""
    await server.database.insert(series("artifact-retention-progress", range(1, 80)))
    report = await server.cleanup([KEEP_1], mode="delete")
    assert sum(key.deleted for key in report.housekeeping) > 0
    assert not [file for file in files(folder) if file.suffix == ".parquet"]


@ANYWHERE
@pytest.mark.usefixtures("small_parts")
async def test_no_more_is_archived_than_may_be_deleted(server: Server, folder: Path) -> None:
    """With a limit on deletions."""
    await server.database.insert([*series("a", [1, 2, 3, 4, 5]), *series("b", [1, 2, 3, 4, 5])])
    report = await server.cleanup([KEEP_1], mode="delete", max_deletions=5)
    assert (report.outcome, report.deleted, rows_in_parts(folder)) == ("unfinished", 5, 5)


@on(*BY_DATABASE)
@pytest.mark.parametrize(("capacity", "at_once"), [(2**20, archiving.MAX_PARTS_AT_ONCE), (1, 1)])
@pytest.mark.usefixtures("small_parts")
async def test_small_parts_are_written_two_at_a_time_and_large_ones_alone(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capacity: int, at_once: int
) -> None:
    """Together, they take no more memory than a single one may."""
    monkeypatch.setattr(archive, "MAX_PART_BYTES", capacity)
    rows = await server.database.insert(row for key in "abcdefgh" for row in series(key, [1, 2, 3, 4]))
    writing_now, most = 0, 0
    write = archive.RunArchive.write

    async def observed(*args: Any) -> None:  # noqa: ANN401
        nonlocal writing_now, most
        writing_now += 1
        most = max(most, writing_now)
        await write(*args)
        writing_now -= 1

    monkeypatch.setattr(archive.RunArchive, "write", observed)
    report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.deleted, most) == (24, at_once)
    assert archived(folder).keys() == {row.id for row in rows} - set(await server.database.keys())


@contextmanager
def counting_candidates() -> Iterator[list[int]]:
    """How many versions that were to be archived are in memory, before each deletion."""
    kept: list[int] = []

    async def listen(step: Step, _done: int, _total: int) -> None:
        if step == "deleting":
            gc.collect()
            kept.append(sum(isinstance(each, archive.Candidate) for each in gc.get_objects()))

    token = LISTENER.set(listen)
    try:
        yield kept
    finally:
        LISTENER.reset(token)


@on(POSTGRESQL_DATABASE)
@pytest.mark.usefixtures("small_parts", "folder")
async def test_a_flow_run_lets_go_of_what_it_has_archived(server: Server) -> None:
    """There may be millions of versions, and Prefect keeps the arguments of a task run until the one around it ends."""
    await server.database.insert(row for key in "abcdefghijkl" for row in series(key, [1, 2, 3, 4]))
    with counting_candidates() as kept:
        report = await server.run_flow([KEEP_1], mode="delete")
    assert (report.archive.versions, report.archive.parts) == (36, 12)
    assert 0 < max(kept) <= 12
    assert kept[-1] <= 3 * MAX_WRITERS


@on(SQLITE_DATABASE)
@pytest.mark.thorough
@pytest.mark.usefixtures("small_parts", "folder")
async def test_a_flow_run_lets_go_of_what_it_could_not_archive(server: Server) -> None:
    """The traceback of an error has what was to be archived, too."""
    rows = await server.database.insert(row for key in "abcdef" for row in series(key, [1, 2, 3, 4]))
    await server.database.run("UPDATE artifact SET data = x'7b7d' WHERE id = :id", [{"id": str(row.id)} for row in rows[2::4]])
    with counting_candidates() as kept, pytest.raises(CleanupFailed) as caught:
        await server.run_flow([KEEP_1], mode="delete")
    assert (caught.value.report.deleted, len([*caught.value.report.failures()])) == (6, 6)
    assert 0 < max(kept) <= 12
    assert kept[-1] <= 3 * MAX_WRITERS


@on(POSTGRESQL_DATABASE, thorough(SQLITE_API))
async def test_a_flow_run_has_a_task_run_for_each_part(server: Server, folder: Path) -> None:
    """Named by its number, which its file has, too."""
    await server.database.insert([*series("report", [1, 2, 3]), *series(None, [40])])
    report = await server.run_flow(POLICIES, mode="delete")
    (run,) = open_archive(str(folder)).runs()
    assert (run.run_name, run.deleted, report.archive.restore) == (
        "delete all keys",
        3,
        f"artifact-retention restore --run {run.run_id}",
    )
    drain()
    names: list[str] = []
    deadline = time.monotonic() + 120
    while len(names) < len(run.parts) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        tasks = "SELECT t.name FROM task_run t JOIN flow_run f ON f.id = t.flow_run_id"
        rows = await server.database.run(f"{tasks} WHERE f.id = '{run.run_id}' AND t.name LIKE 'archive %' ORDER BY 1")
        names = [row[0] for row in rows]
    assert [f"archive {part.rpartition('-')[2]}" for part in run.parts] == names


# --- what has changed meanwhile


@ANYWHERE
@PLACES
async def test_what_changes_once_it_is_archived_is_archived_anew_or_stays(
    server: Server, folder: Path, key: str | None
) -> None:
    """Never is the old copy what is left: in the database the new one is archived, through the API the version stays."""
    ages = [100, 101, 102] if key else [40, 41, 42, 1]
    rows = await server.database.insert(series(key, ages))
    changed = rows[1].id
    with when_archived(folder, lambda: server.database.update_data(changed, "something else")):
        report = await server.cleanup(POLICIES, mode="delete")
    assert report.outcome == "completed"
    there, found = set(await server.database.keys()), archived(folder)
    if server.store == "api":
        assert changed in there
        assert changed not in found
        (run,) = open_archive(str(folder)).runs()
        assert changed in run.spared
    else:
        assert changed not in there
        assert json.loads(found[changed].data) == "something else"
    assert there.isdisjoint(found)
    assert there | found.keys() == {row.id for row in rows}


@ANYWHERE
@PLACES
async def test_a_hold_counts_though_the_version_is_archived(server: Server, folder: Path, key: str | None) -> None:
    """The archive says that it was not deleted after all."""
    ages = [100, 101, 102] if key else [40, 41, 42, 1]
    rows = await server.database.insert(series(key, ages))
    held = rows[2].id
    with when_archived(folder, lambda: server.database.update_metadata(held, {"retention-hold": "true"})):
        report = await server.cleanup(POLICIES, mode="delete")
    assert report.outcome == "completed"
    there, found = set(await server.database.keys()), archived(folder)
    assert held in there
    assert there.isdisjoint(found)
    assert there | found.keys() == {row.id for row in rows}
    (run,) = open_archive(str(folder)).runs()
    assert held in run.spared


@ANYWHERE
@PLACES
async def test_what_somebody_deletes_once_it_is_archived_counts_as_not_deleted(
    server: Server, folder: Path, key: str | None
) -> None:
    """By this run: the archive does not tell it as its own."""
    rows = await server.database.insert(series(key, [100, 101, 102] if key else [40, 41, 42, 1]))
    with when_archived(folder, lambda: server.database.delete_version(rows[1].id)):
        report = await server.cleanup(POLICIES, mode="delete")
    assert (report.outcome, report.already_gone) == ("completed", 1)
    assert rows[1].id not in archived(folder)


@on(*BY_DATABASE)
@pytest.mark.parametrize("key", ["report", None])
async def test_what_changes_again_and_again_fails_its_key_only(server: Server, folder: Path, key: str | None) -> None:
    """After five copies of it; the others of the key, and other keys, go."""
    rows = await server.database.insert([*series(key, [40, 41, 1]), *series("other", [1, 2])])
    numbers = iter(range(1000))

    async def listen(step: Step, _done: int, _total: int) -> None:
        if step == "deleting":
            await server.database.update_data(rows[0].id, f"number {next(numbers)}")

    token = LISTENER.set(listen)
    try:
        with pytest.raises(CleanupFailed) as caught:
            await server.cleanup(POLICIES, mode="delete")
    finally:
        LISTENER.reset(token)
    report = caught.value.report
    (failed,) = report.failures()
    assert (failed.key, failed.failed, failed.error) == (key, 1, "its versions change faster than they can be archived")
    assert report.deleted == 2
    assert rows[0].id in await server.database.keys()
    assert rows[0].id not in archived(folder)


# --- what fails


@ANYWHERE
@pytest.mark.usefixtures("small_parts")
async def test_an_archive_that_is_lost_in_mid_run_ends_all_deletions(server: Server, folder: Path) -> None:
    """What is gone is in it, and the run has failed in words."""
    rows = await server.database.insert([*series("a", range(1, 9)), *series("b", range(1, 9)), *series(None, range(40, 48))])
    with when_archived(folder, replace_by_a_file(folder)), pytest.raises(CleanupFailed) as caught:
        # With a limit on deletions, nobody makes the folder anew between its removal and the file in its place.
        await server.cleanup(POLICIES, mode="delete", max_deletions=1_000)
    report = caught.value.report
    assert report.outcome == "failed"
    assert "nothing more is deleted, because it cannot be archived" in report.errors[0]
    gone = {row.id for row in rows} - set(await server.database.keys())
    assert gone <= archived(folder.with_name("taken")).keys()
    assert len(gone) == report.deleted <= 6


@ANYWHERE
async def test_a_part_that_could_not_be_published_is_not_missed(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data are there and its manifest is not, but nothing was deleted on it."""
    rows = await server.database.insert(series("report", [1, 2, 3]))

    def fail(location: Location, *_: object) -> None:
        raise ArchiveError(f"the archive {location.url}: cannot write: the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "publish_manifest", fail)
        with pytest.raises(CleanupFailed):
            await server.cleanup([KEEP_1], mode="delete")
    assert set(await server.database.keys()) == {row.id for row in rows}
    assert [file.suffix for file in files(folder / "data")] == [".parquet"]
    assert len(open_archive(str(folder)).ledger()) == 0
    assert (await server.cleanup([KEEP_1], mode="delete")).deleted == 2
    assert len(open_archive(str(folder)).ledger()) == 2


@ANYWHERE
async def test_an_archive_that_cannot_be_written_ends_a_run_before_it_plans(server: Server, folder: Path) -> None:
    """A preview warns of that, and is completed: it has shown what there is to see, as beside a guard that would refuse."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    put_a_file(folder / "staging")
    with pytest.raises(StoreError, match="archive"):
        await server.cleanup([KEEP_1], mode="delete")
    assert set(await server.database.keys()) == {row.id for row in rows}
    report = await server.cleanup([KEEP_1])
    assert (report.outcome, report.planned) == ("completed", 2)
    assert any(warning.startswith("a delete run would fail: ") for warning in report.warnings)


async def test_an_archive_that_has_nothing_yet_is_told(folder: Path) -> None:
    """A folder is made where none is, and may be that of a volume that is not mounted."""
    with FakeServer().listening() as server:
        await server.database.insert(series("report", [1, 2, 3]))
        assert (await server.cleanup([KEEP_1], mode="delete")).warnings == [NOTHING_ARCHIVED.format(folder)]
        assert (await server.cleanup([KEEP_1], mode="delete")).warnings == []


async def test_a_preview_leaves_nothing_in_the_archive(folder: Path) -> None:
    """It writes a file and removes it again."""
    with FakeServer().listening() as server:
        await server.database.insert(series("report", [1, 2, 3]))
        report = await server.cleanup([KEEP_1])
    assert report.warnings == [NOTHING_ARCHIVED.format(folder)]
    assert (report.archive.url, report.archive.versions) == (str(folder), 0)
    assert files(folder) == []


@on(SQLITE_DATABASE)
async def test_a_version_that_cannot_be_read_fails_its_key_only(server: Server, folder: Path) -> None:
    """Bytes that are no JSON; the others of its key are deleted, one at a time."""
    rows = await server.database.insert([*series("a", [1, 2, 3]), *series("b", [1, 2, 3])])
    await server.database.run("UPDATE artifact SET data = x'7b7d' WHERE id = :id", [{"id": str(rows[1].id)}])
    with pytest.raises(CleanupFailed) as caught:
        await server.cleanup([KEEP_1], mode="delete")
    (failed,) = caught.value.report.failures()
    assert (failed.key, failed.error) == ("a", "the database has bytes where JSON should be")
    assert set(await server.database.keys()) - archived(folder).keys() == {rows[0].id, rows[1].id, rows[3].id}


@on(FAKE)
async def test_a_version_that_the_server_fails_to_show_fails_its_key_only(server: Server, folder: Path) -> None:
    """It breaks once the whole plan stands."""
    rows = await server.database.insert([*series("a", [1, 2, 3]), *series("b", [1, 2, 3])])
    broken: list[bool] = []

    async def listen(step: Step, _done: int, _total: int) -> None:
        if step == "archiving" and not broken:
            broken.append(True)
            await server.database.break_data(rows[1].id)

    token = LISTENER.set(listen)
    try:
        with pytest.raises(CleanupFailed) as caught:
            await server.cleanup([KEEP_1], mode="delete")
    finally:
        LISTENER.reset(token)
    (failed,) = caught.value.report.failures()
    assert failed.key == "a"
    assert archived(folder).keys() == {rows[4].id, rows[5].id}


@ANYWHERE
async def test_a_part_is_in_the_order_of_keys(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So whoever looks for a key skips most of it. The versions were created night by night, and some are read at a time."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.archive.MAX_SLICE_BYTES", 10)
    keys = ["b", None, "a", "c"]
    ages = {"a": (90, 60, 30), "b": (80, 50, 20), "c": (70, 40, 10), None: (65, 45, 35)}
    await server.database.insert([Row(key, days(ages[key][night])) for night in range(3) for key in keys])
    await server.cleanup(POLICIES, mode="delete")
    read = [(v.key is None, v.key or "", v.created) for some in open_archive(str(folder)).versions() for v in some]
    assert len(read) == 9
    assert read == sorted(read)


# --- deletions without an answer


def deletions_of(
    server: FakeServer, row: Row, answer: Callable[[int, httpx.Request], Awaitable[httpx.Response]]
) -> AbstractContextManager[object]:
    """Answer each request to delete a version, which are numbered, in another way than the server does."""
    numbers, real = count(1), server.answer

    async def handle(request: httpx.Request) -> httpx.Response:
        is_other = request.method != "DELETE" or not request.url.path.endswith(str(row.id))
        return await (real(request) if is_other else answer(next(numbers), request))

    return patch.object(server, "answer", handle)


@on(FAKE)
async def test_a_version_that_is_deleted_before_it_is_asked_for_again_counts_as_deleted(
    server: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gets to the first request right before the second, which then finds nothing."""
    monkeypatch.setattr(checks, "MAX_CHECK_AGE_SECONDS", 0.4)
    rows = await server.database.insert(series("report", [1, 2, 3, 4]))
    real = server.answer

    async def delete_late(number: int, request: httpx.Request) -> httpx.Response:
        if number == 1:
            return httpx.Response(429, headers={"Retry-After": "0.5"}, json={}, request=request)
        await server.database.delete_version(rows[2].id)
        return await real(request)

    with deletions_of(server, rows[2], delete_late):
        report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.deleted, report.already_gone) == (2, 1)
    assert archived(folder).keys() == {row.id for row in rows[1:]}


@on(FAKE)
async def test_a_version_that_is_deleted_after_the_run_counts_as_deleted(
    server: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was always too late, and the version is still there when the run ends; a restore does nothing then."""
    monkeypatch.setattr(checks, "MAX_CHECK_AGE_SECONDS", 0.4)
    rows = await server.database.insert(series("report", [1, 2, 3, 4]))

    async def wait(_number: int, request: httpx.Request) -> httpx.Response:
        return httpx.Response(429, headers={"Retry-After": "0.5"}, json={}, request=request)

    with deletions_of(server, rows[2], wait), pytest.raises(CleanupFailed):
        await server.cleanup([KEEP_1], mode="delete")
    assert rows[2].id in await server.database.keys()
    assert rows[2].id in archived(folder)


@on(FAKE)
@pytest.mark.parametrize("is_done", [False, True], ids=["refused", "done and refused"])
async def test_a_refused_deletion_counts_as_what_has_become_of_the_version(
    server: FakeServer, folder: Path, *, is_done: bool
) -> None:
    """Nobody will do it later; but a proxy may refuse what the server has done, and what is gone must be found again."""
    rows = await server.database.insert(series("report", [1, 2, 3, 4]))

    async def refuse(_number: int, request: httpx.Request) -> httpx.Response:
        if is_done:
            await server.database.delete_version(rows[2].id)
        return httpx.Response(403, json={}, request=request)

    with deletions_of(server, rows[2], refuse), pytest.raises(CleanupFailed):
        await server.cleanup([KEEP_1], mode="delete")
    (run,) = open_archive(str(folder)).runs()
    assert (rows[2].id in archived(folder), rows[2].id not in run.spared) == (is_done, is_done)


# --- what is told


@ANYWHERE
async def test_the_log_tells_what_went(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A line a key, with and without an archive, also for keys that go as a whole and for what has none."""
    rows = [*series("report", [1, 2, 3]), *series("idle-key", [100, 101]), *series(None, [1, 40]), *series("kept", [1])]
    await server.database.insert(rows)
    with caplog.at_level(logging.INFO, "prefect_artifact_retention"):
        report = await server.cleanup(POLICIES, mode="delete")
    lines = [message for message in caplog.messages if "deleted by policy" in message]
    ids = [str(row.id) for row in rows]
    assert {line.partition(":")[0]: line for line in lines} == {
        "report": f'report: 2 versions deleted by policy "keep one" (stale: unclaimed 2), first {ids[2]}, last {ids[1]}',
        "idle-key": 'idle-key: 2 versions deleted by policy "idle" (stale: drop_idle_keys_after_days 2), '
        f"first {ids[4]}, last {ids[3]}",
        "(without a key)": '(without a key): 1 version deleted by policy "unkeyed" (stale: unclaimed 1), '
        f"first {ids[6]}, last {ids[6]}",
    }
    assert report.archive is None
    assert "## Archive" not in markdown(report)


@on(FAKE)
async def test_the_log_tells_of_some_keys_if_it_is_to(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how many there are more."""
    monkeypatch.setenv("ARTIFACT_RETENTION_MAX_LOG_LINES", "2")
    await server.database.insert([row for key in "abcde" for row in series(key, [1, 2])])
    with caplog.at_level(logging.INFO, "prefect_artifact_retention"):
        await server.cleanup([KEEP_1], mode="delete")
    assert [line[:8] for line in caplog.messages if "deleted" in line][:3] == ["a: 1 ver", "b: 1 ver", "Versions"]
    assert "Versions of 3 keys more were deleted or moved; the report has all" in caplog.messages


@on(FAKE)
async def test_the_report_says_how_to_bring_versions_back(server: Server, folder: Path) -> None:
    """And where they are."""
    await server.database.insert(series("report", [1, 2, 3]))
    report = await server.cleanup([KEEP_1], mode="delete")
    (part,) = open_archive(str(folder)).manifests()
    assert report.archive.model_dump() == {
        "url": str(folder),
        "payloads": True,
        "parts": 1,
        "versions": 2,
        "bytes": part.bytes,
        "restore": f"artifact-retention restore --run {part.run_id}",
    }
    assert report.archive.restore in markdown(report)


# --- where it is


@on(FAKE)
async def test_a_url_with_a_password_is_a_mistake(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names where it was set, and not the password."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", "s3://user:hunter2@bucket/archive")
    with pytest.raises(ConfigurationError, match=r"^ARTIFACT_RETENTION_ARCHIVE_URL: ") as caught:
        await server.cleanup([KEEP_1])
    assert "hunter2" not in str(caught.value)


@on(FAKE)
@pytest.mark.parametrize("mode", ["preview", "delete"])
async def test_a_file_in_the_place_of_the_archive_is_a_mistake(server: Server, folder: Path, mode: Mode) -> None:
    """The error names the setting and the file, and nothing is planned."""
    put_a_file(folder)
    with pytest.raises(ConfigurationError) as caught:
        await server.cleanup([KEEP_1], mode=mode)
    assert str(caught.value) == (
        f"ARTIFACT_RETENTION_ARCHIVE_URL: archive_url: an archive is in a folder, and {folder} is a file"
    )


@on(POSTGRESQL_DATABASE)
@pytest.mark.thorough
async def test_a_block_has_the_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the driver needs; one that is not there is a mistake that names the setting."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_BLOCK", "retention-archive")
    rows = await server.database.insert(series("report", [1, 2, 3]))
    with pytest.raises(ConfigurationError, match=r"^ARTIFACT_RETENTION_ARCHIVE_BLOCK: archive_block: the server has no"):
        await server.cleanup([KEEP_1], mode="delete")
    there = {"endpoint_url": "http://127.0.0.1:1"}
    once = {"retries": {"max_attempts": 0}}
    options = {
        "key": "somebody",
        "secret": "hunter2",
        "client_kwargs": there,
        "config_kwargs": once,
    }
    with server.active():
        await RemoteFileSystem(basepath="s3://bucket/archive", settings=options).save("retention-archive")
    with pytest.raises(StoreError, match="s3://bucket/archive") as caught:
        await server.cleanup([KEEP_1], mode="delete")
    assert "hunter2" not in str(caught.value)
    assert set(await server.database.keys()) == {row.id for row in rows}


@on(SQLITE_API)
async def test_a_block_without_a_base_path_is_a_mistake(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is deleted without the archive that was asked for."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_BLOCK", "lake")
    rows = await server.database.insert(series("report", [1, 2, 3]))
    with server.active():
        saved = await RemoteFileSystem(basepath="s3://bucket/archive").save("lake")
        async with get_client() as client:
            await client.update_block_document(saved, BlockDocumentUpdate(data={"basepath": " "}, merge_existing_data=False))
    with pytest.raises(ConfigurationError, match=r"^ARTIFACT_RETENTION_ARCHIVE_BLOCK: .* block lake has no base path"):
        await server.cleanup([KEEP_1], mode="delete")
    assert set(await server.database.keys()) == {row.id for row in rows}


@on(FAKE)
async def test_old_runs_go_from_the_archive(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their data after so many days, and all else later."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    await server.cleanup([KEEP_1], mode="delete")
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_KEEP_DAYS", "0.00001")
    await asyncio.sleep(1)
    await server.database.insert([Row("report", days(0.5))])
    report = await server.cleanup([KEEP_1], mode="delete")
    assert report.warnings == []
    assert {version_id for version_id, version in archived(folder).items() if version.data} <= {rows[0].id}
    assert open_archive(str(folder)).ledger().num_rows == 3
    assert any("the archive has lost" in note for note in report.notes)
