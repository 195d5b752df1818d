"""An archive: where versions are safe before they are deleted, and from where they come back.

    ARCHIVE/data/RUN-ID-00001.parquet        a part: versions, written whole before it appears
    ARCHIVE/manifests/RUN-ID-00001.json      by which that part counts, written after the part was read back
    ARCHIVE/manifests/RUN-ID.json            what the run did in all
    ARCHIVE/staging/                         what is being written

Nothing is appended, replaced or renamed. What is in `data` or `staging` without a manifest does not count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.stores.archive.location import DATA, MANIFESTS, STAGING, Location, open_location, write_synced
from prefect_artifact_retention.stores.archive.manifests import (
    PART_NAME,
    check_is_archive,
    check_place,
    find_problems,
    is_new,
    is_run_name,
    publish_run,
    read_catalog,
)
from prefect_artifact_retention.stores.archive.model import (
    ArchivedVersion,
    ArchiveError,
    CollectionRow,
    LedgerQuery,
    PartManifest,
    Problem,
    RunManifest,
)

try:
    from prefect_artifact_retention.stores.archive.parquet import LEDGER
    from prefect_artifact_retention.stores.archive.pruning import PruneResult, prune_archive
    from prefect_artifact_retention.stores.archive.reading import read_ledger, read_versions
    from prefect_artifact_retention.stores.archive.writing import StagedPart, stage_part
except ImportError as error:
    raise ConfigurationError(
        f"an archive needs the extra `archive`: pip install 'prefect-artifact-retention[archive]' ({error})"
    ) from error

EVERYTHING = LedgerQuery()


class Archive:
    """An archive in a folder or an object store. All methods block; whatever fails is an `ArchiveError`.

    Attributes:
        url: Where it is, without credentials.
    """

    def __init__(self, location: Location) -> None:
        self.url = location.url
        self._location = location

    def __repr__(self) -> str:
        return f"Archive({self.url!r})"

    def check_writable(self) -> bool:
        """Check that this is an archive or can become one, and that files can be written there: one, which is removed again.

        Returns:
            Whether nothing is archived there yet.

        Raises:
            ArchiveError: It cannot be written, is of a newer version of the format, or there is something else.
        """
        is_new = check_place(self._location)
        name = f"{STAGING}/check-{uuid4().hex}"
        with self._location.staged("check") as staged:
            with self._location.doing(f"write {name}"):
                write_synced(staged, name.encode())
            self._location.publish(staged, name)
        read = self._location.read(name)
        # A run needs no right to remove.
        with suppress(ArchiveError):
            self._location.remove(name)
        if read != name.encode():
            raise ArchiveError(f"the archive {self.url}: a file is not read back as it was written")
        return is_new

    def first_free_number(self, run_id: str) -> int:
        """Return the number of the next part of a run: 1, or behind whatever an earlier attempt of it has left."""
        self._location.prepare()
        names = [name.rpartition(".")[0] for folder in (DATA, MANIFESTS) for name in self._location.names(folder)]
        found = [part for name in names if (part := PART_NAME.fullmatch(name)) and part["run_id"] == run_id]
        return max((int(part["number"]) for part in found), default=0) + 1

    def stage(self, name: str, *, payloads: bool = True) -> AbstractContextManager[StagedPart]:
        """Begin a part, which is published within the context, or not at all.

        Args:
            name: Its name: the id of the run, and a number of five digits: `RUN-ID-00001`.
            payloads: Whether data, metadata and descriptions are written; without, it is a ledger only.
        """
        return stage_part(self._location, name, payloads=payloads)

    def publish_run(self, manifest: RunManifest) -> None:
        """Write what a run did in all. A run that is retried has one for each attempt."""
        run_id = manifest.run_id
        if not is_run_name(run_id):
            raise ValueError(f"{run_id!r} cannot be the id of a run")
        publish_run(self._location, manifest)

    def manifests(self) -> list[PartManifest]:
        """Return the manifests of the parts that count, the oldest first.

        Raises:
            ArchiveError: One is of a newer version of the format, or cannot be read as meant.
        """
        return read_catalog(self._location).parts

    def origins(self, names: Collection[str]) -> dict[str, PartManifest | RunManifest]:
        """Return what tells the run and the server of some parts: their manifests, or those of their runs if they are lost."""
        catalog = read_catalog(self._location)
        known: dict[str, PartManifest | RunManifest] = {**catalog.written, **catalog.lost}
        return {name: known[name] for name in names if name in known}

    def runs(self) -> list[RunManifest]:
        """Return what each run said last, the oldest first."""
        return [*read_catalog(self._location).runs]

    def unended_runs(self) -> frozenset[str]:
        """Return the ids of runs that did not say in the end what they spared: they were killed, or are still at work."""
        return read_catalog(self._location).unended

    def is_new(self) -> bool:
        """Whether nothing is archived there yet. Writes nothing, unlike `check_writable`.

        Raises:
            ArchiveError: It cannot be listed, or there is something else.
        """
        return is_new(self._location)

    def problems(self) -> list[Problem]:
        """Return what is not as it should be: missing, cut, left over, foreign. Damage comes first. No part is read.

        Damage is what two readings show, because a run may be pruning the archive. Where there is not even a folder, nothing
        is: `is_new` says that.

        Raises:
            ArchiveError: The archive cannot be read, or is of a newer version of the format.
        """
        found = find_problems(self._location) if self._location.exists() else []
        if not any(problem.is_damage for problem in found):
            return found
        again = find_problems(self._location)
        return [problem for problem in found if problem in again]

    def ledger(
        self, query: LedgerQuery = EVERYTHING, unreadable: dict[str, str] | None = None, columns: Sequence[str] = LEDGER
    ) -> Any:  # noqa: ANN401
        """Read which versions were deleted, when and why: the last deletion of each that is asked for, the oldest first.

        The columns are those of `ArchivedVersion` but for data, metadata and description, and `has_payload`, which says
        whether the archive has these of any deletion. What a run archived and then did not delete is not among them.

        Args:
            query: What is asked for.
            unreadable: Gets the names of the parts that cannot be read and may have something of it, and what to do; those
                without a manifest, too. By default, the first one is raised.
            columns: Those that are wanted; besides, there are `id`, `key`, `created` and `decided_at`.

        Raises:
            ArchiveError: The archive cannot be read, or there is something else.
        """
        catalog = read_catalog(self._location)
        check_is_archive(catalog)
        return read_ledger(catalog, query, unreadable, columns)

    def versions(self, query: LedgerQuery = EVERYTHING, without: Collection[str] = ()) -> Iterator[list[ArchivedVersion]]:
        """Read versions with their payloads, about 8 MB at a time, by key, creation and id; those without a key come last.

        Each is read once, as the last run that archived its payload has it; of which, the query need not be true.

        Args:
            query: Which versions.
            without: The names of parts that are passed over.

        Raises:
            ArchiveError: A part is not as it was written. What was yielded before is.
        """
        return read_versions(read_catalog(self._location), query, without)

    def collections(self, keys: Collection[str]) -> dict[str, list[CollectionRow]]:
        """Return the rows of keys that went as a whole, on whatever server: those of each key, the oldest first."""
        found: dict[str, list[CollectionRow]] = {key: [] for key in keys}
        for row in (row for part in self.manifests() for row in part.collections):
            if row.key in found:
                found[row.key].append(row)
        return {key: rows for key, rows in found.items() if rows}

    def prune(self, now: datetime, keep_days: float, ledger_keep_days: float, server: str) -> PruneResult:
        """Remove what is too old of the runs that deleted on a server, whose address is given without credentials.

        Runs older than `keep_days` lose their payloads, and those older than `ledger_keep_days` go whole; 0 is never.
        """
        return prune_archive(self._location, now, keep_days, ledger_keep_days, server, self.first_free_number)


def open_archive(url: str, options: Mapping[str, Any] = MappingProxyType({})) -> Archive:
    """Open an archive. Nothing is read yet, and nothing asked of the network.

    Args:
        url: A folder, `s3://`, `gs://` or `az://`; without credentials.
        options: What the driver of fsspec takes, as credentials and the address of a server.

    Raises:
        ConfigurationError: A driver is not installed, the URL has credentials, or no archive can be there.
    """
    return Archive(open_location(url, options))
