"""Straight to the server's database: to fill it fast, to backdate, and to see independently what is left."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

LOCKED_SECONDS = 90


@dataclass
class Row:
    """One artifact to insert; `age` counts back from when it is inserted."""

    key: str | None
    age: timedelta
    data: object = "x"
    type: str | None = "markdown"
    metadata: Mapping[str, str] | None = None
    flow_run_id: UUID | None = None
    task_run_id: UUID | None = None
    id: UUID = field(default_factory=uuid4)


def days(number: float) -> timedelta:
    """So many days."""
    return timedelta(days=number)


def series(key: str | None, ages: Iterable[float]) -> list[Row]:
    """One version for each age in days."""
    return [Row(key, days(age)) for age in ages]


class Database:
    """The artifact tables of one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        # Now and then, a Prefect server on SQLite locks its database for a minute.
        connect_args = {"timeout": LOCKED_SECONDS} if self.is_sqlite else {}
        self.engine = create_async_engine(url, poolclass=NullPool, connect_args=connect_args)
        self.json_type = "TEXT" if self.is_sqlite else "JSON"

    async def run(self, statement: str, rows: Sequence[Mapping[str, object]] | None = None) -> Sequence[sa.Row]:
        """Run one statement in a transaction of its own."""
        async with self.engine.begin() as connection:
            result = await connection.execute(sa.text(statement), rows)
            return result.all() if result.returns_rows else []

    async def clear(self) -> None:
        """Forget all artifacts, all holds on keys, which policies were applied, and those on the server."""
        whose = " OR ".join(f"name LIKE 'artifact-retention-{kind}-%'" for kind in ("hold", "policies"))
        async with self.engine.begin() as connection:
            ours = "block_document WHERE block_type_name = 'Artifact Retention'"
            for what in (f"variable WHERE {whose}", ours, "artifact", "artifact_collection"):
                await connection.execute(sa.text(f"DELETE FROM {what}"))

    async def vacuum(self) -> None:
        """Let the database take back what deleted rows held, and PostgreSQL count what is there."""
        async with self.engine.connect() as connection:
            alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await alone.execute(sa.text("VACUUM" if self.is_sqlite else "VACUUM (ANALYZE) artifact, artifact_collection"))

    async def insert(
        self, rows: Iterable[Row], latest: Mapping[str, UUID] | None = None, now: datetime | None = None
    ) -> list[Row]:
        """Insert versions; the newest of each key is its latest, unless said otherwise. Ages count back from `now`."""
        rows = list(rows)
        now = now or datetime.now(UTC)
        newest: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: row.age, reverse=True):
            if row.key is not None:
                newest[row.key] = row
        kind = self.json_type
        await self.run(
            "INSERT INTO artifact (id, created, updated, key, type, data, metadata_, flow_run_id, task_run_id) VALUES "
            f"(:id, :created, :created, :key, :type, CAST(:data AS {kind}), CAST(:metadata AS {kind}), "
            ":flow_run_id, :task_run_id)",
            [self._values(row, now) for row in rows],
        )
        collections = [
            self._values(row, now) | {"latest_id": self._id((latest or {}).get(key, row.id)), "id": self._id(uuid4())}
            for key, row in newest.items()
        ]
        if collections:
            await self.run(
                "INSERT INTO artifact_collection (id, created, updated, key, latest_id, type, data) VALUES "
                f"(:id, :created, :created, :key, :latest_id, :type, CAST(:data AS {kind}))",
                collections,
            )
        return rows

    async def update_metadata(self, version_id: UUID, metadata: Mapping[str, str]) -> None:
        """Change a version's metadata behind everybody's back."""
        await self.run(
            f"UPDATE artifact SET metadata_ = CAST(:metadata AS {self.json_type}) WHERE id = :id",
            [{"id": self._id(version_id), "metadata": json.dumps(metadata)}],
        )

    async def update_data(self, version_id: UUID, data: object) -> None:
        """Change a version's data, and its collection's copy if it is the latest."""
        values = {"id": self._id(version_id), "data": json.dumps(data)}
        for table, column in (("artifact", "id"), ("artifact_collection", "latest_id")):
            await self.run(f"UPDATE {table} SET data = CAST(:data AS {self.json_type}) WHERE {column} = :id", [values])

    async def break_data(self, version_id: UUID) -> None:
        """Let a version's data, and its collection's copy of it, be no JSON, which a server on SQLite cannot show."""
        for table, column in (("artifact", "id"), ("artifact_collection", "latest_id")):
            await self.run(f"UPDATE {table} SET data = '{{' WHERE {column} = :id", [{"id": self._id(version_id)}])

    async def repair_data(self) -> None:
        """Make all data JSON again."""
        for table in ("artifact", "artifact_collection"):
            await self.run(f"UPDATE {table} SET data = '\"x\"' WHERE data = '{{'")

    async def delete_version(self, version_id: UUID) -> None:
        """Remove a version, and leave its collection as it is."""
        await self.run("DELETE FROM artifact WHERE id = :id", [{"id": self._id(version_id)}])

    async def delete_key(self, key: str) -> None:
        """Remove a key with all that it has."""
        await self.run("DELETE FROM artifact WHERE key = :key", [{"key": key}])
        await self.run("DELETE FROM artifact_collection WHERE key = :key", [{"key": key}])

    async def age_progress(self) -> None:
        """Let a quarter of an hour pass for whoever asks whether another run is at work."""
        earlier = "datetime(updated, '-15 minutes') || '.000000'" if self.is_sqlite else "updated - interval '15 minutes'"
        await self.run(f"UPDATE artifact SET updated = {earlier} WHERE key = 'artifact-retention-progress'")

    async def ids(self, where: str = "1 = 1") -> set[UUID]:
        """The versions that are there, without those of this package."""
        own = "(key IS NULL OR key NOT LIKE 'artifact-retention-%')"
        return {UUID(str(row[0])) for row in await self.run(f"SELECT id FROM artifact WHERE {own} AND {where}")}

    async def keys(self) -> dict[UUID, str | None]:
        """The key of each version that is there, without those of this package and the results of runs."""
        somebodys = "key NOT LIKE 'artifact-retention-%' OR (key IS NULL AND type <> 'result')"
        return {UUID(str(row[0])): row[1] for row in await self.run(f"SELECT id, key FROM artifact WHERE {somebodys}")}

    async def versions(self, key: str) -> list[dict[str, Any]]:
        """The versions of a key, newest first, with some of the fields that the API gives them."""
        names = ("id", "type", "description", "data", "metadata_", "flow_run_id")
        rows = await self.run(f"SELECT {', '.join(names)} FROM artifact WHERE key = '{key}' ORDER BY created DESC, id DESC")
        versions = [dict(zip(names, row, strict=True)) for row in rows]
        for version in versions:
            version["id"] = UUID(str(version["id"]))
            for name in ("data", "metadata_"):
                # On SQLite, numbers are decoded already; on PostgreSQL, everything is.
                if self.is_sqlite and isinstance(version[name], str):
                    version[name] = json.loads(version[name])
        return versions

    async def dangling(self) -> list[str]:
        """Collections whose latest does not exist."""
        rows = await self.run(
            "SELECT key FROM artifact_collection c WHERE NOT EXISTS (SELECT 1 FROM artifact a WHERE a.id = c.latest_id)"
        )
        return [row[0] for row in rows]

    async def count_all_rows(self) -> dict[str, int]:
        """The number of rows of every table."""
        async with self.engine.connect() as connection:
            tables = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
            counts = ", ".join(f'(SELECT count(*) FROM "{table}")' for table in tables)
            row = (await connection.execute(sa.text(f"SELECT {counts}"))).one()
        return dict(zip(tables, row, strict=True))

    def _values(self, row: Row, now: datetime) -> dict[str, object]:
        created = now - row.age
        return {
            "id": self._id(row.id),
            "created": created.strftime("%Y-%m-%d %H:%M:%S.%f") if self.is_sqlite else created,
            "key": row.key,
            "type": row.type,
            "data": json.dumps(row.data),
            "metadata": json.dumps(row.metadata),
            "flow_run_id": None if row.flow_run_id is None else self._id(row.flow_run_id),
            "task_run_id": None if row.task_run_id is None else self._id(row.task_run_id),
        }

    def _id(self, value: UUID) -> object:
        return str(value) if self.is_sqlite else value
