"""No fault of the line to the server loses a version that is wanted, breaks a collection, or is passed over in silence."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from injection import FAULTS, Fault, line
from prefect_artifact_retention.policies import RetentionError
from prefect_artifact_retention.stores.connection import MOST_RETRY_AFTER
from prefect_artifact_retention.tasks.report import CleanupReport
from scenario import Scenario, fill, problems, run_steps, scenario, small_pages, unfinished_run
from servers import Server

SEED = 20261124
LONGEST_PAUSE = MOST_RETRY_AFTER * 1.2
"""Prefect's client adds up to a fifth."""

MOST_SECONDS = 60
"""For one run, without the pauses before retries."""


async def try_steps(
    server: Server, made: Scenario, monkeypatch: pytest.MonkeyPatch, fault: Fault, at: int
) -> tuple[list[str], str]:
    """Run with one fault and run again without: what went wrong, and how the first run ended."""
    await fill(server.database, made)
    report: CleanupReport | None = None
    with line(monkeypatch, fault, at) as broken:
        try:
            async with asyncio.timeout(MOST_SECONDS):
                report = await run_steps(server)
        except RetentionError:
            pass  # It could not even begin, and said so.
    found = await problems(server.database, made, report)
    found += [f"a pause of {pause:.0f} s" for pause in broken.pauses if pause > LONGEST_PAUSE]
    if broken.victim is None:
        found.append("no request met the fault")
    again = await run_steps(server)
    if again.outcome != "completed" or await server.database.ids() != made.kept:
        found.append(f"a rerun ends {again.outcome}, with {len(await server.database.ids() ^ made.kept)} versions amiss")
    return found, report.outcome if report else "no run"


async def test_no_fault_of_any_request_loses_anything(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pages(monkeypatch)
    made = scenario(await unfinished_run(server))
    await fill(server.database, made)
    with line(monkeypatch) as undisturbed:
        report = await run_steps(server)
    assert await problems(server.database, made, report) == []
    assert (report.outcome, report.deleted) == ("completed", len(made.stale))
    print(len(undisturbed.requests))
    for n, r in enumerate(undisturbed.requests): print(n, r.method, r.url.path, r.content[:150])
    cases = [(fault, at) for at, request in enumerate(undisturbed.requests) for fault in FAULTS if fault.of(request)]
    print(len(cases))
    import os
    random.Random(SEED).shuffle(cases)
    cases = cases[: int(os.environ.get("N", "50"))]
    bad = {}
    outcomes = Counter()
    began = time.monotonic()
    for fault, at in cases:
        try:
            found, outcome = await try_steps(server, made, monkeypatch, fault, at)
        except Exception as error:
            found, outcome = [repr(error)], "raised"
        outcomes[fault.name, outcome] += 1
        if found:
            bad[fault.name, at] = found
            print(fault.name, at, undisturbed.requests[at].method, undisturbed.requests[at].url.path, found, outcome)
    print(time.monotonic() - began)
    for k, v in sorted(outcomes.items()): print(k, v)
    assert not bad
