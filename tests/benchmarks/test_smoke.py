"""Each benchmark at a tiny size, on real servers: the figures come out, and the rows that should have gone have gone."""

from collections.abc import Iterator

import pytest
from servers import started

from benchmarks.results import Figure, Results
from benchmarks.session import BACKENDS
from benchmarks.sizes import SMALL
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


async def test_pruning(bench: Bench) -> None:
    """Rates of this package and of the bare clients at each concurrency; the last of them left one version a key."""
    await BENCHMARKS["pruning"](bench)
    assert all(figure.measured > 0 for figure in figures(bench, 2))
    assert {len(line) for line in lines(bench, "concurrency").values()} == {len(SMALL.levels)}
    assert await bench.left() == SMALL.pruning.keys


@on_one_database
async def test_script(bench: Bench) -> None:
    """Rates of whole runs, and nothing left over."""
    await BENCHMARKS["script"](bench)
    ratio, left_over = figures(bench, 2)
    assert ratio.measured > 0
    assert left_over.measured == 0
    assert left_over.is_met


@on_one_database
async def test_idle(bench: Bench) -> None:
    """A run writes something, sends something, and deletes what it should and no more."""
    await BENCHMARKS["idle"](bench)
    found = {figure.name: figure.measured for figure in figures(bench, 7)}
    assert found["API store, no-op: requests"] > SMALL.idle.keys
    assert all(found[f"{store}, no-op: task runs"] >= 1 for store in STORES.values())
    assert all(found[f"{store}, one stale version a key: rows written"] > SMALL.idle.keys for store in STORES.values())
    assert await bench.left() == SMALL.idle.rows - SMALL.idle.keys


async def test_batched(bench: Bench) -> None:
    """Rates of the database store and of the batched DELETE, which leave the same."""
    await BENCHMARKS["batched"](bench)
    (ratio,) = figures(bench, 1)
    assert ratio.measured > 0
    assert await bench.left() == SMALL.batched.keys * KEPT


@on_one_database
async def test_growth(bench: Bench) -> None:
    """A line for each store in each plot."""
    await BENCHMARKS["growth"](bench)
    for chart in ("keys", "versions", "bytes"):
        assert len(lines(bench, chart)) == len(STORES)


@on_one_database
async def test_scale(bench: Bench) -> None:
    """Seconds and memory of whole processes; the last of them cleaned up."""
    await BENCHMARKS["scale"](bench)
    _, _, memory = figures(bench, 3)
    assert 50 < memory.measured < 1_000
    assert all(50 < megabytes < 1_000 for line in lines(bench, "memory").values() for _, megabytes in line)
    assert await bench.left() == SMALL.scale[-1].keys * KEPT


@on_one_database
async def test_appending(bench: Bench) -> None:
    """Rates of one and of several writers, and nothing lost."""
    await BENCHMARKS["appending"](bench)
    one, several, lost = figures(bench, 3)
    assert min(one.measured, several.measured) > 0
    assert lost.measured == 0
