"""How many requests a run has under way at once follows what the server does best with."""

import asyncio
from collections.abc import Mapping

import pytest
from prefect_artifact_retention.stores.concurrency import (
    FIRST_LEVEL_REQUESTS,
    LEVELS,
    SETTLED_REQUESTS,
    AdaptiveConcurrency,
    for_each,
)


class ServerModel:
    """Answers requests one by one, at a speed that depends on how many are under way; time is what it takes for them."""

    def __init__(self, speeds: Mapping[int, float], most: int = LEVELS[-1], *, takes_several: bool = True) -> None:
        self.speeds = speeds
        self.most = most
        self.seconds = 0.0
        self.levels: list[int] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.concurrency = AdaptiveConcurrency(clock=lambda: self.seconds)
        if takes_several:
            self.concurrency.allow_concurrency()

    async def request(self, _number: int = 0) -> None:
        """A deletion; a server with more under way than it can take says that it is busy before it answers."""
        async with self.concurrency.slot(is_timed=True) as turn:
            answer = asyncio.get_running_loop().create_future()
            self.waiting.append(answer)
            if len(self.waiting) > self.most:
                await asyncio.sleep(0)
                self.concurrency.back_off(turn)
            await answer

    async def serve(self, requests: int, at_once: int = 16) -> None:
        """Answer so many requests of a run that always has some more to send."""
        sender = asyncio.ensure_future(for_each(range(requests), self.request, at_once))
        while not sender.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if self.waiting:
                self.levels.append(len(self.waiting))
                self.seconds += 1 / self.speeds[len(self.waiting)]
                self.waiting.pop(0).set_result(None)
        await sender


SQLITE = {1: 150.0, 2: 120.0, 3: 100.0, 4: 90.0}
POSTGRESQL = {1: 100.0, 2: 140.0, 3: 160.0, 4: 174.0}
LIMITED = {1: 10.0, 2: 10.2, 3: 10.3, 4: 10.4}


@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        pytest.param(SQLITE, 1, id="slower with more"),
        pytest.param(POSTGRESQL, 4, id="faster with more"),
        pytest.param({1: 100.0, 2: 150.0, 3: 140.0, 4: 130.0}, 2, id="fastest in the middle"),
        pytest.param(LIMITED, 1, id="held up by something else"),
    ],
)
async def test_a_run_goes_on_at_the_lowest_level_about_as_fast_as_the_fastest(speeds: Mapping[int, float], best: int) -> None:
    """And has spent few requests to find it."""
    server = ServerModel(speeds)
    await server.serve(1000)
    assert server.concurrency.level == best
    assert set(server.levels[600:900]) == {best}


async def test_a_short_run_has_as_many_under_way_as_the_server_is_known_to_take() -> None:
    """Trying others would not pay."""
    server = ServerModel(SQLITE)
    await server.serve(FIRST_LEVEL_REQUESTS)
    assert set(server.levels[: FIRST_LEVEL_REQUESTS - LEVELS[-1]]) == {LEVELS[-1]}


async def test_one_request_is_under_way_at_a_time_where_the_server_is_not_known_to_take_several() -> None:
    """So a server on SQLite never gets two that write at once."""
    server = ServerModel(POSTGRESQL, takes_several=False)
    await server.serve(3 * SETTLED_REQUESTS)
    assert set(server.levels) == {1}


async def test_no_level_is_tried_below_one_that_is_slower_and_that_one_seldom() -> None:
    """So trying costs a server on PostgreSQL hardly anything."""
    server = ServerModel(POSTGRESQL)
    await server.serve(10 * SETTLED_REQUESTS)
    assert server.levels.count(1) < FIRST_LEVEL_REQUESTS / 10
    assert 0 < server.levels.count(2) < 0.06 * 10 * SETTLED_REQUESTS


async def test_a_server_that_is_busy_gets_fewer_at_once_for_a_good_while() -> None:
    """Though it would be faster with more; the level at which it said so is left at once."""
    server = ServerModel(POSTGRESQL, most=2)
    await server.serve(FIRST_LEVEL_REQUESTS)
    assert server.concurrency.level == 2
    server.levels.clear()
    await server.serve(SETTLED_REQUESTS - 2 * FIRST_LEVEL_REQUESTS)
    assert set(server.levels) == {2, 1}
    assert server.levels.count(1) == 1  # the last one
    server.most = LEVELS[-1]
    await server.serve(2 * SETTLED_REQUESTS)
    assert server.concurrency.level == LEVELS[-1]


async def test_a_server_that_is_busy_while_levels_are_compared_is_not_compared_on() -> None:
    """Not with the level below either: nothing is known of that."""
    server = ServerModel(SQLITE)
    await server.serve(FIRST_LEVEL_REQUESTS + 45)
    assert server.concurrency.level == 2
    server.most = 1
    await server.serve(20)
    assert server.concurrency.level == 1
    server.most, server.speeds = LEVELS[-1], POSTGRESQL
    server.levels.clear()
    await server.serve(SETTLED_REQUESTS - 100)
    assert set(server.levels) == {1}


async def test_a_server_that_is_busy_with_any_number_gets_one_at_a_time() -> None:
    """And that one always: it waits for its turn, and is not refused by us."""
    server = ServerModel(POSTGRESQL, most=0)
    await server.serve(FIRST_LEVEL_REQUESTS)
    assert server.concurrency.level == 1
    assert set(server.levels[20:]) == {1}


async def test_levels_are_tried_anew_when_a_server_has_become_faster() -> None:
    """Somebody else was at work, and has finished."""
    server = ServerModel(SQLITE)
    await server.serve(SETTLED_REQUESTS)
    assert server.concurrency.level == 1
    server.speeds = POSTGRESQL
    await server.serve(2 * SETTLED_REQUESTS)
    assert server.concurrency.level == 4


async def test_a_request_that_fails_gives_its_slot_back() -> None:
    """Or a few failures would stop a run for good."""
    concurrency = AdaptiveConcurrency()
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with concurrency.slot(is_timed=True):
                raise RuntimeError
    async with asyncio.timeout(1), concurrency.slot(is_timed=True):
        pass


async def test_what_is_under_way_ends_with_the_first_failure_or_cancellation() -> None:
    """Nothing goes on in the background."""
    ended: list[int] = []

    async def work(item: int) -> None:
        try:
            if item == 2:
                raise ValueError
            await asyncio.sleep(60)
        finally:
            ended.append(item)

    with pytest.raises(ValueError):  # noqa: PT011
        await for_each(range(5), work, at_once=3)
    assert sorted(ended) == [0, 1, 2]
    ended.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await for_each([0, 1, 3], work, at_once=2)
    assert sorted(ended) == [0, 1]
