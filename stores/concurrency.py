"""How many requests are under way at once: found by trying, because no number is right for every server.

A server on SQLite deletes fastest one at a time, and answers 503 to two that write at once; one on PostgreSQL gains up to some
four; on Cloud, only its rate limit counts. So a run gives each level some turns, goes on at the lowest one that is about as
fast as the fastest, and tries them anew now and then. A level at which the server says that it is busy is given up for good:
two that write at once to a Prefect server on SQLite can also hold up all its writes for a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

LEVELS: tuple[int, ...] = (1, 2, 4)
MOST_AT_ONCE = LEVELS[-1]

TURNS = 3
"""Of each level, one level after the other, so that a noisy moment is not taken for a slow level."""

WINDOW = 24
"""Requests that are timed in a turn."""

HOLD = 2_000
"""Requests after which all levels are tried anew."""

GOOD_ENOUGH = 0.93
"""The lowest level with this share of the fastest one's speed is taken: it leaves more of the server to others."""

Item = TypeVar("Item")


class AdaptiveConcurrency:
    """Lets as many requests through at once as the server does best with."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots = anyio.CapacityLimiter(LEVELS[0])
        self._turn = 0
        self._turns = deque[int]()
        self._levels = LEVELS
        self._seconds = dict[int, float]()
        self._try_all()

    @property
    def level(self) -> int:
        """Requests that may be under way at once."""
        return int(self._slots.total_tokens)

    @asynccontextmanager
    async def slot(self, *, is_timed: bool) -> AsyncIterator[int]:
        """Wait for a free slot, and take it until the context ends.

        Args:
            is_timed: The request is one of the many alike by which the levels are compared.

        Yields:
            The turn that the request belongs to, to be told to `back_off`.
        """
        async with self._slots:
            turn = self._turn
            yield turn
            if is_timed and turn == self._turn:
                self._count()

    def back_off(self, turn: int) -> None:
        """Take note that the server said to a request of this turn that it is busy: go on with lower levels."""
        if turn == self._turn and self.level > LEVELS[0]:
            self._levels = tuple(level for level in self._levels if level < self.level)
            self._seconds = {level: self._seconds[level] for level in self._levels}
            self._turns = deque(level for level in self._turns if level in self._levels)
            self._next_turn()

    def _try_all(self) -> None:
        self._seconds = dict.fromkeys(self._levels, 0.0)
        self._turns = deque(self._levels * TURNS)
        self._next_turn()

    def _next_turn(self) -> None:
        """Go on with the next level to be tried, or, where none is left, with the best of those tried."""
        self._turn += 1
        self._counted = 0
        self._is_trying = bool(self._turns)
        if self._is_trying:
            self._slots.total_tokens = self._turns.popleft()
        else:
            most = min(self._seconds.values()) / GOOD_ENOUGH
            self._slots.total_tokens = min(level for level, seconds in self._seconds.items() if seconds <= most)

    def _count(self) -> None:
        """Count one more request of this turn; its clock starts, and stops, with all slots taken by requests of its own."""
        self._counted += 1
        if not self._is_trying:
            if self._counted == HOLD:
                self._try_all()
        elif self._counted == self.level:
            self._began = self._clock()
        elif self._counted == self.level + WINDOW:
            self._seconds[self.level] += self._clock() - self._began
            self._next_turn()


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
