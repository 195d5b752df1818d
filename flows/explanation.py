"""Explains one key, or the artifacts without a key: every version with its verdict and all the reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from itertools import chain
from uuid import UUID

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.cleanup import open_run
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import RetentionPolicy, StoreError, Verdict, Version
from prefect_artifact_retention.policies.departure import AT_ONCE, Departure, departures, describe
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.loading import select_policy
from prefect_artifact_retention.tasks.holds import read_holds
from prefect_artifact_retention.tasks.pages import GONE, Mark, calendar, heading, html_table, page, paragraph, section
from prefect_artifact_retention.tasks.plan import future_warning, judge_unkeyed, subject
from prefect_artifact_retention.tasks.rendering import NO_BREAK, label, size
from prefect_artifact_retention.tasks.run import Run
from pydantic import BaseModel
from rich.text import Text

UNMANAGED = "unmanaged: no policy is for it"
MAX_ROWS = 1_000
"""Versions in the table of a page; with more, browsers get slow. The calendar has them all."""

NEVER = Departure(None, "never: no policy is for it")


class ExplainedVersion(BaseModel):
    """One version with its verdict, the earliest date on which it can go if nothing is written, and else what it takes."""

    id: UUID
    created: datetime
    type: str | None
    size: int
    keep: bool
    reasons: list[str]
    rules: list[str]
    goes_at: datetime | None = None
    goes_when: str = ""


class Explanation(BaseModel):
    """One key, or the artifacts without a key (None): the policy, and the versions with their verdicts, the latest first."""

    key: str | None
    server: str
    now: datetime
    policy: str | None
    sentence: str
    policy_source: str
    latest_id: UUID | None
    timezone: str = "UTC"
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
            one = "; this takes one key, and no glob" if set(key) & set("*?[") else ""
            raise StoreError(f"there is no artifact with the key {label(key)}{one}")
        collection = collections[0]
        (history,) = [each async for page in run.store.histories([key]) for each in page]
        if history.error:
            raise StoreError(history.error)
        if not history.complete:
            raise StoreError(f"the versions of {label(key)} changed while they were read; try again")
        policy = select_policy(run.policies, key, collection.type)
        goes: Mapping[UUID, Departure] = {}
        warnings: list[str] = []
        if policy:
            flow_runs = {version.flow_run_id for version in history.versions if version.flow_run_id}
            task_runs = {version.task_run_id for version in history.versions if version.task_run_id}
            running = frozenset(await run.store.unfinished(flow_runs, task_runs))
            explained = subject(run, history, collection, policy)
            judgement = explained.judge(run.now, running)
            verdicts = tuple(judgement)
            goes = departures(
                explained.versions,
                policy,
                now=run.report.now,
                latest_id=explained.latest_id,
                running=running,
                conflict=explained.conflict,
                hold=run.holds.get(key),
            )
            if explained.conflict:
                warnings.append(f"{label(key)}: nothing is deleted, because {explained.conflict}")
            if warning := future_warning(run, judgement):
                warnings.append(warning)
        else:
            verdicts = _unmanaged(history.versions)
            if held := run.hold_on(key):
                warnings.append(f"{label(key)}: {held}")
        return await _explanation(run, key, policy, verdicts, goes, latest_id=collection.latest_id, warnings=warnings)


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
        goes = await _departures_of_unkeyed(run, newest_first, policy) if policy else {}
        return await _explanation(run, None, policy, newest_first, goes, warnings=warnings)


async def _departures_of_unkeyed(run: Run, verdicts: Sequence[Verdict], policy: RetentionPolicy) -> Mapping[UUID, Departure]:
    """Return when each artifact without a key goes. Those of unfinished runs, which alone are kept for these, stay apart."""
    used = {verdict.version.id for verdict in verdicts if "running" in verdict.rules}
    free = departures((each.version for each in verdicts if each.version.id not in used), policy, now=run.report.now)
    return {**free, **dict.fromkeys(used, Departure(None, "when its run has finished"))}


def _unmanaged(versions: Iterable[Version]) -> tuple[Verdict, ...]:
    newest_first = sorted(versions, key=lambda version: (version.created, version.id), reverse=True)
    return tuple(Verdict(version, True, (UNMANAGED,), ("unmanaged",)) for version in newest_first)  # noqa: FBT003


async def _explanation(  # noqa: PLR0913 - the fields of an explanation
    run: Run,
    key: str | None,
    policy: RetentionPolicy | None,
    verdicts: Iterable[Verdict],
    goes: Mapping[UUID, Departure],
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
        timezone=policy.timezone if policy else "UTC",
        versions=[_explained(verdict, goes.get(verdict.version.id, NEVER)) for verdict in verdicts],
        warnings=[*run.report.warnings, *warnings, *([doubt] if doubt else [])],
    )


def _explained(verdict: Verdict, goes: Departure) -> ExplainedVersion:
    version = verdict.version
    return ExplainedVersion(
        id=version.id,
        created=version.created,
        type=version.type,
        size=version.size,
        keep=verdict.keep,
        reasons=list(verdict.reasons),
        rules=list(verdict.rules),
        goes_at=goes.at if verdict.keep else None,
        goes_when=goes.needs if verdict.keep else AT_ONCE,
    )


def _goes(version: ExplainedVersion) -> str:
    return describe(Departure(version.goes_at, version.goes_when))


def _title(explanation: Explanation) -> tuple[str, str]:
    """Return what becomes of the versions, and by which policy."""
    kept = sum(version.keep for version in explanation.versions)
    title = f"{label(explanation.key)}: {kept:,} kept, {len(explanation.versions) - kept:,} to delete"
    return title, f"{explanation.policy or 'no policy'} ({explanation.policy_source}): {explanation.sentence}"


def show(explanation: Explanation) -> None:
    """Print an explanation as a table, one row a version."""
    title, policy = _title(explanation)
    header = [Text(name) for name in ("Version", "Verdict", "Created (UTC)", "Type", "Size", "Goes (UTC)", "Why")]
    rows = [
        [
            Text(str(version.id)),
            Text("keep", style="green") if version.keep else Text("delete", style="red"),
            Text(f"{version.created:%Y-%m-%d %H:%M:%S}".replace(" ", NO_BREAK)),
            Text(printable(version.type or "none")),
            Text(size(version.size).replace(" ", NO_BREAK), justify="right"),
            Text(_goes(version)),
            Text("; ".join(version.reasons)),
        ]
        for version in explanation.versions
    ]
    warnings = (Text(warning, style="yellow") for warning in explanation.warnings)
    server = Text(printable(f"On {explanation.server}"))
    terminal.show(Text(title, style="bold"), Text(printable(policy)), server, *warnings, terminal.WholeTable(header, rows))


def explanation_page(explanation: Explanation) -> str:
    """Render an explanation as a page: a calendar of the versions, and the table."""
    title, policy = _title(explanation)
    versions = explanation.versions
    marks = [
        Mark(
            version.created,
            version.rules if version.keep else [GONE],
            f"{version.created:%H:%M} UTC, {size(version.size)}: {'; '.join(version.reasons)}; goes {_goes(version)}; "
            f"version {version.id}",
        )
        for version in versions
    ]
    rows = [
        (
            str(version.id),
            "keep" if version.keep else "delete",
            f"{version.created:%Y-%m-%d %H:%M}",
            size(version.size),
            _goes(version),
            "; ".join(version.reasons),
        )
        for version in versions[:MAX_ROWS]
    ]
    rest = [paragraph(f"and {len(versions) - MAX_ROWS:,} older ones")] if len(versions) > MAX_ROWS else []
    head = ("Version", "Verdict", "Created (UTC)", "Size", "Goes (UTC)", "Why")
    as_of = f"As of {explanation.now:%Y-%m-%d %H:%M} UTC, on {explanation.server}. Days in {explanation.timezone}."
    return page(
        title,
        [
            heading(title, policy, as_of, *explanation.warnings),
            section("Calendar", calendar(marks, explanation.now, explanation.timezone)),
            section("Versions", html_table([head, *rows], whole=4), *rest),
        ],
    )
