"""Each benchmark at a tiny size, on real servers: the figures come out, and the rows that should have gone have gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import started

from benchmarks.distance import LATENCY_SECONDS
from benchmarks.ledger import ledger
from benchmarks.results import Figure, Results
from benchmarks.session import BACKENDS
from benchmarks.simulating import simulating
from benchmarks.sizes import SMALL
from benchmarks.startup import start
from benchmarks.suite import BENCHMARKS, KEPT, STORES, Bench

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=BACKENDS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench for all tests of this module."""
    with started(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield Bench(server, BACKENDS[request.param], SMALL, Results({}))


on_one_database = pytest.mark.parametrize("running", ["postgresql"], indirect=True)
"""What does nothing that depends on the database is tried on one, to be quick."""


@pytest.fixture
def bench(running: Bench) -> Bench:
    """A bench without results."""
    return Bench(running.server, running.backend, SMALL, Results({}))


def figures(bench: Bench, number: int) -> list[Figure]:
    """The figures, of which there should be so many; all have a target and are about this database."""
    found = bench.results.figures
    assert len(found) == number
    assert all(figure.target is not None and figure.backend == bench.backend for figure in found)
    return found


def lines(bench: Bench, chart: str) -> dict[str, list[tuple[float, float]]]:
    """The lines of a chart, whose every point lies above zero."""
    found = bench.results.charts[chart].lines
    assert all(x > 0 and y > 0 for line in found.values() for x, y in line)
    return found


def test_start(tmp_path: Path) -> None:
    """Ratios of both commands, neither of which imports Prefect."""
    results = Results({})
    start(tmp_path, 1, results)
    assert len(results.figures) == 4
    for ratio, imported in zip(results.figures[::2], results.figures[1::2], strict=True):
        assert ratio.measured > 0.5
        assert imported.measured == 0


def test_simulating() -> None:
    """Seconds and memory, of a process of its own."""
    results = Results({})
    simulating(SMALL.simulated_keys, results)
    seconds, memory = results.figures
    assert 0 < seconds.measured < 10
    assert 0 < memory.measured < 300
    assert "3,950 versions" in seconds.detail


async def test_api_reading(bench: Bench) -> None:
    """Ratios to the bare client and to fewer versions, on PostgreSQL of the largest size too; and nothing goes."""
    await BENCHMARKS["api_reading"](bench)
    ratios = figures(bench, 2 if bench.is_sqlite else 3)
    assert all(figure.measured > 0 for figure in ratios)
    read = SMALL.reading if bench.is_sqlite else (*SMALL.reading, SMALL.scale[-1])
    assert [x for x, _ in lines(bench, "scale")[f"API store, {bench.backend}"]] == [size.rows for size in read]
    assert await bench.left() == read[-1].rows


async def test_database_scale(bench: Bench) -> None:
    """The ratio to the bare SELECT, and the memory of whole processes, each of which read all that there was."""
    await BENCHMARKS["database_scale"](bench)
    ratio, memory = figures(bench, 2)
    assert ratio.measured > 0
    assert 50 < memory.measured < 1_000
    gone = SMALL.scale[-1].rows - SMALL.scale[-1].keys * KEPT
    assert f"{gone} deleted" in memory.name
    assert all(50 < megabytes < 1_000 for line in lines(bench, "memory").values() for _, megabytes in line)
    assert {len(line) for line in lines(bench, "scale").values()} == {len(SMALL.scale)}


async def test_database_pruning(bench: Bench) -> None:
    """Rates of the database store and of the batched DELETE, which leave the same."""
    await BENCHMARKS["database_pruning"](bench)
    (ratio,) = figures(bench, 1)
    assert ratio.measured > 0
    assert await bench.left() == SMALL.database_pruning.keys * KEPT


async def test_api_pruning(bench: Bench) -> None:
    """Rates of this package and of the bare client at each concurrency; the last of them left one version a key."""
    await BENCHMARKS["api_pruning"](bench)
    (ratio,) = figures(bench, 1)
    assert ratio.measured > 0
    levels = SMALL.levels[: SMALL.sqlite_levels] if bench.is_sqlite else SMALL.levels
    assert {len(line) for line in lines(bench, "concurrency").values()} == {len(levels)}
    assert await bench.left() == SMALL.api_pruning.keys


@on_one_database
async def test_far_api_pruning(bench: Bench) -> None:
    """The same through a proxy, which no request passes in less than its latency, there and back."""
    await BENCHMARKS["far_api_pruning"](bench)
    (ratio,) = figures(bench, 1)
    assert ratio.measured > 0
    bare = dict(lines(bench, "far")[f"bare client, {bench.backend}"])
    assert bare[1] < 1 / (2 * LATENCY_SECONDS)
    assert await bench.left() == SMALL.api_pruning.keys


async def test_what_is_filled_in_already_is_not_filled_in_again(bench: Bench) -> None:
    """But what a run has deleted from is."""
    size = SMALL.scale[0]
    await bench.fill(size)
    before = await bench.server.database.ids()
    await bench.fill_if_changed(size)
    assert await bench.server.database.ids() == before
    await bench.server.database.delete_version(next(iter(before)))
    await bench.fill_if_changed(size)
    assert not await bench.server.database.ids() & before


@on_one_database
async def test_archiving(bench: Bench) -> None:
    """A ratio for each store; what should have gone has gone."""
    await BENCHMARKS["archiving"](bench)
    assert all(ratio.measured > 0 for ratio in figures(bench, 2))
    assert await bench.left() == SMALL.api_archiving.keys


async def test_restoring(bench: Bench) -> None:
    """The ratio to a COPY, and that of the bytes; every row was restored before it was deleted again."""
    await BENCHMARKS["restoring"](bench)
    restore, size = figures(bench, 2)
    assert min(restore.measured, size.measured) > 0
    assert await bench.left() == SMALL.database_archiving.keys


@on_one_database
async def test_sweeping(bench: Bench) -> None:
    """Ratios to a single target, of processes that deleted the oldest version of each key of each target."""
    await BENCHMARKS["sweeping"](bench)
    seconds, memory = figures(bench, 2)
    assert seconds.measured > 0
    assert 0.5 < memory.measured < 1.5


@on_one_database
async def test_archiving_memory(bench: Bench) -> None:
    """The memory of a whole process, which left one version a key."""
    await BENCHMARKS["archiving_memory"](bench)
    (memory,) = figures(bench, 1)
    assert 50 < memory.measured < 1_000
    assert await bench.left() == SMALL.memory.keys


def test_ledger(tmp_path: Path) -> None:
    """A ratio, of readers who found the same."""
    results = Results({})
    ledger(tmp_path, SMALL.ledger, SMALL.ledger_parts, 1, results)
    (ratio,) = results.figures
    assert ratio.measured > 0
    assert "20 versions found" in ratio.detail


@on_one_database
async def test_growth(bench: Bench) -> None:
    """A line for each store in each plot."""
    await BENCHMARKS["growth"](bench)
    for chart in ("keys", "versions", "bytes"):
        assert len(lines(bench, chart)) == len(STORES)


@on_one_database
async def test_appending(bench: Bench) -> None:
    """Rates of one and of several writers, and nothing lost."""
    await BENCHMARKS["appending"](bench)
    one, several, lost = figures(bench, 3)
    assert min(one.measured, several.measured) > 0
    assert lost.measured == 0
