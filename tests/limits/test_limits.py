"""Memory and time stay bounded whatever the size: many large versions, a key with very many, very many keys."""

import json
from collections.abc import Callable, Iterator

import pytest
from command import measure
from filling import Size, fill
from servers import Server, started

pytestmark = pytest.mark.long

MAX_MEGABYTES = 400
BUDGET_MINUTES = 1.5
GRACE_SECONDS = 15
"""What the whole command may take beyond its budget: to start, to end the request under way, to verify and to report."""

POLICIES = json.dumps([{"name": "keep one", "keep_last": 1}])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of our own: these tests fill its database with gigabytes."""
    with started("sqlite", tmp_path_factory.mktemp("limits")) as server:
        yield server


async def test_a_preview_holds_few_of_many_large_versions_at_a_time(server: Server) -> None:
    """Payloads are let go of on arrival, whatever else the process is busy with."""
    await fill(server.database, Size(keys=10, versions=40, bytes=1_000_000))
    measured = measure(server.local, "preview", ARTIFACT_RETENTION_POLICIES=POLICIES)
    assert measured.report["versions_seen"] == 400
    assert measured.megabytes < 300


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(keys=20, versions=100, bytes=1_000_000), id="2000-versions-of-1-MB"),
        pytest.param(Size(keys=1, versions=100_000, bytes=100), id="a-key-with-100000-versions"),
        pytest.param(Size(keys=20_000, versions=2, bytes=100), id="20000-keys"),
    ],
)
async def test_memory_and_time_stay_bounded(server: Server, size: Size, tell: Callable[[str], None]) -> None:
    """The run keeps to its time budget, gets ahead, and the next one goes on from there."""
    await fill(server.database, size)
    stale = size.keys * (size.versions - 1)
    for _night in range(2):
        budget = f"--time-budget-minutes={BUDGET_MINUTES}"
        measured = measure(server.local, "delete", budget, ARTIFACT_RETENTION_POLICIES=POLICIES)
        report = measured.report
        tell(
            f"limits: {size}: {report['outcome']}, {report['versions_seen']} versions seen, {report['deleted']} deleted in "
            f"{measured.seconds:.0f} s (the run {report['duration_seconds']:.0f} s), peak memory {measured.megabytes:.0f} MB"
        )
        assert report["outcome"] in ("completed", "unfinished")
        assert report["deleted"] > 100 or report["deleted"] == stale
        assert measured.seconds < BUDGET_MINUTES * 60 + GRACE_SECONDS
        assert measured.megabytes < MAX_MEGABYTES
        stale -= report["deleted"]
    assert len(await server.database.ids()) == size.keys + stale
