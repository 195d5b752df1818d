"""Restoring: in the database exactly, through the API as new versions; whatever happens in the middle, once."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from archives import EVERYTHING, archived, collection_rows, snapshot, write_archive
from database import Row, days
from fake import FakeServer
from prefect_artifact_retention.flows.restore import open_restore
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.stores.archive.archive import Archive
from prefect_artifact_retention.stores.archive.model import LedgerQuery
from prefect_artifact_retention.tasks.restore import restore_all
from prefect_artifact_retention.tasks.restore_plan import Selection, plan_restore
from prefect_artifact_retention.tasks.restore_report import RestoreReport
from servers import BY_DATABASE, Server, on

AnyServer = Server | FakeServer

TYPES = ("markdown", "table", "link", "image", "progress", "json", "result", None)

TEXTS = (
    '"text"',
    "1.10",
    "-0",
    "50.0",
    "1e400",
    "1E2",
    "12345678901234567890",
    "0.1234567890123456789",
    '{"b": 1, "a": 2, "b": 3}',
    "[1,   2]",
    '"\\u0000"',
    '"\\ud800"',
    "null",
    "true",
    "{}",
    "[]",
    '""',
    '"\u00e9\U0001f600 \\u00e9"',
)
"""Texts of JSON, most of which are not the same once they have been read and written."""

SQLITE_TEXTS = (*TEXTS, "NaN", "1e999", "0.30000000000000004", "9223372036854775807", "9223372036854775808", "-5")


async def restore(
    archive: Archive,
    query: LedgerQuery = EVERYTHING,
    *,
    applies: bool = True,
    **options: Any,  # noqa: ANN401 - the other fields
) -> RestoreReport:
    """Restore what is asked for, without Prefect's engine."""
    async with open_restore(load_settings(), Selection(query, **options), archive=archive) as opened:
        await plan_restore(opened)
        if applies:
            await restore_all(opened)
    return opened.report


async def set_text(server: Server, version_id: UUID, column: str, text: str | None) -> None:
    """Store a text of JSON as it is, in the version and in what its collection copies."""
    kind = "TEXT" if server.database.is_sqlite else "JSON"
    shown = str(version_id) if server.database.is_sqlite else version_id
    for table, name in (("artifact", "id"), ("artifact_collection", "latest_id")):
        await server.database.run(
            f"UPDATE {table} SET {column} = CAST(:text AS {kind}) WHERE {name} = :id", [{"text": text, "id": shown}]
        )


async def delete(server: Server, folder: Path, rows: Iterable[Row], whole: Sequence[str] = ()) -> Archive:
    """Archive versions, and delete them as a cleanup in the database does; keys as a whole with their collections."""
    rows = list(rows)
    versions = await archived(server, f"{server.local.address}/api", [row.id for row in rows])
    collections = [row for key, row in (await collection_rows(server.database)).items() if key in whole]
    archive = write_archive(folder / "archive", versions, collections)
    for row in rows:
        await server.database.delete_version(row.id)
    for key in whole:
        await server.database.delete_key(key)
    return archive


async def latest(server: Server, key: str) -> UUID:
    """The latest version of a key."""
    return (await collection_rows(server.database))[key].latest_id


# --- in the database


@on(*BY_DATABASE)
async def test_what_is_restored_in_the_database_is_as_it_was(server: Server, tmp_path: Path) -> None:
    """Every type, every text of JSON, 5 MB, no metadata and odd ones; keys as a whole with their collections, and parts."""
    texts = SQLITE_TEXTS if server.database.is_sqlite else TEXTS
    rows = [Row("texts", days(100 - number), type=TYPES[number % len(TYPES)]) for number in range(len(texts))]
    rows += [Row("whole", days(number), data="x" * 5_000_000 if number == 2 else {"a": [1.5]}) for number in (1, 2, 3)]
    rows += [Row("part", days(number), metadata={"a": "b"} if number % 2 else None) for number in range(1, 9)]
    rows += [Row(None, days(5), type="table"), Row(None, days(6), metadata={"owner": "ada"})]
    await server.database.insert(rows)
    for row, text in zip(rows, texts, strict=False):
        await set_text(server, row.id, "data", text)
    await set_text(server, rows[3].id, "metadata_", None)
    await set_text(server, rows[4].id, "metadata_", "[1, 2]")
    await server.database.run("UPDATE artifact SET description = 'd\u00e9scription' WHERE key = 'part'")
    before = await snapshot(server.database)
    assert len(before) == len(rows) + 3
    gone = [row for row in rows if row.key != "part" or row.age > days(3)]
    archive = await delete(server, tmp_path, gone, ["texts", "whole"])
    assert len(await snapshot(server.database)) == len(rows) - len(gone) + 1
    with server.active():
        report = await restore(archive, hold_days=0)
        assert (report.causes(), report.restored, report.present) == ([], len(gone), 0)
        assert await snapshot(server.database) == before
        again = await restore(archive, hold_days=0)
    assert (again.restored, again.present) == (0, len(gone))
    assert await snapshot(server.database) == before
