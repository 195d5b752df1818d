"""The benchmarks on a server. Each fills the database, measures, and adds figures and points of charts to the results."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch
from uuid import UUID

import orjson
from appenders import appender, go, told
from command import Measured, measure
from filling import Size, fill
from prefect import flow
from prefect_artifact_retention import aappend_rows
from prefect_artifact_retention.flows.restore import open_restore
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.stores.archive.archive import open_archive
from prefect_artifact_retention.stores.archive.model import LedgerQuery
from prefect_artifact_retention.tasks.restore import restore_all
from prefect_artifact_retention.tasks.restore_plan import Selection, plan_restore
from prefect_artifact_retention.tasks.sweep import SweepReport
from pyarrow import Codec  # type: ignore[import-untyped]
from servers import Server

from benchmarks.baselines import (
    STALE_ROWS,
    batched_delete,
    delete_one_by_one,
    load_stale,
    naive_appends,
    read_key_by_key,
    save_stale,
    select_ids_and_dates,
    stale_ids,
)
from benchmarks.distance import LATENCY_SECONDS, far_away
from benchmarks.observation import Store, clean_up
from benchmarks.results import Chart, Figure, Results
from benchmarks.sizes import Sizes
from benchmarks.sweeping import AT_ONCE as TARGETS_AT_ONCE
from benchmarks.sweeping import LATENCY_SECONDS as ANSWER_SECONDS
from benchmarks.sweeping import sweep, targets

STORES: dict[Store, str] = {"api": "API store", "database": "database store"}
KEPT = 10
"""Versions kept of each key, of a hundred in most benchmarks. With more, there is less to delete."""

WARMING_VERSIONS = 100
"""Deletions before any is measured, because a server's first requests are slow."""

FILLED = "SELECT count(DISTINCT key), count(*) FROM artifact WHERE key LIKE 'key-%'"


@dataclass(frozen=True)
class Bench:
    """The server, the sizes and the results of the benchmarks on one database."""

    server: Server
    backend: str
    sizes: Sizes
    results: Results

    @property
    def is_sqlite(self) -> bool:
        """Whether the server is on SQLite."""
        return self.server.database.is_sqlite

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

    async def fill(self, size: Size, *, at_random: bool = False) -> None:
        """Replace all artifacts; see `filling.fill`."""
        await fill(self.server.database, size, at_random=at_random)

    async def fill_if_changed(self, size: Size) -> None:
        """Replace all artifacts, unless there is all that would be filled in: a million takes a minute."""
        (there,) = await self.server.database.run(FILLED)
        if tuple(there) != (size.keys, size.rows):
            await self.fill(size)

    async def stale(self, size: Size, keep_last: int) -> list[UUID]:
        """Replace all artifacts, and return the ids of the stale ones."""
        await self.fill(size)
        return await stale_ids(self.server.database, keep_last)

    async def left(self) -> int:
        """Count the versions, without those of this package."""
        return len(await self.server.database.ids())

    def delete(self, store: Store, keep_last: int, **variables: str) -> Measured:
        """Run `artifact-retention delete` in a process of its own, with more variables in its environment."""
        policies = json.dumps([{"name": "keep some", "keep_last": keep_last}])
        url = {"ARTIFACT_RETENTION_DATABASE_URL": self.server.database.url} if store == "database" else {}
        return measure(self.server.local, "delete", ARTIFACT_RETENTION_POLICIES=policies, **url, **variables)

    def read(self, store: Store, size: Size) -> Measured:
        """Run `artifact-retention delete` where nothing is stale: it reads all versions, and deletes none."""
        measured = self.delete(store, size.versions)
        _check(size.rows, measured.report["versions_seen"] - measured.report["deleted"])
        return measured

    def plot(self, store: Store, size: Size, measured: Measured) -> None:
        """Add the points of a run without work to the charts of its time and memory."""
        seconds = self.results.chart("scale", "A run without work", "versions", "seconds of a run")
        memory = self.results.chart("memory", "Memory of a run without work", "versions", "MB at the peak of the process")
        line = f"{STORES[store]}, {self.backend}"
        seconds.add(line, size.rows, _seconds(measured))
        memory.add(line, size.rows, measured.megabytes)


