"""How many requests a run has under way at once follows what the server does best with."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
from prefect_artifact_retention.stores.concurrency import (
    FIRST_LEVEL,
    HIGHEST_LEVEL,
    SETTLED_REQUESTS,
    TIMED_REQUESTS,
    AdaptiveConcurrency,
    WeightLimiter,
    for_each,
)

Speed = Callable[[int], float]
"""Requests that a server answers in a second, with so many under way."""


def like(speeds: Mapping[int, float]) -> Speed:
    """As fast as with the next lower number that is given."""
    return lambda under_way: speeds[max(level for level in speeds if level <= under_way)]


POSTGRESQL = like({1: 100, 2: 140, 3: 160, 4: 174, 8: 172, 16: 120})
SLOWER_WITH_MORE = like({1: 150, 2: 120, 3: 100, 4: 90, 8: 60})
FAR_AWAY = like({level: 20.0 * min(level, 14) for level in range(1, 33)})
WITHOUT_LIMIT = like({level: 20.0 * level for level in range(1, 33)})


class ServerModel:
    """Answers requests one by one, at a speed that depends on how many are under way; time is what it takes for them."""

    def __init__(self, speed: Speed, most: int = HIGHEST_LEVEL, *, takes_several: bool = True) -> None:
        self.speed = speed
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

    async def serve(self, requests: int, at_once: int = 64) -> None:
        """Answer so many requests of a run that always has some more to send."""
        sender = asyncio.ensure_future(for_each(range(requests), self.request, at_once))
        while not sender.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if self.waiting:
                self.levels.append(len(self.waiting))
                self.seconds += 1 / self.speed(len(self.waiting))
                self.waiting.pop(0).set_result(None)
        await sender


@pytest.mark.parametrize(
    ("speed", "best"),
    [
        pytest.param(POSTGRESQL, 4, id="fastest with four"),
        pytest.param(SLOWER_WITH_MORE, 4, id="slower with more"),
        pytest.param(FAR_AWAY, 16, id="far away"),
        pytest.param(WITHOUT_LIMIT, 32, id="without a limit"),
    ],
)
async def test_a_run_goes_on_with_as_many_as_make_the_server_faster(speed: Speed, best: int) -> None:
    """And has spent few requests to find it."""
    server = ServerModel(speed)
    await server.serve(1000)
    assert server.concurrency.level == best
    assert set(server.levels[600:700]) == {best}


async def test_a_short_run_begins_with_four_at_once() -> None:
    """Which most servers on PostgreSQL are fastest with."""
    server = ServerModel(WITHOUT_LIMIT)
    await server.serve(TIMED_REQUESTS)
    assert max(server.levels) == FIRST_LEVEL


async def test_one_request_is_under_way_at_a_time_where_the_server_is_not_known_to_take_several() -> None:
    """So a server on SQLite never gets two that write at once."""
    server = ServerModel(WITHOUT_LIMIT, takes_several=False)
    await server.serve(3 * SETTLED_REQUESTS)
    assert set(server.levels) == {1}


async def test_more_are_tried_seldom() -> None:
    """So trying costs a server on PostgreSQL hardly anything."""
    server = ServerModel(POSTGRESQL)
    await server.serve(10 * SETTLED_REQUESTS)
    assert 0 < sum(level > FIRST_LEVEL for level in server.levels) < 0.25 * 10 * SETTLED_REQUESTS


async def test_a_server_that_is_busy_gets_half_as_many_at_once_for_a_good_while() -> None:
    """Though it would be faster with more; the level at which it said so is left at once."""
    server = ServerModel(WITHOUT_LIMIT, most=2)
    await server.serve(100)
    assert server.concurrency.level == 2
    server.levels.clear()
    await server.serve(SETTLED_REQUESTS - 200)
    assert set(server.levels) == {2, 1}
    assert server.levels.count(1) == 1  # the last one
    server.most = HIGHEST_LEVEL
    await server.serve(2 * SETTLED_REQUESTS)
    assert server.concurrency.level == HIGHEST_LEVEL


async def test_a_server_that_is_busy_with_any_number_gets_one_at_a_time() -> None:
    """And that one always: it waits for its turn, and is not refused by us."""
    server = ServerModel(WITHOUT_LIMIT, most=0)
    await server.serve(200)
    assert server.concurrency.level == 1
    assert set(server.levels[20:]) == {1}


async def test_a_busy_answer_to_a_request_from_before_the_last_one_counts_once() -> None:
    """Four under way that are refused together halve the level once, not to one."""
    server = ServerModel(WITHOUT_LIMIT)
    async with server.concurrency.slot(is_timed=True) as turn:
        server.concurrency.back_off(turn)
        server.concurrency.back_off(turn)
    assert server.concurrency.level == FIRST_LEVEL // 2


async def test_more_are_tried_anew_when_a_server_has_become_faster() -> None:
    """Somebody else was at work, and has finished."""
    server = ServerModel(SLOWER_WITH_MORE)
    await server.serve(SETTLED_REQUESTS)
    assert server.concurrency.level == FIRST_LEVEL
    server.speed = WITHOUT_LIMIT
    await server.serve(2 * SETTLED_REQUESTS)
    assert server.concurrency.level == HIGHEST_LEVEL


async def test_a_request_that_fails_gives_its_slot_back() -> None:
    """Or a few failures would stop a run for good."""
    concurrency = AdaptiveConcurrency()
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with concurrency.slot(is_timed=True):
                raise RuntimeError
    async with asyncio.timeout(1), concurrency.slot(is_timed=True):
        pass


async def test_what_weighs_too_much_together_waits_in_the_order_of_asking() -> None:
    """What is light does not overtake what is heavy, which would wait for ever; nor does who has given up stand in the way."""
    limiter = WeightLimiter(10)
    under_way: list[str] = []
    ends: dict[str, asyncio.Event] = {}

    async def work(name: str, weight: int) -> None:
        ends[name] = asyncio.Event()
        async with limiter.borrow(weight):
            under_way.append(name)
            await ends[name].wait()
            under_way.remove(name)

    async def rest() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    weights = {"a": 6, "b": 4, "given up": 7, "too heavy": 99, "c": 1, "d": 9}
    tasks = {name: asyncio.create_task(work(name, weight)) for name, weight in weights.items()}
    await rest()
    assert under_way == ["a", "b"]
    tasks["given up"].cancel()
    ends["a"].set()
    await rest()
    assert under_way == ["b"]
    ends["b"].set()
    await rest()
    assert under_way == ["too heavy"]
    ends["too heavy"].set()
    await rest()
    assert under_way == ["c", "d"]
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert under_way == []


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
