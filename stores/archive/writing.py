"""How a part of an archive is written: whole in a staging file, then published, read back, and marked by its manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.compute as pc  # type: ignore[import-untyped]
from prefect_artifact_retention.stores.archive.location import Location
from prefect_artifact_retention.stores.archive.manifests import PART_NAME, part_file, publish_manifest
from prefect_artifact_retention.stores.archive.model import ArchiveError, CollectionRow, PartManifest
from prefect_artifact_retention.stores.archive.parquet import new_writer, open_part, to_table

MAX_GROUP_ROWS = 1_000
"""Rows of a row group. More make files a little smaller; less let a reader who looks for a key skip more of them."""

_ORDER = [(name, "ascending") for name in ("key", "created", "id")]


class StagedPart:
    """A part that is being written, and does not count before it is published."""

    def __init__(self, location: Location, name: str, path: Path, file: BinaryIO, *, payloads: bool) -> None:
        self._location = location
        self._name = name
        self._path = path
        self._file = file
        self._payloads = payloads
        self._writer = new_writer(file)
        # What was added, to be compared with what is read back.
        self._added: list[Any] = []

    def add(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write versions in the order of keys. The columns of `ArchivedVersion` are given by name.

        Whoever reads one of them later needs memory for all, so they should have 8 MB at most.

        Raises:
            ArchiveError: It cannot be written.
        """
        if columns["id"]:
            with self._location.doing(f"write {self._name}"):
                self.add_table(to_table(columns, payloads=self._payloads).sort_by(_ORDER))

    def add_table(self, table: Any) -> None:  # noqa: ANN401 - pyarrow has no types
        """Write a row group that is a table already; nothing if it is empty."""
        for first in range(0, table.num_rows, MAX_GROUP_ROWS):
            group = table.slice(first, MAX_GROUP_ROWS)
            self._writer.write_table(group)
            self._added.append(group)

    @property
    def rows(self) -> int:
        """The number of versions that were added."""
        return sum(table.num_rows for table in self._added)

    def publish(
        self,
        collections: Sequence[CollectionRow] = (),
        *,
        replaces: Sequence[str] = (),
        written_at: datetime | None = None,
        offloaded: bool = False,
    ) -> PartManifest:
        """Publish the part, read back what was published, and only then write the manifest by which it counts.

        Args:
            collections: The server's rows of keys that go as a whole with it.
            replaces: Parts whose place it takes.
            written_at: When the versions were archived, if that was not now.
            offloaded: Whether its versions stay, and only their data go.

        Raises:
            ArchiveError: It does not count: something failed, or what is read back is not what was added.
            ValueError: Nothing was added.
        """
        if not self._added:
            raise ValueError("a part needs a version")
        with self._location.doing(f"write {self._name}"):
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        with self._location.doing(f"read back {self._name}"):
            self._compare()
            sha256, size = hash_file(self._path)
        name = part_file(self._name)
        self._location.publish(self._path, name)
        check_hash(self._location, name, sha256)
        keys = [key for table in self._added for key in pc.unique(table["key"]).to_pylist() if key is not None]
        manifest = PartManifest(
            name=self._name,
            run_id=self._name.rpartition("-")[0],
            server=self._added[0]["server"][0].as_py(),
            written_at=written_at or datetime.now(UTC),
            rows=self.rows,
            bytes=size,
            sha256=sha256,
            first_id=self._added[0]["id"][0].as_py(),
            last_id=self._added[-1]["id"][-1].as_py(),
            first_key=min(keys, default=None),
            last_key=max(keys, default=None),
            has_payloads=self._payloads,
            collections=tuple(collections),
            replaces=tuple(replaces),
            offloaded=offloaded,
        )
        publish_manifest(self._location, self._name, manifest)
        return manifest

    def end(self) -> None:
        """Let go of the file, whatever became of it: pyarrow would write to it once more, some time later."""
        with suppress(Exception):
            self._writer.close()
        self._writer.is_open = False

    def _compare(self) -> None:
        with self._path.open("rb") as source:
            written = open_part(source)
            groups = (written.read_row_group(number, use_threads=False) for number in range(written.num_row_groups))
            same = written.num_row_groups == len(self._added) and all(
                group.equals(added) for group, added in zip(groups, self._added, strict=True)
            )
        if not same:
            raise ArchiveError(f"the archive {self._location.url}: {self._name} is not read back as it was written")


@contextmanager
def stage_part(location: Location, name: str, *, payloads: bool) -> Iterator[StagedPart]:
    """Begin a part. Unless it is published within the context, nothing of it is left.

    Raises:
        ArchiveError: It cannot be written.
    """
    if not PART_NAME.fullmatch(name):
        raise ValueError(f"a part is called RUN-ID-00001, not {name!r}")
    with location.staged(f"{name}.parquet") as path:
        with location.doing(f"write {name}"):
            file = path.open("xb")
        with file:
            part = StagedPart(location, name, path, file, payloads=payloads)
            try:
                yield part
            finally:
                part.end()


def hash_file(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file, in hexadecimal digits, and its size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


def check_hash(location: Location, name: str, sha256: str) -> None:
    """Read a file of an archive and compare its hash.

    Raises:
        ArchiveError: It is another one.
    """
    with location.copied(name) as path, location.doing(f"read {name}"):
        if hash_file(path)[0] != sha256:
            raise ArchiveError(f"the archive {location.url}: {name} does not have the SHA-256 that it was written with")
