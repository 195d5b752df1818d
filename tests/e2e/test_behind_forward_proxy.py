"""A worker's machine that reaches the server through a forward proxy only: tunnels, TLS by an own authority, NO_PROXY."""

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from command import COMMAND
from database import series
from forward import ForwardProxy
from gateway import Gateway, gateway
from servers import SQLITE_API, Server, long, on

pytestmark = [pytest.mark.thorough, on(SQLITE_API)]

HOST = "prefect.invalid"
"""A name that this machine cannot resolve: whoever does not ask the proxy reaches nothing."""

LOCATION = """
location /prefect/ {
    proxy_pass http://127.0.0.1:4200/;
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $http_connection;
}
"""
POLICY = '[[policies]]\nname = "keep one"\nkeep_last = 1\n'
PASSWORD = "hunter2"  # noqa: S105 - of a proxy that lives for one test


@pytest.fixture(params=[HOST])
def tls(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """The server with a certificate for this name."""
    with gateway(server.local.address, LOCATION, tmp_path / "nginx", host=request.param) as running:
        yield running


def call(folder: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Delete in a process of its own, with these variables and no other of a proxy."""
    (folder / "retention.toml").write_text(POLICY, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | variables
    return subprocess.run(
        [COMMAND, "delete", "--json"], cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=150
    )


async def event_arrives(server: Server) -> bool:
    """Whether the run's own event is on the server, to which Prefect sends it over a websocket."""
    for _poll in range(600):
        if await server.database.run("SELECT id FROM events WHERE event = 'artifact-retention.cleanup.completed'"):
            return True
        await asyncio.sleep(0.2)
    return False


async def test_a_run_goes_through_the_proxy_and_so_do_its_events(server: Server, tls: Gateway, tmp_path: Path) -> None:
    """With a password that the proxy asks for, which is printed nowhere."""
    await server.database.run("DELETE FROM events")
    await server.database.insert([row for number in range(5) for row in series(f"report-{number}", [1, 2, 3])])
    wanted = "Basic " + base64.b64encode(f"team:{PASSWORD}".encode()).decode()
    with ForwardProxy({HOST: "127.0.0.1"}, wanted).opened() as proxy:
        variables = tls.environment | {"HTTPS_PROXY": f"http://team:{PASSWORD}@{proxy.address}"}
        done = await asyncio.to_thread(call, tmp_path, variables)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["deleted"] == 10
        assert await event_arrives(server)
    assert {*proxy.tunnels} == {tls.address.removeprefix("https://")}
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize("tls", ["localhost"], indirect=True)
async def test_what_no_proxy_names_is_reached_without_it(server: Server, tls: Gateway, tmp_path: Path) -> None:
    """The proxy sees nothing, neither of the requests nor of the events."""
    await server.database.run("DELETE FROM events")
    await server.database.insert(series("report", [1, 2, 3]))
    with ForwardProxy({}).opened() as proxy:
        variables = tls.environment | {"HTTPS_PROXY": f"http://{proxy.address}", "NO_PROXY": "localhost,127.0.0.1"}
        done = await asyncio.to_thread(call, tmp_path, variables)
        assert done.returncode == 0, done.stderr
        assert await event_arrives(server)
    assert proxy.tunnels == []


@pytest.mark.parametrize("wrong", ["password", long("closed"), long("forgotten")])
async def test_a_proxy_that_lets_nobody_through_is_told_in_one_line(
    server: Server, tls: Gateway, tmp_path: Path, wrong: str
) -> None:
    """Nothing goes; and the password is not printed."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    with ForwardProxy({HOST: "127.0.0.1"}, "Basic bm9ib2R5").opened() as proxy:
        through = {"password": f"http://team:{PASSWORD}@{proxy.address}", "closed": "http://127.0.0.1:9", "forgotten": ""}
        done = await asyncio.to_thread(call, tmp_path, tls.environment | {"HTTPS_PROXY": through[wrong]})
    assert done.returncode == 1
    assert "cannot reach" in json.loads(done.stdout)["error"]
    assert ("HTTPS_PROXY" in done.stderr) == (wrong != "forgotten"), done.stderr
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert await server.database.ids() == {row.id for row in rows}
