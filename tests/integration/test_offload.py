"""The data of large versions move to the archive, and come back to the byte; the versions stay."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import prefect_artifact_retention as retention
import pytest
import sqlalchemy as sa
from database import Row, days
from fake import FakeServer
from prefect import flow, get_client
from prefect.states import Completed, Running
from prefect_artifact_retention.flows.restore import Request, open_restore, plan
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, StoreError
from prefect_artifact_retention.stores.archive.archive import Archive, open_archive
from prefect_artifact_retention.stores.archive.model import LedgerQuery
from prefect_artifact_retention.stores.archive.stubs import Stub, refuse_stub
from prefect_artifact_retention.tasks import offload as offloading
from prefect_artifact_retention.tasks.producers.appending import remembered
from prefect_artifact_retention.tasks.rendering import headline, markdown
from prefect_artifact_retention.tasks.report import CleanupFailed
from prefect_artifact_retention.tasks.restore import restore_all
from prefect_artifact_retention.tasks.restore_report import RestoreReport
from restoring import has_parts, snapshot, when_archived
from servers import (
    BY_DATABASE,
    BY_FAKE,
    FAKE,
    POSTGRESQL_DATABASE,
    SQLITE_API,
    SQLITE_DATABASE,
    PatientClient,
    Server,
    on,
    thorough,
    when_planned,
)

AnyServer = Server | FakeServer

OFFLOAD = RetentionPolicy(name="large", keep_last=5, offload_larger_than_kb=10)
OFFLOADED = LedgerQuery(offloaded=True)
LARGE = "x" * 20_000
GONE = (
    "2 versions left out that were deleted since: what a cleanup has deleted may come back by an exact restore without "
    "--data first"
)

EVERYWHERE = on(*BY_FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
ANYWHERE = on(FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))


@flow(name="producer")
def producer() -> None:
    """Writes versions."""


class KilledError(BaseException):
    """The end of a process."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the archive of all runs of a test."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", str(tmp_path / "archive"))
    return tmp_path / "archive"


def archive_in(folder: Path) -> Archive:
    """The archive."""
    return open_archive(str(folder))


def offloaded_ids(folder: Path) -> list[UUID]:
    """The versions of which the archive has data that were moved there."""
    return [version.id for some in archive_in(folder).versions(OFFLOADED) for version in some]


async def data_of(server: AnyServer, key: str = "report") -> dict[UUID, object]:
    """The data of the versions of a key."""
    return {version["id"]: version["data"] for version in await server.database.versions(key)}


async def leave_alone(server: AnyServer) -> None:
    """Let two days pass since versions were written or changed in place."""
    if isinstance(server, FakeServer):
        for row in server.database.artifacts.values():
            row["updated"] -= timedelta(days=2)
        return
    earlier = "datetime(updated, '-2 days') || '.000000'" if server.database.is_sqlite else "updated - interval '2 days'"
    await server.database.run(f"UPDATE artifact SET updated = {earlier}")


def is_stub(data: object, version_id: UUID) -> bool:
    """Whether data say how the real ones come back."""
    return f"artifact-retention restore --data --id {version_id}" in str(data)


def data_request(*ids: str) -> Request:
    """What asks for the data of a key, or of some of its versions."""
    everything = {"runs": [], "since": "", "until": "", "hold_days": 7, "to_key": "", "same_key": False, "from_server": ""}
    return Request(keys=["report"], ids=list(ids), data=True, **everything)


async def restore_data(server: AnyServer, ids: list[UUID] | None = None, *, applies: bool = True) -> RestoreReport:
    """Put the data of the versions of a key back, or of some of them."""
    selection = data_request(*map(str, ids or ())).selection("test")
    with server.active():
        async with open_restore(load_settings(), selection, applies=applies) as opened:
            await plan(opened)
            if applies:
                await restore_all(opened)
            return opened.report


