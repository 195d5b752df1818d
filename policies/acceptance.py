"""Which policies have been applied or accepted: a record of each list, in a Prefect Variable of its own.

A variable, because it lasts: Prefect Cloud expires artifacts. One each, because a variable is written whole: so nobody writes
over what somebody else accepts at the same time. It has room for some dozens of policies, compressed; of more, only their
digest is kept.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Any

from prefect_artifact_retention.policies.meaning import Meaning, digest_of
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

VARIABLE_PREFIX = "artifact-retention-policies-"
"""How the names of these variables begin. The digest of the policies follows."""

FORMAT = 1
MAX_POLICIES_CHARS = 4_000
"""The longest text of compressed policies. The server refuses a variable with more than 5,000 characters."""

MAX_POLICIES_BYTES = 2**20
"""What a record may decompress to. With more, a variable that somebody has written may fill the memory."""


class Acceptance(BaseModel):
    """The record that some policies were applied or accepted.

    Attributes:
        digest: The digest of the policies.
        at: When they were, the last time.
        by: Who has accepted them, or the run that has applied them.
        policies: What they mean; None if they are too many to be kept.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    digest: str
    at: AwareDatetime
    by: str
    policies: list[dict[str, Any]] | None

    @classmethod
    def of(cls, policies: Sequence[Meaning], at: AwareDatetime, by: str) -> Acceptance:
        """Record policies, by what they mean."""
        return cls(digest=digest_of(policies), at=at, by=by[:500], policies=[dict(policy) for policy in policies])

    @property
    def variable(self) -> str:
        """The name of its variable."""
        return VARIABLE_PREFIX + self.digest

    def value(self) -> dict[str, Any]:
        """Return the value of its variable."""
        packed = b64encode(zlib.compress(json.dumps(self.policies).encode(), 9)).decode()
        kept = packed if len(packed) <= MAX_POLICIES_CHARS else ""
        return {"format": FORMAT, "at": self.at.isoformat(), "by": self.by, "policies": kept}


def read_acceptance(name: str, value: object) -> Acceptance | None:
    """Read a record from the variable of this name; None if it is none, which accepts nothing."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        return None
    digest = name.removeprefix(VARIABLE_PREFIX)
    try:
        policies = _unpack(str(value.get("policies") or ""))
        fields = json.dumps({"digest": digest, "at": value["at"], "by": value["by"], "policies": policies})
        record = Acceptance.model_validate_json(fields)
        is_meant = policies is None or digest_of(policies) == digest
    except (KeyError, TypeError, ValueError, ValidationError, zlib.error):
        return None
    return record if is_meant else None


def _unpack(packed: str) -> list[dict[str, Any]] | None:
    if not packed:
        return None
    unpacker = zlib.decompressobj()
    policies = json.loads(unpacker.decompress(b64decode(packed), MAX_POLICIES_BYTES))
    if not isinstance(policies, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in policies
    ):
        raise TypeError("no list of policies")
    return policies


def latest(records: Iterable[Acceptance]) -> Acceptance | None:
    """Return the record of the policies that were applied or accepted last."""
    return max(records, key=lambda record: record.at, default=None)
