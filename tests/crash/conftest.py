"""Real Prefect servers, and a process with everything imported, from which those that are killed are forked."""

from collections.abc import AsyncIterator, Iterator

import pytest
from crashes import Forge
from servers import Server, started


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def running_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the session."""
    with started(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
async def server(running_server: Server) -> AsyncIterator[Server]:
    """A server without artifacts."""
    await running_server.database.clear()
    yield running_server
    await running_server.database.clear()


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Where cleanups start within milliseconds."""
    return Forge(tmp_path_factory.mktemp("forge"))
