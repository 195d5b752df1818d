"""Restores through the API: the versions of a key are created anew, one after the other, from the oldest to the newest."""

from __future__ import annotations

import json
from contextlib import aclosing
from datetime import UTC

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.stores.archive.model import ArchivedVersion
from prefect_artifact_retention.stores.reposting import RESTORED_CREATED, RESTORED_FROM
from prefect_artifact_retention.tasks.restore_plan import KeyRestore, Restore, missing_entries, read_archived, read_entries


async def restore_through_api(restore: Restore, each: KeyRestore) -> None:
    """Create the versions of a key anew, from the oldest to the newest."""
    hold = restore.hold(each)
    target = restore.target(each.key)
    is_doubtful = False
    read = 0
    try:
        async with aclosing(read_archived(restore.archive, each.ids)) as reading:
            async for versions in reading:
                read += len(versions)
                for version in versions:
                    metadata = _metadata(version, hold)
                    is_doubtful |= not await restore.api.repost(version, target, _description(version), metadata)
                    each.report.restored += 1
                    await restore.notify(1)
        each.report.unavailable += len(each.ids) - read
    except StoreError as error:
        each.report.error = str(error)
    if is_doubtful:
        try:
            await restore.api.remove_duplicates(target)
        except StoreError as error:
            each.report.error = each.report.error or f"some versions may be there twice: {error}"
    if hold and each.report.restored:
        each.report.held, each.report.held_until = hold.describe(), hold.until


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
