"""What is valid in policies and hardly meant: it is told, with its counterpart that nobody needs to be told of."""

from typing import Any

import pytest
from prefect_artifact_retention.policies import load_policies
from prefect_artifact_retention.policies.doubts import find_doubts
from prefect_artifact_retention.policies.loading import OWN_POLICY, PREVIEW_POLICY

Table = dict[str, Any]


def doubts(*tables: Table) -> list[str]:
    """The doubts about valid policies."""
    return find_doubts(load_policies(tables, source="retention.toml"))


def models(**fields: object) -> Table:
    """A policy called "models"."""
    return {"name": "models", **fields}


EXPIRED = "expire_after_days = 30 leaves nothing that is older than 30 days"
IDLE = "drop_idle_keys_after_days = 60 deletes a key that is idle for longer"
LIMITED = [
    # fields, how far the rule would reach, the limit
    pytest.param(
        {"keep_monthly": 12, "expire_after_days": 30},
        ("keep_monthly = 12 would reach back about 365 days", EXPIRED),
        id="months-beyond-the-limit",
    ),
    pytest.param(
        {"keep_hourly": 800, "expire_after_days": 30},
        ("keep_hourly = 800 would reach back about 33 days", EXPIRED),
        id="hours-beyond-the-limit",
    ),
    pytest.param(
        {"keep_yearly": 5, "drop_idle_keys_after_days": 60},
        ("keep_yearly = 5 would reach back about 1,826 days", IDLE),
        id="years-of-idle-keys",
    ),
    pytest.param(
        {"keep_last": 3, "grace_days": 90, "expire_after_days": 30},
        ("grace_days = 90 would keep a version for 90 days after it was superseded", EXPIRED),
        id="grace-beyond-the-limit",
    ),
    pytest.param(
        {"keep_last": 3, "grace_days": 90, "drop_idle_keys_after_days": 60},
        ("grace_days = 90 would keep a version for 90 days after it was superseded", IDLE),
        id="grace-of-idle-keys",
    ),
]


@pytest.mark.parametrize(("fields", "doubt"), LIMITED)
def test_a_rule_that_a_limit_cuts_short_is_told_with_its_reach(fields: Table, doubt: tuple[str, str]) -> None:
    """Both numbers are in it, and the name of the policy."""
    assert doubts(models(**fields)) == [f'policy "models": {", but ".join(doubt)}']


def test_each_rule_and_each_limit_is_told() -> None:
    """Four of them."""
    fields = {"keep_monthly": 12, "keep_yearly": 5, "expire_after_days": 30, "drop_idle_keys_after_days": 20}
    assert len(doubts(models(**fields))) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_monthly": 12},
        {"keep_daily": 31, "expire_after_days": 30},
        {"keep_weekly": 5, "expire_after_days": 28},
        {"keep_yearly": 1, "expire_after_days": 30},
        {"keep_monthly": 12, "expire_after_days": 400, "drop_idle_keys_after_days": 365},
        {"keep_last": 100, "expire_after_days": 30},
        {"keep_last": 3, "grace_days": 30, "expire_after_days": 30},
        {"keep_within_days": 30, "expire_after_days": 30},
        {"unkeyed": True, "keep_within_days": 7, "expire_after_days": 30},
        {"keep_all": True},
    ],
    ids=str,
)
def test_a_rule_within_its_limits_is_no_doubt(fields: Table) -> None:
    """Each period of it can have a version."""
    assert doubts(models(**fields)) == []


@pytest.mark.parametrize(
    ("kind", "doubt"),
    [
        ("link", "'link', but Prefect's create_link_artifact makes artifacts of type 'markdown'"),
        ("result", "'result', but results of runs have no key, and are never deleted"),
        ("tables", "'tables', but the type that Prefect has is 'table'"),
    ],
)
def test_a_type_that_prefect_gives_no_key_is_told(kind: str, doubt: str) -> None:
    """It would select nothing, and nobody would know."""
    assert doubts(models(keep_last=1, match_types=["markdown", kind])) == [f'policy "models": match_types has {doubt}']


def test_the_types_of_prefect_and_of_others_are_no_doubt() -> None:
    """Producers may have types of their own."""
    assert doubts(models(keep_last=1, match_types=["markdown", "table", "progress", "image", "my-chart"])) == []


def test_a_glob_that_an_earlier_policy_takes_is_told() -> None:
    """The policy still has other keys, so it is no error; but this one is not protected by it."""
    shield = {"name": "audit", "match_keys": ["audit-*", "report-audit"], "keep_all": True}
    reports = {"name": "reports", "match_keys": ["report-*"], "keep_last": 3}
    assert doubts(reports, shield) == [
        'policy "audit": \'report-audit\' in match_keys never applies, because policy "reports" before it takes all these keys'
    ]
    assert doubts(shield, reports) == []


def test_the_built_in_policies_are_no_doubt() -> None:
    """Nobody could change them."""
    assert find_doubts([OWN_POLICY, PREVIEW_POLICY]) == []


def test_data_that_are_to_move_nowhere_are_doubtful() -> None:
    """Where no archive is configured that keeps data."""
    policies = load_policies([models(keep_last=3, offload_larger_than_kb=100)], source="retention.toml")
    assert find_doubts(policies) == []
    (doubt,) = find_doubts(policies, offloads=False)
    assert doubt == (
        'policy "models": offload_larger_than_kb = 100 does nothing, because no archive is configured that keeps data'
    )
