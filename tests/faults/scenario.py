"""What the fault tests run on: a small server that has every case, a run over it, and what must be true afterwards."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import httpx
import orjson
import pytest
import steps
from database import Database, Row, days, series
from fake import FakeServer
from fake_database import FakeDatabase
from prefect import flow, get_client
from prefect.exceptions import PrefectException
from prefect.states import Running
from prefect_artifact_retention.flows import cleanup
from prefect_artifact_retention.policies import RetentionError, RetentionPolicy
from prefect_artifact_retention.policies.loading import REPORT_KEY
from prefect_artifact_retention.stores import paging
from prefect_artifact_retention.tasks import checks
from prefect_artifact_retention.tasks.rendering import headline
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport
from servers import Server

AnyDatabase = Database | FakeDatabase

PRODUCER = "producer"
LONG_AGO = "2001-01-01 00:00:00.000000"
"""When the flow runs of earlier cases were made, to tell them from those of this one."""

POLICIES = (
    RetentionPolicy(name="idle", match_keys=["load-*"], keep_last=2, drop_idle_keys_after_days=90),
    RetentionPolicy(name="audit", match_keys=["audit*"], keep_all=True),
    RetentionPolicy(name="reports", match_keys=["report*", "held", "running"], keep_last=2),
    RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30),
)


@dataclass(frozen=True)
class Scenario:
    """The versions, the one that is the latest though not the newest, which of them are stale, and which vanish."""

    rows: Sequence[Row]
    latest: dict[str, UUID]
    stale: frozenset[UUID]
    vanished: frozenset[UUID] = frozenset()
    lone: str = ""
    """The key of which all has vanished: its last version is posted again."""

    @property
    def kept(self) -> frozenset[UUID]:
        """What every run must leave."""
        return frozenset(row.id for row in self.rows) - self.stale - self.vanished


def scenario(running: UUID, *, deep: int = 7) -> Scenario:
    """Several keys on several pages: idle, held, running, unmanaged, without a key, and one with `deep` versions."""
    report = series("report", range(1, deep + 1))
    held = [*series("held", [1, 2]), Row("held", days(3), metadata={"retention-hold": "true"}), Row("held", days(4))]
    run = [*series("running", [1, 2]), Row("running", days(3), flow_run_id=running), Row("running", days(4))]
    loads, load = series("load-2026-01-31", [100, 101, 102]), series("load-2026-11-20", [3, 4, 5])
    unkeyed = [*series(None, [1, 29, 31, 40]), Row(None, days(45), metadata={"retention-hold": "true"})]
    plain = [*series("audit", [100, 200]), *series("other", [50, 60, 70]), *series("report-2", [1, 2, 3])]
    stale = [*report[2:], held[3], run[3], *loads, load[2], *unkeyed[2:4], plain[-1]]
    rows = [*report, *held, *run, *loads, *load, *unkeyed, *plain]
    _number(rows, deep)
    return Scenario(rows, {"report": report[1].id}, frozenset(row.id for row in stale))


def dangling_scenario() -> Scenario:
    """Of one key, the latest has vanished; of another, all there was; and some that are as they should be."""
    some, none, fine = series("report-some", [1, 2, 3]), series("report-none", [1]), series("report-fine", [1, 2])
    report = series("report", [1, 2, 3])
    rows = [*some, *none, *fine, *report]
    _number(rows, 0)
    return Scenario(rows, {}, frozenset([report[2].id]), frozenset([some[0].id, none[0].id]), lone="report-none")


def _number(rows: Sequence[Row], seed: int) -> None:
    """The same ids every time: the server sorts by them."""
    chance = random.Random(seed)
    for row in rows:
        row.id = UUID(int=chance.getrandbits(128), version=4)


async def unfinished_run(server: Server | FakeServer) -> UUID:
    """A flow run that is going on."""

    @flow(name=PRODUCER)
    def producer() -> None:
        """Never ends."""

    with server.active():
        async with get_client() as client:
            return (await client.create_flow_run(producer, state=Running())).id


async def fill(database: AnyDatabase, made: Scenario) -> None:
    """Let the server have these versions and no others."""
    await database.clear()
    if isinstance(database, Database):
        await database.run(f"UPDATE flow_run SET created = '{LONG_AGO}'")
    await database.insert(made.rows, made.latest)
    for version_id in made.vanished:
        await database.delete_version(version_id)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows take as many requests, of every kind, as many rows do."""
    monkeypatch.setattr(paging, "MAX_PAGE_ROWS", 4)
    monkeypatch.setattr(checks, "DELETIONS_PER_CHECK", 3)


