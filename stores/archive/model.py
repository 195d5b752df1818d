"""What is in an archive: versions with their verdicts, and the manifests by which they count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.archive.stubs import Stub
from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
"""The version of the columns and of the manifests. Archives of a newer one are left alone."""

FORMAT: Literal["prefect-artifact-retention"] = "prefect-artifact-retention"
"""What every manifest says that it is of."""


class ArchiveError(StoreError):
    """The archive cannot be written or read, or is not what it should be."""


class Problem(NamedTuple):
    """What is not as it should be in an archive.

    Attributes:
        text: What it is, and what to do.
        is_damage: Whether versions cannot be read because of it. Otherwise, it is in no run's way.
    """

    text: str
    is_damage: bool


class ArchivedVersion(NamedTuple):
    """One version and why it went: a row of a part, in the order of its columns.

    Attributes:
        id: The artifact's id.
        flow_run_id: The flow run that wrote it.
        task_run_id: The task run that wrote it.
        key: Its key; None for an artifact without one.
        type: Its type.
        description: Its description.
        created: When the row was created, by the server's clock.
        updated: When it was last changed.
        data: The text of its data as JSON: as the database has it, or as it came through the API. None without payloads,
            and for SQL's NULL; the manifest of the part tells which.
        metadata: The text of its metadata as JSON, likewise.
        size: The bytes of its data.
        was_latest: Whether it was the latest version of its key.
        policy: The policy of its key.
        policy_digest: The digest of all policies.
        reasons: The reasons of its verdict.
        rules: The rule behind each reason.
        run_id: The flow run that deleted it.
        run_name: Its name.
        decided_at: The clock of that run, by which it was judged.
        approved_by: Who approved the deletion; None if nobody was asked.
        server: The address of the server's API, without credentials.
    """

    id: UUID
    flow_run_id: UUID | None
    task_run_id: UUID | None
    key: str | None
    type: str | None
    description: str | None
    created: datetime
    updated: datetime
    data: str | None
    metadata: str | None
    size: int
    was_latest: bool
    policy: str
    policy_digest: str
    reasons: Sequence[str]
    rules: Sequence[str]
    run_id: str
    run_name: str
    decided_at: datetime
    approved_by: str | None
    server: str

    @property
    def stub(self) -> str:
        """The JSON that stands in place of the data where they were moved to the archive."""
        return Stub(self.id, self.type, self.size, self.decided_at, self.run_id).text()


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["prefect-artifact-retention"] = FORMAT
    schema_version: int = SCHEMA_VERSION


class CollectionRow(BaseModel):
    """The server's row of a key that goes as a whole, so that a restore can make the same again.

    What such a row copies from the latest version is not repeated.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    id: UUID
    created: datetime
    updated: datetime
    latest_id: UUID


class PartManifest(_Manifest):
    """Makes a part count.

    Attributes:
        name: The name of the part, without its folder and `.parquet`.
        run_id: The flow run that wrote it.
        server: The address of the server's API, without credentials.
        written_at: When, by the clock of the machine that wrote it; of one that replaces others, when the last of them was.
        rows: The number of versions.
        bytes: The size of the file.
        sha256: The hash of the file, in hexadecimal digits.
        first_id: The id of its first row.
        last_id: The id of its last row.
        first_key: The first of its keys by the alphabet, so that a reader can pass over the part; None without any.
        last_key: The last of them.
        has_payloads: Whether it has data, metadata and descriptions; without, it is a ledger only.
        collections: The rows of the keys that go as a whole with this part.
        replaces: The parts whose place it takes.
        offloaded: Whether its versions were not deleted: it has their data, which nobody else has.
    """

    name: str
    run_id: str
    server: str
    written_at: datetime
    rows: int
    bytes: int
    sha256: str
    first_id: UUID
    last_id: UUID
    first_key: str | None = None
    last_key: str | None = None
    has_payloads: bool = True
    collections: tuple[CollectionRow, ...] = ()
    replaces: tuple[str, ...] = ()
    offloaded: bool = False


class RunManifest(_Manifest):
    """Written last: what a run archived in all, and what it did not delete after all.

    Attributes:
        run_id: The flow run.
        run_name: Its name.
        server: The address of the server's API, without credentials.
        ended_at: When it was written, by the clock of the machine.
        outcome: How the run ended.
        parts: The names of its parts.
        unconfirmed: Those of them that may not count, because publishing them failed: nothing was deleted on them.
        versions: How many versions it archived.
        deleted: How many it deleted.
        spared: The ids of those that were archived and not deleted after all.
        policies: Its policies in full.
        approved_by: Who has approved it, if somebody was asked.
    """

    run_id: str
    run_name: str
    server: str
    ended_at: datetime
    outcome: str
    parts: tuple[str, ...]
    unconfirmed: tuple[str, ...] = ()
    versions: int
    deleted: int
    spared: tuple[UUID, ...] = ()
    policies: tuple[dict[str, Any], ...] = ()
    approved_by: str = ""


@dataclass(frozen=True, slots=True)
class LedgerQuery:
    """Which versions of an archive are asked for; all that are given must apply, and nothing given is all.

    Attributes:
        keys: Globs of keys, as in a policy.
        ids: Ids of versions.
        runs: Ids or names of the flow runs that deleted them.
        rules: Rules of which one is among the reasons.
        policies: The names of the policies that the keys had.
        since: Deleted by a run that began at this time or later.
        until: Deleted by a run that began at this time or earlier.
        servers: The addresses of servers.
        offloaded: Asks for versions whose data were moved here, each as often as that was; otherwise for deleted ones.
    """

    keys: Sequence[str] = ()
    ids: Sequence[UUID] = ()
    runs: Sequence[str] = ()
    rules: Sequence[str] = ()
    policies: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    servers: Sequence[str] = ()
    offloaded: bool = False
