"""Deletions: send those that rest on a check, count what became of them, and know when to give up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefect_artifact_retention.policies import StoreError, Version
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.concurrency import for_each
from prefect_artifact_retention.stores.connection import HTTP_CREDENTIALS_REFUSED
from prefect_artifact_retention.stores.store import OutdatedCheckError
from prefect_artifact_retention.tasks.checks import Pruning
from prefect_artifact_retention.tasks.run import Run


@dataclass(slots=True)
class Patience:
    """Ends after so many checks in a row, for so long, on which deletions were too late, with none done in between."""

    checks: int
    seconds: float = 0
    late: int = 0
    since: float = 0
    settled: int = -1

    def spend(self, settled: int) -> bool:
        """Count one more, after as many settled deletions in all. Return whether it has come to its end."""
        if settled != self.settled:
            self.settled, self.late, self.since = settled, 0, time.monotonic()
        self.late += 1
        return self.late >= self.checks and time.monotonic() - self.since >= self.seconds


async def send(run: Run, store: ApiStore, key: Pruning, versions: Sequence[Version], deadline: float) -> bool:
    """Delete versions of a key in their order, several at once. Return False once a budget of the run is used up.

    Raises:
        StoreError: A deletion failed, and may have been done. No other was started after it, and those in flight were awaited
            and counted. It is an `OutdatedCheckError` if all that failed were too late.
    """
    waiting = deque(versions)
    failures: list[Exception] = []
    late: list[Exception] = []
    report = key.plan.report

    def begun() -> Iterator[Version]:
        while waiting and not (failures or late) and run.take_deletion():
            yield waiting.popleft()

    async def delete(version: Version) -> None:
        if version.key is not None:
            run.touched.add(version.key)
        try:
            is_ours = await _delete(run, store, version, deadline)
        except OutdatedCheckError as error:
            late.append(error)
            if error.is_sent:
                key.unanswered[version.id] = version.size
            else:
                run.return_deletions(1)
            return
        except Exception as error:  # noqa: BLE001 - raised below, once the others have been counted
            report.failed += 1
            failures.append(error)
            return
        del key.pending[version.id]
        if is_ours:
            report.add_deleted([version.id], version.size)
        report.already_gone += not is_ours
        await run.notify_deletion()

    await for_each(begun(), delete, min(store.connection.level, len(versions)))
    for error in (*failures, *late):
        raise error
    return not waiting


async def _delete(run: Run, store: ApiStore, version: Version, deadline: float) -> bool:
    """Delete a version, as the store does, and record in the archive what has become of it, if that is known."""
    if not run.archive:
        return await store.delete(version.id, deadline=deadline)
    attempts: list[float] = []
    run.archive.doubt([version.id])
    try:
        is_ours = await store.delete(version.id, deadline=deadline, attempts=attempts)
    except BaseException as error:  # also a cancellation
        # A refusal may be that of a proxy which had passed the request on: the version stays in doubt until the run ends.
        is_refused = isinstance(error, StoreError) and error.status in HTTP_CREDENTIALS_REFUSED and len(attempts) == 1
        if not attempts:
            run.archive.trust([version.id])
        elif not is_refused:
            run.archive.unanswered.add(version.id)
        raise
    run.archive.settle([version.id], deleted=is_ours)
    return is_ours
