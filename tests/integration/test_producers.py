"""What helps flow authors to write artifacts, on real servers."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from unittest.mock import patch
from uuid import UUID

import httpx
import prefect_artifact_retention as retention
import pytest
from appenders import appender, go, held_up, told
from chance import SEED
from fake import FakeServer
from prefect import artifacts as prefects
from prefect import flow, get_client, task
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.runtime import flow_run, task_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect_artifact_retention.policies import RetentionPolicy, StoreError
from prefect_artifact_retention.tasks.producers.appending import remembered
from servers import FAKE, POSTGRESQL_API, SQLITE_API, Server, on, thorough

BOTH = on(SQLITE_API, thorough(POSTGRESQL_API))

TABLE = [{"name": "NaN", "size": float("nan")}, {"name": 'quoted "x"', "size": float("inf")}, {"name": "ü€", "size": 1.0}]


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Let each test begin as a process of its own, for which the server is not as the test before has left it."""
    remembered.clear()


SAME = [
    ("markdown", {"markdown": "# A title\n\n| a |\n|---|\n| ü |"}),
    ("table", {"table": TABLE}),
    ("table", {"table": {"a": [1, 2], "b": [float("nan"), None]}}),
    ("table", {"table": [[1, "x"], [2.5, None]]}),
    ("link", {"link": "https://example.org/?a=b&c=d", "link_text": "An example"}),
    ("link", {"link": "https://example.org"}),
    ("image", {"image_url": "https://example.org/x.png"}),
    ("progress", {"progress": 37.5}),
    ("progress", {"progress": 137}),
]


@BOTH
async def test_what_is_published_is_what_prefects_own_helpers_store(server: Server) -> None:
    """Type, data and description of each kind, in sync and in async code."""
    with server.active():
        for number, (kind, content) in enumerate(SAME):
            given = {**content, "key": f"same-{number}", "description": "the description"}
            await getattr(prefects, f"acreate_{kind}_artifact")(**given)
            ids = [getattr(retention, f"publish_{kind}")(**given), await getattr(retention, f"apublish_{kind}")(**given)]
            newest, second, own = await server.database.versions(f"same-{number}")
            assert [second.pop("id"), newest.pop("id")] == ids
            del own["id"]
            assert own == second == newest, (kind, content)
            assert own["description"] == "the description"


@on(SQLITE_API)
async def test_arguments_may_be_given_by_position_as_to_prefects_own(server: Server) -> None:
    """So moving over is a matter of the name."""
    with server.active():
        for kind, content in SAME[4::-2]:
            given = (*content.values(), "positional", "described")
            await getattr(prefects, f"acreate_{kind}_artifact")(*given)
            getattr(retention, f"publish_{kind}")(*given)
            newest, own = (await server.database.versions("positional"))[:2]
            assert {**newest, "id": None} == {**own, "id": None}


@on(SQLITE_API)
async def test_a_ttl_a_hold_and_metadata_are_stored(server: Server) -> None:
    """As the cleanup reads them."""
    until = datetime.now(UTC).date() + timedelta(days=9)
    with server.active():
        retention.publish_markdown("x", key="kept", ttl_days=0.5, hold=until, metadata={"team": "data"})
    (version,) = await server.database.versions("kept")
    assert version["metadata_"] == {"team": "data", "retention-hold": until.isoformat(), "retention-ttl-days": "0.5"}


async def runs_of(server: Server, key: str) -> tuple[UUID | None, UUID | None]:
    """The flow run and the task run of the only version of a key."""
    (row,) = await server.database.run(f"SELECT flow_run_id, task_run_id FROM artifact WHERE key = '{key}'")
    flow_id, task_id = (None if value is None else UUID(str(value)) for value in row)
    return flow_id, task_id


def publish(key: str) -> UUID | None:
    """Publish from sync code."""
    return retention.publish_markdown("x", key=key)