@EVERYWHERE
async def test_data_of_large_versions_move_to_the_archive(server: AnyServer, folder: Path) -> None:
    """Of markdown and tables that stay, but for the latest; the report and the archive say so."""
    table = json.dumps([{"row": LARGE}])
    latest, old, rows, small, image = (
        Row("report", days(1), LARGE),
        Row("report", days(2), LARGE),
        Row("report", days(3), table, type="table"),
        Row("report", days(4), "x" * 9_000),
        Row("report", days(5), LARGE, type="image"),
    )
    gone = Row("report", days(6), LARGE)
    await server.database.insert([latest, old, rows, small, image, gone])
    preview = await server.cleanup([OFFLOAD])
    assert (preview.to_offload, preview.bytes_to_offload) == (2, len(json.dumps(LARGE)) + len(json.dumps(table)))
    report = await server.cleanup([OFFLOAD], mode="delete")
    data = await data_of(server)
    assert data.keys() == {row.id for row in (latest, old, rows, small, image)}
    assert [data[row.id] for row in (latest, small, image)] == [row.data for row in (latest, small, image)]
    assert is_stub(data[old.id], old.id)
    ((_name, line),) = json.loads(str(data[rows.id]))[0].items()
    assert is_stub(line, rows.id)
    assert (report.outcome, report.deleted, report.offloaded) == ("completed", 1, 2)
    assert report.bytes_offloaded == preview.bytes_to_offload
    assert headline(preview).endswith("; would move the data of 2 versions to the archive (40.0 kB)")
    assert headline(report).endswith("; moved the data of 2 versions to the archive (40.0 kB)")
    assert "| Moved | 2" in markdown(report)
    assert set(offloaded_ids(folder)) == {old.id, rows.id}
    # They were not deleted.
    assert archive_in(folder).ledger().column("id").to_pylist() == [str(gone.id)]
    assert [part.rows for part in archive_in(folder).manifests() if part.offloaded] == [2]
    again = await server.cleanup([OFFLOAD], mode="delete")
    assert (again.to_offload, again.offloaded, len(offloaded_ids(folder))) == (0, 0, 2)


@on(*BY_DATABASE)
async def test_nothing_else_of_a_version_changes_in_the_database(server: Server, folder: Path) -> None:
    """Dates included; and the archive has the text as the database had it."""
    await server.database.insert([Row("report", days(1), LARGE), Row("report", days(2), LARGE + "\u00fc\ud83d\ude00")])
    before = await snapshot(server.database)
    await server.cleanup([OFFLOAD], mode="delete")
    after = await snapshot(server.database)
    changed = [
        (name, field)
        for name, row in after.items()
        for field, value in dict(row).items()
        if dict(before[name])[field] != value
    ]
    assert len(changed) == 1
    assert "data" in changed[0][1]
    assert len(offloaded_ids(folder)) == 1


@ANYWHERE
async def test_what_is_protected_is_not_moved(server: AnyServer, folder: Path) -> None:
    """By a hold, by metadata that cannot be read, or by a run that has not finished."""
    run_id = server.start_run() if isinstance(server, FakeServer) else None
    rows = [
        Row("report", days(1), LARGE),
        Row("report", days(2), LARGE, metadata={"retention-hold": "true"}),
        Row("report", days(3), LARGE, metadata={"retention_hold": "perhaps"}),
        Row("report", days(4), LARGE, metadata={"retention-ttl-days": "30"}),
        *([Row("report", days(4.5), LARGE, flow_run_id=run_id)] if run_id else []),
    ]
    await server.database.insert(rows)
    report = await server.cleanup([OFFLOAD], mode="delete")
    assert (report.to_offload, report.offloaded) == (1, 1)
    assert offloaded_ids(folder) == [rows[3].id]


@ANYWHERE
async def test_a_version_that_changes_after_it_was_archived_keeps_its_data(server: AnyServer, folder: Path) -> None:
    """The archive has old data."""
    row, other = Row("report", days(2), LARGE), Row("report", days(3), LARGE)
    await server.database.insert([Row("report", days(1)), row, other])

    async def change() -> None:
        if isinstance(server, FakeServer):
            server.database.update(row.id, {"data": "new"})
        else:
            await server.database.update_data(row.id, "new")

    with when_archived(folder, change):
        report = await server.cleanup([OFFLOAD], mode="delete")
    data = await data_of(server)
    assert data[row.id] == "new"
    assert is_stub(data[other.id], other.id)
    assert report.offloaded == 1


