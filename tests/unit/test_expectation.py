"""A guard of 50 %, by night: no steady state is ever refused, whatever its rhythm, and what is out of order is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from builders import policy, version
from prefect_artifact_retention.policies import RetentionPolicy, Version
from prefect_artifact_retention.policies.evaluation import Judgement, judge
from prefect_artifact_retention.policies.expectation import Expectations, PastRun, Settled
from prefect_artifact_retention.tasks.history import MAX_HISTORY_ROWS

START = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
"""A month from here has the night in which the clocks change in Zurich."""

PERCENT = 50
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
Producer = Callable[[datetime, datetime], Iterator[datetime]]
"""The times at which a key is written between two moments."""


def every(interval: timedelta) -> Producer:
    """A key that is written regularly."""

    def times(begin: datetime, end: datetime) -> Iterator[datetime]:
        moment = START - 400 * DAY
        moment += (begin - moment) // interval * interval
        while moment <= end:
            if moment > begin:
                yield moment
            moment += interval

    return times


def bursts(number: int, interval: timedelta) -> Producer:
    """A key that is written so many times within some minutes, now and then."""

    def times(begin: datetime, end: datetime) -> Iterator[datetime]:
        for moment in every(interval)(begin - DAY, end):
            for index in range(number):
                each = moment + index * timedelta(seconds=7)
                if begin < each <= end:
                    yield each

    return times


def at_random(a_day: int) -> Producer:
    """A key that is written so many times a day on average, on working days only."""

    def times(begin: datetime, end: datetime) -> Iterator[datetime]:
        chance = random.Random(begin.isoformat())
        for _hour in range(round((end - begin) / HOUR)):
            begin += HOUR
            if begin.weekday() < 5:
                yield from sorted(
                    begin - chance.random() * HOUR for _ in range(24) if chance.random() < a_day / 24 / 24 * 7 / 5
                )

    return times


PRODUCERS: Mapping[str, Producer] = {
    "six-an-hour": every(timedelta(minutes=10)),
    "hourly": every(HOUR),
    "daily": every(DAY),
    "weekly": every(7 * DAY),
    "burst-a-day": bursts(100, DAY),
    "burst-a-week": bursts(300, 7 * DAY),
    "by-chance": at_random(30),
}


@dataclass
class Workspace:
    """Keys with their producers and versions, cleaned up with a guard; the first run is one that somebody has approved."""

    producers: dict[str, Producer]
    rules: Sequence[RetentionPolicy]
    now: datetime = START
    versions: dict[str, list[Version]] = field(default_factory=dict)
    past: list[PastRun] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """The policies that the last run has refused, and why."""

    def __post_init__(self) -> None:
        """Let the producers be at work for a month before the first run."""
        self._write(START - 30 * DAY)

    def _write(self, since: datetime) -> None:
        for key, producer in self.producers.items():
            self.write(key, producer(since, self.now))

    def write(self, key: str, times: Iterator[datetime] | Sequence[datetime]) -> None:
        """Write versions of a key."""
        present = self.versions.setdefault(key, [])
        present += [version(time, key=key) for time in times]

    def pass_time(self, duration: timedelta) -> None:
        """Let the producers work on."""
        since, self.now = self.now, self.now + duration
        self._write(since)

    def clean_up(self, percent: float = PERCENT, *, clock: timedelta = timedelta()) -> dict[str, str]:
        """Run a cleanup as of now, by a clock that may be ahead. Returns why policies were refused."""
        now = self.now + clock
        expectations = Expectations(now, self.past[-MAX_HISTORY_ROWS:])
        judged: dict[str, tuple[RetentionPolicy, Judgement]] = {}
        for key, versions in self.versions.items():
            rules = next(each for each in self.rules if each.matches(key, "markdown"))
            judged[key] = rules, judge(versions, rules, now=now)
            expectations.add(*judged[key])
        self.refused = {}
        for rules in self.rules:
            mine = [judgement for own, judgement in judged.values() if own is rules]
            total = sum(map(len, mine))
            if percent and 100 * expectations.unexpected(rules.name) > percent * total:
                self.refused[rules.name] = expectations.explain(rules.name)
        for key, (rules, judgement) in judged.items():
            if rules.name not in self.refused:
                stale: set[UUID] = {judgement.versions.ids[index] for index in judgement.stale}
                self.versions[key] = [each for each in self.versions[key] if each.id not in stale]
        names = [rules.name for rules in self.rules if rules.name not in self.refused]
        self.past.append(PastRun(now.replace(second=0), {name: expectations.settled(name) for name in names}))
        return self.refused

    def nights(self, number: int) -> None:
        """Let so many nights pass, none of which is refused."""
        for _night in range(number):
            self.pass_time(DAY)
            assert self.clean_up() == {}, self.now


RULES = [
    {"keep_last": 10},
    {"keep_last": 1},
    {"keep_within_days": 7},
    {"keep_within_days": 0.5},
    {"keep_hourly": 24, "keep_daily": 7, "keep_weekly": 4, "timezone": "Europe/Zurich"},
    {"keep_daily": 3},
    {"keep_monthly": 2, "expire_after_days": 40},
    {"keep_last": 2, "grace_days": 2},
    {"keep_last": 500, "drop_idle_keys_after_days": 3},
]


def settled(rules: RetentionPolicy, *others: RetentionPolicy, **producers: Producer) -> Workspace:
    """A workspace of which somebody has approved the first run, and that has been cleaned up for a week."""
    workspace = Workspace(producers or dict(PRODUCERS), [rules, *others])
    workspace.clean_up(percent=0)
    workspace.nights(7)
    return workspace


# --- steady states


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("key", [*PRODUCERS, "all"])
def test_a_month_of_nights_in_a_steady_state_is_never_refused(rules: dict[str, object], key: str) -> None:
    """Whatever the rhythm of the keys, and whatever share goes each night."""
    producers = dict(PRODUCERS) if key == "all" else {key: PRODUCERS[key]}
    workspace = Workspace(producers, [policy(**rules)])
    workspace.clean_up(percent=0)
    workspace.nights(30)


@pytest.mark.parametrize("hours", [1, 5, 24 * 7])
def test_nor_is_one_that_is_cleaned_up_every_hour_or_every_week(hours: int) -> None:
    """The record does not depend on how often runs are."""
    workspace = Workspace(dict(PRODUCERS), [policy(keep_last=10)])
    workspace.clean_up(percent=0)
    for _run in range(40 if hours < 24 else 8):
        workspace.pass_time(hours * HOUR)
        assert workspace.clean_up() == {}


def test_nor_is_a_burst_that_becomes_stale_when_the_history_knows_nothing_of_it_any_more() -> None:
    """It was still there at the last run, and told what comes in a day."""
    workspace = Workspace({"burst": bursts(300, 10 * DAY)}, [policy(keep_within_days=9)])
    workspace.clean_up(percent=0)
    for _run in range(15 * 24):
        workspace.pass_time(HOUR)
        assert workspace.clean_up() == {}
    assert len(workspace.past) > MAX_HISTORY_ROWS


def test_nor_is_one_that_begins_with_an_empty_workspace() -> None:
    """Keys that are new since the last run lose nothing that was kept before."""
    workspace = Workspace({}, [policy(keep_last=10)])
    workspace.clean_up()
    for key, producer in PRODUCERS.items():
        workspace.producers[key] = producer
        workspace.nights(2)
    workspace.nights(30)


def test_nor_is_one_whose_keys_become_idle_one_after_the_other() -> None:
    """A whole key goes in one night, which is more than has come on any day."""
    workspace = Workspace({}, [policy(keep_last=500, drop_idle_keys_after_days=7)])
    workspace.clean_up(percent=0)
    for night in range(100):
        workspace.producers = {f"experiment-{night // 21}": every(HOUR)}
        workspace.nights(1)
    assert [key for key, versions in workspace.versions.items() if versions] == ["experiment-4"]


@pytest.mark.parametrize("nights", [2, 10, 40])
def test_nor_is_the_first_night_after_some_without_a_run(nights: int) -> None:
    """As long as the producers have been at work meanwhile."""
    workspace = settled(policy(keep_last=10))
    workspace.pass_time(nights * DAY)
    assert workspace.clean_up() == {}


@pytest.mark.parametrize("hour", range(0, 24, 6))
def test_at_whatever_hour_runs_are_nothing_is_unexpected_after_some_without_one(hour: int) -> None:
    """Midnight does not divide the days on record."""
    workspace = Workspace({"hourly": every(HOUR)}, [policy(keep_last=10)], now=START + hour * HOUR)
    workspace.clean_up(percent=0)
    workspace.nights(7)
    workspace.pass_time(40 * DAY)
    assert workspace.clean_up(percent=0.01) == {}


def test_versions_of_a_long_flow_run_that_become_stale_together_are_expected() -> None:
    """Until it ended, only the run kept them."""
    run = UUID(int=1)
    times = [START + index * timedelta(minutes=10) for index in range(1000)]
    written = [version(time, flow_run_id=run) for time in times]
    rules = policy(keep_last=10)
    past = [PastRun(START - DAY, {"test": Expectations(START - DAY).settled("test")})]
    for number in (500, 1000):
        now = times[number - 1]
        expectations = Expectations(now, past)
        expectations.add(rules, judge(written[:number], rules, now=now, running=frozenset({run})))
        past.append(PastRun(now, {"test": expectations.settled("test")}))
    after = times[-1] + DAY
    expectations = Expectations(after, past)
    expectations.add(rules, judge(written, rules, now=after))
    assert expectations.unexpected("test") == 0


def test_versions_that_could_not_be_judged_may_all_become_stale_together() -> None:
    """Their listing changed while it was read, night after night."""
    rules = policy(keep_last=10)
    written = [version(START + index * HOUR) for index in range(24 * 5)]
    past = [PastRun(START - DAY, {"test": Expectations(START - DAY).settled("test")})]
    for days in range(1, 5):
        expectations = Expectations(START + days * DAY, past)
        expectations.add_unjudged(rules, days * 24)
        past.append(PastRun(expectations.now, {"test": expectations.settled("test")}))
    expectations = Expectations(START + 5 * DAY, past)
    expectations.add(rules, judge(written, rules, now=expectations.now))
    assert expectations.unexpected("test") == 0


@pytest.mark.parametrize(
    ("begin", "end", "covered"),
    [("", "", "abc~"), ("", "b", "a"), ("b", "c", "b"), ("b", "a", "bc~"), ("c", "b", "ac~"), ("~", "b", "a~")],
)
def test_a_run_that_did_not_get_to_all_keys_counts_for_those_between_its_first_and_its_end(
    begin: str, end: str, covered: str
) -> None:
    """Runs plan the keys in their order, then the artifacts without one, then go on with the first key."""
    run = PastRun(START, {}, begin, end)
    assert "".join(key or "~" for key in ("a", "b", "c", None) if run.covers(key)) == covered


def test_a_key_that_no_run_has_reached_has_nothing_expected() -> None:
    """Though one has cleaned up others by the same policy."""
    past = [PastRun(START - DAY, {"test": Settled(100, 0)}, "a", "m")]
    rules, expectations = policy(keep_last=10), Expectations(START, past)
    for key in ("b", "x"):
        written = [version(START - index * HOUR, key=key) for index in range(24)]
        expectations.add(rules, judge(written, rules, now=START))
    assert expectations.unexpected("test") == 14
    assert expectations.explain("test") == "14 are of keys that no earlier run has reached"


# --- what is out of order


def test_without_any_run_before_all_that_is_stale_is_unexpected() -> None:
    """Only its share counts, as of a backlog."""
    workspace = Workspace({"hourly": every(HOUR)}, [policy(keep_last=10)])
    assert workspace.clean_up() == {"test": "no earlier run has cleaned up by this policy"}
    assert workspace.clean_up(percent=100) == {}


@pytest.mark.parametrize("key", ["hourly", "daily"])
def test_a_policy_that_has_become_much_stricter_is_refused_every_night(key: str) -> None:
    """From a hundred to one; from a hundred to seventy is not too much."""
    workspace = settled(policy(keep_last=100), **{key: every(HOUR if key == "hourly" else DAY / 3)})
    workspace.nights(30)
    kept = len(workspace.versions[key])
    workspace.rules = [policy(keep_last=1)]
    for _night in range(3):
        workspace.pass_time(DAY)
        assert "99 should have gone by the run of" in workspace.clean_up()["test"]
    assert len(workspace.versions[key]) > kept
    workspace.rules = [policy(keep_last=70)]
    assert workspace.clean_up() == {}


@pytest.mark.parametrize("strict", [{"keep_last": 1}, {"keep_last": 100, "drop_idle_keys_after_days": 1}], ids=str)
def test_a_mistyped_policy_is_refused_also_for_keys_that_are_newer_than_the_last_run(strict: dict[str, object]) -> None:
    """Where no run has got to its end for days, such keys have become large, and idle or not."""
    workspace = Workspace({}, [policy(keep_last=100)])
    workspace.clean_up()
    workspace.producers = {key: every(HOUR) for key in "ab"}
    workspace.pass_time(4 * DAY)
    workspace.producers = {"c": every(HOUR)}
    workspace.pass_time(2 * DAY)
    before = sum(map(len, workspace.versions.values()))
    workspace.rules = [policy(**strict)]
    assert "are more than has come on the busiest days, 0, since the run of" in workspace.clean_up()["test"]
    assert sum(map(len, workspace.versions.values())) == before


@pytest.mark.parametrize("limit", [8, 30])
def test_a_mistyped_limit_of_idle_keys_is_refused(limit: int) -> None:
    """Keys that have been idle for longer would all go at once."""
    producers = {f"experiment-{number}": every(HOUR) for number in range(5)}
    workspace = settled(policy(keep_last=50, drop_idle_keys_after_days=365), hourly=every(HOUR), **producers)
    workspace.producers = {"hourly": every(HOUR)}
    workspace.nights(40)
    workspace.rules = [policy(keep_last=50, drop_idle_keys_after_days=limit)]
    workspace.pass_time(DAY)
    assert "250 should have gone by the run of" in workspace.clean_up()["test"]


def test_keys_that_a_mistyped_glob_hands_to_another_policy_are_refused_with_that_one_alone() -> None:
    """The other policies are cleaned up by; once the glob is right again, so is this one."""
    audit = policy(name="audit", match_keys=["audit-*"], keep_within_days=3650)
    hourly = policy(name="hourly", match_keys=["hourly"], keep_last=10)
    rest = policy(name="rest", keep_last=10)
    producers = {f"audit-{number}": every(HOUR) for number in range(3)}
    workspace = settled(audit, hourly, rest, hourly=every(HOUR), other=every(HOUR), **producers)
    right, before = workspace.rules, sum(map(len, workspace.versions.values()))
    workspace.rules = [policy(name="audit", match_keys=["adit-*"], keep_within_days=3650), hourly, rest]
    for _night in range(3):
        workspace.pass_time(DAY)
        assert list(workspace.clean_up()) == ["rest"]
        assert len(workspace.versions["hourly"]) == 10
    assert sum(map(len, workspace.versions.values())) > before
    workspace.rules = right
    workspace.nights(2)


@pytest.mark.parametrize("written", [0, 1, 30], ids="{}-written-since".format)
@pytest.mark.parametrize("ahead", [5, 20, 400])
def test_a_clock_that_is_ahead_is_refused_where_age_counts(ahead: int, written: int) -> None:
    """Whether or not something is written by that clock, and every night; once it is right again, so is the run."""
    workspace = settled(policy(keep_within_days=7, keep_last=3), hourly=every(HOUR), daily=every(DAY))
    for night in range(3):
        clock = (ahead + night) * DAY
        workspace.write("hourly", [workspace.now + clock - index * timedelta(minutes=3) for index in range(written)])
        before = sum(map(len, workspace.versions.values()))
        refused = workspace.clean_up(clock=clock)
        assert "by the server's clock, which may be wrong" in refused["test"]
        assert sum(map(len, workspace.versions.values())) == before
    workspace.nights(2)


def test_days_without_versions_are_expected_while_runs_tell_of_them() -> None:
    """A workspace may be quiet, as over a holiday: the nightly runs show that its days were."""
    workspace = settled(policy(keep_within_days=7, keep_last=3), hourly=every(HOUR))
    workspace.producers = {}
    workspace.nights(20)
    workspace.producers = {"hourly": every(HOUR)}
    workspace.nights(3)


def test_a_producer_out_of_control_is_refused_every_night() -> None:
    """Ten thousand versions in a day where ten were usual, in one of several keys."""
    workspace = settled(policy(keep_last=10), **{f"key-{number}": every(DAY / 10) for number in range(5)})
    old = [each.id for each in workspace.versions["key-0"]]
    workspace.write("key-0", [workspace.now + index * timedelta(seconds=8) for index in range(1, 10_000)])
    for _night in range(2):
        workspace.pass_time(DAY)
        assert "are more than has come on the busiest days, 50, since the run of" in workspace.clean_up()["test"]
    assert {each.id for each in workspace.versions["key-0"]} >= set(old)


def test_a_producer_that_doubles_is_not_refused() -> None:
    """Growth is no fault."""
    workspace = settled(policy(keep_last=10), hourly=every(HOUR))
    workspace.producers["hourly"] = every(HOUR / 2)
    workspace.nights(5)
    workspace.producers["hourly"] = every(HOUR / 4)
    workspace.nights(5)
