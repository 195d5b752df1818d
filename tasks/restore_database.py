"""Restores in the database: all versions of a key in one transaction, and many small keys together."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError
from prefect_artifact_retention.stores.concurrency import for_each
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.restoration import restore_versions, unfit_for_postgresql
from prefect_artifact_retention.stores.transactions import LostConnectionError
from prefect_artifact_retention.tasks.restore_plan import KeyRestore, Restore, missing_entries, read_archived, read_entries

LOGGER = logging.getLogger(__name__)

MAX_BATCH_VERSIONS = 5_000
MAX_BATCH_BYTES = 16 * 2**20
"""Versions, and their bytes, that are in memory and go into one transaction, unless a single key has more: that is read while
it is inserted. With more, a restore takes more memory; with less, there are more transactions."""

MAX_CONCURRENT_REQUESTS = 4
"""Keys that are put on hold at once. More make no server faster."""

MAX_LISTED = 5
"""Ids in one message, at most."""


def batches(keys: Sequence[KeyRestore]) -> list[list[KeyRestore]]:
    """Group keys whose versions are restored together; one that has more than a batch has its own."""
    grouped: list[list[KeyRestore]] = []
    versions = size = 0
    for each in keys:
        if not each.ids:
            continue
        versions += len(each.ids)
        size += sum(each.sizes)
        if not grouped or versions > MAX_BATCH_VERSIONS or size > MAX_BATCH_BYTES:
            grouped.append([])
            versions, size = len(each.ids), sum(each.sizes)
        grouped[-1].append(each)
    return grouped


async def restore_in_database(restore: Restore, database: DatabaseStore, group: Sequence[Sequence[KeyRestore]]) -> None:
    """Restore some batches of keys. What fails is in their reports, and not raised.

    Raises:
        LostConnectionError: The database is out of reach.
    """
    inserter = _Inserter(restore, database)
    ids = [version_id for batch in group if _fits(batch) for each in batch for version_id in each.ids]
    async with aclosing(read_archived(restore.archive, ids)) as reading:
        stream = _Stream(reading)
        for batch in group:
            await inserter.insert(batch, stream)


def _fits(batch: Sequence[KeyRestore]) -> bool:
    """Whether the versions of a batch fit into memory."""
    return sum(sum(each.sizes) for each in batch) <= MAX_BATCH_BYTES


class _Stream:
    """Reads the versions of batches one after the other, in the order of their keys."""

    def __init__(self, reading: AsyncGenerator[list[ArchivedVersion]]) -> None:
        self._reading = reading
        self._waiting: list[ArchivedVersion] = []

    async def take(self, batch: Sequence[KeyRestore]) -> list[ArchivedVersion]:
        """Read the versions of a batch, or fewer if the archive has not all of them."""
        keys = {each.key for each in batch}
        taken: list[ArchivedVersion] = []
        while True:
            number = next((index for index, each in enumerate(self._waiting) if each.key not in keys), len(self._waiting))
            taken += self._waiting[:number]
            self._waiting = self._waiting[number:]
            if self._waiting or (following := await anext(self._reading, None)) is None:
                return taken
            self._waiting = following


@dataclass(frozen=True, slots=True)
class _Inserter:
    """Inserts the versions of some keys."""

    restore: Restore
    database: DatabaseStore

    async def insert(self, batch: Sequence[KeyRestore], stream: _Stream) -> None:
        """Restore a batch of keys in one transaction; or, if that fails, each in its own."""
        held = await self._hold(batch)
        try:
            if _fits(batch):
                versions = await stream.take(batch)
                is_whole = len(versions) == sum(len(each.ids) for each in batch)
                if is_whole:
                    await self._insert_together(held, versions)
                    return
        except LostConnectionError:
            raise
        except StoreError:
            # A part of the archive is damaged, or one of the versions is refused: each key finds out for itself.
            LOGGER.debug("A batch of %d keys could not be restored together", len(batch), exc_info=True)
        for each in held:
            await self._insert_alone(each)

    async def _insert_alone(self, each: KeyRestore) -> None:
        """Restore a key in a transaction of its own, with versions that are read in it if they are too many."""
        try:
            versions = None
            if _fits([each]):
                versions = [version async for some in read_archived(self.restore.archive, each.ids) for version in some]
            await self._insert_together([each], versions)
        except LostConnectionError:
            raise
        except StoreError as error:
            each.report.error = await self._explain(each, error)

    async def _insert_together(self, batch: Sequence[KeyRestore], versions: list[ArchivedVersion] | None) -> None:
        """Restore keys in one transaction, with versions that have been read; None if they are read in the transaction."""
        unkeyed = next((each for each in batch if each.key is None), None)
        hold = self.restore.hold(unkeyed) if unkeyed else None
        keys = {each.key for each in batch}
        read: Counter[str | None] = Counter()
        unheld: list[UUID] = []

        async def slices() -> AsyncIterator[Sequence[ArchivedVersion]]:
            unheld.clear()
            read.clear()
            if versions is not None:
                given = [version for version in versions if version.key in keys]
                read.update(version.key for version in given)
                yield [_held(version, hold, unheld) for version in given]
                return
            async for some in read_archived(self.restore.archive, [version_id for each in batch for version_id in each.ids]):
                read.update(version.key for version in some)
                yield [_held(version, hold, unheld) for version in some]

        async def insert() -> None:
            collections = self.restore.collections
            inserted = await self.database.transactions.insert(restore_versions, slices, collections)
            for each in batch:
                each.report.restored = inserted.get(each.key, 0)
                each.report.unavailable += len(each.ids) - read[each.key]
                each.report.present += read[each.key] - each.report.restored

        # Shielded with its accounting, so that what was restored is known even if the run is cancelled meanwhile.
        await shielded(insert())
        await self.restore.notify(sum(len(each.ids) for each in batch))
        if unkeyed and hold:
            unkeyed.report.held, unkeyed.report.held_until = hold.describe(), hold.until
        if unheld:
            listed = ", ".join(map(str, unheld[:MAX_LISTED]))
            self.restore.report.warnings.append(f"not on hold, because their metadata are no object: {listed}")

    async def _hold(self, batch: Sequence[KeyRestore]) -> list[KeyRestore]:
        """Put keys on hold before anything of them is restored. Return those for which that succeeded."""

        async def hold(each: KeyRestore) -> None:
            if each.key is None or not (wanted := self.restore.hold(each)):
                return
            try:
                placed = await self.restore.holds.extend_key(each.key, wanted)
            except StoreError as error:
                each.report.error = f"nothing is restored, because it could not be held: {error}"
            else:
                each.report.held, each.report.held_until = placed.describe(), placed.until

        await for_each(batch, hold, MAX_CONCURRENT_REQUESTS)
        return [each for each in batch if not each.report.error]

    async def _explain(self, each: KeyRestore, error: StoreError) -> str:
        """Describe why a key could not be restored, with the versions that PostgreSQL refuses."""
        if self.database.is_sqlite or isinstance(error, ArchiveError):
            return str(error)
        unfit: list[UUID] = []
        try:
            async for versions in read_archived(self.restore.archive, each.ids):
                unfit += unfit_for_postgresql(versions)
        except StoreError:
            return str(error)
        if not unfit:
            return str(error)
        more = f" and {len(unfit) - MAX_LISTED} more" if len(unfit) > MAX_LISTED else ""
        named = ", ".join(map(str, unfit[:MAX_LISTED])) + more
        return f"PostgreSQL takes no NaN and nothing else that is no JSON, as in version {named}: {error}"


def _held(version: ArchivedVersion, hold: Hold | None, unheld: list[UUID]) -> ArchivedVersion:
    """Put a hold into the metadata of an artifact without a key."""
    if version.key is not None or hold is None:
        return version
    metadata = read_entries(version)
    if metadata is None:
        unheld.append(version.id)
        return version
    entries = missing_entries(version, metadata, hold)
    return version._replace(metadata=json.dumps(metadata | entries)) if entries else version
