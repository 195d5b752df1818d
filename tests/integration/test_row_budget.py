"""What a run costs the server: rows written and requests sent, whatever the number of keys."""

from collections import Counter

import httpx
import pytest
from database import Row, days, series
from prefect_artifact_retention.policies import RetentionPolicy
from servers import LOWERED_LIMIT, Server, count_rows

KEEP_2 = RetentionPolicy(name="keep two", keep_last=2)
MAX_TASK_RUNS = 25
"""The package's own default of `max_task_runs`."""

TASK_RUNS_BESIDES = 4
"""Discover, plan, verify and report."""


async def rows_written(server: Server) -> Counter[str]:
    """Run the flow, and count the rows that this adds to each table: logs, events and their resources included."""
    before = Counter(await count_rows(server))
    await server.cleanup([KEEP_2], mode="delete")
    return Counter(await count_rows(server)) - before


async def test_a_run_without_work_writes_at_most_200_rows(server: Server) -> None:
    """Over three hundred keys, to all tables together, and starts at most five task runs."""
    await server.database.insert([row for number in range(300) for row in series(f"key-{number}", [1, 2])])
    written = await rows_written(server)
    assert written["task_run"] <= 5, written
    assert 0 < written.total() <= 200, written


@pytest.mark.parametrize("keys", [MAX_TASK_RUNS, 100])
async def test_a_run_with_work_writes_as_many_rows_as_its_task_runs_allow(server: Server, keys: int) -> None:
    """Twenty for each prune task that it may start and three hundred more: as many keys as these, or many more."""
    await server.database.insert([row for number in range(keys) for row in series(f"key-{number}", [1, 2, 3, 4])])
    written = await rows_written(server)
    prunes = written["task_run"] - TASK_RUNS_BESIDES
    assert prunes == keys if keys == MAX_TASK_RUNS else 0 < prunes < MAX_TASK_RUNS, written
    assert prunes < written.total() <= MAX_TASK_RUNS * 20 + 300, written


async def test_a_run_without_work_sends_few_requests(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for 200 keys, one for 200 versions of 1 KB, or as many as the server allows in a page, and at most 150 more."""
    keys, versions = 400, 10
    rows = [Row(f"key-{key}", days(1 + age), data="x" * 1000) for key in range(keys) for age in range(versions)]
    await server.database.insert(rows)
    send = httpx.AsyncHTTPTransport.handle_async_request
    requests: Counter[str] = Counter()

    async def count(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        requests[request.url.path] += 1
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", count)
    report = await server.cleanup([RetentionPolicy(name="ten", keep_last=versions)], mode="delete")
    assert (report.versions_seen, report.planned) == (keys * versions, 0)
    page = 200 if server.database.is_sqlite else LOWERED_LIMIT
    assert requests.total() <= keys * versions / page + keys / page + 150, requests
