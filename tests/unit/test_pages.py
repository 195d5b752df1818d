"""The pages for people: whole in one file, with the numbers of the table in their pictures, and nothing that could run."""

import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest
from builders import NOW, history, policy
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.evaluation import ONE_DAY
from prefect_artifact_retention.policies.simulation import Course, Simulator
from prefect_artifact_retention.tasks.pages import COLORS, GONE, MAX_LINES, MAX_YEARS, Line, Mark, calendar, line_chart, page
from prefect_artifact_retention.tasks.simulation import Simulation, Tally, continue_rhythm, table
from prefect_artifact_retention.tasks.simulation_page import simulation_page

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '"><script>alert(1)</script>&\x1b[31m'


def drawing(html: str) -> ET.Element:
    """The first picture of some HTML."""
    found = re.search(r"<svg.*?</svg>", html, re.DOTALL)
    assert found
    return ET.fromstring(found[0])  # noqa: S314 - our own


def titles(html: str, kind: str) -> dict[str, str]:
    """What the shapes of a kind tell, by their day."""
    shapes = [each for each in drawing(html).iter(f"{SVG}rect") if kind in (each.get("class") or "").split()]
    return {each.get("data-day") or "": each.findtext(f"{SVG}title") or "" for each in shapes}


def mark(moment: datetime, *rules: str, text: str = "") -> Mark:
    """A version in a calendar."""
    return Mark(moment, rules, text)


def simulated(*rules: RetentionPolicy, days: int = 60) -> tuple[Simulation, Tally]:
    """A daily key of each policy, of a hostile name."""
    tally = Tally(Simulator(NOW, days), rules)
    for each in rules:
        past = history(*(age + 0.5 for age in range(10)))
        tally.add(HOSTILE, Course(each, past, continue_rhythm(past, NOW, NOW + days * ONE_DAY)))
    policies = tally.policies_with_keys()
    given = Simulation(server="s", now=NOW, days=days, rhythm="r", policy_source="p", policies=policies, notes=[HOSTILE])
    return given, tally


def test_every_day_of_a_chart_tells_the_numbers_of_its_lines() -> None:
    """Down to the last one."""
    chart = line_chart("versions", [Line("a", [1, 2, 3]), Line("b", [10, 0, 1000])], NOW, [2], "{:,}".format)
    assert titles(chart, "hit") == {
        "0": "2026-11-24\na: 1\nb: 10",
        "1": "2026-11-25\na: 2\nb: 0",
        "2": "2026-11-26\na: 3\nb: 1,000",
    }


def test_a_long_chart_tells_of_some_days_and_of_those_asked_for() -> None:
    """Ten years of strips would make a page of megabytes."""
    told = titles(line_chart("versions", [Line("a", range(3651))], NOW, [30, 365, 3650], str), "hit")
    assert len(told) < 410
    assert [told[day].split(": ")[1] for day in ("30", "365", "3650")] == ["30", "365", "3650"]


@pytest.mark.parametrize("most", [0, 1, 3, 4, 7, 99, 100, 101, 365, 8_000_001])
def test_a_line_is_inside_its_axes(most: int) -> None:
    """And reaches at least a third of their height, but for nothing."""
    svg = drawing(line_chart("versions", [Line("a", [0, most])], NOW, [], str))
    heights = [float(each.get("y1", "")) for each in svg.iter(f"{SVG}line")]
    (line,) = svg.iter(f"{SVG}polyline")
    low, high = (float(point.split(",")[1]) for point in (line.get("points") or "").split())
    assert low == max(heights)
    assert min(heights) <= high
    assert most < 2 or (low - high) > (low - min(heights)) / 5


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (0, [0, 1]),
        (1, [0, 1]),
        (4, [0, 1, 2, 3, 4]),
        (7, [0, 2, 4, 6, 8]),
        (50, [0, 10, 20, 30, 40, 50]),
        (51, [0, 20, 40, 60]),
        (365, [0, 100, 200, 300, 400]),
        (8_000_001, [0, 2_000_000, 4_000_000, 6_000_000, 8_000_000, 10_000_000]),
    ],
)
def test_the_gridlines_are_at_the_round_numbers_that_label_them(most: int, ticks: list[int]) -> None:
    """As many pixels above the lowest as the number is large: there is no line at 12.5 that is labelled 12."""
    svg = drawing(line_chart("versions", [Line("a", [0, most])], NOW, [], str))
    heights = [float(each.get("y1", "")) for each in svg.iter(f"{SVG}line")]
    labels = [int(each.text or "") for each in svg.iter(f"{SVG}text") if each.get("class") == "end"]
    assert labels == ticks
    above = [heights[0] - height for height in heights]
    assert above == pytest.approx([above[-1] * label / labels[-1] for label in labels], abs=0.1)


