"""A server that is out of reach, asks for absurd pauses, hides rows or cannot show some: bounded, told, nothing lost."""

import asyncio
from collections.abc import Callable, Iterator

import httpx
import pytest
from database import Row, days, series
from injection import (
    FAULTS,
    MAINTENANCE,
    MAX_PAUSE_SECONDS,
    Fault,
    answers,
    in_an_hour,
    is_listing,
    line,
    raises,
    retry_after,
    shifts,
)
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores import concurrency
from prefect_artifact_retention.stores.connection import MAX_LOST_REQUESTS, connect
from scenario import fill, problems, run_flow, run_steps, scenario, small_and_prompt, unfinished_run
from servers import Server

ATTEMPTS = 6
"""Of each request, by Prefect's client, which pauses after the last one, too."""


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        pytest.param(retry_after("7"), 7, 8.4, id="seconds"),
        pytest.param(in_an_hour, MAX_PAUSE_SECONDS / 1.2, MAX_PAUSE_SECONDS, id="a date in an hour"),
        pytest.param(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), 0, 0, id="a date long past"),
        pytest.param(retry_after("Wed, 21 Oct 99999999999999999999 07:28:00 GMT"), 1, 1.2, id="no date"),
        pytest.param(retry_after("1000000"), MAX_PAUSE_SECONDS / 1.2, MAX_PAUSE_SECONDS, id="eleven days"),
        pytest.param(retry_after("inf"), MAX_PAUSE_SECONDS / 1.2, MAX_PAUSE_SECONDS, id="for ever"),
        pytest.param(retry_after("nan"), 0, 0, id="not a number"),
        pytest.param(retry_after("-5"), 0, 0, id="less than nothing"),
        pytest.param(retry_after("soon"), 1, 1.2, id="words"),
    ],
)
async def test_a_pause_is_as_long_as_the_server_asks_for_within_reason(
    server: Server, monkeypatch: pytest.MonkeyPatch, headers: Callable[[], dict[str, str]], least: float, most: float
) -> None:
    """Two minutes at most, and a fifth that Prefect's client adds."""
    with server.active(), line(monkeypatch, Fault("429", answers(429, headers), lasting=True), at=1) as broken:
        async with connect() as connection:
            with pytest.raises(StoreError, match="429"):
                await connection.now()
    assert len(broken.pauses) == ATTEMPTS
    assert all(least <= pause + 0.001 and pause <= most + 0.001 for pause in broken.pauses)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("connection refused", raises(httpx.ConnectError), outage=True),
        Fault("timeout", raises(httpx.ReadTimeout), outage=True),
        Fault("503", answers(503), outage=True),
        MAINTENANCE,
    ],
    ids=lambda fault: fault.name,
)
async def test_a_server_that_is_gone_for_good_ends_the_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """After three requests with all their attempts, however many keys are left: then nothing is sent any more."""
    with server.active(), line(monkeypatch, fault, at=2) as broken:
        async with connect() as connection:
            await connection.now()
            for _ in range(MAX_LOST_REQUESTS):
                with pytest.raises(StoreError, match=r"cannot reach|503"):
                    await connection.now()
            for _ in range(20):
                with pytest.raises(StoreError, match="out of reach"):
                    await connection.now()
    assert len(broken.requests) == 2 + MAX_LOST_REQUESTS * ATTEMPTS


async def test_requests_lost_here_and_there_end_no_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only three in a row are an outage."""
    for at in range(2, 8):
        with server.active(), line(monkeypatch, Fault("503", answers(503), lasting=True), at) as broken:
            async with connect() as connection:
                lost = 0
                for _ in range(8):
                    try:
                        await connection.now()
                    except StoreError:
                        lost += 1
        assert (lost, len(broken.requests)) == (1, 1 + 8 + ATTEMPTS - 1)


async def test_requests_that_are_lost_together_count_as_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four under way, one moment of bad luck is no outage; three such moments in a row are."""
    monkeypatch.setattr(concurrency, "LEVELS", (4,))
    with server.active(), line(monkeypatch, Fault("503", answers(503), outage=True), at=2) as broken:
        async with connect() as connection:
            await connection.now()
            for _ in range(MAX_LOST_REQUESTS):
                lost = await asyncio.gather(*(connection.now() for _ in range(4)), return_exceptions=True)
                assert ["503" in str(error) for error in lost] == [True] * 4
            with pytest.raises(StoreError, match="out of reach"):
                await connection.now()
    assert len(broken.requests) == 2 + MAX_LOST_REQUESTS * 4 * ATTEMPTS


