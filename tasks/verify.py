"""Verify: check that each collection of which a version was deleted names an existing latest version, and repair it if not.

Versions are deleted without locks through the API, so a person who deletes the latest version at the same moment may leave a
collection without it.
"""

from __future__ import annotations

import asyncio

from prefect_artifact_retention.policies import RetentionError
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.run import Run, as_task

LATE_DELETION_SECONDS = 1
"""The delay before the last check: a deletion by others, begun before ours ended, may take as long to be visible."""

MAX_REPAIR_ROUNDS = 5
"""Rounds of repairs. A collection that others keep breaking is reported as failed after that."""


async def verify(run: Run) -> None:
    """Check the collections of which a version was deleted, and those that were found dangling.

    If a version behind a latest one was deleted, the check waits for a moment, in which a concurrent deletion of the latest
    becomes visible.
    """
    if run.is_unsettled:
        await asyncio.sleep(LATE_DELETION_SECONDS)
    problems: dict[str | None, str] = {}
    suspects = sorted(run.touched | run.dangling)
    # In rounds, because others may delete versions meanwhile.
    for _round in range(MAX_REPAIR_ROUNDS):
        suspects = await run.store.dangling(suspects)
        for key in suspects:
            try:
                if await run.store.repair(key):
                    problems.setdefault(key, "")
            except RetentionError as error:
                problems[key] = str(error)
    dangling = await run.store.dangling(suspects)
    for repaired in [key for key in problems if key is not None and key not in dangling]:
        run.report.repaired.append(repaired)
        if problem := problems[repaired]:
            run.report.warn(f"{label(repaired)}: repaired, but a placeholder may be left: {problem}")
    for report in (*run.report.key_reports, *run.report.housekeeping):
        if report.key in dangling:
            last = problems.get(report.key)
            how = f", and could not be posted again: {last}" if last else " again and again"
            report.error = f"its latest version has vanished{how}"


verify_task = as_task(verify, "verify")
