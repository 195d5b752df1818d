"""Reads what the Prefect API answers, rows as JSON: versions without their payloads, collections, runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar
from uuid import UUID

import orjson
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.control import HOLD, select_control
from prefect_artifact_retention.policies.model import Versions
from prefect_artifact_retention.stores.archive.model import CollectionRow
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF, Collection, StoredVersion

TESTED_VERSIONS = ((3, 8), (3, 9))
"""The oldest and the newest Prefect that this package is tested with (`make test-compat`)."""

TESTED = " to ".join(dict.fromkeys(".".join(map(str, version)) for version in TESTED_VERSIONS))

MAX_QUOTED_CHARS = 40
"""A longer answer is cut off in messages."""

TERMINAL_STATE_TYPES = frozenset(state.value for state in TERMINAL_STATES)
NO_METADATA: Mapping[str, str] = {}

METADATA_WORD = "retention"
"""What the names of all metadata entries that control retention contain, in lower or upper case."""

DELETE_CHARACTER = "\x7f"

Item = TypeVar("Item")
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class FlowRun:
    """A flow run.

    Attributes:
        id: The id.
        name: The name.
        started: When it started, by the server's clock; when it was created, if it has not started.
        finished: Whether it is in a terminal state.
        parameters: The parameters of the flow.
    """

    id: UUID
    name: str
    started: datetime
    finished: bool
    parameters: Mapping[str, Any]


def _as_known(read: Callable[[Row], Item]) -> Callable[[Row], Item]:
    """Wrap a function that reads a row: a row of an unknown shape, as of another Prefect version, raises `StoreError`."""

    def read_known(row: Row) -> Item:
        try:
            return read(row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__} {str(error)[:MAX_QUOTED_CHARS]}"
            raise StoreError(f"the server lists an item that cannot be read as a row of Prefect {TESTED}: {what}") from error

    return read_known


@_as_known
def read_run(row: Mapping[str, Any]) -> tuple[UUID, datetime, bool]:
    """Read the id of a run, the time of its creation, and whether it is in a terminal state."""
    return UUID(row["id"]), datetime.fromisoformat(row["created"]), row["state_type"] in TERMINAL_STATE_TYPES


@_as_known
def read_flow_run(row: Mapping[str, Any]) -> FlowRun:
    """Read a flow run."""
    return FlowRun(
        id=UUID(row["id"]),
        name=row["name"],
        started=datetime.fromisoformat(row["start_time"] or row["created"]),
        finished=row["state_type"] in TERMINAL_STATE_TYPES,
        parameters=row["parameters"],
    )


@_as_known
def read_collection(row: Mapping[str, Any]) -> Collection:
    """Read a collection."""
    updated = datetime.fromisoformat(row["updated"])
    return Collection(row["key"], UUID(row["latest_id"]), row["type"], copied_from(row) is not None, updated)


def copied_from(row: Mapping[str, Any]) -> object:
    """Return of which version a placeholder is a copy; None of what is none, or has a hold that a person has put on it."""
    metadata = row_metadata(row) or {}
    return metadata.get(PLACEHOLDER_OF) if metadata.get(HOLD) is None else None


@_as_known
def read_histories(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Versions]]:
    """Read the versions of several keys, whose rows are sorted by key; a repeated row counts once."""
    return [
        (key, Versions(key, read_columns([*{row["id"]: row for row in some}.values()])))
        for key, some in groupby(rows, itemgetter("key"))
    ]


def read_columns(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Read versions into columns, as `Versions` takes them, with the size of their data instead of the data."""
    return [
        [UUID(row["id"]) for row in rows],
        [datetime.fromisoformat(row["created"]) for row in rows],
        [datetime.fromisoformat(row["updated"]) for row in rows],
        [row["type"] for row in rows],
        [_size(row["data"]) for row in rows],
        [_optional_id(row["flow_run_id"]) for row in rows],
        [_optional_id(row["task_run_id"]) for row in rows],
        [control_metadata(row_metadata(row)) for row in rows],
    ]


@_as_known
def read_version(row: Mapping[str, Any]) -> Version:
    """Read a version, with the size of its data instead of the data."""
    version_id, *others = (column[0] for column in read_columns([row]))
    return Version(version_id, row["key"], *others)


@_as_known
def read_stored(row: Mapping[str, Any]) -> StoredVersion:
    """Read a version with its payload. Its state is what a check compares."""
    version = read_version(row)
    return StoredVersion(
        id=version.id,
        flow_run_id=version.flow_run_id,
        task_run_id=version.task_run_id,
        key=version.key,
        type=version.type,
        description=row["description"],
        created=version.created,
        updated=version.updated,
        data=json.dumps(row["data"]),
        metadata=json.dumps(row_metadata(row)),
        size=version.size,
        state=state_of(version),
    )


def read_without_data(row: Mapping[str, Any]) -> StoredVersion:
    """Read a version without what the ledger does not have of it."""
    return read_stored(row)._replace(data=None, metadata=None, description=None)


@_as_known
def read_collection_row(row: Mapping[str, Any]) -> CollectionRow:
    """Read what a collection has that is no copy of its latest version."""
    return CollectionRow(**{name: row[name] for name in CollectionRow.model_fields})


def state_of(version: Version) -> object:
    """Return what shows that a version has changed: the server dates each update, and what somebody does by hand seldom."""
    return version.updated, version.size, dict(version.metadata)


def row_metadata(row: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """Return the metadata of an artifact or a collection; a name without Prefect's underscore is understood, too."""
    return row.get("metadata_", row.get("metadata"))


def control_metadata(metadata: Any) -> Mapping[str, str]:  # noqa: ANN401 - JSON
    """Select what controls retention from an artifact's metadata, and whether it is a placeholder.

    Metadata that is no object counts as an invalid hold.
    """
    if not metadata:
        return NO_METADATA
    if not isinstance(metadata, dict):
        return {HOLD: "(metadata that is no object)"}
    placeholder = {PLACEHOLDER_OF: metadata[PLACEHOLDER_OF]} if PLACEHOLDER_OF in metadata else NO_METADATA
    return {**select_control(metadata), **placeholder} or NO_METADATA


def load_control_metadata(metadata: str | None) -> Mapping[str, str]:
    """Select likewise from the text of metadata, if it may have retention entries; what is no JSON is no object."""
    if metadata is None or METADATA_WORD not in metadata.lower():
        return NO_METADATA
    try:
        return control_metadata(json.loads(metadata))
    except (ValueError, RecursionError):
        return control_metadata(metadata)


def _size(data: object) -> int:
    """Return the length of the text that Prefect's server stores, which is that of `json.dumps`."""
    if isinstance(data, str) and data.isascii() and DELETE_CHARACTER not in data:
        # Of such a text, orjson writes the same, and takes a tenth of the time. It escapes the last character of ASCII.
        return len(orjson.dumps(data))
    return len(json.dumps(data))


def _optional_id(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)
