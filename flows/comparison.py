"""Compares two lists of policies on the versions of a server: what the one would newly delete and newly keep, and why.

The versions are listed once, and judged by both lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.cleanup import open_run
from prefect_artifact_retention.flows.server_policies import resolve_all
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from prefect_artifact_retention.policies.acceptance import latest
from prefect_artifact_retention.policies.evaluation import Judgement, Reason
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.policies.loading import OWN_KEYS, OWN_POLICY, check_policies, load_policies, select_policy
from prefect_artifact_retention.policies.meaning import describe_changes, meaning
from prefect_artifact_retention.policies.writing import as_tables
from prefect_artifact_retention.stores.acceptances import Acceptances
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.store import History
from prefect_artifact_retention.tasks.discover import check_scope, discover
from prefect_artifact_retention.tasks.holds import read_holds
from prefect_artifact_retention.tasks.plan import judge_all, judge_unkeyed, subject
from prefect_artifact_retention.tasks.rendering import bullet_list, count_keys, escape, label, pipe_table, size
from prefect_artifact_retention.tasks.report import RuleCount
from prefect_artifact_retention.tasks.run import Run
from pydantic import BaseModel, Field

MAX_KEYS_SHOWN = 20
NO_POLICY = "(none)"
UNMANAGED = Reason("unmanaged", "no policy is for it")


class Side(NamedTuple):
    """One of the two lists of policies, and where it comes from."""

    policies: Sequence[RetentionPolicy]
    source: str


class KeyDifference(BaseModel):
    """What differs of one key; of all artifacts without one, if it is null."""

    key: str | None
    policy_before: str = Field(description="The policy that it has by the old list; empty if none.")
    policy: str = Field(description="The policy that it has by the new one.")
    newly_deleted: list[UUID] = Field(default=[], description="Versions that only the new list would delete.")
    newly_kept: list[UUID] = Field(default=[], description="Versions that only the old list would delete.")
    bytes_deleted: int = Field(default=0, description="Bytes of the former.")
    bytes_kept: int = Field(default=0, description="Bytes of the latter.")
    deleted_by: list[RuleCount] = Field(default=[], description="Why the former would go.")
    kept_by: list[RuleCount] = Field(default=[], description="Why the latter would stay.")


class Comparison(BaseModel):
    """Two lists of policies, compared on the versions of a server."""

    server: str
    now: datetime
    old: str = Field(description="Where the old policies come from.")
    new: str = Field(description="Where the new ones come from.")
    changes: list[str] = Field(description="How the policies themselves differ.")
    versions_seen: int = 0
    key_differences: list[KeyDifference] = Field(default=[], description="The keys of which anything differs.")
    warnings: list[str] = []
    errors: list[str] = Field(default=[], description="What could not be compared.")

    @property
    def differs(self) -> bool:
        """Whether any version would go, or stay, by one of them only."""
        return bool(self.key_differences)


async def live_policies() -> Side:
    """Read the policies that were applied to the server, or accepted, last.

    Raises:
        ConfigurationError: None were, or they are too many to be on record.
        StoreError: The server cannot be reached.
    """
    async with connect() as connection:
        records, unreadable = await Acceptances(connection).all()
    record = latest(records)
    if record is None or record.policies is None:
        none = f"{unreadable[0]} cannot be read" if unreadable else "no delete run has left a record of its policies"
        why = none if record is None else "they are too many to be on record"
        raise ConfigurationError(f"command line: --live: {why}; name the file of the old policies instead")
    source = f"applied or accepted on {record.at:%Y-%m-%d %H:%M} UTC by {record.by}"
    return Side(load_policies(record.policies, source="--live"), source)


async def configured_policies(settings: RetentionSettings) -> Side:
    """Return the configured policies, those on the server included.

    Raises:
        ConfigurationError: There are none, or they are invalid.
        StoreError: The server cannot be reached.
    """
    policies, source = await resolve_all((), settings, "delete")
    return Side(policies[1:], source)


async def compare(settings: RetentionSettings, old: Side, new: Side, keys: Sequence[str] = ()) -> Comparison:
    """Judge the versions of the server by both lists.

    Raises:
        ConfigurationError: Policies contradict each other.
        StoreError: The server cannot be reached, or refuses a request.
    """
    for side in (old, new):
        check_policies((OWN_POLICY, *side.policies), source=side.source)
    # In place of the configured ones, of which some would stay in force.
    given = settings.with_policies(as_tables(new.policies), new.source)
    async with open_run(given, "preview", (), keys) as run:
        await discover(run)
        check_scope(run)
        await read_holds(run)
        comparison = Comparison(
            server=run.report.server,
            now=run.report.now,
            old=old.source,
            new=new.source,
            changes=list(describe_changes(meaning(old.policies), meaning(new.policies))),
        )
        lists = old.policies, new.policies
        await _compare_keys(run, comparison, lists)
        if not keys:
            await _compare_unkeyed(run, comparison, lists)
        comparison.warnings += run.report.warnings
        comparison.errors += run.report.errors
        return comparison


Lists = tuple[Sequence[RetentionPolicy], Sequence[RetentionPolicy]]


async def _compare_keys(run: Run, comparison: Comparison, lists: Lists) -> None:
    collections = {each.key: each for each in run.collections if each.key not in OWN_KEYS}
    policies = {key: tuple(select_policy(some, key, each.type) for some in lists) for key, each in collections.items()}
    managed = [key for key, chosen in policies.items() if any(chosen)]

    def whole(histories: Iterable[History]) -> Iterator[History]:
        for history in histories:
            if history.complete:
                yield history
            else:
                why = history.error or "its versions changed while they were read"
                comparison.errors.append(f"{label(history.key)}: not compared, because {why}")

    async with aclosing(run.store.histories(managed)) as listing:
        async for page in listing:
            histories = list(whole(page))
            cases = [
                (history.key, side, subject(run, history, collections[history.key], policy, some))
                for history in histories
                for side, (policy, some) in enumerate(zip(policies[history.key], lists, strict=True))
                if policy
            ]
            judged = await judge_all(run, [case for _key, _side, case in cases])
            by_case = {(key, side): judgement for (key, side, _case), judgement in zip(cases, judged, strict=True)}
            for history in histories:
                comparison.versions_seen += len(history.versions)
                old, new = policies[history.key]
                found = [[each] if (each := by_case.get((history.key, side))) else [] for side in (0, 1)]
                if difference := _difference(history.key, old, new, found[0], found[1]):
                    comparison.key_differences.append(difference)


async def _compare_unkeyed(run: Run, comparison: Comparison, lists: Lists) -> None:
    old, new = (select_policy(some, None, None) for some in lists)
    if not (old or new):
        return
    unreadable: list[str | None] = []
    before: list[Judgement] = []
    after: list[Judgement] = []
    seen: set[UUID] = set()
    async with aclosing(run.store.unkeyed(await run.store.count_unkeyed(), unreadable)) as pages:
        async for page in pages:
            fresh = [version for version in page if version.id not in seen]
            seen.update(version.id for version in fresh)
            before += await judge_unkeyed(run, fresh, old) if old else ()
            after += await judge_unkeyed(run, fresh, new) if new else ()
    comparison.versions_seen += len(seen)
    if unreadable:
        comparison.errors.append(
            f"{count(len(unreadable), 'artifact')} not compared, because the server fails to show them (500)"
        )
    if difference := _difference(None, old, new, before, after):
        comparison.key_differences.append(difference)


def _difference(
    key: str | None,
    old: RetentionPolicy | None,
    new: RetentionPolicy | None,
    before: Sequence[Judgement],
    after: Sequence[Judgement],
) -> KeyDifference | None:
    """Return what differs between the judgements on the versions of a key; None if nothing does."""
    stale_before, stale_after = (
        {each.versions.ids[index] for each in some for index in each.stale} for some in (before, after)
    )
    if stale_before == stale_after:
        return None
    deleted, kept = _Part(), _Part()
    for each in after:
        for index, version_id in enumerate(each.versions.ids):
            if (version_id in stale_before) != (version_id in stale_after):
                part = deleted if version_id in stale_after else kept
                part.add(version_id, each.versions.sizes[index], each.why(index))
    if new is None:
        for each in before:
            for index in each.stale:
                kept.add(each.versions.ids[index], each.versions.sizes[index], (UNMANAGED,))
    return KeyDifference(
        key=key,
        policy_before=old.name if old else "",
        policy=new.name if new else "",
        newly_deleted=deleted.ids,
        newly_kept=kept.ids,
        bytes_deleted=deleted.bytes,
        bytes_kept=kept.bytes,
        deleted_by=[*deleted.rules.values()],
        kept_by=[*kept.rules.values()],
    )


class _Part:
    """Some versions of a key, with their reasons by rule."""

    def __init__(self) -> None:
        self.ids: list[UUID] = []
        self.bytes = 0
        self.rules: dict[str, RuleCount] = {}

    def add(self, version_id: UUID, amount: int, reasons: Iterable[Reason]) -> None:
        self.ids.append(version_id)
        self.bytes += amount
        for reason in reasons:
            rule = self.rules.setdefault(reason.rule, RuleCount(rule=reason.rule, versions=0, example=reason.text))
            rule.versions += 1


def show(comparison: Comparison) -> None:
    """Print a comparison."""
    terminal.show(terminal.Report("\n\n".join(part for part in _parts(comparison) if part)))


def _parts(comparison: Comparison) -> Iterator[str]:
    differences = comparison.key_differences
    deleted, kept = sum(len(each.newly_deleted) for each in differences), sum(len(each.newly_kept) for each in differences)
    yield f"# Newly deleted: {count(deleted, 'version')}, newly kept: {count(kept, 'version')}"
    yield (
        f"Old: {escape(comparison.old)}. New: {escape(comparison.new)}. {count(comparison.versions_seen, 'version')} on "
        f"{escape(comparison.server)}, as of {comparison.now:%Y-%m-%d %H:%M:%S} UTC."
    )
    for title, lines in (
        ("Not compared", comparison.errors),
        ("Warnings", comparison.warnings),
        ("Changes of the policies", comparison.changes),
    ):
        if lines:
            yield f"## {title}\n\n{bullet_list(lines)}"
    if not differences:
        return
    policies = dict.fromkeys((each.policy_before, each.policy) for each in differences)
    rows = [(before or NO_POLICY, after or NO_POLICY, *_totals(differences, before, after)) for before, after in policies]
    header = ("Old policy", "New policy", "Keys", "Newly deleted", "Size", "Newly kept", "Size")
    yield f"## Policies\n\n{pipe_table(header, rows)}"
    most = sorted(differences, key=lambda each: len(each.newly_deleted) + len(each.newly_kept), reverse=True)
    keys = [
        (label(each.key), len(each.newly_deleted), _why(each.deleted_by), len(each.newly_kept), _why(each.kept_by))
        for each in most[:MAX_KEYS_SHOWN]
    ]
    more = f"; the {MAX_KEYS_SHOWN} with the most:" if len(most) > MAX_KEYS_SHOWN else ":"
    table = pipe_table(("Key", "Newly deleted", "because", "Newly kept", "because"), keys)
    yield f"## Keys\n\n{count_keys(each.key for each in most)} differ{more}\n\n{table}"


def _totals(differences: Sequence[KeyDifference], before: str, after: str) -> tuple[object, ...]:
    these = [each for each in differences if (each.policy_before, each.policy) == (before, after)]
    return (
        sum(each.key is not None for each in these),
        sum(len(each.newly_deleted) for each in these),
        size(sum(each.bytes_deleted for each in these)),
        sum(len(each.newly_kept) for each in these),
        size(sum(each.bytes_kept for each in these)),
    )


def _why(rules: Sequence[RuleCount]) -> str:
    return "; ".join(each.example for each in rules)
