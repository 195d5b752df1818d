"""The history: a table artifact with a row for each run, for the Prefect UI and for the report's trend chart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from typing import Annotated

import httpx
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.expectation import UNKEYED, PastRun, Settled
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.loading import HISTORY_KEY
from prefect_artifact_retention.stores.connection import reason
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.tasks.charts import Bar
from prefect_artifact_retention.tasks.producers.entries import Rows
from prefect_artifact_retention.tasks.publish import create_first_accepted
from prefect_artifact_retention.tasks.rendering import headline, label, scope_label, with_links
from prefect_artifact_retention.tasks.report import GIVEN_POLICIES, CleanupReport
from prefect_artifact_retention.tasks.run import Run
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MAX_HISTORY_ROWS = 200
"""Rows kept, more than half a year of nights. With more, the artifact grows with each run for longer."""

MAX_SCOPE_ROWS = 50
"""Rows kept beyond those, for scopes that run rarely. With fewer, a run over one of many scopes forgets the last."""

HISTORY_VERSIONS_READ = 5
"""Versions of the history that are merged. If more runs than this end in the same instant, a row is lost."""

Amount = Annotated[int, Field(ge=0, le=10**15, strict=True)]
MAX_TEXT_CHARS = 500
MAX_LONG_TEXT_CHARS = 4_000
ShortText = Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(printable)]
LongText = Annotated[str, Field(max_length=MAX_LONG_TEXT_CHARS), AfterValidator(printable)]
"""Bounded texts, because anybody may write a version of the history; a row with a longer one is dropped."""

NOT_AT_WORK = ("skipped", "declined")
"""The outcomes of delete runs that have planned nothing."""

TABLE = Rows()
"""The format of a table. The protocol by which others append to one is not for the history, see `extend_history`."""

WHEN = "%Y-%m-%d %H:%M"


class Row(BaseModel):
    """The row of one run. The aliases are the names of the table's columns."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    when: ShortText = Field(alias="when (UTC)")
    run: ShortText
    mode: ShortText
    scope: ShortText
    outcome: ShortText
    keys_seen: Amount = Field(alias="keys")
    versions_before: Amount = Field(alias="versions before")
    stale: Amount
    deleted: Amount
    versions_after: Amount = Field(alias="versions after")
    bytes_before: Amount = Field(alias="bytes before")
    bytes_after: Amount = Field(alias="bytes after")
    seconds: float = Field(ge=0, allow_inf_nan=False)
    link: ShortText = ""
    next_start: ShortText = Field(default="", alias="next run begins with")
    """Of a delete run: where the next one over the same keys is to begin; empty at the first key."""
    policies: ShortText = ""
    """Whether they were configured, or given for this run; a run of the one kind says nothing of the other."""
    approved_by: ShortText = Field(default="", alias="approved by")
    settled: LongText = ""
    covered: LongText = ""
    """Of a delete run that did not get to all keys, as JSON: the key that it began with, and where it stopped."""
    planned_at: ShortText = Field(default="", alias="plan of (UTC)")
    """Of a run that kept to a plan: when that was made. What has become stale since, the run has left."""

    @property
    def began(self) -> datetime | None:
        """When the run began, to the minute; None if that cannot be read."""
        return _moment(self.when)

    @property
    def backlog(self) -> int | None:
        """Stale versions that the run has left; None if it had no time to plan all keys."""
        return None if self.covered else max(0, self.stale - (self.versions_before - self.versions_after))


_SETTLED = TypeAdapter(dict[str, tuple[Amount, Amount]])
_COVERED = TypeAdapter(tuple[str, str])


async def read_past_runs(run: Run) -> list[PastRun]:
    """Read from the history all runs; the delete runs of the same scope with the policies of which they left nothing stale.

    A run that was shut down while it published has two rows, and counts once.

    Raises:
        StoreError: The server cannot be reached, or fails to show the history.
    """
    rows = {(row.when, row.run, row.mode, row.scope, row.settled): row for row in await read_rows(run.server)}
    return [past for row in rows.values() if (past := _past_run(row, run.report))]


def _moment(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, WHEN).replace(tzinfo=UTC)
    except ValueError:
        return None


def _past_run(row: Row, report: CleanupReport) -> PastRun | None:
    counts = row.scope == _scope(report) and row.policies == _policies(report)
    if (when := _moment(row.planned_at or row.when)) is None:
        return None
    try:
        covered = _COVERED.validate_json(row.covered or '["", ""]')
        settled = _SETTLED.validate_json((row.settled if counts else "") or "{}", strict=False)
    except ValueError:
        return None
    return PastRun(when, {name: Settled(*numbers) for name, numbers in settled.items()}, *covered)