def test_more_lines_than_colors_differ_by_their_dashes() -> None:
    """The ninth has the color of the first."""
    svg = drawing(line_chart("versions", [Line(str(number), [1, 2]) for number in range(COLORS + 1)], NOW, [], str))
    kinds = [each.get("class") for each in svg.iter(f"{SVG}polyline")]
    assert len({*kinds}) == COLORS + 1
    assert kinds[-1] == "line c0 dashed"


def test_a_day_has_the_color_of_the_rule_that_keeps_longest_and_tells_of_all_its_versions() -> None:
    """By the days of the policy's time zone."""
    evening = datetime(2026, 11, 23, 23, 30, tzinfo=UTC)  # the 24th in Zurich
    marks = [mark(evening, "keep_daily", "keep_monthly", text="first"), mark(NOW, "keep_last", "latest", text="second")]
    drawn = calendar(marks, NOW, "Europe/Zurich")
    assert titles(drawn, "day") == {"2026-11-24": "2026-11-24: 2 versions that stay\nfirst\nsecond"}
    assert "day keep_monthly" in drawn
    assert '<span class="swatch keep_last">L</span>' in drawn


def test_a_day_of_which_nothing_stays_is_to_delete() -> None:
    """One of which something stays says how many go."""
    days = [NOW, NOW - ONE_DAY]
    marks = [*(mark(day, GONE) for day in days), mark(NOW, "hold"), *(mark(NOW, GONE) for _ in range(MAX_LINES))]
    drawn = calendar(marks, NOW, "UTC")
    assert titles(drawn, "gone") == {"2026-11-23": "2026-11-23: 0 versions that stay, 1 to delete\n"}
    assert titles(drawn, "protected")["2026-11-24"].splitlines()[0] == "2026-11-24: 1 version that stays, 7 to delete"
    assert titles(drawn, "protected")["2026-11-24"].splitlines()[-1] == "and 2 more"


def test_a_calendar_has_the_years_with_versions_and_counts_what_is_older() -> None:
    """Empty years are left out."""
    marks = [mark(NOW - timedelta(days=366 * age), "keep_yearly") for age in (*range(MAX_YEARS + 2), 30)]
    drawn = calendar(marks, NOW, "UTC")
    years = [text.text for text in drawing(drawn).iter(f"{SVG}text") if re.fullmatch(r"\d{4}", text.text or "")]
    assert years == [str(year) for year in range(2026 - MAX_YEARS + 1, 2027)]
    assert "3 versions before 2019 not drawn" in drawn
    assert len(titles(drawn, "day")) == MAX_YEARS


def test_a_calendar_without_versions_is_that_of_this_year() -> None:
    """It is no error."""
    assert titles(calendar([], NOW, "UTC"), "day") == {}


def test_the_days_of_a_calendar_are_in_their_week_and_on_their_weekday() -> None:
    """A Monday is at the top, and the Sunday before it at the bottom of the column before."""
    monday = datetime(2026, 11, 23, 12, tzinfo=UTC)
    svg = drawing(calendar([mark(monday, "latest"), mark(monday - ONE_DAY, "latest")], NOW, "UTC"))
    sunday, first = ((int(e.get("x", "")), int(e.get("y", ""))) for e in svg.iter(f"{SVG}rect") if e.get("data-day"))
    assert (first[0] - sunday[0], sunday[1] - first[1]) == (14, 6 * 14)