@ANYWHERE
async def test_what_changes_after_it_was_judged_is_not_moved(server: AnyServer, folder: Path) -> None:
    """A version that is on hold by then, or of which another run has moved the data: they are not even archived."""
    held, marked, moved, other = (Row("report", days(age), LARGE) for age in (2, 3, 4, 5))
    await server.database.insert([Row("report", days(1)), held, marked, moved, other])
    stub = json.loads(Stub(moved.id, "markdown", 20_002, datetime.now(UTC), "run").text())

    async def change() -> None:
        await retention.ahold(held.id)
        # By hand, which leaves its date as it is.
        await server.database.update_metadata(marked.id, {"retention-hold": "true"})
        await server.database.update_data(moved.id, stub)

    with when_planned(change):
        report = await server.cleanup([OFFLOAD], mode="delete")
    data = await data_of(server)
    assert (report.to_offload, report.offloaded, offloaded_ids(folder)) == (4, 1, [other.id])
    assert (data[held.id], data[marked.id], data[moved.id]) == (LARGE, LARGE, stub)


@ANYWHERE
async def test_what_was_written_or_changed_is_moved_once_it_was_left_alone_for_a_day(server: AnyServer, folder: Path) -> None:
    """Whoever writes to it might write in the very moment in which its data are replaced."""
    row, young = Row("report", days(9), LARGE), Row("report", days(0.9), LARGE)
    await server.database.insert([Row("report", days(0.5)), young, row])
    with server.active():
        await retention.ahold(row.id)
        await retention.arelease(row.id)
    assert (await server.cleanup([OFFLOAD], mode="delete")).to_offload == 0
    await leave_alone(server)
    assert (await server.cleanup([OFFLOAD], mode="delete")).offloaded == 2
    assert set(offloaded_ids(folder)) == {row.id, young.id}


@ANYWHERE
async def test_nothing_that_is_newer_than_the_latest_is_moved(server: AnyServer, folder: Path) -> None:
    """Which `doctor --fix` would make the latest."""
    newer, latest, older = (Row("report", days(age), LARGE) for age in (1, 2, 3))
    await server.database.insert([newer, latest, older], latest={"report": latest.id})
    assert (await server.cleanup([OFFLOAD], mode="delete")).offloaded == 1
    assert offloaded_ids(folder) == [older.id]


async def append(server: AnyServer, kind: str, text: str) -> None:
    """Append an entry to a log."""
    with server.active():
        if kind == "rows":
            await retention.aappend_rows([{"text": text}], key="report", max_kb=1_000)
        else:
            await retention.aappend_markdown(text, key="report", max_kb=1_000)


async def write_log(server: AnyServer, kind: str) -> None:
    """Let a log have three versions, of which the older two have their data in the archive."""
    for letter in "abc":
        await append(server, kind, letter * 20_000)
    await leave_alone(server)
    # A version that is younger than a run stays as it is; the clock of a run may be two seconds late.
    await asyncio.sleep(3)
    assert (await server.cleanup([OFFLOAD], mode="delete")).offloaded == 2


@on(FAKE, thorough(SQLITE_API))
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("kind", ["rows", "markdown"])
async def test_a_line_in_the_place_of_data_is_not_taken_for_the_content_of_a_log(server: AnyServer, kind: str) -> None:
    """Once somebody has deleted what was newer, an appender says so with the way back, and loses nothing."""
    await write_log(server, kind)
    # As others append meanwhile, a line below what has its entries is none of its business.
    remembered.clear()
    await append(server, kind, "newer")
    async with PatientClient(server) as client:
        for version in (await server.database.versions("report"))[:2]:
            (await client.delete(f"/artifacts/{version['id']}")).raise_for_status()
    # This process would go on from what it has read.
    remembered.clear()
    left = await data_of(server)
    newest, line = next(iter(left.items()))
    # Also if somebody has written something below it.
    for data in (line, f"{line}\n\nSee there") if kind == "markdown" else (line,):
        await server.database.update_data(newest, data)
        with pytest.raises(StoreError, match="its data were moved to the archive, and come back with artifact-retention"):
            await append(server, kind, "new")
    await server.database.update_data(newest, line)
    assert await data_of(server) == left
    assert (await restore_data(server)).restored == 2
    await append(server, kind, "new")
    text = str((await server.database.versions("report"))[0]["data"])
    assert ["aaa" in text, "bbb" in text, "moved" in text, "new" in text] == [True, True, False, True]


