"""What an archive has: its ledger, and the versions with their payloads.

Of a part, those columns are read that are asked for, of row groups whose statistics allow the keys that are asked for.
Payloads are read of parts in which some were found, after they were hashed.
"""

from __future__ import annotations

import pickle
import re
import tempfile
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from fnmatch import translate
from functools import reduce
from typing import Any, NamedTuple, Self

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from prefect_artifact_retention.stores.archive.location import DATA, Location
from prefect_artifact_retention.stores.archive.manifests import (
    Catalog,
    at_once,
    manifest_file,
    part_file,
    without_manifest,
)
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError, LedgerQuery, PartManifest
from prefect_artifact_retention.stores.archive.parquet import ALIKE, LEDGER, SCHEMA, open_part, to_versions
from prefect_artifact_retention.stores.archive.writing import hash_file

BATCH_BYTES = 8_000_000
"""Payload of a batch of versions that are read. More takes more memory, less more batches."""

HAS_PAYLOAD = "has_payload"
"""The column of a ledger that says whether a version can be restored."""

CLOCK_SKEW = timedelta(days=1)
"""How far the clock of a machine may be behind that of a server. With less, a part that cannot be read may be passed over."""

_KEY = SCHEMA.names.index("key")
_BY_DELETION = ("decided_at", "key", "created", "id")
_WILDCARD = re.compile(r"[*?[]")
_PART, _ROW, _ORDER = "part", "row", "order"


def read_ledger(catalog: Catalog, query: LedgerQuery, unreadable: dict[str, str] | None, columns: Sequence[str]) -> Any:  # noqa: ANN401 - pyarrow
    """Read a row for each version, with some columns of the ledger, in the order of deletion."""
    _tell_lost(catalog, query, unreadable)
    columns = [name for name in LEDGER if name in {*_BY_DELETION, *columns}]
    # How little is asked for without keys shows only when a few columns of all parts are read.
    in_one = bool(query.keys) or (len(columns) < len(LEDGER) and not query.ids)
    copies = _find(catalog, query, columns if in_one else (), unreadable)
    rows = _last_of_each(_asked(copies, query), _same(query))
    if not in_one:
        chosen = {number: rows.filter(pc.equal(rows[_PART], number))[_ROW] for number in pc.unique(rows[_PART]).to_pylist()}
        found = _each_part(
            lambda number: _complete(catalog, number, chosen[number], columns), catalog, chosen, query, unreadable
        )
        rows = _concat(found, columns)
    rows = rows.sort_by([(name, "ascending") for name in _BY_DELETION])
    with_payload = copies.filter(_has_payload(copies, catalog))["id"]
    return rows.select(columns).append_column(HAS_PAYLOAD, pc.is_in(rows["id"], pc.unique(with_payload)))


def read_versions(catalog: Catalog, query: LedgerQuery, without: Collection[str]) -> Iterator[list[ArchivedVersion]]:
    """Read versions with their payloads, about 8 MB at a time, by key, then from old to new.

    Each row group is read once, in whatever order that is; versions that come before their turn wait in a temporary file.

    Raises:
        ArchiveError: A part is not as it was written.
    """
    order_by = ("key", "created", "id")
    copies = _find(catalog, query, order_by, without=without)
    if _filtered_columns(query):
        copies = copies.filter(pc.is_in(copies["id"], pc.unique(_asked(copies, query)["id"])))
    # What was deleted again may be in the ledger only.
    copies = copies.append_column(HAS_PAYLOAD, _has_payload(copies, catalog))
    rows = _last_of_each(copies.sort_by([(name, "ascending") for name in (HAS_PAYLOAD, _PART, _ROW)]), _same(query))
    rows = rows.sort_by([(name, "ascending") for name in order_by]).select([_PART, _ROW])
    batch: list[ArchivedVersion] = []
    size, due = 0, 0
    with catalog.location.doing("keep versions in a temporary file"), _Waiting(len(rows)) as waiting:
        for rank, early in _payloads(catalog, rows):
            if rank != due:
                waiting.put(rank, early)
                continue
            version: ArchivedVersion | None = early
            while version is not None:
                batch.append(version)
                size += len(version.data or "") + len(version.metadata or "") + len(version.description or "")
                due += 1
                if size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
                version = waiting.take(due)
    if batch:
        yield batch


