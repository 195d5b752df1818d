"""Observes the keys of a server for a simulation: what each has, and what it would get if it went on as it did."""

from __future__ import annotations

from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.policies.loading import OWN_POLICY, select_policy
from prefect_artifact_retention.policies.simulation import Course
from prefect_artifact_retention.tasks.discover import check_scope, discover
from prefect_artifact_retention.tasks.holds import read_holds
from prefect_artifact_retention.tasks.plan import subject
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.run import Run
from prefect_artifact_retention.tasks.simulation import MAX_ARRIVALS, Tally, continue_rhythm


async def observe(run: Run, tally: Tally) -> list[str]:
    """Play all keys of a run that have a policy, and return what is not simulated.

    Raises:
        ConfigurationError: The scope of the run cannot be meant.
        StoreError: The server cannot be read.
    """
    await discover(run)
    check_scope(run)
    await read_holds(run)
    begin, *_, end = tally.simulator.cleanups
    selected = {each.key: (each, select_policy(run.policies, each.key, each.type)) for each in run.collections}
    keys = [key for key, (_collection, policy) in selected.items() if policy and policy is not OWN_POLICY]
    silent, unread = 0, 0
    notes = [*run.report.notes, *run.report.warnings]
    async for page in run.store.histories(keys):
        for history in page:
            collection, policy = selected[history.key]
            if not policy or not history.complete:
                unread += 1
                continue
            key = subject(run, history, collection, policy)
            arrivals = continue_rhythm(key.versions, begin, end)
            if len(arrivals) > MAX_ARRIVALS:
                notes.append(f"{label(history.key)} would get more than {MAX_ARRIVALS:,} versions; none of them is simulated")
                arrivals = []
            silent += not arrivals
            hold = run.holds.get(history.key)
            tally.add(history.key, Course(policy, key.versions, arrivals, key.latest_id, hold, key.conflict))
    unmanaged = sum(policy is None for _collection, policy in selected.values())
    if silent:
        notes.append(
            f"No more versions of {count(silent, 'key')}: a single one is no rhythm, and others have been silent for long. "
            "Keys that are yet to come are not simulated"
        )
    if unread:
        notes.append(f"{count(unread, 'key')} left out, because the versions cannot be read, or changed while they were")
    if unmanaged:
        notes.append(f"{count(unmanaged, 'key')} left out, because no policy is for {'it' if unmanaged == 1 else 'them'}")
    if await run.store.count_unkeyed():
        notes.append("Artifacts without a key are left out")
    return notes
