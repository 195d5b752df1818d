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
            f"{self.size:,} bytes were moved to the archive on {self.decided_at:%Y-%m-%d} by cleanup run {self.run_id}. "
            f"They come back with `artifact-retention restore --data --id {self.id} --apply`"
        )
        # A table is a text with JSON in it.
        return json.dumps(json.dumps([{"offloaded": line}]) if self.type == TABLE else line)
