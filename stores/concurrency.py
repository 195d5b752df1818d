"""Adapts the number of concurrent requests to the server, by measuring.

A server on SQLite deletes fastest one request at a time, and two concurrent writes can block all its writes for a minute. One
on PostgreSQL gets faster up to about four, or to more that are far away; on Cloud, only the rate limit counts.

So requests are sent one at a time until `allow_concurrency`, and then `FIRST_LEVEL` at once. Twice as many are tried for as
long as that is faster by more than noise, and again from time to time. When the server answers that it is busy, the run goes
on with half as many at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TypeVar

import anyio

LOWEST_LEVEL = 1
FIRST_LEVEL = 4
HIGHEST_LEVEL = 32
"""Requests at once: before more are allowed, at first, and at most."""

TIMED_REQUESTS = 64
"""Requests by which the speed of a level is measured. With fewer, noise decides; with more, finding the best takes longer."""

UNTIMED_REQUESTS = 64
"""Requests at a higher level before it is timed. Who sends a batch of requests takes notice of it with the next one."""

SETTLED_REQUESTS = 500
"""Requests between two attempts to go faster. With fewer, more are slow; with more, a change of load is noticed later."""

MIN_GAIN_FACTOR = 1.05
"""How much faster twice as many requests at once must be to be used. A larger factor leaves more of the server to others."""

Item = TypeVar("Item")

_RESERVED_TURN: ContextVar[int | None] = ContextVar("_RESERVED_TURN", default=None)
"""The turn of the slot that is reserved for this context."""


class AdaptiveConcurrency:
    """Limits concurrent requests to one, or to as many as make the server faster once concurrency is allowed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots = anyio.CapacityLimiter(LOWEST_LEVEL)
        self._highest = LOWEST_LEVEL
        self._turn = 0
        self._start(LOWEST_LEVEL)

    @property
    def level(self) -> int:
        """The present number of concurrent requests."""
        return int(self._slots.total_tokens)

    def allow_concurrency(self) -> None:
        """Allow concurrent requests from now on."""
        self._highest = HIGHEST_LEVEL
        self._start(FIRST_LEVEL)

    @asynccontextmanager
    async def slot(self, *, is_timed: bool) -> AsyncIterator[int]:
        """Wait for a free slot, and occupy it until the context ends.

        Args:
            is_timed: Whether the request counts for the comparison of levels; only requests of one kind do.

        Yields:
            The turn that the request belongs to, for `back_off`.
        """
        if (reserved := _RESERVED_TURN.get()) is not None:
            yield reserved
            return
        async with self._slots:
            turn = self._turn
            yield turn
            if is_timed and turn == self._turn:
                self._count()

    @asynccontextmanager
    async def reserve_slot(self) -> AsyncIterator[None]:
        """Occupy one slot for all requests of the context, so that none of them waits for other requests."""
        async with self.slot(is_timed=False) as turn:
            token = _RESERVED_TURN.set(turn)
            try:
                yield
            finally:
                _RESERVED_TURN.reset(token)

    def back_off(self, turn: int) -> None:
        """Go on with half as many at once, because the server answered a request of this turn that it is busy."""
        if turn == self._turn:
            self._start(max(LOWEST_LEVEL, self.level // 2), rest=SETTLED_REQUESTS)

    def _start(self, level: int, *, slower_rate: float = 0, rest: int = 0) -> None:
        """Start a turn at a level, which is timed after `rest` requests; twice as many are tried if it beats a lower one."""
        self._slots.total_tokens = level
        self._turn += 1
        self._slower_rate = slower_rate
        self._untimed = rest + level
        self._timed = 0

    def _count(self) -> None:
        """Count a request of this turn, which is timed only while all slots are occupied by requests of its own."""
        if self._untimed:
            self._untimed -= 1
            self._began = self._clock()
            return
        self._timed += 1
        if self._timed < TIMED_REQUESTS:
            return
        rate = self._timed / (self._clock() - self._began)
        if rate < MIN_GAIN_FACTOR * self._slower_rate:
            self._start(self.level // 2, rest=SETTLED_REQUESTS)
        elif self.level < self._highest:
            self._start(self.level * 2, slower_rate=rate, rest=UNTIMED_REQUESTS)
        else:
            self._start(self.level, rest=SETTLED_REQUESTS)


class WeightLimiter:
    """Lets several things be done at once, as long as they weigh no more than its capacity together; one at least."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._borrowed = 0
        self._first_in_line = asyncio.Lock()
        self._returned = asyncio.Event()

    @asynccontextmanager
    async def borrow(self, weight: int) -> AsyncIterator[None]:
        """Wait for so much of the capacity, in the order of asking, and occupy it until the context ends.

        Args:
            weight: How much; the whole capacity or more is granted alone.
        """
        async with self._first_in_line:
            while self._borrowed and self._borrowed + weight > self.capacity:
                self._returned.clear()
                await self._returned.wait()
            self._borrowed += weight
        try:
            yield
        finally:
            self._borrowed -= weight
            self._returned.set()


async def for_each(items: Iterable[Item], work: Callable[[Item], Awaitable[None]], at_once: int) -> None:
    """Await `work` for each item, in their order, `at_once` at a time. On a failure or cancellation, all are cancelled."""
    waiting = iter(items)

    async def go_on() -> None:
        for item in waiting:
            await work(item)

    workers = [asyncio.ensure_future(go_on()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
