"""Keys that share a snapshot, and concurrent deletions: as safe as one key, one version at a time."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from aiolimiter import AsyncLimiter
from database import Row, series
from prefect import get_client
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.stores import concurrency, connection
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.server import Server as PrefectServer
from prefect_artifact_retention.tasks import checks, prune, run
from prefect_artifact_retention.tasks.report import CleanupFailed
from servers import BY_FAKE, FAKE, POSTGRESQL_API, SQLITE_API, Server, on, thorough, when_planned

KEEP_2 = RetentionPolicy(name="keep two", keep_last=2)
AT_ONCE = 4

Send = Callable[[httpx.AsyncHTTPTransport, httpx.Request], Awaitable[httpx.Response]]
Handle = Callable[[httpx.AsyncHTTPTransport, httpx.Request, Send], Awaitable[httpx.Response]]


@contextmanager
def transport(handle: Handle) -> Iterator[None]:
    """Have all requests pass by here."""
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def pass_by(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return await handle(transport, request, send)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", pass_by)
        yield


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run have four requests under way from the start."""
    monkeypatch.setattr(concurrency, "LOWEST_LEVEL", AT_ONCE)


async def keys(server: Server, *names: str, versions: int) -> dict[str, list[Row]]:
    """As many versions of each key, one a day, the newest first."""
    rows = {name: series(name, range(1, versions + 1)) for name in names}
    await server.database.insert([row for each in rows.values() for row in each])
    return rows


