"""A server that is out of reach, asks for absurd pauses, hides rows or cannot show some: bounded, told, nothing lost."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from database import days, series
from fake import FakeServer
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
from scenario import fill, problems, run_flow, run_steps, scenario, shrink, unfinished_run
from servers import SQLITE_API, Server, on

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
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, headers: Callable[[], dict[str, str]], least: float, most: float
) -> None:
    """Two minutes at most, and a fifth that Prefect's client adds."""
    with fake.active(), line(monkeypatch, Fault("429", answers(429, headers), lasting=True), at=1) as broken:
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
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """After three requests with all their attempts, however many keys are left: then nothing is sent any more."""
    with fake.active(), line(monkeypatch, fault, at=2) as broken:
        async with connect() as connection:
            await connection.now()
            for _ in range(MAX_LOST_REQUESTS):
                with pytest.raises(StoreError, match=r"cannot reach|503"):
                    await connection.now()
            for _ in range(20):
                with pytest.raises(StoreError, match="out of reach"):
                    await connection.now()
    assert len(broken.requests) == 2 + MAX_LOST_REQUESTS * ATTEMPTS


async def test_requests_lost_here_and_there_end_no_run(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only three in a row are an outage."""
    for at in range(2, 8):
        with fake.active(), line(monkeypatch, Fault("503", answers(503), lasting=True), at) as broken:
            async with connect() as connection:
                lost = 0
                for _ in range(8):
                    try:
                        await connection.now()
                    except StoreError:
                        lost += 1
        assert (lost, len(broken.requests)) == (1, 1 + 8 + ATTEMPTS - 1)


async def test_requests_that_are_lost_together_count_as_one(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four under way, one moment of bad luck is no outage; three such moments in a row are."""
    monkeypatch.setattr(concurrency, "LOWEST_LEVEL", 4)
    with fake.active(), line(monkeypatch, Fault("503", answers(503), outage=True), at=2) as broken:
        async with connect() as connection:
            await connection.now()
            for _ in range(MAX_LOST_REQUESTS):
                lost = await asyncio.gather(*(connection.now() for _ in range(4)), return_exceptions=True)
                assert ["503" in str(error) for error in lost] == [True] * 4
            with pytest.raises(StoreError, match="out of reach"):
                await connection.now()
    assert len(broken.requests) == 2 + MAX_LOST_REQUESTS * 4 * ATTEMPTS


async def test_a_run_that_listings_hide_is_not_taken_for_one_that_has_ended(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deletes many flow runs while we ask for theirs, from the plan to the last check: its version stays."""

    def of_flow_runs(request: httpx.Request) -> bool:
        return is_listing(request) and "/flow_runs/" in request.url.path

    made = scenario(await unfinished_run(fake))
    await fill(fake.database, made)
    with line(monkeypatch) as undisturbed:
        await run_steps(fake)
    first = next(at for at, request in enumerate(undisturbed.requests) if of_flow_runs(request))
    await fill(fake.database, made)
    with line(monkeypatch, Fault("hidden", shifts(1), outage=True, of=of_flow_runs), first) as broken:
        report = await run_steps(fake)
    assert broken.victim
    assert report.outcome == "failed"
    assert "does not list" in report.errors[0]
    assert await problems(fake.database, made, report) == []


# --- rows that the server has and cannot show: it answers 500 to every page that they are on


@pytest.mark.parametrize("broken", [1, 30], ids=lambda number: f"{number} broken")
async def test_versions_that_the_server_cannot_show_fail_their_key_and_no_other(fake: FakeServer, broken: int) -> None:
    """The key is left alone and reported as failed, by every run; once it is repaired, a run does the rest."""
    made = scenario(await unfinished_run(fake), deep=60)
    await fill(fake.database, made)
    report_rows = {row.id for row in made.rows if row.key == "report"}
    for row in made.rows[5 : 5 + broken]:
        await fake.database.break_data(row.id)
    for deleted in (len(made.stale - report_rows), 0):
        report = await run_steps(fake)
        assert (report.outcome, report.deleted, report.failed, report.errors) == ("failed", deleted, 0, [])
        (failed,) = report.failures()
        assert failed.key == "report"
        assert "500" in failed.error
        assert await fake.database.ids() == made.kept | report_rows
    await fake.database.repair_data()
    assert (await run_steps(fake)).outcome == "completed"
    assert await fake.database.ids() == made.kept


async def test_a_latest_version_that_the_server_cannot_show_fails_its_key_and_no_other(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its collection cannot be listed either, so that its name is known only by its neighbour."""
    shrink(monkeypatch)
    made = scenario(await unfinished_run(fake))
    await fill(fake.database, made)
    await fake.database.break_data(made.rows[1].id)
    report = await run_steps(fake)
    assert report.outcome == "failed"
    assert report.errors == ["the key after other: nothing deleted, because the server fails to show it (500)"]
    assert await fake.database.ids() == made.kept | {row.id for row in made.rows if row.key == "report"}
    await fake.database.repair_data()
    assert (await run_steps(fake)).outcome == "completed"
    assert await fake.database.ids() == made.kept


async def test_an_artifact_without_a_key_that_the_server_cannot_show_is_left_alone(fake: FakeServer) -> None:
    """Its neighbours are pruned all the same."""
    made = scenario(await unfinished_run(fake))
    await fill(fake.database, made)
    (row,) = [row for row in made.rows if row.key is None and row.age == days(40)]
    await fake.database.break_data(row.id)
    report = await run_steps(fake)
    (failed,) = report.failures()
    assert (report.outcome, failed.key, failed.deleted) == ("failed", None, 1)
    assert failed.error == "1 artifact left alone, because the server fails to show them (500)"
    assert await fake.database.ids() == made.kept | {row.id}


@on(SQLITE_API)
async def test_a_whole_run_reports_a_key_that_the_server_cannot_show(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is Failed, and has pruned the others."""
    made = scenario(await unfinished_run(server))
    await fill(server.database, made)
    await server.database.break_data(made.rows[4].id)
    # No pause before a retry: after each 500, the server also drops the connection, and Prefect's client waits 2 seconds.
    with line(monkeypatch):
        report = await run_flow(server)
    assert report
    assert (report.outcome, [failed.key for failed in report.failures()]) == ("failed", ["report"])
    assert await server.database.ids() == made.kept | {row.id for row in made.rows if row.key == "report"}
    (shown,) = await server.database.run("SELECT data FROM artifact WHERE key = 'artifact-retention-report'")
    assert "its versions cannot be read" in shown[0]


async def test_a_server_that_can_show_nothing_fails_the_run_at_once(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes, and it is not asked for each row."""
    await fake.database.clear()
    rows = await fake.database.insert([row for number in range(300) for row in series(f"key-{number}", [1, 2])])
    everything = Fault("500", answers(500), outage=True, of=is_listing)
    with line(monkeypatch, everything, at=3) as broken:
        report = await run_steps(fake)
    assert report.outcome == "failed"
    assert len(broken.requests) < 50
    assert await fake.database.ids() == {row.id for row in rows}


def test_every_kind_of_fault_has_a_name_of_its_own() -> None:
    """Or the figures would count two as one."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
