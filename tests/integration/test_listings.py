"""Listings of many keys through the API, on a server in memory: what is whole, and what is kept of it."""

import gc
import random
import re

import httpx
import pytest
from database import Row, days, series
from fake import FakeServer
from prefect import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.connection import Connection, connect
from servers import FAKE, on
from test_proxies import proxy, rows_asked_for

pytestmark = on(FAKE)


async def test_what_is_created_while_keys_are_listed_makes_up_for_nothing_that_a_page_cuts_off(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are full, and their last keys may have more rows: each is listed whole, or not counted as such."""
    chance = random.Random(1)
    sizes = {f"key-{number:03}": chance.choice([15, *[20] * 9]) for number in range(100)}
    rows = {key: series(key, range(1, size + 1)) for key, size in sizes.items()}
    await server.database.insert([row for some in rows.values() for row in some])
    pages = 0

    async def act(request: httpx.Request) -> int:
        nonlocal pages
        pages += bool(rows_asked_for(request))
        if rows_asked_for(request) and not pages % 4:
            async with get_client() as client:
                await client.create_artifact(ArtifactCreate(key=chance.choice([*rows]), type="markdown", data="new"))
        return 0

    with server.active(), proxy(monkeypatch, act):
        async with connect() as opened:
            store = ApiStore(opened)
            for _time in range(10):
                for history in [history async for part in store.histories([*rows]) for history in part]:
                    missing = {row.id for row in rows[history.key]}.difference(history.versions.ids)
                    assert not (history.complete and missing)


async def test_a_hold_that_a_full_page_cuts_off_keeps_its_idle_key(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though two versions are created meanwhile, one during each listing: only its rules decide over the other versions."""
    await server.database.insert([row for number in range(9) for row in series(f"k{number:02}", range(1, 21))])
    await server.database.insert([row for number in range(9) for row in series(f"zz{number}", range(1, 19))])
    idle = [Row("z", days(100), metadata={"retention-hold": "true"}), *series("z", range(101, 120))]
    await server.database.insert(idle, latest={"z": idle[1].id})
    set_up = ApiStore.__init__

    def with_large_pages(store: ApiStore, opened: Connection) -> None:
        set_up(store, opened)
        store._page_rows = 200  # noqa: SLF001 - as after some pages of small rows

    monkeypatch.setattr(ApiStore, "__init__", with_large_pages)
    new = ["k00", "zz0"]

    async def act(request: httpx.Request) -> int:
        if rows_asked_for(request) and {b'"k00"', b'"z"'} <= {*re.findall(rb'"k00"|"z"', request.content)} and new:
            async with get_client() as client:
                await client.create_artifact(ArtifactCreate(key=new.pop(0), type="markdown", data="new"))
        return 0

    policies = [
        RetentionPolicy(name="nothing stale", match_keys=["zz*"], keep_last=17),
        RetentionPolicy(name="idle", keep_last=19, drop_idle_keys_after_days=60),
    ]
    with proxy(monkeypatch, act):
        report = await server.cleanup(policies, mode="delete", max_task_runs=1)
    assert report.outcome == "completed"
    assert len(await server.database.versions("z")) == 19


def responses() -> int:
    """How many responses are in memory."""
    return sum(isinstance(each, httpx.Response) for each in gc.get_objects())


async def test_no_payload_stays_in_memory_while_keys_are_planned(server: FakeServer) -> None:
    """The collector is off then, so no response may be part of a cycle."""
    await server.database.insert([row for number in range(30) for row in series(f"key-{number}", range(1, 41))])
    with server.active():
        async with connect() as opened:
            gc.collect()
            before = responses()
            gc.disable()
            try:
                listing = ApiStore(opened).histories([f"key-{number}" for number in range(30)])
                read = [history async for part in listing for history in part]
                left = responses() - before
            finally:
                gc.enable()
    assert len(read) == 30
    assert left <= 2


async def test_pages_are_too_large_for_an_administrator_only_until_the_first_listing_fits(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds, records and versions are listed one after another, and no listing tries again what another was refused."""
    await server.database.insert([row for number in range(9) for row in series(f"key-{number}", range(1, 21))])
    server.limit = 30

    async def let_pass(_request: httpx.Request) -> int:
        return 0

    with proxy(monkeypatch, let_pass) as seen:
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    asked = [rows_asked_for(request) for request in seen]
    assert report.deleted == 9 * 19
    assert sorted(limit for limit in asked if limit > server.limit) == [50, 100, 200]


async def test_a_listing_that_is_refused_for_another_reason_leaves_the_others_their_pages(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried down to a single row, and what comes after it is not listed row by row."""
    await server.database.insert(series("report", [1, 2, 3]))

    async def act(request: httpx.Request) -> int:
        return 422 if b"artifact-retention-policies-" in request.content and rows_asked_for(request) else 0

    with proxy(monkeypatch, act) as seen:
        report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    asked = [rows_asked_for(request) for request in seen if rows_asked_for(request)]
    assert report.deleted == 2
    assert asked.index(1) < len(asked) - 1
    assert min(asked[asked.index(1) + 1 :]) > 1
