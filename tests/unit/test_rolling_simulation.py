"""A year of creating every hour and pruning every night, across both changes of the clocks in Zurich."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from builders import kept, policy, version
from prefect_artifact_retention.policies import RetentionPolicy, Verdict, Version, evaluate

ZURICH = ZoneInfo("Europe/Zurich")
GFS = policy(keep_hourly=24, keep_daily=7, keep_weekly=5, keep_monthly=12, keep_yearly=2, timezone="Europe/Zurich")
START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2027, 1, 6, 2, 30, tzinfo=UTC)


class Night(NamedTuple):
    """One nightly run: its moment, what had been created by then, and its verdicts."""

    now: datetime
    created: list[Version]
    verdicts: tuple[Verdict, ...]


def simulate(rules: RetentionPolicy, every: timedelta) -> Iterator[Night]:
    """Create a version at regular intervals; prune every day at 02:30 UTC; say what each run saw."""
    created: list[Version] = []
    present: list[Version] = []
    moment = START
    for day in range((END - START).days + 1):
        now = START + timedelta(days=day, hours=2, minutes=30)
        while moment <= now:
            created.append(version(moment))
            present.append(created[-1])
            moment += every
        verdicts = evaluate(present, rules, now=now)
        yield Night(now, list(created), verdicts)
        present = [verdict.version for verdict in reversed(verdicts) if verdict.keep]


@cache
def hourly_year() -> tuple[Night, ...]:
    """A year of hourly versions under GFS, computed once."""
    return tuple(simulate(GFS, timedelta(hours=1)))


def local_times(versions: Iterable[Version]) -> list[str]:
    """Times in Zurich, newest first."""
    times = sorted((v.created for v in versions), reverse=True)
    return [f"{time.astimezone(ZURICH):%Y-%m-%d %H:%M%z}" for time in times]


def kept_by(night: Night, rule: str) -> list[str]:
    """The local times of what one rule keeps."""
    return local_times(verdict.version for verdict in night.verdicts if rule in verdict.rules)


def night_of(year: int, month: int, day: int) -> Night:
    """The run of this date."""
    return next(night for night in hourly_year() if night.now.date() == datetime(year, month, day, tzinfo=UTC).date())


def test_the_year_ends_with_exactly_its_hours_days_weeks_months_and_years() -> None:
    """Every slot is the last hour of its period, by Zurich's clock, W53 included."""
    last = hourly_year()[-1]
    assert kept_by(last, "keep_hourly") == [
        f"{END.astimezone(ZURICH).replace(minute=0) - timedelta(hours=hours):%Y-%m-%d %H:%M%z}" for hours in range(24)
    ]
    assert kept_by(last, "keep_daily") == [
        "2027-01-06 03:00+0100",
        "2027-01-05 23:00+0100",
        "2027-01-04 23:00+0100",
        "2027-01-03 23:00+0100",
        "2027-01-02 23:00+0100",
        "2027-01-01 23:00+0100",
        "2026-12-31 23:00+0100",
    ]
    assert kept_by(last, "keep_weekly") == [
        "2027-01-06 03:00+0100",
        "2027-01-03 23:00+0100",  # 2026-W53
        "2026-12-27 23:00+0100",
        "2026-12-20 23:00+0100",
        "2026-12-13 23:00+0100",
    ]
    assert kept_by(last, "keep_monthly") == [
        "2027-01-06 03:00+0100",
        "2026-12-31 23:00+0100",
        "2026-11-30 23:00+0100",
        "2026-10-31 23:00+0100",
        "2026-09-30 23:00+0200",
        "2026-08-31 23:00+0200",
        "2026-07-31 23:00+0200",
        "2026-06-30 23:00+0200",
        "2026-05-31 23:00+0200",
        "2026-04-30 23:00+0200",
        "2026-03-31 23:00+0200",
        "2026-02-28 23:00+0100",
    ]
    assert kept_by(last, "keep_yearly") == ["2027-01-06 03:00+0100", "2026-12-31 23:00+0100"]


