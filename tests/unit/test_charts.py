"""The report's pictures: well-formed, themed, with the formatted numbers beside them."""

import base64
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import pytest
from prefect_artifact_retention.tasks.charts import MAX_BARS, MAX_RUNS, Bar, Picture, keys_chart, trend_chart
from prefect_artifact_retention.tasks.report import CleanupReport, KeyReport, Mode
from test_rendering import HOSTILE, NOW

SVG = "{http://www.w3.org/2000/svg}"


def report(keys: Sequence[KeyReport], mode: Mode = "delete") -> CleanupReport:
    """A report about some keys."""
    return CleanupReport(mode=mode, now=NOW, policy_source="a test", policy_digest="0", key_reports=list(keys))


def key(name: str | None, versions: int, planned: int, deleted: int = 0) -> KeyReport:
    """The report of a key whose versions have 1,000 bytes each."""
    return KeyReport(
        key=name,
        policy="p",
        versions=versions,
        planned=planned,
        deleted=deleted,
        bytes_seen=versions * 1000,
        bytes=planned * 1000,
        bytes_freed=deleted * 1000,
    )


def drawn(picture: Picture | None) -> ET.Element:
    """The document of a picture."""
    assert picture
    return ET.fromstring(picture.svg)  # noqa: S314 - our own


def words(picture: Picture | None) -> list[str]:
    """Every text in it."""
    return [each.text or "" for each in drawn(picture).iter(f"{SVG}text")]


def bars(picture: Picture | None, kind: str) -> list[float]:
    """The widths of its bars of one kind, those of the legend left out."""
    found = [each for each in drawn(picture).iter(f"{SVG}rect") if each.get("class") == kind]
    return [float(each.get("width", "")) for each in found if each.get("y") != "18.0"]


def test_a_bar_is_as_long_as_its_number_of_versions_and_of_bytes() -> None:
    """The first part is what is left."""
    picture = keys_chart(report([key("a", 100, 75, 75), key("b", 50, 10, 10)]))
    gone, kept = bars(picture, "gone"), bars(picture, "kept")
    assert gone[1] == pytest.approx(gone[0] / 2, abs=0.1)
    assert kept[:2] == [pytest.approx(gone[0] / 4, abs=0.1), pytest.approx(gone[0] * 0.4, abs=0.1)]
    assert (gone[2:], kept[2:]) == (gone[:2], kept[:2])
    assert {"100 → 25", "50 → 40", "100.0 kB → 25.0 kB", "50.0 kB → 40.0 kB"} <= set(words(picture))


def test_a_preview_shows_what_would_be_left() -> None:
    """Nothing is deleted, and the picture does not say so."""
    shown = words(keys_chart(report([key("a", 100, 75)], "preview")))
    assert {"100 → 25", "would be left", "stale"} <= set(shown)
    assert "deleted" not in shown


def test_only_keys_with_stale_versions_are_drawn_and_only_the_first_of_many() -> None:
    """Those with the most."""
    keys = [key(f"key-{number}", 30, number) for number in range(20)]
    shown = words(keys_chart(report(keys)))
    assert [each for each in shown if each.startswith("key-")] == [f"key-{19 - number}" for number in range(MAX_BARS)]
    assert keys_chart(report([key("a", 5, 0)])) is None


def test_the_trend_shows_the_last_runs_and_needs_two() -> None:
    """The oldest first."""
    runs = [Bar(f"2026-11-{number:02}", 100 + number, 100) for number in range(1, 29)] + [Bar("2026-12-01", 1, 1)] * 5
    picture = trend_chart(runs, runs)
    assert f"The last {MAX_RUNS} runs" in words(picture)
    assert words(picture).count("2026-11-04") == 2
    assert "2026-11-03" not in words(picture)
    assert trend_chart(runs[:1], runs[:1]) is None


def test_a_run_without_versions_is_drawn_too() -> None:
    """Nothing is divided by zero."""
    assert "The last 2 runs" in words(trend_chart([Bar("a", 0, 0)] * 2, [Bar("a", 0, 0)] * 2))


@pytest.mark.parametrize("name", HOSTILE)
def test_no_key_breaks_the_picture(name: str) -> None:
    """Well-formed, without an element of the key's own."""
    picture = keys_chart(report([key(name, 9, 3)]))
    assert {each.tag.removeprefix(SVG) for each in drawn(picture).iter()} == {"svg", "style", "rect", "text"}


def test_a_picture_follows_the_theme_loads_nothing_and_says_its_numbers() -> None:
    """As a data URI, with an alternative text."""
    picture = keys_chart(report([key("a", 100, 75, 75)]))
    assert picture
    assert "prefers-color-scheme:dark" in picture.svg
    assert "http" not in picture.svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "a: 100 versions before, 25 after" in picture.alt
    head, _, body = picture.data_uri.partition(",")
    assert (head, base64.b64decode(body).decode()) == ("data:image/svg+xml;base64", picture.svg)
