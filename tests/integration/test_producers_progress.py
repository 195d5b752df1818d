"""The progress of a job as an artifact, on real servers."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from contextvars import copy_context
from decimal import Decimal
from importlib import import_module
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import httpx
import prefect_artifact_retention as retention
import pytest
from prefect import flow, get_client, task
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect_artifact_retention.policies import StoreError
from servers import POSTGRESQL_API, SQLITE_API, Server, on, talking_to, thorough

BOTH = on(SQLITE_API, thorough(POSTGRESQL_API))


@contextmanager
def updates(*, fail: bool = False) -> Iterator[list[str]]:
    """What sync code sends to update artifacts meanwhile; or the server cannot be reached for that."""
    requests: list[str] = []
    send = httpx.HTTPTransport.handle_request

    def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH":
            requests.append(request.content.decode())
            if fail:
                raise httpx.ConnectError("nobody there")
        return send(transport, request)

    with patch.object(httpx.HTTPTransport, "handle_request", handle), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield requests


async def shown(server: Server, key: str = "load") -> dict[str, Any]:
    """The only version of a key."""
    (version,) = await server.database.versions(key)
    assert version["type"] == "progress"
    return version


@BOTH
async def test_progress_is_one_artifact_that_is_updated_about_once_a_second(server: Server) -> None:
    """However often it is advanced; it says how many steps are done, how long the others take, and the rate."""
    with server.active(), updates() as requests:
        began = time.monotonic()
        with retention.progress(key="load", total=20_000, description="Loading", metadata={"team": "data"}) as bar:
            while len(requests) < 2:
                bar.advance(2)
                await asyncio.sleep(0.005)
            assert time.monotonic() - began >= 2
            during = await shown(server)
        assert len(requests) == 3
    assert 0 < during["data"] < 90
    assert re.fullmatch(r"Loading: \d+/20000, \d+ (s|min|h .*) left, \d+/s", during["description"])
    version = await shown(server)
    assert version["data"] == 100
    assert re.fullmatch(r"Loading: \d+/20000 in \d+ s, \d+/s", version["description"])
    assert version["metadata_"] == {"team": "data"}


@BOTH
async def test_progress_in_async_code_says_where_it_stopped_and_why(server: Server) -> None:
    """And the error of the block is raised as it is."""

    async def load() -> None:
        async with retention.progress(key="load", total=40, description="Loading") as bar:
            await bar.aadvance(10)
            _ = 1 / 0

    with server.active():
        with pytest.raises(ZeroDivisionError):
            await load()
        version = await shown(server)
        assert version["data"] == 25
        assert version["description"] == "Loading: stopped at 10/40: ZeroDivisionError: division by zero"
        with suppress(asyncio.CancelledError):
            async with retention.progress(key="unknown") as bar:
                await bar.aadvance(0.5)
                raise asyncio.CancelledError
    version = await shown(server, "unknown")
    assert (version["data"], version["description"]) == (0, "stopped at 0.5: CancelledError")


@on(SQLITE_API)
async def test_rows_can_be_tracked(server: Server) -> None:
    """In sync and in async code, of lists and of what has no length; a loop may end early."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    with server.active():
        assert list(retention.track([1, 2, 3], key="list")) == [1, 2, 3]
        assert list(retention.track(iter([1, 2]), key="iterator", description="Iterating")) == [1, 2]
        assert [each async for each in retention.atrack([1, 2], key="async")] == [1, 2]
        assert [each async for each in retention.atrack(numbers(), key="generator", total=3)] == [0, 1, 2]
        early = retention.track([1, 2, 3, 4], key="early")
        assert [next(early), next(early)] == [1, 2]
        early.close()
        async for each in retention.atrack([1, 2, 3, 4], key="left"):
            if each == 3:
                break
        async with aclosing(retention.atrack([1, 2, 3, 4], key="closed")) as closing:
            async for _each in closing:
                break
        for _turn in range(100):
            if (await shown(server, "left"))["data"]:
                break
            await asyncio.sleep(0.1)
    for key, text in (("list", "3/3"), ("iterator", "Iterating: 2"), ("async", "2/2"), ("generator", "3/3")):
        version = await shown(server, key)
        assert version["data"] == 100
        assert version["description"].startswith(f"{text} in ")
    version = await shown(server, "early")
    assert (version["data"], version["description"]) == (25, "stopped at 1/4: the loop over it ended early")
    version = await shown(server, "left")
    assert (version["data"], version["description"]) == (50, "stopped at 2/4: the loop over it ended early")
    assert (await shown(server, "closed"))["description"] == "stopped at 0/4: the loop over it ended early"


