"""The restore flow: what the archive has of deleted versions comes back.

`apply=False`, the default, restores nothing and says what it would restore.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, NamedTuple
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, runtime
from prefect.exceptions import TerminationSignal
from prefect.states import Completed, Failed
from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.cleanup import LISTENER, database_url, open_archive_of, refuse_ephemeral_server
from prefect_artifact_retention.flows.destinations import at_target
from prefect_artifact_retention.flows.ledger import make_query
from prefect_artifact_retention.flows.settings import RetentionSettings, load_settings
from prefect_artifact_retention.flows.termination import cancel_on_sigterm
from prefect_artifact_retention.policies import ConfigurationError, RetentionError, StoreError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.loading import PROGRESS_KEY, RESTORED_KEY
from prefect_artifact_retention.policies.model import refuse_bool
from prefect_artifact_retention.stores.connection import Connection, connect, reason
from prefect_artifact_retention.stores.database import open_database
from prefect_artifact_retention.stores.destination import is_elsewhere
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.tasks.producers.artifacts import check_key
from prefect_artifact_retention.tasks.producers.progress import LiveArtifact
from prefect_artifact_retention.tasks.producers.requests import take
from prefect_artifact_retention.tasks.publication import page_of, run_link
from prefect_artifact_retention.tasks.publish import create_first_accepted
from prefect_artifact_retention.tasks.rendering import NO_BREAK, label, scope_label, size
from prefect_artifact_retention.tasks.restore import restore_all
from prefect_artifact_retention.tasks.restore_data import plan_data
from prefect_artifact_retention.tasks.restore_plan import Restore, Selection, plan_restore
from prefect_artifact_retention.tasks.restore_report import (
    RestoredKey,
    RestoreFailed,
    RestoreReport,
    headline,
    markdown,
    notes,
    outcome_message,
    remark,
)
from prefect_artifact_retention.tasks.run import Step
from pydantic import BeforeValidator, Field
from rich.text import Text

if TYPE_CHECKING:
    from prefect_artifact_retention.stores.archive.archive import Archive

NO_ARCHIVE = "no archive is configured, from which anything could come back: set archive_url or archive_block"

NOTHING_NAMED = "name what is to be restored: keys, ids, runs, policies, or the time of its deletion"

UPDATE_PERCENT = 5
"""The step of an update of the progress. Each update is an event on the server."""

BEGINNING = "1970-01-01"
"""A day on which nothing was deleted yet: what was deleted since then is all."""

MAX_HOLD_DAYS = 36_525
"""A hundred years."""

HoldDays = Annotated[int, Field(ge=0, le=MAX_HOLD_DAYS), BeforeValidator(refuse_bool)]

RESTORED: ContextVar[list[RestoreReport] | None] = ContextVar("restored", default=None)
"""Gets the report of each restore in this context, for a caller whom Prefect may give an error instead of the result."""


class Request(NamedTuple):
    """What is asked for, as the parameters of the flow; see `artifact_restore`."""

    keys: list[str]
    ids: list[str]
    runs: list[str]
    since: str
    until: str
    hold_days: int
    to_key: str
    same_key: bool
    from_server: str
    data: bool = False
    policies: Sequence[str] = ()

    def selection(self, source: str) -> Selection:
        """Read it.

        Raises:
            ConfigurationError: Something cannot be meant; the message names the source.
        """
        query = make_query(
            self.keys,
            ids=self.ids,
            runs=self.runs,
            policies=self.policies,
            since=self.since,
            until=self.until,
            source=source,
        )
        if not 0 <= self.hold_days <= MAX_HOLD_DAYS:
            raise ConfigurationError(f"{source}: hold_days = {self.hold_days} is not between 0 and {MAX_HOLD_DAYS}")
        if self.to_key:
            try:
                check_key(self.to_key)
            except ValueError as error:
                raise ConfigurationError(f"{source}: to_{error}") from None
        if self.to_key and self.same_key:
            raise ConfigurationError(f"{source}: to_key and same_key contradict each other")
        if self.data and (self.to_key or self.same_key or self.from_server):
            raise ConfigurationError(
                f"{source}: to_key, same_key and from_server have no meaning for data, which come back in place"
            )
        query = replace(query, offloaded=self.data)
        return Selection(query, self.from_server.rstrip("/"), self.to_key, self.same_key, self.hold_days)


@asynccontextmanager
async def open_restore(
    settings: RetentionSettings,
    selection: Selection,
    own_runs: Collection[UUID] = frozenset(),
    *,
    applies: bool = False,
    archive: Archive | None = None,
) -> AsyncIterator[Restore]:
    """Open a restore: connect to the server and the database, open the archive, and read the server's clock.

    Args:
        settings: The settings.
        selection: What is to be restored.
        own_runs: The flow run that restores, if any.
        applies: Whether anything will be restored.
        archive: The archive; by default the one that is configured.

    Raises:
        ConfigurationError: No server or no archive is configured.
        StoreError: The server or the database cannot be reached, or refuses a request.
    """
    if applies:
        refuse_ephemeral_server(settings)
    if not archive:
        refuse_without_archive(settings)
    async with connect(settings.max_requests_per_minute) as connection, AsyncExitStack() as stack:
        server = Server(connection)
        now = await server.now()
        archive = archive or await open_archive_of(settings, connection)
        if archive is None:
            raise ConfigurationError(NO_ARCHIVE)
        database = None
        if url := await database_url(settings, connection):
            database = await stack.enter_async_context(open_database(url))
            await database.check(server, own_runs, deletes=applies, replaces=selection.query.offloaded)
        if own_runs:
            await server.detect_concurrency(artifact_restore.name)
        elif applies:
            await server.detect_concurrency()
        yield Restore(archive, connection, database, selection, now)


def refuse_without_archive(settings: RetentionSettings) -> None:
    """Refuse to restore from nowhere.

    Raises:
        ConfigurationError: No archive is configured.
    """
    if not (settings.archive_url or settings.archive_block):
        raise ConfigurationError(NO_ARCHIVE)


async def plan(restore: Restore) -> None:
    """Plan to restore versions, or the data of versions that exist.

    Raises:
        ConfigurationError: What is asked for cannot be meant.
        StoreError: The archive, the server or the database cannot be read.
    """
    await (plan_data if restore.report.data else plan_restore)(restore)


async def preview_restore(settings: RetentionSettings, selection: Selection) -> RestoreReport:
    """Say what would be restored, without a flow run, so that nothing at all is written to the server.

    Raises:
        ConfigurationError: No archive is configured, or what is asked for cannot be meant.
        StoreError: The archive, the server or the database cannot be read.
    """
    async with open_restore(settings, selection) as restore:
        await plan(restore)
        report = restore.report
        report.outcome = "failed" if report.errors else "completed"
        report.duration_seconds = restore.seconds
        return report


def _flow_run_name() -> str:
    parameters = runtime.flow_run.parameters
    where = f" on {target}" if (target := parameters.get("target")) else ""
    return f"{'restore' if parameters.get('apply') else 'preview'} {scope_label(parameters.get('keys', []))[:80]}{where}"


@flow(name="artifact-restore", flow_run_name=_flow_run_name, persist_result=False, retries=0)
async def artifact_restore(  # noqa: PLR0913, PLR0917 - the fields of the run form
    keys: list[str] = [],  # noqa: B006 - Prefect shows it in the run form and never changes it
    ids: list[str] = [],  # noqa: B006
    runs: list[str] = [],  # noqa: B006
    policies: list[str] = [],  # noqa: B006
    since: str = "",
    until: str = "",
    apply: bool = False,  # noqa: FBT001, FBT002 - a box of the run form
    hold_days: HoldDays = 7,
    to_key: str = "",
    same_key: bool = False,  # noqa: FBT001, FBT002
    from_server: str = "",
    data: bool = False,  # noqa: FBT001, FBT002
    target: str = "",
) -> RestoreReport:
    """Restore deleted artifact versions from the archive, and report what came back and what cannot.

    With a database, versions come back exactly as they were. Through the API, where neither an id nor a date can be given,
    they are new versions, under a key of their own. What exists already is left alone, so a restore can be run again.

    Args:
        keys: Globs of the keys whose deleted versions are restored, such as report-*. Empty: of all keys.
        ids: Ids of single versions. Empty: all.
        runs: Ids or names of the cleanup runs that deleted them. Empty: of all runs.
        policies: Names of the policies by which they were deleted. Empty: of all policies.
        since: Only what was deleted from this day or time on, such as 2026-11-28 or 2026-11-28T03:00 (UTC).
        until: Only what was deleted up to this day, which is included, or time.
        apply: Restore them. Otherwise, the run only reports what it would restore.
        hold_days: What is restored is on hold for so many days, in which no cleanup deletes it again. 0: no hold.
        to_key: Restore as new versions under this key. Empty: under the original key, through the API under KEY-restored.
        same_key: Through the API, restore under the original key, which must have no versions.
        from_server: Restore what was deleted on the server with this address. Empty: on this server, whatever address it had.
        data: Restore no deleted versions, but the data that were moved to the archive of versions that exist.
        target: Name of the target in the configuration to which to restore. Empty: the server on which this flow runs.

    Returns:
        The report, also published as the artifact `artifact-retention-restored`.

    Raises:
        RestoreFailed: The restore failed, in whole or for some keys; carries the report.
        ConfigurationError: A parameter or a setting is invalid; nothing has been restored.
        StoreError: The archive, the server or the database cannot be reached.
    """
    try:
        request = Request(keys, ids, runs, since, until, hold_days, to_key, same_key, from_server, data, policies)
        selection = request.selection("parameters")
        if apply and not (keys or ids or runs or policies or since or until):
            raise ConfigurationError(f"parameters: {NOTHING_NAMED}")
        settings = load_settings().at_target(target)
        async with at_target(settings, target):
            report = await _open_and_restore(settings, selection, applies=apply)
    except RetentionError as error:
        # The caller raises the error that is the data of the state. Raised here, it would be logged with a traceback.
        return Failed(message=str(error), data=error)  # type: ignore[return-value]
    message = outcome_message(report)
    if report.outcome == "failed":
        return Failed(message=message, data=RestoreFailed(report, message))  # type: ignore[return-value]
    return Completed(message=message, data=report)  # type: ignore[return-value]


async def _open_and_restore(settings: RetentionSettings, selection: Selection, *, applies: bool) -> RestoreReport:
    own_runs = frozenset() if is_elsewhere() else {UUID(runtime.flow_run.id)}
    async with open_restore(settings, selection, own_runs, applies=applies) as restore:
        if listener := LISTENER.get():
            restore.listeners.append(listener)
        await plan(restore)
        try:
            if applies:
                await cancel_on_sigterm(_restore(restore))
        except (TerminationSignal, asyncio.CancelledError):
            get_run_logger().warning(f"Stopped; a rerun restores the rest. {headline(restore.report)}")
            raise
        report = restore.report
        is_in_vain = bool(report.unavailable) and not (report.restored or report.present)
        is_failed = report.errors or (applies and (report.causes() or is_in_vain))
        report.outcome = "failed" if is_failed else "completed"
        report.duration_seconds = restore.seconds
        get_run_logger().info(outcome_message(report))
        await _publish(restore.connection, report)
        if (restored := RESTORED.get()) is not None:
            restored.append(report)
        return report


async def _restore(restore: Restore) -> None:
    progress = _RestoreProgress(restore.connection)
    restore.listeners.append(progress.listen)
    with suppress(StoreError, httpx.HTTPError, ValueError):
        await progress.start()
    try:
        await restore_all(restore)
    except RetentionError as error:
        restore.report.errors.append(str(error))
    except Exception as error:  # noqa: BLE001 - the report is published after any error
        restore.report.errors.append(f"unexpected {type(error).__name__}")
    await progress.finish(headline(restore.report), complete=not restore.report.causes())


class _RestoreProgress:
    """The progress of a restore, as an artifact that is updated in place. A restore does not depend on it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._artifact = LiveArtifact(PROGRESS_KEY)
        self._shown = 0.0

    async def start(self) -> None:
        await take(self._artifact.create(0.0, "Restoring"), self._connection.client)

    async def listen(self, step: Step, done: int, total: int) -> None:
        percent = 100 * done / total if total else 100.0
        if step == "restoring" and percent - self._shown >= UPDATE_PERCENT and done < total:
            await self._update(percent, f"{done:,}/{total:,} versions restored")

    async def finish(self, description: str, *, complete: bool) -> None:
        await self._update(100.0 if complete else self._shown, description)

    async def _update(self, percent: float, description: str) -> None:
        if self._artifact.id is not None:
            self._shown = percent
            with suppress(httpx.HTTPError):
                await take(self._artifact.update(percent, description), self._connection.client)


