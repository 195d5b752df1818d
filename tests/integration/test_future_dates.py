"""Versions that are dated in the future, as a clock that was wrong for a while leaves them."""

from database import Row, days, series
from fake import FakeServer
from prefect import get_client
from prefect_artifact_retention.flows.explanation import explain
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import RetentionPolicy
from servers import FAKE, POSTGRESQL_DATABASE, SQLITE_API, Server, on, thorough, when_planned

BY_DATE = RetentionPolicy(name="by date", keep_last=1, drop_idle_keys_after_days=90)


@on(FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_API))
async def test_a_version_that_is_dated_in_the_future_is_kept_and_told(server: Server) -> None:
    """By its key, its date and what can be done about it; as the latest version, and as another one."""
    wrong = Row("report", days(-400.5))
    other = Row("other", days(-300.5))
    rows = await server.database.insert(
        [wrong, *series("report", [1, 2]), other, *series("other", [1, 2])], {"other": other.id}
    )
    starts = [f"{row.key}: version {row.id} is dated 20" for row in (other, wrong)]
    for mode in ("preview", "delete"):
        report = await server.cleanup([BY_DATE], mode=mode)
        assert [warning[: len(start)] for warning, start in zip(report.warnings, starts, strict=True)] == starts
        assert report.warnings[1].endswith(
            "UTC, in the future: it is kept until then; its key counts as idle only from that date on. If the date is wrong, "
            f"delete that version (prefect artifact delete --id {wrong.id})"
        )
    assert {rows[0].id, rows[3].id} <= await server.database.ids()
    policies = [BY_DATE.model_dump(exclude_defaults=True)]
    with server.active():
        explained = await explain(load_settings().model_copy(update={"policies": policies}), "report")
    assert explained.warnings == [report.warnings[1]]


@on(FAKE)
async def test_its_key_goes_as_an_idle_one_some_time_after_that_date(server: FakeServer) -> None:
    """Not before; nobody is told of it then."""
    await server.database.insert([Row("report", days(-400)), *series("report", [1, 2])])
    for passed, left in ((300, 2), (180, 1), (20, 0)):
        server.pass_time(days(passed))
        report = await server.cleanup([BY_DATE], mode="delete")
        assert len(await server.database.ids()) == left
        assert any("in the future" in warning for warning in report.warnings) == (passed == 300)


@on(FAKE)
async def test_an_update_that_is_dated_in_the_future_is_told_too(server: FakeServer) -> None:
    """It is a sign of life of its key."""
    (row,) = await server.database.insert([Row("report", days(100))])
    server.pass_time(days(400))
    with server.active():
        async with get_client() as client:
            await client.request("PATCH", f"/artifacts/{row.id}", json={"data": "x"})
    server.pass_time(days(-400))
    report = await server.cleanup([BY_DATE], mode="delete")
    assert await server.database.ids() == {row.id}
    assert f"report: version {row.id} was last updated on" in report.warnings[0]
    assert report.warnings[0].endswith("If the date is wrong, update that version again")


@on(FAKE)
async def test_what_is_written_during_a_run_is_not_dated_in_the_future(server: FakeServer) -> None:
    """However long the run takes."""
    await server.database.insert(series("report", [1, 2, 3]))

    async def write() -> None:
        async with get_client() as client:
            await client.request("POST", "/artifacts/", json={"key": "report", "type": "markdown", "data": "new"})

    with when_planned(write):
        report = await server.cleanup([BY_DATE], mode="delete")
    assert report.warnings == []
