"""The holds on whole keys, as a run reads them: before it plans, and while it deletes. If they cannot be read, it fails."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.connection import HTTP_CREDENTIALS_REFUSED
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.run import Run


async def read_holds(run: Run) -> None:
    """Read the holds on keys, and put them into the report.

    Raises:
        StoreError: They cannot be read, so that it is not known what may be deleted.
    """
    read_at = time.monotonic()
    try:
        found = await run.holds_reader.on_keys()
    except StoreError as error:
        hint = "; the API key must be allowed to read variables" if error.status in HTTP_CREDENTIALS_REFUSED else ""
        raise StoreError(
            f"nothing is deleted, because it is not known which keys are on hold: {error}{hint}", error.status
        ) from None
    if read_at < run.holds_read_at:
        # Of several readings at once, the one that began last counts.
        return
    run.holds_read_at = read_at
    run.holds = {str(hold.key): hold for hold in found if hold.is_in_force(run.report.now)}
    scope = run.report.scope
    run.report.holds = [
        f"{label(hold.key)}: {hold.describe()}" + ("" if hold.key in run.holds else " (expired)")
        for hold in found
        if not scope or any(fnmatchcase(str(hold.key), glob) for glob in scope)
    ]


async def refresh_holds(run: Run, max_age: float) -> bool:
    """Read the holds on keys again if that was longer ago than `max_age` seconds. Return False if nothing may be deleted."""
    if time.monotonic() - run.holds_read_at > max_age:
        try:
            await read_holds(run)
        except StoreError as error:
            run.give_up(str(error))
    return not run.is_stalled
