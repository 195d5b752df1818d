"""The queries of the page about the archive run, and answer what it says."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from archives import archived, by, write
from prefect_artifact_retention.stores.archive.archive import open_archive
from prefect_artifact_retention.stores.archive.parquet import SCHEMA

PAGE = (Path(__file__).parents[2] / "docs" / "archive.md").read_text(encoding="utf-8")


def table(rows: int) -> str:
    """The data of an artifact of `create_table_artifact`, which is JSON within JSON."""
    return json.dumps(json.dumps([{"rows": rows}]))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive as the examples have it."""
    made = open_archive(str(tmp_path / "archive"))
    write(
        made,
        [
            archived("audit-export", type="table", data=table(7), size=len(table(7)), rules=["keep_last"]),
            archived("audit-export", type="table", data=table(9), size=len(table(9)), rules=["expire_after_days"]),
            archived(None, size=3, rules=["expire_after_days"]),
            archived("report", size=5, rules=["keep_last"]),
            archived("report", size=500, decided_at=datetime(2026, 10, 1, tzinfo=UTC), rules=["keep_last"]),
        ],
    )
    return tmp_path / "archive"


def blocks(language: str, archive: Path) -> list[str]:
    """The examples of one language, about this archive."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [block.replace("ARCHIVE", str(archive)) for block in found if "ARCHIVE/data" in block]


def test_the_queries_in_sql_answer_what_they_ask(archive: Path) -> None:
    """Per key, and a field of the payloads: of a version that was deleted twice once, and of one that stays not."""
    made = open_archive(str(archive))
    twice = archived("twice", size=1, rules=["unclaimed"])
    write(made, [twice, archived("report", size=9, rules=["offload_larger_than_kb"])])
    write(made, by(2, [twice]))
    per_key, fields = (duckdb.sql(query).fetchall() for query in blocks("sql", archive))
    assert sorted(((*row[:3], {*row[3]}) for row in per_key), key=lambda row: -row[2]) == [
        ("audit-export", 2, 2 * len(table(7)), {"keep_last", "expire_after_days"}),
        ("report", 1, 5, {"keep_last"}),
        (None, 1, 3, {"expire_after_days"}),
        ("twice", 1, 1, {"unclaimed"}),
    ]
    assert [row[1] for row in fields] == ["7", "9"]


def test_the_examples_in_python_answer_what_they_ask(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With polars and pandas."""
    polars, pandas = blocks("python", archive)
    exec(polars, {})  # noqa: S102 - the page of this project
    assert "shape: (2, 4)" in capsys.readouterr().out
    exec(pandas, {})  # noqa: S102
    assert re.search(rf"audit-export +2 +{2 * len(table(7))}\nreport +2 +505\nNaN +1 +3\n", capsys.readouterr().out)


def test_the_table_has_every_column() -> None:
    """Each once, and none that is not there."""
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(SCHEMA.names)
