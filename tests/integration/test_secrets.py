"""Credentials open the server's door, and stand nowhere else: not in what is printed, logged, published or stored."""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from database import series
from platforms import wait_for
from prefect_artifact_retention.flows.local_server import isolated_environment
from servers import Server, long, started

USER = "admin"
PASSWORD = "c0rrect-horse"  # noqa: S105 - of a server that lives for one test
WRONG = "wr0ng-horse"
API_KEY = "pnu_batterystaple"
SECRETS = [text for secret in (PASSWORD, WRONG) for text in (secret, base64.b64encode(f"{USER}:{secret}".encode()).decode())]
SECRETS.append(API_KEY)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with basic authentication, and something to delete."""
    with started("sqlite", tmp_path_factory.mktemp("guarded"), PREFECT_SERVER_API_AUTH_STRING=f"{USER}:{PASSWORD}") as server:
        asyncio.run(server.database.insert([*series("report", range(1, 9)), *series("other", [1, 2, 3])]))
        yield server


def call(
    environment: Mapping[str, str], folder: Path, credentials: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Call the command line in a process of its own."""
    return run_python(environment, folder, credentials, "-m", "prefect_artifact_retention.flows.cli", *arguments)


def run_python(
    environment: Mapping[str, str], folder: Path, credentials: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Start this interpreter, with Prefect's log as talkative as it can be."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment, "PREFECT_HOME": str(folder / "home"), "PREFECT_LOGGING_LEVEL": "DEBUG", **credentials},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


IN_TURN = """
import json, os, sys
from prefect_artifact_retention.flows.cli import main

for variables, arguments in json.loads(sys.argv[1]):
    os.environ.update(variables)
    code = main(arguments)
    for stream in (sys.stdout, sys.stderr):
        print(end=f"\\0{code}\\0", file=stream, flush=True)
"""
"""Calls the command line several times, since starting a process takes longer than most commands; NULs part their output."""


def call_in_turn(
    environment: Mapping[str, str],
    folder: Path,
    credentials: Mapping[str, str],
    *commands: tuple[Mapping[str, str], list[str]],
) -> list[subprocess.CompletedProcess[str]]:
    """The same for several commands in one process, each with more variables; what is printed at the end is the last one's."""
    done = run_python(environment, folder, credentials, "-c", IN_TURN, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    outputs, errors = done.stdout.split("\0"), done.stderr.split("\0")
    assert outputs[1::2] == errors[1::2]
    results = [
        subprocess.CompletedProcess(arguments, int(code), stdout, stderr)
        for (_, arguments), code, stdout, stderr in zip(commands, outputs[1::2], outputs[::2], errors[::2], strict=False)
    ]
    assert len(results) == len(commands)
    results[-1].stdout += outputs[-1]
    results[-1].stderr += errors[-1]
    return results


def by_string(password: str) -> dict[str, str]:
    """Credentials as they should be given; a key of Cloud's, too, must not get anywhere."""
    return {"PREFECT_API_AUTH_STRING": f"{USER}:{password}", "PREFECT_API_KEY": API_KEY}


def by_address(server: Server, password: str) -> dict[str, str]:
    """Credentials inside the address."""
    return {"PREFECT_API_URL": server.local.address.replace("http://", f"http://{USER}:{password}@") + "/api"}


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["string", long("address")])
def test_right_credentials_work_and_are_neither_printed_nor_stored(guarded: Server, tmp_path: Path, how: str) -> None:
    """Preview, explain and delete; every file of client and server is searched. Credentials in the address are warned of."""
    credentials = by_string(PASSWORD) if how == "string" else by_address(guarded, PASSWORD)
    before = count_reports(guarded)
    commands = (["preview"], ["explain", "report"], ["delete", "--key", "report", "--keep-last", "5"])
    calls = [({}, [*command, *form]) for command in commands for form in ([], ["--json"])]
    there = guarded.local.environment
    # By the address, each in a process of its own, as people call it: in one that goes on, Prefect has more to say.
    all_done = (
        call_in_turn(there, tmp_path, credentials, *calls)
        if how == "string"
        else [call(there, tmp_path, credentials, *arguments) for _, arguments in calls]
    )
    for done in all_done:
        assert done.returncode == 0, done.stderr
        assert found_in(done.stdout + done.stderr) == []
        is_json = "--json" in done.args
        warnings = json.loads(done.stdout).get("warnings", []) if is_json else []
        assert all("PREFECT_API_URL has credentials in it" in warning for warning in warnings)
        assert bool(warnings) == (is_json and how == "address")
        if is_json:
            assert json.loads(done.stdout)["server"] == f"{guarded.local.address}/api"
    assert count_reports(guarded) == before + 2
    assert asyncio.run(guarded.database.ids("key = 'report'")) == asyncio.run(newest(guarded, 5))
    events = "SELECT count(*) FROM events WHERE event LIKE 'artifact-retention.%'"
    # With the credentials in the address, Prefect's own client gets no event through.
    for stored in ("SELECT count(*) FROM log", *([events] if how == "string" else [])):
        wait_for(stored, lambda query=stored: asyncio.run(guarded.database.run(query))[0][0] or None)
    assert found_in_files(guarded, tmp_path) == []


def count_reports(server: Server) -> int:
    """How many reports have been published."""
    ((number,),) = asyncio.run(server.database.run("SELECT count(*) FROM artifact WHERE key = 'artifact-retention-report'"))
    return int(number)


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["string", long("address"), long("key alone")])
def test_wrong_credentials_are_refused_with_a_message_without_them(guarded: Server, tmp_path: Path, how: str) -> None:
    """One line, no traceback, nothing deleted."""
    credentials = {
        "string": by_string(WRONG),
        "address": by_address(guarded, WRONG),
        "key alone": {"PREFECT_API_KEY": API_KEY},
    }[how]
    before = asyncio.run(guarded.database.ids())
    calls = [({}, arguments) for arguments in (["preview"], ["delete", "--json", "--key", "other", "--keep-last", "1"])]
    for done in call_in_turn(guarded.local.environment, tmp_path, credentials, *calls):
        assert done.returncode == 1
        assert "refuses our credentials (401)" in done.stderr
        ours = [line for line in done.stderr.splitlines() if " | DEBUG " not in line]
        assert [line.startswith("artifact-retention: ") for line in ours] == [True]
        assert found_in(done.stdout + done.stderr) == []
    assert asyncio.run(guarded.database.ids()) == before
    assert found_in_files(guarded, tmp_path) == []


