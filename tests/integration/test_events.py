"""What the server's events hold of deleted versions, and what a run through the database deletes of it."""

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from unittest.mock import patch
from uuid import UUID

import pytest
import sqlalchemy as sa
from database import Database
from prefect import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events import emit_event
from prefect_artifact_retention.policies import RetentionPolicy, StoreError
from prefect_artifact_retention.tasks.rendering import HELD_BY_EVENTS, markdown
from servers import POSTGRESQL_DATABASE, SQLITE_DATABASE, Server, drain, on, thorough, when_planned

POLICIES = [RetentionPolicy(name="no key", unkeyed=True, keep_within_days=1), RetentionPolicy(name="keep one", keep_last=1)]
KEPT = "kept-data"
GONE = "gone-data"

SETTLED_POLLS = 28
"""As many quarters of a second without another event are taken for the end of them: the server writes them every 5 s."""


async def publish(server: Server) -> tuple[list[UUID], UUID]:
    """Write versions as producers do, two of them in place afterwards. Return those that are stale, and the one that stays."""
    stale: list[UUID] = []
    async with get_client() as client:
        for number in range(4):
            data = KEPT if number == 3 else GONE
            version = await client.create_artifact(ArtifactCreate(key="report", type="markdown", data=f"{data}-{number}"))
            stale.append(version.id)
        await client.update_artifact(stale[0], ArtifactUpdate(data=f"{GONE}-later"))
        unkeyed = await client.create_artifact(ArtifactCreate(type="markdown", data=GONE))
        await client.update_artifact(unkeyed.id, ArtifactUpdate(data=f"{GONE}-unkeyed"))
    latest = stale.pop()
    about = {"prefect.resource.id": f"prefect.artifact.{stale[0]}", "prefect.resource.role": "subject"}
    emit_event("somebody.noticed", {"prefect.resource.id": "somebody"}, related=[about], payload={"text": GONE})
    drain()
    # The server's clock is read to the second, and what is newer stays.
    sqlite, postgresql = "strftime('%Y-%m-%d %H:%M:%f000', created, '-9 days')", "created - interval '9 days'"
    await server.database.run(f"UPDATE artifact SET created = {sqlite if server.database.is_sqlite else postgresql}")
    return [*stale, unkeyed.id], latest


async def events(server: Server, text: str) -> Sequence[sa.Row[tuple[str, str]]]:
    """The names and the payloads of the events that hold a text."""
    return await server.database.run(
        f"SELECT event, CAST(payload AS TEXT) FROM events WHERE CAST(payload AS TEXT) LIKE '%{text}%' ORDER BY event"
    )


async def persisted(server: Server, number: int, versions: Iterable[UUID]) -> None:
    """Wait until the server has written so many events about artifacts, some about each version, and no more come."""
    about = "SELECT count(*) FROM events WHERE event LIKE 'prefect.artifact%' OR event = 'somebody.noticed'"
    expected = {f"prefect.artifact.{version_id}" for version_id in versions}
    seen, unchanged = 0, 0
    for _poll in range(480):
        ((count,),) = await server.database.run(about)
        seen, unchanged = count, unchanged + 1 if count == seen else 0
        if seen >= number and unchanged >= SETTLED_POLLS and expected <= await named(server):
            return
        await asyncio.sleep(0.25)
    raise TimeoutError(await server.database.run("SELECT event, count(*) FROM events GROUP BY event"))


async def named(server: Server) -> set[str]:
    """What the events are about."""
    return {row[0] for row in await server.database.run("SELECT resource_id FROM event_resources")}


