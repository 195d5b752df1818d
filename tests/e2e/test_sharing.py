"""Several deployments on workers of their own share the work, as docs/deploy.md says."""

from collections.abc import Collection
from pathlib import Path

from database import Row, days, series
from platforms import PATIENCE, POLICIES, Platform, platform, shell_block, wait_for

SHARES = {"nightly-a-m": ("alpha", "7-metrics"), "nightly-n-z": ("north", "zebra")}
UNKEYED = '[[policies]]\nname = "without a key"\nunkeyed = true\nkeep_within_days = 7\n'
SLOWLY = {"max_requests_per_minute": 60}
"""Makes a run last long enough for another to begin meanwhile."""

VERSIONS, STALE = 20, 14


def stale_of(made: Platform, keys: Collection[str]) -> int:
    """How many stale versions of some keys are left, of keys of which nothing else went."""
    listed = ", ".join(f"'{key}'" for key in keys)
    ((left,),) = made.sql(f"SELECT count(*) FROM artifact WHERE key IN ({listed})")
    return int(left) - len(keys) * (VERSIONS - STALE)


def test_two_workers_delete_their_shares_at_once_and_the_nightly_run_the_rest(tmp_path: Path) -> None:
    """Neither waits for the other; a run over keys of theirs is skipped meanwhile, and afterwards takes what nobody shares."""
    with platform(tmp_path, policies=POLICIES + UNKEYED) as made:
        kept = made.fill([key for keys in SHARES.values() for key in keys], versions=VERSIONS)
        unkeyed = [Row(None, days(age)) for age in (6, 8)]
        made.insert([*unkeyed, *series("artifact-retention-report", range(1, 41))])
        made.prefect("work-pool", "create", "artifact-retention", "--type", "process")
        sharing = made.shell(shell_block("Sharing the work"))
        assert sharing.wait(PATIENCE) == 0, made.log()
        assert made.deployments() == ["nightly", *SHARES, "on-demand"]
        with made.worker(), made.worker("artifact-retention-2"):
            runs = {name: made.start(name, **SLOWLY) for name in SHARES}

            def both_at_work() -> bool | None:
                left = [stale_of(made, keys) for keys in SHARES.values()]
                return True if all(0 < number < 2 * STALE for number in left) else None

            wait_for("deletions of both shares while neither is done", both_at_work)
            overlapping = made.run("nightly")
            ended = [made.wait(run) for run in runs.values()]
            rest = made.run("nightly")
        assert (overlapping["state_type"], overlapping["state"]["name"]) == ("COMPLETED", "Skipped")
        assert any(run in overlapping["state"]["message"] for run in runs.values())
        assert [run["state"]["name"] for run in ended] == ["Completed", "Completed"]
        assert all(run["state"]["message"].startswith(f"Deleted {2 * STALE} versions") for run in ended)
        assert made.left() == kept
        assert rest["state"]["message"].startswith("Deleted 1 version")
