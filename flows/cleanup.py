"""The cleanup flow: discover, plan, guard, prune, verify, report.

`mode="preview"`, the default everywhere, deletes nothing; it writes only the package's own artifacts. `python
flows/cleanup.py` previews without writing anything.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.exceptions import TerminationSignal
from prefect.states import Completed, Failed
from prefect_artifact_retention.flows.approval import Part, awaits, clean_up_with_approval
from prefect_artifact_retention.flows.blocks import read_block, read_secret
from prefect_artifact_retention.flows.destinations import at_target
from prefect_artifact_retention.flows.server_policies import with_server_policies
from prefect_artifact_retention.flows.settings import (
    ENV_PREFIX,
    Minutes,
    Number,
    Percent,
    RetentionSettings,
    load_settings,
    resolve_policies,
)
from prefect_artifact_retention.flows.termination import cancel_on_sigterm
from prefect_artifact_retention.policies import ConfigurationError, RetentionError, RetentionPolicy, StoreError
from prefect_artifact_retention.policies.formatting import count, days
from prefect_artifact_retention.policies.meaning import digest
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.archive.model import ArchiveError
from prefect_artifact_retention.stores.connection import Connection, connect, uses_ephemeral_server
from prefect_artifact_retention.stores.database import DatabaseStore, open_database
from prefect_artifact_retention.stores.destination import destination, is_elsewhere
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.stores.store import Store
from prefect_artifact_retention.tasks.acceptance import is_attended, record_applied, refuse_unaccepted
from prefect_artifact_retention.tasks.archive import NOTHING_ARCHIVED, RunArchive
from prefect_artifact_retention.tasks.archiving import finish_archive, prune_archive
from prefect_artifact_retention.tasks.discover import check_scope, discover, discover_task
from prefect_artifact_retention.tasks.ledger import ledger
from prefect_artifact_retention.tasks.offload import offload
from prefect_artifact_retention.tasks.plan import guard, make_plan, plan_task
from prefect_artifact_retention.tasks.planfile import PlanFile, ShownPlan
from prefect_artifact_retention.tasks.progress import Guest, ProgressArtifact, other_run
from prefect_artifact_retention.tasks.prune import prune_through_api
from prefect_artifact_retention.tasks.prune_database import prune_in_database_task
from prefect_artifact_retention.tasks.publication import links, publish_report, report_task
from prefect_artifact_retention.tasks.reclaim import measure_disk, reclaim_task, report_purge
from prefect_artifact_retention.tasks.rendering import headline, outcome_message, scope_label, with_links
from prefect_artifact_retention.tasks.report import (
    SUCCESSES,
    ArchiveReport,
    CleanupFailed,
    CleanupReport,
    Mode,
    Outcome,
    scope_digest,
)
from prefect_artifact_retention.tasks.run import Limits, Listener, Run, in_flow_run
from prefect_artifact_retention.tasks.shown import keep_to_plan
from prefect_artifact_retention.tasks.verify import verify, verify_task

if TYPE_CHECKING:
    from prefect_artifact_retention.stores.archive.archive import Archive

LOGGER = logging.getLogger(__name__)
"""Of a run that is none of Prefect's, and has no log there."""

LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
"""A further listener of the runs in this context: the progress bar of the command line."""

SHOWN: ContextVar[ShownPlan | None] = ContextVar("shown", default=None)
"""The plan that a delete run in this context carries out: of up to millions of ids, which are no parameter of a flow run."""

FINISHED: ContextVar[list[CleanupReport] | None] = ContextVar("finished", default=None)
"""Gets the report of each delete run in this context, for a caller whom Prefect may give an error instead of the result."""

IS_ATTENDED: ContextVar[bool] = ContextVar("is_attended", default=False)
"""Whether a person has started what starts the runs in this context."""

FlowMode = Literal["preview", "approve", "delete"]

EVENT = "artifact-retention.cleanup"
"""The resource of the events of delete runs, and the beginning of their names."""

SCOPE_LABEL = "artifact-retention.scope"
"""The label with the scope of the run: a digest, because automations would read a glob as a pattern."""

TARGET_LABEL = "artifact-retention.target"
"""The label with the name of the target, of a run that has one."""

SUCCESS_EVENTS = {f"{EVENT}.{outcome}" for outcome in SUCCESSES}
"""The events of successful runs. An unfinished run counts, because it stopped at a limit as configured."""

