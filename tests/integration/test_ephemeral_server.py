"""Where no server is named, Prefect starts one of its own: a cleanup there would succeed on nothing, night after night."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from prefect_artifact_retention.flows.local_server import isolated_environment
from servers import long
from templates import copy_template

NO_SERVER = "neither PREFECT_API_URL nor the active Prefect profile names a server"
FLOW = """
import asyncio
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
asyncio.run(artifact_cleanup(mode="delete"))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with policies, and a home of Prefect with an empty database."""
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "all"\nkeep_last = 3\n', encoding="utf-8")
    (tmp_path / "home").mkdir()
    copy_template("sqlite", sys.executable, tmp_path / "home" / "prefect.db")
    return tmp_path


def call(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with an environment that names no server, as cron has it."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=isolated_environment(folder / "home") | {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


CLI = ("-m", "prefect_artifact_retention.flows.cli")


@pytest.mark.thorough
def test_a_deletion_without_a_server_is_an_error_and_starts_none(folder: Path) -> None:
    """The message names what to set."""
    done = call(folder, *CLI, "delete", "--json", PREFECT_LOGGING_LEVEL="INFO")
    assert done.returncode == 2, done.stderr
    assert NO_SERVER in json.loads(done.stdout)["error"]
    assert "unless ARTIFACT_RETENTION_ALLOW_EPHEMERAL_SERVER is true" in done.stderr
    assert "temporary server on" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize(
    "command",
    [
        ("automations", "list"),
        long(("alarm", "slack-webhook/ops")),
        long(("metrics",)),
    ],
)
def test_an_alarm_without_a_server_is_an_error(folder: Path, command: tuple[str, ...]) -> None:
    """It would be set up on a server that ends with the command; nor has a cleanup run there."""
    done = call(folder, *CLI, *command)
    assert (done.returncode, NO_SERVER in done.stderr) == (2, True)


@pytest.mark.long
@pytest.mark.parametrize("command", [("hold", "report"), ("holds",), ("release", "report")], ids=lambda command: command[0])
def test_a_hold_without_a_server_is_an_error(folder: Path, command: tuple[str, ...]) -> None:
    """Whoever places one believes that it holds."""
    done = call(folder, *CLI, *command)
    assert (done.returncode, NO_SERVER in done.stderr) == (2, True)


@pytest.mark.long
def test_a_flow_without_a_server_fails(folder: Path) -> None:
    """Prefect itself has started the server by then; nothing is deleted there."""
    done = call(folder, "-c", FLOW)
    assert done.returncode == 1
    assert f"ConfigurationError: {NO_SERVER}" in done.stderr


@pytest.mark.long
def test_a_preview_without_a_server_says_where_it_looked(folder: Path) -> None:
    """A warning, and the address of the temporary server."""
    done = call(folder, *CLI, "preview", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["keys_seen"]) == (0, 0)
    assert report["server"].startswith("http://127.0.0.1:")
    assert [warning for warning in report["warnings"] if warning.startswith(NO_SERVER)]


@pytest.mark.long
def test_whoever_asks_for_it_may_delete_on_a_temporary_server(folder: Path) -> None:
    """As in a test of their own."""
    done = call(folder, *CLI, "delete", "--json", ARTIFACT_RETENTION_ALLOW_EPHEMERAL_SERVER="true")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "completed"
