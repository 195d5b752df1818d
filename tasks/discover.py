"""Discover: lists the collections in the scope of the run, and refuses a scope that cannot be meant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from fnmatch import fnmatchcase

from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, StoreError
from prefect_artifact_retention.policies.formatting import count, days
from prefect_artifact_retention.policies.globs import impossible
from prefect_artifact_retention.policies.loading import OWN_KEYS, OWN_POLICY
from prefect_artifact_retention.stores.store import Collection
from prefect_artifact_retention.tasks.history import read_next_start
from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.run import Run, as_task


async def discover(run: Run) -> None:
    """List the collections in the scope of the run, in the order of their keys.

    With a limit, the list begins where the last delete run stopped, and wraps around. A delete run always includes the
    package's own keys, because each run adds versions to them.
    """
    resume_at = ""
    if run.limits.max_deletions or run.limits.time_budget_minutes:
        try:
            resume_at = await read_next_start(run)
        except StoreError as error:
            run.report.warn(f"this run begins with the first key, because the history cannot be read: {error}")
    scope = run.report.scope
    own = OWN_KEYS if run.report.mode == "delete" else ()
    unreadable: list[str | None] = []
    if scope and not any(set("*?[") & set(glob) for glob in scope):
        found = await run.store.collections([*dict.fromkeys([*scope, *own])], unreadable)
    else:
        found, unseen = await run.store.all_collections(unreadable)
        if unseen:
            run.report.warn(f"{count(unseen, 'key')} could not be listed, and must wait for the next run")
        if scope:
            found = [each for each in found if each.key in own or any(fnmatchcase(each.key, glob) for glob in scope)]
    for before in unreadable:
        where = "the first key" if before is None else f"the key after {label(before)}"
        run.report.errors.append(f"{where}: nothing deleted, because the server fails to show it (500)")
    for glob in scope:
        if not any(fnmatchcase(each.key, glob) for each in found):
            run.report.warn(f"no key matches {label(glob)}")
    start = _start(found, resume_at)
    run.collections = found[start:] + found[:start]
    run.first_round = len(found) - start
    run.report.keys_seen = sum(each.key not in OWN_KEYS for each in found)
    run.report.notes = await _notes(run)
    run.server_deletes = bool(run.report.notes)
    if doubt := await run.server.untested_version():
        run.report.warn(doubt)


def check_scope(run: Run) -> None:
    """Refuse a scope with a glob that no key matches, and no key that Prefect accepts ever can: it is a mistake.

    A glob that may match a key one day is only warned of.

    Raises:
        ConfigurationError: There is such a glob.
    """
    for glob in run.report.scope:
        if (problem := impossible(glob)) and not any(fnmatchcase(each.key, glob) for each in run.collections):
            raise ConfigurationError(f"keys: {problem}")


async def _notes(run: Run) -> list[str]:
    """Describe what the server deletes by itself, and name the policies that would keep versions for longer."""
    policies = [policy for policy in run.policies if policy is not OWN_POLICY]
    if run.server.connection.is_cloud:
        return [_promises("Prefect Cloud deletes artifacts by itself, after 7 to 30 days by plan", policies, 7)]
    expiry = await run.server.expiry()
    if expiry is None:
        return []
    if expiry.of_runs:
        period = expiry.of_runs / timedelta(days=1)
        return [
            _promises(f"The server's db_vacuum deletes the artifacts of flow runs older than {days(period)}", policies, period)
        ]
    if expiry.of_orphans:
        return ["The server's db_vacuum deletes the artifacts of flow runs that no longer exist, whatever the policies say."]
    return []


def _promises(what: str, policies: Sequence[RetentionPolicy], period: float) -> str:
    names = ", ".join(f'"{policy.name}"' for policy in policies if policy.keeps_beyond(period))
    beyond = f" Beyond that, it is not certain that these policies keep what they say: {names}." if names else ""
    return f"{what}, a key's latest and versions on hold included, whatever the policies say.{beyond}"


def _start(collections: list[Collection], resume_at: str) -> int:
    """Return the index of the first key that starts with `resume_at`, else of the next key, else behind the last."""
    if not resume_at:
        return 0
    after = (index for index, each in enumerate(collections) if each.key >= resume_at)
    same = (index for index, each in enumerate(collections) if each.key.startswith(resume_at))
    return next(same, next(after, len(collections)))


discover_task = as_task(discover, "discover")
