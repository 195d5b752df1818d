"""The guard of a delete run, through the history that runs leave: what a night explains goes, what none explains stays."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from database import Row, series
from fake import FakeServer
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.stores import api
from prefect_artifact_retention.tasks import run
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport
from servers import FAKE, POSTGRESQL_DATABASE, SQLITE_API, Server, on, thorough

HOURLY = RetentionPolicy(name="hourly", match_keys=["hourly"], keep_last=10)
REST = RetentionPolicy(name="rest", keep_last=100)


def hours(key: str, number: int, *, begin: int = 0) -> list[Row]:
    """One version an hour, the newest first."""
    return series(key, [(begin + hour + 0.5) / 24 for hour in range(number)])


async def night(server: FakeServer, *policies: RetentionPolicy, **parameters: float) -> CleanupReport:
    """Let a day pass with a version an hour of each of two keys, then clean up; return the report, refused or not."""
    server.pass_time(timedelta(days=1))
    await server.database.insert([*hours("hourly", 24), *hours("rest", 24)])
    try:
        return await server.cleanup(policies, mode="delete", **{"refuse_above_percent": 50, **parameters})
    except CleanupFailed as failed:
        return failed.report


@on(FAKE)
async def test_a_night_that_deletes_most_of_a_key_as_every_night_is_not_refused(server: FakeServer) -> None:
    """After the first one, of whose backlog somebody has to approve."""
    first = await night(server, HOURLY, REST)
    assert (first.outcome, first.deleted, len(first.refusals)) == ("refused", 0, 1)
    assert "no earlier run has cleaned up by this policy" in first.refusals[0]
    assert (await night(server, HOURLY, REST, refuse_above_percent=0)).outcome == "completed"
    for _night in range(3):
        report = await night(server, HOURLY, REST)
        (hourly, _rest) = report.policies
        assert (report.outcome, hourly.versions, hourly.planned, hourly.unexpected) == ("completed", 34, 24, 0)
        preview = await server.cleanup([HOURLY, REST], refuse_above_percent=50)
        assert not any("would be refused" in warning for warning in preview.warnings)
        stricter = HOURLY.model_copy(update={"keep_last": 5})
        unguarded, guarded = [await server.cleanup([stricter, REST], refuse_above_percent=percent) for percent in (0, 50)]
        assert [each.policies[0].planned for each in (unguarded, guarded)] == [5, 5]
        assert [each.policies[0].unexpected for each in (unguarded, guarded)] == [0, 5]


@on(FAKE)
async def test_a_refused_policy_leaves_its_own_keys_alone_and_no_others(server: FakeServer) -> None:
    """Every night, until somebody approves; the outcome is refused, and says what was deleted all the same."""
    for percent in (0, 50, 50, 50, 50):
        await night(server, HOURLY, REST, refuse_above_percent=percent)
    stricter = REST.model_copy(update={"keep_last": 1})
    for number in (1, 2):
        report = await night(server, HOURLY, stricter)
        assert (report.outcome, report.deleted) == ("refused", 24)
        assert [(each.name, each.refused) for each in report.policies] == [("hourly", False), ("rest", True)]
        assert 'policy "rest" would delete' in report.refusals[0]
        assert f"{100 - 1} should have gone by the run of" in report.refusals[0]
        assert len(await server.database.versions("rest")) == 100 + 24 * number
        assert len(await server.database.versions("hourly")) == 10
    assert (await night(server, HOURLY, stricter, refuse_above_percent=0)).outcome == "completed"
    assert (await night(server, HOURLY, stricter)).outcome == "completed"


@on(FAKE)
async def test_a_wrong_clock_of_the_server_is_refused_every_night_whatever_is_written_by_it(server: FakeServer) -> None:
    """The first night finds nothing new, later ones what was written meanwhile, and the rows of previews and refused runs."""
    month = RetentionPolicy(name="month", keep_within_days=30)
    await server.database.insert(series("daily", range(1, 29)))
    for percent in (0, 50, 50):
        assert (await night(server, month, refuse_above_percent=percent)).outcome == "completed"
    before = await server.database.ids()
    server.pass_time(timedelta(days=400))
    preview = await server.cleanup([month], refuse_above_percent=50)
    assert any("which may be wrong" in warning for warning in preview.warnings)
    for _night in range(3):
        report = await night(server, month)
        assert (report.outcome, report.deleted) == ("refused", 0)
        assert "no version at all was created for 399 days since" in report.refusals[0]
    assert before <= await server.database.ids()


@on(FAKE)
async def test_a_run_that_leaves_something_stale_is_none_to_count_from(server: FakeServer) -> None:
    """What it left is not overdue for that; the policies of which it left nothing have their record."""
    await night(server, HOURLY, REST, refuse_above_percent=0)
    assert (await night(server, HOURLY, REST, max_deletions=5)).outcome == "unfinished"
    assert (await night(server, HOURLY, REST)).outcome == "completed"


@on(FAKE)
async def test_a_run_with_policies_of_its_own_says_nothing_of_the_configured_ones(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is over the same keys, and its policy has the same name."""
    monkeypatch.setenv("ARTIFACT_RETENTION_POLICIES", json.dumps([HOURLY.model_dump(), REST.model_dump()]))
    for percent in (0, 50):
        await night(server, refuse_above_percent=percent)
    looser = HOURLY.model_copy(update={"keep_last": 1000})
    assert (await night(server, looser, REST)).outcome == "completed"
    report = await night(server)
    assert (report.outcome, report.policies[0].planned, report.policies[0].unexpected) == ("completed", 48, 0)


