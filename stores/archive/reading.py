"""What an archive has: its ledger, and the versions with their payloads.

A part is read column by column: first the keys or ids, of row groups whose statistics allow those that are asked for; then the
other columns of groups in which some were found. Payloads are read of parts in which some were found, after they were hashed.
"""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any, Self

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from prefect_artifact_retention.policies.globs import WILDCARDS
from prefect_artifact_retention.stores.archive.location import Location
from prefect_artifact_retention.stores.archive.manifests import Catalog, at_once, manifest_file, part_file
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError, LedgerQuery, PartManifest
from prefect_artifact_retention.stores.archive.parquet import LEDGER, SCHEMA, open_part, to_versions
from prefect_artifact_retention.stores.archive.writing import hash_file

BATCH_BYTES = 8_000_000
"""Payload of a batch of versions that are read. More takes more memory, less more batches."""

HAS_PAYLOAD = "has_payload"
"""The column of a ledger that says whether a version can be restored."""

_PART, _ROW, _ORDER = "part", "row", "order"
_TO_FIND = ("id", "key", "created", "rules", "run_id", "run_name", "decided_at", "server")


def read_ledger(catalog: Catalog, query: LedgerQuery) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Read a row for each version, without its payload, in the order of deletion."""
    rows = _find(catalog, query, LEDGER).sort_by([(name, "ascending") for name in ("decided_at", "key", "created", "id")])
    with_payload = [number for number, part in enumerate(catalog.parts) if part.has_payloads]
    has_payload = pc.is_in(rows[_PART], pa.array(with_payload, pa.int32()))
    return rows.select(LEDGER).append_column(HAS_PAYLOAD, has_payload)


def read_versions(catalog: Catalog, query: LedgerQuery) -> Iterator[list[ArchivedVersion]]:
    """Read versions with their payloads, about 8 MB at a time, by key, then from old to new.

    Each row group is read once, in whatever order that is; versions that come before their turn wait in a temporary file.

    Raises:
        ArchiveError: A part is not as it was written.
    """
    order = [(name, "ascending") for name in ("key", "created", "id")]
    rows = _find(catalog, query, _TO_FIND).sort_by(order).select([_PART, _ROW])
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
    ranked = rows.append_column(_ORDER, pa.array(range(len(rows)), pa.int64()))
    for number in pc.unique(rows[_PART]).to_pylist():
        part = catalog.parts[number]
        mine = ranked.filter(pc.equal(ranked[_PART], number)).sort_by(_ROW)
        yield from _payloads_of_part(catalog.location, part, mine[_ROW], mine[_ORDER])


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
        with path.open("rb") as source:
            file = open_part(source)
            first = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                mask = pc.and_(pc.greater_equal(rows, first), pc.less(rows, first + count))
                places = pc.subtract(rows.filter(mask), first)
                if len(places):
                    table = file.read_row_group(group, use_threads=False).take(places)
                    yield from zip(ranks.filter(mask).to_pylist(), to_versions(table), strict=True)
                first += count


def _find(catalog: Catalog, query: LedgerQuery, columns: Sequence[str]) -> Any:  # noqa: ANN401
    """Find the rows of the versions that are asked for, each once, with the number of its part and its place in there."""
    parts = catalog.parts
    none = pa.table({name: pa.array([], SCHEMA.field(name).type) for name in columns})
    none = none.append_column(_PART, pa.array([], pa.int32())).append_column(_ROW, pa.array([], pa.int64()))
    found = at_once(lambda number: _scan(catalog.location, parts[number], number, query, columns), range(len(parts)))
    rows = pa.concat_tables([none, *(table for tables in found for table in tables)])
    # Only a key and an id are the same in each row of a version: whatever else is asked for, its last row decides.
    return _asked(_last_of_each(_without_spared(rows, catalog)), query)


def _scan(location: Location, part: PartManifest, number: int, query: LedgerQuery, columns: Sequence[str]) -> list[Any]:
    name = part_file(part.name)
    tables = []
    with location.doing(f"read {name}"), location.open(name, part.bytes) as source:
        file = open_part(source)
        if file.metadata.num_rows != part.rows:
            raise ArchiveError(f"the archive {location.url}: {name} has {file.metadata.num_rows} rows instead of {part.rows}")
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            places = _places(file, group, query)
            if places is None or len(places):
                table = file.read_row_group(group, columns=[*columns], use_threads=False).select([*columns])
                table = table if places is None else table.take(places)
                places = pa.array(range(count), pa.int64()) if places is None else places.cast(pa.int64())
                table = table.append_column(_PART, pa.array([number] * len(table), pa.int32()))
                tables.append(table.append_column(_ROW, pc.add(places, first)))
            first += count
    return tables


def _places(file: Any, group: int, query: LedgerQuery) -> Any:  # noqa: ANN401
    """Find the rows of a group whose key and id are asked for; None is all."""
    masks = []
    if query.keys:
        if not _may_have(file.metadata.row_group(group).column(SCHEMA.names.index("key")), query.keys):
            return ()
        keys = file.read_row_group(group, columns=["key"], use_threads=False)["key"]
        masks.append(pc.is_in(keys, pa.array(_matching(pc.unique(keys).to_pylist(), query.keys), pa.string())))
    if query.ids:
        ids = file.read_row_group(group, columns=["id"], use_threads=False)["id"]
        masks.append(pc.is_in(ids, pa.array([str(each) for each in query.ids], pa.string())))
    if not masks:
        return None
    return pc.indices_nonzero(masks[0] if len(masks) == 1 else pc.and_(*masks))


def _may_have(column: Any, globs: Sequence[str]) -> bool:  # noqa: ANN401
    """Whether a key of a row group may match, by the least and the greatest one."""
    known = column.statistics
    if known is None or not known.has_min_max:
        return True
    for glob in globs:
        fixed = glob[: next((index for index, character in enumerate(glob) if character in WILDCARDS), len(glob))]
        if known.min[: len(fixed)] <= fixed <= known.max[: len(fixed)] and (fixed != glob or known.min <= glob <= known.max):
            return True
    return False


def _matching(keys: Sequence[str | None], globs: Sequence[str]) -> list[str]:
    return [key for key in keys if key is not None and any(fnmatchcase(key, glob) for glob in globs)]


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
    return rows.filter(pc.invert(pc.is_in(pa.array(range(len(rows)), pa.int64()), pa.array(gone, pa.int64()))))


def _last_of_each(rows: Any) -> Any:  # noqa: ANN401
    """Leave the last row of each version: parts are numbered in the order in which they were written."""
    if pc.count_distinct(rows["id"]).as_py() == len(rows):
        return rows
    rows = rows.sort_by([(name, "ascending") for name in ("decided_at", _PART, _ROW)])
    rows = rows.append_column(_ORDER, pa.array(range(len(rows)), pa.int64()))
    last = rows.group_by("id").aggregate([(_ORDER, "max")])[f"{_ORDER}_max"]
    return rows.take(last).drop_columns([_ORDER])


def _asked(rows: Any, query: LedgerQuery) -> Any:  # noqa: ANN401
    """Leave the rows to which all else of a query applies."""
    masks = []
    if query.runs:
        masks.append(pc.or_(*(pc.is_in(rows[name], pa.array(query.runs, pa.string())) for name in ("run_id", "run_name"))))
    if query.servers:
        masks.append(pc.is_in(rows["server"], pa.array(query.servers, pa.string())))
    if query.since is not None:
        masks.append(pc.greater_equal(rows["decided_at"], pa.scalar(query.since, pa.timestamp("us", "UTC"))))
    if query.until is not None:
        masks.append(pc.less_equal(rows["decided_at"], pa.scalar(query.until, pa.timestamp("us", "UTC"))))
    if query.rules:
        rules = rows["rules"].combine_chunks()
        found = pc.is_in(pc.list_flatten(rules), pa.array(query.rules, pa.string()))
        with_rule = pc.list_parent_indices(rules).filter(found)
        masks.append(pc.is_in(pa.array(range(len(rows)), pa.int64()), with_rule.cast(pa.int64())))
    return rows.filter(reduce(pc.and_, masks)) if masks else rows
