"""A cleanup is shut down by SIGTERM or Ctrl-C: it stops at once, reports that, and blocks no other run."""

import asyncio
import json
import random
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from chance import SEED
from crashes import Death, Estate, Forge, end
from prefect_artifact_retention.flows.cleanup import FINAL_REPORT_SECONDS
from servers import BY_API, Server, on

pytestmark = on(*BY_API)

SLOWLY = 600
"""Requests a minute: a run takes ten seconds, enough for something to happen meanwhile."""

STALL_SECONDS = 10
"""More than a run takes to shut down, unless the server delays its final report, too.

A Prefect server on SQLite holds all its writes up for a minute, about once in a thousand while two write at once.
"""

MAX_STALLS = 3


async def latest(server: Server, key: str) -> Any:  # noqa: ANN401 - a row
    """The latest version of one of the package's own keys: its data, description and metadata."""
    rows = await server.database.run(
        f"SELECT data, description, metadata_ FROM artifact_collection WHERE key = 'artifact-retention-{key}'"
    )
    return rows[0] if rows else None


async def until(server: Server, words: str) -> None:
    """Wait until the progress says so: longer than a server on SQLite may hold up its writes."""
    for _ in range(900):
        if (row := await latest(server, "progress")) and words in row[1]:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"progress never said {words!r}")


async def check_final_report(server: Server, estate: Estate) -> set[UUID]:
    """The progress is honest, the report is there, nothing kept is gone."""
    data, description, metadata = await latest(server, "progress")
    assert description.startswith("Stopped. Deleted"), description
    assert "unfinished" in description
    assert float(data) < 100
    assert "deleting" not in json.dumps(metadata)
    report = await latest(server, "report")
    assert report
    assert "shut down before it was finished" in str(report[0])
    left, _latest = await estate.left(server.database)
    assert estate.kept <= left
    assert not await server.database.dangling()
    return left


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)])
async def test_a_stopped_run_says_how_far_it_came(server: Server, forge: Forge, how: signal.Signals) -> None:
    """Within seconds; the next run, at once, is not skipped and does the rest."""
    estate = Estate.build()
    for _attempt in range(1 + server.database.is_sqlite):
        await estate.restore(server.database)
        process = await asyncio.to_thread(forge.start, server, per_minute=SLOWLY)
        await until(server, "Step 2/3: deleted")
        told = time.monotonic()
        code = await asyncio.to_thread(end, process, how)
        seconds = time.monotonic() - told
        if seconds < STALL_SECONDS:
            break
    assert seconds < STALL_SECONDS
    assert code in (130, -signal.SIGTERM)
    left = await check_final_report(server, estate)
    assert left > estate.kept
    assert await asyncio.to_thread(lambda: end(forge.start(server))) == 0
    assert (await estate.left(server.database))[0] == estate.kept


async def test_a_run_stopped_while_it_plans_has_deleted_nothing(server: Server, forge: Forge) -> None:
    """And says that, too."""
    estate = Estate.build()
    for _attempt in range(1 + server.database.is_sqlite):
        await estate.restore(server.database)
        process = await asyncio.to_thread(forge.start, server, per_minute=SLOWLY // 5)
        await until(server, "Step 1/3")
        told = time.monotonic()
        await asyncio.to_thread(end, process, signal.SIGTERM)
        # The server may have held its writes up for longer than the run waits for its final report.
        if time.monotonic() - told < FINAL_REPORT_SECONDS:
            break
    left = await check_final_report(server, estate)
    assert left == {row.id for row in estate.rows}


@pytest.mark.thorough
async def test_a_run_stopped_at_an_answer_that_it_never_reads_says_so(server: Server, forge: Forge) -> None:
    """Even at that to its own progress artifact, which says in the end that the run was stopped."""
    estate = Estate.build()
    stopped = []
    for number in range(13, 22):
        death = Death(number, "answered", how=signal.SIGTERM)
        for _attempt in range(1 + server.database.is_sqlite):
            await estate.restore(server.database)
            began = time.monotonic()
            process = await asyncio.to_thread(lambda: forge.start(server, death=death))  # noqa: B023
            code = await asyncio.to_thread(end, process)
            progress = await latest(server, "progress")
            # The server may have held its writes up for longer than the run waits for its final report.
            if time.monotonic() - began < FINAL_REPORT_SECONDS:
                break
        if code:
            stopped.append(progress)
        assert not progress or not progress[1].startswith("Step"), (number, progress)
        assert estate.kept <= (await estate.left(server.database))[0]
    assert None in stopped, "no run was stopped before it had a progress artifact"
    assert any(progress and "unfinished" in progress[1] for progress in stopped)


@pytest.mark.long
async def test_wherever_sigterm_hits_the_run_stops(server: Server, forge: Forge, tell: Callable[[str], None]) -> None:
    """In whatever code is at work just then; it says so in the end, unless there was nothing left to do."""
    chance = random.Random(SEED)
    estate = Estate.build()
    times: list[float] = []
    unfinished = 0
    for _ in range(15):
        await estate.restore(server.database)
        process = await asyncio.to_thread(forge.start, server, per_minute=3 * SLOWLY)
        await until(server, "Step")
        await asyncio.sleep(chance.uniform(0, 3))
        told = time.monotonic()
        await asyncio.to_thread(end, process, signal.SIGTERM)
        times.append(time.monotonic() - told)
        left, _latest = await estate.left(server.database)
        assert estate.kept <= left
        assert not await server.database.dangling()
        unfinished += left > estate.kept
        if times[-1] < STALL_SECONDS:
            data, description, metadata = await latest(server, "progress")
            assert description.startswith("Stopped. Deleted") or left == estate.kept, description
            assert "deleting" not in json.dumps(metadata)
            assert float(data) < 100 or left == estate.kept
    database = "SQLite" if server.database.is_sqlite else "PostgreSQL"
    stalls = sum(seconds >= STALL_SECONDS for seconds in times)
    tell(
        f"SIGTERM: 15 runs on {database}, seed {SEED}, {unfinished} with work left; they took {max(times):.1f} s to end at "
        f"most, the median {statistics.median(times):.1f} s; the server held its writes up {stalls} times"
    )
    assert stalls <= MAX_STALLS * server.database.is_sqlite
