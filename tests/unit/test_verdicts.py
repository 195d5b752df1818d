"""Policies against small fixed histories: every verdict with its reasons, word for word.

A line reads: age in days (or time of creation), KEEP or DELETE, the reasons. NOW is 2026-11-24 12:00 UTC.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from builders import NOW, by_age, by_time, days_old, history, policy, version, with_metadata
from prefect_artifact_retention.policies import RetentionPolicy, Version, evaluate

RUN = UUID(int=7)
NOBODY = UUID(int=8)


def judged(versions: list[Version], rules: RetentionPolicy, running: frozenset[UUID] = frozenset()) -> list[str]:
    """The verdicts at NOW as lines."""
    return by_age(evaluate(versions, rules, now=NOW, running=running))


def utc(*numbers: int) -> datetime:
    """A time in UTC."""
    year, month, day, *rest = numbers
    hour, minute = (*rest, 0, 0)[:2]
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


# --- keep_last


def test_keep_last_deletes_beyond_the_number_and_keeps_up_to_it() -> None:
    """The N newest stay."""
    assert judged(history(0, 1, 5, 41), policy(keep_last=3)) == [
        "0d KEEP last 1 of 3; latest version of its key",
        "1d KEEP last 2 of 3",
        "5d KEEP last 3 of 3",
        "41d DELETE superseded 5 days ago, outside every keep rule",
    ]


def test_keep_last_keeps_all_of_a_short_history_however_old() -> None:
    """Fewer versions than slots: age plays no part."""
    assert judged(history(900, 1000), policy(keep_last=3)) == [
        "900d KEEP last 1 of 3; latest version of its key",
        "1000d KEEP last 2 of 3",
    ]


# --- keep_within_days


def test_within_days_includes_its_boundary_to_the_microsecond() -> None:
    """Exactly 30 days old is within 30 days; a microsecond more is not."""
    exactly = NOW - timedelta(days=30)
    versions = [days_old(1), version(exactly), version(exactly - timedelta(microseconds=1))]
    assert by_time(evaluate(versions, policy(keep_within_days=30), now=NOW)) == [
        "2026-11-23 12:00 KEEP within 30 days; latest version of its key",
        "2026-10-25 12:00 KEEP within 30 days",
        "2026-10-25 11:59 DELETE superseded 30 days ago, outside every keep rule",
    ]


def test_within_days_takes_fractions() -> None:
    """A quarter of a day is six hours, inclusive."""
    assert judged(history(0.125, 0.25, 0.5), policy(keep_within_days=0.25)) == [
        "0.125d KEEP within 0.25 days; latest version of its key",
        "0.25d KEEP within 0.25 days",
        "0.5d DELETE superseded 6 hours ago, outside every keep rule",
    ]


# --- calendar rules


def test_daily_keeps_the_newest_of_each_of_the_most_recent_days_that_have_any() -> None:
    """Days without versions use up no slot."""
    versions = [
        version(created)
        for created in (utc(2026, 11, 24, 9), utc(2026, 11, 24, 8), utc(2026, 11, 20, 23), utc(2026, 11, 20, 1))
    ]
    assert by_time(evaluate([*versions, version(utc(2026, 11, 3))], policy(keep_daily=2), now=NOW)) == [
        "2026-11-24 09:00 KEEP daily 2026-11-24; latest version of its key",
        "2026-11-24 08:00 DELETE superseded 3 hours ago, outside every keep rule",
        "2026-11-20 23:00 KEEP daily 2026-11-20",
        "2026-11-20 01:00 DELETE superseded 3 days ago, outside every keep rule",
        "2026-11-03 00:00 DELETE superseded 4 days ago, outside every keep rule",
    ]


def test_days_are_days_of_the_policys_time_zone() -> None:
    """23:30 UTC is the next day in Zurich, and the same day in UTC."""
    versions = [version(utc(2026, 11, 21, 8)), version(utc(2026, 11, 20, 23, 30)), version(utc(2026, 11, 20, 22, 30))]
    assert by_time(evaluate(versions, policy(keep_daily=9, timezone="Europe/Zurich"), now=NOW)) == [
        "2026-11-21 08:00 KEEP daily 2026-11-21; latest version of its key",
        "2026-11-20 23:30 DELETE superseded 3 days ago, outside every keep rule",
        "2026-11-20 22:30 KEEP daily 2026-11-20",
    ]
    assert by_time(evaluate(versions, policy(keep_daily=9), now=NOW)) == [
        "2026-11-21 08:00 KEEP daily 2026-11-21; latest version of its key",
        "2026-11-20 23:30 KEEP daily 2026-11-20",
        "2026-11-20 22:30 DELETE superseded 3 days ago, outside every keep rule",
    ]


def test_hourly_keeps_the_newest_of_each_hour() -> None:
    """An hour begins at its full hour, not an hour ago."""
    versions = [version(utc(2026, 11, 24, 11, minute)) for minute in (59, 0)] + [version(utc(2026, 11, 24, 10))]
    assert by_time(evaluate([*versions, version(utc(2026, 11, 24, 8))], policy(keep_hourly=2), now=NOW)) == [
        "2026-11-24 11:59 KEEP hourly 2026-11-24 11:00+0000; latest version of its key",
        "2026-11-24 11:00 DELETE superseded 0 hours ago, outside every keep rule",
        "2026-11-24 10:00 KEEP hourly 2026-11-24 10:00+0000",
        "2026-11-24 08:00 DELETE superseded 2 hours ago, outside every keep rule",
    ]


def test_the_hour_repeated_at_the_end_of_dst_counts_twice() -> None:
    """02:30 CEST and 02:30 CET on 2026-10-25 are two hours of Zurich's."""
    versions = [version(utc(2026, 10, 25, hour, 30)) for hour in (2, 1, 0)]
    verdicts = evaluate(versions, policy(keep_hourly=3, timezone="Europe/Zurich"), now=utc(2026, 10, 25, 3))
    assert by_time(verdicts) == [
        "2026-10-25 02:30 KEEP hourly 2026-10-25 03:00+0100; latest version of its key",
        "2026-10-25 01:30 KEEP hourly 2026-10-25 02:00+0100",
        "2026-10-25 00:30 KEEP hourly 2026-10-25 02:00+0200",
    ]


