"""Cleanups in processes of their own, which end at a chosen request or at any moment; and what is to be left afterwards."""

import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from database import Database, Row, days, series
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.tasks import prune_database
from servers import Server
from watchdog import end_with_us

Moment = Literal["before", "sent", "answered"]
MOMENTS: tuple[Moment, ...] = ("before", "sent", "answered")

POLICIES = """
[[policies]]
name = "one"
match_keys = ["solo-*"]
keep_last = 1

[[policies]]
name = "idle"
match_keys = ["idle-*"]
keep_last = 2
drop_idle_keys_after_days = 90

[[policies]]
name = "without a key"
unkeyed = true
keep_within_days = 30

[[policies]]
name = "some"
keep_last = 2
keep_oldest = true
"""


@dataclass(frozen=True)
class Death:
    """A process kills itself at its n-th request (of one method, if given): before it is sent, once sent, or once answered.

    Of the method `SQL`: at its n-th statement that changes the database, before it or within its transaction after it.
    Of the method `FILE`: at the n-th file that appears in its archive, before that or after it.
    With another signal, a request is broken off at that moment by what Prefect's handler of the signal raises.
    """

    number: int
    moment: Moment
    method: str = ""
    how: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.moment} {self.method or 'request'} {self.number}"


class Forge:
    """Starts cleanups within milliseconds, by forking from a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "retention.toml"
        self.config.write_text(POLICIES, encoding="utf-8")
        self.log = folder / "output.log"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        # The process to fork from looks for modules where this variable says, and passes over those that it does not find.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(Path(__file__).parent))
            forkserver.ensure_running()

    def start(  # noqa: PLR0913 - what a process is started with
        self,
        server: Server,
        *arguments: str,
        command: str = "delete",
        death: Death | None = None,
        per_minute: int = 0,
        archive: Path | None = None,
        batch: int = prune_database.MAX_TRANSACTION_VERSIONS,
    ) -> BaseProcess:
        """Start `artifact-retention delete`, or another command, by the server's store; it has begun when this returns.

        Through the database, a transaction deletes, and a part of the archive has, at most `batch` versions.
        """
        begun = self._context.Event()
        whole_command = (command, "--config", str(self.config), *arguments)
        settings = {"ARTIFACT_RETENTION_MAX_REQUESTS_PER_MINUTE": str(per_minute)}
        if server.store == "database":
            settings["ARTIFACT_RETENTION_DATABASE_URL"] = server.database.url
        if archive:
            settings["ARTIFACT_RETENTION_ARCHIVE_URL"] = str(archive)
        process = self._context.Process(
            target=_clean_up,
            args=(f"{server.local.address}/api", whole_command, str(self.log), begun, death, settings, batch),
            daemon=True,
        )
        process.start()
        end_with_us(process.pid)
        assert begun.wait(60)
        return process

    def count_requests(self, server: Server) -> dict[str, int]:
        """Let a cleanup run undisturbed, and count its requests: all (""), and of each method."""
        requests, answer = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_count,
            args=(f"{server.local.address}/api", ("delete", "--config", str(self.config)), str(self.log), answer),
        )
        process.start()
        counts: dict[str, int] = requests.recv()
        end(process)
        return counts


class StillAliveError(Exception):
    """A process has not ended in time; it has been killed."""


def end(process: BaseProcess, how: signal.Signals | None = None, timeout: float = 150) -> int:
    """Wait for the end of a process, sending it a signal first if one is given, and return its exit code.

    Patiently: a server on SQLite holds all its writes up for a minute now and then.
    """
    if how and process.pid and process.is_alive():
        os.kill(process.pid, how)
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    process.close()
    if code is None:
        raise StillAliveError
    return code


def _enter(log: str) -> None:
    """Write to a file whatever is printed or logged, and end by SIGINT even where the tests run in a shell's background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)


def _clean_up(  # noqa: PLR0913, PLR0917 - what a process is started with
    address: str,
    command: Sequence[str],
    log: str,
    begun: Event,
    death: Death | None,
    settings: Mapping[str, str],
    batch: int,
) -> None:
    _enter(log)
    prune_database.MAX_TRANSACTION_VERSIONS = batch
    if death:
        {"SQL": _die_in_sql, "FILE": _die_in_archive}.get(death.method, _die_at)(death)
    os.environ.update(settings)
    with temporary_settings(updates={PREFECT_API_URL: address}):
        begun.set()
        raise SystemExit(main(command))