@task
def publish_in_task(key: str) -> tuple[UUID, UUID]:
    """Publish in a sync task."""
    publish(key)
    return UUID(flow_run.id), UUID(task_run.id)


@task
async def publish_in_async_task(key: str) -> tuple[UUID, UUID]:
    """Publish by the sync helper in an async task, in which Prefect's own publishes nothing."""
    publish(key)
    return UUID(flow_run.id), UUID(task_run.id)


@flow
def sync_flow() -> dict[str, tuple[UUID, UUID | None]]:
    """Publish everywhere that sync code runs."""
    publish("flow")
    with ThreadPoolExecutor() as pool:
        pool.submit(copy_context().run, publish, "thread").result()
    own = UUID(flow_run.id)
    return {
        "flow": (own, None),
        "thread": (own, None),
        "task": publish_in_task("task"),
        "submitted": publish_in_task.submit("submitted").result(),
    }


@flow
async def async_flow() -> dict[str, tuple[UUID, UUID | None]]:
    """Publish where a loop runs."""
    publish("flow")
    await retention.apublish_markdown("x", key="async")
    await asyncio.to_thread(publish, "thread")
    own = UUID(flow_run.id)
    return dict.fromkeys(("flow", "async", "thread"), (own, None)) | {"task": await publish_in_async_task("task")}


@on(SQLITE_API)
async def test_what_is_published_in_a_run_belongs_to_it(server: Server) -> None:
    """In sync and async flows and tasks, and in threads that have the run's context."""
    with server.active():
        expected = await asyncio.to_thread(copy_context().run, sync_flow)
        for key, ids in expected.items():
            assert await runs_of(server, key) == ids, key
        await server.database.clear()
        for key, ids in (await async_flow()).items():
            assert await runs_of(server, key) == ids, key


@on(SQLITE_API)
async def test_what_is_published_outside_of_runs_belongs_to_none(server: Server) -> None:
    """Beside a running loop, as in a notebook, and in a thread without one."""
    with server.active():
        publish("beside-a-loop")
        await asyncio.to_thread(publish, "without-a-loop")
    for key in ("beside-a-loop", "without-a-loop"):
        assert await runs_of(server, key) == (None, None)


WAYS: list[Callable[..., Awaitable[Any]]] = [
    retention.apublish_markdown,
    lambda *given, **options: asyncio.to_thread(retention.publish_markdown, *given, **options),
]