def test_the_repeated_hour_takes_two_slots() -> None:
    """With two slots the hour before it goes."""
    versions = [version(utc(2026, 10, 25, 1, 30)), version(utc(2026, 10, 25, 0, 30)), version(utc(2026, 10, 24, 23, 30))]
    verdicts = evaluate(versions, policy(keep_hourly=2, timezone="Europe/Zurich"), now=utc(2026, 10, 25, 2))
    assert [verdict.keep for verdict in verdicts] == [True, True, False]


def test_the_hour_that_is_skipped_at_the_start_of_dst_takes_no_slot() -> None:
    """In Zurich 03:30 CEST follows 01:30 CET on 2026-03-29."""
    versions = [version(utc(2026, 3, 29, hour, 30)) for hour in (1, 0)] + [version(utc(2026, 3, 28, 22, 30))]
    verdicts = evaluate(versions, policy(keep_hourly=2, timezone="Europe/Zurich"), now=utc(2026, 3, 29, 3))
    assert by_time(verdicts) == [
        "2026-03-29 01:30 KEEP hourly 2026-03-29 03:00+0200; latest version of its key",
        "2026-03-29 00:30 KEEP hourly 2026-03-29 01:00+0100",
        "2026-03-28 22:30 DELETE superseded 2 hours ago, outside every keep rule",
    ]


def test_the_day_on_which_dst_ends_is_one_day_of_twenty_five_hours() -> None:
    """From 22:00 UTC to 23:00 UTC the next day, one daily slot."""
    versions = [version(utc(2026, 10, 25, 23)), version(utc(2026, 10, 25, 22, 59)), version(utc(2026, 10, 24, 22))]
    verdicts = evaluate(versions, policy(keep_daily=9, timezone="Europe/Zurich"), now=NOW)
    assert by_time(verdicts) == [
        "2026-10-25 23:00 KEEP daily 2026-10-26; latest version of its key",
        "2026-10-25 22:59 KEEP daily 2026-10-25",
        "2026-10-24 22:00 DELETE superseded 29 days ago, outside every keep rule",
    ]


def test_week_53_runs_across_the_turn_of_the_year() -> None:
    """2026-W53 is Monday 2026-12-28 to Sunday 2027-01-03."""
    days = [utc(2027, 1, 4), utc(2027, 1, 3, 23), utc(2027, 1, 1), utc(2026, 12, 28), utc(2026, 12, 27, 23)]
    verdicts = evaluate([version(day) for day in days], policy(keep_weekly=5), now=utc(2027, 1, 5))
    assert by_time(verdicts) == [
        "2027-01-04 00:00 KEEP weekly 2027-W01; latest version of its key",
        "2027-01-03 23:00 KEEP weekly 2026-W53",
        "2027-01-01 00:00 DELETE superseded 25 hours ago, outside every keep rule",
        "2026-12-28 00:00 DELETE superseded 4 days ago, outside every keep rule",
        "2026-12-27 23:00 KEEP weekly 2026-W52",
    ]


def test_monthly_keeps_the_newest_of_each_month() -> None:
    """The last version of a month, not the first of the next."""
    days = [utc(2026, 11, 1), utc(2026, 10, 31, 23), utc(2026, 10, 1), utc(2026, 9, 30)]
    assert by_time(evaluate([version(day) for day in days], policy(keep_monthly=2), now=NOW)) == [
        "2026-11-01 00:00 KEEP monthly 2026-11; latest version of its key",
        "2026-10-31 23:00 KEEP monthly 2026-10",
        "2026-10-01 00:00 DELETE superseded 23 days ago, outside every keep rule",
        "2026-09-30 00:00 DELETE superseded 54 days ago, outside every keep rule",
    ]


