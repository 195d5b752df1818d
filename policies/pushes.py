"""The list of policies on the server: what its block must have, the records of its pushes, and what has changed when.

A list is compared by what its policies mean. One that means nothing, because somebody has saved a mistake, is compared by its
text; it is on record all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from prefect_artifact_retention.policies.errors import ConfigurationError
from prefect_artifact_retention.policies.loading import OWN_POLICY, check_policies, load_policies
from prefect_artifact_retention.policies.meaning import Meaning, describe_changes, digest_of, meaning
from prefect_artifact_retention.policies.model import RetentionPolicy
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

FIELD = "policies"
"""The one field of the block."""

SOURCE = "block artifact-retention/policies of the server"
"""What messages and reports call the list."""

Happening = Literal["pushed", "not finished", "changed in the UI", "deleted"]


def read_tables(data: object) -> list[Any]:
    """Read the policies that the block has, as configuration has them.

    Raises:
        ConfigurationError: It has something else, or none.
    """
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{SOURCE}: is no table with a list of policies")
    if unknown := sorted(data.keys() - {FIELD}):
        raise ConfigurationError(f"{SOURCE}: unknown field {', '.join(unknown)}; known is {FIELD}")
    tables = data.get(FIELD)
    if not isinstance(tables, list):
        raise ConfigurationError(f"{SOURCE}: {FIELD} is no list of policies")
    if not tables:
        raise ConfigurationError(f"{SOURCE}: has no policies: add one, or delete the block to do without")
    return tables


def read_list(data: object) -> tuple[RetentionPolicy, ...]:
    """Read the policies that the block has.

    Raises:
        ConfigurationError: A policy is invalid, two contradict each other, or there are none.
    """
    policies = load_policies(read_tables(data), source=SOURCE)
    check_policies((OWN_POLICY, *policies), source=SOURCE)
    return policies


class Push(BaseModel):
    """The record of a push.

    Attributes:
        number: Which it is, from 1 on.
        at: When it was, by the server's clock.
        by: Who has pushed.
        before: What the block had before; None if there was none.
        before_at: When that was last saved.
        policies: What it has since.
        is_finished: Whether the list was written, too. The record is written first, and this last of all.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    at: AwareDatetime
    by: str
    before: Any
    before_at: AwareDatetime | None = None
    policies: list[Any]
    is_finished: bool = False

    @property
    def after(self) -> Mapping[str, Any]:
        """What the block has had since."""
        return {FIELD: self.policies}


def read_push(number: int, data: object) -> Push | None:
    """Read the record of a push; None if it is none."""
    try:
        return Push.model_validate({**data, "number": number} if isinstance(data, Mapping) else data)
    except ValidationError:
        return None


class Change(BaseModel):
    """One change of the list on the server."""

    what: Happening = Field(description="What has happened; a push that is not finished has changed nothing.")
    push: int | None = Field(default=None, description="The number of the push; null if it was none.")
    at: datetime | None = Field(
        default=None, description="When; of the UI, the last time before the next push. Null of a deletion."
    )
    by: str = Field(default="", description="Who has pushed it; empty if nobody knows.")
    digest: str = Field(description="Of the list since then; empty if there is none.")
    changes: list[str] = Field(description="How it differs from the list before.")


def list_digest(data: object) -> str:
    """Return the digest by which a list is recognized, also one that means nothing; empty if there is none."""
    if data is None:
        return ""
    meanings = _meanings(data)
    return digest_of(meanings if isinstance(meanings, list) else [{"text": data}])


def changes_between(before: object, after: object) -> list[str]:
    """Describe how a list differs from an earlier one; a message if one of them means nothing."""
    old, new = _meanings(before), _meanings(after)
    if isinstance(new, str):
        return new.splitlines()
    if isinstance(old, str):
        return ["the list before could not be meant", *describe_changes([], new)]
    return list(describe_changes(old, new))


def _meanings(data: object) -> list[Meaning] | str:
    try:
        return [] if data is None else meaning(read_list(data))
    except ConfigurationError as error:
        return str(error)


def is_edited(pushes: Sequence[Push], data: object, updated: datetime | None) -> bool:
    """Whether the list was changed by something else than the last push."""
    last = max(pushes, key=lambda push: push.number, default=None)
    if data is None:
        return False
    return last is None or not (list_digest(data) == list_digest(last.after) or _is_still_before(last, data, updated))


def _is_still_before(push: Push, data: object, updated: datetime | None) -> bool:
    """Whether a push was interrupted, and nothing has been saved since."""
    return not push.is_finished and updated == push.before_at and list_digest(data) == list_digest(push.before)


def history(pushes: Iterable[Push], data: object, updated: datetime | None) -> list[Change]:
    """Return what has changed, newest first.

    Args:
        pushes: The records of pushes.
        data: What the block has; None if there is none.
        updated: When it was last saved.
    """
    return [*_history(sorted(pushes, key=lambda push: push.number), data, updated)][::-1]


def _history(pushes: Sequence[Push], data: object, updated: datetime | None) -> Iterator[Change]:
    present: object = None
    for index, push in enumerate(pushes):
        if list_digest(push.before) != list_digest(present):
            yield _edit(present, push.before, push.before_at)
        following = pushes[index + 1] if index + 1 < len(pushes) else None
        then = following.before if following else data
        interrupted = not push.is_finished and list_digest(then) != list_digest(push.after)
        yield Change(
            what="not finished" if interrupted else "pushed",
            push=push.number,
            at=push.at,
            by=push.by,
            digest=list_digest(push.after),
            changes=changes_between(push.before, push.after),
        )
        present = push.before if interrupted else push.after
    if list_digest(data) != list_digest(present):
        yield _edit(present, data, updated)


def _edit(before: object, after: object, at: datetime | None) -> Change:
    if after is None:
        return Change(what="deleted", digest="", changes=["there is no list"])
    return Change(what="changed in the UI", at=at, digest=list_digest(after), changes=changes_between(before, after))


def find_list(digest: str, pushes: Iterable[Push]) -> object | None:
    """Find what the block had when its list had a digest; None if no push has it on record."""
    kept = (each for push in pushes for each in (push.after, push.before))
    return next((each for each in kept if each is not None and list_digest(each) == digest), None)