async def _publish(connection: Connection, report: RestoreReport) -> None:
    """Write the report as an artifact. A failure is one of the report: what was restored is restored all the same."""
    restores = page_of(RESTORED_KEY)
    text = markdown(report, links=run_link() | ({"Restores": restores} if restores else {}))
    try:
        await create_first_accepted(connection.client, [text], type="markdown", key=RESTORED_KEY, description=headline(report))
    except httpx.HTTPError as error:
        report.errors.append(f"the report could not be written: {reason(error)}")
    except StoreError as error:
        report.errors.append(str(error))
    if report.errors:
        report.outcome = "failed"


def show(report: RestoreReport) -> None:
    """Print a report as a table, one row a key."""
    verb = "Restored" if report.applied else "To restore"
    header = ("Key", "Versions", "Present", verb, "Size", "First created (UTC)", "Last created (UTC)", "Remarks")
    parts: list[Text | terminal.WholeTable] = [
        Text(headline(report), style="bold"),
        Text(printable(f"On {report.server}, from the archive {report.archive}")),
        *(Text(printable(note), style="yellow") for note in notes(report)),
    ]
    if report.key_reports:
        rows = [_cells(each, applied=report.applied) for each in report.key_reports]
        parts.append(terminal.WholeTable([Text(name) for name in header], rows))
    if not report.applied and report.missing:
        parts.append(Text("Nothing has been restored: this is a preview. Add --apply to restore."))
    terminal.show(*parts)


def _cells(each: RestoredKey, *, applied: bool) -> list[Text]:
    return [
        Text(printable(label(each.key))),
        Text(str(each.versions), justify="right"),
        Text(str(each.present), justify="right"),
        Text(str(each.restored if applied else each.missing), justify="right"),
        Text(size(each.bytes).replace(" ", NO_BREAK), justify="right"),
        *(
            Text(f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}".replace(" ", NO_BREAK))
            for moment in (each.first_created, each.last_created)
        ),
        Text(printable(remark(each))),
    ]
