"""What policies would leave over time: day by day what cleanups leave, whatever is played only once."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from builders import NOW, days_old, history, policy, version
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect_artifact_retention.flows.cli import DONE, USAGE, main
from prefect_artifact_retention.flows.simulation import spark
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, Version, evaluate
from prefect_artifact_retention.policies.evaluation import ONE_DAY
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.policies.simulation import Course, Simulator
from prefect_artifact_retention.tasks import simulation as simulation_module
from prefect_artifact_retention.tasks.simulation import (
    SimulatedPolicy,
    Simulation,
    Tally,
    continue_rhythm,
    given_rhythm,
    read_size,
    table,
)
from test_evaluation_properties import Case, cases, with_and_without_idle

DAYS = 20


def arrivals(seed: int, number: int = 30) -> list[Version]:
    """Versions that are written at random times after NOW."""
    chance = Random(seed)
    moments = sorted(NOW + timedelta(minutes=chance.randrange(1, DAYS * 1440)) for _ in range(number))
    return [version(moment, number=10_000 + index) for index, moment in enumerate(moments)]


def cleaned(case: Case, coming: list[Version], days: int = DAYS) -> list[set[Version]]:
    """What a cleanup every day leaves, one after the other."""
    present, left = list(case.versions), []
    for day in range(days + 1):
        now = case.now + day * ONE_DAY
        arrived = [each for each in coming if each.created <= now]
        present += [each for each in arrived if each.created > now - ONE_DAY and day]
        latest_id = arrived[-1].id if arrived else case.latest_id
        verdicts = evaluate(present, case.policy, now=now, latest_id=latest_id)
        present = [verdict.version for verdict in verdicts if verdict.keep]
        left.append(set(present))
    return left


def played(simulator: Simulator, course: Course) -> list[set[Version]]:
    """The same by the simulation."""
    spans = [*zip(course.versions, simulator.arrivals(course), simulator.play(course), strict=True)]
    days = range(len(simulator.cleanups))
    return [{each for each, begin, end in spans if begin <= day < end} for day in days]


@settings(max_examples=25)
@given(with_and_without_idle(known_latest=True), st.integers(0, 1000))
def test_every_day_has_what_a_cleanup_of_that_day_leaves(case: Case, seed: int) -> None:
    """Of any policy and any history, with whatever is written meanwhile."""
    shift = NOW - case.now
    coming = [each._replace(created=each.created - shift, updated=each.created - shift) for each in arrivals(seed)]
    course = Course(case.policy, case.versions, coming, case.latest_id)
    assert played(Simulator(case.now, DAYS), course) == cleaned(case, coming)


@settings(max_examples=30)
@given(st.one_of(cases(), cases(idle=True)), st.integers(0, 1000), st.sampled_from([1, 60, 3600, 20_000]))
def test_keys_that_are_played_once_have_the_same_fates_as_when_each_is_played(case: Case, seed: int, seconds: int) -> None:
    """Two keys whose dates differ by a little, or by as much as a day: one simulator plays both, others one each."""
    chance = Random(seed)

    def moved(versions: list[Version]) -> list[Version]:
        by = [timedelta(seconds=chance.randrange(seconds)) for _ in versions]
        return [
            each._replace(created=each.created - delay, updated=each.updated - delay)
            for each, delay in zip(versions, by, strict=True)
        ]

    coming = arrivals(seed)
    first = Course(case.policy, case.versions, coming, case.latest_id)
    later = sorted(moved(coming), key=lambda each: each.created)
    second = Course(case.policy, moved(case.versions), [each for each in later if each.created > NOW], case.latest_id)
    both = Simulator(NOW, DAYS)
    together = [both.play(course) for course in (first, second)]
    assert together == [Simulator(NOW, DAYS).play(course) for course in (first, second)]


def test_keys_of_one_rhythm_are_played_once() -> None:
    """Though each is written at another minute, and has other sizes."""
    simulator = Simulator(NOW, DAYS)
    rules = policy(keep_daily=7, keep_monthly=3, keep_within_days=2, timezone="Europe/Zurich")
    for minute in range(1, 50):
        past = [days_old(age + minute / 1440) for age in range(1, 10)]
        simulator.play(Course(rules, past, continue_rhythm(past, NOW, NOW + DAYS * ONE_DAY)))
    assert len(simulator._fates) == 1  # noqa: SLF001 - what it saves cannot be seen otherwise


def test_a_key_on_hold_loses_nothing_until_the_hold_ends() -> None:
    """Its last day is included."""
    past = history(1, 2, 3)
    hold = Hold(key="report", until=(NOW + 10 * ONE_DAY).date())
    left = played(Simulator(NOW, DAYS), Course(policy(keep_last=1), past, [], past[0].id, hold))
    assert [len(each) for each in left] == [3] * 11 + [1] * 10


def test_a_key_of_mixed_types_loses_nothing() -> None:
    """As in a run."""
    left = played(Simulator(NOW, 3), Course(policy(keep_last=1), history(1, 2), [], conflict="two policies"))
    assert [len(each) for each in left] == [2] * 4


# --- rhythms


def ages(versions: list[Version]) -> list[float]:
    """How many days after NOW each version is written."""
    return [(each.created - NOW) / ONE_DAY for each in versions]


def test_a_key_goes_on_with_its_own_gaps_and_sizes() -> None:
    """On five days of seven, as people work; and each version is as large as its model."""
    past = [days_old(age)._replace(size=int(10 * age)) for age in (1, 2, 3, 4, 7, 8)]
    coming = continue_rhythm(past, NOW, NOW + 9 * ONE_DAY)
    assert ages(coming) == [3, 4, 5, 6, 7]
    assert [each.size for each in coming] == [40, 30, 20, 10, 70]


def test_gaps_that_a_cleanup_has_widened_do_not_count() -> None:
    """Seven dailies, four weeklies and twelve monthlies are a daily key."""
    past = history(*(0.5 + day for day in range(8)), *(14, 21, 28), *(30 * month for month in range(2, 14)))
    assert ages(continue_rhythm(past, NOW, NOW + 4 * ONE_DAY)) == [0.5, 1.5, 2.5, 3.5]


def test_an_old_version_that_somebody_keeps_does_not_count() -> None:
    """It is on hold, or the oldest; its key is written daily all the same."""
    past = history(*(0.5 + day for day in range(40)), 70, 300)
    assert ages(continue_rhythm(past, NOW, NOW + 3 * ONE_DAY)) == [0.5, 1.5, 2.5]


@pytest.mark.parametrize("past", [[], history(3), history(30, 31, 32)], ids=["no version", "one", "silent for long"])
def test_a_key_without_a_rhythm_gets_no_more_versions(past: list[Version]) -> None:
    """Nothing is made up."""
    assert continue_rhythm(past, NOW, NOW + 90 * ONE_DAY) == []


def test_what_is_written_keeps_its_ttl_and_no_hold() -> None:
    """The producer gives the one to each version, a person the other to one."""
    metadata = {"retention-ttl-days": "3", "retention-hold": "true"}
    past = [days_old(age, metadata=metadata) for age in (1, 2)]
    assert {tuple(each.metadata) for each in continue_rhythm(past, NOW, NOW + 5 * ONE_DAY)} == {("retention-ttl-days",)}


def test_a_burst_does_not_end_in_millions_of_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is told by one version more than there may be."""
    monkeypatch.setattr(simulation_module, "MAX_ARRIVALS", 100)
    past = [version(NOW - timedelta(milliseconds=number)) for number in (1, 2)]
    assert len(continue_rhythm(past, NOW, NOW + 365 * ONE_DAY)) == 101


