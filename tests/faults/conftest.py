"""A server in memory."""

from collections.abc import Iterator

import pytest
from fake import FakeServer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server in memory."""
    with FakeServer().listening() as server:
        yield server