@on(FAKE)
async def test_policies_that_the_history_has_no_room_for_are_named(server: FakeServer) -> None:
    """They are as new in the next run, and somebody should know why; names in any alphabet take no more room than others."""
    many = [
        RetentionPolicy(name=f"{number:03} {'ключ' * 8}", match_keys=[f"k-{number}"], keep_last=1) for number in range(120)
    ]
    few = await night(server, *many[:70], HOURLY, refuse_above_percent=0)
    assert not any("has no room" in warning for warning in few.warnings)
    report = await night(server, *many, HOURLY, refuse_above_percent=0)
    (warning,) = [warning for warning in report.warnings if "has no room" in warning]
    assert warning.startswith("the history has no room for")


@on(FAKE)
async def test_a_run_that_has_two_rows_counts_once(server: FakeServer) -> None:
    """As one that was shut down while it published: the busiest days of the two are not added up."""
    for percent in (0, 50):
        await night(server, HOURLY, REST, refuse_above_percent=percent)
    (history, *_) = await server.database.versions("artifact-retention-history")
    rows = json.loads(history["data"])
    for version in await server.database.versions("artifact-retention-history"):
        twice = [row | {"outcome": outcome} for row in rows for outcome in ("completed", "unfinished") for _twice in range(3)]
        await server.database.update_data(version["id"], json.dumps(twice))
    server.pass_time(timedelta(hours=4))
    await server.database.insert(series("hourly", [minute / 24 / 60 for minute in range(24 * 8)]))
    report = await night(server, HOURLY, REST)
    assert report.outcome == "refused"
    assert report.policies[0].unexpected >= 24 * 9 - 3 * 24


@on(FAKE)
async def test_a_history_that_cannot_be_read_lets_the_guard_expect_nothing(server: FakeServer) -> None:
    """The run says so, and fails for that key anyway; without a guard, it deletes as ever."""
    await night(server, HOURLY, REST, refuse_above_percent=0)
    await night(server, HOURLY, REST)
    (history, *_) = await server.database.versions("artifact-retention-history")
    await server.database.break_data(history["id"])
    report = await night(server, HOURLY, REST)
    assert (len(report.refusals), report.deleted) == (1, 0)
    assert any(warning.startswith("what earlier runs have recorded could not be read") for warning in report.warnings)
    assert (await night(server, HOURLY, REST, refuse_above_percent=0)).deleted > 24


