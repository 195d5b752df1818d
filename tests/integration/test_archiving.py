"""What a run deletes is in the archive first, as it was; and what is not there stays."""

import json
from pathlib import Path
from uuid import UUID

import pytest
from database import series
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.stores.archive.archive import open_archive
from prefect_artifact_retention.stores.archive.model import ArchivedVersion
from servers import BY_DATABASE, BY_FAKE, Server, on

KEEP_1 = RetentionPolicy(name="keep one", keep_last=1)
IDLE = RetentionPolicy(name="idle", match_keys=["idle-*"], keep_last=1, drop_idle_keys_after_days=90)
UNKEYED = RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30)
POLICIES = [IDLE, UNKEYED, KEEP_1]

BOTH_DATABASES = on(*BY_DATABASE)
EVERYWHERE = on(*BY_DATABASE, *BY_FAKE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the archive of all runs of a test."""
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", str(tmp_path / "archive"))
    return tmp_path / "archive"


def archived(folder: Path) -> dict[UUID, ArchivedVersion]:
    """What the archive says was deleted, by id."""
    return {version.id: version for some in open_archive(str(folder)).versions() for version in some}


@EVERYWHERE
async def test_what_is_deleted_is_in_the_archive(server: Server, folder: Path) -> None:
    """Keyed, idle and without a key; what stays is not in it."""
    rows = [*series("report", [1, 2, 3]), *series("idle-key", [100, 101]), *series(None, [1, 40])]
    kept = {rows[0].id, rows[5].id}
    await server.database.insert(rows)
    report = await server.cleanup(POLICIES, mode="delete")
    assert set(await server.database.keys()) == kept
    found = archived(folder)
    assert found.keys() == {row.id for row in rows} - kept
    assert (report.outcome, report.deleted, report.archive.versions) == ("completed", 5, 5)
    latest = [version for version in found.values() if version.was_latest]
    assert [version.key for version in latest] == ["idle-key"]
    assert open_archive(str(folder)).collections(["idle-key", "report"])["idle-key"].latest_id == latest[0].id
    assert {(version.key, *version.rules, version.policy) for version in found.values()} == {
        ("report", "unclaimed", "keep one"),
        ("idle-key", "drop_idle_keys_after_days", "idle"),
        (None, "unclaimed", "unkeyed"),
    }
    assert {json.loads(version.data) for version in found.values()} == {"x"}
    (run,) = open_archive(str(folder)).runs()
    assert (run.outcome, run.versions, run.deleted, list(run.spared)) == ("completed", 5, 5, [])