@pytest.mark.parametrize("end", [datetime(2026, 12, 31, 12, tzinfo=UTC), datetime(2027, 11, 29, 12, tzinfo=UTC)])
def test_the_label_of_a_month_is_above_the_first_column_that_has_a_day_of_it(end: datetime) -> None:
    """A month that is yet to come has none, though its first week has begun: 2027-11-29 is no day of December."""
    firsts = [datetime(end.year, month, 1, tzinfo=UTC) for month in range(1, end.month + 1)]
    svg = drawing(calendar([mark(first, "latest") for first in firsts], end, "UTC"))
    days = {int(each.get("x", "")): each.get("data-day") for each in svg.iter(f"{SVG}rect") if each.get("data-day")}
    names = {f"{datetime(end.year, month, 1, tzinfo=UTC):%b}" for month in range(1, 13)}
    labels = {int(each.get("x", "")): each.text for each in svg.iter(f"{SVG}text") if each.text in names}
    assert {days[x]: name for x, name in labels.items()} == {f"{first:%Y-%m-%d}": f"{first:%b}" for first in firsts}


def test_the_page_of_a_simulation_has_the_table_and_the_same_numbers_in_its_charts() -> None:
    """Versions and bytes, at each milestone, and before them what is there now, with what the first cleanup deletes."""
    given, tally = simulated(policy(keep_last=3), RetentionPolicy(name="all", keep_all=True))
    html = simulation_page(given, tally)
    cells = re.findall(r'<td class="number">([^<]*)</td>', html)
    assert cells == [cell for row in [*table(given)][1:] for cell in row[1:]]
    told = titles(html, "hit")
    assert told["0"].splitlines()[1:] == ["test: 10", "all: 10"]
    assert told["1"].splitlines()[1:] == ["test: 3", "all: 11"]
    assert "The charts begin with what is there now, before the first cleanup." in html
    assert told["30"].splitlines()[1:] == ["test: 3", "all: 40"]
    assert told["60"].splitlines()[1:] == ["test: 3", "all: 70"]
    assert html.count("data-day=") == 2 * 61 + 3 + 70


def test_the_page_of_a_simulation_names_the_key_that_it_draws_and_the_option_that_draws_another() -> None:
    """A policy of a single key has no other."""
    rules = policy(keep_within_days=30)
    tally = Tally(Simulator(NOW, 60), [rules])
    pages = []
    for key, ages in {"weekly": (7, 14), "daily": (1, 2)}.items():
        past = history(*ages)
        tally.add(key, Course(rules, past, continue_rhythm(past, NOW, NOW + 60 * ONE_DAY)))
        policies = tally.policies_with_keys()
        given = Simulation(server="s", now=NOW, days=60, rhythm="r", policy_source="p", policies=policies)
        pages.append(simulation_page(given, tally))
    assert "--key" not in pages[0]
    assert "<p>Only daily is drawn, which keeps the most of 2 keys. Another is drawn if" in pages[1]
    assert "simulate --key KEY --html FILE</p>" in pages[1]


def test_a_page_loads_nothing_runs_nothing_and_says_what_is_hostile_as_text() -> None:
    """Whatever keys, policies and servers are called."""
    rules = RetentionPolicy(name='<img src="//x">', keep_last=2)
    html = simulation_page(*simulated(rules))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html
    assert not re.search(r'(src|href)="(?!data:,")|url\(|@import|https?://(?!www\.w3\.org/2000/svg)', html)


def test_a_simulation_without_keys_has_a_page_that_says_so() -> None:
    """With the notes that tell why."""
    given, tally = simulated()
    assert "No key has a policy." in simulation_page(given, tally)
    assert "script&gt;" in simulation_page(given, tally)


def test_a_page_is_a_document() -> None:
    """That a browser knows how to read."""
    assert page("a < b", ["x"]).startswith('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">')
    assert "<title>a &lt; b</title>" in page("a < b", ["x"])
