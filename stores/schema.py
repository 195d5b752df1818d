"""The tables and columns of Prefect's database that the database store uses, with the encoding of their values.

Prefect changes its tables from version to version. Only the columns in use are declared, and `check_schema` compares them with
the database before anything else is done: if they differ, the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.ids import read_ids
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

WAY_OUT = "unset ARTIFACT_RETENTION_DATABASE_URL and ARTIFACT_RETENTION_DATABASE_BLOCK to go through the API instead"


def read_times(texts: Iterable[str]) -> list[datetime]:
    """Read times as SQLite has them."""
    read = datetime.fromisoformat
    return [read(f"{text}+00:00") for text in texts]


class _TextId(sa.CHAR):
    """An id as Prefect writes it to SQLite: 36 characters, with hyphens."""

    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> Callable[[Any], Any]:  # noqa: ARG002
        return lambda value: None if value is None else str(value)

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        return lambda text: read_ids([text])[0]


class _UtcTime(sqlite.DATETIME):
    """A time as Prefect writes it to SQLite: in UTC, without an offset."""

    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        return lambda text: None if text is None else read_times([text])[0]


ID = sa.Uuid().with_variant(_TextId(36), "sqlite")
TIME = sa.TIMESTAMP(timezone=True).with_variant(_UtcTime(), "sqlite")  # type: ignore[no-untyped-call]

_tables = sa.MetaData()

# JSON, not JSONB: Prefect stores the text that its serializer made, and sizes are measured on that text.
_COPIED: tuple[tuple[str, TypeEngine[Any]], ...] = (
    ("type", sa.String()),
    ("data", sa.JSON()),
    ("description", sa.String()),
    ("metadata_", sa.JSON()),
    ("flow_run_id", ID),
    ("task_run_id", ID),
)
COPIED = tuple(name for name, _type in _COPIED)
"""The columns that a collection copies from its latest version, besides the dates."""

_SHARED = (("id", ID), ("key", sa.String()), ("created", TIME), ("updated", TIME), *_COPIED)
ARTIFACT, COLLECTION = (
    sa.Table(name, _tables, *(sa.Column(column, kind) for column, kind in (*_SHARED, *more)))
    for name, more in (("artifact", ()), ("artifact_collection", (("latest_id", ID),)))
)
FLOW_RUN, TASK_RUN = (
    sa.Table(name, _tables, sa.Column("id", ID), sa.Column("created", TIME), sa.Column("state_type", sa.String))
    for name in ("flow_run", "task_run")
)

_event_tables = sa.MetaData()
EVENT = sa.Table(
    "events",
    _event_tables,
    sa.Column("id", ID),
    sa.Column("event", sa.String),
    sa.Column("payload", JSONB().with_variant(sa.JSON(), "sqlite")),
)
EVENT_RESOURCE = sa.Table("event_resources", _event_tables, sa.Column("event_id", ID), sa.Column("resource_id", sa.String))

ARTIFACT_EVENTS = (
    *("prefect.artifact.created", "prefect.artifact.updated"),
    *(f"prefect.artifact-collection.{change}" for change in ("created", "updated", "deleted")),
)
"""The events of Prefect itself about a version. Those of a collection hold the data of its latest version, and name it."""

VERSION_RESOURCE = "prefect.artifact."
"""With the id of a version, the resource that events about it name."""

_FAMILIES: dict[str, tuple[type[TypeEngine[Any]], ...]] = {
    "id": (sa.Uuid, sa.CHAR),
    "time": (sa.DateTime,),
    "text": (sa.String,),
    "JSON": (sa.JSON,),
}
"""The column types of both databases that are accepted for each kind of column."""


_SCHEMA = """
SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = to_regclass('artifact')
"""
"""The schema in which the search path finds the tables; SQLAlchemy would look in the one that the first connection had."""


def check_schema(connection: sa.Connection, *, with_events: bool = False) -> None:
    """Compare the declared columns with the database; those of events only if they are used.

    Raises:
        StoreError: A table or column is missing or has another type; the message names each difference.
    """
    inspector = sa.inspect(connection)
    is_postgresql = connection.dialect.name == "postgresql"
    schema = connection.scalar(sa.text(_SCHEMA)) if is_postgresql else None
    present = set(inspector.get_table_names(schema=schema))
    differences = []
    for table in (*_tables.sorted_tables, *(_event_tables.sorted_tables if with_events else ())):
        if table.name not in present:
            differences.append(f"there is no table {table.name}")
            continue
        found = {column["name"]: column["type"] for column in inspector.get_columns(table.name, schema=schema)}
        for column in table.columns:
            family = _family(column.type)
            if column.name not in found:
                differences.append(f"{table.name} has no column {column.name}")
            elif not isinstance(found[column.name], _FAMILIES[family]) or (
                isinstance(found[column.name], JSONB) and not isinstance(column.type, JSONB)
            ):
                differences.append(f"{table.name}.{column.name} is of type {found[column.name]}, not {family}")
    if differences:
        raise StoreError(
            f"the database differs from the Prefect databases that this package knows: {'; '.join(differences)}. "
            f"Nothing is read or deleted there; {WAY_OUT}"
        )


def _family(kind: TypeEngine[Any]) -> str:
    if kind is ID:
        return "id"
    if kind is TIME:
        return "time"
    return "JSON" if isinstance(kind, sa.JSON) else "text"