async def clear(server: Server) -> None:
    """Forget all events, also those of earlier tests that are still on their way."""
    # Prefect's worker for events would go on talking to the server of an earlier test, too.
    drain()
    for table in ("event_resources", "events"):
        await server.database.run(f"DELETE FROM {table}")


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_events_hold_deleted_data_and_are_purged_exactly_if_asked_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the versions deleted go, in bounded batches; those of kept versions, and others' events, stay."""
    monkeypatch.setattr("prefect_artifact_retention.stores.changes.MAX_PURGED_EVENTS", 2)
    with server.active():
        await clear(server)
        stale, latest = await publish(server)
        # One of the client and one of the server for each version with a key; one for each update; and one of somebody's.
        await persisted(server, 4 * 2 + 1 + 2 + 1, [*stale, latest])
        report = await server.cleanup(POLICIES, mode="delete", keys=["nothing-*"])
        assert report.events_purged is None

        with patch.dict(os.environ, ARTIFACT_RETENTION_PURGE_EVENTS="true"):
            report = await server.cleanup(POLICIES, mode="delete")
    assert (report.deleted, report.warnings) == (len(stale), [])
    # Three keyed versions with two events each and one update; one without a key, which the server has no event for.
    assert report.events_purged == 3 * 2 + 1 + 2
    assert report.event_bytes_purged > 9 * len(GONE)
    assert [row[0] for row in await events(server, GONE)] == ["somebody.noticed"]
    assert [row[0] for row in await events(server, KEPT)] == ["prefect.artifact-collection.updated"]
    left = await named(server)
    assert {f"prefect.artifact.{latest}", f"prefect.artifact.{stale[0]}", "somebody"} <= left
    assert not {f"prefect.artifact.{version_id}" for version_id in stale[1:]} & left
    orphans = "SELECT count(*) FROM event_resources WHERE event_id NOT IN (SELECT id FROM events)"
    assert (await server.database.run(orphans))[0][0] == 0
    text = markdown(report)
    assert "Events about them deleted" in text
    assert "PREFECT_SERVER_EVENTS_RETENTION_PERIOD" not in text


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_the_events_of_what_somebody_else_deletes_are_not_purged(server: Server) -> None:
    """Nor does it keep those of the other versions, which this run deletes, from going."""
    with server.active():
        await clear(server)
        stale, latest = await publish(server)
        await persisted(server, 4 * 2 + 1 + 2 + 1, [*stale, latest])
        theirs = (stale[1], stale[-1])

        async def delete_some() -> None:
            for version_id in theirs:
                await server.database.delete_version(version_id)

        with patch.dict(os.environ, ARTIFACT_RETENTION_PURGE_EVENTS="true"), when_planned(delete_some):
            report = await server.cleanup(POLICIES, mode="delete")
    assert (report.deleted, report.already_gone) == (2, 2)
    left = await named(server)
    assert {version_id for version_id in stale[1:] if f"prefect.artifact.{version_id}" in left} == set(theirs)


@pytest.mark.thorough
@on(POSTGRESQL_DATABASE, SQLITE_DATABASE)
async def test_events_stay_unless_asked_for_and_the_report_says_so(server: Server) -> None:
    """With the server's setting that shortens their life."""
    with server.active():
        await clear(server)
        stale, latest = await publish(server)
        await persisted(server, 4 * 2 + 1 + 2 + 1, [*stale, latest])
        before = await events(server, GONE)
        report = await server.cleanup(POLICIES, mode="delete")
    assert (report.planned, report.deleted, report.events_purged) == (len(stale), len(stale), None)
    assert await events(server, GONE) == before
    assert HELD_BY_EVENTS in markdown(report)


@on(POSTGRESQL_DATABASE)  # SQLite has no roles
async def test_a_role_that_may_not_purge_events_is_told_before_the_plan(server: Server) -> None:
    """As is one that may not delete versions."""
    await server.database.run("CREATE ROLE reader LOGIN")
    url = sa.make_url(server.database.url).set(username="reader").render_as_string(hide_password=False)
    there = replace(server, database=Database(url))
    try:
        await server.database.run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        with pytest.raises(StoreError, match="permission denied: the role may not DELETE on artifact"):
            await there.cleanup(POLICIES, mode="delete")
        await server.database.run("GRANT UPDATE, DELETE ON artifact, artifact_collection TO reader")
        with (
            patch.dict(os.environ, ARTIFACT_RETENTION_PURGE_EVENTS="true"),
            pytest.raises(StoreError, match="permission denied: the role may not DELETE on events"),
        ):
            await there.cleanup(POLICIES, mode="delete")
        assert (await there.cleanup(POLICIES, mode="delete")).outcome == "completed"
    finally:
        await server.database.run("DROP OWNED BY reader")
        await server.database.run("DROP ROLE reader")