@pytest.mark.parametrize(
    ("rhythm", "hours"), [("hourly", [13, 14, 15]), ("*/30 * * * *", [12.5, 13, 13.5]), ("0 */6 * * *", [18, 24, 30])]
)
def test_a_rhythm_can_be_given(rhythm: str, hours: list[float]) -> None:
    """By a word or as cron has it."""
    midnight = NOW - timedelta(hours=12)
    given = given_rhythm(rhythm, 300, NOW, 3)
    assert [(each.created - midnight) / timedelta(hours=1) for each in given][:3] == hours
    assert given[-1].created <= NOW + 3 * ONE_DAY
    assert {each.size for each in given} == {300}


@pytest.mark.parametrize(
    ("rhythm", "problem"), [("fortnightly", "'fortnightly' is none of hourly"), ("hourly", "give fewer --days")]
)
def test_what_is_no_rhythm_or_too_much_is_refused(rhythm: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name."""
    monkeypatch.setattr(simulation_module, "MAX_ARRIVALS", 100)
    with pytest.raises(ConfigurationError, match=problem):
        given_rhythm(rhythm, 1, NOW, 365)


@pytest.mark.parametrize(("text", "amount"), [("300", 300), ("20kB", 20_000), ("1.5 mb", 1_500_000), ("2B", 2)])
def test_a_size_is_read_as_it_is_shown(text: str, amount: int) -> None:
    """In units of a thousand."""
    assert read_size(text) == amount


@pytest.mark.parametrize("text", ["", "kB", "-1", "1e3", "20 kilos", "1001GB", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    """By name."""
    with pytest.raises(ConfigurationError, match="--size"):
        read_size(text)


# --- what is shown


def tally(*rules: RetentionPolicy, days: int = 200) -> Tally:
    """Two keys of each policy, written daily."""
    found = Tally(Simulator(NOW, days), rules)
    for number in range(2):
        past = [each._replace(size=1000) for each in history(*(age + 0.5 for age in range(5)))]
        for each in rules:
            found.add(f"key-{number}", Course(each, past, continue_rhythm(past, NOW, NOW + days * ONE_DAY)))
    return found


def simulation(found: Tally) -> Simulation:
    """The simulation of a tally."""
    days = len(found.simulator.cleanups) - 1
    policies = found.policies_with_keys()
    return Simulation(server="", now=NOW, days=days, rhythm="daily", policy_source="a test", policies=policies)


def test_the_table_has_now_later_and_the_steady_state_of_each_policy() -> None:
    """Or says that there is none yet."""
    rules = (policy(keep_last=3), RetentionPolicy(name="all", keep_all=True))
    header, first, second = table(simulation(tally(*rules)))
    assert header == ("Policy", "Keys", "Now", "In 30 days", "In 200 days", "Steady state")
    assert first == ("test", "2", "10 (10.0 kB)", "6 (6.0 kB)", "6 (6.0 kB)", "6 (6.0 kB)")
    assert second[2:5] == ("10 (10.0 kB)", "70 (70.0 kB)", "410 (410.0 kB)")
    assert second[5] == "still growing: +182 in 91 days"


def test_a_year_is_a_year_and_a_short_simulation_knows_no_steady_state() -> None:
    """The columns are what is simulated."""
    header, _row = table(simulation(tally(policy(keep_last=1), days=400)))
    assert header[3:6] == ("In 30 days", "In a year", "In 400 days")
    header, row = table(simulation(tally(policy(keep_last=1), days=20)))
    assert (header[3:], row[-1]) == (("In 20 days", "Steady state"), "unknown before 182 days")


def test_a_policy_without_keys_is_left_out() -> None:
    """There is nothing to say of it."""
    assert Tally(Simulator(NOW, 3), [policy(keep_last=1)]).policies_with_keys() == []


def test_the_sample_of_a_policy_is_the_key_with_the_most_versions_in_the_end() -> None:
    """It has the most to show."""
    rules = policy(keep_within_days=30)
    found = Tally(Simulator(NOW, 60), [rules])
    for key, ages_ in {"few": (7, 14), "many": (1, 2), "dead": (300, 301)}.items():
        past = history(*ages_)
        found.add(key, Course(rules, past, continue_rhythm(past, NOW, NOW + 60 * ONE_DAY)))
    assert found.samples["test"].key == "many"


def test_a_chart_is_as_high_as_its_numbers() -> None:
    """Each bar is the most of its days, and nothing is nothing."""
    assert spark([0, 1, 4, 8]) == " ▂▅█"
    assert len(spark(range(366))) == 60
    assert spark([0] * 100) == " " * 60


def test_a_policy_that_shrinks_says_so() -> None:
    """Idle keys go one after the other."""
    shrinking = SimulatedPolicy(name="p", sentence="", keys=1, versions=[*range(200, 0, -1)], bytes=[0] * 200)
    assert shrinking.steady() == (91, 0, -91)


@pytest.mark.parametrize(("change", "steady"), [(1, True), (2, False)])
def test_a_key_that_has_gained_one_version_in_a_quarter_is_steady(change: int, steady: bool) -> None:  # noqa: FBT001
    """By the calendar, as many dailies are now and then weeklies, and now and then not."""
    amounts = [20] * 91 + [20 + change] * 91
    found = SimulatedPolicy(name="p", sentence="", keys=1, versions=amounts, bytes=amounts).steady()
    assert found == (20 + change, 20 + change, 0 if steady else change)


def test_the_clock_change_is_a_day_like_any_other() -> None:
    """A cleanup every 24 hours; a daily key has one version for each of seven days."""
    begin = datetime(2026, 10, 20, 3, tzinfo=UTC)
    rules = policy(keep_daily=7, timezone="Europe/Zurich")
    past = [version(begin - timedelta(hours=4) - age * ONE_DAY) for age in range(8)]
    course = Course(rules, past, continue_rhythm(past, begin, begin + 10 * ONE_DAY))
    assert {len(left) for left in played(Simulator(begin, 10), course)} == {7}


# --- the command, without a server


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two policies, and one that is for no key."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "retention.toml"
    rules = ('name = "last"\nmatch_keys = ["a-*"]\nkeep_last = 3', 'name = "all"\nkeep_all = true')
    unkeyed = 'name = "unkeyed"\nunkeyed = true\nkeep_within_days = 3'
    file.write_text("".join(f"[[policies]]\n{each}\n" for each in (*rules, unkeyed)), encoding="utf-8")
    return file


def test_a_rhythm_is_simulated_for_each_policy(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table, a chart, a document and a page."""
    assert main(["simulate", "--rhythm", "daily", "--days", "60", "--html", "page.html"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("60 days simulated, a cleanup each, as of ")
    assert lines[1:3] == ["Rhythm: daily, 20.0 kB each, one key for each policy", "Policies: retention.toml"]
    (row,) = (line.split() for line in lines if line.startswith(" last"))
    assert row[:6] == ["last", "1", "0", "(0", "B)", "3"]
    assert lines[-1].startswith("all   ▁")
    assert (config.parent / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["simulate", "--rhythm", "*/15 * * * *", "--size", "1B", "--days", "3", "--json"]) == DONE
    document = json.loads(capsys.readouterr().out)
    assert [policy["name"] for policy in document["policies"]] == ["last", "all"]
    assert [policy["bytes"][-1] for policy in document["policies"]] == [3, 288]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--days", "0"], "--days 0 is not between 1 and 3,650"),
        (["--rhythm", "daily", "--key", "a"], "--key chooses keys of the server"),
        (["--size", "1B"], "--size goes with --rhythm"),
        (["--rhythm", "daily", "--size", "big"], "--size 'big' is no amount"),
        (["--rhythm", "now and then"], "--rhythm 'now and then'"),
        (["--rhythm", ""], "--rhythm ''"),
        (["--rhythm", "daily", "--html", "no/such/folder.html"], "--html no/such/folder.html: there is no such folder"),
        (["--html", "no/such/folder.html"], "--html no/such/folder.html: there is no such folder"),
        (["--html", "x" * 300], "--html: File name too long"),
    ],
)
@pytest.mark.usefixtures("config")
def test_flags_that_cannot_be_meant_are_refused(flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is read."""
    assert main(["simulate", *flags]) == USAGE
    assert problem in capsys.readouterr().err


@pytest.mark.usefixtures("config")
def test_a_page_that_does_not_fit_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    assert main(["simulate", "--rhythm", "daily", "--days", "2", "--html", "/dev/full"]) == USAGE
    assert "--html /dev/full cannot be written: No space left" in capsys.readouterr().err


def test_a_single_version_is_singular(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Grammar."""
    config.write_text('[[policies]]\nname = "one"\nkeep_last = 1\n', encoding="utf-8")
    assert main(["simulate", "--rhythm", "daily", "--days", "2"]) == DONE
    assert capsys.readouterr().out.rstrip().endswith(" 1 version at most")


def test_the_chart_has_the_numbers_of_the_table_in_the_same_format(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thousands have a comma in each, and so have the days."""
    config.write_text('[[policies]]\nname = "month"\nkeep_within_days = 30\n', encoding="utf-8")
    assert main(["simulate", "--rhythm", "*/15 * * * *", "--days", "40"]) == DONE
    *_, row, chart = (line for line in capsys.readouterr().out.splitlines() if "month" in line)
    assert row.split()[5] == "2,880"
    assert chart.endswith(" 2,880 versions at most")
    assert main(["simulate", "--rhythm", "weekly", "--days", "1000"]) == DONE
    assert capsys.readouterr().out.startswith("1,000 days simulated")


@pytest.mark.usefixtures("config")
def test_a_given_rhythm_is_simulated_without_prefect() -> None:
    """Which takes seconds to import."""
    script = "import sys; from prefect_artifact_retention.flows.cli import main; main(); print('prefect' in sys.modules)"
    command = [sys.executable, "-c", script, "simulate", "--rhythm", "weekly", "--days", "9", "--html", "page.html"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1] == "False"
