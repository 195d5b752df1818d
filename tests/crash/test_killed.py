"""A cleanup is killed at any moment: every collection stays valid, nothing kept is gone, and a rerun does the rest."""

import asyncio
import random
import signal
import time
from collections.abc import Callable, Sequence

import pytest
from chance import SEED
from crashes import MOMENTS, Death, Estate, Forge, StillAliveError, end
from database import LOCKED_SECONDS
from servers import BY_API, POSTGRESQL_API, POSTGRESQL_DATABASE, SQLITE_API, SQLITE_DATABASE, Server, long, on, thorough

SETTLE_SECONDS = 0.2
"""In which the server answers what the dead process sent last."""


Revive = Callable[[Server], None]


SOME = pytest.mark.parametrize("some", [slice(1), long(slice(1, None))], ids=["the first", "the others"])
"""Which kills: each takes seconds."""


async def rerun(server: Server, forge: Forge, revive: Revive, expected: int = 0) -> int:
    """Run a cleanup to its end, which is to exit with this code; return how often the server had to be restarted for it."""
    try:
        code = await asyncio.to_thread(lambda: end(forge.start(server), timeout=LOCKED_SECONDS))
    except StillAliveError:
        code = -1
    if code == expected:
        return 0
    assert server.database.is_sqlite, forge.log.read_text()
    await asyncio.to_thread(revive, server)
    if not expected:
        await server.database.age_progress()
    assert await asyncio.to_thread(lambda: end(forge.start(server))) == expected, forge.log.read_text()
    return 1


async def kill_many(server: Server, forge: Forge, revive: Revive, deaths: Sequence[Death | float]) -> tuple[int, int]:
    """Let a cleanup die at each of these requests, or after so many seconds.

    Returns:
        How many were killed, and how often the server had to be restarted.
    """
    estate = Estate.build()
    await estate.restore(server.database)
    # A client that another test has killed may have left the server stuck, too.
    await rerun(server, forge, revive)
    undisturbed = await estate.left(server.database)
    assert undisturbed[0] == estate.kept
    killed = restarts = 0
    for death in deaths:
        await estate.restore(server.database)
        process = await asyncio.to_thread(forge.start, server, death=death if isinstance(death, Death) else None)
        if isinstance(death, float):
            await asyncio.sleep(death)
        try:
            code = await asyncio.to_thread(end, process, signal.SIGKILL if isinstance(death, float) else None, LOCKED_SECONDS)
            killed += code == -signal.SIGKILL
        except StillAliveError:
            # The death before has left the server stuck; its next client is killed while it waits.
            assert server.database.is_sqlite
            await asyncio.to_thread(revive, server)
            restarts, killed = restarts + 1, killed + 1
        await asyncio.sleep(SETTLE_SECONDS)
        left, _latest = await estate.left(server.database)
        assert estate.kept <= left, f"gone after death {death}"
        assert not await server.database.dangling(), f"after death {death}"
        await server.database.age_progress()
        restarts += await rerun(server, forge, revive)
        assert await estate.left(server.database) == undisturbed, f"after death {death}"
    return killed, restarts


@on(*BY_API)
@SOME
async def test_a_few_kills(server: Server, forge: Forge, revive: Revive, some: slice) -> None:
    """Before, while and after a version is deleted, and at any request of the whole run."""
    chance = random.Random(SEED)
    deaths = [
        *(Death(chance.randint(1, 40), moment, "DELETE") for moment in ("sent", "before", "answered")),
        Death(chance.randint(1, 30), chance.choice(MOMENTS)),
    ][some]
    killed, _restarts = await kill_many(server, forge, revive, deaths)
    assert killed == len(deaths)


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
@SOME
async def test_a_few_kills_through_the_database(server: Server, forge: Forge, revive: Revive, some: slice) -> None:
    """A transaction is there as a whole or not at all."""
    deaths = [Death(3, "answered", "SQL"), Death(2, "before", "SQL"), Death(1, "answered", "SQL")][some]
    killed, _restarts = await kill_many(server, forge, revive, deaths)
    assert killed == len(deaths)


@pytest.mark.long
@on(SQLITE_API, POSTGRESQL_API)
async def test_many_kills(server: Server, forge: Forge, revive: Revive, tell: Callable[[str], None]) -> None:
    """The first, second and last deletions; any request, from the first question to the report's last word; any moment."""
    chance = random.Random(SEED)
    await Estate.build().restore(server.database)
    began = time.monotonic()
    counts = await asyncio.to_thread(forge.count_requests, server)
    seconds = time.monotonic() - began
    deletions = counts["DELETE"]
    deaths: list[Death | float] = [Death(number, moment, "DELETE") for number in (1, 2, deletions) for moment in MOMENTS]
    deaths += [Death(chance.randint(3, deletions - 1), chance.choice(MOMENTS), "DELETE") for _ in range(8)]
    deaths += [Death(chance.randint(1, counts[""]), chance.choice(MOMENTS)) for _ in range(16)]
    deaths += [chance.uniform(0, seconds) for _ in range(12)]
    killed, restarts = await kill_many(server, forge, revive, deaths)
    database = "SQLite" if server.database.is_sqlite else "PostgreSQL"
    tell(
        f"crashes: {killed} of {len(deaths)} runs killed by SIGKILL on {database}, seed {SEED}; a run has {counts['']} "
        f"requests, {deletions} of them deletions; dangling 0, kept versions lost 0, reruns that did not converge 0 "
        f"(server restarted {restarts} times)"
    )
    assert killed >= 35


@pytest.mark.thorough
@on(SQLITE_API, POSTGRESQL_API)
async def test_a_rerun_right_after_a_crash_gives_way_and_the_next_one_does_not(
    server: Server, forge: Forge, revive: Revive
) -> None:
    """For ten minutes nobody can tell a dead run from one at work; a skipped run deletes nothing."""
    estate = Estate.build()
    await estate.restore(server.database)
    process = await asyncio.to_thread(forge.start, server, death=Death(5, "answered", "DELETE"))
    assert await asyncio.to_thread(end, process) == -signal.SIGKILL
    left = await estate.left(server.database)
    await rerun(server, forge, revive, expected=4)
    assert await estate.left(server.database) == left
    await server.database.age_progress()
    await rerun(server, forge, revive)
    assert (await estate.left(server.database))[0] == estate.kept
