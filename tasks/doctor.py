"""Examines the artifacts of a server: what is broken, what deserves a look, and what grows. Only `fix` writes anything.

Collections are judged on three readings: the collection, its versions, and the collection again. Of one that has changed in
between, nothing is said: its producer is at work, and the next version sets its latest right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.control import HOLD, read_control
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.policies.likeness import look_alikes
from prefect_artifact_retention.policies.loading import OWN_KEYS, PREVIEW_POLICY, select_policy
from prefect_artifact_retention.policies.model import Versions
from prefect_artifact_retention.stores.database import DatabaseStore
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF, Collection, History
from prefect_artifact_retention.stores.transactions import BusyError
from prefect_artifact_retention.tasks.archive import NOTHING_ARCHIVED
from prefect_artifact_retention.tasks.checkup import (
    GROWTH_DAYS,
    MAX_EXAMPLES,
    PROJECTED_DAYS,
    Checkup,
    DiskReport,
    Finding,
    Growth,
    KeySize,
    Kind,
)
from prefect_artifact_retention.tasks.discover import discover
from prefect_artifact_retention.tasks.plan import without_keys
from prefect_artifact_retention.tasks.rendering import label, size
from prefect_artifact_retention.tasks.run import Run
from prefect_artifact_retention.tasks.verify import MAX_REPAIR_ROUNDS

if TYPE_CHECKING:
    # It needs an extra, which is not there without an archive.
    from prefect_artifact_retention.stores.archive.archive import Archive

MAX_LARGEST_KEYS = 10
DAY, WEEK = timedelta(days=1), timedelta(days=7)
MAX_UNFINISHED_RUNS = 1_000
"""Unfinished runs of which it is known what each keeps; of further ones, only how much together. More take more memory."""

UNFINISHED_AGE = timedelta(days=14)
"""The age from which an unfinished run is reported that keeps versions. With less, a run that takes long is."""

MIN_DEAD_ROWS = 10_000
MIN_FREE_BYTES = 100_000_000
MAX_DEAD_SHARE = 0.2
"""Dead rows, or free pages of SQLite, are reported from these numbers on if they are a larger share than this. PostgreSQL's
own autovacuum begins at the same share by default."""

REPAIRABLE: Sequence[Kind] = ("latest_missing", "latest_not_newest", "no_collection", "placeholder_left")


_COLLECTIONS: Mapping[Kind, tuple[str, str]] = {
    "latest_missing": (
        "Keys whose latest version does not exist, is of another key, or was left by a repair",
        "doctor --fix makes the newest version the latest; of a key without any, it restores the server's copy",
    ),
    "latest_not_newest": (
        "Keys whose latest version is not the newest, as happens where several runs write at the same moment",
        "doctor --fix makes the newest version the latest",
    ),
    "no_collection": (
        "Keys that the server lists nowhere, because the collection of their versions is missing",
        "doctor --fix creates it, with the newest version as the latest",
    ),
    "placeholder_left": (
        "Keys with a placeholder among their versions, left by a repair through the API that was interrupted",
        "doctor --fix deletes it",
    ),
}
"""What is said of broken collections, and what to do."""


class _Sample:
    """How many of something there are, and the first of them."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.number = 0
        self.first: list[str] = []
        self.add(*texts)

    def add(self, *texts: str) -> None:
        self.number += len(texts)
        self.first += texts[: MAX_EXAMPLES - len(self.first)]