def test_yearly_keeps_the_newest_of_each_year() -> None:
    """The last version of a year, in the policy's zone: 23:30 UTC on New Year's Eve is next year in Zurich."""
    days = [utc(2026, 2, 1), utc(2025, 12, 31, 23, 30), utc(2025, 12, 31, 22, 30), utc(2024, 5, 1)]
    rules = policy(keep_yearly=2, timezone="Europe/Zurich")
    assert by_time(evaluate([version(day) for day in days], rules, now=NOW)) == [
        "2026-02-01 00:00 KEEP yearly 2026; latest version of its key",
        "2025-12-31 23:30 DELETE superseded 296 days ago, outside every keep rule",
        "2025-12-31 22:30 KEEP yearly 2025",
        "2024-05-01 00:00 DELETE superseded 327 days ago, outside every keep rule",
    ]


def test_rules_are_a_union_and_a_version_names_every_rule_that_keeps_it() -> None:
    """Deleted only if no rule keeps it."""
    rules = policy(keep_last=2, keep_within_days=3, keep_daily=2, keep_weekly=2, keep_monthly=2)
    assert judged(history(0, 3, 4, 30), rules) == [
        "0d KEEP last 1 of 2; within 3 days; daily 2026-11-24; weekly 2026-W48; monthly 2026-11; latest version of its key",
        "3d KEEP last 2 of 2; within 3 days; daily 2026-11-21; weekly 2026-W47",
        "4d DELETE superseded 3 days ago, outside every keep rule",
        "30d KEEP monthly 2026-10",
    ]


# --- keep_oldest


def test_keep_oldest_keeps_the_oldest_and_nothing_else_old() -> None:
    """The first version of a key stays as the origin of its history."""
    assert judged(history(10, 100, 200), policy(keep_last=1, keep_oldest=True)) == [
        "10d KEEP last 1 of 1; latest version of its key",
        "100d DELETE superseded 10 days ago, outside every keep rule",
        "200d KEEP oldest version",
    ]


def test_without_keep_oldest_the_oldest_goes() -> None:
    """The counterpart."""
    assert judged(history(0, 200), policy(keep_last=1))[-1].startswith("200d DELETE")


def test_keep_oldest_passes_over_a_version_with_a_ttl() -> None:
    """A version with a TTL takes no slot: the oldest of the others is the oldest."""
    versions = [*history(0, 50, 100), with_metadata(200, ttl_days="7")]
    assert judged(versions, policy(keep_last=1, keep_oldest=True))[2:] == [
        "100d KEEP oldest version",
        "200d DELETE its own TTL of 7 days is over",
    ]


# --- grace_days


def test_grace_runs_from_the_next_newer_version_not_from_creation() -> None:
    """A version that served for a year stays two days after it was replaced, boundary included."""
    assert judged(history(1, 2, 365, 400), policy(keep_last=1, grace_days=2)) == [
        "1d KEEP last 1 of 1; not superseded; latest version of its key",
        "2d KEEP superseded 24 hours ago, within 2 days of grace",
        "365d KEEP superseded 2 days ago, within 2 days of grace",
        "400d DELETE superseded 365 days ago, outside every keep rule",
    ]


def test_without_grace_a_long_lived_version_goes_as_soon_as_it_is_replaced() -> None:
    """The counterpart."""
    assert judged(history(1, 365), policy(keep_last=1))[-1] == ("365d DELETE superseded 24 hours ago, outside every keep rule")


def test_grace_is_over_a_microsecond_after_its_boundary() -> None:
    """Half a day is twelve hours, inclusive."""
    replaced = NOW - timedelta(hours=12)
    rules = policy(keep_last=1, grace_days=0.5)
    for late, keep in ((0, True), (1, False)):
        versions = [version(replaced - timedelta(microseconds=late)), days_old(300)]
        assert evaluate(versions, rules, now=NOW)[1].keep is keep


def test_a_version_with_a_ttl_supersedes() -> None:
    """It takes no slot, but it is the next newer version."""
    versions = [days_old(0), with_metadata(10, ttl_days="30"), days_old(300)]
    assert judged(versions, policy(keep_last=1, grace_days=5)) == [
        "0d KEEP last 1 of 1; not superseded; latest version of its key",
        "10d KEEP within its own TTL of 30 days",
        "300d DELETE superseded 10 days ago, outside every keep rule",
    ]


def test_a_future_version_supersedes_nothing() -> None:
    """Before it exists for this run, nothing has been replaced by it."""
    assert judged(history(-0.5, 10, 300), policy(keep_last=1, grace_days=5)) == [
        "-0.5d KEEP latest version of its key; newer than the plan",
        "10d KEEP last 1 of 1; not superseded",
        "300d DELETE superseded 10 days ago, outside every keep rule",
    ]


