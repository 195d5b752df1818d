"""Appends beside people, proxies and connections that break: on a server in memory, and a forked child on a real one."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any
from unittest.mock import patch
from uuid import UUID

import httpx
import prefect_artifact_retention as retention
import pytest
from fake import FakeServer
from prefect import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect_artifact_retention import StoreError
from prefect_artifact_retention.tasks.producers.appending import remembered
from prefect_artifact_retention.tasks.producers.requests import _open
from servers import FAKE, POSTGRESQL_API, Server, on


@pytest.fixture(autouse=True)
async def active(server: FakeServer) -> AsyncIterator[None]:
    """Talk to the server, of which nothing is known."""
    remembered.clear()
    with server.active(), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def write(text: str, **options: Any) -> Awaitable[UUID | None]:  # noqa: ANN401 - any of the options
    """Append an entry of one line."""
    return retention.aappend_markdown(text, key="log", separator="\n", **options)


async def newest(key: str = "log") -> dict[str, Any]:
    """The newest version."""
    async with get_client() as client:
        body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
        answer = await client.request("POST", "/artifacts/filter", json=body)
    version: dict[str, Any] = answer.json()[0]
    return version


async def edit(version_id: UUID | None, data: str) -> None:
    """Edit a version in place, as a person does."""
    assert version_id
    async with get_client() as client:
        await client.update_artifact(version_id, ArtifactUpdate(data=data))


async def by_hand(data: str, kind: str = "markdown") -> None:
    """Write a version, as Prefect's own helpers do."""
    async with get_client() as client:
        await client.create_artifact(ArtifactCreate(key="log", type=kind, data=data))


EDITS = ["e0\ne1, mended\ne2", "e0\ne2", "e0\ne1\ne2\nand more", "before\ne0\ne1\ne2", "all is new", "X0\ne1\ne2"]


@on(FAKE)
@pytest.mark.parametrize("text", EDITS)
@pytest.mark.parametrize("is_new_process", [True, False], ids=["another process", "the same process, at once"])
@pytest.mark.parametrize("bound", [{}, {"max_entries": 3}], ids=["", "bounded"])
async def test_what_somebody_edited_in_place_stays(text: str, is_new_process: bool, bound: dict[str, int]) -> None:  # noqa: FBT001
    """Whatever its length, and in the versions to come; nothing is there twice."""
    for number in range(3):
        version_id = await write(f"e{number}")
    await edit(version_id, text)
    for number in range(2):
        if is_new_process:
            remembered.clear()
        await write(f"next {number}", **bound)
    found = (await newest())["data"]
    assert f"{text}\nnext 0\nnext 1".endswith(found)
    assert found.endswith("\nnext 1" if bound else f"{text}\nnext 0\nnext 1")


@on(FAKE)
@pytest.mark.parametrize("left", [[{"n": 0}, {"n": 3}], [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}, {"n": "new"}], []], ids=str)
async def test_rows_that_somebody_edited_in_place_stay(left: list[dict[str, Any]]) -> None:
    """More or fewer of them; none comes back from older versions."""
    for number in (0, 2):
        version_id = await retention.aappend_rows([{"n": number}, {"n": number + 1}], key="log")
    await edit(version_id, json.dumps(left))
    for number in range(2):
        remembered.clear()
        await retention.aappend_rows([{"n": f"next {number}"}], key="log")
    assert json.loads((await newest())["data"]) == [*left, {"n": "next 0"}, {"n": "next 1"}]


@on(FAKE)
@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        ('[{"a": 1}]', "table", "of the type table, was created meanwhile, and is hidden by what was appended"),
        ("x" * 1600, "markdown", "has no room beside what is appended"),
    ],
    ids=["another type", "too large"],
)
async def test_what_cannot_be_taken_over_is_not_hidden_unseen(data: str, kind: str, reason: str) -> None:
    """By a process that has just appended; the error says that its entry is stored. The next append has been told."""
    await write("one", max_kb=1)
    await by_hand(data, kind)
    with pytest.raises(StoreError, match=f"{reason}.*; what was to be appended is stored, in version"):
        await write("two", max_kb=1)
    assert await write("three", max_kb=1)
    assert (await newest())["data"].endswith("two\nthree")


@on(FAKE)
async def test_a_version_by_hand_meanwhile_that_has_room_is_taken_over() -> None:
    """As one beforehand."""
    await write("one")
    await by_hand("by hand")
    await write("two")
    assert sorted((await newest())["data"].split("\n")) == ["by hand", "one", "two"]


@on(FAKE)
async def test_a_table_of_columns_is_an_error_that_says_so() -> None:
    """It would have to be turned around."""
    await by_hand('{"a": [1, 2]}', "table")
    with pytest.raises(StoreError, match="it holds columns, and only rows can be appended to"):
        await retention.aappend_rows([{"a": 3}], key="log")


@on(FAKE)
async def test_infinities_in_rows_become_null() -> None:
    """They are no JSON: the UI would show nothing of the table."""
    await by_hand('[{"a": -Infinity}]', "table")
    await retention.aappend_rows([{"a": float("inf")}, {"a": 1}], key="log")
    assert (await newest())["data"] == '[{"a": null}, {"a": null}, {"a": 1}]'