@on(SQLITE_API)
async def test_a_second_attempt_of_a_run_updates_the_artifact_of_the_first(server: Server) -> None:
    """Each task run has its own, and so has the flow run; another run makes a new version."""
    attempts: list[int] = []

    @task(retries=1)
    def load(fails: int) -> None:
        with retention.progress(key="task", total=10) as bar:
            bar.advance(5)
            attempts.append(fails)
            if attempts.count(fails) <= fails:
                raise RuntimeError("the first attempt")
            bar.advance(5)

    @flow
    def job() -> None:
        for _ in range(2):
            with retention.progress(key="flow", total=1) as bar:
                bar.advance()
        load(1)
        load(0)
        with retention.progress(key="task", total=1) as bar:
            bar.advance()

    with server.active():
        await asyncio.to_thread(job)
        assert len(await server.database.versions("flow")) == 1
        versions = await server.database.versions("task")
        assert [version["data"] for version in versions] == [100] * 3
        await asyncio.to_thread(job)
    assert len(await server.database.versions("flow")) == 2


@on(SQLITE_API)
async def test_an_update_that_fails_fails_the_job_only_if_so_wished(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The error of the block is never replaced by another."""
    with server.active(), updates(fail=True) as requests:
        with (
            pytest.raises(StoreError, match="could not show the progress 'load': cannot reach"),
            retention.progress("load", 10),
        ):
            pass
        with retention.progress("logged", 10, on_error="log") as bar:
            while not requests[1:]:
                bar.advance(0)
                await asyncio.sleep(0.05)
            bar.advance(-1)
        with pytest.raises(ZeroDivisionError), retention.progress("raised", 10):
            _ = 1 / 0
    assert sum("and goes on without" in record.message for record in caplog.records) == 4
    assert (await shown(server, "logged"))["data"] == 0


@contextmanager
def answering_503() -> Iterator[list[float]]:
    """A server that answers everything so, to sync and to async code; when it was asked."""
    asked: list[float] = []

    def answer(_transport: object, request: httpx.Request) -> httpx.Response:
        asked.append(time.monotonic())
        # Without this header, Prefect's client waits for two seconds after the last attempt, too.
        return httpx.Response(503, headers={"Retry-After": "0"}, request=request)

    async def aanswer(transport: object, request: httpx.Request) -> httpx.Response:
        return answer(transport, request)

    with (
        patch.object(httpx.HTTPTransport, "handle_request", answer),
        patch.object(httpx.AsyncHTTPTransport, "handle_async_request", aanswer),
        talking_to("http://127.0.0.1:9/api"),
    ):
        yield asked


def test_a_server_that_hangs_or_refuses_hardly_holds_up_a_job_that_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request has a short time of its own, within a run, too; what is refused at the end is not asked again."""
    module = import_module(retention.progress.__module__)
    monkeypatch.setattr(module, "END_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.1)
    hanging = socket.create_server(("127.0.0.1", 0))
    began = time.monotonic()
    with closing(hanging), talking_to(f"http://127.0.0.1:{hanging.getsockname()[1]}/api"):
        with retention.progress("load", on_error="log"):
            pass
        asyncio.run(anothing("load"))
    assert time.monotonic() - began < 30
    asked: list[str] = []

    def refuse(_transport: object, request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        return httpx.Response(422, request=request)

    with (
        patch.object(httpx.HTTPTransport, "handle_request", refuse),
        talking_to("http://127.0.0.1:9/api"),
        retention.progress("load", on_error="log"),
    ):
        pass
    assert len(asked) == 2


async def anothing(key: str) -> None:
    """A job in async code that does nothing, and goes on without its progress."""
    async with retention.progress(key, on_error="log"):
        pass


async def test_a_busy_server_does_not_hold_up_a_job_that_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's client would wait for two minutes each time. The server is asked ever more rarely, and again in the end."""
    module = import_module(retention.progress.__module__)
    for name, value in {"UPDATE_SECONDS": 0.05, "PAUSE_FACTOR": 0, "END_PAUSE_SECONDS": 0.05}.items():
        monkeypatch.setattr(module, name, value)
    with answering_503() as asked:
        began = time.monotonic()
        with retention.progress("sync", 100, on_error="log") as bar:
            while len(asked) < 4:
                bar.advance()
                await asyncio.sleep(0.01)
            pauses = [later - before for before, later in pairwise(asked)]
        async with retention.progress("async", 100, on_error="log") as bar:
            await bar.aadvance()
        assert time.monotonic() - began < 30
    assert pauses[0] >= 0.1
    assert pauses[1] >= 0.2
    assert pauses[2] >= 0.4
    assert len(asked) == 4 + 2 + 1 + 2


@pytest.mark.parametrize("total", ["10", -1, float("nan"), 10**400, Decimal("nan")], ids=str)
async def test_what_cannot_be_meant_does_not_fail_a_job_that_goes_on_without(
    total: Any,  # noqa: ANN401 - that is the point
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A total or a number of steps is a line in the log; nothing is sent of a progress that cannot be computed."""
    for name in ("UPDATE_SECONDS", "MAX_UPDATE_SECONDS", "PAUSE_FACTOR"):
        monkeypatch.setattr(import_module(retention.progress.__module__), name, 0)
    with answering_503() as asked:
        with retention.progress("load", total, on_error="log") as bar:
            for steps in (1, "x", 10**400):
                bar.advance(steps)  # type: ignore[arg-type]
        assert [each async for each in retention.atrack([1, 2], "load", total, on_error="log")] == [1, 2]
    assert not asked
    assert sum("is no number of steps" in record.message for record in caplog.records) == 4


def test_an_option_that_there_is_not_is_an_error_in_any_case() -> None:
    """Of the source code, as any wrong argument."""
    for helper in (retention.progress, retention.publish_markdown, retention.append_markdown):
        with pytest.raises(TypeError, match=r"^there is no option 'ttl': there are ttl_days, hold, metadata and on_error"):
            helper("load", "load", ttl=3, on_error="log")  # type: ignore[operator]


@on(SQLITE_API)
async def test_what_somebody_else_put_into_the_metadata_stays(server: Server) -> None:
    """Such as a hold, in updates and in a second attempt, which adds what is missing."""

    @flow
    async def job(**options: Any) -> None:  # noqa: ANN401 - any of the options
        async with retention.progress("load", 10, **options) as bar:
            async with get_client() as client:
                (row,) = await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["load"])))
                held = {**(row.metadata_ or {}), "retention-hold": "true"}
                await client.update_artifact(row.id, ArtifactUpdate(metadata_=held))
            await bar.aadvance()
        async with retention.progress("load", 10, **options, metadata={"team": "data"}):
            pass

    with server.active():
        await job(ttl_days=3)
    assert (await shown(server))["metadata_"] == {"retention-ttl-days": "3", "retention-hold": "true", "team": "data"}


@on(SQLITE_API)
async def test_an_artifact_that_was_deleted_meanwhile_is_made_anew(server: Server) -> None:
    """As by a cleanup over a job that runs for weeks."""
    with server.active(), retention.progress("load", 10) as bar:
        bar.advance(10)
        await server.database.clear()
    assert (await shown(server))["data"] == 100


@on(SQLITE_API)
async def test_progress_that_has_ended_stays_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a thread that was not waited for counts afterwards, or was just sending."""
    module = import_module(retention.progress.__module__)
    monkeypatch.setattr(module, "UPDATE_SECONDS", 0)
    monkeypatch.setattr(module, "PAUSE_FACTOR", 0)
    update, sending = module.LiveArtifact.update, threading.Event()

    def slow(self: Any, percent: float, *rest: Any) -> Iterator[Any]:  # noqa: ANN401 - as the original
        if percent < 100:
            sending.set()
            yield 0.3
        yield from update(self, percent, *rest)

    monkeypatch.setattr(module.LiveArtifact, "update", slow)
    with server.active():
        with retention.progress("sync", 10) as bar:
            thread = threading.Thread(target=copy_context().run, args=(bar.advance, 5))
            thread.start()
            sending.wait(10)
        thread.join()
        bar.advance(3)
        sending.clear()
        async with retention.progress("async", 10) as bar:
            other = asyncio.create_task(bar.aadvance(5))
            while not sending.is_set():  # noqa: ASYNC110 - it is set by the generator
                await asyncio.sleep(0.01)
        await other
        await bar.aadvance(3)
    for key in ("sync", "async"):
        version = await shown(server, key)
        assert version["data"] == 100
        assert version["description"].startswith("5/10 in ")


@on(SQLITE_API)
async def test_a_long_name_is_cut_and_not_what_it_says(server: Server) -> None:
    """How far it is, or where it stopped and why."""
    with server.active():
        with retention.progress("load", Decimal("2.5"), "Loading " * 100) as bar:
            bar.advance(Decimal("0.5"))
        with pytest.raises(ZeroDivisionError), retention.progress("stopped", Decimal(4), "Loading " * 100) as bar:
            bar.advance(Decimal(1) / 0)
    description = (await shown(server))["description"]
    assert len(description) <= 500
    assert re.search(r"^Loading .*…: 0\.5/2\.5 in \d+ s", description)
    version = await shown(server, "stopped")
    assert version["data"] == 0
    assert version["description"].rpartition("…: ")[2].startswith("stopped at 0/4: DivisionByZero")


async def test_a_progress_is_used_in_one_block() -> None:
    """Anything else is an error of the source code, and so none to be logged."""
    bar = retention.progress("load", "x", on_error="log")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"^the progress 'load' has not begun: use it in a `with`"):
        bar.advance()
    with pytest.raises(RuntimeError, match=r"^the progress 'load' has not begun: use it in a `with`"):
        await bar.aadvance()
    with bar:
        pass
    with pytest.raises(RuntimeError, match=r"^the progress 'load' has begun before: make one for each block"):
        bar.__enter__()
    with pytest.raises(RuntimeError, match=r"^the progress 'load' has begun before: make one for each block"):
        await bar.__aenter__()


@pytest.mark.parametrize("total", [-1, True, float("nan"), "10"], ids=repr)
def test_a_total_that_cannot_be_meant_is_refused_before_a_request(total: Any) -> None:  # noqa: ANN401 - that is the point
    """As any argument."""
    with pytest.raises(ValueError, match=r"^total = .* is no number of steps"), retention.progress("load", total):
        pass