@on(FAKE)
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("kind", ["rows", "markdown"])
async def test_entries_that_are_in_the_archive_are_not_left_out_of_a_log(server: FakeServer, kind: str) -> None:
    """Where a person, or a helper of Prefect's own, has written above them."""
    await write_log(server, kind)
    by_hand = json.dumps([{"text": "by hand"}]) if kind == "rows" else "by hand"
    newest, *_others = await server.database.versions("report")
    await server.database.delete_version(newest["id"])
    await server.database.insert([Row("report", timedelta(), by_hand, type="table" if kind == "rows" else "markdown")])
    remembered.clear()
    with pytest.raises(StoreError, match="its data were moved to the archive"):
        await append(server, kind, "new")
    assert (await restore_data(server)).restored == 2
    await append(server, kind, "new")
    text = str((await server.database.versions("report"))[0]["data"])
    assert ["aaa" in text, "bbb" in text, "by hand" in text, "new" in text] == [True] * 4


@pytest.mark.parametrize("data", ["9" * 1_000_000, "1," * 1_000_000, None, 5, "of another version"])
def test_only_the_line_of_the_version_itself_is_no_content(data: object) -> None:
    """That of another version, which somebody may quote, is content, as all else is that a flow appends to."""
    there, other = (json.loads(Stub(uuid4(), "markdown", 20_002, datetime.now(UTC), "run").text()) for _ in range(2))
    version_id = UUID(there.rpartition("--id ")[2].partition(" ")[0])
    refuse_stub(version_id, other if data == "of another version" else data)
    with pytest.raises(ValueError, match=f"come back with artifact-retention restore --data --id {version_id} --apply"):
        refuse_stub(version_id, there)


@ANYWHERE
@pytest.mark.parametrize("metadata", [{}, {"x": "1"}, {"retention-ttl-days": "300", "x": "é"}])
async def test_whatever_is_planned_to_be_moved_is_moved(server: AnyServer, folder: Path, metadata: dict[str, str]) -> None:
    """The metadata of a version are read alike in the plan and in the archive."""
    row = Row("report", days(2), LARGE)
    await server.database.insert([Row("report", days(1)), row])
    await server.database.update_metadata(row.id, metadata)
    report = await server.cleanup([OFFLOAD], mode="delete")
    assert (report.to_offload, report.offloaded, offloaded_ids(folder)) == (1, 1, [row.id])


@on(FAKE)
@pytest.mark.usefixtures("folder")
async def test_what_somebody_has_replaced_does_not_come_back_into_a_log(server: FakeServer) -> None:
    """Though what replaced it is in the archive by now."""
    replaced, large = Row("report", days(4), "replaced"), Row("report", days(3), LARGE)
    await server.database.insert([replaced, large])
    await append(server, "markdown", "new")
    assert (await server.cleanup([OFFLOAD], mode="delete")).offloaded == 1
    remembered.clear()
    await append(server, "markdown", "newer")
    text = str((await server.database.versions("report"))[0]["data"])
    assert [LARGE in text, "replaced" in text, "newer" in text] == [True, False, True]


@ANYWHERE
async def test_what_has_become_the_latest_keeps_its_data(server: AnyServer, folder: Path) -> None:
    """After the latest was deleted."""
    latest, row = Row("report", days(1)), Row("report", days(2), LARGE)
    await server.database.insert([latest, row])

    async def delete() -> None:
        if isinstance(server, FakeServer):
            server.database.delete(latest.id)
        else:
            change = "UPDATE artifact_collection SET latest_id = :id WHERE key = 'report'"
            await server.database.run(change, [{"id": str(row.id) if server.database.is_sqlite else row.id}])

    with when_archived(folder, delete):
        report = await server.cleanup([OFFLOAD], mode="delete")
    assert (await data_of(server))[row.id] == LARGE
    assert report.offloaded == 0


