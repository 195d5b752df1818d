"""The command line. Only commands that need a server import Prefect, because that takes seconds.

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 refused, 4 unfinished or skipped, 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Parameter, Token
from prefect_artifact_retention.policies import ConfigurationError, RetentionError, RetentionPolicy, load_policies
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.loading import describe_validation_error, stand_in
from prefect_artifact_retention.policies.meaning import digest
from prefect_artifact_retention.policies.model import MAX_DAYS
from prefect_artifact_retention.tasks.planfile import DEFAULT_MAX_AGE_HOURS, ShownPlan, load_plan
from pydantic import ValidationError, create_model
from pydantic_settings import SettingsError

if TYPE_CHECKING:
    from prefect_artifact_retention.flows.restore import Request
    from prefect_artifact_retention.flows.settings import RetentionSettings
    from prefect_artifact_retention.stores.archive.model import LedgerQuery
    from prefect_artifact_retention.tasks.report import CleanupReport
    from prefect_artifact_retention.tasks.restore_report import RestoreReport

T = TypeVar("T")

DONE, FAILED, USAGE, REFUSED, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = {
    "completed": DONE,
    "failed": FAILED,
    "refused": REFUSED,
    **dict.fromkeys(("unfinished", "skipped", "declined", "outdated"), UNFINISHED),
}

AT_HOME = {
    "approve": "runs wait on the server on which they are",
    "alarm": "runs and their events, for which alarms wait, are on the server on which they are",
    "automations": "runs and their events, for which alarms wait, are on the server on which they are",
    "deleted": "an archive has what was deleted on all servers",
    "demo": "the demo has a server of its own",
    **dict.fromkeys(
        ("policies push", "policies pull", "policies log"), "all targets go by the list of the server on which the runs are"
    ),
    "targets": "it lists all of them",
}
"""The commands that know no target, and why."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _run_async(work: Coroutine[Any, Any, T]) -> T:
    # To import it takes a tenth of the time of `--help`, which needs none.
    import asyncio  # noqa: PLC0415

    return asyncio.run(work)


def _run_on(target: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on a target of the configuration; without one, on the server of the active Prefect profile."""
    return _run_async(_on(target, work))


async def _on(target: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    from prefect_artifact_retention.flows.destinations import on_target  # noqa: PLC0415
    from prefect_artifact_retention.flows.settings import load_settings  # noqa: PLC0415

    return await on_target(load_settings(), target, work) if target else await work()


def _whole_number(_type: object, tokens: Sequence[Token]) -> int:
    """Read a whole number. Cyclopts rounds 0.4 to 0, which means no limit."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value} is no whole number") from None


Keys = Annotated[
    tuple[str, ...],
    Parameter(name="--key", help="A key, or a glob such as 'report-*'; may be repeated. Default: all.", negative=()),
]
KeepLast = Annotated[
    int | None,
    Parameter(
        name="--keep-last", help="For these keys and this call: keep the N newest. Needs --key.", converter=_whole_number
    ),
]
KeepWithinDays = Annotated[
    float | None,
    Parameter(name="--keep-within-days", help="For these keys and this call: keep versions of at most this age. Needs --key."),
]
Since = Annotated[str, Parameter(help="Only what was deleted from this day or time on: 2026-11-28, 2026-11-28T03:00 (UTC).")]
Until = Annotated[str, Parameter(help="Only what was deleted up to this day, which is included, or time.")]
Runs = Annotated[
    tuple[str, ...],
    Parameter(name="--run", help="The id or name of the run that deleted them; may be repeated.", negative=()),
]
PolicyNames = Annotated[
    tuple[str, ...],
    Parameter(name="--policy", help="The policy by which they were deleted; may be repeated.", negative=()),
]
Config = Annotated[
    Path | None, Parameter(name="--config", help="The configuration file. Default: retention.toml, if there is one.")
]
OnTarget = Annotated[
    str, Parameter(name="--target", help="The target of the configuration on which to do it. Default: this Prefect profile's.")
]
Html = Annotated[Path | None, Parameter(name="--html", help="Also write a page with pictures into this file.")]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document on stdout, and nothing else.", negative=())]

app = App(
    name="artifact-retention",
    help="Retention for Prefect artifacts: keep what your policies say, delete stale versions, report every verdict.",
    version=lambda: version("prefect-artifact-retention"),
    help_flags=["--help", "-h"],
    # To import what renders Markdown takes a tenth of the time.
    help_format="plaintext",
    # Ctrl-C is ours to report; cyclopts would end the process without a message.
    suppress_keyboard_interrupt=False,
)
policies_app = App(name="policies", help="Inspect the policies.")
app.command(policies_app)
automations_app = App(name="automations", help="Alarms about the cleanups, as automations of the server.")
app.command(automations_app)


