"""What an examination has found, as people see it: whole in a golden file, and unbroken by any key.

    UPDATE_GOLDENS=1 pytest tests/unit/test_checkup.py

writes the golden file anew; read what git shows of it.
"""

import os
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect_artifact_retention.tasks.charts import growth_chart, largest_chart
from prefect_artifact_retention.tasks.checkup import (
    GROWTH_DAYS,
    Checkup,
    DiskReport,
    Finding,
    Growth,
    KeySize,
    headline,
    markdown,
    outcome_message,
)
from test_charts import SVG, bars, drawn, words
from test_rendering import HOSTILE, NOW, headings, rows

GOLDEN = Path(__file__).parent / "checkup.golden.txt"


def checkup(**fields: object) -> Checkup:
    """An examination of a server with two keys, of which one grows, and some broken ones; `fields` differ."""
    daily = KeySize(
        key="report-daily",
        versions=200,
        bytes=8_000_000,
        versions_of_day=1,
        bytes_of_day=100_000,
        versions_of_week=7,
        bytes_of_week=700_000,
    )
    old = KeySize(key=None, versions=3, bytes=2_000_000)
    gone = UUID(int=7)
    given = {
        "server": "http://127.0.0.1:4200/api",
        "now": NOW,
        "through": "database",
        "keys_seen": 1,
        "total": daily.model_copy(update={"key": None, "versions": 203, "bytes": 10_000_000}),
        "projected_bytes": 13_000_000,
        "most_versions": [daily, old],
        "most_bytes": [daily, old],
        "growth": [
            Growth(until=NOW - timedelta(days=day), versions=1, bytes=100_000 if day < 80 else 0) for day in range(GROWTH_DAYS)
        ],
        "disk": DiskReport(bytes=20_000_000, free_bytes=0, rows=203, dead_rows=12, vacuumed=NOW - timedelta(days=1)),
        "warnings": ["busy: not examined, because its versions changed while they were read"],
        "findings": [
            Finding(
                kind="latest_missing",
                is_broken=True,
                what="Keys whose latest version does not exist",
                count=12,
                examples=[f"key-{number}" for number in range(10)],
                advice="doctor --fix makes the newest version the latest",
                repaired=11,
                errors=["key-3: the server went away"],
            ),
            Finding(
                kind="runs_gone",
                is_broken=False,
                what="Artifacts whose flow run is gone",
                count=9,
                examples=[f"{gone}: 7 versions"],
                shares=[7],
                advice="Nothing",
            ),
        ],
    }
    return Checkup.model_validate(given | fields)


def test_an_examination_reads_like_the_golden_one() -> None:
    """All of it: what is broken and was repaired, what deserves a look, what grows, with the places of the pictures."""
    text = markdown(checkup(), links={"This run": "http://ui.invalid/run"}, pictures=[("A chart", "data:x")])
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_headline_says_first_whether_the_server_is_healthy() -> None:
    """Then how much there is; the message of the run also names what is broken."""
    assert headline(checkup(findings=[])) == "Healthy: 1 key with 203 versions (10.0 MB), and nothing is broken"
    assert headline(checkup()) == "1 broken, 11 repaired: 1 key with 203 versions (10.0 MB)"
    assert outcome_message(checkup()).endswith("Keys whose latest version does not exist: 1")
    assert outcome_message(checkup(errors=["no right"])).endswith("no right")


def test_of_runs_the_rest_is_counted_in_artifacts() -> None:
    """Seven of nine are those of the run that is shown."""
    assert rows(markdown(checkup()), "Worth a look")[0][1:3] == ["9", f"{UUID(int=7)}: 7 versions; and 2 more"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_key_breaks_the_document_or_its_pictures(name: str) -> None:
    """Neither as an example nor as a large key."""
    found = checkup()
    found.findings[0].examples = [name]
    found.most_bytes = [KeySize(key=name, versions=5, bytes=7)]
    text = markdown(found)
    assert headings(text)[1:] == [
        "Warnings",
        "Broken",
        "Not repaired",
        "Worth a look",
        "Growth",
        "Most versions",
        "Most bytes",
    ]
    assert len(rows(text, "Most bytes")) == 1
    assert {each.tag.removeprefix(SVG) for each in drawn(largest_chart(found)).iter()} == {"svg", "style", "rect", "text"}


def test_the_chart_of_the_largest_keys_shows_what_is_new() -> None:
    """The first part of a bar is older than a week."""
    picture = largest_chart(checkup())
    gone, kept = bars(picture, "gone"), bars(picture, "kept")
    assert kept[0] == pytest.approx(gone[0] * 193 / 200, abs=0.1)
    assert kept[2] == pytest.approx(gone[2] * 7.3 / 8, abs=0.1)
    assert {"report-daily", "200", "8.0 MB", "older", "of the last week"} <= set(words(picture))
    assert picture
    assert "report-daily: 8.0 MB, of which 700.0 kB of the last week" in picture.alt


def test_the_chart_of_the_growth_has_days_weeks_and_what_is_expected() -> None:
    """Fourteen days, twelve weeks, and twelve weeks with the projection behind them, which alone has a second part."""
    picture = growth_chart(checkup())
    heights = [
        (each.get("class"), float(each.get("height", "")))
        for each in drawn(picture).iter(f"{SVG}rect")
        if each.get("rx") == "2"
    ][2:]
    assert len(heights) == 2 * (14 + 12 + 13)
    (_, expected), (_, today) = heights[-2:]
    assert today == pytest.approx(expected * 10 / 13, abs=0.1)
    assert [tall for _kind, tall in heights[:4]] == [heights[0][1]] * 4
    assert {"a day, at most 100.0 kB", "a week, at most 700.0 kB", "in all, at most 13.0 MB", "in 30 days"} <= set(
        words(picture)
    )
    assert growth_chart(checkup(total=KeySize(key=None))) is None
