"""An archive in a folder, and versions taken from a server's database as a run archives them."""

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from archives import columns
from database import Database
from prefect_artifact_retention.flows.cleanup import LISTENER
from prefect_artifact_retention.stores.archive.archive import Archive, open_archive
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, CollectionRow, LedgerQuery, RunManifest
from prefect_artifact_retention.tasks.run import Step
from servers import Server

EVERYTHING = LedgerQuery()
RUN_ID = "01939b7e-6c10-7cc0-8f2a-1b1c1d1e1f20"
RUN_NAME = "careless-cormorant"
PART_ROWS = 500
"""Versions in a row group."""
DECIDED_AT = datetime(2026, 11, 28, 3, tzinfo=UTC)

ARTIFACT_COLUMNS = (
    *("id", "created", "updated", "key", "type", "data", "description", "metadata_", "flow_run_id", "task_run_id"),
)


def has_parts(folder: Path) -> bool:
    """Whether anything counts in an archive."""
    return any(folder.glob("manifests/*.json"))


@contextmanager
def when_archived(folder: Path, action: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """Do something once, after the first part counts, before any of its versions is deleted or changed."""
    done: list[bool] = []

    async def listen(step: Step, _done: int, _total: int) -> None:
        if step == "deleting" and not done and has_parts(folder):
            done.append(True)
            await action()

    token = LISTENER.set(listen)
    try:
        yield
    finally:
        LISTENER.reset(token)
    assert done


def write_archive(
    folder: Path, versions: Sequence[ArchivedVersion], collections: Iterable[CollectionRow] = (), *, payloads: bool = True
) -> Archive:
    """An archive with these versions, or with these besides what it has: a part for each call, and the manifest of a run."""
    archive = open_archive(str(folder))
    name = f"{RUN_ID}-{archive.first_free_number(RUN_ID):05}"
    with archive.stage(name, payloads=payloads) as part:
        for start in range(0, len(versions), PART_ROWS):
            part.add(columns(versions[start : start + PART_ROWS]))
        part.publish(list(collections))
    said: dict[str, Any] = {"ended_at": DECIDED_AT, "outcome": "completed", "deleted": len(versions)}
    run = RunManifest(
        run_id=RUN_ID, run_name=RUN_NAME, server=versions[0].server, parts=[name], versions=len(versions), **said
    )
    archive.publish_run(run)
    return archive


def made(key: str | None, number: int, server: str, **fields: Any) -> ArchivedVersion:  # noqa: ANN401 - any field
    """The version of a key with this number, the greatest of which is the newest, as a run archives it."""
    created = datetime(2026, 10, 1, tzinfo=UTC) + timedelta(hours=number, microseconds=number)
    data = json.dumps(f"{key} {number}")
    version = ArchivedVersion(
        id=uuid5(NAMESPACE_URL, f"{key} {number}"),
        flow_run_id=uuid5(NAMESPACE_URL, f"flow run of {key} {number}"),
        task_run_id=uuid5(NAMESPACE_URL, f"task run of {key} {number}"),
        key=key,
        type="markdown",
        description=f"number {number}",
        created=created,
        updated=created,
        data=data,
        metadata='{"owner": "ada"}',
        size=len(data),
        was_latest=False,
        policy="short",
        policy_digest="0123456789ab",
        reasons=["no rule keeps it"],
        rules=["unclaimed"],
        run_id=RUN_ID,
        run_name=RUN_NAME,
        decided_at=DECIDED_AT,
        approved_by=None,
        server=server,
    )
    return version._replace(**fields)


async def archived(server: Server, address: str, ids: Sequence[UUID] = ()) -> list[ArchivedVersion]:
    """These versions, or all but those of this package, as a run archives them."""
    database = server.database
    latest = {str(row[0]) for row in await database.run("SELECT latest_id FROM artifact_collection")}
    texts = [f"{name}, typeof({name})" if database.is_sqlite else f"{name}::text, 'text'" for name in ("data", "metadata_")]
    rows = await database.run(
        f"SELECT id, flow_run_id, task_run_id, key, type, description, created, updated, {', '.join(texts)} FROM artifact "
        "WHERE key IS NULL OR key NOT LIKE 'artifact-retention-%' ORDER BY key, created, id"
    )
    wanted = {str(each) for each in ids}
    return [_version(row, latest, address) for row in rows if not wanted or str(row[0]) in wanted]


def _version(row: Sequence[Any], latest: set[str], address: str) -> ArchivedVersion:
    version_id, flow_run_id, task_run_id, key, kind, description, created, updated, data, _data, metadata, _metadata = row
    text, metadata = _text(data), _text(metadata)
    return ArchivedVersion(
        id=UUID(str(version_id)),
        flow_run_id=_id(flow_run_id),
        task_run_id=_id(task_run_id),
        key=key,
        type=kind,
        description=description,
        created=_time(created),
        updated=_time(updated),
        data=text,
        metadata=metadata,
        size=4 if text is None else len(text.encode()),
        was_latest=str(version_id) in latest,
        policy="p",
        policy_digest="d",
        reasons=["superseded"],
        rules=["keep_last"],
        run_id=RUN_ID,
        run_name=RUN_NAME,
        decided_at=DECIDED_AT,
        approved_by=None,
        server=address,
    )


def _text(value: object) -> str | None:
    """The text of JSON, of which SQLite has stored a bare number as a number."""
    if value is None or isinstance(value, str):
        return value
    return "1e999" if value == float("inf") else json.dumps(value)


def _time(value: object) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(f"{value}+00:00")


def _id(value: object) -> UUID | None:
    return None if value is None else UUID(str(value))


async def collection_rows(database: Database) -> dict[str, CollectionRow]:
    """The collections, as a run archives those of keys that go as a whole."""
    rows = await database.run("SELECT key, id, created, updated, latest_id FROM artifact_collection")
    return {
        row[0]: CollectionRow(key=row[0], id=row[1], created=_time(row[2]), updated=_time(row[3]), latest_id=row[4])
        for row in rows
    }


async def snapshot(database: Database) -> Mapping[str, object]:
    """Both tables of artifacts, field by field: the text of JSON, and how SQLite has stored it; without this package's own."""
    found: dict[str, object] = {}
    for table in ("artifact", "artifact_collection"):
        names = [*ARTIFACT_COLUMNS, *(["latest_id"] if table == "artifact_collection" else [])]
        shown = [_shown(name, is_sqlite=database.is_sqlite) for name in names]
        rows = await database.run(
            f"SELECT {', '.join(shown)} FROM {table} WHERE key IS NULL OR key NOT LIKE 'artifact-retention-%' ORDER BY 1"
        )
        found |= {f"{table} {row[0]}": dict(zip(shown, row, strict=True)) for row in rows}
    return found


def _shown(name: str, *, is_sqlite: bool) -> str:
    if is_sqlite:
        return f"typeof({name}) || ' ' || quote({name})" if name != "id" else name
    return f"{name}::text" if name in {"data", "metadata_"} else name
