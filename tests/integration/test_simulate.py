"""What `simulate` says of a server, held against cleanups that are really run there."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from database import Row, days, series
from fake import FakeServer
from prefect_artifact_retention.flows.cleanup import open_run
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.evaluation import ONE_DAY
from prefect_artifact_retention.policies.simulation import Course, Simulator
from prefect_artifact_retention.tasks.observation import observe
from prefect_artifact_retention.tasks.simulation import Tally
from servers import FAKE, on

BEGIN = datetime(2026, 9, 28, 3, 30, tzinfo=UTC)
"""Four weeks before the clocks change in Zurich; the quarter has a new year, too."""

POLICIES = (
    RetentionPolicy(name="audit", match_keys=["audit-*"], keep_all=True),
    RetentionPolicy(
        name="reports", match_keys=["report-*"], keep_daily=7, keep_weekly=4, keep_monthly=3, timezone="Europe/Zurich"
    ),
    RetentionPolicy(name="grace", match_keys=["load-*"], keep_last=2, grace_days=3, expire_after_days=20),
    RetentionPolicy(name="idle", match_keys=["run-*"], keep_within_days=10, drop_idle_keys_after_days=30),
    RetentionPolicy(name="default", keep_last=5, keep_hourly=12),
)


def rows() -> list[Row]:
    """Keys of several rhythms: daily, several times a day, on weekdays, weekly; some silent, some with holds and TTLs."""
    weekdays = [age for age in range(28) if (BEGIN - days(age)).weekday() < 5]
    return [
        *series("audit-log", (age + 0.3 for age in range(5))),
        *series("report-sales", (age + 0.1 for age in range(40))),
        *series("report-twice", (age / 2 + 0.2 for age in range(30))),
        *series("report-weekdays", (age + 0.4 for age in weekdays)),
        *series("load-often", ((age + 0.5) / 4 for age in range(20))),
        *series("load-once", [4]),
        *series("run-weekly", (7 * age + 1.3 for age in range(6))),
        *series("run-dead", [8, 8.5, 9]),
        *series("rest-daily", (age + 0.6 for age in range(20))),
        Row("rest-held", days(50), metadata={"retention-hold": f"{BEGIN + days(30):%Y-%m-%d}"}),
        *series("rest-held", range(1, 12)),
        *(Row("rest-ttl", days(age + 0.7), metadata={"retention-ttl-days": "3"}) for age in range(9)),
    ]


class Recorder(Tally):
    """Adds up keys, and remembers them."""

    def __post_init__(self) -> None:
        """Begin with nothing."""
        super().__post_init__()
        self.courses: dict[str, Course] = {}

    def add(self, key: str, course: Course) -> None:
        """Play a key."""
        super().add(key, course)
        self.courses[key] = course

    def left(self, day: int) -> set[tuple[str, datetime]]:
        """What the cleanup of a day is to leave of all keys."""
        simulator = self.simulator
        return {
            (key, version.created)
            for key, course in self.courses.items()
            for version, begin, end in zip(course.versions, simulator.arrivals(course), simulator.play(course), strict=True)
            if begin <= day < end
        }


@pytest.mark.parametrize("total", [6, pytest.param(91, marks=pytest.mark.long)])
async def test_every_day_of_a_quarter_has_what_a_cleanup_of_that_day_leaves(total: int) -> None:
    """Every version of every key, cleanup by cleanup, while the keys go on as was foreseen; all of its days take minutes."""
    with FakeServer(clock=lambda: BEGIN).listening() as server, server.active():
        await server.database.insert(rows())
        async with open_run(load_settings(), "preview", POLICIES, ()) as run:
            tally = Recorder(Simulator(run.report.now, total), run.policies)
            notes = await observe(run, tally)
        assert any(note.startswith("No more versions of 2 keys") for note in notes)
        coming = [version for course in tally.courses.values() for version in course.arrivals]
        for day in range(total + 1):
            now = server.now()
            written = [each for each in coming if now - ONE_DAY < each.created <= now]
            new = [Row(each.key, now - each.created, metadata=each.metadata) for each in written]
            await server.database.insert(new, now=now)
            await server.cleanup(POLICIES, mode="delete")
            there = {(each["key"], each["created"]) for each in server.database.artifacts.values()}
            assert {each for each in there if not each[0].startswith("artifact-")} == tally.left(day), f"day {day}"
            server.pass_time(ONE_DAY)
        policies = tally.policies_with_keys()
        assert sum(policy.versions[-1] for policy in policies) == len(tally.left(total))


@on(FAKE)
async def test_the_command_tells_what_the_keys_of_a_server_would_have(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By policy, and what of the server is left out; nothing is written to it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retention.toml").write_text(
        '[[policies]]\nname = "last"\nmatch_keys = ["daily-*"]\nkeep_last = 3\n', encoding="utf-8"
    )
    await server.database.insert([*series("daily-a", (0.5, 1.5, 2.5)), *series("other", [1]), *series(None, [1])])
    before = server.database.fingerprint()
    with server.active():
        assert await asyncio.to_thread(main, ["simulate", "--days", "60", "--json"]) == 0
    simulation = json.loads(capsys.readouterr().out)
    (policy,) = simulation["policies"]
    assert (policy["name"], policy["keys"], policy["versions_now"], policy["versions"]) == ("last", 1, 3, [3] * 61)
    assert policy["bytes"] == [9] * 61
    assert simulation["notes"][-2:] == [
        "1 key left out, because no policy is for it",
        "Artifacts without a key are left out",
    ]
    assert server.database.fingerprint() == before


@on(FAKE)
async def test_the_picture_begins_with_what_is_there_before_the_first_cleanup(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So the most that it says is not less than what the table says is there now."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "last"\nkeep_last = 3\n', encoding="utf-8")
    await server.database.insert(series("daily", (age + 0.5 for age in range(46))))
    with server.active():
        assert await asyncio.to_thread(main, ["simulate", "--days", "20"]) == 0
    *_, row, chart = (line for line in capsys.readouterr().out.splitlines() if "last" in line)
    assert row.split()[:3] == ["last", "1", "46"]
    assert chart == "last █" + 20 * "▁" + " 46 versions at most"
