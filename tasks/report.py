"""The models of a run's result: the flow returns them, the report shows them, and `--json` prints them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from prefect_artifact_retention.policies import RetentionError
from pydantic import BaseModel, Field, computed_field

Mode = Literal["preview", "delete"]
Outcome = Literal["completed", "unfinished", "refused", "skipped", "declined", "outdated", "failed"]
SUCCESSES: tuple[Outcome, ...] = ("completed", "unfinished")
"""The outcomes of runs that have done what they could."""

GIVEN_POLICIES = "parameters of this run"
"""The source of policies that are not the configured ones."""

MAX_WARNINGS = 50
"""Further warnings are dropped; with more, a report of a broken server would be unreadable."""


class KeyReport(BaseModel):
    """The result of one key.

    The planned versions that were neither deleted, already gone, spared nor withheld remain for the next run.
    """

    key: str | None = Field(description="The key; null stands for all artifacts without one.")
    policy: str = Field(description="The name of its policy.")
    versions: int = Field(default=0, description="Versions evaluated.")
    kept: int = Field(default=0, description="Versions that the plan keeps.")
    planned: int = Field(default=0, description="Stale versions.")
    deleted: int = Field(default=0, description="Versions deleted by this run.")
    already_gone: int = Field(default=0, description="Planned versions that something else deleted first.")
    spared: int = Field(default=0, description="Planned versions that the re-check before their deletion kept.")
    withheld: int = Field(default=0, description="Planned versions that the plan that was shown does not have.")
    failed: int = Field(default=0, description="Versions whose deletion failed.")
    bytes_seen: int = Field(default=0, description="Bytes of the data of the versions evaluated.")
    bytes: int = Field(default=0, description="Bytes of the stale versions' data.")
    bytes_freed: int = Field(default=0, description="Bytes of the deleted versions' data.")
    versions_of_week: int = Field(default=0, description="Those of the versions evaluated that are of the last seven days.")
    bytes_of_week: int = Field(default=0, description="Bytes of the data of these.")
    stale_by: dict[str, int] = Field(default={}, description="How many stale versions there are by each rule.")
    to_offload: int = Field(default=0, description="Kept versions whose data are to be moved to the archive.")
    bytes_to_offload: int = Field(default=0, description="Bytes of these data.")
    offloaded: int = Field(default=0, description="Versions whose data this run has moved to the archive.")
    bytes_offloaded: int = Field(default=0, description="Bytes of these data.")
    first_deleted: UUID | None = Field(default=None, description="The version that was deleted first.")
    last_deleted: UUID | None = Field(default=None, description="The version that was deleted last.")
    error: str = Field(default="", description="What went wrong with this key.")

    def add_deleted(self, ids: Sequence[UUID], size: int) -> None:
        """Count versions that this run has deleted, in their order, and the bytes of their data."""
        if ids:
            self.deleted += len(ids)
            self.bytes_freed += size
            self.first_deleted = self.first_deleted or ids[0]
            self.last_deleted = ids[-1]

    @property
    def settled(self) -> int:
        """Planned versions that are gone."""
        return self.deleted + self.already_gone

    @property
    def remaining(self) -> int:
        """Stale versions that are still to be deleted."""
        return self.planned - self.settled - self.spared - self.withheld


class PolicyReport(BaseModel):
    """The description of one policy, and the totals of its keys."""

    name: str = Field(description="Its name.")
    sentence: str = Field(description="What it keeps, in a sentence.")
    keys_seen: int = Field(default=0, description="Keys that have it.")
    versions: int = Field(default=0, description="Versions evaluated.")
    planned: int = Field(default=0, description="Stale versions.")
    unexpected: int = Field(
        default=0,
        description="Stale versions that no steady state explains; `refuse_above_percent` is for these. In a preview without "
        "it, they are not counted, and this is 0.",
    )
    refused: bool = Field(default=False, description="Whether its keys were left alone, because too many of these would go.")


class RuleCount(BaseModel):
    """How many versions one rule kept or made stale, with the reason of one verdict as an example."""

    rule: str = Field(description="The name of the rule: a field of a policy, or `latest`, `hold`, ...")
    versions: int = Field(description="How many versions it kept, or made stale.")
    example: str = Field(description="The reason that one of them was given.")


class ArchiveReport(BaseModel):
    """What a run has put into the archive before it deleted it."""

    url: str = Field(description="The address of the archive, without credentials.")
    payloads: bool = Field(description="Whether versions can be restored from it; without, it is a ledger.")
    parts: int = Field(default=0, description="Files that this run has written there, without those of data that were moved.")
    versions: int = Field(default=0, description="Versions in them.")
    bytes: int = Field(default=0, description="The size of these files.")
    restore: str = Field(default="", description="The command that brings back what this run has deleted.")


class CleanupReport(BaseModel):
    """The result of one run. Totals are sums over `key_reports`."""

    mode: Mode = Field(description="Whether stale versions were deleted or only shown.")
    server: str = Field(default="", description="The address of the API that the run talked to, without credentials.")
    target: str = Field(
        default="", description="The name of the target that this is; empty for the server on which the run was."
    )
    now: datetime = Field(description="The server's clock when the run began; every age is counted from here.")
    planned_at: datetime | None = Field(
        default=None,
        description="Of a run that carries out a plan which a person has seen: the `now` of that plan, from which every age "
        "is counted instead.",
    )
    next_days: float = Field(
        default=0,
        description="Of a preview of the next days: how long after `now` is the moment from which every age is counted.",
    )
    awaits: str = Field(default="", description="Of a plan that a person is asked to approve: until when, and how to answer.")
    approved_by: str = Field(
        default="", description="Who has approved or declined what was shown, in their own words; empty if nobody was asked."
    )
    differences: list[str] = Field(
        default=[], description="How the plan of the run differs from the plan that was shown; nothing else goes."
    )
    outcome: Outcome = Field(default="completed", description="How the run ended.")
    scope: list[str] = Field(default=[], description="The globs of the keys that the run is for; empty means all.")
    policy_source: str = Field(description="Where the policies come from.")
    policy_digest: str = Field(description="Changes with any field of any policy.")
    policies: list[PolicyReport] = Field(default=[], description="The policies, with the totals of their keys.")
    keys_seen: int = Field(default=0, description="Collections discovered, unmanaged ones included.")
    key_reports: list[KeyReport] = Field(default=[], description="What was planned for each key, and what became of it.")
    housekeeping: list[KeyReport] = Field(default=[], description="The keys that this package writes itself; in no total.")
    kept_by: list[RuleCount] = Field(default=[], description="What was kept and why; a version may have several reasons.")
    condemned_by: list[RuleCount] = Field(default=[], description="What is stale and why.")
    holds: list[str] = Field(
        default=[],
        description="The holds on keys, of which nothing is deleted until they expire: until when, by whom, since when, why.",
    )
    unmanaged: list[str] = Field(default=[], description="Keys without a policy; left alone.")
    unmanaged_unkeyed: int = Field(default=0, description="Artifacts without a key and without a policy; left alone.")
    refusals: list[str] = Field(
        default=[], description="Why the keys of a policy were left alone, or why the whole run was refused or skipped."
    )
    events_purged: int | None = Field(
        default=None, description="Events about deleted versions that were deleted, too; null if that was not asked for."
    )
    event_bytes_purged: int = Field(default=0, description="Bytes of what those events held.")
    repaired: list[str] = Field(default=[], description="Keys whose latest version had vanished and was posted again.")
    archive: ArchiveReport | None = Field(
        default=None, description="What was archived before it was deleted; null without an archive."
    )
    notes: list[str] = Field(
        default=[],
        description="What the server deletes by itself, what that means for the policies, and what space on disk was freed.",
    )
    warnings: list[str] = Field(default=[], description="What somebody should look at; nothing has failed.")
    doubts: list[str] = Field(default=[], description="What is valid in the policies, and yet is hardly meant.")
    errors: list[str] = Field(default=[], description="What failed beyond a single key.")
    stopped_at: str = Field(
        default="",
        description="Of a delete run: the key with which the next one over the same keys begins; ~ stands for the artifacts "
        "without a key, and empty for the first key. Of a preview: the key before which its planning time was over.",
    )
    stalled_runs: int = Field(
        default=0,
        description="How many delete runs over the same keys, up to this one, were unfinished in a row while the backlog of "
        "stale versions did not shrink; 0 if this one is not unfinished.",
    )
    duration_seconds: float = Field(default=0.0, description="From the first request to the end of the verification.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def versions_seen(self) -> int:
        """Versions evaluated."""
        return self._total("versions")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def kept(self) -> int:
        """Versions that the plan keeps."""
        return self._total("kept")

    @property
    def planned_for(self) -> datetime:
        """The moment from which every age is counted, unless there is a `planned_at`."""
        return self.now + timedelta(days=self.next_days)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def planned(self) -> int:
        """Stale versions."""
        return self._total("planned")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def deleted(self) -> int:
        """Versions deleted by this run."""
        return self._total("deleted")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def already_gone(self) -> int:
        """Planned versions that something else deleted first."""
        return self._total("already_gone")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spared(self) -> int:
        """Planned versions that the re-check before their deletion kept."""
        return self._total("spared")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def withheld(self) -> int:
        """Planned versions that the plan that was shown does not have, so that they are left alone."""
        return self._total("withheld")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def failed(self) -> int:
        """Versions whose deletion failed."""
        return self._total("failed")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes_seen(self) -> int:
        """Bytes of the data of the versions evaluated."""
        return self._total("bytes_seen")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes_planned(self) -> int:
        """Bytes of the stale versions' data."""
        return self._total("bytes")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes_freed(self) -> int:
        """Bytes of the deleted versions' data."""
        return self._total("bytes_freed")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def to_offload(self) -> int:
        """Kept versions whose data are to be moved to the archive."""
        return self._total("to_offload")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes_to_offload(self) -> int:
        """Bytes of these data."""
        return self._total("bytes_to_offload")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def offloaded(self) -> int:
        """Versions whose data this run has moved to the archive."""
        return self._total("offloaded")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes_offloaded(self) -> int:
        """Bytes of these data."""
        return self._total("bytes_offloaded")

    @property
    def remaining(self) -> int:
        """Stale versions that are still to be deleted."""
        return sum(report.remaining for report in self.key_reports)

    def failures(self) -> Iterable[KeyReport]:
        """Return the keys that have an error."""
        return (report for report in (*self.key_reports, *self.housekeeping) if report.error)

    def warn(self, text: str) -> None:
        """Add a warning, unless it is a duplicate or there are too many."""
        if text in self.warnings:
            return
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)
        elif len(self.warnings) == MAX_WARNINGS:
            self.warnings.append("There are more warnings than are shown here.")

    def _total(self, field: str) -> int:
        return sum(getattr(report, field) for report in self.key_reports)


def in_order(keys: Iterable[str]) -> list[str]:
    """Return the globs of a scope sorted, each once: runs over the same globs have the same scope, however they are given."""
    return sorted(set(keys))


def scope_digest(keys: Iterable[str], target: str = "") -> str:
    """Return twelve hexadecimal digits that identify the scope of a run: its target, and the globs of keys in any order."""
    # No glob that a key can match has a blank.
    parts = [*in_order(keys), *([f"on {target}"] if target else [])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


class CleanupFailed(RetentionError):  # noqa: N818 - the public name
    """A run was refused or failed. Its report has the cause and all that was done until then."""

    def __init__(self, report: CleanupReport, message: str) -> None:
        super().__init__(message)
        self.report = report
