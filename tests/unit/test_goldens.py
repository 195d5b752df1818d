"""Whole plans of one year of history, one file per policy: goldens/<policy name>.txt.

To regenerate them after a change that was meant (then read the diff):

    UPDATE_GOLDENS=1 pytest tests/unit/test_goldens.py
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from builders import NOW, by_time, version
from prefect_artifact_retention.policies import RetentionPolicy, Version, evaluate

GOLDENS = Path(__file__).parent / "goldens"
LONGEST = 150
RUN = UUID(int=7)

POLICIES = [
    RetentionPolicy(name="keep-last-3", keep_last=3),
    RetentionPolicy(name="keep-within-30-days", keep_within_days=30),
    RetentionPolicy(
        name="grandfather-father-son",
        keep_daily=7,
        keep_weekly=4,
        keep_monthly=12,
        keep_yearly=3,
        timezone="Europe/Zurich",
    ),
    RetentionPolicy(name="grace-after-replacement", keep_last=2, grace_days=14),
    RetentionPolicy(name="hard-limit", keep_last=5, keep_monthly=24, expire_after_days=180),
    RetentionPolicy(name="oldest-beside-a-quarter", keep_within_days=90, keep_oldest=True),
    RetentionPolicy(name="drop-idle-keys", keep_last=10, keep_yearly=5, drop_idle_keys_after_days=30),
]

CONTROLS: Mapping[int, Mapping[str, str]] = {
    3: {"retention-ttl-days": "30"},
    5: {"retention-ttl-days": "7"},
    21: {"retention-hold": "2026-12-31"},
    22: {"retention-hold": "2026-10-31"},
    40: {"retention-hold": "yess"},
    60: {"retention-hold": "true"},
    61: {"retention-ttl-days": "soon"},
    90: {"retention-ttl-days": "365"},
}
"""What the producer of the n-th newest version asked for."""


def year() -> list[Version]:
    """A version every three or four days for a year at various hours, a pause in summer, one run that still runs."""
    versions = []
    for number in range(110):
        created = NOW - timedelta(days=3.5 * number, hours=number % 5)
        if not 100 < (NOW - created).days < 135:
            controls = CONTROLS.get(number)
            versions.append(version(created, metadata=controls, flow_run_id=RUN if number == 15 else None))
    return [*versions, version(NOW + timedelta(minutes=2))]


def idle_year() -> list[Version]:
    """The same year without what its producers asked for, ending six weeks before NOW."""
    return [version(v.created) for v in year() if (NOW - v.created).days >= 42]


def render(policy: RetentionPolicy) -> str:
    """The plan for one policy as text."""
    versions = idle_year() if policy.name == "drop-idle-keys" else year()
    verdicts = evaluate(versions, policy, now=NOW, running=frozenset({RUN}))
    kept = sum(verdict.keep for verdict in verdicts)
    head = [
        f"# {policy.describe()}",
        f"# On {NOW:%Y-%m-%d %H:%M} UTC: keeps {kept}, deletes {len(verdicts) - kept}.",
    ]
    return "\n".join([*head, *by_time(verdicts)]) + "\n"


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_the_plan_is_the_golden_one(policy: RetentionPolicy) -> None:
    """Every verdict and every word of it, as the file named by the policy shows them."""
    golden = GOLDENS / f"{policy.name}.txt"
    rendered = render(policy)
    if os.environ.get("UPDATE_GOLDENS"):
        golden.write_text(rendered, encoding="utf-8")
    assert rendered == golden.read_text(encoding="utf-8")


def test_every_golden_belongs_to_a_policy() -> None:
    """No file is left behind by a policy that was renamed."""
    assert {path.stem for path in GOLDENS.iterdir()} == {policy.name for policy in POLICIES}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_goldens_are_short_enough_to_be_read(policy: RetentionPolicy) -> None:
    """A golden that nobody reads proves nothing."""
    assert len(render(policy).splitlines()) < LONGEST
