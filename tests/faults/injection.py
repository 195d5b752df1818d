"""Faults at the transport of httpx: the k-th request of a run fails, before or after the real server has acted."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import httpx
import prefect.client.base
import pytest
from prefect_artifact_retention.stores.connection import MAX_RETRY_AFTER_SECONDS

MAX_PAUSE_SECONDS = MAX_RETRY_AFTER_SECONDS * 1.2
"""Seconds; Prefect's client adds up to a fifth."""

Send = Callable[[httpx.Request], Awaitable[httpx.Response]]
Act = Callable[[httpx.Request, Send], Awaitable[httpx.Response]]


@dataclass(frozen=True)
class Fault:
    """One way for a request to fail.

    Attributes:
        name: What happens.
        act: Does it, with the request and the way to the real server.
        lasting: Every further attempt of the same request fails likewise.
        outage: Every later request that it can happen to fails likewise.
        of: Which requests it can happen to.
    """

    name: str
    act: Act
    lasting: bool = False
    outage: bool = False
    of: Callable[[httpx.Request], bool] = lambda _request: True

    def outcome(self, victim: httpx.Request, stale: Collection[UUID]) -> str:
        """The outcome that a run must have of which this request met the fault, where there is only one; else empty.

        What passes is tried again until it succeeds; a deletion of a stale version that fails for good fails its key.
        """
        is_for_good = self.lasting or self.outage
        if self.name.startswith(("timeout", "dropped", "429", "503", "504")) and not is_for_good:
            return "completed"
        fails = is_for_good or self.name.startswith(("404 before", "409", "500"))
        is_of_plan = victim.method == "DELETE" and victim.url.path.endswith(tuple(map(str, stale)))
        return "failed" if fails and is_of_plan and self.of(victim) else ""


def is_write(request: httpx.Request) -> bool:
    """Whether it makes a difference that the server has acted before the answer is lost."""
    return request.method in ("DELETE", "PATCH") or request.url.path.endswith(("/artifacts/", "/set_state"))


def is_listing(request: httpx.Request) -> bool:
    """Whether it asks for a page of rows."""
    return request.url.path.endswith("/filter") and b'"limit"' in request.content


def has_offset(request: httpx.Request) -> bool:
    """Whether it asks for a page that is not the first."""
    return is_listing(request) and json.loads(request.content)["offset"] > 0


def raises(error: type[httpx.RequestError], *, after: bool = False) -> Act:
    """The connection breaks, or time runs out."""

    async def act(request: httpx.Request, send: Send) -> httpx.Response:
        if after:
            await (await send(request)).aread()
        raise error("injected", request=request)

    return act


def answers(status: int, headers: Callable[[], dict[str, str]] = dict, *, after: bool = False) -> Act:
    """The server, or a proxy before it, answers with an error."""

    async def act(request: httpx.Request, send: Send) -> httpx.Response:
        if after:
            await (await send(request)).aread()
        return httpx.Response(status, headers=headers(), json={"detail": "injected"}, request=request)

    return act


