"""What stands in place of data that were moved to the archive: a text of the same type, with the way back."""

from __future__ import annotations

import json
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

STUB_BYTES = 1_000
"""What a stub is shorter than. So it is never moved itself: nothing of less than a kilobyte is."""

TABLE = "table"
OFFLOADED_TYPES = frozenset({"markdown", TABLE})
"""The types of versions whose data are a text that people read, so that another text can stand in their place."""

RULE = "offload_larger_than_kb"
"""The rule by which data are moved."""

_MOVED = " bytes were moved to the archive on "
_RESTORE = "artifact-retention restore --data --id {} --apply"


class Stub(NamedTuple):
    """What a stub says, by the names that a row of an archive has."""

    id: UUID
    type: str | None
    size: int
    decided_at: datetime
    run_id: str

    def text(self) -> str:
        """Return the JSON that stands in place of the data; no other row of an archive has the same.

        The database compares it as text, so it is written as Prefect's server writes JSON.
        """
        line = (
            f"{self.size:,}{_MOVED}{self.decided_at:%Y-%m-%d} by cleanup run {self.run_id}. "
            f"They come back with `{_RESTORE.format(self.id)}`"
        )
        # A table is a text with JSON in it.
        return json.dumps(json.dumps([{"offloaded": line}]) if self.type == TABLE else line)


def refuse_stub(version_id: UUID, data: object) -> None:
    """Refuse to take the stub of a version for its data, also if somebody has written more beside it.

    Args:
        version_id: The version.
        data: What it has as its data.

    Raises:
        ValueError: The stub is there; the message has the way back.
    """
    way_back = _RESTORE.format(version_id)
    if isinstance(data, str) and _MOVED in data and f"`{way_back}`" in data:
        raise ValueError(f"its data were moved to the archive, and come back with {way_back}")
