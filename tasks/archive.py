"""What a run archives: `RunArchive` knows which versions are safe in the archive, and what became of each.

A version may be deleted only while it has a copy here, and is as it was when it was copied. One that has changed is archived
anew, or stays. What was archived and not deleted in the end is told by the manifest of the run, so that nobody takes it for
deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar
from uuid import UUID

from prefect_artifact_retention.policies import RetentionPolicy, StoreError, Version
from prefect_artifact_retention.policies.evaluation import Reason
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, CollectionRow, RunManifest
from prefect_artifact_retention.stores.concurrency import WeightLimiter
from prefect_artifact_retention.stores.connection import shielded
from prefect_artifact_retention.stores.rows import load_control_metadata
from prefect_artifact_retention.stores.store import Store
from prefect_artifact_retention.stores.transactions import LostConnectionError
from prefect_artifact_retention.tasks.report import ArchiveReport, CleanupReport

if TYPE_CHECKING:
    # It needs an extra, which is not there without an archive.
    from prefect_artifact_retention.stores.archive.archive import Archive

MAX_PART_BYTES = 24 * 2**20
"""Bytes of the data of the versions in a part, unless a single one has more, and of all parts that are written at once. With
more, fewer parts are written, the process takes more memory, and more is archived in vain by a run that is stopped."""

MAX_SLICE_BYTES = 4 * 2**20
"""Bytes of the versions that are read at once, and in one row group of a part, unless a single version has more. With more,
the process takes several times as much more memory; with less, no less time."""

NOTHING_ARCHIVED = "the archive {} has nothing yet: unless it is new, look whether its volume is mounted"
"""What is told of the archive at an address in which nothing is."""

P = ParamSpec("P")
R = TypeVar("R")


class Candidate(NamedTuple):
    """A version that is to be archived.

    Attributes:
        id: Its id.
        size: The bytes of its data when it was planned.
        verdict: Where its reasons are, see `RunArchive.index_of`.
        policy: The name of its policy.
        latest_of: The key of which it is the latest version, and which goes as a whole; mostly None.
    """

    id: UUID
    size: int
    verdict: int
    policy: str
    latest_of: str | None


class Offloaded(NamedTuple):
    """A version whose data are in the archive, and may be replaced.

    Attributes:
        version: The version as it was archived, without the data.
        state: Its state then.
    """

    version: ArchivedVersion
    state: object


class RunArchive:
    """The archive of one run, and what the run has put into it.

    Attributes:
        archive: The archive.
        totals: What the report says of it.
        space: Borrowed for the bytes of a part while it is written: together, they take no more memory than a large one.
        copies: The archived versions that are still to be deleted, with their states as they were archived.
        spared: The archived versions that this run has not deleted, and will not on this copy.
        in_doubt: Those of which it is not known whether they were deleted, likewise.
        unanswered: Those for which a request to delete was not answered. The server may do it at any time, also after the run,
            so they never count as spared, whatever is found of them.
    """

    def __init__(self, archive: Archive, report: CleanupReport, run_id: str, run_name: str, first_number: int) -> None:
        """Begin with the parts of a run at a number that is free in the archive."""
        self.archive = archive
        self.run_id = run_id
        self.space = WeightLimiter(MAX_PART_BYTES)
        self.copies: dict[UUID, object] = {}
        self.spared: set[UUID] = set()
        self.in_doubt: dict[UUID, object] = {}
        self.unanswered: set[UUID] = set()
        self.totals = report.archive or ArchiveReport(url=archive.url, payloads=True)
        self._run_name = run_name
        self._report = report
        # Whether each surely counts: what was archived in it may be deleted only then.
        self._parts: dict[str, bool] = {}
        self._next = first_number
        # The texts and the rules of each.
        self._reasons: list[tuple[list[str], list[str]]] = []
        self._index: dict[tuple[Reason, ...], int] = {}

    def index_of(self, reasons: tuple[Reason, ...]) -> int:
        """Return where these reasons are kept, each combination once: a run may have millions of versions."""
        index = self._index.setdefault(reasons, len(self._reasons))
        if index == len(self._reasons):
            self._reasons.append(([reason.text for reason in reasons], [reason.rule for reason in reasons]))
        return index

    def states(self, ids: Iterable[UUID]) -> dict[UUID, object]:
        """Return the states of versions as they were archived; None, which is no state, for one that was not."""
        return {version_id: self.copies.get(version_id) for version_id in ids}

    def sum_of_states(self, ids: Iterable[UUID]) -> int | None:
        """Return the sum of these states, which are numbers in a database; None if a version has no copy."""
        states: list[Any] = [*map(self.copies.get, ids)]
        return None if None in states else sum(states)

    def take_number(self) -> str:
        """Return the number of a new part, as its task and its file have it."""
        self._next += 1
        return f"{self._next - 1:05}"

    async def write(
        self, number: str, store: Store, candidates: Sequence[Candidate], tell: Callable[[], Awaitable[None]]
    ) -> None:
        """Write one part with those of the versions that still exist. Only once this returns, they have copies.

        Raises:
            ArchiveError: The archive cannot be written.
            StoreError: The versions cannot be read.
        """
        name = self._name(number)
        copied: dict[UUID, object] = {}
        collections: list[CollectionRow] = []
        async with _in_threads(self.archive.stage(name, payloads=self.totals.payloads)) as staged:
            async for columns, states, rows in self._read(store, candidates, tell):
                collections += rows
                await in_thread(staged.add, columns)
                copied.update(states)
            if not copied:
                return
            again = len(self.spared & copied.keys())
            # Whoever is stopped from here on cannot know whether the part counts.
            self.spared.update(copied)
            self._parts[name] = False
            manifest = await in_thread(staged.publish, collections)
        self._parts[name] = True
        self.spared.difference_update(copied)
        self.copies.update(copied)
        self.totals.parts += 1
        self.totals.versions += len(copied) - again
        self.totals.bytes += manifest.bytes
        if self.totals.payloads:
            # By its id: a deployment names all its runs alike.
            self.totals.restore = f"artifact-retention restore --run {self.run_id}"

    async def offload(
        self,
        number: str,
        store: Store,
        candidates: Sequence[Candidate],
        judged: Mapping[UUID, Version],
        tell: Callable[[], Awaitable[None]],
    ) -> list[Offloaded]:
        """Write one part with those of the versions that are as they were judged.

        Only once this returns, their data may be replaced.

        Raises:
            ArchiveError: The archive cannot be written.
            StoreError: The versions cannot be read.
        """
        name = self._name(number)
        offloaded: list[Offloaded] = []
        async with _in_threads(self.archive.stage(name)) as staged:
            async for read, states, _rows in self._read(store, candidates, tell):
                controls = map(load_control_metadata, read["metadata"])
                found = zip(read["id"], read["updated"], read["size"], controls, strict=True)
                # Others may have been put on hold, or are no longer large.
                is_as_judged = [
                    (updated, size, control) == (judged[each].updated, judged[each].size, judged[each].metadata)
                    for each, updated, size, control in found
                ]
                columns = {name: [*compress(values, is_as_judged)] for name, values in read.items()}
                if not columns["id"]:
                    continue
                await in_thread(staged.add, columns)
                nothing = dict.fromkeys(("data", "metadata"), [None] * len(columns["id"]))
                versions = zip(*(columns | nothing).values(), strict=True)
                offloaded += map(Offloaded, map(ArchivedVersion._make, versions), compress(states.values(), is_as_judged))
            if offloaded:
                self._parts[name] = False
                await in_thread(staged.publish, offloaded=True)
                self._parts[name] = True
        return offloaded

    def _name(self, number: str) -> str:
        return f"{self.run_id}-{number}"

    async def _read(
        self, store: Store, candidates: Sequence[Candidate], tell: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[tuple[dict[str, Sequence[Any]], dict[UUID, object], Sequence[CollectionRow]]]:
        """Read those of the versions that still exist, some at a time: the columns of a part, the states, and collections."""
        for some in _slices(candidates):
            await tell()
            keys = [each.latest_of for each in some if each.latest_of is not None]
            found = await store.payloads([each.id for each in some], keys, with_data=self.totals.payloads)
            *columns, states = found.columns
            ids: Sequence[UUID] = columns[0]
            planned = {each.id: each for each in some}
            columns += self._verdicts([planned[version_id] for version_id in ids])
            named = dict(zip(ArchivedVersion._fields, columns, strict=True))
            yield named, dict(zip(ids, states, strict=True)), found.collections

    def _verdicts(self, candidates: Sequence[Candidate]) -> Iterator[Sequence[Any]]:
        """Return the columns of a part that tell why versions went, and who deleted them."""
        reasons = [self._reasons[each.verdict] for each in candidates]
        yield [each.latest_of is not None for each in candidates]
        yield [each.policy for each in candidates]
        yield [self._report.policy_digest] * len(candidates)
        yield [texts for texts, _rules in reasons]
        yield [rules for _texts, rules in reasons]
        for value in (self.run_id, self._run_name, self._report.now, None, self._report.server):
            yield [value] * len(candidates)

    def add_deleted(self, ids: Iterable[UUID]) -> None:
        """Record that versions were deleted."""
        for version_id in ids:
            self.copies.pop(version_id, None)
            self.in_doubt.pop(version_id, None)

    def settle(self, ids: Iterable[UUID], *, deleted: bool) -> None:
        """Record what became of versions that were in doubt: this run has deleted them, or somebody else."""
        if deleted:
            self.add_deleted(ids)
        else:
            self.spared.update(version_id for version_id in ids if self.in_doubt.pop(version_id, None) is not None)

    def spare(self, ids: Iterable[UUID]) -> None:
        """Record that versions are not deleted on the copies that they have."""
        self.spared.update(version_id for version_id in ids if self.copies.pop(version_id, None) is not None)

    def doubt(self, ids: Iterable[UUID]) -> None:
        """Record that versions may have been deleted."""
        _move(ids, self.copies, self.in_doubt)

    def trust(self, ids: Iterable[UUID]) -> None:
        """Record that versions have not been deleted, which was in doubt."""
        _move(ids, self.in_doubt, self.copies)

    @contextmanager
    def doubting(self, ids: Collection[UUID]) -> Iterator[None]:
        """Doubt whether a transaction has deleted versions, if its connection is lost, or the run is stopped meanwhile."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, LostConnectionError) or not isinstance(error, Exception):
                self.doubt(ids)
            raise

    async def finish(self, store: Store, policies: Sequence[RetentionPolicy]) -> None:
        """Write the manifest of the run, if anything was archived.

        Raises:
            ArchiveError: It cannot be written.
        """
        if not self._parts:
            return
        # What may have been deleted and is not listed as spared can be restored; restoring what exists does nothing.
        if in_doubt := self.in_doubt.keys() - self.unanswered:
            with suppress(StoreError):
                self.spared |= await store.existing([*in_doubt])
        manifest = RunManifest(
            run_id=self.run_id,
            run_name=self._run_name,
            server=self._report.server,
            ended_at=datetime.now(UTC),
            outcome=self._report.outcome,
            parts=sorted(self._parts),
            unconfirmed=[name for name, counts in self._parts.items() if not counts],
            versions=self.totals.versions,
            deleted=self._report.deleted,
            spared=sorted((self.spared | self.copies.keys()) - self.unanswered),
            policies=[policy.model_dump(mode="json") for policy in policies],
            approved_by=self._report.approved_by,
        )
        await in_thread(self.archive.publish_run, manifest)


def _move(ids: Iterable[UUID], source: dict[UUID, object], target: dict[UUID, object]) -> None:
    target.update((version_id, source.pop(version_id)) for version_id in ids if version_id in source)


def _slices(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """Split versions into slices of at most `MAX_SLICE_BYTES`; a larger version has a slice of its own."""
    first = size = 0
    for number, candidate in enumerate(candidates):
        size += candidate.size
        if size > MAX_SLICE_BYTES and number > first:
            yield candidates[first:number]
            first, size = number, candidate.size
    if candidates:
        yield candidates[first:]


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what blocks. A thread cannot be cancelled, so it gets a moment to finish."""
    return await shielded(asyncio.to_thread(function, *args, **kwargs))


@asynccontextmanager
async def _in_threads(manager: AbstractContextManager[R]) -> AsyncIterator[R]:
    """Enter and leave a context that blocks."""
    entered = await in_thread(manager.__enter__)
    try:
        yield entered
    except BaseException as error:
        await in_thread(manager.__exit__, type(error), error, error.__traceback__)
        raise
    await in_thread(manager.__exit__, None, None, None)