class _Waiting:
    """Versions that are read before their turn, in a temporary file that has no name."""

    def __init__(self, ranks: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._places = array("q", [-1]) * ranks
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, rank: int, version: ArchivedVersion) -> None:
        self._file.seek(self._end)
        self._places[rank] = self._end
        pickle.dump(tuple(version), self._file, pickle.HIGHEST_PROTOCOL)
        self._end = self._file.tell()

    def take(self, rank: int) -> ArchivedVersion | None:
        if rank >= len(self._places) or self._places[rank] < 0:
            return None
        self._file.seek(self._places[rank])
        return ArchivedVersion(*pickle.load(self._file))  # noqa: S301 - nobody else can open the file


def _payloads(catalog: Catalog, rows: Any) -> Iterator[tuple[int, ArchivedVersion]]:  # noqa: ANN401
    """Yield the versions of some rows, with their place among them."""
    ranked = rows.append_column(_ORDER, pa.arange(0, len(rows)))
    for number in pc.unique(rows[_PART]).to_pylist():
        mine = ranked.filter(pc.equal(ranked[_PART], number)).sort_by(_ROW)
        yield from _payloads_of_part(catalog.location, catalog.parts[number], mine[_ROW], mine[_ORDER])


def _payloads_of_part(
    location: Location,
    part: PartManifest,
    rows: Any,  # noqa: ANN401
    ranks: Any,  # noqa: ANN401
) -> Iterator[tuple[int, ArchivedVersion]]:
    name = part_file(part.name)
    with location.copied(name) as path, location.doing(f"read {name}"):
        if hash_file(path) != (part.sha256, part.bytes):
            raise ArchiveError(
                f"the archive {location.url}: {name} is not as it was written: "
                f"its SHA-256 is not that of {manifest_file(part.name)}"
            )
        with open_part(path, ALIKE) as file:
            for group in _groups(file):
                mask = group.has(rows)
                places = pc.subtract(rows.filter(mask), group.first)
                if len(places):
                    table = file.read_row_group(group.number, use_threads=False).take(places)
                    yield from zip(ranks.filter(mask).to_pylist(), to_versions(table), strict=True)


def _find(
    catalog: Catalog,
    query: LedgerQuery,
    columns: Sequence[str],
    unreadable: dict[str, str] | None = None,
    without: Collection[str] = (),
) -> Any:  # noqa: ANN401
    """Find the rows whose key, id and server are asked for, with the number of their part and their place in there.

    A version has several if it was restored and deleted again; they are in the order in which they were written.
    """
    same = _same(query)
    columns = [*dict.fromkeys((*columns, *same, *_filtered_columns(query)))]
    numbers = [number for number, part in enumerate(catalog.parts) if part.name not in without]
    found = _each_part(lambda number: _scan(catalog, number, query, columns), catalog, numbers, query, unreadable)
    rows = _without_spared(_concat(found, columns), catalog)
    return _without_superseded(_asked(rows, LedgerQuery(servers=query.servers)), same, catalog)


def _same(query: LedgerQuery) -> tuple[str, ...]:
    """The columns by which rows are of the same version, so that the last one counts."""
    # A version may have been offloaded again, with other data: what stands in their place names the run.
    return ("id", "run_id") if query.offloaded else ("id",)


def _each_part(
    read: Callable[[int], list[Any]],
    catalog: Catalog,
    numbers: Iterable[int],
    query: LedgerQuery,
    unreadable: dict[str, str] | None,
) -> list[list[Any]]:
    """Read some parts, several at once. One that cannot be read is named, or raised, if it may have what is asked for."""

    def attempt(number: int) -> list[Any]:
        try:
            return read(number)
        except ArchiveError as error:
            part = catalog.parts[number]
            if _may_be_in(part, catalog, query):
                if unreadable is None:
                    raise
                unreadable[part.name] = (
                    f"{error}: its {part.rows:,} versions cannot be read. "
                    f"Put it back, or remove {manifest_file(part.name)} to do without them"
                )
            return []

    return at_once(catalog.location, attempt, numbers)


def _tell_lost(catalog: Catalog, query: LedgerQuery, unreadable: dict[str, str] | None) -> None:
    """Name the parts without a manifest that may have what is asked for, or raise the first one."""
    lost = [
        name for name, run in catalog.lost.items() if _may_be_of({run.run_id, run.run_name}, run.server, run.ended_at, query)
    ]
    # Whoever does without the versions of one has removed the rest of it, too.
    there = {f"{DATA}/{file}" for file in catalog.location.names(DATA)} if lost else ()
    for name in lost:
        if part_file(name) in there:
            problem = f"the archive {catalog.location.url}: {without_manifest(name)}"
            if unreadable is None:
                raise ArchiveError(problem)
            unreadable[name] = problem


