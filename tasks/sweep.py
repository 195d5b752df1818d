"""The combined report of a sweep: a row for each target, what grows there and why, and what came of the sweeps before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, Self

import httpx
from prefect_artifact_retention.policies import RetentionError, StoreError
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.policies.loading import SWEEP_KEY
from prefect_artifact_retention.stores.connection import reason
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.tasks.charts import Bar, Picture, targets_chart, trend_chart
from prefect_artifact_retention.tasks.publish import create_first_accepted
from prefect_artifact_retention.tasks.rendering import bullet_list, escape, label, pipe_table, scope_label, size
from prefect_artifact_retention.tasks.report import SUCCESSES, CleanupReport, Mode, Outcome, scope_digest
from pydantic import BaseModel, Field, computed_field

MAX_GROWING_KEYS = 3
"""Keys named of each target, those of the most bytes of the last week. With more, nobody sees which matters."""

MAX_CAUSES = 3
"""Causes told of each target; its own report has all."""

SWEEPS_READ = 30
"""Sweeps in the chart, and among which the one before is looked for."""

SCOPE = "artifact-retention-scope"
AMOUNTS = "artifact-retention-target-"
"""Entries of the metadata of a report: the scope of the sweep, and what each target had before and after it."""


class TargetRow(BaseModel):
    """What a sweep has done on one target. All numbers are 0 where it could not even begin."""

    name: str = Field(description="The name of the target.")
    server: str = Field(default="", description="The address of its API, without credentials.")
    outcome: Outcome = Field(description="How the run on it ended.")
    causes: list[str] = Field(
        default=[], description="Why it failed or was refused, then what else somebody should look at; its report has all."
    )
    keys_seen: int = Field(default=0, description="Collections discovered.")
    versions_seen: int = Field(default=0, description="Versions evaluated.")
    planned: int = Field(default=0, description="Stale versions.")
    deleted: int = Field(default=0, description="Versions deleted.")
    already_gone: int = Field(default=0, description="Planned versions that something else deleted first.")
    failed: int = Field(default=0, description="Versions whose deletion failed.")
    bytes_seen: int = Field(default=0, description="Bytes of the data of the versions evaluated.")
    bytes_planned: int = Field(default=0, description="Bytes of the stale versions' data.")
    bytes_freed: int = Field(default=0, description="Bytes of the deleted versions' data.")
    versions_of_week: int = Field(default=0, description="Those of the versions evaluated that are of the last seven days.")
    bytes_of_week: int = Field(default=0, description="Bytes of the data of these.")
    growing: list[str] = Field(default=[], description="The keys with the most bytes of the last seven days, and how many.")
    versions_since: int | None = Field(
        default=None, description="Versions that came since the sweep before over the same keys; null if there is none."
    )
    bytes_since: int | None = Field(default=None, description="Bytes of data that came since then.")
    stalled_runs: int = Field(default=0, description="As of the report of the target.")
    duration_seconds: float = Field(default=0.0, description="How long the run on it took.")
    report_url: str = Field(default="", description="The page of the target's own reports; empty if it left none.")

    @classmethod
    def of(cls, name: str, report: CleanupReport, report_url: str) -> Self:
        """Return what the report of a run says of its target."""
        fields = cls.model_fields.keys() & {*CleanupReport.model_fields, *CleanupReport.model_computed_fields}
        failures = (f"{label(key.key)}: {key.error}" for key in report.failures())
        keys = sorted(
            (key for key in report.key_reports if key.bytes_of_week), key=lambda key: key.bytes_of_week, reverse=True
        )
        return cls(
            name=name,
            causes=list(islice((*report.refusals, *report.errors, *failures, *report.warnings), MAX_CAUSES)),
            growing=[
                f"{label(key.key)}: {count(key.versions_of_week, 'version')}, {size(key.bytes_of_week)}"
                for key in keys[:MAX_GROWING_KEYS]
            ],
            versions_of_week=sum(key.versions_of_week for key in report.key_reports),
            bytes_of_week=sum(key.bytes_of_week for key in report.key_reports),
            report_url=report_url,
            **{field: getattr(report, field) for field in fields},
        )

    @property
    def versions_left(self) -> int:
        """Versions after the run."""
        return self.versions_seen - self.deleted - self.already_gone

    @property
    def bytes_left(self) -> int:
        """Bytes of their data."""
        return max(0, self.bytes_seen - self.bytes_freed)

    @property
    def has_numbers(self) -> bool:
        """Whether the run got far enough to count what is there."""
        return bool(self.versions_seen) or self.outcome == "completed"


class SweepReport(BaseModel):
    """The result of a sweep."""

    mode: Mode = Field(description="Whether stale versions were deleted or only shown.")
    now: datetime = Field(description="When the sweep began, by the clock of this machine.")
    scope: list[str] = Field(default=[], description="The globs of the keys that the sweep is for; empty means all.")
    targets: list[TargetRow] = Field(default=[], description="The targets, in the order of the configuration.")
    errors: list[str] = Field(default=[], description="What failed beyond a single target.")
    duration_seconds: float = Field(default=0.0, description="How long the sweep took.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def outcome(self) -> Outcome:
        """How the sweep ended: as the worst of its targets; skipped, if all of them were."""
        outcomes = {row.outcome for row in self.targets} | ({"failed"} if self.errors else set())
        worst: tuple[Outcome, ...] = ("failed", "refused", "unfinished", "completed", "skipped")
        return next((outcome for outcome in worst if outcome in outcomes), "completed")

    @property
    def failures(self) -> list[TargetRow]:
        """The targets that failed or were refused."""
        return [row for row in self.targets if row.outcome in {"failed", "refused"}]


class SweepFailed(RetentionError):  # noqa: N818 - as CleanupFailed
    """A target of the sweep has failed or was refused. The report has a row for each."""

    def __init__(self, report: SweepReport, message: str) -> None:
        super().__init__(message)
        self.report = report


def headline(report: SweepReport) -> str:
    """Summarize in one line what a sweep did or would do."""
    rows = report.targets
    # Others have failed, or were left alone, before anything went.
    done = sum(bool(row.outcome in SUCCESSES or row.deleted) for row in rows)
    where = count(len(rows), "target")
    if done < len(rows):
        where = f"{done} of {where}"
    if report.mode == "preview":
        amount = size(sum(row.bytes_planned for row in rows))
        text = f"Would delete {count(sum(row.planned for row in rows), 'version')} ({amount}) on {where}"
    else:
        amount = size(sum(row.bytes_freed for row in rows))
        text = f"Deleted {count(sum(row.deleted for row in rows), 'version')} ({amount}) on {where}"
    others = {
        outcome: sum(row.outcome == outcome for row in rows) for outcome in ("failed", "refused", "unfinished", "skipped")
    }
    return "; ".join([text, *(f"{number} {outcome}" for outcome, number in others.items() if number)])


def outcome_message(report: SweepReport) -> str:
    """Return the headline with one line for each target that failed or was refused."""
    lines = (f"{row.name}: {row.outcome}: {row.causes[0] if row.causes else 'see its report'}" for row in report.failures)
    return "\n".join([headline(report), *report.errors, *lines])


class _Past(NamedTuple):
    """A sweep before: when it was, and what each target had, as versions and bytes, before and after it."""

    when: datetime
    amounts: Mapping[str, tuple[int, int, int, int]]


async def publish_sweep(server: Server, report: SweepReport, page: str) -> None:
    """Write the combined report, with what has grown since the sweep before.

    Args:
        server: The server on which the sweep is.
        report: What it did. What its targets have grown by is filled in.
        page: The address of the sweep's page; empty if unknown.

    Raises:
        StoreError: The server cannot be reached, or refuses the report.
    """
    past = await _read_past(server, report)
    for row in report.targets:
        if row.has_numbers and (before := next((each.amounts[row.name] for each in past if row.name in each.amounts), None)):
            row.versions_since, row.bytes_since = row.versions_seen - before[1], row.bytes_seen - before[3]
    pictures = [picture for picture in (_targets_chart(report), _trend_chart(past, report)) if picture]
    texts = (
        markdown(report, page, [(picture.alt, picture.data_uri) for picture in some]) for some in (pictures, pictures[:0])
    )
    metadata = _metadata(report)
    try:
        await create_first_accepted(
            server.connection.client, texts, type="markdown", key=SWEEP_KEY, description=headline(report), metadata=metadata
        )
    except httpx.HTTPError as error:
        raise StoreError(f"the combined report could not be written: {reason(error)}") from None


def _metadata(report: SweepReport) -> dict[str, str]:
    """Return what the next sweep needs: nothing of a preview, after which what is stale is still there."""
    if report.mode == "preview":
        return {}
    amounts = {
        AMOUNTS + row.name: f"{row.versions_seen} {row.versions_left} {row.bytes_seen} {row.bytes_left}"
        for row in report.targets
        if row.has_numbers
    }
    return {SCOPE: scope_digest(report.scope), **amounts}


async def _read_past(server: Server, report: SweepReport) -> list[_Past]:
    """Read the sweeps before over the same keys, the newest first. What is odd is dropped: anybody may have written it."""
    past = []
    for row in await server.newest_rows(SWEEP_KEY, SWEEPS_READ):
        metadata: Mapping[str, Any] = row.get("metadata_") or {}
        if metadata.get(SCOPE) == scope_digest(report.scope):
            amounts = {}
            for name, text in metadata.items():
                with suppress(ValueError, AttributeError):
                    seen, left, bytes_seen, bytes_left = map(int, text.split())
                    amounts[name.removeprefix(AMOUNTS)] = (seen, left, bytes_seen, bytes_left)
            past.append(_Past(datetime.fromisoformat(row["created"]).astimezone(UTC), amounts))
    return past


def _targets_chart(report: SweepReport) -> Picture | None:
    rows = sorted((row for row in report.targets if row.has_numbers), key=lambda row: row.bytes_seen, reverse=True)
    deletes = report.mode == "delete"
    versions = [
        Bar(row.name, row.versions_seen, row.versions_left if deletes else row.versions_seen - row.planned) for row in rows
    ]
    amounts = [
        Bar(row.name, row.bytes_seen, row.bytes_left if deletes else max(0, row.bytes_seen - row.bytes_planned))
        for row in rows
    ]
    return targets_chart(versions, amounts, deletes=deletes)


def _trend_chart(past: Sequence[_Past], report: SweepReport) -> Picture | None:
    """Draw the totals of the sweeps in which all targets of this one took part: a target less would look like a deletion."""
    names = {row.name for row in report.targets if row.has_numbers}
    if report.mode == "preview" or not names:
        return None
    own = {row.name: (row.versions_seen, row.versions_left, row.bytes_seen, row.bytes_left) for row in report.targets}
    versions, amounts = [], []
    for each in [*reversed(past), _Past(report.now, own)]:
        if names <= each.amounts.keys():
            seen, left, bytes_seen, bytes_left = map(sum, zip(*(each.amounts[name] for name in names), strict=True))
            when = f"{each.when:%Y-%m-%d %H:%M}"
            versions.append(Bar(when, seen, left))
            amounts.append(Bar(when, bytes_seen, bytes_left))
    return trend_chart(versions, amounts, "sweeps")


def markdown(report: SweepReport, page: str = "", pictures: Sequence[tuple[str, str]] = ()) -> str:
    """Render the report as markdown for both Prefect UIs.

    Args:
        report: The report.
        page: The address of the sweep's page; empty if unknown.
        pictures: Alternative text and address of each picture.
    """
    reports = [f"[{escape(row.name)}]({row.report_url})" for row in report.targets if row.report_url]
    parts = [
        f"# {escape(headline(report))}",
        f"[This run]({page})" if page else "",
        f"{report.outcome.capitalize()} · mode {report.mode} · as of {report.now:%Y-%m-%d %H:%M:%S} UTC · "
        f"{report.duration_seconds:.0f} s" + (f" · only {escape(scope_label(report.scope))}" if report.scope else ""),
        *([f"## Failures\n\n{bullet_list(report.errors)}"] if report.errors else []),
        _table(report),
        f"Reports of the targets: {' · '.join(reports)}" if reports else "",
        *(f"![{escape(alt)}]({url})" for alt, url in pictures),
        _growth(report),
        _causes(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(report: SweepReport) -> str:
    deletes = report.mode == "delete"
    header = ("Target", "Outcome", "Keys", "Versions", *(("Deleted", "Freed") if deletes else ("Stale", "Stale size")))
    rows = [
        (
            *(row.name, row.outcome, row.keys_seen, row.versions_seen),
            *((row.deleted, size(row.bytes_freed)) if deletes else (row.planned, size(row.bytes_planned))),
            *(_change(row.versions_since), _change(row.bytes_since, size)),
            *(f"{row.duration_seconds:.0f} s", row.server),
        )
        for row in report.targets
    ]
    return pipe_table((*header, "New since the sweep before", "Size", "Took", "Server"), rows)


def _change(amount: int | None, form: Callable[[int], str] = "{:,}".format) -> str:
    return "unknown" if amount is None else f"{'-' if amount < 0 else '+'}{form(abs(amount))}"


def _growth(report: SweepReport) -> str:
    grown = sorted((row for row in report.targets if row.growing), key=lambda row: row.bytes_of_week, reverse=True)
    rows = [(row.name, row.versions_of_week, size(row.bytes_of_week), "; ".join(row.growing)) for row in grown]
    if not rows:
        return ""
    about = "What has been written in the last seven days and is or was there, the target with the most bytes first:"
    return f"## What grows\n\n{about}\n\n{pipe_table(('Target', 'Versions', 'Size', 'The keys with the most bytes'), rows)}"


def _causes(report: SweepReport) -> str:
    return "\n\n".join(_causes_of(report.targets))


def _causes_of(rows: Iterable[TargetRow]) -> Iterator[str]:
    for row in rows:
        if row.causes:
            yield f"## {escape(row.name)}: {row.outcome}\n\n{bullet_list(row.causes)}"