async def test_a_run_that_listings_hide_is_not_taken_for_one_that_has_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deletes many flow runs while we ask for theirs, from the plan to the last look: its version stays."""

    def of_flow_runs(request: httpx.Request) -> bool:
        return is_listing(request) and "/flow_runs/" in request.url.path

    made = scenario(await unfinished_run(server))
    await fill(server.database, made)
    with line(monkeypatch) as undisturbed:
        await run_steps(server)
    first = next(at for at, request in enumerate(undisturbed.requests) if of_flow_runs(request))
    await fill(server.database, made)
    with line(monkeypatch, Fault("hidden", shifts(1), outage=True, of=of_flow_runs), first) as broken:
        report = await run_steps(server)
    assert broken.victim
    assert report.outcome == "failed"
    assert "does not list" in report.errors[0]
    assert await problems(server.database, made, report) == []


# --- rows that the server has and cannot show: it answers 500 to every page that they are on


async def break_versions(server: Server, *rows: Row) -> None:
    """Let the data of versions be no JSON, with the copy that their collection has, and make sure of what that does."""
    for row in rows:
        await server.database.run("UPDATE artifact SET data = '{' WHERE id = :id", [{"id": str(row.id)}])
        await server.database.run("UPDATE artifact_collection SET data = '{' WHERE latest_id = :id", [{"id": str(row.id)}])
    async with httpx.AsyncClient(base_url=f"{server.local.address}/api") as client:
        response = await client.post("/artifacts/filter", json={"artifacts": {"id": {"any_": [str(rows[0].id)]}}})
        assert response.status_code == 500


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pause before a retry: after each 500, the server also drops the connection, and Prefect's client waits 2 seconds."""
    with line(monkeypatch):
        yield


async def repair(server: Server) -> None:
    """Make all data JSON again."""
    await server.database.run("UPDATE artifact SET data = '\"x\"' WHERE data = '{'")
    await server.database.run("UPDATE artifact_collection SET data = '\"x\"' WHERE data = '{'")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("broken", [1, 30], ids=lambda number: f"{number} broken")
async def test_versions_that_the_server_cannot_show_fail_their_key_and_no_other(server: Server, broken: int) -> None:
    """The key is left alone and reported as failed, by every run; once it is repaired, a run does the rest."""
    made = scenario(await unfinished_run(server), deep=60)
    await fill(server.database, made)
    report_rows = {row.id for row in made.rows if row.key == "report"}
    await break_versions(server, *made.rows[5 : 5 + broken])
    for deleted in (len(made.stale - report_rows), 0):
        report = await run_steps(server)
        assert (report.outcome, report.deleted, report.failed, report.errors) == ("failed", deleted, 0, [])
        (failed,) = report.failures()
        assert failed.key == "report"
        assert "500" in failed.error
        assert await server.database.ids() == made.kept | report_rows
    await repair(server)
    assert (await run_steps(server)).outcome == "completed"
    assert await server.database.ids() == made.kept


@pytest.mark.usefixtures("hasty")
async def test_a_latest_version_that_the_server_cannot_show_fails_its_key_and_no_other(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its collection cannot be listed either, so that its name is known only by its neighbour."""
    small_and_prompt(monkeypatch)
    made = scenario(await unfinished_run(server))
    await fill(server.database, made)
    await break_versions(server, made.rows[1])
    report = await run_steps(server)
    assert report.outcome == "failed"
    assert report.errors == ["the key after other: nothing deleted, because the server fails to show it (500)"]
    assert await server.database.ids() == made.kept | {row.id for row in made.rows if row.key == "report"}
    await repair(server)
    assert (await run_steps(server)).outcome == "completed"
    assert await server.database.ids() == made.kept


@pytest.mark.usefixtures("hasty")
async def test_an_artifact_without_a_key_that_the_server_cannot_show_is_left_alone(server: Server) -> None:
    """Its neighbours are pruned all the same."""
    made = scenario(await unfinished_run(server))
    await fill(server.database, made)
    (row,) = [row for row in made.rows if row.key is None and row.age == days(40)]
    await break_versions(server, row)
    report = await run_steps(server)
    (failed,) = report.failures()
    assert (report.outcome, failed.key, failed.deleted) == ("failed", None, 1)
    assert failed.error == "1 artifact left alone, because the server fails to show them (500)"
    assert await server.database.ids() == made.kept | {row.id}


@pytest.mark.usefixtures("hasty")
async def test_a_whole_run_reports_a_key_that_the_server_cannot_show(server: Server) -> None:
    """It is Failed, and has pruned the others."""
    made = scenario(await unfinished_run(server))
    await fill(server.database, made)
    await break_versions(server, made.rows[4])
    report = await run_flow(server)
    assert report
    assert (report.outcome, [failed.key for failed in report.failures()]) == ("failed", ["report"])
    assert await server.database.ids() == made.kept | {row.id for row in made.rows if row.key == "report"}
    (shown,) = await server.database.run("SELECT data FROM artifact WHERE key = 'artifact-retention-report'")
    assert "its versions cannot be read" in shown[0]


async def test_a_server_that_can_show_nothing_fails_the_run_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes, and it is not asked for each row."""
    await server.database.clear()
    rows = await server.database.insert([row for number in range(300) for row in series(f"key-{number}", [1, 2])])
    everything = Fault("500", answers(500), outage=True, of=is_listing)
    with line(monkeypatch, everything, at=3) as broken:
        report = await run_steps(server)
    assert report.outcome == "failed"
    assert len(broken.requests) < 50
    assert await server.database.ids() == {row.id for row in rows}


def test_every_kind_of_fault_has_a_name_of_its_own() -> None:
    """Or the figures would count two as one."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