# --- expire_after_days


def test_the_hard_limit_beats_every_keep_rule_but_not_the_latest() -> None:
    """Data-protection rules go before history, boundary inclusive."""
    rules = policy(keep_last=9, keep_daily=9, keep_within_days=30, grace_days=90, expire_after_days=30)
    assert judged(history(29, 30, 31), rules) == [
        "29d KEEP last 1 of 9; within 30 days; daily 2026-10-26; not superseded; latest version of its key",
        "30d KEEP last 2 of 9; within 30 days; daily 2026-10-25; superseded 29 days ago, within 90 days of grace",
        "31d DELETE 31 days old, expires after 30 days",
    ]


def test_the_latest_stays_beyond_the_hard_limit() -> None:
    """Only drop_idle_keys_after_days takes a latest."""
    assert judged(history(50, 60), policy(keep_last=9, expire_after_days=30)) == [
        "50d KEEP latest version of its key",
        "60d DELETE 60 days old, expires after 30 days",
    ]


def test_the_hard_limit_beats_a_ttl() -> None:
    """A producer may ask for less than the limit, not for more."""
    versions = [days_old(0), with_metadata(31, ttl_days="90"), with_metadata(40, ttl_days="50")]
    assert judged(versions, policy(keep_last=1, expire_after_days=35))[1:] == [
        "31d KEEP within its own TTL of 90 days",
        "40d DELETE 40 days old, expires after 35 days",
    ]


def test_a_hold_beats_the_hard_limit() -> None:
    """Protections come last and beat everything."""
    versions = [days_old(0), with_metadata(500, hold="true")]
    assert judged(versions, policy(keep_last=9, expire_after_days=30))[-1] == "500d KEEP held"


# --- TTL


def test_a_ttl_deletes_what_rules_would_keep_and_keeps_what_they_would_delete() -> None:
    """A TTL is the version's own rule, and the only one that counts for it; boundary inclusive."""
    versions = [
        days_old(0),
        with_metadata(1, ttl_days="0.5"),
        with_metadata(2, ttl_days="2"),
        with_metadata(40, ttl_days="60"),
        with_metadata(50, ttl_days="40"),
    ]
    assert judged(versions, policy(keep_last=9)) == [
        "0d KEEP last 1 of 9; latest version of its key",
        "1d DELETE its own TTL of 0.5 days is over",
        "2d KEEP within its own TTL of 2 days",
        "40d KEEP within its own TTL of 60 days",
        "50d DELETE its own TTL of 40 days is over",
    ]


def test_a_version_with_a_ttl_takes_no_slot() -> None:
    """Debug output with a TTL does not push a nightly report out of its last three."""
    versions = [days_old(0), with_metadata(1, ttl_days="7"), with_metadata(2, ttl_days="7"), *history(3, 4)]
    assert judged(versions, policy(keep_last=2)) == [
        "0d KEEP last 1 of 2; latest version of its key",
        "1d KEEP within its own TTL of 7 days",
        "2d KEEP within its own TTL of 7 days",
        "3d KEEP last 2 of 2",
        "4d DELETE superseded 3 days ago, outside every keep rule",
    ]


def test_the_latest_takes_its_slot_and_stays_though_its_ttl_is_over() -> None:
    """A TTL empties no key."""
    versions = [with_metadata(5, ttl_days="1"), *history(6, 7)]
    assert judged(versions, policy(keep_last=2)) == [
        "5d KEEP latest version of its key",
        "6d KEEP last 2 of 2",
        "7d DELETE superseded 6 days ago, outside every keep rule",
    ]


def test_the_latest_within_its_ttl_says_so() -> None:
    """Both reasons hold."""
    assert judged([with_metadata(5, ttl_days="10")], policy(keep_last=2)) == [
        "5d KEEP within its own TTL of 10 days; latest version of its key",
    ]


@pytest.mark.parametrize("text", ["30", " 30 ", "30.0", "36525", "0.5"])
def test_readable_ttls_are_obeyed(text: str) -> None:
    """Numbers of days as people write them, and nothing is reported about them."""
    long_ago = with_metadata(40_000, ttl_days=text)
    (_, verdict) = evaluate([days_old(0), long_ago], policy(keep_last=2), now=NOW)
    assert not verdict.keep
    assert verdict.rules == ("ttl",)


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "30d", "1e3", "nan", "inf", "36526", "1,5", "٣٠", "thirty"])
def test_a_ttl_that_cannot_be_read_keeps_the_version_and_is_reported(text: str) -> None:
    """Controls fail closed."""
    assert judged([days_old(0), with_metadata(400, ttl_days=text)], policy(keep_last=1))[-1] == (
        f"400d KEEP unreadable retention-ttl-days '{text}'"
    )


