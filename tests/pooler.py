"""A real PgBouncer in front of a PostgreSQL server, for the tests."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa

QUERY_WAIT_SECONDS = 20
"""How long a client waits for a connection of the pool before PgBouncer ends it."""


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer."""

    port: int
    database: str
    user: str

    @property
    def url(self) -> str:
        """The address of the database through the pool."""
        return f"postgresql+asyncpg://{self.user}@127.0.0.1:{self.port}/{self.database}"


@contextmanager
def pooled(url: str, mode: Literal["session", "transaction"], size: int) -> Iterator[Pooler]:
    """A pool of `size` connections to the database at `url`, until the context ends. Without PgBouncer, it skips the test."""
    command = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if not command:
        pytest.skip("there is no pgbouncer command")
    database = sa.make_url(url)
    user = database.username or "postgres"
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as place, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "users").write_text(f'"{user}" ""\n', encoding="utf-8")
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={database.query['host']} port={database.port or 5432} user={user}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {folder / 'users'}\npool_mode = {mode}\ndefault_pool_size = {size}\n"
            f"query_wait_timeout = {QUERY_WAIT_SECONDS}\n",
            encoding="utf-8",
        )
        # It refuses to run as root; the user is that of the PostgreSQL server, whose socket nobody else can open.
        as_user = ["-u", "embedded_postgres"] if os.geteuid() == 0 else []
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([command, *as_user, str(folder / "pgbouncer.ini")], stdout=log, stderr=log)
        try:
            _wait(port, process, folder / "log")
            yield Pooler(port, database.database or user, user)
        finally:
            process.terminate()
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _poll in range(200):
        if process.poll() is not None:
            break
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"PgBouncer does not start: {log.read_text(encoding='utf-8')}")
