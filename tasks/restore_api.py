"""Restores through the API: the versions of a key are created anew, one after the other, from the oldest to the newest."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import UTC

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError
from prefect_artifact_retention.stores.concurrency import for_each
from prefect_artifact_retention.stores.reposting import RESTORED_CREATED, RESTORED_FROM, is_refusal
from prefect_artifact_retention.tasks.restore_plan import (
    ArchivedStream,
    KeyRestore,
    Restore,
    check_is_gone,
    fits,
    missing_entries,
    read_entries,
    read_key,
)

LOGGER = logging.getLogger(__name__)

MAX_REFUSED = 5
"""Versions in the error of a key that the server refuses, at most. With more, nobody reads them."""

MAX_CONCURRENT_KEYS = 4
"""Keys that are restored at once. More make no server faster."""


async def restore_through_api(restore: Restore, batch: Sequence[KeyRestore], stream: ArchivedStream) -> None:
    """Restore a batch of keys, several at once. What fails is in their reports, and not raised."""
    if not fits(batch) and not stream.is_broken:
        for each in batch:
            await _repost(restore, each, stream.slices([each]))
        return
    read: defaultdict[str | None, list[ArchivedVersion]] = defaultdict(list)
    try:
        if stream.is_broken:
            raise ArchiveError("a part of the archive is damaged")  # noqa: TRY301 - as when it is found out
        async for versions in stream.slices(batch):
            for version in versions:
                read[version.key].append(version)
    except ArchiveError:
        LOGGER.debug("A batch of %d keys could not be read together", len(batch), exc_info=True)
        read.clear()

    async def repost(each: KeyRestore) -> None:
        is_read = len(read[each.key]) == len(each.ids)
        await _repost(restore, each, _one(read[each.key]) if is_read else read_key(restore, each))

    await for_each(batch, repost, MAX_CONCURRENT_KEYS)


async def _one(versions: list[ArchivedVersion]) -> AsyncIterator[list[ArchivedVersion]]:
    yield versions


async def _repost(restore: Restore, each: KeyRestore, slices: AsyncIterator[Sequence[ArchivedVersion]]) -> None:
    """Create the versions of a key anew, from the oldest to the newest."""
    hold = restore.hold(each)
    target = restore.target(each.key)
    is_doubtful = False
    read = 0
    refused: list[str] = []
    try:
        if target is not None and target == each.key:
            # A producer may have written since the plan: its versions stay the latest ones.
            await check_is_gone(restore, target, await restore.api.restored(target))
        async for versions in slices:
            read += len(versions)
            for version in versions:
                try:
                    is_doubtful |= not await restore.api.repost(
                        version, target, _description(version), _metadata(version, hold)
                    )
                    each.report.restored += 1
                except StoreError as error:
                    refused.append(_refusal(version, error))
                await restore.notify(1)
        each.report.unavailable += len(each.ids) - read
    except StoreError as error:
        each.report.error = str(error)
    if refused:
        each.report.error = "; ".join(filter(None, [*_some(refused), each.report.error]))
    if is_doubtful:
        try:
            await restore.api.remove_duplicates(target)
        except StoreError as error:
            each.report.error = each.report.error or f"some versions may be there twice: {error}"
    if hold and each.report.restored:
        each.report.held, each.report.held_until = hold.describe(), hold.until


def _refusal(version: ArchivedVersion, error: StoreError) -> str:
    """Describe that the server refuses a version. Raises the error if it is none of this version."""
    if not is_refusal(error):
        raise error
    return f"version {version.id} is not restored: {error}"


def _some(refused: Sequence[str]) -> list[str]:
    more = [f"and {len(refused) - MAX_REFUSED:,} more"] if len(refused) > MAX_REFUSED else []
    return [*refused[:MAX_REFUSED], *more]


def _description(version: ArchivedVersion) -> str:
    created = f"{version.created.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    note = f"Restored from version {version.id}, created {created}"
    return f"{version.description}\n\n{note}" if version.description else note


def _metadata(version: ArchivedVersion, hold: Hold | None) -> dict[str, str]:
    """Return the metadata of a new version: those of the old one, what it restores, and the hold."""
    metadata = read_entries(version) or {}
    # Of a server of another version, or written by hand.
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    texts |= {RESTORED_FROM: str(version.id), RESTORED_CREATED: version.created.astimezone(UTC).isoformat()}
    return texts | (missing_entries(version, texts, hold) if hold else {})