def test_the_year_ends_with_no_version_more_than_its_slots() -> None:
    """24 hours; six days that are not today, of which 5 January lies within the hours; 3 weeks; 10 months; no year."""
    last = hourly_year()[-1]
    survivors = {verdict.version.created for verdict in last.verdicts if verdict.keep}
    hours = {END.replace(minute=0) - timedelta(hours=hours) for hours in range(24)}
    by_period: list[tuple[int, Callable[[datetime], object]]] = [
        (7, lambda local: local.date()),
        (5, lambda local: local.isocalendar()[:2]),
        (12, lambda local: (local.year, local.month)),
        (2, lambda local: local.year),
    ]
    expected = set(hours)
    for count, period in by_period:
        newest = {period(v.created.astimezone(ZURICH)): v.created for v in last.created}  # oldest first: newest wins
        expected |= set(sorted(newest.values(), reverse=True)[:count])
    assert survivors == expected
    assert len(survivors) == 24 + 5 + 3 + 10


@pytest.mark.parametrize("every", [timedelta(hours=1), timedelta(hours=5), timedelta(days=1), timedelta(days=9)])
def test_pruning_every_night_ends_where_one_pruning_at_the_end_would(every: timedelta) -> None:
    """No slot is lost on the way, and none is gained."""
    nights = hourly_year() if every == timedelta(hours=1) else tuple(simulate(GFS, every))
    last = nights[-1]
    assert kept(last.verdicts) == kept(evaluate(last.created, GFS, now=last.now))


def test_a_year_of_nights_under_every_kind_of_keep_rule_ends_where_one_pruning_would() -> None:
    """Also with last, within, grace and oldest beside the calendar."""
    rules = policy(keep_last=3, keep_within_days=2.5, keep_daily=4, keep_monthly=3, grace_days=1.5, keep_oldest=True)
    last = list(simulate(rules, timedelta(hours=7)))[-1]
    assert kept(last.verdicts) == kept(evaluate(last.created, rules, now=last.now))


@pytest.mark.parametrize(
    ("rule", "slots", "first_full_night"),
    [("keep_hourly", 24, 1), ("keep_daily", 7, 6), ("keep_weekly", 5, 25), ("keep_monthly", 12, 334)],
)
def test_every_night_of_the_year_fills_the_slots_it_can(rule: str, slots: int, first_full_night: int) -> None:
    """From 2, 7 and 26 January and 1 December on, also in the nights when the clocks change."""
    counts = [len(kept_by(night, rule)) for night in hourly_year()]
    assert counts == sorted(counts)
    assert counts.index(slots) == first_full_night
    assert counts[-1] == slots


def test_the_collection_never_outgrows_its_slots() -> None:
    """After each night at most 24 + 7 + 5 + 12 + 2 versions are left."""
    assert max(len(kept(night.verdicts)) for night in hourly_year()) <= 24 + 7 + 5 + 12 + 2


def test_the_night_after_dst_begins_keeps_24_hours_without_the_skipped_one() -> None:
    """On 2026-03-29 Zurich has no 02:00; 24 hours reach back to 05:00 the day before."""
    hours = kept_by(night_of(2026, 3, 29), "keep_hourly")
    assert hours[:4] == [
        "2026-03-29 04:00+0200",
        "2026-03-29 03:00+0200",
        "2026-03-29 01:00+0100",
        "2026-03-29 00:00+0100",
    ]
    assert hours[-1] == "2026-03-28 04:00+0100"
    assert len(hours) == 24


def test_the_night_after_dst_ends_keeps_the_repeated_hour_twice() -> None:
    """On 2026-10-25 Zurich has 02:00 twice, and both take a slot."""
    hours = kept_by(night_of(2026, 10, 25), "keep_hourly")
    assert hours[:4] == [
        "2026-10-25 03:00+0100",
        "2026-10-25 02:00+0100",
        "2026-10-25 02:00+0200",
        "2026-10-25 01:00+0200",
    ]
    assert hours[-1] == "2026-10-24 05:00+0200"
    assert len(hours) == 24


@pytest.mark.parametrize(("month", "day"), [(3, 30), (10, 26)])
def test_the_days_on_which_clocks_change_are_one_day_each(month: int, day: int) -> None:
    """The night after, the seven dailies are seven consecutive dates, each but today at 23:00."""
    dailies = kept_by(night_of(2026, month, day), "keep_daily")
    assert [daily[:10] for daily in dailies] == [f"2026-{month:02d}-{day - back:02d}" for back in range(7)]
    assert {daily[11:16] for daily in dailies[1:]} == {"23:00"}
