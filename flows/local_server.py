"""A Prefect server of our own in a folder of our own: for the demo and the tests, apart from the user's Prefect.

It inherits no `PREFECT_` or `ARTIFACT_RETENTION_` variable, has its own home, profile and database, runs in its own folder (so
that no `.env` or `prefect.toml` of the user is read) and listens on loopback only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from prefect_artifact_retention.policies import RetentionError

MAX_START_SECONDS = 120
LOG = "server.log"


@dataclass(frozen=True)
class LocalServer:
    """A server that has been started: its folder, and the address of its user interface."""

    folder: Path
    address: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which a process sees this server and nothing of the user's own Prefect."""
        return isolated_environment(self.folder) | {"PREFECT_API_URL": f"{self.address}/api"}

    def wait(self) -> None:
        """Wait until it answers; the first start of a folder creates its database, which takes half a minute.

        Raises:
            RetentionError: It does not answer within two minutes, or has ended.
        """
        deadline = time.monotonic() + MAX_START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urlopen(f"{self.address}/api/health", timeout=5):  # noqa: S310 - loopback
                    return
            except (URLError, OSError):
                time.sleep(0.2)
        raise RetentionError(f"the local Prefect server did not start; see {self.folder / LOG}")


def isolated_environment(folder: Path) -> dict[str, str]:
    """The present environment without anything of Prefect's or ours, with its Prefect home in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ARTIFACT_RETENTION_"))}
    return inherited | {
        "PREFECT_HOME": str(folder),
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


@contextmanager
def local_server(
    folder: Path, *, database_url: str = "", port: int = 0, python: str = sys.executable, **settings: str
) -> Iterator[LocalServer]:
    """Run a server until the context ends. It is given back at once, for work to be done while it starts: `wait` for it.

    Args:
        folder: Where its home, database and log go; created if missing.
        database_url: A database to use; by default SQLite in `folder`.
        port: The port to listen on; by default a free one.
        python: The interpreter whose Prefect it runs; by default this one.
        settings: Further environment variables of the server.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    database_url = database_url or f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
    port = port or _free_port()
    address = f"http://127.0.0.1:{port}"
    environment = isolated_environment(folder) | {
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_UI_API_URL": f"{address}/api",
        **settings,
    }
    # As `prefect server start` does in the end, without importing all of Prefect twice.
    app = ["--factory", "prefect.server.api.server:create_app"]
    command = [
        python,
        "-m",
        "uvicorn",
        *app,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "warning",
        "--timeout-keep-alive",
        "75",
    ]
    with (
        (folder / LOG).open("wb") as output,
        subprocess.Popen(  # noqa: S603 - our own interpreter, our own arguments
            command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            yield LocalServer(folder, address, process)
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server with all that it started: first politely, then for good."""
    for ending, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, ending)
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        return
