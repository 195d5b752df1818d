"""The examples, which the demo runs, too, and what the page for flow authors shows, run as they stand."""

import asyncio
import re
import runpy
from contextvars import copy_context
from pathlib import Path

import pytest
from servers import SQLITE_API, Server, on, thorough

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "producers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


async def run(path: str) -> None:
    """Run an example as a script; in a thread, for a script has no running loop."""
    await asyncio.to_thread(copy_context().run, runpy.run_path, str(ROOT / "examples" / path), run_name="__main__")


@on(thorough(SQLITE_API))
async def test_the_daily_report_has_a_ttl(server: Server) -> None:
    """The table and the report."""
    with server.active():
        await run("daily_report.py")
    for key in ("orders", "daily-report"):
        (version,) = await server.database.versions(key)
        assert version["metadata_"]["retention-ttl-days"] == "30"
    assert version["data"].startswith("# 200 orders on ")


@on(thorough(SQLITE_API))
async def test_the_log_has_the_entries_of_all_ten_writers(server: Server) -> None:
    """Who wrote at once."""
    with server.active():
        await run("append_only_log.py")
    versions = await server.database.versions("load-log")
    (row,) = await server.database.run("SELECT latest_id FROM artifact_collection WHERE key = 'load-log'")
    latest = next(version for version in versions if str(version["id"]) == str(row[0]))
    assert sorted(latest["data"].split("\n")) == sorted(f"- source {number} is loaded" for number in range(10))


@on(thorough(SQLITE_API))
async def test_the_long_job_ends_at_100_percent(server: Server) -> None:
    """Both of its bars."""
    with server.active():
        await run("long_job.py")
    for key, text in (("load", "Loading: 300/300 in"), ("check", "Checking: 30/30 in")):
        (version,) = await server.database.versions(key)
        assert version["data"] == 100
        assert version["description"].startswith(text)


@on(SQLITE_API)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"import (\w+)", block)[-1])
async def test_what_the_page_for_flow_authors_shows_runs(server: Server, block: str) -> None:
    """Each block by itself."""
    with server.active():
        await asyncio.to_thread(copy_context().run, exec, compile(block, "docs/producers.md", "exec"), {})
        assert await server.database.ids()
