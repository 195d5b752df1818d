"""The `Date` of an answer may be a proxy's: what the server dates itself decides whether the run may rely on it."""

from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from uuid import UUID

import httpx
import pytest
from database import Row, days, series
from fake import FakeServer
from prefect import get_client
from prefect.states import Running
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.report import CleanupFailed
from servers import BY_FAKE, POSTGRESQL_DATABASE, Server, on

A_MONTH = RetentionPolicy(name="a month", keep_within_days=30)
OFFSETS = [
    pytest.param(timedelta(days=400), id="400 days ahead"),
    pytest.param(timedelta(minutes=7), id="7 minutes ahead"),
    pytest.param(-timedelta(days=2), id="2 days behind"),
]


def date_answers(monkeypatch: pytest.MonkeyPatch, offset: timedelta) -> None:
    """Let a proxy with a clock of its own date all answers."""
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        response.headers["Date"] = format_datetime(parsedate_to_datetime(response.headers["Date"]) + offset, usegmt=True)
        return response

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)


async def start_run(server: Server | FakeServer) -> UUID:
    """A run of the flow that is at work."""
    with server.active():
        async with get_client() as client:
            return (await client.create_flow_run(artifact_cleanup, parameters={"mode": "delete"}, state=Running())).id


@on(*BY_FAKE, POSTGRESQL_DATABASE)
@pytest.mark.parametrize("offset", OFFSETS)
async def test_a_wrong_date_refuses_a_delete_run(
    server: Server | FakeServer, monkeypatch: pytest.MonkeyPatch, offset: timedelta
) -> None:
    """Nothing goes, and the refusal names both clocks; without the proxy the same run deletes what is old."""
    rows = await server.database.insert(series("report", [1, 2, 29, 31]))
    with monkeypatch.context() as patch:
        date_answers(patch, offset)
        with pytest.raises(CleanupFailed, match="Date header may be that of a proxy") as failed:
            await server.cleanup([A_MONTH], mode="delete")
        assert (failed.value.report.outcome, failed.value.report.deleted) == ("refused", 0)
        assert await server.database.ids() == {row.id for row in rows}
    report = await server.cleanup([A_MONTH], mode="delete")
    assert (report.outcome, report.deleted) == ("completed", 1)


@on(*BY_FAKE)
async def test_a_date_that_is_a_little_wrong_is_let_pass(server: Server | FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks differ by seconds everywhere."""
    await server.database.insert(series("report", [1, 2, 31]))
    date_answers(monkeypatch, timedelta(minutes=3))
    report = await server.cleanup([A_MONTH], mode="delete")
    assert (report.outcome, report.deleted) == ("completed", 1)


@on(*BY_FAKE)
async def test_a_preview_under_a_wrong_date_says_that_a_delete_run_would_be_refused(
    server: Server | FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows what it would delete all the same."""
    await server.database.insert(series("report", [1, 2, 29]))
    date_answers(monkeypatch, timedelta(days=400))
    report = await server.cleanup([A_MONTH])
    assert (report.outcome, report.planned) == ("completed", 2)
    assert any("a delete run would be refused" in warning for warning in report.warnings)


@on(*BY_FAKE)
async def test_a_delete_run_that_cannot_check_its_clock_deletes_nothing(
    server: Server | FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server does not take the artifact whose date would show it; a preview goes on without."""
    rows = await server.database.insert(series("report", [1, 31]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and b'"artifact-retention-progress"' in request.content and b'"data"' in request.content:
            return httpx.Response(500, request=request)
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    with pytest.raises(CleanupFailed, match="progress artifact could not be written"):
        await server.cleanup([A_MONTH], mode="delete")
    assert await server.database.ids() == {row.id for row in rows}
    assert (await server.cleanup([A_MONTH])).outcome == "completed"


@on(*BY_FAKE)
@pytest.mark.parametrize("minutes", [2, 11])
async def test_whether_a_run_is_alive_is_judged_by_the_clock_that_dates_its_updates(
    server: Server | FakeServer, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """A run killed 11 minutes ago holds nobody up, also where the `Date` is four minutes behind; one of 2 minutes ago does."""
    await server.database.insert(series("report", [1, 31]))
    killed, own = await start_run(server), await start_run(server)
    metadata = {"artifact-retention-phase": "deleting"}
    age = timedelta(minutes=minutes)
    progress = Row("artifact-retention-progress", age, data=40.0, type="progress", metadata=metadata, flow_run_id=killed)
    await server.database.insert([progress])
    date_answers(monkeypatch, timedelta(minutes=-4))
    report = await server.cleanup([A_MONTH], mode="delete", own_runs={own})
    assert report.outcome == ("skipped" if minutes == 2 else "completed")


@on(*BY_FAKE)
async def test_a_date_behind_does_not_let_a_killed_run_hold_up_others(
    server: Server | FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is refused, which somebody hears of, and not skipped night after night."""
    await server.database.insert(series("report", [1, 31]))
    killed, own = await start_run(server), await start_run(server)
    metadata = {"artifact-retention-phase": "deleting"}
    progress = Row("artifact-retention-progress", days(1), data=40.0, type="progress", metadata=metadata, flow_run_id=killed)
    await server.database.insert([progress])
    date_answers(monkeypatch, timedelta(days=-2))
    with pytest.raises(CleanupFailed, match="one of the two clocks is wrong"):
        await server.cleanup([A_MONTH], mode="delete", own_runs={own})
