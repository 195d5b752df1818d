"""The benchmarks. Each fills the database, measures, and adds figures and points of charts to the results."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from uuid import UUID

from appenders import appender, go, told
from command import Measured, measure
from filling import Size, fill
from prefect import flow
from prefect_artifact_retention import aappend_rows
from servers import UNHURRIED_SECONDS, Server, count_rows

from benchmarks.baselines import (
    adaptive_client,
    bare_client,
    batched_delete,
    fixed_client,
    naive_appends,
    stale_ids,
    usual_script,
)
from benchmarks.observation import Store, clean_up
from benchmarks.results import Figure, Results
from benchmarks.sizes import Sizes

STORES: dict[Store, str] = {"api": "API store", "database": "database store"}
KEPT = 10
"""Versions kept of each key, of a hundred in most benchmarks. With more, there is less to delete."""


@dataclass(frozen=True)
class Bench:
    """The server, the sizes and the results of the benchmarks on one database."""

    server: Server
    backend: str
    sizes: Sizes
    results: Results

    def figure(  # noqa: PLR0913 - the fields of a figure
        self,
        name: str,
        measured: float,
        *,
        unit: str = "",
        at_least: float | None = None,
        at_most: float | None = None,
        detail: str = "",
    ) -> None:
        """Add a figure, with a target or without."""
        target = at_least if at_most is None else at_most
        figure = Figure(name, self.backend, measured, unit, target, at_most is not None, detail)
        self.results.figures.append(figure)

    async def fill(self, size: Size) -> None:
        """Replace all artifacts."""
        await fill(self.server.database, size)

    async def stale(self, size: Size, keep_last: int) -> list[UUID]:
        """Replace all artifacts, and return the ids of the stale ones."""
        await self.fill(size)
        return await stale_ids(self.server.database, keep_last)

    async def left(self) -> int:
        """Count the versions, without those of this package."""
        return len(await self.server.database.ids())

    def delete(self, store: Store, keep_last: int) -> Measured:
        """Run `artifact-retention delete` in a process of its own."""
        policies = json.dumps([{"name": "keep some", "keep_last": keep_last}])
        url = {"ARTIFACT_RETENTION_DATABASE_URL": self.server.database.url} if store == "database" else {}
        return measure(self.server.local, "delete", ARTIFACT_RETENTION_POLICIES=policies, **url)


async def pruning(bench: Bench) -> None:
    """Measure deletions per second through the API: this package, bare clients, and the adaptive concurrency alone."""
    size = bench.sizes.pruning
    address = bench.server.local.address
    levels = await _levels(bench, size)
    best = max(levels, key=lambda level: levels[level])
    runs: list[float] = []
    bare: list[float] = []
    fixed: list[float] = []
    adaptive: list[float] = []
    for _round in range(bench.sizes.rounds):
        await bench.fill(size)
        observed = await clean_up(bench.server, "api", keep_last=1)
        runs.append(observed.report.deleted / observed.prune_seconds)
        bare.append(await bare_client(address, await bench.stale(size, 1), best))
        with bench.server.active():
            adaptive.append(await adaptive_client(await bench.stale(size, 1)))
            fixed.append(await fixed_client(await bench.stale(size, 1), best))
    bench.figure(
        "API store, pruning: deletions a second against a bare client at its best fixed concurrency",
        _median_ratio(runs, bare),
        at_least=0.85,
        detail=f"{median(runs):.0f} of {median(bare):.0f} a second, the bare client with {best} at once",
    )
    bench.figure(
        "Adaptive concurrency: deletions a second against the best fixed one of the same client",
        _median_ratio(adaptive, fixed),
        at_least=0.9,
        detail=f"{median(adaptive):.0f} of {median(fixed):.0f} a second, the fixed one with {best} at once",
    )
    chart = bench.results.chart("concurrency", "Deletions through the API", "requests at once", "deletions a second")
    for level, rate in levels.items():
        chart.add(f"bare client, {bench.backend}", level, rate)
        chart.add(f"this package, {bench.backend}", level, median(runs))


async def _levels(bench: Bench, size: Size) -> dict[int, float]:
    """Measure the bare client's deletions per second by its number of concurrent requests."""
    levels, address = bench.sizes.levels, bench.server.local.address
    await bare_client(address, await bench.stale(size, 1), 1)  # a server's first requests are slow
    rates: dict[int, list[float]] = {level: [] for level in levels}
    for _round in range(bench.sizes.run_rounds):
        ids = await bench.stale(size, 1)
        for number, level in enumerate(levels):
            rates[level].append(await bare_client(address, ids[number :: len(levels)], level))
    return {level: median(rates[level]) for level in levels}