@app.command
def preview(  # noqa: PLR0913 - the flags of the command
    *,
    key: Keys = (),
    keep_last: KeepLast = None,
    keep_within_days: KeepWithinDays = None,
    next_days: Annotated[
        float, Parameter(name="--next", help="Show what would go within so many days if nothing is written meanwhile.")
    ] = 0,
    out: Annotated[Path | None, Parameter(help="Write the plan into this file, for delete --plan.")] = None,
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Show what a deletion would delete, and why. Writes nothing to the server."""
    if not 0 <= next_days <= MAX_DAYS:
        raise ConfigurationError(f"command line: --next {next_days:g} is not between 0 and {MAX_DAYS:,} days")
    if next_days and out:
        raise ConfigurationError("command line: --next cannot stand beside --out: a plan is of what is stale now")
    _check_target("--out", out)
    settings, policies = _configure(config, key, keep_last, keep_within_days, target=target)
    _load_prefect()
    from prefect_artifact_retention.flows import cleanup, plans  # noqa: PLC0415

    if out is None:
        report = _follow(lambda: cleanup.preview(settings, policies, key, next_days), quiet=as_json, target=target)
    else:
        given = plans.Given(keep_last, keep_within_days)
        report = _follow(lambda: plans.preview_into(out, given, settings, policies, key), quiet=as_json, target=target)
    return _show(report, as_json=as_json)


@app.command
def delete(  # noqa: PLR0913 - the flags of the command
    *,
    key: Keys = (),
    keep_last: KeepLast = None,
    keep_within_days: KeepWithinDays = None,
    max_deletions: Annotated[
        int, Parameter(help="Delete at most this many versions. 0: as configured.", converter=_whole_number)
    ] = 0,
    time_budget_minutes: Annotated[float, Parameter(help="Stop after this time. 0: as configured.")] = 0,
    refuse_above_percent: Annotated[
        float, Parameter(help="Delete nothing of a policy if a larger share would go unexpectedly; the stricter holds.")
    ] = 0,
    ignore_guard: Annotated[bool, Parameter(help="Delete whatever share goes, in this run.", negative=())] = False,
    plan: Annotated[
        Path | None, Parameter(help="Delete only what is in this plan, which preview --out has written, and stale still.")
    ] = None,
    max_age: Annotated[float, Parameter(help="How old the plan may be, in hours.")] = DEFAULT_MAX_AGE_HOURS,
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Delete the stale versions: run the flow `artifact-cleanup` in mode delete."""
    shown = ShownPlan.within(load_plan(plan), max_age) if plan else None
    if shown:
        if key or (keep_last, keep_within_days) != (None, None):
            raise ConfigurationError("command line: --key, --keep-last and --keep-within-days are those of the --plan")
        key, keep_last, keep_within_days = tuple(shown.plan.scope), shown.plan.keep_last, shown.plan.keep_within_days
    settings, policies = _configure(config, key, keep_last, keep_within_days, target=target)
    _check_limits(
        max_deletions=max_deletions,
        time_budget_minutes=time_budget_minutes,
        refuse_above_percent=refuse_above_percent,
    )
    # Prefect's log goes to the server only; on the terminal, this command prints the report.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    _load_prefect()
    from prefect_artifact_retention.flows import deletion  # noqa: PLC0415

    report = deletion.delete(
        lambda work: _follow(work, quiet=as_json),
        settings,
        policies,
        key,
        shown=shown,
        target=target,
        max_deletions=max_deletions,
        time_budget_minutes=time_budget_minutes,
        refuse_above_percent=refuse_above_percent,
        ignore_guard=ignore_guard,
    )
    try:
        _show(report, as_json=as_json)
        sys.stdout.flush()
    except OSError as error:
        # The reader has gone, or a disk is full; the versions are deleted all the same.
        _complain(f"the report could not be printed: {error.strerror}")
    return EXIT_CODES[report.outcome]


@app.command
def explain(  # noqa: PLR0913 - the flags of the command
    key: str | None = None,
    /,
    *,
    unkeyed: Annotated[bool, Parameter(help="In place of KEY: every artifact without a key.", negative=())] = False,
    was_deleted: Annotated[
        bool, Parameter(name="--deleted", help="Show the versions that were deleted, from the archive.", negative=())
    ] = False,
    html: Html = None,
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Show every version of one key: its verdict, all the reasons, and when it goes. Writes nothing to the server."""
    if (key is None) != unkeyed:
        raise ConfigurationError("command line: explain takes a KEY, or --unkeyed for the artifacts without a key")
    if was_deleted and html:
        raise ConfigurationError("command line: --html shows the versions that there are, and --deleted others")
    if was_deleted and target:
        raise ConfigurationError("command line: --deleted shows what the archive has of all servers; it takes no --target")
    if was_deleted and key is None:
        raise ConfigurationError("command line: --deleted takes a KEY; see the command deleted for all others")
    _check_target("--html", html)
    settings, _ = _configure(config, target=target)
    _load_prefect()
    if was_deleted:
        from prefect_artifact_retention.flows.ledger import make_query  # noqa: PLC0415

        return _show_ledger(settings, make_query([key or ""]), 0, as_json=as_json)
    from prefect_artifact_retention.flows import explanation  # noqa: PLC0415

    explained = _run_on(
        target, lambda: explanation.explain_unkeyed(settings) if key is None else explanation.explain(settings, key)
    )
    if html:
        from prefect_artifact_retention.flows.simulation import write_page  # noqa: PLC0415

        write_page(html, explanation.explanation_page(explained))
    if as_json:
        _print_json(explained.model_dump(mode="json"))
    else:
        explanation.show(explained)
    return DONE


@app.command
def simulate(  # noqa: PLR0913 - the flags of the command
    *,
    rhythm: Annotated[
        str | None,
        Parameter(
            help="No server: simulate keys that are written hourly, daily, weekly, or by a cron expression (UTC). "
            "Default: as the keys of the server have been."
        ),
    ] = None,
    size: Annotated[str, Parameter(help="With --rhythm: the data of each version. Default: 20kB.")] = "",
    days: Annotated[int, Parameter(help="How many days to simulate.", converter=_whole_number)] = 365,
    key: Keys = (),
    html: Html = None,
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Show what the policies would leave over time, with a cleanup every day. Writes nothing to the server."""
    from prefect_artifact_retention.flows import simulation  # noqa: PLC0415

    simulation.check_flags(rhythm, size, days, key)
    _check_target("--html", html)
    settings, _ = _configure(config, target=target)
    if rhythm is not None:
        simulated, tally = simulation.simulate_rhythm(settings, rhythm, size, days)
    else:
        _load_prefect()
        simulated, tally = _run_on(target, lambda: simulation.simulate_server(settings, key, days))
    if html:
        from prefect_artifact_retention.tasks.simulation_page import simulation_page  # noqa: PLC0415

        simulation.write_page(html, simulation_page(simulated, tally))
    if as_json:
        _print_json(simulated.model_dump(mode="json"))
    else:
        simulation.show(simulated)
    return DONE


@app.command
def deleted(  # noqa: PLR0913 - the flags of the command
    *,
    key: Keys = (),
    since: Since = "",
    until: Until = "",
    rule: Annotated[
        tuple[str, ...],
        Parameter(
            name="--rule",
            help="A rule by which they went: unclaimed (no rule kept it), expire_after_days, ...; may be repeated.",
            negative=(),
        ),
    ] = (),
    run: Runs = (),
    policy: PolicyNames = (),
    limit: Annotated[int, Parameter(help="Show the last N of them. 0: all.", converter=_whole_number)] = 1000,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """List what the archive has of deleted versions: when each was deleted, by which rule and run."""
    if limit < 0:
        raise ConfigurationError(f"command line: limit = {limit} is no number of versions")
    settings, _ = _configure(config)
    _load_prefect()
    from prefect_artifact_retention.flows.ledger import make_query  # noqa: PLC0415

    query = make_query(key, runs=run, policies=policy, rules=rule, since=since, until=until)
    return _show_ledger(settings, query, limit, as_json=as_json)


@app.command
def restore(  # noqa: PLR0913 - the flags of the command
    *,
    key: Keys = (),
    version_id: Annotated[
        tuple[str, ...], Parameter(name="--id", help="The id of a version; may be repeated.", negative=())
    ] = (),
    run: Runs = (),
    policy: PolicyNames = (),
    since: Since = "",
    until: Until = "",
    data: Annotated[
        bool, Parameter(help="Restore no deleted versions, but the data that policies moved to the archive.", negative=())
    ] = False,
    everything: Annotated[bool, Parameter(name="--all", help="All that the archive has of this server.", negative=())] = False,
    apply: Annotated[bool, Parameter(help="Restore. Otherwise, only show what would be restored.", negative=())] = False,
    hold_days: Annotated[
        int, Parameter(help="Keep what is restored on hold for so many days. 0: no hold.", converter=_whole_number)
    ] = 7,
    to: Annotated[str, Parameter(help="Restore as new versions under this key.")] = "",
    same_key: Annotated[
        bool, Parameter(help="Through the API: restore under the original key, which must have no versions.", negative=())
    ] = False,
    from_server: Annotated[str, Parameter(help="Restore what was deleted on the server with this address.")] = "",
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Restore deleted versions from the archive. Shows what would be restored, unless --apply is given."""
    if not (key or version_id or run or policy or since or until or everything):
        raise ConfigurationError(
            "command line: name what is to be restored: --key, --id, --run, --policy, --since, --until, or --all"
        )
    settings, _ = _configure(config, target=target)
    # Prefect's log goes to the server only; on the terminal, this command prints the report.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    _load_prefect()
    from prefect_artifact_retention.flows import restore as restoring  # noqa: PLC0415

    request = restoring.Request(
        keys=list(key),
        ids=list(version_id),
        runs=list(run),
        since=since or (restoring.BEGINNING if everything else ""),
        until=until,
        hold_days=hold_days,
        to_key=to,
        same_key=same_key,
        from_server=from_server,
        data=data,
        policies=list(policy),
    )
    selection = request.selection("command line")
    restoring.refuse_without_archive(settings)
    if not apply:
        report = _run_on(target, lambda: restoring.preview_restore(settings, selection))
    else:
        report = _restore(settings, request, target, quiet=as_json)
    try:
        if as_json:
            _print_json(report.model_dump(mode="json"))
        else:
            restoring.show(report)
        sys.stdout.flush()
    except OSError as error:
        # The reader has gone, or a disk is full; the versions are restored all the same.
        _complain(f"the report could not be printed: {error.strerror}")
    return EXIT_CODES[report.outcome]


def _restore(settings: RetentionSettings, request: Request, target: str, *, quiet: bool) -> RestoreReport:
    """Run the flow `artifact-restore`, and return its report, whatever Prefect makes of the run."""
    from prefect_artifact_retention.flows import cleanup, restore  # noqa: PLC0415
    from prefect_artifact_retention.flows.outcome import report_of  # noqa: PLC0415

    restored: list[RestoreReport] = []

    async def run() -> RestoreReport:
        restore.RESTORED.set(restored)
        await cleanup.reach_server(settings)
        return await restore.artifact_restore(
            keys=request.keys,
            ids=request.ids,
            runs=request.runs,
            policies=list(request.policies),
            since=request.since,
            until=request.until,
            apply=True,
            hold_days=request.hold_days,
            to_key=request.to_key,
            same_key=request.same_key,
            from_server=request.from_server,
            data=request.data,
            target=target,
        )

    return report_of(lambda: _follow(run, quiet=quiet), restored)


def _show_ledger(settings: RetentionSettings, query: LedgerQuery, limit: int, *, as_json: bool) -> int:
    from prefect_artifact_retention.flows import ledger  # noqa: PLC0415

    found = _run_async(ledger.read_ledger(settings, query, limit))
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        ledger.show(found)
    for error in found.errors:
        _complain(error)
    return EXIT_CODES["failed" if found.errors else "completed"]


@app.command
def hold(  # noqa: PLR0913 - the flags of the command
    key_or_id: str,
    /,
    *,
    until: Annotated[str | None, Parameter(help="The last day (UTC), such as 2030-12-31. Default: no end.")] = None,
    reason: Annotated[str, Parameter(help="Why, in one line.")] = "",
    by: Annotated[str, Parameter(help="Who holds it. Default: user@host.")] = "",
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Keep all versions of a key, those to come included, or the version with an id, whatever the policies say."""
    _load_prefect()
    from prefect_artifact_retention.flows import holds as listing  # noqa: PLC0415
    from prefect_artifact_retention.tasks.producers.holding import place_hold  # noqa: PLC0415

    with _about_holds(config, target) as server:
        placed, warning = _run_on(target, lambda: place_hold(key_or_id, until, reason, by=by))
    if warning:
        _complain(f"warning: {warning}")
    if as_json:
        _print_json(listing.as_json(placed) | {"warnings": [warning] if warning else []})
    else:
        listing.show([placed], server)
    return DONE


@app.command
def release(key_or_id: str, /, *, target: OnTarget = "", config: Config = None, as_json: Json = False) -> int:
    """Release a key, or the version with an id, from the hold on it."""
    _load_prefect()
    from prefect_artifact_retention.tasks.producers.holding import arelease  # noqa: PLC0415

    with _about_holds(config, target):
        released = _run_on(target, lambda: arelease(key_or_id))
    if as_json:
        _print_json({"released": released})
    else:
        sys.stdout.write(f"{key_or_id} {'is released' if released else 'was not on hold'}\n")
    return DONE


@app.command
def holds(key_or_id: str | None = None, /, *, target: OnTarget = "", config: Config = None, as_json: Json = False) -> int:
    """List the keys on hold; of one key, also its versions on hold, for which all of them are read; or of one version."""
    _load_prefect()
    from prefect_artifact_retention.flows import holds as listing  # noqa: PLC0415
    from prefect_artifact_retention.tasks.producers.holding import aholds  # noqa: PLC0415

    with _about_holds(config, target) as server:
        found = _run_on(target, lambda: aholds(key_or_id))
    if as_json:
        _print_json({"holds": [listing.as_json(each) for each in found]})
    else:
        listing.show(found, server)
    return DONE


@app.command
def approve(
    run: str,
    /,
    *,
    decline: Annotated[bool, Parameter(help="Say no: the run ends, and nothing is deleted.", negative=())] = False,
    versions: Annotated[
        int | None, Parameter(help="Approve only if the run would delete so many versions.", converter=_whole_number)
    ] = None,
    by: Annotated[str, Parameter(help="Who approves it. Default: user@host.")] = "",
    as_json: Json = False,
) -> int:
    """Approve what a run in mode approve would delete, as its form in the Prefect UI does. RUN is its id or name."""
    _load_prefect()
    from prefect_artifact_retention.flows import approval  # noqa: PLC0415
    from prefect_artifact_retention.tasks.producers.holding import default_holder  # noqa: PLC0415

    answer = approval.answer_run(run, approves=not decline, versions=versions, by=by or default_holder())
    name, waiting = _run_async(answer)
    if as_json:
        _print_json({"run": name, "approved": not decline, "versions": waiting.versions})
    else:
        done = "declined" if decline else f"approved: it deletes at most {count(waiting.versions, 'version')}"
        sys.stdout.write(f"{printable(name)} is {done}\n")
    return DONE


@app.command
def alarm(
    block: str,
    /,
    *,
    key: Keys = (),
    hours: Annotated[float, Parameter(help="How long no cleanup may have succeeded.")] = 26,
    as_json: Json = False,
) -> int:
    """Set up an alarm that goes off when no cleanup has succeeded for a day. Run it again to change the alarm.

    BLOCK is a notification or webhook block of the server, as TYPE/NAME, such as slack-webhook/ops.
    """
    _load_prefect()
    from prefect_artifact_retention.flows.automations import set_up_alarm  # noqa: PLC0415

    done = _run_async(set_up_alarm(block, hours, key))
    if as_json:
        _print_json(done.model_dump(mode="json"))
    else:
        sys.stdout.write(printable(done.describe()) + "\n")
    return DONE


@app.command
def doctor(
    *,
    fix: Annotated[
        bool, Parameter(help="Repair broken collections, as the server would, after saying which.", negative=())
    ] = False,
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Examine the artifacts of the server: what is broken, what deserves a look, what grows. Writes nothing without --fix.

    Exits with 1 if anything is broken and not repaired; what only deserves a look does not count.
    """
    settings, _ = _configure(config, target=target)
    _load_prefect()
    from prefect_artifact_retention.flows import doctor as examination  # noqa: PLC0415
    from prefect_artifact_retention.tasks.checkup import Finding  # noqa: PLC0415

    def repair(findings: Sequence[Finding]) -> bool:
        if fix:
            _complain(examination.announcement(findings))
        return fix

    checkup = _follow(lambda: examination.examine_server(settings, repair), quiet=as_json, target=target)
    if as_json:
        _print_json(checkup.model_dump(mode="json"))
    else:
        examination.show(checkup)
    for error in checkup.errors:
        _complain(error)
    return FAILED if checkup.is_broken else DONE


@app.command
def targets(*, config: Config = None, as_json: Json = False) -> int:
    """List the targets of the configuration, and whether each answers. Exits with 1 if one does not."""
    settings, _ = _configure(config)
    _load_prefect()
    from prefect_artifact_retention.flows import roll_call  # noqa: PLC0415

    answers = _run_async(roll_call.call(settings))
    if as_json:
        _print_json({"targets": [each.model_dump(mode="json") for each in answers]})
    else:
        roll_call.show(answers)
    return DONE if all(each.answers for each in answers) else FAILED


@automations_app.command
def apply(  # noqa: PLR0913 - the flags of the command
    *,
    block: Annotated[
        str, Parameter(help="The notification or webhook block to call, as TYPE/NAME, such as slack-webhook/ops.")
    ],
    key: Keys = (),
    hours: Annotated[float, Parameter(help="How long no cleanup may have succeeded.")] = 26,
    deleted_more_than: Annotated[
        int, Parameter(help="How many versions one run may delete. 0: no such alarm.", converter=_whole_number)
    ] = 0,
    unfinished_runs: Annotated[
        int,
        Parameter(
            help="How many unfinished runs in a row may leave a backlog that does not shrink. 0: no such alarm.",
            converter=_whole_number,
        ),
    ] = 3,
    waiting_hours: Annotated[
        float, Parameter(help="How long a run may wait for its approval; only without --key. 0: no such alarm.")
    ] = 24,
    as_json: Json = False,
) -> int:
    """Set up the alarms of a scope, or change them; remove those that are not asked for any more."""
    _load_prefect()
    from prefect_artifact_retention.flows import automations  # noqa: PLC0415

    thresholds = automations.Thresholds(hours, deleted_more_than, unfinished_runs, waiting_hours)
    done = _run_async(automations.apply(block, thresholds, key))
    if as_json:
        _print_json(done.model_dump(mode="json"))
    else:
        lines = [*(each.describe() for each in done.alarms), *(f"{name}: removed" for name in done.removed)]
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    return DONE


@automations_app.command(name="list")
def list_automations(*, as_json: Json = False) -> int:
    """List the alarms of all scopes."""
    _load_prefect()
    from prefect_artifact_retention.flows import automations  # noqa: PLC0415

    found = _run_async(automations.find_alarms())
    if as_json:
        _print_json({"automations": [each.model_dump(mode="json") for each in found]})
    else:
        automations.show(found)
    return DONE


@automations_app.command(name="remove")
def remove_automations(*, key: Keys = (), as_json: Json = False) -> int:
    """Remove the alarms of a scope."""
    _load_prefect()
    from prefect_artifact_retention.flows import automations  # noqa: PLC0415

    removed = _run_async(automations.remove(key))
    if as_json:
        _print_json({"removed": removed})
    else:
        sys.stdout.write("".join(f"{printable(name)}: removed\n" for name in removed) or "there was no such alarm\n")
    return DONE


@app.command
def metrics(
    *,
    out: Annotated[
        Path | None, Parameter(help="Write them into this file, such as node_exporter's textfile collector reads.")
    ] = None,
    push: Annotated[str | None, Parameter(help="Push them to the Prometheus push gateway at this address.")] = None,
    target: OnTarget = "",
    config: Config = None,
) -> int:
    """Give figures of the last delete runs in the format of OpenMetrics; on stdout without --out and --push."""
    _check_target("--out", out)
    _load_prefect()
    from prefect_artifact_retention.flows import metrics as figures  # noqa: PLC0415

    if push is not None:
        figures.check_gateway(push)
    if target:
        _configure(config, target=target)
    collected = _run_on(target, figures.collect)
    if out:
        figures.write(out, collected)
    if push:
        figures.push(push, collected)
    if not (out or push):
        sys.stdout.write(figures.text(collected))
    return DONE


@policies_app.command
def check(  # noqa: PLR0913 - the flags of the command
    *,
    live: Annotated[bool, Parameter(help="In place of the configured policies: the list on the server.", negative=())] = False,
    expires_after: Annotated[
        float | None,
        Parameter(help="Also say what of the policies does not hold where the server deletes artifacts after so many days."),
    ] = None,
    plan: Annotated[
        Literal["hobby", "starter", "team", "pro"] | None,
        Parameter(help="The same for a plan of Prefect Cloud. Enterprise has days of its own: --expires-after."),
    ] = None,
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Load the policies and describe each of them. Needs no server without --live."""
    if plan and expires_after is not None:
        raise ConfigurationError("command line: --plan and --expires-after say the same: give one of them")
    if expires_after is not None and not 0 < expires_after <= MAX_DAYS:
        raise ConfigurationError(f"command line: --expires-after {expires_after:g} is not between 0 and {MAX_DAYS:,} days")
    settings, _ = _configure(config, target=target)
    warnings = list(settings.without_effect())
    if live:
        if settings.policies:
            warnings.append(f"{settings.source('policies')} has policies, too, and comes first where it is found")
        _load_prefect()
        from prefect_artifact_retention.flows import server_policies  # noqa: PLC0415

        settings = settings.with_policies(*_run_async(server_policies.read_tables_of_server()))
    if not settings.policies:
        raise ConfigurationError(
            "no policy is configured: write a [[policies]] table into retention.toml, or see those on the server with --live"
        )
    from prefect_artifact_retention.flows.settings import resolve_policies  # noqa: PLC0415
    from prefect_artifact_retention.policies.doubts import find_doubts  # noqa: PLC0415
    from prefect_artifact_retention.policies.expiry import PLANS, broken_promises, consequences  # noqa: PLC0415

    with_own, source = resolve_policies((), settings, "delete")
    policies, doubts = with_own[1:], find_doubts(with_own, offloads=settings.archives_payloads)
    expiry: list[str] = []
    if after_days := PLANS[plan] if plan else expires_after:
        expiry = broken_promises(policies, after_days)
        expiry += consequences(policies, after_days, archives=settings.archives_payloads)
    if as_json:
        described = [policy.model_dump() | {"sentence": policy.describe()} for policy in policies]
        _print_json(
            {
                "source": source,
                "digest": digest(with_own),
                "policies": described,
                "doubts": doubts,
                "expiry": expiry,
                "warnings": warnings,
            }
        )
    else:
        lines = [
            f"{printable(source)}: {len(policies)} policies, tried in this order",
            *(f"  {policy.name}: {policy.describe()}" for policy in policies),
            *(f"doubtful: {printable(doubt)}" for doubt in doubts),
            *(f"expiry: {printable(line)}" for line in expiry),
            *(f"warning: {printable(warning)}" for warning in warnings),
        ]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    return DONE


@policies_app.command
def diff(  # noqa: PLR0913 - the flags of the command
    old: Path | None = None,
    new: Path | None = None,
    /,
    *,
    live: Annotated[
        bool, Parameter(help="In place of OLD: the policies that a delete run on this server has applied last.", negative=())
    ] = False,
    key: Keys = (),
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Show which versions on the server policies would newly delete and newly keep, and why. Writes nothing to the server.

    OLD and NEW are files such as retention.toml; without NEW, the configured policies. Exits with 1 if anything differs.
    """
    files = [file for file in (old, new) if file]
    if len(files) > 1 if live else not files:
        raise ConfigurationError("command line: name OLD, or OLD and NEW; or --live, alone or with NEW")
    from prefect_artifact_retention.flows.settings import read_policies, resolve_policies  # noqa: PLC0415

    settings, _ = _configure(config, target=target)
    sides = [(read_policies(file), str(file)) for file in files]
    is_configured = len(sides) < (1 if live else 2)
    if is_configured and settings.policies:
        # Before anything is sent.
        resolve_policies((), settings, "delete")
    _load_prefect()
    from prefect_artifact_retention.flows import comparison  # noqa: PLC0415

    async def compare() -> comparison.Comparison:
        before = await comparison.live_policies() if live else comparison.Side(*sides[0])
        after = await comparison.configured_policies(settings) if is_configured else comparison.Side(*sides[-1])
        return await comparison.compare(settings, before, after, key)

    found = _run_on(target, compare)
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        comparison.show(found)
    return FAILED if found.differs or found.errors else DONE


@policies_app.command
def accept(
    *,
    by: Annotated[str, Parameter(help="Who accepts them. Default: user@host.")] = "",
    target: OnTarget = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Accept the configured policies on the server, so that scheduled runs apply them (require_accepted_policies)."""
    settings, _ = _configure(config, target=target)
    _load_prefect()
    from prefect_artifact_retention.flows import acceptance  # noqa: PLC0415

    record, source = _run_on(target, lambda: acceptance.accept(settings, by))
    if as_json:
        _print_json(record.model_dump(mode="json"))
    else:
        where = f" on target {target}" if target else ""
        sys.stdout.write(printable(f"policies {record.digest} of {source} are accepted{where} by {record.by}") + "\n")
    return DONE


@policies_app.command
def push(
    *,
    by: Annotated[str, Parameter(help="Who pushes them. Default: user@host.")] = "",
    over: Annotated[
        str, Parameter(help="Also replace the list with this digest, which was changed in the UI since the last push.")
    ] = "",
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Put the configured policies on the server, for runs that find none in a file or variable, and accept them."""
    settings, _ = _configure(config)
    _load_prefect()
    from prefect_artifact_retention.flows import cleanup, server_policies  # noqa: PLC0415
    from prefect_artifact_retention.tasks.producers.holding import default_holder  # noqa: PLC0415

    cleanup.refuse_ephemeral_server(settings)
    done = _run_async(server_policies.push(settings, by or default_holder(), over))
    if as_json:
        _print_json(done.model_dump(mode="json"))
    else:
        server_policies.show_push(done)
    return DONE


@policies_app.command
def pull(
    *,
    digest_of_list: Annotated[
        str, Parameter(name="--digest", help="An earlier list, by its digest in the log. Default: the present one.")
    ] = "",
    out: Annotated[Path | None, Parameter(help="Write them into this file.")] = None,
    as_json: Json = False,
) -> int:
    """Print the policies on the server as [[policies]] tables."""
    _check_target("--out", out)
    _load_prefect()
    from prefect_artifact_retention.flows import server_policies  # noqa: PLC0415
    from prefect_artifact_retention.policies.writing import as_tables, as_toml  # noqa: PLC0415

    policies, source = _run_async(server_policies.pull(digest_of_list))
    if out:
        _write("--out", out, as_toml(policies))
    if as_json:
        _print_json({"source": source, "digest": digest(policies), "policies": as_tables(policies)})
    elif not out:
        sys.stdout.write(as_toml(policies))
    return DONE


@policies_app.command
def log(*, as_json: Json = False) -> int:
    """List the changes of the policies on the server, newest first: who has pushed what, and what was edited in the UI."""
    _load_prefect()
    from prefect_artifact_retention.flows import server_policies  # noqa: PLC0415

    changes = _run_async(server_policies.read_log())
    if as_json:
        _print_json({"changes": [each.model_dump(mode="json") for each in changes]})
    else:
        server_policies.show_log(changes)
    return DONE


@policies_app.command
def schema() -> int:
    """Print the JSON schema of retention.toml, by which an editor completes and checks it."""
    from prefect_artifact_retention.flows.schema import configuration_schema  # noqa: PLC0415

    _print_json(configuration_schema())
    return DONE


@app.command
def demo(
    *,
    folder: Annotated[Path, Parameter(help="The folder of the demo's own server.")] = Path(".demo"),
    ui: Annotated[bool, Parameter(help="Run that server, to see the demo in its user interface.", negative=())] = False,
    as_json: Json = False,
) -> int:
    """Show it all on a Prefect server of its own, apart from yours: create artifacts, preview, delete, report."""
    from prefect_artifact_retention.flows import demo as demonstration  # noqa: PLC0415

    if ui:
        return demonstration.serve(folder)
    return demonstration.run(folder, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Where the locale is none of UTF-8: a report of deletions is not lost over a dash.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has closed it, as `head` does.
        code = FAILED
    except OSError as error:
        if error.errno not in FULL_DISK or error.filename:
            raise
        _complain(f"the output could not be printed: {error.strerror}")
        code = FAILED
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Otherwise, Python fails again when it flushes at exit, with an exit code of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _run(tokens: Sequence[str]) -> int:
    try:
        _refuse_undecodable(tokens)
        _refuse_target(tokens)
        code = app(tokens, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError as error:
        if "--json" in tokens:
            _print_json({"error": str(error)})
        return USAGE
    except ConfigurationError as error:
        return _fail(error, tokens, USAGE)
    except RetentionError as error:
        return _fail(error, tokens, FAILED)
    except KeyboardInterrupt:
        reruns = "; a rerun goes on where this one stopped" if tokens[:1] in (["delete"], ["restore"]) else ""
        return _fail(f"interrupted{reruns}", tokens, INTERRUPTED)
    return code if isinstance(code, int) else DONE


@contextmanager
def _about_holds(config: Path | None, target: str) -> Iterator[str]:
    """Refuse what a helper of flow authors refuses, and a temporary server, on which a hold would hold nothing.

    The context is the address of the server that has the holds.
    """
    from prefect_artifact_retention.flows.cleanup import EPHEMERAL_SERVER  # noqa: PLC0415
    from prefect_artifact_retention.flows.targets import find_target  # noqa: PLC0415
    from prefect_artifact_retention.stores.connection import api_address, uses_ephemeral_server  # noqa: PLC0415

    server = api_address()
    if target:
        settings, _ = _configure(config, target=target)
        server = find_target(settings.all_targets(), target, source="command line").api_url
    elif uses_ephemeral_server():
        raise ConfigurationError(f"{EPHEMERAL_SERVER}. Nothing is on hold there for long")
    try:
        yield server
    except ValueError as error:
        raise ConfigurationError(f"command line: {error}") from None


def _refuse_undecodable(tokens: Sequence[str]) -> None:
    """Refuse arguments with bytes that cannot be decoded: they can be sent to no server."""
    for token in tokens:
        try:
            token.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(f"command line: {token} is not in UTF-8") from None


def _refuse_target(tokens: Sequence[str]) -> None:
    """Refuse a target where it makes no sense, and say why."""
    command = next((command for command in AT_HOME if command.split() == list(tokens[: len(command.split())])), "")
    if command and any(token.partition("=")[0] == "--target" for token in tokens):
        raise ConfigurationError(f"command line: {command} takes no --target: {AT_HOME[command]}")


def _fail(error: RetentionError | str, tokens: Sequence[str], code: int) -> int:
    _complain(str(error))
    if "--json" in tokens:
        _print_json({"error": str(error)})
    return code


def _complain(text: str) -> None:
    """Write a message to stderr, if it has a reader: one that has gone decides over no exit code."""
    with suppress(OSError):
        sys.stderr.write(f"artifact-retention: {text}\n")


def _configure(
    config: Path | None,
    keys: Sequence[str] = (),
    keep_last: int | None = None,
    keep_within_days: float | None = None,
    *,
    target: str = "",
) -> tuple[RetentionSettings, tuple[RetentionPolicy, ...]]:
    """Read the settings, of a target if one is named, and the policies of these keys with the rules that the flags give."""
    from prefect_artifact_retention.flows.settings import CONFIG_VARIABLE, load_settings  # noqa: PLC0415

    if config:
        # The flow reads the settings again, and must find the same file.
        os.environ[CONFIG_VARIABLE] = str(config)
    settings = load_settings(config).at_target(target)
    given = {"keep_last": keep_last, "keep_within_days": keep_within_days}
    rules = {name: value for name, value in given.items() if value is not None}
    if not rules:
        return settings, ()
    if not keys:
        raise ConfigurationError("--keep-last and --keep-within-days need --key: for all keys, write a policy")
    if not any(rules.values()):
        flags = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in rules.items())
        raise ConfigurationError(f"command line: {flags} keeps nothing: 0 switches a rule off, and no other is given")
    try:
        override = RetentionPolicy.model_validate({"name": "command line", "match_keys": list(keys), **rules})
    except ValidationError as error:
        raise ConfigurationError("\n".join(f"command line: {line}" for line in describe_validation_error(error))) from error
    if settings.leaves_policies_to_server:
        _load_prefect()
        from prefect_artifact_retention.flows.server_policies import find_policies  # noqa: PLC0415

        settings = _run_async(find_policies(settings))
    configured = load_policies(settings.policies, source=settings.source("policies"))
    return settings, stand_in(configured, override)


def _check_target(flag: str, file: Path | None) -> None:
    """Refuse a file that cannot be written, before the server is read for minutes."""
    try:
        if file and (file.is_dir() or not file.parent.is_dir()):
            raise ConfigurationError(f"command line: {flag} {file}: there is no such folder, or the file is one")
    except OSError as error:
        # Such as a name that is too long.
        raise ConfigurationError(f"command line: {flag}: {error.strerror}") from None


def _write(flag: str, file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"command line: {flag} {file} cannot be written: {error.strerror}") from None


def _load_prefect() -> None:
    """Import Prefect, which reads its settings then.

    Raises:
        ConfigurationError: One of them is invalid, in the environment or in the active profile.
    """
    try:
        from prefect.settings import get_current_settings  # noqa: PLC0415

        get_current_settings()
    except ValidationError as error:
        # Not the values: they may be secrets.
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}" for each in error.errors())
        raise ConfigurationError(f"a PREFECT_... variable or the active Prefect profile is invalid: {problems}") from None
    except SettingsError as error:
        raise ConfigurationError(f"a PREFECT_... variable or the active Prefect profile is invalid: {error}") from None


def _check_limits(**limits: float) -> None:
    from prefect_artifact_retention.flows.settings import RetentionSettings  # noqa: PLC0415

    # Not RetentionSettings itself, in which the environment would override the flags.
    fields = {name: (field.annotation, field) for name, field in RetentionSettings.model_fields.items() if name in limits}
    try:
        create_model("Flags", **fields).model_validate(limits)  # type: ignore[call-overload]
    except ValidationError as error:
        raise ConfigurationError("\n".join(f"command line: {line}" for line in describe_validation_error(error))) from error


def _follow(run: Callable[[], Coroutine[Any, Any, T]], *, quiet: bool, target: str = "") -> T:
    """Run with a progress bar (plain lines if stderr is no terminal), and turn SIGTERM into KeyboardInterrupt."""
    from prefect.exceptions import TerminationSignal  # noqa: PLC0415

    # The terminal, too, though only `_show` needs it: what cannot be imported must fail before anything is deleted.
    from prefect_artifact_retention.flows import terminal  # noqa: F401, PLC0415
    from prefect_artifact_retention.flows.cleanup import LISTENER  # noqa: PLC0415
    from prefect_artifact_retention.flows.progress import progress_display  # noqa: PLC0415

    async def followed() -> T:
        with progress_display(quiet=quiet) as listener:
            LISTENER.set(listener)
            return await _on(target, run)

    try:
        return _run_async(followed())
    except TerminationSignal:
        raise KeyboardInterrupt from None


def _show(report: CleanupReport, *, as_json: bool) -> int:
    from prefect_artifact_retention.tasks.rendering import WORD_JOINER, markdown  # noqa: PLC0415

    if as_json:
        _print_json(report.model_dump(mode="json"))
    else:
        from prefect_artifact_retention.flows import terminal  # noqa: PLC0415

        terminal.show(terminal.Report(markdown(report).replace(WORD_JOINER, "")))
    return EXIT_CODES[report.outcome]


def _print_json(document: object) -> None:
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
