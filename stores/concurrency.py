"""How many requests are under way at once: found by trying, because no number is right for every server.

A server on SQLite deletes fastest one at a time, and two that write at once can hold up all its writes for a minute. One on
PostgreSQL gains up to some four; on Cloud, only its rate limit counts. So there is one at a time until it is known that the
server bears several. Then a run begins with the most, and compares that with the level below, and so on downwards for as long
as that is about as fast; it does so anew now and then. A level at which the server says that it is busy is left until then.
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
MAX_CONCURRENT_REQUESTS = LEVELS[-1]

FIRST_LEVEL_REQUESTS = 200
"""Requests at the highest level before it is compared: in a run that has no more, that would not pay."""

TURNS_PER_LEVEL = 3
"""Of each of two levels, one after the other. The quickest counts: others have looks in between, or open connections."""

TIMED_REQUESTS_PER_TURN = 24
"""Requests that are timed in a turn."""

SETTLED_REQUESTS = 2_000
"""Requests for which the run stays at a level, before any are compared again."""

MIN_GAIN_FACTOR = 1.07
"""A higher level is stayed at if it is faster by this factor: a lower one leaves more of the server to others."""

Item = TypeVar("Item")

_RESERVED_TURN: ContextVar[int | None] = ContextVar("_RESERVED_TURN", default=None)
"""The turn of the slot that is kept for what is going on."""


class AdaptiveConcurrency:
    """Lets one request through at a time, or as many at once as the server does best with, if it bears several."""

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
        """Requests that may be under way at once."""
        return int(self._slots.total_tokens)

    def allow_concurrency(self) -> None:
        """Have several requests under way at once from now on: the server bears it."""
        self._levels = LEVELS
        self._settle(LEVELS[-1], FIRST_LEVEL_REQUESTS)

    @asynccontextmanager
    async def slot(self, *, is_timed: bool) -> AsyncIterator[int]:
        """Wait for a free slot, and take it until the context ends.

        Args:
            is_timed: The request is one of the many alike by which the levels are compared.

        Yields:
            The turn that the request belongs to, to be told to `back_off`.
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
        """Take one slot for all requests until the context ends: none of them waits for others."""
        async with self.slot(is_timed=False) as turn:
            token = _RESERVED_TURN.set(turn)
            try:
                yield
            finally:
                _RESERVED_TURN.reset(token)

    def back_off(self, turn: int) -> None:
        """Take note that the server said to a request of this turn that it is busy: the run goes on with the level below."""
        if turn == self._turn:
            self._settle(self._levels[max(0, self._levels.index(self.level) - 1)])

    def _go_on(self, level: int, requests: int) -> None:
        """Go on at a level, for so many requests."""
        self._slots.total_tokens = level
        self._turn += 1
        self._counted = 0
        self._last = requests

    def _settle(self, level: int, requests: int = SETTLED_REQUESTS) -> None:
        """Stay at a level for so many requests, until it is time to try them all anew."""
        self._seconds.clear()
        self._turns.clear()
        self._go_on(level, requests)

    def _compare(self, level: int) -> None:
        """Begin to compare a level with the next lower one."""
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
        """Count one more request of this turn; its clock starts, and stops, with all slots taken by requests of its own."""
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
    """Do some work on each item, in their order, some at once. If it is cancelled or fails, so is all that is under way."""
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