async def api_reading(bench: Bench) -> None:
    """Measure a run without work through the API: beside a bare client, and by the number of versions."""
    fastest: list[Measured] = []
    for size in bench.sizes.reading:
        await bench.fill(size)
        keys = [f"key-{number:06}" for number in range(1, size.keys + 1)]
        runs: list[Measured] = []
        bare: list[float] = []
        for _round in range(bench.sizes.read_rounds):
            runs.append(bench.read("api", size))
            began = time.monotonic()
            _check(size.rows, await asyncio.to_thread(read_key_by_key, bench.server.local.address, keys))
            bare.append(time.monotonic() - began)
        fastest.append(min(runs, key=_seconds))
        bench.plot("api", size, fastest[-1])
    small, large = bench.sizes.reading
    few, many = fastest
    bench.figure(
        f"API store, {large.rows:,} versions without work: seconds against a bare client that reads them key by key",
        _seconds(many) / min(bare),
        at_most=0.9,
        detail=f"{_seconds(many):.1f} of {min(bare):.1f} s, the fastest of {len(bare)}; {large} of 1 KB",
    )
    _against(bench, many, large, few, small, at_most=11)
    if not bench.is_sqlite:
        largest = bench.sizes.scale[-1]
        await bench.fill(largest)
        most = bench.read("api", largest)
        bench.plot("api", largest, most)
        _against(bench, most, largest, many, large, at_most=12)


def _against(bench: Bench, more: Measured, large: Size, less: Measured, small: Size, *, at_most: float) -> None:  # noqa: PLR0913
    """Add the ratio of two runs without work through the API, of more and of fewer versions."""
    bench.figure(
        f"API store, {large.rows:,} versions without work: seconds against {small.rows:,}",
        _seconds(more) / _seconds(less),
        at_most=at_most,
        detail=f"{_seconds(more):.1f} of {_seconds(less):.2f} s, {large} beside {small}",
    )


async def api_pruning(bench: Bench) -> None:
    """Measure deletions per second through the API, beside a bare client that only deletes."""
    levels = bench.sizes.levels[: bench.sizes.sqlite_levels] if bench.is_sqlite else bench.sizes.levels
    chart = bench.results.chart("concurrency", "Deletions through the API", "requests at once", "deletions a second")
    await _pruning(bench, "API store, pruning", levels, chart, at_least=0.92)


async def far_api_pruning(bench: Bench) -> None:
    """Measure the same where the server is far away. One on SQLite gets one request at a time, wherever it is."""
    if bench.is_sqlite:
        return
    with far_away(bench.server.local.address) as address:
        far = replace(bench, server=replace(bench.server, local=replace(bench.server.local, address=address)))
        what = f"with {LATENCY_SECONDS * 1_000:.0f} ms of latency each way"
        chart = bench.results.chart("far", f"Deletions through the API, {what}", "requests at once", "deletions a second")
        await _pruning(far, f"API store, pruning {what}", bench.sizes.far_levels, chart, at_least=0.85)


async def _pruning(bench: Bench, name: str, levels: Sequence[int], chart: Chart, *, at_least: float) -> None:
    size, address = bench.sizes.api_pruning, bench.server.local.address
    rates = await _levels(bench, size, levels)
    best = max(rates, key=lambda level: rates[level])
    ours: list[float] = []
    bare: list[float] = []
    for _round in range(bench.sizes.delete_rounds):
        await bench.fill(size)
        observed = await clean_up(bench.server, "api", keep_last=1)
        ours.append(observed.report.deleted / observed.prune_seconds)
        bare.append(await delete_one_by_one(address, await bench.stale(size, 1), best))
    bench.figure(
        f"{name}: deletions a second against a bare client at its best fixed concurrency",
        _median_ratio(ours, bare),
        at_least=at_least,
        detail=f"{median(ours):.0f} of {median(bare):.0f} a second, the bare client with {best} at once",
    )
    for level, rate in rates.items():
        chart.add(f"bare client, {bench.backend}", level, rate)
        chart.add(f"this package, {bench.backend}", level, median(ours))


async def _levels(bench: Bench, size: Size, levels: Sequence[int]) -> dict[int, float]:
    """Measure the bare client's deletions per second by its number of concurrent requests."""
    address = bench.server.local.address
    await delete_one_by_one(address, (await bench.stale(size, 1))[:WARMING_VERSIONS], 1)
    rates: dict[int, list[float]] = {level: [] for level in levels}
    for _round in range(bench.sizes.level_rounds):
        ids = await bench.stale(size, 1)
        for number, level in enumerate(levels):
            rates[level].append(await delete_one_by_one(address, ids[number :: len(levels)], level))
    return {level: max(rates[level]) for level in levels}