def _may_be_in(part: PartManifest, catalog: Catalog, query: LedgerQuery) -> bool:
    """Whether a part may have what is asked for, as far as the manifests tell."""
    names = {run.run_name for run in catalog.runs if run.run_id == part.run_id}
    return _may_be_of({part.run_id, *names} if names else (), part.server, part.written_at, query)


def _may_be_of(names: Collection[str], server: str, last: datetime, query: LedgerQuery) -> bool:
    """Whether a run may have deleted what is asked for: by its id and names, if known, and when it was last at work."""
    return (
        not (query.runs and names and {*names}.isdisjoint(query.runs))
        and not (query.servers and server not in query.servers)
        and (query.since is None or last >= query.since - CLOCK_SKEW)
    )


def _scan(catalog: Catalog, number: int, query: LedgerQuery, columns: list[str]) -> list[Any]:
    """Read the rows of a part of which key and id are asked for."""
    part = catalog.parts[number]
    if part.offloaded != query.offloaded:
        return []
    if query.keys and not _may_have(part.first_key, part.last_key, query.keys):
        return []
    with _opened(catalog, number) as file:
        groups = [group for group in _groups(file) if _group_may_have(file, group, query.keys)]
        rows = _read(file, number, groups, columns)
    if query.keys:
        rows = rows.filter(pc.is_in(rows["key"], pa.array(_matching(rows["key"], query.keys), pa.string())))
    if query.ids:
        rows = rows.filter(pc.is_in(rows["id"], pa.array([str(each) for each in query.ids], pa.string())))
    return [rows]


def _complete(catalog: Catalog, number: int, rows: Any, columns: Sequence[str]) -> list[Any]:  # noqa: ANN401
    """Read some rows of a part again, with other columns."""
    with _opened(catalog, number) as file:
        groups = [group for group in _groups(file) if pc.any(group.has(rows)).as_py()]
        table = _read(file, number, groups, columns)
    return [table.filter(pc.is_in(table[_ROW], rows))]


@contextmanager
def _opened(catalog: Catalog, number: int) -> Iterator[Any]:
    location, part = catalog.location, catalog.parts[number]
    name = part_file(part.name)
    with location.doing(f"read {name}"), location.open(name, part.bytes) as source, open_part(source) as file:
        if file.metadata.num_rows != part.rows:
            raise ArchiveError(f"the archive {location.url}: {name} has {file.metadata.num_rows} rows instead of {part.rows}")
        yield file


class _Group(NamedTuple):
    """A row group: its number, that of its first row in the part, and that of the first row behind it."""

    number: int
    first: int
    end: int

    def has(self, rows: Any) -> Any:  # noqa: ANN401
        """Which rows of the part are in it."""
        return pc.and_(pc.greater_equal(rows, self.first), pc.less(rows, self.end))


def _groups(file: Any) -> Iterator[_Group]:  # noqa: ANN401
    first = 0
    for number in range(file.num_row_groups):
        end = first + file.metadata.row_group(number).num_rows
        yield _Group(number, first, end)
        first = end


def _read(file: Any, part: int, groups: Sequence[_Group], columns: Sequence[str]) -> Any:  # noqa: ANN401
    """Read the rows of some groups, by one call, with the number of their part and their places in there."""
    table = file.read_row_groups([group.number for group in groups], columns=[*columns], use_threads=False).select([*columns])
    # Somebody may have written it anew with types of their own.
    table = table.cast(pa.schema([*map(SCHEMA.field, columns)]))
    table = table.append_column(_PART, pa.repeat(pa.scalar(part, pa.int32()), len(table)))
    return table.append_column(_ROW, pa.chunked_array([pa.arange(group.first, group.end) for group in groups], pa.int64()))


def _concat(found: Sequence[Sequence[Any]], columns: Sequence[str]) -> Any:  # noqa: ANN401
    return pa.concat_tables([_schema(columns).empty_table(), *(table for tables in found for table in tables)])


def _schema(columns: Sequence[str]) -> Any:  # noqa: ANN401
    return pa.schema([*map(SCHEMA.field, columns), pa.field(_PART, pa.int32()), pa.field(_ROW, pa.int64())])


def _filtered_columns(query: LedgerQuery) -> list[str]:
    """The columns by which a query chooses, besides key and id."""
    filters = {
        "run_id": query.runs,
        "run_name": query.runs,
        "rules": query.rules,
        "policy": query.policies,
        "server": query.servers,
        "decided_at": query.since or query.until,
    }
    return [name for name, asked in filters.items() if asked]


def _group_may_have(file: Any, group: _Group, globs: Sequence[str]) -> bool:  # noqa: ANN401
    """Whether a key in a group may match, as far as its statistics tell."""
    known = file.metadata.row_group(group.number).column(_KEY).statistics if globs else None
    return known is None or _may_have(known.min, known.max, globs)


