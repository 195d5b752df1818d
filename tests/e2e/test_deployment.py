"""Deployed with `prefect deploy --all` onto a process work pool: scheduled, by hand, twice at once, and after a crash."""

import asyncio
import re
import signal
from pathlib import Path

import httpx
import pytest
from database import series
from platforms import (
    NOT_NOW,
    ROOT,
    TIMEOUT_SECONDS,
    Platform,
    before_you_start,
    checkout,
    end,
    platform,
    shell_block,
    wait_for,
)
from prefect_artifact_retention.flows.local_server import local_server
from servers import long, started

KEYS = [f"key-{number}" for number in range(4)]
SOME = 10
"""Deletions of a run in whose middle something happens."""


def test_a_nightly_run_leaves_exactly_what_the_policy_keeps(deployed: Platform) -> None:
    """And its report, its history and its state say so."""
    kept = deployed.fill(KEYS)
    run = deployed.run("nightly")
    assert (run["state_type"], run["name"]) == ("COMPLETED", "delete all keys")
    assert run["state"]["message"].startswith("Deleted 16 versions")
    assert deployed.left() == kept
    written = {row[0] for row in deployed.sql("SELECT key FROM artifact_collection WHERE key LIKE 'artifact-retention-%'")}
    assert written == {f"artifact-retention-{name}" for name in ("report", "history", "progress")}


@pytest.mark.thorough
def test_pressing_run_on_demand_previews_and_the_description_leads_to_what_it_wrote(deployed: Platform) -> None:
    """Quick run is safe; the links are pages of this server's user interface, of the keys that the package writes."""
    deployed.fill(KEYS)
    run = deployed.run("on-demand")
    assert (run["state_type"], run["name"]) == ("COMPLETED", "preview all keys")
    assert len(deployed.left()) == 40
    urls = re.findall(r"\]\((\S+)\)", deployed.deployment("nightly")["description"])
    assert len(urls) == 3
    for url in urls:
        assert url.startswith(f"{deployed.local.address}/artifacts/key/artifact-retention-")
        assert httpx.get(url, headers={"Accept": "text/html"}, follow_redirects=True).is_success
        assert deployed.ask("GET", f"/artifacts/{url.rpartition('/')[2]}/latest")


@pytest.mark.long
def test_pressing_run_on_doctor_leaves_a_report_and_repairs_only_if_told_to(deployed: Platform) -> None:
    """The run of a worker: Failed, named Broken, until what is broken is repaired."""
    deployed.fill(KEYS)
    deployed.sql(f"DELETE FROM artifact WHERE id = (SELECT latest_id FROM artifact_collection WHERE key = '{KEYS[0]}')")
    ended = [deployed.run("doctor", **parameters) for parameters in ({}, {"fix": True}, {})]
    assert [(run["state_type"], run["state"]["name"], run["name"]) for run in ended] == [
        ("FAILED", "Broken", "examine"),
        ("COMPLETED", "Healthy", "examine and repair"),
        ("COMPLETED", "Healthy", "examine"),
    ]
    report = deployed.ask("GET", "/artifacts/artifact-retention-doctor/latest")
    assert report["data"].startswith("# Healthy: 4 keys with 39 versions")
    assert report["data"].count("](data:image/svg+xml;base64,") == 2