async def script(bench: Bench) -> None:
    """Measure rows deleted per second of a whole run: this package, and the usual script."""
    size = bench.sizes.script
    stale = size.keys * (size.versions - KEPT)
    ours: list[float] = []
    theirs: list[float] = []
    left_over = left_by_script = 0
    for _round in range(bench.sizes.run_rounds):
        await bench.fill(size)
        observed = await clean_up(bench.server, "api", KEPT)
        ours.append(observed.report.deleted / observed.seconds)
        left_over = max(left_over, await bench.left() - (size.rows - stale))
        await bench.fill(size)
        began = time.monotonic()
        with bench.server.active():
            deleted = await usual_script(KEPT)
        theirs.append(deleted / (time.monotonic() - began))
        left_by_script = stale - deleted
    bench.figure(
        "API store, whole run: rows deleted a second against the usual script",
        _median_ratio(ours, theirs),
        at_least=0.9 if bench.server.database.is_sqlite else 1.4,
        detail=f"{median(ours):.0f} of {median(theirs):.0f} a second, {size}",
    )
    bench.figure(
        "API store, whole run: stale versions left over",
        left_over,
        at_most=0,
        detail=f"the usual script leaves {left_by_script:,} of {stale:,}",
    )


async def idle(bench: Bench) -> None:
    """Measure the requests and rows of a run without work, and of one with a stale version in each key."""
    size = bench.sizes.idle
    for store, name in STORES.items():
        await bench.fill(size)
        after = await count_rows(bench.server, UNHURRIED_SECONDS)
        for work, stale in (("no-op", 0), ("one stale version a key", 1)):
            before = after
            observed = await clean_up(bench.server, store, size.versions - stale)
            after = await count_rows(bench.server, UNHURRIED_SECONDS)
            added = {table: count - before[table] for table, count in after.items()}
            added["artifact"] += observed.report.deleted
            what, detail = f"{name}, {work}", f"{size} of 1 KB"
            if not stale:
                bench.figure(f"{what}: task runs", added["task_run"], at_most=5, detail=detail)
            written = sum(added.values())
            bench.figure(f"{what}: rows written", written, at_most=25 * 20 + 300 if stale else 200, detail=detail)
            if store == "api" and not stale:
                limit = size.rows / 200 + size.keys / 200 + 150
                bench.figure(f"{what}: requests", observed.requests, at_most=limit, detail=detail)


async def batched(bench: Bench) -> None:
    """Measure rows deleted per second, planning included: the database store, and a bare SELECT with a batched DELETE."""
    size = bench.sizes.batched
    ours: list[float] = []
    whole: list[float] = []
    theirs: list[float] = []
    for _round in range(bench.sizes.rounds):
        await bench.fill(size)
        observed = await clean_up(bench.server, "database", KEPT)
        ours.append(observed.report.deleted / (observed.plan_seconds + observed.prune_seconds))
        whole.append(observed.report.deleted / observed.report.duration_seconds)
        await bench.fill(size)
        began = time.monotonic()
        deleted = await batched_delete(bench.server.database, KEPT)
        theirs.append(deleted / (time.monotonic() - began))
    bench.figure(
        "database store, plan and deletion: rows deleted a second against a bare SELECT and batched DELETE",
        _median_ratio(ours, theirs),
        at_least=0.7,
        detail=f"{median(ours):,.0f} of {median(theirs):,.0f} a second, {median(whole):,.0f} from discover to verify; {size}",
    )


