"""Explains one key, or the artifacts without a key: every version with its verdict and all the reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from datetime import datetime
from itertools import chain
from uuid import UUID

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.cleanup import open_run
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import RetentionPolicy, StoreError, Verdict, Version
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.loading import select_policy
from prefect_artifact_retention.tasks.holds import read_holds
from prefect_artifact_retention.tasks.plan import future_warning, judge_unkeyed, subject
from prefect_artifact_retention.tasks.rendering import NO_BREAK, label, size
from prefect_artifact_retention.tasks.run import Run
from pydantic import BaseModel
from rich.text import Text

UNMANAGED = "unmanaged: no policy is for it"


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
    """One key, or the artifacts without a key (None): the policy, and the versions with their verdicts, the latest first."""

    key: str | None
    server: str
    now: datetime
    policy: str | None
    sentence: str
    policy_source: str
    latest_id: UUID | None
    versions: list[ExplainedVersion]
    warnings: list[str]


async def explain(settings: RetentionSettings, key: str) -> Explanation:
    """Evaluate every version of one key as a run would.

    Raises:
        StoreError: There is no such key, or the server cannot be reached.
    """
    async with open_run(settings, "preview", (), ()) as run:
        await read_holds(run)
        collections = await run.store.collections([key])
        if not collections:
            raise StoreError(f"there is no artifact with the key {label(key)}")
        collection = collections[0]
        (history,) = [each async for page in run.store.histories([key]) for each in page]
        if history.error:
            raise StoreError(history.error)
        if not history.complete:
            raise StoreError(f"the versions of {label(key)} changed while they were read; try again")
        policy = select_policy(run.policies, key, collection.type)
        warnings: list[str] = []
        if policy:
            flow_runs = {version.flow_run_id for version in history.versions if version.flow_run_id}
            task_runs = {version.task_run_id for version in history.versions if version.task_run_id}
            running = frozenset(await run.store.unfinished(flow_runs, task_runs))
            explained = subject(run, history, collection, policy)
            judgement = explained.judge(run.now, running)
            verdicts = tuple(judgement)
            if explained.conflict:
                warnings.append(f"{label(key)}: nothing is deleted, because {explained.conflict}")
            if warning := future_warning(run, judgement):
                warnings.append(warning)
        else:
            verdicts = _unmanaged(history.versions)
            if held := run.hold_on(key):
                warnings.append(f"{label(key)}: {held}")
        return await _explanation(run, key, policy, verdicts, latest_id=collection.latest_id, warnings=warnings)


async def explain_unkeyed(settings: RetentionSettings) -> Explanation:
    """Evaluate every artifact without a key as a run would, except those in which Prefect keeps the results of runs.

    Raises:
        StoreError: The server cannot be reached, or refuses a request.
    """
    async with open_run(settings, "preview", (), ()) as run:
        policy = select_policy(run.policies, None, None)
        verdicts: dict[UUID, Verdict] = {}
        unreadable: list[str | None] = []
        warnings: list[str] = []
        expected = await run.store.count_unkeyed()
        async with aclosing(run.store.unkeyed(expected, unreadable)) as pages:
            async for page in pages:
                judged = chain(*await judge_unkeyed(run, page, policy)) if policy else _unmanaged(page)
                verdicts.update((verdict.version.id, verdict) for verdict in judged)
        if unreadable:
            warnings.append(f"{count(len(unreadable), 'artifact')} not listed, because the server fails to show them (500)")
        if len(verdicts) + len(unreadable) < expected:
            warnings.append("artifacts were deleted while they were read; some may be missing here")
        newest_first = sorted(verdicts.values(), key=lambda each: (each.version.created, each.version.id), reverse=True)
        return await _explanation(run, None, policy, newest_first, warnings=warnings)


def _unmanaged(versions: Iterable[Version]) -> tuple[Verdict, ...]:
    newest_first = sorted(versions, key=lambda version: (version.created, version.id), reverse=True)
    return tuple(Verdict(version, True, (UNMANAGED,), ("unmanaged",)) for version in newest_first)  # noqa: FBT003


async def _explanation(  # noqa: PLR0913 - the fields of an explanation
    run: Run,
    key: str | None,
    policy: RetentionPolicy | None,
    verdicts: Iterable[Verdict],
    *,
    latest_id: UUID | None = None,
    warnings: Sequence[str] = (),
) -> Explanation:
    doubt = await run.server.untested_version()
    return Explanation(
        key=key,
        server=run.report.server,
        now=run.report.now,
        policy=policy.name if policy else None,
        sentence=policy.describe() if policy else f"{UNMANAGED.capitalize()}; left alone.",
        policy_source=run.report.policy_source,
        latest_id=latest_id,
        versions=[_explained(verdict) for verdict in verdicts],
        warnings=[*run.report.warnings, *warnings, *([doubt] if doubt else [])],
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


def show(explanation: Explanation) -> None:
    """Print an explanation as a table, one row a version."""
    kept = sum(version.keep for version in explanation.versions)
    title = f"{label(explanation.key)}: {kept} kept, {len(explanation.versions) - kept} to delete"
    policy = f"{explanation.policy or 'no policy'} ({explanation.policy_source}): {explanation.sentence}"
    header = [Text(name) for name in ("Version", "Verdict", "Created (UTC)", "Type", "Size", "Why")]
    rows = [
        [
            Text(str(version.id)),
            Text("keep", style="green") if version.keep else Text("delete", style="red"),
            Text(f"{version.created:%Y-%m-%d %H:%M:%S}".replace(" ", NO_BREAK)),
            Text(printable(version.type or "none")),
            Text(size(version.size).replace(" ", NO_BREAK), justify="right"),
            Text("; ".join(version.reasons)),
        ]
        for version in explanation.versions
    ]
    warnings = (Text(warning, style="yellow") for warning in explanation.warnings)
    server = Text(printable(f"On {explanation.server}"))
    terminal.show(Text(title, style="bold"), Text(printable(policy)), server, *warnings, terminal.WholeTable(header, rows))
