"""Holds: `Hold`, on one version or on a whole key, and how it is stored.

The hold on a version is in its metadata (see `control`). The hold on a key, which its future versions are under, too, is in a
Prefect Variable of its own, so that nobody who holds a key writes over what holds another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from prefect_artifact_retention.policies.control import (
    HOLD,
    HOLD_BY,
    HOLD_REASON,
    HOLD_SINCE,
    describe_hold,
    in_force,
    read_hold,
)
from pydantic import BaseModel, ConfigDict, ValidationError

VARIABLE_PREFIX = "artifact-retention-hold-"
"""How the names of the variables begin that hold keys. The digest that follows stands for the key, which may be too long."""

MAX_VALUE_BYTES = 5_000
"""The server refuses a variable with a longer value, as JSON."""

FORMAT = 1
"""The version of the value of such a variable. One that is not known is not read."""


class Hold(BaseModel):
    """A hold, as long as it lasts: nothing that is under it is deleted.

    Attributes:
        key: The key that is held, or that of the version; None for a version without one, or where it was not read.
        id: The version that is held; None for a whole key.
        until: The last day (UTC) of it; None is without an end.
        by: Who holds it; empty if unknown.
        since: Since when; None if unknown.
        reason: Why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str | None = None
    id: UUID | None = None
    until: date | None = None
    by: str = ""
    since: datetime | None = None
    reason: str = ""

    def is_in_force(self, now: datetime) -> bool:
        """Whether it still holds."""
        return in_force(self.until, now)

    def outlasts(self, other: Hold) -> bool:
        """Whether it ends later than another one."""
        if other.until is None:
            return False
        return self.until is None or self.until > other.until

    def describe(self) -> str:
        """Describe it, as verdicts and reports do."""
        return describe_hold(self.until, self.by, self.since.isoformat() if self.since else "", self.reason)

    def entries(self) -> dict[str, str]:
        """Return the entries of metadata by which a version is held."""
        given = {
            HOLD: self.until.isoformat() if self.until else "true",
            HOLD_BY: self.by,
            HOLD_SINCE: self.since.isoformat() if self.since else "",
            HOLD_REASON: self.reason,
        }
        return {name: value for name, value in given.items() if value}

    def value(self) -> dict[str, Any]:
        """Return the value of the variable by which a key is held."""
        return {"format": FORMAT, **self.model_dump(mode="json", exclude={"id"})}


def variable_name(key: str) -> str:
    """Return the name of the variable by which a key is held."""
    return VARIABLE_PREFIX + sha256(key.encode()).hexdigest()[:32]


def read_variable(name: str, value: object) -> Hold:
    """Read the hold on a key from the variable of this name.

    Raises:
        ValueError: It cannot be understood, so that it is not known what is held. The message quotes nothing of the value.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT or isinstance(value["format"], bool):
        raise ValueError(f'its value is no object with "format": {FORMAT}')
    fields = {field: content for field, content in value.items() if field != "format"}
    if missing := Hold.model_fields.keys() - {"id"} - fields.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    try:
        hold = Hold.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    if hold.key is None or hold.id is not None or variable_name(hold.key) != name:
        raise ValueError("its name is not the one for its key")
    return hold


def read_metadata(version_id: UUID, key: str | None, metadata: Mapping[str, str]) -> Hold | None:
    """Read the hold on a version from its metadata; None without one. One that cannot be read as meant has no end."""
    if HOLD not in metadata:
        return None
    try:
        is_held, until = read_hold(metadata[HOLD])
    except ValueError:
        return Hold(key=key, id=version_id, reason=f"unreadable {HOLD} {metadata[HOLD]!r}")
    if not is_held:
        return None
    by, since, reason = (str(metadata.get(name, "")) for name in (HOLD_BY, HOLD_SINCE, HOLD_REASON))
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        moment = None
    return Hold(key=key, id=version_id, until=until, by=by, since=moment, reason=reason)
