"""Several deployments on workers of their own share the work, as docs/deploy.md says."""

import asyncio
import json
from collections.abc import Collection
from pathlib import Path

import pytest
from database import Row, days, series
from platforms import NOT_NOW, POLICIES, TIMEOUT_SECONDS, Platform, platform, shell_block, wait_for

pytestmark = pytest.mark.long

UNKEYED = '[[policies]]\nname = "without a key"\nunkeyed = true\nkeep_within_days = 7\n'
SHARES = {"nightly-a-m": ("7-metrics", "alpha", "beta", "m"), "nightly-n-z": ("n", "north", "west", "zebra")}
VERSIONS, STALE = 12, 6
"""Of each key: no more than half goes, so nothing is refused."""

EACH = 4 * STALE
"""What each share has to delete."""

SLOWLY = {"max_requests_per_minute": 120}
"""Makes a run last long enough for another to begin meanwhile."""


def stale_versions(made: Platform, keys: Collection[str]) -> int:
    """How many stale versions of some keys are left, if nothing else of them went."""
    listed = ", ".join(f"'{key}'" for key in keys)
    ((left,),) = made.sql(f"SELECT count(*) FROM artifact WHERE key IN ({listed})")
    return int(left) - len(keys) * (VERSIONS - STALE)


def without_key(made: Platform, rows: Collection[Row]) -> list[Row]:
    """Which of these rows are left."""
    left = asyncio.run(made.database.ids("key IS NULL"))
    return [row for row in rows if row.id in left]


def test_two_workers_delete_their_keys_at_once_and_nightly_the_rest(tmp_path: Path) -> None:
    """Neither waits for the other; `nightly` is skipped meanwhile, and afterwards takes what belongs to no share."""
    with platform(tmp_path, policies=POLICIES + UNKEYED) as made:
        kept = made.fill([key for keys in SHARES.values() for key in keys], VERSIONS)
        loose = [Row(None, days(6)), Row(None, days(8))]
        made.insert([*loose, *series("artifact-retention-report", range(1, 41))])
        made.prefect("work-pool", "create", "artifact-retention", "--type", "process")
        sharing = made.shell([line.replace("0 1 * * *", NOT_NOW) for line in shell_block("Sharing the work")])
        assert sharing.wait(TIMEOUT_SECONDS) == 0, made.log()
        assert made.deployments() == ["doctor", "nightly", *SHARES, "on-demand", "restore", "sweep", "with-approval"]
        with made.worker(), made.worker("artifact-retention-2"):
            runs = {name: made.start(name, **SLOWLY) for name in SHARES}

            def both_at_work() -> bool | None:
                left = [stale_versions(made, keys) for keys in SHARES.values()]
                return True if all(0 < number < EACH for number in left) else None

            wait_for("both shares begun, and neither done", both_at_work)
            meanwhile = made.run("nightly")
            ended = [made.wait(run) for run in runs.values()]
            assert without_key(made, loose) == loose
            assert made.left() == kept
            rest = made.run("nightly")
        assert (meanwhile["state_type"], meanwhile["state"]["name"]) == ("COMPLETED", "Skipped")
        assert any(run in meanwhile["state"]["message"] for run in runs.values())
        for run in ended:
            assert run["state"]["name"] == "Completed"
            assert run["state"]["message"].startswith(f"Deleted {EACH} versions ")
        assert rest["state"]["message"].startswith("Deleted 1 version ")
        assert made.left() == kept
        assert without_key(made, loose) == loose[:1]
        assert asyncio.run(made.database.dangling()) == []
        history = json.loads(made.ask("GET", "/artifacts/artifact-retention-history/latest")["data"])
        assert sorted(row["run"] for row in history) == [
            "delete [!n-z]*",
            "delete [n-z]*",
            "delete all keys",
            "delete all keys",
        ]
