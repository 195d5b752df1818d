"""A proxy before the server, which gives up on it after a while, or takes no large requests."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from database import Row, days, series
from fake import FakeServer
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, temporary_settings
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.tasks.report import CleanupFailed
from servers import BY_FAKE, Server, on

pytestmark = on(*BY_FAKE)

KEEP_2 = RetentionPolicy(name="keep two", keep_last=2)
AnyServer = Server | FakeServer
Send = Callable[[httpx.AsyncHTTPTransport, httpx.Request], Awaitable[httpx.Response]]


@contextmanager
def proxy(monkeypatch: pytest.MonkeyPatch, act: Callable[[httpx.Request], Awaitable[int]]) -> Iterator[list[httpx.Request]]:
    """Let a proxy answer some requests itself, with the status that `act` returns unless that is 0, and note all requests."""
    send = httpx.AsyncHTTPTransport.handle_async_request
    seen: list[httpx.Request] = []

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        await request.aread()
        seen.append(request)
        status = await act(request)
        if not status:
            return await send(transport, request)
        return httpx.Response(status, headers={"Retry-After": "1.6"} if status == 429 else {}, request=request)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
        yield seen


def rows_asked_for(request: httpx.Request) -> int:
    """The size of the page that a request asks for; 0 if it asks for none."""
    return int(json.loads(request.content).get("limit") or 0) if request.url.path.endswith("/filter") else 0


# --- 504


@pytest.mark.parametrize("how", ["504", "timeout"])
async def test_a_listing_that_takes_too_long_is_asked_for_in_smaller_pages(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """At once, and not in pages of the same size six times; later pages do not grow beyond that."""
    rows = await server.database.insert(series("report", range(60)))

    async def act(request: httpx.Request) -> int:
        if rows_asked_for(request) <= 12:
            return 0
        if how == "504":
            return 504
        await asyncio.sleep(0.5)
        raise httpx.ReadTimeout("too slow", request=request)

    with server.active(), temporary_settings(updates={PREFECT_API_REQUEST_TIMEOUT: 0.5}), proxy(monkeypatch, act) as seen:
        async with connect() as opened:
            history = await ApiStore(opened).history("report")
    assert set(history.versions.ids) == {row.id for row in rows}
    assert [size for request in seen if (size := rows_asked_for(request))] == [25, *[12] * (len(rows) // 12 + 1)]


async def test_a_pause_that_a_busy_server_asks_for_is_no_timeout(server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is longer than one: the page was answered, and is asked for again as it was."""
    await server.database.insert(series("report", range(30)))
    refused: list[httpx.Request] = []

    async def act(request: httpx.Request) -> int:
        if refused or not rows_asked_for(request):
            return 0
        refused.append(request)
        return 429

    with server.active(), temporary_settings(updates={PREFECT_API_REQUEST_TIMEOUT: 1.5}), proxy(monkeypatch, act) as seen:
        async with connect() as opened:
            assert len((await ApiStore(opened).history("report")).versions) == 30
    assert [size for request in seen if (size := rows_asked_for(request))][:2] == [25, 25]


async def test_pages_grow_again_once_the_server_is_as_fast_as_before(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubled after ten of them."""
    await server.database.insert(series("report", range(300)))

    async def act(request: httpx.Request) -> int:
        return 504 if rows_asked_for(request) == 25 else 0

    with server.active(), proxy(monkeypatch, act) as seen:
        async with connect() as opened:
            assert len((await ApiStore(opened).history("report")).versions) == 300
    sizes = [size for request in seen if (size := rows_asked_for(request))]
    assert sizes == [25, *[12] * 10, *[24] * 8]


async def test_a_listing_of_many_keys_that_takes_too_long_is_divided_by_keys(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because it is sorted as a whole, a smaller page would take as long."""
    rows = [row for number in range(40) for row in series(f"key-{number}", [1, 2, 3])]
    await server.database.insert(rows)

    async def act(request: httpx.Request) -> int:
        is_listing = request.url.path.endswith("/artifacts/filter")
        keys = json.loads(request.content)["artifacts"].get("key", {}).get("any_", []) if is_listing else []
        return 504 if len(keys) > 5 else 0

    with proxy(monkeypatch, act):
        report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.outcome, report.deleted) == ("completed", 40)


