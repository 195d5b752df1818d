"""Approval by a person: a run shows what it would delete, waits, and deletes that and nothing else, wherever it goes on."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from database import series
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from prefect_artifact_retention.flows.approval import answer_run
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.flows.local_server import local_server
from prefect_artifact_retention.policies import ConfigurationError, RetentionError
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.tasks.planfile import PlanFile, PlannedKey
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.waiting import find_waiting, load_plan, store_plan
from servers import POSTGRESQL_DATABASE, SQLITE_API, Server, on, started, thorough

PREFECT = str(Path(sys.executable).parent / "prefect")
ENTRYPOINT = "prefect_artifact_retention.flows.cleanup.artifact_cleanup"


@pytest.fixture(autouse=True)
def _keep_two(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, 2)


def configure(monkeypatch: pytest.MonkeyPatch, keep_last: int) -> None:
    """Keep so many versions of each key."""
    policies = [{"name": "all", "keep_last": keep_last}]
    monkeypatch.setenv("ARTIFACT_RETENTION_POLICIES", json.dumps(policies))


class Asking:
    """A run of the deployment `with-approval`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.run_id = UUID(int=0)

    async def start(self, **parameters: object) -> State[Any]:
        """Create it, and let it run until it ends or waits."""
        with self.server.active():
            async with get_client() as client:
                flow_id = await client.create_flow(artifact_cleanup)
                deployment_id = await client.create_deployment(flow_id, "with-approval", entrypoint=ENTRYPOINT)
                run = await client.create_flow_run_from_deployment(deployment_id, parameters={"mode": "approve", **parameters})
                self.run_id = run.id
        return await self.go_on()

    async def read(self) -> FlowRun:
        """What the server says of it."""
        with self.server.active():
            async with get_client() as client:
                return await client.read_flow_run(self.run_id)

    async def go_on(self) -> State[Any]:
        """Run it as a worker does, from its top."""
        run = await self.read()
        with self.server.active():
            parameters = artifact_cleanup.validate_parameters(run.parameters)
            with suppress(Pause):
                return await run_flow_async(artifact_cleanup, flow_run=run, parameters=parameters, return_type="state")  # type: ignore[no-any-return]
        state = (await self.read()).state
        assert state
        return state

    def go_on_elsewhere(self) -> None:
        """Run it in a process of its own."""
        policies = {"ARTIFACT_RETENTION_POLICIES": os.environ["ARTIFACT_RETENTION_POLICIES"]}
        database = {"ARTIFACT_RETENTION_DATABASE_URL": self.server.database.url} if self.server.store == "database" else {}
        done = subprocess.run(
            [PREFECT, "flow-run", "execute", str(self.run_id)],
            cwd=self.server.local.folder,
            env=self.server.local.environment | policies | database,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    async def answer(self, **answer: object) -> None:
        """Answer as the form does."""
        with self.server.active():
            async with get_client() as client:
                result = await client.resume_flow_run(self.run_id, run_input=answer)
        assert result.status.value == "ACCEPT", result

    async def question(self) -> str:
        """What the form says above its fields."""
        with self.server.active():
            async with get_client() as client:
                run = await client.read_flow_run(self.run_id)
                assert run.state
                keyset = run.state.state_details.run_input_keyset
                assert keyset
                return str(json.loads(await client.read_flow_run_input(self.run_id, keyset["description"])))


async def report_of(state: State[Any]) -> CleanupReport:
    """The report that a run has left."""
    result = await state.aresult(raise_on_failure=False)
    assert isinstance(result, CleanupReport) or hasattr(result, "report"), (state, result)
    return getattr(result, "report", result)  # type: ignore[no-any-return]


@on(SQLITE_API)
async def test_whoever_is_asked_is_told_that_the_deletion_would_fail(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an archive that cannot be written, say: approved, nothing would go."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", str(tmp_path))
    (tmp_path / "staging").write_text("somebody's")
    await server.database.insert(series("a", [1, 2, 3, 4]))
    asking = Asking(server)
    assert (await asking.start()).is_paused()
    assert "a delete run would fail: the archive " in await asking.question()


@on(SQLITE_API, thorough(POSTGRESQL_DATABASE))
async def test_what_was_shown_goes_once_a_person_has_approved_it_and_nothing_before(server: Server) -> None:
    """Meanwhile, another run is not held up; who has approved it stands in the report and in the history."""
    rows = await server.database.insert([*series("a", [1, 2, 3, 4]), *series("b", [1, 2])])
    asking = Asking(server)
    assert (await asking.start()).is_paused()
    assert await server.database.ids() == {row.id for row in rows}
    assert (await asking.question()).startswith("Deletes **2 versions** in 1 key, 6 B.")
    (waiting, *_) = await server.database.versions("artifact-retention-report")
    assert (
        f"within 24 hours: by the form on the run's page in the UI, or artifact-retention approve {asking.run_id}"
        in re.sub(r"\\(.)", r"\1", waiting["data"])
    )
    other = await server.cleanup(mode="delete", keys=["b"])
    assert other.outcome == "completed"
    with server.active():
        with pytest.raises(RetentionError, match="there is none; a run changes its name when it begins, and keeps its id"):
            await answer_run("rested-owl", approves=True)
        with pytest.raises(RetentionError, match="would delete 2 versions, not 3"):
            await answer_run(str(asking.run_id), approves=True, versions=3)
        await answer_run(str(asking.run_id), approves=True, by="ada")
    state = await asking.go_on()
    report = await report_of(state)
    assert (state.name, report.deleted, report.approved_by) == ("Completed", 2, "ada")
    assert await server.database.ids() == {row.id for row in (rows[0], rows[1], rows[4], rows[5])}
    (published, *_) = await server.database.versions("artifact-retention-report")
    assert "approved by ada" in published["data"]
    (history, *_) = await server.database.versions("artifact-retention-history")
    assert "approved by" in (table := str(history["data"]))
    assert "ada" in table


@pytest.mark.thorough
@on(SQLITE_API, POSTGRESQL_DATABASE)
async def test_another_process_goes_on_with_a_run(server: Server) -> None:
    """It plans again with the same `now`, so a version that has come since makes no other one stale."""
    rows = await server.database.insert(series("a", [1, 2, 3]))
    asking = Asking(server)
    assert (await asking.start()).is_paused()
    await asking.answer(approve=True, versions=1, by="")
    await asyncio.to_thread(asking.go_on_elsewhere)
    run = await asking.read()
    assert run.state_name == "Completed", run.state
    assert await server.database.ids() == {rows[0].id, rows[1].id}
    (published, *_) = await server.database.versions("artifact-retention-report")
    assert "approved by somebody who gave no name" in published["data"]


@pytest.mark.thorough
@on(SQLITE_API)
async def test_a_no_ends_the_run_and_deletes_nothing(server: Server) -> None:
    """Completed, by the name of Declined; and so does a run that is resumed without an answer."""
    rows = await server.database.insert(series("a", [1, 2, 3]))
    for resume in ("decline", "nothing"):
        asking = Asking(server)
        assert (await asking.start()).is_paused()
        if resume == "decline":
            with server.active():
                await answer_run(str(asking.run_id), approves=False, by="ada")
        else:
            await asking.answer()
        state = await asking.go_on()
        assert (state.type.value, state.name) == ("COMPLETED", "Declined")
        assert ("Declined by ada" in str(state.message)) == (resume == "decline")
        assert await server.database.ids() == {row.id for row in rows}


@pytest.mark.thorough
@on(SQLITE_API)
async def test_another_number_is_asked_again(server: Server) -> None:
    """Who mistypes it has not approved."""
    await server.database.insert(series("a", [1, 2, 3]))
    asking = Asking(server)
    await asking.start()
    await asking.answer(approve=True, versions=7)
    assert (await asking.go_on()).is_paused()
    assert "7 is not the number of versions" in (question := await asking.question())
    assert "Deletes **1 version** in 1 key" in question
    assert len(await server.database.ids()) == 3
    await asking.answer(approve=True, versions=1)
    assert (await report_of(await asking.go_on())).deleted == 1


@pytest.mark.thorough
@on(SQLITE_API)
async def test_more_than_was_shown_is_asked_again(server: Server) -> None:
    """A version that was on hold is released meanwhile; nothing goes before a second yes."""
    rows = await server.database.insert(series("a", [1, 2, 3, 4]))
    await server.database.update_metadata(rows[3].id, {"retention-hold": "true"})
    asking = Asking(server)
    await asking.start()
    await server.database.update_metadata(rows[3].id, {})
    await asking.answer(approve=True, versions=1)
    assert (await asking.go_on()).is_paused()
    assert len(await server.database.ids()) == 4
    assert "More is stale by now than was approved" in (question := await asking.question())
    assert "Deletes **2 versions**" in question
    await asking.answer(approve=True, versions=2)
    assert (await report_of(await asking.go_on())).deleted == 2


@pytest.mark.thorough
@on(SQLITE_API)
async def test_a_run_whose_time_is_over_asks_for_all_keys_and_only_once(server: Server) -> None:
    """Of 75 keys, planning would reach 25 in no time, and others once there is an answer."""
    await server.database.insert([row for number in range(75) for row in series(f"k{number:02}", [1, 2, 3])])
    asking = Asking(server)
    await asking.start(time_budget_minutes=0.0001)
    assert "Deletes **75 versions** in 75 keys" in await asking.question()
    await asking.answer(approve=True, versions=75)
    assert (await report_of(await asking.go_on())).deleted >= 10


@pytest.mark.thorough
@on(SQLITE_API)
async def test_policies_that_changed_meanwhile_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was approved is not what they say."""
    rows = await server.database.insert(series("a", [1, 2, 3]))
    asking = Asking(server)
    await asking.start()
    configure(monkeypatch, 1)
    await asking.answer(approve=True, versions=1)
    report = await report_of(await asking.go_on())
    assert report.outcome == "refused"
    assert report.refusals == ['the plan was made by other policies: policy "all": keep_last = 1, was 2']
    assert await server.database.ids() == {row.id for row in rows}


@on(SQLITE_API)
@pytest.mark.thorough
async def test_nothing_to_delete_is_not_asked(server: Server) -> None:
    """The run ends at once."""
    await server.database.insert(series("a", [1]))
    assert (await Asking(server).start()).is_completed()


@on(SQLITE_API)
@pytest.mark.thorough
async def test_a_run_without_a_deployment_cannot_ask(server: Server) -> None:
    """Nobody would go on with it."""
    with server.active(), pytest.raises(ConfigurationError, match="needs a deployment"):
        await artifact_cleanup(mode="approve")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
async def test_nobody_answers_and_the_server_is_restarted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits survives a restart; one that nobody answers fails by itself, and has deleted nothing."""
    monkeypatch.setenv("ARTIFACT_RETENTION_APPROVAL_HOURS", "0.02")
    expiring = {"PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "true"}
    with started("sqlite", tmp_path / "server", **expiring) as server:
        rows = await server.database.insert(series("a", [1, 2, 3]))
        unanswered = Asking(server)
        assert (await unanswered.start()).is_paused()
        for _poll in range(60):
            await asyncio.sleep(5)
            if (run := await unanswered.read()).state_name == "Failed":
                break
        assert (run.state_name, run.state and run.state.message) == ("Failed", "The flow was paused and never resumed.")
        assert await server.database.ids() == {row.id for row in rows}
        monkeypatch.delenv("ARTIFACT_RETENTION_APPROVAL_HOURS")
        answered = Asking(server)
        assert (await answered.start()).is_paused()
        server.local.process.terminate()
        server.local.process.wait()
        with local_server(server.local.folder) as local:
            local.wait()
            answered.server = replace(server, local=local)
            await answered.answer(approve=True, versions=1)
            assert (await report_of(await answered.go_on())).deleted == 1


@on(thorough(SQLITE_API))
async def test_a_plan_of_many_versions_is_kept_with_its_run(server: Server, tell: Callable[[str], None]) -> None:
    """A hundred thousand ids, in parts that a proxy takes, and read back whole."""
    with server.active():
        async with get_client() as client, connect() as connection:
            flow_id = await client.create_flow(artifact_cleanup)
            run = await client.create_flow_run(artifact_cleanup)
            assert flow_id
            ids = [UUID(bytes=os.urandom(16), version=4) for _ in range(100_000)]
            keys = [PlannedKey(key=f"k-{n}", policy="all", bytes=1, ids=ids[n::1_000]) for n in range(1_000)]
            plan = PlanFile(server="s", now="2026-11-28T00:00Z", scope=[], policies=[], planned=keys)  # type: ignore[arg-type]
            waiting = await store_plan(connection, run.id, plan, 1, "text")
            assert await find_waiting(connection, run.id) == waiting
            assert await load_plan(connection, run.id, waiting) == plan
    tell(f"a plan of 100,000 versions: {waiting.parts} parts of 0.5 MB at most")
    assert waiting.parts <= 6
