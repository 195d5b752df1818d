"""Fill a server's database with versions by SQL: a million in a minute, where its API would take hours."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from database import Database

SQLITE_ID = (
    "lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-a' || "
    "substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))"
)
SQLITE_DATA = "'\"' || :data || '\"'"
SQLITE_DATA_AT_RANDOM = "'\"' || hex(randomblob({bytes} / 2 - 1)) || '\"'"
SQLITE_VERSIONS = f"""
WITH RECURSIVE key(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM key WHERE k < :keys),
  version(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM version WHERE v < :versions)
INSERT INTO artifact (id, created, updated, key, type, data)
SELECT {SQLITE_ID}, strftime('%Y-%m-%d %H:%M:%f000', 'now', '-' || v || ' hours'), strftime('%Y-%m-%d %H:%M:%f000', 'now'),
  printf('key-%06d', k), 'markdown', {{data}}
FROM version, key
"""
SQLITE_COLLECTIONS = f"""
INSERT INTO artifact_collection (id, created, updated, key, latest_id, type, data)
SELECT {SQLITE_ID}, max(created), updated, key, id, type, data FROM artifact GROUP BY key
"""
POSTGRESQL_DATA = "CAST(:data AS text)"
POSTGRESQL_DATA_AT_RANDOM = (
    "(SELECT string_agg(md5(random()::text || v || '-' || k || '-' || n), '') FROM generate_series(1, {bytes} / 32) n)"
)
POSTGRESQL_VERSIONS = """
INSERT INTO artifact (id, created, updated, key, type, data)
SELECT gen_random_uuid(), now() - v * interval '1 hour', now(), 'key-' || to_char(k, 'FM000000'), 'markdown',
  to_json({data})
FROM generate_series(1, CAST(:versions AS int)) v, generate_series(1, CAST(:keys AS int)) k
"""
POSTGRESQL_COLLECTIONS = """
INSERT INTO artifact_collection (id, created, updated, key, latest_id, type, data)
SELECT DISTINCT ON (key) gen_random_uuid(), created, updated, key, id, type, data FROM artifact ORDER BY key, created DESC
"""


@dataclass(frozen=True)
class Size:
    """So many keys of so many versions of so many bytes each."""

    keys: int
    versions: int
    bytes: int = 1_000

    @property
    def rows(self) -> int:
        """The versions of all keys."""
        return self.keys * self.versions

    def __str__(self) -> str:
        """In words, for the table of figures."""
        return f"{self.keys:,} keys of {self.versions:,} versions"


async def fill(database: Database, size: Size, *, at_random: bool = False) -> None:
    """Replace all artifacts by `key-000001` and so on, each with a version an hour, written in the order of time.

    With `at_random`, no two have the same data, which could be compressed away in an archive.
    """
    chance = random.Random(1)
    # One text for all: rows are stored and compressed one by one, so to the database it is as good as many.
    data = "".join(chance.choices(string.ascii_letters, k=size.bytes - 2))
    parameters = {"keys": size.keys, "versions": size.versions} | ({} if at_random else {"data": data})
    await database.clear()
    if database.is_sqlite:
        text = SQLITE_DATA_AT_RANDOM.format(bytes=size.bytes) if at_random else SQLITE_DATA
        await database.run(SQLITE_VERSIONS.format(data=text), [parameters])
        await database.run(SQLITE_COLLECTIONS)
        # What has been written is in a log beside the database, as large again, in which every read would look.
        await database.run("PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        text = POSTGRESQL_DATA_AT_RANDOM.format(bytes=size.bytes) if at_random else POSTGRESQL_DATA
        # As autovacuum does sooner or later; when it happens to do so must not show in a figure.
        await database.vacuum()
        await database.run(POSTGRESQL_VERSIONS.format(data=text), [parameters])
        await database.run(POSTGRESQL_COLLECTIONS)
        await database.vacuum()
