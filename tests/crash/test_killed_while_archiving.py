"""A cleanup with an archive is killed between any two steps: what is gone is in the archive, and a rerun does the rest."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from crashes import MOMENTS, Death, Estate, Forge, end
from database import series
from prefect_artifact_retention.stores.archive.archive import open_archive
from servers import BY_API, POSTGRESQL_DATABASE, SQLITE_DATABASE, Server, on

FILES = [
    Death(number, moment, "FILE")
    # The check at the start; the first part and its manifest; what comes after; the manifest of the run.
    for number in (1, 2, 3, 4, 5)
    for moment in ("before", "answered")
]


IN_FLIGHT = 4
"""Deletions that may be under way at the same time."""


def archived(folder: Path) -> set[UUID]:
    """What can be restored, whatever became of it."""
    return {version.id for some in open_archive(str(folder)).versions() for version in some}


async def kill_each(server: Server, forge: Forge, folder: Path, deaths: Sequence[Death], **options: int) -> int:
    """Let a cleanup die at each of these moments, and run another one; return how many were killed."""
    estate = Estate.build()
    killed = 0
    for death in deaths:
        archive = folder / str(death).replace(" ", "-")
        await estate.restore(server.database)
        process = await asyncio.to_thread(lambda: forge.start(server, death=death, archive=archive, **options))  # noqa: B023
        killed += await asyncio.to_thread(end, process) == -signal.SIGKILL
        # In which the server answers what the dead process sent last.
        await asyncio.sleep(0.5)
        left, _latest = await estate.left(server.database)
        gone = {row.id for row in estate.rows} - left
        assert estate.kept <= left, f"gone after death {death}"
        assert not gone or gone <= archived(archive), f"not in the archive after death {death}"
        await server.database.age_progress()
        process = await asyncio.to_thread(lambda: forge.start(server, archive=archive))  # noqa: B023
        assert await asyncio.to_thread(end, process) == 0, forge.log.read_text()
        left, _latest = await estate.left(server.database)
        assert left == estate.kept, f"after death {death}"
        assert archived(archive) == {row.id for row in estate.rows} - estate.kept, f"after death {death}"
    return killed


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE, SQLITE_DATABASE)
@pytest.mark.parametrize(
    "deaths",
    [[FILES[5], Death(1, "answered", "SQL")], pytest.param(FILES, marks=pytest.mark.long)],
    ids=["some", "all"],
)
async def test_killed_between_archive_and_transaction(
    server: Server, forge: Forge, tmp_path: Path, deaths: list[Death]
) -> None:
    """A version is in the database or in the archive or in both."""
    assert await kill_each(server, forge, tmp_path, deaths) == len(deaths)


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE, SQLITE_DATABASE)
@pytest.mark.parametrize(
    "deaths",
    [
        [Death(4, "answered", "FILE")],
        pytest.param(
            [Death(number, moment, "FILE") for number in (3, 4, 5, 6, 7) for moment in MOMENTS[::2]], marks=pytest.mark.long
        ),
    ],
    ids=["some", "all"],
)
async def test_killed_with_two_parts_under_way(server: Server, forge: Forge, tmp_path: Path, deaths: list[Death]) -> None:
    """While one is published, the other is being written, has no manifest yet, or is being deleted on."""
    assert await kill_each(server, forge, tmp_path, deaths, batch=3) == len(deaths)


@pytest.mark.thorough
@on(*BY_API)
@pytest.mark.parametrize(
    "deaths",
    [[FILES[4], Death(5, "sent", "DELETE")], pytest.param(FILES, marks=pytest.mark.long)],
    ids=["some", "all"],
)
async def test_killed_between_archive_and_request(server: Server, forge: Forge, tmp_path: Path, deaths: list[Death]) -> None:
    """The same through the API."""
    assert await kill_each(server, forge, tmp_path, deaths) == len(deaths)


@pytest.mark.thorough
@on(*BY_API)
async def test_a_run_that_is_stopped_tells_what_it_has_archived_in_vain(server: Server, forge: Forge, tmp_path: Path) -> None:
    """The archive then has as deleted what was deleted."""
    rows = await server.database.insert(series("solo-report", range(1, 61)))
    process = await asyncio.to_thread(lambda: forge.start(server, per_minute=600, archive=tmp_path / "archive"))
    for _poll in range(1000):
        if len(await server.database.ids()) < len(rows) - 3:
            break
        await asyncio.sleep(0.05)
    assert await asyncio.to_thread(end, process, signal.SIGTERM) != 0
    left = await server.database.ids()
    (run,) = open_archive(str(tmp_path / "archive")).runs()
    assert run.outcome == "unfinished"
    spared = {*run.spared, rows[0].id}
    # A deletion whose answer never came may have been done or not: it is neither told as spared nor missing in the archive.
    assert spared <= left
    assert len(left - spared) <= IN_FLIGHT
    assert archived(tmp_path / "archive") == {row.id for row in rows} - spared