@pytest.mark.parametrize("publish", [pytest.param(WAYS[0], marks=pytest.mark.thorough), WAYS[1]], ids=["async", "sync"])
async def test_a_server_out_of_reach_is_one_clear_error_or_a_line_in_the_log(
    publish: Callable[..., Awaitable[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Which of both is for the flow author to say; neither shows the credentials in its address."""
    url = {PREFECT_API_URL: "http://user:secret@127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(url):
        with pytest.raises(
            StoreError, match=r"^could not publish an artifact of the key 'report': cannot reach the Pref"
        ) as caught:
            await publish("x", key="report")
        assert await publish("x", key="report", on_error="log") is None
        assert await publish("x", key="report", on_error="log", ttl_days=0) is None
    assert [record.levelname for record in caplog.records if "and goes on without" in record.message] == ["WARNING"] * 2
    assert "secret" not in caplog.text + str(caught.value)


@on(SQLITE_API)
@pytest.mark.parametrize("publish", WAYS, ids=["async", "sync"])
async def test_what_a_server_refuses_is_one_clear_error(server: Server, publish: Callable[..., Awaitable[Any]]) -> None:
    """With its status."""
    with (
        temporary_settings({PREFECT_API_URL: f"{server.local.address}/elsewhere"}),
        pytest.raises(StoreError, match=r"^could not publish an artifact: the Prefect server at .* answers") as caught,
    ):
        await publish("x")
    assert caught.value.status in {404, 405}


def rows_of(version: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table."""
    rows: list[dict[str, Any]] = json.loads(version["data"])
    return rows


async def latest(server: Server, key: str) -> dict[str, Any]:
    """The version of a key that the server calls the latest."""
    (row,) = await server.database.run(f"SELECT latest_id FROM artifact_collection WHERE key = '{key}'")
    return next(each for each in await server.database.versions(key) if each["id"] == UUID(str(row[0])))


async def append_at_once(server: Server, kind: str, processes: int, each: int) -> float:
    """Let several processes append to one key; all entries are there in the end. How long that took."""
    with ExitStack() as stack:
        names = [f"p{number}" for number in range(processes)]
        appending = [stack.enter_context(appender(f"{server.local.address}/api", kind, "log", name, each)) for name in names]
        assert [told(process) for process in appending] == ["ready"] * processes
        began = time.monotonic()
        for process in appending:
            go(process)
        assert await asyncio.to_thread(lambda: [told(process) for process in appending]) == ["done"] * processes
        seconds = time.monotonic() - began
    version = await latest(server, "log")
    found = [row["name"] for row in rows_of(version)] if kind == "rows" else version["data"].replace("- ", "").split("\n")
    assert sorted(found) == sorted(f"{name}-{number}" for name in names for number in range(each))
    for name in names:
        own = [entry for entry in found if entry.startswith(name)]
        assert own == [f"{name}-{number}" for number in range(each)], "the order of one appender is kept"
    return seconds


@pytest.mark.thorough
@on(POSTGRESQL_API, thorough(SQLITE_API))
@pytest.mark.parametrize("kind", ["rows", pytest.param("markdown", marks=pytest.mark.thorough)])
async def test_processes_that_append_to_one_key_at_once_lose_no_entry(server: Server, kind: str) -> None:
    """Each entry of each is in the latest version, once; those of one process in its order."""
    await append_at_once(server, kind, processes=2, each=8)


@pytest.mark.long
@BOTH
async def test_eight_processes_that_append_fifty_times_each_lose_no_entry(server: Server, tell: Callable[[str], None]) -> None:
    """And reach at least half of what one alone does."""
    alone = 50 / await append_at_once(server, "rows", processes=1, each=50)
    await server.database.clear()
    together = 400 / await append_at_once(server, "rows", processes=8, each=50)
    kind = "SQLite" if server.database.is_sqlite else "PostgreSQL"
    tell(f"appends a second on {kind}: {alone:.0f} by one process, {together:.0f} by eight")


@contextmanager
def sent() -> Iterator[list[tuple[str, str]]]:
    """What sync code sends to the API meanwhile."""
    requests: list[tuple[str, str]] = []
    send = httpx.HTTPTransport.handle_request

    def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        if "csrf" not in request.url.path:
            requests.append((request.method, request.url.path.removeprefix("/api")))
        return send(transport, request)

    with patch.object(httpx.HTTPTransport, "handle_request", handle):
        yield requests


CREATE, READ = ("POST", "/artifacts/"), ("POST", "/artifacts/filter")


@on(SQLITE_API)
async def test_no_more_requests_are_sent_than_needed(server: Server) -> None:
    """One to publish; three to append, and two from the second time on."""
    with server.active(), sent() as requests:
        retention.publish_table([{"a": 1}], key="table")
        assert requests == [CREATE]
        requests.clear()
        retention.append_rows([{"a": 1}], key="log")
        assert requests == [READ, CREATE, READ]
        requests.clear()
        retention.append_rows([{"a": 2}], key="log")
        assert requests == [CREATE, READ]
    assert rows_of(await latest(server, "log")) == [{"a": 1}, {"a": 2}]


@BOTH
async def test_a_version_by_hand_becomes_the_first_entry(server: Server) -> None:
    """The last one only, as it replaced those before it; also one that comes in between."""
    with server.active():
        for text in ("# Old", "# By hand"):
            await prefects.acreate_markdown_artifact(text, key="log")
        await prefects.acreate_table_artifact([{"a": float("nan")}, {"a": 2}], key="rows")
        await retention.aappend_markdown("first", key="log", description="My log")
        await retention.aappend_rows([{"a": 3}], key="rows")
        assert (await latest(server, "log"))["data"] == "# By hand\n\nfirst"
        assert rows_of(await latest(server, "rows")) == [{"a": None}, {"a": 2}, {"a": 3}]
        await prefects.acreate_markdown_artifact("# A note", key="log")
        await retention.aappend_markdown("second", key="log", description="My log")
    version = await latest(server, "log")
    assert version["data"] == "# By hand\n\nfirst\n\n# A note\n\nsecond"
    assert version["description"] == "My log"


@on(SQLITE_API)
async def test_versions_by_hand_that_were_replaced_are_no_entries(server: Server) -> None:
    """Also where an append reads further back, because others append at once."""
    with server.active():
        for number in range(14):
            await prefects.acreate_table_artifact([{"name": f"by hand {number}"}], key="log")
        with held_up(2) as other:
            retention.append_rows([{"name": "meanwhile"}], key="log")
            other.finish()
    assert sorted(await names(server)) == ["by hand 13", "held-up", "meanwhile"]


@on(SQLITE_API)
async def test_a_version_that_nothing_can_be_appended_to_is_an_error_and_stays_the_latest(server: Server) -> None:
    """One of another type, and one that would not fit."""
    with server.active():
        await prefects.acreate_table_artifact([{"a": 1}], key="table")
        await prefects.acreate_markdown_artifact("x" * 900, key="large")
        with pytest.raises(StoreError, match=r"newest version of table is of the type table"):
            retention.append_markdown("x", key="table")
        with pytest.raises(StoreError, match=r"^version .* of large, the newest, .* and has no room beside"):
            retention.append_markdown("x" * 500, key="large", max_kb=1)
        assert retention.append_markdown("x", key="table", on_error="log") is None
    for key in ("table", "large"):
        assert len(await server.database.versions(key)) == 1


@BOTH
async def test_the_oldest_entries_go_when_there_are_too_many(server: Server) -> None:
    """Texts and rows; a TTL, a hold and metadata are those of the call."""
    with server.active():
        for number in range(5):
            retention.append_markdown(f"text {number}", key="log", max_entries=3, separator="\n", description="three")
            retention.append_rows(
                [{"n": number}, {"n": -number}], key="rows", max_rows=3, ttl_days=3, metadata={"n": str(number)}
            )
    version, table = await latest(server, "log"), await latest(server, "rows")
    assert (version["data"], version["description"]) == ("text 2\ntext 3\ntext 4", "three")
    assert rows_of(table) == [{"n": -3}, {"n": 4}, {"n": -4}]
    assert (table["metadata_"]["retention-ttl-days"], table["metadata_"]["n"]) == ("3", "4")


async def names(server: Server) -> list[str]:
    """The entries of the latest version."""
    return [row["name"] for row in rows_of(await latest(server, "log"))]


@BOTH
async def test_an_appender_that_was_killed_holds_nobody_up_and_loses_nothing_of_others(server: Server) -> None:
    """Before it created its version, its entry is lost; after that, not even this one."""
    with server.active():
        retention.append_rows([{"name": "first"}], key="log")
        with held_up(2):
            began = time.monotonic()
            retention.append_rows([{"name": "second"}], key="log")
            assert time.monotonic() - began < 10
        assert await names(server) == ["first", "second"]
        with held_up(3):
            pass
        retention.append_rows([{"name": "third"}], key="log")
    assert sorted(await names(server)) == ["first", "held-up", "second", "third"]


@BOTH
async def test_an_appender_that_hides_what_others_appended_meanwhile_repairs_it(server: Server) -> None:
    """It has read what was there before."""
    with server.active():
        retention.append_rows([{"name": "first"}], key="log")
        with held_up(2) as other:
            retention.append_rows([{"name": "second"}], key="log")
            retention.append_rows([{"name": "third"}], key="log")
            other.finish()
    assert sorted(await names(server)) == ["first", "held-up", "second", "third"]


@on(SQLITE_API)
async def test_what_a_killed_appender_has_hidden_is_there_again_after_the_next_append(server: Server) -> None:
    """Killed after it created its version on what it had read before others appended, and before it looked again."""
    with server.active():
        retention.append_rows([{"name": "first"}], key="log")
        with held_up(2, 3) as other:
            retention.append_rows([{"name": "second"}], key="log")
            other.go_on()
        assert await names(server) == ["first", "held-up"]
        retention.append_rows([{"name": "third"}], key="log")
    assert sorted(await names(server)) == ["first", "held-up", "second", "third"]


@on(thorough(SQLITE_API))
async def test_more_appenders_at_once_than_fit_into_a_page_lose_nothing(server: Server) -> None:
    """All have read the same before the first of them creates its version; the last one to do so has to read on."""
    with server.active():
        retention.append_rows([{"name": "first"}], key="log")
        with held_up(2) as other:
            at_once = (retention.aappend_rows([{"name": str(number)}], key="log") for number in range(40))
            await asyncio.gather(*at_once)
            other.finish()
    found = await names(server)
    assert sorted(found) == sorted(["first", "held-up", *map(str, range(40))])


async def patch_version(version_id: UUID, **fields: object) -> None:
    """Update a version in place, as a person or a script of theirs does."""
    async with get_client() as client:
        await client.update_artifact(version_id, ArtifactUpdate(**fields))


@BOTH
async def test_a_hold_that_replaces_the_metadata_of_the_log_doubles_nothing(server: Server) -> None:
    """Neither of the latest version, nor of one before; nor does a copy of the log to which a person has added something."""
    with server.active():
        for number in range(4):
            text = retention.append_markdown(f"text {number}", key="text", separator="\n")
            table = retention.append_rows([{"name": f"{number}-{each}"} for each in range(2)], key="log")
            if number != 1:
                for version_id in (text, table):
                    assert version_id
                    await patch_version(version_id, metadata_={"retention-hold": "true"})
            remembered.clear()
        log = (await latest(server, "text"))["data"]
        assert log == "text 0\ntext 1\ntext 2\ntext 3"
        assert await names(server) == [f"{number}-{each}" for number in range(4) for each in range(2)]
        await prefects.acreate_markdown_artifact(f"{log}\nby hand", key="text")
        retention.append_markdown("text 4", key="text", separator="\n")
    assert (await latest(server, "text"))["data"] == f"{log}\nby hand\ntext 4"


@BOTH
async def test_an_entry_that_was_edited_in_place_stays_as_it_is(server: Server) -> None:
    """Also where its length is the same, and versions before it have it as it was."""
    with server.active():
        for text in ("# Old", "# Two"):
            version_id = retention.append_markdown(text, key="log")
        assert version_id
        await patch_version(version_id, data="# New\n\n# Two")
        remembered.clear()
        retention.append_markdown("# Three", key="log")
    assert (await latest(server, "log"))["data"] == "# New\n\n# Two\n\n# Three"


@on(SQLITE_API)
async def test_an_older_version_that_cannot_be_read_blocks_nobody(server: Server) -> None:
    """Only the newest one would be overwritten unseen."""
    with server.active():
        async with get_client() as client:
            await client.create_artifact(ArtifactCreate(key="log", type="table", data="no JSON"))
        await prefects.acreate_table_artifact([{"name": "by hand"}], key="log")
        retention.append_rows([{"name": "next"}], key="log")
    assert await names(server) == ["by hand", "next"]


@on(SQLITE_API)
async def test_an_error_after_an_entry_was_stored_says_so(server: Server) -> None:
    """Whoever appends it again has it twice."""
    send = httpx.HTTPTransport.handle_request

    def fail(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/filter") and sent:
            raise httpx.ConnectError("nobody there")
        sent.extend([request.url.path] * request.url.path.endswith("/artifacts/"))
        return send(transport, request)

    sent: list[str] = []
    settings = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_URL: f"{server.local.address}/api"})
    failing = patch.object(httpx.HTTPTransport, "handle_request", fail)
    with settings, failing, pytest.raises(StoreError) as caught:
        retention.append_rows([{"name": "stored"}], key="log")
    version = await latest(server, "log")
    assert f"; what was to be appended is stored, in version {version['id']}" in str(caught.value)


@on(SQLITE_API)
async def test_versions_that_the_cleanup_deletes_meanwhile_do_not_matter(server: Server) -> None:
    """Every version names all of its entries."""
    with server.active():
        for number in range(12):
            retention.append_rows([{"name": str(number)}], key="log")
            if number % 4 == 3:
                older = [each["id"] for each in (await server.database.versions("log"))[1:]]
                for version_id in older[::2] if number < 8 else older:
                    await server.database.delete_version(version_id)
    assert await names(server) == [str(number) for number in range(12)]


@on(FAKE)
async def test_retention_keeps_what_a_flow_author_says(server: FakeServer) -> None:
    """The day after, a version with a TTL of a day that was superseded is gone, if it was not held, or is not any more.

    What a run publishes stays until the run has ended, and without a TTL the policy decides.
    """
    run_id = server.start_run()

    async def publish(**options: Any) -> UUID:  # noqa: ANN401 - any of the options
        version_id = await retention.apublish_markdown("x", key="report", **options)
        assert version_id
        return version_id

    with server.active():
        gone = await publish(ttl_days=1)
        held, released = await publish(ttl_days=1, hold=True), await publish(ttl_days=1, hold=True)
        longer, plain = await publish(ttl_days=3), await publish()
        with patch.dict(os.environ, PREFECT__FLOW_RUN_ID=str(run_id)):
            running = await publish(ttl_days=1)
        newest = await publish(ttl_days=1)
        assert await retention.arelease(released)
    policy = RetentionPolicy(name="a year", keep_within_days=365)
    await server.cleanup([policy], mode="delete")
    assert await server.database.ids() == {gone, held, released, longer, plain, running, newest}
    server.pass_time(timedelta(days=1, minutes=1))
    await server.cleanup([policy], mode="delete")
    assert await server.database.ids() == {held, longer, plain, running, newest}
    server.end_run(run_id)
    await server.cleanup([policy], mode="delete")
    assert await server.database.ids() == {held, longer, plain, newest}


CONFIRMING = """
import sys
from prefect_artifact_retention import append_rows
kind, key, name, count = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(count)):
    append_rows([{"name": f"{name}-{number}"}], key=key)
    print(f"{name}-{number}", flush=True)
"""
"""Appends, and says so each time."""


@pytest.mark.thorough
@BOTH
async def test_what_an_appender_has_confirmed_is_there_whoever_is_killed(server: Server) -> None:
    """Of five that append at once, three are killed at any moment; the next append finds what they had hidden."""
    chance, confirmed = Random(SEED), list[str]()

    def listen(process: subprocess.Popen[str], lines: int | None) -> None:
        while (line := told(process)) and (lines is None or lines > 0):
            confirmed.append(line)
            lines = None if lines is None else lines - 1
        time.sleep(chance.random() / 10)
        process.kill()

    with ExitStack() as stack:
        api = f"{server.local.address}/api"
        appending = [
            stack.enter_context(appender(api, "rows", "log", f"p{number}", 15, script=CONFIRMING)) for number in range(5)
        ]
        assert [told(process) for process in appending] == ["ready"] * 5
        for process in appending:
            go(process)
        limits = [chance.randrange(12), chance.randrange(12), chance.randrange(12), None, None]
        await asyncio.gather(*(asyncio.to_thread(listen, *each) for each in zip(appending, limits, strict=True)))
    with server.active():
        retention.append_rows([{"name": "last"}], key="log")
    found = await names(server)
    assert len(found) == len({*found})
    assert {*confirmed, "last"} - {*found} == set()
    assert len(confirmed) >= 30
