"""What a run needs of the place where versions live: the Prefect API, or the database behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.policies.model import Versions

PLACEHOLDER_OF = "artifact-retention-copy-of"
"""In the metadata of a version that was posted to be deleted at once, so that the server names another latest one: the id of
the vanished one, of which it is a copy."""

Mark = tuple[int, int]
"""The state of all versions of a key: the same only as long as none of them comes, goes or changes."""


@dataclass(frozen=True, slots=True)
class Collection:
    """All versions of one key, as the server sums them up: its latest version's id and type.

    Attributes:
        key: Their key.
        latest_id: The latest of them.
        type: Its type.
        is_placeholder: Its latest version was posted by a repair to be deleted at once; beside others, it is left over.
    """

    key: str
    latest_id: UUID
    type: str | None
    is_placeholder: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """The versions of one key.

    Incomplete if rows came and went so fast that no listing agreed with the count, or, with an error, if the server fails to
    show them. Marked where the store can tell whether anything has changed since.
    """

    key: str
    versions: Versions
    complete: bool = True
    error: str = ""
    mark: Mark | None = None


class KeptVersionError(StoreError):
    """The version has to stay by now, as the latest with others left, for a hold or for its run; it was not deleted."""


class OutdatedSnapshotError(StoreError):
    """What a deletion rests on is too old by now to send it, or to send it again. What became of it is unknown."""


class Store(Protocol):
    """Reads and deletes versions. Every method raises `StoreError` where that cannot be done."""

    async def collections(self, keys: Sequence[str], unreadable: list[str | None] | None = None) -> list[Collection]:
        """List the collections of these exact keys.

        Args:
            keys: The keys.
            unreadable: Gains, for each collection that the server fails to show, the key before it (None: it is the first).
                Without it, such a collection is an error.
        """
        ...

    async def all_collections(self, unreadable: list[str | None]) -> tuple[list[Collection], int]:
        """List all collections in the order of their keys, and count those that exist and could not be seen."""
        ...

    def histories(self, keys: Sequence[str]) -> AsyncGenerator[list[History]]:
        """List the versions of many keys, some keys at a time, in the order given; a key without any has an empty history."""
        ...

    async def history(self, key: str, expected: int = 0) -> History:
        """List the versions of one key.

        Args:
            key: The key.
            expected: How many it has as far as is known: a listing of at least as many is not held against the server's count.
        """
        ...

    async def count_unkeyed(self) -> int:
        """Count the artifacts without a key, but for those in which Prefect keeps the results of runs."""
        ...

    def unkeyed(self, expected: int, unreadable: list[str | None]) -> AsyncGenerator[list[Version]]:
        """List the artifacts that `count_unkeyed` counts, some at a time.

        Args:
            expected: How many they are.
            unreadable: Gains one item for each artifact that the server fails to show.
        """
        ...

    async def versions(self, ids: Iterable[UUID]) -> list[Version]:
        """Read the versions that still exist of those named."""
        ...

    async def all_exist(self, ids: Sequence[UUID]) -> bool:
        """Tell whether all of these versions still exist."""
        ...

    async def unfinished(self, flow_runs: Iterable[UUID], task_runs: Iterable[UUID]) -> dict[UUID, datetime]:
        """Tell which of these runs exist and are not in a terminal state, and since when they exist."""
        ...

    def reserve_slot(self) -> AbstractAsyncContextManager[None]:
        """Let nothing that is asked in this context wait for what else the run asks."""
        ...

    async def delete(
        self, version_id: UUID, *, is_latest: bool = False, start_attempt: Callable[[], bool] | None = None
    ) -> bool:
        """Delete one version. True if this deleted it, False if it had already gone.

        Args:
            version_id: The version.
            is_latest: It is the latest of its key, was condemned as such, and may go if it is the last one.
            start_attempt: Asked right before each attempt to delete it by a request.

        Raises:
            KeptVersionError: It has come to be kept since it was judged; only a store with transactions is able to tell.
            OutdatedSnapshotError: It may not be sent, or not again.
        """
        ...

    async def dangling(self, keys: Sequence[str]) -> list[str]:
        """Tell which of these collections name a latest version that does not exist, or that a mending should have removed."""
        ...

    async def repair(self, key: str) -> bool:
        """Give a collection whose latest version has vanished one again, or finish that; False if there is nothing to do."""
        ...