async def run_steps(server: Server | FakeServer) -> CleanupReport | None:
    """A delete run without Prefect's engine. None: it could not even begin, and said so."""
    try:
        own_runs = {server.start_run(cleanup.artifact_cleanup.name)} if isinstance(server, FakeServer) else set()
        with server.active():
            return await steps.cleanup(POLICIES, mode="delete", max_task_runs=1, own_runs=own_runs)
    except CleanupFailed as error:
        return error.report
    except RetentionError:
        return None


async def problems(database: AnyDatabase, made: Scenario, report: CleanupReport | None) -> list[str]:
    """What is wrong after a run: lost, dangling, or told otherwise than it is. No report: the run said that it failed."""
    left = await database.ids()
    gone = {row.id for row in made.rows} - left - made.vanished
    found = [f"lost: {version_id}" for version_id in gone & made.kept]
    found += [f"dangling: {key}" for key in await database.dangling()]
    if report is None:
        return found
    settled = report.deleted + report.already_gone
    if not settled <= len(gone) <= settled + report.failed:
        found.append(f"{len(gone)} have gone, but the report says {settled}, and {report.failed} failed")
    if report.outcome == "completed" and report.remaining:
        found.append(f"completed with {report.remaining} remaining")
    if report.outcome == "completed" and len(gone) < len(made.stale) and not (report.spared or report.warnings):
        found.append(f"completed, and no word of the {len(made.stale) - len(gone)} stale versions left")
    # An answer that was lost has the report posted twice.
    shown = {version["description"] for version in await database.versions(REPORT_KEY)}
    if shown - headlines(report):
        found.append(f"the report shows {shown}, and is {headline(report)}")
    return found


async def repair_problems(database: AnyDatabase, made: Scenario, report: CleanupReport | None) -> list[str]:
    """What is wrong after a run over collections that dangle: as above, but a failed run may leave them to the next one."""
    completed = report is not None and report.outcome == "completed"
    found = [problem for problem in await problems(database, made, report) if completed or not problem.startswith("dangling")]
    repaired = {"report-some", "report-none"}
    nowhere = {version_id for version_id, key in (await database.keys()).items() if key not in repaired}
    found += [f"came from nowhere: {version_id}" for version_id in nowhere - {row.id for row in made.rows}]
    if completed and await strays(database, made):
        found.append("a placeholder of a repair is left")
    return found


async def strays(database: AnyDatabase, made: Scenario) -> set[UUID]:
    """Versions that nobody made, but for those of the key of which nothing was left."""
    others = {version_id for version_id, key in (await database.keys()).items() if key is None or key != made.lone}
    return others - {row.id for row in made.rows}


async def run_flow(server: Server) -> CleanupReport | None:
    """A whole delete run, as it is deployed. None: it failed before it had a report, and its flow run did not complete."""
    try:
        return await server.run_flow(POLICIES, mode="delete")
    except CleanupFailed as error:
        return error.report
    except (RetentionError, PrefectException, httpx.HTTPError):
        return None
    except json.JSONDecodeError as error:
        # Half an answer to a request of Prefect's own, which reads it with the standard library.
        if isinstance(error, orjson.JSONDecodeError):
            raise
        return None


async def flow_problems(database: Database, made: Scenario, report: CleanupReport | None) -> list[str]:
    """What is wrong after a whole run: as after its steps, and the state of the flow run that the server shows."""
    found = await problems(database, made, report)
    shown = {version["description"] for version in await database.versions(REPORT_KEY)}
    fine = report.outcome in {"completed", "unfinished"} if report else any("failed" not in each for each in shown)
    # None, where the server could not even make a flow run.
    new = f"SELECT state_type, state_name FROM flow_run WHERE created > '{LONG_AGO}' ORDER BY created DESC LIMIT 1"
    for state, name in await database.run(new):
        if state == "COMPLETED" and not fine:
            found.append(f"the flow run is {name}, its report {report.outcome if report else shown or 'missing'}")
    return found


def headlines(report: CleanupReport) -> set[str]:
    """What the report artifact may say: if the server has it and answers that it has not, it cannot tell of that."""
    lost = ("the report could not be written", "the server's answer to a new artifact cannot be read")
    before = [error for error in report.errors if not error.startswith(lost)]
    if before == report.errors:
        return {headline(report)}
    posted = report.model_copy(update={"errors": before, "outcome": "completed"})
    posted.outcome = cleanup._outcome(posted)  # noqa: SLF001 - as the flow does
    return {headline(posted)}