async def test_keys_are_listed_whole_however_they_fill_the_pages(server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order asked for: keys that fill a page exactly, one that fills several, one without versions, many small ones."""
    sizes = [12, 13, 50, 50, 0, 230, *[1] * 30, 25, 24, 26, 100, 100]
    rows = {f"key-{number:02}": series(f"key-{number:02}", range(size)) for number, size in enumerate(sizes)}
    await server.database.insert([row for some in rows.values() for row in some])

    async def act(_request: httpx.Request) -> int:
        return 0

    with server.active(), proxy(monkeypatch, act) as seen:
        async with connect() as opened:
            found = [history async for part in ApiStore(opened).histories([*rows][::-1]) for history in part]
    assert [history.key for history in found] == [*rows][::-1]
    assert all(set(history.versions.ids) == {row.id for row in rows[history.key]} for history in found)
    assert all(history.complete for history in found)
    assert len([request for request in seen if rows_asked_for(request)]) < (30 if server.limit == 200 else 100)


# --- 413


async def test_requests_are_bounded_by_their_bytes(server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the keys are: half of the 256 kB that some proxies take."""
    rows = [Row(f"{number}-{'x' * 900}", days(1)) for number in range(600)]
    await server.database.insert(rows)

    async def act(_request: httpx.Request) -> int:
        return 0

    with server.active(), proxy(monkeypatch, act) as seen:
        async with connect() as opened:
            store = ApiStore(opened)
            keys = [row.key for row in rows if row.key]
            assert len(await store.collections(keys)) == len(rows)
            assert sum([len(each.versions) async for page in store.histories(keys) for each in page]) == len(rows)
    assert max(len(request.content) for request in seen) < 135_000


async def test_a_request_that_is_too_large_for_a_proxy_is_sent_in_halves(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts, listings, and the states of runs; the run does what it does without the proxy."""
    rows = [row for number in range(120) for row in series(f"{number:03}-{'x' * 60}", [1, 2, 3])]
    await server.database.insert(rows)

    async def act(request: httpx.Request) -> int:
        return 413 if len(request.content) > 2_000 and b"artifact-retention" not in request.content else 0

    with proxy(monkeypatch, act) as seen:
        report = await server.cleanup([KEEP_2], mode="delete")
    assert [request for request in seen if len(request.content) > 2_000]
    assert (report.outcome, report.deleted, report.warnings) == ("completed", 120, [])
    assert await server.database.ids() == {row.id for number, row in enumerate(rows) if number % 3 < 2}


@pytest.mark.parametrize("limit", [5_000, 2_500])
async def test_a_report_and_a_history_that_are_too_large_for_a_proxy_are_cut(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """They are there, say that they are cut, and begin with what counts; the history has its newest rows."""
    await server.database.insert([row for number in range(30) for row in series(f"key-{number:02}", [1, 2, 3, 4])])
    numbers = dict.fromkeys(
        ("keys", "versions before", "stale", "deleted", "versions after", "bytes before", "bytes after"), 1
    )
    texts = {"when (UTC)": "2026-01-31 04:00", "mode": "delete", "scope": "all keys", "outcome": "completed"}
    runs = [{**texts, **numbers, "seconds": 1.0, "run": f"run {number}"} for number in range(50)]
    await server.database.insert([Row("artifact-retention-history", days(1), data=json.dumps(runs), type="table")])

    async def act(request: httpx.Request) -> int:
        return 413 if request.url.path.endswith("/artifacts/") and len(request.content) > limit else 0

    with proxy(monkeypatch, act) as seen:
        report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.outcome, report.deleted, report.errors) == ("completed", 60, [])
    assert [request for request in seen if len(request.content) > limit]
    what = "has no charts" if limit == 5_000 else "was cut"
    assert f"the report {what}: a proxy or the server takes no larger artifact (413)" in report.warnings
    text, *_others = await server.database.versions("artifact-retention-report")
    written = str(text["data"])
    assert "Deleted 60 versions" in written
    assert ("The rest was cut" in written) == (what == "was cut")
    table, *_others = await server.database.versions("artifact-retention-history")
    rows = json.loads(str(table["data"]))
    assert (rows[0]["mode"], rows[0]["deleted"]) == ("delete", 60)
    assert [warning for warning in report.warnings if warning.startswith(f"the history was cut to its last {len(rows)} runs")]
    assert [row["run"] for row in rows[1:]] == [row["run"] for row in runs[: len(rows) - 1]]


async def test_a_report_without_its_charts_is_not_said_to_be_cut(server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is missing in it."""
    await server.database.insert([row for number in range(3) for row in series(f"key-{number}", [1, 2, 3, 4])])

    async def act(request: httpx.Request) -> int:
        return 413 if request.url.path.endswith("/artifacts/") and b"data:image" in request.content else 0

    with proxy(monkeypatch, act):
        report = await server.cleanup([KEEP_2], mode="delete")
    assert report.warnings == ["the report has no charts: a proxy or the server takes no larger artifact (413)"]
    text, *_others = await server.database.versions("artifact-retention-report")
    assert "the report has no charts" in str(text["data"])
    assert "was cut" not in str(text["data"])


async def test_a_proxy_that_takes_not_even_one_key_is_told(server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fails, and asks for no smaller part of one."""
    await server.database.insert(series("report", [1, 2, 3]))

    async def act(request: httpx.Request) -> int:
        return 413 if request.url.path.endswith("/artifacts/count") else 0

    with proxy(monkeypatch, act), pytest.raises(CleanupFailed, match="413"):
        await server.cleanup([KEEP_2], mode="delete")