def _may_have(first: str | None, last: str | None, globs: Sequence[str]) -> bool:
    """Whether a key may match that is not before the first one and not behind the last one; None is not known."""
    if first is None or last is None:
        return True
    for glob in globs:
        fixed = _WILDCARD.split(glob, maxsplit=1)[0]
        if first[: len(fixed)] <= fixed <= last[: len(fixed)] and (fixed != glob or first <= glob <= last):
            return True
    return False


def _matching(keys: Any, globs: Sequence[str]) -> list[str]:  # noqa: ANN401
    """Return the keys that match, of those that are there."""
    patterns = [glob for glob in globs if _WILDCARD.search(glob)]
    found = [glob for glob in globs if glob not in patterns]
    if patterns:
        matches = re.compile("|".join(map(translate, patterns))).match
        found += [key for key in pc.unique(keys).to_pylist() if key is not None and matches(key)]
    return found


def _without_spared(rows: Any, catalog: Catalog) -> Any:  # noqa: ANN401
    """Leave out what a run archived, and then did not delete."""
    spared = catalog.spared
    some = pc.is_in(rows["id"], pa.array({each for ids in spared.values() for each in ids}, pa.string()))
    places = pc.indices_nonzero(some)
    pairs = zip(rows[_PART].take(places).to_pylist(), rows["id"].take(places).to_pylist(), strict=True)
    names = [part.name for part in catalog.parts]
    gone = [
        place for place, (part, each) in zip(places.to_pylist(), pairs, strict=True) if each in spared.get(names[part], ())
    ]
    if not gone:
        return rows
    return rows.filter(pc.invert(pc.is_in(pa.arange(0, len(rows)), pa.array(gone, pa.int64()))))


def _without_superseded(rows: Any, same: Sequence[str], catalog: Catalog) -> Any:  # noqa: ANN401
    """Leave out what a killed run archived and a later one archived again: only that one has deleted it."""
    is_last = _is_last(rows, same)
    ended = {run.run_id for run in catalog.runs}
    of_ended = [number for number, part in enumerate(catalog.parts) if part.run_id in ended]
    return rows.filter(pc.or_(is_last, pc.is_in(rows[_PART], pa.array(of_ended, pa.int32()))))


def _last_of_each(rows: Any, same: Sequence[str]) -> Any:  # noqa: ANN401
    """Leave the last row of each version."""
    return rows.filter(_is_last(rows, same))


def _is_last(rows: Any, same: Sequence[str]) -> Any:  # noqa: ANN401
    """Which rows are the last of their version. Parts are numbered in the order in which they were written."""
    places = pa.arange(0, len(rows))
    if pc.count_distinct(rows["id"]).as_py() == len(rows):
        return pc.is_valid(places)
    last = rows.select(same).append_column(_ORDER, places).group_by([*same]).aggregate([(_ORDER, "max")])[f"{_ORDER}_max"]
    return pc.is_in(places, last)


def _has_payload(rows: Any, catalog: Catalog) -> Any:  # noqa: ANN401
    """Which rows are of parts with payloads."""
    with_payload = [number for number, part in enumerate(catalog.parts) if part.has_payloads]
    return pc.is_in(rows[_PART], pa.array(with_payload, pa.int32()))


def _asked(rows: Any, query: LedgerQuery) -> Any:  # noqa: ANN401
    """Leave the rows to which all else of a query applies."""
    masks = []
    if query.runs:
        masks.append(pc.or_(*(pc.is_in(rows[name], pa.array(query.runs, pa.string())) for name in ("run_id", "run_name"))))
    for name, asked in (("server", query.servers), ("policy", query.policies)):
        if asked:
            masks.append(pc.is_in(rows[name], pa.array(asked, pa.string())))
    if query.since is not None:
        masks.append(pc.greater_equal(rows["decided_at"], pa.scalar(query.since, pa.timestamp("us", "UTC"))))
    if query.until is not None:
        masks.append(pc.less_equal(rows["decided_at"], pa.scalar(query.until, pa.timestamp("us", "UTC"))))
    if query.rules:
        rules = rows["rules"].combine_chunks()
        found = pc.is_in(pc.list_flatten(rules), pa.array(query.rules, pa.string()))
        with_rule = pc.list_parent_indices(rules).filter(found)
        masks.append(pc.is_in(pa.arange(0, len(rows)), with_rule.cast(pa.int64())))
    return rows.filter(reduce(pc.and_, masks)) if masks else rows