@on(*BY_FAKE)
async def test_keys_with_one_stale_version_share_their_snapshots(server: Server) -> None:
    """A run over a hundred of them sends fewer other requests than deletions."""
    rows = await keys(server, *(f"key-{number}" for number in range(100)), versions=3)
    requests: Counter[str] = Counter()

    async def count(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        requests["deletions" if request.method == "DELETE" else "others"] += "/artifacts/" in request.url.path
        return await send(transport, request)

    with transport(count):
        report = await server.cleanup([KEEP_2], mode="delete")
    assert report.deleted == 100
    assert await server.database.ids() == {row.id for each in rows.values() for row in each[:2]}
    assert requests["others"] < requests["deletions"], requests


@on(*BY_FAKE)
@pytest.mark.parametrize("keep", [1, 2])
async def test_a_successor_stays_when_a_person_deletes_the_latest_after_a_shared_snapshot(server: Server, keep: int) -> None:
    """The other keys of its snapshot are pruned as planned."""
    rows = await keys(server, "a", "b", "c", versions=keep + 1)
    planned: list[bool] = []
    deleted: list[bool] = []

    async def mark() -> None:
        planned.append(True)

    async def delete_latest(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        response = await send(transport, request)
        if planned and not deleted and request.url.path.endswith("/artifacts/filter") and b'["a","b","c"]' in request.content:
            deleted.append(True)
            async with get_client() as person:
                await person.delete_artifact(rows["b"][0].id)
        return response

    with transport(delete_latest), when_planned(mark):
        report = await server.cleanup([RetentionPolicy(name="p", keep_last=keep)], mode="delete", max_task_runs=1)
    assert deleted
    left = {row.id for name, each in rows.items() for row in (each[1:] if name == "b" else each[:keep])}
    assert await server.database.ids() == left
    assert (report.deleted, report.spared) == (2, 1)
    assert not await server.database.dangling()


@on(*BY_FAKE)
@pytest.mark.parametrize("gone_before", [0, 1], ids=["one-more", "as-many"])
async def test_a_version_that_came_and_went_since_the_plan_does_not_hide_the_one_behind_the_latest(
    server: Server, gone_before: int
) -> None:
    """The latest is then the one planned again; when a person deletes that one, too, the version behind it stays.

    Also where the key had as many versions as planned in its first snapshot, because an old one had gone.
    """
    rows = (await keys(server, "report", versions=8))["report"]
    created: list[str] = []
    gone: list[str] = []

    async def produce() -> None:
        # The new version must be younger than the run, whose clock has whole seconds.
        await asyncio.sleep(1.1)
        async with get_client() as producer:
            body = {"key": "report", "type": "markdown", "data": "new"}
            created.append((await producer.request("POST", "/artifacts/", json=body)).json()["id"])
        for row in rows[len(rows) - gone_before :]:
            await server.database.delete_version(row.id)

    async def delete(version_id: str) -> None:
        gone.append(version_id)
        async with get_client() as person:
            await person.delete_artifact(UUID(version_id))

    async def interfere(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.method == "DELETE" and len(gone) == 1 and not request.url.path.endswith(gone[0]):
            await delete(str(rows[0].id))
        response = await send(transport, request)
        if created and not gone and request.url.path.endswith("/artifacts/filter") and b'["report"]' in request.content:
            await delete(created[0])
        return response

    with transport(interfere), when_planned(produce):
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    assert gone == [*created, str(rows[0].id)]
    assert await server.database.ids() == {rows[1].id}
    assert (report.deleted, report.already_gone, report.spared) == (6 - gone_before, gone_before, 1)
    assert not await server.database.dangling()


@on(*BY_FAKE)
async def test_a_successor_stays_when_the_latest_is_replaced_and_deleted_right_before_the_batch(server: Server) -> None:
    """The new version takes no slot, so the one behind the deleted latest moves up."""
    rows = (await keys(server, "report", versions=2))["report"]
    planned: list[bool] = []
    done: list[bool] = []

    async def mark() -> None:
        # The new version must be younger than the run, whose clock has whole seconds.
        await asyncio.sleep(1.1)
        planned.append(True)

    async def interfere(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if planned and not done and request.url.path.endswith("/latest/filter") and b'"report"' in request.content:
            done.append(True)
            async with get_client() as somebody:
                await somebody.request("POST", "/artifacts/", json={"key": "report", "type": "markdown", "data": "new"})
                await somebody.delete_artifact(rows[0].id)
        return await send(transport, request)

    with transport(interfere), when_planned(mark):
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    assert done
    assert rows[1].id in await server.database.ids()
    assert (report.deleted, report.spared) == (0, 1)


@on(*BY_FAKE)
async def test_a_key_that_cannot_be_read_fails_alone(server: Server) -> None:
    """The keys that would have shared its snapshot are pruned all the same."""
    rows = await keys(server, "a", "bad", "c", versions=3)
    planned: list[bool] = []

    async def mark() -> None:
        planned.append(True)

    async def refuse(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if planned and b'"bad"' in request.content and request.url.path.endswith("latest/filter"):
            return httpx.Response(500, json={"detail": "boom"}, request=request)
        return await send(transport, request)

    with transport(refuse), when_planned(mark), pytest.raises(CleanupFailed, match="500") as failed:
        await server.cleanup([KEEP_2], mode="delete", max_task_runs=1)
    assert [(key.key, key.deleted) for key in failed.value.report.key_reports if not key.error] == [("a", 1), ("c", 1)]
    assert await server.database.ids() == {row.id for name, each in rows.items() for row in each[: 3 if name == "bad" else 2]}


def watch(under_way: set[str], seen: list[tuple[str, int]]) -> Handle:
    """Note each deletion, and how many others are under way when it begins."""

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.method != "DELETE":
            return await send(transport, request)
        seen.append((request.url.path.rpartition("/")[2], len(under_way)))
        under_way.add(request.url.path)
        try:
            return await send(transport, request)
        finally:
            under_way.discard(request.url.path)

    return handle


@on(*BY_FAKE)
@pytest.mark.usefixtures("at_once")
async def test_versions_of_one_key_go_several_at_once_and_the_one_behind_the_latest_last_and_alone(server: Server) -> None:
    """So that a server which is faster with several requests is used well, and no collection loses its latest version."""
    rows = (await keys(server, "report", versions=31))["report"]
    seen: list[tuple[str, int]] = []
    with transport(watch(set(), seen)):
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    assert (report.deleted, report.failed) == (30, 0)
    assert max(others for _, others in seen) == AT_ONCE - 1
    begun = list(dict.fromkeys(version for version, _ in seen))
    assert begun == [str(row.id) for row in reversed(rows[1:])]
    assert {others for version, others in seen if version == str(rows[1].id)} == {0}
    assert await server.database.ids() == {rows[0].id}


@on(SQLITE_API, POSTGRESQL_API)
async def test_a_server_on_postgresql_gets_several_deletions_at_once_and_one_on_sqlite_never_two(server: Server) -> None:
    """Two that write at once can hold up all writes of a server on SQLite for a minute."""
    await keys(server, "a", "b", "c", versions=100)
    seen: list[tuple[str, int]] = []
    with transport(watch(set(), seen)):
        report = await server.run_flow([KEEP_2], mode="delete")
    assert report.deleted == 294
    most = max(others for _, others in seen) + 1
    assert most == 1 if server.database.is_sqlite else concurrency.FIRST_LEVEL <= most <= concurrency.HIGHEST_LEVEL


@on(*BY_FAKE)
@pytest.mark.parametrize("answer", [httpx.Response(403), httpx.Response(200, json=0), httpx.Response(200, text="<html>")])
async def test_a_server_that_hides_its_kind_gets_one_deletion_at_a_time(server: Server, answer: httpx.Response) -> None:
    """All the same, everything stale goes."""
    await keys(server, "a", versions=12)
    seen: list[tuple[str, int]] = []
    watched = watch(set(), seen)
    asked: list[str] = []

    async def hide(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.url.path.endswith("/flows/count"):
            asked.append(request.url.path)
            return httpx.Response(answer.status_code, content=answer.content, request=request)
        return await watched(transport, request, send)

    with transport(hide):
        report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.deleted, len(asked)) == (10, 1)
    assert {others for _, others in seen} == {0}


@on(SQLITE_API, POSTGRESQL_API)
@pytest.mark.parametrize("name", ["plain", "\\server\\share", "data\\daily", "_a\\_b", "Ä\\ä", "it's"])
async def test_the_kind_of_a_server_is_told_by_any_flow(server: Server, name: str) -> None:
    """At worst, one on PostgreSQL gets one request at a time; one on SQLite never gets several."""
    with server.active():
        async with get_client() as client:
            await client.create_flow_from_name(name)
        async with connect() as connection:
            allowed: list[bool] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(connection, "allow_concurrency", lambda: allowed.append(True))
                await PrefectServer(connection).detect_concurrency(name)
    assert allowed == ([] if server.database.is_sqlite or "\\" in name[1:] else [True])


@on(*BY_FAKE)
@pytest.mark.usefixtures("at_once")
async def test_a_limit_of_deletions_holds_to_the_last_one_with_several_under_way(server: Server) -> None:
    """Seven are seven."""
    rows = (await keys(server, "report", versions=20))["report"]
    report = await server.cleanup([KEEP_2], mode="delete", max_deletions=7)
    assert (report.outcome, report.deleted) == ("unfinished", 7)
    assert await server.database.ids() == {row.id for row in rows[:13]}


@on(SQLITE_API, POSTGRESQL_API)
@pytest.mark.usefixtures("at_once")
async def test_a_deletion_that_fails_ends_its_key_and_those_under_way_are_counted(server: Server) -> None:
    """What the report says has gone is what the database says."""
    rows = (await keys(server, "report", versions=30))["report"]
    bad = str(rows[20].id)

    async def refuse(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.url.path.endswith(bad):
            return httpx.Response(500, json={"detail": "boom"}, request=request)
        return await send(transport, request)

    with transport(refuse), pytest.raises(CleanupFailed, match="boom") as failed:
        await server.cleanup([KEEP_2], mode="delete")
    report: Any = failed.value.report
    gone = {row.id for row in rows} - await server.database.ids()
    assert report.deleted == len(gone)
    # On SQLite, those under way get a 503 now and then, and may come too late for another attempt: their fate is unknown.
    assert report.failed == 1 or (server.database.is_sqlite and 1 < report.failed <= AT_ONCE)
    assert len({row.id for row in rows[21:]} - gone) < report.failed
    assert len(gone) < 9 + AT_ONCE


# --- deletions that have to wait


@pytest.fixture
def soon_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a server for stalled after two seconds."""
    monkeypatch.setattr(prune, "MIN_STALL_SECONDS", 2)


def busy(seconds: float, request: httpx.Request) -> httpx.Response:
    """The server, or a proxy before it, asks for a pause."""
    return httpx.Response(429, headers={"Retry-After": str(seconds)}, json={"detail": "slowly"}, request=request)


def putting_off(rows: Sequence[Row], meanwhile: Callable[[str], Awaitable[None]] | None = None) -> Handle:
    """Let the first attempt to delete each of these have to wait, and something happen to it meanwhile."""
    waiting = {str(row.id) for row in rows}

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        version_id = request.url.path.rpartition("/")[2]
        if request.method != "DELETE" or version_id not in waiting:
            return await send(transport, request)
        waiting.discard(version_id)
        if meanwhile:
            await meanwhile(version_id)
        return busy(0.5, request)

    return handle


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a check be too old for another attempt once a deletion had to wait."""
    monkeypatch.setattr(checks, "MAX_CHECK_AGE_SECONDS", 0.4)


@on(FAKE)  # as above
@pytest.mark.parametrize("what", ["becomes the latest", "is held"])
async def test_what_has_come_to_stay_while_its_deletion_had_to_wait_stays(
    server: Server, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion is not sent again before another check; that of the version behind the latest, much sooner than others."""
    monkeypatch.setattr(checks, "MAX_LAST_SECONDS" if what == "becomes the latest" else "MAX_CHECK_AGE_SECONDS", 0.4)
    rows = (await keys(server, "report", versions=2))["report"]
    attempts: list[str] = []

    async def interfere(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.method == "DELETE" and request.url.path.endswith(str(rows[1].id)):
            attempts.append(request.url.path)
            if what == "is held":
                await server.database.update_metadata(rows[1].id, {"retention-hold": "true"})
            else:
                async with get_client() as person:
                    await person.delete_artifact(rows[0].id)
            return busy(0.5, request)
        return await send(transport, request)

    with transport(interfere):
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    assert (report.outcome, report.deleted, report.failed, report.spared) == ("completed", 0, 0, 1)
    assert len(attempts) == 1
    assert rows[1].id in await server.database.ids()
    assert not await server.database.dangling()


@on(FAKE)  # fractions of a second, in which a real server may answer late
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("key", ["report", None])
async def test_a_deletion_that_had_to_wait_is_done_after_another_snapshot(server: Server, key: str | None) -> None:
    """Whether the server has acted before or not, it was this run that deleted it."""
    rows = await server.database.insert(series(key, range(1, 9)))

    async def delete(version_id: str) -> None:
        if version_id == str(rows[5].id):
            await server.database.delete_version(rows[5].id)

    policies = [KEEP_2, RetentionPolicy(name="some", keep_within_days=2.5, unkeyed=True)]
    with transport(putting_off(rows[4:6], delete)):
        report = await server.cleanup(policies, mode="delete")
    assert (report.outcome, report.deleted, report.already_gone, report.failed) == ("completed", 6, 0, 0)
    assert report.bytes_freed == report.bytes_planned
    assert await server.database.ids() == {row.id for row in rows[:2]}


@on(FAKE)  # fractions of a second, in which a real server may answer late
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("key", ["report", None])
async def test_a_deletion_that_has_to_wait_again_and_again_fails_its_key(server: Server, key: str | None) -> None:
    """A run does not go on for ever; its other keys are pruned."""
    rows = await server.database.insert(series(key, [1, 2, 30]))
    await keys(server, "other", versions=3)
    attempts: list[str] = []

    async def delay(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.method == "DELETE" and request.url.path.endswith(str(rows[2].id)):
            attempts.append(request.url.path)
            return busy(0.5, request)
        return await send(transport, request)

    policies = [KEEP_2, RetentionPolicy(name="some", keep_within_days=9, unkeyed=True)]
    with transport(delay), pytest.raises(CleanupFailed, match="did not take DELETE") as failed:
        await server.cleanup(policies, mode="delete")
    report = failed.value.report
    assert (report.deleted, report.failed, report.remaining) == (1, 1, 1)
    assert [each.key for each in report.failures()] == [key]
    # On a loaded machine, some checks are too old before anything is sent.
    assert 1 <= len(attempts) <= prune.MAX_LATE_CHECKS
    assert {row.id for row in rows} <= await server.database.ids()


@on(FAKE)  # fractions of a second, in which a real server may answer late
@pytest.mark.usefixtures("impatient", "soon_stalled")
async def test_a_server_that_takes_no_deletions_is_not_asked_for_more_key_after_key(server: Server) -> None:
    """As one whose database something else holds for long; what is left is left to the next run."""
    rows = await keys(server, *(f"key-{number}" for number in range(200)), versions=4)
    attempts: list[str] = []

    async def delay(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.method == "DELETE":
            attempts.append(request.url.path)
            return busy(0.5, request)
        return await send(transport, request)

    with transport(delay), pytest.raises(CleanupFailed) as failed:
        await server.cleanup([KEEP_2], mode="delete")
    report = failed.value.report
    assert (report.outcome, report.deleted, report.remaining) == ("failed", 0, 400)
    assert [error.partition(" for ")[0] for error in report.errors] == ["the Prefect server accepted no deletion"]
    # On a loaded machine, some checks are too old before anything is sent on them.
    assert 1 <= len(attempts) < 100
    assert await server.database.ids() == {row.id for each in rows.values() for row in each}


@on(FAKE)  # fractions of a second, in which a real server may answer late
async def test_a_server_that_takes_deletions_and_says_so_late_is_asked_for_all(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy that waits for less long: the next snapshot finds each gone."""
    # Less than the run takes, and more than one deletion does.
    for module, name, value in (
        (checks, "MAX_CHECK_AGE_SECONDS", 1),
        (prune, "MAX_LATE_CHECKS_OF_RUN", 5),
        (prune, "MIN_STALL_SECONDS", 4),
    ):
        monkeypatch.setattr(module, name, value)
    rows = await keys(server, *(f"key-{number}" for number in range(8)), versions=3)

    async def delay(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        response = await send(transport, request)
        if request.method != "DELETE" or not response.is_success:
            return response
        await response.aread()
        return busy(1.2, request)

    with transport(delay):
        report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.outcome, report.deleted, report.already_gone, report.failed) == ("completed", 8, 0, 0)
    assert await server.database.ids() == {row.id for each in rows.values() for row in each[:2]}


@on(*BY_FAKE)
async def test_kept_versions_that_go_while_a_long_key_is_pruned_leave_their_slots_to_others(server: Server) -> None:
    """As many stay as the policy says, of those that are left."""
    rows = (await keys(server, "report", versions=200))["report"]
    gone: list[str] = []

    async def interfere(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.method == "DELETE":
            gone.append(request.url.path)
            if len(gone) == checks.DELETIONS_PER_CHECK:
                for row in rows[1:3]:
                    await server.database.delete_version(row.id)
        return await send(transport, request)

    with transport(interfere):
        report = await server.cleanup([RetentionPolicy(name="three", keep_last=3)], mode="delete")
    assert (report.outcome, report.deleted, report.spared) == ("completed", 195, 2)
    assert await server.database.ids() == {rows[0].id, rows[3].id, rows[4].id}


@on(*BY_FAKE)
async def test_a_hold_on_the_version_behind_the_latest_is_seen_however_long_its_key_takes(server: Server) -> None:
    """It goes last, and rests on no reading of other versions."""
    rows = (await keys(server, "report", versions=checks.DELETIONS_PER_CHECK + 40))["report"]
    gone: list[str] = []

    async def interfere(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.method == "DELETE":
            gone.append(request.url.path)
            if len(gone) == checks.DELETIONS_PER_CHECK + 5:
                await server.database.update_metadata(rows[1].id, {"retention-hold": "true"})
        return await send(transport, request)

    with transport(interfere):
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    assert (report.outcome, report.deleted, report.spared) == ("completed", len(rows) - 2, 1)
    assert await server.database.ids() == {rows[0].id, rows[1].id}


@on(*BY_FAKE)
async def test_a_repair_whose_answer_is_lost_leaves_no_placeholder(server: Server) -> None:
    """The server has made two of it; were one of them left, it would take a slot of the others."""
    rows = (await keys(server, "report", versions=4))["report"]
    await server.database.delete_version(rows[0].id)
    posts: list[str] = []

    async def lose(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        response = await send(transport, request)
        if request.method == "POST" and request.url.path.endswith("/artifacts/") and b'"report"' in request.content:
            posts.append(request.url.path)
            if len(posts) == 1:
                await response.aread()
                raise httpx.ReadError("lost", request=request)
        return response

    policy = RetentionPolicy(name="one", keep_last=1)
    with transport(lose):
        report = await server.cleanup([policy], mode="delete")
    assert (report.outcome, report.repaired, len(posts)) == ("completed", ["report"], 2)
    assert await server.database.ids() == {row.id for row in rows[1:]}
    assert not await server.database.dangling()
    await server.cleanup([policy], mode="delete")
    assert await server.database.ids() == {rows[1].id}


@on(FAKE)  # fractions of a second, in which a real server may answer late
@pytest.mark.usefixtures("impatient")
async def test_what_waits_behind_a_deferred_deletion_is_checked_again_too(server: Server) -> None:
    """Of the same key: nothing more of it is sent on the old check."""
    rows = (await keys(server, "report", versions=8))["report"]

    async def hold_the_next(_version_id: str) -> None:
        await server.database.update_metadata(rows[6].id, {"retention-hold": "true"})

    with transport(putting_off(rows[7:], hold_the_next)):
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    assert (report.outcome, report.deleted, report.spared) == ("completed", 6, 1)
    assert await server.database.ids() == {rows[0].id, rows[6].id}


@on(FAKE, thorough(SQLITE_API))  # one on PostgreSQL is sent both checks at once, as it may be
async def test_the_check_right_before_a_successor_goes_is_not_held_up_by_another_key(server: Server) -> None:
    """Its deletion follows at once, whoever else waits: a person's deletion of the latest in the meantime is seen."""
    rows = await keys(server, "a", "b", versions=2)
    successors = {str(rows[name][1].id): name for name in rows}
    deleted: list[str] = []

    async def interfere(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        name = successors.get(request.url.path.rpartition("/")[2])
        if request.method == "DELETE" and name and not deleted:
            # Whichever comes first is deferred; meanwhile, a person deletes the latest of the other one.
            (other,) = set(rows) - {name}
            deleted.append(other)
            async with get_client() as person:
                await person.delete_artifact(rows[other][0].id)
            return busy(0.5, request)
        return await send(transport, request)

    with transport(interfere):
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    (other,) = deleted
    assert (report.outcome, report.deleted, report.spared) == ("completed", 1, 1)
    assert await server.database.ids() == {rows[other][1].id} | {rows[name][0].id for name in rows if name != other}
    assert not await server.database.dangling()


@on(FAKE)  # fractions of a second, in which a real server may answer late
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("key", ["report", None])
async def test_deletions_that_have_to_wait_now_and_then_end_no_long_key(server: Server, key: str | None) -> None:
    """Only if nothing goes in between, it is given up."""
    rows = await server.database.insert(series(key, range(1, 152)))
    policies = [RetentionPolicy(name="one", keep_last=1), RetentionPolicy(name="old", keep_within_days=1.5, unkeyed=True)]
    with transport(putting_off(rows[15::15])):
        report = await server.cleanup(policies, mode="delete")
    assert (report.outcome, report.deleted, report.failed) == ("completed", 150, 0)
    assert await server.database.ids() == {rows[0].id}


@on(FAKE)  # fractions of a second, in which a real server may answer late
@pytest.mark.parametrize("kind", ["keys of one version", "a long key", "without a key"])
async def test_nothing_is_sent_on_a_check_that_is_too_old(server: Server, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold that is set after the check counts from then on, however long deletions have to wait for each other."""
    monkeypatch.setattr(checks, "MAX_CHECK_AGE_SECONDS", 0.3)
    rows = {
        "keys of one version": [row for number in range(40) for row in series(f"key-{number}", [1, 2, 3])],
        "a long key": series("report", range(1, 43)),
        "without a key": series(None, range(8, 48)),
    }[kind]
    await server.database.insert(rows)
    sent: list[float] = []

    async def slowly(transport: httpx.AsyncHTTPTransport, request: httpx.Request, send: Send) -> httpx.Response:
        if request.method == "DELETE":
            if not sent:
                for row in rows:
                    await server.database.update_metadata(row.id, {"retention-hold": "true"})
            sent.append(time.monotonic())
            await asyncio.sleep(0.05)
        return await send(transport, request)

    policies = [KEEP_2, RetentionPolicy(name="loose", unkeyed=True, keep_within_days=7)]
    with transport(slowly):
        report = await server.cleanup(policies, mode="delete")
    assert report.outcome == "completed"
    assert sent[-1] - sent[0] <= 0.3
    assert 1 <= report.deleted <= len(sent) < report.planned


@on(FAKE)  # as above
@pytest.mark.parametrize(("per_minute", "factor"), [(1, 1000), (30, 250)])
async def test_a_low_rate_limit_makes_progress(
    server: Server, per_minute: int, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of keys that share a check, of one with many versions, and of what has no key; here, a minute takes 0.06 s or 0.24 s."""
    monkeypatch.setattr(connection, "_limiter", lambda rate: AsyncLimiter(1, 60 / factor / rate))
    monkeypatch.setattr(run.Run, "seconds_per_request", 60 / factor / per_minute)
    monkeypatch.setattr(run, "SLOW_SECONDS_PER_REQUEST", run.SLOW_SECONDS_PER_REQUEST / factor)
    monkeypatch.setattr(prune, "MIN_STALL_SECONDS", prune.MIN_STALL_SECONDS / factor)
    monkeypatch.setattr(checks, "MAX_CHECK_AGE_SECONDS", checks.MAX_CHECK_AGE_SECONDS / factor)
    one_each = [row for number in range(3) for row in series(f"key-{number}", [1, 2, 3])]
    await server.database.insert([*one_each, *series("report", range(1, 8)), *series(None, [1, 8, 9])])
    policies = [KEEP_2, RetentionPolicy(name="loose", unkeyed=True, keep_within_days=7)]
    report = await server.cleanup(policies, mode="delete", max_requests_per_minute=per_minute)
    assert (report.outcome, report.deleted) == ("completed", 3 + 5 + 2)