def test_a_version_with_an_unreadable_ttl_takes_no_slot() -> None:
    """It was meant to have a TTL."""
    versions = [days_old(0), with_metadata(1, ttl_days="soon"), *history(2, 3)]
    assert [line.split()[1] for line in judged(versions, policy(keep_last=2))] == ["KEEP", "KEEP", "KEEP", "DELETE"]


# --- holds


def test_a_hold_keeps_for_good_or_until_its_date_inclusive_in_utc() -> None:
    """NOW is on 2026-11-24 in UTC."""
    versions = [
        days_old(0),
        with_metadata(101, hold="true"),
        with_metadata(102, hold="2027-01-01"),
        with_metadata(103, hold="2026-11-24"),
        with_metadata(104, hold="2026-11-23"),
        with_metadata(105, hold="false"),
    ]
    assert judged(versions, policy(keep_last=1)) == [
        "0d KEEP last 1 of 1; latest version of its key",
        "101d KEEP held",
        "102d KEEP held until 2027-01-01",
        "103d KEEP held until 2026-11-24",
        "104d DELETE superseded 103 days ago, outside every keep rule",
        "105d DELETE superseded 104 days ago, outside every keep rule",
    ]


@pytest.mark.parametrize("offset", [-11, -1, 0, 1, 13])
def test_the_date_of_a_hold_is_a_date_in_utc_wherever_the_clock_stands(offset: int) -> None:
    """The last microsecond of the day in UTC is still held, the next is not."""
    local = ZoneInfo(f"Etc/GMT{-offset:+d}")
    versions = [version(utc(2026, 11, 24)), version(utc(2026, 1, 1), metadata={"retention-hold": "2026-11-24"})]
    last_moment = datetime(2026, 11, 24, 23, 59, 59, 999_999, tzinfo=UTC)
    for now, keep in ((last_moment, True), (last_moment + timedelta(microseconds=1), False)):
        assert evaluate(versions, policy(keep_last=1), now=now.astimezone(local))[1].keep is keep


@pytest.mark.parametrize("text", ["", "yess", "yes", "1", "2026-02-30", "24.11.2026", "tomorrow", "2026-11-23T12:00"])
def test_a_hold_that_cannot_be_read_keeps_the_version_and_is_reported(text: str) -> None:
    """Holds fail closed."""
    assert judged([days_old(0), with_metadata(400, hold=text)], policy(keep_last=1))[-1] == (
        f"400d KEEP unreadable retention-hold '{text}'"
    )


MISSPELT = [
    *("retention_hold", "Retention-Hold", "RETENTION_HOLD", "retention-holds", "retention-hold-until", " retention-hold"),
    *("retention.hold", "retention hold", "retention\u2013hold", "retentionHold", "retention-ttl", "retention_ttl_days"),
]


@pytest.mark.parametrize("name", MISSPELT)
@pytest.mark.parametrize("value", ["true", "false", "2020-01-01", "3"])
def test_an_entry_of_another_name_that_was_meant_for_us_keeps_the_version_and_is_reported(name: str, value: str) -> None:
    """Whatever its value: only its producer knows what it was to mean."""
    versions = [days_old(0), days_old(400, metadata={"x": "y", name: value})]
    known = "(known are retention-hold and retention-ttl-days)"
    assert judged(versions, policy(keep_last=1))[-1] == f"400d KEEP unknown metadata entry {name!r} {known}"


def test_a_right_entry_makes_up_for_no_misspelt_one() -> None:
    """`false` in the one, `true` in the other: who knows."""
    versions = [days_old(0), days_old(9, metadata={"retention-hold": "false", "retention_hold": "true"})]
    assert judged(versions, policy(keep_last=1))[-1].startswith("9d KEEP unknown metadata entry 'retention_hold'")


def test_a_version_with_a_misspelt_ttl_takes_no_slot_and_one_with_a_misspelt_hold_does() -> None:
    """As with those whose value cannot be read."""
    for name, kept in (("retention_ttl", 3), ("retention_hold", 2)):
        versions = [days_old(0), days_old(1, metadata={name: "x"}), *history(2, 3)]
        assert len([line for line in judged(versions, policy(keep_last=2)) if " KEEP " in line]) == kept


def test_a_key_with_a_misspelt_entry_is_not_idle() -> None:
    """It may be held."""
    versions = [days_old(100), days_old(101, metadata={"retention_hold": "true"})]
    assert " KEEP " in judged(versions, policy(keep_last=1, drop_idle_keys_after_days=50))[0]


def test_a_held_version_keeps_its_slot() -> None:
    """Protections change no slot: holding the second newest makes no room for a third."""
    versions = [days_old(0), with_metadata(1, hold="true"), days_old(2)]
    assert judged(versions, policy(keep_last=2)) == [
        "0d KEEP last 1 of 2; latest version of its key",
        "1d KEEP last 2 of 2; held",
        "2d DELETE superseded 24 hours ago, outside every keep rule",
    ]


