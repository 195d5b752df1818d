"""What a run costs the server: rows written and requests sent, whatever the number of keys; a preview writes none."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest.mock import patch

import httpx
import pytest
from database import Row, days, series
from prefect.blocks.system import Secret
from prefect_artifact_retention.flows.cleanup import preview
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import RetentionPolicy
from servers import (
    POSTGRESQL_API,
    POSTGRESQL_DATABASE,
    PROMPT,
    SQLITE_API,
    SQLITE_DATABASE,
    Server,
    count_rows,
    on,
    started_when_asked,
)

pytestmark = pytest.mark.thorough

KEEP_2 = RetentionPolicy(name="keep two", keep_last=2)
MAX_TASK_RUNS = 25
"""The package's own default of `max_task_runs`."""

TASK_RUNS_BESIDES = 4
"""Discover, plan, verify and report."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Servers that write at once what they are told, so that it can be counted. Never idle, they end with this file."""
    with started_when_asked(tmp_path_factory.mktemp("prompt"), **PROMPT) as get:
        yield get


async def rows_written(server: Server) -> Counter[str]:
    """Run the flow, and count the rows that this adds to each table: logs, events and their resources included."""
    before = Counter(await count_rows(server))
    await server.run_flow([KEEP_2], mode="delete")
    return Counter(await count_rows(server)) - before


@on(SQLITE_API, POSTGRESQL_API)
async def test_a_run_without_work_writes_at_most_200_rows(server: Server) -> None:
    """Over three hundred keys, to all tables together, and starts at most five task runs."""
    await server.database.insert([row for number in range(300) for row in series(f"key-{number}", [1, 2])])
    written = await rows_written(server)
    assert written["task_run"] <= 5, written
    assert 0 < written.total() <= 200, written


@on(SQLITE_API, POSTGRESQL_API)
@pytest.mark.parametrize("keys", [MAX_TASK_RUNS, pytest.param(100, marks=pytest.mark.long)])
async def test_a_run_with_work_writes_as_many_rows_as_its_task_runs_allow(server: Server, keys: int) -> None:
    """Twenty for each prune task that it may start and three hundred more: as many keys as these, or many more."""
    await server.database.insert([row for number in range(keys) for row in series(f"key-{number}", [1, 2, 3, 4])])
    written = await rows_written(server)
    prunes = written["task_run"] - TASK_RUNS_BESIDES
    assert prunes == keys if keys == MAX_TASK_RUNS else 0 < prunes < MAX_TASK_RUNS, written
    assert prunes < written.total() <= MAX_TASK_RUNS * 20 + 300, written


@on(SQLITE_API, POSTGRESQL_API)
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
    report = await server.run_flow([RetentionPolicy(name="ten", keep_last=versions)], mode="delete")
    assert (report.versions_seen, report.planned) == (keys * versions, 0)
    page = server.limit
    assert requests.total() <= keys * versions / page + keys / page + 150, requests


@on(SQLITE_API, SQLITE_DATABASE, POSTGRESQL_API, POSTGRESQL_DATABASE)
async def test_preview_of_the_command_line_writes_nothing_at_all(server: Server, tmp_path, monkeypatch, capsys) -> None:  # noqa: ANN001
    """No row in any table, and the plan that an independent query finds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "p"\nkeep_last = 3\n')
    await server.database.insert([row for number in range(40) for row in series(f"key-{number}", range(1, 7))])
    before = await count_rows(server)

    def call() -> int:
        with server.active():
            return main(["preview", "--json"])

    assert await asyncio.to_thread(call) == 0
    assert await server.database.count_all_rows() == before
    report = json.loads(capsys.readouterr().out)
    ranked = "SELECT row_number() OVER (PARTITION BY key ORDER BY created DESC, id DESC) AS rank FROM artifact"
    stale = await server.database.run(f"SELECT count(*) FROM ({ranked}) AS r WHERE rank > 3")
    assert report["planned"] == stale[0][0] == 120


@on(SQLITE_DATABASE, POSTGRESQL_DATABASE)
async def test_a_preview_through_an_address_in_a_block_writes_nothing_at_all(server: Server) -> None:
    """Reading a block by its own method would leave an event."""
    await server.database.insert(series("report", [1, 2, 3]))
    with replace(server, store="api").active(), patch.dict(os.environ, ARTIFACT_RETENTION_DATABASE_BLOCK="retention-db"):
        await Secret(value=server.database.url).save("retention-db", overwrite=True)
        before = await count_rows(server)
        await preview(load_settings(), [KEEP_2])
        assert await count_rows(server) == before
