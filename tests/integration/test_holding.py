"""Holds on versions and on whole keys: placed by helpers and on the command line, honoured by the cleanup."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import prefect_artifact_retention as retention
import pytest
from database import Row, days, series
from fake import FakeServer
from prefect import flow, runtime
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings
from prefect_artifact_retention.flows.cleanup import LISTENER
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.policies import RetentionPolicy, StoreError
from prefect_artifact_retention.policies.holds import VARIABLE_PREFIX, Hold, variable_name
from prefect_artifact_retention.stores import holds as stored_holds
from prefect_artifact_retention.stores import paging
from prefect_artifact_retention.stores.archive.archive import open_archive
from prefect_artifact_retention.stores.changes import Changes, KeyDeletion
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.database import MAX_WRITERS
from prefect_artifact_retention.stores.holds import Holds
from prefect_artifact_retention.stores.store import Mark
from prefect_artifact_retention.tasks import checks, prune_database
from prefect_artifact_retention.tasks.report import CleanupFailed
from prefect_artifact_retention.tasks.run import Step
from servers import (
    FAKE,
    POSTGRESQL_API,
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
BOTH_STORES = on(FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_API), thorough(POSTGRESQL_API), thorough(SQLITE_DATABASE))
BY_API = on(FAKE, thorough(SQLITE_API), thorough(POSTGRESQL_API))

KEEP_1 = RetentionPolicy(name="keep one", keep_last=1)
NEXT_YEAR = datetime.now(UTC).date() + timedelta(days=365)
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)


@pytest.fixture
def reads_holds_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run read the held keys again before all that it deletes, as if it went on for long."""
    monkeypatch.setattr(checks, "HOLDS_AGE_SHARE", -1)
    monkeypatch.setattr(prune_database, "MAX_HOLDS_AGE_SECONDS", -1)


async def ask(server: AnyServer, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
    """Send a request to the API as anybody may."""
    async with PatientClient(server) as client:
        response = (await client.request(method, path, json=body)).raise_for_status()
        return response.json() if response.content else None


async def put(server: AnyServer, key: str, value: object) -> None:
    """Put any value where the hold on a key is."""
    await ask(server, "POST", "/variables/", {"name": variable_name(key), "value": value})


async def metadata_of(server: AnyServer, version_id: UUID) -> dict[str, str]:
    """The metadata of a version."""
    found: dict[str, str] = (await ask(server, "GET", f"/artifacts/{version_id}"))["metadata_"]
    return found


async def call(server: AnyServer, *arguments: str) -> int:
    """Call the command line, which has an event loop of its own."""
    with server.active():
        return await asyncio.to_thread(main, arguments)


# --- what the cleanup keeps


@pytest.mark.thorough
@BOTH_STORES
async def test_a_key_on_hold_keeps_all_its_versions_and_those_to_come_until_it_is_released(server: AnyServer) -> None:
    """Another key beside it does not; report and plan say who holds it, until when and why."""
    held = await server.database.insert(series("held", [1, 2, 3]))
    free = await server.database.insert(series("free", [1, 2]))
    with server.active():
        placed = await retention.ahold("held", until=NEXT_YEAR, reason="for the auditors", by="ada")
    report = await server.cleanup([KEEP_1], mode="delete")
    sentence = f"held until {NEXT_YEAR} by ada since {placed.since:%Y-%m-%d}: for the auditors"
    assert (report.outcome, report.deleted, report.holds) == ("completed", 1, [f"held: {sentence}"])
    assert [(each.versions, each.example) for each in report.kept_by if each.rule == "hold"] == [(3, sentence)]
    assert await server.database.ids() == {free[0].id, *(row.id for row in held)}
    await ask(server, "POST", "/artifacts/", {"key": "held", "type": "markdown", "data": "new"})
    # A version that is younger than a run takes no slot of a rule; the clock of a run may be two seconds late.
    await asyncio.sleep(3)
    report = await server.cleanup([KEEP_1], mode="delete")
    assert report.deleted == 0
    assert len(await server.database.versions("held")) == 4
    with server.active():
        assert await retention.arelease("held")
        assert not await retention.arelease("held")
    report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.deleted, report.holds) == (3, [])


