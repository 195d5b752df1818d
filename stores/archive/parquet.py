"""The columns of a part as Parquet, and versions as rows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, BinaryIO

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from prefect_artifact_retention.stores.archive.model import SCHEMA_VERSION, ArchivedVersion, ArchiveError
from prefect_artifact_retention.stores.ids import read_ids

IDS = ("id", "flow_run_id", "task_run_id")
TIMES = ("created", "updated", "decided_at")
PAYLOAD = ("description", "data", "metadata")
"""The columns that only a part with payloads fills."""

_TYPES = {
    **dict.fromkeys(TIMES, pa.timestamp("us", "UTC")),
    **dict.fromkeys(("reasons", "rules"), pa.list_(pa.string())),
    "size": pa.int64(),
    "was_latest": pa.bool_(),
}
SCHEMA = pa.schema(
    # Plain text also for UUIDs and JSON: Arrow's own types for them cannot be filtered, or not be read elsewhere.
    [(name, _TYPES.get(name, pa.string())) for name in ArchivedVersion._fields],
    metadata={"prefect-artifact-retention": str(SCHEMA_VERSION)},
)
LEDGER = tuple(name for name in SCHEMA.names if name not in PAYLOAD)

_LEAVES = {"reasons": "reasons.list.element", "rules": "rules.list.element"}
_UNLIKE = {"id", "size", "was_latest", *TIMES[:2], *PAYLOAD}
"""Columns whose values differ from row to row, so that a dictionary of them is a second copy."""

ALIKE = tuple(name for name in LEDGER if name not in {*_UNLIKE, *_TYPES})
"""Texts of which a part has few, which are read faster as dictionaries."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def new_writer(file: BinaryIO) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Begin a part."""
    return pq.ParquetWriter(
        file,
        SCHEMA,
        compression="zstd",
        use_dictionary=[_LEAVES.get(name, name) for name in SCHEMA.names if name not in _UNLIKE],
        write_statistics=[_LEAVES.get(name, name) for name in LEDGER],
        write_page_checksum=True,
    )


def open_part(source: Any, dictionaries: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Open a part to read it, with its checksums; some columns as dictionaries, in which their values are not repeated.

    Raises:
        ArchiveError: Its columns are not those of this format.
    """
    # Without `pre_buffer`, each column of each row group is a request of its own to an object store.
    file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True, read_dictionary=[*dictionaries])
    if file.schema_arrow.names != SCHEMA.names:
        raise ArchiveError("its columns are not those of an archive")
    return file


def to_table(columns: Mapping[str, Sequence[Any]], *, payloads: bool) -> Any:  # noqa: ANN401
    """Make a table of versions, of which the columns are given by name.

    Raises:
        ArchiveError: A time has no zone.
    """
    if not payloads:
        columns = {**columns, **dict.fromkeys(PAYLOAD, [None] * len(columns["id"]))}
    return pa.Table.from_arrays([_to_array(name, columns[name]) for name in SCHEMA.names], schema=SCHEMA)


def _to_array(name: str, values: Sequence[Any]) -> Any:  # noqa: ANN401
    """Make a column, in ways that take a part of the time of pyarrow's own."""
    if name in IDS:
        values = [None if each is None else str(each) for each in values]
    if name in TIMES:
        try:
            return _to_times(values).cast(_TYPES[name])
        except TypeError:
            # Beside others with a zone, pyarrow would take it for UTC without a word.
            raise ArchiveError(f"a version has a time without a zone as {name}") from None
    return pa.array(values, SCHEMA.field(name).type)


def _to_times(values: Sequence[datetime]) -> Any:  # noqa: ANN401
    return pa.array([each - _EPOCH for each in values], pa.duration("us")).cast(pa.int64()).cast(pa.timestamp("us"))


def time_texts(values: Sequence[datetime]) -> list[str]:
    """Write times in UTC, as in 2000-01-01 00:00:00.000000, in a tenth of the time of Python's own."""
    texts: list[str] = _to_times(values).cast(pa.string()).to_pylist()
    return texts


def to_versions(table: Any) -> list[ArchivedVersion]:  # noqa: ANN401
    """Read versions from a table."""
    columns = {name: _values(table, name) for name in SCHEMA.names}
    return [ArchivedVersion(*row) for row in zip(*columns.values(), strict=True)]


def _values(table: Any, name: str) -> list[Any]:  # noqa: ANN401
    """Read a column, in ways that take a part of the time of pyarrow's own."""
    column = table[name].combine_chunks()
    if pa.types.is_dictionary(column.type):
        texts = column.dictionary.to_pylist()
        known = read_ids(texts) if name in IDS else texts
        return [None if place is None else known[place] for place in column.indices.to_pylist()]
    if name in IDS:
        return read_ids(column.to_pylist())
    if name in TIMES:
        return [_EPOCH + _MICROSECOND * each for each in column.cast(pa.int64()).to_pylist()]
    if pa.types.is_list(column.type):
        values = column.values.to_pylist()
        return [values[start:end] for start, end in pairwise(column.offsets.to_pylist())]
    found: list[Any] = column.to_pylist()
    return found