@on(FAKE)
async def test_a_key_that_could_not_be_judged_for_some_nights_is_not_refused_afterwards(server: FakeServer) -> None:
    """Here because a version of another type came between; once it is gone, what it held up goes, and no more is allowed."""
    tables = RetentionPolicy(name="tables", match_types=["table"], keep_within_days=365)
    for percent in (0, 50):
        await night(server, tables, HOURLY, REST, refuse_above_percent=percent)
    (odd,) = await server.database.insert([replace(row, type="table") for row in series("hourly", [0.9])])
    for _night in range(4):
        report = await night(server, tables, HOURLY, REST)
        assert any(warning.startswith("hourly: nothing deleted") for warning in report.warnings)
    await server.database.delete_version(odd.id)
    report = await night(server, tables, HOURLY, REST)
    assert (report.outcome, report.policies[1].planned, report.policies[1].unexpected) == ("completed", 5 * 24, 0)
    assert (await night(server, tables, HOURLY.model_copy(update={"keep_last": 1}), REST)).policies[1].unexpected == 9


@on(FAKE)
async def test_a_key_that_could_not_be_read_for_some_nights_is_not_refused_afterwards(server: FakeServer) -> None:
    """A run that has read nothing of a policy is none to count from."""
    for percent in (0, 50):
        await night(server, HOURLY, REST, refuse_above_percent=percent)
    await server.database.break_data((await server.database.versions("hourly"))[0]["id"])
    for _night in range(4):
        assert (await night(server, HOURLY, REST)).outcome == "failed"
    await server.database.repair_data()
    report = await night(server, HOURLY, REST)
    assert (report.outcome, report.policies[0].planned, report.policies[0].unexpected) == ("completed", 5 * 24, 0)


@pytest.mark.thorough
@on(FAKE)
async def test_nights_whose_time_is_over_before_the_last_key_are_not_refused(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets to one key, and each key has the run that got to it last to count from; a stricter policy is refused."""
    monkeypatch.setattr(api, "LISTED_ROWS", 1)
    policy = RetentionPolicy(name="all", keep_last=10)
    # Planning has no time at all, and stops after the first listing; what is planned is deleted all the same.
    monkeypatch.setattr(run, "MIN_DELETIONS", 10_000)
    limits = {"time_budget_minutes": 1e-9}
    planned = []
    for number in range(18):
        server.pass_time(timedelta(days=1))
        await server.database.insert([*hours("a", 24), *hours("b", 24), *hours("c", 24)])
        percent = 0 if number < 6 else 50
        report = await server.cleanup([policy], mode="delete", refuse_above_percent=percent, **limits)
        planned += [each.key for each in report.key_reports]
        assert len(report.key_reports) <= 1
        assert (report.outcome, report.refusals) == ("unfinished", [])
    assert set(planned) == {"a", "b", "c"}
    stricter = policy.model_copy(update={"keep_last": 1})
    report = await night(server, stricter, refuse_above_percent=5)
    assert "should have gone by the run of" in report.refusals[0]


@on(FAKE)
@pytest.mark.parametrize(
    "settled", ["x", "[]", '{"hourly": 1}', '{"hourly": [1]}', '{"hourly": [-1, 0]}', '{"hourly": ["a", 0]}']
)
async def test_a_record_that_is_none_is_ignored(server: FakeServer, settled: str) -> None:
    """Anybody may write a version of the history."""
    await night(server, HOURLY, REST, refuse_above_percent=0)
    (history, *_) = await server.database.versions("artifact-retention-history")
    rows = json.loads(history["data"])
    assert json.loads(rows[0]["settled"]).keys() == {"hourly", "rest"}
    for version in await server.database.versions("artifact-retention-history"):
        await server.database.update_data(version["id"], json.dumps([rows[0] | {"settled": settled}]))
    assert (await night(server, HOURLY, REST)).outcome == "refused"


@on(SQLITE_API, thorough(POSTGRESQL_DATABASE))
async def test_a_real_server_has_the_record_of_the_night_before(server: Server) -> None:
    """A second run deletes what has come since the first, whatever its share, and not what a stricter policy would."""
    await server.database.insert(hours("hourly", 24, begin=1))
    await server.cleanup([HOURLY, REST], mode="delete")
    await server.database.insert(hours("rest", 3))
    report = await server.cleanup([HOURLY, REST], mode="delete", refuse_above_percent=1)
    assert report.outcome == "completed"
    stricter = HOURLY.model_copy(update={"keep_last": 5})
    with pytest.raises(CleanupFailed, match="5 should have gone by the run of"):
        await server.cleanup([stricter, REST], mode="delete", refuse_above_percent=49)
    assert len(await server.database.versions("hourly")) == 10