@pytest.mark.thorough
def test_pressing_run_on_sweep_cleans_up_the_targets_of_the_configuration(deployed: Platform, tmp_path: Path) -> None:
    """In the process of one run of a worker: its own server, and another one."""
    kept = deployed.fill(KEYS)
    configuration = deployed.folder / "retention.toml"
    before = configuration.read_text(encoding="utf-8")
    with started("sqlite", tmp_path / "other") as other:
        asyncio.run(other.database.insert(series("a", range(1, 11))))
        addresses = {"home": deployed.local.address, "other": other.local.address}
        tables = [f'[[targets]]\nname = "{name}"\napi_url = "{address}/api"\n' for name, address in addresses.items()]
        configuration.write_text("\n".join([before, *tables]), encoding="utf-8")
        try:
            run = deployed.run("sweep", mode="delete")
        finally:
            configuration.write_text(before, encoding="utf-8")
        assert (run["state_type"], run["name"]) == ("COMPLETED", "delete all keys on all targets"), run["state"]
        assert run["state"]["message"].startswith("Deleted 20 versions")
        assert deployed.left() == kept
        assert len(asyncio.run(other.database.ids("key = 'a'"))) == 6
    report = deployed.ask("GET", "/artifacts/artifact-retention-sweep/latest")["data"]
    assert len([line for line in report.splitlines() if line.startswith(("| home", "| other"))]) >= 2
    children = deployed.ask("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}})
    # Prefect's client creates one again if it had no answer in time, and the first one never begins.
    ended = sorted(child["name"] for child in children if child["state_type"] == "COMPLETED")
    assert ended == ["delete all keys on home", "delete all keys on other"]


@pytest.mark.long
def test_a_schedule_starts_the_nightly_run_and_stays_the_only_one_and_paused(deployed: Platform) -> None:
    """Nobody presses anything; and whoever paused it in the UI finds it paused after deploying again, and again."""
    kept = deployed.fill(KEYS)
    deployed.prefect("deploy", "--all", ARTIFACT_RETENTION_DEPLOY_CRON="* * * * *")
    wait_for("the scheduled run's deletions", lambda: True if deployed.left() == kept else None)
    deployment = deployed.deployment("nightly")
    (schedule,) = deployment["schedules"]
    deployed.ask("PATCH", f"/deployments/{deployment['id']}/schedules/{schedule['id']}", {"active": False})
    deployed.prefect("deploy", "--all", ARTIFACT_RETENTION_DEPLOY_TIMEZONE="Europe/Zurich")
    deployed.prefect("deploy", "--all", ARTIFACT_RETENTION_DEPLOY_TIMEZONE="Europe/Zurich")
    (again,) = deployed.deployment("nightly")["schedules"]
    assert (again["active"], again["schedule"]["cron"], again["schedule"]["timezone"]) == (False, NOT_NOW, "Europe/Zurich")
    deployed.ask("PATCH", f"/deployments/{deployment['id']}/schedules/{again['id']}", {"active": True})
    deployed.wait_for_silence()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ARTIFACT_RETENTION_DEPLOY_KRON": "* * * * *"}, "did you mean ARTIFACT_RETENTION_DEPLOY_CRON?"),
        long({"ARTIFACT_RETENTION_DEPLOY_CRON": "0 25 * * *"}, "ARTIFACT_RETENTION_DEPLOY_CRON = '0 25 * * *'"),
        long({"ARTIFACT_RETENTION_DEPLOY_TIMEZONE": "Mars"}, "ARTIFACT_RETENTION_DEPLOY_TIMEZONE = 'Mars'"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_named(deployed: Platform, variables: dict[str, str], words: str) -> None:
    """Nothing is deployed, and there is no traceback."""
    output = deployed.prefect("deploy", "--all", fails=True, **variables)
    assert words in output
    assert "Traceback" not in output


@pytest.mark.thorough
@pytest.mark.parametrize(
    "parameters", [{"refuse_above_percent": 200}, {"max_deletions": -1}, {"mode": "purge"}, {"policies": [{"name": 7}]}]
)
def test_a_wrong_value_is_refused_when_run_is_pressed(deployed: Platform, parameters: dict[str, object]) -> None:
    """By the server, which has the form's schema."""
    path = f"/api/deployments/{deployed.deployment('on-demand')['id']}/create_flow_run"
    response = httpx.post(deployed.local.address + path, json={"parameters": parameters}, timeout=30)
    assert 400 <= response.status_code < 500
    assert next(iter(parameters)) in response.text


@pytest.mark.thorough
def test_policies_that_cannot_be_meant_fail_the_run_before_anything_is_deleted(deployed: Platform) -> None:
    """What no form can check, the run's state says."""
    deployed.fill(KEYS)
    run = deployed.run("nightly", policies=[{"name": "empty"}])
    assert run["state_type"] == "FAILED"
    assert "no keep rule" in run["state"]["message"]
    assert len(deployed.left()) == 40


@pytest.mark.long
def test_a_second_run_is_skipped_while_the_first_is_running(deployed: Platform) -> None:
    """It ends Completed, named Skipped; the first goes on undisturbed."""
    kept = deployed.fill(KEYS)
    with deployed.held("nightly", SOME) as first:
        second = deployed.run("on-demand", mode="delete")
    assert (second["state_type"], second["state"]["name"]) == ("COMPLETED", "Skipped")
    assert first in second["state"]["message"]
    assert deployed.wait(first)["state"]["name"] == "Completed"
    assert deployed.left() == kept


def age_progress(made: Platform) -> None:
    """Let the night pass: what a dead run wrote last was long ago."""
    made.sql("UPDATE artifact SET updated = datetime(updated, '-11 minutes') || '.000000' WHERE key LIKE '%-progress'")


@pytest.mark.long
def test_a_killed_worker_does_not_stop_the_next_nights_run(deployed: Platform) -> None:
    """The killed run stays Running for ever, until a person cancels it, and holds nobody up."""
    kept = deployed.fill(KEYS)
    nightly = f"/deployments/{deployed.deployment('nightly')['id']}"
    deployed.ask("POST", "/work_pools/", {"name": "other", "type": "process"})
    deployed.ask("PATCH", nightly, {"work_pool_name": "other"})
    with deployed.worker("other") as doomed, deployed.held("nightly", SOME) as killed:
        end(doomed, signal.SIGKILL)
    deployed.ask("PATCH", nightly, {"work_pool_name": "artifact-retention"})
    assert deployed.ask("GET", f"/flow_runs/{killed}")["state_type"] == "RUNNING"
    assert deployed.left() > kept
    age_progress(deployed)
    run = deployed.run("nightly")
    deployed.ask("POST", f"/flow_runs/{killed}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    assert run["state"]["name"] == "Completed"
    assert deployed.left() == kept


@pytest.mark.long
def test_a_server_restart_in_mid_run_does_not_stop_the_next_nights_run(tmp_path: Path) -> None:
    """Whether the run of that night survives it or not."""
    with platform(tmp_path) as made:
        kept = made.fill(KEYS)
        made.prefect("work-pool", "create", "artifact-retention", "--type", "process")
        made.prefect("deploy", "--all")
        with made.worker():
            with made.held("nightly", SOME):
                end(made.local.process, signal.SIGKILL)
            port = int(made.local.address.rpartition(":")[2])
            with local_server(tmp_path / "prefect", port=port) as again:
                again.wait()
                age_progress(made)
                next_night = made.run("nightly")
                assert next_night["state_type"] == "COMPLETED"
                wait_for("what the policy keeps", lambda: True if made.left() == kept else None)


@pytest.mark.thorough
def test_the_checkout_that_is_deployed_is_complete(tmp_path: Path) -> None:
    """What the tests deploy is what git has."""
    assert (checkout(tmp_path) / "deployments" / "description.md").is_file()


@pytest.mark.long
def test_the_page_on_deploying_leads_to_a_nightly_run_and_away_again_without_a_trace(tmp_path: Path) -> None:
    """Its commands and nothing else, from a fresh checkout."""
    with platform(tmp_path, policies=(ROOT / "retention.toml").read_text(encoding="utf-8")) as made:
        made.fill([])
        old = series("old", range(40, 60))
        made.insert(old)
        made.insert(series("young", range(1, 30)))
        process = made.shell([*before_you_start(), *shell_block("A process work pool")])
        try:
            made.wait_until_deployed(process)
            run = made.run("nightly")
            assert run["state"]["message"].startswith("Deleted 10 versions"), made.log()
        finally:
            end(process, signal.SIGTERM)
        assert made.left() & {str(row.id) for row in old} == {str(row.id) for row in old[:10]}
        # As many previews leave them, which delete nothing; Prefect's own command deletes 200 at a time.
        for _ in range(210):
            made.ask("POST", "/artifacts/", {"key": "artifact-retention-report", "type": "markdown", "data": "x"})
        uninstalling = made.shell(shell_block("Uninstalling"))
        assert uninstalling.wait(TIMEOUT_SECONDS) == 0, made.log()
        assert made.sql("SELECT count(*) FROM artifact WHERE key LIKE 'artifact-retention-%'") == [(0,)]
        for kind in ("flow", "flow_run", "deployment", "deployment_schedule", "work_pool"):
            assert made.sql(f"SELECT count(*) FROM {kind}") == [(0,)], kind


@pytest.mark.thorough
def test_a_cancelled_run_stops_at_once_and_says_how_far_it_came(deployed: Platform) -> None:
    """Its progress and its report are honest, and the next run, a moment later, is not skipped."""
    kept = deployed.fill(KEYS)
    with deployed.held("nightly", SOME) as run:
        deployed.prefect("flow-run", "cancel", run)
        ended = deployed.wait(run)
    assert ended["state_type"] == "CANCELLED"

    def final_report() -> str | None:
        rows = deployed.ask("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
        (progress,) = (row for row in rows if row["key"] == "artifact-retention-progress")
        assert progress["data"] < 100
        report = any(row["key"] == "artifact-retention-report" for row in rows)
        return progress["description"] if report and progress["description"].startswith("Stopped. Deleted") else None

    wait_for("the final report of the run", final_report)
    assert deployed.left() > kept
    again = deployed.run("nightly")
    assert again["state"]["name"] == "Completed"
    assert deployed.left() == kept
