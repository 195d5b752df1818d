"""What is read of a Prefect server's database in one transaction: collections, versions without payloads, states of runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from math import isinf
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.control import HOLD
from prefect_artifact_retention.policies.model import RESULT, Versions
from prefect_artifact_retention.stores.archive.model import CollectionRow
from prefect_artifact_retention.stores.ids import read_ids
from prefect_artifact_retention.stores.rows import METADATA_WORD, NO_METADATA, TERMINAL_STATE_TYPES, load_control_metadata
from prefect_artifact_retention.stores.schema import ARTIFACT, COLLECTION, FLOW_RUN, TASK_RUN, read_times
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF, Copies, History, StoredVersion
from prefect_artifact_retention.stores.store import Collection as ArtifactCollection
from sqlalchemy.ext.asyncio import AsyncConnection

METADATA_ROWS_PER_FETCH = 1_000
"""Rows with metadata read at a time; more take more memory, as metadata may be large."""

IS_UNKEYED = sa.and_(ARTIFACT.c.key.is_(None), ARTIFACT.c.type != RESULT)
"""Selects artifacts without a key, except results of runs: of type `result`, or NULL, which SQL never finds unequal."""


def is_placeholder(table: sa.Table) -> sa.ColumnElement[bool]:
    """Whether a version, or the latest one of a collection, is a placeholder: by the metadata that its row has."""
    metadata = table.c.metadata_
    return sa.and_(metadata[PLACEHOLDER_OF].as_string().is_not(None), metadata[HOLD].as_string().is_(None))


IS_PLACEHOLDER = is_placeholder(COLLECTION)

_WRITER: sa.ColumnElement[int] = sa.literal_column(
    "hashtextextended(artifact.xmin::text, uuid_hash(artifact.id))", sa.BigInteger
)
"""The fingerprint of a row in PostgreSQL: the transaction that wrote it, which differs after every change."""


def _microseconds(column: str) -> str:
    """The microseconds of a date as SQLite has it, within the eleven days after which they begin again."""
    return f"(CAST(strftime('%s', {column}) AS INTEGER) % 1000000 * 1000000 + CAST(substr({column}, 21) AS INTEGER))"


def _whole(column: str) -> str:
    """A column of JSON as text. SQLite has numbers for some, of which its own conversion drops digits."""
    return f"CASE typeof({column}) WHEN 'text' THEN {column} ELSE quote({column}) END"


_CONTENT: sa.ColumnElement[int] = sa.literal_column(
    f"{_microseconds('artifact.updated')} + 3 * {_microseconds('artifact.created')} + artifact.rowid "
    f"+ CASE WHEN artifact.metadata_ IS NULL THEN 0 ELSE python_hash(artifact.id, {_whole('artifact.metadata_')}) END",
    sa.BigInteger,
)
"""The fingerprint of a row in SQLite, which keeps no transaction ids: which row it is, its dates, of which each update writes
one, and its metadata, which somebody may change by hand and leave the dates as they are. A VACUUM may number the rows anew:
then a key passes for changed."""

_WHOLE_CONTENT: sa.ColumnElement[int] = sa.literal_column(
    "python_hash(artifact.id, artifact.updated, artifact.created, artifact.description, "
    f"{_whole('artifact.metadata_')}, {_whole('artifact.data')})",
    sa.BigInteger,
)
"""Which row it is, and all of it that Prefect may change: a mark of millions of rows has no time for that, an archive has."""

_FEWER_BITS = 24
"""Bits dropped from a hash: the sum over a million versions must fit into 64 bits, or SQLite fails."""


def hash_of(*values: str | None) -> int:
    """SQLite's `python_hash`."""
    # Sums of the hashes of tuples are often equal if two tuples exchange a value; those of texts are not.
    return hash(str(hash(values))) >> _FEWER_BITS


