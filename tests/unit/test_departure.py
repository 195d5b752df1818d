"""When a version goes: on the date that is told, and not a moment before; or when what it takes has happened."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from builders import NOW, days_old, history, kept, policy, version, with_metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect_artifact_retention.policies import RetentionPolicy, Version, departure, evaluate
from prefect_artifact_retention.policies.departure import TICK, Departure, departures, describe
from prefect_artifact_retention.policies.evaluation import ONE_DAY, judge
from prefect_artifact_retention.policies.holds import Hold
from test_evaluation_properties import Case, cases, with_and_without_idle

NEVER = NOW + timedelta(days=200_000)
"""When every age has come to its limit."""


def told(case: Case) -> dict[UUID, Departure]:
    """What is told of a case."""
    return departures(case.versions, case.policy, now=case.now, latest_id=case.latest_id, running=case.running)


def words(versions: list[Version], rules: RetentionPolicy, **others: object) -> list[str]:
    """What is told of each version, the latest first."""
    found = departures(versions, rules, now=NOW, **others)  # type: ignore[arg-type]
    return [describe(found[verdict.version.id]) for verdict in evaluate(versions, rules, now=NOW)]


@settings(max_examples=80)
@given(with_and_without_idle(known_latest=True))
def test_a_version_goes_on_its_date_and_not_a_moment_before(case: Case) -> None:
    """Of any policy and any history; one without a date never goes."""
    for version_id, goes in told(case).items():
        assert bool(goes.needs) == (goes.at is None)
        assert (goes.needs == "now") == (version_id not in case.kept())
        if goes.at:
            assert version_id not in case._replace(now=goes.at).kept()
            assert version_id in case._replace(now=goes.at - TICK).kept()
        elif goes.needs != "now":
            assert version_id in case._replace(now=NEVER).kept()


@settings(max_examples=80)
@given(with_and_without_idle(known_latest=True), st.integers(1, 10))
def test_no_version_goes_before_its_date_whatever_is_written(case: Case, number: int) -> None:
    """Right away, or until the moment before it."""
    for version_id, goes in told(case).items():
        if found := re.search(r", not before (.+)", goes.needs):
            before = datetime.fromisoformat(found[1]).replace(tzinfo=UTC) - TICK
            for step in (TICK, (before - case.now) / number):
                new = [version(case.now + step * each, number=900 + each) for each in range(1, number + 1)]
                later = case._replace(versions=[*case.versions, *new], latest_id=new[-1].id, now=max(before, case.now))
                assert version_id in later.kept()


@settings(max_examples=60)
@given(with_and_without_idle(known_latest=True), st.sampled_from([1, 5, 24, 100, 1000]))
def test_what_is_stale_stays_stale(case: Case, hours: int) -> None:
    """The search rests on it."""
    later = case._replace(now=case.now + timedelta(hours=hours))
    assert later.kept() <= case.kept()


@settings(max_examples=60)
@given(cases(known_latest=True, expire=False), st.integers(1, 5))
def test_one_of_the_last_goes_when_as_many_newer_ones_exist_as_is_told(case: Case, number: int) -> None:
    """And not when one fewer does."""
    rules = policy(keep_last=number)
    now = NOW + timedelta(days=50_000)
    plain = [each._replace(metadata={}) for each in case.versions]
    for version_id, goes in departures(plain, rules, now=now, latest_id=case.latest_id).items():
        if goes.needs != "now":
            found = re.fullmatch(r"when (?:(\d+) newer versions exist|a newer version exists)", goes.needs)
            assert found
            needed = int(found[1] or 1)
            for written in (needed - 1, needed):
                new = [version(now + timedelta(seconds=each), number=900 + each) for each in range(written)]
                latest_id = new[-1].id if new else case.latest_id
                verdicts = evaluate([*plain, *new], rules, now=now + ONE_DAY, latest_id=latest_id)
                assert (version_id in kept(verdicts)) == (written < needed)


@pytest.mark.parametrize("period", ["day", "week", "month", "year"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_newest_of_a_period_goes_when_as_many_newer_periods_have_one_as_is_told(period: str, limit: int) -> None:
    """And not when one fewer has."""
    rule = {"day": "keep_daily", "week": "keep_weekly", "month": "keep_monthly", "year": "keep_yearly"}[period]
    length = {"day": 1, "week": 7, "month": 31, "year": 366}[period]
    rules = policy(**{rule: limit})
    now = NOW + timedelta(days=length)
    past = history(*(length * age for age in range(4)), *(length * age + 0.01 for age in range(3)))
    told_of = departures(past, rules, now=now)
    assert sum(goes.needs != "now" for goes in told_of.values()) == limit
    for version_id, goes in told_of.items():
        if goes.needs != "now":
            found = re.fullmatch(rf"when (?:(\d+) newer {period}s have one|a newer {period} has one)", goes.needs)
            assert found
            needed = int(found[1] or 1)
            for written in (needed - 1, needed):
                new = [version(now + timedelta(days=length * each), number=each + 1) for each in range(written)]
                verdicts = evaluate([*past, *new], rules, now=now + timedelta(days=10 * length))
                assert (version_id in kept(verdicts)) == (written < needed)


def test_each_reason_has_its_words() -> None:
    """Dates where time is enough, and else what it takes."""
    assert words(history(1, 2, 40), policy(keep_last=1, keep_within_days=30)) == [
        "when a newer version exists, not before 2026-12-23",
        "2026-12-22 12:00",
        "now",
    ]
    assert words(history(1, 2, 3), policy(keep_last=2)) == [
        "when 2 newer versions exist",
        "when a newer version exists",
        "now",
    ]
    assert words(history(0, 1, 9), policy(keep_weekly=2, keep_daily=2)) == [
        "when this day has a newer one or 2 newer days have one, and this week has a newer one or 2 newer weeks have one",
        "when a newer day has one",
        "when a newer week has one",
    ]
    assert words(history(1, 2), policy(keep_within_days=1.5)) == ["when a newer version exists, not before 2026-11-25", "now"]
    assert words(history(1, 2), policy(keep_all=True)) == ["never: keep all"] * 2
    assert words(history(1, 2), policy(keep_last=1, keep_oldest=True))[1] == "never: the oldest version stays"
    assert words(history(1, 2), policy(keep_last=1, grace_days=3)) == [
        "when 3 days have passed since a newer version",
        "2026-11-26 12:00",
    ]
    assert words(history(1, 2), policy(keep_last=2, drop_idle_keys_after_days=30)) == ["2026-12-23 12:00"] * 2


def test_a_hold_ends_with_its_last_day_or_with_its_release() -> None:
    """So does a hold on the whole key; a TTL ends by itself."""
    rules = policy(keep_last=1)
    held = [days_old(1), with_metadata(2, hold="2026-12-24"), with_metadata(3, hold="true"), with_metadata(4, ttl_days="9")]
    assert words(held, rules) == ["when a newer version exists", "2026-12-25 00:00", "when it is released", "2026-11-29 12:00"]
    hold = Hold(key="report", until=(NOW + 2 * ONE_DAY).date())
    found = departures(history(1, 2), rules, now=NOW, hold=hold)
    assert {describe(each) for each in found.values()} == {
        "when a newer version exists, not before 2026-11-27",
        "2026-11-27 00:00",
    }
    forever = departures(history(1, 2), rules, now=NOW, hold=Hold(key="report"))
    assert {each.needs for each in forever.values()} == {
        "when a newer version exists and it is released",
        "when it is released",
    }


@pytest.mark.parametrize("rule", ["keep_last", "keep_daily", "keep_yearly"])
def test_a_hold_may_end_as_late_as_there_are_dates(rule: str) -> None:
    """Some hold with a date that is far away on purpose."""
    newest, held = words([days_old(1), with_metadata(2, hold="9999-12-30")], policy(**{rule: 1}))
    assert "a newer " in newest
    assert held == "9999-12-31 00:00"
    assert words([days_old(1), with_metadata(2, hold="9999-12-31")], policy(**{rule: 1}))[1] == "when it is released"


def test_what_people_must_do_first_is_said() -> None:
    """An unfinished run, a misspelt entry, two policies, a latest that does not exist."""
    running = days_old(2, flow_run_id=UUID(int=7))
    rules = policy(keep_last=1)
    assert words([days_old(1), running], rules, running={UUID(int=7)})[1] == "when its run has finished"
    assert words([days_old(1), with_metadata(2, hold="yess")], rules)[1] == "when its metadata can be read as meant"
    assert words(history(1, 2), rules, conflict="two")[1] == "when its key has one policy"
    assert words(history(1, 2), rules, latest_id=UUID(int=1))[1] == "when its collection names a latest version that exists"


def test_artifacts_without_a_key_go_by_their_age() -> None:
    """The results of runs never do."""
    rules = policy(unkeyed=True, keep_within_days=30)
    result = days_old(32, key=None, kind="result")
    assert words([*history(1, 31, key=None), result], rules) == ["2026-12-23 12:00", "now", "never: the result of a run"]


def test_many_versions_have_dates_that_are_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never too early: an explanation of thousands must not take minutes."""
    monkeypatch.setattr(departure, "MAX_EVALUATED", 50_000)
    versions = [version(NOW - timedelta(hours=number)) for number in range(500)]
    found = departures(versions, policy(keep_within_days=10), now=NOW)
    late = []
    for each in versions[1:]:
        exact, told_of = each.created + 10 * ONE_DAY + TICK, found[each.id]
        assert (told_of.needs == "now") == (exact <= NOW)
        late += [told_of.at - exact] if told_of.at else []
    assert min(late) >= timedelta()
    assert timedelta() < max(late) < timedelta(hours=4)


def test_versions_with_a_ttl_are_judged_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their metadata is read each time; no date is too early for that."""
    monkeypatch.setattr(departure, "MAX_EVALUATED", 50_000)
    judged = []
    monkeypatch.setattr(departure, "judge", lambda *args, **fields: judged.append(fields["now"]) or judge(*args, **fields))
    versions = [with_metadata(number / 24, ttl_days="10") for number in range(100)]
    found = departures(versions, policy(keep_last=1), now=NOW)
    assert len(judged) < 50
    late = [found[each.id].at - (each.created + 10 * ONE_DAY + TICK) for each in versions[1:]]  # type: ignore[operator]
    assert min(late) >= timedelta()