def test_other_metadata_is_nobodys_business() -> None:
    """Only entries that read retention- are; those of this package begin otherwise."""
    others = {"hold": "true", "ttl": "99", "retentive": "true", "data-retention": "9", "artifact-retention-phase": "deleting"}
    versions = [days_old(0), days_old(9, metadata=others)]
    assert judged(versions, policy(keep_last=1))[-1].startswith("9d DELETE")


# --- running and future


def test_a_version_of_an_unfinished_run_stays() -> None:
    """Whether its flow run or its task run goes on; and its counterpart goes."""
    versions = [days_old(0), days_old(1, flow_run_id=RUN), days_old(2, task_run_id=RUN), days_old(3, task_run_id=NOBODY)]
    assert judged(versions, policy(keep_last=1), running=frozenset({RUN})) == [
        "0d KEEP last 1 of 1; latest version of its key",
        "1d KEEP its flow run has not finished",
        "2d KEEP its task run has not finished",
        "3d DELETE superseded 2 days ago, outside every keep rule",
    ]


def test_a_version_created_after_now_stays_and_takes_no_slot() -> None:
    """It was written while the run went on; the next run judges it."""
    assert judged(history(-0.25, 1, 2, 3), policy(keep_last=2)) == [
        "-0.25d KEEP latest version of its key; newer than the plan",
        "1d KEEP last 1 of 2",
        "2d KEEP last 2 of 2",
        "3d DELETE superseded 2 days ago, outside every keep rule",
    ]


def test_a_version_created_exactly_now_is_not_future() -> None:
    """Boundaries are inclusive."""
    assert judged(history(0, 1), policy(keep_last=1))[0] == "0d KEEP last 1 of 1; latest version of its key"


# --- drop_idle_keys_after_days


def test_an_idle_key_goes_whole_and_an_active_one_stays() -> None:
    """Idle means that its newest version is older than the limit, boundary inclusive."""
    rules = policy(keep_last=9, drop_idle_keys_after_days=90)
    assert judged(history(91, 200), rules) == [
        "91d DELETE idle key: its newest version is 91 days old, dropped after 90 days",
        "200d DELETE idle key: its newest version is 91 days old, dropped after 90 days",
    ]
    assert judged(history(90, 200), rules) == [
        "90d KEEP last 1 of 9; latest version of its key",
        "200d KEEP last 2 of 9",
    ]


def test_idle_keys_stay_unless_the_policy_drops_them() -> None:
    """Off by default."""
    assert judged(history(5000), policy(keep_last=1)) == ["5000d KEEP last 1 of 1; latest version of its key"]


IDLE_BUT = [
    pytest.param(with_metadata(200, hold="true"), True, id="held"),
    pytest.param(with_metadata(200, hold="2026-11-24"), True, id="held-until-today"),
    pytest.param(with_metadata(200, hold="2026-11-23"), False, id="held-until-yesterday"),
    pytest.param(with_metadata(200, hold="yess"), True, id="unreadable-hold"),
    pytest.param(with_metadata(200, ttl_days="200"), True, id="within-its-ttl"),
    pytest.param(with_metadata(200, ttl_days="199"), False, id="ttl-over"),
    pytest.param(with_metadata(200, ttl_days="soon"), True, id="unreadable-ttl"),
    pytest.param(days_old(200, flow_run_id=RUN), True, id="flow-run-running"),
    pytest.param(days_old(200, task_run_id=RUN), True, id="task-run-running"),
    pytest.param(days_old(200, flow_run_id=NOBODY), False, id="run-finished"),
    pytest.param(days_old(-1), True, id="future"),
]


@pytest.mark.parametrize(("exception", "stays"), IDLE_BUT)
def test_a_key_is_not_idle_with_a_version_that_is_held_running_future_or_within_its_ttl(
    exception: Version, *, stays: bool
) -> None:
    """One such version keeps the key's latest; each has a counterpart that does not."""
    versions = [days_old(100), exception]
    rules = policy(keep_last=1, drop_idle_keys_after_days=90)
    verdicts = evaluate(versions, rules, now=NOW, latest_id=versions[0].id, running=frozenset({RUN}))
    assert [verdict.keep for verdict in verdicts] == [stays, stays]


def test_idleness_is_judged_by_the_newest_version_not_by_the_latest() -> None:
    """A latest that is older by `created` does not make an active key idle."""
    versions = history(10, 200)
    rules = policy(keep_last=1, drop_idle_keys_after_days=90)
    assert by_age(evaluate(versions, rules, now=NOW, latest_id=versions[1].id)) == [
        "200d KEEP last 1 of 1; latest version of its key",
        "10d DELETE 10 days old, outside every keep rule",
    ]


