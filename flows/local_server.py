"""Runs a Prefect server in a folder of its own, isolated from the user's Prefect: for the demo and the tests.

The server inherits no `PREFECT_` or `ARTIFACT_RETENTION_` variable, has its own home, profile and database, runs in its own
folder (so that it reads no `.env` or `prefect.toml` of the user), and listens on loopback only.
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
from prefect_artifact_retention.policies.formatting import printable

MAX_START_SECONDS = 120
"""How long a server may take to start; the first start of a folder takes half a minute, and longer on a busy machine."""
LOG = "server.log"

SERVER = """
import os, signal, threading, time
from uvicorn.main import main

def end_with_parent():
    os.read(0, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep(10)
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=end_with_parent, daemon=True).start()
main()
"""
"""Runs uvicorn in a session of its own until its standard input ends: when whoever started it is gone, even by SIGKILL."""


@dataclass(frozen=True)
class LocalServer:
    """A server that was started.

    Attributes:
        folder: The folder with its home, database and log.
        address: The address of its user interface; the API is at /api.
        process: Its process.
    """

    folder: Path
    address: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that uses this server, and nothing of the user's own Prefect."""
        return isolated_environment(self.folder) | {"PREFECT_API_URL": f"{self.address}/api"}

    def wait(self) -> None:
        """Wait until the server answers. The first start of a folder creates its database, which takes half a minute.

        Raises:
            RetentionError: The server does not answer within two minutes, or ends, as with libraries that are too new.
        """
        deadline = time.monotonic() + MAX_START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urlopen(f"{self.address}/api/health", timeout=5):  # noqa: S310 - loopback
                    return
            except (URLError, OSError):
                time.sleep(0.2)
        log = self.folder / LOG
        if self.process.poll() is None:
            raise RetentionError(f"the local Prefect server does not answer after {MAX_START_SECONDS} seconds; see {log}")
        (*_, last_line) = ["no message", *log.read_text(errors="replace").splitlines()]
        raise RetentionError(
            f"the local Prefect server did not start ({printable(last_line)}; see {log}). "
            "If that is about fastapi or sqlalchemy: the versions that work come with this package's extra `server`"
        )


def isolated_environment(folder: Path) -> dict[str, str]:
    """Return the environment with `folder` as Prefect's home, and without other variables of Prefect or this package."""
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
    """Run a server until the context or this process ends. The context begins before the server answers: call `wait` on it.

    Args:
        folder: The folder of its home, database and log; created if missing.
        database_url: Its database; by default SQLite in `folder`.
        port: The port to listen on; by default a free one.
        python: The interpreter of the server; by default this one.
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
    # The command that `prefect server start` runs, without importing all of Prefect twice.
    app = ["--factory", "prefect.server.api.server:create_app"]
    command = [
        python,
        "-c",
        SERVER,
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
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
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
    """Terminate the server and its child processes, and kill them if that takes too long."""
    for ending, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, ending)
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        return
