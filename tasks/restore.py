"""Restores archived versions: exactly as they were in the database, as new versions through the API.

1. Plan: read the ledger of the archive, and which of the versions exist already. A preview ends here.
2. Hold: a key that gets versions back is put on hold first, or the next cleanup would delete them again. Artifacts without a
   key, and versions that are new, are held by their own metadata.
3. Restore: in the database, all versions of a key in one transaction, and many small keys together; through the API one after
   the other, in the order in which they were created.

A version that exists, or that a restore has created anew before, is left alone: whatever ends a restore in the middle, it can
be run again. A key that fails stops no other.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.tasks.collector import frozen
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.restore_api import restore_through_api
from prefect_artifact_retention.tasks.restore_data import restore_data
from prefect_artifact_retention.tasks.restore_database import restore_in_database
from prefect_artifact_retention.tasks.restore_plan import ArchivedStream, KeyRestore, Restore, batches, read_collections
from prefect_artifact_retention.tasks.run import in_flow_run

MAX_TASK_RUNS = 25
"""Task runs of a restore, at most. Each costs the server some 20 rows."""

MAX_CAUSES = 5
"""Causes in the message of a task run that failed, at most."""


async def restore_all(restore: Restore) -> None:
    """Restore what was planned. What fails is in the report, and not raised.

    Raises:
        LostConnectionError: The database is out of reach.
    """
    restore.report.applied = True
    if restore.database and not restore.report.data:
        restore.collections = await read_collections(restore)
    stream = ArchivedStream(restore)
    try:
        with frozen():
            await _restore_groups(restore, stream)
    finally:
        await stream.close()


async def _restore_groups(restore: Restore, stream: ArchivedStream) -> None:
    for group in task_batches(restore.keys):
        if not in_flow_run():
            await _restore_group(restore, group, stream)
            continue
        keys = [each for batch in group for each in batch]
        name = label(keys[0].key) if len(keys) == 1 else f"{len(keys):,} keys from {label(keys[0].key)}"
        # Prefect types a call of an async task as its result.
        state: State[None] = await restore_task(restore, group, stream, name, return_state=True)  # type: ignore[misc]
        if not state.is_completed() and not any(each.report.error for each in keys):
            # Most likely, the database is out of reach, and so it will be for the others.
            restore.report.errors.append(printable(f"restore {name}: {state.message}"))
            return


@task(name="restore", task_run_name="restore {name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
async def restore_task(
    restore: Restore,
    group: Sequence[Sequence[KeyRestore]],
    stream: ArchivedStream,
    name: str,  # noqa: ARG001 - names the task run
) -> State[None]:
    """Restore some batches of keys. The task run fails if any key failed."""
    await _restore_group(restore, group, stream)
    reports = [each.report for batch in group for each in batch]
    if failed := [each for each in reports if each.error]:
        return Failed(message="; ".join(f"{label(each.key)}: {each.error}" for each in failed[:MAX_CAUSES]))
    return Completed(message=f"{sum(each.restored for each in reports)} restored")


async def _restore_group(restore: Restore, group: Sequence[Sequence[KeyRestore]], stream: ArchivedStream) -> None:
    for batch in group:
        if restore.report.data:
            await restore_data(restore, batch, stream)
        elif restore.database:
            await restore_in_database(restore, restore.database, batch, stream)
        else:
            await restore_through_api(restore, batch, stream)


def task_batches(keys: Sequence[KeyRestore]) -> list[list[list[KeyRestore]]]:
    """Group batches for the task runs of a restore: one after the other, and about as many in each."""
    grouped = batches(keys)
    each = -(-len(grouped) // MAX_TASK_RUNS) or 1
    return [grouped[start : start + each] for start in range(0, len(grouped), each)]
