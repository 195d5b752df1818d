"""The protocol of a store, from which a plan is made: through the Prefect API, or from the database behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.model import Versions
from prefect_artifact_retention.stores.archive.model import CollectionRow

PLACEHOLDER_OF = "artifact-retention-copy-of"
"""Metadata entry of a placeholder: a version that a repair posts and deletes at once, so that the server names a new latest
version. Its value is the id of the vanished version whose data the placeholder has."""

Mark = tuple[int, int]
"""Fingerprint of all versions of a key; it differs once a version is created, deleted or changed."""


@dataclass(frozen=True, slots=True)
class Collection:
    """The server's row for one key, which names the latest version.

    Attributes:
        key: The key.
        latest_id: The id of the latest version.
        type: The type of the latest version.
        is_placeholder: Whether the latest version is a placeholder. If the key has other versions, a repair was interrupted.
        updated: When the row was last changed, by an update of the latest version or by another latest version. It tells two
            states of a collection apart, and is not compared: what it would show of the versions, their marks do.
    """

    key: str
    latest_id: UUID
    type: str | None
    is_placeholder: bool = False
    updated: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class History:
    """The versions of one key, as a store has listed them.

    Attributes:
        key: The key.
        versions: The versions.
        complete: False if versions may be missing: they changed while they were listed, or the server failed to show them.
        error: Why the server failed to show them.
        mark: The state of the versions, if the store has marks.
    """

    key: str
    versions: Versions
    complete: bool = True
    error: str = ""
    mark: Mark | None = None


class StoredVersion(NamedTuple):
    """A version with all that a store has of it, for the archive.

    Attributes:
        id: Its id, and so on: the columns of the table.
        data: The text of its data as JSON; None for SQL's NULL, and if it was not asked for.
        metadata: The text of its metadata, likewise; and its description.
        size: The bytes of its data.
        state: Differs once the version is changed. Of two states, only whether they are equal means anything.
    """

    id: UUID
    flow_run_id: UUID | None
    task_run_id: UUID | None
    key: str | None
    type: str | None
    description: str | None
    created: datetime
    updated: datetime
    data: str | None
    metadata: str | None
    size: int
    state: object


class Copies(NamedTuple):
    """What was read for the archive.

    Attributes:
        columns: The versions by columns, in the order of `StoredVersion`: there may be millions.
        collections: The rows of collections.
    """

    columns: Sequence[Sequence[Any]]
    collections: Sequence[CollectionRow]

    @property
    def versions(self) -> Iterator[StoredVersion]:
        """The versions one by one."""
        return map(StoredVersion._make, zip(*self.columns, strict=True))


class OutdatedCheckError(StoreError):
    """A deletion was not sent, or not sent again, because the check on which it rests is too old by now.

    Attributes:
        is_sent: Whether an earlier attempt was sent, which may have succeeded.
    """

    def __init__(self, message: str, *, is_sent: bool) -> None:
        super().__init__(message)
        self.is_sent = is_sent


class RunReader(Protocol):
    """Reads the states of runs."""

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Return those of the runs that exist and are not in a terminal state, with the times of their creation."""
        ...


class Store(RunReader, Protocol):
    """Serves planning and verifying. Every method raises `StoreError` if the server or the database fails.

    Pruning is not shared: what each store needs for it is its own.
    """

    async def collections(self, keys: Sequence[str], unreadable: list[str | None] | None = None) -> list[Collection]:
        """List the collections of these exact keys.

        Args:
            keys: The keys.
            unreadable: For each collection that the server fails to show, the key before it is appended (None: it is the
                first). Without this list, such a collection is an error.
        """
        ...

    async def all_collections(self, unreadable: list[str | None]) -> tuple[list[Collection], int]:
        """List all collections in the order of their keys, and return how many more the server counts."""
        ...

    def histories(self, keys: Sequence[str]) -> AsyncGenerator[list[History]]:
        """List the versions of many keys in the order given, several keys at a time; a key may have none."""
        ...

    async def count_unkeyed(self) -> int:
        """Count the artifacts without a key, except those in which Prefect keeps the results of runs."""
        ...

    def unkeyed(self, expected: int, unreadable: list[str | None]) -> AsyncGenerator[list[Version]]:
        """List the artifacts that `count_unkeyed` counts, a page at a time.

        Args:
            expected: What `count_unkeyed` returned.
            unreadable: An item is appended for each artifact that the server fails to show.
        """
        ...

    async def payloads(self, ids: Sequence[UUID], keys: Sequence[str] = (), *, with_data: bool = True) -> Copies:
        """Read those of the versions that exist, with their payloads, and the rows of some collections.

        Args:
            ids: The versions, no more than fit into memory.
            keys: The keys of the collections.
            with_data: Whether to read data, metadata and descriptions.
        """
        ...

    async def existing(self, ids: Iterable[UUID]) -> set[UUID]:
        """Return those of the versions that exist."""
        ...

    async def dangling(self, keys: Sequence[str]) -> list[str]:
        """Return those of the keys whose collection names a latest version that does not exist, or a left-over placeholder."""
        ...

    async def uncollected(self, keys: Iterable[str]) -> list[str]:
        """Return the keys of versions that have no collection, in order.

        Args:
            keys: The keys that have one.
        """
        ...

    async def gone_runs(self, flow_runs: Iterable[UUID]) -> set[UUID]:
        """Return those of the flow runs that do not exist."""
        ...

    async def repair(self, key: str, *, to_newest: bool = False) -> bool:
        """Repair a collection whose latest version has vanished, or finish such a repair. Return False if it needs none.

        Args:
            key: The key.
            to_newest: Whether to make the newest version the latest, too, if another one is, and to create a collection that
                is missing.
        """
        ...

    async def delete_placeholders(self, key: str, ids: Sequence[UUID]) -> None:
        """Delete those of the versions that are placeholders of a key still, unless it has no other version."""
        ...
