"""Reports, and gives back, the space that a run has freed in the database."""

from __future__ import annotations

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.tasks.rendering import size
from prefect_artifact_retention.tasks.run import Run, as_task


def report_purge(run: Run, store: DatabaseStore) -> None:
    """Add to the report what was deleted of the events about deleted versions, if that was asked for."""
    if store.purge:
        run.report.events_purged, run.report.event_bytes_purged = store.purge.events, store.purge.size
        if store.purge.error:
            run.report.warn(f"the server's events hold copies of some of the deleted versions: {store.purge.error}")


async def measure_disk(run: Run, store: DatabaseStore) -> int | None:
    """Return the bytes that artifacts take on disk; None, with a warning, if the database fails: no deletion needs them."""
    try:
        return await store.disk_bytes()
    except StoreError as error:
        run.report.warn(f"the space freed on disk is not known: {error}")
        return None


async def reclaim(run: Run, store: DatabaseStore, before: int | None, *, vacuum: bool) -> None:
    """Add a note to the report: the space on disk that the run has freed, or why it has freed none.

    Args:
        run: The run.
        store: The database.
        before: The bytes that its artifacts took before the first deletion; None if unknown.
        vacuum: Whether to vacuum first. A failure is a warning, because the stale versions are deleted all the same.
    """
    if vacuum:
        try:
            await store.transactions.vacuum()
        except StoreError as error:
            run.report.warn(f"nothing was vacuumed: {error}")
    after = None if before is None else await measure_disk(run, store)
    if before is None or after is None:
        return
    what = "The file of the SQLite database" if store.is_sqlite else "The table of the artifacts"
    by = "VACUUM only" if store.is_sqlite else "pg_repack; VACUUM gives back only what lies behind the last row that stays"
    why = f"the space of deleted rows is used again, and given back by {by}"
    freed = f"{size(before - after)} freed" if after < before else f"none freed: {why}"
    run.report.notes.append(f"{what} took {size(before)} on disk before the run and takes {size(after)} now; {freed}.")


reclaim_task = as_task(reclaim, "reclaim")