@on(POSTGRESQL_DATABASE)
@pytest.mark.usefixtures("folder")
async def test_what_somebody_has_locked_keeps_its_data_and_no_other_does(server: Server) -> None:
    """A key that is locked is passed over, as one that is being changed is; a version that stays locked fails its key."""
    rows = {key: [Row(key, days(1)), Row(key, days(2), LARGE)] for key in ("collection", "version", "free")}
    await server.database.insert([row for some in rows.values() for row in some])
    async with server.database.engine.begin() as somebody:
        await somebody.execute(sa.text("SELECT * FROM artifact_collection WHERE key = 'collection' FOR UPDATE"))
        await somebody.execute(sa.text("SELECT * FROM artifact WHERE id = :id FOR UPDATE"), {"id": rows["version"][1].id})
        with pytest.raises(CleanupFailed) as failed:
            await server.cleanup([OFFLOAD], mode="delete")
    report = failed.value.report
    assert {each.key: each.offloaded for each in report.key_reports} == {"collection": 0, "version": 0, "free": 1}
    (error,) = (each.error for each in report.key_reports if each.error)
    assert "lock timeout" in error
    assert [(await data_of(server, key))[rows[key][1].id] == LARGE for key in rows] == [True, True, False]
    assert (await server.cleanup([OFFLOAD], mode="delete")).offloaded == 2