class Queries:
    """Reads rows in the transaction of a connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.is_sqlite = connection.dialect.name == "sqlite"
        self.fingerprint = _CONTENT if self.is_sqlite else _WRITER
        self.state = _WHOLE_CONTENT if self.is_sqlite else _WRITER

    async def scalar(self, query: sa.Executable) -> Any:  # noqa: ANN401 - whatever is asked for
        """Return the first value of the first row."""
        return await self.connection.scalar(query)

    async def all(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        """Return all rows of a query."""
        return (await self.connection.execute(query)).all()

    async def collections(self, keys: Collection[str]) -> list[ArtifactCollection]:
        """Read the collections of these keys, in their order."""
        return [ArtifactCollection(*row) for row in await self.all(self.selected_collections(keys))]

    async def all_collections(self) -> list[ArtifactCollection]:
        """Read all collections in the order of their keys."""
        return [ArtifactCollection(*row) for row in await self.all(_COLLECTIONS)]

    async def counts(self, keys: Collection[str]) -> Mapping[str, int]:
        """Count the versions of these keys."""
        counted = sa.select(ARTIFACT.c.key, sa.func.count()).where(self.among(ARTIFACT.c.key, keys))
        return {row[0]: row[1] for row in await self.all(counted.group_by(ARTIFACT.c.key))}

    async def histories(self, keys: Sequence[str]) -> list[History]:
        """Read versions as one row a key, with a list for each column: several times as fast as one row a version."""
        these = self.among(ARTIFACT.c.key, keys)
        rows = sa.select(
            ARTIFACT.c.key,
            self.fingerprint.label("fingerprint"),
            sa.cast(self._control_text().is_not(None), sa.Integer).label("is_controlled"),
            *self._plain_columns(),
        ).where(these)
        if not self.is_sqlite:
            # Without this, PostgreSQL sorts whole rows, payloads included, before it computes the columns.
            rows = rows.offset(0)
        key, fingerprint, is_controlled, *columns = rows.subquery().c
        sums = sa.func.count(), sa.func.sum(fingerprint), sa.func.sum(is_controlled)
        found = await self.all(sa.select(key, *sums, *map(self.listed, columns)).group_by(key))
        controls = await self._controls([row[0] for row in found if row[3]])
        histories = {}
        for name, count, fingerprints, _controlled, *lists in found:
            ids, *others = self._read_columns(lists)
            metadata = [controls.get(version_id, NO_METADATA) for version_id in ids]
            histories[name] = History(name, Versions(name, [ids, *others, metadata]), mark=(count, int(fingerprints)))
        return [histories.get(name) or History(name, Versions.of(()), mark=(0, 0)) for name in keys]

    async def unkeyed(self, after: UUID | None, limit: int) -> list[Version]:
        """Read a page of the artifacts without a key, in the order of their ids."""
        page = self._versions().where(IS_UNKEYED).order_by(ARTIFACT.c.id).limit(limit)
        return [_read_version(row) for row in await self.all(page.where(ARTIFACT.c.id > after) if after else page)]

    async def unkeyed_versions(self, ids: Collection[UUID]) -> list[Version]:
        """Read those of the artifacts that exist and have no key."""
        return [
            _read_version(row) for row in await self.all(self._versions().where(self.among(ARTIFACT.c.id, ids), IS_UNKEYED))
        ]

    async def payloads(self, ids: Collection[UUID], keys: Collection[str], *, with_data: bool) -> Copies:
        """Read those of the versions that exist, with the texts of their JSON as the database has them, and collections."""
        c = ARTIFACT.c
        texts = c.description, *map(self._json_text, (c.data, c.metadata_))
        description, data, metadata = texts if with_data else [sa.cast(sa.null(), sa.Text)] * len(texts)
        payload = description, c.created, c.updated, data, metadata
        columns = c.id, c.flow_run_id, c.task_run_id, c.key, c.type, *payload, self._size(), self.state
        # As the driver has them: what is to be made of them is made of whole columns.
        named = (
            sa.type_coerce(column, sa.types.NullType()).label(name)
            for name, column in zip(StoredVersion._fields, columns, strict=True)
        )
        query = sa.select(*named).where(self.among(c.id, ids))
        return Copies(await self._stored(query), await self.collection_rows(keys))

    async def _stored(self, query: sa.Select[Any]) -> Sequence[Sequence[Any]]:
        """Read the columns of `StoredVersion`, which PostgreSQL makes faster than rows are read."""
        if not self.is_sqlite:
            (lists,) = await self.all(sa.select(*map(self.listed, query.offset(0).subquery().c)))
            return [values or () for values in lists]
        columns = [*zip(*await self.all(query), strict=True)] or [()] * len(StoredVersion._fields)
        return [
            _SQLITE_READERS[name](column) if name in _SQLITE_READERS else column
            for name, column in zip(StoredVersion._fields, columns, strict=True)
        ]

    async def short_data(self, ids: Collection[UUID], below: int) -> dict[UUID, str | None]:
        """Read the text of the data of those of the versions that exist; None for those that have as many bytes, or more."""
        text = sa.case((self.bytes(ARTIFACT.c.data) < below, self._json_text(ARTIFACT.c.data)))
        rows = await self.all(sa.select(ARTIFACT.c.id, text).where(self.among(ARTIFACT.c.id, ids)))
        return {row[0]: _text(row[1]) for row in rows}

    async def collection_rows(self, keys: Collection[str]) -> list[CollectionRow]:
        """Read what collections have that is no copy of their latest version."""
        if not keys:
            return []
        names = CollectionRow.model_fields
        rows = await self.all(sa.select(*(COLLECTION.c[name] for name in names)).where(self.among(COLLECTION.c.key, keys)))
        return [CollectionRow(**dict(zip(names, row, strict=True))) for row in rows]

    async def states(self, ids: Collection[UUID]) -> Mapping[UUID, int]:
        """Read what tells whether versions were changed since they were read by `payloads`."""
        rows = await self.all(sa.select(ARTIFACT.c.id, self.state).where(self.among(ARTIFACT.c.id, ids))) if ids else ()
        return {row[0]: row[1] for row in rows}

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Return those of the runs that exist and are not in a terminal state, with the times of their creation."""
        found: dict[UUID, datetime] = {}
        for table, ids in ((FLOW_RUN, list(flow_runs)), (TASK_RUN, list(task_runs))):
            if ids:
                lasting = sa.select(table.c.id, table.c.created).where(self.among(table.c.id, ids), _is_unfinished(table))
                found.update((row[0], row[1]) for row in await self.all(lasting))
        return found

    async def dangling(self, keys: Collection[str]) -> list[str]:
        """Return those of the keys whose collection names a latest version that does not exist, or a left-over placeholder."""
        exists = sa.exists().where(ARTIFACT.c.id == COLLECTION.c.latest_id)
        others = sa.exists().where(ARTIFACT.c.key == COLLECTION.c.key, ARTIFACT.c.id != COLLECTION.c.latest_id)
        needs_repair = sa.or_(~exists, sa.and_(IS_PLACEHOLDER, others))
        broken = sa.select(COLLECTION.c.key).where(self.among(COLLECTION.c.key, keys), needs_repair)
        return [row[0] for row in await self.all(broken.order_by(COLLECTION.c.key))]

    async def uncollected(self) -> list[str]:
        """Return the keys of versions that have no collection, in order."""
        has_none = ~sa.exists().where(COLLECTION.c.key == ARTIFACT.c.key)
        keys = sa.select(ARTIFACT.c.key).where(ARTIFACT.c.key.is_not(None), has_none).distinct().order_by(ARTIFACT.c.key)
        return [row[0] for row in await self.all(keys)]

    async def newest(self, key: str) -> UUID | None:
        """Return the newest version of a key; None if it has none."""
        ranked = sa.select(ARTIFACT.c.id).where(ARTIFACT.c.key == key)
        newest: UUID | None = await self.scalar(ranked.order_by(ARTIFACT.c.created.desc(), ARTIFACT.c.id.desc()).limit(1))
        return newest

    async def is_behind(self, key: str, latest_id: UUID) -> bool:
        """Whether a key has a newer version than its latest, or its latest is a version of another key."""
        latest = sa.select(ARTIFACT.c.created).where(ARTIFACT.c.id == latest_id, ARTIFACT.c.key == key).scalar_subquery()
        newer = count(ARTIFACT).where(ARTIFACT.c.key == key, sa.or_(latest.is_(None), ARTIFACT.c.created > latest))
        return bool(await self.scalar(newer))

    async def present(self, column: sa.Column[UUID], ids: Collection[UUID]) -> set[UUID]:
        """Return those of the ids that a column has."""
        return {row[0] for row in await self.all(sa.select(column).where(self.among(column, ids)))}

    # --- expressions

    def among(self, column: sa.Column[Any], values: Collection[Any]) -> sa.ColumnElement[bool]:
        """Compare a column with any number of values, which are passed as a single parameter."""
        if self.is_sqlite:
            listed = sa.func.json_each(json.dumps([str(value) for value in values])).table_valued("value")
            return column.in_(sa.select(sa.type_coerce(listed.c.value, column.type)))
        return column == sa.any_(sa.literal(list(values), sa.ARRAY(column.type)))

    def selected_collections(self, keys: Collection[str]) -> sa.Select[tuple[str, UUID, str | None, bool, datetime]]:
        """Select the collections of these keys, in their order."""
        return _COLLECTIONS.where(self.among(COLLECTION.c.key, keys))

    def _versions(self) -> sa.Select[Any]:
        """Select the fields of `Version`, in its order."""
        version_id, *columns = self._plain_columns()
        return sa.select(version_id, ARTIFACT.c.key, *columns, self._control_text())

    def bytes(self, column: sa.Column[Any]) -> sa.ColumnElement[int]:
        """The length of a column of JSON; without a value, that of a null."""
        length = sa.func.length(sa.cast(column, sa.BLOB)) if self.is_sqlite else sa.func.octet_length(sa.cast(column, sa.Text))
        return sa.func.coalesce(length, 4)

    def listed(self, column: sa.ColumnElement[Any]) -> sa.Function[Any]:
        """Aggregate the values of a column into a list, in the same order as the other columns."""
        if self.is_sqlite:
            return sa.func.json_group_array(sa.type_coerce(column, sa.types.NullType()))
        return sa.func.array_agg(column, type_=sa.types.NullType())

    def read_listed_ids(self, ids: Any) -> Sequence[UUID]:  # noqa: ANN401 - as the driver has them
        """Read a list of ids that are not null."""
        return read_ids(json.loads(ids)) if self.is_sqlite else ids or ()  # type: ignore[return-value]

    def _plain_columns(self) -> tuple[sa.ColumnElement[Any], ...]:
        """The fields of `Version`, in its order, without the key and the metadata."""
        c = ARTIFACT.c
        return (*(c.id, c.created, c.updated, c.type), self._size(), *(c.flow_run_id, c.task_run_id))

    def _size(self) -> sa.ColumnElement[Any]:
        size = self.bytes(ARTIFACT.c.data)
        if self.is_sqlite:
            # SQLite stores a bare number as a number, and prints fractions differently from Python.
            size = sa.case((sa.func.typeof(ARTIFACT.c.data) == "real", sa.func.python_length(ARTIFACT.c.data)), else_=size)
        return sa.type_coerce(size, sa.types.NullType())

    def _json_text(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        """The text of a column of JSON; in SQLite the value, which may be a number, and prints differently there."""
        return sa.type_coerce(column, sa.types.NullType()) if self.is_sqlite else sa.cast(column, sa.Text)

    def _control_text(self) -> sa.ColumnElement[str | None]:
        """The metadata as text if it may have retention entries, else NULL."""
        text = sa.cast(ARTIFACT.c.metadata_, sa.Text)
        # In the collation of a Turkish database, the lower case of I is no i.
        compared = text if self.is_sqlite else sa.collate(text, "C")
        return sa.case((sa.func.lower(compared).contains(METADATA_WORD), text))

    async def _controls(self, keys: Sequence[str]) -> Mapping[UUID, Mapping[str, str]]:
        """Read the holds and TTLs of the versions of these keys.

        They are read apart from the versions, because metadata may be large and seldom has any.
        """
        if not keys:
            return {}
        text = self._control_text()
        rows = sa.select(ARTIFACT.c.id, text).where(self.among(ARTIFACT.c.key, keys), text.is_not(None))
        stream: AsyncIterator[Any] = await self.connection.stream(rows.execution_options(yield_per=METADATA_ROWS_PER_FETCH))
        return {version_id: load_control_metadata(metadata) async for version_id, metadata in stream}

    def _read_columns(self, lists: Sequence[Any]) -> Sequence[Sequence[Any]]:
        if not self.is_sqlite:
            return lists
        ids, created, updated, types, sizes, flow_run_ids, task_run_ids = map(json.loads, lists)
        times = read_times(created), read_times(updated)
        return [read_ids(ids), *times, types, sizes, read_ids(flow_run_ids), read_ids(task_run_ids)]


_COLLECTIONS = sa.select(
    COLLECTION.c.key, COLLECTION.c.latest_id, COLLECTION.c.type, IS_PLACEHOLDER, COLLECTION.c.updated
).order_by(COLLECTION.c.key)


def count(table: sa.Table) -> sa.Select[tuple[int]]:
    """Count the rows of a table."""
    return sa.select(sa.func.count()).select_from(table)


def _is_unfinished(table: sa.Table) -> sa.ColumnElement[bool]:
    state = sa.cast(table.c.state_type, sa.Text)
    return sa.or_(state.is_(None), state.not_in(sorted(TERMINAL_STATE_TYPES)))


def _read_version(row: Sequence[Any]) -> Version:
    """Read a row of `Queries._versions`."""
    *columns, metadata = row
    return Version._make((*columns, load_control_metadata(metadata)))


def _text(value: str | float | None) -> str | None:
    """Return JSON as text; a number, which only SQLite has instead, as Python writes it, and SQLite reads the same again."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and isinf(value):
        return "1e999" if value > 0 else "-1e999"
    try:
        return json.dumps(value)
    except TypeError:
        raise StoreError("the database has bytes where JSON should be") from None


_SQLITE_READERS: Mapping[str, Callable[[Sequence[Any]], Sequence[Any]]] = {
    **dict.fromkeys(("id", "flow_run_id", "task_run_id"), read_ids),
    **dict.fromkeys(("created", "updated"), read_times),
    **dict.fromkeys(("data", "metadata"), lambda values: [*map(_text, values)]),
}
"""What makes columns of `StoredVersion` of those that SQLite has."""
