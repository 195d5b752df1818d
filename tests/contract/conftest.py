"""The fake server and two real ones, to each of which the contract applies."""

from collections.abc import AsyncIterator, Iterator

import pytest
from fake import FakeServer
from servers import Server, started


@pytest.fixture(scope="session", params=["fake", "sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | FakeServer]:
    """A server for the session."""
    if request.param == "fake":
        with FakeServer().listening() as fake:
            yield fake
        return
    with started(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
async def server(running: Server | FakeServer) -> AsyncIterator[Server | FakeServer]:
    """The server, without artifacts."""
    await running.database.clear()
    yield running
    await running.database.clear()
