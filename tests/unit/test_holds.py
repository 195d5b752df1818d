"""Holds on keys and on versions: how they are read, what they keep, and what is refused before a request."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import prefect_artifact_retention as retention
import pytest
from builders import NOW, by_age, days_old, history, policy
from prefect_artifact_retention.policies import evaluate
from prefect_artifact_retention.policies.evaluation import judge
from prefect_artifact_retention.policies.holds import FORMAT, Hold, read_metadata, read_variable, variable_name
from prefect_artifact_retention.tasks.producers.holding import default_holder
from prefect_artifact_retention.tasks.rendering import markdown
from prefect_artifact_retention.tasks.report import CleanupReport

SINCE = datetime(2026, 11, 1, 9, 30, tzinfo=UTC)
AUDIT = Hold(key="report", until=date(2030, 12, 31), by="ada@laptop", since=SINCE, reason="for the auditors")
SENTENCE = "held until 2030-12-31 by ada@laptop since 2026-11-01: for the auditors"


def test_a_hold_on_a_key_keeps_all_its_versions_and_takes_no_slot() -> None:
    """What a rule keeps has that reason, too."""
    judged = judge(history(0, 1, 2, 3), policy(keep_last=2), now=NOW, held=AUDIT.describe())
    assert by_age(judged) == [
        f"0d KEEP last 1 of 2; latest version of its key; {SENTENCE}",
        f"1d KEEP last 2 of 2; {SENTENCE}",
        f"2d KEEP {SENTENCE}",
        f"3d KEEP {SENTENCE}",
    ]
    assert judged.rules(keep=True) == {"keep_last": 2, "latest": 1, "hold": 4}
    assert by_age(judge(history(0, 1, 2), policy(keep_last=2), now=NOW))[2].startswith("2d DELETE")


@pytest.mark.parametrize("fields", [{"keep_within_days": 1, "expire_after_days": 1}, {"keep_last": 1}])
def test_a_hold_on_a_key_beats_hard_limits_ttls_and_idleness(fields: dict[str, Any]) -> None:
    """All of which would delete without it."""
    rules = policy(**fields, drop_idle_keys_after_days=30)
    versions = [days_old(40), days_old(50, metadata={"retention-ttl-days": "1"})]
    assert all(verdict.keep for verdict in judge(versions, rules, now=NOW, held="held"))
    assert not any(verdict.keep for verdict in judge(versions, rules, now=NOW))


def test_what_only_a_hold_keeps_may_become_stale_at_once() -> None:
    """When it is released, which the guard of the next run takes for expected."""
    assert judge(history(0, 1, 2, 3), policy(keep_last=2), now=NOW, held="held").waiting() == 2


def test_who_holds_a_version_since_when_and_why_stands_in_its_verdict() -> None:
    """These entries are known, and hold nothing by themselves."""
    others = {"retention-ttl-days": "400"}
    held = days_old(99, metadata=AUDIT.entries() | others)
    open_end = days_old(98, metadata=AUDIT.model_copy(update={"until": None, "reason": ""}).entries())
    released = days_old(97, metadata={name: text for name, text in AUDIT.entries().items() if name != "retention-hold"})
    assert by_age(evaluate([days_old(0), held, open_end, released], policy(keep_last=1), now=NOW))[1:] == [
        "97d DELETE superseded 0 hours ago, outside every keep rule",
        "98d KEEP held by ada@laptop since 2026-11-01",
        f"99d KEEP within its own TTL of 400 days; {SENTENCE}",
    ]


def test_a_hold_comes_back_as_it_was_stored() -> None:
    """In a variable, and in metadata."""
    assert read_variable(variable_name("report"), AUDIT.value()) == AUDIT
    version = AUDIT.model_copy(update={"id": UUID(int=1)})
    assert read_metadata(UUID(int=1), "report", version.entries()) == version
    assert read_metadata(UUID(int=1), "report", {"retention-hold": "false"}) is None
    assert read_metadata(UUID(int=1), "report", {"retention-hold-by": "ada"}) is None
    by_hand = {"retention-hold": "true", "retention-hold-since": "last summer"}
    assert read_metadata(UUID(int=1), None, by_hand) == Hold(id=UUID(int=1))
    assert read_metadata(UUID(int=1), None, {"retention-hold": "yes"}) == Hold(
        id=UUID(int=1), reason="unreadable retention-hold 'yes'"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, 'its value is no object with "format": 1'),
        ({"format": True}, 'its value is no object with "format": 1'),
        ({"until": "2030-02-30"}, "until: "),
        ({"until": 1924905600}, "until: "),
        ({"until": "soon"}, "until: "),
        ({"since": "yesterday"}, "since: "),
        ({"by": None}, "by: "),
        ({"untill": "2030-12-31"}, "untill: "),
        ({"key": "another"}, "its name is not the one for its key"),
        ({"key": None}, "its name is not the one for its key"),
    ],
)
def test_a_variable_that_cannot_be_understood_is_no_hold_and_no_release(change: dict[str, Any], problem: str) -> None:
    """What is wrong with it is told, for nothing is deleted until it is corrected."""
    with pytest.raises(ValueError, match=f"^{problem}"):
        read_variable(variable_name("report"), AUDIT.value() | change)


@pytest.mark.parametrize("value", ["true", ["report"], None, 1, {}, {"key": "report"}])
def test_a_variable_that_is_no_object_or_lacks_a_field_cannot_be_understood(value: object) -> None:
    """As one that a person made by hand."""
    with pytest.raises(ValueError, match="no object with"):
        read_variable(variable_name("report"), value)
    with pytest.raises(ValueError, match="it lacks by, reason, since, until"):
        read_variable(variable_name("report"), {"format": FORMAT, "key": "report"})


def test_a_hold_ends_with_its_last_day_in_utc() -> None:
    """Whatever the time zone of the clock."""
    last = Hold(key="report", until=NOW.date())
    assert last.is_in_force(NOW)
    assert not last.is_in_force(NOW + timedelta(days=1))
    assert Hold(key="report").is_in_force(NOW)


def test_a_hold_outlasts_those_that_end_before() -> None:
    """One without an end outlasts all that have one, and no other."""
    short, long, endless = (Hold(key="k", until=until) for until in (date(2030, 1, 1), date(2030, 1, 2), None))
    assert [each.outlasts(short) for each in (short, long, endless)] == [False, True, True]
    assert [each.outlasts(endless) for each in (short, long, endless)] == [False, False, False]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"key_or_id": ""}, "is no key"),
    ({"key_or_id": "Report"}, "is no key"),
    ({"key_or_id": None}, "is no key"),
    ({"key_or_id": "report-*"}, "is a glob: each key is held by its own name"),
    ({"key_or_id": "report", "until": date(2020, 1, 1)}, "is in the past"),
    ({"key_or_id": "report", "until": "2020-01-01"}, "is in the past"),
    ({"key_or_id": "report", "until": "soon"}, "is no date"),
    ({"key_or_id": "report", "until": True}, "is no date"),
    ({"key_or_id": "report", "reason": "x" * 501}, "reason has 501 characters, and Prefect keeps 500"),
    ({"key_or_id": "report", "reason": "two\nlines"}, "is no text in one line"),
    ({"key_or_id": "report", "reason": 1}, "is no text in one line"),
    ({"key_or_id": "report", "by": "x" * 501}, "by has 501 characters"),
    ({"key_or_id": "k" * 4500, "reason": "x" * 500}, "and Prefect keeps 5000"),
]


@pytest.mark.parametrize(("arguments", "problem"), REFUSED)
async def test_what_cannot_be_meant_is_refused_before_a_request(arguments: dict[str, Any], problem: str) -> None:
    """There is no server here, so a request would fail otherwise."""
    with pytest.raises(ValueError, match=problem):
        retention.hold(**arguments)
    with pytest.raises(ValueError, match=problem):
        await retention.ahold(**arguments)


def test_who_holds_outside_of_runs_is_the_user_of_this_machine() -> None:
    """Without a name where there is none."""
    assert "@" in default_holder()


def test_what_a_hold_says_is_no_markup_in_the_report() -> None:
    """Nor does it break the line that it is on."""
    hostile = Hold(key="report", by="<b>ada</b>", reason="see [here](https://evil.example) | `x`\n# Title")
    report = CleanupReport(
        mode="preview", now=NOW, policy_source="here", policy_digest="0", holds=[f"report: {hostile.describe()}"]
    )
    text = markdown(report)
    (line,) = [line for line in text.splitlines() if "held by" in line]
    assert line.startswith("- report: held by \\<b\\>ada\\</b\\>: see \\[here\\]\\(https")
    assert line.endswith("\\n\\# Title")
    assert "https://" not in line
    assert "## Keys on hold" in text