class _Examination:
    """Collects what is found while versions are read, of which none is kept."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.now = run.report.now
        self.sizes: list[KeySize] = []
        self.suspects: dict[str, tuple[Collection, Kind]] = {}
        self.placeholders: dict[str, list[UUID]] = {}
        self.unreadable = _Sample(run.report.errors)
        self.metadata = _Sample()
        self.gone: dict[UUID, int] = {}
        self.of_gone_runs = 0
        self.unfinished: dict[UUID, tuple[datetime, KeySize]] = {}
        self.of_unfinished_runs = 0
        self.oldest = self.now
        # Versions and bytes by age in days; no models, whose fields are set more slowly than millions of versions are read.
        self.versions_by_day, self.bytes_by_day = [0] * GROWTH_DAYS, [0] * GROWTH_DAYS

    async def read_keys(self) -> None:
        """Read the versions of all keys."""
        collections = {each.key: each for each in self.run.collections}
        done = 0
        async with aclosing(self.run.store.histories([*collections])) as listing:
            async for page in listing:
                await self.run.notify("planning", done := done + len(page), len(collections))
                await self._add_runs([history.versions for history in page])
                for history in page:
                    self._add(history.key, history.versions)
                    self._judge(collections[history.key], history)

    async def read_unkeyed(self) -> None:
        """Read the artifacts without a key, in pages that may repeat some."""
        amount, seen, unreadable = KeySize(key=None), set[UUID](), list[str | None]()
        async with aclosing(self.run.store.unkeyed(await self.run.store.count_unkeyed(), unreadable)) as pages:
            async for page in pages:
                fresh = Versions.of(version for version in page if version.id not in seen)
                seen.update(fresh.ids)
                await self._add_runs([fresh])
                self._add(None, fresh, amount)
        self.unreadable.add(*[f"{label(None)}: an artifact that the server fails to show (500)"] * len(unreadable))
        if amount.versions:
            self.sizes.append(amount)

    def _add(self, key: str | None, versions: Versions, amount: KeySize | None = None) -> None:
        # As of a cleanup, what this package writes itself is in no total.
        if key in OWN_KEYS:
            return
        if amount is None:
            amount = KeySize(key=key)
            self.sizes.append(amount)
        for created, held in zip(versions.created, versions.sizes, strict=True):
            age = self.now - created
            _measure(amount, held, age)
            # What is newer than the server's clock, which has whole seconds, is of the last day.
            if (day := max(0, age // DAY)) < GROWTH_DAYS:
                self.versions_by_day[day] += 1
                self.bytes_by_day[day] += held
        if versions:
            self.oldest = min(self.oldest, versions.created[-1])
        for version in (versions[index] for index in versions.controlled):
            problems = read_control(version.metadata, self.now).unreadable
            self.metadata.add(*(f"{label(key)}, {version.id}: {problem}" for problem in problems))

    async def _add_runs(self, pages: Sequence[Versions]) -> None:
        rows = [row for each in pages for row in zip(each.flow_run_ids, each.task_run_ids, each.sizes, strict=True)]
        flow_runs = {flow_run for flow_run, _task_run, _held in rows if flow_run}
        task_runs = {task_run for _flow_run, task_run, _held in rows if task_run}
        gone = await self.run.store.gone_runs(flow_runs)
        unfinished = await self.run.store.unfinished(flow_runs, task_runs)
        old = {run_id: since for run_id, since in unfinished.items() if self.now - since > UNFINISHED_AGE}
        for flow_run, task_run, held in rows:
            if flow_run in gone:
                self.of_gone_runs += 1
                if flow_run in self.gone or len(self.gone) < MAX_EXAMPLES:
                    self.gone[flow_run] = self.gone.get(flow_run, 0) + 1
            # A task run that has not finished is named by its flow run, if that has not, either.
            if run_id := next((each for each in (flow_run, task_run) if each in old), None):
                self.of_unfinished_runs += 1
                if run_id in self.unfinished or len(self.unfinished) < MAX_UNFINISHED_RUNS:
                    _since, amount = self.unfinished.setdefault(run_id, (old[run_id], KeySize(key=None)))
                    _measure(amount, held, UNFINISHED_AGE)

    def _judge(self, collection: Collection, history: History) -> None:
        if history.error:
            self.unreadable.add(f"{label(history.key)}: not examined, because {history.error}")
        elif not history.complete:
            self.run.report.warn(f"{label(history.key)}: not examined, because its versions changed while they were read")
        elif kind := _problem(collection, history.versions, server_deletes=self.run.server_deletes):
            self.suspects[history.key] = collection, kind
        elif left := _left_placeholders(collection, history.versions):
            self.placeholders[history.key] = left

    async def confirm(self) -> dict[Kind, list[str]]:
        """Return the keys with broken collections, without those that have changed since they were read."""
        store = self.run.store
        broken: dict[Kind, list[str]] = {kind: [] for kind in REPAIRABLE}
        for again in await store.collections([*self.suspects]):
            before, kind = self.suspects[again.key]
            if again.latest_id == before.latest_id:
                broken[kind].append(again.key)
        # Their versions are read in between: a key that is created, or deleted as a whole, meanwhile has both, or neither.
        if missing := await store.uncollected([each.key for each in self.run.collections]):
            missing = await _without_collection(self.run, missing)
            async with aclosing(store.histories(missing)) as listing:
                async for page in listing:
                    found = {history.key: history.versions for history in page if history.versions}
                    for key in await _without_collection(self.run, [*found]):
                        broken["no_collection"].append(key)
                        self._add(key, found[key])
        # A repair may be at work, and about to delete its placeholder.
        left = await store.existing([each for ids in self.placeholders.values() for each in ids])
        broken["placeholder_left"] = [key for key, ids in self.placeholders.items() if not left.isdisjoint(ids)]
        return broken


async def examine(run: Run) -> Checkup:
    """Examine the artifacts of a server. Writes nothing.

    Raises:
        StoreError: The store cannot be read.
    """
    await discover(run)
    found = _Examination(run)
    await found.read_keys()
    await found.read_unkeyed()
    broken = await found.confirm()
    checkup = Checkup(
        server=run.report.server,
        now=run.report.now,
        through="database" if isinstance(run.store, DatabaseStore) else "api",
        keys_seen=sum(amount.key is not None for amount in found.sizes),
        warnings=run.report.warnings,
    )
    _summarize(checkup, found)
    checkup.findings = [
        *_broken_collections(broken, found.placeholders),
        *_broken_rows(found),
        *_about_policies(run),
        *_about_keys(run),
        *_about_runs(found),
    ]
    if isinstance(run.store, DatabaseStore):
        use = await run.store.disk_use()
        checkup.disk = DiskReport(
            bytes=use.size, free_bytes=use.free, rows=use.rows, dead_rows=use.dead_rows, vacuumed=use.vacuumed
        )
        checkup.findings += _about_disk(checkup.disk)
    return checkup


async def examine_archive(archive: Archive, checkup: Checkup) -> None:
    """Add to a checkup what is wrong with an archive. Lists it and reads its manifests, but no part, and writes nothing.

    Raises:
        ArchiveError: The archive cannot be read, is of a newer version of the format, or there is something else.
    """
    is_new = await asyncio.to_thread(archive.is_new)
    problems = await asyncio.to_thread(archive.problems)
    if is_new and not problems:
        checkup.warnings.append(NOTHING_ARCHIVED.format(archive.url))
    what = f"Files of the archive {archive.url} that are missing or cut, so that versions cannot be restored"
    advice = "Put them back from a copy of the archive. --fix leaves the archive alone"
    damaged = [each.text for each in problems if each.is_damage]
    checkup.findings += _finding("archive_damaged", what, damaged, advice, is_broken=True)
    what = f"Files in the archive {archive.url} that do not count"
    advice = "They are in no run's way. What no run is writing may be removed by hand"
    left = [each.text for each in problems if not each.is_damage]
    checkup.findings += _finding("archive_left_over", what, left, advice)


async def fix(run: Run, checkup: Checkup) -> None:
    """Repair the collections that were found broken, and check that they are whole."""
    left = [key for finding in checkup.findings for key in finding.keys_to_repair]
    placeholders = {key: ids for finding in checkup.findings for key, ids in finding.placeholders.items()}
    errors: dict[str, str] = {}
    # In rounds, because others may write meanwhile.
    for _round in range(MAX_REPAIR_ROUNDS):
        for key in left:
            try:
                await run.store.repair(key, to_newest=True)
                if ids := placeholders.get(key):
                    await run.store.delete_placeholders(key, ids)
            except StoreError as error:
                if isinstance(error, BusyError) and isinstance(run.store, DatabaseStore) and run.store.is_sqlite:
                    # Its lock is one of the whole file: each further key would wait as long.
                    checkup.errors.append(f"{error}: others write to it, so run --fix again later; nothing is half repaired")
                    break
                errors[key] = f"{label(key)}: {error}"
        if not (left := await _still_broken(run, left)) or checkup.errors:
            break
    for finding in checkup.findings:
        broken = [key for key in finding.keys_to_repair if key in left]
        finding.repaired = len(finding.keys_to_repair) - len(broken)
        if not checkup.errors:
            changed = "it is broken again, because others change it at the same time"
            finding.errors = [errors.get(key, f"{label(key)}: {changed}") for key in broken[:MAX_EXAMPLES]]


async def _still_broken(run: Run, keys: Sequence[str]) -> list[str]:
    """Return those of the keys whose collection is broken, or missing though there are versions."""
    collections = {each.key: each for each in await run.store.collections(keys)}
    left: list[str] = []
    async with aclosing(run.store.histories(keys)) as listing:
        async for page in listing:
            for history in page:
                collection = collections.get(history.key)
                is_broken = (
                    _problem(collection, history.versions) or _left_placeholders(collection, history.versions)
                    if collection
                    else bool(history.versions)
                )
                if is_broken or not history.complete:
                    left.append(history.key)
    return left


def _left_placeholders(collection: Collection, versions: Versions) -> list[UUID]:
    """Return the placeholders among the versions of a key, without its latest version."""
    found = (versions[index] for index in versions.controlled if versions.ids[index] != collection.latest_id)
    return [version.id for version in found if PLACEHOLDER_OF in version.metadata and HOLD not in version.metadata]


def _problem(collection: Collection, versions: Versions, *, server_deletes: bool = False) -> Kind | None:
    """Return what is broken of a collection, by all versions of its key; None if nothing is."""
    if not versions:
        # Otherwise, the server may be about to delete the collection, too.
        return None if server_deletes else "latest_missing"
    if collection.latest_id not in versions.ids or (collection.is_placeholder and len(versions) > 1):
        return "latest_missing"
    newest = versions.created[0]
    return "latest_not_newest" if newest > versions.created[versions.ids.index(collection.latest_id)] else None


async def _without_collection(run: Run, keys: Sequence[str]) -> list[str]:
    unreadable: list[str | None] = []
    have_one = {each.key for each in await run.store.collections(keys, unreadable)}
    # Any of them may have a collection that the server fails to show, which is a finding already.
    return [] if unreadable else [key for key in keys if key not in have_one]


def _measure(amount: KeySize, held: int, age: timedelta) -> None:
    amount.versions += 1
    amount.bytes += held
    if age <= WEEK:
        amount.versions_of_week += 1
        amount.bytes_of_week += held
    if age <= DAY:
        amount.versions_of_day += 1
        amount.bytes_of_day += held


def _summarize(checkup: Checkup, found: _Examination) -> None:
    numbers = [name for name in KeySize.model_fields if name != "key"]
    total = checkup.total = KeySize(key=None, **{name: sum(getattr(each, name) for each in found.sizes) for name in numbers})
    # What has been there for two days has not grown for a week.
    grown_for = min(WEEK, max(DAY, found.now - found.oldest)) / DAY
    by_day = zip(found.versions_by_day, found.bytes_by_day, strict=True)
    checkup.growth = [
        Growth(until=found.now - number * DAY, versions=versions, bytes=held) for number, (versions, held) in enumerate(by_day)
    ]
    checkup.projected_bytes = total.bytes + round(total.bytes_of_week / grown_for * PROJECTED_DAYS)
    checkup.most_versions = sorted(found.sizes, key=lambda each: each.versions, reverse=True)[:MAX_LARGEST_KEYS]
    checkup.most_bytes = sorted(found.sizes, key=lambda each: each.bytes, reverse=True)[:MAX_LARGEST_KEYS]


def _finding(
    kind: Kind, what: str, found: Sequence[str] | _Sample, advice: str, *, is_broken: bool = False
) -> Iterable[Finding]:
    """Yield a finding if there are any examples of it, which are all of them unless a sample counts them."""
    sample = found if isinstance(found, _Sample) else _Sample(found)
    if sample.number:
        yield Finding(kind=kind, is_broken=is_broken, what=what, count=sample.number, examples=sample.first, advice=advice)


def _broken_collections(broken: Mapping[Kind, Sequence[str]], placeholders: Mapping[str, list[UUID]]) -> Iterable[Finding]:
    for kind, (what, advice) in _COLLECTIONS.items():
        for finding in _finding(kind, what, [*map(label, broken[kind])], advice, is_broken=True):
            finding.keys_to_repair = list(broken[kind])
            if kind == "placeholder_left":
                finding.placeholders = {key: placeholders[key] for key in broken[kind]}
            yield finding


def _broken_rows(found: _Examination) -> Iterable[Finding]:
    advice = "See the server's log for why; a cleanup deletes nothing of what it cannot read"
    yield from _finding("unreadable", "Keys and artifacts that could not be read", found.unreadable, advice, is_broken=True)
    advice = "Correct the entry where the artifact is written. Until then, it keeps its version"
    what = "Entries of metadata that cannot be read as a hold or a TTL"
    yield from _finding("metadata_unreadable", what, found.metadata, advice, is_broken=True)


def _about_policies(run: Run) -> Iterable[Finding]:
    if run.policies[1:] == (PREVIEW_POLICY,):
        return
    chosen = {
        each.key: select_policy(run.policies, each.key, each.type) for each in run.collections if each.key not in OWN_KEYS
    }
    unmanaged = [label(key) for key, policy in chosen.items() if policy is None]
    advice = "They grow without end. Write a policy that matches them, with keep_all if that is what you want"
    yield from _finding("keys_without_policy", "Keys without a policy", unmanaged, advice)
    unused = [*without_keys(run, {policy.name for policy in chosen.values() if policy})]
    advice = "Correct match_keys, or remove the policy"
    yield from _finding("policies_without_key", "Policies without a key", unused, advice)


def _about_keys(run: Run) -> Iterable[Finding]:
    alike = [", ".join(map(label, keys)) for keys in look_alikes(each.key for each in run.collections)]
    advice = "If one history is split in two, write to one of them only, and let drop_idle_keys_after_days delete the other"
    yield from _finding("look_alikes", "Keys that look alike", alike, advice)


def _about_runs(found: _Examination) -> Iterable[Finding]:
    gone = [f"{run_id}: {count(number, 'version')}" for run_id, number in found.gone.items()]
    advice = "Nothing, if somebody has deleted the runs: the policies treat their versions as any others"
    for finding in _finding("runs_gone", "Artifacts whose flow run is gone", gone, advice):
        finding.count, finding.shares = found.of_gone_runs, [*found.gone.values()]
        yield finding
    oldest_first = sorted(found.unfinished.items(), key=lambda item: item[1][0])
    unfinished = [
        f"{run_id}, since {since:%Y-%m-%d}: {count(amount.versions, 'version')}, {size(amount.bytes)}"
        for run_id, (since, amount) in oldest_first
    ]
    what = f"Artifacts of runs that have not finished for more than {UNFINISHED_AGE.days} days, and keep them"
    advice = "If nothing runs there any more, cancel or delete the run in the Prefect UI: until then, its versions stay"
    for finding in _finding("runs_unfinished", what, unfinished, advice):
        finding.count, finding.shares = found.of_unfinished_runs, [each[1][1].versions for each in oldest_first]
        yield finding


def _about_disk(disk: DiskReport) -> Iterable[Finding]:
    examples = []
    if disk.dead_rows >= max(MIN_DEAD_ROWS, MAX_DEAD_SHARE * (disk.rows + disk.dead_rows)):
        since = f"{disk.vacuumed:%Y-%m-%d %H:%M} UTC" if disk.vacuumed else "never"
        examples = [f"artifact: {count(disk.dead_rows, 'dead row')} beside {disk.rows:,}; last vacuum: {since}"]
    elif disk.free_bytes >= max(MIN_FREE_BYTES, MAX_DEAD_SHARE * disk.bytes):
        examples = [f"{size(disk.free_bytes)} of {size(disk.bytes)} of the file are free"]
    advice = 'A VACUUM makes their room free again; a delete run with reclaim = "vacuum" ends with one'
    yield from _finding("not_vacuumed", "Room in the database that deleted rows take", examples, advice)