def _covered(run: Run) -> str:
    """Describe, as JSON, to which keys a run got that did not get to all of them; empty for any other."""
    if not run.planned_until:
        return ""
    begin = run.collections[0].key if run.first_round else UNKEYED
    return json.dumps([begin, run.planned_until], ensure_ascii=False)


def _settled(run: Run) -> str:
    """Describe, as JSON, the policies of which this run has left next to nothing stale: the next run builds on it.

    A tenth may be left, for a key that fails every night must not keep a policy from having a past. A key that cannot be read
    counts as one version, for nobody knows how many it has.
    """
    report = run.report
    settled: dict[str, Settled] = {}
    unfinished = {policy.name for policy in run.policies if policy.unkeyed and not run.has_all_unkeyed}
    # Without the range of its keys, a partial run would count as one that got to all of them.
    fits = len(_covered(run)) <= MAX_LONG_TEXT_CHARS
    for policy in report.policies if report.mode == "delete" and fits else ():
        left = sum(key.remaining + key.withheld or bool(key.error) for key in report.key_reports if key.policy == policy.name)
        if not policy.refused and policy.name not in unfinished and 10 * left <= policy.planned:
            settled[policy.name] = run.expectations.settled(policy.name)
    dropped = []
    while len(text := json.dumps(settled, ensure_ascii=False)) > MAX_LONG_TEXT_CHARS:
        dropped.append(settled.popitem()[0])
    if dropped:
        report.warn(
            f"the history has no room for {len(dropped)} of {len(dropped) + len(settled)} policies, from "
            f'"{dropped[-1]}" on: to refuse_above_percent they will be new in the next run'
        )
    return text if settled else ""


async def extend_history(run: Run, run_name: str, links: Mapping[str, str]) -> list[Row]:
    """Write a new version of the history with a row for this run, and return its rows, the newest first.

    The rows are read and written again. Runs that end in the same instant do not see each other's rows; the next run merges
    what they wrote. `append_rows` would take a third request to merge it at once. It also trims the oldest rows, where a scope
    that runs rarely needs its last one; it appends at the end, where people look for the newest first; and it refuses to write
    beside a version that it cannot read, where the row may be the only record of what was deleted.

    Args:
        run: The run.
        run_name: The name of its flow run.
        links: Addresses by name: "This run" goes into the row, "Reports" into the description.

    Raises:
        StoreError: The server cannot be reached, or refuses the artifact.
    """
    before = await read_rows(run.server)
    next_start = run.next_start
    if next_start is None:
        # A run that was refused, skipped or stopped early does not change it, nor does a preview.
        next_start = _next_start(before, run.report)
    row = _row(run.report, run_name, links, _settled(run), _covered(run))
    rows = _newest([row.model_copy(update={"next_start": next_start[:MAX_TEXT_CHARS]}), *before], MAX_HISTORY_ROWS)
    description = with_links(
        f"{count(len(rows), 'run')}, the newest first. The last: {headline(run.report)}", links, "Reports"
    )
    lengths = _halved(len(rows))
    tables = (TABLE.dump([row.model_dump() for row in _newest(rows, length)]) for length in lengths)
    client = run.server.connection.client
    try:
        taken = await create_first_accepted(client, tables, type="table", key=HISTORY_KEY, description=description)
    except httpx.HTTPError as error:
        raise StoreError(f"the history could not be written: {reason(error)}") from None
    if taken:
        run.report.warn(
            f"the history was cut to its last {lengths[taken]} runs: a proxy or the server takes no larger artifact (413)"
        )
    return _newest(rows, lengths[taken])


def _newest(rows: Sequence[Row], length: int) -> list[Row]:
    """Return the newest rows, and of each scope that is not among them the rows that its next run depends on.

    Otherwise, many runs over some keys, or many previews, would make a rare run over others forget where it is to begin, and
    what it has to expect.
    """
    scopes, settled = ({row.scope for row in rows[:length] if row.settled or not only} for only in (False, True))
    others: list[Row] = []
    for row in rows[length:]:
        is_needed = row.scope not in scopes or (row.settled and row.scope not in settled)
        if is_needed and len(others) < min(length, MAX_SCOPE_ROWS):
            others.append(row)
            scopes.add(row.scope)
            settled |= {row.scope} if row.settled else set()
    return [*rows[:length], *others]


