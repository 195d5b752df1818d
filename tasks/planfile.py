"""The plan of a run as a document: what a person has seen, and what may be deleted at most when it is carried out.

A plan is a function of versions, policies and `now`, so it is made again before anything is deleted, with the `now` of the
document. Of its verdicts, only the ids of the stale versions are kept here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.loading import describe_validation_error
from prefect_artifact_retention.policies.meaning import describe_changes, meaning
from prefect_artifact_retention.tasks.rendering import label
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far the date of a plan may lie in the future. With more, one whose date is mistyped passes for a recent one."""

MAX_DIFFERENCES = 20
"""Keys of which the report says how a plan differs from an earlier one; with more, it would be unreadable."""

DEFAULT_MAX_AGE_HOURS = 24
MAX_AGE_HOURS = 24 * 365

Text = Annotated[str, Field(max_length=10_000)]


def _named(policy: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(policy.get("name"), str):
        raise ValueError("has no name")  # noqa: TRY004 - pydantic reports this one
    return policy


class PlannedKey(BaseModel):
    """The stale versions of one key; of all artifacts without one, if it is null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str | None
    policy: Text
    bytes: Annotated[int, Field(ge=0)]
    ids: list[UUID]


class PlanFile(BaseModel):
    """A plan: of which server, as of when, by which policies, for which keys, and what is stale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["artifact-retention plan 1"] = "artifact-retention plan 1"
    package: Text = Field(default_factory=lambda: version("prefect-artifact-retention"))
    server: Text
    now: AwareDatetime
    scope: list[Text]
    keep_last: int | None = None
    keep_within_days: float | None = None
    policies: list[Annotated[dict[str, Any], AfterValidator(_named)]]
    planned: list[PlannedKey]

    @property
    def versions(self) -> int:
        """How many versions are stale."""
        return sum(len(each.ids) for each in self.planned)

    @property
    def bytes(self) -> int:
        """The bytes of their data."""
        return sum(each.bytes for each in self.planned)

    def by_key(self) -> Mapping[str | None, frozenset[UUID]]:
        """Return the stale versions by key."""
        return {each.key: frozenset(each.ids) for each in self.planned}

    def objections(
        self, server: str | None, policies: Sequence[RetentionPolicy], now: datetime, max_age: timedelta | None
    ) -> Iterator[str]:
        """Say why this plan is not to be carried out.

        Args:
            server: The address of the server on which it would be; None if the plan was kept there.
            policies: The policies by which versions would be deleted.
            now: The server's clock.
            max_age: How old a plan may be; None is any age.
        """
        if server not in {None, self.server}:
            yield f"the plan is for the server {printable(self.server)}, and this is {server}"
        if changes := list(describe_changes(self.policies, meaning(policies))):
            yield f"the plan was made by other policies: {'; '.join(map(printable, changes))}"
        made = f"{self.now:%Y-%m-%d %H:%M:%S} UTC"
        if self.now > now + CLOCK_TOLERANCE:
            yield f"the plan is dated {made}, in the future by the clock of the server"
        elif max_age is not None and now - self.now > max_age:
            hours = count(round((now - self.now) / timedelta(hours=1), 1), "hour")
            yield f"the plan of {made} is {hours} old, more than the {max_age / timedelta(hours=1):g} that are allowed"


class ShownPlan(NamedTuple):
    """A plan that a person has seen, and that a run is to carry out.

    Attributes:
        plan: The plan.
        max_age: How old it may be; None is any age.
        on_server: Whether it was kept on the server of the run, whatever address that has for others.
    """

    plan: PlanFile
    max_age: timedelta | None
    on_server: bool = False

    @classmethod
    def within(cls, plan: PlanFile, hours: float) -> ShownPlan:
        """Return a plan that may be so many hours old.

        Raises:
            ConfigurationError: The number makes no sense.
        """
        if not 0 < hours <= MAX_AGE_HOURS:
            raise ConfigurationError(f"command line: --max-age {hours:g}: must be hours, more than 0 and at most a year")
        return cls(plan, timedelta(hours=hours))


def load_plan(file: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        ConfigurationError: It cannot be read, or is no plan.
    """
    try:
        return read_plan(file.read_bytes(), str(file))
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from None


def read_plan(text: str | bytes, source: str) -> PlanFile:
    """Read the document of a plan.

    Args:
        text: The document.
        source: The file that it comes from, for the message.

    Raises:
        ConfigurationError: It is no plan.
    """
    try:
        return PlanFile.model_validate_json(text)
    except ValidationError as error:
        (problem, *_) = describe_validation_error(error)
        raise ConfigurationError(f"{printable(source)}: is no plan that `preview --out` has written: {problem}") from None


class Difference(NamedTuple):
    """How a key of a new plan differs from the plan that was shown.

    Attributes:
        key: The key.
        more: Versions that are stale by now, and were not shown.
        fewer: Versions that were shown, and are not stale by now, or gone.
    """

    key: str | None
    more: int
    fewer: int

    def describe(self) -> str:
        """Describe it in a line."""
        more = f"{count(self.more, 'version')} more, left alone" if self.more else ""
        fewer = f"{count(self.fewer, 'version')} of the plan stale no longer, or gone" if self.fewer else ""
        return f"{label(self.key)}: {', '.join(filter(None, (more, fewer)))}"


def describe_differences(differences: Sequence[Difference]) -> list[str]:
    """Describe how a new plan differs from the one that was shown; nothing if it is the same."""
    lines = [each.describe() for each in differences[:MAX_DIFFERENCES]]
    if more := differences[MAX_DIFFERENCES:]:
        number = sum(each.more for each in more), sum(each.fewer for each in more)
        lines.append(f"and {count(len(more), 'key')} more: {number[0]:,} versions more, {number[1]:,} fewer")
    return lines
