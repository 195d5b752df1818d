"""Artifacts that are updated in place, as progress artifacts are, belong to keys that are not idle."""

from uuid import UUID

from database import series
from prefect import get_client
from prefect_artifact_retention.flows.cleanup import LISTENER
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks import checks
from prefect_artifact_retention.tasks.run import Step
from servers import FAKE, POSTGRESQL_DATABASE, SQLITE_API, SQLITE_DATABASE, Server, on, thorough, when_planned

BY_DATE = RetentionPolicy(name="by date", keep_last=10, drop_idle_keys_after_days=90)


async def update(version_id: UUID) -> None:
    """Update an artifact in place, as Prefect's `update_progress_artifact` does."""
    async with get_client() as client:
        await client.request("PATCH", f"/artifacts/{version_id}", json={"data": 50.0})


@on(FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_API), thorough(SQLITE_DATABASE))
async def test_a_key_whose_latest_was_updated_is_not_idle(server: Server) -> None:
    """Only the key goes whose latest nobody has updated for as long."""
    rows = await server.database.insert([*series("busy", [100, 101]), *series("idle", [100, 101])])
    with server.active():
        await update(rows[0].id)
        await update(rows[3].id)
    report = await server.cleanup([BY_DATE], mode="delete")
    assert await server.database.ids() == {rows[0].id, rows[1].id}
    assert report.deleted == 2


@on(FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_an_update_between_plan_and_deletion_keeps_the_key(server: Server) -> None:
    """The re-check, and the mark of the key in the database, see it."""
    rows = await server.database.insert(series("migration", [100, 101, 102]))
    with when_planned(lambda: update(rows[0].id)):
        report = await server.cleanup([BY_DATE], mode="delete")
    assert await server.database.ids() == {row.id for row in rows}
    assert (report.planned, report.deleted, report.spared) == (3, 0, 3)


@on(FAKE, thorough(SQLITE_API))
async def test_an_update_while_the_key_is_being_deleted_keeps_what_its_rules_keep(server: Server) -> None:
    """No further batch is deleted on the check from before the update."""
    rows = await server.database.insert(series("migration", range(100, 110 + checks.DELETIONS_PER_CHECK)))
    updates: list[UUID] = []

    async def listen(step: Step, gone: int, _total: int) -> None:
        if step == "deleting" and gone and not updates:
            updates.append(rows[0].id)
            await update(rows[0].id)

    token = LISTENER.set(listen)
    report = await server.cleanup([BY_DATE], mode="delete")
    LISTENER.reset(token)
    assert updates == [rows[0].id]
    assert await server.database.ids() == {row.id for row in rows[:10]}
    assert (report.deleted, report.spared) == (checks.DELETIONS_PER_CHECK, 10)