async def growth(bench: Bench) -> None:
    """Measure a whole run that deletes a tenth of the versions, by keys, by versions a key, and by their size."""
    sizes = bench.sizes
    lines = (
        ("keys", "The cost of keys, of 10 versions each", "keys", [Size(keys, 10) for keys in sizes.keys]),
        ("versions", "The cost of versions, of 10 keys", "versions a key", [Size(10, each) for each in sizes.versions]),
        (
            "bytes",
            "The cost of payloads, of 10 keys of 10 versions",
            "bytes a version",
            [Size(10, 10, b) for b in sizes.bytes],
        ),
    )
    for store, store_name in STORES.items():
        for name, title, axis, points in lines:
            chart = bench.results.chart(name, title, axis, "seconds of a run")
            for size in points:
                await bench.fill(size)
                observed = await clean_up(bench.server, store, size.versions * 9 // 10)
                x = {"keys": size.keys, "versions": size.versions, "bytes": size.bytes}[name]
                chart.add(f"{store_name}, {bench.backend}", x, observed.report.duration_seconds)


async def scale(bench: Bench) -> None:
    """Measure time and memory of a process without work, up to a million versions, and of one that deletes most of them."""
    seconds = bench.results.chart("scale", "A run without work", "versions", "seconds of a run")
    memory = bench.results.chart("memory", "Memory of a run without work", "versions", "MB at the peak of the process")
    for number, size in enumerate(bench.sizes.scale):
        await bench.fill(size)
        for store, name in list(STORES.items())[number >= bench.sizes.api_scale :]:
            measured = bench.delete(store, size.versions)
            seconds.add(f"{name}, {bench.backend}", size.rows, measured.report["duration_seconds"])
            memory.add(f"{name}, {bench.backend}", size.rows, measured.megabytes)
    detail = f"{size} of 1 KB"
    run_seconds = measured.report["duration_seconds"]
    bench.figure("database store, no-op: the run", run_seconds, unit="s", at_most=10, detail=detail)
    measured = bench.delete("database", KEPT)
    detail += f", {measured.report['deleted']:,} deleted"
    run_seconds = measured.report["duration_seconds"]
    bench.figure("database store, the run, discover to verify", run_seconds, unit="s", at_most=90, detail=detail)
    bench.figure("database store, peak memory of the process", measured.megabytes, unit="MB", at_most=500, detail=detail)


async def appending(bench: Bench) -> None:
    """Measure appends per second: this package, and a naive writer; and of several writers at once, who lose nothing."""
    rows: list[dict[str, object]] = [{"source": f"source {number}", "rows": number} for number in range(bench.sizes.appends)]
    ours: list[float] = []
    theirs: list[float] = []

    @flow
    async def alone(number: int) -> None:
        # In a flow, where both have one client for all requests.
        theirs.append(await naive_appends(f"naive-{number}", rows))
        began = time.monotonic()
        for row in rows:
            await aappend_rows([row], key=f"ours-{number}")
        ours.append(len(rows) / (time.monotonic() - began))

    with bench.server.active():
        for number in range(bench.sizes.rounds):
            await alone(number)
    bench.figure(
        "append_rows, one writer: appends a second against reading, merging and creating by hand",
        _median_ratio(ours, theirs),
        at_least=0.8,
        detail=f"{median(ours):.0f} of {median(theirs):.0f} a second, {len(rows)} appends",
    )
    one, _ = await _append_at_once(bench, 1)
    several, lost = await _append_at_once(bench, bench.sizes.writers)
    detail = f"{several:.0f} of {one:.0f} a second, {len(rows)} appends each to one key"
    what = f"append_rows, {bench.sizes.writers} writers in processes of their own"
    bench.figure(f"{what}: appends a second against one", several / one, at_least=0.5, detail=detail)
    bench.figure(f"{what}: entries lost", lost, at_most=0, detail=detail)


async def _append_at_once(bench: Bench, writers: int) -> tuple[float, int]:
    """Let several processes append to one key, and return the appends per second, and the number of entries lost."""
    key, each = f"writers-{writers}", bench.sizes.appends
    with ExitStack() as stack:
        api = f"{bench.server.local.address}/api"
        processes = [stack.enter_context(appender(api, "rows", key, f"p{number}", each)) for number in range(writers)]
        for process in processes:
            told(process)
        began = time.monotonic()
        for process in processes:
            go(process)
        await asyncio.gather(*(asyncio.to_thread(told, process) for process in processes))
        seconds = time.monotonic() - began
    where = f"artifact c JOIN artifact_collection l ON c.id = l.latest_id WHERE l.key = '{key}'"
    (row,) = await bench.server.database.run(f"SELECT c.data FROM {where}")
    data = row[0]
    while isinstance(data, str):
        data = json.loads(data)
    return writers * each / seconds, writers * each - len({entry["name"] for entry in data})


def _median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of the rounds: a slower machine slows both sides of a round."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


BENCHMARKS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    each.__name__: each for each in (pruning, script, idle, batched, growth, scale, appending)
}


def run(bench: Bench, name: str) -> float:
    """Run one benchmark, and return the seconds that it took."""
    began = time.monotonic()
    asyncio.run(_named(BENCHMARKS[name], bench))
    return time.monotonic() - began


async def _named(benchmark: Callable[[Bench], Awaitable[None]], bench: Bench) -> None:
    await benchmark(bench)