RUNNING = f"{EVENT}.running"
"""The event of a delete run that is still at work, by which the alarm waits for it."""

RUNNING_SECONDS = 1800
"""The interval of these events. With more, the alarm may go off while a run is at work; with less, it goes off later for runs
that are killed every night."""

EVENT_FIELDS = {"planned", "deleted", "already_gone", "failed", "bytes_freed", "keys_seen", "versions_seen", "stalled_runs"}
"""The fields of the report in the events of delete runs."""

LABELLED_FIELDS = ("deleted", "stalled_runs")
"""The fields of them that are labels, too, because automations read no payload."""

LABEL_DIGITS = 9
"""The width of a number in a label. With more, an automation that compares it has more patterns; with less, more numbers count
as the largest."""

EPHEMERAL_SERVER = (
    "neither PREFECT_API_URL nor the active Prefect profile names a server, so Prefect starts a temporary one, "
    "which is not the server that others use"
)
"""What is wrong where a run has no server."""

CLOCK_TOLERANCE = timedelta(minutes=5)
"""A larger difference between the server's clock and this machine's is reported; one between the `Date` header of the server's
answers, by which ages are counted, and the dates that it gives to artifacts ends a delete run. With more, a wrong `Date` makes
versions older by as much."""

SIGNAL_SECONDS = 0.1
"""How long an error waits for the cancellation that may have led to it. With less, a stopped run may say that it failed."""

FINAL_REPORT_SECONDS = 6
"""The time for the final report at shutdown. Docker kills a container 10 seconds after SIGTERM, a worker a run after 30, so
with more, the report may be cut off."""


@asynccontextmanager
async def open_run(  # noqa: PLR0913, PLR0917 - what a run is opened for
    settings: RetentionSettings,
    mode: Mode,
    policies: Sequence[RetentionPolicy],
    keys: Sequence[str],
    own_runs: Collection[UUID] = frozenset(),
    shown: ShownPlan | None = None,
    *,
    with_archive: bool = True,
) -> AsyncIterator[Run]:
    """Open a run: connect to the server and the database, read the server's clock, and resolve the policies.

    A run that is to carry out a plan which somebody has seen is refused if that is not for it. Without the archive, that is
    neither opened nor written to.

    Raises:
        ConfigurationError: The policies are invalid, or there are none in a delete run.
        StoreError: The server or the database cannot be reached, or refuses a request.
    """
    if settings.policies:
        # Before anything is sent.
        resolve_policies(policies, settings, mode)
    if mode == "delete":
        refuse_ephemeral_server(settings)
    there = destination()
    async with connect(settings.max_requests_per_minute) as connection, AsyncExitStack() as stack:
        server = Server(connection)
        # First, because it also shows whether the server can be reached at all.
        now = await server.now()
        all_policies, source = resolve_policies(policies, await with_server_policies(settings, connection), mode)
        store: Store = ApiStore(connection)
        if url := await database_url(settings, connection):
            opening = open_database(url, settings.max_deletions_per_second, purges_events=settings.purge_events)
            store = database = await stack.enter_async_context(opening)
            replaces = settings.archives_payloads and any(policy.offload_larger_than_kb for policy in all_policies)
            await database.check(server, own_runs, deletes=mode == "delete", replaces=replaces)
        archive = await open_archive_of(settings, connection) if with_archive else None
        report = CleanupReport(
            mode=mode,
            server=connection.address,
            target=there.name if there else "",
            now=now,
            scope=list(keys),
            policy_source=source,
            policy_digest=digest(all_policies),
            archive=archive and ArchiveReport(url=archive.url, payloads=settings.archive_payloads),
            planned_at=shown and shown.plan.now,
        )
        if shown:
            server_of_plan = None if shown.on_server else report.server
            report.refusals += shown.plan.objections(server_of_plan, all_policies, now, shown.max_age)
        to_archive = await _begin_archive(archive, report, own_runs) if archive else None
        if abs(now - datetime.now(UTC)) > CLOCK_TOLERANCE:
            report.warn(f"the server's clock, which counts, differs from this machine's: it says {now:%Y-%m-%d %H:%M} UTC")
        if uses_ephemeral_server():
            report.warn(EPHEMERAL_SERVER)
        for doubt in settings.without_effect():
            report.warn(doubt)
        if connection.shows_credentials:
            # Prefect logs "View at http://user:password@...", and its events do not reach such a server.
            report.warn("PREFECT_API_URL has credentials in it, which Prefect itself prints: use PREFECT_API_AUTH_STRING")
        limits = Limits(
            max_deletions=settings.max_deletions,
            time_budget_minutes=settings.time_budget_minutes,
            refuse_above_percent=settings.refuse_above_percent,
            max_task_runs=settings.max_task_runs,
            max_log_lines=settings.max_log_lines,
            archive_keep_days=settings.archive_keep_days,
            ledger_keep_days=settings.ledger_keep_days,
            require_accepted_policies=settings.require_accepted_policies,
        )
        listeners = [listener] if (listener := LISTENER.get()) else []
        yield Run(
            server,
            all_policies,
            report,
            store=store,
            limits=limits,
            own_runs=own_runs,
            listeners=listeners,
            archive=to_archive,
            shown=shown,
        )