def test_a_key_whose_latest_is_updated_in_place_is_not_idle() -> None:
    """As a progress artifact is; an update of another version says nothing of the key."""
    rules = policy(keep_last=9, drop_idle_keys_after_days=90)
    old, latest = days_old(200), days_old(100)
    assert " KEEP " in judged([old, latest._replace(updated=NOW - timedelta(days=90))], rules)[0]
    assert " DELETE " in judged([old._replace(updated=NOW), latest], rules)[0]
    assert judged([old, latest._replace(updated=NOW - timedelta(days=91))], rules) == [
        "100d DELETE idle key: its latest version was last updated 91 days ago, dropped after 90 days",
        "200d DELETE idle key: its latest version was last updated 91 days ago, dropped after 90 days",
    ]


def test_a_key_with_a_dangling_latest_is_never_idle() -> None:
    """What was not read may be new."""
    rules = policy(keep_last=1, drop_idle_keys_after_days=90)
    assert by_age(evaluate(history(100), rules, now=NOW, latest_id=NOBODY)) == [
        "100d KEEP the collection's latest_id names no version that was read",
    ]


# --- the latest


def test_the_latest_ranks_first_though_others_are_newer_by_created() -> None:
    """On a busy server latest_id may name an older row: it takes the first slot, the newest the second."""
    versions = history(1, 2, 3)
    assert by_age(evaluate(versions, policy(keep_last=2), now=NOW, latest_id=versions[2].id)) == [
        "3d KEEP last 1 of 2; latest version of its key",
        "1d KEEP last 2 of 2",
        "2d DELETE superseded 24 hours ago, outside every keep rule",
    ]


def test_the_latest_takes_the_slot_of_its_day_though_another_is_newer() -> None:
    """The first slot of every rule is the latest's."""
    versions = [version(utc(2026, 11, 24, 9, minute)) for minute in (0, 1)]
    verdicts = evaluate(versions, policy(keep_daily=5), now=NOW, latest_id=versions[0].id)
    assert by_time(verdicts) == [
        "2026-11-24 09:00 KEEP daily 2026-11-24; latest version of its key",
        "2026-11-24 09:01 DELETE 2 hours old, outside every keep rule",
    ]


def test_nothing_is_superseded_before_it_exists() -> None:
    """A latest from three days ago has not replaced yesterday's version."""
    versions = history(1, 3)
    verdicts = evaluate(versions, policy(keep_last=1, grace_days=2), now=NOW, latest_id=versions[1].id)
    assert by_age(verdicts) == [
        "3d KEEP last 1 of 1; not superseded; latest version of its key",
        "1d KEEP not superseded",
    ]


def test_versions_of_the_same_moment_rank_by_id() -> None:
    """The greater id is the newer, whatever the order of the listing."""
    twins = [version(NOW, number=number) for number in (1, 3, 2)]
    verdicts = evaluate(twins, policy(keep_last=2), now=NOW)
    assert [(verdict.version.id.int, verdict.keep) for verdict in verdicts] == [(3, True), (2, True), (1, False)]


def test_latest_id_decides_between_versions_of_the_same_moment() -> None:
    """The server knows which of them is served."""
    twins = [version(NOW, number=number) for number in (1, 2, 3)]
    verdicts = evaluate(twins, policy(keep_last=2), now=NOW, latest_id=UUID(int=1))
    assert [(verdict.version.id.int, verdict.keep) for verdict in verdicts] == [(1, True), (3, True), (2, False)]


def test_a_dangling_latest_keeps_everything_and_says_why() -> None:
    """Nothing of that key is deleted while nobody knows what is served."""
    rules = policy(keep_last=1, expire_after_days=1)
    assert by_age(evaluate(history(1, 100), rules, now=NOW, latest_id=NOBODY)) == [
        "1d KEEP the collection's latest_id names no version that was read",
        "100d KEEP the collection's latest_id names no version that was read",
    ]


# --- keep_all and artifacts without a key


def test_keep_all_keeps_all_and_ends_no_ttl() -> None:
    """Nothing that it matches is ever deleted."""
    versions = [*history(0, 5000), with_metadata(6000, ttl_days="1")]
    assert judged(versions, policy(keep_all=True)) == [
        "0d KEEP keep all; latest version of its key",
        "5000d KEEP keep all",
        "6000d KEEP keep all",
    ]


def test_artifacts_without_a_key_have_no_latest_and_supersede_nothing() -> None:
    """Their age alone decides."""
    rules = policy(unkeyed=True, keep_within_days=7)
    assert judged(history(1, 7, 8, key=None), rules) == [
        "1d KEEP within 7 days",
        "7d KEEP within 7 days",
        "8d DELETE 8 days old, outside every keep rule",
    ]


def test_the_newest_artifact_without_a_key_goes_too() -> None:
    """There is no collection that would lose its latest."""
    rules = policy(unkeyed=True, keep_within_days=7)
    assert judged(history(8, 9, key=None), rules) == [
        "8d DELETE 8 days old, outside every keep rule",
        "9d DELETE 9 days old, outside every keep rule",
    ]


