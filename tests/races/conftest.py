"""A real Prefect server on PostgreSQL, whose own vacuum looks every second for what it may delete."""

from collections.abc import AsyncIterator, Iterator

import pytest
from servers import Server, started

VACUUM = {
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "7200",
}


@pytest.fixture(scope="session")
def vacuuming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """That server, for the session."""
    with started("postgresql", tmp_path_factory.mktemp("vacuumed"), **VACUUM) as server:
        yield server


@pytest.fixture
async def vacuumed(vacuuming: Server) -> AsyncIterator[Server]:
    """That server, without artifacts."""
    await vacuuming.database.clear()
    yield vacuuming
    await vacuuming.database.clear()
