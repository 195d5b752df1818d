"""What a restore writes to a Prefect server's database in one transaction: versions as they were, and their collections.

A version that exists is left alone. The versions are inserted first, which nobody waits for, and the collections are locked
only then: a producer of the same key waits for a moment, however much is restored.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, CollectionRow
from prefect_artifact_retention.stores.archive.stubs import STUB_BYTES
from prefect_artifact_retention.stores.changes import Changes
from prefect_artifact_retention.stores.queries import Queries
from prefect_artifact_retention.stores.schema import ARTIFACT, COLLECTION, COPIED

Slices = Callable[[], AsyncIterator[Sequence[ArchivedVersion]]]
"""Gives the versions of a transaction, some at a time, and gives them again if the transaction is repeated."""

MAX_ROUNDS = 10
"""How often a collection is read again that others create or delete meanwhile. With more, it takes longer to give up."""

_COLUMNS = ("id", "key", "type", "description", "created", "updated", "data", "metadata_", "flow_run_id", "task_run_id")
_PLACES = tuple(ArchivedVersion._fields.index(name.rstrip("_")) for name in _COLUMNS)
_PICKED = itemgetter(*_PLACES)
_KEY, _RANK = attrgetter("key"), attrgetter("created", "id")

_INTO = f"INSERT INTO artifact ({', '.join(_COLUMNS)})"
_INSERT_ROW = f"{_INTO} VALUES ({', '.join('?' for _name in _COLUMNS)})"

_UPDATE_ARRAYS = (
    "UPDATE {table} SET data = given.data::json FROM unnest($1::uuid[], $2::text[], $3::text[]) AS given (id, stub, data) "
    "WHERE {table}.{column} = given.id AND {table}.data::text = given.stub"
)
_UPDATE_ROW = "UPDATE {table} SET data = ? WHERE {column} = ? AND data = ?"

_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MAX_INTEGER = 2**63 - 1

_Rank = tuple[datetime, UUID]
"""By what the versions of a key are ordered."""


@dataclass(slots=True)
class _Inserted:
    """What was inserted of one key.

    Attributes:
        newest: The newest of the versions.
        latest: The newest of those that were the latest of their key when they were deleted.
        versions: How many versions.
    """

    newest: _Rank
    latest: _Rank | None = None
    versions: int = 0

    def add(self, versions: Sequence[ArchivedVersion]) -> None:
        """Add some versions."""
        self.versions += len(versions)
        self.newest = max(self.newest, *map(_RANK, versions))
        for rank in (_RANK(version) for version in versions if version.was_latest):
            self.latest = max(self.latest or rank, rank)


async def restore_versions(changes: Changes, slices: Slices, archived: Mapping[str, CollectionRow]) -> dict[str | None, int]:
    """Insert those of the versions that do not exist, all versions of a key in the same transaction.

    Args:
        changes: The transaction, of which each statement must see what others have committed.
        slices: The versions.
        archived: The collections of keys that went as a whole.

    Returns:
        How many versions were inserted of each key.
    """
    inserted: dict[str | None, _Inserted] = {}
    async for versions in slices():
        for key, group in groupby(await _insert(changes, versions), key=_KEY):
            of_key = [*group]
            inserted.setdefault(key, _Inserted(_RANK(of_key[0]))).add(of_key)
    await _settle({key: each for key, each in inserted.items() if key is not None}, archived, changes)
    return {key: each.versions for key, each in inserted.items()}


async def _insert(changes: Changes, versions: Sequence[ArchivedVersion]) -> Sequence[ArchivedVersion]:
    """Insert those of the versions that do not exist, and return them."""
    present = await changes.present(ARTIFACT.c.id, [version.id for version in versions])
    missing = [version for version in versions if version.id not in present] if present else versions
    if missing and changes.is_sqlite:
        await changes.connection.exec_driver_sql(_INSERT_ROW, _sqlite_rows(missing))
    elif missing:
        # If another restore inserts one of them first, this transaction is repeated.
        await changes.copy("artifact", _COLUMNS, map(_PICKED, missing))
    return missing


async def put_back(changes: Changes, versions: Sequence[ArchivedVersion]) -> set[str]:
    """Give versions their data back, if what was put in place of these stands there still. Return what stood there."""
    await changes.lock({version.key for version in versions if version.key is not None})
    found = await changes.short_data({version.id for version in versions}, STUB_BYTES)
    going = [version for version in versions if found.get(version.id) == version.stub]
    # The latest version of a key has a copy in its collection.
    for table, column in (("artifact", "id"), ("artifact_collection", "latest_id")):
        if going and changes.is_sqlite:
            rows = [(_stored_json(each.data), str(each.id), each.stub) for each in going]
            await changes.connection.exec_driver_sql(_UPDATE_ROW.format(table=table, column=column), rows)
        elif going:
            columns = tuple([getattr(each, name) for each in going] for name in ("id", "stub", "data"))
            await changes.connection.exec_driver_sql(_UPDATE_ARRAYS.format(table=table, column=column), columns)
    return {version.stub for version in going}


def _sqlite_rows(versions: Sequence[ArchivedVersion]) -> list[tuple[object, ...]]:
    """Return rows as Prefect writes them to SQLite, made column by column, which takes a tenth of the time."""
    # It needs an extra, which is not there without an archive.
    from prefect_artifact_retention.stores.archive.parquet import time_texts  # noqa: PLC0415

    stored: Mapping[str, Callable[[Sequence[Any]], Sequence[object]]] = {
        **dict.fromkeys(("id", "flow_run_id", "task_run_id"), _stored_ids),
        **dict.fromkeys(("created", "updated"), time_texts),
        **dict.fromkeys(("data", "metadata_"), lambda texts: [*map(_stored_json, texts)]),
    }
    columns = zip(_COLUMNS, zip(*map(_PICKED, versions), strict=True), strict=True)
    return [*zip(*(stored[name](values) if name in stored else values for name, values in columns), strict=True)]


def _stored_ids(values: Sequence[UUID | None]) -> list[str | None]:
    return [None if value is None else str(value) for value in values]


def _stored_json(text: str | None) -> str | float | None:
    """Return JSON as SQLite has it, which stores a document that is only a number as a number."""
    if text is None:
        return None
    if _INTEGER.fullmatch(text):
        # More digits than Python reads are more than SQLite keeps.
        number = int(text) if len(text) < 25 else float(text)  # noqa: PLR2004
        return number if -_MAX_INTEGER - 1 <= number <= _MAX_INTEGER else float(text)
    return float(text) if _NUMBER.fullmatch(text) else text


async def _settle(inserted: Mapping[str, _Inserted], archived: Mapping[str, CollectionRow], changes: Changes) -> None:
    """Make the collections of these keys name the latest version, and create those that have gone.

    Raises:
        StoreError: Others create and delete a collection all the time.
    """
    unsettled = sorted(inserted)
    for _round in range(MAX_ROUNDS):
        if not unsettled:
            return
        found = {row[0]: _Found(*row[1:]) for row in await changes.all(_locked(changes, unsettled))}
        await _move(found, inserted, archived, changes)
        # A producer may create one of them first: then there is one, whose latest version may be older.
        gone = [key for key in unsettled if key not in found]
        created = await _create(gone, inserted, archived, changes)
        unsettled = [key for key in gone if key not in created]
    raise StoreError(f"the collection of {unsettled[0]!r} is created and deleted by others all the time")


class _Found(NamedTuple):
    """A collection that exists."""

    id: UUID
    latest_id: UUID


def _locked(changes: Queries, keys: Sequence[str]) -> sa.Select[tuple[str, UUID, UUID]]:
    """Lock collections in the order of their keys."""
    query = sa.select(COLLECTION.c.key, COLLECTION.c.id, COLLECTION.c.latest_id)
    return query.where(changes.among(COLLECTION.c.key, keys)).order_by(COLLECTION.c.key).with_for_update(key_share=True)


async def _move(
    found: Mapping[str, _Found],
    inserted: Mapping[str, _Inserted],
    archived: Mapping[str, CollectionRow],
    changes: Changes,
) -> None:
    """Make a restored version the latest of its key, if it is newer than the latest.

    On a busy server, the latest version is not always the newest. One that was deleted beside it does not become the latest by
    being restored: it must have been the latest itself, unless all of its key had gone and is restored bit by bit.
    """
    ids = [each.latest_id for each in found.values()]
    known = await changes.all(sa.select(ARTIFACT.c.id, ARTIFACT.c.created).where(changes.among(ARTIFACT.c.id, ids)))
    latest: dict[UUID, _Rank] = {row[0]: (row[1], row[0]) for row in known}
    for key, collection in found.items():
        row = archived.get(key)
        is_same = row is not None and row.id == collection.id
        rank = inserted[key].latest or (inserted[key].newest if is_same else None)
        if collection.latest_id not in latest:
            # It has vanished: as for a repair, the newest version takes its place.
            latest_id = await changes.newest(key)
        elif rank and rank > latest[collection.latest_id]:
            latest_id = rank[1]
        else:
            continue
        version = ARTIFACT.c.id == latest_id
        values: dict[str, Any] = {
            name: sa.select(ARTIFACT.c[name]).where(version).scalar_subquery() for name in ("created", "updated", *COPIED)
        }
        if row and is_same and row.latest_id == latest_id:
            values |= {"created": row.created, "updated": row.updated}
        await changes.connection.execute(
            sa.update(COLLECTION).where(COLLECTION.c.key == key).values(latest_id=latest_id, **values)
        )


async def _create(
    keys: Sequence[str], inserted: Mapping[str, _Inserted], archived: Mapping[str, CollectionRow], changes: Changes
) -> set[str]:
    """Create the collections of keys that had gone, as they were. Return those that nobody has created first."""
    if not keys:
        return set()
    counts = await changes.counts(keys)
    known = await changes.present(ARTIFACT.c.id, [archived[key].latest_id for key in keys if key in archived])
    created: set[str] = set()
    for key in keys:
        row = archived.get(key)
        latest_id: UUID | None
        if row and row.latest_id in known:
            latest_id = row.latest_id
        elif counts[key] == inserted[key].versions:
            latest_id = (inserted[key].latest or inserted[key].newest)[1]
        else:
            latest_id = await changes.newest(key)
        if latest_id and await changes.create_collection(latest_id, row):
            created.add(key)
    return created


def unfit_for_postgresql(versions: Iterable[ArchivedVersion]) -> Iterator[UUID]:
    """Find the versions whose data or metadata PostgreSQL refuses: a NaN of SQLite is no JSON."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    for version in versions:
        try:
            for text in (version.data, version.metadata):
                json.loads(text or "null", parse_constant=refuse)
        except (ValueError, RecursionError):
            yield version.id
