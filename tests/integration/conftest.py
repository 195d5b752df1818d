"""Real Prefect servers, one on SQLite and one on PostgreSQL, each for all tests of one worker process."""

from collections.abc import Iterator

import pytest
from servers import LOWERED_LIMIT, PROMPT, Server, started


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def running_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the session."""
    settings = PROMPT | ({"PREFECT_SERVER_API_DEFAULT_LIMIT": str(LOWERED_LIMIT)} if request.param == "postgresql" else {})
    with started(request.param, tmp_path_factory.mktemp(request.param), **settings) as server:
        yield server