async def truncate(request: httpx.Request, send: Send) -> httpx.Response:
    """Half of the answer, and nothing says that it is not whole."""
    response = await send(request)
    content = await response.aread()
    headers = {"Date": response.headers["Date"]} if "Date" in response.headers else {}
    if not content:
        return httpx.Response(response.status_code, headers=headers, request=request)
    return httpx.Response(response.status_code, headers=headers, content=content[: len(content) // 2], request=request)


def shifts(by: int) -> Act:
    """The page begins some rows too late, or too early: rows went or came before it."""

    async def act(request: httpx.Request, send: Send) -> httpx.Response:
        body: dict[str, Any] = json.loads(request.content)
        body["offset"] += by
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        return await send(
            httpx.Request(request.method, request.url, headers=headers, json=body, extensions=request.extensions)
        )

    return act


def retry_after(value: str) -> Callable[[], dict[str, str]]:
    """The header that asks for a pause."""
    return lambda: {"Retry-After": value}


def in_an_hour() -> dict[str, str]:
    """The header that asks for a pause until a date."""
    return {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)}


MAINTENANCE = Fault("maintenance from here on", answers(503, lambda: {"Prefect-Maintenance": "true"}), outage=True)

PAUSES = (
    Fault("429 in seconds", answers(429, retry_after("7"))),
    Fault("429 until a date", answers(429, in_an_hour)),
    Fault("429 for eleven days", answers(429, retry_after("1000000"))),
    Fault("429 for ever", answers(429, retry_after("inf"))),
    Fault("429 until no date", answers(429, retry_after("Wed, 21 Oct 99999999999999999999 07:28:00 GMT"))),
)
"""Faults that are alike but for the pause that the server asks for, which nobody sleeps."""

FAULTS = (
    *PAUSES,
    Fault("timeout before", raises(httpx.ReadTimeout)),
    Fault("timeout after", raises(httpx.ReadTimeout, after=True), of=is_write),
    Fault("timeout for good", raises(httpx.ReadTimeout), lasting=True),
    Fault("dropped before", raises(httpx.RemoteProtocolError)),
    Fault("dropped after", raises(httpx.ReadError, after=True), of=is_write),
    Fault("dropped after, for good", raises(httpx.ReadError, after=True), lasting=True, of=is_write),
    Fault("refused from here on", raises(httpx.ConnectError), outage=True),
    Fault("404 before", answers(404)),
    Fault("404 after", answers(404, after=True), of=is_write),
    Fault("409 before", answers(409)),
    Fault("409 after", answers(409, after=True), of=is_write),
    Fault("429 in seconds, after", answers(429, retry_after("7"), after=True), of=is_write),
    Fault("429 for good", answers(429, retry_after("86400")), lasting=True),
    Fault("500 before", answers(500)),
    Fault("500 after", answers(500, after=True), of=is_write),
    Fault("500 from here on", answers(500), outage=True),
    Fault("503 before", answers(503)),
    Fault("503 after", answers(503, after=True), of=is_write),
    Fault("503 for good", answers(503), lasting=True),
    Fault("503 from here on", answers(503), outage=True),
    MAINTENANCE,
    Fault("504 before", answers(504)),
    Fault("504 after", answers(504, after=True), of=is_write),
    Fault("504 for good", answers(504), lasting=True),
    Fault("truncated", truncate),
    Fault("page skips a row", shifts(1), of=is_listing),
    Fault("pages skip a row from here on", shifts(1), outage=True, of=is_listing),
    Fault("page repeats a row", shifts(-1), of=has_offset),
)
"""Every fault, once."""

ALIKE = (
    {"timeout before", "dropped before", "503 before", "504 before"},
    {"404 before", "409 before", "500 before"},
    {"timeout for good", "429 for good", "503 for good", "504 for good"},
    {"refused from here on", "500 from here on", "503 from here on"},
)
"""Names of faults that differ where something is written, and little where it is read."""


def takes_turn(fault: Fault, request: httpx.Request, at: int) -> bool:
    """Whether this fault is to be tried at this request, if faults that are alike take turns."""
    if fault in PAUSES:
        return PAUSES[at % len(PAUSES)] is fault
    family = [each for names in ALIKE if fault.name in names for each in FAULTS if each.name in names]
    return is_write(request) or not family or family[at % len(family)] is fault


@dataclass
class Line:
    """The line to the server: counts requests, fails the one it is told to, and notes the pauses instead of sleeping them."""

    fault: Fault | None = None
    at: int = 0
    requests: list[httpx.Request] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    victim: httpx.Request | None = None

    def fails(self, request: httpx.Request) -> bool:
        """Whether this request is to fail."""
        if self.fault is None:
            return False
        if self.victim is None:
            # Retries that are none of ours shift the numbers.
            if len(self.requests) > self.at and self.fault.of(request):
                self.victim = request
            return request is self.victim
        return (self.fault.outage and self.fault.of(request)) or (self.fault.lasting and request is self.victim)


@contextmanager
def line(monkeypatch: pytest.MonkeyPatch, fault: Fault | None = None, at: int = 0) -> Iterator[Line]:
    """Let a request of this thread meet a fault: number `at`, counted from 0, or the next one to which it can happen.

    The pauses before retries are not slept.

    Prefect sends its log lines from a thread of its own, whenever it likes.
    """
    made = Line(fault, at)
    thread = threading.current_thread()
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        async def forward(request: httpx.Request) -> httpx.Response:
            return await send(transport, request)

        if threading.current_thread() is not thread:
            return await forward(request)
        await request.aread()
        made.requests.append(request)
        if fault and made.fails(request):
            return await fault.act(request, forward)
        return await forward(request)

    async def sleep(seconds: float) -> None:
        # Prefect's own clients, without our hooks, take whatever pause the server asks for.
        if "attempts" in made.requests[-1].extensions:
            made.pauses.append(seconds)
        await anyio.lowlevel.checkpoint()

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
        shortened = SimpleNamespace(sleep=sleep, Lock=anyio.Lock, CancelScope=anyio.CancelScope)
        patch.setattr(prefect.client.base, "anyio", shortened)
        yield made