async def database_pruning(bench: Bench) -> None:
    """Measure rows deleted per second, planning included: the database store, and a bare SELECT with a batched DELETE."""
    size = bench.sizes.database_pruning
    ours: list[float] = []
    whole: list[float] = []
    bare: list[float] = []
    for _round in range(bench.sizes.delete_rounds):
        await bench.fill(size)
        observed = await clean_up(bench.server, "database", KEPT)
        ours.append(observed.report.deleted / observed.plan_and_prune_seconds)
        whole.append(observed.report.deleted / observed.report.duration_seconds)
        await bench.fill(size)
        began = time.monotonic()
        deleted = await batched_delete(bench.server.database, KEPT)
        bare.append(deleted / (time.monotonic() - began))
    bench.figure(
        "database store, plan and deletion: rows deleted a second against a bare SELECT and batched DELETE",
        _median_ratio(ours, bare),
        at_least=0.9,
        detail=f"{median(ours):,.0f} of {median(bare):,.0f} a second, {median(whole):,.0f} from discover to verify; {size}",
    )


async def archiving(bench: Bench) -> None:
    """Measure deletions with an archive in a local folder against deletions without one."""
    sizes = bench.sizes
    cases: dict[Store, tuple[Size, float]] = {
        "database": (sizes.database_archiving, 1.6),
        "api": (sizes.api_archiving, 1.25),
    }
    for store, (size, at_most) in cases.items():
        archived: list[float] = []
        plain: list[float] = []
        parts = stored = 0
        for _round in range(sizes.delete_rounds):
            await bench.fill(size, at_random=True)
            plain.append((await clean_up(bench.server, store, 1)).prune_seconds)
            await bench.fill(size, at_random=True)
            with TemporaryDirectory() as folder, patch.dict(os.environ, ARTIFACT_RETENTION_ARCHIVE_URL=folder):
                observed = await clean_up(bench.server, store, 1)
            archived.append(observed.prune_seconds)
            if not (archive := observed.report.archive):
                raise ValueError("nothing was archived")
            _check(observed.report.deleted, archive.versions)
            parts, stored = archive.parts, archive.bytes
        bench.figure(
            f"{STORES[store]}: seconds of deletions with an archive in a local folder against without",
            _median_ratio(archived, plain),
            at_most=at_most,
            detail=f"{median(archived):.1f} of {median(plain):.1f} s; {size}; {parts} files, {stored / 1e6:.1f} MB",
        )


async def restoring(bench: Bench) -> None:
    """Measure a restore through the database against a COPY of the same rows, and the archive's bytes against their JSON."""
    database, size = bench.server.database, bench.sizes.database_archiving
    ours: list[float] = []
    bare: list[float] = []
    await bench.fill(size, at_random=True)
    with TemporaryDirectory() as name, patch.dict(os.environ, ARTIFACT_RETENTION_ARCHIVE_URL=f"{name}/archive"):
        await save_stale(database, Path(name, "rows"))
        report = (await clean_up(bench.server, "database", 1)).report
        json_bytes = await asyncio.to_thread(_compressed_json, Path(name, "archive"))
        for _round in range(bench.sizes.delete_rounds):
            bare.append(await load_stale(database, Path(name, "rows")))
            await _delete_stale(bench)
            ours.append(await _restore(bench, report.deleted))
            await _delete_stale(bench)
    if not report.archive:
        raise ValueError("nothing was archived")
    bench.figure(
        "database store, restore: seconds against a bare COPY of the same rows (on SQLite, INSERT from another file)",
        _median_ratio(ours, bare),
        at_most=3,
        detail=f"{median(ours):.1f} of {median(bare):.1f} s; {report.deleted:,} versions",
    )
    bench.figure(
        "archive: bytes against the JSON of the same rows, compressed with zstd",
        report.archive.bytes / json_bytes,
        at_most=1.1,
        detail=f"{report.archive.bytes / 1e6:.1f} of {json_bytes / 1e6:.1f} MB; {report.deleted:,} versions of 1 KB at random",
    )


async def _delete_stale(bench: Bench) -> None:
    await bench.server.database.run(STALE_ROWS.replace("SELECT *", "DELETE"))
    if not bench.is_sqlite:
        await bench.server.database.vacuum()


async def _restore(bench: Bench, versions: int) -> float:
    """Restore everything, and return the seconds."""
    with replace(bench.server, store="database").active():
        began = time.monotonic()
        async with open_restore(load_settings(), Selection(LedgerQuery(), hold_days=0), applies=True) as restore:
            await plan_restore(restore)
            await restore_all(restore)
            seconds = time.monotonic() - began
            _check(versions, restore.report.restored)
    return seconds


def _compressed_json(folder: Path) -> int:
    """Return the bytes of what an archive has of versions, as lines of JSON, compressed with zstd as it does by default."""
    lines = (orjson.dumps(version._asdict(), default=str) for some in open_archive(str(folder)).versions() for version in some)
    return len(Codec("zstd", compression_level=3).compress(b"\n".join(lines)))