@BOTH_STORES
async def test_an_idle_key_on_hold_stays_whole(server: AnyServer) -> None:
    """Once it is released, all of it goes."""
    await server.database.insert([*series("held", [50, 60]), *series("free", [50, 60])])
    drop = RetentionPolicy(name="drop", keep_last=1, drop_idle_keys_after_days=30)
    with server.active():
        await retention.ahold("held")
    await server.cleanup([drop], mode="delete")
    assert len(await server.database.ids()) == len(await server.database.versions("held")) == 2
    with server.active():
        await retention.arelease("held")
    await server.cleanup([drop], mode="delete")
    assert await server.database.ids() == set()


@BY_API
async def test_a_hold_on_a_key_that_has_expired_keeps_nothing_and_is_reported(server: AnyServer) -> None:
    """It stays where it is until somebody releases the key."""
    await server.database.insert(series("held", [1, 2]))
    expired = Hold(key="held", until=YESTERDAY, by="ada")
    await put(server, "held", expired.value())
    report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.deleted, report.holds) == (1, [f"held: held until {YESTERDAY} by ada (expired)"])
    with server.active():
        assert await retention.aholds() == [expired]


@BOTH_STORES
@pytest.mark.usefixtures("reads_holds_anew")
async def test_a_hold_that_is_put_on_a_key_after_the_plan_keeps_it(server: AnyServer) -> None:
    """Its neighbours are pruned."""
    await server.database.insert([*series("held", [1, 2, 3]), *series("a", [1, 2]), *series("z", [1, 2])])
    with when_planned(lambda: retention.ahold("held")):
        report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.outcome, report.planned, report.deleted, report.spared) == ("completed", 4, 2, 2)
    assert len(await server.database.versions("held")) == 3


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
@pytest.mark.usefixtures("reads_holds_anew")
async def test_a_hold_that_is_put_on_a_key_while_the_progress_is_shown_keeps_it(server: Server) -> None:
    """That may take long where the server is busy, so the held keys are read after it, right before a transaction."""
    await server.database.insert(series("held", [1, 2, 3]))

    async def listen(step: Step, _done: int, _total: int) -> None:
        if step == "deleting":
            await retention.ahold("held")

    token = LISTENER.set(listen)
    try:
        report = await server.cleanup([KEEP_1], mode="delete")
    finally:
        LISTENER.reset(token)
    assert (report.planned, report.deleted, report.spared) == (2, 0, 2)


@on(POSTGRESQL_DATABASE)
@pytest.mark.usefixtures("reads_holds_anew")
async def test_a_hold_that_is_put_on_a_key_while_other_transactions_are_waited_for_keeps_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an archive, more keys are ready to go than transactions may delete at once; which are the first, nobody knows."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", str(tmp_path))
    monkeypatch.setattr(prune_database, "MAX_TRANSACTION_VERSIONS", 2)
    await server.database.insert(row for key in "abcd" for row in series(key, [1, 2, 3]))
    begun: list[str] = []
    all_have_begun, are_held = asyncio.Event(), asyncio.Event()
    delete = Changes.delete_unchanged

    async def delete_slowly(changes: Changes, deletions: Sequence[KeyDeletion]) -> Mapping[str, Mark | None]:
        begun.extend(each.key for each in deletions)
        if len(begun) == MAX_WRITERS:
            all_have_begun.set()
        await asyncio.wait_for(are_held.wait(), 60)
        return await delete(changes, deletions)

    async def hold_those_that_wait() -> list[str]:
        await all_have_begun.wait()
        archive = open_archive(str(tmp_path))
        async with asyncio.timeout(30):
            while len(archive.manifests()) < len("abcd"):  # noqa: ASYNC110 - a file makes no event
                await asyncio.sleep(0.1)
        # What is archived by now comes to where it waits.
        await asyncio.sleep(0.5)
        held = sorted({*"abcd"}.difference(begun))
        for key in held:
            await retention.ahold(key)
        are_held.set()
        return held

    monkeypatch.setattr(Changes, "delete_unchanged", delete_slowly)
    with server.active():
        holding = asyncio.create_task(hold_those_that_wait())
    report = await server.cleanup([KEEP_1], mode="delete")
    held = await asyncio.wait_for(holding, 60)
    assert (len(held), report.deleted, report.spared) == (2, 4, 4)
    (run,) = open_archive(str(tmp_path)).runs()
    assert {*run.spared} == {version["id"] for key in held for version in (await server.database.versions(key))[1:]}


