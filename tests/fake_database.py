"""The rows of the fake server, in memory, and what Prefect does to them: latest, deletion, and reaching behind its back."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from database import Row
from prefect.server.schemas import actions

OWN = "artifact-retention-"

COPIED = ("type", "description", "data", "metadata_", "flow_run_id", "task_run_id")
"""What a collection copies from its latest version."""

BROKEN = object()
"""Data that the server has and cannot show."""

Artifact = dict[str, Any]


class BrokenDataError(Exception):
    """The server fails on a row that it cannot show."""


class FakeDatabase:
    """What the server has, reached behind its back; as `database.Database` reaches into a real one."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self._chance = random.Random("ids of the server")
        self.artifacts: dict[UUID, Artifact] = {}
        self.collections: dict[str, Artifact] = {}
        self.flows: dict[str, UUID] = {}
        self.variables: dict[str, dict[str, Any]] = {}
        self.blocks: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[UUID, dict[str, Any]]] = {"flow_runs": {}, "task_runs": {}}

    def new_id(self) -> UUID:
        """An id of chance, the same in every run of a test."""
        return UUID(int=self._chance.getrandbits(128), version=4)

    async def clear(self) -> None:
        """Forget all artifacts, all holds on keys, and all blocks."""
        self.variables.clear()
        self.blocks.clear()
        self.artifacts.clear()
        self.collections.clear()

    async def insert(
        self, rows: Iterable[Row], latest: Mapping[str, UUID] | None = None, now: datetime | None = None
    ) -> list[Row]:
        """Insert versions; the newest of each key is its latest, unless said otherwise. Ages count back from `now`."""
        rows = list(rows)
        now = now or self.now()
        newest: dict[str, Artifact] = {}
        for row in sorted(rows, key=lambda row: row.age, reverse=True):
            created = now - row.age
            artifact = {
                "id": row.id,
                "created": created,
                "updated": created,
                "key": row.key,
                "type": row.type,
                "description": None,
                "data": row.data,
                "metadata_": None if row.metadata is None else dict(row.metadata),
                "flow_run_id": row.flow_run_id,
                "task_run_id": row.task_run_id,
            }
            self.artifacts[row.id] = artifact
            if row.key is not None:
                newest[row.key] = artifact
        for key, artifact in newest.items():
            copied = self.artifacts.get((latest or {}).get(key, artifact["id"]), artifact)
            self.collections[key] = self._collection(key, copied) | {"latest_id": (latest or {}).get(key, artifact["id"])}
        return rows

    async def update_metadata(self, version_id: UUID, metadata: Mapping[str, str]) -> None:
        """Change a version's metadata behind everybody's back."""
        if version_id in self.artifacts:
            self.artifacts[version_id]["metadata_"] = dict(metadata)

    async def update_data(self, version_id: UUID, data: object) -> None:
        """Change a version's data, and its collection's copy if it is the latest."""
        for row in self._shown(version_id):
            row["data"] = data

    async def break_data(self, version_id: UUID) -> None:
        """Let a version's data, and its collection's copy of it, be what the server cannot show."""
        await self.update_data(version_id, BROKEN)

    async def repair_data(self) -> None:
        """Make all data readable again."""
        for row in (*self.artifacts.values(), *self.collections.values()):
            if row["data"] is BROKEN:
                row["data"] = "x"

    async def delete_version(self, version_id: UUID) -> None:
        """Remove a version, and leave its collection as it is."""
        self.artifacts.pop(version_id, None)

    async def delete_key(self, key: str) -> None:
        """Remove a key with all that it has."""
        for version_id in [each["id"] for each in self.artifacts.values() if each["key"] == key]:
            del self.artifacts[version_id]
        self.collections.pop(key, None)

    async def age_progress(self) -> None:
        """Let a quarter of an hour pass for whoever asks whether another run is at work."""
        for artifact in self.artifacts.values():
            if artifact["key"] == f"{OWN}progress":
                artifact["updated"] -= timedelta(minutes=15)

    async def keys(self) -> dict[UUID, str | None]:
        """The key of each version that is there, without those of this package and the results of runs."""
        return {
            each["id"]: each["key"]
            for each in self.artifacts.values()
            if not (each["key"] or "").startswith(OWN) and (each["key"] is not None or each["type"] not in {None, "result"})
        }

    async def ids(self) -> set[UUID]:
        """The versions that are there, without those of this package."""
        return {each["id"] for each in self.artifacts.values() if not (each["key"] or "").startswith(OWN)}

    async def dangling(self) -> list[str]:
        """Collections whose latest does not exist."""
        return [key for key, row in self.collections.items() if row["latest_id"] not in self.artifacts]

    async def versions(self, key: str) -> list[Artifact]:
        """The versions of a key, newest first, with the fields that the API gives them."""
        return sorted(
            (each for each in self.artifacts.values() if each["key"] == key),
            key=lambda each: (each["created"], each["id"]),
            reverse=True,
        )

    def fingerprint(self) -> Hashable:
        """All that there is but this package's own artifacts: the same for the same."""
        rows = (*self.artifacts.values(), *self.collections.values())
        same = ("id", "latest_id", "key", "type", "data", "metadata_", "flow_run_id", "task_run_id")
        return frozenset(
            repr([row.get(field) for field in (same if "latest_id" not in row else same[1:])])
            for row in rows
            if not (row["key"] or "").startswith(OWN)
        )

    def create(self, artifact: actions.ArtifactCreate) -> Artifact:
        """Create a version, which becomes the latest of its key."""
        now = self.now()
        created = {"id": self.new_id(), "created": now, "updated": now, **artifact.model_dump()}
        self.artifacts[created["id"]] = created
        if (key := created["key"]) is not None:
            before = self.collections.get(key)
            self.collections[key] = self._collection(key, created)
            if before:
                self.collections[key] |= {"id": before["id"], "created": before["created"]}
        return created

    def create_variable(self, variable: actions.VariableCreate) -> dict[str, Any]:
        """Create a variable."""
        now = self.now()
        created = {"id": self.new_id(), "created": now, "updated": now, **variable.model_dump()}
        self.variables[variable.name] = created
        return created

    def update(self, version_id: UUID, change: Mapping[str, Any]) -> bool:
        """Change a version, and its collection's copy if it is the latest; False if there is neither."""
        changed = self._shown(version_id)
        for row in changed:
            row.update(change, updated=self.now())
        return bool(changed)

    def delete(self, version_id: UUID) -> bool:
        """Delete a version; the next by date becomes the latest in its place, or the collection goes with its last one."""
        artifact = self.artifacts.get(version_id)
        if artifact is None:
            return False
        key = artifact["key"]
        collection = self.collections.get(key)
        others = (
            [each for each in self.artifacts.values() if each["key"] == key and each is not artifact] if collection else []
        )
        following = max(others, key=lambda each: each["created"], default=None)
        is_latest = collection is not None and collection["latest_id"] == version_id
        if BROKEN in (artifact["data"], following["data"] if is_latest and following else None):
            # It reads each whole row before it acts.
            raise BrokenDataError
        if is_latest and collection and following:
            self.collections[key] = self._collection(key, following) | {
                "id": collection["id"],
                "created": following["created"],
            }
        elif is_latest:
            del self.collections[key]
        del self.artifacts[version_id]
        return True

    def _shown(self, version_id: UUID) -> list[Artifact]:
        """The rows that show a version: its own, and that of the collection whose latest it is."""
        own = [self.artifacts[version_id]] if version_id in self.artifacts else []
        return own + [row for row in self.collections.values() if row["latest_id"] == version_id]

    def _collection(self, key: str, latest: Artifact) -> Artifact:
        copied = {field: latest[field] for field in COPIED}
        dates = {"created": latest["created"], "updated": latest["updated"]}
        return {"id": self.new_id(), "key": key, "latest_id": latest["id"], **dates, **copied}
