"""Restores in the database: all versions of a key in one transaction, and many small keys together."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
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
from prefect_artifact_retention.tasks.restore_plan import (
    ArchivedStream,
    KeyRestore,
    Restore,
    fits,
    missing_entries,
    read_entries,
    read_key,
)

LOGGER = logging.getLogger(__name__)

MAX_CONCURRENT_REQUESTS = 4
"""Keys that are put on hold at once. More make no server faster."""

MAX_LISTED = 5
"""Ids in one message, at most."""


async def restore_in_database(
    restore: Restore, database: DatabaseStore, batch: Sequence[KeyRestore], stream: ArchivedStream
) -> None:
    """Restore a batch of keys. What fails is in their reports, and not raised.

    Raises:
        LostConnectionError: The database is out of reach.
    """
    await _Inserter(restore, database).insert(batch, stream)


@dataclass(frozen=True, slots=True)
class _Inserter:
    """Inserts the versions of some keys."""

    restore: Restore
    database: DatabaseStore

    async def insert(self, batch: Sequence[KeyRestore], stream: ArchivedStream) -> None:
        """Restore a batch of keys in one transaction; or, if that fails, each in its own."""
        if not (held := await hold_keys(self.restore, batch)):
            return
        if not stream.is_broken:
            try:
                if not fits(batch):
                    await self._insert_together(held, _once(stream.slices(held)))
                    return
                versions = [version async for some in stream.slices(held) for version in some]
                if len(versions) == sum(len(each.ids) for each in held):
                    await self._insert_together(held, _kept(versions))
                    return
            except LostConnectionError:
                raise
            except StoreError:
                # A part of the archive is damaged, or one of the versions is refused: each key finds out for itself.
                LOGGER.debug("A batch of %d keys could not be restored together", len(batch), exc_info=True)
        for each in held:
            await self._insert_alone(each)

    async def _insert_alone(self, each: KeyRestore) -> None:
        """Restore a key in a transaction of its own, in which its versions are read."""
        try:
            await self._insert_together([each], lambda: read_key(self.restore, each))
        except LostConnectionError:
            raise
        except StoreError as error:
            each.report.error = await self._explain(each, error)

    async def _insert_together(
        self, batch: Sequence[KeyRestore], given: Callable[[], AsyncIterator[Sequence[ArchivedVersion]]]
    ) -> None:
        """Restore keys in one transaction, with versions that are given as often as it is repeated."""
        unkeyed = next((each for each in batch if each.key is None), None)
        hold = self.restore.hold(unkeyed) if unkeyed else None
        read: Counter[str | None] = Counter()
        unheld: list[UUID] = []

        async def slices() -> AsyncIterator[Sequence[ArchivedVersion]]:
            unheld.clear()
            read.clear()
            async for some in given():
                read.update(version.key for version in some)
                yield [_held(version, hold, unheld) for version in some] if hold else some

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
        if unkeyed and hold and unkeyed.report.restored > len(unheld):
            unkeyed.report.held, unkeyed.report.held_until = hold.describe(), hold.until
        if unheld:
            listed = ", ".join(map(str, unheld[:MAX_LISTED]))
            self.restore.report.warnings.append(f"not on hold, because their metadata are no object: {listed}")

    async def _explain(self, each: KeyRestore, error: StoreError) -> str:
        """Describe why a key could not be restored, with the versions that PostgreSQL refuses."""
        if self.database.is_sqlite or isinstance(error, ArchiveError):
            return str(error)
        unfit: list[UUID] = []
        try:
            async for versions in read_key(self.restore, each):
                unfit += unfit_for_postgresql(versions)
        except StoreError:
            return str(error)
        if not unfit:
            return str(error)
        more = f" and {len(unfit) - MAX_LISTED:,} more" if len(unfit) > MAX_LISTED else ""
        named = ", ".join(map(str, unfit[:MAX_LISTED])) + more
        return f"PostgreSQL takes no NaN and nothing else that is no JSON, as in version {named}: {error}"


async def hold_keys(restore: Restore, batch: Sequence[KeyRestore]) -> list[KeyRestore]:
    """Put keys on hold before anything of them is restored. Return those for which that succeeded."""

    async def hold(each: KeyRestore) -> None:
        if each.key is None or not (wanted := restore.hold(each)):
            return
        try:
            placed = await restore.holds.extend_key(each.key, wanted)
        except StoreError as error:
            each.report.error = f"nothing is restored, because it could not be held: {error}"
        else:
            each.report.held, each.report.held_until = placed.describe(), placed.until

    await for_each(batch, hold, MAX_CONCURRENT_REQUESTS)
    return [each for each in batch if not each.report.error]


def _kept(versions: Sequence[ArchivedVersion]) -> Callable[[], AsyncIterator[Sequence[ArchivedVersion]]]:
    """Give versions that are in memory, any number of times."""

    async def slices() -> AsyncIterator[Sequence[ArchivedVersion]]:
        yield versions

    return slices


def _once(slices: AsyncIterator[Sequence[ArchivedVersion]]) -> Callable[[], AsyncIterator[Sequence[ArchivedVersion]]]:
    """Give what can be read once."""
    given = False

    def give() -> AsyncIterator[Sequence[ArchivedVersion]]:
        nonlocal given
        if given:
            raise ArchiveError("the versions have to be read again")
        given = True
        return slices

    return give


def _held(version: ArchivedVersion, hold: Hold, unheld: list[UUID]) -> ArchivedVersion:
    """Put a hold into the metadata of an artifact without a key."""
    if version.key is not None:
        return version
    metadata = read_entries(version)
    if metadata is None:
        unheld.append(version.id)
        return version
    entries = missing_entries(version, metadata, hold)
    return version._replace(metadata=json.dumps(metadata | entries)) if entries else version
