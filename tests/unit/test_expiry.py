"""What the expiry of a plan of Prefect Cloud means for policies."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from builders import NOW, history, policy
from prefect_artifact_retention.flows.cli import DONE, USAGE, main
from prefect_artifact_retention.policies.evaluation import evaluate
from prefect_artifact_retention.policies.expiry import PLANS, broken_promises, consequences
from prefect_artifact_retention.policies.loading import OWN_POLICY


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"keep_weekly": 8}, "keep_weekly = 8 promises 56 days: what is older than 30 days is deleted by the server"),
        ({"keep_daily": 31}, "keep_daily = 31 promises 31 days"),
        ({"keep_within_days": 31}, "keep_within_days = 31 promises 31 days"),
        ({"keep_all": True}, "keep_all = true promises to keep everything"),
        ({"keep_daily": 1, "keep_oldest": True}, "keep_oldest = true promises the oldest version for good"),
        ({"keep_last": 10}, "a key that is written less often than 10 times in 30 days has fewer"),
        ({"keep_daily": 7}, "7 days that have any, of any age: what is older than 30 days"),
        ({"keep_weekly": 4}, "a key that is written in fewer than 4 weeks of 30 days has fewer"),
        ({"keep_within_days": 1, "grace_days": 3}, "grace_days = 3 promises 3 days after a newer version has replaced one"),
        ({"keep_daily": 1, "expire_after_days": 60}, "expire_after_days = 60 deletes nothing"),
        ({"keep_daily": 1, "drop_idle_keys_after_days": 90}, "drop_idle_keys_after_days = 90 deletes nothing"),
    ],
)
def test_each_rule_that_promises_more_is_named_with_its_value(fields: dict[str, object], expected: str) -> None:
    """Once, and no other."""
    (line,) = broken_promises([policy(**fields)], 30)
    assert line.startswith('policy "')
    assert expected in line


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_daily": 1},
        {"keep_within_days": 30},
        {"keep_last": 10, "expire_after_days": 29},
        {"keep_monthly": 12, "expire_after_days": 30 - 0.5},
    ],
)
def test_of_a_policy_that_reaches_no_further_just_that_is_said(fields: dict[str, object]) -> None:
    """Neither is anything said of the package's own keys."""
    (line,) = broken_promises([OWN_POLICY, policy(**fields)], 30)
    assert "promises nothing beyond 30 days" in line or "expire_after_days" not in str(fields)
    assert "is deleted by the server" not in line


def test_holds_and_the_latest_go_and_an_archive_needs_a_cleanup_that_is_earlier() -> None:
    """The policies that are too late for it are named."""
    early, late = policy(name="early", keep_last=5, expire_after_days=6), policy(name="late", keep_last=5)
    lines = consequences([OWN_POLICY, early, late], 7, archives=False)
    assert "on hold" in lines[0]
    assert "an archive (archive_url)" in lines[1]
    assert "expire_after_days = 6" in lines[1]
    assert lines[1].endswith('Policies that delete later, or never: "late"')
    assert len(consequences([early], 7, archives=True)) == 1


@pytest.mark.parametrize(
    "fields", [{"keep_daily": 7}, {"keep_weekly": 4}, {"keep_within_days": 1, "grace_days": 3}, {"keep_last": 2}], ids=str
)
def test_a_rule_that_keeps_something_older_is_named(fields: dict[str, object]) -> None:
    """Of a key that is written every 40 days, where the server deletes after 30: no rule counts days without versions."""
    kept = [verdict for verdict in evaluate(history(1, 41, 81), policy(**fields), now=NOW) if verdict.keep]
    assert NOW - kept[-1].version.created > timedelta(days=30)
    assert "promises nothing beyond" not in "".join(broken_promises([policy(**fields)], 30))


def check(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, str]:
    """Run `policies check` with a policy of eight weeks."""
    file = folder / "retention.toml"
    file.write_text('[[policies]]\nname = "reports"\nkeep_weekly = 8\n', encoding="utf-8")
    code = main(["policies", "check", "--config", str(file), *arguments])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_policies_check_says_it_for_a_number_of_days_or_a_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only if asked."""
    monkeypatch.setenv("ARTIFACT_RETENTION_CONFIG", "")
    assert "56 days" not in check(capsys, tmp_path)[1]
    for arguments in (("--expires-after", "30"), ("--plan", "pro")):
        code, printed = check(capsys, tmp_path, *arguments)
        assert code == DONE
        assert 'expiry: policy "reports": keep_weekly = 8 promises 56 days: what is older than 30 days' in printed
    code, printed = check(capsys, tmp_path, "--plan", "team", "--json")
    assert json.loads(printed)["expiry"][0].endswith("what is older than 14 days is deleted by the server")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "pro", "--expires-after", "30"], "--plan and --expires-after"),
        (["--expires-after", "0"], "--expires-after 0"),
        (["--plan", "enterprise"], "enterprise"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one message that names it."""
    monkeypatch.setenv("ARTIFACT_RETENTION_CONFIG", "")
    code, printed = check(capsys, tmp_path, *arguments)
    assert code == USAGE
    assert words in printed


def test_the_page_on_deploying_has_the_plans() -> None:
    """With their days."""
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    for name, number in PLANS.items():
        assert f"| {name.capitalize()} | {number} days |" in page