@ANYWHERE
async def test_a_hold_on_the_key_keeps_the_data(server: AnyServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that comes while they are being archived."""
    monkeypatch.setattr(offloading, "MAX_HOLDS_AGE_SECONDS", 0)
    row = Row("report", days(2), LARGE)
    await server.database.insert([Row("report", days(1)), row])
    with when_archived(folder, lambda: retention.ahold("report")):
        report = await server.cleanup([OFFLOAD], mode="delete")
    assert (report.to_offload, report.offloaded) == (1, 0)
    assert (await data_of(server))[row.id] == LARGE
    assert (await server.cleanup([OFFLOAD], mode="delete")).to_offload == 0


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE), thorough(SQLITE_API))
async def test_what_a_run_has_written_that_goes_on_again_keeps_its_data(server: Server, folder: Path) -> None:
    """A retry may read it."""
    with server.active():
        async with get_client() as client:
            run_id = (await client.create_flow_run(producer, state=Completed())).id
    row = Row("report", days(2), LARGE, flow_run_id=run_id)
    await server.database.insert([Row("report", days(1)), row])

    async def go_on() -> None:
        async with get_client() as client:
            await client.set_flow_run_state(run_id, Running(), force=True)

    with when_archived(folder, go_on):
        report = await server.cleanup([OFFLOAD], mode="delete")
    assert (report.to_offload, report.offloaded) == (1, 0)
    assert (await data_of(server))[row.id] == LARGE


@ANYWHERE
@pytest.mark.usefixtures("folder")
async def test_a_refused_policy_moves_nothing(server: AnyServer) -> None:
    """What it would delete is too much."""
    await server.database.insert([Row("report", days(age), LARGE) for age in range(1, 50)])
    with pytest.raises(CleanupFailed) as raised:
        await server.cleanup([OFFLOAD], mode="delete", refuse_above_percent=50)
    assert (raised.value.report.outcome, raised.value.report.offloaded) == ("refused", 0)


@on(FAKE)
async def test_without_an_archive_that_keeps_data_nothing_moves(
    server: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a doubt about the policy."""
    await server.database.insert([Row("report", days(age), LARGE) for age in (1, 2)])
    doubt = 'policy "large": offload_larger_than_kb = 10 does nothing, because no archive is configured that keeps data'
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_PAYLOADS", "false")
    assert doubt in (await server.cleanup([OFFLOAD], mode="delete")).doubts
    assert not has_parts(folder)
    monkeypatch.delenv("ARTIFACT_RETENTION_ARCHIVE_URL")
    report = await server.cleanup([OFFLOAD], mode="delete")
    assert (doubt in report.doubts, report.to_offload) == (True, 0)


@ANYWHERE
async def test_the_archive_never_loses_what_is_nowhere_else(server: AnyServer, folder: Path) -> None:
    """Whatever else of the same run it is no longer to keep."""
    await server.database.insert([Row("report", days(age), LARGE) for age in range(1, 8)])
    await server.cleanup([OFFLOAD], mode="delete")
    moved = offloaded_ids(folder)
    later = datetime.now(UTC) + timedelta(days=100)
    assert archive_in(folder).prune(later, 1, 2, f"{server.local.address}/api").runs
    assert archive_in(folder).ledger().num_rows == 0
    assert (len(moved), offloaded_ids(folder), archive_in(folder).problems()) == (4, moved, [])
    # Nor if the manifest of the part is lost: it does not pass for left over.
    (part,) = archive_in(folder).manifests()
    manifest = folder / "manifests" / f"{part.name}.json"
    content = manifest.read_bytes()
    manifest.unlink()
    assert archive_in(folder).problems()[0].is_damage
    archive_in(folder).prune(later + timedelta(days=100), 1, 2, f"{server.local.address}/api")
    manifest.write_bytes(content)
    assert offloaded_ids(folder) == moved


@ANYWHERE
async def test_a_run_that_is_killed_before_it_replaces_is_done_again(
    server: AnyServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has archived does no harm."""
    row = Row("report", days(2), LARGE)
    await server.database.insert([Row("report", days(1)), row])

    async def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(offloading, "_replace_in_database", die)
        patch.setattr(offloading, "_replace_through_api", die)
        with pytest.raises(KilledError):
            await server.cleanup([OFFLOAD], mode="delete")
    assert (await data_of(server))[row.id] == LARGE
    assert offloaded_ids(folder) == [row.id]
    report = await server.cleanup([OFFLOAD], mode="delete")
    assert is_stub((await data_of(server))[row.id], row.id)
    assert (report.offloaded, offloaded_ids(folder)) == (1, [row.id, row.id])


# --- and back


@pytest.mark.thorough
@on(*BY_DATABASE)
@pytest.mark.usefixtures("folder")
async def test_data_come_back_to_the_byte(server: Server) -> None:
    """In the database, nothing tells that they were away: markdown, tables, and any text of JSON."""
    database = server.database
    kept = [
        Row("report", days(age), type=kind) for age, kind in ((2, "markdown"), (3, "table"), (4, "markdown"), (5, "table"))
    ]
    await database.insert([Row("report", days(1)), *kept])
    long = "long " * 5_000
    texts = (
        f'"{long}\\u00fc \\ud800 ü\u2028"',
        json.dumps(json.dumps([{"a": long, "b": None}])),
        f'{{ "b" :  1.10, "a": [-0, 1E2], "b": "{long}" }}',
        f'[1, "{long}", 12345678901234567890]',
    )
    value = ":text" if database.is_sqlite else "CAST(CAST(:text AS VARCHAR) AS JSON)"
    ids = [str(row.id) if database.is_sqlite else row.id for row in kept]
    change = f"UPDATE artifact SET data = {value} WHERE id = :id"
    await database.run(change, [{"id": each, "text": text} for each, text in zip(ids, texts, strict=True)])
    before = await snapshot(database)
    assert (await server.cleanup([OFFLOAD], mode="delete")).offloaded == 4
    assert await snapshot(database) != before
    report = await restore_data(server)
    assert (report.restored, report.present, report.causes()) == (4, 0, [])
    assert await snapshot(database) == before
    again = await restore_data(server)
    assert (again.restored, again.present) == (0, 4)


@EVERYWHERE
@pytest.mark.usefixtures("folder")
async def test_data_come_back_into_the_versions_that_lack_them(server: AnyServer) -> None:
    """A preview says which; and a hold keeps the next cleanup from moving them again."""
    table = json.dumps([{"row": LARGE}])
    rows = [Row("report", days(1)), Row("report", days(2), LARGE), Row("report", days(3), table, type="table")]
    await server.database.insert(rows)
    before = await data_of(server)
    await server.cleanup([OFFLOAD], mode="delete")
    away = await data_of(server)
    preview = await restore_data(server, applies=False)
    assert (preview.missing, preview.restored, preview.data) == (2, 0, True)
    assert await data_of(server) == away
    assert (await restore_data(server, [rows[1].id])).restored == 1
    report = await restore_data(server)
    assert (report.restored, report.present, report.causes()) == (1, 1, [])
    assert await data_of(server) == before
    assert (await server.cleanup([OFFLOAD], mode="delete")).offloaded == 0


@ANYWHERE
@pytest.mark.usefixtures("folder")
async def test_what_was_changed_since_keeps_its_data(server: AnyServer) -> None:
    """Nothing is ever put back over what somebody wrote; and each time that data are moved, it is these that come back."""
    row, other = Row("report", days(2), LARGE), Row("report", days(3), LARGE)
    await server.database.insert([Row("report", days(1)), row, other])
    await server.cleanup([OFFLOAD], mode="delete")
    await server.database.update_data(row.id, "mine")
    report = await restore_data(server)
    assert (report.restored, report.present) == (1, 1)
    assert [(await data_of(server))[each.id] for each in (row, other)] == ["mine", LARGE]


@ANYWHERE
async def test_the_data_moved_last_come_back(server: AnyServer, folder: Path) -> None:
    """Of a version whose data were moved, came back, were changed and moved again."""
    row = Row("report", days(2), LARGE)
    await server.database.insert([Row("report", days(1)), row])
    await server.cleanup([OFFLOAD], mode="delete")
    await server.database.update_data(row.id, LARGE[::-1] + "new")
    await leave_alone(server)
    await server.cleanup([OFFLOAD], mode="delete")
    assert offloaded_ids(folder) == [row.id, row.id]
    assert (await restore_data(server)).restored == 1
    assert (await data_of(server))[row.id] == LARGE[::-1] + "new"


@on(*BY_DATABASE)
@pytest.mark.usefixtures("folder")
async def test_data_come_back_into_a_version_that_has_become_the_latest(server: Server) -> None:
    """Its collection has a copy."""
    row = Row("report", days(2), LARGE)
    latest = Row("report", days(1))
    await server.database.insert([latest, row])
    await server.cleanup([OFFLOAD], mode="delete")
    version_id = str(row.id) if server.database.is_sqlite else row.id
    copied = "(SELECT data FROM artifact WHERE id = :id)"
    change = f"UPDATE artifact_collection SET latest_id = :id, data = {copied} WHERE key = 'report'"
    await server.database.run(change, [{"id": version_id}])
    assert (await restore_data(server)).restored == 1
    copies = await server.database.run("SELECT data FROM artifact_collection WHERE key = 'report'")
    assert LARGE in str(copies[0][0])


@on(*BY_DATABASE)
@pytest.mark.thorough
@pytest.mark.usefixtures("folder")
async def test_a_version_without_its_data_that_is_deleted_comes_back_in_two_steps(server: Server) -> None:
    """First the version as it was when it was deleted, then its data."""
    rows = [Row("report", days(age), LARGE) for age in (1, 2, 3)]
    await server.database.insert(rows)
    before = await snapshot(server.database)
    await server.cleanup([OFFLOAD], mode="delete")
    away = await snapshot(server.database)
    await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    with_data = await restore_data(server)
    assert (with_data.restored, with_data.warnings) == (0, [GONE])
    request = data_request()._replace(data=False)
    with server.active():
        async with open_restore(load_settings(), request.selection("test"), applies=True) as opened:
            await plan(opened)
            await restore_all(opened)
            assert opened.report.restored == 2
    assert await snapshot(server.database) == away
    assert (await restore_data(server)).restored == 2
    assert await snapshot(server.database) == before


def test_data_come_back_in_place_only() -> None:
    """Under another key they would be no data of that version."""
    request = data_request()._replace(to_key="elsewhere")
    with pytest.raises(ConfigurationError, match="to_key, same_key and from_server have no meaning for data"):
        request.selection("parameters")
