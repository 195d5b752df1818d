"""A deployed platform for all end-to-end tests of one worker process."""

from collections.abc import Iterator

import pytest
from platforms import Platform, platform


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """As docs/deploy.md says: a process work pool, `prefect deploy --all`, and a worker."""
    with platform(tmp_path_factory.mktemp("platform"), PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY="PT1S") as made:
        made.prefect("work-pool", "create", "artifact-retention", "--type", "process")
        made.prefect("deploy", "--all")
        with made.worker():
            yield made