@BY_API
@pytest.mark.usefixtures("reads_holds_anew")
async def test_a_hold_that_is_put_on_a_key_while_it_is_pruned_keeps_the_rest(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the next batch of deletions on."""
    await server.database.insert(series("held", range(1, 10)))
    monkeypatch.setattr(checks, "DELETIONS_PER_CHECK", 2)
    send = httpx.AsyncHTTPTransport.handle_async_request
    deletions = 0

    async def hold_after_one(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        nonlocal deletions
        response = await send(transport, request)
        if request.method == "DELETE":
            deletions += 1
            if deletions == 1:
                await put(server, "held", Hold(key="held").value())
        return response

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", hold_after_one)
    report = await server.cleanup([KEEP_1], mode="delete")
    assert (report.outcome, report.planned, report.deleted, report.spared) == ("completed", 8, 2, 6)
    assert len(await server.database.versions("held")) == 7


# --- what cannot be known


@BOTH_STORES
@pytest.mark.parametrize("mode", ["preview", "delete"])
async def test_a_hold_that_cannot_be_understood_fails_the_run_and_nothing_is_deleted(server: AnyServer, mode: Any) -> None:  # noqa: ANN401
    """Of no key, for it may be about any; the one error names the variable, until the key is released."""
    await server.database.insert(series("report", [1, 2, 3]))
    await put(server, "other", {"format": 1, "key": "other", "until": "next summer"})
    with pytest.raises(CleanupFailed) as failed:
        await server.cleanup([KEEP_1], mode=mode)
    (error,) = failed.value.report.errors
    assert error.startswith("nothing is deleted, because it is not known which keys are on hold: the variable")
    assert variable_name("other") in error
    assert len(await server.database.versions("report")) == 3
    with server.active():
        with pytest.raises(StoreError, match=variable_name("other")):
            await retention.aholds()
        assert await retention.arelease("other")
    assert (await server.cleanup([KEEP_1], mode=mode)).planned == 2


@BOTH_STORES
@pytest.mark.usefixtures("reads_holds_anew")
async def test_holds_that_cannot_be_read_any_more_while_a_run_deletes_end_it(server: AnyServer) -> None:
    """With one error for all keys."""
    await server.database.insert([row for number in range(5) for row in series(f"key-{number}", [1, 2, 3])])
    with when_planned(lambda: put(server, "other", "by hand")), pytest.raises(CleanupFailed) as failed:
        await server.cleanup([KEEP_1], mode="delete")
    report = failed.value.report
    assert report.deleted == 0
    assert len(report.errors) == 1
    assert variable_name("other") in report.errors[0]
    assert not list(report.failures())
    assert len(await server.database.ids()) == 15


@on(FAKE)
@pytest.mark.parametrize("status", [403, 404, 500])
async def test_a_server_that_does_not_show_its_holds_fails_the_run(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """As to a key of Prefect Cloud that may not see variables."""
    await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def refuse(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/api/variables"):
            return httpx.Response(status, json={"detail": "no"}, request=request)
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)
    with pytest.raises(CleanupFailed, match=f"it is not known which keys are on hold: .*{status}"):
        await server.cleanup([KEEP_1], mode="delete")
    assert len(await server.database.ids()) == 3


@on(FAKE, thorough(POSTGRESQL_API))
async def test_all_holds_are_read_however_many_pages_they_take(server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when one that was read already is released meanwhile, and shifts the next page."""
    monkeypatch.setattr(paging, "MAX_PAGE_ROWS", 25)
    keys = [f"key-{number}" for number in range(60)]
    by_name = sorted(keys, key=variable_name)
    for key in keys:
        await put(server, key, Hold(key=key).value())
    await ask(server, "POST", "/variables/", {"name": f"x-{VARIABLE_PREFIX}1", "value": "not one of these"})
    with server.active():
        assert [each.key for each in await retention.aholds()] == by_name
    send = httpx.AsyncHTTPTransport.handle_async_request
    pages: list[str] = []

    async def release_first(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if request.url.path.endswith("/variables/filter"):
            pages.append(request.url.path)
            if len(pages) == 1:
                await ask(server, "DELETE", f"/variables/name/{variable_name(by_name[0])}")
        return response

    with monkeypatch.context() as patch, server.active():
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", release_first)
        assert [each.key for each in await retention.aholds()] == by_name[1:]
    await ask(server, "DELETE", f"/variables/name/x-{VARIABLE_PREFIX}1")


@BY_API
async def test_a_key_that_reads_as_an_id_is_held_as_a_key(server: AnyServer) -> None:
    """If it has versions, and no version has that id."""
    key = str(uuid4())
    await server.database.insert(series(key, [1, 2, 3]))
    with server.active():
        placed = await retention.ahold(key)
        assert (placed.key, placed.id) == (key, None)
        assert await retention.aholds(key) == await retention.aholds() == [placed]
        assert await retention.arelease(key)
        assert not await retention.aholds()


@BY_API
async def test_the_holds_on_a_version_are_listed_by_its_id(server: AnyServer) -> None:
    """Its own, and the one on its key; with hyphens or without."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    with server.active():
        on_version = await retention.ahold(rows[1].id.hex, reason="sent to the board")
        assert await retention.aholds(rows[1].id) == [on_version]
        on_key = await retention.ahold("report")
        assert await retention.aholds(str(rows[1].id)) == [on_key, on_version]
        assert await retention.aholds(rows[2].id) == [on_key]
        with pytest.raises(StoreError, match="there is no artifact with the id"):
            await retention.aholds(uuid4())


@on(FAKE)
async def test_a_run_reads_two_hundred_holds_in_a_request_and_asks_a_server_that_sends_fewer_for_less_but_once(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads them every ten seconds while it deletes."""
    for number in range(40):
        await put(server, f"key-{number}", Hold(key=f"key-{number}").value())
    await server.database.insert(series("report", [1, 2, 3]))
    monkeypatch.setattr(checks, "HOLDS_AGE_SHARE", -1)
    send = httpx.AsyncHTTPTransport.handle_async_request
    statuses: list[int] = []

    async def count(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if request.url.path.endswith("/variables/filter") and VARIABLE_PREFIX.encode() in request.content:
            statuses.append(response.status_code)
        return response

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", count)
    assert (await server.cleanup([KEEP_1], mode="delete")).deleted == 2
    assert statuses == [200, 200]
    statuses.clear()
    server.limit = 50
    await server.database.insert(series("report", [1, 2, 3]))
    assert (await server.cleanup([KEEP_1], mode="delete")).deleted == 3
    assert statuses == [422, 422, 200, 200]


@on(FAKE)
async def test_a_variable_without_a_name_fails_the_run(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another kind may list what cannot be told from a hold."""
    await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def rename(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/variables/filter"):
            return httpx.Response(200, json=[{"title": "x", "value": 1}], request=request)
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", rename)
    with pytest.raises(CleanupFailed, match=r"not known which keys are on hold: .* a variable without a name"):
        await server.cleanup([KEEP_1], mode="delete")


# --- placing and releasing


@BY_API
async def test_a_version_on_hold_says_who_holds_it_and_keeps_its_other_metadata(server: AnyServer) -> None:
    """Released, it has these only, its TTL among them."""
    others = {"team": "sales", "retention-ttl-days": "30"}
    rows = await server.database.insert([*series("report", [1, 2]), Row("report", days(3), metadata=others)])
    version_id = rows[2].id
    with server.active():
        placed = await retention.ahold(str(version_id), until=NEXT_YEAR, reason="why", by="ada")
        assert placed.since
        assert await metadata_of(server, version_id) == others | {
            "retention-hold": str(NEXT_YEAR),
            "retention-hold-by": "ada",
            "retention-hold-since": placed.since.isoformat(),
            "retention-hold-reason": "why",
        }
        assert await retention.aholds("report") == [placed]
        await retention.ahold(version_id)
        assert "retention-hold-reason" not in await metadata_of(server, version_id)
        assert await retention.arelease(version_id)
        assert await metadata_of(server, version_id) == others
        assert not await retention.arelease(version_id)


@on(FAKE, POSTGRESQL_API, thorough(SQLITE_API))
async def test_many_who_hold_a_version_at_once_lose_none_of_its_metadata(server: AnyServer) -> None:
    """And it is held."""
    others = {"team": "sales", "retention-ttl-days": "30"}
    (row,) = await server.database.insert([Row("report", days(3), metadata=others)])
    with server.active():
        await asyncio.gather(*(retention.ahold(row.id, until=NEXT_YEAR, by=f"holder-{number}") for number in range(4)))
    found = await metadata_of(server, row.id)
    assert found.items() > (others | {"retention-hold": str(NEXT_YEAR)}).items()


@BY_API
@pytest.mark.parametrize("what", ["hold", "release"])
async def test_metadata_that_somebody_writes_at_the_same_time_neither_undo_nor_miss_a_change_of_a_hold(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Somebody who has read the metadata before, and writes them with an entry of their own right after."""
    before = {"team": "sales"} | (Hold(by="ada").entries() if what == "release" else {})
    (row,) = await server.database.insert([Row("report", days(3), metadata=before)])
    send = httpx.AsyncHTTPTransport.handle_async_request
    written = 0

    async def write_over(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        nonlocal written
        response = await send(transport, request)
        if request.method == "PATCH":
            written += 1
            if written == 1:
                await ask(server, "PATCH", f"/artifacts/{row.id}", {"metadata_": before | {"seen": "yes"}})
        return response

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", write_over)
    with server.active():
        placed = await retention.ahold(row.id) if what == "hold" else None
        assert placed or await retention.arelease(row.id)
    assert written == 3
    assert await metadata_of(server, row.id) == {"team": "sales", "seen": "yes"} | (placed.entries() if placed else {})


@BY_API
async def test_a_hold_takes_the_place_of_one_that_ends_no_later_and_of_no_other(server: AnyServer) -> None:
    """On a key as on a version: nobody shortens unseen what somebody else has put there."""
    (row,) = await server.database.insert(series("report", [1]))
    with server.active():
        for what in ("report", row.id):
            await retention.ahold(what, until=NEXT_YEAR, by="ada")
            await retention.ahold(what, until=NEXT_YEAR + timedelta(days=1), by="bob")
            with pytest.raises(
                StoreError, match=r"is held until .* by bob since .*; to hold it for less long, release it first"
            ):
                await retention.ahold(what, until=NEXT_YEAR, by="carl")
            await retention.ahold(what, by="dora")
            with pytest.raises(StoreError, match="is held by dora"):
                await retention.ahold(what, until=date(2999, 1, 1))
        assert [(each.by, each.until) for each in await retention.aholds("report")] == [("dora", None)] * 2


@on(FAKE, thorough(POSTGRESQL_API))
async def test_many_hold_a_key_at_once_and_the_longest_hold_is_left(server: AnyServer) -> None:
    """Some are told that there is a longer one."""
    with server.active():
        until = [NEXT_YEAR + timedelta(days=number) for number in range(6)]
        done = await asyncio.gather(*(retention.ahold("report", until=day) for day in until), return_exceptions=True)
        assert all(isinstance(each, Hold | StoreError) for each in done)
        assert [each.until for each in await retention.aholds()] == [until[-1]]


@BY_API
async def test_a_shorter_hold_that_is_written_late_does_not_stay_in_the_place_of_a_longer_one(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob has read Ada's hold before Dora puts hers there, and writes his after hers."""
    send = httpx.AsyncHTTPTransport.handle_async_request
    has_read, may_write = asyncio.Event(), asyncio.Event()

    async def delay_bob(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH" and b'"bob"' in request.content and not has_read.is_set():
            has_read.set()
            await may_write.wait()
        response = await send(transport, request)
        if request.method == "PATCH" and b'"dora"' in request.content:
            # Not before she could have read hers again right away.
            asyncio.get_running_loop().call_later(0.2, may_write.set)
        return response

    monkeypatch.setattr(stored_holds, "SETTLE_SECONDS", 1)
    with server.active():
        await retention.ahold("report", until=NEXT_YEAR, by="ada")
        monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", delay_bob)
        bob = asyncio.create_task(retention.ahold("report", until=NEXT_YEAR + timedelta(days=1), by="bob"))
        await has_read.wait()
        placed = await retention.ahold("report", by="dora")
        await bob
        assert await retention.aholds() == [placed]


@BY_API
async def test_who_takes_the_place_of_the_hold_of_somebody_else_is_told(
    server: AnyServer, caplog: pytest.LogCaptureFixture
) -> None:
    """For a release ends both, and the other one may rely on it."""
    (row,) = await server.database.insert(series("report", [1]))
    with server.active():
        for what in ("report", row.id):
            caplog.clear()
            await retention.ahold(what, until=NEXT_YEAR, by="bob", reason="for the lawyers")
            await retention.ahold(what, until=NEXT_YEAR, by="bob", reason="for the lawyers")
            assert not caplog.messages
            await retention.ahold(what, by="ada")
            (warning,) = caplog.messages
            assert warning.startswith(
                f"this hold takes the place of another, so its release ends both: held until {NEXT_YEAR}"
            )
            assert warning.endswith(": for the lawyers")


@BY_API
async def test_what_is_not_there_is_noticed(server: AnyServer, caplog: pytest.LogCaptureFixture) -> None:
    """A version is an error; a key without versions may get some, and is a warning."""
    with server.active():
        unknown = uuid4()
        for attempt in (retention.ahold(unknown), retention.arelease(unknown)):
            with pytest.raises(StoreError, match=f"there is no artifact with the id {unknown}"):
                await attempt
        await retention.ahold("reprot")
    assert "the key 'reprot' is on hold, and has no versions now" in caplog.text


@flow(name="holder")
async def hold_in_flow(key: str) -> tuple[Hold, list[Hold], bool, str]:
    """Call the sync helpers where an event loop runs."""
    return retention.hold(key), retention.holds(), retention.release(key), str(runtime.flow_run.name)


@on(SQLITE_API)
async def test_a_flow_holds_in_the_name_of_its_run(server: Server) -> None:
    """Also by the sync helpers in an async flow."""
    with server.active():
        placed, listed, released, name = await hold_in_flow("report")
    assert placed.by == f"flow run {name}"
    assert (listed, released) == ([placed], True)


@on(FAKE)
async def test_a_lost_answer_changes_nothing(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is sent again, and its effect found there."""
    send = httpx.AsyncHTTPTransport.handle_async_request
    lost: set[str] = set()

    async def lose_first(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if "/variables/" in request.url.path and request.method not in lost:
            lost.add(request.method)
            return httpx.Response(503, headers={"Retry-After": "0"}, request=request)
        return response

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", lose_first)
    with server.active():
        placed = await retention.ahold("report")
        assert await retention.aholds() == [placed]
        assert await retention.arelease("report")
    assert {"POST", "DELETE"} <= lost
    with server.active():
        async with connect() as connection:
            assert await Holds(connection).on_keys() == []


# --- the command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a policy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "one"\nkeep_last = 1\n', encoding="utf-8")
    return tmp_path


@on(FAKE, thorough(POSTGRESQL_DATABASE))
async def test_holds_are_placed_listed_explained_and_released_by_commands(
    server: AnyServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key and a version of another one, in tables."""
    rows = await server.database.insert([*series("report", [1, 2]), *series("other", [1, 2])])
    assert await call(server, "hold", "report", "--until", str(NEXT_YEAR), "--reason", "for the auditors", "--by", "ada") == 0
    assert await call(server, "hold", str(rows[3].id), "--by", "bob") == 0
    out, err = capsys.readouterr()
    assert (out.count("all\u00a0versions"), out.count(str(rows[3].id)), err) == (1, 1, "")
    assert await call(server, "holds") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "ada" in line]
    assert line.split() == ["report", "all", "versions", str(NEXT_YEAR), "ada", *line.split()[5:7], "for", "the", "auditors"]
    assert await call(server, "holds", "other") == 0
    assert f"{rows[3].id}  no end" in capsys.readouterr().out
    for row, reason in ((rows[1], f"held until {NEXT_YEAR} by ada since"), (rows[3], "held by bob since")):
        assert await call(server, "explain", str(row.key)) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if str(row.id) in line]
        assert line.split()[1] == "keep"
        assert reason in line
    policies = '[[policies]]\nname = "else"\nmatch_keys = ["else"]\nkeep_last = 1\n'
    (folder / "retention.toml").write_text(policies, encoding="utf-8")
    assert await call(server, "explain", "report") == 0
    assert f"report: held until {NEXT_YEAR} by ada" in capsys.readouterr().out
    assert await call(server, "release", "report") == 0
    assert await call(server, "release", "report") == 0
    assert await call(server, "release", str(rows[3].id)) == 0
    assert await call(server, "holds") == 0
    assert capsys.readouterr().out.splitlines() == [
        "report is released",
        "report was not on hold",
        f"{rows[3].id} is released",
        f"On {server.local.address}/api",
        "Nothing is on hold.",
    ]


@pytest.mark.parametrize("arguments", [["hold", "report"], ["release", "report"], ["holds"]])
def test_the_command_line_refuses_a_temporary_server(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody who forgot to name a server is told that a key is on hold there."""
    with temporary_settings({PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True}, restore_defaults={PREFECT_API_URL}):
        assert main(arguments) == 2
    assert "so Prefect starts a temporary one" in capsys.readouterr().err


@on(FAKE)
@pytest.mark.usefixtures("folder")
async def test_the_command_line_speaks_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """One document each, errors included; a key without versions is a warning."""

    async def answer(code: int, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        assert await call(server, *arguments, "--json") == code
        return json.loads(capsys.readouterr().out)

    warning = "the key 'reprot' is on hold, and has no versions now"
    held = await answer(0, "hold", "reprot", "--by", "ada")
    assert (held["key"], held["until"], held["by"], held["expired"], held.pop("warnings")) == (
        "reprot",
        None,
        "ada",
        False,
        [warning],
    )
    assert await answer(0, "holds") == {"holds": [held]}
    assert await answer(0, "release", "reprot") == {"released": True}
    assert await answer(0, "release", "reprot") == {"released": False}
    assert await answer(0, "holds", "reprot") == {"holds": []}
    for code, *arguments in (
        (2, "hold", "report-*"),
        (2, "hold", "report", "--until", "2020-01-01"),
        (2, "hold", "report", "--reason", "x" * 501),
        (2, "holds", "Report"),
        (2, "hold"),
        (1, "hold", str(uuid4())),
    ):
        assert "error" in await answer(code, *arguments)