def _count(address: str, command: Sequence[str], log: str, answer: Any) -> None:  # noqa: ANN401 - a connection
    _enter(log)
    send = httpx.AsyncHTTPTransport.handle_async_request
    counts: dict[str, int] = {}

    async def count(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        for kind in ("", request.method):
            counts[kind] = counts.get(kind, 0) + 1
        return await send(transport, request)

    httpx.AsyncHTTPTransport.handle_async_request = count  # type: ignore[method-assign]
    with temporary_settings(updates={PREFECT_API_URL: address}):
        code = main(command)
    answer.send(counts)
    raise SystemExit(code)


def _die_in_sql(death: Death) -> None:
    event = "before_cursor_execute" if death.moment == "before" else "after_cursor_execute"
    seen = 0

    @sa.event.listens_for(sa.Engine, event)
    def count_down(_connection: object, _cursor: object, statement: str, *_others: object) -> None:
        nonlocal seen
        seen += statement.startswith(("DELETE", "UPDATE", "INSERT"))
        if seen == death.number:
            os.kill(os.getpid(), signal.SIGKILL)


def _die_in_archive(death: Death) -> None:
    link, numbers = os.link, count(1)

    def count_down(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as the original's
        # Parts are published in threads.
        number = next(numbers)
        if (number, death.moment) == (death.number, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        link(*arguments, **options)
        if number == death.number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.link = count_down


def _die_at(death: Death) -> None:
    send = httpx.AsyncHTTPTransport.handle_async_request
    seen = 0

    def die() -> None:
        os.kill(os.getpid(), death.how)

    async def die_once_sent(event: str, _details: object) -> None:
        if event.endswith("send_request_body.complete"):
            die()

    async def count_down(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        nonlocal seen
        seen += death.method in ("", request.method)
        due = seen == death.number and death.method in ("", request.method)
        if due and death.moment == "before":
            die()
        if due and death.moment == "sent":
            request.extensions["trace"] = die_once_sent
        response = await send(transport, request)
        if due:
            await response.aread()
            die()
        return response

    httpx.AsyncHTTPTransport.handle_async_request = count_down  # type: ignore[method-assign]


@dataclass
class Estate:
    """Versions of several keys, and those that `POLICIES` keeps: worked out by hand."""

    rows: list[Row] = field(default_factory=list)
    kept: set[UUID] = field(default_factory=set)

    @classmethod
    def build(cls) -> "Estate":
        """Keys of which two or one version stay, idle ones that go, a hold, and artifacts without a key."""
        estate = cls()
        for number in range(5):
            estate.add(series(f"report-{number}", [1, 2, 40, 41, 42, 43]), 0, 1, 5)
        for number in range(4):
            estate.add(series(f"solo-{number}", [1, 2, 3, 4, 5]), 0)
        for number in range(3):
            estate.add(series(f"idle-{number}", [100, 101, 102]))
        hold = Row("held", days(3), metadata={"retention-hold": "true"})
        estate.add([*series("held", [1, 2]), hold, *series("held", [4, 5])], 0, 1, 2, 4)
        estate.add(series(None, [1, 2, 40, 50, 60]), 0, 1)
        return estate

    def add(self, rows: list[Row], *kept: int) -> None:
        """Take up versions, and which of them stay."""
        self.rows += rows
        self.kept |= {rows[number].id for number in kept}

    async def restore(self, database: Database) -> None:
        """Put everything there as at first."""
        await database.clear()
        await database.insert(self.rows)

    async def left(self, database: Database) -> tuple[set[UUID], dict[str, UUID]]:
        """The versions that are there, and the latest of each key."""
        mine = {row.id for row in self.rows}
        latest = await database.run("SELECT key, latest_id FROM artifact_collection WHERE key NOT LIKE 'artifact-retention-%'")
        return await database.ids() & mine, {key: UUID(str(latest_id)) for key, latest_id in latest}