def _halved(length: int) -> list[int]:
    """Return a length and its halves, down to one."""
    return [length >> halvings for halvings in range(length.bit_length())]


async def read_next_start(run: Run) -> str:
    """Read where a delete run over the keys of this one is to begin; empty if the last one left nothing, or is unknown.

    Raises:
        StoreError: The server cannot be reached, or refuses a request.
    """
    return _next_start(await read_rows(run.server), run.report)


def _next_start(rows: Iterable[Row], report: CleanupReport) -> str:
    return next((row.next_start for row in rows if row.scope == _scope(report)), "")


def trend(rows: Sequence[Row], report: CleanupReport) -> tuple[list[Bar], list[Bar]]:
    """Return the delete runs of the same scope as bars of versions and bars of bytes, the oldest first."""
    runs = [row for row in reversed(rows) if row.scope == _scope(report) and row.mode == "delete" and row.versions_before]
    return (
        [Bar(label(row.when), row.versions_before, row.versions_after) for row in runs],
        [Bar(label(row.when), row.bytes_before, row.bytes_after) for row in runs],
    )


def stalled_runs(rows: Iterable[Row]) -> int:
    """Count the delete runs of one scope in a row, up to the last, that were unfinished and have not made the backlog smaller.

    Counted back to the first one that left no more stale versions than the last one. If the last one had no time to plan all
    keys, its backlog is unknown, and counts as not smaller. 0 if the last one is not unfinished.

    Args:
        rows: The delete runs of one scope, the newest first.
    """
    at_work = (row for row in rows if row.outcome not in NOT_AT_WORK)
    left = [row.backlog for row in takewhile(lambda row: row.outcome == "unfinished", at_work)]
    return max((number for number, each in enumerate(left, 1) if _is_no_smaller(left[0], each)), default=0)


def delete_runs(rows: Iterable[Row], report: CleanupReport) -> list[Row]:
    """Return the delete runs of the same scope, and by policies of the same source."""
    return [row for row in rows if row.scope == _scope(report) and row.mode == "delete" and row.policies == _policies(report)]


def _is_no_smaller(now: int | None, before: int | None) -> bool:
    return now is None or (before is not None and now >= before)


def _scope(report: CleanupReport) -> str:
    return scope_label(report.scope)[:MAX_TEXT_CHARS]


def _policies(report: CleanupReport) -> str:
    return "given for this run" if report.policy_source == GIVEN_POLICIES else "configured"


async def read_rows(server: Server) -> list[Row]:
    """Read the rows of all runs, the newest first.

    Raises:
        StoreError: The server cannot be reached, or fails to show the history.
    """
    versions = await server.newest_rows(HISTORY_KEY, HISTORY_VERSIONS_READ)
    return _merged([_rows(version.get("data")) for version in versions])


def _row(report: CleanupReport, run_name: str, links: Mapping[str, str], settled: str = "", covered: str = "") -> Row:
    return Row(
        when=f"{report.now:{WHEN}}",
        run=printable(run_name)[:MAX_TEXT_CHARS],
        mode=report.mode,
        scope=_scope(report),
        outcome=report.outcome,
        keys_seen=len(report.key_reports),
        versions_before=report.versions_seen,
        stale=report.planned,
        deleted=report.deleted,
        versions_after=report.versions_seen - report.deleted - report.already_gone,
        bytes_before=report.bytes_seen,
        # A version that was updated after the plan may have freed more than the plan saw.
        bytes_after=sum(max(0, key.bytes_seen - key.bytes_freed) for key in report.key_reports),
        seconds=round(report.duration_seconds, 1),
        link=links.get("This run", ""),
        policies=_policies(report),
        approved_by=printable(report.approved_by)[:MAX_TEXT_CHARS],
        settled=settled,
        covered=covered[:MAX_LONG_TEXT_CHARS],
        planned_at=f"{report.planned_at:{WHEN}}" if report.planned_at else "",
    )


def _merged(versions: Sequence[Sequence[Row]]) -> list[Row]:
    """Merge the rows of several versions of the history, the newest version first."""
    rows: list[Row] = []
    for version in reversed(versions):
        known = set(rows)
        rows = [*(row for row in version if row not in known), *rows]
    return rows


def _rows(data: object) -> list[Row]:
    """Read the rows of a table artifact; anything that is no valid row is dropped."""
    found: list[Row] = []
    try:
        rows = TABLE.load(data)
    except (ValueError, RecursionError):
        return found
    for row in rows:
        with suppress(ValidationError):
            found.append(Row.model_validate(row))
    return found
