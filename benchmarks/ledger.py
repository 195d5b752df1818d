"""How long a key is looked for in a large ledger, beside DuckDB. It needs no server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
from filling import Size
from prefect_artifact_retention.stores.archive.archive import Archive, open_archive
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, LedgerQuery
from prefect_artifact_retention.stores.archive.parquet import LEDGER

from benchmarks.results import Figure, Results
from benchmarks.startup import NO_SERVER

FIRST_NIGHT = datetime(2026, 1, 1, 2, tzinfo=UTC)


def ledger(folder: Path, size: Size, parts: int, rounds: int, results: Results) -> None:
    """Measure how long what was deleted of one key takes to be found, in turns with DuckDB, the fastest of each.

    Each part is that of a night, and has some versions of every key, in the order of keys, as a cleanup writes them.
    """
    archive = open_archive(str(folder / "ledger"))
    for night in range(parts):
        _write_night(archive, night, size.keys, size.versions // parts)
    wanted = f"key-{size.keys // 2:06}"
    query = f"SELECT {', '.join(LEDGER)} FROM read_parquet('{folder}/ledger/data/*.parquet') WHERE key = '{wanted}'"
    readers: dict[str, Callable[[], Sequence[Any]]] = {
        "ours": lambda: archive.ledger(LedgerQuery(keys=[wanted]))["id"],
        "DuckDB": lambda: duckdb.connect().execute(query).fetchall(),
    }
    best = dict.fromkeys(readers, float("inf"))
    for _round in range(rounds):
        for name, read in readers.items():
            began = time.monotonic()
            found = len(read())
            best[name] = min(best[name], time.monotonic() - began)
            if found != size.versions:
                raise RuntimeError(f"{name}: {found:,} of {size.versions:,} versions were found")
    ours, bare = best.values()
    what = f"`deleted --key` over {size.rows:,} rows in {parts} parts: seconds against DuckDB's own query"
    detail = f"{ours:.2f} of {bare:.2f} s, the fastest of {rounds}; {size.versions:,} versions found"
    results.figures.append(Figure(what, NO_SERVER, ours / bare, target=2, at_most=True, detail=detail))


def _write_night(archive: Archive, night: int, keys: int, versions: int) -> None:
    rows = keys * versions
    when = FIRST_NIGHT + timedelta(days=night)
    alike: dict[str, Any] = {
        **dict.fromkeys(ArchivedVersion._fields),
        "type": "markdown",
        **dict.fromkeys(("created", "updated", "decided_at"), when),
        "size": 1_000,
        "was_latest": False,
        "policy": "nightly",
        "policy_digest": "0123456789ab",
        "reasons": ["superseded 40 days ago, and no rule keeps it"],
        "rules": ["unclaimed"],
        "run_id": f"run-{night}",
        "run_name": f"fox-{night}",
        "server": "http://prefect.example/api",
    }
    columns: dict[str, Sequence[Any]] = {name: [value] * rows for name, value in alike.items()}
    columns["id"] = [UUID(int=night * rows + row) for row in range(rows)]
    columns["key"] = [f"key-{key:06}" for key in range(keys) for _version in range(versions)]
    with archive.stage(f"run-{night}-00001", payloads=False) as part:
        part.add(columns)
        part.publish()