@pytest.mark.thorough
def test_a_traceback_of_a_refusal_holds_no_password(guarded: Server, tmp_path: Path) -> None:
    """As a worker logs one, or whoever calls the flow from Python sees it: Prefect's own error names the whole address."""
    program = (
        "import asyncio, sys\n"
        "from prefect_artifact_retention.flows import cleanup\n"
        "from prefect_artifact_retention.flows.settings import load_settings\n"
        "asyncio.run(cleanup.preview(load_settings()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=guarded.local.environment | {"PREFECT_HOME": str(tmp_path / "home")} | by_address(guarded, WRONG),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert "Traceback" in done.stderr
    assert "refuses our credentials (401)" in done.stderr
    assert found_in(done.stderr) == []


ADDRESSES = [
    f"http://{USER}:{PASSWORD}?x@127.0.0.1:1/api",
    f"http://{USER}:{PASSWORD}#x@127.0.0.1:1/api",
    f"http://{USER}:{PASSWORD}/x@127.0.0.1:1/api",
    f"http://{USER}:{PASSWORD}@127.0.0.1:port/api",
    f"http://{USER}:{PASSWORD}@127.0.0.1:1/api",
    f"ftp://{USER}:{PASSWORD}@127.0.0.1/api",
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "address", [ADDRESSES[0], *(pytest.param(each, marks=pytest.mark.thorough) for each in ADDRESSES[1:])]
)
def test_an_invalid_address_is_reported_without_its_contents(tmp_path: Path, address: str) -> None:
    """A password with a slash, a question mark or a hash passes for a port."""
    there = isolated_environment(tmp_path / "home") | {"PREFECT_API_URL": address, "PREFECT_CLIENT_MAX_RETRIES": "0"}
    done = call(there, tmp_path, {}, "preview", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] in done.stderr
    assert "Traceback" not in done.stderr
    assert found_in(done.stdout + done.stderr) == []


DATABASES = [
    *(f"{USER}:{WRONG}@{place}" for place in ("127.0.0.1:9/db", "127.0.0.1:9/db?nonsense=1", "127.0.0.1:port/db")),
    # Characters that should have been escaped.
    *(f"{USER}:p@{WRONG}{more}@127.0.0.1:9/db" for more in ("", "/x", "?x", "/x?y")),
    f"ad/min:{WRONG}@127.0.0.1:9/db",
]


@pytest.mark.thorough
def test_a_databases_password_is_neither_printed_nor_stored(guarded: Server, tmp_path: Path) -> None:
    """Wherever the run fails with it: the database is out of reach, or the address is none."""
    commands = (["preview"], ["delete", "--json", "--key", "report", "--keep-last", "1"])
    calls = [
        ({"ARTIFACT_RETENTION_DATABASE_URL": f"postgresql://{each}"}, command) for each in DATABASES for command in commands
    ]
    for done in call_in_turn(guarded.local.environment, tmp_path, by_string(PASSWORD), *calls):
        assert done.returncode == 1, done.stderr
        assert "database" in done.stderr
        assert found_in(done.stdout + done.stderr) == []
    assert found_in_files(guarded, tmp_path) == []


def found_in(text: str) -> list[str]:
    """The secrets that stand in a text."""
    return [secret for secret in SECRETS if secret in text]


def found_in_files(server: Server, folder: Path) -> list[tuple[str, str]]:
    """The secrets in the server's database and log, and in whatever the client has written."""
    files = [file for place in (server.local.folder, folder) for file in sorted(place.rglob("*")) if file.is_file()]
    assert any(file.name == "prefect.db" for file in files)
    return [(file.name, secret) for file in files for secret in SECRETS if secret.encode() in file.read_bytes()]


async def newest(server: Server, number: int) -> set[object]:
    """The ids of the newest versions of the key."""
    return await server.database.ids(
        f"id IN (SELECT id FROM artifact WHERE key = 'report' ORDER BY created DESC LIMIT {number})"
    )
