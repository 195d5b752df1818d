"""The page of figures: what stands in it, and what of it a run of the benchmarks renews."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.charts import format_number, svg
from benchmarks.page import BEGIN, END, measured, write
from benchmarks.results import Chart, Figure, Results

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def results() -> Results:
    """Two figures, one of them missed, and a chart."""
    found = Results({"Prefect": "3.8.8", "cores": "2"})
    found.figures = [
        Figure("speed", "SQLite", 0.91234, target=0.85, detail="91 of 100"),
        Figure("memory", "SQLite", 612.3, "MB", target=500, at_most=True),
        Figure("speed", "PostgreSQL", 1234.5),
    ]
    chart = found.chart("keys", "The cost of keys", "keys", "seconds")
    for keys, seconds in ((10, 0.5), (1_000, 12)):
        chart.add("API store", keys, seconds)
    return found


def test_the_table_shows_each_figure_beside_its_target() -> None:
    """The databases side by side; a missed target stands out."""
    text = measured(results())
    assert "Prefect: 3.8.8; cores: 2." in text
    rows = [line for line in text.splitlines() if line.startswith(("| speed", "| memory"))]
    assert rows == [
        "| speed | SQLite | ≥ 0.85 | 0.912 | yes | 91 of 100 |",
        "| speed | PostgreSQL |  | 1,234 |  |  |",
        "| memory | SQLite | ≤ 500 MB | 612 MB | **no** |  |",
    ]


def test_a_run_renews_what_is_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    """The explanation around it stays as somebody wrote it."""
    page = tmp_path / "performance.md"
    (tmp_path / "images").mkdir()
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write(results(), page)
    write(results(), page)
    text = page.read_text(encoding="utf-8")
    assert text == f"before\n{BEGIN}\n\n{measured(results())}\n{END}\nafter\n"
    assert json.loads((tmp_path / "performance.json").read_text(encoding="utf-8"))["figures"][0]["measured"] == 0.91234
    assert "The cost of keys" in (tmp_path / "images" / "bench-keys.svg").read_text(encoding="utf-8")


def test_the_numbers_of_a_plot_stand_beside_it() -> None:
    """For those who cannot see it, and for whoever wants them exactly."""
    text = measured(results())
    assert "![Line chart of seconds by keys: API store](images/bench-keys.svg)" in text
    assert "| seconds, by keys | 10 | 1,000 |" in text
    assert "| API store | 0.5 | 12 |" in text


@pytest.mark.parametrize(
    "points", [[(1, 1)], [(10, 3), (20, 3)], [(1, 0.02), (1_000_000, 900)]], ids=["one point", "level", "many decades"]
)
def test_a_plot_has_every_point_inside_its_axes(points: list[tuple[float, float]]) -> None:
    """Whatever the range, in order from left to right, below one another as their values are."""
    chart = Chart("title", "x <&>", "y")
    for x, y in points:
        chart.add("line", x, y)
    drawing = ET.fromstring(svg(chart))  # noqa: S314 - our own
    grid = [{name: float(line.get(name, "")) for name in ("x1", "x2", "y1", "y2")} for line in drawing.iter(f"{SVG}line")]
    circles = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in drawing.iter(f"{SVG}circle")]
    places = circles[: len(points)]
    assert all(grid[0]["x1"] <= x <= max(line["x2"] for line in grid) for x, _ in places)
    assert all(min(line["y1"] for line in grid) <= y <= max(line["y2"] for line in grid) for _, y in places)
    assert places == sorted(places, key=lambda place: place[0])
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)


@pytest.mark.parametrize(("number", "text"), [(1_234_567, "1,234,567"), (99.94, "99.9"), (0.01234, "0.0123"), (3, "3")])
def test_numbers_have_three_digits_that_count(number: float, text: str) -> None:
    """Or all that there are before the point."""
    assert format_number(number) == text


def test_the_page_has_its_markers_and_shows_only_pictures_that_exist() -> None:
    """A run of the benchmarks can renew it, and nobody has removed a plot."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    shown = {part.split(")")[0] for part in text.split("](images/")[1:]}
    assert {name for name in shown if not (ROOT / "docs" / "images" / name).is_file()} == set()
