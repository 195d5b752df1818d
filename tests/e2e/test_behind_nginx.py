"""A Prefect server behind a real nginx: a path prefix, a certificate of one's own authority, limits of the proxy."""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from command import COMMAND
from database import series
from gateway import Gateway, gateway
from servers import SQLITE_API, Server, long, on

pytestmark = [pytest.mark.thorough, on(SQLITE_API)]

DEPLOY_PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
POLICY = '[[policies]]\nname = "keep one"\nkeep_last = 1\n'


@pytest.fixture
def nginx(server: Server, tmp_path: Path) -> Iterator[Gateway]:
    """Set up as the page on deployments says."""
    (location,) = re.findall(r"```nginx\n(.*?)```", DEPLOY_PAGE.read_text(encoding="utf-8"), re.DOTALL)
    with gateway(server.local.address, location, tmp_path / "nginx") as running:
        yield running


def call(folder: Path, variables: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with these variables."""
    (folder / "retention.toml").write_text(POLICY, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_SSL_CERT_FILE"}
    return subprocess.run(
        [COMMAND, *arguments], cwd=folder, env=environment | variables, check=False, capture_output=True, text=True
    )


async def test_a_delete_run_works_through_it_and_its_links_lead_back(server: Server, nginx: Gateway, tmp_path: Path) -> None:
    """And its event arrives, by which the alarm is kept quiet."""
    await server.database.insert([row for number in range(30) for row in series(f"report-{number}", [1, 2, 3])])
    done = await asyncio.to_thread(call, tmp_path, nginx.environment, "delete", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["deleted"], report["server"]) == (60, f"{nginx.address}/prefect/api")
    rows = await server.database.run("SELECT description FROM artifact_collection WHERE key = 'artifact-retention-progress'")
    assert f"{nginx.address}/prefect/artifacts/key/artifact-retention-report" in rows[0][0]
    for _poll in range(600):
        if await server.database.run("SELECT id FROM events WHERE event = 'artifact-retention.cleanup.completed'"):
            break
        await asyncio.sleep(0.2)
    else:
        raise AssertionError("the event never arrived")


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PREFECT_API_SSL_CERT_FILE": ""}, "PREFECT_API_SSL_CERT_FILE"),
        long({"PREFECT_API_URL": "{address}/api"}, "PREFECT_API_URL"),
        long({"PREFECT_API_URL": "{address}/prefect"}, "PREFECT_API_URL"),
    ],
    ids=["certificate", "prefix", "api"],
)
async def test_what_is_forgotten_is_named(
    server: Server, nginx: Gateway, tmp_path: Path, variables: Mapping[str, str], named: str
) -> None:
    """In one line, and nothing goes."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    given = {name: value.format(address=nginx.address) for name, value in variables.items()}
    done = await asyncio.to_thread(call, tmp_path, {**nginx.environment, **given}, "delete")
    assert done.returncode == 1
    assert named in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr
    assert await server.database.ids() == {row.id for row in rows}
