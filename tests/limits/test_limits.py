"""Memory and time stay bounded whatever the size: many large versions, a key with very many, very many keys."""

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect_artifact_retention.flows.local_server import LocalServer, local_server

MOST_MEGABYTES = 400
BUDGET_MINUTES = 1.5
GRACE_SECONDS = 15
"""What the whole command may take beyond its budget: to start, to end the request under way, to verify and to report."""

POLICIES = '[[policies]]\nname = "keep one"\nkeep_last = 1\n'
ID = "lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-a' || "
ID += "substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))"
FILL = f"""
WITH RECURSIVE key(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM key WHERE k < :keys),
  version(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM version WHERE v < :versions)
INSERT INTO artifact (id, created, updated, key, type, data)
SELECT {ID}, strftime('%Y-%m-%d %H:%M:%f000', 'now', '-' || v || ' hours'), strftime('%Y-%m-%d %H:%M:%f000', 'now'),
  printf('key-%06d', k), 'markdown', '"' || hex(zeroblob(:bytes / 2)) || '"'
FROM key, version
"""
COLLECT = f"""
INSERT INTO artifact_collection (id, created, updated, key, latest_id, type, data)
SELECT {ID}, max(created), updated, key, id, type, '""' FROM artifact WHERE key IS NOT NULL GROUP BY key
"""


@dataclass(frozen=True)
class Size:
    """So many keys of so many versions of so many bytes each."""

    keys: int
    versions: int
    bytes: int


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server of our own: these tests fill its database with gigabytes."""
    with local_server(tmp_path_factory.mktemp("limits")) as started:
        started.wait()
        yield started


def fill(local: LocalServer, size: Size) -> None:
    """Fill the database with SQL."""
    with sqlite3.connect(local.folder / "prefect.db", timeout=60) as database:
        for table in ("artifact", "artifact_collection"):
            database.execute(f"DELETE FROM {table}")
        database.execute(FILL, vars(size))
        database.execute(COLLECT)
    # What has been written is in a log beside the database, as large again, in which every read would look.
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


@dataclass(frozen=True)
class Measured:
    """What one run of the command took, and its report."""

    report: Mapping[str, Any]
    seconds: float
    megabytes: float


def delete(local: LocalServer, *arguments: str) -> Measured:
    """Run `artifact-retention delete` in a process of its own, and measure it whole."""
    (local.folder / "retention.toml").write_text(POLICIES, encoding="utf-8")
    command = [str(Path(sys.executable).parent / "artifact-retention"), "delete", "--json", *arguments]
    output = local.folder / "report.json"
    began = time.monotonic()
    with output.open("wb") as stdout, (local.folder / "stderr.log").open("wb") as stderr:
        pid = os.posix_spawn(
            command[0],
            command,
            local.environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), number) for file, number in ((stdout, 1), (stderr, 2))],
        )
        _, _, used = os.wait4(pid, 0)
    report = json.loads(output.read_text(encoding="utf-8"))
    assert "error" not in report, report
    return Measured(report, time.monotonic() - began, used.ru_maxrss / 1024)


@pytest.mark.faults
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(keys=20, versions=100, bytes=1_000_000), id="2000-versions-of-1-MB"),
        pytest.param(Size(keys=1, versions=100_000, bytes=100), id="a-key-with-100000-versions"),
        pytest.param(Size(keys=20_000, versions=2, bytes=100), id="20000-keys"),
    ],
)
def test_memory_and_time_stay_bounded(local: LocalServer, size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run keeps to its time budget, gets ahead, and the next one goes on from there."""
    monkeypatch.chdir(local.folder)
    fill(local, size)
    stale = size.keys * (size.versions - 1)
    for _night in range(2):
        measured = delete(local, "--time-budget-minutes", str(BUDGET_MINUTES))
        report = measured.report
        sys.stdout.write(
            f"\n{size}: {report['outcome']}, {report['versions_seen']} versions seen, {report['deleted']} deleted in "
            f"{measured.seconds:.0f} s (the run {report['duration_seconds']:.0f} s), peak memory {measured.megabytes:.0f} MB\n"
        )
        assert report["outcome"] in ("completed", "unfinished")
        assert report["deleted"] > 100 or report["deleted"] == stale
        assert measured.seconds < BUDGET_MINUTES * 60 + GRACE_SECONDS
        assert measured.megabytes < MOST_MEGABYTES
        stale -= report["deleted"]
    assert count(local) == size.keys + stale


def count(local: LocalServer) -> int:
    """The versions that are left, without those of this package."""
    with sqlite3.connect(local.folder / "prefect.db", timeout=60) as database:
        rows = database.execute("SELECT count(*) FROM artifact WHERE key LIKE 'key-%'")
        number: int = rows.fetchone()[0]
        return number