Handler = Callable[[httpx.Request, Callable[[], Awaitable[httpx.Response]]], Awaitable[httpx.Response]]


@contextmanager
def between(handler: Handler) -> Iterator[None]:
    """Let something between the helpers and the server handle requests, but for those of tokens."""
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        answer = partial(send, transport, request)
        return await (answer() if "csrf" in request.url.path else handler(request, answer))

    with patch.object(httpx.AsyncHTTPTransport, "handle_async_request", handle):
        yield


def is_creation(request: httpx.Request) -> bool:
    """Whether it creates an artifact."""
    return request.url.path == "/api/artifacts/"


LOST = [httpx.ReadError("reset"), httpx.ReadTimeout("late"), httpx.Response(500, json={})]


@on(FAKE)
@pytest.mark.parametrize("lost", LOST, ids=["reset", "timeout", "500"])
@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "not stored"])
async def test_an_append_whose_answer_was_lost_looks_for_its_entry(lost: Any, is_stored: bool) -> None:  # noqa: ANN401, FBT001
    """If it is there, all is well. If it is not, it may come later, and the error says that."""
    await write("one")

    async def lose(request: httpx.Request, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        if not is_creation(request):
            return await send()
        if is_stored:
            await send()
        if isinstance(lost, Exception):
            raise lost
        lost.request = request
        return lost  # type: ignore[no-any-return]

    with between(lose):
        if is_stored:
            assert await write("two")
        else:
            with pytest.raises(StoreError, match=r"; what was to be appended may be stored all the same$"):
                await write("two")
    assert (await newest())["data"] == ("one\ntwo" if is_stored else "one")


@on(FAKE)
@pytest.mark.parametrize("answer", ["{}", "[null]"])
async def test_an_answer_that_is_not_the_servers_is_an_error_of_the_server(answer: str) -> None:
    """As of a proxy: no id is made up, and nothing is appended to what is not there."""

    async def proxy(request: httpx.Request, _send: object) -> httpx.Response:
        return httpx.Response(200, content=answer, request=request)

    with between(proxy):
        for call in (retention.apublish_markdown("x", key="log"), write("x")):
            with pytest.raises(StoreError):
                await call


@on(FAKE)
async def test_versions_of_another_key_are_no_entries() -> None:
    """As where two processes get each other's answers, because they share a connection."""
    await retention.aappend_markdown("theirs", key="other")

    async def mix_up(request: httpx.Request, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        content = request.content.replace(b'"log"', b'"other"')
        request.stream = httpx.ByteStream(content)
        request.headers["Content-Length"] = str(len(content))
        request._content = content  # noqa: SLF001 - what the server reads
        return await send()

    with between(mix_up), pytest.raises(StoreError, match="asked for the key 'log', and answered with a version of 'other'"):
        await write("ours")


@on(FAKE)
async def test_what_may_not_fail_its_flow_does_not_hold_it_up() -> None:
    """What fails is sent once, where Prefect's client sends it again for two minutes."""
    requests: list[str] = []

    async def reset(request: httpx.Request, _send: object) -> httpx.Response:
        requests.append(request.url.path)
        raise httpx.ReadError("reset")

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}), between(reset):
        assert await retention.apublish_markdown("x", key="log", on_error="log") is None
        assert await retention.publish_artifact("x", type="markdown", on_error="log") is None
        assert await write("x", on_error="log") is None
        assert await retention.aappend_rows([{"a": 1}], key="log", on_error="log") is None
    assert requests == ["/api/artifacts/", "/api/artifacts/", "/api/artifacts/filter", "/api/artifacts/filter"]


@on(FAKE)
async def test_what_a_thread_or_task_publishes_after_its_run_has_ended_is_published() -> None:
    """The run's client is closed by then."""
    async with AsyncClientContext():
        context = copy_context()
    assert await asyncio.create_task(write("late"), context=context)  # type: ignore[arg-type]


@on(FAKE)
async def test_another_server_that_the_settings_name_is_the_one_that_is_meant() -> None:
    """Within a run, too, whose client is that of another."""
    async with AsyncClientContext():
        with (
            temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
            pytest.raises(StoreError, match=r"127\.0\.0\.1:9"),
        ):
            await write("x")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@on(POSTGRESQL_API)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_forked_child_uses_no_connection_of_its_parent(server: Server) -> None:
    """Else each may get the other's answers, and append to what the other has read."""

    def fork() -> int:
        with SyncClientContext():
            retention.append_markdown("parent", key="parent")
            child = os.fork()
            if not child:
                signal.alarm(30)
                try:
                    own = _open(partial(get_client, sync_client=True))
                    os._exit(
                        0 if own is not get_client(sync_client=True) and retention.append_markdown("c", key="child") else 1
                    )
                finally:
                    os._exit(2)
            retention.append_markdown("parent", key="parent")
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert await asyncio.to_thread(copy_context().run, fork) == 0
    assert [each["data"] for each in await server.database.versions("child")] == ["c"]
