"""Archiving as a step of pruning: what is about to be deleted is written to the archive first, in parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect_artifact_retention.policies import RetentionError, Version
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.stores.archive.model import ArchiveError
from prefect_artifact_retention.tasks.archive import MAX_PART_BYTES, Candidate, Offloaded, RunArchive, in_thread
from prefect_artifact_retention.tasks.rendering import size
from prefect_artifact_retention.tasks.run import Run, in_flow_run

MAX_PART_VERSIONS = 5_000
"""With more, fewer parts are written, and more is archived in vain by a run that is stopped."""

MAX_PARTS_AT_ONCE = 2
"""Parts that are written at once: one is read while the other is compressed and published. With one, deletions with an
archive on SQLite take some percent longer."""


class _Part:
    """A part that is to be written. No dataclass: Prefect would traverse it.

    Attributes:
        number: Its number among the parts of the run.
        versions: How many it gets at most.
        error: Why it is not written, until somebody has taken it; None once it is.
    """

    def __init__(self, number: str, versions: int, write: Callable[[], Awaitable[object]]) -> None:
        self.number = number
        self.versions = versions
        self.error: RetentionError | None = ArchiveError("it was interrupted")
        self._write = write

    async def write(self) -> None:
        try:
            await self._write()
        except RetentionError as error:
            self.error = error
        except Exception as error:
            self.error = ArchiveError(f"unexpected {type(error).__name__}")
            raise
        else:
            self.error = None
        finally:
            # Prefect keeps the part until the task around its own ends, and this has all its versions.
            del self._write


def fitting_a_part(run: Run, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """Return the first of some versions that have no copy yet: as many as a part takes, and as the run may still delete."""
    if not run.archive:
        return
    copies = run.archive.copies
    room, space = min(MAX_PART_VERSIONS, run.room() - len(copies)), MAX_PART_BYTES
    for number, each in enumerate(candidate for candidate in candidates if candidate.id not in copies):
        space -= each.size
        if number >= room or (number and space < 0):
            return
        yield each


async def archive(run: Run, candidates: Iterable[Candidate], size: int = MAX_PART_BYTES) -> bool:
    """Archive those of some versions that have no copy yet, as one part. Return False if the run may delete nothing more.

    Args:
        run: The run.
        candidates: The versions. They are chosen only once this part is written, so they may depend on what has a copy then.
        size: The bytes of their data, if they are among the candidates of no other call. Without it, no other part is written
            meanwhile.

    Raises:
        StoreError: A version cannot be read.
    """
    if not (archive := run.archive):
        return True
    async with archive.space.borrow(max(size, archive.space.capacity // MAX_PARTS_AT_ONCE)):
        missing = [each for each in candidates if each.id not in archive.copies]
        if not missing or run.is_stalled:
            return not run.is_stalled
        number = archive.take_number()
        write = partial(archive.write, number, run.store, missing, run.notify_archiving)
        part = _Part(number, len(missing), write)
        error = await _write(part)
    if isinstance(error, ArchiveError):
        run.give_up(f"nothing more is deleted, because it cannot be archived: {error}")
        return False
    if error:
        raise error
    # Another part may have failed meanwhile.
    return not run.is_stalled


async def archive_offloaded(
    run: Run, archive: RunArchive, candidates: Sequence[Candidate], judged: Mapping[UUID, Version]
) -> list[Offloaded]:
    """Archive some versions whose data are to be replaced, as one part. Return those that may be replaced.

    Of these, none has changed since it was judged.

    Raises:
        StoreError: A version cannot be read, or the archive cannot be written.
    """
    offloaded: list[Offloaded] = []
    number = archive.take_number()

    async def write() -> None:
        offloaded.extend(await archive.offload(number, run.store, candidates, judged, run.notify_archiving))

    part = _Part(number, len(candidates), write)
    async with archive.space.borrow(MAX_PART_BYTES):
        error = await _write(part)
    if error:
        raise error
    return offloaded


async def _write(part: _Part) -> RetentionError | None:
    """Write a part. Return why it is not written, which the part does not keep: a traceback has all its versions, too."""
    if in_flow_run():
        # Prefect types a call of an async task as its result.
        await archive_task(part, part.number, return_state=True)  # type: ignore[misc]
    else:
        await part.write()
    error, part.error = part.error, None
    return error


@task(name="archive", task_run_name="archive {name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
async def archive_task(part: _Part, name: str) -> State[None]:  # noqa: ARG001 - names the task run
    """Write a part. Never retried by Prefect: only what the part has written whole may be deleted."""
    await part.write()
    if part.error:
        return Failed(message=str(part.error))
    return Completed(message=f"{count(part.versions, 'version')} archived")


async def finish_archive(run: Run) -> None:
    """Write the manifest of the run. A failure is an error of the run: its archive does not tell what was not deleted."""
    if not run.archive:
        return
    what = "the archive lacks the manifest of this run"
    try:
        await run.archive.finish(run.store, run.policies)
    except ArchiveError as error:
        run.report.errors.append(f"{what}: {error}")
    except Exception as error:  # noqa: BLE001 - versions are gone for good, and the report must say so
        run.report.errors.append(f"{what}: unexpected {type(error).__name__}")


async def prune_archive(run: Run) -> None:
    """Remove from the archive what it is no longer to keep. A failure is a warning: the next run tries again."""
    limits = run.limits
    if not run.archive or not (limits.archive_keep_days or limits.ledger_keep_days):
        return
    keep_days = limits.archive_keep_days, limits.ledger_keep_days
    try:
        # By the clock of this machine, which has dated the parts.
        pruned = await in_thread(run.archive.archive.prune, datetime.now(UTC), *keep_days, run.report.server)
    except ArchiveError as error:
        run.report.warn(f"nothing was removed from the archive: {error}")
        return
    if pruned.problems:
        done = f"{count(len(pruned.runs), 'run')} lost what it was no longer to keep, {len(pruned.problems)} did not"
        run.report.warn(f"of the archive, {done}: {pruned.problems[0]}")
    if pruned.runs:
        run.report.notes.append(
            f"Of {count(len(pruned.runs), 'run')}, the archive has lost what it was no longer to keep "
            f"({size(pruned.bytes_freed)})."
        )
