"""`doctor --fix` is killed at any request: another one ends in the same state as an undisturbed one."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import patch

import httpx
import pytest
from crashes import MOMENTS, Death, Forge, end
from database import Row, days, series
from fake import FakeServer
from prefect_artifact_retention.flows.cli import DONE
from prefect_artifact_retention.flows.doctor import examine_server
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF
from servers import FAKE, POSTGRESQL_DATABASE, SQLITE_API, SQLITE_DATABASE, Server, on

State = list[tuple[str, str]]

LEFT = {PLACEHOLDER_OF: "00000000-0000-4000-8000-000000000001"}


class KilledError(BaseException):
    """The process is no more: nothing of it goes on, and no handler of errors."""


async def break_keys(server: Server | FakeServer) -> None:
    """A latest version that is gone, a key without any version, one that is not the newest, a placeholder; a healthy key."""
    await server.database.clear()
    rows = {
        "gone": series("gone", [3, 2, 1]),
        "empty": [Row("empty", days(1), data="the copy")],
        "older": series("older", [3, 2, 1]),
        "left": [*series("left", [3, 1]), Row("left", days(2), metadata=LEFT)],
        "healthy": series("healthy", [2, 1]),
    }
    latest = {"older": rows["older"][0].id}
    await server.database.insert([row for some in rows.values() for row in some], latest=latest)
    for row in (rows["gone"][2], rows["empty"][0]):
        await server.database.delete_version(row.id)


async def state(server: Server | FakeServer) -> State:
    """The keys and data of all versions as the server shows them, and of the latest of each key."""
    shown: State = []
    async with httpx.AsyncClient() as client:
        for path in ("", "latest/"):
            response = await client.post(f"{server.local.address}/api/artifacts/{path}filter", json={"limit": 30})
            shown += sorted((row["key"], str(row["data"])) for row in response.json())
    return shown


async def repair(server: Server | FakeServer) -> None:
    """Run `doctor --fix` in this process; all is well after that."""
    with server.active():
        checkup = await examine_server(load_settings(), lambda _findings: True)
        assert not checkup.is_broken, checkup.findings
        assert not (await examine_server(load_settings(), lambda _findings: False)).findings


@asynccontextmanager
async def killed_at(number: int, moment: str) -> AsyncIterator[list[httpx.Request]]:
    """Let the process die at its n-th request, before it is sent or once it is answered; yields the requests sent."""
    send = httpx.AsyncHTTPTransport.handle_async_request
    seen: list[httpx.Request] = []

    async def die(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) > number or (len(seen) == number and moment == "before"):
            raise KilledError
        response = await send(transport, request)
        if len(seen) == number:
            raise KilledError
        return response

    with patch.object(httpx.AsyncHTTPTransport, "handle_async_request", die):
        yield seen


@on(FAKE)
@pytest.mark.parametrize("moment", ["before", "answered"])
async def test_killed_at_each_request(server: FakeServer, moment: str) -> None:
    """None leaves anything that the next doctor does not find."""
    await break_keys(server)
    await repair(server)
    undisturbed = await state(server)
    number = 1
    while True:
        await break_keys(server)
        try:
            async with killed_at(number, moment):
                await repair(server)
        except KilledError:
            pass
        else:
            break
        await repair(server)
        assert await state(server) == undisturbed, f"killed {moment} request {number}"
        number += 1
    # Each of the three repairs through the API posts and deletes.
    assert number > 30


async def kill_each(server: Server, forge: Forge, deaths: list[Death]) -> int:
    """Let a `doctor --fix` die at each of these moments, and run another one; return how many were killed."""
    await break_keys(server)
    await asyncio.to_thread(lambda: end(forge.start(server, "--fix", command="doctor")))
    undisturbed = await state(server)
    killed = 0
    for death in deaths:
        await break_keys(server)
        process = await asyncio.to_thread(lambda: forge.start(server, "--fix", command="doctor", death=death))  # noqa: B023
        killed += await asyncio.to_thread(end, process) == -signal.SIGKILL
        # In which the server answers what the dead process sent last.
        await asyncio.sleep(0.2)
        process = await asyncio.to_thread(lambda: forge.start(server, "--fix", command="doctor"))
        assert await asyncio.to_thread(end, process) == DONE, forge.log.read_text()
        assert await state(server) == undisturbed, f"after death {death}"
    return killed


@pytest.mark.thorough
@on(SQLITE_API)
async def test_killed_between_posting_a_placeholder_and_deleting_it(server: Server, forge: Forge) -> None:
    """By SIGKILL, on a real server."""
    deaths = [Death(1, moment, "DELETE") for moment in MOMENTS]
    assert await kill_each(server, forge, deaths) == len(deaths)


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE, SQLITE_DATABASE)
async def test_killed_within_a_repair_through_the_database(server: Server, forge: Forge) -> None:
    """A repair is one transaction: it is there as a whole or not at all."""
    deaths = [Death(number, moment, "SQL") for number in (1, 2, 4) for moment in ("before", "answered")]
    assert await kill_each(server, forge, deaths) == len(deaths)
