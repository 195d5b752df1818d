"""Adapts the number of concurrent requests to the server, by measuring.

A server on SQLite deletes fastest one request at a time, and two concurrent writes can block all its writes for a minute. One
on PostgreSQL gets faster up to about four; on Cloud, only the rate limit counts.

So requests are sent one at a time until `allow_concurrency`. Then the run starts at the highest level, compares it with the
level below, and steps down for as long as the lower one is about as fast. The comparison is repeated from time to time. When
the server answers that it is busy, the run steps down at once, until the next comparison.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from math import inf
from typing import TypeVar

import anyio

LEVELS: tuple[int, ...] = (1, 2, 4)
"""The numbers of concurrent requests to choose from."""

MAX_CONCURRENT_REQUESTS = LEVELS[-1]

FIRST_LEVEL_REQUESTS = 200
"""Requests at the highest level before the first comparison. With fewer, short runs spend their time on comparing."""

TURNS_PER_LEVEL = 3
"""How often each of two levels is timed, in alternation; the fastest turn counts. With fewer, a turn slowed by reads or by new
connections may decide."""

TIMED_REQUESTS_PER_TURN = 24
"""Requests timed in one turn. With fewer, noise decides; with more, a comparison takes longer."""

SETTLED_REQUESTS = 2_000
"""Requests between two comparisons. With fewer, more time is spent comparing; with more, a change of load is noticed later."""

MIN_GAIN_FACTOR = 1.07
"""How much faster a higher level must be to be used. A larger factor leaves more of the server to others."""

Item = TypeVar("Item")

_RESERVED_TURN: ContextVar[int | None] = ContextVar("_RESERVED_TURN", default=None)
"""The turn of the slot that is reserved for this context."""


class AdaptiveConcurrency:
    """Limits concurrent requests to one, or to the fastest of `LEVELS` once concurrency is allowed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots = anyio.CapacityLimiter(LEVELS[0])
        self._turn = 0
        self._levels = LEVELS[:1]
        self._seconds = dict[int, float]()
        self._turns = deque[int]()
        self._go_on(LEVELS[0], SETTLED_REQUESTS)

    @property
    def level(self) -> int:
        """The present number of concurrent requests."""
        return int(self._slots.total_tokens)

    def allow_concurrency(self) -> None:
        """Allow concurrent requests from now on."""
        self._levels = LEVELS
        self._settle(LEVELS[-1], FIRST_LEVEL_REQUESTS)

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
        """Go on with the level below, because the server answered a request of this turn that it is busy."""
        if turn == self._turn:
            self._settle(self._levels[max(0, self._levels.index(self.level) - 1)])

    def _go_on(self, level: int, requests: int) -> None:
        """Start a turn of `requests` requests at a level."""
        self._slots.total_tokens = level
        self._turn += 1
        self._counted = 0
        self._last = requests

    def _settle(self, level: int, requests: int = SETTLED_REQUESTS) -> None:
        """Stay at a level for `requests` requests, after which the levels are compared again."""
        self._seconds.clear()
        self._turns.clear()
        self._go_on(level, requests)

    def _compare(self, level: int) -> None:
        """Start the comparison of a level with the next lower one."""
        if level == self._levels[0]:
            self._settle(level)
            return
        pair = (level, self._levels[self._levels.index(level) - 1])
        self._seconds = dict.fromkeys(pair, inf)
        self._turns = deque(pair * TURNS_PER_LEVEL)
        self._next_turn()

    def _next_turn(self) -> None:
        if self._turns:
            level = self._turns.popleft()
            self._go_on(level, level + TIMED_REQUESTS_PER_TURN)
            return
        (higher, higher_seconds), (lower, lower_seconds) = self._seconds.items()
        if lower_seconds >= MIN_GAIN_FACTOR * higher_seconds:
            self._settle(higher)
        else:
            self._compare(lower)

    def _count(self) -> None:
        """Count a request of this turn. A turn is timed only while all slots are occupied by requests of its own."""
        self._counted += 1
        if self._counted == self.level:
            self._began = self._clock()
        if self._counted < self._last:
            return
        if self._seconds:
            self._seconds[self.level] = min(self._seconds[self.level], self._clock() - self._began)
            self._next_turn()
        else:
            self._compare(self._levels[-1])


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
