"""Runs the benchmarks: on a server on SQLite, then on one on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import prefect
from servers import Server, started

from benchmarks import page
from benchmarks.ledger import ledger
from benchmarks.results import Results
from benchmarks.simulating import simulating
from benchmarks.sizes import FULL, SMALL
from benchmarks.startup import start
from benchmarks.suite import BENCHMARKS, Bench, run

RESULTS_PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BACKENDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def run_all(folder: Path, *, only: Collection[str], on: Collection[str], small: bool) -> int:
    """Run the benchmarks and print their figures. If all ran in full size, write docs/performance.md, too.

    Args:
        folder: The folder of the servers.
        only: Names of the benchmarks to run; empty means all.
        on: The kinds of servers to run them on; empty means all.
        small: Run at the size that the tests use.

    Returns:
        0 if every target is met, else 1. Targets do not apply to the small size, which returns 0.
    """
    names = [start.__name__, ledger.__name__, simulating.__name__, *BENCHMARKS]
    if unknown := set(only) - set(names):
        sys.stderr.write(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(names)}\n")
        return 2
    began = time.monotonic()
    sizes = SMALL if small else FULL
    machine: dict[str, str] = {}
    results = Results(machine)
    if start.__name__ in (only or names):
        start(folder, sizes.start_rounds, results)
    if ledger.__name__ in (only or names):
        ledger(folder, sizes.ledger, sizes.ledger_parts, sizes.read_rounds, results)
    if simulating.__name__ in (only or names):
        simulating(sizes.simulated_keys, results)
    chosen = [name for name in BENCHMARKS if name in (only or names)]
    for kind in (on or BACKENDS) if chosen else ():
        home = folder / kind
        home.mkdir()
        with started(kind, home) as server:
            bench = Bench(server, BACKENDS[kind], sizes, results)
            for name in chosen:
                sys.stderr.write(f"{bench.backend}: {name} ... ")
                sys.stderr.flush()
                sys.stderr.write(f"{run(bench, name):.0f} s\n")
            machine[bench.backend] = asyncio.run(_database_version(server))
    machine |= {
        "Prefect": prefect.__version__,
        "Python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "minutes": f"{(time.monotonic() - began) / 60:.0f}",
    }
    sys.stdout.write(page.measured(results))
    if not (only or on or small):
        page.write(results, RESULTS_PAGE)
    return 0 if small or all(figure.is_met for figure in results.figures) else 1


async def _database_version(server: Server) -> str:
    if server.database.is_sqlite:
        return sqlite3.sqlite_version
    version = await server.database.run("SHOW server_version")
    return str(version[0][0])