def test_artifacts_without_a_key_obey_their_own_controls() -> None:
    """Hold, TTL and running protect them, the hard limit ends them."""
    versions = [
        days_old(1, key=None, metadata={"retention-ttl-days": "0.5"}),
        days_old(20, key=None, metadata={"retention-ttl-days": "25"}),
        days_old(40, key=None),
        days_old(50, key=None, metadata={"retention-hold": "true"}),
        days_old(60, key=None, flow_run_id=RUN),
        days_old(-1, key=None),
    ]
    rules = policy(unkeyed=True, keep_within_days=7, expire_after_days=30)
    assert judged(versions, rules, running=frozenset({RUN})) == [
        "-1d KEEP newer than the plan",
        "1d DELETE its own TTL of 0.5 days is over",
        "20d KEEP within its own TTL of 25 days",
        "40d DELETE 40 days old, expires after 30 days",
        "50d KEEP held",
        "60d KEEP its flow run has not finished",
    ]


def test_an_artifact_in_which_prefect_keeps_a_result_stays() -> None:
    """Without a key, and of no type or of Prefect 2's; no rule, limit or TTL changes that. Those with a key are versions."""
    rules = policy(unkeyed=True, keep_within_days=7, expire_after_days=30)
    ttl = {"retention-ttl-days": "1"}
    versions = [
        days_old(8, key=None),
        days_old(9, key=None, kind=None),
        days_old(10, key=None, kind="result"),
        days_old(40, key=None, kind=None, metadata=ttl),
    ]
    assert judged(versions, rules) == [
        "8d DELETE 8 days old, outside every keep rule",
        "9d KEEP Prefect keeps the result of a run in it",
        "10d KEEP Prefect keeps the result of a run in it",
        "40d KEEP Prefect keeps the result of a run in it",
    ]
    assert judged([days_old(1), days_old(2, kind=None), days_old(3, kind="result")], policy(keep_last=1)) == [
        "1d KEEP last 1 of 1; latest version of its key",
        "2d DELETE superseded 24 hours ago, outside every keep rule",
        "3d DELETE superseded 2 days ago, outside every keep rule",
    ]


# --- words


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(minutes=59), "0 hours"),
        (timedelta(hours=2), "2 hours"),
        (timedelta(hours=47, minutes=59), "47 hours"),
        (timedelta(hours=48), "2 days"),
        (timedelta(days=41, hours=23), "41 days"),
    ],
)
def test_ages_are_told_in_hours_below_two_days_and_in_days_above(age: timedelta, words: str) -> None:
    """Rounded down."""
    versions = [version(NOW - age), version(NOW - age - timedelta(days=1))]
    assert evaluate(versions, policy(keep_last=1), now=NOW)[1].reasons == (f"superseded {words} ago, outside every keep rule",)


def test_one_hour_is_no_plural() -> None:
    """Superseded 1 hour ago."""
    assert evaluate(history(1 / 24, 3), policy(keep_last=1), now=NOW)[1].reasons == (
        "superseded 1 hour ago, outside every keep rule",
    )


@pytest.mark.parametrize(
    ("versions", "rules", "words"),
    [
        (history(0.5), policy(keep_within_days=1), "within 1 day"),
        (history(0.5, 9), policy(keep_last=1, grace_days=1), "superseded 12 hours ago, within 1 day of grace"),
        ([with_metadata(0.5, ttl_days="1")], policy(keep_last=1), "within its own TTL of 1 day"),
        ([days_old(0), with_metadata(9, ttl_days="1")], policy(keep_last=1), "its own TTL of 1 day is over"),
    ],
)
def test_one_day_is_no_plural(versions: list[Version], rules: RetentionPolicy, words: str) -> None:
    """Within 1 day, a TTL of 1 day."""
    assert evaluate(versions, rules, now=NOW)[-1].reasons[0] == words


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (policy(keep_last=1, expire_after_days=1.25), "36 hours old, expires after 1.25 days"),
        (
            policy(keep_last=1, drop_idle_keys_after_days=1.25),
            "idle key: its newest version is 36 hours old, dropped after 1.25 days",
        ),
    ],
)
def test_limits_are_told_with_their_unit(rules: RetentionPolicy, words: str) -> None:
    """An age in hours beside a bare number of days misleads."""
    assert words in evaluate(history(1.5, 1.5 + 1e-6), rules, now=NOW)[-1].reasons


def test_every_reason_comes_with_the_name_of_its_rule() -> None:
    """Reports group by rule, people read the words."""
    rules = policy(keep_last=1, keep_within_days=3, keep_yearly=1, grace_days=400, keep_oldest=True)
    verdicts = evaluate([with_metadata(0, hold="true"), *history(3, 500)], rules, now=NOW)
    assert [verdict.rules for verdict in verdicts] == [
        ("keep_last", "keep_within_days", "keep_yearly", "grace_days", "latest", "hold"),
        ("keep_within_days", "grace_days"),
        ("grace_days", "keep_oldest"),
    ]
