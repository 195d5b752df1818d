"""Explains one key: every version with its verdict and all the reasons."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from prefect_artifact_retention.flows.cleanup import open_run
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import StoreError, Verdict
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.loading import select_policy
from prefect_artifact_retention.tasks.plan import future_warning, subject
from prefect_artifact_retention.tasks.rendering import label, size
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNMANAGED = "unmanaged: no policy is for this key"


class ExplainedVersion(BaseModel):
    """One version with its verdict."""

    id: UUID
    created: datetime
    type: str | None
    size: int
    keep: bool
    reasons: list[str]
    rules: list[str]


class Explanation(BaseModel):
    """One key: its policy, and its versions with their verdicts, the latest first."""

    key: str
    now: datetime
    policy: str | None
    sentence: str
    policy_source: str
    latest_id: UUID
    versions: list[ExplainedVersion]
    warnings: list[str]


async def explain(settings: RetentionSettings, key: str) -> Explanation:
    """Evaluate every version of one key as a run would.

    Raises:
        StoreError: There is no such key, or the server cannot be reached.
    """
    async with open_run(settings, "preview", (), ()) as run:
        collections = await run.store.collections([key])
        if not collections:
            raise StoreError(f"there is no artifact with the key {label(key)}")
        collection = collections[0]
        history = await run.store.history(key)
        if not history.complete:
            raise StoreError(f"the versions of {label(key)} changed while they were read; try again")
        policy = select_policy(run.policies, key, collection.type)
        warnings = [doubt] if (doubt := await run.server.untested_version()) else []
        if policy:
            flow_runs = {version.flow_run_id for version in history.versions if version.flow_run_id}
            task_runs = {version.task_run_id for version in history.versions if version.task_run_id}
            running = frozenset(await run.store.unfinished(flow_runs, task_runs))
            explained = subject(run.policies, history, collection, policy)
            judgement = explained.judge(run.report.now, running)
            verdicts = tuple(judgement)
            if explained.conflict:
                warnings.append(f"{label(key)}: nothing is deleted, because {explained.conflict}")
            if warning := future_warning(run, judgement):
                warnings.append(warning)
        else:
            newest_first = sorted(history.versions, key=lambda version: (version.created, version.id), reverse=True)
            verdicts = tuple(Verdict(version, True, (UNMANAGED,), ("unmanaged",)) for version in newest_first)  # noqa: FBT003
        return Explanation(
            key=key,
            now=run.report.now,
            policy=policy.name if policy else None,
            sentence=policy.describe() if policy else f"{UNMANAGED}; it is left alone.",
            policy_source=run.report.policy_source,
            latest_id=collection.latest_id,
            versions=[_explained(verdict) for verdict in verdicts],
            warnings=warnings,
        )


def _explained(verdict: Verdict) -> ExplainedVersion:
    version = verdict.version
    return ExplainedVersion(
        id=version.id,
        created=version.created,
        type=version.type,
        size=version.size,
        keep=verdict.keep,
        reasons=list(verdict.reasons),
        rules=list(verdict.rules),
    )


def show(explanation: Explanation, console: Console) -> None:
    """Print an explanation as a table, one row a version."""
    kept = sum(version.keep for version in explanation.versions)
    title = f"{label(explanation.key)}: {kept} kept, {len(explanation.versions) - kept} to delete"
    console.print(Text(title, style="bold"))
    policy = f"{explanation.policy or 'no policy'} ({explanation.policy_source}): {explanation.sentence}"
    console.print(Text(printable(policy)))
    for warning in explanation.warnings:
        console.print(Text(warning, style="yellow"))
    table = Table("Created (UTC)", "Verdict", "Why", "Size", "Version")
    for version in explanation.versions:
        table.add_row(
            f"{version.created:%Y-%m-%d %H:%M:%S}",
            Text("keep", style="green") if version.keep else Text("delete", style="red"),
            Text("; ".join(version.reasons)),
            size(version.size),
            str(version.id),
        )
    console.print(table)
