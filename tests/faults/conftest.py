"""A server in memory, and a real one on SQLite for all fault tests of one worker process."""

from collections.abc import Iterator

import pytest
from database import Database
from fake import FakeServer
from prefect_artifact_retention.flows.local_server import local_server
from servers import Server, drain


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server in memory."""
    with FakeServer().listening() as server:
        yield server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the session; each test fills it anew."""
    folder = tmp_path_factory.mktemp("faults")
    with local_server(folder) as local:
        local.wait()
        yield Server(local, Database(f"sqlite+aiosqlite:///{folder / 'prefect.db'}"))
        drain()