async def database_url(settings: RetentionSettings, connection: Connection) -> str:
    """Read the address of the server's database from the settings or from a block; empty to use the API.

    Raises:
        ConfigurationError: There is no such block.
        StoreError: The block cannot be read.
    """
    url = settings.database_url.get_secret_value()
    if url or not (name := settings.database_block):
        return url
    return await read_secret(connection, name, settings.source("database_block"))


async def open_archive_of(settings: RetentionSettings, connection: Connection | None) -> Archive | None:
    """Open the archive that the settings, or a block that they name, have an address of; None without one.

    Without a connection, no block is read.

    Raises:
        ConfigurationError: There is no such block, or the address cannot be used.
        StoreError: The block cannot be read.
    """
    url, source = settings.archive_url, settings.archive_setting
    options: Mapping[str, Any] = {}
    if connection and not url and (name := settings.archive_block):
        data = await read_block(connection, name, "Remote File System", source)
        url, options = str(data.get("basepath") or ""), data.get("settings") or {}
        if not url.strip():
            raise ConfigurationError(f"{source}: the Remote File System block {name} has no base path")
    if not url:
        return None
    try:
        # It needs an extra, and says so.
        from prefect_artifact_retention.stores.archive.archive import open_archive  # noqa: PLC0415

        return open_archive(url, options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from None


async def _begin_archive(archive: Archive, report: CleanupReport, own_runs: Collection[UUID]) -> RunArchive | None:
    """Check that an archive can be written, and begin with what a delete run puts there; None in a preview.

    Raises:
        StoreError: A delete run could archive nothing, and so delete nothing.
    """
    try:
        if await asyncio.to_thread(archive.check_writable):
            report.warn(NOTHING_ARCHIVED.format(archive.url))
        if report.mode == "preview":
            return None
        run_id = str(next(iter(own_runs), None) or uuid4())
        first_number = await asyncio.to_thread(archive.first_free_number, run_id)
        return RunArchive(archive, report, run_id, str(runtime.flow_run.name or run_id), first_number)
    except ArchiveError as error:
        if report.mode == "delete":
            raise
        report.warn(f"a delete run would fail: {error}")
        return None


def refuse_ephemeral_server(settings: RetentionSettings) -> None:
    """Refuse to delete on a temporary server, unless that is asked for.

    Raises:
        ConfigurationError: No server is configured.
    """
    if uses_ephemeral_server() and not settings.allow_ephemeral_server:
        raise ConfigurationError(
            f"{EPHEMERAL_SERVER}. Nothing is deleted there unless {ENV_PREFIX}ALLOW_EPHEMERAL_SERVER is true"
        )


async def reach_server(settings: RetentionSettings) -> None:
    """Check that there is a server to delete on and that it answers, for a clearer error than Prefect's own.

    Raises:
        ConfigurationError: No server is configured.
        StoreError: The server cannot be reached, refuses the credentials, or has a version on which Prefect runs no flow.
    """
    refuse_ephemeral_server(settings)
    async with connect() as connection:
        await connection.now()
        try:
            await connection.client.raise_for_api_version_mismatch_once()
        except (RuntimeError, ValueError) as error:
            raise StoreError(f"Prefect runs no flow on this server: {error}") from None


async def preview(
    settings: RetentionSettings,
    policies: Sequence[RetentionPolicy] = (),
    keys: Sequence[str] = (),
    next_days: float = 0,
) -> CleanupReport:
    """Plan without a flow run and its tasks, so that nothing at all is written to the server.

    Args:
        settings: The settings.
        policies: In place of the configured ones.
        keys: Globs of the keys to plan.
        next_days: How far in the future to plan, as if nothing were written until then.

    Raises:
        ConfigurationError: The policies are invalid.
        StoreError: The server cannot be reached, or refuses a request.
    """
    async with plan_only(settings, policies, keys, next_days) as run:
        return run.report


@asynccontextmanager
async def plan_only(
    settings: RetentionSettings, policies: Sequence[RetentionPolicy] = (), keys: Sequence[str] = (), next_days: float = 0
) -> AsyncIterator[Run]:
    """Plan as `preview` does, for who needs more of the run than its report.

    Raises:
        ConfigurationError: The policies are invalid.
        StoreError: The server cannot be reached, or refuses a request.
    """
    async with open_run(settings, "preview", policies, keys) as run:
        await discover(run)
        check_scope(run)
        if next_days:
            run.report.next_days = next_days
            ahead = f"planned {days(next_days)} ahead, as if nothing were written, no run ended and no cleanup ran until then"
            run.report.warn(ahead)
        await make_plan(run)
        if not next_days:
            # What is expected of a day in the future depends on what is written until then.
            guard(run)
        run.report.outcome = _outcome(run.report)
        run.report.duration_seconds = run.seconds
        yield run


def _flow_run_name() -> str:
    parameters = runtime.flow_run.parameters
    where = f" on {target}" if (target := parameters.get("target")) else ""
    return f"{parameters.get('mode', 'preview')} {scope_label(parameters.get('keys', []))[:80]}{where}"


@flow(name="artifact-cleanup", flow_run_name=_flow_run_name, persist_result=False, retries=0)
async def artifact_cleanup(  # noqa: PLR0913, PLR0917 - the fields of the run form
    mode: FlowMode = "preview",
    policies: list[RetentionPolicy] = [],  # noqa: B006 - Prefect shows it in the run form and never changes it
    keys: list[str] = [],  # noqa: B006
    max_deletions: Number = 0,
    time_budget_minutes: Minutes = 0,
    refuse_above_percent: Percent = 0,
    max_task_runs: Number = 0,
    max_requests_per_minute: Number = 0,
    ignore_guard: bool = False,  # noqa: FBT001, FBT002 - a box of the run form
    require_accepted_policies: bool = False,  # noqa: FBT001, FBT002
    target: str = "",
) -> CleanupReport:
    """Delete the artifact versions that no retention policy keeps, and report what was kept, what went, and why.

    Args:
        mode: preview reports what would be deleted; delete deletes it; approve reports it, waits for a person to approve it in
            this form of the flow run, and deletes that only.
        policies: Used instead of the configured ones, except that configured keep_all policies stay in force. Empty: as
            configured (retention.toml or environment).
        keys: Globs of the keys to clean up, such as report-*. Empty: all keys, and the artifacts without a key. One that no
            key can match, such as Report-*, is an error.
        max_deletions: Delete at most this many versions; the next run goes on. 0: as configured, else no limit.
        time_budget_minutes: Stop after this time; the next run goes on. 0: as configured, else no limit.
        refuse_above_percent: Delete nothing of a policy if more than this share of its versions would go unexpectedly: if more
            goes than comes from run to run. 0: as configured, else off. If another is configured, the stricter holds.
        max_task_runs: Prune tasks at most; more keys are packed together. 0: as configured, else 25.
        max_requests_per_minute: Requests to the server at most. 0: as configured, else 150 on Prefect Cloud and no limit on
            your own server.
        ignore_guard: Delete whatever share of the versions goes, in this run; refuse_above_percent does not apply.
        require_accepted_policies: Refuse a scheduled run whose policies no person has applied or accepted yet. Off: as
            configured.
        target: Name of the target in the configuration on which to run. Empty: the server on which this flow runs.

    Returns:
        The report, also published as the artifact `artifact-retention-report`.

    Raises:
        CleanupFailed: The run was refused or failed; carries the report.
        ConfigurationError: A policy, a setting or a glob of `keys` is invalid; nothing has run.
        StoreError: The server cannot be reached, or refuses a request.
    """
    given = {
        "max_deletions": max_deletions,
        "time_budget_minutes": time_budget_minutes,
        "refuse_above_percent": refuse_above_percent,
        "max_task_runs": max_task_runs,
        "max_requests_per_minute": max_requests_per_minute,
        "require_accepted_policies": require_accepted_policies,
    }
    try:
        settings = load_settings().at_target(target).with_parameters(ignore_guard=ignore_guard, **given)

        async def work(part: Part) -> CleanupReport:
            async with at_target(settings, target):
                return await _open_and_clean_up(settings, part, policies, keys)

        if mode == "approve":
            report = await clean_up_with_approval(settings, policies, work)
        else:
            report = await work(Part(mode, SHOWN.get()))
    except RetentionError as error:
        if mode != "preview":
            announce("failed", keys, {"error": str(error)}, target)
        # The caller raises the error that is the data of the state. Raised here, it would be logged with a traceback.
        return Failed(message=str(error), data=error)  # type: ignore[return-value]
    return _final_state(report)  # type: ignore[return-value]


async def _open_and_clean_up(
    settings: RetentionSettings, part: Part, policies: Sequence[RetentionPolicy], keys: Sequence[str]
) -> CleanupReport:
    run_id = UUID(runtime.flow_run.id)
    guest = Guest(run_id, str(runtime.flow_run.name), list(keys)) if is_elsewhere() else None
    async with open_run(settings, part.mode, policies, keys, frozenset() if guest else {run_id}, part.shown) as run:
        progress = ProgressArtifact(run.server.connection, guest)
        run.listen(progress.listen)
        run.is_attended = bool(part.answer) or IS_ATTENDED.get() or is_attended()
        run.plans_all = bool(part.planned or part.answer)
        if part.planned:
            run.report.awaits = awaits(settings)
        if part.answer:
            run.report.approved_by = part.answer.by
            run.is_declined, run.needs_all_shown = not part.answer.approves, part.answer.approves
        try:
            async with signs_of_life(lambda: _announce_report("running", run.report)):
                await cancel_on_sigterm(clean_up(run, progress, vacuum=settings.reclaim == "vacuum"))
        except (TerminationSignal, asyncio.CancelledError):
            await _final_report(run, progress)
            if part.mode == "delete" and (finished := FINISHED.get()) is not None:
                finished.append(run.report)
            raise
        if part.planned:
            await part.planned(run)
        if part.mode == "delete" and run.report.outcome != "outdated":
            if (finished := FINISHED.get()) is not None:
                finished.append(run.report)
            _announce_report(run.report.outcome, run.report)
        return run.report


@asynccontextmanager
async def signs_of_life(emit: Callable[[], None]) -> AsyncIterator[None]:
    """Call what emits an event every half an hour, while a run is at work.

    The first comes after half an hour: a run that is killed or fails soon, each night, must not put the alarm off.
    """

    async def beat() -> None:
        while True:
            await asyncio.sleep(RUNNING_SECONDS)
            emit()

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


async def clean_up(run: Run, progress: ProgressArtifact, *, vacuum: bool) -> None:
    """Do all steps of a run, and leave its report: as Prefect tasks in a flow run, as plain functions elsewhere.

    Args:
        run: The run; its report says how it ended, whatever goes wrong.
        progress: Where people see how far it is.
        vacuum: Whether to vacuum the database afterwards, if the run deletes there.

    Raises:
        ConfigurationError: The scope of the run cannot be meant; nothing was written.
    """
    try:
        await _steps(run, progress, vacuum=vacuum)
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - the report is published after any error; Prefect logs the traceback
        # At SIGTERM, Prefect breaks off whatever code is executing. If that makes an error, the cancellation follows it.
        await asyncio.sleep(SIGNAL_SECONDS)
        run.report.errors.append(str(error) if isinstance(error, RetentionError) else f"unexpected {type(error).__name__}")
    await _publish(run, progress)


def _logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    return get_run_logger() if in_flow_run() else LOGGER


async def _publish(run: Run, progress: ProgressArtifact) -> None:
    report = run.report
    report.outcome = _outcome(report)
    await finish_archive(run)
    report.outcome = _outcome(report)
    report.duration_seconds = run.seconds
    await record_applied(run, f"run {runtime.flow_run.name or report.mode}")
    _logger().info(outcome_message(report))
    description = with_links(headline(report), links(), "Reports", "History")
    try:
        await report_task(run)
        await progress.finish(description, complete=report.outcome == "completed")
    except RetentionError as error:
        report.errors.append(str(error))
    except Exception as error:  # noqa: BLE001 - the event and the exit code say all the same what was deleted
        report.errors.append(f"the report could not be written: unexpected {type(error).__name__}")
    report.outcome = _outcome(report)


async def _final_report(run: Run, progress: ProgressArtifact) -> None:
    """Write the final report of a run that is shut down by SIGTERM or a cancellation.

    It uses a connection of its own, because the run's may be in the middle of a request, and plain functions instead of tasks,
    because there is little time. The next run does what is left. Prefect sets the state of the flow run: Cancelled or Crashed.
    """
    report = run.report
    report.outcome = "unfinished"
    report.outcome = _outcome(report)
    report.duration_seconds = run.seconds
    report.warn("The run was shut down before it was finished; deletions in flight at that time may not be counted.")
    description = with_links(f"Stopped. {headline(report)}", links(), "Reports", "History")
    _logger().warning(f"Stopped. {outcome_message(report)}")
    # Whatever fails here, the event below says what was deleted.
    with suppress(Exception):
        async with asyncio.timeout(FINAL_REPORT_SECONDS):
            # Neither ends the other: the archive may be in reach where the server is not.
            await asyncio.gather(_leave_report(run, progress, description), finish_archive(run), return_exceptions=True)
    _announce_report("stopped", report)


async def _leave_report(run: Run, progress: ProgressArtifact, description: str) -> None:
    """Leave the report of a run that is shut down, and verify what it has touched."""
    async with connect() as connection:
        run.server.connection.take_over(connection)
        with suppress(StoreError):
            await progress.find(run.server, run.own_runs)
        await progress.finish(description, complete=False)
        with suppress(Exception):
            await publish_report(run)
        with suppress(Exception):
            if run.touched:
                await verify(run)
        # Once more: an update that was in flight at the shutdown may have overwritten the one above.
        await progress.finish(description, complete=False)


async def _steps(run: Run, progress: ProgressArtifact, *, vacuum: bool) -> None:
    if run.is_declined:
        run.report.outcome = "declined"
        return
    await discover_task(run)
    check_scope(run)
    await _start_progress(run, progress)
    if progress.guest and progress.id and isinstance(run.store, DatabaseStore):
        # Of a flow run on another server, nothing else tells the target's database from a copy.
        await run.store.check_has(run.server, progress.id)
    await refuse_unaccepted(run)
    if run.report.refusals or await _skip_for_other_run(run, progress):
        return
    await plan_task(run)
    if run.shown and not _keeps_to(run, run.shown.plan):
        return
    guard(run)
    if run.report.mode == "delete":
        await _prune(run, progress, vacuum=vacuum)


def _keeps_to(run: Run, plan: PlanFile) -> bool:
    """Leave alone what was not shown. Return False if a person is to be asked again because of it."""
    differences = keep_to_plan(run, plan)
    for line in run.report.differences:
        _logger().warning(f"Not as in the plan that was shown: {line}")
    if run.needs_all_shown and any(each.more for each in differences):
        run.report.outcome = "outdated"
    return run.report.outcome != "outdated"


async def _prune(run: Run, progress: ProgressArtifact, *, vacuum: bool) -> None:
    """Delete what is planned, unless another run is at it."""
    if not (run.plans or run.dangling or run.offloads):
        # What the guard refuses must not keep the next run from the keys that this one had no time for.
        if run.moves_on and (run.is_partial or not run.report.refusals):
            run.next_start = run.report.stopped_at
        return
    if await _skip_for_other_run(run, progress):
        return
    await progress.announce_deleting()
    if await _skip_for_other_run(run, progress):
        return
    _logger().info(f"Deleting {count(run.planned, 'stale version')} of {count(len(run.plans), 'key')}")
    await _delete(run, vacuum=vacuum)


async def _delete(run: Run, *, vacuum: bool) -> None:
    """Prune what the plan found stale, and verify the collections; what goes wrong is in the report."""
    database = run.store if isinstance(run.store, DatabaseStore) else None
    on_disk = await measure_disk(run, database) if database else None
    try:
        if database:
            await prune_in_database_task(run, database)
        elif isinstance(run.store, ApiStore):
            await run.server.detect_concurrency("" if is_elsewhere() else runtime.flow_run.flow_name or artifact_cleanup.name)
            await prune_through_api(run, run.store)
        await offload(run)
    except RetentionError as error:
        run.report.errors.append(str(error))
    finally:
        for line in ledger(run):
            _logger().info(line)
        if run.moves_on:
            run.next_start = run.find_next_start()
        if database:
            report_purge(run, database)
    await verify_task(run)
    await prune_archive(run)
    if database and run.report.deleted:
        await reclaim_task(run, database, on_disk, vacuum=vacuum)


async def _start_progress(run: Run, progress: ProgressArtifact) -> None:
    """Create the progress artifact, and refuse a delete run whose clock is not the one with which the server dates artifacts.

    The run's clock comes from a `Date` header, which a proxy may have written. The server dates artifacts itself, and what it
    has dated is what the run deletes.

    Raises:
        StoreError: The server refuses the artifact of a delete run, so that its clock cannot be checked.
    """
    deletes = run.report.mode == "delete"
    before = run.seconds
    try:
        await progress.start("Step 1/3: planning")
        server_now = progress.now()
    except StoreError:
        if deletes:
            raise
        return
    earliest, latest = (run.report.now + timedelta(seconds=seconds) for seconds in (before, run.seconds))
    if earliest - CLOCK_TOLERANCE <= server_now <= latest + CLOCK_TOLERANCE:
        return
    doubt = (
        f"the answers of the server are dated {latest:%Y-%m-%d %H:%M} UTC, and an artifact that it has just created "
        f"{server_now:%Y-%m-%d %H:%M} UTC: one of the two clocks is wrong (the Date header may be that of a proxy), "
        "so no age can be relied on"
    )
    if deletes:
        run.report.refusals.append(doubt)
    else:
        run.report.warn(f"{doubt}; a delete run would be refused")


async def _skip_for_other_run(run: Run, progress: ProgressArtifact) -> bool:
    """Skip a delete run, and return True, if another one is deleting some of the same keys.

    Called before planning, to save the work, and right before and after the announcement that this run deletes: of two runs
    that announce it together, at least one sees the other.
    """
    if run.report.mode != "delete":
        return False
    for own_id in {progress.guest.run_id} if progress.guest else run.own_runs:
        if other := await other_run(run, own_id, progress.now(), progress.announced):
            run.report.outcome = "skipped"
            run.report.refusals = [other]
            return True
    return False


def _outcome(report: CleanupReport) -> Outcome:
    if report.errors or any(report.failures()):
        return "failed"
    return "refused" if report.refusals and report.outcome not in {"skipped", "declined"} else report.outcome


def number_label(number: int) -> str:
    """Format a number for a label, in digits of a fixed width, so that patterns can compare it."""
    return f"{min(number, 10**LABEL_DIGITS - 1):0{LABEL_DIGITS}d}"


def announce(
    ending: Outcome | Literal["stopped", "running"], scope: Sequence[str], payload: Mapping[str, Any], target: str = ""
) -> None:
    """Emit the event of a delete run, such as `artifact-retention.cleanup.completed`. A failure is logged only.

    A run on a target has a scope of its own: its success is none of the server on which it is, whose alarms wait for one.
    """
    where = f" on {target}" if target else ""
    try:
        emit_event(
            event=f"{EVENT}.{ending}",
            resource={
                "prefect.resource.id": EVENT,
                "prefect.resource.name": f"artifact cleanup of {scope_label(scope)}{where}",
                SCOPE_LABEL: scope_digest(scope, target),
                **({TARGET_LABEL: target} if target else {}),
                **{f"artifact-retention.{name}": number_label(payload[name]) for name in LABELLED_FIELDS if name in payload},
            },
            payload={"scope": list(scope), **({"target": target} if target else {}), **payload},
        )
    except Exception as error:  # noqa: BLE001 - the run is over, and its state says how it ended
        _logger().warning(f"The event of the run could not be emitted: {type(error).__name__}")


def _announce_report(ending: Outcome | Literal["stopped", "running"], report: CleanupReport) -> None:
    """Emit the event of a run, if it is a delete run."""
    if report.mode == "delete":
        announce(ending, report.scope, report.model_dump(mode="json", include=EVENT_FIELDS), report.target)


def _final_state(report: CleanupReport) -> State[CleanupReport]:
    message = outcome_message(report)
    if report.outcome in ("failed", "refused"):
        return Failed(message=message, data=CleanupFailed(report, message))
    name = report.outcome.capitalize() if report.outcome in ("unfinished", "skipped", "declined") else None
    return Completed(message=message, data=report, name=name)


if __name__ == "__main__":
    from prefect_artifact_retention.flows.cli import main

    sys.exit(main(["preview"]))
