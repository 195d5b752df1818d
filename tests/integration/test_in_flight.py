"""What an unfinished run has written stays, whatever happens between plan and deletion; local clocks play no part."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime, timedelta, tzinfo
from uuid import UUID

import pytest
from database import Row, days, series
from prefect import flow, get_client, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Pending, Running
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.publish import publish_artifact
from servers import SQLITE_API, PatientClient, Server, on, when_planned

KEEP_1 = RetentionPolicy(name="keep one", keep_last=1)


@flow(name="producer")
def producer() -> None:
    """Writes versions."""


async def start_run(server: Server, state: State) -> UUID:
    """A flow run in some state."""
    with server.active():
        async with get_client() as client:
            return (await client.create_flow_run(producer, state=state)).id


async def set_state(server: Server, run_id: UUID, state: State) -> None:
    """As a retry or a worker does."""
    body = {"state": state.model_dump(mode="json", include={"type", "name"}), "force": True}
    with server.active():
        async with get_client() as client:
            await client.request("POST", f"/flow_runs/{run_id}/set_state", json=body)


@pytest.mark.parametrize("before", [Completed(), Pending()], ids=["retried", "started"])
async def test_a_run_that_comes_to_life_after_the_plan_keeps_what_it_wrote(server: Server, before: State) -> None:
    """A finished run that is retried, or one that was about to start; its neighbours' versions go."""
    run_id = await start_run(server, before)
    rows = await server.database.insert(
        [*series("report", [1, 2]), Row("report", days(3), flow_run_id=run_id), *series("report", [4])]
    )
    with when_planned(lambda: set_state(server, run_id, Running())):
        report = await server.cleanup([KEEP_1], mode="delete")
    assert await server.database.ids() == {rows[0].id, rows[2].id}
    assert report.deleted == 2


async def test_a_progress_artifact_that_is_being_updated_stays(server: Server) -> None:
    """Old as it is, and updated all the while; once its run has finished, it goes."""
    run_id = await start_run(server, Running())
    bar = Row("bar", days(3), data=1, type="progress", flow_run_id=run_id)
    await server.database.insert([*series("bar", [1, 2]), bar])
    answers: list[int] = []

    async def update() -> None:
        async with PatientClient(server) as client:
            for percent in range(2, 99, 3):
                answers.append((await client.patch(f"/artifacts/{bar.id}", json={"data": percent})).status_code)
                await asyncio.sleep(0.02)

    updates: list[asyncio.Task[None]] = []

    async def go_on() -> None:
        updates.append(asyncio.create_task(update()))

    with when_planned(go_on):
        await server.cleanup([KEEP_1], mode="delete")
    await updates[0]
    assert set(answers) == {204}
    assert bar.id in await server.database.ids()
    await set_state(server, run_id, Completed())
    await server.cleanup([KEEP_1], mode="delete")
    assert bar.id not in await server.database.ids()


@pytest.mark.parametrize("ahead", [timedelta(days=1), timedelta(days=-1)], ids=["ahead", "behind"])
async def test_the_local_clock_changes_nothing(server: Server, monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> None:
    """A day ahead or behind, versions of 29.5 days stay and of 30.5 days go; the report says that the clocks differ."""

    class Shifted(datetime):
        """A clock that goes wrong."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            """Tell the wrong time."""
            return datetime.now(tz) + ahead

    shifted = 0
    for name, module in list(sys.modules.items()):
        if name.startswith("prefect_artifact_retention.") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Shifted)
            shifted += 1
    assert shifted >= 5
    policy = RetentionPolicy(name="a month", keep_within_days=30)
    held = datetime.now(UTC).date()
    rows = await server.database.insert(
        [
            *series("report", [1, 29.5, 30.5]),
            Row("report", days(40), metadata={"retention-hold": held.isoformat()}),
            Row("report", days(41), metadata={"retention-ttl-days": "41.5"}),
            Row("report", days(42), metadata={"retention-ttl-days": "41.5"}),
        ]
    )
    report = await server.cleanup([policy], mode="delete")
    assert await server.database.ids() == {rows[number].id for number in (0, 1, 3, 4)}
    assert any("clock" in warning for warning in report.warnings)


@on(SQLITE_API)
@pytest.mark.parametrize(
    ("has_context", "variable", "belongs"),
    [
        pytest.param(True, "", True, id="context handed on"),
        pytest.param(True, str(UUID(int=7)), True, id="context handed on, by a called run"),
        pytest.param(False, "own", True, id="process of a worker"),
        pytest.param(False, "", False, id="script"),
        pytest.param(False, "no id", False, id="variable of somebody else"),
    ],
)
async def test_what_a_producer_publishes_from_a_thread_belongs_to_its_run_where_that_is_known(
    server: Server, monkeypatch: pytest.MonkeyPatch, *, has_context: bool, variable: str, belongs: bool
) -> None:
    """By the context that is handed on, or else by what a worker says to the process that it starts; nothing is guessed."""

    def publish() -> UUID:
        with server.active():
            return asyncio.run(publish_artifact("x", type="markdown", key="report"))

    @flow(name="threads")
    def threads() -> str:
        run_id = str(runtime.flow_run.id)
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run_id if variable == "own" else variable)
        with ThreadPoolExecutor() as pool:
            (pool.submit(copy_context().run, publish) if has_context else pool.submit(publish)).result()
        return run_id

    with server.active():
        run_id = await asyncio.to_thread(threads)
    ((written,),) = await server.database.run("SELECT flow_run_id FROM artifact WHERE key = 'report'")
    assert written == (run_id if belongs else None)
