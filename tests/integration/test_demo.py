"""The demo, as `make demo` runs it."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from templates import copy_template


def run_demo(folder: Path, home: Path, *flags: str) -> str:
    """Run it in a process whose user has a Prefect home and an address of their own."""
    environment = os.environ | {"HOME": str(home), "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    command = [sys.executable, "-m", "prefect_artifact_retention.flows.cli", "demo", "--folder", str(folder), *flags]
    done = subprocess.run(command, env=environment, cwd=home, check=False, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_demo_deletes_what_it_says(tmp_path: Path) -> None:
    """It never uses the user's own Prefect, where nothing answers here."""
    folder, home = tmp_path / "demo", tmp_path / "home"
    home.mkdir()
    # Half of the time, its server would make its database.
    (folder / "prefect").mkdir(parents=True)
    copy_template("sqlite", sys.executable, folder / "prefect" / "prefect.db")
    text = run_demo(folder, home)
    stale = int(text.partition("Would delete ")[2].partition(" versions")[0])
    # The calendar says how many days, weeks and months its versions are of.
    assert 380 <= stale <= 410
    assert f"Deleted {stale} versions" in text
    assert "its flow run has not finished" in text
    assert "make ui" in text
    database = sqlite3.connect(folder / "prefect" / "prefect.db")
    held = database.execute("SELECT count(*) FROM artifact WHERE metadata_ LIKE '%retention-hold%'").fetchone()
    idle = database.execute("SELECT count(*) FROM artifact WHERE key = 'report-2026-01-31'").fetchone()
    others = "SELECT count(*) FROM artifact WHERE key IS NULL OR key NOT LIKE 'artifact-retention-%'"
    published = ("orders", "daily-report", "load-log", "load", "check")
    left = database.execute(f"{others} AND key NOT IN {published}").fetchone()
    log = database.execute("SELECT data FROM artifact_collection WHERE key = 'load-log'").fetchone()
    bars = database.execute(
        "SELECT data, description FROM artifact_collection WHERE key IN ('check', 'load') ORDER BY key"
    ).fetchall()
    report = database.execute("SELECT metadata_ FROM artifact_collection WHERE key = 'daily-report'").fetchone()
    database.close()
    created = int(text.partition("Created ")[2].partition(" versions")[0])
    assert (held, idle) == ((1,), (0,))
    # Prefect's client sends again what a server on SQLite has held up for a minute, which may then be there twice.
    assert left[0] - (created - stale) in {0, 1, 2}
    assert log[0].count("is loaded") == 10
    assert [(float(data), text.partition(" in ")[0]) for data, text in bars] == [
        (100, "Checking: 30/30"),
        (100, "Loading: 300/300"),
    ]
    assert json.loads(report[0])["retention-ttl-days"] == "30"
    assert not list(home.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 2])
def test_the_demo_begins_with_nothing_and_works_again_in_the_same_folder(tmp_path: Path, times: int) -> None:
    """And its report can be read by a program."""
    folder, home = tmp_path / "demo", tmp_path / "home"
    home.mkdir()
    for _time in range(times):
        report = json.loads(run_demo(folder, home, "--json"))
        assert (report["outcome"], report["deleted"]) == ("completed", report["planned"])
        assert 380 <= report["planned"] <= 410