async def archiving_memory(bench: Bench) -> None:
    """Measure the memory of a run that archives large versions."""
    size = bench.sizes.memory
    await bench.fill(size)
    with TemporaryDirectory() as folder:
        measured = bench.delete("database", 1, ARTIFACT_RETENTION_ARCHIVE_URL=folder)
    deleted = measured.report["deleted"]
    _check(size.rows - size.keys, deleted)
    bench.figure(
        f"database store, {deleted:,} versions of {size.bytes // 1000:,} KB archived and deleted: peak memory of the process",
        measured.megabytes,
        unit="MB",
        at_most=350,
        detail=f"in {_seconds(measured):.0f} s; {size}",
    )


async def database_scale(bench: Bench) -> None:
    """Measure runs through the database up to a million versions: time without work, and memory of one that deletes most."""
    *smaller, size = bench.sizes.scale
    await bench.fill_if_changed(size)
    runs: list[Measured] = []
    bare: list[float] = []
    for _round in range(bench.sizes.read_rounds):
        runs.append(bench.read("database", size))
        began = time.monotonic()
        _check(size.rows, await select_ids_and_dates(bench.server.database))
        bare.append(time.monotonic() - began)
    fastest = min(runs, key=_seconds)
    bench.plot("database", size, fastest)
    bench.figure(
        f"database store, {size.rows:,} versions without work: seconds against a bare SELECT of ids and dates",
        _seconds(fastest) / min(bare),
        at_most=2.5,
        detail=f"{_seconds(fastest):.1f} of {min(bare):.1f} s, the fastest of {len(bare)}; {size} of 1 KB",
    )
    measured = bench.delete("database", KEPT)
    bench.figure(
        f"database store, {size.rows:,} versions, {measured.report['deleted']:,} deleted: peak memory of the process",
        measured.megabytes,
        unit="MB",
        at_most=250,
        detail=f"in {_seconds(measured):.0f} s; {size} of 1 KB",
    )
    for each in smaller:
        await bench.fill(each)
        bench.plot("database", each, bench.read("database", each))


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


def _seconds(measured: Measured) -> float:
    """Return the seconds of a run from discover to verify."""
    return float(measured.report["duration_seconds"])


def _check(rows: int, seen: int) -> None:
    """Raise unless all rows were read: what is compared is the same work."""
    if seen < rows:
        raise RuntimeError(f"{seen:,} of {rows:,} versions were read")


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
        for number in range(bench.sizes.delete_rounds):
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


async def sweeping(bench: Bench) -> None:
    """Measure a target's run in a sweep over many, four at once, against a sweep over it alone, and the memory."""
    if bench.is_sqlite:
        return
    size, number = bench.sizes.target, bench.sizes.targets
    found: list[tuple[SweepReport, float]] = []
    for some in (1, number):
        with targets(some, size) as addresses:
            found.append(await asyncio.to_thread(sweep, bench.server.local, addresses))
        _check(some * size.keys * (size.versions - 2), sum(row.deleted for row in found[-1][0].targets))
    (alone, alone_megabytes), (together, megabytes) = found
    slowest, own = (max(row.duration_seconds for row in report.targets) for report in (together, alone))
    bench.figure(
        f"sweep over {number} targets, {TARGETS_AT_ONCE} at once: seconds of the slowest target's run against one alone",
        slowest / own,
        at_most=1.3,
        detail=f"{slowest:.1f} of {own:.1f} s; {size}, each answer after {ANSWER_SECONDS:g} s; "
        f"{together.duration_seconds:.0f} s in all",
    )
    bench.figure(
        f"sweep over {number} targets: peak memory of the process against that of a sweep over one",
        megabytes / alone_megabytes,
        at_most=1.5,
        detail=f"{megabytes:.0f} of {alone_megabytes:.0f} MB",
    )


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
    each.__name__: each
    for each in (
        *(api_pruning, far_api_pruning, database_pruning, archiving, restoring, growth, appending, sweeping, archiving_memory),
        *(api_reading, database_scale),
    )
}
"""Those that fill in most come last: what they leave to the database to tidy up must not show in the others."""


def run(bench: Bench, name: str) -> float:
    """Run one benchmark, and return the seconds that it took."""
    began = time.monotonic()
    asyncio.run(_named(BENCHMARKS[name], bench))
    return time.monotonic() - began


async def _named(benchmark: Callable[[Bench], Awaitable[None]], bench: Bench) -> None:
    await benchmark(bench)
